"""Several processes of one command: the same result as one, one error when one dies, nothing left
behind.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from typer.testing import CliRunner

from napari_shmoareg.cli.app import app
from napari_shmoareg.cli.launch import LOST, end, exit_code, needs_launch, watch
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import write_image
from napari_shmoareg.training.synthesis import SyntheticPairs
from napari_shmoareg.training.synthesis_settings import SynthesisSettings

pytestmark = pytest.mark.slow

DRAWN = SynthesisSettings(
    extent=((48.0, 48.0), (64.0, 64.0), (40.0, 40.0)), size=(16, 16), labels=4
)
TERMS = ("total", "similarity", "smoothness", "routing", "gradient", "rate")
TEAM = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Six drawn scans, none a cube, with labels."""
    folder = tmp_path_factory.mktemp("scans")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(6):
        drawn = SyntheticPairs([], DRAWN, seed=number)[0]
        labels = drawn.moving_labels[0].argmax(0).numpy().astype("int16")
        write_image(
            Volume(drawn.moving[0, 0].numpy(), drawn.grid, "moving"),
            folder / "images" / f"sub-{number}.nii.gz",
        )
        write_image(
            Volume(labels, drawn.grid, "labels", is_labels=True),
            folder / "labels" / f"sub-{number}.nii.gz",
        )
    return folder


@pytest.fixture(scope="module")
def options(scans, weights):
    """What a run of twelve steps is called with."""
    found = ["--images", "images/*.nii.gz", "--labels", "labels/*.nii.gz"]
    learning = [
        "--steps=12",
        "--batch=2",
        "--learning-rate=1e-3",
        "--size=16",
        "--device=cpu",
        f"--from={weights}",
    ]
    run = "--split=4/2/0 --affine=none --validate-every=0 --save-every=2 --no-tensorboard".split()
    return [str(scans), *found, *learning, *run]


class Started:
    """A command in a process of its own, in a session of its own."""

    def __init__(self, *words: object) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in TEAM}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "napari_shmoareg", *map(str, words)],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr))
        self._reader.start()

    def until(self, holds, lines=None) -> None:
        """Read events until one holds."""
        for line in self.process.stdout:
            if holds(json.loads(line)):
                return
        raise AssertionError(f"ended before: {''.join(self.said)}")

    def members(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def ended(self, seconds: float) -> tuple[int, list[str], str]:
        """Exit code, what it still printed, what it said on stderr."""
        out = self.process.stdout.read()
        code = self.process.wait(seconds)
        self._reader.join()
        return code, out.splitlines(), "".join(self.said)


@pytest.fixture
def start():
    started: list[Started] = []

    def begin(*words):
        started.append(Started(*words))
        return started[-1]

    yield begin
    for one in started:
        for process in (
            psutil.Process(one.process.pid).children(recursive=True)
            if one.process.poll() is None
            else ()
        ):
            process.kill()
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """The rows of metrics.csv of a run by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert _here("fine-tune", *options, "--out", run, "--quiet").exit_code == 0
    return _rows(run)


def _here(*words: object):
    """The command in this process, which is quicker."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="shmoareg")


def _rows(run) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _alike(found, wanted):
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["pairs"] == other["pairs"]
        for term in TERMS:
            assert float(one[term]) == pytest.approx(float(other[term]), abs=1e-5), (
                one["step"],
                term,
            )


def _gone(processes) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=5)
    return not alive


def test_a_killed_process_is_one_error_leaves_nothing_running_and_one_process_goes_on_to_the_same_losses(
    start, options, alone, tmp_path
):
    run = tmp_path / "run"
    started = start("fine-tune", *options, "--out", run, "--processes=2", "--json")
    started.until(lambda event: event["event"] == "saved" and event["step"] >= 4)
    members = started.members()
    assert len(members) == 2
    follower = next(one for one in members if one.environ()["RANK"] == "1")
    follower.kill()
    began = time.monotonic()
    code, events, said = started.ended(60)
    assert time.monotonic() - began < 30 and _gone(members)
    assert code == 1
    assert said.count("Error") == 1 and "Traceback" not in said and "torch" not in said
    assert re.search(
        rf"process 2 of 2 \(pid {follower.pid}\) was ended by signal 9.*--resume", said
    )
    assert [json.loads(line)["event"] for line in events[-2:]] == ["error", "end"]
    ending = json.loads(events[-1])
    assert ending["step"] >= 4 and ending["weights"] == str(run / "last.safetensors")
    assert 4 <= len(_rows(run)) < 12
    _alike(_rows(run), alone[: len(_rows(run))])

    result = _here("fine-tune", "--out", run, "--resume", "--quiet")
    assert result.exit_code == 0, result.stderr
    _alike(_rows(run), alone)


