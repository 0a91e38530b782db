"""Data sets of scans: images, labels and subjects; reports of the quality check."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import read_image
from napari_shmoareg.io.files import stem
from napari_shmoareg.io.untrusted import printable

PARTS = ("train", "validation", "test")
Window = tuple[float, float]


@dataclass(frozen=True)
class DatasetChoice:
    """Arguments of `open_dataset`.

    Attributes
    ----------
    path : str
    images, labels, subject : str or None
        File patterns, and a regular expression that finds the subject in a name.
    kind : str
    window : (low, high) or None
    nan : float or None
    channel : int or None
    """

    path: str
    images: str | None = None
    labels: str | None = None
    subject: str | None = None
    kind: str = "auto"
    window: Window | None = None
    nan: float | None = None
    channel: int | None = None

    def open(self) -> Dataset:
        """Open the data set.

        Raises
        ------
        InputError
            If the path is no data set.
        """
        from napari_shmoareg.datasets.finders import open_dataset

        return open_dataset(self.path, **self.options)

    def dataset(self, kind: str, root: Path, scans: tuple[Scan, ...], **more: Any) -> Dataset:
        """Make a data set that is read with these options."""
        read = {"window": self.window, "nan": self.nan, "channel": self.channel}
        return Dataset(kind, root, scans, **(read | more))

    @property
    def options(self) -> dict[str, Any]:
        """All arguments except the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


@dataclass(frozen=True)
class ScanReport:
    """Properties of one scan, and its agreement with another one.

    Attributes
    ----------
    name, subject : str
    image : str
        The file.
    shape : tuple of 3 int
    spacing : tuple of 3 float
        mm.
    orientation : str
        Directions of the three axes of the file, such as "LIA".
    low, high : float
        Minimum and maximum, in the file's units, within the window.
    labels : tuple of int, or None
        Label values without 0; None without a label map.
    dice : float or None
        Mean Dice with its partner after alignment, over labels in either.
    ncc : float or None
        Correlation with its partner after alignment, where their fields of view overlap.
    partner : str or None
        The scan that it was compared with: the reference, or the other one of its listed pair.
    skipped : str or None
        Reason if it is not used.
    """

    name: str
    subject: str
    image: str
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    low: float | None = None
    high: float | None = None
    labels: tuple[int, ...] | None = None
    dice: float | None = None
    ncc: float | None = None
    partner: str | None = None
    skipped: str | None = None

    @property
    def overlap(self) -> float | None:
        """Dice if both scans have labels, otherwise the correlation; None for the reference."""
        return self.ncc if self.dice is None else self.dice

    @property
    def overlap_kind(self) -> str | None:
        """Kind of `overlap`: "dice" or "ncc"."""
        if self.overlap is None:
            return None
        return "ncc" if self.dice is None else "dice"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = asdict(self)
        for name in ("image", "dice", "ncc"):
            del values[name]
        if self.spacing is not None:
            values["spacing"] = [round(s, 4) for s in self.spacing]
        return values | {"overlap": self.overlap, "overlap_kind": self.overlap_kind}

    def to_row(self) -> dict[str, object]:
        """Table row."""
        return {
            "scan": self.name,
            "subject": self.subject,
            "image": self.image,
            "shape": "" if self.shape is None else "x".join(str(n) for n in self.shape),
            "spacing_mm": (
                "" if self.spacing is None else "x".join(f"{s:.4g}" for s in self.spacing)
            ),
            "orientation": self.orientation or "",
            "low": "" if self.low is None else f"{self.low:g}",
            "high": "" if self.high is None else f"{self.high:g}",
            "labels": "" if self.labels is None else " ".join(str(v) for v in self.labels),
            "dice_after_alignment": "" if self.dice is None else f"{self.dice:.4f}",
            "ncc_after_alignment": "" if self.ncc is None else f"{self.ncc:.4f}",
            "compared_with": self.partner or "",
            "skipped": self.skipped or "",
        }


