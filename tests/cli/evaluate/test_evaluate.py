"""``shmoareg evaluate``: from a data set to tables, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from napari_shmoareg import metrics
from napari_shmoareg.io import load_network, read_pair
from napari_shmoareg.registration import register

from .conftest import PATTERNS, QUICK, rows_of, write_scan


@pytest.fixture
def evaluate(shmoareg, cohort, weights, tmp_path):
    """Evaluate the cohort with the tiny weights: ``evaluate("--pairs", 2)``; gives the result and
    the table.
    """

    def run(*options, by=("--weights", weights), data=(cohort, *PATTERNS), out="table"):
        place = tmp_path / out
        return shmoareg("evaluate", *data, *by, *QUICK, "--out", place, *options), place

    return run


@pytest.mark.slow
def test_every_pair_is_registered_and_measured_as_the_library_does(evaluate, cohort, weights):
    result, table = evaluate("--definitions")
    assert result.exit_code == 0, result.stderr
    names = ["ada_1", "ada_2", "bea_1", "cleo_1"]
    rows = [row for row in rows_of(table / "pairs.csv") if row["stage"] == "after"]
    assert [(r["moving"], r["fixed"]) for r in rows] == [
        (m, f) for m in names for f in names if m != f
    ]
    network = load_network(str(weights))
    row = next(r for r in rows if (r["moving"], r["fixed"]) == ("ada_2", "bea_1"))
    names = ("ada_2", "bea_1")
    pair = read_pair(*(cohort / f"{k}/{n}.nii.gz" for k in ("images", "labels") for n in names))
    found = register.register(pair, network, affine="none", device="cpu")
    truth = pair.fixed_labels.values
    assert float(row["dice"]) == pytest.approx(
        metrics.mean(metrics.dice(found.warped_labels.values, truth)), abs=1e-9
    )
    distances = metrics.assd(found.warped_labels.values, truth, pair.fixed.grid.spacing)
    assert float(row["assd_mm"]) == pytest.approx(metrics.mean(distances))
    assert float(row["folding_percent"]) == pytest.approx(found.folding_percent)
    assert float(row["sdlogj"]) == pytest.approx(metrics.sdlogj(found.displacement.jacobian()))
    per_label = {
        int(r["label"]): float(r["assd_mm"])
        for r in rows_of(table / "labels.csv")
        if (r["case"], r["stage"]) == (row["case"], "after")
    }
    assert per_label == pytest.approx(distances)
    summary = {(r["stage"], r["label"], r["measure"]): r for r in rows_of(table / "summary.csv")}
    dice = np.array([float(r["dice"]) for r in rows])
    after = summary["after", "mean", "dice"]
    assert (after["n"], float(after["mean"]), float(after["sd"])) == (
        "12",
        *map(pytest.approx, (dice.mean(), dice.std(ddof=1))),
    )
    assert "Taha and Hanbury" in summary["after", "mean", "avd_th_mm"]["definition"]
    page = (table / "summary.md").read_text(encoding="utf-8")
    assert f"| after registration | 12 | {dice.mean():.4f} ± {dice.std(ddof=1):.4f} |" in page
    assert "not comparable with the paper's Table I" in page and "Not finished" not in page
    plan = json.loads((table / "evaluation.json").read_text(encoding="utf-8"))
    assert "processor" in page and plan["weights"]["sha256"] in page
    assert "Dice" in result.stdout and str(table) in result.stdout
    assert "pair 12 of 12" in result.stderr


def test_the_same_command_runs_nothing_twice_and_other_weights_are_refused(
    evaluate, folding_weights, plain
):
    two = ("--pairs", 2, "--quiet", "--no-surface")
    result, table = evaluate(*two)
    assert result.exit_code == 0 and result.stdout == ""
    before = {path: path.stat().st_mtime_ns for path in (table / "cases").iterdir()}
    assert len(before) == 2
    assert evaluate(*two)[0].exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (table / "cases").iterdir()} == before
    other = evaluate(*two, by=("--weights", folding_weights))[0]
    plain(other).search("started with other weights")
    plain(evaluate(*two, "--refine", 3)[0]).search("started with other settings")
    plain(evaluate(*two, "--pairs", 3)[0]).search("started with other pairs")
    # a damaged case is told and done again
    case = table / "cases" / "0002.json"
    whole = case.read_text(encoding="utf-8")
    case.write_text(whole[:100], encoding="utf-8")
    result, _ = evaluate(*two)
    assert result.exit_code == 0 and "0002.json is damaged" in result.stderr
    assert "registered again" in result.stderr
    again = json.loads(case.read_text(encoding="utf-8"))
    assert again["stages"] == json.loads(whole)["stages"]


@pytest.mark.slow
def test_a_pair_that_fails_is_kept_told_and_tried_again(evaluate, cohort, tmp_path):
    data = tmp_path / "copy"
    shutil.copytree(cohort, data)
    broken = data / "images" / "bea_1.nii.gz"
    whole = broken.read_bytes()
    options = (data, *PATTERNS)
    result, table = evaluate("--shard", "1/1", "--method", "start", by=(), data=options)
    assert result.exit_code == 0
    shutil.rmtree(table)
    broken.write_bytes(whole[:200])
    result, table = evaluate("--method", "start", by=(), data=options)
    assert result.exit_code == 1
    assert "6 of 12 pairs failed" in result.stderr and "bea_1" in result.stderr
    assert "Traceback" not in result.stderr
    errors = [row["error"] for row in rows_of(table / "pairs.csv") if row["error"]]
    assert len(errors) == 6 and all("bea_1" in error for error in errors)
    page = (table / "summary.md").read_text(encoding="utf-8")
    assert "## Failed" in page and "| start (headers) | 6 |" in page
    broken.write_bytes(whole)
    result, _ = evaluate("--method", "start", by=(), data=options)
    assert result.exit_code == 0 and result.stderr.count("Dice") == 6
    assert not [row for row in rows_of(table / "pairs.csv") if row["error"]]


def test_scans_without_labels_are_compared_by_likeness_and_it_is_told(evaluate, cohort):
    result, table = evaluate("--pairs", 1, data=(cohort, "--images", "images/*.nii.gz"))
    assert result.exit_code == 0 and "NCC" in result.stderr
    assert "4 of its scans have no labels" in result.stderr
    row = rows_of(table / "pairs.csv")[-1]
    assert "dice" not in row and float(row["ncc"]) != 0
    assert float(row["sdlogj"]) >= 0  # 0 where an untrained network's deformation was not kept
    assert "have no labels" in (table / "summary.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_part_of_a_split_holds_its_own_subjects_alone(evaluate):
    """The subject is the first word; ada's two scans stay on one side."""
    kept = set()
    for seed in range(6):
        options = f"--split 2/0/0 --split-seed {seed} --subject ([a-z]+)_ --part train"
        options += " --method start --no-surface"
        result, table = evaluate(*options.split(), by=(), out=f"table{seed}")
        assert result.exit_code == 0, result.stderr
        plan = json.loads((table / "evaluation.json").read_text(encoding="utf-8"))
        scans = {name for pair in plan["pairs"] for name in pair}
        subjects = frozenset(name.partition("_")[0] for name in scans)
        assert len(subjects) == 2 and ("ada_1" in scans) == ("ada_2" in scans)
        assert plan["part"] == "train" and "2/0/0" in plan["split"]
        kept.add(subjects)
    assert len(kept) > 1


