"""Quality check of a data set before training: every scan read, conformed and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from napari_shmoareg.datasets.alignment import Agreement, Matrix, aligned
from napari_shmoareg.datasets.cache import PreparedScan, PreparedScans, VolumeCache
from napari_shmoareg.datasets.dataset import Dataset, Scan, ScanReport, Skipped
from napari_shmoareg.datasets.pairs import TrainingPairs
from napari_shmoareg.errors import InputError
from napari_shmoareg.settings import RegistrationSettings, check_choice, check_size

NAMED = 3  # scans by name in one sentence
# below the middle of all overlaps: the least and the most that this means ...
FAR_WORSE = (0.15, 0.35)
SPREADS = 4.0  # ... and between these so many times the usual spread
LEAST_SCANS = 5  # to say what is usual
SAME_SPACING = 1.1  # ratio


def find_problems(
    reports: Sequence[ScanReport],
    skipped: Sequence[Skipped],
    contents: Mapping[str, str],
    notes: Mapping[str, str],
) -> list[str]:
    """Sentences, the gravest first.

    Parameters
    ----------
    reports : sequence of ScanReport
    skipped : sequence of Skipped
        Files that are no part of the data set.
    contents : mapping of names to check sums
        Of the voxels.
    notes : mapping of names to words
        Warnings of the reader.
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
    found += [f"{_many(names)}: {note}" for note, names in _grouped(notes).items()]
    reasons: dict[str, list[str]] = {}
    for entry in skipped:
        reasons.setdefault(entry.why, []).append(entry.path.name)
    found += [f"{_many(names)}: {why}." for why, names in reasons.items()]
    return found


def check_enough(
    root: Path, reports: Sequence[ScanReport], training: Sequence[str], labels: bool
) -> None:
    """Refuse a data set from which nothing can be learnt.

    Parameters
    ----------
    root : Path
    reports : sequence of ScanReport
        Of all scans.
    training : sequence of str
        Names of the scans that learn.
    labels : bool
        Labels are needed.

    Raises
    ------
    InputError
        If fewer than two scans that learn are usable, or no two of these share a label though it is
        needed.
    """
    learn = [report for report in reports if report.name in set(training)]
    used = [report for report in learn if report.skipped is None]
    if len(used) < 2:
        why = "".join(
            f" {r.name}: {r.skipped}" for r in [r for r in learn if r.skipped is not None][:NAMED]
        )
        raise InputError(
            f"Of the {len(learn)} scans of {root} that shall learn, {len(used)} can be used; a pair"
            f" takes two.{why}"
        )
    count = Counter(label for report in used for label in report.labels or ())
    if labels and max(count.values(), default=0) < 2:
        some = "; ".join(
            f"{r.name} has {', '.join(str(v) for v in (r.labels or ())[:5]) or 'none'}"
            for r in used[:2]
        )
        raise InputError(
            f"Labels are asked for, but no two scans of {root} share one ({some}). The numbers of a"
            " label have to mean the same in every scan."
        )


