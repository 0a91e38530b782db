"""Two images in one: which voxel comes from which, in mm and on the screen; oblique and never a
cube.
"""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.geometry import Transform, warp_volume
from napari_shmoareg.plugin.placement import to_layer_geometry
from napari_shmoareg.plugin.quality.composites import (
    ImagePair,
    fill_checkerboard,
    fill_difference,
    fill_swipe,
    image_pair,
    moving_at,
    swipe_edge,
)
from napari_shmoareg.registration.intensity import Intensity


@pytest.fixture
def both() -> ImagePair:
    """Two images that nowhere agree, on voxels of 4 x 3 x 2 mm whose middle stands at the corner of
    four tiles.
    """
    shape = (6, 8, 10)
    low = np.linspace(0, 0.4, 480, dtype=np.float32).reshape(shape)
    return ImagePair(low, low + np.float32(0.5), (4.0, 3.0, 2.0), (-10.0, -10.5, -9.0))


def place_of(both: ImagePair, index) -> np.ndarray:
    """Mm along S, A, R."""
    return np.array(both.origin) + np.array(both.spacing) * index


@pytest.mark.parametrize("axes", [(1, 2), (0, 2), (0, 1), (0, 1, 2)])
def test_tiles_are_as_long_as_asked_and_alternate_along_the_axes_that_are_shown(both, axes):
    out = np.zeros_like(both.fixed)
    fill_checkerboard(out, both, tile=6.0, axes=axes)
    for index in np.ndindex(*out.shape):
        tiles = [int(np.floor(place_of(both, index)[axis] / 6.0)) for axis in axes]
        from_other = sum(tiles) % 2 == 1
        assert out[index] == (both.other if from_other else both.fixed)[index], index


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("rising", [True, False])
def test_left_of_the_edge_is_the_fixed_image_whichever_way_the_axis_runs(both, axis, rising):
    out = np.zeros_like(both.fixed)
    count = out.shape[axis]
    fill_swipe(out, both, swipe_edge(count, 0.5, rising), axis, rising)
    from_left = np.moveaxis(out, axis, 0)[:: 1 if rising else -1]
    fixed, other = (
        np.moveaxis(a, axis, 0)[:: 1 if rising else -1] for a in (both.fixed, both.other)
    )
    half = count // 2
    assert (from_left[:half] == fixed[:half]).all() and (from_left[half:] == other[half:]).all()


def test_the_whole_of_a_swipe_is_one_image_at_either_end(both):
    out = np.zeros_like(both.fixed)
    for rising in (True, False):
        for position, image in ((1.0, both.fixed), (0.0, both.other)):
            fill_swipe(out, both, swipe_edge(10, position, rising), 2, rising)
            assert (out == image).all()


def test_an_edge_that_moves_leaves_what_a_new_one_would(both):
    out, filled = np.zeros_like(both.fixed), np.zeros_like(both.fixed)
    previous = None
    for edge in (5, 8, 2, 2, 0, 10, 9):
        fill_swipe(out, both, edge, 2, False, previous=previous)
        fill_swipe(filled, both, edge, 2, False)
        assert (out == filled).all()
        previous = edge


def test_the_difference_is_absolute_and_nothing_where_both_are_alike(both):
    out = np.zeros_like(both.fixed)
    fill_difference(out, both)
    assert out == pytest.approx(0.5, abs=1e-6)
    fill_difference(out, ImagePair(both.fixed, both.fixed, both.spacing, both.origin))
    assert not out.any()


def test_the_moving_image_as_filed_is_where_its_header_says(registration):
    before, pair = moving_at(registration, "before"), registration.pair
    again = warp_volume(pair.moving, pair.fixed.grid, Transform(np.eye(4)))
    assert before.grid is pair.fixed.grid and (before.values == again.values).all()
    assert moving_at(registration, "after") is registration.warped


def test_both_sides_stand_on_the_straight_copy_of_the_oblique_fixed_grid(registration):
    found, fixed = image_pair(registration, registration.warped), registration.pair.fixed
    shown = to_layer_geometry(fixed)
    assert shown.copied and found.fixed.shape == found.other.shape == shown.data.shape
    assert found.spacing == shown.scale and found.origin == shown.translate
    index = np.unravel_index(fixed.values.argmax(), fixed.values.shape)
    at = np.rint((fixed.grid.to_world(index)[::-1] - shown.translate) / shown.scale).astype(int)
    expected = Intensity.of(fixed).scale(shown.data)[tuple(at)]
    assert found.fixed[tuple(at)] == expected > 0.8


def test_outside_the_fixed_field_of_view_nothing_differs(registration):
    found = image_pair(registration, moving_at(registration, "before"))
    out = np.zeros_like(found.fixed)
    fill_difference(out, found)
    assert out[0, 0, 0] == 0 and out.max() > 0.2


def test_the_moving_image_has_one_scale_before_and_after(registration):
    scale = Intensity.of(registration.pair.moving)
    for stage in ("before", "affine", "after"):
        moved = moving_at(registration, stage)
        found, expected = (
            image_pair(registration, moved).other,
            scale.scale(to_layer_geometry(moved).data),
        )
        seen = found > 0
        assert seen.any() and (found[seen] == expected[seen]).all()
