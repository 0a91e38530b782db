"""The panel Landmarks: errors in mm, live; points set by clicking; files; what has no partner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.plugin.landmarks.layers import (
    add_landmark_layers,
    landmark_layer,
    measure,
    set_points,
)
from napari_shmoareg.plugin.landmarks.panel import LandmarksPanel
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.placement import centre_on, landmarks_of, points_of, tag, to_viewer
from napari_shmoareg.plugin.registrations import layer_in_role

INSIDE = np.array([[4.0, -7.0, 11.0], [-8, -2, 12], [16, -12, 9], [10, 3, 15]])  # mm RAS


@pytest.fixture
def viewer():
    """A viewer without a window."""
    return ViewerModel()


@pytest.fixture
def panel(viewer, registration, qtbot):
    """The panel of a viewer in which the registration is open."""
    panel = LandmarksPanel(viewer)
    qtbot.addWidget(panel)
    for emitter in (viewer.layers.events.inserted, viewer.layers.events.removed):
        emitter.connect(panel.reset_choices)
    open_registration(viewer, registration)
    return panel


def open_registration(viewer, registration) -> None:
    """The images of the pair and the warped one."""
    pair = [layer for layer in layers_of_pair(registration.pair) if layer[2] == "image"]
    add_layers(viewer, pair + layers_of(registration, 1)[:1])


def plant(viewer, registration, off=(0.0, 0.0, 0.0)):
    """True pairs of the registration, each moving point off by some mm."""
    layers = add_landmark_layers(viewer)
    set_points(layers["fixed"], INSIDE)
    set_points(layers["moving"], registration.transform.map_points(INSIDE) + off)
    return layers


def cells(table, row) -> list[str]:
    return [table.item(row, column).text() for column in range(4)]


def test_true_partners_have_no_error_and_three_mm_off_is_three_mm(registration):
    partners = registration.transform.map_points(INSIDE)
    assert measure(INSIDE, partners, registration).after == pytest.approx(0, abs=1e-9)
    off = np.array([2.0, -1.0, 2.0])  # 3 mm long
    found = measure(INSIDE, partners + off, registration)
    assert found.after == pytest.approx(3)
    assert found.before == pytest.approx(np.linalg.norm(partners + off - INSIDE, axis=1))
    by_affine = INSIDE @ registration.affine[:3, :3].T + registration.affine[:3, 3]
    assert found.affine == pytest.approx(np.linalg.norm(by_affine - partners - off, axis=1))


def test_without_a_registration_only_the_distance_as_filed_is_known():
    found = measure([[0, 0, 0]], [[3, 4, 0]], None)
    assert found.before == [5] and np.isnan(found.affine).all() and np.isnan(found.after).all()


def test_points_stand_in_the_viewer_at_their_place_and_carry_units(viewer, registration):
    open_registration(viewer, registration)
    before = viewer.dims.nsteps
    layer = plant(viewer, registration)["fixed"]
    assert layer.data_to_world(layer.data[2]) == pytest.approx(to_viewer(INSIDE[2]))
    assert points_of(layer) == pytest.approx(INSIDE) and tag(layer, "role") == "landmarks_fixed"
    assert {str(unit) for unit in layer.units} == {"millimeter"}
    assert viewer.dims.nsteps == before  # the sliders still go from voxel to voxel


def test_landmarks_go_where_their_image_is_moved_and_measure_the_file(
    panel, viewer, registration, qtbot, tmp_path
):
    layers = plant(viewer, registration)
    partners = registration.transform.map_points(INSIDE)
    moving = layer_in_role(viewer, "moving")
    turn = np.eye(4)
    turn[1:3, 1:3], turn[:3, 3] = [[0.8, -0.6], [0.6, 0.8]], (5.0, -7.0, 11.0)
    moving.affine = turn
    shown = to_viewer(partners) @ turn[:3, :3].T + turn[:3, 3]
    assert to_viewer(points_of(layers["moving"])) == pytest.approx(shown)
    assert landmarks_of(layers["moving"]) == pytest.approx(partners)
    clicked = layers["moving"].world_to_data(shown[0])
    layers["moving"].add(clicked)
    assert landmarks_of(layers["moving"])[-1] == pytest.approx(partners[0])
    layers["moving"].remove([4])
    panel.save(str(tmp_path / "pairs.csv"))
    panel.load(str(tmp_path / "pairs.csv"))
    assert to_viewer(points_of(layers["moving"])) == pytest.approx(shown, abs=1e-4)
    qtbot.waitUntil(lambda: panel.table.pairs.rowCount() == 4)
    assert cells(panel.table.whole, 0)[3] == "0.00"
    moving.affine = np.eye(4)
    assert points_of(layers["moving"]) == pytest.approx(partners, abs=1e-4)


def test_the_two_points_of_a_pair_have_one_number_and_one_colour(panel, viewer, registration):
    layers = plant(viewer, registration)
    layers["moving"].add(layers["moving"].data[:1])
    layers["moving"].add(layers["moving"].data[:1])
    layers["fixed"].remove([1])
    for side in ("fixed", "moving"):
        numbers = list(layers[side].features["pair"])
        assert numbers == list(range(1, len(layers[side].data) + 1))
    assert (layers["fixed"].face_color[2] == layers["moving"].face_color[2]).all()
    assert len(np.unique(layers["moving"].face_color, axis=0)) == 5


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_point_deleted_with_napari_takes_its_partner_along_and_this_is_told(
    panel, viewer, registration, side, qtbot, told
):
    layers = plant(viewer, registration)
    for chosen, kept in (({0}, [1, 2, 3]), ({2}, [1, 2])):  # the last pair too
        layers[side].selected_data = chosen
        layers[side].remove_selected()
        assert points_of(layers["fixed"]) == pytest.approx(INSIDE[kept])
        assert points_of(layers["moving"]) == pytest.approx(
            registration.transform.map_points(INSIDE[kept])
        )
    qtbot.waitUntil(
        lambda: panel.table.pairs.rowCount() == 2 and cells(panel.table.whole, 0)[3] == "0.00"
    )
    assert "1 landmark without a partner removed." in told("info")
    layers["fixed"].add(layers["fixed"].data[:1])  # half a pair: nothing goes with it
    layers["fixed"].remove([2])
    assert [len(layer.data) for layer in layers.values()] == [2, 2]


@pytest.mark.slow
def test_closing_the_dock_ends_the_adding_and_pairs_stay_pairs_without_it(
    make_napari_viewer, registration, qtbot, told
):
    viewer = make_napari_viewer(show=True)
    open_registration(viewer, registration)
    shown = [layer.visible for layer in viewer.layers]

    def opened():
        panel = LandmarksPanel(viewer)
        qtbot.addWidget(panel)
        return panel, viewer.window.add_dock_widget(panel, name="Landmarks")

    panel, dock = opened()
    layers = plant(viewer, registration)
    panel.reset_choices()
    panel.add.click()
    assert (
        str(layers["fixed"].mode) == "add"
        and [layer.visible for layer in viewer.layers][:3] != shown
    )
    dock.destroyOnClose()  # what its x does
    assert [layer.visible for layer in viewer.layers] == [*shown, True, True]
    assert [str(layer.mode) for layer in layers.values()] == ["pan_zoom"] * 2
    layers["fixed"].remove([1])
    layers["moving"].remove([0])
    assert [len(layer.data) for layer in layers.values()] == [3, 3]  # nobody looks on
    opened()
    assert points_of(layers["fixed"]) == pytest.approx(INSIDE[2:])
    assert points_of(layers["moving"]) == pytest.approx(
        registration.transform.map_points(INSIDE[2:])
    )
    assert "2 landmarks without a partner removed" in told("info")
    layers["fixed"].remove([0])
    assert points_of(layers["moving"]) == pytest.approx(
        registration.transform.map_points(INSIDE[3:])
    )


def test_the_table_follows_a_point_that_is_dragged(panel, viewer, registration, qtbot):
    layers = plant(viewer, registration)
    qtbot.waitUntil(lambda: panel.table.pairs.rowCount() == 4)
    assert cells(panel.table.pairs, 1)[3] == "0.00" and cells(panel.table.whole, 0)[3] == "0.00"
    layer = layers["moving"]
    to = layer.data_to_world(layer.data[1]) + np.array([0, 0, 3.0])
    with layer.events.data.blocker():  # as napari does while the mouse moves
        layer._move([1], layer.data[1].copy())  # where it is taken
        layer._move([1], layer.world_to_data(to))
    qtbot.waitUntil(lambda: cells(panel.table.pairs, 1)[3] == "3.00")
    assert cells(panel.table.whole, 0)[::3] == ["mean", "0.75"] and cells(panel.table.whole, 1)[
        ::3
    ] == ["SD", "1.50"]
    assert cells(panel.table.whole, 2)[::3] == ["max", "3.00"]


def test_a_point_without_a_partner_is_said_and_not_measured(panel, viewer, registration, qtbot):
    layers = plant(viewer, registration)
    layers["moving"].add(layers["moving"].data[:1])
    layers["moving"].add(layers["moving"].data[:1])
    qtbot.waitUntil(lambda: "2 moving points" in panel.unpaired_note.text())
    assert not panel.unpaired_note.isHidden() and panel.table.pairs.rowCount() == 4


def test_a_pair_is_deleted_from_both_layers(panel, viewer, registration, qtbot):
    layers = plant(viewer, registration)
    qtbot.waitUntil(lambda: panel.table.pairs.rowCount() == 4)
    assert not panel.delete.isEnabled()
    panel.table.pairs.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    farthest = int(np.linalg.norm(points_of(layers["moving"]) - INSIDE, axis=1).argmax())
    panel.table.pairs.selectRow(0)
    panel.delete.click()
    kept = np.delete(np.arange(4), farthest)
    assert points_of(layers["fixed"]) == pytest.approx(INSIDE[kept])
    assert points_of(layers["moving"]) == pytest.approx(
        registration.transform.map_points(INSIDE[kept])
    )
    qtbot.waitUntil(lambda: panel.table.pairs.rowCount() == 3)


def test_a_click_on_a_pair_brings_it_into_view(panel, viewer, registration, qtbot):
    plant(viewer, registration)
    qtbot.waitUntil(lambda: panel.table.pairs.rowCount() == 4)
    panel.table.pairs.sortByColumn(0, Qt.SortOrder.DescendingOrder)
    panel.table.pairs.cellClicked.emit(1, 0)  # pair 3
    place = to_viewer(INSIDE[2])
    step = np.array(viewer.layers["fixed"].scale)
    assert (np.abs(np.array(viewer.dims.point) - place) <= step / 2 + 1e-6).all()
    assert viewer.scene.camera.center[1:] == pytest.approx(place[1:])


def test_pairs_are_saved_and_loaded_again(panel, viewer, registration, tmp_path, qtbot):
    layers = plant(viewer, registration, off=(0, 3, 0))
    panel.save(str(tmp_path / "points.csv"))
    panel.save(str(tmp_path / "moving.mrk.json"), "moving")
    moving = points_of(layers["moving"])
    for layer in layers.values():
        viewer.layers.remove(layer)
    panel.load(str(tmp_path / "points.csv"))
    assert points_of(landmark_layer(viewer, "fixed")) == pytest.approx(INSIDE)
    qtbot.waitUntil(
        lambda: panel.table.pairs.rowCount() == 4 and cells(panel.table.pairs, 0)[3] == "3.00"
    )
    panel.load(str(tmp_path / "moving.mrk.json"), "fixed")
    assert points_of(landmark_layer(viewer, "fixed")) == pytest.approx(moving, abs=1e-4)
    panel.copy.click()
    lines = QApplication.clipboard().text().splitlines()
    assert (
        lines[0].split("\t") == ["pair", "before_mm", "affine_mm", "after_mm"] and len(lines) == 5
    )


def test_a_file_that_cannot_be_read_is_told_and_changes_nothing(
    panel, viewer, registration, tmp_path
):
    layers = plant(viewer, registration)
    told = []

    def hear(notification):
        told.append(notification.message)

    notification_manager.notification_ready.connect(hear)
    (tmp_path / "bad.csv").write_text("1,2,3\n", encoding="utf-8")
    panel.load(str(tmp_path / "bad.csv"))
    panel.save(str(tmp_path / "no" / "such.csv"))
    notification_manager.notification_ready.disconnect(hear)
    assert "six numbers" in told[0] and "does not exist" in told[1]
    assert points_of(layers["fixed"]) == pytest.approx(INSIDE)


def test_points_the_wrong_way_round_are_swapped(panel, viewer, registration):
    layers = plant(viewer, registration)
    panel.files.swap.click()
    assert points_of(layers["moving"]) == pytest.approx(INSIDE)
    assert points_of(layers["fixed"]) == pytest.approx(registration.transform.map_points(INSIDE))


def test_without_images_no_pairs_are_set_and_this_is_told(qtbot):
    viewer = ViewerModel()
    panel = LandmarksPanel(viewer)
    qtbot.addWidget(panel)
    told = []

    def hear(notification):
        told.append(notification.message)

    notification_manager.notification_ready.connect(hear)
    panel.add.click()
    notification_manager.notification_ready.disconnect(hear)
    assert (
        "no fixed image" in told[0] and panel.add.text() == "Add pairs" and len(viewer.layers) == 0
    )


@pytest.mark.slow
def test_a_pair_is_set_by_two_clicks_in_the_images_that_are_shown_for_it(
    make_napari_viewer, registration, qtbot
):
    viewer = make_napari_viewer(show=True)
    panel = LandmarksPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Landmarks")
    open_registration(viewer, registration)
    viewer.reset_view()
    shown = [layer.visible for layer in viewer.layers]
    canvas = viewer.window._qt_viewer.canvas.native

    def click() -> None:
        where = QPoint(canvas.width() // 2, canvas.height() // 2)
        QTest.mouseMove(canvas, where)
        QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=where)

    panel.add.click()
    assert "Pair 1" in panel.hint.text() and "fixed" in panel.hint.text()
    assert viewer.layers["fixed"].visible and not viewer.layers["moving"].visible
    click()
    qtbot.waitUntil(lambda: "moving image" in panel.hint.text())
    assert viewer.layers["moving"].visible and not viewer.layers["fixed"].visible
    click()
    qtbot.waitUntil(lambda: "Pair 2" in panel.hint.text())
    panel.add.click()
    layers = [landmark_layer(viewer, side) for side in ("fixed", "moving")]
    assert [len(layer.data) for layer in layers] == [1, 1]
    middle = viewer.scene.camera.center
    assert layers[0].data_to_world(layers[0].data[0])[1:] == pytest.approx(middle[1:], abs=3)
    assert [layer.visible for layer in viewer.layers if layer not in layers] == shown
    assert all(str(layer.mode) == "pan_zoom" and layer.visible for layer in layers)


def test_removing_a_layer_of_points_ends_the_adding(panel, viewer):
    panel.add.click()
    viewer.layers.remove(landmark_layer(viewer, "moving"))
    assert panel.add.text() == "Add pairs" and viewer.layers["moving"].visible


def test_the_lung_landmarks_start_35_mm_apart(qtbot, shared_data):
    viewer = ViewerModel()
    panel = LandmarksPanel(viewer)
    qtbot.addWidget(panel)
    viewer.layers.events.inserted.connect(panel.reset_choices)
    panel.load(str(shared_data / "lung_ct" / "landmarks_inside_mm.csv"))
    qtbot.waitUntil(lambda: panel.table.pairs.rowCount() == 51)
    assert cells(panel.table.whole, 0) == ["mean", "35.27", "–", "–"]


def in_um(viewer, shape=(9, 9, 9)) -> None:
    """Open a layer in um, 9 mm wide: positions of the viewer are in um from now on."""
    viewer.add_image(
        np.zeros(shape),
        units=("um",) * len(shape),
        scale=(1000,) * len(shape),
        visible=False,
        name="um",
    )


@pytest.mark.parametrize("late", [False, True])
def test_a_click_in_a_viewer_in_um_is_at_its_place_in_mm(viewer, registration, late):
    open_registration(viewer, registration)
    if not late:
        in_um(viewer)
    layers = add_landmark_layers(viewer)
    set_points(layers["fixed"], INSIDE)
    if late:
        in_um(viewer)
    assert points_of(layers["fixed"]) == pytest.approx(INSIDE)
    for layer in layers.values():
        layer.add(layer.world_to_data(1000 * to_viewer(INSIDE[0])))  # what napari does on a click
        assert points_of(layer)[-1] == pytest.approx(INSIDE[0])
    set_points(layers["moving"], INSIDE)
    viewer.layers.remove("um")
    assert [str(unit) for unit in viewer.dims.units] == ["millimeter"] * 3
    for layer in layers.values():
        layer.add(layer.world_to_data(to_viewer(INSIDE[1])))
        found = points_of(layer)
        assert found[:4] == pytest.approx(INSIDE) and found[-1] == pytest.approx(INSIDE[1])


@pytest.mark.parametrize("shape", [(9, 9, 9), (2, 9, 9, 9)])
def test_a_pair_is_brought_into_view_in_um_and_beside_a_time_series(viewer, registration, shape):
    open_registration(viewer, registration)
    if len(shape) == 3:
        in_um(viewer)
    else:
        viewer.add_image(
            np.zeros(shape), units=("s", "um", "um", "um"), scale=(1, 1000, 1000, 1000)
        )
        viewer.dims.point = (1, 0, 0, 0)
    centre_on(viewer, INSIDE[0])
    place = 1000 * to_viewer(INSIDE[0])
    steps = [axis.step for axis in viewer.dims.range][-3:]
    assert np.abs(np.array(viewer.dims.point[-3:]) - place).max() <= max(steps) / 2 + 1e-6
    assert viewer.dims.point[:-3] == (1,) * (len(shape) - 3)
    assert viewer.scene.camera.center[1:] == pytest.approx(place[1:])


def test_landmarks_are_never_set_in_the_images_of_another_registration(
    panel, viewer, registration, told
):
    pair = VolumePair(
        *(
            replace(v, values=v.values.copy(), name="other")
            for v in (registration.pair.moving, registration.pair.fixed)
        )
    )
    add_layers(viewer, [layer for layer in layers_of_pair(pair) if layer[2] == "image"])
    viewer.layers.remove("fixed")
    panel.add.click()
    assert not panel.add.adding and "The fixed image of #1 (fixed) is not open" in told("error")
