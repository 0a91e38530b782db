"""Scans resampled to the resolution of a training, cached on disk by the checksums of their files.

Safe under several processes: an entry is written beside its path and renamed, its checksum is
verified when it is read, and whatever is missing or damaged is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from safetensors.numpy import load, save

from napari_shmoareg.datasets.dataset import Dataset, ScanReport
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io import files
from napari_shmoareg.io.files import writing
from napari_shmoareg.io.images import storable
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.registration.intensity import Intensity, content_points

FORMAT = "shmoareg-cache-1"
FOLDER = "SHMOAREG_CACHE"  # the variable that names another folder
MOST_BYTES = 20 * 2**30
SHARE_OF_DISK = 0.1  # of what is free, at most
_ABANDONED = 3600.0  # seconds after which a half-written entry of a process that is gone is removed
# names of half-written files differ between processes, not between threads
_WRITING = threading.Lock()


class Entry(NamedTuple):
    """What a key holds: arrays by name, and JSON-ready facts."""

    arrays: dict[str, NDArray]
    facts: dict[str, Any]


class VolumeCache:
    """Arrays and facts by key, at most so many bytes; the least recently used go first.

    Nothing depends on it but time: where it cannot be written, `trouble` says why, and work goes
    on.

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
        """The sha256 of a file's bytes, or of all files of a folder; a file is read once unless it
        changed.

        Raises
        ------
        InputError
            If it is not there or cannot be read.
        """
        place = Path(path)
        # a series of a DICOM folder, or a volume of it
        if not place.exists() and "#" in str(place):
            place = Path(str(place).rsplit("#", 1)[0])
        try:
            if not place.is_dir():
                return self._hash(place)
            whole = hashlib.sha256(Path(path).name.encode())
            for file in sorted(p for p in place.iterdir() if p.is_file()):
                whole.update(f"{file.name}\0{self._hash(file)}\0".encode())
            return whole.hexdigest()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror or error}. Check the file."
            ) from error

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
            self.trouble = (
                f"{self.folder} may hold {self.limit_bytes} bytes; one entry has {len(data)}"
            )
            return
        with _WRITING:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with writing(self._path(key), size=len(data)) as temporary:
                    temporary.write_bytes(data)
                self._evict()
            # a full disk, a folder of somebody else: only time is lost
            except (OSError, InputError) as error:
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
            if old and files.is_leftover(path, name):
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
        whole = (metadata["format"], metadata["key"], metadata["sum"]) == (
            FORMAT,
            key,
            _sum(arrays, metadata["facts"]),
        )
        return Entry(arrays, json.loads(metadata["facts"])) if whole else None
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _sum(arrays: Mapping[str, NDArray], facts: str) -> str:
    """A check sum of all numbers and facts."""
    total = zlib.crc32(facts.encode())
    for name in sorted(arrays):
        total = zlib.crc32(
            arrays[name].tobytes() if arrays[name].ndim == 0 else arrays[name].data, total
        )
    return f"{total:08x}"


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
            f"it has the shape {image.grid.shape}; at least {LEAST_VOXELS} voxels along every axis"
            " were expected."
        )
    image.check_image("loaded")
    if labels is not None and not labels.grid.same_space(image.grid):
        raise InputError(
            f"its labels '{labels.name}' stand on another grid ({_place(labels.grid)}) than the"
            f" image ({_place(image.grid)}). Resample the labels onto the image (nearest neighbour)"
            " first."
        )


def make_small(image: Volume, labels: Volume | None, size: int | str) -> Entry:
    """What the cache keeps of a scan.

    Ours: each axis gets the spacing max(finest spacing, extent of the content / (1.25 size)),
    unless its own is coarser or nearly that; where all are left, the values stay exactly as they
    are.

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


KEPT_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan as the training reads it.

    Attributes
    ----------
    image : Volume
        Axes nearest to right, front, up; the whole field of view.
    labels : Volume or None
        On the grid of the image.
    facts : dict
        About the scan as it lies on the disk: shape, spacing, orientation, low, high, labels,
        intensity, extent (of the content, mm), content (a check sum of the voxels), notes (warnings
        of the reader).
    key : str
        Of the cache.
    """

    image: Volume
    labels: Volume | None
    facts: dict[str, Any]
    key: str

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return int(
            self.image.values.nbytes + (0 if self.labels is None else self.labels.values.nbytes)
        )

    def describe(self, report: ScanReport) -> ScanReport:
        """The report of the scan with what its files hold."""
        facts, labels = self.facts, self.facts["labels"]
        i, j, k = facts["shape"]
        a, b, c = facts["spacing"]
        return replace(
            report,
            shape=(i, j, k),
            spacing=(a, b, c),
            orientation=facts["orientation"],
            low=facts["low"],
            high=facts["high"],
            labels=None if labels is None else tuple(labels),
        )


