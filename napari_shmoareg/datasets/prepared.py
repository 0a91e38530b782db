"""Scans resampled to the training resolution, kept in files beside the run.

Each scan has one file per size, written atomically and named after the scan.  Its key is a checksum
of the scan's files and the settings of the preparation: a changed scan and a damaged file are
prepared again.  Ours: safetensors, as a NIfTI affine has single precision, and a resumed run must
see the same pairs bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from napari_shmoareg.datasets.dataset import Dataset, ScanReport
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.images import storable
from napari_shmoareg.registration.intensity import Intensity, content_points

VERSION = 1  # of the files; another version prepares all scans again
RESERVE = 2 * 2**30  # bytes of the disk that are left for the run's own files
# names of partial files differ between processes, not between threads
_WRITE_LOCK = threading.Lock()


class Entry(NamedTuple):
    """Content of a file: arrays by name, and JSON-ready facts."""

    arrays: dict[str, NDArray]
    facts: dict[str, Any]


class PreparedFolder:
    """Files of arrays and facts by name, each valid for one key.

    The files only save time: if one cannot be written, `last_error` holds the reason and work
    continues.

    Parameters
    ----------
    path : Path or None
        None: nothing is kept.

    Attributes
    ----------
    path : Path or None
    last_error : str
        Why the last file could not be written; "" if there was no error.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.last_error = ""

    def file(self, name: str) -> Path:
        """The file of a name: its plain characters, and a checksum to tell similar names apart."""
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:80].lstrip(".")
        return (self.path or Path()) / f"{plain}-{zlib.crc32(name.encode()):08x}.safetensors"

    def read(self, name: str, key: str) -> Entry | None:
        """Read a file; None if it is missing, damaged or of another key."""
        if self.path is None:
            return None
        try:
            data = self.file(name).read_bytes()
            arrays = load(data)
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            facts = metadata["facts"]
            if metadata["sum"] != _checksum(key, arrays, facts):
                return None
            return Entry(arrays, json.loads(facts))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError):
            return None

    def write(self, name: str, key: str, entry: Entry) -> None:
        """Write or replace a file."""
        if self.path is None:
            return
        arrays = {name: np.ascontiguousarray(values) for name, values in entry.arrays.items()}
        facts = json.dumps(entry.facts)
        data = save(arrays, metadata={"facts": facts, "sum": _checksum(key, arrays, facts)})
        with _WRITE_LOCK:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(self.path).free
                if free < len(data) + RESERVE:
                    raise InputError(
                        f"The disk is nearly full: {free / 1e6:.0f} MB are free at {self.path}"
                    )
                with atomic_write(self.file(name), size=len(data)) as temporary:
                    temporary.write_bytes(data)
            # a full disk, or no permission: only time is lost
            except (OSError, InputError) as error:
                self.last_error = str(error)


def make_key(**parts: Any) -> str:
    """Hash JSON-ready parts to a key."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(key: str, arrays: Mapping[str, NDArray], facts: str) -> str:
    """Key of a file, with the checksum of its content."""
    total = zlib.crc32(facts.encode())
    for name, values in sorted(arrays.items()):
        total = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), total)
        total = zlib.crc32(values.tobytes() if values.ndim == 0 else values.data, total)
    return f"{key}-{total:08x}"


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file or of all files of a folder."""
    source = Path(path)
    # a series of a DICOM folder, or a volume of it
    if not source.exists() and "#" in str(source):
        source = Path(str(source).rsplit("#", 1)[0])
    try:
        if not source.is_dir():
            with source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        whole = hashlib.sha256(Path(path).name.encode())
        for entry in sorted(p for p in source.iterdir() if p.is_file()):
            whole.update(f"{entry.name}\0{file_checksum(entry)}\0".encode())
        return whole.hexdigest()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}. Check the file."
        ) from error


OVERSAMPLING = 1.25  # finer than the network grid, for pairs with smaller content than this scan's
SPACING_TOLERANCE = 1.1  # axes whose spacing is within this ratio of the target are not resampled
MIN_VOXELS = 8  # along every axis


def check_scan(image: Volume, labels: Volume | None) -> None:
    """Refuse a scan that is flat, constant or not finite, or whose labels are on another grid."""
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
    """Resample a scan for training.

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
REPORTED = ("shape", "spacing", "orientation", "low", "high", "labels")


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
        Checksum of the files and settings that it comes from.
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
        known: dict[str, Any] = {name: self.facts[name] for name in REPORTED}
        known |= {name: tuple(v) for name, v in known.items() if isinstance(v, list)}
        return replace(report, **known)


class PreparedScans:
    """The resampled scans of a data set, made on first access; up to 2 GiB are kept in memory.

    Scans with unusable labels are refused if labels are needed, and read without them otherwise.
    Ours: a file must not change after it was first read.  A deleted file does no harm while its
    prepared scan is there.
    """

    def __init__(
        self, dataset: Dataset, folder: PreparedFolder, *, need_labels: bool = False
    ) -> None:
        self._dataset = dataset
        self._need_labels = need_labels
        self._folder = folder
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
        """Load a scan for pairs of `size` voxels along the longest axis, or "native"."""
        if (name, size) in self._cached:
            return self._cached[name, size]
        before = self._checksums.get(name)
        checksums = before or self._compute_checksums(name)
        file, key = f"{name}-{size}", self._key(checksums, size)
        entry = self._folder.read(file, key)
        if entry is None:
            if before is not None and self._compute_checksums(name) != before:
                raise InputError(
                    "the file changed since it was first read. Start again with the current data."
                )
            entry = self._read_scan(name, size)
            self._folder.write(file, key, entry)
        self._checksums[name] = checksums
        prepared = _build_scan(name, entry, key)
        if self._bytes + prepared.bytes <= MAX_CACHED_BYTES:
            self._cached[name, size] = prepared
            self._bytes += prepared.bytes
        return prepared

    def _compute_checksums(self, name: str) -> tuple[str, str | None]:
        scan = self._dataset.scan(name)
        image = file_checksum(scan.image)
        try:
            return image, None if scan.labels is None else file_checksum(scan.labels)
        except InputError:
            if self._need_labels:
                raise
            return image, None  # reported in the notes of the scan

    def _key(self, checksums: tuple[str, str | None], size: int | str) -> str:
        return make_key(
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
