"""Training, validation and test scans, split by subject; split.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.datasets.dataset import Dataset
from napari_shmoareg.datasets.pairs import Names
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import writing
from napari_shmoareg.io.untrusted import read_object

PARTS = ("train", "validation", "test")
SHARES = "70%/15%/15%"  # Ours: the default
_FORM = "three counts of subjects such as 60/10/10, three shares such as 70%/15%/15%, or auto"


@dataclass(frozen=True)
class Split:
    """Names of scans by part; no subject stands in two parts.

    Attributes
    ----------
    train, validation, test : tuple of str
    seed : int
        That drew it.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return {part: list(getattr(self, part)) for part in PARTS} | {"seed": self.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """The split that `to_dict` gave.

        Raises
        ------
        InputError
            If something else was given.
        """
        parts = [values.get(part) for part in PARTS] if isinstance(values, Mapping) else [None]
        named = all(
            isinstance(p, list | tuple) and all(isinstance(name, str) for name in p) for p in parts
        )
        if not named or not isinstance(values.get("seed"), int):
            raise InputError(
                f"A split has the lists {', '.join(PARTS)} of names of scans and a whole number"
                f" 'seed'; got {values!r}."
            )
        train, validation, test = (tuple(values[part]) for part in PARTS)
        return cls(train, validation, test, values["seed"])


def split_dataset(dataset: Dataset, split: str = "auto", seed: int = 0) -> Split:
    """Divide the subjects of a data set.

    Ours: the lot is drawn over the subjects in the order of their names, so it depends on the seed
    and these names alone.  A share gives two subjects at least (one is no pair), or none where
    there are too few: validation is served before test, and half of the subjects stay in train.

    Parameters
    ----------
    dataset : Dataset
    split : str
        "60/10/10": so many subjects train, validate and test, the rest stays out; "70%/15%/15%";
        "auto": as the data set says itself, otherwise 70%/15%/15%.
    seed : int

    Raises
    ------
    InputError
        If the form is another one, there are too few subjects, a part gives no pair, or the data
        set's own parts have one subject on two sides.
    """
    split = split.strip()
    if split == "auto" and dataset.parts is not None:
        return _own_parts(dataset, seed)
    words = (SHARES if split == "auto" else split).split("/")
    subjects = dataset.subjects
    numbers = (
        _shares(dataset, words, split) if words[0].strip().endswith("%") else _counts(words, split)
    )
    total = sum(numbers)
    if total > len(subjects):
        raise InputError(
            f"A split of {split} needs {total} subjects; {dataset.root} has {len(subjects)}"
            f" ({len(dataset.scans)} scans). Ask for fewer, or give shares such as 70%/15%/15%."
        )
    order = np.random.default_rng(seed).permutation(len(subjects))
    names = list(subjects)
    drawn: list[tuple[str, ...]] = []
    start = 0
    for number in numbers:
        chosen = sorted(names[n] for n in order[start : start + number])
        drawn.append(tuple(scan for subject in chosen for scan in subjects[subject]))
        start += number
    return _checked(dataset, Split(drawn[0], drawn[1], drawn[2], seed), split)


def _counts(words: list[str], split: str) -> tuple[int, int, int]:
    if len(words) != 3 or not all(re.fullmatch(r"\s*\d+\s*", word) for word in words):
        raise InputError(f"A split is {_FORM}; got '{split}'.")
    train, validation, test = (int(word) for word in words)
    if train < 1:
        raise InputError(f"At least one subject has to train; got the split '{split}'.")
    return train, validation, test


def _shares(dataset: Dataset, words: list[str], split: str) -> tuple[int, int, int]:
    if len(words) != 3 or not all(re.fullmatch(r"\s*\d+(\.\d+)?\s*%\s*", word) for word in words):
        raise InputError(f"A split is {_FORM}; got '{split}'.")
    train, validation, test = (float(word.strip().rstrip("% ")) / 100 for word in words)
    if train <= 0 or train + validation + test > 1 + 1e-9:
        raise InputError(
            f"The shares of a split add up to 100 % at most, and train has one; got '{split}'."
        )
    count = len(dataset.subjects)
    least = 1 if _within_subjects(dataset) else 2
    judged = max(least, round(validation * count)) if validation else 0
    unseen = max(least, round(test * count)) if test else 0
    if judged + unseen > max(count / 2, (validation + test) * count):
        unseen = 0
    if judged > max(count / 2, validation * count):
        judged = 0
    exact = abs(train + validation + test - 1) < 1e-9
    rest = count - judged - unseen
    return (rest if exact else min(rest, round(train * count))), judged, unseen


def _within_subjects(dataset: Dataset) -> bool:
    """Whether every listed pair is of one subject."""
    if dataset.pairs is None:
        return False
    whose = {scan.name: scan.subject for scan in dataset.scans}
    return all(whose.get(moving) == whose.get(fixed) for moving, fixed in dataset.pairs)


def _own_parts(dataset: Dataset, seed: int) -> Split:
    parts = dataset.parts or {}
    whose = {scan.name: scan.subject for scan in dataset.scans}
    side: dict[str, str] = {}
    for part in PARTS:
        for name in parts.get(part, ()):
            if name not in whose:
                continue
            if side.setdefault(whose[name], part) != part:
                raise InputError(
                    f"{dataset.root} puts the subject '{whose[name]}' into {side[whose[name]]} and"
                    f" into {part} (scan '{name}'). Nobody may stand on both sides: mend its list,"
                    f" or give a split such as {SHARES}."
                )
    train, validation, test = (
        tuple(sorted(n for n in parts.get(part, ()) if n in whose)) for part in PARTS
    )
    return _checked(dataset, Split(train, validation, test, seed), "auto")


def _torn(dataset: Dataset, drawn: Split) -> str:
    """What a split did to the listed pairs, in words."""
    if dataset.pairs is None:
        return ""
    sides = {name: part for part in PARTS for name in getattr(drawn, part)}
    torn = sum(sides.get(moving) != sides.get(fixed) for moving, fixed in dataset.pairs)
    words = (
        f" {torn} of its {len(dataset.pairs)} listed pairs are torn: their two scans stand in"
        " different parts."
    )
    return (
        f"{words} Where pairs are fewer than scans, those that a pair joins count as one subject."
        if torn
        else ""
    )


def _checked(dataset: Dataset, drawn: Split, split: str) -> Split:
    """Refuse a part of which no pair can be made."""
    for part in PARTS:
        names = getattr(drawn, part)
        if (names or part == "train") and not dataset.ordered_pairs(names):
            have = f"{len(dataset.subjects)} subjects with {len(dataset.scans)} scans"
            raise InputError(
                f"With the split '{split}', no pair can be made of the {len(names)} scans of"
                f" {part}. {dataset.root} has {have}.{_torn(dataset, drawn)} Give {part} more"
                f" subjects{'' if part == 'train' else ', or 0'}."
            )
    return drawn


Print = tuple[int, str, str | None]  # bytes of the image, sha256 of the image and of its labels

__all__ = ["PARTS", "Division", "Print", "read_division", "write_division"]


@dataclass(frozen=True)
class Division:
    """A split, and what of it cannot be used.

    Attributes
    ----------
    split : Split
    left_out : mapping of str to str
        Scans that the check-up left out, and why.
    left_out_pairs : tuple of (moving, fixed)
        Pairs of usable scans that do not come together.
    files : mapping of str to Print
        What the files of the used scans were; empty where an earlier version wrote it.
    reference : str or None
        The scan that all others were aligned with.
    """

    split: Split
    left_out: Mapping[str, str]
    left_out_pairs: tuple[Names, ...] = ()
    files: Mapping[str, Print] = field(default_factory=dict)
    reference: str | None = None

    def used(self, part: str) -> list[str]:
        """The usable scans of a part."""
        return [name for name in getattr(self.split, part) if name not in self.left_out]


def write_division(path: Path, division: Division) -> None:
    """Write split.json.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    more: dict[str, object] = {
        "left_out": dict(division.left_out),
        "left_out_pairs": [list(p) for p in division.left_out_pairs],
    }
    more |= {
        "reference": division.reference,
        "files": {name: list(seen) for name, seen in division.files.items()},
    }
    with writing(path) as temporary:
        temporary.write_text(
            json.dumps(division.split.to_dict() | more, indent=2) + "\n", encoding="utf-8"
        )


def read_division(path: Path) -> Division:
    """Read split.json.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        found = read_object(path, "which scans learn and which judge")
        left_out = {str(name): str(why) for name, why in found.get("left_out", {}).items()}
        pairs = tuple(
            (str(moving), str(fixed)) for moving, fixed in found.get("left_out_pairs", ())
        )
        files = {
            str(name): (int(size), str(i), m)
            for name, (size, i, m) in found.get("files", {}).items()
        }
        return Division(Split.from_dict(found), left_out, pairs, files, found.get("reference"))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged ({error}): it tells which scans learn and which judge. Put back a"
            " copy of it, or begin another run in another folder, from the weights in this one."
        ) from error
