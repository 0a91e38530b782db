"""Quality check of a data set before training: every scan read, conformed and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.datasets.dataset import Dataset, Scan, ScanReport, Skipped
from napari_shmoareg.datasets.pairs import NamedPairs, Names, unordered_pairs
from napari_shmoareg.datasets.prepared import (
    Entry,
    PreparedFolder,
    PreparedScan,
    PreparedScans,
    make_key,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import VolumePair, apply_affine, inside, slabs
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.metrics import dice
from napari_shmoareg.registration.affine import align, check_overlap
from napari_shmoareg.registration.conform import Conformed, conform
from napari_shmoareg.settings import RegistrationSettings, check_choice, check_size

V = TypeVar("V")
MAX_NAMES = 3  # scan names listed in one sentence
# an outlier is below the median overlap by SPREADS robust standard deviations, within these limits
OUTLIER_LIMITS = (0.15, 0.35)
OUTLIER_SPREADS = 4.0
MIN_SCANS = 5  # minimum for outlier detection
SAME_SPACING = 1.1  # ratio


def find_problems(
    reports: Sequence[ScanReport],
    skipped: Sequence[Skipped],
    contents: Mapping[str, str],
    notes: Mapping[str, str],
) -> list[str]:
    """List the problems of a data set as sentences, the most severe first.

    `contents` and `notes` map names to checksums of the voxels and to warnings of the reader.
    """
    used = [report for report in reports if report.skipped is None]
    found = [
        f"Left out: {report.name}: {report.skipped}"
        for report in reports
        if report.skipped is not None
    ]
    found += _copies(used, contents)
    found += _labels(used)
    found += _outliers(used)
    found += _spacings(used)
    found += [f"{_list_names(names)}: {note}" for note, names in _grouped(notes.items()).items()]
    reasons = _grouped((entry.path.name, entry.why) for entry in skipped)
    found += [f"{_list_names(names)}: {why}." for why, names in reasons.items()]
    return found


def check_enough(
    root: Path, reports: Sequence[ScanReport], training: Sequence[str], labels: bool
) -> None:
    """Refuse fewer than two usable training scans, or required labels that no two of them share."""
    training_reports = [report for report in reports if report.name in set(training)]
    used = [report for report in training_reports if report.skipped is None]
    if len(used) < 2:
        why = "".join(
            f" {r.name}: {r.skipped}"
            for r in [r for r in training_reports if r.skipped is not None][:MAX_NAMES]
        )
        raise InputError(
            f"Of the {len(training_reports)} training scans of {root}, {len(used)} can be used; a"
            f" pair needs two.{why}"
        )
    count = Counter(label for report in used for label in report.labels or ())
    if labels and max(count.values(), default=0) < 2:
        some = "; ".join(
            f"{r.name} has {', '.join(str(v) for v in (r.labels or ())[:5]) or 'none'}"
            for r in used[:2]
        )
        raise InputError(
            f"Labels are required, but no two scans of {root} share one ({some}). A label value"
            " must mean the same in every scan."
        )


def _list_names(names: Iterable[str]) -> str:
    """Text of the first few names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} others" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _grouped(values: Iterable[tuple[str, V]]) -> dict[V, list[str]]:
    """Names by value."""
    groups: dict[V, list[str]] = {}
    for name, value in values:
        groups.setdefault(value, []).append(name)
    return groups


def _copies(used: Sequence[ScanReport], contents: Mapping[str, str]) -> list[str]:
    subjects = {report.name: report.subject for report in used}
    found = []
    same = _grouped((name, contents[name]) for name in subjects if name in contents)
    for names in same.values():
        if len(names) < 2:
            continue
        distinct = len({subjects[name] for name in names}) > 1
        then = (
            "they count as different subjects and may be on both sides of a split"
            if distinct
            else "one is enough"
        )
        found.append(f"The same image: {_list_names(names)}; {then}.")
    return found


def _labels(used: Sequence[ScanReport]) -> list[str]:
    labelled = [report for report in used if report.labels is not None]
    if not labelled:
        return []
    found = []
    without = [report.name for report in used if report.labels is None]
    if without:
        found.append(
            f"No labels: {_list_names(without)}; {len(labelled)} of {len(used)} scans have some."
        )
    count = Counter(label for report in labelled for label in report.labels or ())
    missing: dict[tuple[str, ...], list[int]] = {}
    for label in sorted(label for label in count if count[label] < len(labelled)):
        missing_in = tuple(report.name for report in labelled if label not in (report.labels or ()))
        missing.setdefault(missing_in, []).append(label)
    for missing_in, values in sorted(missing.items(), key=lambda item: (len(item[0]), item[1])):
        words = ", ".join(str(v) for v in values[:10]) + (" ..." if len(values) > 10 else "")
        found.append(
            f"Label sets differ: {words} {'is' if len(values) == 1 else 'are'} missing in"
            f" {_list_names(missing_in)} ({len(missing_in)} of {len(labelled)} scans)."
        )
    return found


