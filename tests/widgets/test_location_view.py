"""A double click reads the experts of that voxel, and napari's zoom rests only meanwhile."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtGui import QHelpEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QToolTip

from napari_shmoareg.experts.location import read_location
from napari_shmoareg.experts.maps import expert_maps, gate_values, times_chosen, token_loads
from napari_shmoareg.io.files import write_table
from napari_shmoareg.model import RoutingTrace
from napari_shmoareg.plugin.controls.tasks import Task
from napari_shmoareg.plugin.experts.location import (
    HINT,
    NO_DEPTH,
    NO_EXPERTS,
    NO_GATES,
    LocationView,
)
from napari_shmoareg.plugin.experts.outline import cut, whole
from napari_shmoareg.plugin.experts.pins import MAX_PINS, TOO_MANY, linked_layer, pins_of
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import point_of, tag, to_viewer
from napari_shmoareg.plugin.registrations import layers_of_registration, open_registrations
from napari_shmoareg.plugin.viewer import centre_on


@pytest.fixture
def view(model, qtbot):
    made = LocationView(model)
    qtbot.addWidget(made)
    made.show_registration(1)
    return made


@pytest.fixture
def docked(viewer, registration):
    """A view in a dock beside the canvas, on the middle of the phantoms."""
    add_layers(viewer, layers_of(registration, 1))
    made = LocationView(viewer)
    dock = viewer.window.add_dock_widget(made, name="Location", area="right")
    made.show_registration(1)
    viewer.reset_view()
    centre_on(viewer, registration.pair.fixed)
    QApplication.processEvents()
    return viewer, made, dock


def locations(registration, count, seed=0):
    """World points well within the network grid."""
    inside = np.random.default_rng(seed).uniform(0.2, 0.8, (count, 3)) * (
        np.array(registration.network_grid.shape) - 1
    )
    return registration.network_grid.to_world(inside)


def double_click(viewer, at):
    canvas = viewer.window._qt_viewer.canvas.native
    QTest.mouseDClick(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, at)
    QApplication.processEvents()


def middle(viewer, right=0, down=0):
    canvas = viewer.window._qt_viewer.canvas.native
    return QPoint(canvas.width() // 2 + right, canvas.height() // 2 + down)


def voxel_at(grid, point):
    return tuple(np.floor(grid.to_index(point) + 0.5).astype(int))


def fills(strip):
    """The drawn fill of the boxes, 0 to 1, by expert."""
    return {box.expert: box.value for box in strip.bars if box.value == box.value}


def assert_shows(view, registration, point):
    """What is drawn are the registration's own arrays, in the cells that hold the point."""
    seen = 0
    for load in token_loads(registration):
        strip, cell = view.box.strips[load.gate], voxel_at(load.grid, point)
        weights = load.values[cell]
        assert strip.cell.cell == cell
        assert all(f"Cell {strip.cell.cell} of" in box.tooltip for box in strip.bars)
        assert fills(strip) == {n: weights[n] for n in np.flatnonzero(weights)}
        seen += 1
    for found in expert_maps(registration):
        strip, cell = view.box.strips[found.gate], voxel_at(found.volume.grid, point)
        (gate,) = (gate for gate in gate_values(registration) if gate.gate == found.gate)
        assert strip.cell.experts == (found.volume.values[cell] - 1,)
        assert list(fills(strip).values()) == list(gate.values[cell])
        seen += 1
    assert seen == len(view.box.strips)


def test_a_double_click_shows_the_registrations_own_numbers_of_that_voxel_and_does_not_zoom(
    docked, registration
):
    viewer, view, _ = docked
    zoom = viewer.scene.camera.zoom
    read = []
    for right, down in ((0, 0), (40, -25), (-60, 30)):
        double_click(viewer, middle(viewer, right, down))
        assert view.reading is not None, view.message.text()
        expected = to_viewer(viewer.cursor.position)
        np.testing.assert_allclose(view.reading.point, expected)
        assert_shows(view, registration, expected)
        read.append(view.reading.point)
    assert len({tuple(point) for point in read}) == 3
    # to the right of the canvas: patient's left
    assert (read[1] - read[0])[2] == 0 and (read[1] - read[0])[0] < 0
    assert viewer.scene.camera.zoom == zoom


