"""Displacement fields in mm, and the transform of a registration.

A transform maps points of the fixed image's world to the moving image's: T(x) = A(x + d(x)).
Images are warped by it: warped(x) = moving(T(x)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry.field import jacobian_determinant, sample
from napari_shmoareg.geometry.grid import Grid
from napari_shmoareg.geometry.resample import (
    Points,
    apply_affine,
    lattice,
    pull,
    pull_by,
    slab_slices,
    slabs,
    transform_vectors,
)
from napari_shmoareg.geometry.volume import Volume, fill_value


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement d(x) on a grid, in mm.

    Parameters
    ----------
    vectors : (I, J, K, 3) array, float32, mm along RAS
        Component 0 points right, 1 front, 2 up, whatever the axes of the grid.
    grid : Grid

    Raises
    ------
    InputError
        If the vectors are not three finite components on the grid.
    """

    vectors: NDArray[np.float32]
    grid: Grid

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors, dtype=np.float32)
        if vectors.shape != (*self.grid.shape, 3):
            raise InputError(
                f"A displacement field on the grid {self.grid.shape} has the shape"
                f" {(*self.grid.shape, 3)}; got {vectors.shape}."
            )
        if not np.isfinite(vectors).all():
            raise InputError(
                "The displacement field contains NaN or infinite values; finite vectors in mm"
                " were expected."
            )
        object.__setattr__(self, "vectors", vectors)

    @classmethod
    def from_voxels(cls, displacement: Tensor, grid: Grid) -> DisplacementField:
        """Convert a displacement (1, 3, D, H, W) in voxels of `grid`, component c along axis c."""
        voxels = displacement.detach().cpu().double()[0].permute(1, 2, 3, 0).numpy()
        return cls(transform_vectors(grid.affine, voxels).astype(np.float32), grid)

    def to_voxels(self) -> Tensor:
        """Convert to (1, 3, D, H, W), float32 voxels of the grid, component c along axis c."""
        voxels = transform_vectors(self.grid.inverse, self.vectors)
        return torch.from_numpy(
            np.ascontiguousarray(voxels.transpose(3, 0, 1, 2), dtype=np.float32)
        )[None]

    def at(self, points: ArrayLike) -> Points:
        """Interpolate the displacement (..., 3) in mm at world points; edge value outside."""
        world = np.asarray(points, dtype=np.float64)
        index = apply_affine(self.grid.inverse, world).reshape(1, 1, 1, -1, 3)
        positions = torch.from_numpy(index.astype(np.float32)).permute(0, 4, 1, 2, 3)
        image = torch.from_numpy(self.vectors).permute(3, 0, 1, 2)[None]
        found = sample(image, positions, padding="border")[0, :, 0, 0]
        return found.numpy().T.astype(np.float64).reshape(world.shape)

    def inverse(self, grid: Grid) -> DisplacementField:
        """Compute the inverse displacement on another grid: e(y) = x - y where x + d(x) = y.

        Where d folds there may be several solutions or none; the best one found is used.
        """
        vectors = np.empty((*grid.shape, 3), dtype=np.float32)
        for part, points in slabs(grid):
            vectors[part] = _solve(self, points) - points
        return DisplacementField(vectors, grid)

    def after(self, affine: NDArray[np.float64]) -> DisplacementField:
        """Compose with a following affine, on the same grid: A(x + d(x)) - x."""
        matrix = np.asarray(affine, dtype=np.float64)
        if np.array_equal(matrix, np.eye(4)):
            return self
        vectors = np.empty_like(self.vectors)
        offset = (matrix - np.eye(4)) @ self.grid.affine
        for part in slab_slices(self.grid):
            moved = transform_vectors(matrix, self.vectors[part])
            moved += lattice(offset, part.start, moved.shape[:3])
            vectors[part] = moved
        return DisplacementField(vectors, self.grid)

    def on(self, grid: Grid) -> DisplacementField:
        """Resample to another grid: linear interpolation, edge value outside."""
        if self.grid == grid:
            return self
        axes = _shared_axes(self.grid, grid)
        if axes is None:
            vectors = np.empty((*grid.shape, 3), dtype=np.float32)
            for part, points in slabs(grid):
                vectors[part] = self.at(points)
            return DisplacementField(vectors, grid)
        to_index = self.grid.inverse @ grid.affine
        # axes in the order of the other grid
        values = torch.from_numpy(self.vectors).permute(3, *np.argsort(axes))
        for along, own in enumerate(np.argsort(axes)):
            positions = to_index[own, along] * np.arange(grid.shape[along]) + to_index[own, 3]
            matrix = torch.from_numpy(_linear_weights(positions, self.grid.shape[own]))
            # tensordot appends the new axis and so moves the next one to the front
            values = torch.tensordot(values, matrix, dims=([1], [1]))
        return DisplacementField(values.permute(1, 2, 3, 0).contiguous().numpy(), grid)

    def warp(self, volume: Volume, outside: float | None = None) -> Volume:
        """Warp a volume onto the grid of the field: sample it at x + d(x), by one interpolation.

        `outside` is as for `pull`.
        """
        return pull_by(volume, self.grid, self.vectors, outside)

    def jacobian(self) -> NDArray[np.float32]:
        """Compute det(I + dd/dx), (I, J, K): 1 is no volume change, 0 or less is folding."""
        result = np.empty(self.grid.shape, dtype=np.float32)
        for part, _ in slabs(self.grid):
            first, last = max(part.start - 1, 0), min(part.stop + 1, self.grid.shape[0])
            piece = DisplacementField(
                self.vectors[first:last],
                self.grid.crop((first, 0, 0), (last - first, *self.grid.shape[1:])),
            )
            jacobian = jacobian_determinant(piece.to_voxels())[0, 0].numpy()
            result[part] = jacobian[part.start - first : part.stop - first]
        return result


