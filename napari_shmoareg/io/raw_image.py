"""Voxels behind a text header: what NRRD and MetaImage have in common.

Both are read here and not by ITK: a damaged header ends its readers' process, they take a
number apart at the decimal point of the desktop's language, and they decompress without bound.
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
from napari_shmoareg.io.streams import Compression, Content, Damaged, end, open_regular, warn_unread

Encoding = Literal["raw", "gzip", "bzip2", "zlib", "text", "hex"]

_TEXT = 32  # bytes at most that a number takes in a text
_CODERS: dict[Encoding, Compression] = {"gzip": "gzip", "bzip2": "bzip2", "zlib": "zlib"}


@dataclass(frozen=True)
class RawImage:
    """What a text header says, checked; the voxels are not read yet.

    Attributes
    ----------
    path : Path
        Of the header.
    sizes : tuple of int
        Of the axes as stored, the fastest first.
    axes : tuple of int
        The order in which the axes are handed out: those of space first.
    dtype : numpy dtype
    affine : (4, 4) array
        Voxel index to RAS mm, of the axes of space.
    encoding : {"raw", "gzip", "bzip2", "zlib", "text", "hex"}
    files : tuple of Path
        That hold the voxels, an equal part each, one after the other.
    position : int
        Where they begin in the file of the header, if that holds them; 0 in others.
    line_skip, byte_skip : int
        Lines, then bytes of the decoded content, before the voxels; -1 bytes: the voxels end the
        file.
    is_labels : bool
        Whether the header says that these are labels.
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
        """Voxels along the axes of space, then time or components."""
        return tuple(self.sizes[axis] for axis in self.axes)


def check_place(path: Path, affine: NDArray[np.float64]) -> None:
    """Refuse a place in the world that is none.

    Raises
    ------
    InputError
        As `Grid`, with the name of the file.
    """
    try:
        with np.errstate(all="ignore"):
            Grid((1, 1, 1), affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def voxels_of(image: RawImage) -> NDArray:
    """The voxels, axes of space first, in this machine's byte order.

    Raises
    ------
    InputError
        If a file is damaged or cut short, or cannot be opened.
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
            f"{image.path} names {len(image.files)} data files, among which its {count} voxels"
            " cannot be shared out evenly. Its header is damaged: export the image again."
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
    """The voxels of one data file."""
    wanted = count * image.dtype.itemsize
    with open_regular(path) as file:
        file.seek(image.position)
        for _ in range(image.line_skip):
            if not file.readline(1 << 20):
                raise _short(image, path, wanted, 0)
        try:
            if image.encoding == "text":
                return _numbers(image, path, file, count)
            if image.encoding == "hex":
                return _hexadecimal(image, path, file, count)
            raw = _bytes(image, path, file, wanted)
        except Damaged as error:
            raise _short(image, path, wanted, max(error.readable - image.byte_skip, 0)) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}. Copy it again.") from error
    return np.frombuffer(raw, image.dtype, count)


def _bytes(image: RawImage, path: Path, file: IO[bytes], wanted: int) -> bytearray:
    coder = _CODERS.get(image.encoding, "none")
    left = path.stat().st_size - file.tell()
    if coder == "none":
        if left - max(image.byte_skip, 0) < wanted:
            raise Damaged(max(left, 0))
        if image.byte_skip < 0:
            file.seek(path.stat().st_size - wanted)
    content = Content(file, coder)
    skip = max(image.byte_skip, 0)
    while skip > 0 and (skipped := len(content.read(min(skip, 1 << 20)))):
        skip -= skipped
    raw = content.read(wanted)
    if len(raw) < wanted:
        raise Damaged(content.readable)
    if coder != "none":
        end(image.path, content, wanted + max(image.byte_skip, 0))
    elif file.read(1):
        where = "" if path == image.path else f" (in {path.name})"
        more = path.stat().st_size - file.tell() + 1
        warn_unread(image.path, f"holds {more} bytes more than its header announces{where}")
    return raw


def _numbers(image: RawImage, path: Path, file: IO[bytes], count: int) -> NDArray:
    """Voxels that are written as text."""
    file.seek(max(image.byte_skip, 0), 1)
    words = file.read(count * _TEXT + (1 << 16)).replace(b",", b" ").split()[:count]
    if len(words) < count:
        raise _short(image, path, count, len(words), "numbers")
    kind = int if image.dtype.kind in "iu" else float
    try:
        if any(b"_" in word for word in words):
            raise ValueError("a number with '_'")
        return np.array([kind(word) for word in words], dtype=image.dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{image.path} could not be read: its voxels are not all numbers of the type that its"
            f" header names ({error}). It is damaged: download or copy it again."
        ) from error


def _hexadecimal(image: RawImage, path: Path, file: IO[bytes], count: int) -> NDArray:
    wanted = count * image.dtype.itemsize
    digits = b"".join(file.read(3 * wanted + (1 << 16)).split())[: 2 * wanted]
    try:
        raw = bytearray.fromhex(digits.decode("ascii"))
    except ValueError as error:
        raise _short(image, path, wanted, 0) from error
    if len(raw) < wanted:
        raise _short(image, path, wanted, len(raw))
    return np.frombuffer(raw, image.dtype, count)


def _short(image: RawImage, path: Path, wanted: int, came: int, what: str = "bytes") -> InputError:
    return InputError(
        f"{image.path} could not be read: {wanted} {what} of voxels were expected in {path.name},"
        f" {came} could be read ({path.stat().st_size} bytes on disk). It is damaged or cut short:"
        " download or copy it again."
    )