@pytest.mark.slow
def test_the_zoom_is_back_in_its_place_when_the_view_is_hidden_or_its_dock_closed(docked):
    viewer, view, dock = docked
    callbacks = viewer.mouse_double_click_callbacks
    names = [call.__name__ for call in callbacks]
    assert "double_click_to_zoom" not in names
    for away, back in ((view.hide, view.show), (dock.hide, dock.show)):
        away()
        assert [call.__name__ for call in callbacks] == ["double_click_to_zoom"]
        before, reading = viewer.scene.camera.zoom, view.reading
        double_click(viewer, middle(viewer))
        assert viewer.scene.camera.zoom == 2 * before and view.reading is reading
        back()
        QApplication.processEvents()
        double_click(viewer, middle(viewer))
        assert viewer.scene.camera.zoom == 2 * before and view.reading is not reading
    viewer.window.remove_dock_widget(dock)
    assert [call.__name__ for call in callbacks] == ["double_click_to_zoom"]


@pytest.mark.slow
def test_in_the_panel_only_the_tab_in_front_takes_double_clicks(viewer, registration):
    from napari_shmoareg.plugin.experts.panel import ExpertsPanel

    add_layers(viewer, layers_of(registration, 1))
    panel = ExpertsPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Experts", area="right")
    (view,) = panel.views["Location"]
    names = {panel.tabs.tabText(n): n for n in range(panel.tabs.count())}
    for tab, takes in (("Maps", False), ("Location", True), ("Layers", False), ("Location", True)):
        panel.tabs.setCurrentIndex(names[tab])
        QApplication.processEvents()
        assert view._clicks.listening == takes
        assert len(viewer.mouse_double_click_callbacks) == 1
    centre_on(viewer, registration.pair.fixed)
    double_click(viewer, middle(viewer))
    assert_shows(view, registration, to_viewer(viewer.cursor.position))
    view.pin.click()
    QApplication.processEvents()
    assert view.reading is not None and len(view.pins.readings) == 1, (
        "the new layer emptied the view"
    )


@pytest.mark.slow
def test_the_page_fits_into_a_narrow_dock(viewer, registration):
    from napari_shmoareg.plugin.experts.panel import ExpertsPanel

    add_layers(viewer, layers_of(registration, 1))
    panel = ExpertsPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Experts", area="right")
    panel.tabs.setCurrentIndex(
        next(n for n in range(panel.tabs.count()) if panel.tabs.tabText(n) == "Location")
    )
    (view,) = panel.views["Location"]
    view.read(registration.pair.fixed.grid.centre)
    view.pin.click()
    view.read(registration.pair.fixed.grid.centre + 500)
    view.pins.pin(registration.pair.fixed.grid.centre - 500)
    QTest.qWait(50)
    area = panel.tabs.currentWidget()
    assert (
        area.widget().minimumSizeHint().width() <= 300 - area.verticalScrollBar().sizeHint().width()
    )


def test_a_view_that_is_deleted_while_it_is_in_front_gives_the_zoom_back(model, qtbot):
    view = LocationView(model)
    view.show()
    assert [call.__name__ for call in model.mouse_double_click_callbacks] == ["clicked"]
    view.deleteLater()
    QApplication.sendPostedEvents(None, 52)  # DeferredDelete
    QApplication.processEvents()
    assert [call.__name__ for call in model.mouse_double_click_callbacks] == [
        "double_click_to_zoom"
    ]


def test_a_click_while_a_layer_is_edited_is_left_to_that_layer(docked):
    viewer, view, _ = docked
    layer = viewer.add_points(np.zeros((0, 3)))
    layer.mode = "add"
    double_click(viewer, middle(viewer))
    assert view.reading is None
    layer.mode = "pan_zoom"
    double_click(viewer, middle(viewer))
    assert view.reading is not None


