"""Slices through a volume, turned the way people look at them."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.figures.panels import VIEWS, cut, directions, in_plane, middle, plane
from napari_shmoareg.geometry import Grid, Volume

SHAPE = (8, 11, 6)


def _volume(affine, function, shape=SHAPE):
    grid = Grid(shape, affine)
    points = grid.to_world(np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1))
    return Volume(function(*np.moveaxis(points, -1, 0)), grid)


def _lia():
    """Axes stored to the left, down and front, 2 x 3 x 1.5 mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-2, 0, 0], [0, 0, 1.5], [0, -3, 0]])
    affine[:3, 3] = 7, -4, 12
    return affine


@pytest.mark.parametrize("view", VIEWS)
def test_left_back_and_top_lie_to_the_right_or_up_whatever_the_file_order(view):
    for axis in in_plane(view):
        volume = _volume(_lia(), lambda *xyz, axis=axis: xyz[axis])
        pixels = cut(volume, volume.grid.centre, view).pixels
        along = 1 if axis == in_plane(view)[0] else 0
        upward = -1 if along else 1  # radiological: R and A stand on the left of the screen
        assert (upward * np.diff(pixels, axis=along) > 0).all() and not np.diff(
            pixels, axis=1 - along
        ).any()


def test_the_letters_name_the_ends_of_each_view():
    volume = _volume(_lia(), lambda x, y, z: x)
    ends = {view: "".join(cut(volume, volume.grid.centre, view).ends) for view in VIEWS}
    assert ends == {"sagittal": "APIS", "coronal": "RLIS", "axial": "RLPA"}


def test_a_slice_is_as_wide_in_millimetres_as_its_volume_and_starts_at_the_point():
    volume = _volume(_lia(), lambda x, y, z: x)
    point = volume.grid.to_world((1.0, 2.0, 3.0))
    left, right, bottom, top = cut(volume, point, "axial").extent
    assert (right - left, top - bottom) == pytest.approx((8 * 2, 6 * 1.5))
    assert (left, bottom) == pytest.approx((-1.5 * 2, -3.5 * 1.5))


@pytest.mark.parametrize("view", VIEWS)
def test_coarse_and_fine_grids_of_one_field_of_view_lie_on_top_of_each_other(pair, view):
    fine = pair.fixed
    coarse = Volume(
        np.zeros(fine.grid.crop((0, 0, 0), (36, 28, 20)).coarsen(4).shape),
        fine.grid.crop((0, 0, 0), (36, 28, 20)).coarsen(4),
    )
    cropped = Volume(fine.values[:36, :28, :20], fine.grid.crop((0, 0, 0), (36, 28, 20)))
    assert cut(coarse, fine.grid.centre, view).extent == pytest.approx(
        cut(cropped, fine.grid.centre, view).extent
    )


def test_a_point_outside_gives_the_nearest_plane():
    volume = _volume(np.diag([2.0, 3.0, 1.5, 1.0]), lambda x, y, z: z)
    assert (cut(volume, (0, 0, 1e4), "axial").pixels == 5 * 1.5).all()


def test_outlines_run_along_the_edges_of_the_pixels():
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[3:5, 4:7, 2] = 1
    volume = Volume(values, Grid(SHAPE, np.diag([2.0, 3.0, 1.5, 1.0])), is_labels=True)
    segments = cut(volume, (0, 0, 3.0), "axial").outlines()
    lengths = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=-1)
    assert lengths.sum() == pytest.approx(2 * (2 * 2 + 3 * 3))
    assert segments[..., 0].max() == pytest.approx(-2.5 * 2) and segments[
        ..., 1
    ].max() == pytest.approx(6.5 * 3)


def test_the_plane_of_a_view_is_that_of_the_grid(pair):
    grid = pair.fixed.grid
    steps = np.array([-3.0, 0.0, 6.0]), np.array([0.0, 4.0])
    points = plane(grid, grid.centre, "axial", steps)
    assert points.shape == (2, 3, 3)
    assert (points[0, 1] == grid.centre).all()
    moved = (points - grid.centre) @ directions(grid)
    assert moved[..., 0] == pytest.approx(np.broadcast_to(-steps[0], (2, 3)))
    assert moved[..., 2] == pytest.approx(0, abs=1e-9)


def test_the_middle_is_that_of_what_is_shown_and_not_of_the_field_of_view():
    values = np.full((30, 20, 25), -1000.0)
    values[3:8, 10:14, 15:18] = 50
    grid = Grid(values.shape, _lia())
    assert middle(Volume(values, grid)) == pytest.approx(grid.to_world((5, 11.5, 16)))
    assert middle(Volume(np.ones((3, 4, 5)), Grid((3, 4, 5), _lia()))) == pytest.approx(
        Grid((3, 4, 5), _lia()).centre
    )
