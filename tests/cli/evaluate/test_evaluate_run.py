"""``shmoareg evaluate --run``: the data set, the unseen part and the weights of a run of
fine-tune.
"""

from __future__ import annotations

import json
import shutil

import pytest

from napari_shmoareg.datasets import Split
from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.datasets.splits import Division, write_division
from napari_shmoareg.io.model_card import checksum_of
from napari_shmoareg.training.plan import make_plan, write_plan
from napari_shmoareg.training.run_folder import RunFolder


@pytest.fixture
def learned(cohort, weights, tmp_path) -> RunFolder:
    """A run as fine-tune leaves it: its scans read as images/ and labels/, aligned by trusting the
    headers.
    """
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    choice = DatasetChoice(str(cohort), images="images/*.nii.gz", labels="labels/*.nii.gz")
    write_plan(folder.run_json, make_plan(str(weights), choice, {"steps": 1}, {"affine": "none"}))
    split = Split(train=("ada_1",), validation=("ada_2",), test=("bea_1", "cleo_1", "dora_1"))
    write_division(folder.split, Division(split, {"dora_1": "unreadable"}))
    shutil.copy(weights, folder.best)
    return folder


def evaluate(shmoareg, out, *options):
    return shmoareg("evaluate", "--out", out, "--device", "cpu", "--no-surface", *options)


def test_a_run_tells_its_data_set_its_unseen_part_its_best_weights_and_its_alignment(
    shmoareg, learned, tmp_path
):
    table = tmp_path / "table"
    result = evaluate(shmoareg, table, "--run", learned.path)
    assert result.exit_code == 0 and "best.safetensors" not in result.stderr, result.stderr
    plan = json.loads((table / "evaluation.json").read_text(encoding="utf-8"))
    assert plan["pairs"] == [["bea_1", "cleo_1"], ["cleo_1", "bea_1"]] and plan["part"] == "test"
    assert plan["weights"] == {"name": str(learned.best), "sha256": checksum_of(str(learned.best))}
    assert plan["settings"]["affine"] == "none"
    # word for word what the last release wrote: another text refuses to resume its folders
    assert plan["split"] == (
        f"of the run {learned.path}, without one scan that its check-up left out"
    )


def test_what_is_given_beside_a_run_goes_before_it(
    shmoareg, learned, cohort, folding_weights, tmp_path
):
    table, moved = tmp_path / "table", tmp_path / "moved"
    shutil.copytree(cohort, moved)
    options = ("--part", "all", "--weights", folding_weights, "--affine", "rigid", "--pairs", 1)
    result = evaluate(shmoareg, table, moved, "--run", learned.path, *options)
    assert result.exit_code == 0, result.stderr
    plan = json.loads((table / "evaluation.json").read_text(encoding="utf-8"))
    assert (
        plan["dataset"]["path"] == str(moved)
        and plan["dataset"]["options"]["labels"] == "labels/*.nii.gz"
    )
    assert (plan["part"], plan["settings"]["affine"], len(plan["pairs"])) == ("all", "rigid", 1)
    assert plan["weights"]["sha256"] == checksum_of(str(folding_weights))


def test_a_run_without_weights_is_not_judged_by_the_shipped_ones(
    shmoareg, learned, tmp_path, plain
):
    learned.best.unlink()
    said = plain(evaluate(shmoareg, tmp_path / "table", "--run", learned.path))
    assert said.search("has no weights yet") and not (tmp_path / "table").exists()


def test_a_run_without_best_weights_is_judged_by_its_last_and_says_so(shmoareg, learned, tmp_path):
    learned.best.rename(learned.last)
    result = evaluate(shmoareg, tmp_path / "last", "--run", learned.path)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "has no best.safetensors: the weights of its last saved step are used" in said


def test_a_run_that_has_not_divided_its_scans_is_told(shmoareg, learned, tmp_path, plain):
    learned.split.unlink()
    plain(evaluate(shmoareg, tmp_path / "table", "--run", learned.path)).search("no split yet")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "1/1/1"), "--split and --run exclude each other"),
        (("--labels", "maps/*.nii.gz"), "--labels: the run defines how its data set is read"),
        (("--part", "train"), "No pair can be made of the 1 scans of the part 'train'"),
    ],
)
def test_what_contradicts_a_run_is_refused(options, says, shmoareg, learned, tmp_path, plain):
    plain(evaluate(shmoareg, tmp_path / "table", "--run", learned.path, *options)).search(says)


def test_a_scan_that_is_gone_since_is_told(shmoareg, learned, cohort, tmp_path, plain):
    moved = tmp_path / "moved"
    shutil.copytree(cohort, moved)
    (moved / "images" / "cleo_1.nii.gz").unlink()
    (moved / "labels" / "cleo_1.nii.gz").unlink()
    plain(evaluate(shmoareg, tmp_path / "table", moved, "--run", learned.path)).search(
        "such as 'cleo_1'"
    )