def test_in_3d_it_is_said_that_a_click_has_no_depth(docked):
    viewer, view, _ = docked
    viewer.dims.ndisplay = 3
    double_click(viewer, middle(viewer))
    assert view.reading is None and view.message.text() == NO_DEPTH


def test_outside_of_the_network_grid_it_is_said_and_nothing_is_drawn(view, registration):
    inside = locations(registration, 1)[0]
    view.read(inside)
    assert view.message.text() == HINT and view.pin.isEnabled()
    view.read(inside + 500)
    assert "outside the network's field of view" in view.message.text() and not view.pin.isEnabled()
    assert all(not fills(strip) for strip in view.box.strips.values())


def test_a_place_can_be_given_by_keyboard(view, model, registration):
    location = np.round(locations(registration, 1)[0], 1)
    for box, value in zip(view.coordinates, location, strict=True):
        box.setValue(value)
    np.testing.assert_allclose(view.reading.point, location)
    assert (
        np.abs(point_of(model) - to_viewer(location)).max() < 2
    )  # the sliders stand on whole steps
    view.middle.click()
    np.testing.assert_allclose(view.reading.point[2], to_viewer(point_of(model))[2])
    np.testing.assert_allclose(view.reading.point[:2], model.scene.camera.center[:0:-1])


def test_giving_one_coordinate_keeps_the_others_exactly(view, registration):
    location = locations(registration, 1)[0]
    view.read(location)
    value = round(float(location[0]) + 2, 1)
    view.coordinates[0].setValue(value)
    assert view.reading.point[0] == value and (view.reading.point[1:] == location[1:]).all()


def test_a_click_in_a_viewer_of_micrometres_is_read_at_the_same_place(docked, registration):
    viewer, view, _ = docked
    double_click(viewer, middle(viewer, 20, 20))
    first = view.reading
    viewer.add_image(
        np.zeros((4, 4, 4)), units="um", axis_labels=("S", "A", "R"), scale=(1000,) * 3
    )
    assert "micrometer" in str(viewer.dims.units[0])
    viewer.reset_view()
    centre_on(viewer, registration.pair.fixed)
    double_click(viewer, middle(viewer, 20, 20))
    assert view.reading is not first
    np.testing.assert_allclose(
        view.reading.point, to_viewer(np.array(viewer.cursor.position) / 1000)
    )
    assert_shows(view, registration, view.reading.point)


def test_a_folder_without_gates_shows_what_was_chosen_and_says_so(
    model, qtbot, registration, without_gate_values
):
    add_layers(model, layers_of(without_gate_values(registration), 2))
    view = LocationView(model)
    qtbot.addWidget(view)
    view.show_registration(2)
    view.read(locations(registration, 1)[0])
    assert view.message.text() == NO_GATES
    strips = [view.box.strips[found.gate] for found in expert_maps(registration)]
    assert all(
        not fills(strip) and strip.cell.experts and "were not saved" in strip.lines[0]
        for strip in strips
    )
    assert all(fills(view.box.strips[load.gate]) for load in token_loads(registration))
    assert not view.grab().isNull()


def test_a_network_without_experts_is_not_taken_for_an_old_folder(model, qtbot, registration):
    bare = replace(registration, routing=RoutingTrace())
    add_layers(model, layers_of(bare, 2))
    view = LocationView(model)
    qtbot.addWidget(view)
    view.show_registration(2)
    view.read(locations(registration, 1)[0])
    assert view.message.text() == NO_EXPERTS and view.gates.isHidden() and view.outlined.isHidden()
    view.pin.click()
    assert view.pins.compared.isHidden() and view.attention.isHidden()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_what_a_network_with_one_kind_of_experts_does_not_have_is_not_offered(
    model, qtbot, registration, part
):
    alone = RoutingTrace(registration.routing.select(part=part))
    add_layers(model, layers_of(replace(registration, routing=alone), 2))
    view = LocationView(model)
    qtbot.addWidget(view)
    view.show_registration(2)
    view.read(locations(registration, 1)[0])
    view.pin.click()
    pins, heads = view.pins, part == "encoder"
    of_heads = (view.attention, pins.bars, pins.heads, pins.where)
    assert view.message.text() == HINT and not pins.compared.isHidden()
    assert {not widget.isHidden() for widget in of_heads} == {heads}
    assert {not widget.isHidden() for widget in (pins.table, pins.kernels)} == {not heads}