@dataclass(frozen=True)
class Scan:
    """One image of one subject.

    Attributes
    ----------
    name : str
        Unique in its data set.
    subject : str
        Scans of one subject are never on both sides of a split.
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
    """A file that is not part of the data set, and the reason."""

    path: Path
    why: str


@dataclass(frozen=True)
class Dataset:
    """Scans and their pairs; images are read on access.

    Attributes
    ----------
    kind : {"folder", "list", "learn2reg", "oasis", "btcv"}
    root : Path
        The folder or file that was opened.
    scans : tuple of Scan
        Sorted by name.
    pairs : tuple of (moving, fixed) names, or None
        None: every ordered pair.
    parts : mapping of "train", "validation", "test" to names, or None
        The data set's own split.
    window : (low, high) or None
        Intensities are clipped to it when a scan is read; units of the file.
    skipped : tuple of Skipped
    landmarks : mapping of (moving, fixed) to Path
    part_pairs : mapping of a part to its pairs
        Evaluation pairs of a part, for data sets that train on every ordered pair.
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
        """Mapping of subjects to the names of their scans, both sorted."""
        found: dict[str, list[str]] = {}
        for scan in self.scans:
            found.setdefault(scan.subject, []).append(scan.name)
        return {subject: tuple(sorted(found[subject])) for subject in sorted(found)}

    def scan(self, name: str) -> Scan:
        """Find a scan by name.

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
        """Read an image, clipped to the window, and its labels if there are any.

        Raises
        ------
        InputError
            As `read_image`.
        """
        scan = self.scan(name)
        image = read_image(scan.image, nan=self.nan, channel=self.channel)
        if self.window is not None:
            image = clip_to_window(image, self.window)
        labels = None if scan.labels is None else read_image(scan.labels, labels=True, nan=self.nan)
        return image, labels

    def ordered_pairs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """List the pairs (moving, fixed) of some scans, in a fixed order."""
        requested = set(names)
        if self.pairs is not None:
            return [pair for pair in self.pairs if requested.issuperset(pair)]
        for listed in self.part_pairs.values():
            chosen = [pair for pair in listed if requested.issuperset(pair)]
            if chosen and requested <= {name for pair in listed for name in pair}:
                return chosen
        return list(itertools.permutations(sorted(requested), 2))

    def only(self, names: Sequence[str]) -> Dataset:
        """Restrict the data set to some of its scans."""
        requested = set(names)
        return replace(self, scans=tuple(scan for scan in self.scans if scan.name in requested))


def clip_to_window(image: Volume, window: Window) -> Volume:
    """Clip the values of an image to a window."""
    values = np.clip(image.values.astype(np.float32), *window)
    if image.values.dtype.kind == "i" and all(float(end).is_integer() for end in window):
        values = values.astype(image.values.dtype)
    return image.with_values(values)


def check_window(window: Sequence[float] | None) -> Window | None:
    """Parse a window: two numbers, the lower first."""
    if window is None:
        return None
    try:
        low, high = (float(v) for v in window)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A window is two numbers, such as -160 and 240; got {window!r}."
        ) from error
    if not -1e30 < low < high < 1e30:
        raise InputError(
            f"A window is two finite numbers, the lower one first; got {low:g} and {high:g}."
        )
    return low, high


# Ours: naming schemes that identify the subject, whatever the session, series or file.
_SUBJECT_PATTERNS = (
    re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)"),  # BIDS
    re.compile(r"(OAS[12]_\d{4})_MR\d"),  # OASIS-1 and -2
    re.compile(r"(OAS3\d{4})(?:_MR|/)"),  # OASIS-3
    re.compile(r"^(?:.*/)?([^/]+_\d{4})_\d{4}$"),  # Learn2Reg: task, subject, session
)
_ROLE_FOLDERS = re.compile(
    r"(images?|labels?|img|scans?|segs?|masks?|segmentations?|annotations)([-_"
    r" ]?(tr|ts|va|train|training|test))?"
    r"|anat|training|rawdata|derivatives|averaged-training-(images|labels)",
    re.IGNORECASE,
)


def descriptive_folders(root: Path, path: Path) -> tuple[str, ...]:
    """Folders between root and a file, without those that only name a role (images, labels)."""
    inner = (
        path.parent.relative_to(root)
        if path.parent.is_relative_to(root)
        else Path(path.parent.name)
    )
    return tuple(part for part in inner.parts if not _ROLE_FOLDERS.fullmatch(part))


def scan_names(root: Path, images: Sequence[Path]) -> dict[Path, str]:
    """Make a unique name for each image: its file name, with folders if necessary."""
    short = {path: printable(path.name if path.is_dir() else stem(path)) for path in images}
    longer = {
        path: printable("/".join((*descriptive_folders(root, path), short[path])))
        for path in images
    }
    whole = {path: printable(str(path.parent / short[path])) for path in images}
    chosen: dict[Path, str] = {}
    for names in (short, longer, whole):
        counts = Counter(names[path] for path in images)
        chosen |= {
            path: names[path] for path in images if path not in chosen and counts[names[path]] == 1
        }
    return chosen | {path: printable(str(path)) for path in images if path not in chosen}


def compile_subject_pattern(subject: str | None) -> re.Pattern[str] | None:
    """Compile the user's subject pattern, a regular expression with one group."""
    if subject is None:
        return None
    example = r"such as '(sub-\d+)_.*'"
    try:
        subject_pattern = re.compile(subject)
    except re.error as error:
        raise InputError(
            f"A subject pattern is a regular expression with one group, {example}; '{subject}' is"
            f" not valid ({error})."
        ) from error
    if subject_pattern.groups != 1:
        raise InputError(
            f"A subject pattern has one group ( ) that matches the subject, {example}; '{subject}'"
            f" has {subject_pattern.groups}. Write (?: ) for other groups."
        )
    return subject_pattern


def find_subject(name: str, relative_path: str, subject: str | None) -> str:
    """Find the subject of a scan in its name, then in its path within the data set.

    The user's regular expression has to match; without one, known naming schemes are tried.
    """
    subject_pattern = compile_subject_pattern(subject)
    if subject_pattern is not None:
        found = subject_pattern.search(name) or subject_pattern.search(relative_path)
        if found is None or not found[1]:
            raise InputError(
                f"The subject pattern '{subject_pattern.pattern}' matches neither '{name}' nor"
                f" '{relative_path}'. Correct the pattern so that it matches every scan."
            )
        return found[1]
    for pattern in _SUBJECT_PATTERNS:
        found = pattern.search(name) or pattern.search(relative_path)
        if found is not None:
            return found[1]
    return name


def make_scans(
    root: Path,
    images: Iterable[Path],
    labels: Mapping[Path, Path],
    subject: str | None,
    names: Mapping[Path, str] | None = None,
) -> tuple[Scan, ...]:
    """Make the scans, sorted by name; the names are by default those of the files."""
    paths = sorted(set(images))
    names = names or scan_names(root, paths)
    scans = []
    for path in paths:
        inner = path.relative_to(root) if path.is_relative_to(root) else path
        relative_path = (inner.with_name(stem(inner)) if inner.name else inner).as_posix()
        own = find_subject(names[path], relative_path, subject)
        scans.append(Scan(names[path], own, path, labels.get(path)))
    return tuple(sorted(scans, key=lambda scan: scan.name))
