"""Landmarks: pairs of points, and the points of one image, in files.

Files hold LPS mm (ITK, 3D Slicer) or RAS mm; here all points are RAS mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.point_rows import FLIP, frame_of, numbers_of, rows_of
from napari_shmoareg.io.slicer_points import read_slicer_points
from napari_shmoareg.io.untrusted import names_input, user_path

COLUMNS = ("fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z")
SLICER = (".mrk.json", ".json", ".fcsv")


@dataclass(frozen=True, eq=False)
class LandmarkPairs:
    """Points that show the same place of the body in two images.

    Attributes
    ----------
    moving, fixed : (n, 3) array, mm RAS
    notes : tuple of str
        What the file did not say and was assumed.
    """

    moving: NDArray[np.float64]
    fixed: NDArray[np.float64]
    notes: tuple[str, ...] = ()


@names_input
def read_landmark_pairs(path: str | Path) -> LandmarkPairs:
    """Read pairs of points from a CSV file.

    Six numbers a row.  A heading with ``fixed_x`` ... ``moving_z`` says which is which, in any order and
    with further columns between; without one the fixed point comes first, as in the lists of `shmoareg
    benchmark`.  A comment that says LPS or RAS gives the frame; without one it is LPS, as in ITK and 3D Slicer.
    Numbers may have a decimal comma where the columns stand apart by ``;`` or a tab.

    Raises
    ------
    InputError
        If the file is missing or holds something else, a number is not finite, or decimal commas cannot be told
        from those between the columns.
    """
    path = user_path(path)
    table = rows_of(path, columns=6)
    notes = []
    wanted = [0, 1, 2, 3, 4, 5]
    if set(COLUMNS) <= set(table.columns):
        wanted = [table.columns.index(name) for name in COLUMNS]
    else:
        notes.append("no column is called fixed_x: the first three numbers were taken as the fixed point")
    numbers = numbers_of(table.rows, wanted, path)
    frame = frame_of(table.notes, path)
    if frame is None:
        notes.append("no line says LPS or RAS: LPS was taken")
    turned = numbers if frame == "RAS" else numbers * np.tile(FLIP, 2)
    return LandmarkPairs(moving=turned[:, 3:], fixed=turned[:, :3], notes=tuple(notes))


def write_landmark_pairs(path: str | Path, *, moving: ArrayLike, fixed: ArrayLike) -> None:
    """Write pairs of points as CSV; whole or not at all.

    ::

        # landmarks, mm, LPS (as in ITK and 3D Slicer)
        fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z

    Parameters
    ----------
    path : str or Path
    moving, fixed : (n, 3) array, mm RAS

    Raises
    ------
    InputError
        If the place is not writable or the disk is full.
    """
    both = np.hstack([np.reshape(fixed, (-1, 3)) * FLIP, np.reshape(moving, (-1, 3)) * FLIP])
    lines = ["# landmarks, mm, LPS (as in ITK and 3D Slicer)", ",".join(COLUMNS)]
    lines += [",".join(f"{value:.4f}" for value in row) for row in both]
    with writing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


@names_input
def read_points(path: str | Path) -> NDArray[np.float64]:
    """Read the points of one image, (n, 3) mm RAS.

    Parameters
    ----------
    path : str or Path
        A list of 3D Slicer (.mrk.json, or .fcsv), or a CSV file with three numbers a row (LPS unless a line
        says RAS).

    Raises
    ------
    InputError
        If the file is missing or holds something else.
    """
    path = user_path(path)
    if path.name.lower().endswith(SLICER):
        return read_slicer_points(path)
    table = rows_of(path, columns=3)
    points = numbers_of(table.rows, [0, 1, 2], path)
    return points if frame_of(table.notes, path) == "RAS" else points * FLIP
