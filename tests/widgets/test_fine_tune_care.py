"""What must not happen in the Fine-tune panel: two children, a crash, a run that nobody sees, a
folder lost.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from napari.utils._proxies import PublicOnlyProxy
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.fine_tune import open_layers
from napari_shmoareg.plugin.fine_tune.open_layers import labels_by_image
from napari_shmoareg.plugin.fine_tune.panel import TABS, AlarmNotifier, FineTunePanel
from napari_shmoareg.plugin.fine_tune.process import Mode
from napari_shmoareg.plugin.fine_tune.run_box import CHANGEABLE
from napari_shmoareg.plugin.fine_tune.run_model import Alarm, Tail
from napari_shmoareg.plugin.placement import KEY

pytestmark = pytest.mark.slow

FAKE = Path(__file__).with_name("fake_run.py")
LONG = 20_000  # ms
CLOSED = """
import gc, sys, time
import napari
from qtpy.QtWidgets import QAbstractButton, QApplication

def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)

viewer = napari.Viewer()
spin(0.3)
dock, panel = viewer.window.add_plugin_dock_widget("shmoareg", "Fine-tune")
del panel
spin(0.3)
buttons = dock.titleBarWidget().findChildren(QAbstractButton)
(close,) = [b for b in buttons if "close" in (b.toolTip() + b.objectName()).lower()]
del buttons, dock
close.click()
del close
spin(0.5)
kept = []
for n in range(200):  # it is collected at a time of its own, as in a window that is used
    kept.append([{} for _ in range(2000)])
    if n % 20 == 0:
        spin(0.02)
gc.collect()
spin(0.3)
viewer.close()
spin(0.2)
print("stands")
"""


@pytest.fixture(autouse=True)
def no_memory_of_other_starts(plugin_settings):
    """Settings are neither read from nor written to those of the person who runs the tests."""


@pytest.fixture
def panel(viewer, qtbot):
    made = FineTunePanel(PublicOnlyProxy(viewer))
    viewer.window.add_dock_widget(made, name="Fine-tune")
    yield made
    child = made.follower._child_ref.child
    made.follower.close()
    if child is not None and psutil.pid_exists(child.pid):
        psutil.Process(child.pid).kill()


@pytest.fixture
def fake(panel, monkeypatch):
    """Have the panel's own button start the child that pretends: it learns as its name is told."""

    def use(how: str, steps: int = 40) -> list[list[str]]:
        ordered: list[list[str]] = []
        start = panel.follower.start

        def begin(command, folder):
            ordered.append(command)
            start([sys.executable, str(FAKE), how, str(folder), str(steps)], folder)

        monkeypatch.setattr(panel.follower, "start", begin)
        return ordered

    return use


def ended(panel):
    return lambda: panel.follower.mode is Mode.idle


def test_napari_stands_when_the_dock_is_closed_by_its_button_and_collected():
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CLOSED], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.strip().endswith("stands"), run.stderr[-2000:]


def test_two_clicks_on_start_start_one_child(panel, fake, tmp_path, qtbot):
    fake("slow", 1000)
    panel.data.dataset.path.setText(str(tmp_path))
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.tabs.setCurrentIndex(list(TABS).index("Curves"))
    QTest.mouseClick(panel.run.start, Qt.MouseButton.LeftButton)
    assert not panel.run.start.isVisible() and panel.run.stop.isVisible()
    child = panel.follower._child_ref.child
    panel.run.pressed.emit("start")
    panel.run.pressed.emit("resume")
    assert panel.follower._child_ref.child is child


def test_a_dock_that_is_closed_while_layers_are_written_starts_nothing(
    panel, viewer, fake, tmp_path, qtbot, monkeypatch
):
    ordered = fake("plain")
    write, written = open_layers.write_layers, []
    monkeypatch.setattr(
        "napari_shmoareg.plugin.fine_tune.run_request.write_layers",
        lambda *a: written.append(write(*a)) or written[0],
    )
    for name in ("a", "b"):
        viewer.add_image(np.random.default_rng(0).random((20, 24, 16)).astype("f"), name=name)
    panel.data.dataset.source.setCurrentText("Open layers")
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.run.start.click()
    assert panel.run.start.text() == "Writing the layers…"
    viewer.window.remove_dock_widget(panel)
    qtbot.waitUntil(lambda: bool(written), timeout=LONG)
    qtbot.wait(600)
    assert ordered == [] and panel.follower.mode is Mode.nothing


