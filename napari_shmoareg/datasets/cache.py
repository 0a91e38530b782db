"""Disk cache of scans resampled to the training resolution, keyed by the checksums of their files.

Safe for several processes: entries are written atomically, their checksums are verified on reading,
and missing or damaged entries are computed again.
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
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.images import storable
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.registration.intensity import Intensity, content_points

FORMAT = "shmoareg-cache-1"
FOLDER_VARIABLE = "SHMOAREG_CACHE"  # environment variable for another folder
DEFAULT_LIMIT = 20 * 2**30
SHARE_OF_DISK = 0.1  # of the free space, at most
_PARTIAL_MAX_AGE = 3600.0  # seconds after which a partial file of an ended process is removed
# names of partial files differ between processes, not between threads
_WRITE_LOCK = threading.Lock()


class Entry(NamedTuple):
    """Content of an entry: arrays by name, and JSON-ready facts."""

    arrays: dict[str, NDArray]
    facts: dict[str, Any]


class VolumeCache:
    """Arrays and facts by key, up to a limit in bytes; the least recently used are removed first.

    The cache only saves time: if it cannot be written, `last_error` holds the reason and work
    continues.

    Parameters
    ----------
    folder : str or Path, optional
        By default the variable SHMOAREG_CACHE, or the user's cache folder.
    limit_bytes : int, optional
        By default 20 GiB, or a tenth of the free disk space if that is less.

    Attributes
    ----------
    folder : Path
    limit_bytes : int
    last_error : str
        Why the last entry could not be saved; "" if there was no error.
    """

    def __init__(self, folder: str | Path | None = None, limit_bytes: int | None = None) -> None:
        chosen = (
            folder
            or os.environ.get(FOLDER_VARIABLE)
            or Path(user_cache_dir("shmoareg")) / "volumes"
        )
        self.folder = user_path(chosen).absolute()
        self.last_error = ""
        if limit_bytes is None:
            nearest = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
            available = shutil.disk_usage(nearest).free + self.bytes
            limit_bytes = min(DEFAULT_LIMIT, int(SHARE_OF_DISK * available))
        self.limit_bytes = limit_bytes
        self._hashes: dict[tuple[str, int, int], str] = {}

    @property
    def bytes(self) -> int:
        """Size of all entries on disk."""
        return sum(size for _, size, _ in self._entries())

    def checksum(self, path: str | Path) -> str:
        """SHA-256 of a file or of all files of a folder; unchanged files are read only once.

        Raises
        ------
        InputError
            If it is missing or cannot be read.
        """
        source = Path(path)
        # a series of a DICOM folder, or a volume of it
        if not source.exists() and "#" in str(source):
            source = Path(str(source).rsplit("#", 1)[0])
        try:
            if not source.is_dir():
                return self._hash(source)
            whole = hashlib.sha256(Path(path).name.encode())
            for file in sorted(p for p in source.iterdir() if p.is_file()):
                whole.update(f"{file.name}\0{self._hash(file)}\0".encode())
            return whole.hexdigest()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror or error}. Check the file."
            ) from error

    def _hash(self, path: Path) -> str:
        state = path.stat()
        file_state = (str(path), state.st_size, state.st_mtime_ns)
        if file_state not in self._hashes:
            with path.open("rb") as file:
                self._hashes[file_state] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[file_state]

    @staticmethod
    def key(**parts: Any) -> str:
        """Hash JSON-ready parts to a key."""
        text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Entry | None:
        """Read an entry; None if there is none.  A damaged entry is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:  # missing, or evicted by another process: the caller makes it again
            return None
        entry = _parse_entry(key, data)
        if entry is None:
            self._remove(path)
            return None
        try:
            os.utime(path)  # mark as recently used
        except FileNotFoundError:  # evicted meanwhile; the data are complete
            return entry
        except OSError as error:
            self.last_error = f"{path.parent}: {error.strerror}"
        return entry

    def put(self, key: str, arrays: Mapping[str, NDArray], facts: Mapping[str, Any]) -> None:
        """Save arrays and JSON-ready facts, and remove the least recently used entries."""
        whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        text = json.dumps(facts)
        metadata = {"format": FORMAT, "key": key, "facts": text, "sum": _checksum(whole, text)}
        data = save(whole, metadata=metadata)
        if len(data) > self.limit_bytes:
            self.last_error = (
                f"{self.folder} may hold {self.limit_bytes} bytes; one entry has {len(data)}"
            )
            return
        with _WRITE_LOCK:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(self._path(key), size=len(data)) as temporary:
                    temporary.write_bytes(data)
                self._evict()
            # a full disk, or no permission: only time is lost
            except (OSError, InputError) as error:
                self.last_error = str(error)

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
                old = time.time() - path.stat().st_mtime > _PARTIAL_MAX_AGE
            except FileNotFoundError:
                continue
            if old and files.is_leftover(path, name):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # open elsewhere (Windows): removed another time
            self.last_error = f"{path} cannot be removed: {error.strerror}"


