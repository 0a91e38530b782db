"""The Fine-tune panel with the real command, on made scans and the smallest network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from napari.utils._proxies import PublicOnlyProxy

from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import load_network, save_network, write_image
from napari_shmoareg.plugin.fine_tune.panel import FineTunePanel
from napari_shmoareg.plugin.fine_tune.process import Mode, RunRequest

pytestmark = pytest.mark.slow

LONG = 120_000  # ms
SETTINGS = {
    "size": 32,
    "split": "3/2/0",
    "split_seed": 1,
    "steps": 400,
    "validate_every": 10,
    "affine": "none",
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, plugin_settings):
    """The settings of the person who runs the tests are not touched."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def scans(phantoms, tmp_path) -> Path:
    """Four people: the two oblique phantoms and their mirror images; a fifth file cannot be
    read.
    """
    for part in ("images", "labels"):
        (tmp_path / "scans" / part).mkdir(parents=True)
    for n, (image, labels) in enumerate(
        ((phantoms.moving, phantoms.moving_labels), (phantoms.fixed, phantoms.fixed_labels))
    ):
        for mirrored in (False, True):
            for volume, part in ((image, "images"), (labels, "labels")):
                values = np.ascontiguousarray(volume.values[::-1]) if mirrored else volume.values
                name = f"{'mirrored' if mirrored else 'plain'}-{n}.nii.gz"
                write_image(
                    Volume(values, volume.grid, name, is_labels=volume.is_labels),
                    tmp_path / "scans" / part / name,
                )
    (tmp_path / "scans" / "images" / "broken.nii.gz").write_bytes(b"nothing")
    return tmp_path / "scans"


@pytest.fixture
def weights(lively_network, tmp_path) -> str:
    save_network(lively_network(0.03), tmp_path / "lively.safetensors", card={})
    return str(tmp_path / "lively.safetensors")


@pytest.fixture
def panel(viewer, qtbot, scans, weights, tmp_path):
    made = FineTunePanel(PublicOnlyProxy(viewer))
    viewer.window.add_dock_widget(made, name="Fine-tune")
    made.data.dataset.path.setText(str(scans))
    made.data.dataset.patterns["images"].setText("images/*.nii.gz")
    made.data.dataset.patterns["labels"].setText("labels/*.nii.gz")
    made.form.weights.value = weights
    made.form.show_values(SETTINGS)
    made.run.folder.setText(str(tmp_path / "run"))
    yield made
    child = made.follower._child_ref.child
    made.follower.close()
    if child is not None:
        psutil.Process(child.pid).wait(60)


def test_a_run_is_checked_learned_paused_stopped_gone_on_with_and_opened_again(
    panel, viewer, tmp_path, qtbot, told
):
    follower, run = panel.follower, tmp_path / "run"
    panel.data.check.click()
    qtbot.waitUntil(lambda: not panel.data.checking.busy, timeout=LONG)
    table = panel.data.table
    assert table.message.text() == "5 scans, 1 excluded. 2 train, 2 validation."
    assert table.table.item(0, 0).text() == "broken" and table.table.item(0, 1).text()
    prepared = {file: file.stat().st_mtime_ns for file in (run / "prepared").iterdir()}
    assert len(prepared) == 7  # four scans, three of them aligned with the fourth
    panel.curves.preview.setChecked(True)
    panel.run.start.click()
    qtbot.waitUntil(
        lambda: len(follower.state.validation["dice"]) > 1 and bool(follower.state.shares),
        timeout=LONG,
    )
    assert not follower.state.garbled and len(follower.state.scans) == 5
    assert {file: file.stat().st_mtime_ns for file in prepared} == prepared  # used by the run
    assert {"encoder-1-moving", "decoder-1-x"} <= set(follower.state.shares)
    assert follower.state.about["memory"]["need"] > 0
    qtbot.waitUntil(lambda: len(viewer.layers) == 5, timeout=LONG)
    panel.run.pause.click()
    qtbot.waitUntil(lambda: panel.run.pause.text() == "Continue", timeout=LONG)
    panel.run.pause.click()
    step = follower.state.step
    qtbot.waitUntil(lambda: follower.state.step > step, timeout=LONG)
    panel.run.stop.click()
    qtbot.waitUntil(lambda: follower.mode is Mode.idle, timeout=LONG)
    stopped, losses = follower.state.step, follower.state.terms["total"].points.values.tolist()
    assert follower.state.saved["state"] == stopped and told("error") == ""
    assert load_network(run / "best.safetensors").config.num_experts > 1
    panel._show()
    assert panel.run.start.text() == "Resume"
    panel.run.start.click()
    qtbot.waitUntil(lambda: follower.state.step > stopped, timeout=LONG)
    assert follower.state.terms["total"].points.values.tolist()[:stopped] == losses
    panel.run.stop.click()
    qtbot.waitUntil(lambda: follower.mode is Mode.idle, timeout=LONG)
    last, dice = follower.state.step, follower.state.validation["dice"].points.values.tolist()
    panel.run.opened.emit(str(run))
    qtbot.waitUntil(lambda: follower.state.step == last, timeout=LONG)
    assert follower.state.validation["dice"].points.values.tolist() == pytest.approx(dice, abs=1e-6)
    assert follower.mode is Mode.idle and len(follower.state.scans) == 5
    assert (
        set(follower.state.shares) >= {"encoder-1-moving", "decoder-1-x"}
        and not follower.state.garbled
    )


def test_a_run_whose_napari_is_killed_saves_its_last_step(scans, weights, tmp_path):
    file_options = {"images": "images/*.nii.gz", "labels": "labels/*.nii.gz"}
    settings = {**SETTINGS, "save_every": 10_000, "validate_every": 0}
    command = RunRequest(
        str(tmp_path / "run"), str(scans), file_options, weights, "cpu", settings
    ).command()
    code = (
        "import os, sys, time\n"
        "from napari_shmoareg.plugin.fine_tune.process import Child\n"
        f"child, steps = Child({command!r}), 0\n"
        "while steps < 5 and child.ended is None:\n"
        "    steps += sum(event['event'] == 'step' for event in child.events())\n"
        "    time.sleep(0.05)\n"
        "print(child.pid, child.log, flush=True)\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ
    )
    pid, log = run.stdout.split()
    if psutil.pid_exists(int(pid)):
        psutil.Process(int(pid)).wait(60)
    rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    from napari_shmoareg.training.run_folder import RunFolder, saved_step

    assert len(rows) > 5 and saved_step(RunFolder(tmp_path / "run")) == len(rows) - 1
    Path(log).unlink()