def test_boxes_are_filled_as_high_as_the_weights(view, registration, qtbot):
    view.read(locations(registration, 1)[0])
    view.show()
    qtbot.waitExposed(view)
    for load in token_loads(registration)[:4]:
        strip = view.box.strips[load.gate]
        picture = strip.grab().toImage()
        ratio = picture.devicePixelRatio()
        for head in range(load.values.shape[-1]):
            area = strip.rect_of(head)
            column = [
                picture.pixelColor(round((area.left() + 2) * ratio), round(y * ratio))
                for y in np.arange(area.top() + 2, area.bottom() - 1)
            ]
            full = sum(colour.name() == strip.bars[head].colour for colour in column)
            assert abs(full - area.height() * fills(strip).get(head, 0.0)) <= 2


def test_a_strip_is_picked_by_a_click_and_by_a_key_and_its_cell_is_outlined(docked, registration):
    viewer, view, _ = docked
    double_click(viewer, middle(viewer))
    for load in (token_loads(registration)[0], token_loads(registration)[-1]):
        strip = view.box.strips[load.gate]
        QTest.mouseClick(strip, Qt.MouseButton.LeftButton)
        assert view.picked.gate == load.gate and strip.marked
        outline = linked_layer(viewer, registration, "token_box")
        ends = (outline.data[:, 0] * outline.scale[0])[:, ::-1]
        index = load.grid.to_index(ends) - np.array(view.picked.cell)
        assert len(ends) >= 3 and np.abs(index).max() <= 0.5 + 1e-3
        assert np.isclose(np.abs(index).max(axis=0), 0.5, atol=1e-3).sum() >= 2
    last = view.box.strips[expert_maps(registration)[0].gate]
    last.setFocus()
    QTest.keyClick(last, Qt.Key.Key_Return)
    assert view.picked.gate == expert_maps(registration)[0].gate
    made = linked_layer(viewer, registration, "token_box")
    double_click(viewer, middle(viewer, 30, 30))
    assert linked_layer(viewer, registration, "token_box") is made, "a click made another layer"
    view.outlined.click()
    assert linked_layer(viewer, registration, "token_box") is None


def test_an_outline_without_a_line_is_never_drawn(docked, registration):
    """An empty outline that was replaced by another empty one, beside pins, ended in a segmentation
    fault.
    """
    viewer, view, _ = docked
    centre = registration.pair.fixed.grid.centre
    high = to_viewer(centre)[0]
    for away, drawn in ((60.0, None), (0.0, True), (60.0, False), (0.0, True)):
        viewer.dims.set_point(0, high + away)
        view.read(centre)
        QTest.qWait(20)
        layer = linked_layer(viewer, registration, "token_box")
        assert (None if layer is None else layer.visible) is drawn
        assert layer is None or len(layer.data) > 2
    layer.visible = False
    viewer.dims.set_point(0, high + 1.0)
    assert not layer.visible, "an outline that people hid came back"
    viewer.layers.remove(layer)
    viewer.dims.set_point(0, high)
    assert linked_layer(viewer, registration, "token_box") is None


def test_a_plane_cuts_a_turned_box_along_its_sides():
    cube = np.array([[x, y, z] for x in (0, 2) for y in (0, 2) for z in (0, 2)], dtype=float)
    assert len(cut(cube, 0, 1.0)) == 4 and len(cut(cube, 0, 3.0)) == 0 and len(whole(cube)) == 12
    angle = np.deg2rad(35)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    for axis, area in ((2, 4.0), (0, None)):
        sides = cut((cube - 1) @ turn.T, axis, 0.2)
        starts, ends = sides[:, 0], sides.sum(axis=1)
        np.testing.assert_allclose(ends, np.roll(starts, -1, axis=0), atol=1e-9)
        np.testing.assert_allclose(starts[:, axis], 0.2)
        if area:
            a, b = starts[:, 0], starts[:, 1]
            np.testing.assert_allclose(
                abs(np.dot(a, np.roll(b, -1)) - np.dot(b, np.roll(a, -1))) / 2, area
            )


