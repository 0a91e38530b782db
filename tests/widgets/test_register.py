"""The Register panel in a real viewer: real buttons, the real worker, a small network."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from napari.utils._proxies import PublicOnlyProxy
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QTimer
from qtpy.QtGui import QKeySequence, QShortcut

from napari_shmoareg.io import save_network
from napari_shmoareg.plugin.layers import layers_of, layers_of_pair
from napari_shmoareg.plugin.placement import tag
from napari_shmoareg.plugin.register.job import LayerRegistration
from napari_shmoareg.plugin.register.panel import CANCELLED, RegisterPanel
from napari_shmoareg.plugin.registrations import (
    layer_in_role,
    layers_of_registration,
    open_registrations,
)
from napari_shmoareg.plugin.viewer import CAUTION, ERROR
from napari_shmoareg.registration.progress import Interrupted
from napari_shmoareg.registration.resources import psutil
from napari_shmoareg.settings import RegistrationRequest

LONG = 20_000  # ms


@pytest.fixture(autouse=True)
def no_memory_of_other_starts(plugin_settings):
    """Settings are neither read from nor written to those of the person who runs the tests."""


@pytest.fixture(scope="module")
def settings(lively_network, tmp_path_factory) -> RegistrationRequest:
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    save_network(lively_network(0.03), path, card={})
    return RegistrationRequest(weights=str(path), affine="none", device="cpu")


def add(viewer, layers):
    for data, options, kind in layers:
        getattr(viewer, f"add_{kind}")(data, **options)


@pytest.fixture
def panel(viewer, settings, qtbot):
    """Docked as napari docks it: it gets a proxy of the viewer."""
    made = RegisterPanel(PublicOnlyProxy(viewer))
    viewer.window.add_dock_widget(made, name="Register")
    made.form.settings = settings
    yield made
    if made.task.busy:
        made.task.cancel()
        qtbot.waitUntil(lambda: not made.task.busy, timeout=LONG)


@pytest.fixture
def ready(viewer, panel, phantoms):
    """With the oblique phantoms open."""
    add(viewer, layers_of_pair(phantoms))
    return panel


@pytest.fixture
def said():
    """What napari notifies of, in order."""
    found = []

    def heard(note):
        found.append((str(note.severity), note.message))

    notification_manager.notification_ready.connect(heard)
    yield found
    notification_manager.notification_ready.disconnect(heard)


def register(panel, qtbot) -> int:
    """Click, and wait for all layers."""
    with qtbot.waitSignal(panel.registered, timeout=LONG) as done:
        panel.progress.button.click()
    return done.args[0]


@pytest.fixture
def held(monkeypatch):
    """The network stops before its first convolution until it is let go."""
    reached, go = threading.Event(), threading.Event()
    forward, again = torch.nn.Conv3d.forward, []

    def slow(self, x):
        if not again:
            again.append(1)
            reached.set()
            go.wait(60)
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", slow)
    yield reached, go
    go.set()


@pytest.mark.slow
def test_what_comes_out_lies_over_the_fixed_image_in_mm(
    ready, viewer, qtbot, phantoms, record_property
):
    point, zoom = viewer.dims.point, viewer.scene.camera.zoom
    gaps, last = [], [time.perf_counter()]

    def tick():
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    timer = QTimer()
    timer.timeout.connect(tick)
    timer.start(5)
    number = register(ready, qtbot)
    timer.stop()
    record_property("longest_gap_of_the_event_loop_s", round(max(gaps), 3))
    warped, fixed = (
        layers_of_registration(viewer, number, "warped")[0],
        layer_in_role(viewer, "fixed"),
    )
    assert number == 1 and np.allclose(warped.extent.world, fixed.extent.world)
    volume = open_registrations(viewer)[1].warped
    peak = np.unravel_index(volume.values.argmax(), volume.values.shape)
    place = volume.grid.to_world(peak)[::-1]
    shown = warped.data[tuple(int(n) for n in np.rint(warped.world_to_data(place)))]
    assert shown == pytest.approx(volume.values[peak], rel=0.05)
    assert not np.allclose(volume.values, phantoms.fixed.values, atol=1)
    assert (fixed.visible, layer_in_role(viewer, "moving").visible, warped.visible) == (
        True,
        False,
        True,
    )
    assert (
        viewer.dims.point == point
        and viewer.scene.camera.zoom == zoom
        and viewer.layers.selection.active is warped
    )
    assert (
        "#1 moving onto fixed" in ready.message_box.text.text()
        and "Dice" in ready.message_box.text.text()
    )
    ready.message_box.reasons.click()
    assert (
        ready.message_box.why.isVisible()
        and "Weights: " in ready.message_box.why.text()
        and "network " in ready.message_box.why.text()
    )


def test_the_button_says_what_is_missing(panel, viewer, phantoms, qtbot):
    button = panel.progress.button
    assert (button.text(), button.isEnabled()) == ("Pick a moving image", False)
    fixed, moving, *_ = layers_of_pair(phantoms)
    add(viewer, [moving])
    assert button.text() == "Pick a fixed image"
    add(viewer, [fixed])
    assert (button.text(), button.isEnabled()) == ("Register", True)
    for picker in (panel.pickers.pickers["moving"], panel.pickers.pickers["fixed"]):
        picker.setCurrentIndex(1)
        picker.activated.emit(1)
    assert (button.text(), button.isEnabled()) == ("Moving and fixed are the same layer", False)
    panel.findChild(QShortcut).activated.emit()
    assert not panel.task.busy


@pytest.mark.slow
def test_no_torch_is_loaded_for_a_panel_without_images():
    code = (
        "import sys, napari_shmoareg.plugin.register.panel; print([m for m in ('torch',"
        " 'SimpleITK', 'nibabel', 'matplotlib.pyplot') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")


@pytest.mark.slow
def test_two_runs_lie_side_by_side_and_the_newest_is_shown(ready, viewer, qtbot):
    register(ready, qtbot)
    ready.pickers.swap.click()
    ready.form.refine.setValue(2)
    assert register(ready, qtbot) == 2
    first, second = open_registrations(viewer).values()
    assert (first.pair.moving.name, second.pair.moving.name) == ("moving", "fixed")
    assert second.report["settings"]["refine"] == 2
    visible = {
        layer.name
        for layer in viewer.layers
        if layer.visible and tag(layer, "registration") is not None
    }
    assert visible == {"#2 warped"} and {"#1 warped", "#2 warped labels"} <= {
        layer.name for layer in viewer.layers
    }
    gone = weakref.ref(first)
    del first, second
    for layer in layers_of_registration(viewer, 1):
        viewer.layers.remove(layer)
    del layer
    qtbot.wait(50)
    gc.collect()
    assert gone() is None and list(open_registrations(viewer)) == [2]


@pytest.mark.slow
def test_a_job_that_is_cancelled_in_the_middle_of_the_network_leaves_nothing(
    ready, viewer, qtbot, held, said
):
    reached, go = held
    before = list(viewer.layers)
    ready.progress.button.click()
    qtbot.waitUntil(reached.is_set, timeout=LONG)
    assert ready.progress.button.text() == "Cancel" and ready.progress.bar.isVisible()
    qtbot.waitUntil(lambda: ready.progress.message.text().startswith("deforming, "), timeout=LONG)
    ready.progress.button.click()
    assert ready.progress.button.text() == "Cancelling…" and not ready.progress.button.isEnabled()
    go.set()
    qtbot.waitUntil(lambda: ready.progress.button.text() == "Register", timeout=LONG)
    qtbot.wait(50)
    assert list(viewer.layers) == before and ready.message_box.text.text() == CANCELLED
    assert [message for _, message in said] == [CANCELLED] and not ready.progress.bar.isVisible()
    assert register(ready, qtbot) == 1


@pytest.mark.slow
def test_layers_may_come_change_and_go_while_a_job_runs(ready, viewer, qtbot, held, phantoms):
    reached, go = held
    with qtbot.waitSignal(ready.registered, timeout=LONG):
        ready.progress.button.click()
        qtbot.waitUntil(reached.is_set, timeout=LONG)
        layer_in_role(viewer, "fixed").name = "called otherwise"
        viewer.add_points(np.zeros((2, 3)), scale=(1, 1, 1), units=("mm",) * 3)
        viewer.layers.remove(layer_in_role(viewer, "moving"))
        go.set()
    assert open_registrations(viewer)[1].pair.fixed.name == "fixed" and layers_of_registration(
        viewer, 1, "warped"
    )
    assert ready.progress.button.text() == "Pick a moving image"


def test_a_viewer_that_is_closed_in_the_middle_ends_the_job(
    make_napari_viewer, settings, phantoms, qtbot, held, monkeypatch
):
    (reached, go), ended = held, ends(monkeypatch)
    viewer = make_napari_viewer(show=True)
    panel = RegisterPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Register")
    panel.form.settings = settings
    add(viewer, layers_of_pair(phantoms))
    panel.progress.button.click()
    qtbot.waitUntil(reached.is_set, timeout=LONG)
    del panel
    viewer.close()
    go.set()
    qtbot.waitUntil(lambda: bool(ended), timeout=LONG)
    qtbot.wait(50)
    assert ended == [Interrupted] and not viewer.layers


@pytest.mark.slow
def test_a_viewer_that_is_closed_while_layers_are_added_is_left_alone(
    make_napari_viewer, settings, phantoms, qtbot
):
    viewer = make_napari_viewer(show=True)
    panel = RegisterPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Register")
    panel.form.settings = settings
    add(viewer, layers_of_pair(phantoms))
    with qtbot.waitSignal(panel._adder.progressed, timeout=LONG):
        panel.progress.button.click()
    assert panel._result.layers  # that were still to come
    del panel
    viewer.close()
    qtbot.wait(300)
    assert not viewer.layers


@pytest.mark.slow
def test_a_bad_pair_is_told_and_the_panel_goes_on(ready, viewer, qtbot, said):
    moving = layer_in_role(viewer, "moving")
    good, moving.translate = moving.translate, np.add(moving.translate, 1000)
    viewer.layers.remove(layer_in_role(viewer, "moving_labels"))
    ready.progress.button.click()
    qtbot.waitUntil(lambda: bool(said), timeout=LONG)
    severity, message = said[0]
    assert (
        severity == "error"
        and "'Alignment' auto" in message
        and ready.message_box.text.text() == message
    )
    moving.translate = good
    assert register(ready, qtbot) == 1


@pytest.mark.slow
def test_too_little_memory_is_told_with_a_size_that_fits(ready, qtbot, said, settings, monkeypatch):
    ready.form.settings = replace(settings, size=512)

    class Small:
        available = 300 * 2**20

    with monkeypatch.context() as patch:  # and only for the first registration
        patch.setattr(psutil, "virtual_memory", lambda: Small)
        ready.progress.button.click()
        qtbot.waitUntil(lambda: bool(said), timeout=LONG)
    assert said[0][0] == "error" and "'Size' " in said[0][1] and "would fit" in said[0][1]
    ready.form.settings = settings
    assert register(ready, qtbot) == 1


@pytest.mark.slow
def test_weights_that_are_gone_are_told(ready, qtbot, said, settings):
    ready.form.settings = RegistrationRequest(weights="/nowhere/none.safetensors")
    ready.progress.button.click()
    qtbot.waitUntil(lambda: bool(said), timeout=LONG)
    assert said[0][0] == "error" and "none.safetensors" in said[0][1]
    ready.form.settings = settings
    assert register(ready, qtbot) == 1


@pytest.mark.slow
def test_the_keyboard_starts_a_registration(ready, viewer, qtbot):
    (shortcut,) = ready.findChildren(QShortcut)
    assert (
        shortcut.key() == QKeySequence("Ctrl+Return")
        and "Ctrl+Return" in ready.progress.button.toolTip()
    )
    with qtbot.waitSignal(ready.registered, timeout=LONG):
        shortcut.activated.emit()
    assert list(open_registrations(viewer)) == [1]


@pytest.mark.slow
def test_what_is_to_be_minded_is_told_without_options_of_the_command_line(ready, qtbot, said):
    register(ready, qtbot)
    severity, message = said[0]
    assert severity == "warning" and "other weights" in message and "--" not in message
    assert message in ready.message_box.text.text() and message.startswith("⚠ Caution: ")
    assert CAUTION in ready.message_box.text.styleSheet()
    ready.message_box.show_message("something else")
    assert ready.message_box.text.styleSheet() == ""


def test_shipped_weights_and_devices_are_offered_once_there_is_a_pair(ready, qtbot):
    device = ready.form.combos["device"].model()
    qtbot.waitUntil(lambda: ready.form.weights.findText("small") > 0, timeout=LONG)
    assert device.item(2).isEnabled() == torch.cuda.is_available()
    assert gc.isenabled() and gc.get_freeze_count() == 0


@pytest.mark.slow
def test_a_layer_that_cannot_be_added_is_told_and_the_panel_goes_on(
    ready, qtbot, said, monkeypatch
):
    def refuse(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("napari_shmoareg.plugin.layers.add_layers", refuse)
        ready.progress.button.click()
        qtbot.waitUntil(lambda: bool(said), timeout=LONG)
    assert said[0][0] == "error" and "memory ran out" in said[0][1]
    assert register(ready, qtbot) == 1


def test_every_control_says_what_it_does(panel):
    for part in (
        panel.progress.button,
        panel.pickers.swap,
        panel.message_box.reasons,
        *panel.pickers.pickers.values(),
    ):
        assert part.toolTip()
    assert panel.minimumWidth() >= 300


@pytest.mark.slow
def test_a_number_that_was_taken_meanwhile_is_not_given_again(
    ready, viewer, qtbot, held, registration
):
    reached, go = held
    with qtbot.waitSignal(ready.registered, timeout=LONG) as done:
        ready.progress.button.click()
        qtbot.waitUntil(reached.is_set, timeout=LONG)
        add(viewer, layers_of(registration, 1)[:2])
        go.set()
    assert (
        done.args == [2]
        and list(open_registrations(viewer)) == [1, 2]
        and open_registrations(viewer)[1] is registration
    )
    assert "#2 warped" in viewer.layers and "#2 moving onto fixed" in ready.message_box.text.text()
    assert not viewer.layers["#1 warped"].visible


@pytest.mark.slow
def test_an_error_that_no_one_foresaw_gives_the_button_back(ready, qtbot, said, monkeypatch):
    def break_down(*_):
        raise KeyError("odd")

    with monkeypatch.context() as patch:
        patch.setattr(LayerRegistration, "__call__", break_down)
        ready.progress.button.click()
        qtbot.waitUntil(lambda: bool(said), timeout=LONG)
    assert "This is a bug" in said[0][1] and ready.progress.button.text() == "Register"
    assert register(ready, qtbot) == 1


def test_a_panel_that_is_closed_in_the_middle_ends_its_job(
    viewer, settings, phantoms, qtbot, held, monkeypatch
):
    (reached, go), ended = held, ends(monkeypatch)
    panel = docked(viewer, settings, phantoms)
    panel.progress.button.click()
    qtbot.waitUntil(reached.is_set, timeout=LONG)
    before = list(viewer.layers)
    destroy(panel, viewer, qtbot)
    go.set()
    qtbot.waitUntil(lambda: bool(ended), timeout=LONG)
    qtbot.wait(100)
    assert ended == [Interrupted] and list(viewer.layers) == before


@pytest.mark.slow
def test_a_panel_that_is_closed_while_layers_are_added_takes_them_back(
    viewer, settings, phantoms, qtbot
):
    panel = docked(viewer, settings, phantoms)
    before = list(viewer.layers)
    with qtbot.waitSignal(panel._adder.progressed, timeout=LONG):
        panel.progress.button.click()
    assert len(viewer.layers) > len(before)
    destroy(panel, viewer, qtbot)
    qtbot.waitUntil(lambda: list(viewer.layers) == before, timeout=LONG)


def ends(monkeypatch) -> list[type]:
    """How each registration ends from here on."""
    found, call = [], LayerRegistration.__call__

    def heard(registration, report):
        try:
            outcome = call(registration, report)
        except Exception as error:
            found.append(type(error))
            raise
        found.append(type(outcome))
        return outcome

    monkeypatch.setattr(LayerRegistration, "__call__", heard)
    return found


def docked(viewer, settings, phantoms):
    """A panel with a pair; the test closes it."""
    panel = RegisterPanel(PublicOnlyProxy(viewer))
    viewer.window.add_dock_widget(panel, name="Register")
    panel.form.settings = settings
    add(viewer, layers_of_pair(phantoms))
    return panel


def destroy(panel, viewer, qtbot):
    """Close its dock, as napari does with its cross."""
    panel.parent().destroyOnClose()
    qtbot.wait(10)


@pytest.mark.slow
def test_a_result_offers_what_comes_next_and_leaves_with_its_pair(ready, viewer, qtbot, plugin):
    box = ready.result_box
    assert not box.isVisible()
    number = register(ready, qtbot)
    warped = layers_of_registration(viewer, number, "warped")[0]
    assert box.isVisible() and warped.opacity == 0.5 and layer_in_role(viewer, "fixed").visible
    box.quality.click()
    quality = viewer.window.dock_widgets["Quality (shmoareg)"]
    assert quality.isVisible() and quality.picker.number == number
    box.experts.click()
    assert viewer.window.dock_widgets["Experts (shmoareg)"].isVisible()
    ready.pickers.swap.click()
    assert not box.isVisible() and ready.message_box.text.text() == ""


def test_what_got_worse_is_red_and_refinement_is_offered(panel, viewer, registration, qtbot):
    box, report = panel.result_box, dict(registration.report)
    labels = {"1": 0.7, "2": 0.5}
    report["dice"] = {
        stage: {"mean": 0.6 - drop, "per_label": {k: v - drop for k, v in labels.items()}}
        for stage, drop in (("before", 0.1), ("affine", 0.0), ("after", 0.05))
    }
    box.show_result(1, replace(registration, report=report))
    assert box.worse.text() == "Dice got worse: 0.600 after the affine alone, 0.550 after."
    assert ERROR in box.worse.styleSheet() and not box.refine.isHidden()
    with qtbot.waitSignal(box.refine_requested):
        box.refine.click()
    assert panel.form.settings.refine == 60
    report["settings"] = report["settings"] | {"refine": 60}
    box.show_result(1, replace(registration, report=report))
    assert box.refine.isHidden() and not box.worse.isHidden()
    report["dice"] = None
    report["similarity"] = {"before": {"ncc": 0.5}, "after": {"ncc": 0.4}}
    box.show_result(1, replace(registration, report=report))
    assert "correlation 0.500 before, 0.400 after" in box.worse.text()
    report["similarity"] = {"before": {"ncc": 0.5}, "after": {"ncc": 0.6}}
    box.show_result(1, replace(registration, report=report))
    assert box.worse.isHidden() and box.refine.isHidden()
