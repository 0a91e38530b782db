"""Where volumes stand in the viewer: never a cube, oblique, and the way back to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Image, Labels, Points

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.plugin.placement import (
    AXES,
    layer_options,
    placement_of,
    tag,
    to_layer_geometry,
    volume_of,
)


def straight_volume(codes: np.ndarray, shape=(5, 6, 7), is_labels=False) -> Volume:
    """Axes as stored may be permuted and flipped, but not tilted: `codes` is a signed permutation
    times spacing.
    """
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = codes, (10.0, -20.0, 30.0)
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return Volume(values, Grid(shape, affine), "scan", is_labels)


def value_at(layer, position):
    """What a layer holds at a place of the viewer's world, in any slice."""
    return layer.data[tuple(int(n) for n in np.rint(layer.world_to_data(position)))]


STORED = [
    np.diag([2.0, 3.0, 4.0]),
    np.diag([-2.0, 3.0, -4.0]),
    np.array([[0, 0, -1.5], [2.0, 0, 0], [0, -3.0, 0]]),
]


@pytest.mark.parametrize("codes", STORED)
def test_a_voxel_is_found_in_the_viewer_at_its_place_in_mm(codes):
    volume = straight_volume(codes)
    data, options = layer_options(volume)
    layer = Image(data, **options)
    index = (1, 4, 2)
    r, a, s = volume.grid.to_world(index)
    assert value_at(layer, (s, a, r)) == volume.values[index]
    assert np.shares_memory(data, volume.values) and min(options["scale"]) > 0
    assert layer.axis_labels == AXES and {str(u) for u in layer.units} == {"millimeter"}


@pytest.mark.parametrize("codes", STORED)
def test_a_layer_gives_its_volume_back_to_the_bit_and_on_its_own_grid(codes):
    volume = straight_volume(codes)
    data, options = layer_options(volume)
    back = volume_of(Image(data, **options))
    assert (back.values == volume.values).all() and back.grid is volume.grid


def test_an_oblique_scan_is_shown_straight_and_registered_as_it_is(phantoms):
    data, options = layer_options(phantoms.fixed)
    layer = Image(data, **options)
    assert tag(layer, "copied")
    peak = np.unravel_index(phantoms.fixed.values.argmax(), phantoms.fixed.values.shape)
    shown = value_at(layer, phantoms.fixed.grid.to_world(peak)[::-1])
    assert shown == pytest.approx(phantoms.fixed.values[peak], rel=0.05)
    corners = phantoms.fixed.grid.corners()[:, ::-1]
    low, high = layer.extent.world
    assert (low <= corners.min(axis=0) + layer.scale).all() and (
        high >= corners.max(axis=0) - layer.scale
    ).all()
    assert volume_of(layer).values is phantoms.fixed.values


def test_a_copy_of_labels_holds_only_labels_and_covers_as_much(phantoms):
    placed = to_layer_geometry(phantoms.fixed_labels, finer=2)
    assert set(np.unique(placed.data)) == set(np.unique(phantoms.fixed_labels.values))
    space = np.prod(placed.scale) / np.prod(phantoms.fixed_labels.grid.spacing)
    assert (placed.data == 2).sum() * space == pytest.approx(
        (phantoms.fixed_labels.values == 2).sum(), rel=0.03
    )


def test_painted_labels_are_what_is_registered_on_the_grid_of_the_file(phantoms):
    for volume, block in (
        (straight_volume(STORED[2], is_labels=True), (slice(2, 3), slice(3, 4), slice(4, 5))),
        (phantoms.fixed_labels, (slice(15, 18), slice(18, 21), slice(20, 23))),
    ):
        data, options = layer_options(volume)
        layer = Labels(data.copy(), **options)
        layer.data[block] = 999
        back = volume_of(layer)
        assert (
            back.is_labels and back.grid is volume.grid and back.values.dtype == volume.values.dtype
        )
        painted = back.values == 999
        expected = layer.data[block].size * np.prod(layer.scale) / np.prod(volume.grid.spacing)
        assert painted.sum() == pytest.approx(expected, rel=0.25)
        at = [
            layer.world_to_data(volume.grid.to_world(index)[::-1]) for index in np.argwhere(painted)
        ]
        low, high = [s.start - 0.5 for s in block], [s.stop - 0.5 for s in block]
        assert (np.array(at) > low).all() and (np.array(at) < high).all()
        assert (back.values[~painted] == volume.values[~painted]).all()


