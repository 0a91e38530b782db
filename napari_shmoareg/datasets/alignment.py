"""Scans brought together by affines, and how well they then agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.datasets.cache import PreparedScan, VolumeCache
from napari_shmoareg.geometry import VolumePair, apply_affine, inside, slabs
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.metrics import dice
from napari_shmoareg.registration.affine import align, check_overlap

VERSION = 1  # of `align`; another one aligns anew
COMPARED = 64  # voxels along the longest axis of the grid on which scans are compared

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How well two scans agree after alignment.

    Attributes
    ----------
    dice : float or None
        Mean Dice over the labels that both have (0 if they share none); None if one has no label
        map.
    ncc : float or None
        Correlation where the fields of view meet; None where they hardly do.
    """

    dice: float | None
    ncc: float | None


def aligned(
    moving: PreparedScan, fixed: PreparedScan, mode: str, cache: VolumeCache
) -> tuple[Matrix, Agreement]:
    """Bring two scans together, and compare them then; both kept in the cache.

    Returns
    -------
    (4, 4) array
        Fixed world to moving world, mm RAS, as `align` finds it.
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
    agreed = agreement(moving, fixed, matrix)
    cache.put(key, {"matrix": matrix}, {"dice": agreed.dice, "ncc": agreed.ncc})
    return matrix, agreed


def agreement(moving: PreparedScan, fixed: PreparedScan, matrix: Matrix) -> Agreement:
    """Compare two scans on a coarse grid in the fixed image's place.

    Parameters
    ----------
    moving, fixed : PreparedScan
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    """
    whole = fixed.image.grid
    extent = np.array(whole.shape) * whole.spacing
    grid = whole.resampled([float(s) for s in np.maximum(whole.spacing, extent.max() / COMPARED)])
    seen = np.empty(grid.shape, dtype=bool)
    for part, points in slabs(grid):
        seen[part] = inside(moving.image.grid, apply_affine(matrix, points))
    overlap = None
    if moving.labels is not None and fixed.labels is not None:
        maps = (
            resample(moving.labels, grid, world_map=matrix).values,
            resample(fixed.labels, grid).values,
        )
        both = sorted(set(moving.labels.labels) & set(fixed.labels.labels))
        overlap = float(np.mean(list(dice(*maps, both).values()) or [0.0])) if both else 0.0
    if seen.sum() < 2:
        return Agreement(overlap, None)
    a, b = (
        resample(moving.image, grid, world_map=matrix).values[seen],
        resample(fixed.image, grid).values[seen],
    )
    together = None if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])
    return Agreement(overlap, together)
