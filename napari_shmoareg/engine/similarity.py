"""How alike two images are under a transform, where both were seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.geometry import Grid, Transform, VolumePair, inside, pull

POINTS = 2_000_000  # of the fixed grid that are compared, at most


class Similarity(NamedTuple):
    """Of intensities in [0, 1] (see `Intensity`).

    Attributes
    ----------
    ncc : float
        Normalised cross-correlation, in [-1, 1]; 0 where an image is constant.
    mse : float
        Mean squared difference.
    nmi : float
        Normalised mutual information (see `nmi`), blind to contrast; NaN where both are constant.
    overlap : float
        Share of the fixed field of view that the moving image covers; only there the two were compared.
    """

    ncc: float
    mse: float
    nmi: float
    overlap: float


def similarity(pair: VolumePair, transform: Transform) -> Similarity | None:
    """Compare fixed(x) with moving(T(x)) inside the moving image's field of view.

    Ours: on every second (third ...) voxel of a fixed image of more than two million voxels.

    Parameters
    ----------
    pair : VolumePair
    transform : Transform
        Fixed world to moving world.

    Returns
    -------
    Similarity or None
        None where the images do not meet.
    """
    step = int(np.ceil((pair.fixed.values.size / POINTS) ** (1 / 3)))
    values = pair.fixed.values[::step, ::step, ::step]
    i, j, k = values.shape
    grid = Grid((i, j, k), pair.fixed.grid.affine @ np.diag([step, step, step, 1.0]))
    points = transform.map_points(grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)))
    seen = inside(pair.moving.grid, points)
    if not seen.any():
        return None
    moving = Intensity.of(pair.moving).scale(pull(pair.moving, grid, points).values[seen]).astype(np.float64)
    fixed = Intensity.of(pair.fixed).scale(values[seen]).astype(np.float64)
    spread = moving.std() * fixed.std()
    ncc = float(((moving - moving.mean()) * (fixed - fixed.mean())).mean() / spread) if spread > 0 else 0.0
    return Similarity(ncc, float(((moving - fixed) ** 2).mean()), nmi(moving, fixed), float(seen.mean()))


def nmi(a: NDArray, b: NDArray, bins: int = 32) -> float:
    """Normalised mutual information 2 I / (H(a) + H(b)): 0 unrelated, 1 equal; NaN if both are constant.

    Ours: 32 bins between the 0.5th and 99.5th percentile of each image, so that a few bright
    voxels do not squeeze the rest into one bin.
    """
    return information(_binned(a, bins), _binned(b, bins), bins)


def information(a: NDArray[np.int64], b: NDArray[np.int64], bins: int) -> float:
    """2 I / (H(a) + H(b)) of values already sorted into bins from 0; NaN if both fill one bin."""
    joint = np.bincount((a * bins + b).ravel(), minlength=bins * bins).reshape(bins, bins)
    apart = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
    return 2 * (apart - _entropy(joint)) / apart if apart > 0 else float("nan")


def _binned(values: NDArray, bins: int) -> NDArray:
    """The bin of each voxel, from 0, between two percentiles (between the extremes if these are equal)."""
    values = np.asarray(values, dtype=np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    if high <= low:
        low, high = values.min(), values.max()
    if high <= low:
        return np.zeros(values.shape, dtype=np.int64)
    return np.clip((values - low) / (high - low) * bins, 0, bins - 1).astype(np.int64)


def _entropy(counts: NDArray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
