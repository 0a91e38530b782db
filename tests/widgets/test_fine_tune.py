"""The Fine-tune panel in a real viewer, with a child that only pretends to learn: real buttons, a
real process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from napari.utils._proxies import PublicOnlyProxy
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import read_image, write_image
from napari_shmoareg.plugin.fine_tune.open_layers import Picked, file_names
from napari_shmoareg.plugin.fine_tune.panel import TABS, FineTunePanel
from napari_shmoareg.plugin.fine_tune.process import Mode
from napari_shmoareg.plugin.layers import add_layers, layers_of_pair
from napari_shmoareg.plugin.placement import tag

FAKE = Path(__file__).with_name("fake_run.py")
LONG = 20_000  # ms


@pytest.fixture(autouse=True)
def no_memory_of_other_starts(plugin_settings):
    """Settings are neither read from nor written to those of the person who runs the tests."""


@pytest.fixture
def panel(viewer, qtbot):
    """Docked as napari docks it: it gets a proxy of the viewer."""
    made = FineTunePanel(PublicOnlyProxy(viewer))
    viewer.window.add_dock_widget(made, name="Fine-tune")
    yield made
    child = made.follower._child_ref.child
    made.follower.close()
    if child is not None:
        gone(child.pid, kill=True)


@pytest.fixture
def learn(panel, tmp_path, qtbot):
    """Have the panel start a child that does as it is told."""

    def start(how: str, steps: int = 40) -> Path:
        panel.follower.start(
            [sys.executable, str(FAKE), how, str(tmp_path / "run"), str(steps)], tmp_path / "run"
        )
        panel.run.folder.setText(str(tmp_path / "run"))
        return tmp_path / "run"

    return start


def gone(pid: int, kill: bool = False) -> bool:
    """Whether a process ended within some seconds."""
    try:
        process = psutil.Process(pid)
        if kill:
            process.kill()
        process.wait(20)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def ended(panel):
    return lambda: panel.follower.mode is Mode.idle


def show(panel, tab: str) -> None:
    panel.tabs.setCurrentIndex(list(TABS).index(tab))


def test_a_run_fills_table_curves_and_loads_and_its_alarm_is_told_once(panel, learn, qtbot, told):
    learn("plain")
    qtbot.waitUntil(ended(panel), timeout=LONG)
    state = panel.follower.state
    assert state.step == 40 and len(state.terms["total"]) == 40 and not state.garbled
    panel._show()
    assert panel.tabs.tabText(panel.tabs.currentIndex()) == "Curves"
    steps, values = panel.curves.losses._curves["total"][0].getData()
    assert len(steps) == 40 and np.isfinite(values).all() and not panel.curves.nothing.isVisible()
    assert (
        f"best {state.best.value:.3f} at step {state.best.step}" in panel.curves.dice.title.text()
    )
    show(panel, "Loads")
    assert panel.loads.legend.texts()[0] == "head 0" and len(panel.loads.legend.texts()) == 24
    assert "⚠ Step 30" in panel.loads.alarms.text() and panel.tabs.tabText(3) == "Loads ⚠ 1"
    assert told("warning").count("routing has collapsed") == 1
    table = panel.data.table.table
    assert table.item(0, 0).text() == "e" and "cut short" in table.item(0, 1).text(), (
        "problems come first"
    )
    assert "2 train, 2 validation" in panel.data.table.message.text()
    assert panel.data.message.text() == "label 4 is rare"
    assert "The run is done: 40 steps." in told("info") and "best Dice" in panel.run.message.text()


def test_the_places_of_the_loads_are_picked_by_layer_and_direction(panel, learn, qtbot, choose):
    learn("plain", 20)
    qtbot.waitUntil(ended(panel), timeout=LONG)
    show(panel, "Loads")
    choose(panel.loads.layer, "decoder-1")
    choose(panel.loads.which, "y")
    assert panel.loads.gate == "decoder-1-y" and panel.loads.legend.texts()[::2] == [
        "1×1×1",
        "3×3×3",
        "5×5×5",
    ]
    tops = [curve[0].getData()[1][-1] for curve in panel.loads.chart._curves.values()]
    assert tops[-1] == pytest.approx(100) and tops == sorted(tops)


def test_pause_go_on_and_stop_are_asked_by_the_buttons_and_done(panel, learn, qtbot):
    learn("slow", 1000)
    qtbot.waitUntil(
        lambda: panel.run.pause.isEnabled() and panel.follower.state.step > 0, timeout=LONG
    )
    panel.run.pause.click()
    assert panel.run.message.text().startswith("Pausing after this step")
    qtbot.waitUntil(lambda: panel.run.pause.text() == "Continue", timeout=LONG)
    step = panel.follower.state.step
    assert panel.run.message.text().startswith(f"Paused at step {step} of 1000")
    panel.run.pause.click()
    qtbot.waitUntil(lambda: panel.follower.state.step > step, timeout=LONG)
    panel.run.stop.click()
    assert panel.run.stop.text() == "Stopping…" and not panel.run.stop.isEnabled()
    qtbot.waitUntil(ended(panel), timeout=LONG)
    assert panel.follower.state.end["reason"] == "stopped"
    qtbot.waitUntil(lambda: panel.run.start.isVisible(), timeout=LONG)
    assert (
        panel.run.start.text() == "Resume"
        and panel.run.start.isEnabled()
        and panel.run.use.isEnabled()
    )


def test_a_child_that_is_killed_is_told_with_its_last_words_and_napari_stands(
    panel, learn, qtbot, told
):
    learn("crash")
    qtbot.waitUntil(ended(panel), timeout=LONG)
    error = told("error")
    assert "ended after step 4 by the signal SIGKILL" in error and "the card fell out" in error
    assert panel.run.message.text().startswith("Step 4 of 40; no process works on this run now.")
    log = Path(error.rsplit("The full log is ", 1)[1].strip().rstrip("."))
    assert log.is_file()
    log.unlink()


def test_an_error_that_the_child_tells_is_told_in_its_own_words(panel, learn, qtbot, told):
    learn("error")
    qtbot.waitUntil(ended(panel), timeout=LONG)
    assert told("error").strip() == "The loss is not finite (a and b). Lower the learning rate."
    assert panel.run.message.text().startswith("The run failed after step 3.")


def test_lines_that_are_no_events_do_not_stop_the_watching(panel, learn, qtbot):
    learn("garbage")
    qtbot.waitUntil(ended(panel), timeout=LONG)
    assert panel.follower.state.step == 40 and len(panel.follower.state.garbled) == 2
    panel._show()
    assert "2 events are invalid" in panel.run.message.text()


def test_closing_the_dock_lets_the_child_stop_by_itself_and_save(viewer, panel, learn, qtbot):
    run = learn("slow", 1000)
    qtbot.waitUntil(lambda: panel.follower.state.step > 0, timeout=LONG)
    child = panel.follower._child_ref.child
    viewer.window.remove_dock_widget(panel)
    assert panel.follower._child_ref.child is None
    qtbot.waitUntil(lambda: child.ended is not None or bool(child.events()), timeout=LONG)
    assert gone(child.pid) and (run / "best.safetensors").is_file()
    assert panel.follower.mode is Mode.idle
    child.remove_log()


@pytest.mark.slow
def test_a_program_that_is_killed_takes_its_child_along_at_a_safe_step(tmp_path):
    code = (
        "import os, sys, time\nfrom napari_shmoareg.plugin.fine_tune.process import Child\nchild ="
        f" Child([sys.executable, {str(FAKE)!r}, 'slow', {str(tmp_path / 'run')!r}, '1000'])\nwhile"
        " not any(event['event'] == 'step' for event in child.events()):\n   "
        " time.sleep(0.05)\nprint(child.pid, child.log, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid, log = run.stdout.split()
    assert gone(int(pid))
    Path(log).unlink()


def test_a_command_that_does_not_exist_is_told(panel, tmp_path, told):
    panel.follower.start([str(tmp_path / "no-such-program")], tmp_path / "run")
    assert "The run could not be started" in told("error") and panel.follower.mode is Mode.nothing


def test_a_child_that_says_nothing_is_told_to_be_silent_and_can_be_stopped(
    panel, learn, qtbot, monkeypatch
):
    learn("silent")
    qtbot.waitUntil(lambda: panel.follower.state.step == 1, timeout=LONG)
    panel.follower._last_event -= 120
    panel._show()
    assert "No message for 2 min." in panel.run.message.text() and panel.run.stop.isEnabled()


def test_the_button_says_what_is_missing_and_a_refused_value_is_told_at_its_field(panel, tmp_path):
    start = panel.run.start
    assert (start.text(), start.isEnabled()) == ("Choose a data set", False)
    panel.data.dataset.path.setText(str(tmp_path / "nowhere"))
    assert start.text() == "The data set does not exist"
    panel.data.dataset.path.setText(str(tmp_path))
    assert start.text() == "Name a run folder"
    panel.run.folder.setText(str(tmp_path / "run"))
    assert (start.text(), start.isEnabled()) == ("Start", True)
    field = panel.form.fields["learning_rate"]
    show(panel, "Settings")
    for text, words in (
        ("-1", "Must be above 0; got -1.0."),
        ("fast", "A number was expected; got 'fast'."),
    ):
        field.control.setText(text)
        assert field.error_label.isVisible() and field.error_label.text() == words
        assert (start.text(), start.isEnabled()) == ("Fix 'Learning rate'", False)
    field.control.setText("3e-4")
    assert not field.error_label.isVisible() and start.isEnabled()
    panel.form.fields["final_rate"].control.setText("")
    panel.form.fields["checkpointing"].control.setChecked(True)
    assert panel.form.chosen.settings == {"learning_rate": 3e-4, "checkpointing": True}
    panel.run.copy.click()
    written = QApplication.clipboard().text()
    assert written.endswith(
        f"{tmp_path} --out {tmp_path / 'run'} --learning-rate 0.0003 --checkpointing"
    )
    panel.form.defaults.click()
    assert panel.form.chosen.settings == {}


def test_every_setting_is_in_the_form_with_the_words_of_its_docstring(panel):
    from dataclasses import fields

    from napari_shmoareg.settings import help_texts
    from napari_shmoareg.training.settings import FineTuning, RunSettings

    for settings in (FineTuning, RunSettings):
        for field in fields(settings):
            widget = panel.form.fields[field.name]
            assert (
                widget.value == field.default
                and help_texts(settings)[field.name] in widget.control.toolTip()
            )


def test_a_run_from_nothing_is_ordered_with_the_papers_steps(panel, tmp_path):
    from napari_shmoareg.plugin.fine_tune.data import _network_size
    from napari_shmoareg.plugin.fine_tune.form import NOTHING

    panel.data.dataset.path.setText(str(tmp_path))
    panel.run.folder.setText(str(tmp_path / "run"))
    combo, steps = panel.form.weights, panel.form.fields["steps"]
    for word, preset in NOTHING.items():
        combo.setCurrentText(word)
        combo.activated.emit(combo.currentIndex())
        assert steps.value == 100_000
        panel.run.copy.click()
        written = QApplication.clipboard().text()
        assert written.endswith(f"--from none --preset {preset} --steps 100000")
    assert (
        panel.data.get_settings()[1:] == ("none", "small") and _network_size("none", "small") == 60
    )
    steps.control.setText("1000")  # of the form's own default, and not of the command's
    assert panel.form.chosen.settings == {"steps": 1000}
    steps.control.setText("100000")
    combo.setCurrentText("auto")
    combo.activated.emit(combo.currentIndex())
    assert panel.form.chosen == ("auto", "auto", {}, None)


def test_the_form_shows_a_run_from_before_there_was_auto(panel, tmp_path):
    about = {
        "format": "shmoareg-run-1",
        "settings": {"steps": 3, "bfloat16": True},
        "config": {},
        "run": {},
    }
    (tmp_path / "run.json").write_text(json.dumps(about), encoding="utf-8")
    panel.run.folder.setText(str(tmp_path))
    assert panel.form.fields["bfloat16"].value == "on" and panel.form.fields["steps"].value == 3


def test_a_click_on_start_runs_the_command_with_what_was_chosen(
    panel, tmp_path, qtbot, monkeypatch
):
    ordered = []
    monkeypatch.setattr(
        panel.follower, "start", lambda command, folder: ordered.append((command, folder))
    )
    panel.data.dataset.path.setText(str(tmp_path))
    panel.data.dataset.patterns["labels"].setText("labels/*.nii.gz")
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.form.fields["steps"].control.setText("7")
    panel.run.start.click()
    ((command, folder),) = ordered
    assert (
        command[:4] == [sys.executable, "-m", "napari_shmoareg", "fine-tune"]
        and folder == tmp_path / "run"
    )
    assert command[4:] == [
        *(
            str(tmp_path),
            "--out",
            str(tmp_path / "run"),
            "--labels",
            "labels/*.nii.gz",
            "--steps",
            "7",
        ),
        *("--json", "--with-parent"),
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"format": "shmoareg-run-1"}', encoding="utf-8")
    (tmp_path / "run" / "training.safetensors").write_bytes(b"state")
    panel.run.changed.emit()
    assert panel.run.start.text() == "Resume"
    panel.run.start.click()
    assert ordered[1][0][4:] == [
        "--out",
        str(tmp_path / "run"),
        "--json",
        "--with-parent",
        "--resume",
    ]


def test_open_layers_are_written_on_their_own_grids_and_learned_from(
    panel, viewer, phantoms, tmp_path, qtbot, monkeypatch
):
    ordered = []
    monkeypatch.setattr(panel.follower, "start", lambda command, folder: ordered.append(command))
    add_layers(viewer, layers_of_pair(phantoms))
    viewer.add_image(np.zeros((4, 5, 6, 7)), name="four axes")
    panel.data.dataset.source.setCurrentText("Open layers")
    panel.reset_choices()
    picked = panel.data.dataset.layers.picked
    assert [(p.image.name, p.labels.name) for p in picked] == [
        ("fixed", "fixed_labels"),
        ("moving", "moving_labels"),
    ]
    panel.data.dataset.layers.table.item(0, 2).setText("patient 1")
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.run.start.click()
    qtbot.waitUntil(lambda: bool(ordered), timeout=LONG)
    data = tmp_path / "run-data"
    assert ordered[0][4:8] == [str(data), "--out", str(tmp_path / "run"), "--images"]
    back = read_image(data / "images" / "patient-1__fixed.nii.gz")
    assert back.grid.same_space(phantoms.fixed.grid, tolerance=1e-4) and np.allclose(
        back.values, phantoms.fixed.values
    )
    labels = read_image(data / "labels" / "moving__moving.nii.gz", labels=True)
    assert (labels.values == phantoms.moving_labels.values).all()
    from napari_shmoareg.datasets import open_dataset

    words = ordered[0]
    found = open_dataset(
        data,
        **{n: words[words.index(f"--{n}") + 1] for n in ("images", "labels", "subject", "kind")},
    )
    assert set(found.subjects) == {"patient-1", "moving"} and all(
        scan.labels is not None for scan in found.scans
    )


def test_fewer_than_two_ticked_layers_are_asked_for(panel, viewer, phantoms, tmp_path):
    add_layers(viewer, layers_of_pair(phantoms))
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.data.dataset.source.setCurrentText("Open layers")
    panel.reset_choices()
    assert panel.run.start.text() == "Start"
    panel.data.dataset.layers.table.item(1, 0).setCheckState(Qt.CheckState.Unchecked)
    assert (panel.run.start.text(), panel.run.start.isEnabled()) == ("Tick two image layers", False)
    panel.reset_choices()
    assert len(panel.data.dataset.layers.picked) == 1, "a tick is kept when layers come and go"


def test_layers_that_are_called_alike_get_files_of_their_own():
    class Layer:
        def __init__(self, name):
            self.name = name

    picked = [
        Picked(Layer(name), None, subject)
        for name, subject in (("a/b", "x"), ("a b", "x"), ("a__b", "x__y"))
    ]
    names = file_names(picked)
    assert len(set(names)) == 3 and names[2] == "x_y__a_b"


@pytest.fixture
def elsewhere(tmp_path):
    """A run's folder that a living process works on: this one."""
    run = tmp_path / "elsewhere"
    run.mkdir()
    (run / "run.json").write_text(
        json.dumps({"format": "shmoareg-run-1", "settings": {"steps": 90}}), encoding="utf-8"
    )
    head = "step,total,similarity,smoothness,routing,overlap,gradient,rate,pairs,seconds\n"
    rows = "".join(f"{n},{1 / n!r},0.5,0.25,0.125,,1.0,0.0001,a and b,0.4\n" for n in range(1, 31))
    (run / "metrics.csv").write_text(head + rows, encoding="utf-8")
    from napari_shmoareg.training.run_folder import RunLock

    with RunLock(run / "lock"):
        yield run