@pytest.mark.slow
def test_another_evaluation_is_compared_with_and_said_in_words(evaluate, tmp_path):
    few = ("--pairs", 6, "--no-surface")
    evaluate("--method", "start", "--quiet", *few, by=(), out="start")
    result, table = evaluate("--against", tmp_path / "start", *few)
    assert result.exit_code == 0, result.stderr
    page = (table / "against-start.md").read_text(encoding="utf-8")
    ours, theirs = (
        [float(row["dice"]) for row in rows_of(place / "pairs.csv") if row["stage"] == "after"]
        for place in (table, tmp_path / "start")
    )
    row = rows_of(table / "against-start.csv")[0]
    assert (row["measure"], row["over"], row["n"]) == ("dice", "pairs", "6")
    assert float(row["difference"]) == pytest.approx(np.median(np.subtract(ours, theirs)), abs=1e-8)
    assert "not independent" in page and row["says"] in page and row["says"] in result.stdout


def test_landmarks_of_a_list_are_measured(evaluate, files):
    (files.folder / "points.csv").write_text("1,2,3,1,2,7\n-4,5,6,-4,5,6\n", encoding="utf-8")
    listed = files.folder / "pairs.csv"
    listed.write_text(
        "moving,fixed,moving_labels,fixed_labels,landmarks\n"
        "moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz,points.csv\n",
        encoding="utf-8",
    )
    result, table = evaluate("--method", "start", by=(), data=(listed,))
    assert result.exit_code == 0, result.stderr
    assert float(rows_of(table / "pairs.csv")[0]["landmark_mm"]) == pytest.approx(2.0)


