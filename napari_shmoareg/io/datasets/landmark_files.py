"""Corresponding points of a pair, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.io.landmarks import COLUMNS
from napari_shmoareg.io.point_rows import FLIP, frame_of, numbers_of, rows_of
from napari_shmoareg.io.untrusted import names_input, user_path


class Landmarks(NamedTuple):
    """Points that belong together, each (n, 3), mm RAS."""

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]


@names_input
def read_landmarks(path: str | Path) -> Landmarks:
    """Corresponding points of a pair.

    Parameters
    ----------
    path : str or Path
        A CSV file of six numbers a line: x, y, z in the fixed image, then in the moving one, in mm,
        LPS (as ITK, 3D Slicer's LPS files and elastix write them) unless a comment says RAS.  Lines that begin
        with # and a first line of words are passed over; where that line names the columns fixed_x ... moving_z,
        their order is taken from it.

    Raises
    ------
    InputError
        If a line does not hold six finite numbers, or there is none.
    """
    path = user_path(path)
    table = rows_of(path, headings=1, columns=6)
    named = set(COLUMNS) <= set(table.columns)
    wanted = [table.columns.index(name) for name in COLUMNS] if named else list(range(6))
    both = numbers_of(table.rows, wanted, path, by="line")
    turned = both if frame_of(table.notes, path) == "RAS" else both * np.tile(FLIP, 2)
    return Landmarks(turned[:, :3], turned[:, 3:])
