"""A volume from one grid to another, anywhere in the world.

Images are interpolated linearly, labels take the nearest voxel.  Work goes slab by slab
along axis 0, so that memory stays bounded whatever the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from napari_shmoareg.geometry.field import sample
from napari_shmoareg.geometry.grid import Grid
from napari_shmoareg.geometry.volume import Volume, background

SLAB_POINTS = 1 << 20  # points handled at once; some 100 bytes each
TRUNCATE = 3.0  # standard deviations to which a Gaussian reaches

Points = NDArray[np.float64]


def apply_affine(matrix: ArrayLike, points: ArrayLike) -> Points:
    """Points (..., 3) moved by a 4x4 matrix."""
    m = np.asarray(matrix, dtype=np.float64)
    moved = turn_vectors(m, points)
    moved += m[:3, 3]
    return moved


def turn_vectors(matrix: ArrayLike, vectors: ArrayLike) -> Points:
    """Vectors (..., 3) turned by the linear part of a matrix (3x3 or 4x4).

    By einsum: the threads of BLAS spend far longer on millions of vectors than on the sums.
    """
    linear = np.asarray(matrix, dtype=np.float64)[:3, :3]
    return np.einsum("...j,ij->...i", np.asarray(vectors, dtype=np.float64), linear)


def lattice(matrix: ArrayLike, start: int, shape: Sequence[int]) -> Points:
    """The voxels (i, j, k) of a slab, i from `start`, moved by a 4x4 matrix: (n, J, K, 3)."""
    m = np.asarray(matrix, dtype=np.float64)
    result = np.empty((*shape, 3))
    i, j, k = np.ogrid[start : start + shape[0], : shape[1], : shape[2]]
    for axis, (a, b, c, offset) in enumerate(m[:3]):
        result[..., axis] = (a * i + offset) + (b * j + c * k)
    return result


def slabs(grid: Grid, limit: int = SLAB_POINTS) -> Iterator[tuple[slice, Points]]:
    """Pieces of a grid along axis 0: the slice, and the world points (n, J, K, 3) in mm of its
    voxels.
    """
    for part in parts(grid, limit):
        yield part, lattice(grid.affine, part.start, (part.stop - part.start, *grid.shape[1:]))


def parts(grid: Grid, limit: int = SLAB_POINTS) -> Iterator[slice]:
    """The slices of `slabs`."""
    thickness = max(1, limit // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], thickness):
        yield slice(start, min(start + thickness, grid.shape[0]))


def inside(grid: Grid, points: Points) -> NDArray[np.bool_]:
    """Whether world points (..., 3) lie in the field of view (up to the outer voxel edges)."""
    return _within(apply_affine(grid.inverse, points), grid.shape)


def pull(volume: Volume, grid: Grid, points: Points | Callable[[Points], Points]) -> Volume:
    """The values of a volume at world points, as a volume on `grid`: one interpolation.

    Ours: as in ITK, the field of view reaches to the outer voxel edges; the half voxel beyond
    the outer centres takes the edge's value, everything further out the `background`.

    Parameters
    ----------
    volume : Volume
        An image comes back as float32 (float64 where its values need it, as around 2^31), a label
        map in its own dtype.
    grid : Grid, (I, J, K)
        Where the result stands.
    points : (I, J, K, 3) array, or function of such, mm RAS
        Where to read, for each voxel of `grid`.  A function is given the world points of a
        slab (n, J, K, 3) and returns those to read at, so that no full array is needed.

    Returns
    -------
    Volume
        On `grid`.
    """

    def where(part: slice) -> Points:
        if not callable(points):
            return apply_affine(volume.grid.inverse, points[part])
        place = lattice(grid.affine, part.start, (part.stop - part.start, *grid.shape[1:]))
        return apply_affine(volume.grid.inverse, points(place))

    return _pull(volume, grid, where, background(volume))


def pull_by(volume: Volume, grid: Grid, vectors: NDArray[np.floating]) -> Volume:
    """As `pull`, at the grid's own points moved by vectors (I, J, K, 3) in mm RAS."""
    there = volume.grid.inverse @ grid.affine

    def where(part: slice) -> Points:
        index = lattice(there, part.start, vectors[part].shape[:3])
        index += turn_vectors(volume.grid.inverse, vectors[part])
        return index

    return _pull(volume, grid, where, background(volume))


def resample(volume: Volume, grid: Grid, *, world_map: NDArray[np.float64] | None = None) -> Volume:
    """A volume on another grid.

    Ours: an image that is made coarser by more than 1.5 is smoothed first, by a Gaussian of
    (ratio - 1) / 2 voxels of its own, so that fine detail does not alias.  Labels never are.

    Parameters
    ----------
    volume : Volume
    grid : Grid
    world_map : (4, 4) array or None
        Where a point of `grid` reads: at ``world_map @ point`` (mm RAS); None is the identity.

    Returns
    -------
    Volume
        On `grid`: float32 for images (float64 where their values need it), the same dtype for
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
    there = volume.grid.inverse @ matrix @ grid.affine
    return _pull(
        volume,
        grid,
        lambda part: lattice(there, part.start, (part.stop - part.start, *grid.shape[1:])),
        outside,
    )


def _smoothed(volume: Volume, sigma: NDArray[np.float64], corners: Points) -> Volume:
    """The part of an image that lies between some voxel indices, smoothed."""
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


def _pull(volume: Volume, grid: Grid, where: Callable[[slice], Points], outside: float) -> Volume:
    """The values at voxel indices (n, J, K, 3) of the volume, that `where` gives for each slab of
    `grid`.
    """
    kind = volume.values.dtype if volume.is_labels else volume.float_type
    values = np.empty(grid.shape, dtype=kind)
    image = None if volume.is_labels else _tensor(volume.values, kind)
    for part in parts(grid):
        index = where(part)
        if image is None:
            values[part] = _nearest(volume.values, index)
        else:
            positions = torch.from_numpy(index.astype(np.float32)).permute(3, 0, 1, 2)[None]
            values[part] = sample(image, positions, padding="border")[0, 0].numpy()
        values[part][~_within(index, volume.grid.shape)] = outside
    return Volume(values, grid, volume.name, volume.is_labels)


def _tensor(values: NDArray, kind: np.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))[None, None]


def _within(index: Points, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    edges = np.array(shape) - 0.5
    slack = 1e-6  # rounding of the matrices
    return np.asarray(((index >= -0.5 - slack) & (index <= edges + slack)).all(axis=-1))


def _nearest(values: NDArray, index: Points) -> NDArray:
    i, j, k = (
        np.clip(np.rint(index[..., a]), 0, n - 1).astype(np.intp)
        for a, n in enumerate(values.shape)
    )
    return values[i, j, k]
