"""Resample volumes from one grid to another.

Linear interpolation for images, nearest neighbour for labels.  Processed slab by slab along axis 0,
so that memory is bounded at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from napari_shmoareg.geometry.field import sample
from napari_shmoareg.geometry.grid import Grid
from napari_shmoareg.geometry.volume import Volume, background

SLAB_POINTS = 1 << 20  # points per slab; about 100 bytes each
TRUNCATE = 3.0  # radius of a Gaussian in standard deviations

Points = NDArray[np.float64]


def apply_affine(matrix: ArrayLike, points: ArrayLike) -> Points:
    """Apply a 4x4 matrix to points (..., 3)."""
    m = np.asarray(matrix, dtype=np.float64)
    moved = transform_vectors(m, points)
    moved += m[:3, 3]
    return moved


def transform_vectors(matrix: ArrayLike, vectors: ArrayLike) -> Points:
    """Apply the linear part of a matrix (3x3 or 4x4) to vectors (..., 3).

    Uses einsum: for millions of vectors the threading overhead of BLAS dominates.
    """
    linear = np.asarray(matrix, dtype=np.float64)[:3, :3]
    return np.einsum("...j,ij->...i", np.asarray(vectors, dtype=np.float64), linear)


def lattice(matrix: ArrayLike, start: int, shape: Sequence[int]) -> Points:
    """Apply a 4x4 matrix to the indices (i, j, k) of a slab, i from `start`: (n, J, K, 3)."""
    m = np.asarray(matrix, dtype=np.float64)
    result = np.empty((*shape, 3))
    i, j, k = np.ogrid[start : start + shape[0], : shape[1], : shape[2]]
    for axis, (a, b, c, offset) in enumerate(m[:3]):
        result[..., axis] = (a * i + offset) + (b * j + c * k)
    return result


def slabs(grid: Grid, limit: int = SLAB_POINTS) -> Iterator[tuple[slice, Points]]:
    """Yield slabs of a grid along axis 0: the slice, and its world points (n, J, K, 3) in mm."""
    for part in slab_slices(grid, limit):
        yield part, lattice(grid.affine, part.start, (part.stop - part.start, *grid.shape[1:]))


def slab_slices(grid: Grid, limit: int = SLAB_POINTS) -> Iterator[slice]:
    """Yield the slices of `slabs`."""
    thickness = max(1, limit // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], thickness):
        yield slice(start, min(start + thickness, grid.shape[0]))


def inside(grid: Grid, points: Points) -> NDArray[np.bool_]:
    """Whether world points (..., 3) are in the field of view (up to the outer voxel edges)."""
    return _within(apply_affine(grid.inverse, points), grid.shape)


def pull(
    volume: Volume,
    grid: Grid,
    points: Points | Callable[[Points], Points],
    outside: float | None = None,
) -> Volume:
    """Sample a volume at world points, one per voxel of `grid`, by one interpolation.

    Ours: as in ITK, the field of view extends to the outer voxel edges.  The half voxel beyond the
    outer centres gets the edge value, everything further out the `background`.

    Parameters
    ----------
    volume : Volume
        An image is returned as float32 (float64 if its values need it, as around 2^31), a label map
        in its own dtype.
    grid : Grid, (I, J, K)
        Grid of the result.
    points : (I, J, K, 3) array or callable, mm RAS
        Where to sample, for each voxel of `grid`.  A callable maps the world points (n, J, K, 3) of
        a slab to the points to sample, so that no full array is needed.
    outside : float, optional
        Value beyond the field of view; default: the `background`.

    Returns
    -------
    Volume
        On `grid`.
    """

    def indices(part: slice) -> Points:
        if not callable(points):
            return apply_affine(volume.grid.inverse, points[part])
        world = lattice(grid.affine, part.start, (part.stop - part.start, *grid.shape[1:]))
        return apply_affine(volume.grid.inverse, points(world))

    return _pull(volume, grid, indices, background(volume) if outside is None else outside)


def pull_by(
    volume: Volume, grid: Grid, vectors: NDArray[np.floating], outside: float | None = None
) -> Volume:
    """As `pull`, at the points of `grid` displaced by vectors (I, J, K, 3) in mm RAS."""
    to_index = volume.grid.inverse @ grid.affine

    def indices(part: slice) -> Points:
        index = lattice(to_index, part.start, vectors[part].shape[:3])
        index += transform_vectors(volume.grid.inverse, vectors[part])
        return index

    return _pull(volume, grid, indices, background(volume) if outside is None else outside)


def resample(volume: Volume, grid: Grid, *, world_map: NDArray[np.float64] | None = None) -> Volume:
    """Resample a volume to another grid.

    Ours: an image that becomes coarser by a factor above 1.5 is smoothed first with a Gaussian of
    (ratio - 1) / 2 of its voxels, to avoid aliasing.  Labels are never smoothed.

    Parameters
    ----------
    volume : Volume
    grid : Grid
    world_map : (4, 4) array or None
        A point of `grid` samples ``world_map @ point`` (mm RAS); None is the identity.

    Returns
    -------
    Volume
        On `grid`: float32 for images (float64 if their values need it), the same dtype for
        labels.
    """
    matrix = np.eye(4) if world_map is None else np.asarray(world_map, dtype=np.float64)
    if not volume.is_labels:
        steps = (volume.grid.inverse @ matrix @ grid.affine)[:3, :3]
        ratio = np.linalg.norm(steps, axis=1)
        sigma = np.where(ratio > 1.5, (ratio - 1) / 2, 0.0)
        outside = background(volume)
        if sigma.any():
            volume = _smoothed(
                volume, sigma, volume.grid.to_index(apply_affine(matrix, grid.corners()))
            )
    else:
        outside = background(volume)
    to_index = volume.grid.inverse @ matrix @ grid.affine
    return _pull(
        volume,
        grid,
        lambda part: lattice(to_index, part.start, (part.stop - part.start, *grid.shape[1:])),
        outside,
    )


def resample_mask(mask: Volume, grid: Grid) -> NDArray[np.bool_]:
    """The voxels of a grid in a mask, (I, J, K); those that hold any of it if it is too thin to be
    met by nearest neighbour.
    """
    found: NDArray[np.bool_] = resample(mask, grid).values != 0
    if not found.any():
        voxels = np.argwhere(mask.values != 0)
        index = np.rint(grid.to_index(mask.grid.to_world(voxels))).astype(int)
        held = index[np.all((index >= 0) & (index < grid.shape), axis=1)]
        found[tuple(held.T)] = True
    return found


def _smoothed(volume: Volume, sigma: NDArray[np.float64], corners: Points) -> Volume:
    """Smooth the part of an image between the given voxel indices."""
    reach = np.ceil(TRUNCATE * sigma) + 1
    first = np.clip(
        np.floor(corners.min(axis=0) - reach), 0, np.array(volume.grid.shape) - 1
    ).astype(int)
    stop = np.clip(np.ceil(corners.max(axis=0) + reach) + 1, first + 1, volume.grid.shape).astype(
        int
    )
    part = volume.values[tuple(slice(a, b) for a, b in zip(first, stop, strict=True))].astype(
        volume.float_type
    )
    smooth = gaussian_filter(part, sigma, mode="nearest", truncate=TRUNCATE)
    return Volume(smooth, volume.grid.crop(first.tolist(), smooth.shape), volume.name)


def _pull(volume: Volume, grid: Grid, indices: Callable[[slice], Points], outside: float) -> Volume:
    """Sample a volume at the voxel indices (n, J, K, 3) of each slab of `grid`."""
    kind = volume.values.dtype if volume.is_labels else volume.float_type
    values = np.empty(grid.shape, dtype=kind)
    image = None if volume.is_labels else _tensor(volume.values, kind)
    for part in slab_slices(grid):
        index = indices(part)
        if image is None:
            values[part] = _nearest(volume.values, index)
        else:
            positions = torch.from_numpy(index.astype(np.float32)).permute(3, 0, 1, 2)[None]
            values[part] = sample(image, positions, padding="border")[0, 0].numpy()
        values[part][~_within(index, volume.grid.shape)] = outside
    return replace(volume, values=values, grid=grid)


def _tensor(values: NDArray, kind: np.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))[None, None]


def _within(index: Points, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    edges = np.array(shape) - 0.5
    slack = 1e-6  # for the rounding of the matrices
    return np.asarray(((index >= -0.5 - slack) & (index <= edges + slack)).all(axis=-1))


def _nearest(values: NDArray, index: Points) -> NDArray:
    i, j, k = (
        np.clip(np.rint(index[..., a]), 0, n - 1).astype(np.intp)
        for a, n in enumerate(values.shape)
    )
    return values[i, j, k]
