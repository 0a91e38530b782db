"""A CSV or JSON list of pairs as a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets.asked import Asked
from napari_shmoareg.io.datasets.pair_files import COLUMNS
from napari_shmoareg.io.datasets.scans import Dataset, Scan
from napari_shmoareg.io.datasets.subjects import make_scans
from napari_shmoareg.io.untrusted import is_there, read_csv, read_json, user_path

_PARTS = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "test": "test"}
_LEAST_GROUPS = 3  # of scans joined by pairs, for a split to be possible at all


def read_listed(path: Path, asked: Asked) -> Dataset:
    """The scans and pairs of a list.

    Ours: where the pairs are fewer than the scans and the subject of no scan is known otherwise, scans
    that a pair joins count as one subject, so that a split keeps pairs whole.

    Parameters
    ----------
    path : Path
        A CSV file with the columns moving, fixed and, if there are such, moving_labels, fixed_labels,
        landmarks and part (train, validation, test); or a JSON list of objects with the same keys.  File
        names are relative to the list's own folder.
    asked : Asked

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
            raise InputError(f"{path}, {where}: '{empty}' is empty; the name of a file was expected.")
        if moving == fixed:
            raise InputError(f"{path}, {where}: moving and fixed are the same file {moving}; a pair takes two.")
        part = _part(path, where, row.get("part"))
        for image, own in ((moving, files["moving_labels"]), (fixed, files["fixed_labels"])):
            if own is not None and labels.setdefault(image, own) != own:
                raise InputError(f"{path}, {where}: {image} has the labels {own} here and {labels[image]} before.")
            if part and sides.setdefault(image, part) != part:
                raise InputError(f"{path}, {where}: {image} is of the part {part} here and {sides[image]} before.")
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
        landmarks={(names[moving], names[fixed]): place for (moving, fixed), place in marks.items()},
        nan=asked.nan,
        channel=asked.channel,
    )


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each pair stands, and its entries."""
    if path.suffix.lower() == ".json":
        yield from _json_rows(path)
        return
    what = (
        f"a list of pairs whose first line names its columns ({','.join(COLUMNS)},part; only the first two are needed)"
    )
    for line, row in read_csv(path, what, required=("moving", "fixed"))[1]:
        yield f"line {line}", row


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = read_json(path, "a JSON list of pairs")
    if isinstance(rows, dict):
        rows = rows.get("pairs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{path} holds no list of pairs: a list of objects such as {{'moving': 'a.nii.gz', 'fixed': 'b.nii.gz'}} "
            f"was expected, with the keys {', '.join(COLUMNS)}, part; only the first two are needed."
        )
    for number, row in enumerate(rows, start=1):
        yield f"pair {number}", row


def _file(path: Path, where: str, column: str, name: object) -> Path | None:
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise InputError(f"{path}, {where}: '{column}' is {name!r}; the name of a file was expected.")
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


def _parts(sides: Mapping[Path, str], names: Mapping[Path, str]) -> dict[str, tuple[str, ...]] | None:
    if not sides:
        return None
    return {
        part: tuple(sorted(names[image] for image, side in sides.items() if side == part))
        for part in ("train", "validation", "test")
    }


def _joined(scans: tuple[Scan, ...], pairs: tuple[tuple[str, str], ...]) -> tuple[Scan, ...]:
    """Scans that pairs join as one subject, where nothing else is known and a split stays possible."""
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
