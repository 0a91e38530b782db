"""The panel Quality: what is drawn, what it leaves behind, its figures, and what it saves."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QApplication

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import LabelNames
from napari_shmoareg.io import write_registration
from napari_shmoareg.io.report import read_registration_summary
from napari_shmoareg.plugin.controls.tables import cautions_of, table_of
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.placement import (
    layer_options,
    placement_of,
    tag,
    to_layer_geometry,
    to_viewer,
)
from napari_shmoareg.plugin.quality import panel as panel_module
from napari_shmoareg.plugin.quality.apply_box import carry_layer
from napari_shmoareg.plugin.quality.panel import QualityPanel
from napari_shmoareg.plugin.register.job import LayerAdder, RegistrationResult
from napari_shmoareg.plugin.registrations import layers_of_registration
from napari_shmoareg.plugin.viewer import CAUTION, ERROR
from napari_shmoareg.plugin.viewer_state import ViewerState

MODES = ("blend", "two colours", "checkerboard", "swipe", "difference", "side by side")


@pytest.fixture
def viewer():
    """A viewer without a window, which is all that most of this needs."""
    return ViewerModel()


@pytest.fixture
def panel(viewer, registration, qtbot):
    """The panel of a viewer in which the registration is open."""
    panel = QualityPanel(viewer)
    qtbot.addWidget(panel)
    for emitter in (viewer.layers.events.inserted, viewer.layers.events.removed):
        emitter.connect(panel.reset_choices)
    open_registration(viewer, registration)
    return panel


def open_registration(viewer, registration) -> None:
    """The images of the pair, the warped one, and its labels as an overlay."""
    pair = [layer for layer in layers_of_pair(registration.pair) if layer[2] == "image"]
    add_layers(viewer, pair + layers_of(registration, 1)[:2])


@pytest.fixture
def compare(panel, qtbot):
    """Choose a comparison and wait until it is shown."""

    def choose(mode: str, stage: str = "after"):
        panel.compare_box.compare(mode, stage)
        qtbot.waitUntil(lambda: not panel.compare_box.comparer.busy, timeout=20000)
        return panel.compare_box.comparer.current

    return choose


@pytest.fixture
def told():
    """What people were told, newest last."""
    messages: list[str] = []

    def hear(notification):
        messages.append(notification.message)

    notification_manager.notification_ready.connect(hear)
    yield messages
    notification_manager.notification_ready.disconnect(hear)


def state(viewer) -> list:
    """All that a comparison may touch."""
    grid, camera = viewer.canvas.grid, viewer.scene.camera
    return [
        *(
            (la.name, la.visible, la.opacity, str(la.blending), la.name_overlay.visible)
            + ((la.colormap.name, la.contrast_limits) if la._type_string == "image" else ())
            for la in viewer.layers
        ),
        (
            grid.enabled,
            grid.stride,
            grid.shape,
            camera.center,
            camera.zoom,
            viewer.layers.selection.active,
        ),
    ]


def test_a_registration_that_comes_later_is_offered_and_one_that_goes_is_forgotten(
    panel, viewer, registration
):
    assert panel.picker.number == 1 and panel.picker.registration is registration
    assert panel.picker.currentText().startswith("#1 moving onto fixed")
    add_layers(viewer, layers_of(replace(registration), 2)[:1])
    assert panel.picker.number == 2 and panel.picker.count() == 2
    viewer.layers.clear()
    assert (
        panel.picker.number is None and panel.saving.isHidden() and not panel.invitation.isHidden()
    )


@pytest.mark.slow
def test_each_comparison_changes_the_canvas_and_none_leaves_a_trace(
    make_napari_viewer, registration, qtbot
):
    viewer = make_napari_viewer(show=True)
    panel = QualityPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Quality")
    open_registration(viewer, registration)
    viewer.reset_view()
    viewer.layers["fixed"].opacity, viewer.layers["#1 warped"].visible = 0.9, False
    before, pictures = state(viewer), []
    for mode in MODES:
        panel.compare_box.compare(mode)
        qtbot.waitUntil(lambda: not panel.compare_box.comparer.busy, timeout=20000)
        picture = viewer.screenshot(flash=False)
        assert all(
            picture.shape != other.shape or (picture != other).mean() > 0.005 for other in pictures
        ), mode
        pictures.append(picture)
    panel.compare_box.compare("as they are")
    assert state(viewer) == before


@pytest.mark.slow
def test_no_change_from_one_comparison_to_another_crashes_a_real_window(registration, tmp_path):
    """In a process of its own: napari 0.9.2 alone is killed by a removal, the grid and an insertion
    in one turn.
    """
    write_registration(registration, tmp_path / "result", weights="untrained", figures=False)
    script = Path(__file__).with_name("compare_in_window.py")
    command = [sys.executable, str(script), str(tmp_path / "result")]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)
    assert run.returncode == 0 and "48 changes" in run.stdout, run.stdout + run.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["two colours", "checkerboard", "side by side"])
def test_closing_the_dock_during_a_comparison_puts_everything_back(
    make_napari_viewer, registration, qtbot, mode
):
    viewer = make_napari_viewer(show=True)
    open_registration(viewer, registration)
    viewer.reset_view()
    before = state(viewer)
    panel = QualityPanel(viewer)
    dock = viewer.window.add_dock_widget(panel, name="Quality")
    panel.compare_box.compare(mode)
    qtbot.waitUntil(lambda: not panel.compare_box.comparer.busy, timeout=20000)
    assert state(viewer) != before
    if mode == "checkerboard":
        viewer.window.remove_dock_widget(panel)
    else:
        dock.destroyOnClose()  # what its x does
    assert state(viewer) == before


def test_a_checkerboard_takes_alternate_tiles_from_either_image(viewer, registration, compare):
    shown = compare("checkerboard")
    layer, both = shown.layer, shown.prepared.image_pair
    assert layer.name == "#1 checkerboard, warped" and tag(layer, "registration") is registration
    spacing = np.array(layer.scale)
    middle = np.array(layer.translate) + spacing * (np.array(layer.data.shape) - 1) / 2
    for tiles, image in (
        ((0, 0), both.fixed),
        ((0, 1), both.other),
        ((1, 0), both.other),
        ((1, 1), both.fixed),
    ):
        place = middle + np.array([0, (tiles[0] + 0.5) * 20, (tiles[1] + 0.5) * 20])
        index = tuple(np.rint(layer.world_to_data(place)).astype(int))
        assert layer.data[index] == image[index] and both.fixed[index] != both.other[index]


def test_a_swipe_shows_the_fixed_image_on_the_left_of_the_screen_in_every_view(
    panel, viewer, compare, qtbot
):
    shown = compare("swipe")
    both, slider = shown.prepared.image_pair, panel.compare_box.slider
    assert viewer.dims.displayed == (1, 2) and str(viewer.scene.camera.orientation[-1]) == "left"
    for order, axis in (((0, 1, 2), 2), ((2, 0, 1), 1), ((1, 0, 2), 2)):
        viewer.dims.order = order
        slider.setValue(30)
        qtbot.waitUntil(lambda: shown.amount == pytest.approx(0.3))
        data, fixed, other = (
            np.moveaxis(a, axis, 0)[::-1] for a in (shown.layer.data, both.fixed, both.other)
        )
        edge = round(0.3 * len(data))
        assert (data[: edge - 1] == fixed[: edge - 1]).all() and (
            data[edge + 1 :] == other[edge + 1 :]
        ).all()
        slider.setValue(50)
        qtbot.waitUntil(lambda: shown.amount == pytest.approx(0.5))
    viewer.scene.camera.orientation = ("towards", "up", "right")
    assert (shown.layer.data[..., :5] == both.fixed[..., :5]).all()


def test_the_edge_of_a_swipe_is_taken_with_the_mouse_and_the_slider_follows(
    panel, viewer, compare, qtbot
):
    class Event:
        type, position = "mouse_press", None

    shown, event = compare("swipe"), Event()
    centre = (
        np.array(shown.layer.translate)
        + np.array(shown.layer.scale) * (np.array(shown.layer.data.shape) - 1) / 2
    )
    event.position = centre
    moves = shown.drag(shown.layer, event)
    next(moves)
    assert not shown.layer.mouse_pan
    event.type, event.position = (
        "mouse_move",
        centre - np.array([0, 0, 20]),
    )  # to the screen's right
    next(moves)
    assert panel.compare_box.slider.value() > 60
    event.type = "mouse_release"
    with pytest.raises(StopIteration):
        next(moves)
    assert shown.layer.mouse_pan
    event.type, event.position = "mouse_press", centre + np.array([0, 0, 40])
    assert list(shown.drag(shown.layer, event)) == []


@pytest.mark.parametrize("mode", ["checkerboard", "swipe"])
def test_a_comparison_goes_on_beside_a_time_series_and_says_when_it_cannot(
    viewer, compare, told, mode
):
    shown = compare(mode)
    before = shown.layer.data.copy()
    viewer.add_image(np.zeros((2, 3, 4, 5)), visible=False)
    viewer.dims.order = (0, 1, 2, 3)
    shown.follow()
    assert (shown.layer.data == before).all()
    viewer.dims.order = (1, 2, 0, 3)
    assert (shown.layer.data == shown.prepared.image_pair.fixed).all()
    assert f"The {mode} shows only the fixed image: fewer than two of the axes" in "".join(told)


def test_the_edge_of_a_swipe_is_taken_in_a_viewer_in_um(viewer, compare):
    shown = compare("swipe")
    layer = shown.layer
    middle = (
        np.array(layer.translate) + np.array(layer.scale) * (np.array(layer.data.shape) - 1) / 2
    )
    viewer.add_image(np.zeros((9, 9, 9)), units=("um",) * 3, scale=(1000,) * 3, visible=False)
    assert shown.edge_at(1000 * middle) == pytest.approx(0.5)


def test_the_difference_has_one_scale_before_and_after_also_when_it_was_set_by_hand(
    panel, viewer, compare
):
    after = compare("difference").layer
    assert after.name == "#1 |difference| after"
    assert panel.compare_box.ramp.isVisibleTo(panel.compare_box)
    assert after.contrast_limits == [0, 0.5]
    after.contrast_limits = (0, 0.2)
    assert panel.compare_box.ramp.texts() == ["0", "0.2"]
    before = compare("difference", "before").layer
    assert before.name == "#1 |difference| before" and before.contrast_limits == [0, 0.2]
    assert (
        layers_of_registration(viewer, 1, "comparison") == [before] and after not in viewer.layers
    )


def test_a_blend_fades_from_the_fixed_to_the_other_image(panel, viewer, compare):
    compare("blend")
    fixed, warped = viewer.layers["fixed"], viewer.layers["#1 warped"]
    assert (fixed.opacity, warped.opacity) == (1, 0.5) and not viewer.layers["moving"].visible
    compare("blend", "before")
    other = viewer.layers["#1 moving as filed"]
    panel.compare_box.comparer.set_amount(0.25)
    assert (
        other.opacity == 0.25
        and not warped.visible
        and other.contrast_limits == warped.contrast_limits
    )


def test_two_colours_are_grey_where_the_images_agree(viewer, compare):
    compare("two colours")
    fixed, warped = viewer.layers["fixed"], viewer.layers["#1 warped"]
    both = fixed.colormap.map([1.0]) + warped.colormap.map([1.0])
    assert both[0, :3] == pytest.approx([1, 1, 1], abs=0.01)
    assert str(max((fixed, warped), key=viewer.layers.index).blending) == "additive"


def test_side_by_side_has_three_named_cells(viewer, compare):
    compare("side by side")
    shown = [layer for layer in viewer.layers if layer.visible]
    assert [layer.name for layer in shown] == ["fixed", "#1 moving as filed", "#1 warped"]
    assert all(layer.name_overlay.visible for layer in shown)
    assert viewer.canvas.grid.enabled and viewer.canvas.grid.actual_shape(viewer.layers) == (1, 3)


def test_a_comparison_that_is_deleted_by_hand_ends(panel, viewer, compare, qtbot):
    before = state(viewer)
    viewer.layers.remove(compare("checkerboard").layer)
    qtbot.waitUntil(lambda: panel.compare_box.mode.currentData() == "as they are")
    assert state(viewer) == before
    compare("swipe")
    viewer.layers.clear()
    qtbot.waitUntil(lambda: panel.compare_box.comparer.current is None)
    assert len(viewer.layers) == 0


@pytest.mark.parametrize("mode", ["blend", "checkerboard", "side by side"])
def test_a_registration_that_arrives_during_a_comparison_is_what_is_shown_after_it(
    panel, viewer, registration, qtbot, mode
):
    panel.compare_box.compare(mode)
    comparer, adder = panel.compare_box.comparer, LayerAdder(panel)
    qtbot.waitUntil(lambda: not comparer.busy, timeout=20000)
    newer = replace(registration)
    with qtbot.waitSignal(adder.finished, timeout=20000):
        adder.start(viewer, RegistrationResult(2, newer, layers_of(newer, 2)[:2]), {})
    qtbot.waitUntil(lambda: not comparer.busy, timeout=20000)
    assert (comparer.current.prepared.mode, comparer.current.prepared.number) == (mode, 2)
    panel.compare_box.compare("as they are")
    shown = {
        layer.name
        for layer in viewer.layers
        if layer.visible and tag(layer, "registration") is not None
    }
    assert shown == {"#2 warped"}


def test_a_comparison_that_cannot_be_made_is_told_and_the_next_one_works(
    panel, viewer, compare, monkeypatch, told
):
    from napari_shmoareg.plugin.quality import composites

    def refuse(registration, stage):
        raise InputError("The images are too large.")

    with monkeypatch.context() as patched:
        patched.setattr(composites, "moving_at", refuse)
        assert compare("difference", "before") is None
    assert panel.compare_box.mode.currentData() == "as they are" and "too large" in told[-1]
    assert compare("difference", "before").layer in viewer.layers


def test_the_table_holds_the_figures_of_the_report(panel, registration):
    report, table = registration.report, panel.table
    whole = {table.whole.item(n, 0).text(): n for n in range(table.whole.rowCount())}
    dice = whole["Dice ↑"]
    for column, stage in enumerate(("before", "affine", "after"), 1):
        assert table.whole.item(dice, column).text() == f"{report['dice'][stage]['mean']:.3f}"
    folding = whole["Folding, % ↓"]
    assert [table.whole.item(folding, c).text() for c in (1, 3)] == [
        "–",
        f"{report['folding_percent']:.4f}",
    ]
    assert [table.labels.item(n, 0).text() for n in range(4)] == ["1", "2", "3", "4"]
    assert table.labels.item(1, 6).text() == f"{report['assd_mm']['after']['per_label']['2']:.2f}"
    table.labels.sortByColumn(3, Qt.SortOrder.AscendingOrder)
    found = [float(table.labels.item(n, 3).text()) for n in range(4)]
    assert found == sorted(found) and len(set(found)) > 1


def with_dice(report, **stages) -> dict:
    """A report without warnings, with the Dice of two labels at each stage; a third one is in one
    image only.
    """
    dice = {
        s: {"mean": sum(v) / 2, "per_label": {"1": v[0], "2": v[1], "9": 0.0}}
        for s, v in stages.items()
    }
    return {**report, "warnings": [], "dice": dice}


def test_labels_that_overlap_less_at_the_end_are_a_caution_that_looks_like_one(panel, registration):
    fell = with_dice(registration.report, before=(0.8, 0.7), affine=(0.85, 0.69), after=(0.6, 0.8))
    (caution,) = cautions_of(fell)
    assert caution.startswith(
        "⚠ Caution: The labels overlap less than after the affine alone: Dice 0.750 before → "
    )
    assert "0.770 after the affine → 0.700 after ↓ (mean over 2 labels)" in caution
    table = panel.table
    table.show_report(fell)
    assert table.warnings.text() == caution and CAUTION in table.warnings.styleSheet()
    marked = [
        n for n in range(table.whole.rowCount()) if not table.whole.item(n, 3).icon().isNull()
    ]
    assert [table.whole.item(n, 0).text() for n in marked] == ["Dice ↑"]
    assert table.whole.item(marked[0], 3).background().color().name() == ERROR
    assert [table.labels.item(n, 3).icon().isNull() for n in range(2)] == [False, True]


def test_labels_that_overlap_more_or_as_much_are_no_caution(panel, registration):
    for after in ((0.81, 0.7), (0.8, 0.7), (0.8, 0.697)):
        report = with_dice(registration.report, before=(0.8, 0.7), affine=(0.8, 0.7), after=after)
        assert cautions_of(report) == []
    panel.table.show_report(report)
    assert panel.table.warnings.isHidden() and panel.table.whole.item(2, 3).icon().isNull()
    told = with_dice(report, before=(1, 1), affine=(1, 1), after=(0, 0)) | {
        "warnings": ["Dice fell."]
    }
    assert cautions_of(told) == cautions_of(told | {"dice": None}) == ["⚠ Caution: Dice fell."]


def test_names_of_labels_are_in_the_table_and_can_be_loaded(
    panel, viewer, registration, tmp_path, told
):
    table = panel.table
    assert table.names.text() == "The labels have no names."
    (tmp_path / "organs.txt").write_text("1 skin\n2 liver\n3 left kidney\n", encoding="utf-8")
    table.load.load(str(tmp_path / "organs.txt"))
    assert told[-1] == "organs.txt names 3 of the 4 labels."
    shown = [table.labels.item(n, 0) for n in range(4)]
    assert [cell.text() for cell in shown] == ["1 skin", "2 liver", "3 left kidney", "4"]
    assert shown[1].toolTip() == "2 liver; name from organs.txt." and shown[3].toolTip() == ""
    assert table.names.text() == "Names from organs.txt."
    rows = {row["label"]: row["name"] for row in table_of(table._report)}
    assert rows == {"": "", 1: "skin", 2: "liver", 3: "left kidney", 4: ""}
    (layer,) = layers_of_registration(viewer, 1, "warped_labels")
    assert list(layer.features["name"].dropna()) == ["skin", "liver", "left kidney"]
    saved = panel.saving._registration()
    assert saved.pair.fixed_labels.label_names.get(2) == "liver" == saved.pair.label_names.get(2)
    assert registration.pair.label_names.names == {}


def test_names_of_a_registration_are_shown_from_the_start(panel, viewer, registration):
    names = LabelNames({1: "skin", 4: "spleen"}, "dataset.json")
    named = panel_module.renamed(registration, names)
    one_sided = {
        **named.report,
        "labels": {"both": [1, 2, 3], "only_moving": [4], "only_fixed": []},
    }
    panel.table.show_report(one_sided)
    shown = [panel.table.labels.item(n, 0).text() for n in range(4)]
    assert shown == ["1 skin", "2", "3", "4 spleen (moving only)"]
    assert "(only one has 4 spleen)" in panel.table.whole.item(2, 0).toolTip()


def test_the_table_is_copied_and_saved_whole(panel, registration, tmp_path):
    panel.table.buttons.copy.click()
    lines = [line.split("\t") for line in QApplication.clipboard().text().splitlines()]
    assert lines[0] == ["measure", "label", "before", "affine", "after", "name"]
    panel.table.buttons.save_to(str(tmp_path / "table.csv"))
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == lines
    after = {(row[0], row[1]): row[4] for row in rows}
    assert float(after["Dice", "3"]) == registration.report["dice"]["after"]["per_label"]["3"]


@pytest.mark.slow
def test_everything_is_saved_and_can_be_read_again(panel, registration, tmp_path, qtbot):
    panel.save_all(tmp_path / "result")
    assert panel.saving.button.text() == "Cancel"
    qtbot.waitUntil(lambda: not panel.saving.busy, timeout=60000)
    assert (
        read_registration_summary(tmp_path / "result").report["dice"] == registration.report["dice"]
    )
    assert not panel.saving.open.isHidden() and str(tmp_path / "result") in panel.saving.text.text()


@pytest.mark.slow
def test_a_save_that_fails_leaves_nothing_and_the_next_one_works(
    panel, tmp_path, qtbot, monkeypatch, told
):
    from napari_shmoareg.io import registration_folder

    def break_off(*args):
        raise OSError(28, "No space left on device")

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("here", encoding="utf-8")
    panel.save_all(tmp_path / "full")
    qtbot.waitUntil(lambda: not panel.saving.busy, timeout=60000)
    assert "not empty" in told[-1]
    with monkeypatch.context() as patched:
        patched.setattr(registration_folder, "_write_experts", break_off)
        panel.save_all(tmp_path / "a")
        qtbot.waitUntil(lambda: not panel.saving.busy, timeout=60000)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "mine.txt"]
    assert "disk" in told[-1].lower() and "Nothing was written" in panel.saving.text.text()
    assert panel.saving.button.isEnabled() and panel.saving.open.isHidden()


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_what_came_of_a_save_is_told_also_when_the_dock_is_closed_meanwhile(
    viewer, registration, tmp_path, qtbot, told, full
):
    open_registration(viewer, registration)
    panel = QualityPanel(viewer)
    if full:
        (tmp_path / "mine.txt").write_text("here", encoding="utf-8")
    panel.save_all(tmp_path)
    panel.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    del panel
    qtbot.waitUntil(lambda: bool(told), timeout=60000)
    assert len(told) == 1 and (
        "not empty" in told[0] if full else f"was saved in {tmp_path}" in told[0]
    )


def test_a_save_that_is_cancelled_leaves_nothing(panel, tmp_path, qtbot):
    panel.save_all(tmp_path / "result")
    panel.saving.button.click()
    qtbot.waitUntil(lambda: not panel.saving.busy, timeout=60000)
    assert list(tmp_path.iterdir()) == [] and "Cancelled" in panel.saving.text.text()


def test_a_folder_that_is_not_empty_gets_a_new_one_inside(tmp_path, registration):
    assert panel_module.folder_in(tmp_path, registration) == tmp_path
    (tmp_path / "moving_onto_fixed").mkdir()
    assert panel_module.folder_in(tmp_path, registration) == tmp_path / "moving_onto_fixed_2"


def test_looks_are_put_back_and_later_layers_left_alone(viewer, registration):
    add_layers(viewer, layers_of_pair(registration.pair))
    before, looks = state(viewer), ViewerState(viewer)
    later = viewer.add_points(np.zeros((1, 3)), visible=False)
    for layer in viewer.layers:
        layer.visible, layer.opacity, layer.name_overlay.visible = True, 0.3, True
    viewer.canvas.grid.enabled = True
    looks.restore(viewer)
    assert later.visible and later.opacity == 0.3
    viewer.layers.remove(later)
    assert state(viewer) == before


def test_any_layer_is_carried_through_the_registration_either_way(
    viewer, panel, registration, qtbot
):
    box, pair = panel.apply_box, registration.pair
    middle = pair.fixed.grid.centre
    there = registration.transform.map_points(middle)
    from napari.layers import Points

    viewer.add_layer(Points([there[::-1]], name="tip", units=("mm",) * 3))
    apply_to(box, viewer.layers["tip"], qtbot)
    (carried,) = [layer for layer in viewer.layers if layer.name == "#1 tip, moving to fixed"]
    assert np.allclose(carried.data[0][::-1], middle, atol=0.1)
    apply_to(box, viewer.layers["moving"], qtbot)
    image = viewer.layers["#1 moving, moving to fixed"]
    np.testing.assert_allclose(image.data, viewer.layers["#1 warped"].data, atol=1e-3)
    apply_to(box, viewer.layers["#1 warped labels"], qtbot, to_moving=True)
    labels = viewer.layers["#1 #1 warped labels, fixed to moving"]
    own = to_layer_geometry(pair.moving_labels).data
    both = (labels.data > 0) & (own > 0)
    assert labels._type_string == "labels" and both.sum() > 0.8 * (labels.data > 0).sum()
    assert (labels.data[both] == own[both]).mean() > 0.8


def test_a_layer_elsewhere_is_refused_with_the_other_direction(viewer, panel, told, qtbot):
    from napari.layers import Image

    far = Image(np.ones((4, 4, 4)), name="far", translate=(5000, 0, 0), units=("mm",) * 3)
    viewer.add_layer(far)
    before = len(viewer.layers)
    apply_to(panel.apply_box, far, qtbot)
    assert "Nothing of 'far' would be left" in told[-1] and "'fixed to moving'" in told[-1]
    assert len(viewer.layers) == before and panel.apply_box.button.text() == "Apply"


def apply_to(box, layer, qtbot, *, to_moving=False) -> None:
    box.layer.pick(layer)
    box.direction.setCurrentIndex(box.direction.findData(to_moving))
    box.button.click()
    qtbot.waitUntil(lambda: not box.task.busy, timeout=20000)


def test_a_ct_has_windows_and_other_images_none(viewer, panel, registration, compare):
    box = panel.compare_box
    assert not box._form.isRowVisible(box.ct_window)
    pair = registration.pair
    ct = {
        role: replace(volume, values=volume.values * 0.5 - 900)
        for role, volume in pair.volumes.items()
        if not volume.is_labels
    }
    scanned = replace(registration, pair=replace(pair, **ct))
    viewer.layers.clear()
    open_registration(viewer, scanned)
    assert box._form.isRowVisible(box.ct_window)
    compare("swipe")
    for window, limits in (("lung", (-1350, 150)), ("bone", (-450, 1050))):
        box.ct_window.setCurrentText(window)
        box.ct_window.activated.emit(0)
        for name in ("fixed", "moving", "#1 warped"):
            assert tuple(viewer.layers[name].contrast_limits) == limits
    low, high = box.comparer.current.layer.contrast_limits
    assert 0 <= low < high <= 1


def test_the_edge_of_a_swipe_is_drawn_where_the_images_meet(viewer, panel, compare, registration):
    shown = compare("swipe")
    panel.compare_box.slider.setValue(30)
    shown.set_amount(0.3)
    edge = shown.edge
    corners = np.sort(to_viewer(registration.pair.fixed.grid.corners()), axis=0)
    axis, _ = shown._horizontal_axis()
    upright = edge.data[np.abs(edge.data[:, 1, axis]) < 1e-9]
    at = upright[0, 0, axis] * edge.scale[axis] + edge.translate[axis]
    assert len(upright) == shown.layer.data.shape[viewer.dims.order[0]] and edge in viewer.layers
    assert shown.edge_at(np.where(np.arange(3) == axis, at, 0)) == pytest.approx(0.3, abs=0.03)
    assert corners[0, axis] < at < corners[-1, axis]
    assert np.allclose(edge.scale, shown.layer.scale)  # sliders keep their steps
    compare("blend")
    assert edge not in viewer.layers


def test_what_belongs_to_a_moved_image_is_carried_from_where_it_lies(registration):
    """The transform refers to the file of the moving image, not to where a person dragged it."""
    from napari.layers import Image, Points

    pair, shift = registration.pair, np.array([30.0, -12.0, 7.0])  # mm, R A S
    placement = np.eye(4)
    placement[:3, 3] = shift
    data, options = layer_options(pair.moving, role="moving")
    moving = Image(data, **options)
    moving.affine = np.block([[np.eye(3), shift[::-1][:, None]], [np.eye(4)[3:]]])
    np.testing.assert_allclose(placement_of(moving), placement, atol=1e-9)
    image, _, _ = carry_layer(moving, registration, 1, placement=placement)
    expected, _, _ = layers_of(registration, 1)[0]
    np.testing.assert_allclose(image, expected, atol=1e-3)
    middle = pair.fixed.grid.centre
    there = registration.transform.map_points(middle) + shift
    point = Points([there[::-1]], units=("mm",) * 3)
    back, _, _ = carry_layer(point, registration, 1, placement=placement)
    assert np.allclose(back[0][::-1], middle, atol=0.1)
    onto, _, _ = carry_layer(
        Points([middle[::-1]], units=("mm",) * 3),
        registration,
        1,
        to_moving=True,
        placement=placement,
    )
    assert np.allclose(onto[0][::-1], there, atol=1e-6)
    fixed, placed = layer_options(pair.fixed, role="fixed")
    _, options, _ = carry_layer(
        Image(fixed, **placed), registration, 1, to_moving=True, placement=placement
    )
    assert np.allclose(options["affine"][:3, 3], shift[::-1])