def test_names_of_labels_come_from_the_data_set_or_from_a_given_file(evaluate, phantoms, tmp_path):
    data, table = tmp_path / "named", tmp_path / "organs.ctbl"
    for name in ("a", "b"):
        write_scan(data, name, phantoms.fixed, phantoms.fixed_labels)
    text = '{"labels": {"background": 0, "skin": 1, "liver": 2}}'
    (data / "dataset.json").write_text(text, encoding="utf-8")
    table.write_text("2 spleen 0 0 0 0\n", encoding="utf-8")
    by = {"by": (), "data": (data, *PATTERNS)}
    for options, expected in (
        ((), ["skin", "liver", "", ""]),
        (("--label-names", table), ["", "spleen", "", ""]),
    ):
        result, out = evaluate("--method", "start", "--pairs", 1, *options, **by)
        assert result.exit_code == 0, result.stderr
        rows = [row for row in rows_of(out / "labels.csv") if row["stage"] == "after"]
        assert [row["name"] for row in rows] == expected
    assert "| 2 spleen |" in (out / "summary.md").read_text(encoding="utf-8")
    table.write_bytes(b"\xff")
    result, _ = evaluate("--method", "start", "--label-names", table, **by)
    assert result.exit_code == 1 and "organs.ctbl" in result.stderr


def test_labels_that_only_one_scan_has_are_marked_named_and_in_no_mean(
    evaluate, phantoms, tmp_path
):
    data = tmp_path / "odd"
    other = phantoms.fixed_labels.with_values(
        np.where(phantoms.fixed_labels.values == 3, 9, phantoms.fixed_labels.values)
    )
    write_scan(data, "a", phantoms.fixed, phantoms.fixed_labels)
    write_scan(data, "b", phantoms.fixed, other)
    result, table = evaluate("--method", "start", by=(), data=(data, *PATTERNS))
    assert result.exit_code == 0, result.stderr
    labels = {
        r["label"]: r
        for r in rows_of(table / "labels.csv")
        if (r["case"], r["stage"]) == ("1", "after")
    }
    dice = {label: r["dice"] for label, r in labels.items()}
    assert dice == {"1": "1.0", "2": "1.0", "3": "", "4": "1.0", "9": ""}
    # a onto b
    sides = {"1": "both", "2": "both", "3": "only moving", "4": "both", "9": "only fixed"}
    assert {label: r["in"] for label, r in labels.items()} == sides
    means = [
        r["dice"] for r in rows_of(table / "pairs.csv") if (r["case"], r["stage"]) == ("1", "after")
    ]
    assert means == ["1.0"]
    assert "3 of 5 labels are in both images" in (table / "summary.md").read_text(encoding="utf-8")
    assert "over 3 labels (in one image only: 3, 9)" in result.stderr
    assert [labels[label]["assd_mm"] for label in "1239"] == ["0.0", "0.0", "", ""]


