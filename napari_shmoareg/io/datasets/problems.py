"""What a person should know about a data set before learning from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets.scan_report import ScanReport
from napari_shmoareg.io.datasets.scans import Skipped

NAMED = 3  # scans by name in one sentence
FAR_WORSE = (0.15, 0.35)  # below the middle of all overlaps: the least and the most that this means ...
SPREADS = 4.0  # ... and between these so many times the usual spread
LEAST_SCANS = 5  # to say what is usual
SAME_SPACING = 1.1  # ratio


def find_problems(
    reports: Sequence[ScanReport], skipped: Sequence[Skipped], contents: Mapping[str, str], notes: Mapping[str, str]
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
    found = [f"Left out: {report.name}: {report.skipped}" for report in reports if report.skipped is not None]
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


def check_enough(root: Path, reports: Sequence[ScanReport], training: Sequence[str], labels: bool) -> None:
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
        If fewer than two scans that learn are usable, or no two of these share a label though it is needed.
    """
    learn = [report for report in reports if report.name in set(training)]
    used = [report for report in learn if report.skipped is None]
    if len(used) < 2:
        why = "".join(f" {r.name}: {r.skipped}" for r in [r for r in learn if r.skipped is not None][:NAMED])
        raise InputError(
            f"Of the {len(learn)} scans of {root} that shall learn, {len(used)} can be used; a pair takes two.{why}"
        )
    count = Counter(label for report in used for label in report.labels or ())
    if labels and max(count.values(), default=0) < 2:
        some = "; ".join(f"{r.name} has {', '.join(str(v) for v in (r.labels or ())[:5]) or 'none'}" for r in used[:2])
        raise InputError(
            f"Labels are asked for, but no two scans of {root} share one ({some}). The numbers of a label have to "
            "mean the same in every scan."
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
        then = "they count as different subjects and may stand on both sides of a split" if apart else "one is enough"
        found.append(f"The same image: {_many(names)}; {then}.")
    return found


def _labels(used: Sequence[ScanReport]) -> list[str]:
    labelled = [report for report in used if report.labels is not None]
    if not labelled:
        return []
    found = []
    without = [report.name for report in used if report.labels is None]
    if without:
        found.append(f"No labels: {_many(without)}; {len(labelled)} of {len(used)} scans have some.")
    count = Counter(label for report in labelled for label in report.labels or ())
    missing: dict[tuple[str, ...], list[int]] = {}
    for label in sorted(label for label in count if count[label] < len(labelled)):
        lacking = tuple(report.name for report in labelled if label not in (report.labels or ()))
        missing.setdefault(lacking, []).append(label)
    for lacking, values in sorted(missing.items(), key=lambda item: (len(item[0]), item[1])):
        words = ", ".join(str(v) for v in values[:10]) + (" ..." if len(values) > 10 else "")
        found.append(
            f"Label sets differ: {words} {'is' if len(values) == 1 else 'are'} missing in {_many(lacking)} "
            f"({len(lacking)} of {len(labelled)} scans)."
        )
    return found


def _outliers(used: Sequence[ScanReport]) -> list[str]:
    found = []
    for kind in ("dice", "ncc"):
        values = {report.name: float(report.overlap or 0) for report in used if report.overlap_kind == kind}
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
                    f"{name} agrees far worse with its partner than the others: {word} {value:.2f} after alignment, "
                    f"against {middle:.2f} in the middle. Look at it, or leave it out."
                )
    return found


def _spacings(used: Sequence[ScanReport]) -> list[str]:
    found = []
    spacings = np.array([sorted(report.spacing) for report in used if report.spacing is not None])
    if len(spacings) and (spacings.max(axis=0) / spacings.min(axis=0)).max() > SAME_SPACING:
        words = {r.name: "x".join(f"{s:.3g}" for s in sorted(r.spacing)) + " mm" for r in used if r.spacing is not None}
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
