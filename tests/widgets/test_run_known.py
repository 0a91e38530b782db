"""The state of a run, from events and from files: no window."""

from __future__ import annotations

import csv
import json
import time

import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.fine_tune.history import (
    Points,
    Shares,
    Track,
    decimated,
    smoothed,
    window,
)
from napari_shmoareg.plugin.fine_tune.process import RunRequest
from napari_shmoareg.plugin.fine_tune.run_box import button_state, length
from napari_shmoareg.plugin.fine_tune.run_model import RunFiles, RunState, Tail, read_split
from napari_shmoareg.plugin.fine_tune.scan_rows import records, rows_of, scan_of_file

METRICS = (
    "step",
    "total",
    "similarity",
    "smoothness",
    "routing",
    "overlap",
    "gradient",
    "rate",
    "pairs",
    "seconds",
)


def step(n: int, **more):
    losses = {"total": 1 / n, "similarity": 1.0, "smoothness": 2.0, "routing": 3.0, "overlap": None}
    return {
        "event": "step",
        "step": n,
        "steps": 100,
        "seconds": 0.5,
        "left_seconds": 50 - n / 2,
        **losses,
    } | more


def begin(**more):
    return {"event": "begin", "steps": 100, "resumed_at": None, **more}


def test_a_decimated_curve_keeps_its_ends_and_every_peak():
    values = np.random.default_rng(0).normal(size=100_000)
    values[[31_415, 77_777]] = 40, -40
    found = decimated(Points(np.arange(100_000.0), values), 600)
    assert 300 < len(found.steps) <= 602 and (np.diff(found.steps) > 0).all()
    assert found.steps[0] == 0 and found.steps[-1] == 99_999
    assert {31_415.0, 77_777.0} <= set(found.steps) and (
        found.values == values[found.steps.astype(int)]
    ).all()


def test_a_short_curve_is_left_as_it_is():
    points = Points(np.arange(5.0), np.arange(5.0) ** 2)
    assert decimated(points, 5) is points


