"""Runs that go on where something has changed: scans, places, settings, files."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from napari_shmoareg.datasets import split_dataset
from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.io import load_network, read_card, read_image, save_network, write_image
from napari_shmoareg.training.logs import read_rows

pytestmark = pytest.mark.slow

FEW = (
    "--steps",
    2,
    "--save-every",
    2,
    "--validate-every",
    2,
    "--overlap-weight",
    0,
    "--affine",
    "rigid",
    "--json",
)


def events_of(result, name):
    assert result.exit_code == 0, result.stderr
    return [
        event for event in map(json.loads, result.stdout.splitlines()) if event["event"] == name
    ]


@pytest.fixture(scope="module")
def finished(scans, begin, forker, tmp_path_factory):
    """A finished run of two steps on a copy of the scans, aligned to one of them; not to be
    changed.
    """
    folder = tmp_path_factory.mktemp("finished")
    mine = shutil.copytree(scans, folder / "scans")
    words = [str(mine) if word == str(scans) else word for word in begin(folder / "run", *FEW)]
    done = forker.run(words)
    assert done.code == 0, done.errors
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A run, and the scans it began with in the place where run.json has them, both to be
    changed.
    """
    scans, run = (
        shutil.copytree(finished / "scans", tmp_path / "scans"),
        shutil.copytree(finished / "run", tmp_path / "run"),
    )
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    told["dataset"]["path"] = str(scans)
    (run / "run.json").write_text(json.dumps(told), encoding="utf-8")
    return scans, run


@pytest.fixture
def go_on(copy, shmoareg):
    """Go on with the run for two steps more."""

    def resume(*more, dataset=(), steps=4):
        return shmoareg(
            "fine-tune", *dataset, "--out", copy[1], "--resume", "--steps", steps, *more
        )

    return resume


def division(run):
    return json.loads((run / "split.json").read_text(encoding="utf-8"))


def learner(run, but=""):
    """A scan that learns and is not the one all are aligned with."""
    told = division(run)
    return next(name for name in told["train"] if name != told["reference"] and name != but)


def test_a_run_that_has_learned_and_lost_its_split_is_not_divided_anew(copy, go_on, plain):
    (copy[1] / "split.json").unlink()
    assert plain(go_on()).search(r"split.json is missing.*Restore a copy")
    assert not (copy[1] / "split.json").exists()


def test_nothing_is_warned_of_where_nothing_has_changed(go_on):
    (begun,) = events_of(go_on("--json"), "begin")
    assert not [words for words in begun["problems"] if "run started" in words]


def test_scans_that_changed_or_are_gone_since_are_told_and_counted(copy, go_on):
    scans, run = copy
    changed = learner(run)
    gone = learner(run, but=changed)
    image = read_image(scans / "images" / f"{changed}.nii.gz")
    write_image(
        image.with_values(np.asarray(image.values) * 0.9), scans / "images" / f"{changed}.nii.gz"
    )
    judge = division(run)["validation"][0]
    labels = read_image(scans / "labels" / f"{judge}.nii.gz")
    write_image(
        labels.with_values(np.asarray(labels.values)[::-1].copy()),
        scans / "labels" / f"{judge}.nii.gz",
    )
    for kind in ("images", "labels"):
        (scans / kind / f"{gone}.nii.gz").unlink()
    result = go_on()
    assert result.exit_code == 0, result.stderr
    assert f"Warning: The image of '{changed}' has changed since the run started." in result.stderr
    assert f"Warning: The labels of '{judge}' have changed since the run started." in result.stderr
    assert (
        f"Warning: The scan '{gone}' was used when the run started, but is no longer in the data set."
        in result.stderr
    )
    assert "3 scans for training (3 pairs)" in result.stdout
    assert read_card(run / "last.safetensors")["fine_tuning_dataset"]["scans"]["train"] == 3