def _many(names: Iterable[str]) -> str:
    """The first few of some names, and how many more."""
    names = list(names)
    more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _grouped(values: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return groups


def _copies(used: Sequence[ScanReport], contents: Mapping[str, str]) -> list[str]:
    whose = {report.name: report.subject for report in used}
    found = []
    for names in _grouped({name: contents[name] for name in whose if name in contents}).values():
        if len(names) < 2:
            continue
        apart = len({whose[name] for name in names}) > 1
        then = (
            "they count as different subjects and may stand on both sides of a split"
            if apart
            else "one is enough"
        )
        found.append(f"The same image: {_many(names)}; {then}.")
    return found


def _labels(used: Sequence[ScanReport]) -> list[str]:
    labelled = [report for report in used if report.labels is not None]
    if not labelled:
        return []
    found = []
    without = [report.name for report in used if report.labels is None]
    if without:
        found.append(
            f"No labels: {_many(without)}; {len(labelled)} of {len(used)} scans have some."
        )
    count = Counter(label for report in labelled for label in report.labels or ())
    missing: dict[tuple[str, ...], list[int]] = {}
    for label in sorted(label for label in count if count[label] < len(labelled)):
        lacking = tuple(report.name for report in labelled if label not in (report.labels or ()))
        missing.setdefault(lacking, []).append(label)
    for lacking, values in sorted(missing.items(), key=lambda item: (len(item[0]), item[1])):
        words = ", ".join(str(v) for v in values[:10]) + (" ..." if len(values) > 10 else "")
        found.append(
            f"Label sets differ: {words} {'is' if len(values) == 1 else 'are'} missing in"
            f" {_many(lacking)} ({len(lacking)} of {len(labelled)} scans)."
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
        if len(values) < LEAST_SCANS:
            continue
        numbers = np.array(list(values.values()))
        middle = float(np.median(numbers))
        spread = 1.4826 * float(np.median(np.abs(numbers - middle)))
        least = middle - float(np.clip(SPREADS * spread, *FAR_WORSE))
        word = "Dice" if kind == "dice" else "correlation"
        for name, value in values.items():
            if value < least:
                found.append(
                    f"{name} agrees far worse with its partner than the others: {word} {value:.2f}"
                    f" after alignment, against {middle:.2f} in the middle. Look at it, or leave it"
                    " out."
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
        found.append(f"Orientations differ (they are brought to the same axes): {_counted(codes)}.")
    return found


def _counted(values: Mapping[str, Hashable]) -> str:
    """How many scans have each value, and one or a few of the rarest by name."""
    groups: dict[Hashable, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    order = sorted(groups.items(), key=lambda item: -len(item[1]))
    parts = [f"{value} in {len(names)} ({_many(names)})" for value, names in order[:4]]
    return "; ".join(parts) + ("; and others" if len(order) > 4 else "")


CANDIDATES = 7  # scans among which the reference is chosen


class Checkup:
    """Look at every scan of a data set, and make its pairs.

    Ours: each scan is aligned once, with a reference scan; a pair goes through both affines.  Where
    pairs are listed that are fewer than the scans, or all of one subject each, every pair is
    aligned itself.

    Parameters
    ----------
    dataset : Dataset
    size : int or "native"
        Voxels along the longest axis of the network grid.
    affine : {"auto", "rigid", "affine", "none"}
        As for `align`.
    labels : bool
        Labels are needed: scans without them are left out.
    cache : VolumeCache, optional
    training : sequence of str, optional
        Names of the scans that learn: the reference is one of them, and two of them have to be
        usable.  By default the data set's own part, or all.

    Attributes
    ----------
    reports : list of ScanReport
        So far.
    problems : list of str
        What a person should know, once the run has ended.
    reference : str or None
        The scan that the others were aligned with.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: int | str,
        affine: str = "auto",
        labels: bool = False,
        cache: VolumeCache | None = None,
        training: Sequence[str] | None = None,
    ) -> None:
        check_size(size)
        check_choice(RegistrationSettings, "affine", affine)
        self.dataset = dataset
        self.cache = VolumeCache() if cache is None else cache
        self.reports: list[ScanReport] = []
        self.problems: list[str] = []
        self.reference: str | None = None
        self._size, self._mode, self._need_labels = size, affine, labels
        own = (dataset.parts or {}).get("train") or dataset.names
        self._training = [
            name for name in sorted(own if training is None else training) if name in dataset.names
        ]
        self._small = PreparedScans(dataset, self.cache, need_labels=labels)
        self._to_reference: dict[str, Matrix] = {}  # reference world to scan world
        self._of_pairs: dict[tuple[str, str], Matrix] = {}
        # listed pairs that do not come together, and why
        self._apart: dict[tuple[str, str], str] = {}
        self._contents: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._finished = False

    @property
    def usable(self) -> tuple[str, ...]:
        """Names of the scans that can be used, as far as the run has come."""
        return tuple(report.name for report in self.reports if report.skipped is None)

    def rows(self) -> list[dict[str, object]]:
        """A table with a line for each scan."""
        return [report.to_row() for report in self.reports]

    def run(self) -> Iterator[ScanReport]:
        """Look at one scan after the other; can be stopped at each, and is quick the next time.

        Raises
        ------
        InputError
            If fewer than two scans that learn are usable, or labels are needed and there are none,
            or no two scans share one.
        """
        self._start_again()
        if self._need_labels and not any(scan.labels is not None for scan in self.dataset.scans):
            raise InputError(
                f"Labels are asked for, but no scan of {self.dataset.root} has a label map. Say"
                " which files they are (--labels 'labels/*.nii.gz' or '{name}_seg.nii.gz'), or"
                " learn without labels."
            )
        if not self.by_pairs:
            self.reference = self._choose_reference()
        for scan in self.dataset.scans:
            report = self._examined(scan)
            self.reports.append(report)
            yield report
        skipped = self.dataset.skipped
        self.problems = find_problems(self.reports, skipped, self._contents, self._notes)
        self.problems += [
            f"The pair {m} -> {f} is left out: {why}" for (m, f), why in self._apart.items()
        ]
        if self.cache.trouble:
            self.problems.append(
                f"The cache does not keep everything, so it takes longer: {self.cache.trouble}."
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
    ) -> TrainingPairs:
        """The pairs of some scans, read and conformed when they are asked for.

        Parameters
        ----------
        names : sequence of str
            Of scans; those that are not usable are left out.
        size : int or "native", optional
            As for `conform`; by default that of the check-up.
        labels : bool
            Carry the label maps too.
        both_orders : bool
            False gives (a, b) or (b, a) only: a step of training sees both orders.

        Raises
        ------
        InputError
            If a name is unknown; as `run`, which is done first where it was not.
        """
        if not self._finished:
            for _ in self.run():
                pass
        for name in names:
            self.dataset.scan(name)
        there = set(names) & set(self.usable)
        chosen = [
            pair for pair in self.dataset.ordered_pairs(sorted(there)) if pair not in self._apart
        ]
        if not both_orders:
            chosen = list({tuple(sorted(pair)): pair for pair in reversed(chosen)}.values())[::-1]
        seen = self._size if size is None else size
        return TrainingPairs(self._small, chosen, self._affine_of, size=seen, labels=labels)

    @property
    def prints(self) -> dict[str, tuple[str, str | None]]:
        """As of `PreparedScans`."""
        return self._small.prints

    @property
    def by_pairs(self) -> bool:
        """Whether every pair is aligned itself."""
        pairs = self.dataset.pairs
        if pairs is None:
            return False
        whose = {scan.name: scan.subject for scan in self.dataset.scans}
        return len(pairs) < len(whose) or all(whose.get(m) == whose.get(f) for m, f in pairs)

    def _affine_of(self, moving: str, fixed: str) -> Matrix:
        """Fixed world to moving world."""
        if not self.by_pairs:
            return np.asarray(self._to_reference[moving] @ np.linalg.inv(self._to_reference[fixed]))
        if (moving, fixed) in self._of_pairs:
            return self._of_pairs[moving, fixed]
        return np.asarray(np.linalg.inv(self._of_pairs[fixed, moving]))

    def _start_again(self) -> None:
        for scan in self.dataset.scans:
            self._small.forget(scan.name)
        self.reports, self.problems, self.reference = [], [], None
        for known in (self._to_reference, self._of_pairs, self._apart, self._contents, self._notes):
            known.clear()
        self._finished = False

    def _read(self, scan: Scan) -> PreparedScan:
        if self._need_labels and scan.labels is None:
            raise InputError("it has no label map, and labels are asked for.")
        return self._small.look(scan.name, self._size)

    def _choose_reference(self) -> str | None:
        """Of the first few usable scans that learn, the one with most labels, of ordinary
        extent.
        """
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

    def _examined(self, scan: Scan) -> ScanReport:
        report = ScanReport(scan.name, scan.subject, str(scan.image))
        try:
            small = self._read(scan)
            report = small.describe(report)
            partner, agreed = self._compared(scan.name, small)
        except InputError as error:
            return replace(report, skipped=str(error))
        self._contents[scan.name] = small.facts["content"]
        if small.facts["notes"]:
            self._notes[scan.name] = " ".join(small.facts["notes"])
        return replace(report, partner=partner, dice=agreed.dice, ncc=agreed.ncc)

    def _compared(self, name: str, small: PreparedScan) -> tuple[str | None, Agreement]:
        """Align a scan; with which other, and how well they then agree."""
        if self.by_pairs:
            return self._compared_in_pairs(name)
        if self.reference is None or name == self.reference:
            self._to_reference[name] = np.eye(4)
            return None, Agreement(None, None)
        fixed = self._small.look(self.reference, self._size)
        self._to_reference[name], agreed = aligned(small, fixed, self._mode, self.cache)
        return self.reference, agreed

    def _compared_in_pairs(self, name: str) -> tuple[str, Agreement]:
        """Align a scan with all its partners; the first of them, and how well they then agree."""
        first: tuple[str, Agreement] | None = None
        for pair in self.dataset.pairs or ():
            if name not in pair or pair in self._apart:
                continue
            try:
                moving, fixed = (self._read(self.dataset.scan(side)) for side in pair)
            except InputError:  # of the partner, which is reported when its turn comes
                continue
            try:
                self._of_pairs[pair], agreed = aligned(moving, fixed, self._mode, self.cache)
            except InputError as error:
                self._apart[pair] = str(error)
                continue
            first = first or (pair[0] if pair[1] == name else pair[1], agreed)
        if first is None:
            raise InputError("none of its listed pairs can be used.")
        return first
