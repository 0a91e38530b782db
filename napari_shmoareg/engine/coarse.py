"""Coarse copies of a pair, for the optimisers of the alignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.geometry.resample import resample

LONGEST = 96  # voxels of the coarse grids along their longest axis
DETAIL_SIGMA = 1.5  # coarse voxels: the neighbourhood in which brightness is evened out
DETAIL_FLOOR = 0.005  # of the range: contrast below this is noise


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

    @property
    def detail(self) -> CoarsePair:
        """Both with their brightness and contrast evened out locally, in [0, 1]."""
        return CoarsePair(_evened(self.moving), _evened(self.fixed))

    def centre_of_mass(self, role: str) -> NDArray[np.float64]:
        """World position (mm, RAS) of the mean of brightness of one image, "moving" or "fixed"."""
        volume: Volume = getattr(self, role)
        mass = volume.values.astype(np.float64)
        index = [
            np.average(np.arange(n), weights=mass.sum(axis=tuple(a for a in range(3) if a != axis)))
            for axis, n in enumerate(mass.shape)
        ]
        return volume.grid.to_world(index)


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
