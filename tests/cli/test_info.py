"""``shmoareg info`` and the help."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from napari_shmoareg import __version__
from napari_shmoareg.cli.app import COMMANDS
from napari_shmoareg.io import read_card, shipped_weights


def test_info_names_versions_device_and_weights(shmoareg):
    result = shmoareg("info")
    assert result.exit_code == 0, result.stderr
    for words in (__version__, torch.__version__, "SimpleITK", "CPU threads", "device"):
        assert words in result.stdout
    for name in shipped_weights():
        assert name in result.stdout
        assert read_card(name), "shipped weights without a card"


def test_info_and_the_report_name_the_same_libraries(shmoareg, registered):
    found = json.loads((registered / "report.json").read_text(encoding="utf-8"))["versions"]
    assert {"shmoareg", "python", "torch", "safetensors", "matplotlib"} <= set(found) and all(
        found.values()
    )
    versions, _, cards = shmoareg("info").stdout.partition("\nweights: ")
    assert cards
    rows = dict(line.split(maxsplit=1) for line in versions.splitlines() if len(line.split()) > 1)
    assert {name: rows[name].strip() for name in found if name != "python"} == {
        name: number for name, number in found.items() if name != "python"
    }
    assert rows["Python"].startswith(found["python"])


def test_info_comes_without_loading_pytorch_where_it_has_no_cuda():
    if torch.version.cuda is not None:
        pytest.skip("this build of PyTorch has CUDA: it is loaded to name the GPU")
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "napari_shmoareg", "info"], capture_output=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.decode().splitlines()}
    assert found.returncode == 0 and "napari_shmoareg.cli.app" in loaded and "torch" not in loaded


def test_info_shows_every_field_of_a_card(shmoareg, weights, monkeypatch):
    monkeypatch.setattr("napari_shmoareg.io.model_card.SHIPPED", weights.parent)
    result = shmoareg("info")
    assert "weights: tiny" in result.stdout and "untrained" in result.stdout


def test_the_version_is_told(shmoareg):
    assert shmoareg("--version").stdout == f"shmoareg {__version__}\n"


def test_the_command_alone_shows_its_commands(shmoareg):
    result = shmoareg()
    assert result.exit_code == 0
    assert all(name in result.stdout for name, *_ in COMMANDS)


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS])
def test_every_command_explains_itself_with_an_example(name, shmoareg):
    result = shmoareg(name, "--help")
    assert result.exit_code == 0
    assert f"Example: shmoareg {name}" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS])
def test_every_option_says_what_it_does(name, shmoareg):
    import typer.main

    from napari_shmoareg.cli.app import app

    command = typer.main.get_command(app).commands[name]
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


def test_an_unknown_command_is_a_misuse(shmoareg):
    result = shmoareg("regsiter")
    assert result.exit_code == 2
    assert "regsiter" in result.stderr and "shmoareg --help" in result.stderr
