"""What is evaluated: the data set's pairs, the method, its weights and settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_shmoareg.engine.peers import used_versions
from napari_shmoareg.engine.refinement import DEFAULT_SMOOTHNESS
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets import PairFiles, Split, choose_pairs, split_dataset
from napari_shmoareg.io.evaluation.folder import FORMAT
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.plan import DatasetChoice, read_plan
from napari_shmoareg.io.training_run.split_file import read_division
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.io.versions import versions
from napari_shmoareg.io.weights import checksum_of

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets import Dataset

PARTS = ("train", "validation", "test")
ALL = "all"
SETTINGS: dict[str, Any] = {
    "affine": "auto",
    "size": None,
    "diffeomorphic": None,
    "device": "auto",
    "refine": 0,
    "similarity": "auto",
    "contrast": "auto",
    "smoothness": DEFAULT_SMOOTHNESS,
    "surface": True,
    "definitions": False,
}
"""All that a method and its scoring take, as by default."""


@dataclass(frozen=True)
class Part:
    """Which scans of a data set are meant.

    Attributes
    ----------
    dataset : DatasetChoice
    name : str
        One of `PARTS`, or "all".
    split : str
        How it was divided, in words.
    scans : tuple of str or None
        Their names; None: all.
    """

    dataset: DatasetChoice
    name: str
    split: str
    scans: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RunChoice:
    """What a run of learning tells an evaluation.

    Attributes
    ----------
    part : Part
    weights : str or None
        The best it has so far; None if it has none yet.
    affine : str
        How its scans were aligned.
    """

    part: Part
    weights: str | None
    affine: str


def of_run(run: str | Path, part: str = "test") -> RunChoice:
    """The data set, a part of the split, and the best weights of a run of learning.

    Raises
    ------
    InputError
        If it is no run, or its split is not there yet.
    """
    folder = RunFolder(run)
    plan = read_plan(folder.told)
    if not folder.split.is_file():
        raise InputError(f"{folder.path} has no split yet (there is no {folder.split.name}): let the run begin first.")
    division = read_division(folder.split)
    names = tuple(name for one in (PARTS if part == ALL else (part,)) for name in division.used(one))
    left_out = sum(name in division.left_out for one in PARTS for name in getattr(division.split, one))
    scans = "one scan" if left_out == 1 else f"{left_out} scans"
    without = f", without {scans} that its check-up left out" if left_out else ""
    weights = None if folder.weights is None else str(folder.weights)
    return RunChoice(Part(plan.dataset, part, f"of the run {folder.path}{without}", names), weights, plan.run.affine)


def of_split(choice: DatasetChoice, dataset: Dataset, part: str, split: str | None, seed: int) -> Part:
    """A part of a data set, divided now.

    Raises
    ------
    InputError
        If it cannot be divided so.
    """
    if part == ALL:
        return Part(choice, ALL, "none")
    drawn: Split = split_dataset(dataset, split or "auto", seed)
    return Part(choice, part, f"{split or 'auto'} with the seed {seed}", getattr(drawn, part))


def pairs_of(dataset: Dataset, part: Part, count: int | None = None, seed: int = 1) -> list[tuple[str, str]]:
    """The pairs (moving, fixed) of a part: all that can be made of it, or so many, each scan as often as the others.

    Raises
    ------
    InputError
        If there is none, or a scan of the part is not in the data set.
    """
    names = dataset.names if part.scans is None else part.scans
    missing = sorted(set(names) - set(dataset.names))
    if missing:
        raise InputError(
            f"{len(missing)} scans of the part '{part.name}' are not in {dataset.root}, such as '{missing[0]}'. Was "
            "the data set moved or changed since? Give the one that it was."
        )
    pairs = dataset.ordered_pairs(names)
    if not pairs:
        raise InputError(
            f"No pair can be made of the {len(names)} scans of the part '{part.name}' of {dataset.root} (split: "
            f"{part.split}). Name another --part, or divide the data set otherwise."
        )
    if count is None or count >= len(pairs):
        return pairs
    files = [PairFiles(Path(moving), Path(fixed)) for moving, fixed in pairs]
    return [(str(chosen.moving), str(chosen.fixed)) for chosen in choose_pairs(files, count, seed)]


def evaluation_plan(
    part: Part, pairs: Sequence[tuple[str, str]], method: str, weights: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the numbers depend on, as it stands in evaluation.json.

    Parameters
    ----------
    part : Part
    pairs : sequence of (moving, fixed)
    method : str
        One of `napari_shmoareg.engine.peers.METHODS`.
    weights : str or None
        Shipped name or file; None for a method without.
    settings : mapping
        Those of `SETTINGS` that are otherwise.
    """
    known = None if weights is None else {"name": weights, "sha256": checksum_of(weights)}
    path = str(user_path(part.dataset.path).resolve())
    installed = {name: number for name, number in versions().items() if number is not None}
    plan = {
        "format": FORMAT,
        "dataset": {"path": path, "options": part.dataset.options},
        "part": part.name,
        "split": part.split,
        "method": method,
        "weights": known,
        "settings": SETTINGS | dict(settings),
        "pairs": [list(pair) for pair in pairs],
        "versions": installed | used_versions(method),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(plan))
    return as_read


def uses(pairs: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How often the least and the most used scan occur."""
    counts = Counter(name for pair in pairs for name in pair)
    return min(counts.values()), max(counts.values())