def test_five_places_can_be_pinned_and_a_sixth_is_refused_in_plain_words(
    view, model, registration, told
):
    points = locations(registration, MAX_PINS + 1)
    for point in points:
        view.read(point)
        view.pin.click()
    layer = linked_layer(model, registration, "locations")
    np.testing.assert_allclose(pins_of(model, registration), points[:MAX_PINS])
    np.testing.assert_allclose(
        [layer.data_to_world(p) for p in layer.data], to_viewer(points[:MAX_PINS])
    )
    assert told("info") == TOO_MANY
    assert [n for n, _ in view.pins.readings] == [1, 2, 3, 4, 5]
    assert list(layer.features["pin"]) == [1, 2, 3, 4, 5] and layer.name == "#1 locations"
    view.pins.rows[1].drop.click()
    np.testing.assert_allclose(
        pins_of(model, registration), np.delete(points[:MAX_PINS], 1, axis=0)
    )
    assert [row.isHidden() for row in view.pins.rows] == [False] * 4 + [True]
    view.pins.rows[2].go.click()
    np.testing.assert_allclose(view.reading.point, points[3])


def test_pins_that_are_dragged_or_deleted_in_the_canvas_are_read_anew(
    view, model, registration, qtbot
):
    first, other = locations(registration, 2)
    view.read(first)
    view.pin.click()
    layer = linked_layer(model, registration, "locations")
    layer.data = [layer.world_to_data(to_viewer(other))]
    qtbot.waitUntil(lambda: np.allclose(view.pins.readings[0][1].point, other))
    layer.selected_data = {0}
    layer.remove_selected()
    qtbot.waitUntil(lambda: not view.pins.readings)


def test_the_comparison_shows_the_registrations_weights_how_often_and_the_kernels(
    view, registration, choose
):
    points = locations(registration, 3)
    for point in points:
        view.read(point)
        view.pin.click()
    pins, load = view.pins, token_loads(registration)[-1]
    for field in ("layer", "image", "block"):
        choose(pins.where.fields[field], getattr(load.gate, field))
    for shares, point in zip(shares_of(pins.bars, 3), points, strict=True):
        np.testing.assert_allclose(shares, load.values[voxel_at(load.grid, point)])
    choose(pins.where.fields["block"], "all")
    (counted,) = (
        one
        for one in times_chosen(registration)
        if one.gate[:4] == (*load.gate[:2], None, load.image)
    )
    blocks = len(
        [
            one
            for one in token_loads(registration)
            if one.gate[3:] == load.gate[3:] and one.gate[1] == load.gate[1]
        ]
    )
    for shares, point in zip(shares_of(pins.bars, 3), points, strict=True):
        np.testing.assert_allclose(shares, counted.values[voxel_at(counted.grid, point)] / blocks)
    from napari_shmoareg.figures.palette import expert_colours

    for row, point in enumerate(points):
        for found in expert_maps(registration):
            column = pins.table.columns.index(
                f"{found.direction} {'full' if found.stride == 1 else 'half'}"
            )
            chosen = found.volume.values[voxel_at(found.volume.grid, point)] - 1
            (box,) = (b for b in pins.table.bars if (b.row, b.column) == (row, column))
            assert box.colour == expert_colours(found.num_experts)[chosen]
    said = pins.bars.accessibleDescription().split("; ")
    assert [text.split(":")[0] for text in said] == ["Pin 1", "Pin 2", "Pin 3"]
    at = pins.bars.column_of(1).center().toPoint()
    QApplication.sendEvent(
        pins.bars, QHelpEvent(QEvent.Type.ToolTip, at, pins.bars.mapToGlobal(at))
    )
    assert QToolTip.text().splitlines()[0] == "Head 1" and "Pin 3: " in QToolTip.text()
    QToolTip.hideText()


