"""Lists of pairs, in CSV or JSON, and folders of images as pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from napari_shmoareg.datasets.dataset import Dataset, DatasetOptions, Scan, make_scans
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
    """Pairs that are read from their files when they are asked for, and not kept.

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
        """Read one pair, or take a part of the list."""
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


@names_input
def read_pair_list(
    path: str | Path, *, nan: float | None = None, channel: int | None = None
) -> PairList:
    """Read a CSV list of pairs.

    Parameters
    ----------
    path : str or Path
        Columns moving, fixed and, if there are such, moving_labels, fixed_labels and landmarks (see
        `read_landmarks`); others are left alone.  File names are relative to the list's own folder.
    nan, channel : optional
        As for `read_pair`.

    Raises
    ------
    InputError
        If the list or a file in it is missing, a column is missing, or no pair is listed.
    """
    path = user_path(path)
    if not path.is_file():
        raise InputError(
            f"There is no list of pairs {path}: a CSV file with the columns {', '.join(COLUMNS)}"
            " was expected."
        )
    what = (
        f"a list of pairs whose first line names its columns ({','.join(COLUMNS)}; the last three"
        " may be left out)"
    )
    files = tuple(
        _entry(path, *row) for row in read_csv(path, what, required=("moving", "fixed"))[1]
    )
    if not files:
        raise InputError(
            f"{path} lists no pair; give at least one line below the names of the columns."
        )
    return PairList(files, nan, channel)


def _entry(path: Path, line: int, row: dict[str, str]) -> PairFiles:
    places: dict[str, Path] = {}
    for column in COLUMNS:
        name = (row.get(column) or "").strip()
        if not name:
            if column in ("moving", "fixed"):
                raise InputError(
                    f"{path}, line {line}: the column '{column}' is empty; the name of a file was"
                    " expected."
                )
            continue
        try:
            places[column] = path.parent / user_path(name)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if not is_there(places[column]):
            raise InputError(f"{path}, line {line}: there is no file {places[column]}.")
    return PairFiles(**places)


def read_folder(
    folder: str | Path, images: str, labels: str | None = None
) -> tuple[PairFiles, ...]:
    """All ordered pairs of the images of a folder, in the order of their names.

    Parameters
    ----------
    folder : str or Path
    images : str
        Which files are images, such as "*_brain.nii.gz" or "imagesTr/*.nii.gz".
    labels : str, optional
        Which are their label maps; images and maps are matched in the order of their names.

    Raises
    ------
    InputError
        If there are fewer than two images, or not as many label maps as images.
    """
    place = user_path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder {place}.")
    found = matching(place, images)
    if len(found) < 2:
        raise InputError(
            f"{len(found)} files in {place} match '{images}'; at least two images were expected."
        )
    maps: Sequence[Path | None] = [None] * len(found)
    if labels is not None:
        maps = matching(place, labels)
        if len(maps) != len(found):
            raise InputError(
                f"{place} has {len(found)} images ('{images}') but {len(maps)} label maps"
                f" ('{labels}'); they are matched in the order of their names, so there have to be"
                " as many of one as of the other."
            )
    subjects = zip(found, maps, strict=True)
    return tuple(
        PairFiles(moving, fixed, moving_labels, fixed_labels)
        for (moving, moving_labels), (fixed, fixed_labels) in itertools.permutations(subjects, 2)
    )


def choose_pairs(files: Sequence[PairFiles], count: int, seed: int = 1) -> tuple[PairFiles, ...]:
    """Some of many pairs, each image used as evenly as possible; the same at every call.

    One pair after the other: the one whose images were used least so far, then the one whose images
    stood least often on that side, then by lot.  So more pairs are the same ones and others.

    Parameters
    ----------
    files : sequence of PairFiles
    count : int
        How many; all, in their own order, if there are not more.
    seed : int
        Of the lot.
    """
    if count >= len(files):
        return tuple(files)
    names = {
        path: n
        for n, path in enumerate(dict.fromkeys(p for f in files for p in (f.moving, f.fixed)))
    }
    sides = np.array([[names[f.moving], names[f.fixed]] for f in files]).T
    used = np.zeros((2, len(names)), dtype=int)  # as moving, as fixed
    lot = np.random.default_rng(seed).permutation(len(files))
    taken = np.zeros(len(files), dtype=bool)
    chosen = []
    for _ in range(count):
        both = used.sum(axis=0)[sides]
        side = np.stack([used[0, sides[0]], used[1, sides[1]]])
        order = np.lexsort(
            (lot, side.max(axis=0), side.sum(axis=0), both.max(axis=0), both.sum(axis=0), taken)
        )
        pick = order[0]
        taken[pick] = True
        used[0, sides[0, pick]] += 1
        used[1, sides[1, pick]] += 1
        chosen.append(files[pick])
    return tuple(chosen)


_PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_LEAST_GROUPS = 3  # of scans joined by pairs, for a split to be possible at all