def test_a_stopped_run_of_two_processes_saves_once_and_one_goes_on_to_the_same_losses(
    start, options, alone, tmp_path
):
    run = tmp_path / "run"
    started = start("fine-tune", *options, "--out", run, "--processes=2", "--json")
    started.until(lambda event: event["event"] == "step" and event["step"] >= 3)
    members = started.members()
    started.process.send_signal(signal.SIGINT)
    code, lines, said = started.ended(60)
    events = [json.loads(line) for line in lines]
    assert code == 130 and said.count("Stopping") == 1 and _gone(members)
    assert events[-1]["event"] == "end" and events[-1]["reason"] == "stopped"
    assert [event["event"] for event in events[-3:]].count("saved") == 1
    assert len(_rows(run)) == events[-1]["step"] < 12

    result = _here("fine-tune", "--out", run, "--resume", "--quiet")
    assert result.exit_code == 0, result.stderr
    _alike(_rows(run), alone)


def test_a_step_with_fewer_pairs_than_processes_is_refused_before_anything_starts(
    options, plain, tmp_path
):
    result = _here("fine-tune", *options, "--batch=1", "--out", tmp_path / "run", "--processes=2")
    assert plain(result).search(
        r"2 processes share the pairs of a step, but a step has only 1.*--batch 2"
    )
    assert not (tmp_path / "run").exists()


def test_two_processes_measure_what_one_measures_and_a_killed_one_leaves_what_is_finished(
    start, scans, weights, tmp_path
):
    found = [
        scans,
        "--images",
        "images/*.nii.gz",
        "--labels",
        "labels/*.nii.gz",
        "--weights",
        weights,
    ]
    words = [
        "evaluate",
        *found,
        "--affine=none",
        "--device=cpu",
        "--no-surface",
        "--quiet",
        "--pairs=16",
    ]
    started = start(*words, "--out", tmp_path / "two", "--processes=2")
    cases = tmp_path / "two" / "cases"
    while not cases.is_dir() or len(list(cases.iterdir())) < 2:
        assert started.process.poll() is None, "".join(started.said)
        time.sleep(0.01)
    members = started.members()
    members[1].kill()
    code, out, said = started.ended(120)
    assert code == 1 and out == [] and _gone(members)
    assert said.count("Error") == 1 and re.search(
        r"process 2 of 2 .* signal 9.*Finished pairs are kept", said
    )
    kept = {file.name: file.stat().st_mtime_ns for file in cases.glob("[0-9]*.json")}
    assert 8 <= len(kept) < 16  # all of the first process's, not all of the second one's

    assert _here(*words, "--out", tmp_path / "two").exit_code == 0
    assert {name: (cases / name).stat().st_mtime_ns for name in kept} == kept
    assert _here(*words, "--out", tmp_path / "one").exit_code == 0
    tables = [
        (tmp_path / name / "labels.csv").read_text(encoding="utf-8") for name in ("one", "two")
    ]
    assert tables[0] == tables[1] and tables[0].count("\n") > 30


def _shells(*scripts: str) -> dict[int, subprocess.Popen[bytes]]:
    return {rank: subprocess.Popen(["sh", "-c", script]) for rank, script in enumerate(scripts)}


@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        (
            (f"exit {LOST}", "kill -9 $$"),
            r"process 2 of 2 \(pid \d+\) was ended by signal 9, SIGKILL .*memory",
        ),
        (("kill -11 $$", f"exit {LOST}"), r"process 1 of 2 .* signal 11, SIGSEGV\. "),
        ((f"exit {LOST}", "exit 1"), r"in process 2 of 2: that scan is bad\. KEPT"),
        # Gloo aborts the others
        (("kill -6 $$", "sleep 0.3; exit 1"), r"in process 2 of 2: that scan is bad\. KEPT"),
        ((f"exit {LOST}", f"exit {LOST}"), "lost contact"),
        (("sleep 60", "kill -9 $$"), r"process 2 of 2 .* signal 9"),
    ],
)
def test_the_error_names_the_process_that_failed_first_and_not_those_that_only_lost_it(
    scripts, said, tmp_path, monkeypatch
):
    monkeypatch.setattr("napari_shmoareg.cli.launch.GRACE", 0.5)
    words = tmp_path / "stderr"
    words.write_text("a warning\nError: that scan is bad.\n", encoding="utf-8")
    members = _shells(*scripts)
    failed = watch(members)
    end(members)
    with pytest.raises(InputError, match=said):
        exit_code(members, failed, {0: "", 1: str(words)}, "KEPT")


@pytest.mark.parametrize(
    ("scripts", "code"),
    [
        (("exit 0", "exit 0"), 0),
        (("sleep 0.3; exit 130", "exit 130"), 130),
        (("exit 1", "exit 1"), 1),
    ],
)
def test_what_the_first_process_said_itself_is_not_said_again(scripts, code):
    members = _shells(*scripts)
    failed = watch(members)
    assert exit_code(members, failed, {}, "") == code


def test_processes_are_started_once_and_never_by_those_that_were_started(monkeypatch):
    for name in TEAM:
        monkeypatch.delenv(name, raising=False)
    assert not needs_launch(1) and needs_launch(2)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not needs_launch(2)
    with pytest.raises(InputError, match="--processes is 3, but torchrun or srun started 2"):
        needs_launch(3)