def shares_of(chart, pins):
    """The bars of the pins, (pin, head)."""
    return np.reshape([bar.value for bar in chart.bars], (pins, -1))


def test_the_table_of_the_pins_holds_every_gate_and_can_be_written(view, registration, tmp_path):
    for point in locations(registration, 2):
        view.read(point)
        view.pin.click()
    rows = view.pins._rows()
    expected = sum(load.values.shape[-1] for load in token_loads(registration)) + 3 * len(
        expert_maps(registration)
    )
    assert len(rows) == 2 * expected and {row["weights"] for row in rows} == {registration.weights}
    reading = read_location(registration, pins_of(view._viewer, registration)[1])
    first = reading.cells[0]
    mine = [
        row
        for row in rows
        if row["pin"] == 2 and (row["part"], row["layer"]) == ("encoder", first.layer)
    ]
    mine = [row for row in mine if (row["block"], row["image"]) == (first.block, first.image)]
    assert {row["expert"]: row["weight"] for row in mine if row["rank"]} == dict(
        zip(first.experts, first.weights, strict=True)
    )
    assert [row["gate_value"] for row in mine] == list(first.values)
    write_table(rows, tmp_path / "places.csv")
    assert (
        len((tmp_path / "places.csv").read_text(encoding="utf-8").splitlines()) == 2 * expected + 1
    )


def test_no_outline_is_added_while_the_registrations_layers_go(viewer, registration):
    """As when the window is closed: napari moves the slider then, and a layer added in that moment
    is an error.
    """
    viewer.add_image(np.zeros((9, 9, 9)), units=("mm",) * 3, scale=(20,) * 3, translate=(-80,) * 3)
    add_layers(viewer, layers_of(registration, 1)[:1])
    view, centre = LocationView(viewer), registration.pair.fixed.grid.centre
    viewer.window.add_dock_widget(view, name="Location", area="right")
    view.show_registration(1)
    viewer.dims.set_point(0, to_viewer(centre)[0] + 60)
    view.read(centre)
    QTest.qWait(20)
    viewer.layers.remove("#1 warped")
    viewer.dims.set_point(0, to_viewer(centre)[0])
    assert [layer.name for layer in viewer.layers] == ["Image"]


@pytest.mark.slow
def test_closing_the_registration_takes_pins_and_outline_along_and_holds_nothing(
    viewer, registration
):
    own = replace(registration)
    import weakref

    held = weakref.ref(own)
    add_layers(viewer, layers_of(own, 1))
    view = LocationView(viewer)
    viewer.window.add_dock_widget(view, name="Location", area="right")
    view.show_registration(1)
    centre_on(viewer, registration.pair.fixed)
    view.read(registration.pair.fixed.grid.centre)
    view.pin.click()
    QTest.qWait(20)
    assert {tag(layer, "role") for layer in viewer.layers} >= {"locations", "token_box"}
    del own
    for layer in layers_of_registration(viewer, 1):
        viewer.layers.remove(layer)
    del layer
    assert not open_registrations(viewer), "pins keep a registration open"
    view.show_registration(None)
    QApplication.processEvents()
    assert (
        not list(viewer.layers)
        and view.reading is None
        and not view.box.strips
        and not view.pins.readings
    )
    gc.collect()
    assert held() is None


def test_a_work_is_cancelled_and_its_errors_are_words(qtbot):
    from qtpy.QtWidgets import QWidget

    owner = QWidget()
    qtbot.addWidget(owner)
    task, message = Task(owner, "a test"), []
    task.failed.connect(message.append)

    def endless(report):
        while True:
            report("waiting", 0.5)

    with qtbot.waitSignal(task.cancelled):
        task.start(endless)
        assert task.busy and not task.start(endless)
        task.cancel()
    assert not task.busy and not message
    with qtbot.waitSignal(task.failed):
        task.start(lambda _: [][1])
    assert "IndexError" in message[0]
    with qtbot.waitSignal(task.finished) as done:
        task.start(lambda _: 7)
    assert done.args == [7]
