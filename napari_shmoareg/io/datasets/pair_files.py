"""Lists and folders of image files as lazy sequences of pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from napari_shmoareg.geometry import InputError, VolumePair
from napari_shmoareg.io.datasets.name_matching import matching
from napari_shmoareg.io.images import read_pair
from napari_shmoareg.io.untrusted import is_there, names_input, read_csv, user_path

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
            entry.moving, entry.fixed, entry.moving_labels, entry.fixed_labels, nan=self.nan, channel=self.channel
        )


@names_input
def read_pair_list(path: str | Path, *, nan: float | None = None, channel: int | None = None) -> PairList:
    """Read a CSV list of pairs.

    Parameters
    ----------
    path : str or Path
        Columns moving, fixed and, if there are such, moving_labels, fixed_labels and landmarks
        (see `read_landmarks`); others are left alone.  File names are relative to the list's own folder.
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
            f"There is no list of pairs {path}: a CSV file with the columns {', '.join(COLUMNS)} was expected."
        )
    what = f"a list of pairs whose first line names its columns ({','.join(COLUMNS)}; the last three may be left out)"
    files = tuple(_entry(path, *row) for row in read_csv(path, what, required=("moving", "fixed"))[1])
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
        try:
            places[column] = path.parent / user_path(name)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if not is_there(places[column]):
            raise InputError(f"{path}, line {line}: there is no file {places[column]}.")
    return PairFiles(**places)


def read_folder(folder: str | Path, images: str, labels: str | None = None) -> tuple[PairFiles, ...]:
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
        raise InputError(f"{len(found)} files in {place} match '{images}'; at least two images were expected.")
    maps: Sequence[Path | None] = [None] * len(found)
    if labels is not None:
        maps = matching(place, labels)
        if len(maps) != len(found):
            raise InputError(
                f"{place} has {len(found)} images ('{images}') but {len(maps)} label maps ('{labels}'); they are "
                "matched in the order of their names, so there have to be as many of one as of the other."
            )
    subjects = zip(found, maps, strict=True)
    return tuple(
        PairFiles(moving, fixed, moving_labels, fixed_labels)
        for (moving, moving_labels), (fixed, fixed_labels) in itertools.permutations(subjects, 2)
    )


def choose_pairs(files: Sequence[PairFiles], count: int, seed: int = 1) -> tuple[PairFiles, ...]:
    """Some of many pairs, each image used as evenly as possible; the same at every call.

    One pair after the other: the one whose images were used least so far, then the one whose images stood
    least often on that side, then by lot.  So more pairs are the same ones and others.

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
    names = {path: n for n, path in enumerate(dict.fromkeys(p for f in files for p in (f.moving, f.fixed)))}
    sides = np.array([[names[f.moving], names[f.fixed]] for f in files]).T
    used = np.zeros((2, len(names)), dtype=int)  # as moving, as fixed
    lot = np.random.default_rng(seed).permutation(len(files))
    taken = np.zeros(len(files), dtype=bool)
    chosen = []
    for _ in range(count):
        both = used.sum(axis=0)[sides]
        side = np.stack([used[0, sides[0]], used[1, sides[1]]])
        order = np.lexsort((lot, side.max(axis=0), side.sum(axis=0), both.max(axis=0), both.sum(axis=0), taken))
        pick = order[0]
        taken[pick] = True
        used[0, sides[0, pick]] += 1
        used[1, sides[1, pick]] += 1
        chosen.append(files[pick])
    return tuple(chosen)