def read_listed(path: Path, asked: DatasetOptions) -> Dataset:
    """The scans and pairs of a list.

    Ours: where the pairs are fewer than the scans and the subject of no scan is known otherwise,
    scans that a pair joins count as one subject, so that a split keeps pairs whole.

    Parameters
    ----------
    path : Path
        A CSV file with the columns moving, fixed and, if there are such, moving_labels,
        fixed_labels, landmarks and part (train, validation, test); or a JSON list of objects with
        the same keys.  File names are relative to the list's own folder.
    asked : DatasetOptions

    Raises
    ------
    InputError
        If the list or a file in it is missing, a line is not as it must be, or nothing is listed.
    """
    labels: dict[Path, Path] = {}
    marks: dict[tuple[Path, Path], Path] = {}
    sides: dict[Path, str] = {}
    pairs: list[tuple[Path, Path]] = []
    for where, row in _rows(path):
        files = {column: _file(path, where, column, row.get(column)) for column in COLUMNS}
        moving, fixed = files["moving"], files["fixed"]
        if moving is None or fixed is None:
            empty = "moving" if moving is None else "fixed"
            raise InputError(
                f"{path}, {where}: '{empty}' is empty; the name of a file was expected."
            )
        if moving == fixed:
            raise InputError(
                f"{path}, {where}: moving and fixed are the same file {moving}; a pair takes two."
            )
        part = _part(path, where, row.get("part"))
        for image, own in ((moving, files["moving_labels"]), (fixed, files["fixed_labels"])):
            if own is not None and labels.setdefault(image, own) != own:
                raise InputError(
                    f"{path}, {where}: {image} has the labels {own} here and {labels[image]}"
                    " before."
                )
            if part and sides.setdefault(image, part) != part:
                raise InputError(
                    f"{path}, {where}: {image} is of the part {part} here and {sides[image]}"
                    " before."
                )
        pairs.append((moving, fixed))
        if files["landmarks"] is not None:
            marks[moving, fixed] = files["landmarks"]
    if not pairs:
        raise InputError(f"{path} lists no pair; give at least one, with the names of two files.")
    scans = make_scans(path.parent, [image for pair in pairs for image in pair], labels, asked.rule)
    names = {scan.image: scan.name for scan in scans}
    named = tuple(dict.fromkeys((names[moving], names[fixed]) for moving, fixed in pairs))
    return Dataset(
        "list",
        path,
        _joined(scans, named),
        pairs=named,
        parts=_parts(sides, names),
        window=asked.window,
        landmarks={
            (names[moving], names[fixed]): place for (moving, fixed), place in marks.items()
        },
        nan=asked.nan,
        channel=asked.channel,
    )


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each pair stands, and its entries."""
    if path.suffix.lower() == ".json":
        yield from _json_rows(path)
        return
    what = (
        f"a list of pairs whose first line names its columns ({','.join(COLUMNS)},part; only the"
        " first two are needed)"
    )
    for line, row in read_csv(path, what, required=("moving", "fixed"))[1]:
        yield f"line {line}", row


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = read_json(path, "a JSON list of pairs")
    if isinstance(rows, dict):
        rows = rows.get("pairs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{path} holds no list of pairs: a list of objects such as {{'moving': 'a.nii.gz',"
            f" 'fixed': 'b.nii.gz'}} was expected, with the keys {', '.join(COLUMNS)}, part; only"
            " the first two are needed."
        )
    for number, row in enumerate(rows, start=1):
        yield f"pair {number}", row


def _file(path: Path, where: str, column: str, name: object) -> Path | None:
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise InputError(
            f"{path}, {where}: '{column}' is {name!r}; the name of a file was expected."
        )
    if not name.strip():
        return None
    try:
        place = path.parent / user_path(name.strip())
    except InputError as error:
        raise InputError(f"{path}, {where}: {error}") from error
    if not is_there(place):
        raise InputError(f"{path}, {where}: there is no file {place}.")
    return place


def _part(path: Path, where: str, word: object) -> str | None:
    if word is None or not str(word).strip():
        return None
    known = _PARTS.get(str(word).strip().lower())
    if known is None:
        raise InputError(f"{path}, {where}: a part is train, validation or test; got '{word}'.")
    return known


def _parts(
    sides: Mapping[Path, str], names: Mapping[Path, str]
) -> dict[str, tuple[str, ...]] | None:
    if not sides:
        return None
    return {
        part: tuple(sorted(names[image] for image, side in sides.items() if side == part))
        for part in ("train", "validation", "test")
    }


def _joined(scans: tuple[Scan, ...], pairs: tuple[tuple[str, str], ...]) -> tuple[Scan, ...]:
    """Scans that pairs join as one subject, where nothing else is known and a split stays
    possible.
    """
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
    whose = {scan.name: first(scan.name) for scan in scans}
    if len(set(whose.values())) < _LEAST_GROUPS:
        return scans
    return tuple(replace(scan, subject=whose[scan.name]) for scan in scans)