@pytest.fixture
def stopped(tmp_path) -> Path:
    """The folder of a run that saved its state at step 20."""
    run = tmp_path / "stopped"
    run.mkdir()
    settings = {"steps": 60, "learning_rate": 3e-4, "size": 48}
    about = {
        "format": "shmoareg-run-1",
        "settings": settings,
        "run": {"minutes": 12.0, "split": "3/2/0"},
    }
    (run / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (run / "training.safetensors").write_bytes(b"state")
    return run


def test_a_run_that_failed_before_it_saved_makes_way_for_another_and_nothing_else_is_removed(
    panel, fake, tmp_path, qtbot, told, monkeypatch
):
    ordered, run = fake("error"), tmp_path / "run"
    panel.data.dataset.path.setText(str(tmp_path))
    panel.run.folder.setText(str(run))
    panel.run.start.click()
    qtbot.waitUntil(ended(panel), timeout=LONG)
    qtbot.waitUntil(lambda: panel.run.start.isVisible(), timeout=LONG)
    assert (
        (run / "run.json").is_file()
        and panel.run.start.text() == "Start over"
        and panel.run.start.isEnabled()
    )
    assert (
        "The loss is not finite (a and b). Lower the learning rate."
        in panel.run.message.text().splitlines()
    )
    rate = panel.form.fields["learning_rate"].control
    assert rate.isEnabled()
    rate.setText("1e-5")
    (run / "prepared").mkdir()
    (run / "prepared" / "scan-24-0.safetensors").touch()
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    panel.run.start.click()
    assert len(ordered) == 1 and "notes.txt is not a file of a run" in told("error")
    assert (run / "run.json").is_file() and (run / "split.json").is_file()
    (run / "notes.txt").unlink()
    begun = []
    monkeypatch.setattr(
        panel.follower, "start", lambda command, run: begun.append((command, list(run.iterdir())))
    )
    panel.run.start.click()
    ((command, there),) = begun
    assert (
        there == []
        and command[4:7] == [str(tmp_path), "--out", str(run)]
        and "--resume" not in command
    )
    assert command[command.index("--learning-rate") + 1] == "1e-05"


def test_a_run_that_learned_something_is_never_cleared(tmp_path):
    from napari_shmoareg.training.run_folder import is_empty_run, reset_run

    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    assert is_empty_run(tmp_path)
    (tmp_path / "best.safetensors").write_bytes(b"weights")
    (tmp_path / "metrics.csv").write_text("step\n", encoding="utf-8")
    assert is_empty_run(tmp_path), "looked at before the first step"
    for name, text in (("metrics.csv", "step\n1\n"), ("training.safetensors", "state")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="has saved a state or trained weights"):
            reset_run(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("best.safetensors", "metrics.csv", "run.json", "training.safetensors")
    ]


def layer(kind, name, **tags):
    from napari.layers import Image, Labels

    metadata = {"metadata": {KEY: tags}} if tags else {}
    values = np.random.default_rng(len(name)).integers(0, 4, (12, 10, 8))
    return (
        Labels(values, name=name, **metadata)
        if kind == "labels"
        else Image(values / 3, name=name, **metadata)
    )


def test_layers_that_were_written_before_are_replaced_but_nothing_of_others(tmp_path):
    picked = [open_layers.Picked(layer("image", name), None, name) for name in ("a", "b", "c")]
    open_layers.write_layers(picked, tmp_path / "data")
    open_layers.write_layers(picked[1:], tmp_path / "data")
    files = sorted(file.name for file in (tmp_path / "data" / "images").iterdir())
    assert files == ["b__b.nii.gz", "c__c.nii.gz"]
    (tmp_path / "data" / "images" / "mine.nii.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match="not empty"):
        open_layers.write_layers(picked, tmp_path / "data")
    assert (tmp_path / "data" / "images" / "mine.nii.gz").read_bytes() == b"mine"


def test_labels_are_those_of_one_image_at_most_and_of_none_in_doubt():
    one, two, three = (layer("image", name) for name in ("sub-1_img", "sub-2", "T1w"))
    first, second, other = (layer("labels", name) for name in ("Sub-1_seg", "sub-2 [1]", "aseg"))
    assert labels_by_image([one, two, three], [first, second, other]) == {one: first, two: second}
    assert labels_by_image([one, layer("image", "sub_1")], [first]) == {}, "it might be of either"
    assert labels_by_image([two], [second, layer("labels", "sub-2_labels")]) == {}, (
        "either might be of it"
    )
    moving, its = layer("image", "x", role="moving"), layer("labels", "y", role="moving_labels")
    assert labels_by_image([moving, two], [its, second]) == {moving: its, two: second}


def test_labels_that_a_person_gives_to_another_image_are_taken_from_the_first(panel, viewer):
    for each in (layer("image", "a"), layer("image", "bb"), layer("labels", "a_labels")):
        viewer.add_layer(each)
    panel.data.dataset.source.setCurrentText("Open layers")
    box = panel.data.dataset.layers
    assert {each.image.name: each.labels and each.labels.name for each in box.picked} == {
        "a": "a_labels",
        "bb": None,
    }
    row = next(n for n in range(2) if box.table.item(n, 0).text() == "bb")
    box.table.cellWidget(row, 1).pick(viewer.layers["a_labels"])
    for _ in range(2):
        names = {each.image.name: each.labels and each.labels.name for each in box.picked}
        assert names == {"a": None, "bb": "a_labels"}
        panel.reset_choices()


def test_a_run_goes_on_with_what_may_be_changed_and_shows_what_may_not(
    panel, fake, stopped, monkeypatch
):
    from napari_shmoareg.training import plan

    assert set(CHANGEABLE) == plan.FREE | {"steps"}
    ordered = []
    monkeypatch.setattr(
        panel.follower, "start", lambda command, folder: ordered.append(command[4:])
    )
    panel.run.folder.setText(str(stopped))
    fields = panel.form.fields
    assert (fields["learning_rate"].value, fields["steps"].value, fields["minutes"].value) == (
        3e-4,
        60,
        12.0,
    )
    assert [name for name, field in fields.items() if field.control.isEnabled()] == [
        name for name in fields if name in CHANGEABLE
    ]
    end = ["--json", "--with-parent", "--resume"]
    panel.run.start.click()
    fields["steps"].control.setText("80")
    fields["minutes"].control.setText("0")
    panel.run.start.click()
    out = ["--out", str(stopped)]
    assert ordered == [[*out, *end], [*out, "--steps", "80", "--minutes", "0.0", *end]]
    panel.run.copy.click()
    assert (
        QApplication.clipboard()
        .text()
        .endswith(f"--out {stopped} --steps 80 --minutes 0.0 --resume")
    )
    panel.run.folder.setText(str(stopped) + "-2")
    assert all(field.control.isEnabled() for field in fields.values())


def test_open_layers_have_no_command_before_they_are_written(panel, viewer, tmp_path):
    for name in ("a", "b"):
        viewer.add_layer(layer("image", name))
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.data.dataset.source.setCurrentText("Open layers")
    assert not panel.run.copy.isEnabled() and "written to disk" in panel.run.copy.toolTip()
    (tmp_path / "run-data").mkdir()
    panel.run.changed.emit()
    assert panel.run.copy.isEnabled()


def test_a_check_up_stays_when_tabs_are_turned_after_a_run(panel, tmp_path, fake, qtbot):
    fake("plain", 5)
    panel.data.dataset.path.setText(str(tmp_path))
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.run.start.click()
    qtbot.waitUntil(ended(panel), timeout=LONG)
    panel._show()
    assert panel.data.table.message.text().startswith("5 scans, 1 excluded")
    scan = {"name": "new", "shape": [37, 29, 23], "spacing": [3.0, 3.0, 2.0], "skipped": None}
    panel.data._scans = [scan]
    panel.data.checking.finished.emit(({"new": "train"}, "few scans"))
    for n in (0, 2, 0):
        panel.tabs.setCurrentIndex(n)
    assert (
        panel.data.table.message.text().startswith("1 scans")
        and panel.data.message.text() == "few scans"
    )


def test_another_folder_in_the_field_lets_go_of_a_run_that_is_only_watched(
    panel, stopped, tmp_path, qtbot
):
    from napari_shmoareg.training.run_folder import RunLock

    panel.data.dataset.path.setText(str(tmp_path))
    with RunLock(stopped / "lock"):
        panel.run.opened.emit(str(stopped))
        qtbot.waitUntil(lambda: panel.follower.mode is Mode.external, timeout=LONG)
        panel._show()
        assert panel.run.stop.isVisible() and not panel.run.start.isVisible()
        panel.run.folder.setText(str(tmp_path / "other"))
        assert panel.follower.folder is None and panel.run.message.text() == ""
        assert (
            panel.run.start.isVisible()
            and panel.run.start.text() == "Start"
            and panel.run.start.isEnabled()
        )
        qtbot.wait(600)
        assert panel.follower.mode is Mode.nothing and not panel.follower.state.about


def test_rows_keep_their_order_where_some_are_quoted_and_one_spans_two_lines(tmp_path):
    rows = [
        ("1", "a", "gone"),
        ("2", "b, c", 'the "file"\nis cut'),
        ("3", "d", "gone"),
        ("4", "e,f", "x"),
    ]
    with (tmp_path / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("step", "pair", "why"), *rows])
    tail = Tail(tmp_path / "skipped.csv")
    assert [tuple(row.values()) for row in tail.rows()] == rows
    with (tmp_path / "skipped.csv").open("a", newline="", encoding="utf-8") as file:
        file.write('5,g,"not\n')
    assert tail.rows() == []
    with (tmp_path / "skipped.csv").open("a", newline="", encoding="utf-8") as file:
        file.write('whole"\n')
    assert tail.rows() == [{"step": "5", "pair": "g", "why": "not\nwhole"}]


def test_alarms_that_come_together_are_told_once_and_those_that_are_over_are_not(told):
    alarms = {place: Alarm(30, place, f"{place} has collapsed") for place in ("x", "y", "z", "u")}
    alarms["u"].over = 40
    notifier = AlarmNotifier()
    assert notifier.notify(alarms) == 3 == notifier.notify(alarms)
    assert (
        told("warning")
        == "Step 30: the routing has collapsed at 3 gates (x, y, z). See the tab Loads."
    )


def test_a_finished_run_is_done_until_more_steps_are_asked_for_and_its_one_look_is_a_dot(
    panel, fake, tmp_path, qtbot
):
    fake("plain", 10)
    panel.data.dataset.path.setText(str(tmp_path))
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.run.start.click()
    qtbot.waitUntil(ended(panel), timeout=LONG)
    panel._show()
    start = panel.run.start
    assert (start.text(), start.isEnabled()) == ("Done", False) and "Raise Steps" in start.toolTip()
    assert panel.curves.dice._curves["dice"][0].opts["symbol"] == "o"
    assert panel.curves.losses._curves["total"][0].opts["symbol"] is None
    panel.form.fields["steps"].control.setText("20")
    assert (start.text(), start.isEnabled()) == ("Resume", True)


def test_scans_that_were_checked_since_the_last_look_come_to_the_table_at_once(panel, monkeypatch):
    shown = []
    monkeypatch.setattr(
        panel.data.table, "show_scans", lambda scans, parts: shown.append(len(scans))
    )
    for n in range(30):
        panel.data._found.put(({"name": str(n)}, 40))
    panel.data.checking.progressed.emit("", 0.0)
    assert shown == [30] and panel.data.message.text() == "30 of 40 scans"


def test_a_check_up_that_a_run_cut_short_does_not_come_over_its_own(
    panel, tmp_path, fake, qtbot, monkeypatch
):
    from napari_shmoareg.plugin.fine_tune import data

    def check(*about):
        about[-1].put(({"name": "half"}, 9))
        while True:
            about[-2].check()

    monkeypatch.setattr(data, "_check", check)
    fake("plain", 5)
    panel.data.dataset.path.setText(str(tmp_path))
    panel.run.folder.setText(str(tmp_path / "run"))
    panel.data.check.click()
    qtbot.waitUntil(lambda: panel.data.message.text() == "1 of 9 scans", timeout=LONG)
    panel.run.start.click()
    assert panel.data.check.text() == "Check the scans"
    qtbot.waitUntil(ended(panel), timeout=LONG)
    panel._show()
    qtbot.wait(300)
    assert (
        panel.data.table.message.text().startswith("5 scans")
        and panel.data.message.text() == "label 4 is rare"
    )
