"""Runs that are killed, and go on as if they had not been."""

from __future__ import annotations

import os
import signal

import pytest
from safetensors.torch import load_file

from napari_shmoareg.io import load_network, read_card
from napari_shmoareg.training.logs import read_rows

pytestmark = pytest.mark.slow

MOMENTS = (  # each is reached from the state that the ones before it left
    ("replacing", "run.json", 1),  # before there is a run at all: the folder holds the lock only
    ("telling", "scan", 3),  # in the middle of the check-up
    ("replaced", "split.json", 1),  # before the network is read
    ("writing", "best.safetensors", 1),  # half of the best weights, before the first step
    ("writing", "training.safetensors", 1),  # half a state, before there is one
    ("replaced", "training.safetensors", 1),  # a state without the last weights that belong to it
    ("adding", "metrics.csv", 2),  # half a line, two steps after a state
    ("adding", "loads.csv", 1),  # half of many lines
    ("adding", "validation.csv", 1),  # half a line
    ("replacing", "last.safetensors", 1),  # weights that are older than the state
    ("telling", "phase", 11),  # in the middle of the last look at the validation pairs
)


def test_a_run_killed_at_every_kind_of_moment_ends_as_one_never_killed(
    begin, forker, unbroken, same_runs, tmp_path
):
    out = tmp_path / "run"
    for moment in MOMENTS:
        resume = ("--resume",) if (out / "run.json").exists() else ()
        killed = forker.run(begin(out, "--json", *resume), die=moment)
        assert killed.code == -signal.SIGKILL, (moment, killed.events[-1:], killed.errors)
    done = forker.run(["fine-tune", "--out", out, "--resume", "--json"])
    assert done.code == 0, done.errors
    assert same_runs(out, unbroken)
    assert [row["step"] for row in read_rows(unbroken / "validation.csv")] == ["0", "6", "12", "15"]
    assert (
        len(read_rows(unbroken / "metrics.csv")) == 15
        and float(read_rows(unbroken / "metrics.csv")[3]["overlap"]) > 0
    )
    assert not [
        entry.name for entry in out.iterdir() if ".partial-" in entry.name or entry.name == "lock"
    ]


def test_a_run_killed_from_outside_between_two_steps_ends_as_one_never_killed(
    begin, forker, unbroken, same_runs, tmp_path
):
    out = tmp_path / "run"
    running = forker.start(begin(out, "--json"))
    running.until(lambda events: sum(event["event"] == "step" for event in events) >= 8)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    shown = forker.run(["runs", "show", out])
    assert shown.code == 0 and "no process is running" in shown._told.read_text(encoding="utf-8")
    done = forker.run(["fine-tune", "--out", out, "--resume", "--json"])
    assert done.code == 0, done.errors
    begun = next(event for event in done.events if event["event"] == "begin")
    assert begun["resumed_at"] in (6, 10, 12)
    assert same_runs(out, unbroken)