def _parse_entry(key: str, data: bytes) -> Entry | None:
    """Parse the bytes of an entry; None if they are damaged or of another key."""
    try:
        arrays = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        whole = (metadata["format"], metadata["key"], metadata["sum"]) == (
            FORMAT,
            key,
            _checksum(arrays, metadata["facts"]),
        )
        return Entry(arrays, json.loads(metadata["facts"])) if whole else None
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _checksum(arrays: Mapping[str, NDArray], facts: str) -> str:
    """Checksum of all arrays and facts."""
    total = zlib.crc32(facts.encode())
    for name in sorted(arrays):
        total = zlib.crc32(
            arrays[name].tobytes() if arrays[name].ndim == 0 else arrays[name].data, total
        )
    return f"{total:08x}"


VERSION = 1  # of the entries; a new version invalidates cached ones
OVERSAMPLING = 1.25  # finer than the network grid, for pairs with smaller content than this scan's
SPACING_TOLERANCE = 1.1  # axes whose spacing is within this ratio of the target are not resampled
MIN_VOXELS = 8  # along every axis


def check_scan(image: Volume, labels: Volume | None) -> None:
    """Check that a scan can be used for training.

    Raises
    ------
    InputError
        If it is flat or constant, has non-finite voxels, or its labels are on another grid.
    """
    if min(image.grid.shape) < MIN_VOXELS:
        raise InputError(
            f"its shape is {image.grid.shape}; at least {MIN_VOXELS} voxels along every axis were"
            " expected."
        )
    image.check_image("loaded")
    if labels is not None and not labels.grid.same_space(image.grid):
        raise InputError(
            f"its labels '{labels.name}' are on another grid"
            f" ({_describe_grid(labels.grid)}) than the image ({_describe_grid(image.grid)})."
            " Resample the labels to the grid of the image (nearest neighbour) first."
        )


def resample_scan(image: Volume, labels: Volume | None, size: int | str) -> Entry:
    """Resample a scan for the cache.

    Ours: each axis gets the spacing max(finest spacing, extent of the content / (1.25 size)),
    unless its own is coarser or close to that.  If no axis changes, the values stay exactly the
    same.  `size` is the number of voxels along the longest axis of the network grid, or "native".
    """
    intensity = Intensity.of(image)
    grid = image.grid.canonical()
    points = grid.to_index(image.grid.to_world(content_points(image, intensity)))
    spacing = np.array(grid.spacing)
    extent = (points.max(axis=0) - points.min(axis=0) + 1) * spacing
    target = spacing
    if not isinstance(size, str):
        voxel = max(spacing.min(), extent.max() / (OVERSAMPLING * size))
        target = np.where(spacing * SPACING_TOLERANCE >= voxel, spacing, voxel)
    canonical = Volume(_reorient(image), grid, image.name)
    maps = None if labels is None else Volume(_reorient(labels), grid, labels.name, is_labels=True)
    if not np.array_equal(target, spacing):
        prepared = grid.resampled([float(t) for t in target])
        canonical = resample(canonical, prepared)
        maps = None if maps is None else resample(maps, prepared)
    arrays = {"image": _native(canonical.values), "affine": np.array(canonical.grid.affine)}
    if maps is not None:
        arrays["labels"] = _native(storable(maps.values))
    facts = {
        "shape": list(image.grid.shape),
        "spacing": [float(s) for s in image.grid.spacing],
        "orientation": axis_codes(image.grid),
        "low": float(image.values.min()),
        "high": float(image.values.max()),
        "labels": None if labels is None else labels.labels,
        "intensity": [intensity.background, intensity.low, intensity.high],
        "extent": [float(e) for e in extent],
        "content": _voxel_checksum(image.values),
        "notes": [],
    }
    return Entry(arrays, facts)


def axis_codes(grid: Grid) -> str:
    """Directions of the array axes, such as "LIA"."""
    order, flip = grid.axes_to_ras()
    codes = [""] * 3
    for world, (axis, back) in enumerate(zip(order, flip, strict=True)):
        codes[axis] = ("RAS", "LPI")[int(back)][world]
    return "".join(codes)


def _reorient(volume: Volume) -> NDArray:
    """The values of a volume on its canonical grid."""
    order, flip = volume.grid.axes_to_ras()
    values = volume.values.transpose(tuple(int(axis) for axis in order))
    return values[tuple(slice(None, None, -1 if back else 1) for back in flip)]