def test_another_scan_to_align_with_is_told(copy, go_on):
    told = division(copy[1])
    (copy[1] / "split.json").write_text(
        json.dumps(told | {"reference": learner(copy[1])}), encoding="utf-8"
    )
    (begun,) = events_of(go_on("--json"), "begin")
    assert any(f"now aligned with '{told['reference']}'" in words for words in begun["problems"])


def test_a_run_whose_scan_to_align_with_is_gone_ends_with_its_name(copy, go_on, plain):
    reference = division(copy[1])["reference"]
    for kind in ("images", "labels"):
        (copy[0] / kind / f"{reference}.nii.gz").unlink()
    assert plain(go_on()).search(
        f"The scan '{reference}', with which the run aligned all others.*not in the data set"
    )


def test_a_data_set_that_was_moved_is_gone_on_with_and_another_one_is_not(
    copy, go_on, plain, tmp_path
):
    scans, run = copy
    moved = scans.rename(tmp_path / "moved")
    assert plain(go_on()).search("give its new path: shmoareg fine-tune DATASET --out")
    other = shutil.copytree(moved, tmp_path / "other")
    name = learner(run)
    shutil.copy(
        moved / "images" / f"{learner(run, but=name)}.nii.gz", other / "images" / f"{name}.nii.gz"
    )
    refused = go_on("--quiet", dataset=(other,))
    assert (
        refused.exit_code == 1
        and f"other is not a moved copy of it: The image of '{name}'" in refused.stderr
    )
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["dataset"]["path"] == str(
        scans
    )
    assert events_of(go_on("--json", dataset=(moved,)), "step")[-1]["step"] == 4
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["dataset"]["path"] == str(
        moved
    )


def test_a_place_is_the_same_by_another_way_there(copy, go_on, small, tmp_path):
    (tmp_path / "link").symlink_to(copy[0], target_is_directory=True)
    (tmp_path / "linked.safetensors").symlink_to(small)
    result = go_on(
        "--from", tmp_path / "linked.safetensors", "--json", dataset=(tmp_path / "link",)
    )
    assert events_of(result, "begin")
    assert json.loads((copy[1] / "run.json").read_text(encoding="utf-8"))["dataset"]["path"] == str(
        copy[0]
    )


def test_a_rate_that_falls_to_its_end_is_not_begun_again_for_more_steps(
    begin, shmoareg, plain, tmp_path
):
    out = tmp_path / "run"
    done = shmoareg(*begin(out, *FEW[:-1], "--affine", "none", "--final-rate", 1e-5, "--quiet"))
    assert done.exit_code == 0, done.stderr
    assert plain(shmoareg("fine-tune", "--out", out, "--resume", "--steps", 4)).search(
        "falls to 1e-05 over 2 steps"
    )
    assert shmoareg("fine-tune", "--out", out, "--resume", "--steps", 2, "--quiet").exit_code == 0


def test_other_validation_pairs_begin_the_best_anew(copy, go_on):
    state = go_on("--validation-pairs", 1, "--validate-every", 4, "--json")
    (begun,) = events_of(state, "begin")
    assert begun["best"] is None and any("not comparable" in words for words in begun["problems"])
    assert [look["best"] for look in events_of(state, "validation")] == [True]
    assert read_card(copy[1] / "best.safetensors")["fine_tuning_steps"] == 4


def test_a_best_whose_weights_are_gone_is_forgotten(copy, go_on):
    (copy[1] / "best.safetensors").unlink()
    result = go_on("--json")
    (begun,) = events_of(result, "begin")
    assert begun["best"] is None and any(
        "best.safetensors is missing" in words for words in begun["problems"]
    )
    assert (copy[1] / "best.safetensors").is_file() and events_of(result, "validation")[-1]["best"]


def test_last_weights_that_are_older_than_the_state_are_written_again(copy, go_on):
    last = copy[1] / "last.safetensors"
    card = read_card(last)
    save_network(load_network(last), last, card=card | {"fine_tuning_steps": 1})
    assert events_of(go_on("--json", steps=2), "end")[0]["step"] == 2
    assert read_card(last)["fine_tuning_steps"] == 2
    written = os.stat(last).st_mtime_ns
    assert events_of(go_on("--json", steps=2), "end") and os.stat(last).st_mtime_ns == written


