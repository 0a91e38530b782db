"""Whether moving and fixed images meet in the world at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, NoOverlapError, VolumePair, apply_affine, inside

SMALLEST = 0.01  # of the smaller field of view


def overlap(moving: Grid, fixed: Grid, matrix: NDArray[np.float64]) -> float:
    """Share of the smaller field of view that lies in the other, in [0, 1].

    Parameters
    ----------
    moving, fixed : Grid
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    """
    there = inside(moving, apply_affine(matrix, _lattice(fixed))).mean()
    back = inside(fixed, apply_affine(np.linalg.inv(matrix), _lattice(moving))).mean()
    return float(max(there, back))


def check_overlap(pair: VolumePair, matrix: NDArray[np.float64], mode: str) -> None:
    """Refuse a pair that does not meet after alignment.

    Raises
    ------
    NoOverlapError
        If less than 1 % of the smaller field of view lies in the other.
    """
    share = overlap(pair.moving.grid, pair.fixed.grid, matrix)
    if share >= SMALLEST:
        return
    offset = pair.moving.grid.centre - apply_affine(matrix, pair.fixed.grid.centre)
    where = ", ".join(f"{v:.0f}" for v in offset)
    advice = (
        "Use --affine auto (in Python: affine='auto'), which can start from the centres of the images."
        if mode != "auto"
        else "Check that both files show the same body part and that their headers are right."
    )
    raise NoOverlapError(
        f"The moving image '{pair.moving.name}' and the fixed image '{pair.fixed.name}' do not overlap "
        f"(with --affine {mode}): their fields of view share {100 * share:.1f} % and the middle of the moving one lies "
        f"{np.linalg.norm(offset):.0f} mm from the middle of the fixed one (x, y, z: {where} mm). {advice}"
    )


def _lattice(grid: Grid, most: int = 24) -> NDArray[np.float64]:
    """World points (n, 3) spread evenly over the field of view."""
    axes = []
    for n in grid.shape:
        steps = min(n, most)
        axes.append((np.arange(steps) + 0.5) * n / steps - 0.5)
    return grid.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
