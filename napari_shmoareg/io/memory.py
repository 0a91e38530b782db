"""Whether a file's voxels fit into memory, asked before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import psutil

from napari_shmoareg.geometry import InputError, TooLargeError


def check_memory(path: Path, shape: Sequence[int], voxel_bytes: int) -> None:
    """Refuse an image whose header announces more than the free memory holds.

    Parameters
    ----------
    path : Path
        For the message.
    shape : sequence of int
        All axes that the header announces.
    voxel_bytes : int
        Bytes in use per voxel at the worst moment of reading.

    Raises
    ------
    InputError
        If an axis has no voxel.
    TooLargeError
        If reading needs more than nine tenths of the memory that is available now.
    """
    if min(shape, default=0) < 1:
        raise InputError(
            f"{path} has the shape {tuple(shape)}: it is empty. An image with voxels on three axes was expected."
        )
    need = prod(int(n) for n in shape) * voxel_bytes
    free = psutil.virtual_memory().available
    if need > 0.9 * free:
        side = int((0.9 * free / voxel_bytes) ** (1 / 3))
        raise TooLargeError(
            f"Reading {path}, shape {tuple(shape)}, needs about {need / 2**30:.1f} GiB of memory; {free / 2**30:.1f} "
            f"GiB are free. About {side} x {side} x {side} voxels would fit: crop or downsample the image, or use a "
            "machine with more memory."
        )
