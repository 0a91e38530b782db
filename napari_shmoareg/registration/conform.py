"""Resample a pair to the network grid, and convert displacements back to mm.

Sec. IV-A.  Only `Conformed` converts between voxels of the network grid and millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import (
    DisplacementField,
    Grid,
    Transform,
    Volume,
    VolumePair,
    apply_affine,
)
from napari_shmoareg.geometry.field import compose
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.registration.intensity import Intensity, content_points
from napari_shmoareg.registration.known_motion import KnownMotion
from napari_shmoareg.settings import check_size

MARGIN = 0.05  # fraction of the content's extent, on each side
MARGIN_VOXELS = 2  # of the network grid, at least


@dataclass(frozen=True, eq=False)
class Conformed:
    """A pair on the network grid: the input of the network.

    Attributes
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), float32 in [0, 1]
        Both on the network grid, with axes nearest to R, A, S.
    grid : Grid
        The network grid, in the fixed image's world.
    affine : (4, 4) array
        Fixed world to moving world, mm RAS, applied to `moving`.
    start : Tensor (1, 3, D, H, W), voxels, or None
        Initial displacement, applied to `moving` before the affine.
    mask : Tensor (1, 1, D, H, W), 0 or 1, or None
        Where the refinement compares the images.
    pair : VolumePair or None
        The original pair.
    moving_labels, fixed_labels : Tensor (1, 1, D, H, W), float32 whole numbers, or None
    motion : KnownMotion or None
        The true motion, moving image first, of a synthetic pair of one subject.
    """

    moving: Tensor
    fixed: Tensor
    grid: Grid
    affine: NDArray[np.float64]
    pair: VolumePair | None = None
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None
    motion: KnownMotion | None = None
    start: Tensor | None = None
    mask: Tensor | None = None

    def transform(self, displacement: Tensor) -> Transform:
        """Convert a displacement on the network grid to a transform in the world.

        T(x) = A(x + d(x)): exact, as the network input at p is moving(A(p)).  An initial
        displacement is composed with it.

        Parameters
        ----------
        displacement : Tensor (1, 3, D, H, W), voxels of the network grid

        Returns
        -------
        Transform
            Fixed world to moving world, mm RAS.  Beyond the network grid the edge displacement is
            used (without fading), so that no seam appears in the warped image.

        Raises
        ------
        InputError
            If the displacement is not on the network grid.
        """
        if tuple(displacement.shape) != (1, 3, *self.grid.shape):
            raise InputError(
                f"A displacement of shape {(1, 3, *self.grid.shape)} was expected, one vector per"
                f" voxel of the network grid; got {tuple(displacement.shape)}."
            )
        if self.start is not None:
            displacement = compose(self.start, displacement.to(self.start))
        return Transform(self.affine, DisplacementField.from_voxels(displacement, self.grid))


def conform(
    pair: VolumePair,
    *,
    size: int | str = 64,
    affine: NDArray[np.float64] | None = None,
    start: DisplacementField | None = None,
    labels: bool = False,
) -> Conformed:
    """Resample a pair to a common network grid.

    Parameters
    ----------
    pair : VolumePair
        Any orientation, spacing, dtype, size and field of view of either image.
    size : int or "native"
        Voxels along the longest axis of the network grid (see `network_grid`).
    affine : (4, 4) array or None
        Fixed world to moving world, mm RAS; None uses the headers only.
    start : DisplacementField or None
        Initial displacement d of the images, not of labels: `moving` is sampled at A(x + d(x)).
    labels : bool
        Also resample the label maps of the pair (nearest neighbour).

    Returns
    -------
    Conformed

    Raises
    ------
    InputError
        If an image cannot be registered (see `Volume.check_image`) or the size is not valid.
    """
    pair.moving.check_image("moving")
    pair.fixed.check_image("fixed")
    matrix = np.eye(4) if affine is None else np.array(affine, dtype=np.float64)
    grid = network_grid(pair, size=size, affine=matrix)
    moving, bend = _scaled(pair.moving, grid, matrix), None
    if start is not None:
        bend = start.on(grid).to_voxels()
        warped = Transform(matrix, start).total(grid).warp(pair.moving)
        moving = _tensor(Intensity.of(pair.moving).scale(warped.values))
    mask = pair.fixed_mask
    counted = None if mask is None else _tensor(resample(mask, grid).values != 0)
    moving_labels = fixed_labels = None
    if labels and pair.moving_labels is not None:
        moving_labels = _tensor(resample(pair.moving_labels, grid, world_map=matrix).values)
    if labels and pair.fixed_labels is not None:
        fixed_labels = _tensor(resample(pair.fixed_labels, grid).values)
    return Conformed(
        moving=moving,
        fixed=_scaled(pair.fixed, grid, np.eye(4)),
        grid=grid,
        affine=matrix,
        pair=pair,
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        start=bend,
        mask=counted,
    )


def network_grid(
    pair: VolumePair, *, size: int | str, affine: NDArray[np.float64] | None = None
) -> Grid:
    """Choose the network grid of a pair.

    Ours: the axes of the fixed image, permuted and flipped to be nearest to R, A, S (oblique axes
    stay oblique); the bounding box of the content of both images with a margin of 5 % (at least two
    voxels), within the fixed field of view; isotropic voxels, `size` of them along the longest
    axis, but never finer than the finest spacing of the fixed image.  ``"native"`` is the fixed
    image's own grid, uncropped, with its own spacing.

    Raises
    ------
    InputError
        If `size` is neither "native" nor a whole number of at least 8.
    """
    check_size(size)
    canonical = pair.fixed.grid.canonical()
    if isinstance(size, str):
        return canonical
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    spacing = np.array(canonical.spacing)
    low, high = _content_box(pair, canonical, matrix)
    extent = (high - low) * spacing
    rough_voxel = (1 + 2 * MARGIN) * extent.max() / size
    margin = np.maximum(MARGIN * extent, MARGIN_VOXELS * rough_voxel) / spacing
    low = np.maximum(low - margin, -0.5)
    high = np.minimum(high + margin, np.array(canonical.shape) - 0.5)
    extent = (high - low) * spacing
    voxel = max(extent.max() / size, spacing.min())
    i, j, k = (max(2, int(n)) for n in np.ceil(extent / voxel - 1e-6))
    directions = canonical.affine[:3, :3] / spacing * voxel
    affine_of_grid = np.eye(4)
    affine_of_grid[:3, :3] = directions
    affine_of_grid[:3, 3] = canonical.to_world((low + high) / 2) - directions @ (
        (np.array([i, j, k]) - 1) / 2
    )
    return Grid((i, j, k), affine_of_grid)


def _content_box(
    pair: VolumePair, grid: Grid, matrix: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounding box (low, high) of the content of both images, in indices of `grid`."""
    fixed, moving = (content_points(v, Intensity.of(v)) for v in (pair.fixed, pair.moving))
    warped = apply_affine(np.linalg.inv(matrix), pair.moving.grid.to_world(moving))
    index = np.concatenate([grid.to_index(pair.fixed.grid.to_world(fixed)), grid.to_index(warped)])
    most = np.array(grid.shape) - 1.0
    return np.clip(index.min(axis=0), 0, most) - 0.5, np.clip(index.max(axis=0), 0, most) + 0.5


def _scaled(volume: Volume, grid: Grid, matrix: NDArray[np.float64]) -> Tensor:
    return _tensor(Intensity.of(volume).scale(resample(volume, grid, world_map=matrix).values))


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