@pytest.mark.parametrize("count", (3, 40, 1000))
def test_a_smoothed_value_is_the_mean_of_the_last_ones(count):
    values = np.random.default_rng(1).normal(size=count)
    found = smoothed(Points(np.arange(count), values)).values
    for n in (0, count // 2, count - 1):
        assert found[n] == pytest.approx(values[max(0, n + 1 - window(count)) : n + 1].mean())


def test_a_step_that_is_done_again_replaces_it_and_what_came_after():
    track = Track()
    track.extend(range(1, 301), np.arange(1, 301) / 10)
    track.add(200, -1.0)
    track.add(201, float("nan"))
    track.add(202, None)
    assert (
        len(track) == 200 and track.last == -1.0 and track.points.values[198] == pytest.approx(19.9)
    )


def test_shares_of_a_long_run_are_means_of_stretches_that_still_add_up():
    shares = Shares()
    for n in range(1000):
        shares.add(n, (0.2 + n / 2000, 0.5, 0.3 - n / 2000))
    steps, cumulated = shares.stacked(10)
    assert cumulated.shape == (3, 10) and np.allclose(cumulated[-1], 1) and steps[-1] == 999
    assert cumulated[0, 0] == pytest.approx(0.2 + 49.5 / 2000)


def test_a_run_that_goes_on_forgets_what_it_does_again():
    state = RunState()
    for n in range(1, 21):
        state.apply(step(n))
    state.apply(
        {"event": "validation", "step": 20, "dice": 0.9, "ncc": 0.8, "folding_percent": 0.0}
    )
    state.apply({"event": "load", "step": 20, "shares": {"decoder-1-x": [1, 0, 0]}, "alarms": []})
    state.apply(begin(resumed_at=10))
    assert state.step == 10 and len(state.terms["total"]) == 10 and state.best is None
    assert not len(state.shares["decoder-1-x"])


def test_the_best_look_is_by_dice_or_without_labels_by_correlation():
    state = RunState()
    for at, ncc in ((0, 0.5), (10, 0.7), (20, 0.6)):
        state.apply(
            {"event": "validation", "step": at, "dice": None, "ncc": ncc, "folding_percent": 0.1}
        )
    assert state.best == (10, "ncc", 0.7)
    state.apply(
        {"event": "validation", "step": 30, "dice": 0.4, "ncc": 0.9, "folding_percent": 0.1}
    )
    assert state.best == (30, "dice", 0.4)


def test_an_alarm_keeps_its_first_step_and_is_told_to_be_over():
    state, place = RunState(), "decoder-1-y"
    for at, texts in ((10, ()), (20, ("low",)), (30, ("lower",)), (40, ())):
        alarms = [{"place": place, "text": text} for text in texts]
        state.apply({"event": "load", "step": at, "shares": {place: [0.9, 0.1]}, "alarms": alarms})
    alarm = state.alarms[place]
    assert (alarm.step, alarm.text, alarm.over) == (20, "lower", 40)


@pytest.mark.parametrize(
    "wrong",
    (
        {"event": "step", "step": 7},
        {"event": "step"} | step(7, total="much"),
        {"event": "unheard"},
        {},
    ),
)
def test_an_event_that_cannot_be_understood_is_noted_and_changes_nothing_else(wrong):
    state = RunState()
    state.apply(step(6))
    state.apply(wrong)
    assert len(state.garbled) == 1 and state.step == 6 and len(state.terms["total"]) == 1


def test_time_and_memory_are_told_in_words():
    state = RunState()
    state.apply(begin(memory={"need": 3_100_000_000, "free": 12_400_000_000}))
    state.apply(step(10, seconds=1.25, left_seconds=5400.0))
    buttons = button_state(
        state,
        is_running=True,
        is_own=True,
        requested="",
        silent_seconds=0,
        missing=None,
        can_resume=False,
        has_weights=False,
    )
    assert (
        buttons.text
        == "Step 10 of 100, about 1 h 30 min left.\n1.2 s per step; needs 3.1 GB of 12.4 GB free."
    )
    assert (
        buttons.done == 0.1
        and buttons.can_stop
        and buttons.can_pause
        and not buttons.can_start
        and not buttons.can_use
    )
    silent = button_state(
        state,
        is_running=True,
        is_own=True,
        requested="",
        silent_seconds=600,
        missing=None,
        can_resume=False,
        has_weights=False,
    )
    assert "No message for 10 min." in silent.text
    assert (length(89), length(91), length(3600 * 5)) == ("89 s", "2 min", "5 h 0 min")


def test_a_run_that_can_go_on_is_resumed_though_no_data_set_is_chosen():
    state = RunState()
    state.apply({"event": "end", "reason": "stopped", "step": 3, "weights": None})
    about = {
        "is_running": False,
        "is_own": False,
        "requested": "",
        "silent_seconds": 0.0,
        "missing": "Choose a data set",
        "has_weights": True,
    }
    buttons = button_state(state, **about, can_resume=True)
    assert (buttons.start_text, buttons.start_action, buttons.can_start, buttons.can_use) == (
        "Resume",
        "resume",
        True,
        True,
    )
    buttons = button_state(state, **about, can_resume=False)
    assert (buttons.start_text, buttons.can_start) == ("Choose a data set", False)


def test_the_command_holds_only_what_was_chosen():
    settings = {
        "steps": 20,
        "freeze_encoder": True,
        "tensorboard": False,
        "final_rate": 1e-5,
        "learning_rate": 3e-4,
    }
    request = RunRequest("out dir", "data", {"labels": "labels/*.nii.gz"}, "auto", "cpu", settings)
    assert (
        request.command_line()
        == "shmoareg fine-tune data --out 'out dir' --labels 'labels/*.nii.gz' --device cpu --steps"
        " 20 --freeze-encoder --no-tensorboard --final-rate 1e-05 --learning-rate 0.0003"
    )
    assert RunRequest("out").command("--resume")[-5:] == [
        "--out",
        "out",
        "--json",
        "--with-parent",
        "--resume",
    ]


@pytest.fixture
def folder(tmp_path):
    """A run's folder as files tell of it, with 100,000 steps."""
    settings = {"steps": 100_000, "learning_rate": 1e-4}
    about = {
        "format": "shmoareg-run-1",
        "settings": settings,
        "config": {"kernels": [1, 3, 5], "top_k": 2},
    }
    (tmp_path / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "split.json").write_text(
        '{"train": ["a", "b"], "validation": ["c"], "test": [], "seed": 0}', encoding="utf-8"
    )
    with (tmp_path / "metrics.csv").open("w", encoding="utf-8") as file:
        file.write(",".join(METRICS) + "\n")
        file.writelines(
            f"{n},{1 / n!r},0.5,0.25,0.125,,1.0,0.0001,a and b,0.4\n" for n in range(1, 100_001)
        )
    (tmp_path / "validation.csv").write_text(
        "step,dice,ncc,folding_percent,best,seconds\n0,0.5,0.6,0.1,1,2.0\n100,0.7,,0.2,1,2.0\n",
        encoding="utf-8",
    )
    return tmp_path


def write_loads(folder, rows):
    with (folder / "loads.csv").open("w", encoding="utf-8") as file:
        file.write("step,place,expert,count\n")
        file.writelines(f"{n},{place},{expert},{count}\n" for n, place, expert, count in rows)


def test_a_run_of_100000_steps_is_read_whole_and_then_only_what_came_since(folder):
    files, state = RunFiles(folder), RunState()
    files.read().apply_to(state)
    assert state.step == 100_000 == len(state.terms["total"]) and state.steps == 100_000
    assert state.terms["similarity"].last == 0.5 and not len(state.terms["overlap"])
    assert state.best == (100, "dice", 0.7) and len(state.validation["ncc"]) == 1
    assert state.seconds_per_step == pytest.approx(0.4) and read_split(folder) == {
        "a": "train",
        "b": "train",
        "c": "validation",
    }
    with (folder / "metrics.csv").open("a", encoding="utf-8") as file:
        # not whole yet
        file.write("100001,2.0,0.5,0.25,0.125,,1.0,0.0001,a and b,0.4\n100002,3.0,0.5")
    update = files.read()
    assert update.steps["step"].tolist() == [100_001] and not update.about
    update.apply_to(state)
    assert state.terms["total"].last == 2.0


def test_a_table_that_was_cut_back_is_read_anew(folder):
    files, state = RunFiles(folder), RunState()
    files.read().apply_to(state)
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "new.csv").write_text("".join(lines[:51]), encoding="utf-8")
    (folder / "new.csv").replace(folder / "metrics.csv")
    files.read().apply_to(state)
    assert state.step == 50 and len(state.terms["total"]) == 50


