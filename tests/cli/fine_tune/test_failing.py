"""What goes wrong in the middle of a run: a full disk, a loss that is not finite, files that go."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from napari_shmoareg.datasets import pairs, prepared
from napari_shmoareg.io import load_network, read_card
from napari_shmoareg.training import trainer
from napari_shmoareg.training.logs import StepTable, read_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", ["a state", "the move of a state", "the best weights", "a row"])
def test_a_full_disk_ends_a_run_that_is_kept_and_goes_on(
    what, begin, unbroken, same_runs, shmoareg, tmp_path, monkeypatch, plain
):
    out, count = tmp_path / "run", {"n": 0}
    names = {
        "a state": "training",
        "the best weights": "best",
        "the move of a state": "training",
        "a row": "metrics",
    }
    at = 2 if what == "the best weights" else 3  # states are of the steps 0, 5, 6 ...
    full = OSError(errno.ENOSPC, "No space left on device")

    def is_time(name: str, at: int) -> bool:
        count["n"] += names[what] in name
        return names[what] in name and count["n"] == at

    write, replace = Path.write_bytes, os.replace

    def write_half(path, data):
        if is_time(path.name, at):
            write(path, data[: len(data) // 2])
            raise full
        return write(path, data)

    def no_move(source, target, **more):
        if is_time(Path(target).name, at):
            raise full
        return replace(source, target, **more)

    def no_row(table, rows):
        if is_time(table._path.name, 8):
            table._file.write("8,0.0")
            table._file.flush()
            raise table._refusal(full)
        add(table, rows)

    add = StepTable.add
    with monkeypatch.context() as disk:
        if what == "a row":
            disk.setattr(StepTable, "add", no_row)
        elif what == "the move of a state":
            disk.setattr(os, "replace", no_move)
        else:
            disk.setattr(Path, "write_bytes", write_half)
        said = plain(shmoareg(*begin(out, "--quiet")))
    assert said.search("disk is full")
    saved = {"a state": 5, "the move of a state": 5, "the best weights": r"\d+", "a row": 6}[what]
    assert said.search(f"state of step {saved} in .* is intact.*--resume")
    assert not [
        entry.name for entry in out.iterdir() if "partial" in entry.name or entry.name == "lock"
    ]
    assert shmoareg("fine-tune", "--out", out, "--resume", "--quiet").exit_code == 0
    assert same_runs(out, unbroken)


def test_a_loss_that_is_not_finite_ends_a_run_with_the_names_of_the_scans(
    begin, shmoareg, tmp_path
):
    out = tmp_path / "run"
    result = shmoareg(*begin(out, "--learning-rate", 1e30, "--json"))
    assert result.exit_code == 1
    error, end = (json.loads(line) for line in result.stdout.splitlines()[-2:])
    assert error["event"] == "error" and "became nan at step 2, on pair" in error["text"]
    (pair,) = {
        tuple(row["pair"].split(" and "))
        for row in [{"pair": error["text"].split("(")[1].split(")")[0]}]
    }
    assert set(pair) <= set("abcdef")
    assert f"--from {out / 'best.safetensors'} with a lower --learning-rate" in error["text"]
    assert str(out / "last.safetensors") in error["text"] and "good" not in error["text"]
    assert end["event"] == "end" and end["reason"] == "failed"
    assert result.stderr.count("Error: ") == 1 and error["text"] in result.stderr
    assert read_card(out / "last.safetensors")["fine_tuning_steps"] == 1
    assert load_network(out / "best.safetensors").config.size == 16


def test_a_file_that_goes_in_the_middle_of_a_run_is_told_and_the_run_goes_on(
    scans, begin, shmoareg, tmp_path, monkeypatch
):
    mine = shutil.copytree(scans, tmp_path / "scans")
    for kept in (prepared, pairs):
        monkeypatch.setattr(
            kept, "MAX_CACHED_BYTES", 0
        )  # as with scans that do not all fit into memory
    out = tmp_path / "run"
    noted, lost = trainer.Trainer._record_step, []

    def lose_one(self, step):
        if step.step == 2:
            lost.append(self._data.train.names[0][0])
            (mine / "images" / f"{lost[0]}.nii.gz").unlink()
            shutil.rmtree(out / "prepared")
        yield from noted(self, step)

    monkeypatch.setattr(trainer.Trainer, "_record_step", lose_one)
    words = [
        str(mine) if word == str(scans) else word for word in begin(out, "--validate-every", 0)
    ]
    result = shmoareg(*words, "--steps", 10)
    assert result.exit_code == 0, result.stderr
    skipped = read_rows(out / "skipped.csv")
    assert skipped and all(
        int(row["step"]) > 2 and lost[0] in row["pair"].split(" and ") for row in skipped
    )
    assert all(
        lost[0] not in row["pairs"].split(" and ") for row in read_rows(out / "metrics.csv")[2:]
    )
    assert f"Warning: the pair {skipped[0]['pair']} is left out: " in result.stderr
    assert len(read_rows(out / "metrics.csv")) == 10
    shutil.rmtree(out / "prepared")
    again = shmoareg("fine-tune", "--out", out, "--resume", "--steps", 13)
    assert again.exit_code == 0, again.stderr
    assert any(
        "could be used when the run began" in row["why"] for row in read_rows(out / "skipped.csv")
    )
