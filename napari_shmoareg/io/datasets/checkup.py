"""Checkup: every scan read, brought together and reported before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from napari_shmoareg.engine.affine import MODES
from napari_shmoareg.engine.conform import check_size
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets.aligning import Agreement, Matrix, aligned
from napari_shmoareg.io.datasets.problems import check_enough, find_problems
from napari_shmoareg.io.datasets.scan_report import ScanReport
from napari_shmoareg.io.datasets.scans import Dataset, Scan
from napari_shmoareg.io.datasets.small_scans import SmallScan, SmallScans
from napari_shmoareg.io.datasets.training_pairs import TrainingPairs
from napari_shmoareg.io.datasets.volume_cache import VolumeCache

CANDIDATES = 7  # scans among which the reference is chosen


class Checkup:
    """Look at every scan of a data set, and make its pairs.

    Ours: each scan is aligned once, with a reference scan; a pair goes through both affines.  Where pairs are
    listed that are fewer than the scans, or all of one subject each, every pair is aligned itself.

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
        Names of the scans that learn: the reference is one of them, and two of them have to be usable.  By
        default the data set's own part, or all.

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
        if affine not in MODES:
            raise InputError(f"The affine mode is one of {', '.join(MODES)}; got {affine!r}.")
        self.dataset = dataset
        self.cache = VolumeCache() if cache is None else cache
        self.reports: list[ScanReport] = []
        self.problems: list[str] = []
        self.reference: str | None = None
        self._size, self._mode, self._need_labels = size, affine, labels
        own = (dataset.parts or {}).get("train") or dataset.names
        self._training = [name for name in sorted(own if training is None else training) if name in dataset.names]
        self._small = SmallScans(dataset, self.cache, need_labels=labels)
        self._to_reference: dict[str, Matrix] = {}  # reference world to scan world
        self._of_pairs: dict[tuple[str, str], Matrix] = {}
        self._apart: dict[tuple[str, str], str] = {}  # listed pairs that do not come together, and why
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
            If fewer than two scans that learn are usable, or labels are needed and there are none, or no
            two scans share one.
        """
        self._start_again()
        if self._need_labels and not any(scan.labels is not None for scan in self.dataset.scans):
            raise InputError(
                f"Labels are asked for, but no scan of {self.dataset.root} has a label map. Say which files they are "
                "(--labels 'labels/*.nii.gz' or '{name}_seg.nii.gz'), or learn without labels."
            )
        if not self.by_pairs:
            self.reference = self._choose_reference()
        for scan in self.dataset.scans:
            report = self._examined(scan)
            self.reports.append(report)
            yield report
        skipped = self.dataset.skipped
        self.problems = find_problems(self.reports, skipped, self._contents, self._notes)
        self.problems += [f"The pair {m} -> {f} is left out: {why}" for (m, f), why in self._apart.items()]
        if self.cache.trouble:
            self.problems.append(f"The cache does not keep everything, so it takes longer: {self.cache.trouble}.")
        check_enough(self.dataset.root, self.reports, self._training, self._need_labels)
        self._finished = True

    def pairs(
        self, names: Sequence[str], *, size: int | str | None = None, labels: bool = False, both_orders: bool = True
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
        chosen = [pair for pair in self.dataset.ordered_pairs(sorted(there)) if pair not in self._apart]
        if not both_orders:
            chosen = list({tuple(sorted(pair)): pair for pair in reversed(chosen)}.values())[::-1]
        seen = self._size if size is None else size
        return TrainingPairs(self._small, chosen, self._affine_of, size=seen, labels=labels)

    @property
    def prints(self) -> dict[str, tuple[str, str | None]]:
        """As of `SmallScans`."""
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

    def _read(self, scan: Scan) -> SmallScan:
        if self._need_labels and scan.labels is None:
            raise InputError("it has no label map, and labels are asked for.")
        return self._small.look(scan.name, self._size)

    def _choose_reference(self) -> str | None:
        """Of the first few usable scans that learn, the one with most labels, of ordinary extent."""
        found: dict[str, SmallScan] = {}
        for name in self._training:
            if len(found) == CANDIDATES:
                break
            try:
                found[name] = self._read(self.dataset.scan(name))
            except InputError:  # reported when its turn comes
                continue
        most = max((len(small.facts["labels"] or ()) for small in found.values()), default=0)
        fit = {name: small for name, small in found.items() if len(small.facts["labels"] or ()) == most}
        if not fit:
            return None
        middle = np.median([np.log(small.facts["extent"]) for small in found.values()], axis=0)
        return min(fit, key=lambda name: (float(np.abs(np.log(fit[name].facts["extent"]) - middle).sum()), name))

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

    def _compared(self, name: str, small: SmallScan) -> tuple[str | None, Agreement]:
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