def _outliers(used: Sequence[ScanReport]) -> list[str]:
    found = []
    for kind in ("dice", "ncc"):
        values = {
            report.name: float(report.overlap or 0)
            for report in used
            if report.overlap_kind == kind
        }
        if len(values) < MIN_SCANS:
            continue
        numbers = np.array(list(values.values()))
        middle = float(np.median(numbers))
        spread = 1.4826 * float(np.median(np.abs(numbers - middle)))
        threshold = middle - float(np.clip(OUTLIER_SPREADS * spread, *OUTLIER_LIMITS))
        word = "Dice" if kind == "dice" else "correlation"
        for name, value in values.items():
            if value < threshold:
                found.append(
                    f"{name} agrees far worse with its partner than the others: {word} {value:.2f}"
                    f" after alignment; the median is {middle:.2f}. Check it, or leave it out."
                )
    return found


def _spacings(used: Sequence[ScanReport]) -> list[str]:
    found = []
    spacings = np.array([sorted(report.spacing) for report in used if report.spacing is not None])
    if len(spacings) and (spacings.max(axis=0) / spacings.min(axis=0)).max() > SAME_SPACING:
        words = {
            r.name: "x".join(f"{s:.3g}" for s in sorted(r.spacing)) + " mm"
            for r in used
            if r.spacing is not None
        }
        found.append(f"Spacings differ (each sorted): {_counted(words)}.")
    codes = {report.name: report.orientation for report in used if report.orientation is not None}
    if len(set(codes.values())) > 1:
        found.append(f"Orientations differ (all are reoriented): {_counted(codes)}.")
    return found


def _counted(values: Mapping[str, str]) -> str:
    """Text of the number of scans with each value, with a few names."""
    order = sorted(_grouped(values.items()).items(), key=lambda item: -len(item[1]))
    parts = [f"{value} in {len(names)} ({_list_names(names)})" for value, names in order[:4]]
    return "; ".join(parts) + ("; and others" if len(order) > 4 else "")


ALIGNMENT = 1  # version of `align`; another one aligns all scans again
COMPARISON_SIZE = 64  # voxels along the longest axis of the grid for comparing scans

Matrix = NDArray[np.float64]


class Agreement(NamedTuple):
    """Agreement of two scans after alignment.

    Attributes
    ----------
    dice : float or None
        Mean Dice over the labels that both have (0 if they share none); None if one has no label
        map.
    ncc : float or None
        Correlation where the fields of view overlap; None if they hardly do.
    """

    dice: float | None
    ncc: float | None


def _align_scans(
    moving: PreparedScan, fixed: PreparedScan, mode: str, folder: PreparedFolder
) -> tuple[Matrix, Agreement]:
    """The matrix of `align` (fixed world to moving world) and the agreement after it.

    They are read from the folder, if it has them.
    """
    name = f"{moving.image.name}-to-{fixed.image.name}"
    key = make_key(affine=ALIGNMENT, moving=moving.key, fixed=fixed.key, mode=mode)
    entry = folder.read(name, key)
    if entry is not None:
        return entry.arrays["matrix"], Agreement(entry.facts["dice"], entry.facts["ncc"])
    pair = VolumePair(moving.image, fixed.image)
    if mode == "none":
        matrix = np.eye(4)
        check_overlap(pair, matrix, mode)
    else:
        matrix = align(pair, mode).matrix
    found = _agreement(moving, fixed, matrix)
    folder.write(name, key, Entry({"matrix": matrix}, {"dice": found.dice, "ncc": found.ncc}))
    return matrix, found


def _agreement(moving: PreparedScan, fixed: PreparedScan, matrix: Matrix) -> Agreement:
    """Compare two scans on a coarse grid over the fixed image; `matrix`: fixed to moving world."""
    whole = fixed.image.grid
    extent = np.array(whole.shape) * whole.spacing
    grid = whole.resampled(
        [float(s) for s in np.maximum(whole.spacing, extent.max() / COMPARISON_SIZE)]
    )
    covered = np.empty(grid.shape, dtype=bool)
    for part, points in slabs(grid):
        covered[part] = inside(moving.image.grid, apply_affine(matrix, points))
    mean_dice = None
    if moving.labels is not None and fixed.labels is not None:
        maps = (
            resample(moving.labels, grid, world_map=matrix).values,
            resample(fixed.labels, grid).values,
        )
        both = sorted(set(moving.labels.labels) & set(fixed.labels.labels))
        mean_dice = float(np.mean(list(dice(*maps, both).values()) or [0.0])) if both else 0.0
    if covered.sum() < 2:
        return Agreement(mean_dice, None)
    a, b = (
        resample(moving.image, grid, world_map=matrix).values[covered],
        resample(fixed.image, grid).values[covered],
    )
    correlation = None if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])
    return Agreement(mean_dice, correlation)


