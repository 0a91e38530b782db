"""``shmoareg fine-tune``: learning on a list of pairs."""

from __future__ import annotations

import csv
import os
import signal
import sys

import nibabel
import numpy as np
import pytest
import torch

from napari_shmoareg.cli.fine_tune import fine_tune
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.checkpoint import load_network, read_card


@pytest.fixture
def listed(files):
    """A list of two pairs, one with labels; names relative to the list."""
    path = files.folder / "pairs.csv"
    path.write_text(
        "moving,fixed,moving_labels,fixed_labels\n"
        "moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz\n"
        "fixed.nii.gz, moving.nii.gz,,\n"
    )
    return path


def test_the_weights_change_and_the_card_says_how(listed, files, weights, shmoareg):
    out, log = files.folder / "mine.safetensors", files.folder / "losses.csv"
    result = shmoareg(
        "fine-tune",
        "--pairs",
        listed,
        "--from",
        weights,
        "--out",
        out,
        "--steps",
        3,
        "--affine",
        "none",
        "--overlap",
        0.5,
        "--log",
        log,
    )
    assert result.exit_code == 0, result.stderr
    assert str(out) in result.stdout
    before, after = (load_network(path).state_dict() for path in (weights, out))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    card = read_card(out)
    assert card["fine_tuned_from"] == str(weights) and card["fine_tuning_steps"] == 3
    assert card["title"] == "untrained"
    with log.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_it_begins_with_the_weights_that_fit_the_device(listed, files, shmoareg, monkeypatch, plain):
    def chosen(asked, device="cpu"):
        raise InputError(f"asked for {asked} on {device}")

    module = sys.modules[fine_tune.__module__]
    monkeypatch.setattr(module, "chosen_device", lambda asked: "cuda")
    monkeypatch.setattr(module, "chosen_weights", chosen)
    result = shmoareg("fine-tune", "--pairs", listed, "--out", files.folder / "o.safetensors")
    assert plain(result).search("None on cuda")


def test_ctrl_c_keeps_what_was_learned(listed, files, weights, shmoareg, monkeypatch):
    from napari_shmoareg.engine import fine_tuning

    steps_of = fine_tuning.fine_tune

    def interrupted(*arguments, **more):
        for step in steps_of(*arguments, **more):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    monkeypatch.setattr(fine_tuning, "fine_tune", interrupted)
    out = files.folder / "mine.safetensors"
    result = shmoareg(
        "fine-tune", "--pairs", listed, "--from", weights, "--out", out, "--steps", 50, "--affine", "none"
    )
    assert result.exit_code == 130
    assert "after 2 of 50 steps" in result.stderr
    assert read_card(out)["fine_tuning_steps"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("moving,fixed\n", "lists no pair"),
        ("a,b\n1,2\n", "no column fixed and moving"),
        ("moving,fixed\nmoving.nii.gz,\n", "line 2.*'fixed' is empty"),
        ("moving,fixed\nmoving.nii.gz,gone.nii.gz\n", "line 2.*gone.nii.gz"),
        ("", "no column"),
    ],
)
def test_a_bad_list_is_refused(text, says, files, weights, shmoareg, plain):
    path = files.folder / "bad.csv"
    path.write_text(text)
    out = files.folder / "mine.safetensors"
    assert plain(shmoareg("fine-tune", "--pairs", path, "--from", weights, "--out", out)).search(says)
    assert not out.exists()


@pytest.mark.parametrize(("out", "says"), [("mine.pt", "safetensors"), ("gone/mine.safetensors", "does not exist")])
def test_a_place_that_cannot_be_written_is_refused_at_once(out, says, listed, files, weights, shmoareg, plain):
    result = shmoareg("fine-tune", "--pairs", listed, "--from", weights, "--out", files.folder / out)
    assert plain(result).search(says)


def test_a_setting_out_of_range_is_refused(listed, files, weights, shmoareg, plain):
    out = files.folder / "mine.safetensors"
    result = shmoareg("fine-tune", "--pairs", listed, "--from", weights, "--out", out, "--learning-rate", "-1")
    assert plain(result).search("learning_rate must be above 0")


def test_one_volume_of_4d_images_is_learned_from(listed, files, pair, weights, shmoareg, plain):
    stack = np.stack([pair.moving.values] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, pair.moving.grid.affine), files.moving)
    out = files.folder / "mine.safetensors"
    arguments = ("fine-tune", "--pairs", listed, "--from", weights, "--out", out, "--steps", 1, "--affine", "none")
    assert plain(shmoareg(*arguments)).search("--channel 0")
    assert shmoareg(*arguments, "--channel", 1).exit_code == 0