class PreparedScans:
    """The small scans of a data set, made when they are asked for.

    Ours: what was seen first is what counts: a file that changes afterwards is refused, and a file
    that is gone does no harm while the cache has its scan.

    Parameters
    ----------
    dataset : Dataset
    cache : VolumeCache
    need_labels : bool
        Refuse a scan whose labels cannot be used; otherwise it is read without them.
    """

    def __init__(self, dataset: Dataset, cache: VolumeCache, *, need_labels: bool = False) -> None:
        self._dataset = dataset
        self._need_labels = need_labels
        self._cache = cache
        self._prints: dict[str, tuple[str, str | None]] = {}
        self._kept: dict[tuple[str, int | str], PreparedScan] = {}
        self._bytes = 0

    @property
    def prints(self) -> dict[str, tuple[str, str | None]]:
        """The sha256 of each scan's image and labels, of those that could be read."""
        return dict(self._prints)

    def forget(self, name: str) -> None:
        """Look at the files of a scan again."""
        self._prints.pop(name, None)
        for known in [known for known in self._kept if known[0] == name]:
            self._bytes -= self._kept.pop(known).bytes

    def get(self, name: str, size: int | str) -> PreparedScan:
        """As `look`; the error names scan and file too."""
        try:
            return self.look(name, size)
        except InputError as error:
            raise InputError(
                f"Scan '{name}' ({self._dataset.scan(name).image}): {error}"
            ) from error

    def look(self, name: str, size: int | str) -> PreparedScan:
        """A scan for pairs of `size` voxels along the longest axis, or "native".

        Raises
        ------
        InputError
            If it cannot be used, or changed since it was first seen.
        """
        if (name, size) in self._kept:
            return self._kept[name, size]
        prints = self._prints.get(name) or self._fingerprints(name)
        key = self._key(prints, size)
        entry = self._cache.get(key)
        if entry is None:
            if self._fingerprints(name) != prints:
                raise InputError(
                    "the file changed since it was first read. Start again with the data as they"
                    " are."
                )
            entry = self._made(name, size)
            self._cache.put(key, entry.arrays, entry.facts)
        self._prints[name] = prints
        small = _built(name, entry, key)
        if self._bytes + small.bytes <= KEPT_BYTES:
            self._kept[name, size] = small
            self._bytes += small.bytes
        return small

    def _fingerprints(self, name: str) -> tuple[str, str | None]:
        scan = self._dataset.scan(name)
        image = self._cache.fingerprint(scan.image)
        try:
            return image, None if scan.labels is None else self._cache.fingerprint(scan.labels)
        except InputError:
            if self._need_labels:
                raise
            return image, None  # said in the notes of the scan

    def _key(self, prints: tuple[str, str | None], size: int | str) -> str:
        return self._cache.key(
            what="scan",
            version=VERSION,
            image=prints[0],
            labels=prints[1],
            labels_needed=self._need_labels,
            size=size,
            window=self._dataset.window,
            nan=self._dataset.nan,
            channel=self._dataset.channel,
        )

    def _made(self, name: str, size: int | str) -> Entry:
        scan, notes = self._dataset.scan(name), []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                image, labels = self._dataset.read(name)
                check_scan(image, labels)
            except InputError as error:
                if self._need_labels or scan.labels is None:
                    raise
                alone = replace(self._dataset, scans=(replace(scan, labels=None),))
                image, labels = alone.read(name)[0], None
                check_scan(image, None)
                notes.append(f"its labels were left out: {error}")
        entry = make_small(image, labels, size)
        return Entry(
            entry.arrays,
            entry.facts | {"notes": notes + [str(warning.message) for warning in told]},
        )


def _built(name: str, entry: Entry, key: str) -> PreparedScan:
    values = entry.arrays["image"]
    grid = Grid((values.shape[0], values.shape[1], values.shape[2]), entry.arrays["affine"])
    image = Volume(values, grid, name)
    Intensity(*entry.facts["intensity"]).remember(image)
    labels = entry.arrays.get("labels")
    return PreparedScan(
        image,
        None if labels is None else Volume(labels, grid, name, is_labels=True),
        entry.facts,
        key,
    )
