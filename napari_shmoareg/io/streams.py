"""Reading bytes of regular files, decompressed, within the size that the header announces."""

from __future__ import annotations

import bz2
import os
import stat
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from napari_shmoareg.errors import InputError

Compression = Literal["none", "gzip", "bzip2", "zlib"]

ALLOW_OUTSIDE = "SHMOAREG_ALLOW_OUTSIDE"
"""Environment variable: "1" lets a header name a data file outside its own folder."""

_CHUNK = 1 << 20
# Ours: decompressed bytes beyond the announced ones that are read to reach the checksum
_REST = 16 << 20
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


class UnreadBytes(UserWarning):
    """A file has more data than its header announces; the rest was not used."""


class Damaged(Exception):
    """Compressed content is broken or ends early.

    Parameters
    ----------
    readable : int
        Bytes of content that could be read.
    """

    def __init__(self, readable: int) -> None:
        super().__init__(f"{readable} bytes of content readable")
        self.readable = readable


def check_regular(path: Path) -> None:
    """Refuse anything but a regular file, without opening it: opening a named pipe would block.

    Raises
    ------
    InputError
        If the path is missing, a folder, named pipe, socket or device, or a link to one.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be opened: {why}. Check the name.") from error
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS.items() if test(mode)), "not a regular file")
        raise InputError(
            f"{path} is {kind}; a regular file was expected. Give the image file itself."
        )


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading bytes."""
    check_regular(path)
    try:
        # Non-blocking: the path may have become a named pipe since the check.
        number = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror}. Check that you may read it."
        ) from error
    return os.fdopen(number, "rb")


class Content:
    """The bytes of an open file, decompressed only as far as requested.

    Parameters
    ----------
    file : binary file
        Positioned at the start of the content.
    compression : {"none", "gzip", "bzip2", "zlib"}
        "zlib" also accepts a gzip stream, as MetaImage does.
    """

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        self._file = file
        self._new: Callable[[], Any] | None = {
            "none": None,
            "gzip": lambda: zlib.decompressobj(31),
            "bzip2": bz2.BZ2Decompressor,
            "zlib": lambda: zlib.decompressobj(47),
        }[compression]
        self._members = compression in ("gzip", "bzip2")
        self._magic = b"\x1f\x8b" if compression == "gzip" else b"BZh"
        self._stream = self._new() if self._new else None
        self._tail = b""  # compressed, not yet used
        self.trailing = False
        self.readable = 0

    def read(self, count: int) -> bytearray:
        """Read at most `count` bytes; fewer only at the end of the content.

        Raises
        ------
        Damaged
            If a compressed stream is broken or ends early.
        """
        if self._stream is None:
            return self._plain(count)
        found = bytearray()
        while len(found) < count:
            block = self._block(min(_CHUNK, count - len(found)))
            if not block:
                break
            found += block
            self.readable += len(block)
        return found

    def finish(self) -> bool:
        """Read to the end of a compressed stream, to verify its checksum; return whether it was
        reached.

        Raises
        ------
        Damaged
            If the stream is broken or ends early.
        """
        if self._stream is None:
            return not self._file.read(1)
        left = _REST
        while left > 0:
            block = self._block(min(_CHUNK, left))
            if not block:
                return True
            left -= len(block)
            self.readable += len(block)
        return False

    def _plain(self, count: int) -> bytearray:
        found = bytearray(count)
        view, filled = memoryview(found), 0
        while filled < count:
            got = self._file.readinto(view[filled : filled + (64 << 20)])  # type: ignore[attr-defined]
            if not got:
                break
            filled += got
        view.release()
        del found[filled:]
        self.readable += filled
        return found

    def _block(self, limit: int) -> bytes:
        """Next decompressed bytes; empty after the last member."""
        stream: Any = self._stream
        while True:
            if stream.eof and not (stream := self._next_member()):
                return b""
            if not self._tail and getattr(stream, "needs_input", True):
                self._tail = self._file.read(_CHUNK)
            available = len(self._tail)
            try:
                block: bytes = stream.decompress(self._tail, limit)
            except (zlib.error, OSError, ValueError, EOFError) as error:
                raise Damaged(self.readable) from error
            self._tail = (
                stream.unused_data if stream.eof else getattr(stream, "unconsumed_tail", b"")
            )
            if block:
                return block
            if not available and not stream.eof:
                raise Damaged(self.readable)

    def _next_member(self) -> Any:
        """Start the stream of the next member, or return None; zeros around members are padding."""
        tail = self._tail.lstrip(b"\0")
        while len(tail) < 3 and (more := self._file.read(_CHUNK)):
            tail = (tail + more).lstrip(b"\0")
        if self._members and tail.startswith(self._magic) and self._new:
            self._tail, self._stream = tail, self._new()
            return self._stream
        self.trailing = self.trailing or bool(tail)
        self._tail = b""
        return None


def warn_unread(path: Path, what: str) -> None:
    """Warn that a file has more data than its header announces."""
    warnings.warn(
        f"'{path}' {what}; they were not used. If the image looks incomplete, download or copy the"
        " file again.",
        UnreadBytes,
        stacklevel=3,
    )


def check_end(path: Path, content: Content, expected: int, *, footer: bool = False) -> None:
    """Check the end of a file after its voxels: checksum and surplus bytes.

    Parameters
    ----------
    path : Path
    content : Content
        Already read up to the last voxel.
    expected : int
        Bytes of content up to the last voxel.
    footer : bool
        Whether the format allows other content after the voxels.

    Raises
    ------
    Damaged
        If a compressed stream is broken or ends early.

    Warns
    -----
    UnreadBytes
        If content follows the voxels, or other bytes follow a compressed stream.
    """
    if not content.finish():
        warn_unread(
            path,
            f"holds more compressed content than the {expected} bytes that its header announces:"
            " more than 16 MiB follow, and its checksum was not verified",
        )
    elif content.readable > expected and not footer:
        warn_unread(
            path, f"holds {content.readable - expected} bytes more than its header announces"
        )
    elif content.trailing:
        warn_unread(path, "has other bytes after the end of its compressed stream")


def data_path(header: Path, name: str, allow_outside: bool) -> Path:
    """Path of the data file that a header names: a regular file in the header's own folder.

    Parameters
    ----------
    header : Path
    name : str
        As given in the header.
    allow_outside : bool
        Allow a file outside that folder; so does the environment variable SHMOAREG_ALLOW_OUTSIDE=1.

    Raises
    ------
    InputError
        If it is missing, not a regular file, the header itself, or outside the folder.
    """
    path = header.parent / name
    if not (allow_outside or os.environ.get(ALLOW_OUTSIDE) == "1"):
        try:
            found = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{header} names a data file that cannot be opened ('{name}')."
            ) from error
        folders = (header.parent.resolve(), header.resolve().parent)
        if not any(found.is_relative_to(folder) for folder in folders):
            raise InputError(
                f"{header} names a data file outside its own folder ('{name}'), which is not"
                " opened, as a header of unknown origin could name any file. Put the data file"
                " beside the header; or, if you trust the header, set the environment variable"
                f" {ALLOW_OUTSIDE}=1 (in Python: allow_outside=True)."
            )
    try:
        check_regular(path)
    except InputError as error:
        raise InputError(f"{header} names a data file that cannot be used: {error}") from error
    if path.samefile(header):
        raise InputError(
            f"{header} names itself as its data file. Name the file that holds the voxels."
        )
    return path
