"""How alike two images are under a transform, where both were seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
    overlap : float
        Share of the fixed field of view that the moving image covers; only there the two were compared.
    """

    ncc: float
    mse: float
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
    return Similarity(ncc, float(((moving - fixed) ** 2).mean()), float(seen.mean()))
