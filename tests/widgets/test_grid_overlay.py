"""The deformation grid lies in the slice that is shown, whichever it is, and bends as the field
says.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_shmoareg.geometry import DisplacementField, Grid, Transform
from napari_shmoareg.plugin.deformation import (
    arrow_limit,
    arrows,
    follow_slider,
    grid_lines,
    layer_scale,
    set_spacing,
)
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import to_viewer
from napari_shmoareg.plugin.viewer import centre_on

SHIFT = np.array([2.0, -3.0, 4.0])  # mm to the right, front, top


@pytest.fixture(scope="module")
def shifted(registration):
    """A registration whose deformation is a shift; its affine, which is not drawn, another one."""
    grid = registration.pair.fixed.grid
    field = DisplacementField(np.broadcast_to(SHIFT, (*grid.shape, 3)).astype(np.float32), grid)
    affine = np.eye(4)
    affine[:3, 3] = (50, 60, 70)
    return replace(registration, transform=Transform(affine, field))


@pytest.fixture
def model(qapp, shifted):
    """A viewer without a window that shows the shift as a grid."""
    viewer = ViewerModel()
    add_layers(viewer, layers_of(shifted, 1, maps=True))
    viewer.layers["#1 deformation grid"].visible = True
    return viewer


def ends(viewer, registration, name="#1 deformation grid"):
    """Both ends of every vector of a layer, mm S A R."""
    data = viewer.layers[name].data * layer_scale(registration)
    return data[:, 0], data[:, 0] + data[:, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_moves_every_node_by_what_of_it_lies_in_the_slice(shifted, registration, axis):
    at = float(to_viewer(registration.pair.fixed.grid.centre)[axis]) + 3
    still = grid_lines(replace(shifted, transform=Transform(np.eye(4))), axis, at, 6.0)
    moved = grid_lines(shifted, axis, at, 6.0)
    by = SHIFT[::-1].copy()
    by[axis] = 0
    assert len(still) == len(moved) > 50
    assert moved[:, 0] - still[:, 0] == pytest.approx(
        np.broadcast_to(by, still[:, 0].shape), abs=1e-4
    )
    assert moved[:, 1] == pytest.approx(still[:, 1], abs=1e-4)
    assert (moved[:, 0, axis] == at).all() and (moved[:, 1, axis] == 0).all()
    whole = grid_lines(shifted, axis, at, 6.0, flat=False)
    assert whole[:, 0, axis] == pytest.approx(at + SHIFT[::-1][axis], abs=1e-4)


def test_lines_stand_as_far_apart_as_was_asked_and_only_inside_the_fixed_image(shifted):
    still = replace(shifted, transform=Transform(np.eye(4)))
    grid, at = shifted.pair.fixed.grid, float(shifted.pair.fixed.grid.centre[2])
    lines = grid_lines(still, 0, at, 9.0)
    across = lines[np.abs(lines[:, 1, 1]) > 0]  # those that run to the front
    assert np.diff(np.unique(across[:, 0, 2].round(6))) == pytest.approx(9)
    for points in (lines[:, 0], lines.sum(axis=1)):
        index = grid.to_index(to_viewer(points))
        assert (index >= -0.5 - 1e-9).all() and (index <= np.array(grid.shape) - 0.5 + 1e-9).all()


def test_arrows_are_as_long_as_the_displacement_and_coloured_by_the_whole_of_it(shifted):
    segments, length = arrows(shifted, 1, float(shifted.pair.fixed.grid.centre[1]), 6.0)
    assert segments[:, 1] == pytest.approx(
        np.broadcast_to([4.0, 0.0, 2.0], segments[:, 1].shape), abs=1e-4
    )
    assert length == pytest.approx(np.linalg.norm(SHIFT), abs=1e-4)
    assert arrow_limit(shifted) == pytest.approx(np.linalg.norm(SHIFT), abs=1e-4)


def test_the_grid_follows_the_slider_and_the_turn_of_the_axes(model, shifted, qtbot):
    low, high = np.array([model.dims.range[axis][:2] for axis in range(3)]).T
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        model.dims.order = order
        for share in (0.4, 0.55):
            at = low + share * (high - low)
            model.dims.point = tuple(at)
            qtbot.waitUntil(
                lambda a=order[0], at=model.dims.point: lies_at(model, shifted, a, at), timeout=3000
            )
            assert len(model.layers["#1 deformation grid"].data) > 20
            assert drawn(model, "#1 deformation grid") == len(
                model.layers["#1 deformation grid"].data
            )


def lies_at(viewer, registration, axis, point) -> bool:
    first, last = ends(viewer, registration)
    return bool(
        len(first)
        and np.allclose(first[:, axis], point[axis])
        and np.allclose(last[:, axis], point[axis])
    )


def drawn(viewer, name) -> int:
    """How many vectors of a layer are in the slice that napari draws."""
    layer = viewer.layers[name]
    layer._slice_dims(viewer.dims)
    return len(layer._view_data)


def test_a_hidden_grid_is_left_alone_and_is_right_again_once_it_is_shown(model, shifted, qtbot):
    grid = model.layers["#1 deformation grid"]
    grid.visible = False
    qtbot.wait(100)
    before = grid.data.copy()
    model.dims.point = (float(model.dims.point[0]) + 4, *model.dims.point[1:])
    qtbot.wait(100)
    assert (grid.data == before).all()
    grid.visible = True
    qtbot.waitUntil(lambda: lies_at(model, shifted, 0, model.dims.point), timeout=3000)


def test_a_grid_in_3d_lies_in_three_planes_and_shows_all_of_the_displacement(model, shifted, qtbot):
    centre_on(model, shifted.pair.fixed)
    follow_slider(model).draw()
    flat = len(model.layers["#1 deformation grid"].data)
    model.dims.ndisplay = 3
    qtbot.waitUntil(
        lambda: len(model.layers["#1 deformation grid"].data) > 1.5 * flat, timeout=3000
    )
    first, _ = ends(model, shifted)
    for axis, shift in enumerate(SHIFT[::-1]):
        assert np.isclose(first[:, axis], model.dims.point[axis] + shift, atol=1e-3).sum() > 20


def test_a_wider_spacing_leaves_fewer_lines_and_arrows(model):
    model.layers["#1 displacement"].visible = True
    follow_slider(model).draw()
    before = [len(model.layers[name].data) for name in ("#1 deformation grid", "#1 displacement")]
    set_spacing(model, 16.0, 1)
    after = [len(model.layers[name].data) for name in ("#1 deformation grid", "#1 displacement")]
    assert 0 < after[0] < before[0] and 0 < after[1] < before[1]
    layer = model.layers["#1 displacement"]
    assert len(layer.features) == after[1] == len(layer.edge_color)
    assert layer.edge_contrast_limits == pytest.approx((0, np.linalg.norm(SHIFT)), abs=1e-3)


def test_a_grid_does_not_make_the_slider_step_finer_than_the_images(registration):
    viewer = ViewerModel()
    tuples = layers_of(registration, 1, maps=True)
    add_layers(viewer, tuples[:1])
    before = viewer.dims.range
    add_layers(viewer, [one for one in tuples if one[2] == "vectors"])
    assert [r.step for r in viewer.dims.range] == [r.step for r in before]


def test_lines_are_thick_enough_to_be_seen_from_afar_and_thin_from_near(model, shifted, qtbot):
    layer = model.layers["#1 deformation grid"]
    for zoom, thickness in ((0.5, 2.6), (10.0, 0.5)):
        model.scene.camera.zoom = zoom
        qtbot.waitUntil(
            lambda t=thickness: abs(layer.edge_width * layer_scale(shifted) / t - 1) < 0.11
        )


def test_following_a_viewer_does_not_keep_it_alive(qapp, shifted):
    viewer = ViewerModel()
    add_layers(viewer, layers_of(shifted, 1, maps=True))
    follower = follow_slider(viewer)
    assert follow_slider(viewer) is follower
    gone = weakref.ref(viewer)
    del viewer
    gc.collect()
    assert gone() is None
    follower.draw()


def test_the_grid_follows_the_slider_beside_a_time_series_and_says_when_it_cannot(
    model, shifted, told
):
    follower = follow_slider(model)
    model.add_image(np.zeros((2, 3, 4, 5)), visible=False)
    for order, axis in (((0, 1, 2, 3), 0), ((0, 2, 1, 3), 1)):
        model.dims.order = order
        model.dims.point = (1, 12.0, 7.0, 5.0)
        follower.draw()
        assert lies_at(model, shifted, axis, model.dims.point[1:])
        assert (
            drawn(model, "#1 deformation grid")
            == len(model.layers["#1 deformation grid"].data)
            > 20
        )
    assert told("warning") == ""
    model.dims.order = (1, 2, 0, 3)
    follower.draw()
    assert "deformation grid' is not drawn: fewer than two of the axes S, A, R" in told("warning")


def test_the_grid_lies_in_the_slice_of_a_viewer_in_um(model, shifted):
    model.add_image(np.zeros((9, 9, 9)), units=("um",) * 3, scale=(1000,) * 3, visible=False)
    centre_on(model, shifted.pair.fixed)
    follow_slider(model).draw()
    assert model.dims.point[0] > 1000
    assert lies_at(model, shifted, 0, np.array(model.dims.point) / 1000)
    assert drawn(model, "#1 deformation grid") == len(model.layers["#1 deformation grid"].data) > 20
    model.scene.camera.zoom = 1e-3  # one pixel per mm
    follow_slider(model).draw()
    assert model.layers["#1 deformation grid"].edge_width * layer_scale(shifted) == pytest.approx(
        1.3, rel=0.1
    )


@pytest.mark.slow
def test_the_drawn_canvas_shows_the_grid_in_every_view(viewer, shifted):
    from napari_shmoareg.plugin.viewer import show_view

    add_layers(viewer, layers_of(shifted, 1, maps=True))
    grid = viewer.layers["#1 deformation grid"]
    for view in ("axial", "coronal", "sagittal"):
        show_view(viewer, view)
        grid.visible = False
        without = viewer.screenshot(canvas_only=True, flash=False).astype(int)
        grid.visible = True
        follow_slider(viewer).draw()
        yellow = viewer.screenshot(canvas_only=True, flash=False).astype(int) - without
        assert (yellow[..., 0] > 60).sum() > 500


def test_a_grid_is_of_the_deformation_on_any_grid_of_the_field(registration):
    coarse = Grid((5, 6, 7), np.diag([20.0, 20.0, 20.0, 1.0]))
    field = DisplacementField(np.broadcast_to(SHIFT, (5, 6, 7, 3)).astype(np.float32), coarse)
    segments, _ = arrows(
        replace(registration, transform=Transform(np.eye(4), field)), 0, 11.0, flat=False
    )
    assert segments[:, 1] == pytest.approx(
        np.broadcast_to(SHIFT[::-1], segments[:, 1].shape), abs=1e-4
    )
