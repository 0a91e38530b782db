"""Corresponding points of a pair, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import InputError

_LPS = np.array([-1.0, -1.0, 1.0])  # to RAS, and back


class Landmarks(NamedTuple):
    """Points that belong together, each (n, 3), mm RAS."""

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]


def read_landmarks(path: str | Path) -> Landmarks:
    """Corresponding points of a pair.

    Parameters
    ----------
    path : str or Path
        A CSV file of six numbers a line: x, y, z in the fixed image, then in the moving one, in mm,
        LPS (as ITK, 3D Slicer's LPS files and elastix write them).  Lines that begin with # and a
        first line of words are passed over.

    Raises
    ------
    InputError
        If a line does not hold six finite numbers, or there is none.
    """
    path = Path(path)
    points: list[list[float]] = []
    first = True
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            values = [float(word) for word in line.split(",")]
        except ValueError:
            values = []
        if len(values) == 6 and np.isfinite(values).all():
            points.append(values)
        elif values or not first:
            raise InputError(
                f"{path}, line {number}: six numbers were expected (fixed x,y,z, moving x,y,z; mm, LPS); got '{line}'."
            )
        first = False
    if not points:
        raise InputError(f"{path} holds no landmarks: lines of six numbers (fixed x,y,z, moving x,y,z; mm, LPS).")
    both = np.array(points)
    return Landmarks(both[:, :3] * _LPS, both[:, 3:] * _LPS)
