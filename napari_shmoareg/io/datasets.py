"""Lists of image files as lazy sequences of pairs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from napari_shmoareg.geometry import InputError, VolumePair
from napari_shmoareg.io.images import read_pair

COLUMNS = ("moving", "fixed", "moving_labels", "fixed_labels")


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair; moving before fixed, labels or None."""

    moving: Path
    fixed: Path
    moving_labels: Path | None = None
    fixed_labels: Path | None = None


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
            entry.moving, entry.fixed, entry.moving_labels, entry.fixed_labels, nan=self.nan, channel=self.channel
        )


def read_pair_list(path: str | Path, *, nan: float | None = None, channel: int | None = None) -> PairList:
    """Read a CSV list of pairs.

    Parameters
    ----------
    path : str or Path
        Columns moving, fixed and, if there are labels, moving_labels, fixed_labels; others are
        left alone.  File names are relative to the list's own folder.
    nan, channel : optional
        As for `read_pair`.

    Raises
    ------
    InputError
        If the list or a file in it is missing, a column is missing, or no pair is listed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"There is no list of pairs {path}: a CSV file with the columns {', '.join(COLUMNS)} was expected."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = {"moving", "fixed"} - set(reader.fieldnames or ())
            if missing:
                found = ", ".join(reader.fieldnames or ())
                raise InputError(
                    f"{path} has no column {' and '.join(sorted(missing))} (it has: {found}). "
                    f"Its first line has to name them: {','.join(COLUMNS)}; the last two may be left out."
                )
            files = tuple(_entry(path, reader.line_num, row) for row in reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file ({error}).") from error
    if not files:
        raise InputError(f"{path} lists no pair; give at least one line below the names of the columns.")
    return PairList(files, nan, channel)


def _entry(path: Path, line: int, row: dict[str, str]) -> PairFiles:
    places: dict[str, Path] = {}
    for column in COLUMNS:
        name = (row.get(column) or "").strip()
        if not name:
            if column in ("moving", "fixed"):
                raise InputError(
                    f"{path}, line {line}: the column '{column}' is empty; the name of a file was expected."
                )
            continue
        places[column] = path.parent / Path(name).expanduser()
        if not places[column].exists():
            raise InputError(f"{path}, line {line}: there is no file {places[column]}.")
    return PairFiles(**places)
