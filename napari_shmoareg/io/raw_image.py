"""Reading of voxels described by a text header, for NRRD and MetaImage.

ITK is not used: its readers crash on a damaged header, parse numbers with the locale's decimal
separator, and decompress without limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid
from napari_shmoareg.io.files import check_memory
from napari_shmoareg.io.streams import (
    Compression,
    Content,
    Damaged,
    check_end,
    open_regular,
    warn_unread,
)

Encoding = Literal["raw", "gzip", "bzip2", "zlib", "text", "hex"]

_TEXT_BYTES = 32  # maximum bytes per number in text encoding
_COMPRESSIONS: dict[Encoding, Compression] = {"gzip": "gzip", "bzip2": "bzip2", "zlib": "zlib"}


@dataclass(frozen=True)
class RawImage:
    """Checked content of a text header; the voxels are not read yet.

    Attributes
    ----------
    path : Path
        Path of the header.
    sizes : tuple of int
        Sizes of the axes as stored, the fastest first.
    axes : tuple of int
        Order of the axes in the result: spatial axes first.
    dtype : numpy dtype
    affine : (4, 4) array
        Voxel index to RAS mm, of the spatial axes.
    encoding : {"raw", "gzip", "bzip2", "zlib", "text", "hex"}
    files : tuple of Path
        Files with the voxels, an equal part each, in order.
    position : int
        Start of the voxels if they are in the header's file; 0 for other files.
    line_skip, byte_skip : int
        Lines, then bytes of decoded content, before the voxels; -1 bytes: the voxels are at the end
        of the file.
    is_labels : bool
        Whether the header declares a label map.
    """

    path: Path
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: np.dtype
    affine: NDArray[np.float64]
    encoding: Encoding
    files: tuple[Path, ...]
    position: int = 0
    line_skip: int = 0
    byte_skip: int = 0
    is_labels: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along the spatial axes, then time or components."""
        return tuple(self.sizes[axis] for axis in self.axes)


def check_affine(path: Path, affine: NDArray[np.float64]) -> None:
    """Refuse an affine that is not a valid grid."""
    try:
        with np.errstate(all="ignore"):
            Grid((1, 1, 1), affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def voxels_of(image: RawImage) -> NDArray:
    """Read the voxels: spatial axes first, native byte order.

    Raises
    ------
    InputError
        If a file is damaged or truncated, or cannot be opened.
    TooLargeError
        If they would not fit into memory.

    Warns
    -----
    UnreadBytes
        If bytes follow that the header does not announce.
    """
    itemsize = image.dtype.itemsize
    check_memory(image.path, image.shape, (160 if image.encoding == "text" else 3 * itemsize) + 4)
    count = prod(image.sizes)
    if count % len(image.files):
        raise InputError(
            f"{image.path} names {len(image.files)} data files, which do not divide its {count}"
            " voxels evenly. Its header is damaged: export the image again."
        )
    each = count // len(image.files)
    if len(image.files) == 1:
        values = _part(image, image.files[0], each)
    else:
        values = np.empty(count, image.dtype)
        for n, file in enumerate(image.files):
            values[n * each : (n + 1) * each] = _part(image, file, each)
    values = values.reshape(image.sizes, order="F").transpose(image.axes)
    return values.astype(image.dtype.newbyteorder("="), copy=False)


def _part(image: RawImage, path: Path, count: int) -> NDArray:
    """Read the voxels of one data file."""
    expected = count * image.dtype.itemsize
    with open_regular(path) as file:
        file.seek(image.position)
        for _ in range(image.line_skip):
            if not file.readline(1 << 20):
                raise _truncated(image, path, expected, 0)
        try:
            if image.encoding == "text":
                return _numbers(image, path, file, count)
            if image.encoding == "hex":
                return _hexadecimal(image, path, file, count)
            raw = _bytes(image, path, file, expected)
        except Damaged as error:
            raise _truncated(
                image, path, expected, max(error.readable - image.byte_skip, 0)
            ) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}. Copy it again.") from error
    return np.frombuffer(raw, image.dtype, count)


def _bytes(image: RawImage, path: Path, file: IO[bytes], expected: int) -> bytearray:
    coder = _COMPRESSIONS.get(image.encoding, "none")
    left = path.stat().st_size - file.tell()
    if coder == "none":
        if left - max(image.byte_skip, 0) < expected:
            raise Damaged(max(left, 0))
        if image.byte_skip < 0:
            file.seek(path.stat().st_size - expected)
    content = Content(file, coder)
    skip = max(image.byte_skip, 0)
    while skip > 0 and (skipped := len(content.read(min(skip, 1 << 20)))):
        skip -= skipped
    raw = content.read(expected)
    if len(raw) < expected:
        raise Damaged(content.readable)
    if coder != "none":
        check_end(image.path, content, expected + max(image.byte_skip, 0))
    elif file.read(1):
        where = "" if path == image.path else f" (in {path.name})"
        more = path.stat().st_size - file.tell() + 1
        warn_unread(image.path, f"holds {more} bytes more than its header announces{where}")
    return raw


def _numbers(image: RawImage, path: Path, file: IO[bytes], count: int) -> NDArray:
    """Read voxels stored as text."""
    file.seek(max(image.byte_skip, 0), 1)
    words = file.read(count * _TEXT_BYTES + (1 << 16)).replace(b",", b" ").split()[:count]
    if len(words) < count:
        raise _truncated(image, path, count, len(words), "numbers")
    kind = int if image.dtype.kind in "iu" else float
    try:
        if any(b"_" in word for word in words):
            raise ValueError("a number with '_'")
        return np.array([kind(word) for word in words], dtype=image.dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{image.path} could not be read: some voxels are not numbers of the type in its header"
            f" ({error}). It is damaged: download or copy it again."
        ) from error


def _hexadecimal(image: RawImage, path: Path, file: IO[bytes], count: int) -> NDArray:
    expected = count * image.dtype.itemsize
    digits = b"".join(file.read(3 * expected + (1 << 16)).split())[: 2 * expected]
    try:
        raw = bytearray.fromhex(digits.decode("ascii"))
    except ValueError as error:
        raise _truncated(image, path, expected, 0) from error
    if len(raw) < expected:
        raise _truncated(image, path, expected, len(raw))
    return np.frombuffer(raw, image.dtype, count)


def _truncated(
    image: RawImage, path: Path, expected: int, found: int, what: str = "bytes"
) -> InputError:
    return InputError(
        f"{image.path} could not be read: {expected} {what} of voxels were expected in {path.name},"
        f" {found} could be read ({path.stat().st_size} bytes on disk). It is damaged or cut short:"
        " download or copy it again."
    )
