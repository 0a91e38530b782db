"""A scan at the resolution of a training, and what it was before."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.intensity import Intensity, content_points
from napari_shmoareg.geometry import Grid, InputError, Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io.datasets.volume_cache import Entry
from napari_shmoareg.io.images import storable

VERSION = 1  # of what is made here; another one makes entries of the cache anew
FINER = 1.25  # than the network's grid: room for a pair whose content is smaller than this scan's
NEARLY = 1.1  # an axis this close to its new spacing is left as it is
LEAST_VOXELS = 8  # along every axis


def check_scan(image: Volume, labels: Volume | None) -> None:
    """Refuse a scan that is of no use for a training.

    Raises
    ------
    InputError
        If it is flat, constant, has voxels that are no numbers, or labels on another grid.
    """
    if min(image.grid.shape) < LEAST_VOXELS:
        raise InputError(
            f"it has the shape {image.grid.shape}; at least {LEAST_VOXELS} voxels along every axis were expected."
        )
    image.check_image("loaded")
    if labels is not None and not labels.grid.same_space(image.grid):
        raise InputError(
            f"its labels '{labels.name}' stand on another grid ({_place(labels.grid)}) than the image "
            f"({_place(image.grid)}). Resample the labels onto the image (nearest neighbour) first."
        )


def make_small(image: Volume, labels: Volume | None, size: int | str) -> Entry:
    """What the cache keeps of a scan.

    Ours: each axis gets the spacing max(finest spacing, extent of the content / (1.25 size)), unless its own is
    coarser or nearly that; where all are left, the values stay exactly as they are.

    Parameters
    ----------
    image, labels : Volume
        As read.
    size : int or "native"
        Voxels along the longest axis of the network grid.
    """
    intensity = Intensity.of(image)
    grid = image.grid.canonical()
    points = grid.to_index(image.grid.to_world(content_points(image, intensity)))
    spacing = np.array(grid.spacing)
    extent = (points.max(axis=0) - points.min(axis=0) + 1) * spacing
    target = spacing
    if not isinstance(size, str):
        voxel = max(spacing.min(), extent.max() / (FINER * size))
        target = np.where(spacing * NEARLY >= voxel, spacing, voxel)
    upright = Volume(_turned(image), grid, image.name)
    maps = None if labels is None else Volume(_turned(labels), grid, labels.name, is_labels=True)
    if not np.array_equal(target, spacing):
        small = grid.resampled([float(t) for t in target])
        upright = resample(upright, small)
        maps = None if maps is None else resample(maps, small)
    arrays = {"image": _plain(upright.values), "affine": np.array(upright.grid.affine)}
    if maps is not None:
        arrays["labels"] = _plain(storable(maps.values))
    facts = {
        "shape": list(image.grid.shape),
        "spacing": [float(s) for s in image.grid.spacing],
        "orientation": axis_codes(image.grid),
        "low": float(image.values.min()),
        "high": float(image.values.max()),
        "labels": None if labels is None else labels.labels,
        "intensity": [intensity.background, intensity.low, intensity.high],
        "extent": [float(e) for e in extent],
        "content": _sum_of(image.values),
        "notes": [],
    }
    return Entry(arrays, facts)


def axis_codes(grid: Grid) -> str:
    """Where the array axes run to, such as "LIA"."""
    order, flip = grid.axes_to_ras()
    codes = [""] * 3
    for world, (axis, back) in enumerate(zip(order, flip, strict=True)):
        codes[axis] = ("RAS", "LPI")[int(back)][world]
    return "".join(codes)


def _turned(volume: Volume) -> NDArray:
    """The values of a volume on its canonical grid."""
    order, flip = volume.grid.axes_to_ras()
    values = volume.values.transpose(tuple(int(axis) for axis in order))
    return values[tuple(slice(None, None, -1 if back else 1) for back in flip)]


def _plain(values: NDArray) -> NDArray:
    """Contiguous, in this machine's order of bytes."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _sum_of(values: NDArray) -> str:
    whole = hashlib.sha256(f"{values.shape}".encode())
    whole.update(np.ascontiguousarray(values, dtype=np.float32).data)
    return whole.hexdigest()


def _place(grid: Grid) -> str:
    return f"shape {grid.shape}, spacing {'x'.join(f'{s:.3g}' for s in grid.spacing)} mm"
