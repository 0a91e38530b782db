"""Grid: shape and affine of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.errors import InputError

SAME_SPACE = 0.1  # voxels by which the corners of two grids may differ to count as the same


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxel centres.

    Parameters
    ----------
    shape : tuple of 3 int
        Number of voxels along array axes i, j, k.
    affine : (4, 4) array, float64
        Voxel index (i, j, k, 1) to world position in mm, RAS+ (x to the right, y to the front,
        z up).  Any orientation, including oblique and sheared axes.

    Raises
    ------
    InputError
        If the shape is not three positive numbers, or the affine is not finite and invertible
        (for example with a zero spacing).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(
                f"A grid needs three axes of at least one voxel; got the shape {shape}."
            )
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError(
                f"An affine is a finite 4x4 matrix (voxel index to mm); got\n{affine}."
            )
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(lengths).all():
            raise InputError(
                f"An affine is a finite 4x4 matrix (voxel index to mm); got\n{affine}."
            )
        if lengths.min() <= 0:
            raise InputError(
                f"The voxel spacing is {tuple(lengths.round(6).tolist())} mm; every axis needs a"
                " spacing above 0. Correct the header of the file."
            )
        if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6 or not np.allclose(
            affine[3], [0, 0, 0, 1]
        ):
            raise InputError(
                "The affine is singular (two axes point the same way), so voxels have no"
                f" position in the world:\n{affine}\nCorrect the header of the file."
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k, in mm."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def inverse(self) -> NDArray[np.float64]:
        """Affine from world (mm) to voxel index, (4, 4)."""
        return np.asarray(np.linalg.inv(self.affine), dtype=np.float64)

    @property
    def centre(self) -> NDArray[np.float64]:
        """World position (mm, RAS) of the centre of the field of view."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Convert voxel indices (..., 3) to world positions (..., 3) in mm."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """Convert world positions (..., 3) in mm to fractional voxel indices (..., 3)."""
        inverse = self.inverse
        return np.asarray(world, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def corners(self) -> NDArray[np.float64]:
        """Return the world positions (8, 3) of the corners of the field of view (voxel edges)."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        return self.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(8, 3))

    def coarsen(self, stride: int) -> Grid:
        """Return the token grid: same field of view, voxels `stride` times as long.

        A partial token at the end is extended to a whole one, as in a padded network.
        """
        i, j, k = (-(-n // stride) for n in self.shape)
        return Grid((i, j, k), self.affine @ _scaling(stride, (stride - 1) / 2))

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """Return the box of `shape` voxels from index `start`; it may extend outside the grid."""
        shift = np.eye(4)
        shift[:3, 3] = start
        i, j, k = shape
        return Grid((i, j, k), self.affine @ shift)

    def resampled(self, spacing: float | Sequence[float]) -> Grid:
        """Return the grid with another spacing in mm: same centre, field of view rounded up."""
        target = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
        if not (np.isfinite(target).all() and target.min() > 0):
            raise InputError(f"A spacing is a positive number of mm; got {spacing}.")
        extent = np.array(self.shape) * np.array(self.spacing)
        i, j, k = np.maximum(1, np.ceil(extent / target - 1e-6)).astype(int)
        matrix = self.affine[:3, :3] / np.array(self.spacing) * target
        affine = np.eye(4)
        affine[:3, :3] = matrix
        affine[:3, 3] = self.centre - matrix @ ((np.array([i, j, k]) - 1) / 2)
        return Grid((int(i), int(j), int(k)), affine)

    def axes_to_ras(self) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Find the array axis nearest to each of x, y, z, and whether it runs backwards.

        Returns
        -------
        order : (3,) int
            ``order[0]`` is the array axis nearest to left-right, etc.
        flip : (3,) bool
            Whether that axis points left / back / down.
        """
        directions = self.affine[:3, :3] / np.array(self.spacing)
        best = max(
            permutations(range(3)),
            key=lambda p: sum(abs(directions[r, c]) for r, c in enumerate(p)),
        )
        order = np.array(best)
        flip = np.array([directions[r, c] < 0 for r, c in enumerate(best)])
        return order, flip

    def canonical(self) -> Grid:
        """Return the same voxels with axes permuted and flipped to be nearest to R, A, S."""
        order, flip = self.axes_to_ras()
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for new, (old, back) in enumerate(zip(order, flip, strict=True)):
            matrix[old, new] = -1 if back else 1
            matrix[old, 3] = self.shape[old] - 1 if back else 0
        i, j, k = (self.shape[axis] for axis in order)
        return Grid((i, j, k), self.affine @ matrix)

    def distance(self, other: Grid) -> float:
        """Return the largest distance between corners of two grids of equal shape, in voxels.

        The distance along one axis, in voxels of the grid with the smaller voxels.
        """
        own, others = self.corners(), other.corners()
        in_own = np.abs(self.to_index(others) - self.to_index(own)).max()
        in_other = np.abs(other.to_index(others) - other.to_index(own)).max()
        return float(max(in_own, in_other))

    def same_space(self, other: Grid, tolerance: float = SAME_SPACE) -> bool:
        """Whether the shapes are equal and the corners differ by at most `tolerance` voxels.

        Ours: a tenth of a voxel by default.  Headers rewritten by another program differ by
        hundredths (single precision, a quaternion, four digits), which changes no result here; a
        tolerance in mm would be too coarse for microscopy.
        """
        return self.shape == other.shape and self.distance(other) <= tolerance


def _scaling(factor: float, offset: float) -> NDArray[np.float64]:
    """Return the 4x4 index map: fine index = factor * coarse index + offset on every axis."""
    matrix = np.diag([factor, factor, factor, 1.0])
    matrix[:3, 3] = offset
    return matrix