def test_where_nothing_learned_is_better_than_the_start_everything_says_so(
    begin, shmoareg, tmp_path
):
    out = tmp_path / "run"
    result = shmoareg(*begin(out, *FEW[:-1], "--affine", "none", "--learning-rate", 1e-30))
    assert result.exit_code == 0, result.stderr
    assert (
        "By validation, nothing was better than the initial weights" in result.stdout
        and "Use them" not in result.stdout
    )
    shown = shmoareg("runs", "show", out)
    assert "the initial weights of the run: nothing was better" in " ".join(shown.stdout.split())
    assert "initial weights" in read_card(out / "best.safetensors")["fine_tuning_note"]
    assert (
        "no step of the run was better" in read_card(out / "last.safetensors")["fine_tuning_note"]
    )


def test_a_run_that_nobody_judges_is_warned_of(begin, shmoareg, tmp_path):
    result = shmoareg(*begin(tmp_path / "run", *FEW[:-1], "--affine", "none", "--split", "5/0/0"))
    assert (
        result.exit_code == 0
        and "Warning: There is no validation, and no best weights are saved" in result.stderr
    )
    wished = shmoareg(
        *begin(
            tmp_path / "wished",
            *FEW[:-1],
            "--affine",
            "none",
            "--split",
            "5/0/0",
            "--validate-every",
            0,
        )
    )
    assert "There is no validation" not in wished.stderr


def test_scans_are_aligned_with_one_that_learns(scans, begin, shmoareg, tmp_path):
    mine = shutil.copytree(scans, tmp_path / "scans")
    choice = DatasetChoice(str(mine), images="images/*.nii.gz", labels="labels/*.nii.gz")
    split = split_dataset(choice.open(), "4/2/0", 0)
    for name in split.validation:  # these would be chosen, as they have most labels
        labels = read_image(mine / "labels" / f"{name}.nii.gz")
        values = np.asarray(labels.values).copy()
        values[:3, :3, :3] = values.max() + 1
        write_image(labels.with_values(values), mine / "labels" / f"{name}.nii.gz")
    words = [str(mine) if word == str(scans) else word for word in begin(tmp_path / "run", *FEW)]
    assert events_of(shmoareg(*words), "end")
    assert division(tmp_path / "run")["reference"] in split.train


def test_it_learns_at_the_size_of_the_settings_and_validates_at_that_of_the_weights(
    begin, shmoareg, tmp_path
):
    result = shmoareg(*begin(tmp_path / "run", *FEW, "--affine", "none", "--size", 12))
    (begun,) = events_of(result, "begin")
    assert max(begun["shape"]) == 12
    shown = read_image(tmp_path / "run" / "preview" / "fixed.nii.gz")
    assert max(shown.grid.shape) == 16
    assert read_rows(tmp_path / "run" / "validation.csv")


@pytest.mark.parametrize(("was", "used"), [(True, True), (False, False)])
def test_a_run_from_before_there_was_auto_goes_on_in_the_precision_it_began_in(
    was, used, copy, go_on
):
    told = json.loads((copy[1] / "run.json").read_text(encoding="utf-8"))
    assert told["settings"]["bfloat16"] == "auto"
    told["settings"]["bfloat16"] = was
    (copy[1] / "run.json").write_text(json.dumps(told), encoding="utf-8")
    (begun,) = events_of(go_on("--json", steps=3), "begin")
    assert begun["bfloat16"] == {"used": used, "why": "as requested"}
    assert begun["settings"]["bfloat16"] == ("on" if used else "off")
    card = read_card(copy[1] / "last.safetensors")
    assert (card["fine_tuning_steps"], card["fine_tuning_in_bfloat16"]) == (3, used)