def _native(values: NDArray) -> NDArray:
    """Make an array contiguous, in native byte order."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _voxel_checksum(values: NDArray) -> str:
    whole = hashlib.sha256(f"{values.shape}".encode())
    whole.update(np.ascontiguousarray(values, dtype=np.float32).data)
    return whole.hexdigest()


def _describe_grid(grid: Grid) -> str:
    return f"shape {grid.shape}, spacing {'x'.join(f'{s:.3g}' for s in grid.spacing)} mm"


MAX_CACHED_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan, resampled for training.

    Attributes
    ----------
    image : Volume
        Axes closest to right, anterior, superior; the whole field of view.
    labels : Volume or None
        On the grid of the image.
    facts : dict
        Facts about the original scan: shape, spacing, orientation, low, high, labels, intensity,
        extent (of the content, mm), content (checksum of the voxels), notes (warnings of the
        reader).
    key : str
        Cache key.
    """

    image: Volume
    labels: Volume | None
    facts: dict[str, Any]
    key: str

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return int(
            self.image.values.nbytes + (0 if self.labels is None else self.labels.values.nbytes)
        )

    def describe(self, report: ScanReport) -> ScanReport:
        """Complete the report of the scan with the facts."""
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
    """The resampled scans of a data set, made on first access.

    Ours: a file must not change after it was first read.  A deleted file does no harm while its
    scan is in the cache.

    Parameters
    ----------
    dataset : Dataset
    cache : VolumeCache
    need_labels : bool
        Refuse scans with unusable labels; otherwise they are read without labels.
    """

    def __init__(self, dataset: Dataset, cache: VolumeCache, *, need_labels: bool = False) -> None:
        self._dataset = dataset
        self._need_labels = need_labels
        self._cache = cache
        self._checksums: dict[str, tuple[str, str | None]] = {}
        self._cached: dict[tuple[str, int | str], PreparedScan] = {}
        self._bytes = 0

    @property
    def checksums(self) -> dict[str, tuple[str, str | None]]:
        """SHA-256 of the image and labels of each scan that could be read."""
        return dict(self._checksums)

    def forget(self, name: str) -> None:
        """Forget the checksums and data of a scan, so that its files are read again."""
        self._checksums.pop(name, None)
        for key in [key for key in self._cached if key[0] == name]:
            self._bytes -= self._cached.pop(key).bytes

    def get(self, name: str, size: int | str) -> PreparedScan:
        """As `load`, with the scan and file in the error message."""
        try:
            return self.load(name, size)
        except InputError as error:
            raise InputError(
                f"Scan '{name}' ({self._dataset.scan(name).image}): {error}"
            ) from error

    def load(self, name: str, size: int | str) -> PreparedScan:
        """Load a scan for pairs of `size` voxels along the longest axis, or "native".

        Raises
        ------
        InputError
            If it cannot be used, or its file changed since it was first read.
        """
        if (name, size) in self._cached:
            return self._cached[name, size]
        checksums = self._checksums.get(name) or self._compute_checksums(name)
        key = self._key(checksums, size)
        entry = self._cache.get(key)
        if entry is None:
            if self._compute_checksums(name) != checksums:
                raise InputError(
                    "the file changed since it was first read. Start again with the current data."
                )
            entry = self._read_scan(name, size)
            self._cache.put(key, entry.arrays, entry.facts)
        self._checksums[name] = checksums
        prepared = _build_scan(name, entry, key)
        if self._bytes + prepared.bytes <= MAX_CACHED_BYTES:
            self._cached[name, size] = prepared
            self._bytes += prepared.bytes
        return prepared

    def _compute_checksums(self, name: str) -> tuple[str, str | None]:
        scan = self._dataset.scan(name)
        image = self._cache.checksum(scan.image)
        try:
            return image, None if scan.labels is None else self._cache.checksum(scan.labels)
        except InputError:
            if self._need_labels:
                raise
            return image, None  # reported in the notes of the scan

    def _key(self, checksums: tuple[str, str | None], size: int | str) -> str:
        return self._cache.key(
            what="scan",
            version=VERSION,
            image=checksums[0],
            labels=checksums[1],
            labels_needed=self._need_labels,
            size=size,
            window=self._dataset.window,
            nan=self._dataset.nan,
            channel=self._dataset.channel,
        )

    def _read_scan(self, name: str, size: int | str) -> Entry:
        scan, notes = self._dataset.scan(name), []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image, labels = self._dataset.read(name)
                check_scan(image, labels)
            except InputError as error:
                if self._need_labels or scan.labels is None:
                    raise
                unlabelled = replace(self._dataset, scans=(replace(scan, labels=None),))
                image, labels = unlabelled.read(name)[0], None
                check_scan(image, None)
                notes.append(f"its labels were left out: {error}")
        entry = resample_scan(image, labels, size)
        return Entry(
            entry.arrays,
            entry.facts | {"notes": notes + [str(warning.message) for warning in caught]},
        )


def _build_scan(name: str, entry: Entry, key: str) -> PreparedScan:
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
