"""Scans of a quality check as table rows, those with a problem first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

HEADINGS = (
    "Scan",
    "Problem",
    "Part",
    "Shape",
    "Spacing, mm",
    "Axes",
    "Range",
    "Labels",
    "Overlap",
    "Subject",
)
TIPS = (
    "The name of the scan in its data set",
    "Why the scan is excluded",
    "Subset of the split: train, validation or test",
    "Voxels along the axes of the file",
    "Voxel spacing along the axes of the file",
    "Directions of the axes of the file: R or L, A or P, S or I",
    "Minimum and maximum, in the units of the file",
    "Number of label values other than 0",
    ("With its partner scan, after alignment: Dice if both have labels, otherwise correlation"),
    "Subject of the scan; all scans of a subject are in the same subset",
)
# columns of checkup.csv that the events name differently
FROM_FILE = {"scan": "name", "spacing_mm": "spacing"}


class ScanRow(NamedTuple):
    """A text per heading, and the number that each column sorts by (or None)."""

    texts: tuple[str, ...]
    numbers: tuple[float | None, ...]
    problem: bool


def scan_of_file(row: Mapping[str, str]) -> dict[str, Any]:
    """Convert a row of checkup.csv to an event "scan"."""
    scan: dict[str, Any] = {FROM_FILE.get(key, key): value or None for key, value in row.items()}
    for name in ("shape", "spacing"):
        if scan.get(name):
            scan[name] = [float(part) for part in scan[name].split("x")]
    for name in ("low", "high"):
        scan[name] = _number(scan.get(name))
    scan["labels"] = scan["labels"].split() if scan.get("labels") else None
    dice, ncc = (_number(scan.get(f"{name}_after_alignment")) for name in ("dice", "ncc"))
    scan["overlap"], scan["overlap_kind"] = (ncc, "ncc") if dice is None else (dice, "dice")
    return scan


def rows_of(scans: Iterable[Mapping[str, Any]], parts: Mapping[str, str]) -> list[ScanRow]:
    """Return rows from events "scan", problems first; `parts` maps names to subsets."""
    rows = [_row(scan, parts) for scan in scans]
    return sorted(rows, key=lambda row: not row.problem)


def records(rows: Iterable[ScanRow]) -> list[dict[str, object]]:
    """Convert rows to records for a file or the clipboard."""
    return [dict(zip(HEADINGS, row.texts, strict=True)) for row in rows]


def _row(scan: Mapping[str, Any], parts: Mapping[str, str]) -> ScanRow:
    shape, spacing, labels = scan.get("shape"), scan.get("spacing"), scan.get("labels")
    low, high, overlap = scan.get("low"), scan.get("high"), scan.get("overlap")
    kind = (
        ""
        if overlap is None
        else {"dice": " Dice", "ncc": " NCC"}.get(str(scan.get("overlap_kind")), "")
    )
    problem = str(scan.get("skipped") or "")
    texts = (
        str(scan["name"]),
        problem,
        "" if problem else parts.get(str(scan["name"]), ""),
        "" if shape is None else "×".join(f"{n:.0f}" for n in shape),
        "" if spacing is None else "×".join(f"{s:.3g}" for s in spacing),
        str(scan.get("orientation") or ""),
        "" if low is None or high is None else f"{low:.4g} to {high:.4g}",
        "–" if labels is None else str(len(labels)),
        "" if overlap is None else f"{overlap:.2f}{kind}",
        str(scan.get("subject") or ""),
    )
    numbers: list[float | None] = [None] * len(texts)
    for column, value in (
        (3, _product(shape)),
        (4, _product(spacing)),
        (6, high),
        (7, None if labels is None else len(labels)),
        (8, overlap),
    ):
        numbers[column] = value
    return ScanRow(texts, tuple(numbers), bool(problem))


def _product(values: Any) -> float | None:
    if values is None:
        return None
    product = 1.0
    for value in values:
        product *= float(value)
    return product


def _number(text: Any) -> float | None:
    return float(text) if text else None
