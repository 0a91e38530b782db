"""Displacement fields in voxels: analytic facts."""

import pytest
import torch
from torch.nn import functional as F

from napari_shmoareg.geometry.field import (
    compose,
    identity,
    integrate,
    invert,
    jacobian_determinant,
    sample,
    upsample,
    warp,
)

SHAPE = (11, 14, 9)


def smooth(size: float, seed: int = 0, shape=SHAPE) -> torch.Tensor:
    """A smooth random displacement, 0 at the borders, of at most `size` voxels."""
    noise = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    field = F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)
    fade = torch.ones(shape)
    for axis, n in enumerate(shape):
        edge = torch.sin(torch.linspace(0, torch.pi, n))
        fade = fade * edge.reshape([-1 if a == axis else 1 for a in range(3)])
    field = field * fade
    return size * field / field.abs().max()


def test_a_zero_field_warps_an_image_to_itself():
    image = torch.rand(1, 2, *SHAPE)
    torch.testing.assert_close(warp(image, torch.zeros(1, 3, *SHAPE)), image, atol=1e-5, rtol=0)


def test_component_c_moves_along_axis_c():
    image = torch.rand(1, 1, *SHAPE)
    for axis in range(3):
        displacement = torch.zeros(1, 3, *SHAPE)
        displacement[:, axis] = 2
        pulled = warp(image, displacement)
        n = SHAPE[axis] - 2
        expected, found = image.narrow(axis + 2, 2, n), pulled.narrow(axis + 2, 0, n)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert pulled.narrow(axis + 2, n, 2).abs().max() < 1e-5


def test_warping_by_a_composed_field_is_warping_twice():
    ramp = identity(SHAPE)
    outer, inner = smooth(1.5, 1), smooth(1.5, 2)
    twice = warp(warp(ramp, outer, padding="border"), inner, padding="border")
    once = warp(ramp, compose(outer, inner), padding="border")
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_field_composed_with_its_inverse_stays_in_place(seed):
    displacement = smooth(1.2, seed, (21, 26, 18))
    assert jacobian_determinant(displacement).min() > 0.2
    inverse = invert(displacement)
    assert compose(displacement, inverse).abs().max() <= 1e-3
    # The other way round the inverse is interpolated between voxels, which costs accuracy.
    assert compose(inverse, displacement).abs().max() < 0.3
    assert compose(inverse, displacement).abs().mean() < 0.02


def test_the_inverse_of_a_shift_is_the_shift_back():
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 1] = 2.5
    torch.testing.assert_close(invert(displacement), -displacement)


def test_a_threefold_stretch_is_inverted_although_plain_fixed_points_run_away():
    stretch = 2.0 * (identity((15, 15, 15)) - 7)
    inverse = invert(stretch, iterations=100)
    torch.testing.assert_close(inverse, -2 / 3 * (identity((15, 15, 15)) - 7), atol=2e-2, rtol=0)


def test_a_folding_field_gets_the_best_point_found():
    displacement = smooth(9.0, 4)
    assert jacobian_determinant(displacement).min() < 0
    inverse = invert(displacement)
    left, start = (compose(displacement, v).norm(dim=1) for v in (inverse, -displacement))
    assert torch.isfinite(inverse).all()
    assert (left <= start + 1e-5).all()
    assert left.mean() < 0.5 * start.mean()


def test_an_integrated_velocity_is_undone_by_its_negative():
    velocity = smooth(2.0, 3, (21, 26, 18))
    back = compose(integrate(velocity), integrate(-velocity)).abs()
    assert back.max() < 0.25
    assert back.mean() < 0.01


def test_the_jacobian_of_a_scaling_is_its_product():
    scales = torch.tensor([1.2, 0.7, 1.5]).reshape(1, 3, 1, 1, 1)
    jacobian = jacobian_determinant((scales - 1) * identity(SHAPE))
    torch.testing.assert_close(jacobian, torch.full((1, 1, *SHAPE), 1.2 * 0.7 * 1.5))


def test_the_jacobian_of_a_rotation_is_one_and_of_a_mirror_minus_one():
    turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    for matrix, expected in ((turn, 1.0), (mirror, -1.0)):
        displacement = torch.einsum("ij,bjdhw->bidhw", matrix - torch.eye(3), identity(SHAPE))
        torch.testing.assert_close(
            jacobian_determinant(displacement), torch.full((1, 1, *SHAPE), expected)
        )


def test_a_single_slice_has_a_jacobian_too():
    displacement = 0.5 * identity((1, 6, 5))
    torch.testing.assert_close(
        jacobian_determinant(displacement), torch.full((1, 1, 1, 6, 5), 1.5**2)
    )


def test_an_upsampled_shift_moves_the_same_part_of_the_image():
    coarse = torch.full((1, 3, 5, 7, 4), 1.5)
    torch.testing.assert_close(upsample(coarse, (10, 14, 8)), torch.full((1, 3, 10, 14, 8), 3.0))


def test_coordinates_stay_exact_under_bfloat16_autocast():
    image = identity((64, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sample(image, identity((64, 4, 4)))
    torch.testing.assert_close(found, image, atol=1e-4, rtol=0)