@dataclass(frozen=True, eq=False)
class Transform:
    """Fixed world to moving world: T(x) = A(x + d(x)), mm RAS.

    Parameters
    ----------
    affine : (4, 4) array
        A: fixed world to moving world.
    field : DisplacementField or None
        d, in the fixed world, before the affine.  Beyond its grid the edge value is used (without
        fading), so that no seam appears.

    Raises
    ------
    InputError
        If the matrix is not an invertible affine.
    """

    affine: NDArray[np.float64]
    field: DisplacementField | None = None

    def __post_init__(self) -> None:
        matrix = np.array(self.affine, dtype=np.float64)
        if (
            matrix.shape != (4, 4)
            or not np.isfinite(matrix).all()
            or not np.allclose(matrix[3], [0, 0, 0, 1])
        ):
            raise InputError(
                "An affine transform is a finite 4x4 matrix with the last row 0 0 0 1;"
                f" got\n{matrix}."
            )
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise InputError(f"The affine transform is singular and cannot be inverted:\n{matrix}.")
        matrix.setflags(write=False)
        object.__setattr__(self, "affine", matrix)

    def map_points(self, points: ArrayLike) -> Points:
        """Map points (..., 3) of the fixed image to the moving image, mm RAS."""
        fixed = np.asarray(points, dtype=np.float64)
        return apply_affine(
            self.affine, fixed if self.field is None else fixed + self.field.at(fixed)
        )

    def inverse_points(self, points: ArrayLike) -> Points:
        """Map points (..., 3) of the moving image to the fixed image, mm RAS.

        Solved numerically, to 0.01 voxel of the field's grid.  Where the field folds there may be
        several solutions or none, and the best one found is returned; its error is
        ``distance(result, points)``.
        """
        targets = apply_affine(np.linalg.inv(self.affine), points)
        return targets if self.field is None else _solve(self.field, targets)

    def distance(self, fixed_points: ArrayLike, moving_points: ArrayLike) -> NDArray[np.float64]:
        """Distances (...,) in mm between mapped fixed points and moving points, both (..., 3).

        The landmark error, or the residual of an inverse.
        """
        return np.linalg.norm(
            self.map_points(fixed_points) - np.asarray(moving_points, dtype=np.float64), axis=-1
        )

    def total(self, grid: Grid) -> DisplacementField:
        """Return the whole transform as one field on `grid`: D(x) = T(x) - x."""
        if self.field is not None:
            return self.field.on(grid).after(self.affine)
        return DisplacementField(np.zeros((*grid.shape, 3), dtype=np.float32), grid).after(
            self.affine
        )


