"""Affine alignment of two scans, and their agreement after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.datasets.cache import PreparedScan, VolumeCache
from napari_shmoareg.geometry import VolumePair, apply_affine, inside, slabs
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.metrics import dice
from napari_shmoareg.registration.affine import align, check_overlap

VERSION = 1  # of `align`; a new version invalidates cached alignments
COMPARISON_SIZE = 64  # voxels along the longest axis of the grid for comparing scans

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two scans after alignment.

    Attributes
    ----------
    dice : float or None
        Mean Dice over the labels that both have (0 if they share none); None if one has no label
        map.
    ncc : float or None
        Correlation where the fields of view overlap; None if they hardly do.
    """

    dice: float | None
    ncc: float | None


def align_scans(
    moving: PreparedScan, fixed: PreparedScan, mode: str, cache: VolumeCache
) -> tuple[Matrix, Agreement]:
    """Align two scans and compare them, using the cache.

    Returns
    -------
    (4, 4) array
        Fixed world to moving world, mm RAS, from `align`.
    Agreement

    Raises
    ------
    InputError
        As `align`.
    """
    key = cache.key(what="affine", version=VERSION, moving=moving.key, fixed=fixed.key, mode=mode)
    entry = cache.get(key)
    if entry is not None:
        return entry.arrays["matrix"], Agreement(entry.facts["dice"], entry.facts["ncc"])
    pair = VolumePair(moving.image, fixed.image)
    if mode == "none":
        matrix = np.eye(4)
        check_overlap(pair, matrix, mode)
    else:
        matrix = align(pair, mode).matrix
    found = agreement(moving, fixed, matrix)
    cache.put(key, {"matrix": matrix}, {"dice": found.dice, "ncc": found.ncc})
    return matrix, found


def agreement(moving: PreparedScan, fixed: PreparedScan, matrix: Matrix) -> Agreement:
    """Compare two scans on a coarse grid over the fixed image; `matrix`: fixed to moving world."""
    whole = fixed.image.grid
    extent = np.array(whole.shape) * whole.spacing
    grid = whole.resampled(
        [float(s) for s in np.maximum(whole.spacing, extent.max() / COMPARISON_SIZE)]
    )
    covered = np.empty(grid.shape, dtype=bool)
    for part, points in slabs(grid):
        covered[part] = inside(moving.image.grid, apply_affine(matrix, points))
    mean_dice = None
    if moving.labels is not None and fixed.labels is not None:
        maps = (
            resample(moving.labels, grid, world_map=matrix).values,
            resample(fixed.labels, grid).values,
        )
        both = sorted(set(moving.labels.labels) & set(fixed.labels.labels))
        mean_dice = float(np.mean(list(dice(*maps, both).values()) or [0.0])) if both else 0.0
    if covered.sum() < 2:
        return Agreement(mean_dice, None)
    a, b = (
        resample(moving.image, grid, world_map=matrix).values[covered],
        resample(fixed.image, grid).values[covered],
    )
    correlation = None if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])
    return Agreement(mean_dice, correlation)
