"""The command as a user runs it, with files and an untrained network of the smallest preset."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from napari_shmoareg.cli.app import app
from napari_shmoareg.io import save_network, write_image


@dataclass
class Files:
    """The phantom pair on disk."""

    folder: Path
    moving: Path
    fixed: Path
    moving_labels: Path
    fixed_labels: Path

    def write(self, volume, name: str) -> Path:
        """Write one more image into the same folder."""
        write_image(volume, self.folder / name)
        return self.folder / name


def write_files(pair, folder: Path) -> Files:
    """Moving, fixed and their labels as NIfTI files in a folder."""
    paths = {
        name: folder / f"{name}.nii.gz"
        for name in ("moving", "fixed", "moving_labels", "fixed_labels")
    }
    for name, path in paths.items():
        write_image(getattr(pair, name), path)
    return Files(folder, **paths)


@pytest.fixture
def files(pair, tmp_path) -> Files:
    """The phantom pair on disk, anew for each test."""
    return write_files(pair, tmp_path)


@pytest.fixture(scope="session")
def weights(lively_network, tmp_path_factory) -> Path:
    """A weights file of a tiny, untrained network that moves voxels by some millimetres."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_network(lively_network(0.03), path, card={"title": "untrained", "steps": 0})
    return path


@pytest.fixture(scope="session")
def folding_weights(lively_network, tmp_path_factory) -> Path:
    """A weights file of such a network that moves voxels so wildly that they fold."""
    path = tmp_path_factory.mktemp("folding") / "folding.safetensors"
    save_network(lively_network(0.1), path, card={"title": "untrained", "steps": 0})
    return path


@pytest.fixture
def unigradicon_file(monkeypatch, tmp_path) -> Path:
    """The weights of a stand-in for uniGradICON's network, which moves nothing, and its package."""
    from napari_shmoareg.evaluation import baselines

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.register_buffer("identity_map", torch.zeros(1, 3, 8, 8, 8), persistent=False)

        def forward(self, moving, fixed):
            return lambda positions: positions + self.weight

    package = tmp_path / "packages" / "icon_registration"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "networks.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    for module in ("icon_registration", "icon_registration.networks"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(baselines, "SIDE", 8)
    monkeypatch.setattr(baselines, "build_network", Still)
    torch.save(Still().state_dict(), tmp_path / "unigradicon.trch")
    yield tmp_path / "unigradicon.trch"
    for module in [name for name in sys.modules if name.partition(".")[0] == "icon_registration"]:
        del sys.modules[module]  # the stand-in; monkeypatch puts back a real one


@pytest.fixture
def shmoareg(monkeypatch, tmp_path):
    """Run the command in an empty working folder: ``shmoareg("register", a, b, "--out", c)``."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="shmoareg")

    return run


@pytest.fixture
def register(shmoareg, files, weights):
    """Register the pair, or another, by the tiny weights: ``register("--affine none --refine 2")``
    gives the result and the folder.
    """

    def run(options: str = "", *more, moving=None, fixed=None, by=weights, out="out"):
        folder = files.folder / out
        words = (moving or files.moving, fixed or files.fixed, "--weights", by, "--out", folder)
        return shmoareg("register", *words, *options.split(), *more), folder

    return run


@pytest.fixture(scope="session")
def read_json():
    """Read a JSON file, for example a ``report.json``: ``read_json(path)``."""
    return lambda path: json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def registered(phantoms, weights, tmp_path_factory) -> Path:
    """A registration folder made by the command; not to be changed."""
    folder = tmp_path_factory.mktemp("registered")
    files = write_files(phantoms, folder)
    words = [
        "register",
        files.moving,
        files.fixed,
        "--weights",
        weights,
        "--out",
        folder / "result",
    ]
    words += ["--moving-labels", files.moving_labels, "--fixed-labels", files.fixed_labels]
    words += "--no-figures --quiet --keep last".split()
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return folder / "result"


@pytest.fixture
def plain():
    """The one paragraph that a failure said, to be searched; checks that it is one, and that
    nothing else came.
    """

    class Said(str):
        def search(self, pattern: str):
            assert re.search(pattern, self), f"{pattern!r} is not in: {self}"
            return True

    def said(result) -> Said:
        assert result.exit_code == 1, (result.exit_code, result.stdout, result.stderr)
        assert result.stdout == ""
        before, mark, text = result.stderr.partition("Error: ")
        assert mark and "Traceback" not in result.stderr and "bug" not in text, result.stderr
        assert all(
            line.endswith("...") or line.startswith("Warning: ") for line in before.splitlines()
        ), before
        assert "\n\n" not in text.strip()
        return Said(text.replace("\n", " "))

    return said
