"""Scans brought to the resolution of a training, kept in the cache and in memory.

A small scan goes through `conform` in milliseconds and comes out as the whole one would, within one
more interpolation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.geometry import Grid, InputError, Volume
from napari_shmoareg.io.datasets.scan_report import ScanReport
from napari_shmoareg.io.datasets.scans import Dataset
from napari_shmoareg.io.datasets.shrinking import VERSION, check_scan, make_small
from napari_shmoareg.io.datasets.volume_cache import Entry, VolumeCache

KEPT_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class SmallScan:
    """A scan as the training reads it.

    Attributes
    ----------
    image : Volume
        Axes nearest to right, front, up; the whole field of view.
    labels : Volume or None
        On the grid of the image.
    facts : dict
        About the scan as it lies on the disk: shape, spacing, orientation, low, high, labels, intensity,
        extent (of the content, mm), content (a check sum of the voxels), notes (warnings of the reader).
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
        return int(self.image.values.nbytes + (0 if self.labels is None else self.labels.values.nbytes))

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


class SmallScans:
    """The small scans of a data set, made when they are asked for.

    Ours: what was seen first is what counts: a file that changes afterwards is refused, and a file that is
    gone does no harm while the cache has its scan.

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
        self._kept: dict[tuple[str, int | str], SmallScan] = {}
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

    def get(self, name: str, size: int | str) -> SmallScan:
        """As `look`; the error names scan and file too."""
        try:
            return self.look(name, size)
        except InputError as error:
            raise InputError(f"Scan '{name}' ({self._dataset.scan(name).image}): {error}") from error

    def look(self, name: str, size: int | str) -> SmallScan:
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
                raise InputError("the file changed since it was first read. Start again with the data as they are.")
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
        return Entry(entry.arrays, entry.facts | {"notes": notes + [str(warning.message) for warning in told]})


def _built(name: str, entry: Entry, key: str) -> SmallScan:
    values = entry.arrays["image"]
    grid = Grid((values.shape[0], values.shape[1], values.shape[2]), entry.arrays["affine"])
    image = Volume(values, grid, name)
    Intensity(*entry.facts["intensity"]).remember(image)
    labels = entry.arrays.get("labels")
    return SmallScan(image, None if labels is None else Volume(labels, grid, name, is_labels=True), entry.facts, key)
