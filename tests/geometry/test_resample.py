"""Values move between grids without moving in the world."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from napari_shmoareg.geometry import Grid, Volume, apply_affine, background, pull, slabs
from napari_shmoareg.geometry.resample import resample


def ramp(grid):
    """An image whose value is a linear function of the place in the world."""
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    return Volume(line(points).astype(np.float32), grid)


def line(points):
    return points @ np.array([0.7, -1.1, 0.4]) + 5


@given(st.data())
def test_a_linear_ramp_is_read_exactly_between_voxels(grids, data):
    grid = data.draw(grids)
    seed = data.draw(st.integers(0, 1000))
    index = np.random.default_rng(seed).uniform(0, np.array(grid.shape) - 1, (4, 3, 5, 3))
    points = grid.to_world(index)
    read = pull(ramp(grid), Grid((4, 3, 5), np.eye(4)), points)
    np.testing.assert_allclose(read.values, line(points), atol=2e-3)


@given(st.data())
def test_an_image_resampled_on_its_own_grid_is_itself(grids, data):
    grid = data.draw(grids)
    values = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    np.testing.assert_allclose(resample(Volume(values, grid), grid).values, values, atol=1e-4)


@given(st.data())
def test_labels_on_permuted_and_flipped_axes_are_the_same_voxels_in_the_same_dtype(grids, data):
    grid = data.draw(grids)
    values = np.random.default_rng(0).integers(0, 2**40, grid.shape)
    labels = Volume(values, grid, "regions", is_labels=True)
    there = resample(labels, grid.canonical())
    assert there.is_labels and there.values.dtype == np.int64
    back = resample(there, grid)
    np.testing.assert_array_equal(back.values, values)


@given(st.data())
def test_interpolation_agrees_with_scipy(grids, data):
    grid, target = data.draw(grids), data.draw(grids)
    target = Grid(
        target.shape,
        np.block([[target.affine[:3, :3] * 0.3, grid.centre[:, None]], [np.eye(4)[3:]]]),
    )
    values = np.random.default_rng(1).normal(size=grid.shape)
    points = target.to_world(
        np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    )
    index = np.moveaxis(grid.to_index(points), -1, 0)
    expected = map_coordinates(values, index, order=1, mode="nearest")
    within = ((index > -0.49) & (index < np.array(grid.shape).reshape(3, 1, 1, 1) - 0.51)).all(0)
    found = pull(Volume(values, grid), target, points).values
    np.testing.assert_allclose(found[within], expected[within], atol=1e-4)


def test_outside_the_field_of_view_stands_the_background_and_label_zero():
    grid = Grid((6, 5, 4), np.diag([2.0, 3.0, 2.5, 1.0]))
    values = np.full(grid.shape, -1000, np.int16)
    values[2:4, 2:3, 1:3] = 50
    far = grid.crop((3, 0, 0), (6, 5, 4))
    image = resample(Volume(values, grid), far)
    assert background(Volume(values, grid)) == -1000
    assert image.values.dtype == np.float32
    assert (image.values[3:] == -1000).all()
    labels = resample(Volume(np.ones(grid.shape, np.uint8), grid, is_labels=True), far)
    assert (labels.values[:3] == 1).all() and (labels.values[3:] == 0).all()


def test_a_world_map_says_where_to_read():
    grid = Grid((9, 8, 7), np.diag([3.0, 2.0, 2.0, 1.0]))
    matrix = np.eye(4)
    matrix[0, 3] = 9  # mm
    moved = resample(ramp(grid), grid, world_map=matrix)
    np.testing.assert_allclose(moved.values[:6], ramp(grid).values[3:], atol=1e-4)


def test_detail_too_fine_for_the_new_grid_is_averaged_and_labels_are_not():
    grid = Grid((32, 30, 28), np.eye(4))
    checkers = np.indices(grid.shape).sum(0) % 2
    coarse = grid.resampled(4.0)
    image = resample(Volume(checkers.astype(np.float32), grid), coarse).values
    np.testing.assert_allclose(image[1:-1, 1:-1, 1:-1], 0.5, atol=0.05)
    assert set(np.unique(resample(Volume(checkers, grid, is_labels=True), coarse).values)) <= {0, 1}


def test_smoothing_only_what_is_read_changes_nothing():
    grid = Grid((40, 36, 33), np.diag([1.0, 1.0, 1.5, 1.0]))
    values = np.random.default_rng(3).normal(size=grid.shape).astype(np.float32)
    whole = grid.resampled(3.0)
    part = whole.crop((4, 5, 6), (5, 4, 3))
    small = resample(Volume(values, grid), part).values
    np.testing.assert_allclose(
        small, resample(Volume(values, grid), whole).values[4:9, 5:9, 6:9], atol=1e-5
    )


@given(st.data(), st.integers(1, 200))
def test_slabs_cover_a_grid_once_in_order(grids, data, limit):
    grid = data.draw(grids)
    pieces = list(slabs(grid, limit))
    assert [i for part, _ in pieces for i in range(part.start, part.stop)] == list(
        range(grid.shape[0])
    )
    points = np.concatenate([p for _, p in pieces])
    np.testing.assert_allclose(
        points[-1, -1, -1], grid.to_world(np.array(grid.shape) - 1), atol=1e-9
    )


def test_a_function_of_points_reads_what_an_array_of_points_reads():
    grid = Grid((6, 7, 8), np.diag([2.0, 1.0, 3.0, 1.0]))
    matrix = np.eye(4)
    matrix[:3, 3] = (0.4, -0.2, 0.9)
    points = apply_affine(matrix, next(iter(slabs(grid)))[1])
    by_array = pull(ramp(grid), grid, points)
    by_function = pull(ramp(grid), grid, lambda p: apply_affine(matrix, p))
    np.testing.assert_array_equal(by_array.values, by_function.values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float64, np.bool_])
def test_every_dtype_of_image_is_read_as_float32(dtype):
    values = (np.arange(6 * 5 * 4).reshape(6, 5, 4) % 2).astype(dtype)
    grid = Grid((6, 5, 4), np.eye(4))
    found = resample(Volume(values, grid), grid).values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values.astype(np.float32), atol=1e-6)


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.float64])
@pytest.mark.parametrize("spacing", [1.3, 3.7])  # with and without smoothing first
def test_values_near_2_to_the_31_are_resampled_like_those_near_0(kind, spacing):
    values = np.random.default_rng(0).integers(0, 200, (17, 14, 11))
    grid = Grid(values.shape, np.diag([1.0, 1.2, 1.5, 1.0]))
    low = resample(Volume(values.astype(np.float64), grid), grid.resampled(spacing)).values
    high = resample(Volume((values + 2**31).astype(kind), grid), grid.resampled(spacing)).values
    assert low.dtype == np.float32 and high.dtype == np.float64
    np.testing.assert_allclose(high - 2.0**31, low, atol=1e-3)