def test_collapsed_routing_is_found_in_a_runs_files_too(folder):
    counts = {
        "decoder-1-x": lambda n: (40, 35, 25),
        "decoder-1-y": lambda n: (40, 35, 25) if n < 400 else (0, 100, 0),
    }
    write_loads(
        folder,
        (
            (n, place, e, c)
            for n in range(10, 801, 10)
            for place, of in counts.items()
            for e, c in enumerate(of(n))
        ),
    )
    state = RunState()
    RunFiles(folder).read().apply_to(state)
    assert list(state.alarms) == ["decoder-1-y"] and 400 <= state.alarms["decoder-1-y"].step <= 460
    assert state.shares["decoder-1-x"].last == (0.4, 0.35, 0.25) and state.about["kernels"] == [
        1,
        3,
        5,
    ]


def test_of_a_long_run_some_stretches_of_the_loads_are_kept_and_always_the_last(folder):
    write_loads(
        folder,
        ((n, "decoder-1-x", e, c) for n in range(10, 100_001, 10) for e, c in enumerate((n, 1, 1))),
    )
    state = RunState()
    RunFiles(folder).read().apply_to(state)
    shares = state.shares["decoder-1-x"]
    assert 500 < len(shares) < 1500 and shares.last[0] == pytest.approx(100_000 / 100_002)


def test_a_folder_of_something_else_is_refused_with_what_was_expected(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"not the folder of a run.*--out"):
        RunFiles(tmp_path).read()


def test_the_check_up_reads_the_same_from_events_and_from_the_file(tmp_path):
    from napari_shmoareg.datasets.dataset import ScanReport

    reports = [
        ScanReport(
            "b",
            "s1",
            "b.nii",
            (37, 29, 23),
            (3.0, 3.0, 2.0),
            "LIA",
            0.0,
            220.0,
            (1, 2),
            0.81,
            0.9,
            "a",
        ),
        ScanReport("a", "s2", "a.nii", (34, 41, 25), (3.2, 2.5, 2.2), "RAS", -5.0, 90.5),
        ScanReport("c, d", "s3", "c.nii", skipped="cannot be read, the file is cut short"),
    ]
    with (tmp_path / "checkup.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(reports[0].to_row()))
        writer.writeheader()
        writer.writerows(report.to_row() for report in reports)
    parts = {"a": "train", "b": "test"}
    of_file = rows_of([scan_of_file(row) for row in Tail(tmp_path / "checkup.csv").rows()], parts)
    of_events = rows_of(
        [{"event": "scan", "time": time.time(), **report.to_dict()} for report in reports], parts
    )
    assert of_file == of_events
    first, second, third = records(of_events)
    assert first["Scan"] == "c, d" and "cut short" in first["Problem"], "problems come first"
    assert (second["Shape"], second["Spacing, mm"], second["Overlap"]) == (
        "37×29×23",
        "3×3×2",
        "0.81 Dice",
    )
    assert (third["Part"], third["Labels"], third["Range"]) == ("train", "–", "-5 to 90.5")


def test_the_phase_is_told_with_what_it_is_at():
    state = RunState()
    state.apply({"event": "phase", "phase": "checkup", "done": 0.11, "text": "hippocampus_001"})
    buttons = button_state(
        state,
        is_running=True,
        is_own=True,
        requested="",
        silent_seconds=0,
        missing=None,
        can_resume=False,
        has_weights=False,
    )
    assert buttons.text == "Checking the scans: hippocampus_001 (11 %)"
