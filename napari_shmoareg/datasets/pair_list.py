"""Lists of pairs in CSV or JSON; folders of images as pairs."""

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


@names_input
def read_pair_list(
    path: str | Path, *, nan: float | None = None, channel: int | None = None
) -> PairList:
    """Read a CSV list of pairs.

    Parameters
    ----------
    path : str or Path
        Columns moving, fixed and optionally moving_labels, fixed_labels and landmarks (see
        `read_landmarks`); others are ignored.  File names are relative to the folder of the list.
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
            f"{path} lists no pair; at least one line below the column names was expected."
        )
    return PairList(files, nan, channel)


def _entry(path: Path, line: int, row: dict[str, str]) -> PairFiles:
    paths: dict[str, Path] = {}
    for column in COLUMNS:
        name = (row.get(column) or "").strip()
        if not name:
            if column in ("moving", "fixed"):
                raise InputError(
                    f"{path}, line {line}: the column '{column}' is empty; a file name was"
                    " expected."
                )
            continue
        try:
            paths[column] = path.parent / user_path(name)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if not is_there(paths[column]):
            raise InputError(f"{path}, line {line}: there is no file {paths[column]}.")
    return PairFiles(**paths)


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
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_LEAST_GROUPS = 3  # groups of scans joined by pairs, needed for a split


def read_listed(path: Path, options: DatasetOptions) -> Dataset:
    """Read the scans and pairs of a list.

    Ours: if there are fewer pairs than scans and no other information on subjects, scans joined by
    a pair count as one subject, so that a split does not separate pairs.

    Parameters
    ----------
    path : Path
        A CSV file with the columns moving, fixed and optionally moving_labels, fixed_labels,
        landmarks and part (train, validation, test); or a JSON list of objects with the same keys.
        File names are relative to the folder of the list.
    options : DatasetOptions

    Raises
    ------
    InputError
        If the list or a file in it is missing, a line is invalid, or nothing is listed.
    """
    labels: dict[Path, Path] = {}
    landmarks: dict[tuple[Path, Path], Path] = {}
    sides: dict[Path, str] = {}
    pairs: list[tuple[Path, Path]] = []
    for where, row in _rows(path):
        files = {column: _file(path, where, column, row.get(column)) for column in COLUMNS}
        moving, fixed = files["moving"], files["fixed"]
        if moving is None or fixed is None:
            empty = "moving" if moving is None else "fixed"
            raise InputError(f"{path}, {where}: '{empty}' is empty; a file name was expected.")
        if moving == fixed:
            raise InputError(
                f"{path}, {where}: moving and fixed are the same file {moving}; two files were"
                " expected."
            )
        part = _part(path, where, row.get("part"))
        for image, own in ((moving, files["moving_labels"]), (fixed, files["fixed_labels"])):
            if own is not None and labels.setdefault(image, own) != own:
                raise InputError(
                    f"{path}, {where}: {image} has the labels {own} here, but {labels[image]}"
                    " above."
                )
            if part and sides.setdefault(image, part) != part:
                raise InputError(
                    f"{path}, {where}: {image} is in the part {part} here, but in {sides[image]}"
                    " above."
                )
        pairs.append((moving, fixed))
        if files["landmarks"] is not None:
            landmarks[moving, fixed] = files["landmarks"]
    if not pairs:
        raise InputError(f"{path} lists no pair; at least one pair of file names was expected.")
    scans = make_scans(
        path.parent, [image for pair in pairs for image in pair], labels, options.subject_pattern
    )
    names = {scan.image: scan.name for scan in scans}
    named = tuple(dict.fromkeys((names[moving], names[fixed]) for moving, fixed in pairs))
    return Dataset(
        "list",
        path,
        _join_subjects(scans, named),
        pairs=named,
        parts=_parts(sides, names),
        window=options.window,
        landmarks={
            (names[moving], names[fixed]): file for (moving, fixed), file in landmarks.items()
        },
        nan=options.nan,
        channel=options.channel,
    )


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Position of each pair in the file, for messages, and its entries."""
    if path.suffix.lower() == ".json":
        yield from _json_rows(path)
        return
    what = (
        f"a list of pairs whose first line names its columns ({','.join(COLUMNS)},part; only the"
        " first two are required)"
    )
    for line, row in read_csv(path, what, required=("moving", "fixed"))[1]:
        yield f"line {line}", row


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = read_json(path, "a JSON list of pairs")
    if isinstance(rows, dict):
        rows = rows.get("pairs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{path} contains no list of pairs: a list of objects such as {{'moving': 'a.nii.gz',"
            f" 'fixed': 'b.nii.gz'}} was expected, with the keys {', '.join(COLUMNS)}, part; only"
            " the first two are required."
        )
    for number, row in enumerate(rows, start=1):
        yield f"pair {number}", row


def _file(path: Path, where: str, column: str, name: object) -> Path | None:
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise InputError(f"{path}, {where}: '{column}' is {name!r}; a file name was expected.")
    if not name.strip():
        return None
    try:
        file = path.parent / user_path(name.strip())
    except InputError as error:
        raise InputError(f"{path}, {where}: {error}") from error
    if not is_there(file):
        raise InputError(f"{path}, {where}: there is no file {file}.")
    return file


def _part(path: Path, where: str, word: object) -> str | None:
    if word is None or not str(word).strip():
        return None
    name = _PARTS.get(str(word).strip().lower())
    if name is None:
        raise InputError(f"{path}, {where}: the part is train, validation or test; got '{word}'.")
    return name


def _parts(
    sides: Mapping[Path, str], names: Mapping[Path, str]
) -> dict[str, tuple[str, ...]] | None:
    if not sides:
        return None
    return {
        part: tuple(sorted(names[image] for image, side in sides.items() if side == part))
        for part in ("train", "validation", "test")
    }


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
