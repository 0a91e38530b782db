"""``shmoareg inspect --pairs`` on a list of three pairs: the list, the command, what it made."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_shmoareg.cli import inspect_pairs
from napari_shmoareg.cli.app import app
from napari_shmoareg.cli.inspect_pairs import InspectedPair
from napari_shmoareg.cli.options import CommandRequest
from napari_shmoareg.cli.pair_list import file_states
from napari_shmoareg.io import write_image


def _listed(folder, pair):
    """A list of three pairs: as they are; the other way round, without labels; a shifted fixed
    image.
    """
    third = pair.fixed.with_values(np.roll(pair.fixed.values, 3, axis=0))
    for name, volume in (pair.volumes | {"third": third}).items():
        write_image(volume, folder / f"{name}.nii.gz")
    path = folder / "pairs.csv"
    path.write_text(
        "moving,fixed,moving_labels,fixed_labels\n"
        "moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz\n"
        "fixed.nii.gz,moving.nii.gz,,\n"
        "moving.nii.gz,third.nii.gz,,\n",
        encoding="utf-8",
    )
    return path


def _words(path, weights):
    options = ("--affine", "none", "--weights", weights, "--out", path.parent / "out")
    return [str(word) for word in ("inspect", "--pairs", path, *options)]


@contextmanager
def _watched():
    """Every registration that is made meanwhile, in order."""
    made = []

    def register(self, pair, network, report):
        made.append(original(self, pair, network, report))
        return made[-1]

    original = CommandRequest.register
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandRequest, "register", register)
        yield made


@pytest.fixture(scope="session")
def inspected(phantoms, weights, tmp_path_factory):
    """The command on the whole list, once, for tests that only read: what it said, what it
    registered, its folder.
    """
    path = _listed(tmp_path_factory.mktemp("inspected"), phantoms)
    with _watched() as made:
        result = CliRunner().invoke(app, _words(path, weights), prog_name="shmoareg")
    assert result.exit_code == 0, result.stderr
    return SimpleNamespace(
        result=result, registrations=made, out=path.parent / "out", words=_words(path, weights)
    )


@pytest.fixture
def listed(files, pair):
    """The list, anew for each test."""
    return _listed(files.folder, pair)


@pytest.fixture
def words(listed, weights):
    """The command that all of these tests give."""
    return _words(listed, weights)


@pytest.fixture
def registered_pairs():
    """Every registration of the test, in order."""
    with _watched() as made:
        yield made


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are not written: what is tested is something else, and they take most of the time."""
    monkeypatch.setattr(inspect_pairs, "_write_figures", lambda *figures: None)


@pytest.fixture(scope="session")
def rows_of():
    """Read the rows of a CSV file: ``rows_of(path)``."""

    def read(path):
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def as_inspected(inspected, monkeypatch):
    """No pair is registered: each comes to what it came to in `inspected`, at once."""

    def at_once(listed, number, *asked):
        row = json.loads(
            (inspected.out / "pairs" / f"{number + 1:04d}.json").read_text(encoding="utf-8")
        )
        files = file_states(inspect_pairs._used(listed.files[number]))
        return replace(InspectedPair.of_row(row), files=files)

    monkeypatch.setattr(inspect_pairs, "_inspected", at_once)
