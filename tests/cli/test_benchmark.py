"""``shmoareg benchmark``: rows that stay, go on and fail one by one; and the choice of pairs."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from napari_shmoareg.cli import benchmark
from napari_shmoareg.cli import benchmark as command
from napari_shmoareg.evaluation import isolated_run as trials
from napari_shmoareg.evaluation import methods
from napari_shmoareg.evaluation.isolated_run import IsolatedRun
from napari_shmoareg.evaluation.methods import METHODS
from napari_shmoareg.io import checkpoint
from napari_shmoareg.io import model_card as choice


@pytest.fixture
def listed(files) -> Path:
    """A list of two pairs, the first with labels and landmarks."""
    (files.folder / "points.csv").write_text(
        "# fixed, moving (mm, LPS)\n1,2,3,1,2,7\n-4,5,6,-4,5,6\n", encoding="utf-8"
    )
    path = files.folder / "pairs.csv"
    path.write_text(
        "moving,fixed,moving_labels,fixed_labels,landmarks\n"
        "moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz,points.csv\n"
        "fixed.nii.gz,moving.nii.gz,,,\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def ran(monkeypatch) -> list[IsolatedRun]:
    """The trials that were run; each gives made-up numbers, and the affine fails on the second
    pair.
    """
    ran: list[IsolatedRun] = []

    def run(trial: IsolatedRun):
        ran.append(trial)
        if trial.method == "affine" and trial.moving.endswith("fixed.nii.gz"):
            return {"error": "it broke,\nin two lines"}
        return {
            "dice": 0.5 + 0.1 * len(trial.method),
            "folding_percent": 0.0,
            "seconds": 2.0,
            "memory_mib": 300.0,
        }

    monkeypatch.setattr(command, "run_isolated", run)
    return ran


@pytest.fixture
def run(listed, files, shmoareg):
    """The command on the list: ``run("--methods affine", ...)`` gives the result and the folder."""

    def benchmark(options="--methods affine", *more, data=None, out="out"):
        folder = files.folder / out
        return shmoareg(
            "benchmark", data or listed, "--out", folder, *options.split(), *more
        ), folder

    return benchmark


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "pairs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_method_in_its_own_process_is_measured_there(listed, run):
    """For real, from the list to the picture; the alignment brings the phantoms together."""
    listed.write_text("\n".join(text_of(listed).splitlines()[:2]) + "\n", encoding="utf-8")
    result, out = run("--methods affine --threads 1 --surface")
    assert result.exit_code == 0, result.stderr
    start, affine = rows_of(out)
    assert (start["method"], affine["method"]) == ("start", "affine")
    assert float(affine["dice"]) > float(start["dice"]) > 0.3
    assert float(affine["assd_mm"]) < float(start["assd_mm"]) < float(start["hd95_mm"])
    assert float(start["landmark_mm"]) == pytest.approx(2.0)
    assert float(start["seconds"]) < float(affine["seconds"]) < 60
    assert 50 < float(start["memory_mib"]) <= 1.2 * float(affine["memory_mib"]) < 4000
    summary = text_of(out / "summary.md")
    assert all(said in summary for said in ("| affine | 1 | 0.", "- threads: 1", "- SimpleITK: "))
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "affine" in result.stdout and str(out) in result.stdout


def test_a_method_that_fails_leaves_a_row_and_the_rest_goes_on(ran, run):
    result, out = run("--methods affine,demons")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(out)
    assert [(r["pair"], r["method"]) for r in rows] == [
        (p, m) for p in "12" for m in ("start", "affine", "demons")
    ]
    assert rows[4]["error"].startswith("it broke") and rows[4]["dice"] == rows[5]["error"] == ""
    summary = text_of(out / "summary.md")
    assert "| affine | 1 (1 failed) |" in summary and "pair 2, affine: it broke" in summary
    first, second = summary.split("Over the one pair that every method finished:")
    assert "| demons | 2 |" in first and "| demons | 1 |" in second and "| affine | 1 |" in second
    assert re.search(r"^affine +1 \(1 failed\) +[0-9]", result.stdout, flags=re.MULTILINE)
    assert f"- demons: {METHODS['demons'].description}" in summary
    assert "inverted contrast" in summary
    assert "failed: it broke" in result.stderr


def test_the_same_command_goes_on_and_runs_nothing_twice(ran, run, monkeypatch):
    pretend = command.run_isolated

    def stopped(trial: IsolatedRun):
        if len(ran) == 3:
            raise KeyboardInterrupt
        return pretend(trial)

    monkeypatch.setattr(command, "run_isolated", stopped)
    result, out = run()
    assert result.exit_code == 130
    assert "3 of 4 runs" in result.stderr and "continues" in result.stderr
    before, summary = rows_of(out), out / "summary.md"
    assert len(before) == 3 and "Not finished: 3 of 4 runs" in text_of(summary)
    monkeypatch.setattr(command, "run_isolated", pretend)
    assert run()[0].exit_code == 0
    assert len(ran) == 4 and rows_of(out)[:3] == before
    assert "Not finished" not in text_of(summary)
    assert run()[0].exit_code == 0 and len(ran) == 4
    (out / "rows" / "0002-affine.json").unlink()
    assert run()[0].exit_code == 0 and len(ran) == 5


def test_a_folder_of_an_earlier_release_goes_on_from_its_table(ran, run):
    """It had no rows but those of pairs.csv, one of which was deleted to be run again."""
    _, out = run()
    before, then = text_of(out / "pairs.csv"), rows_of(out)
    shutil.rmtree(out / "rows")
    (out / "pairs.csv").write_text("\n".join(before.splitlines()[:2]) + "\n", encoding="utf-8")
    ran.clear()
    assert run()[0].exit_code == 0
    assert [(trial.method, Path(trial.moving).name) for trial in ran] == [
        ("affine", "moving.nii.gz"),
        ("start", "fixed.nii.gz"),
        ("affine", "fixed.nii.gz"),
    ]
    assert rows_of(out) == then
    shutil.rmtree(out / "rows")
    (out / "pairs.csv").write_text(before.replace(",2.0,", ",soon,"), encoding="utf-8")
    result, _ = run()
    assert result.exit_code == 1 and "pairs.csv, line 2, is damaged" in result.stderr


def test_a_damaged_row_is_named(ran, run, plain):
    _, out = run()
    row = out / "rows" / "0001-affine.json"
    row.write_text(text_of(row).replace("2.0", '"soon"'), encoding="utf-8")
    plain(run("--methods affine --quiet")[0]).search(r"0001-affine\.json is damaged .*Delete it")


@pytest.mark.parametrize(
    ("other", "says"),
    [("--change invert", "settings"), ("--methods demons", "methods"), ("--pairs 1", "pairs")],
)
def test_a_benchmark_does_not_go_on_with_another_plan(other, says, ran, run):
    run()
    result, _ = run(f"--methods affine {other}")
    assert result.exit_code == 1 and f"started with other {says}" in result.stderr
    assert len(ran) == 4


@pytest.mark.parametrize("other", [{"processor": "faster"}, {"CPUs": 1000}])
def test_a_benchmark_does_not_go_on_on_another_machine(other, ran, run, monkeypatch):
    run()
    here = command.machine()
    monkeypatch.setattr(command, "machine", lambda: here | other)
    result, _ = run()
    assert result.exit_code == 1 and "started with another machine (see" in result.stderr
    assert len(ran) == 4


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            "shmoareg --refine 5",
            r"--refine would have no effect: --methods lists no affine\+refine and no"
            r" shmoareg\+refine\.",
        ),
        ("affine --similarity mind", r"--similarity would .* no shmoareg\+refine"),
        ("affine --gamma 0.5", "--gamma would have no effect without --change gamma"),
        ("affine --change invert --gamma 2", "without --change gamma"),
        (
            "affine --size 24",
            r"--size would have no effect: --methods lists no shmoareg and no shmo",
        ),
        ("affine --no-diffeomorphic", "--diffeomorphic would"),
        ("affine --weights small --contrast keep", "--weights would"),
        (
            "affine --unigradicon-weights w",
            r"--unigradicon-weights would .* lists no unigradicon\.",
        ),
        # of another method whose seconds are asked for
        ("affine+refine@shmoareg,shmoareg", "list that before it in --methods"),
    ],
)
def test_options_that_would_do_nothing_are_refused(asked, says, ran, run, plain):
    result, out = run(f"--methods {asked}")
    plain(result).search(says)
    assert ran == [] and not out.exists()


def test_the_seconds_of_another_method_are_taken_from_the_same_pair(run, weights, monkeypatch):
    ran = []

    def timed(trial: IsolatedRun):
        ran.append(trial)
        if trial.method == "shmoareg" and trial.moving.endswith("fixed.nii.gz"):
            return {"error": "it broke"}
        return {"dice": 0.01 * len(trial.method), "seconds": 9.0, "deforming_seconds": 4.5}

    monkeypatch.setattr(command, "run_isolated", timed)
    result, out = run("--methods shmoareg,affine+refine@shmoareg --weights", weights)
    assert result.exit_code == 0, result.stderr
    seconds = [t.refine_seconds for t in ran if t.method == "affine+refine@shmoareg"]
    assert seconds == [4.5]  # the second pair has none
    assert "shmoareg failed on this pair" in rows_of(out)[-1]["error"]
    assert re.search(
        r"shmoareg \| affine\+refine@shmoareg \| Dice \| -0.140 .* \| 0 of 1 \|",
        text_of(out / "summary.md"),
    )


def test_a_folder_with_other_things_in_it_is_left_alone(ran, run, plain):
    plain(run("--methods affine --quiet", out=".")[0]).search("is not empty")
    assert ran == []


def test_a_missing_peer_is_said_before_anything_runs(ran, run, monkeypatch, plain):
    monkeypatch.setattr(methods, "find_spec", lambda module: None)
    result, out = run("--methods affine,syn")
    plain(result).search(r'pip install "shmoareg\[peers\]"')
    assert ran == [] and not out.exists()


def test_options_reach_every_trial(ran, run, weights):
    options = "--size 24 --no-diffeomorphic --refine 5 --threads 3 --similarity lncc"
    changed = "--contrast match --change gamma --gamma 0.7 --channel 0 --nan 0 --pairs 1"
    named = ("--methods", "shmoareg, shmoareg+refine", "--weights", weights)
    result, _ = run(f"{options} {changed}", *named)
    assert result.exit_code == 0, result.stderr
    for said in ("1 of 2 pairs", "--seed 1", "1 to 1 times"):
        assert said in result.stderr
    assert [t.method for t in ran] == ["start", "shmoareg", "shmoareg+refine"]
    for trial in ran:
        assert (trial.weights, trial.size, trial.diffeomorphic) == (str(weights), 24, False)
        assert (trial.refine, trial.threads, trial.change, trial.gamma) == (5, 3, "gamma", 0.7)
        assert (trial.similarity, trial.contrast) == ("lncc", "match")
        assert (trial.channel, trial.nan) == (0, 0.0)


def test_the_weights_of_unigradicon_are_checked_and_reach_its_trials(ran, run, unigradicon_file):
    result, out = run("--methods unigradicon --unigradicon-weights", unigradicon_file)
    assert result.exit_code == 0, result.stderr
    assert {trial.unigradicon_weights for trial in ran} == {str(unigradicon_file)}
    settings = json.loads(text_of(out / "benchmark.json"))["settings"]
    digest = hashlib.sha256(unigradicon_file.read_bytes()).hexdigest()
    assert settings["unigradicon_weights_sha256"] == digest


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("", "Give --unigradicon-weights FILE"),
        ("--unigradicon-weights nowhere", "Cannot read the weights .*nowhere"),
        ("--unigradicon-weights {other}", "do not belong to uniGradICON"),
    ],
)
def test_weights_that_unigradicon_cannot_use_are_refused(
    weights, says, ran, files, unigradicon_file, run, plain
):
    other = files.folder / "other.trch"
    torch.save({"bias": torch.zeros(1)}, other)
    result, out = run(f"--methods unigradicon -q {weights.format(other=other)}")
    plain(result).search(says)
    assert ran == [] and not out.exists()


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_the_weights_are_those_that_fit_the_device(place, monkeypatch):
    def chosen(asked, device):
        seen.append((asked, device))
        return "some", "as they fit"

    seen: list[tuple] = []
    monkeypatch.setattr(choice, "choose_weights", chosen)
    monkeypatch.setattr(choice, "choose_device", lambda asked: place)
    monkeypatch.setattr(checkpoint, "load_network", lambda name, device: (name, device))
    monkeypatch.setattr("napari_shmoareg.io.model_card.read_card", lambda name: {})
    monkeypatch.setattr("napari_shmoareg.io.model_card.shipped_weights", lambda: ("some",))
    assert trials._network(IsolatedRun("shmoareg", "m", "f")) == ("some", place)
    assert benchmark.weights_for(["shmoareg"], None, "auto") == "some"
    assert seen == [(None, place)] * 2


def _is_trial(process: psutil.Process) -> bool:
    """Whether a child runs its own program already, and is no copy of the command any more."""
    return "napari_shmoareg.evaluation.isolated_run" in process.cmdline()


@pytest.mark.slow
def test_asked_to_end_the_command_ends_its_trial(listed, files):
    words = ("benchmark", listed, "--methods", "affine", "--out", files.folder / "out")
    command = [sys.executable, "-m", "napari_shmoareg", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not (trials := psutil.Process(process.pid).children()) or not _is_trial(trials[0]):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        trials[0].suspend()  # it hangs, and hears no request to end
        process.terminate()
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Stopped after 0 of 4 runs" in said
    assert not trials[0].is_running()


@pytest.mark.slow
def test_asked_to_end_the_command_ends_the_program_that_a_method_runs(listed, files, put_on_path):
    note = files.folder / "note"
    put_on_path(
        "reg_f3d",
        "import os, sys, time\nif '--version' in sys.argv:"
        f" sys.exit(print('1'))\nopen({str(note)!r} + '~', 'w').write(f'{{os.getpid()}}"
        f" {{os.getcwd()}}'); os.rename({str(note)!r} + '~', {str(note)!r})\ntime.sleep(300)",
    )
    put_on_path("reg_transform", "print('1')")
    words = ("benchmark", listed, "--methods", "niftyreg", "--out", files.folder / "out")
    process = subprocess.Popen(
        [sys.executable, "-m", "napari_shmoareg", *map(str, words)], stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 120
        while not note.is_file():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        number, folder = note.read_text(encoding="utf-8").split(maxsplit=1)
        program = psutil.Process(int(number))
        process.terminate()
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert not program.is_running() or program.status() == psutil.STATUS_ZOMBIE
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("lines", "told"), [("a,b a,c a,d", "0 to 2 times"), ("a,b c,d d,e", "0 to 1 times")]
)
def test_the_uses_that_are_told_are_of_all_images_on_both_sides(lines, told, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text(
        "\n".join(["moving,fixed", *lines.split()]), encoding="utf-8"
    )
    for name in "abcde":
        (tmp_path / name).touch()
    assert len(benchmark.select_pairs(tmp_path / "pairs.csv", None, None, (2, 1), False)) == 2
    assert told in capsys.readouterr().err


def test_a_folder_without_a_pattern_and_a_list_with_one_are_refused(ran, files, run, plain):
    assert plain(run(data=files.folder)[0]).search("--images")
    assert plain(run("--methods affine --images *.nii")[0]).search("for a folder")