def test_paused_gone_on_and_stopped_from_outside(
    begin, forker, unbroken, same_runs, tmp_path, shmoareg
):
    out = tmp_path / "run"
    running = forker.start(begin(out, "--json"))
    running.until(lambda events: any(event["event"] == "step" for event in events))
    assert shmoareg("runs", "pause", out).exit_code == 0
    running.until(lambda events: events[-1]["event"] == "paused")
    assert "is paused" in shmoareg("runs", "show", out).stdout
    at = running.events[-1]["step"]
    assert at == running.events[-2]["step"] and running.events[-2]["event"] == "saved", (
        "the state was not saved"
    )
    refused = shmoareg("fine-tune", "--out", out, "--resume")
    assert refused.exit_code == 1 and f"process {running.pid}" in refused.stderr
    assert shmoareg("runs", "go", out).exit_code == 0
    running.until(lambda events: events[-1].get("step", 0) > at + 1)
    assert shmoareg("runs", "stop", out).exit_code == 0
    assert running.wait() == 130
    end = running.events[-1]
    assert end["event"] == "end" and end["reason"] == "stopped" and end["step"] < 15
    assert not (out / "wish").exists() and not (out / "lock").exists()
    refused = shmoareg("runs", "pause", out)
    assert (
        refused.exit_code == 1
        and "No process is running" in refused.stderr
        and not (out / "wish").exists()
    )
    assert forker.run(["fine-tune", "--out", out, "--resume", "--json"]).code == 0
    assert same_runs(out, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_step_and_keeps_it(number, begin, forker, tmp_path):
    out = tmp_path / "run"
    running = forker.start(begin(out, "--json"))
    running.until(lambda events: sum(event["event"] == "step" for event in events) >= 2)
    os.kill(running.pid, number)
    assert running.wait() == 130
    step = running.events[-1]["step"]
    assert running.events[-1]["reason"] == "stopped" and "Traceback" not in running.errors
    assert (
        read_card(out / "last.safetensors")["fine_tuning_steps"]
        == step
        == len(read_rows(out / "metrics.csv"))
    )


def test_a_run_stops_when_its_parent_goes_and_obeys_it_until_then(begin, forker, tmp_path):
    out, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    running = forker.start(begin(out, "--json", "--with-parent"), stdin=pipe)
    with pipe.open("w", buffering=1) as parent:
        running.until(lambda events: any(event["event"] == "step" for event in events))
        parent.write("pause\n")
        running.until(lambda events: events[-1]["event"] == "paused")
        parent.write("go\n")
        running.until(lambda events: any(event["event"] == "resumed" for event in events))
    assert running.wait() == 130
    end = running.events[-1]
    assert end["reason"] == "stopped" and 0 < end["step"] < 15
    assert load_network(end["weights"]).config.size == 16


def test_a_run_that_nobody_listens_to_any_more_stops_and_saves(begin, forker, tmp_path):
    out, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    running = forker.start(begin(out, "--json"), stdout=pipe)
    with pipe.open() as told:
        while '"event": "step"' not in told.readline():
            continue
    assert running.wait() == 130
    steps = len(read_rows(out / "metrics.csv"))
    assert 0 < steps < 15 and read_card(out / "last.safetensors")["fine_tuning_steps"] == steps
    assert "The output is closed" in running.errors and "Traceback" not in running.errors


PRETRAINING_MOMENTS = (  # as above
    ("replacing", "run.json", 1),
    ("writing", "best.safetensors", 1),
    ("replaced", "training.safetensors", 1),  # a state without its weights, before the first step
    ("adding", "metrics.csv", 7),
    ("replacing", "weights.safetensors", 2),  # a running mean that is older than that of the state
    ("writing", "training.safetensors", 1),
    ("adding", "validation.csv", 1),
)


def test_a_pretraining_run_killed_at_every_kind_of_moment_has_the_mean_of_one_never_killed(
    scans, forker, same_runs, tmp_path
):
    def words(out):
        return ("pretrain", scans / "labels", "--run", out, "--recipe", "tiny", "--steps", 14)

    out, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert forker.run(words(unbroken)).code == 0
    for moment in PRETRAINING_MOMENTS:
        killed = forker.run(words(out), die=moment)
        assert killed.code == -signal.SIGKILL, (moment, killed.errors)
    done = forker.run(words(out))
    assert done.code == 0, done.errors
    assert same_runs(out, unbroken, pretrained=True)
    assert [row["step"] for row in read_rows(out / "validation.csv")] == ["0", "6", "12", "14"]
    state = load_file(out / "training.safetensors")
    assert any(name.startswith("mean.") for name in state)
    assert not [entry.name for entry in out.iterdir() if ".partial-" in entry.name]


def test_a_pretraining_run_obeys_requests_from_outside(scans, forker, shmoareg, tmp_path):
    out = tmp_path / "run"
    words = ("pretrain", scans / "labels", "--run", out, "--recipe", "tiny", "--steps", 5000)
    running = forker.start(words)
    running.until(lambda _: len(read_rows(out / "metrics.csv")) > 1)
    assert shmoareg("runs", "pause", out).exit_code == 0
    running.until(lambda _: "is paused" in shmoareg("runs", "show", out).stdout)
    refused = shmoareg(*words)
    assert refused.exit_code == 1 and f"process {running.pid}" in refused.stderr
    assert shmoareg("runs", "stop", out).exit_code == 0
    assert running.wait() == 130
    assert "`shmoareg pretrain` command continues" in running.errors
    step = read_card(out / "weights.safetensors")["steps"]
    assert step == len(read_rows(out / "metrics.csv")) > 0
