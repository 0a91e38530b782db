"""Onto the network grid, and back to millimetres."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, VolumePair, apply_affine, warp_volume
from napari_shmoareg.geometry.field import warp
from napari_shmoareg.registration.conform import conform, network_grid
from napari_shmoareg.registration.intensity import Intensity

few = settings(deadline=None, max_examples=15, derandomize=True)


def grid_of(seed, shape=None, middle=(0.0, 0.0, 0.0), extent=90.0):
    """A grid of any orientation, `extent` mm on each side."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    shape = np.array(shape if shape else random.integers(24, 40, 3))
    affine = np.eye(4)
    affine[:3, :3] = turn * (extent / shape)
    affine[:3, 3] = np.array(middle) - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(shape), affine)


def voxels(grid):
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))


def anatomy(points):
    """A smooth image in the world, 0 beyond some 35 mm from the middle."""
    p = points / 12
    inside = 1 / (
        1 + np.exp((np.linalg.norm(points / np.array([1.0, 0.85, 0.7]), axis=-1) - 30) / 1.5)
    )
    return (
        inside * (200 + 60 * np.sin(p[..., 0]) * np.cos(p[..., 1]) + 50 * np.sin(p[..., 2]))
    ).astype(np.float32)


def ball(points):
    return (np.linalg.norm(points - np.array([5, -4, 3]), axis=-1) < 14).astype(np.uint8)


def bend(points):
    """A smooth displacement of up to 4 mm."""
    p = points / 25
    return np.stack([4 * np.sin(p[..., 1]), 3 * np.cos(p[..., 2]), 3.5 * np.sin(p[..., 0])], -1)


MATRIX = np.array(
    [[0.98, 0.17, 0, 14.0], [-0.17, 0.98, 0.05, -9], [0, -0.05, 1.03, 22], [0, 0, 0, 1]]
)


@few
@given(st.integers(0, 10**6))
def test_a_planted_transform_comes_back_through_the_network_grid(seed):
    # moving is anatomy seen through the inverse of T(x) = A(x + d(x)); made exactly by fixed-point
    # iteration.
    moving_grid, fixed_grid = grid_of(seed, middle=MATRIX[:3, 3], extent=110.0), grid_of(seed + 1)
    target = apply_affine(np.linalg.inv(MATRIX), voxels(moving_grid))
    x = target.copy()
    for _ in range(60):
        x = target - bend(x)
    pair = VolumePair(
        Volume(anatomy(x), moving_grid), Volume(anatomy(voxels(fixed_grid)), fixed_grid)
    )
    conformed = conform(pair, size=36, affine=MATRIX)
    planted = bend(voxels(conformed.grid)) @ np.linalg.inv(conformed.grid.affine[:3, :3]).T
    displacement = torch.from_numpy(planted.astype(np.float32)).permute(3, 0, 1, 2)[None]
    seen = warp(conformed.moving, displacement)
    before, after = ((m - conformed.fixed).abs().mean() for m in (conformed.moving, seen))
    assert after < 0.02 and after < 0.4 * before
    transform = conformed.transform(displacement)
    points = voxels(fixed_grid)
    body = pair.fixed.values > 20
    np.testing.assert_allclose(
        transform.map_points(points)[body],
        apply_affine(MATRIX, points + bend(points))[body],
        atol=0.2,
    )
    warped = warp_volume(pair.moving, fixed_grid, transform)
    assert warped.grid is fixed_grid
    assert np.corrcoef(warped.values[body], pair.fixed.values[body])[0, 1] > 0.97


@few
@given(st.integers(0, 10**6), st.sampled_from([24, 37, 48]))
def test_the_network_grid_is_isotropic_canonical_and_as_long_as_asked(seed, size):
    grid = grid_of(seed, shape=(61, 67, 72))
    pair = VolumePair(Volume(anatomy(voxels(grid)), grid), Volume(anatomy(voxels(grid)), grid))
    network = network_grid(pair, size=size)
    assert max(network.shape) == size
    np.testing.assert_allclose(network.spacing, network.spacing[0])
    order, flip = network.axes_to_ras()
    assert list(order) == [0, 1, 2] and not flip.any()
    cosines = network.affine[:3, :3] / network.spacing[0]
    np.testing.assert_allclose(
        cosines, grid.canonical().affine[:3, :3] / grid.canonical().spacing, atol=1e-9
    )


