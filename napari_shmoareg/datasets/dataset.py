"""Scan and Dataset: images, labels, subjects; what the quality check found about each scan."""

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


@dataclass(frozen=True)
class DatasetChoice:
    """A data set, and how it is to be read; see `open_dataset`.

    Attributes
    ----------
    path : str
    images, labels, subject : str or None
        Patterns of files, and a regular expression that finds the subject in a name.
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
    window: tuple[float, float] | None = None
    nan: float | None = None
    channel: int | None = None

    def open(self) -> Dataset:
        """Open it.

        Raises
        ------
        InputError
            If it is none.
        """
        from napari_shmoareg.datasets.finders import open_dataset

        return open_dataset(self.path, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """All but the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


@dataclass(frozen=True)
class ScanReport:
    """One scan, as it lies on the disk and beside the others.

    Attributes
    ----------
    name, subject : str
    image : str
        The file.
    shape : tuple of 3 int
    spacing : tuple of 3 float
        mm.
    orientation : str
        Where the three axes of the file run to, such as "LIA".
    low, high : float
        Least and greatest value, in the file's units, within the window.
    labels : tuple of int, or None
        Label values without 0; None where there is no label map.
    dice : float or None
        Mean Dice of the labels with its partner's, after alignment, over labels in either.
    ncc : float or None
        Correlation with its partner after alignment, where their fields of view meet.
    partner : str or None
        With which scan it was compared: the reference, or the other one of its listed pair.
    skipped : str or None
        Why it is not used.
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
        """The Dice where both scans have labels, otherwise the correlation; None for the
        reference.
        """
        return self.ncc if self.dice is None else self.dice

    @property
    def overlap_kind(self) -> str | None:
        """What `overlap` is: "dice" or "ncc"."""
        if self.overlap is None:
            return None
        return "ncc" if self.dice is None else "dice"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "subject": self.subject,
            "shape": None if self.shape is None else list(self.shape),
            "spacing": None if self.spacing is None else [round(s, 4) for s in self.spacing],
            "orientation": self.orientation,
            "low": self.low,
            "high": self.high,
            "labels": None if self.labels is None else list(self.labels),
            "overlap": self.overlap,
            "overlap_kind": self.overlap_kind,
            "partner": self.partner,
            "skipped": self.skipped,
        }

    def to_row(self) -> dict[str, object]:
        """One line of a table, with the name of each number."""
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
        raise InputError(
            f"A window is two numbers, such as -160 and 240; got {window!r}."
        ) from error
    if not -1e30 < low < high < 1e30:
        raise InputError(
            f"A window is two finite numbers, the lower one first; got {low:g} and {high:g}."
        )
    return low, high


# Ours: names that say who it is, whatever session, series or file it is of.
_RULES = (
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


def place_in(root: Path, path: Path) -> tuple[str, ...]:
    """The folders between root and a file that say more than that images or labels lie in them."""
    inner = (
        path.parent.relative_to(root)
        if path.parent.is_relative_to(root)
        else Path(path.parent.name)
    )
    return tuple(part for part in inner.parts if not _ROLE_FOLDERS.fullmatch(part))


def scan_names(root: Path, images: Sequence[Path]) -> dict[Path, str]:
    """A unique name for each image: of the file, with its folders where that is not enough."""
    short = {path: printable(path.name if path.is_dir() else stem(path)) for path in images}
    longer = {path: printable("/".join((*place_in(root, path), short[path]))) for path in images}
    whole = {path: printable(str(path.parent / short[path])) for path in images}
    chosen: dict[Path, str] = {}
    for names in (short, longer, whole):
        often = Counter(names[path] for path in images)
        chosen |= {
            path: names[path] for path in images if path not in chosen and often[names[path]] == 1
        }
    return chosen | {path: printable(str(path)) for path in images if path not in chosen}


def read_rule(subject: str | None) -> re.Pattern[str] | None:
    """A user's rule for the subject of a name.

    Raises
    ------
    InputError
        If it is no regular expression with one group.
    """
    if subject is None:
        return None
    example = r"such as '(sub-\d+)_.*'"
    try:
        rule = re.compile(subject)
    except re.error as error:
        raise InputError(
            f"The subject is found by a regular expression with one group, {example}; '{subject}'"
            f" is none ({error})."
        ) from error
    if rule.groups != 1:
        raise InputError(
            f"The subject is what one group ( ) of a regular expression finds, {example};"
            f" '{subject}' has {rule.groups}. Write (?: ) for a group that is not meant."
        )
    return rule


def subject_of(name: str, place: str, rule: re.Pattern[str] | None) -> str:
    """Whose scan it is.

    Parameters
    ----------
    name : str
        Of the scan.
    place : str
        Its file within the data set, with / and without ending.
    rule : pattern or None
        The user's; looked for in the name, then in the place.

    Raises
    ------
    InputError
        If the user's rule finds nothing.
    """
    if rule is not None:
        found = rule.search(name) or rule.search(place)
        if found is None or not found[1]:
            raise InputError(
                f"The rule '{rule.pattern}' finds no subject in '{name}' nor in '{place}'. Mend the"
                " rule, so that every scan has a subject."
            )
        return found[1]
    for known in _RULES:
        found = known.search(name) or known.search(place)
        if found is not None:
            return found[1]
    return name


def make_scans(
    root: Path, images: Iterable[Path], labels: Mapping[Path, Path], rule: re.Pattern[str] | None
) -> tuple[Scan, ...]:
    """Scans in the order of their names."""
    paths = sorted(set(images))
    names = scan_names(root, paths)
    scans = []
    for path in paths:
        inner = path.relative_to(root) if path.is_relative_to(root) else path
        place = (inner.with_name(stem(inner)) if inner.name else inner).as_posix()
        scans.append(
            Scan(names[path], subject_of(names[path], place, rule), path, labels.get(path))
        )
    return tuple(sorted(scans, key=lambda scan: scan.name))


@dataclass(frozen=True)
class DatasetOptions:
    """Patterns, the rule for subjects and how scans are read.

    Attributes
    ----------
    images, labels : str or None
        Patterns of file names.
    rule : pattern or None
        For the subject of a name.
    window : (low, high) or None
    nan, channel
        As for `read_image`.
    """

    images: str | None = None
    labels: str | None = None
    rule: re.Pattern[str] | None = None
    window: Window | None = None
    nan: float | None = None
    channel: int | None = None
