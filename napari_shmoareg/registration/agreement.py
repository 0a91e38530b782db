"""Agreement of two coarse images under an affine.

Ours.  Similarity within the overlap of two fields of view can always be increased by shifting
mismatched parts out of view.  The agreement therefore includes the coverage: the fraction of the
content of an image inside the other field of view.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from napari_shmoareg.geometry import Grid, Volume, VolumePair, apply_affine
from napari_shmoareg.geometry.resample import resample, resample_mask
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.similarity import information

Matrix = NDArray[np.float64]
Array = NDArray[np.float32]

BINS = 32  # of the joint histogram
DETAIL_SIGMA = 1.5  # voxels: neighbourhood of the local normalisation
DETAIL_FLOOR = 0.02  # fraction of the range: contrast below this is noise
LEAST_VOXELS = 64  # compared voxels below which the agreement counts as 0


class Agreement(NamedTuple):
    """Agreement of two images under one affine.

    Attributes
    ----------
    information : float
        Normalised mutual information in [0, 1], in the overlap of the fields of view.
    detail : float
        Correlation of locally normalised brightness over the content in it, in [-1, 1].
    coverage : float
        Fraction of the content of one image inside the other's field of view: the larger of the
        two, since one image may show only a part of the other.
    """

    information: float
    detail: float
    coverage: float

    @property
    def score(self) -> float:
        """Mean of information and detail times the square root of the coverage, in [0, 1]."""
        return float(np.sqrt(self.coverage) * (self.information + max(self.detail, 0.0)) / 2)


@dataclass(frozen=True, eq=False)
class CoarseImage:
    """An image on a coarse isotropic grid along R, A, S.

    Attributes
    ----------
    grid : Grid
    values : (I, J, K) array
        In [0, 1] (see `Intensity`).
    detail : (I, J, K) array
        (value - local mean) / local standard deviation, clipped to +-3.
    in_view : (I, J, K) bool array
        Voxels inside the field of view of the original, and in its mask.
    content : (I, J, K) bool array
        Those of them that differ from the background.
    """

    grid: Grid
    values: Array
    detail: Array
    in_view: NDArray[np.bool_]
    content: NDArray[np.bool_]

    @classmethod
    def of(cls, volume: Volume, spacing: float, mask: Volume | None = None) -> CoarseImage:
        """Resample a volume, and where it is compared, to a spacing in mm."""
        corners = volume.grid.corners()
        low, high = corners.min(axis=0), corners.max(axis=0)
        shape = np.maximum(1, np.ceil((high - low) / spacing - 1e-6)).astype(int)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = (low + high) / 2 - spacing * (shape - 1) / 2
        grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
        intensity = Intensity.of(volume)
        values = intensity.scale(resample(volume, grid).values)
        index = volume.grid.to_index(grid.to_world(indices(grid.shape)))
        in_view = np.asarray(
            ((index >= -0.5) & (index <= np.array(volume.grid.shape) - 0.5)).all(axis=-1)
        )
        if mask is not None:
            in_view &= resample_mask(mask, grid)
        empty = float(intensity.scale(np.array([intensity.background]))[0])
        content = in_view & (np.abs(values - empty) > 0.05)
        mean = gaussian_filter(values, DETAIL_SIGMA)
        square = gaussian_filter(values**2, DETAIL_SIGMA)
        deviation = np.sqrt(np.maximum(square - mean**2, 0)) + DETAIL_FLOOR
        detail = np.clip((values - mean) / deviation, -3, 3).astype(np.float32)
        return cls(grid, values, detail, in_view, content)


@dataclass(frozen=True, eq=False)
class CoarseImages:
    """Both images of a pair at one spacing."""

    moving: CoarseImage
    fixed: CoarseImage

    @classmethod
    def of(cls, pair: VolumePair, longest: int) -> CoarseImages:
        """Resample to at most `longest` voxels along the longest axis of either field of view."""
        volumes = pair.moving, pair.fixed
        extent = max(float(np.ptp(volume.grid.corners(), axis=0).max()) for volume in volumes)
        spacing = max(extent / longest, *(min(volume.grid.spacing) for volume in volumes))
        with ThreadPoolExecutor(2) as both:
            return cls(
                *both.map(CoarseImage.of, volumes, (spacing, spacing), (None, pair.fixed_mask))
            )

    def agreement(self, matrix: Matrix) -> Agreement:
        """Compute the agreement under an affine, fixed world to moving world in mm RAS."""
        moving, fixed = self.moving, self.fixed
        steps = moving.grid.inverse @ matrix @ fixed.grid.affine
        index = np.moveaxis(apply_affine(steps, indices(fixed.grid.shape)), -1, 0)
        near = np.rint(index).astype(np.intp)
        limits = np.array(moving.grid.shape)[:, None, None, None]
        inside = ((near >= 0) & (near < limits)).all(axis=0)
        i, j, k = np.clip(near, 0, limits - 1)
        shown = moving.content[i, j, k]
        both = inside & moving.in_view[i, j, k] & fixed.in_view
        if int(both.sum()) < LEAST_VOXELS:
            return Agreement(0.0, 0.0, 0.0)
        sampled = map_coordinates(moving.values, index[:, both], order=1, mode="nearest")
        codes = [
            np.minimum((v * BINS).astype(np.int64), BINS - 1) for v in (sampled, fixed.values[both])
        ]
        shared = float(np.nan_to_num(information(codes[0], codes[1], BINS)))
        content = both & (fixed.content | shown)
        detail = 0.0
        if int(content.sum()) >= LEAST_VOXELS:
            a = map_coordinates(moving.detail, index[:, content], order=1, mode="nearest")
            b = fixed.detail[content]
            if a.std() > 0 and b.std() > 0:
                detail = float(np.corrcoef(a, b)[0, 1])
        size = abs(float(np.linalg.det(steps[:3, :3])))
        of_fixed = (fixed.content & both).sum() / max(1, int(fixed.content.sum()))
        of_moving = size * (shown & both).sum() / max(1, int(moving.content.sum()))
        return Agreement(shared, detail, float(min(1.0, max(of_fixed, of_moving))))


def indices(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return all voxel indices (I, J, K, 3) of a shape."""
    return np.stack(
        np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"), axis=-1
    )
