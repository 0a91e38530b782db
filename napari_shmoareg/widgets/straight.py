"""Copies of oblique volumes on straight axes.

For the screen only: napari 0.9 slices turned layers wrongly in 2D.  What is painted there is brought back.
"""

from __future__ import annotations

from itertools import product

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
    values = volume.values if nearest else volume.values.astype(volume.float_type, copy=False)
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


def own_voxels(volume: Volume, grid: Grid, before: NDArray, now: NDArray) -> NDArray:
    """The labels of a volume with what was painted on its copy.

    Parameters
    ----------
    volume : Volume
        Labels, as filed.
    grid : Grid
        Of the copy.
    before, now : (I, J, K) array
        The copy as made, and as painted.

    Returns
    -------
    array
        On the volume's grid.  A voxel changes if the voxel of the copy that is nearest to it was painted, or,
        where that one showed another label (at edges), the nearest one that showed its own: a label that is
        erased leaves no crumbs.  All others keep their values.
    """
    from scipy.ndimage import binary_dilation

    def nearest(values: NDArray) -> NDArray:
        return straight_copy(Volume(values, grid), volume.grid, nearest=True)

    changed = before != now
    hit = nearest(changed.astype(np.uint8)) > 0
    painted = np.where(hit, nearest(now), volume.values)
    near = nearest(binary_dilation(changed, np.ones((3, 3, 3))).astype(np.uint8)) > 0
    edge = np.argwhere(near & ~hit & (nearest(before) != volume.values))
    place, own = grid.to_index(volume.grid.to_world(edge)), volume.values[tuple(edge.T)]
    found, least = own.astype(now.dtype), np.full(len(edge), np.inf)
    for step in product((-1, 0, 1), repeat=3):
        index = np.clip(np.rint(place).astype(int) + step, 0, np.array(grid.shape) - 1)
        away = np.linalg.norm((index - place) * grid.spacing, axis=1)
        shown = tuple(index.T)
        closer = (before[shown] == own) & (away < least)
        found[closer], least[closer] = now[shown][closer], away[closer]
    painted[tuple(edge.T)] = found
    return painted