@few
@given(st.integers(0, 10**6))
def test_the_network_grid_holds_the_content_of_both_and_stays_in_the_fixed_view(seed):
    fixed_grid, moving_grid = (
        grid_of(seed, extent=130.0),
        grid_of(seed + 5, middle=MATRIX[:3, 3], extent=110.0),
    )
    moving = Volume(
        anatomy(apply_affine(np.linalg.inv(MATRIX), voxels(moving_grid)) + np.array([9, 0, 0])),
        moving_grid,
    )
    pair = VolumePair(moving, Volume(anatomy(voxels(fixed_grid)), fixed_grid))
    network = network_grid(pair, size=40, affine=MATRIX)
    for volume, back in ((pair.fixed, np.eye(4)), (pair.moving, np.linalg.inv(MATRIX))):
        content = voxels(volume.grid)[Intensity.of(volume).content(volume.values)]
        index = network.to_index(apply_affine(back, content))
        assert index.min() > 0 and (index < np.array(network.shape) - 1).all()
    index = fixed_grid.to_index(network.corners())
    slack = network.spacing[0] / np.array(fixed_grid.spacing)  # rounding up to whole voxels
    assert (index > -0.5 - slack).all() and (index < np.array(fixed_grid.shape) - 0.5 + slack).all()


def test_more_voxels_than_the_scan_has_are_not_invented():
    grid = grid_of(3, shape=(30, 45, 36))
    pair = VolumePair(Volume(anatomy(voxels(grid)), grid), Volume(anatomy(voxels(grid)), grid))
    network = network_grid(pair, size=512)
    assert network.spacing[0] == pytest.approx(min(grid.spacing))


def test_native_is_the_fixed_grid_itself_with_its_axes_sorted(pair):
    conformed = conform(pair, size="native", labels=True)
    canonical = pair.fixed.grid.canonical()
    assert conformed.grid.same_space(canonical)
    order, flip = pair.fixed.grid.axes_to_ras()
    labels = pair.fixed_labels.values.transpose(order)
    labels = labels[tuple(slice(None, None, -1) if f else slice(None) for f in flip)]
    np.testing.assert_array_equal(conformed.fixed_labels[0, 0].numpy(), labels)


def test_what_the_network_sees_is_in_zero_to_one_with_a_background_of_zero(pair):
    conformed = conform(pair, size=24, labels=True)
    for image in (conformed.moving, conformed.fixed):
        assert image.dtype == torch.float32
        assert image.shape == (1, 1, *conformed.grid.shape)
        assert image.min() == 0 and 0.8 < image.max() <= 1
    for labels, volume in (
        (conformed.moving_labels, pair.moving_labels),
        (conformed.fixed_labels, pair.fixed_labels),
    ):
        assert set(labels.unique().tolist()) == {0, *volume.labels}


def test_labels_are_carried_only_when_asked_for_and_given(pair):
    assert conform(pair, size=16).fixed_labels is None
    without = VolumePair(pair.moving, pair.fixed, None, pair.fixed_labels)
    conformed = conform(without, size=16, labels=True)
    assert conformed.moving_labels is None and conformed.fixed_labels is not None


def test_sheared_and_mirrored_headers_conform_to_the_same_picture():
    straight = Grid(
        (40, 44, 36), np.diag([2.5, 2.2, 2.6, 1.0]) + np.array([[0, 0, 0, -48.75]] * 3 + [[0] * 4])
    )
    sheared = Grid(
        (44, 40, 42),
        np.array([[-2.5, 0.4, 0, 48], [0.2, 2.4, 0.3, -58], [0, 0, 2.6, -54], [0, 0, 0, 1.0]]),
    )
    fixed = Volume(anatomy(voxels(straight)), straight)
    conformed = conform(VolumePair(Volume(anatomy(voxels(sheared)), sheared), fixed), size=32)
    assert np.corrcoef(conformed.moving.ravel(), conformed.fixed.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("size", [0, -3, 4, 2.5, "big", True, None])
def test_a_size_that_is_none_is_refused(pair, size):
    with pytest.raises(InputError, match="at least 8"):
        conform(pair, size=size)


def test_a_displacement_of_another_grid_is_refused(pair):
    conformed = conform(pair, size=16)
    with pytest.raises(InputError, match="was expected"):
        conformed.transform(torch.zeros(1, 3, 4, 4, 4))


def test_images_that_cannot_be_registered_are_refused_by_name(pair):
    flat = pair.fixed.with_values(np.zeros(pair.fixed.grid.shape), name="nothing")
    with pytest.raises(InputError, match="fixed image 'nothing' is constant"):
        conform(VolumePair(pair.moving, flat))
    holes = pair.moving.values.copy()
    holes[3, 4, 5:7] = np.nan
    with pytest.raises(InputError, match="2 voxels that are NaN"):
        conform(VolumePair(pair.moving.with_values(holes), pair.fixed))
