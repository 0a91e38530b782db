"""Grid: voxels stand where they stood, whatever is done to the axes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid


def voxels(grid):
    """World positions of all voxels, sorted."""
    points = grid.to_world(
        np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    )
    return points[np.lexsort(points.round(5).T)]


@given(st.data())
def test_the_canonical_grid_names_the_same_world_points(grids, data):
    grid = data.draw(grids)
    canonical = grid.canonical()
    np.testing.assert_allclose(voxels(canonical), voxels(grid), atol=1e-6)


@given(st.data())
def test_canonical_axes_lie_nearest_to_right_front_up_and_stay_there(grids, data):
    canonical = data.draw(grids).canonical()
    order, flip = canonical.axes_to_ras()
    assert list(order) == [0, 1, 2]
    assert not flip.any()


@given(st.data())
def test_index_and_world_undo_each_other(grids, data):
    grid = data.draw(grids)
    index = np.array([[0, 0, 0], [1.5, -2, 3.25]])
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-9)


@given(st.data())
def test_a_token_stands_in_the_middle_of_its_voxels(grids, data):
    grid = data.draw(grids)
    token = grid.coarsen(4)
    np.testing.assert_allclose(token.to_world([0, 0, 0]), grid.to_world([1.5, 1.5, 1.5]), atol=1e-9)
    np.testing.assert_allclose(token.spacing, np.array(grid.spacing) * 4)


@given(st.data())
def test_another_spacing_keeps_the_middle_and_covers_the_field_of_view(grids, data):
    grid = data.draw(grids)
    finer = grid.resampled(1.3)
    np.testing.assert_allclose(finer.centre, grid.centre, atol=1e-9)
    np.testing.assert_allclose(finer.spacing, 1.3)
    assert (
        np.array(finer.shape) * 1.3 >= np.array(grid.shape) * np.array(grid.spacing) - 1e-4
    ).all()


@given(st.data())
def test_a_crop_names_the_same_voxels(grids, data):
    grid = data.draw(grids)
    np.testing.assert_allclose(
        grid.crop((1, 2, 0), (3, 2, 4)).to_world([1, 0, 2]), grid.to_world([2, 2, 2]), atol=1e-9
    )


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "spacing"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "finite"),
    ],
)
def test_an_affine_without_a_place_for_every_voxel_is_refused(affine, word):
    with pytest.raises(InputError, match=word):
        Grid((3, 4, 5), affine)


@pytest.mark.parametrize("size", [5e-4, 0.7, 40.0])
def test_the_same_space_is_told_in_voxels_whatever_their_size(size):
    affine = np.diag([size, size, 2 * size, 1.0])
    grid = Grid((30, 20, 10), affine)
    for shift, same in ((0.05, True), (0.09, True), (0.11, False), (16.0, False)):
        moved = affine.copy()
        moved[0, 3] += shift * size
        other = Grid(grid.shape, moved)
        assert grid.distance(other) == pytest.approx(shift) and grid.same_space(other) == same
    assert not grid.same_space(Grid((30, 20, 11), affine))


def test_the_distance_of_two_grids_is_that_of_their_outer_corners():
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    stretched = np.diag([2.0, 2.0, 4.02, 1.0])
    grid, other = Grid((8, 8, 41), affine), Grid((8, 8, 41), stretched)
    assert grid.distance(other) == pytest.approx(40.5 * 0.02 / 4)
    assert grid.distance(other) == other.distance(grid)