def test_a_label_that_is_erased_from_an_oblique_scan_leaves_no_crumbs(phantoms):
    labels = phantoms.fixed_labels
    data, options = layer_options(labels)
    layer = Labels(np.where(data == 2, 0, data), **options)
    values = volume_of(layer).values
    assert (labels.values == 2).any() and (values != 2).all()
    # at its edge: the screen showed it there
    others = np.argwhere((values != labels.values) & (labels.values != 2))
    shown = [layer.world_to_data(labels.grid.to_world(index)[::-1]) for index in others]
    assert all(data[tuple(np.rint(place).astype(int))] == 2 for place in shown)


def test_a_layer_that_was_moved_by_hand_is_taken_where_it_lies_now():
    volume = straight_volume(STORED[0])
    data, options = layer_options(volume)
    layer = Image(data, **options)
    layer.translate = np.add(layer.translate, (5, 0, 0))
    moved = volume_of(layer).grid
    assert moved.to_world((0, 0, 0)) == pytest.approx(
        np.add(volume.grid.to_world((0, 0, 0)), (0, 0, 5))
    )


def test_a_foreign_layer_is_taken_in_its_own_units():
    layer = Image(
        np.random.default_rng(0).random((4, 5, 6)),
        scale=(3000, 500, 500),
        translate=(1000, 0, 0),
        units=("um",) * 3,
    )
    volume = volume_of(layer)
    assert volume.grid.shape == (6, 5, 4)
    assert volume.grid.spacing == pytest.approx((0.5, 0.5, 3.0))
    assert volume.grid.to_world((0, 0, 0)) == pytest.approx((0, 0, 1))
    assert volume.values[5, 1, 2] == layer.data[2, 1, 5]


def test_a_turned_foreign_layer_keeps_its_turn():
    affine = np.eye(4)
    affine[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    layer = Image(np.zeros((4, 5, 6)), affine=affine, scale=(2, 1, 1))
    grid = volume_of(layer).grid
    assert grid.to_world((5, 1, 3))[::-1] == pytest.approx(layer.data_to_world((3, 1, 5)))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Image(np.zeros((3, 4, 5, 6)), name="4D"), "4 axes"),
        (Image(np.zeros((3, 4, 5, 3)), name="rgb", rgb=True), "colour"),
        (Points(np.zeros((3, 3)), name="dots"), "points"),
        (Image(np.zeros((3, 4, 5)), name="t", units=("s", "mm", "mm")), "no length"),
    ],
)
def test_what_is_no_volume_is_refused_by_name(layer, says):
    with pytest.raises(InputError, match=says):
        volume_of(layer)


@pytest.mark.parametrize("codes", STORED)
def test_a_layer_that_was_cropped_is_taken_where_it_lies(codes):
    volume = straight_volume(codes)
    data, options = layer_options(volume)
    layer = Image(data, **options)
    layer.data = data[:, :-2]
    back = volume_of(layer)
    place = layer.data_to_world((2, 1, 3))
    assert back.values.shape == layer.data.shape[::-1] and back.grid.to_world(
        (3, 1, 2)
    ) == pytest.approx(place[::-1])


@pytest.mark.parametrize("finer", [1.0, 2.0])
def test_a_moved_layer_still_gives_the_voxels_of_its_file_and_where_it_was_moved(phantoms, finer):
    for volume in (straight_volume(STORED[2]), phantoms.moving):
        data, options = layer_options(volume, finer=finer)
        layer = Image(data, **options)
        assert placement_of(layer) is None
        turn = np.eye(4)  # in the plane of the axes A and R, as a drag of a handle does it
        turn[1:3, 1:3], turn[:3, 3] = [[0.8, -0.6], [0.6, 0.8]], (5.0, -7.0, 11.0)
        layer.affine = turn
        layer.translate = np.add(layer.translate, (2.0, 0, 0))
        back = volume_of(layer, as_placed=False)
        assert back.grid is volume.grid and (back.values == volume.values).all()
        file_point = np.array([3.0, -2.0, 8.0])  # R, A, S: shown at S, A, R
        shown = turn[:3, :3] @ (file_point[::-1] + np.array([2.0, 0, 0])) + turn[:3, 3]
        placed = placement_of(layer)
        assert (placed @ [*file_point, 1])[2::-1] == pytest.approx(shown)
        assert volume_of(layer).grid.to_world((0, 0, 0)) == pytest.approx(
            layer.data_to_world((0, 0, 0))[::-1]
        )


def test_what_was_cropped_or_is_of_another_source_has_no_placement():
    data, options = layer_options(straight_volume(STORED[0]))
    layer = Image(data[1:], **options)
    layer.translate = np.add(layer.translate, (5, 0, 0))
    assert placement_of(layer) is None and placement_of(Image(data, translate=(1, 2, 3))) is None
    assert volume_of(layer, as_placed=False).grid.shape == data[1:].shape[::-1]
