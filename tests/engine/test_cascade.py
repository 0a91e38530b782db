"""The cascade: units between its grids, what is composed with what, which passes run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from napari_shmoareg.geometry import field
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoARegConfig
from napari_shmoareg.registration.cascade import (
    SMALLEST,
    cascade,
    coarser,
    rescale_displacement,
    run_at_scale,
    to_shape,
)

SHAPE = (37, 29, 23)
SMALL = (20, 16, 13)  # of SHAPE at 0.55


class Planted(nn.Module):
    """Answers every pass with what it is told to; remembers what it was shown."""

    def __init__(self, *answers, passes=(0.55, 1.0)):
        super().__init__()
        self.config = replace(SHMoARegConfig.preset("tiny"), passes=passes)
        self.answers, self.shown, self.asked = list(answers), [], []

    def forward(self, moving, fixed, *, diffeomorphic=None):
        self.shown.append((moving, fixed))
        self.asked.append(diffeomorphic)
        answer = self.answers[len(self.shown) - 1]
        displacement = (
            answer(moving, fixed) if callable(answer) else constant(answer, moving.shape[2:])
        )
        return NetworkOutput(displacement, RoutingTrace(()))


def constant(vector, shape):
    return torch.tensor(vector, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *shape)


def blob(centre, shape=SHAPE, width=4.0):
    """A smooth ball (1, 1, D, H, W)."""
    away = field.identity(shape) - torch.tensor(centre, dtype=torch.float32).view(1, 3, 1, 1, 1)
    return torch.exp(-away.square().sum(1, keepdim=True) / (2 * width**2))


def centre_of(image):
    return (field.identity(image.shape[2:]) * image).sum((2, 3, 4))[0] / image.sum()


def by_centres(moving, fixed):
    """The displacement, in voxels of the grid it is asked on, that brings one ball onto the
    other.
    """
    return constant((centre_of(moving) - centre_of(fixed)).tolist(), moving.shape[2:])


def growing(moving, _):
    """A displacement along i that grows along i: it does not commute with others."""
    along = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1)
    return 0.1 * field.identity(moving.shape[2:])[:, :1] * along


@pytest.fixture
def images():
    return torch.rand(2, 1, 1, *SHAPE)


def test_two_constant_passes_add_up_in_voxels_of_the_fine_grid(images):
    network = Planted((1.0, -2.0, 0.5), (0.25, 0.0, -1.0))
    found, last, _ = cascade(network, *images)
    assert [tuple(moving.shape[2:]) for moving, _ in network.shown] == [SMALL, SHAPE]
    wanted = [1.0 * 37 / 20 + 0.25, -2.0 * 29 / 16, 0.5 * 23 / 13 - 1.0]
    torch.testing.assert_close(found, constant(wanted, SHAPE), rtol=0, atol=1e-5)
    torch.testing.assert_close(last.displacement, constant((0.25, 0.0, -1.0), SHAPE))


def test_what_the_first_pass_found_is_not_left_for_the_last():
    moving, fixed = (
        (blob(c) - 0.03).clamp_min(0) for c in ((20.0, 12.0, 10.0), (16.0, 15.5, 12.0))
    )  # nothing at edges
    network = Planted(by_centres, by_centres)
    found, last, _ = cascade(network, moving, fixed)
    assert float(last.displacement.abs().max()) < 0.3
    torch.testing.assert_close(
        found.mean((2, 3, 4))[0], torch.tensor([4.0, -3.5, -2.0]), rtol=0, atol=0.05
    )
    assert float((field.warp(moving, found) - fixed).abs().max()) < 0.03


def test_each_pass_sees_the_moving_image_warped_by_those_before(images):
    moving, fixed = images
    network = Planted(growing, (1.0, 1.0, 0.0), (0.0, 0.0, 1.0), passes=(0.55, 0.8, 1.0))
    first = rescale_displacement(growing(torch.zeros(1, 1, *SMALL), None), SHAPE)
    second = field.compose(first, constant((37 / 30, 29 / 23, 0), SHAPE))
    found, _, _ = cascade(network, moving, fixed)
    for shown, before in zip(network.shown, (None, first, second), strict=True):
        seen = moving if before is None else field.warp(moving, before, padding="border")
        torch.testing.assert_close(shown[0], to_shape(seen, shown[0].shape[2:]), rtol=0, atol=1e-5)
        torch.testing.assert_close(shown[1], to_shape(fixed, shown[1].shape[2:]))
    torch.testing.assert_close(
        found, field.compose(second, constant((0, 0, 1.0), SHAPE)), rtol=0, atol=1e-5
    )


def test_the_first_pass_is_taken_where_the_last_one_points():
    """u(x) = u_last(x) + u_first(x + u_last(x))."""
    found, _, _ = cascade(Planted(growing, (3.0, 0.0, 0.0)), *torch.rand(2, 1, 1, *SHAPE))
    ratio = 37 / 20
    x = torch.arange(37.0)
    first = ratio * 0.1 * ((x + 3 + 0.5) / ratio - 0.5)
    torch.testing.assert_close(found[0, 0, 2:30, 10, 10], (3 + first)[2:30], rtol=0, atol=1e-4)


@pytest.mark.parametrize("diffeomorphic", [None, True, False])
def test_every_pass_is_asked_for_the_same_kind_of_field(images, diffeomorphic):
    network = Planted((0.0, 0, 0), (0.0, 0, 0))
    cascade(network, *images, diffeomorphic=diffeomorphic)
    assert network.asked == [diffeomorphic] * 2


def test_one_pass_is_the_plain_network_bit_for_bit(tiny_network, images):
    with torch.no_grad():
        plain = tiny_network(*images)
        found, last, _ = cascade(tiny_network, *images, passes=(1.0,))
    assert torch.equal(found, plain.displacement)
    assert torch.equal(last.displacement, plain.displacement)
    for one, other in zip(last.routing, plain.routing, strict=True):
        assert torch.equal(one.routing.experts, other.routing.experts)


def test_a_true_network_runs_at_both_resolutions(tiny_network, images):
    with torch.no_grad():
        found, last, _ = cascade(tiny_network, *images, passes=(0.55, 1.0))
        first = run_at_scale(tiny_network, *images, 0.55)
    assert tuple(found.shape) == (1, 3, *SHAPE) == tuple(first.shape)
    assert torch.equal(found, field.compose(first, last.displacement))
    assert float(first.abs().mean()) > 0.1


@pytest.mark.parametrize(
    ("shape", "passes", "grids"),
    [
        ((20, 18, 17), (0.55, 1.0), [(20, 18, 17)]),  # 11 voxels see nothing
        ((29, 18, 17), (0.55, 1.0), [(16, 10, 9), (29, 18, 17)]),
        ((20, 18, 17), (0.99, 1.0), [(20, 18, 17)]),  # no coarser
        ((40, 30, 20), (0.2, 0.5, 1.0), [(20, 15, 10), (40, 30, 20)]),
        ((40, 30, 20), (1.0, 1.0), [(40, 30, 20)]),
    ],
)
def test_a_pass_that_is_too_coarse_or_no_coarser_is_left_out(shape, passes, grids):
    network, told = Planted(*[(0.0, 0, 0)] * 3, passes=passes), []
    cascade(network, *torch.rand(2, 1, 1, *shape), progress=told.append)
    assert [tuple(moving.shape[2:]) for moving, _ in network.shown] == grids
    assert max(grids[0]) >= SMALLEST
    assert len(told) == len(grids) and told[-1] == 1.0


def test_progress_counts_voxels(images):
    told = []
    cascade(Planted(*[(0.0, 0, 0)] * 3), *images, passes=(0.5, 0.75, 1.0), progress=told.append)
    work = np.cumsum([0.5**3, 0.75**3, 1])
    assert told == pytest.approx(list(work / work[-1]))


@pytest.mark.parametrize("passes", [(), (0.5,), (1.0, 0.5)])
def test_passes_that_do_not_end_at_full_resolution_are_refused(images, passes):
    with pytest.raises(ValueError, match="the last pass must be at full resolution"):
        cascade(Planted(), *images, passes=passes)


@pytest.mark.parametrize(
    "passes", [(), (0.5,), (0, 1), (-0.5, 1), (1.5, 1), (float("nan"), 1), (1, 0.5)]
)
def test_a_config_refuses_bad_passes(passes):
    with pytest.raises(ValueError, match="passes are shares above 0, the last of them 1"):
        SHMoARegConfig(passes=passes)


def test_passes_come_back_from_json_and_an_older_config_has_one():
    config = SHMoARegConfig.preset("small")
    assert len(config.passes) == 2
    told = json.loads(json.dumps(config.to_dict()))
    assert SHMoARegConfig.from_dict(told) == config
    del told["passes"]
    assert SHMoARegConfig.from_dict(told).passes == (1.0,)


def test_a_linear_field_stays_linear_and_each_axis_gets_its_own_unit():
    """Linear in the world, (p, q, r) in fine voxels: the value at a coarse voxel is that at its
    middle.
    """
    matrix = torch.tensor([[0.11, -0.03, 0.02], [0.05, 0.07, -0.04], [-0.06, 0.01, 0.09]])
    ratio = torch.tensor([n / m for n, m in zip(SHAPE, SMALL, strict=True)])

    def linear(positions):
        return torch.einsum("cd,bdijk->bcijk", matrix, positions) + torch.tensor([1.0, -2, 3]).view(
            1, 3, 1, 1, 1
        )

    middles = (field.identity(SMALL) + 0.5) * ratio.view(1, 3, 1, 1, 1) - 0.5
    fine = rescale_displacement(linear(middles) / ratio.view(1, 3, 1, 1, 1), SHAPE)
    wanted = linear(field.identity(SHAPE))
    torch.testing.assert_close(
        fine[..., 2:-2, 2:-2, 2:-2], wanted[..., 2:-2, 2:-2, 2:-2], rtol=0, atol=1e-4
    )


def test_stretching_by_two_is_the_upsampling_of_the_network():
    displacement = torch.randn(2, 3, 9, 7, 5)
    torch.testing.assert_close(
        rescale_displacement(displacement, (18, 14, 10)), field.upsample(displacement, (18, 14, 10))
    )


def test_stretching_stays_in_float32_under_autocast():
    displacement = torch.full((1, 3, 4, 4, 4), 100.3)
    with torch.autocast("cpu", torch.bfloat16):
        fine = rescale_displacement(displacement, (7, 6, 5))
    assert fine.dtype == torch.float32
    torch.testing.assert_close(fine[0, 0], torch.full((7, 6, 5), 100.3 * 7 / 4))


def test_a_coarser_image_is_made_of_means_over_the_same_field_of_view():
    images = torch.rand(1, 2, 24, 18, 12)
    halved = to_shape(images, (12, 9, 6))
    torch.testing.assert_close(halved[0, 1, 3, 2, 1], images[0, 1, 6:8, 4:6, 2:4].mean())
    ramp = field.identity(SHAPE)
    middles = (field.identity(SMALL) + 0.5) * torch.tensor([37 / 20, 29 / 16, 23 / 13]).view(
        1, 3, 1, 1, 1
    ) - 0.5
    assert float((to_shape(ramp, SMALL) - middles).abs().max()) <= 0.5


def test_the_coarser_shape_is_rounded_and_never_of_one_voxel():
    assert coarser(SHAPE, 0.55) == SMALL
    assert coarser((40, 3, 2), 0.2) == (8, 2, 2)
