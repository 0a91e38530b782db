"""Lists of pairs in CSV or JSON; folders of images as pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from napari_shmoareg.datasets.dataset import PARTS, Dataset, DatasetChoice, Scan, make_scans
from napari_shmoareg.datasets.name_patterns import matching
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.io import read_pair
from napari_shmoareg.io.untrusted import is_there, names_input, read_csv, read_json, user_path

COLUMNS = ("moving", "fixed", "moving_labels", "fixed_labels", "landmarks")


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair; moving before fixed, labels and landmarks or None."""

    moving: Path
    fixed: Path
    moving_labels: Path | None = None
    fixed_labels: Path | None = None
    landmarks: Path | None = None


@dataclass(frozen=True)
class PairList(Sequence[VolumePair]):
    """Pairs that are read from their files on access and not cached.

    Parameters
    ----------
    files : tuple of PairFiles
    nan, channel : optional
        As for `read_pair`.
    """

    files: tuple[PairFiles, ...]
    nan: float | None = None
    channel: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> VolumePair: ...

    @overload
    def __getitem__(self, index: slice) -> PairList: ...

    def __getitem__(self, index: int | slice) -> VolumePair | PairList:
        """Read one pair, or slice the list."""
        if isinstance(index, slice):
            return PairList(self.files[index], self.nan, self.channel)
        entry = self.files[index]
        return read_pair(
            entry.moving,
            entry.fixed,
            entry.moving_labels,
            entry.fixed_labels,
            nan=self.nan,
            channel=self.channel,
        )


class Row(NamedTuple):
    """A pair of a list, with its place in the file for messages, and its part as written."""

    where: str
    files: PairFiles
    part: object


def read_rows(path: Path) -> list[Row]:
    """Read a CSV or JSON list of pairs; see `read_pair_list`."""
    columns = f"({', '.join(COLUMNS)}, part; only the first two are required)"
    if not path.is_file():
        raise InputError(
            f"There is no list of pairs {path}: a CSV file with the columns {columns} was expected."
        )
    lines: Iterable[tuple[str, Mapping[str, Any]]]
    if path.suffix.lower() == ".json":
        found = read_json(path, "a JSON list of pairs")
        found = found.get("pairs") if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise InputError(
                f"{path} contains no list of pairs: a list of objects such as {{'moving':"
                f" 'a.nii.gz', 'fixed': 'b.nii.gz'}} was expected, with the keys {columns}."
            )
        lines = [(f"pair {number}", row) for number, row in enumerate(found, start=1)]
    else:
        what = f"a list of pairs whose first line names its columns {columns}"
        table = read_csv(path, what, required=COLUMNS[:2])[1]
        lines = [(f"line {line}", row) for line, row in table]
    rows = []
    for place, row in lines:
        where = f"{path}, {place}"
        files = {column: _file(path.parent, where, column, row.get(column)) for column in COLUMNS}
        moving, fixed, *others = files.values()
        if moving is None or fixed is None:
            empty = "moving" if moving is None else "fixed"
            raise InputError(f"{where}: '{empty}' is empty; a file name was expected.")
        rows.append(Row(where, PairFiles(moving, fixed, *others), row.get("part")))
    if not rows:
        raise InputError(f"{path} lists no pair; at least one pair of file names was expected.")
    return rows


def _file(folder: Path, where: str, column: str, name: object) -> Path | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise InputError(f"{where}: '{column}' is {name!r}; a file name was expected.")
    if not name.strip():
        return None
    try:
        file = folder / user_path(name.strip())
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not is_there(file):
        raise InputError(f"{where}: there is no file {file}.")
    return file


@names_input
def read_pair_list(
    path: str | Path, *, nan: float | None = None, channel: int | None = None
) -> PairList:
    """Read a CSV or JSON list of pairs.

    Parameters
    ----------
    path : str or Path
        A CSV file with the columns moving, fixed and optionally moving_labels, fixed_labels and
        landmarks (see `read_landmarks`); or a JSON list of objects with the same keys.  Others are
        ignored.  File names are relative to the folder of the list.
    nan, channel : optional
        As for `read_pair`.

    Raises
    ------
    InputError
        If the list or a file in it is missing, a line is invalid, or no pair is listed.
    """
    return PairList(tuple(row.files for row in read_rows(user_path(path))), nan, channel)