CANDIDATES = 7  # scans from which the reference is chosen


class Checkup:
    """Checks every scan of a data set, and makes its pairs.

    Ours: each scan is aligned once, with a reference scan; a pair is aligned by both affines.  If
    fewer pairs than scans are listed, or every listed pair is of one subject, each pair is aligned
    by itself.

    Parameters
    ----------
    dataset : Dataset
    size : int or "native"
        Voxels along the longest axis of the network grid.
    affine : {"auto", "rigid", "affine", "none"}
        As for `align`.
    labels : bool
        Labels are required: scans without them are left out.
    prepared : Path, optional
        Folder for the resampled scans and their alignments, used again by the next check; by
        default nothing is written, and what does not fit into memory is read again.
    training : sequence of str, optional
        Names of the training scans: the reference is one of them, and two of them must be usable.
        By default the data set's own training part, or all.

    Attributes
    ----------
    reports : list of ScanReport
        So far.
    problems : list of str
        Warnings for the user; complete at the end of the run.
    reference : str or None
        The scan that the others are aligned with.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: int | str,
        affine: str = "auto",
        labels: bool = False,
        prepared: Path | None = None,
        training: Sequence[str] | None = None,
    ) -> None:
        check_size(size)
        check_choice(RegistrationSettings, "affine", affine)
        self.dataset = dataset
        self._size, self._mode, self._need_labels = size, affine, labels
        own = (dataset.parts or {}).get("train") or dataset.names
        self._training = [
            name for name in sorted(own if training is None else training) if name in dataset.names
        ]
        self._folder = PreparedFolder(prepared)
        self._scans = PreparedScans(dataset, self._folder, need_labels=labels)
        self._start_again()

    def _start_again(self) -> None:
        self.reports: list[ScanReport] = []
        self.problems: list[str] = []
        self.reference: str | None = None
        self._to_reference: dict[str, Matrix] = {}  # reference world to scan world
        self._pair_affines: dict[Names, Matrix] = {}
        self._failed_pairs: dict[Names, str] = {}  # that cannot be aligned, with the reason
        self._contents: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._finished = False
        for scan in self.dataset.scans:
            self._scans.forget(scan.name)

    @property
    def usable(self) -> tuple[str, ...]:
        """Names of the usable scans so far."""
        return tuple(report.name for report in self.reports if report.skipped is None)

    def rows(self) -> list[dict[str, object]]:
        """Table rows, one per scan."""
        return [report.to_row() for report in self.reports]

    def run(self) -> Iterator[ScanReport]:
        """Check one scan per `next`; can be stopped at each, and is fast when repeated.

        Raises
        ------
        InputError
            If fewer than two training scans are usable, or labels are required and there are none,
            or no two scans share one.
        """
        self._start_again()
        if self._need_labels and not any(scan.labels is not None for scan in self.dataset.scans):
            raise InputError(
                f"Labels are required, but no scan of {self.dataset.root} has a label map. Give"
                " their file names (--labels 'labels/*.nii.gz' or '{name}_seg.nii.gz'), or train"
                " without labels."
            )
        if not self.by_pairs:
            self.reference = self._choose_reference()
        for scan in self.dataset.scans:
            report = self._examine(scan)
            self.reports.append(report)
            yield report
        skipped = self.dataset.skipped
        self.problems = find_problems(self.reports, skipped, self._contents, self._notes)
        self.problems += [
            f"The pair {m} -> {f} is left out: {why}" for (m, f), why in self._failed_pairs.items()
        ]
        if self._folder.last_error:
            self.problems.append(
                "Not all prepared scans could be saved, which costs time:"
                f" {self._folder.last_error.rstrip('.')}."
            )
        check_enough(self.dataset.root, self.reports, self._training, self._need_labels)
        self._finished = True

    def pairs(
        self,
        names: Sequence[str],
        *,
        size: int | str | None = None,
        labels: bool = False,
        both_orders: bool = True,
    ) -> NamedPairs:
        """Make the pairs of some scans, read and conformed on access.

        Parameters
        ----------
        names : sequence of str
            Names of scans; unusable ones are left out.
        size : int or "native", optional
            As for `conform`; by default that of the quality check.
        labels : bool
            Include the label maps.
        both_orders : bool
            False gives only one of (a, b) and (b, a): a training step uses both orders.

        Raises
        ------
        InputError
            If a name is unknown, or from `run`, which is run first if necessary.
        """
        if not self._finished:
            for _ in self.run():
                pass
        for name in names:
            self.dataset.scan(name)
        usable = set(names) & set(self.usable)
        chosen = [
            pair
            for pair in self.dataset.ordered_pairs(sorted(usable))
            if pair not in self._failed_pairs
        ]
        if not both_orders:
            chosen = unordered_pairs(chosen)
        network_size = self._size if size is None else size

        def make(moving_name: str, fixed_name: str) -> Conformed:
            moving, fixed = (self._scans.get(n, network_size) for n in (moving_name, fixed_name))
            pair = VolumePair(moving.image, fixed.image, moving.labels, fixed.labels)
            affine = self._affine_of(moving_name, fixed_name)
            # without the scans themselves
            return replace(
                conform(pair, size=network_size, affine=affine, labels=labels), pair=None
            )

        return NamedPairs(chosen, make)

    @property
    def checksums(self) -> dict[str, tuple[str, str | None]]:
        """As of `PreparedScans`."""
        return self._scans.checksums

    @property
    def by_pairs(self) -> bool:
        """Whether each pair is aligned by itself."""
        pairs = self.dataset.pairs
        if pairs is None:
            return False
        subjects = {scan.name: scan.subject for scan in self.dataset.scans}
        return len(pairs) < len(subjects) or all(
            subjects.get(m) == subjects.get(f) for m, f in pairs
        )

    def _affine_of(self, moving: str, fixed: str) -> Matrix:
        """Fixed world to moving world."""
        if not self.by_pairs:
            return np.asarray(self._to_reference[moving] @ np.linalg.inv(self._to_reference[fixed]))
        if (moving, fixed) in self._pair_affines:
            return self._pair_affines[moving, fixed]
        return np.asarray(np.linalg.inv(self._pair_affines[fixed, moving]))

    def _read(self, scan: Scan) -> PreparedScan:
        if self._need_labels and scan.labels is None:
            raise InputError("it has no label map, but labels are required.")
        return self._scans.load(scan.name, self._size)

    def _choose_reference(self) -> str | None:
        """Choose, from a few training scans, one with most labels and a typical extent."""
        found: dict[str, PreparedScan] = {}
        for name in self._training:
            if len(found) == CANDIDATES:
                break
            try:
                found[name] = self._read(self.dataset.scan(name))
            except InputError:  # reported when its turn comes
                continue
        most = max((len(small.facts["labels"] or ()) for small in found.values()), default=0)
        fit = {
            name: small for name, small in found.items() if len(small.facts["labels"] or ()) == most
        }
        if not fit:
            return None
        middle = np.median([np.log(small.facts["extent"]) for small in found.values()], axis=0)
        return min(
            fit,
            key=lambda name: (
                float(np.abs(np.log(fit[name].facts["extent"]) - middle).sum()),
                name,
            ),
        )

    def _examine(self, scan: Scan) -> ScanReport:
        report = ScanReport(scan.name, scan.subject, str(scan.image))
        try:
            small = self._read(scan)
            report = small.describe(report)
            partner, agreement = self._align_scan(scan.name, small)
        except InputError as error:
            return replace(report, skipped=str(error))
        self._contents[scan.name] = small.facts["content"]
        if small.facts["notes"]:
            self._notes[scan.name] = " ".join(small.facts["notes"])
        return replace(report, partner=partner, dice=agreement.dice, ncc=agreement.ncc)

    def _align_scan(self, name: str, small: PreparedScan) -> tuple[str | None, Agreement]:
        """Align a scan; return its partner and their agreement."""
        if self.by_pairs:
            return self._align_partners(name)
        if self.reference is None or name == self.reference:
            self._to_reference[name] = np.eye(4)
            return None, Agreement(None, None)
        fixed = self._scans.load(self.reference, self._size)
        self._to_reference[name], agreement = _align_scans(small, fixed, self._mode, self._folder)
        return self.reference, agreement

    def _align_partners(self, name: str) -> tuple[str, Agreement]:
        """Align a scan with all its partners; return the first one and their agreement."""
        first: tuple[str, Agreement] | None = None
        for pair in self.dataset.pairs or ():
            if name not in pair or pair in self._failed_pairs:
                continue
            try:
                moving, fixed = (self._read(self.dataset.scan(side)) for side in pair)
            except InputError:  # of the partner, which is reported when its turn comes
                continue
            try:
                self._pair_affines[pair], agreement = _align_scans(
                    moving, fixed, self._mode, self._folder
                )
            except InputError as error:
                self._failed_pairs[pair] = str(error)
                continue
            first = first or (pair[0] if pair[1] == name else pair[1], agreement)
        if first is None:
            raise InputError("none of its listed pairs can be used.")
        return first