def test_a_run_of_another_process_is_watched_and_asked_by_its_wish_file(
    panel, elsewhere, qtbot, monkeypatch
):
    monkeypatch.setattr("napari_shmoareg.plugin.fine_tune.process.READ_INTERVAL", 0.1)
    panel.run.opened.emit(str(elsewhere))
    qtbot.waitUntil(lambda: panel.follower.mode is Mode.external, timeout=LONG)
    panel._show()
    assert (
        panel.follower.state.step == 30
        and "Another process works on this run." in panel.run.message.text()
    )
    with (elsewhere / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("31,0.5,0.5,0.25,0.125,,1.0,0.0001,a and b,0.4\n")
    qtbot.waitUntil(lambda: panel.follower.state.step == 31, timeout=LONG)
    panel.run.pause.click()
    assert (elsewhere / "wish").read_text(encoding="utf-8").strip() == "pause"
    panel.run.stop.click()
    assert (elsewhere / "wish").read_text(encoding="utf-8").strip() == "stop"
    (elsewhere / "lock").unlink()
    qtbot.waitUntil(ended(panel), timeout=LONG)
    qtbot.waitUntil(lambda: panel.run.start.isVisible(), timeout=LONG)
    assert (
        panel.run.start.text() == "Resume"
        and "no process works on this run now" in panel.run.message.text()
    )


def test_a_folder_that_holds_no_run_is_told(panel, tmp_path, qtbot, told):
    panel.run.opened.emit(str(tmp_path))
    qtbot.waitUntil(lambda: "is not the folder of a run" in told("error"), timeout=LONG)
    assert panel.follower.folder is None and not panel.follower._timer.isActive()


def test_the_validation_pair_is_registered_anew_in_the_same_layers(
    panel, viewer, phantoms, tmp_path, qtbot
):
    preview = tmp_path / "preview"
    preview.mkdir()

    def write(step, values):
        write_image(Volume(values, phantoms.fixed.grid, "warped"), preview / "warped.nii.gz")
        about = {"step": step, "pair": ["a", "b"], "dice": 0.5 + step / 1000}
        (preview / "preview.json").write_text(json.dumps(about), encoding="utf-8")
        panel.follower.state.apply({"event": "preview", "step": step, "folder": str(preview)})
        panel._show()

    fixed = phantoms.fixed.values / 220
    write_image(Volume(fixed, phantoms.fixed.grid, "fixed"), preview / "fixed.nii.gz")
    write_image(
        Volume(fixed[::-1].copy(), phantoms.fixed.grid, "moving"), preview / "moving.nii.gz"
    )
    write(100, 0.5 * fixed)
    assert not viewer.layers, "only if it is asked for"
    panel.curves.preview.setChecked(True)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=LONG)
    warped = viewer.layers["validation warped, step 100"]
    assert (
        np.allclose(warped.extent.world, viewer.layers["validation fixed"].extent.world)
        and str(warped.units[0]) == "millimeter"
    )
    qtbot.waitUntil(
        lambda: "a onto b at step 100: Dice 0.600." in panel.curves.message.text(), timeout=LONG
    )
    before = np.array(warped.data)
    write(200, fixed)
    qtbot.waitUntil(lambda: "step 200" in panel.curves.message.text(), timeout=LONG)
    assert (
        warped in viewer.layers
        and warped.name == "validation warped, step 200"
        and len(viewer.layers) == 3
    )
    assert (
        np.allclose(warped.data, 2 * before, atol=1e-3) and tag(warped, "volume").name == "warped"
    )
    from napari_shmoareg.plugin.controls.pickers import selectable_layers

    assert selectable_layers(viewer.layers, "image") == [], "they are no inputs of a registration"
    shutil.rmtree(preview)


