"""Every code block and command of the README runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_shmoareg.io import sample_pair, write_image

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if line.startswith("shmoareg ")
]
# What takes minutes or needs a user's data runs shorter, on small data; everything else runs as
# written.
SHORTER = {"500": "2", "1000": "3"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that the README talks of, from the built-in pair."""
    folder = tmp_path_factory.mktemp("readme")
    pair = sample_pair().pair
    write_image(pair.moving, folder / "moving.nii.gz")
    write_image(pair.fixed, folder / "fixed.nii.gz")
    write_image(pair.moving_labels, folder / "moving_labels.nii.gz")
    (folder / "pairs.csv").write_text(
        "moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8"
    )
    for place in ("IMAGES", "LABELMAPS"):
        (folder / place).mkdir()
    for number, role in enumerate(("moving", "fixed") * 3):  # six subjects: two learn, two judge
        write_image(getattr(pair, role), folder / "IMAGES" / f"{number}_image.nii.gz")
        write_image(getattr(pair, f"{role}_labels"), folder / "IMAGES" / f"{number}_labels.nii.gz")
    write_image(pair.fixed_labels, folder / "LABELMAPS" / "one.nii.gz")
    return folder


def test_the_readme_has_commands_and_code():
    assert len(COMMANDS) >= 6
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_runs(command, workplace, monkeypatch):
    from napari_shmoareg.cli.app import app

    monkeypatch.chdir(workplace)
    words = [SHORTER.get(word, word) for word in command]
    if "--minutes" in words:
        words[words.index("--minutes") + 1] = "0.01"
    if "--refine" in words:
        words[words.index("--refine") + 1] = "2"
    if words[0] == "demo":
        words += ["--refine", "2"]  # test_demo refines in full
    if words[0] == "pretrain":
        words += ["--recipe", "tiny"]
    if "fine-tune" in words and "--resume" not in words:
        words += ["--split", "2/2/2", "--size", "16"]
    new = "--resume" not in words and words[0] not in ("runs", "evaluate")
    for option in ("--out", "--run") if new else ():
        if option in words:
            shutil.rmtree(workplace / words[words.index(option) + 1], ignore_errors=True)
    if words[0] == "evaluate":
        words += ["--size", "32"]
    if "--controls" in words:
        words += ["--size", "32"]  # some twenty runs of the network
    if words[0] == "benchmark":
        # two processes instead of a few hundred
        words += ["--methods", "shmoareg,affine", "--pairs", "1"]
    result = CliRunner().invoke(app, words)
    expected = 130 if "--minutes" in words else 0  # which stops it before its last step
    assert result.exit_code == expected, result.output


def test_the_python_blocks_run_in_order(workplace, monkeypatch, capsys):
    if not (workplace / "result").exists():
        test_a_command_of_the_readme_runs(COMMANDS[1], workplace, monkeypatch)
    monkeypatch.chdir(workplace)
    names: dict = {}
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), names)
    assert np.isfinite(names["result"].warped.values).all()
    assert "decoder-2-x" in capsys.readouterr().out


def test_every_picture_of_the_readme_is_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert len(pictures) >= 6
    assert [name for name in pictures if not (Path(__file__).parents[1] / name).is_file()] == []
