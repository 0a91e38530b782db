"""A pair onto the network grid, and the way back.

Sec. IV-A.  `Conformed` is the only door between voxels of the network and millimetres.
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
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.registration.intensity import Intensity, content_points
from napari_shmoareg.registration.known_motion import KnownMotion
from napari_shmoareg.settings import check_size

MARGIN = 0.05  # of the content's extent, on each side
MARGIN_VOXELS = 2  # of the network grid, at least


@dataclass(frozen=True, eq=False)
class Conformed:
    """What the network sees, and the way back.

    Attributes
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), float32 in [0, 1]
        Both on the network grid, axes nearest to right, front, up.
    grid : Grid
        The network grid, in the fixed image's world.
    affine : (4, 4) array
        Fixed world to moving world, mm RAS: `moving` was read through it.
    pair : VolumePair or None
        What was conformed.
    moving_labels, fixed_labels : Tensor (1, 1, D, H, W), float32 whole numbers, or None
    motion : KnownMotion or None
        The true motion, moving image first, where the pair was made of one subject.
    """

    moving: Tensor
    fixed: Tensor
    grid: Grid
    affine: NDArray[np.float64]
    pair: VolumePair | None = None
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None
    motion: KnownMotion | None = None

    def transform(self, displacement: Tensor) -> Transform:
        """The transform, in the world, of a displacement on the network grid.

        T(x) = A(x + d(x)): the network saw moving(A(p)) at p, so this is exact.

        Parameters
        ----------
        displacement : Tensor (1, 3, D, H, W), voxels of the network grid

        Returns
        -------
        Transform
            Fixed world to moving world, mm RAS.  Beyond the network grid the displacement
            of its edge goes on (no fading), so that no seam shows in the warped image.

        Raises
        ------
        InputError
            If the displacement does not stand on the network grid.
        """
        if tuple(displacement.shape) != (1, 3, *self.grid.shape):
            raise InputError(
                f"A displacement of the shape {(1, 3, *self.grid.shape)} was expected, one vector"
                f" for each voxel of the network grid; got {tuple(displacement.shape)}."
            )
        return Transform(self.affine, DisplacementField.from_voxels(displacement, self.grid))


def conform(
    pair: VolumePair,
    *,
    size: int | str = 64,
    affine: NDArray[np.float64] | None = None,
    labels: bool = False,
) -> Conformed:
    """Bring a pair onto one grid that the network can take.

    Parameters
    ----------
    pair : VolumePair
        Any orientation, spacing, dtype, size and field of view; the two need share nothing.
    size : int or "native"
        Voxels along the longest axis of the network grid (see `network_grid`).
    affine : (4, 4) array or None
        Fixed world to moving world, mm RAS; None trusts the headers.
    labels : bool
        Carry the label maps too (nearest neighbour), where the pair has them.

    Returns
    -------
    Conformed

    Raises
    ------
    InputError
        If an image cannot be registered (see `Volume.check_image`) or the size is none.
    """
    pair.moving.check_image("moving")
    pair.fixed.check_image("fixed")
    matrix = np.eye(4) if affine is None else np.array(affine, dtype=np.float64)
    grid = network_grid(pair, size=size, affine=matrix)
    moving_labels = fixed_labels = None
    if labels and pair.moving_labels is not None:
        moving_labels = _tensor(resample(pair.moving_labels, grid, world_map=matrix).values)
    if labels and pair.fixed_labels is not None:
        fixed_labels = _tensor(resample(pair.fixed_labels, grid).values)
    return Conformed(
        moving=_seen(pair.moving, grid, matrix),
        fixed=_seen(pair.fixed, grid, np.eye(4)),
        grid=grid,
        affine=matrix,
        pair=pair,
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
    )


def network_grid(
    pair: VolumePair, *, size: int | str, affine: NDArray[np.float64] | None = None
) -> Grid:
    """The grid on which the network compares a pair.

    Ours: the fixed image's axes, permuted and flipped to lie nearest to R, A, S (oblique axes
    stay oblique); the box around the content of both images with a margin of 5 % (at least two
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
    first_guess = (1 + 2 * MARGIN) * extent.max() / size
    margin = np.maximum(MARGIN * extent, MARGIN_VOXELS * first_guess) / spacing
    low = np.maximum(low - margin, -0.5)
    high = np.minimum(high + margin, np.array(canonical.shape) - 0.5)
    extent = (high - low) * spacing
    voxel = max(extent.max() / size, spacing.min())
    i, j, k = (max(2, int(n)) for n in np.ceil(extent / voxel - 1e-6))
    directions = canonical.affine[:3, :3] / spacing * voxel
    placed = np.eye(4)
    placed[:3, :3] = directions
    placed[:3, 3] = canonical.to_world((low + high) / 2) - directions @ (
        (np.array([i, j, k]) - 1) / 2
    )
    return Grid((i, j, k), placed)


def _content_box(
    pair: VolumePair, grid: Grid, matrix: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxel edges (low, high), in indices of `grid`, around the content of both images, within its
    field of view.
    """
    fixed, moving = (content_points(v, Intensity.of(v)) for v in (pair.fixed, pair.moving))
    place = apply_affine(np.linalg.inv(matrix), pair.moving.grid.to_world(moving))
    index = np.concatenate([grid.to_index(pair.fixed.grid.to_world(fixed)), grid.to_index(place)])
    most = np.array(grid.shape) - 1.0
    return np.clip(index.min(axis=0), 0, most) - 0.5, np.clip(index.max(axis=0), 0, most) + 0.5


def _seen(volume: Volume, grid: Grid, matrix: NDArray[np.float64]) -> Tensor:
    return _tensor(Intensity.of(volume).scale(resample(volume, grid, world_map=matrix).values))


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
