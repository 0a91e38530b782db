"""Training, validation and test split by subject; reading and writing of split.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.datasets.dataset import PARTS, Dataset
from napari_shmoareg.datasets.pairs import Names
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.untrusted import read_object

SHARES = "70%/15%/15%"  # Ours: the default
_FORM = "three counts of subjects such as 60/10/10, three shares such as 70%/15%/15%, or auto"


@dataclass(frozen=True)
class Split:
    """Names of scans by part; no subject is in two parts.

    Attributes
    ----------
    train, validation, test : tuple of str
    seed : int
        Of the random split.
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
        """Rebuild from `to_dict`; refuse anything else."""
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
    """Split the subjects of a data set.

    Ours: subjects are drawn from a sorted list, so the split depends only on the seed and their
    names.  A share gives at least two subjects (one makes no pair), or none if there are too few:
    validation has priority over test, and half of the subjects stay in train.

    Parameters
    ----------
    dataset : Dataset
    split : str
        "60/10/10": numbers of subjects for train, validation and test, the rest is unused;
        "70%/15%/15%": shares; "auto": the data set's own split, otherwise 70%/15%/15%.
    seed : int

    Raises
    ------
    InputError
        If the form is invalid, there are too few subjects, a part gives no pair, or a subject is in
        two of the data set's own parts.
    """
    split = split.strip()
    if split == "auto" and dataset.parts is not None:
        return _own_parts(dataset, seed)
    subjects, numbers = dataset.subjects, _numbers(dataset, split)
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
    return _check_pairs(dataset, Split(drawn[0], drawn[1], drawn[2], seed), split)


def _numbers(dataset: Dataset, split: str) -> tuple[int, int, int]:
    """Numbers of subjects in the parts."""
    text = re.sub(r"\s*([/%])\s*", r"\1", SHARES if split == "auto" else split)
    if re.fullmatch(r"\d+/\d+/\d+", text):
        numbers = [int(word) for word in text.split("/")]
        if numbers[0] < 1:
            raise InputError(f"Train needs at least one subject; got the split '{split}'.")
        return numbers[0], numbers[1], numbers[2]
    if not re.fullmatch(r"{0}/{0}/{0}".format(r"\d+(\.\d+)?%"), text):
        raise InputError(f"A split is {_FORM}; got '{split}'.")
    train, validation, test = (float(word.rstrip("%")) / 100 for word in text.split("/"))
    if train <= 0 or train + validation + test > 1 + 1e-9:
        raise InputError(
            f"The shares of a split add up to at most 100 %, with train above 0; got '{split}'."
        )
    count = len(dataset.subjects)
    minimum = 1 if _within_subjects(dataset) else 2
    num_validation = max(minimum, round(validation * count)) if validation else 0
    num_test = max(minimum, round(test * count)) if test else 0
    if num_validation + num_test > max(count / 2, (validation + test) * count):
        num_test = 0
    if num_validation > max(count / 2, validation * count):
        num_validation = 0
    exact = abs(train + validation + test - 1) < 1e-9
    rest = count - num_validation - num_test
    return (rest if exact else min(rest, round(train * count))), num_validation, num_test


def _within_subjects(dataset: Dataset) -> bool:
    """Whether both scans of every listed pair are of one subject."""
    if dataset.pairs is None:
        return False
    subjects = {scan.name: scan.subject for scan in dataset.scans}
    return all(subjects.get(moving) == subjects.get(fixed) for moving, fixed in dataset.pairs)


def _own_parts(dataset: Dataset, seed: int) -> Split:
    parts = dataset.parts or {}
    subjects = {scan.name: scan.subject for scan in dataset.scans}
    side: dict[str, str] = {}
    for part in PARTS:
        for name in parts.get(part, ()):
            if name not in subjects:
                continue
            if side.setdefault(subjects[name], part) != part:
                raise InputError(
                    f"{dataset.root} puts the subject '{subjects[name]}' into"
                    f" {side[subjects[name]]} and into {part} (scan '{name}'). A subject must"
                    f" be in one part: correct the list, or give a split such as {SHARES}."
                )
    train, validation, test = (
        tuple(sorted(n for n in parts.get(part, ()) if n in subjects)) for part in PARTS
    )
    return _check_pairs(dataset, Split(train, validation, test, seed), "auto")


def _separated_pairs(dataset: Dataset, drawn: Split) -> str:
    """Sentences on the listed pairs that a split separates."""
    if dataset.pairs is None:
        return ""
    sides = {name: part for part in PARTS for name in getattr(drawn, part)}
    separated = sum(sides.get(moving) != sides.get(fixed) for moving, fixed in dataset.pairs)
    words = (
        f" {separated} of its {len(dataset.pairs)} listed pairs are separated: their scans are in"
        " different parts."
    )
    return (
        f"{words} With fewer pairs than scans, scans joined by a pair count as one subject."
        if separated
        else ""
    )


def _check_pairs(dataset: Dataset, drawn: Split, split: str) -> Split:
    """Check that every part has a pair."""
    for part in PARTS:
        names = getattr(drawn, part)
        if (names or part == "train") and not dataset.ordered_pairs(names):
            have = f"{len(dataset.subjects)} subjects with {len(dataset.scans)} scans"
            raise InputError(
                f"With the split '{split}', no pair can be made of the {len(names)} scans of"
                f" {part}. {dataset.root} has {have}.{_separated_pairs(dataset, drawn)} Give {part}"
                f" more subjects{'' if part == 'train' else ', or 0'}."
            )
    return drawn


# size of the image; SHA-256 of the image and of its labels
FileRecord = tuple[int, str, str | None]


@dataclass(frozen=True)
class Division:
    """A split, with the scans and pairs that cannot be used.

    Attributes
    ----------
    split : Split
    left_out : mapping of str to str
        Scans left out by the quality check, with the reason.
    left_out_pairs : tuple of (moving, fixed)
        Pairs of usable scans that cannot be aligned.
    files : mapping of str to Print
        Sizes and checksums of the used files; empty in files of an earlier version.
    reference : str or None
        The scan that all others were aligned with.
    """

    split: Split
    left_out: Mapping[str, str]
    left_out_pairs: tuple[Names, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    reference: str | None = None

    def used(self, part: str) -> list[str]:
        """The usable scans of a part."""
        return [name for name in getattr(self.split, part) if name not in self.left_out]


def write_division(path: Path, division: Division) -> None:
    """Write split.json."""
    values = asdict(division)
    text = json.dumps(values.pop("split") | values, indent=2)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def read_division(path: Path) -> Division:
    """Read split.json; refuse a damaged one."""
    try:
        found = read_object(path, "the split into training and validation scans")
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
            f"{path} is damaged ({error}); it holds the split into training and validation scans."
            " Restore a copy, or start a new run in another folder from the weights in this one."
        ) from error