def test_the_charts_take_the_colours_of_a_new_theme(panel, viewer):
    def background():
        return panel.curves.losses.plot.backgroundBrush().color().lightness()

    viewer.theme = "light"
    light = background()
    viewer.theme = "dark"
    assert light > 180 and background() < 80


def test_a_click_chooses_the_weights_in_the_register_panel(plugin, viewer, panel, learn, qtbot):
    run = learn("plain", 12)
    qtbot.waitUntil(ended(panel), timeout=LONG)
    panel._show()
    panel.run.use.click()
    register = viewer.window.dock_widgets["Register (shmoareg)"]
    assert register.form.settings.weights == str(run / "best.safetensors")
    assert register.form.weights.currentText() == "best.safetensors"


def test_a_check_up_that_cannot_begin_is_told_in_the_panel(panel, tmp_path, qtbot):
    (tmp_path / "empty").mkdir()
    panel.data.dataset.path.setText(str(tmp_path / "empty"))
    panel.data.check.click()
    assert panel.data.check.text() == "Cancel"
    qtbot.waitUntil(lambda: not panel.data.checking.busy, timeout=3 * LONG)
    assert (
        str(tmp_path / "empty") in panel.data.message.text()
        and panel.data.check.text() == "Check the scans"
    )


@pytest.mark.slow
def test_docking_the_panel_loads_no_torch():
    code = (
        "import sys, napari_shmoareg.plugin.fine_tune.panel; from"
        " napari_shmoareg.plugin.fine_tune.form import _classes; _classes(); print([m for m in"
        " ('torch', 'SimpleITK', 'nibabel', 'pyqtgraph', 'matplotlib.pyplot') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")


