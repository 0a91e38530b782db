"""VolumeCache: what was computed from files, kept on the disk by their content.

Safe under several processes: an entry is written beside its place and renamed, its numbers are
checked when it is read, and whatever is missing or damaged is simply made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from safetensors.numpy import load, save

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.untrusted import user_path

FORMAT = "shmoareg-cache-1"
FOLDER = "SHMOAREG_CACHE"  # the variable that names another folder
MOST_BYTES = 20 * 2**30
SHARE_OF_DISK = 0.1  # of what is free, at most
_ABANDONED = 3600.0  # seconds after which a half-written entry of a process that is gone is removed
_WRITING = threading.Lock()  # names of half-written files differ between processes, not between threads


class Entry(NamedTuple):
    """What a key holds: arrays by name, and JSON-ready facts."""

    arrays: dict[str, NDArray]
    facts: dict[str, Any]


class VolumeCache:
    """Arrays and facts by key, at most so many bytes; the least recently used go first.

    Nothing depends on it but time: where it cannot be written, `trouble` says why, and work goes on.

    Parameters
    ----------
    folder : str or Path, optional
        By default what the variable SHMOAREG_CACHE says, or the user's folder for caches.
    limit_bytes : int, optional
        By default 20 GiB, or a tenth of the free disk where that is less.

    Attributes
    ----------
    folder : Path
    limit_bytes : int
    trouble : str
        Why the last entry could not be kept; "" where all is well.
    """

    def __init__(self, folder: str | Path | None = None, limit_bytes: int | None = None) -> None:
        chosen = folder or os.environ.get(FOLDER) or Path(user_cache_dir("shmoareg")) / "volumes"
        self.folder = user_path(chosen).absolute()
        self.trouble = ""
        if limit_bytes is None:
            nearest = next(place for place in (self.folder, *self.folder.parents) if place.is_dir())
            room = shutil.disk_usage(nearest).free + self.bytes
            limit_bytes = min(MOST_BYTES, int(SHARE_OF_DISK * room))
        self.limit_bytes = limit_bytes
        self._known: dict[tuple[str, int, int], str] = {}

    @property
    def bytes(self) -> int:
        """What all entries take on the disk."""
        return sum(size for _, size, _ in self._entries())

    def fingerprint(self, path: str | Path) -> str:
        """The sha256 of a file's bytes, or of all files of a folder; a file is read once unless it changed.

        Raises
        ------
        InputError
            If it is not there or cannot be read.
        """
        place = Path(path)
        if not place.exists() and "#" in str(place):  # a series of a DICOM folder, or a volume of it
            place = Path(str(place).rsplit("#", 1)[0])
        try:
            if not place.is_dir():
                return self._hash(place)
            whole = hashlib.sha256(Path(path).name.encode())
            for file in sorted(p for p in place.iterdir() if p.is_file()):
                whole.update(f"{file.name}\0{self._hash(file)}\0".encode())
            return whole.hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}. Check the file.") from error

    def _hash(self, path: Path) -> str:
        state = path.stat()
        known = (str(path), state.st_size, state.st_mtime_ns)
        if known not in self._known:
            with path.open("rb") as file:
                self._known[known] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[known]

    @staticmethod
    def key(**parts: Any) -> str:
        """A key of JSON-ready parts; every difference in a part makes another key."""
        text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Entry | None:
        """What a key holds; None where nothing (whole) is kept.  A damaged entry is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:  # never made, or evicted by another process: the caller makes it again
            return None
        entry = _opened(key, data)
        if entry is None:
            self._remove(path)
            return None
        try:
            os.utime(path)  # used just now
        except FileNotFoundError:  # evicted since: what was read is whole all the same
            return entry
        except OSError as error:
            self.trouble = f"{path.parent}: {error.strerror}"
        return entry

    def put(self, key: str, arrays: Mapping[str, NDArray], facts: Mapping[str, Any]) -> None:
        """Keep arrays and JSON-ready facts, and remove what was not used for longest."""
        whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        text = json.dumps(facts)
        metadata = {"format": FORMAT, "key": key, "facts": text, "sum": _sum(whole, text)}
        data = save(whole, metadata=metadata)
        if len(data) > self.limit_bytes:
            self.trouble = f"{self.folder} may hold {self.limit_bytes} bytes; one entry has {len(data)}"
            return
        with _WRITING:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with writing(self._path(key), size=len(data)) as temporary:
                    temporary.write_bytes(data)
                self._evict()
            except (OSError, InputError) as error:  # a full disk, a folder of somebody else: only time is lost
                self.trouble = str(error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of all entries."""
        found = []
        for path in self.folder.glob("[!.]*.safetensors"):
            try:
                state = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            found.append((state.st_mtime, state.st_size, path))
        return found

    def _evict(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries[:-1]:
            if total <= self.limit_bytes:
                break
            self._remove(path)
            total -= size
        for path in self.folder.glob(".*.partial-*"):
            name = path.name[1:].split(".partial-")[0]
            try:
                old = time.time() - path.stat().st_mtime > _ABANDONED
            except FileNotFoundError:
                continue
            if old and partial.is_leftover(path, name):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # open elsewhere (Windows): it goes another time
            self.trouble = f"{path} cannot be removed: {error.strerror}"


def _opened(key: str, data: bytes) -> Entry | None:
    """The entry in the bytes of a file, or None if it is not what was written for this key."""
    try:
        arrays = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        whole = (metadata["format"], metadata["key"], metadata["sum"]) == (FORMAT, key, _sum(arrays, metadata["facts"]))
        return Entry(arrays, json.loads(metadata["facts"])) if whole else None
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _sum(arrays: Mapping[str, NDArray], facts: str) -> str:
    """A check sum of all numbers and facts."""
    total = zlib.crc32(facts.encode())
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].tobytes() if arrays[name].ndim == 0 else arrays[name].data, total)
    return f"{total:08x}"