def read_folder(
    folder: str | Path, images: str, labels: str | None = None
) -> tuple[PairFiles, ...]:
    """List all ordered pairs of the images of a folder, sorted by name.

    Parameters
    ----------
    folder : str or Path
    images : str
        Pattern of images, such as "*_brain.nii.gz" or "imagesTr/*.nii.gz".
    labels : str, optional
        Pattern of label maps; images and maps are matched in sorted order.

    Raises
    ------
    InputError
        If there are fewer than two images, or not as many label maps as images.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}.")
    found = matching(root, images)
    if len(found) < 2:
        raise InputError(
            f"{len(found)} files in {root} match '{images}'; at least two images were expected."
        )
    maps: Sequence[Path | None] = [None] * len(found)
    if labels is not None:
        maps = matching(root, labels)
        if len(maps) != len(found):
            raise InputError(
                f"{root} has {len(found)} images ('{images}') but {len(maps)} label maps"
                f" ('{labels}'). They are matched in sorted order, so their numbers must be equal."
            )
    subjects = zip(found, maps, strict=True)
    return tuple(
        PairFiles(moving, fixed, moving_labels, fixed_labels)
        for (moving, moving_labels), (fixed, fixed_labels) in itertools.permutations(subjects, 2)
    )


def choose_pairs(files: Sequence[PairFiles], count: int, seed: int = 1) -> tuple[PairFiles, ...]:
    """Choose `count` pairs that use all images as evenly as possible; deterministic for a seed.

    Pairs are chosen one at a time: the images used least so far, then those used least in that
    role, then at random.  A larger count gives the same pairs and more.

    Parameters
    ----------
    files : sequence of PairFiles
    count : int
        Number of pairs; if there are not more, all are returned in their own order.
    seed : int
        Of the random choices.
    """
    if count >= len(files):
        return tuple(files)
    names = {
        path: n
        for n, path in enumerate(dict.fromkeys(p for f in files for p in (f.moving, f.fixed)))
    }
    sides = np.array([[names[f.moving], names[f.fixed]] for f in files]).T
    used = np.zeros((2, len(names)), dtype=int)  # as moving, as fixed
    random_order = np.random.default_rng(seed).permutation(len(files))
    is_chosen = np.zeros(len(files), dtype=bool)
    chosen = []
    for _ in range(count):
        both = used.sum(axis=0)[sides]
        side = np.stack([used[0, sides[0]], used[1, sides[1]]])
        order = np.lexsort(
            (
                random_order,
                side.max(axis=0),
                side.sum(axis=0),
                both.max(axis=0),
                both.sum(axis=0),
                is_chosen,
            )
        )
        pick = order[0]
        is_chosen[pick] = True
        used[0, sides[0, pick]] += 1
        used[1, sides[1, pick]] += 1
        chosen.append(files[pick])
    return tuple(chosen)


_PARTS = {
    "": "",
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_LEAST_GROUPS = 3  # groups of scans joined by pairs, needed for a split


def read_listed(path: Path, options: DatasetChoice) -> Dataset:
    """Read the scans and pairs of a list.

    Ours: if there are fewer pairs than scans and no other information on subjects, scans joined by
    a pair count as one subject, so that a split does not separate pairs.
    """
    rows = read_rows(path)
    labels: dict[Path, Path] = {}
    parts: dict[Path, str] = {}
    for where, files, word in rows:
        if files.moving == files.fixed:
            raise InputError(
                f"{where}: moving and fixed are the same file {files.moving}; two files were"
                " expected."
            )
        part = _PARTS.get("" if word is None else str(word).strip().lower())
        if part is None:
            raise InputError(f"{where}: the part is train, validation or test; got '{word}'.")
        for image, own in (
            (files.moving, files.moving_labels),
            (files.fixed, files.fixed_labels),
        ):
            if own is not None and labels.setdefault(image, own) != own:
                raise InputError(
                    f"{where}: {image} has the labels {own} here, but {labels[image]} above."
                )
            if part and parts.setdefault(image, part) != part:
                raise InputError(
                    f"{where}: {image} is in the part {part} here, but in {parts[image]} above."
                )
    images = [image for row in rows for image in (row.files.moving, row.files.fixed)]
    scans = make_scans(path.parent, images, labels, options.subject)
    names = {scan.image: scan.name for scan in scans}
    pairs: dict[tuple[str, str], Path | None] = {}
    for _, files, _ in rows:
        pair = names[files.moving], names[files.fixed]
        pairs[pair] = files.landmarks or pairs.get(pair)
    by_part = {
        part: tuple(sorted(names[image] for image, own in parts.items() if own == part))
        for part in PARTS
    }
    return options.dataset(
        "list",
        path,
        _join_subjects(scans, tuple(pairs)),
        pairs=tuple(pairs),
        parts=by_part if parts else None,
        landmarks={pair: file for pair, file in pairs.items() if file is not None},
    )


def _join_subjects(scans: tuple[Scan, ...], pairs: tuple[tuple[str, str], ...]) -> tuple[Scan, ...]:
    """Make scans joined by pairs one subject, if nothing else is known and a split is possible."""
    if len(pairs) >= len(scans) or any(scan.subject != scan.name for scan in scans):
        return scans
    group = {scan.name: scan.name for scan in scans}

    def first(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for moving, fixed in pairs:
        low, high = sorted((first(moving), first(fixed)))
        group[high] = low
    subjects = {scan.name: first(scan.name) for scan in scans}
    if len(set(subjects.values())) < _LEAST_GROUPS:
        return scans
    return tuple(replace(scan, subject=subjects[scan.name]) for scan in scans)