def test_a_field_whose_0_turns_something_off_says_so(qtbot):
    from napari_shmoareg.plugin.fine_tune.form import SettingsForm

    form = SettingsForm()
    qtbot.addWidget(form)
    shown = {name: field.control.text() for name, field in form.fields.items() if field._zero}
    assert shown["overlap_weight"] == "off" and shown["minutes"] == "no limit"
    assert shown["size"] == "as the weights" and form.chosen.settings == {}
    form.fields["overlap_weight"].control.setText("0.5")
    form.fields["validate_every"].control.setText("never")
    assert form.chosen.settings == {"overlap_weight": 0.5, "validate_every": 0}
    form.fields["overlap_weight"].control.setText("0")
    form.fields["minutes"].control.setText("none at all")
    assert "A number was expected" in form.fields["minutes"].error


def test_a_run_that_saved_nothing_is_not_offered_for_resuming():
    from napari_shmoareg.plugin.fine_tune.run_box import button_state
    from napari_shmoareg.plugin.fine_tune.run_model import RunState

    state = RunState()
    state.end = {"reason": "stopped"}
    about = {"is_running": False, "is_own": True, "requested": "", "silent_seconds": 0.0}
    about |= {"missing": None, "has_weights": False, "can_resume": False, "can_restart": True}
    shown = button_state(state, **about)
    assert shown.text == "The run was stopped before anything was saved: start it again."
    assert (shown.start_text, shown.start_action) == ("Start over", "restart")
    state.saved = {"state": 3}
    assert "it can be resumed" in button_state(state, **about).text


def test_a_data_set_with_labels_proposes_their_loss(qtbot):
    from napari.components import ViewerModel

    from napari_shmoareg.plugin.fine_tune.data import DataView

    view = DataView(ViewerModel())
    qtbot.addWidget(view)
    off = [True]
    view.labels_unused = lambda: off[0]
    scan = {"skipped": "", "labels": [1, 2]}
    for scans, offered in (([scan, scan], True), ([scan, scan | {"labels": None}], False)):
        view._scans = scans
        view.offer_labels()
        assert view.use_labels.isHidden() is not offered
    view._scans = [scan]
    off[0] = False
    view.offer_labels()
    assert view.use_labels.isHidden()