def warp_volume(
    volume: Volume,
    reference: Grid,
    transform: Transform,
    *,
    inverse: bool = False,
    fill: float | str = "auto",
) -> Volume:
    """Warp a volume by a transform, with one interpolation of the original voxels.

    Parameters
    ----------
    volume : Volume
        The moving image or its labels; with `inverse` the fixed image or its labels.
    reference : Grid
        Grid of the result: that of the fixed image; with `inverse` that of the moving image.
    transform : Transform
    inverse : bool
        Warp from fixed to moving.
    fill : {"auto", "minimum", "air"} or float
        Value of an image outside the volume's field of view, see `fill_value`; labels get 0.

    Returns
    -------
    Volume
        On `reference`: float32 for images (float64 if values need it), the same dtype for labels.
    """
    points = transform.inverse_points if inverse else transform.map_points
    return pull(volume, reference, points, fill_value(volume, fill))


LandmarkKind = Literal["rigid", "affine", "thin-plate"]
LEAST_PAIRS = {"rigid": 3, "affine": 4, "thin-plate": 5}
DIMENSIONS = {"rigid": 2, "affine": 3, "thin-plate": 3}  # that the points have to span
SPANNED = {2: "on one line", 3: "in one plane"}
FLATNESS = 1e-3  # fraction of the largest extent below which points do not span a direction
NODES = 48  # of a thin-plate field, per axis


class LandmarkFit(NamedTuple):
    """A transform fitted to landmark pairs, and its description."""

    transform: Transform
    reason: str


def fit_landmarks(
    fixed: ArrayLike, moving: ArrayLike, kind: LandmarkKind, grid: Grid
) -> LandmarkFit:
    """Fit a transform to pairs of corresponding points.

    Rigid by Kabsch (1976), affine by least squares; thin-plate is the affine and, as a displacement
    field, the rest of a spline (kernel r^2 log r) through all points.

    Parameters
    ----------
    fixed, moving : (n, 3) arrays, mm RAS
        At least 3 pairs that are not on one line for rigid, 4 that are not in one plane for affine,
        and 5 for thin-plate.
    kind : {"rigid", "affine", "thin-plate"}
    grid : Grid
        Of the fixed image: the field covers it, on at most 48 nodes per axis.

    Returns
    -------
    LandmarkFit
        Fixed world to moving world.

    Raises
    ------
    InputError
        If the pairs do not determine the transform.
    """
    x, y = (np.asarray(points, dtype=np.float64).reshape(-1, 3) for points in (fixed, moving))
    if kind not in get_args(LandmarkKind):
        raise InputError(f"A landmark fit is rigid, affine or thin-plate; got {kind!r}.")
    _check_landmarks(x, y, kind)
    matrix = np.eye(4)
    if kind == "rigid":
        left, _, right = np.linalg.svd((y - y.mean(axis=0)).T @ (x - x.mean(axis=0)))
        proper = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
        matrix[:3, :3] = left @ proper @ right
        matrix[:3, 3] = y.mean(axis=0) - matrix[:3, :3] @ x.mean(axis=0)
    else:
        matrix[:3] = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0].T
    transform = Transform(matrix)
    if kind == "thin-plate":
        transform = Transform(matrix, _spline(x, apply_affine(np.linalg.inv(matrix), y) - x, grid))
    left_over = transform.distance(x, y).mean()
    return LandmarkFit(
        transform, f"{kind} fit of {len(x)} landmark pairs, to {left_over:.2f} mm on average"
    )


