"""DisplacementField: after an affine, and warping on its own grid."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.geometry import DisplacementField, Grid, Transform, warp_volume


def field_on(grid) -> DisplacementField:
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    return DisplacementField((3 * np.sin(points / 20)).astype(np.float32), grid)


def test_a_field_after_an_affine_is_the_whole_transform(pair):
    affine = np.array([[1.05, 0.1, 0, 4], [-0.08, 0.97, 0.03, -2], [0, 0.05, 1.1, 6], [0, 0, 0, 1]])
    field = field_on(pair.fixed.grid)
    whole = Transform(affine, field).total(pair.fixed.grid)
    np.testing.assert_allclose(field.after(affine).vectors, whole.vectors, atol=1e-3)


def test_warping_by_a_field_is_warping_by_its_transform(pair):
    field = field_on(pair.fixed.grid)
    for volume in (pair.moving, pair.moving_labels):
        there = warp_volume(volume, pair.fixed.grid, Transform(np.eye(4), field))
        here = field.warp(volume)
        assert here.values.dtype == there.values.dtype
        agree = np.isclose(here.values, there.values, atol=1e-2)
        assert agree.mean() > 0.999


@pytest.mark.parametrize("turn", [0.0, 0.3])  # with shared axes, permuted and flipped, and without
def test_on_another_grid_it_is_what_it_is_at_that_grid_s_points(turn):
    own = Grid(
        (9, 11, 7), np.array([[0, -1.5, 0, 3], [2, 0, 0, -7], [0, 0, -1.7, 9], [0, 0, 0, 1.0]])
    )
    field = DisplacementField(np.random.default_rng(0).normal(size=(*own.shape, 3)), own)
    affine = np.array([[1.1, 0, 0, -12], [0, 0, 1.3, -5], [0, -1, 0, 9], [0, 0, 0, 1.0]])
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    other = Grid((19, 8, 23), affine @ turned)  # beyond the field on all sides
    points = other.to_world(np.stack(np.meshgrid(*map(np.arange, other.shape), indexing="ij"), -1))
    np.testing.assert_allclose(field.on(other).vectors, field.at(points), atol=1e-4)
