"""Copies of oblique volumes on straight axes.

For the screen only: napari 0.9 slices turned layers wrongly in 2D.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, Volume, background

LARGEST = 2**28  # voxels of a copy, at most


def straightened(grid: Grid) -> NDArray[np.float64]:
    """The affine of a canonical grid without its tilt, about the middle of the field of view."""
    affine = np.diag([*grid.spacing, 1.0])
    affine[:3, 3] = grid.centre - np.array(grid.spacing) * (np.array(grid.shape) - 1) / 2
    return affine


def straight_around(grid: Grid, finer: float) -> Grid:
    """A straight grid over the whole field of view of a tilted one."""
    corners = grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = np.array(grid.spacing) / finer
    spacing *= max(1.0, float(np.prod((high - low) / spacing)) / LARGEST) ** (1 / 3)
    i, j, k = (int(n) for n in np.maximum(1, np.ceil((high - low) / spacing - 1e-6)))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (np.array([i, j, k]) - 1) / 2
    return Grid((i, j, k), affine)


def straight_copy(volume: Volume, grid: Grid, *, nearest: bool, outside: float | None = None) -> NDArray:
    """The values of a volume on another grid, (I, J, K), linear or nearest; without torch.

    Around it stands what is given as `outside`: by default the background of an image, and 0 with `nearest`.
    """
    from scipy.ndimage import affine_transform

    if outside is None:
        outside = 0.0 if nearest else background(volume)
    matrix = volume.grid.inverse @ grid.affine
    values = volume.values if nearest else volume.values.astype(np.float32, copy=False)
    return affine_transform(
        values,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=grid.shape,
        order=0 if nearest else 1,
        mode="grid-constant",
        cval=outside,
        prefilter=False,
    )