def _check_landmarks(fixed: Points, moving: Points, kind: LandmarkKind) -> None:
    """Refuse landmarks that do not determine a transform."""
    if len(fixed) != len(moving):
        raise InputError(
            f"Landmarks are pairs; got {len(fixed)} fixed and {len(moving)} moving points."
        )
    if len(fixed) < LEAST_PAIRS[kind]:
        raise InputError(
            f"A {kind} start needs at least {LEAST_PAIRS[kind]} landmark pairs; got {len(fixed)}."
            " Set more pairs, or start from the positions of the images."
        )
    if not (np.isfinite(fixed).all() and np.isfinite(moving).all()):
        raise InputError("Landmarks contain NaN or infinite values; finite points were expected.")
    for side, points in (("fixed", fixed), ("moving", moving)):
        extents = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        if extents[DIMENSIONS[kind] - 1] <= FLATNESS * extents[0]:
            raise InputError(
                f"The {side} landmarks lie {SPANNED[DIMENSIONS[kind]]}, so that they do not"
                f" determine a {kind} transform. Set further pairs away from it."
            )
        if kind == "thin-plate" and len(np.unique(points, axis=0)) < len(points):
            raise InputError(
                f"Two {side} landmarks are at the same point, through which no thin-plate spline"
                " passes. Remove one of the two pairs."
            )


def _spline(points: Points, vectors: Points, grid: Grid) -> DisplacementField:
    """Interpolate vectors at points by a thin-plate spline, on a coarse grid over the other."""
    from scipy.interpolate import RBFInterpolator

    shape = np.minimum(grid.shape, NODES)
    ratio = np.array(grid.shape) / shape
    to_index = np.diag([*ratio, 1.0])
    to_index[:3, 3] = (ratio - 1) / 2
    coarse = Grid((int(shape[0]), int(shape[1]), int(shape[2])), grid.affine @ to_index)
    spline = RBFInterpolator(points, vectors, kernel="thin_plate_spline")
    found = np.empty((*coarse.shape, 3), dtype=np.float32)
    for part, nodes in slabs(coarse):
        found[part] = spline(nodes.reshape(-1, 3)).reshape(nodes.shape)
    return DisplacementField(found, coarse)


def _shared_axes(one: Grid, other: Grid) -> list[int] | None:
    """Match each axis of a grid with the parallel axis (within 1e-4 voxels) of another, or None."""
    linear = (one.inverse @ other.affine)[:3, :3]
    axes = [int(a) for a in np.abs(linear).argmax(axis=1)]
    rest = np.abs(linear)
    rest[range(3), axes] = 0
    if sorted(axes) != [0, 1, 2] or (rest * np.array(other.shape)).max() > 1e-4:
        return None
    return axes


def _linear_weights(positions: Points, n: int) -> NDArray[np.float32]:
    """Weights (positions, n) that interpolate n values along an axis; end values outside."""
    inside = np.clip(positions, 0, n - 1)
    low = np.minimum(inside.astype(int), max(n - 2, 0))
    matrix = np.zeros((len(positions), n), dtype=np.float32)
    rows = np.arange(len(positions))
    matrix[rows, low] = 1 - (inside - low)
    if n > 1:
        matrix[rows, low + 1] = inside - low
    return matrix


def _solve(field: DisplacementField, targets: Points, iterations: int = 100) -> Points:
    """Solve x + d(x) = target by damped fixed-point steps on the points not yet converged."""
    tolerance = 0.01 * min(field.grid.spacing)
    y = targets.reshape(-1, 3)
    x = y - field.at(y)
    residual = x + field.at(x) - y
    length = np.linalg.norm(residual, axis=1)
    step = np.ones_like(length)
    for _ in range(iterations):
        pending = np.flatnonzero((length > tolerance) & (step > 1e-3))
        if not pending.size:
            break
        trial = x[pending] - step[pending, None] * residual[pending]
        left = trial + field.at(trial) - y[pending]
        norm = np.linalg.norm(left, axis=1)
        better = norm < length[pending]
        improved = pending[better]
        x[improved], residual[improved], length[improved] = (
            trial[better],
            left[better],
            norm[better],
        )
        step[pending[~better]] /= 2
    return x.reshape(targets.shape)
