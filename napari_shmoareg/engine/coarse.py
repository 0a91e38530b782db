"""Coarse copies of a pair, and how alike they are under an affine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.engine.overlap import overlap
from napari_shmoareg.engine.similarity import information
from napari_shmoareg.geometry import Grid, Volume, VolumePair, apply_affine, inside, slabs
from napari_shmoareg.geometry.resample import resample

Matrix = NDArray[np.float64]

LONGEST = 96  # voxels of the coarse grids along their longest axis
BINS = 32  # of the histograms
DETAIL_SIGMA = 1.5  # coarse voxels: the neighbourhood in which brightness is evened out
DETAIL_FLOOR = 0.005  # of the range: contrast below this is noise
LEAST_OVERLAP = 0.25  # of the smaller field of view, for images to be compared


@dataclass(frozen=True, eq=False)
class CoarsePair:
    """Both images in [0, 1], each on a coarse upright grid of its own.

    Ours: isotropic, along R, A, S, and at most 96 voxels long, whatever the headers are.
    """

    moving: Volume
    fixed: Volume

    @classmethod
    def of(cls, pair: VolumePair) -> CoarsePair:
        return cls(_upright(pair.moving), _upright(pair.fixed))

    def similarity(self, matrix: Matrix) -> float:
        """Normalised mutual information where the fields of view meet; 0 where they hardly do."""
        if overlap(self.moving.grid, self.fixed.grid, matrix) < LEAST_OVERLAP:
            return 0.0
        return _mutual_information(*self._common(matrix))

    def correlation(self, matrix: Matrix) -> float:
        """Correlation where the fields of view meet; 0 where they hardly do."""
        if overlap(self.moving.grid, self.fixed.grid, matrix) < LEAST_OVERLAP:
            return 0.0
        moving, fixed = self._common(matrix)
        if moving.std() == 0 or fixed.std() == 0:
            return 0.0
        return float(np.corrcoef(moving, fixed)[0, 1])

    def _common(self, matrix: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Values of moving and fixed where the fields of view meet."""
        read = resample(self.moving, self.fixed.grid, world_map=matrix).values
        seen = np.empty(self.fixed.grid.shape, dtype=bool)
        for part, points in slabs(self.fixed.grid):
            seen[part] = inside(self.moving.grid, apply_affine(matrix, points))
        return read[seen], self.fixed.values[seen]

    @property
    def detail(self) -> CoarsePair:
        """Both with their brightness and contrast evened out locally, in [0, 1]."""
        return CoarsePair(_evened(self.moving), _evened(self.fixed))

    @property
    def starts(self) -> dict[str, Matrix]:
        """Translations to start from."""
        moving, fixed = self.moving, self.fixed
        return {
            "the centres of the fields of view": _translation(moving.grid.centre - fixed.grid.centre),
            "the centres of mass": _translation(_centre_of_mass(moving) - _centre_of_mass(fixed)),
        }


def _upright(volume: Volume) -> Volume:
    """In [0, 1] on an isotropic grid along R, A, S around the field of view, at most 96 voxels long."""
    corners = volume.grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = max((high - low).max() / LONGEST, min(volume.grid.spacing))
    i, j, k = (max(2, int(n)) for n in np.ceil((high - low) / spacing - 1e-6))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (np.array([i, j, k]) - 1) / 2
    coarse = resample(volume, Grid((i, j, k), affine))
    return coarse.with_values(Intensity.of(volume).scale(coarse.values))


def _evened(volume: Volume) -> Volume:
    """(value - local mean) / local standard deviation; +-3 of these to [0, 1]."""
    mean = gaussian_filter(volume.values, DETAIL_SIGMA)
    square = gaussian_filter(volume.values**2, DETAIL_SIGMA)
    deviation = np.sqrt(np.maximum(square - mean**2, 0)) + DETAIL_FLOOR
    return volume.with_values(np.clip((volume.values - mean) / deviation / 6 + 0.5, 0, 1))


def _mutual_information(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """2 I / (H(a) + H(b)) of values in [0, 1], from a joint histogram."""
    codes = [np.minimum((v * BINS).astype(np.int64), BINS - 1) for v in (a, b)]
    return float(np.nan_to_num(information(codes[0], codes[1], BINS)))


def _centre_of_mass(volume: Volume) -> NDArray[np.float64]:
    mass = volume.values.astype(np.float64)
    index = [
        np.average(np.arange(n), weights=mass.sum(axis=tuple(a for a in range(3) if a != axis)))
        for axis, n in enumerate(mass.shape)
    ]
    return volume.grid.to_world(index)


def _translation(shift: NDArray[np.float64]) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix
