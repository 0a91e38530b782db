"""Scan and Dataset: whose images, where they lie, and which belong together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.io.images import read_image

Window = tuple[float, float]


@dataclass(frozen=True)
class Scan:
    """One image of one person.

    Attributes
    ----------
    name : str
        Unique in its data set.
    subject : str
        Whose it is: scans of one subject never stand on both sides of a split.
    image : Path
        A file, or a folder with one DICOM series.
    labels : Path or None
    """

    name: str
    subject: str
    image: Path
    labels: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that is no part of the data set, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Dataset:
    """Scans, and which pairs are made of them; nothing is read until it is asked for.

    Attributes
    ----------
    kind : {"folder", "list", "learn2reg", "oasis", "btcv"}
    root : Path
        The folder or file that was opened.
    scans : tuple of Scan
        By name.
    pairs : tuple of (moving, fixed) names, or None
        None: every ordered pair.
    parts : mapping of "train", "validation", "test" to names, or None
        A split that comes with the data set.
    window : (low, high) or None
        Intensities are cut off there when a scan is read; units of the file.
    skipped : tuple of Skipped
    landmarks : mapping of (moving, fixed) to Path
    part_pairs : mapping of a part to its pairs
        Where every ordered pair may learn, but a part is judged on listed ones.
    nan, channel
        As for `read_image`.
    """

    kind: str
    root: Path
    scans: tuple[Scan, ...]
    pairs: tuple[tuple[str, str], ...] | None = None
    parts: Mapping[str, tuple[str, ...]] | None = None
    window: Window | None = None
    skipped: tuple[Skipped, ...] = ()
    landmarks: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    part_pairs: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    nan: float | None = None
    channel: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all scans."""
        return tuple(scan.name for scan in self.scans)

    @property
    def subjects(self) -> dict[str, tuple[str, ...]]:
        """Subject to the names of its scans, both in the order of names."""
        found: dict[str, list[str]] = {}
        for scan in self.scans:
            found.setdefault(scan.subject, []).append(scan.name)
        return {subject: tuple(sorted(found[subject])) for subject in sorted(found)}

    def scan(self, name: str) -> Scan:
        """The scan of a name.

        Raises
        ------
        InputError
            If there is none.
        """
        for scan in self.scans:
            if scan.name == name:
                return scan
        some = ", ".join(self.names[:5])
        raise InputError(f"{self.root} has no scan '{name}'. It has {len(self.scans)}: {some} ...")

    def read(self, name: str) -> tuple[Volume, Volume | None]:
        """Read an image, cut off at the window, and its labels if it has some.

        Raises
        ------
        InputError
            As `read_image`.
        """
        scan = self.scan(name)
        image = read_image(scan.image, nan=self.nan, channel=self.channel)
        if self.window is not None:
            image = cut_off(image, self.window)
        labels = None if scan.labels is None else read_image(scan.labels, labels=True, nan=self.nan)
        return image, labels

    def ordered_pairs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs (moving, fixed) that can be made of some scans, always in the same order."""
        there = set(names)
        if self.pairs is not None:
            return [pair for pair in self.pairs if there.issuperset(pair)]
        for listed in self.part_pairs.values():
            chosen = [pair for pair in listed if there.issuperset(pair)]
            if chosen and there <= {name for pair in listed for name in pair}:
                return chosen
        return list(itertools.permutations(sorted(there), 2))

    def only(self, names: Sequence[str]) -> Dataset:
        """The data set with some of its scans."""
        there = set(names)
        return replace(self, scans=tuple(scan for scan in self.scans if scan.name in there))


def cut_off(image: Volume, window: Window) -> Volume:
    """An image with its values cut off at both ends of a window."""
    values = np.clip(image.values.astype(np.float32), *window)
    if image.values.dtype.kind == "i" and all(float(end).is_integer() for end in window):
        values = values.astype(image.values.dtype)
    return image.with_values(values)


def check_window(window: Sequence[float] | None) -> Window | None:
    """A window as two numbers, the lower first.

    Raises
    ------
    InputError
        If it is something else.
    """
    if window is None:
        return None
    try:
        low, high = (float(v) for v in window)
    except (TypeError, ValueError) as error:
        raise InputError(f"A window is two numbers, such as -160 and 240; got {window!r}.") from error
    if not -1e30 < low < high < 1e30:
        raise InputError(f"A window is two finite numbers, the lower one first; got {low:g} and {high:g}.")
    return low, high