@pytest.mark.slow
def test_the_weights_of_unigradicon_reach_it_and_stand_in_the_plan(evaluate, unigradicon_file):
    by = ("--unigradicon-weights", unigradicon_file)
    result, table = evaluate("--method", "unigradicon", "--pairs", 1, "--no-surface", by=by)
    assert result.exit_code == 0, result.stderr
    weights = json.loads((table / "evaluation.json").read_text(encoding="utf-8"))["weights"]
    sha256 = hashlib.sha256(unigradicon_file.read_bytes()).hexdigest()
    assert weights == {"name": str(unigradicon_file), "sha256": sha256}
    nowhere = ("--unigradicon-weights", "nowhere")
    result, table = evaluate("--method", "unigradicon", by=nowhere, out="other")
    assert result.exit_code == 1 and "Cannot read the weights" in result.stderr
    assert not table.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--part test", "needs a split, and the data set has none"),
        ("--split 60/10/10", "needs 80 subjects"),
        ("--method magic", "no method 'magic'"),
        ("--method start", "--weights would have no effect: the method 'start' uses none"),
        (
            "--method start --unigradicon-weights w",
            "--unigradicon-weights would have no effect: the method is",
        ),
        ("--against nowhere", "holds no evaluation"),
        (
            "--run nowhere",
            "nowhere is not the folder of a training run .*Give the folder of a run",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_work(options, says, evaluate, plain):
    result, table = evaluate(*options.split())
    plain(result).search(says)
    assert not table.exists()


@pytest.mark.parametrize(
    "option", ["--shard=0/3", "--shard=4/3", "--shard=x", "--part=exam", "--window=1"]
)
def test_what_is_not_said_rightly_is_refused_by_its_form(option, evaluate):
    result, table = evaluate(option)
    assert result.exit_code == 2 and option.split("=")[0] in result.stderr and not table.exists()


def test_without_a_data_set_and_a_run_it_says_what_to_give(shmoareg, weights, plain, tmp_path):
    plain(shmoareg("evaluate", "--weights", weights, "--out", tmp_path / "t")).search(
        "Give a DATASET, or --run"
    )


def test_a_shard_without_pairs_says_so_and_is_no_failure(evaluate):
    result, table = evaluate("--pairs", 2, "--shard", "3/3", "--method", "start", by=())
    assert result.exit_code == 0 and "shard 3 of 3 has 0 of them" in result.stderr
    assert "so far 0 of 2 pairs" in result.stdout and not list((table / "cases").iterdir())


def test_cancelling_keeps_the_cases_and_the_same_command_goes_on(evaluate, monkeypatch):
    from napari_shmoareg.evaluation import run as run_module

    measure, done = run_module.measure_pair, []

    def cancelled(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return measure(*arguments)

    monkeypatch.setattr(run_module, "measure_pair", cancelled)
    result, table = evaluate("--pairs", 4, "--method", "start", by=())
    assert result.exit_code == 130
    assert "2 of 4 pairs" in result.stderr and "continues" in result.stderr
    assert "Not finished: 2 of 4 pairs" in (table / "summary.md").read_text(encoding="utf-8")
    done.clear()
    monkeypatch.setattr(run_module, "measure_pair", measure)
    result, _ = evaluate("--pairs", 4, "--method", "start", by=())
    assert result.exit_code == 0
    assert "Not finished" not in (table / "summary.md").read_text(encoding="utf-8")
    assert "pair 1 of 4" not in result.stderr and "pair 4 of 4" in result.stderr
