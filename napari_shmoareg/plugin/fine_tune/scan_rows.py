"""The scans of a check-up as rows of a table: those with a problem first."""

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
    "Why it is left out",
    "Whether it learns (train), judges (validation) or stays unseen (test)",
    "Voxels along the three axes of the file",
    "Distance between voxels along the axes of the file",
    "Where the axes of the file run to: R or L, A or P, S or I",
    "Least and greatest value, in the file's units",
    "How many label values there are beside 0",
    (
        "With its partner, after alignment: Dice of the labels where both have some, otherwise"
        " correlation"
    ),
    "Whose scan it is; nobody stands in two parts",
)
# columns of checkup.csv that the events call otherwise
FROM_FILE = {"scan": "name", "spacing_mm": "spacing"}


class ScanRow(NamedTuple):
    """What is shown of a scan: a text per heading, and the numbers that columns sort by (None where
    there is none).
    """

    texts: tuple[str, ...]
    numbers: tuple[float | None, ...]
    problem: bool


def scan_of_file(row: Mapping[str, str]) -> dict[str, Any]:
    """A line of checkup.csv as the event "scan" tells it."""
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
    """Rows, problems first, then in the order of the scans.

    Parameters
    ----------
    scans : iterable of mapping
        As of the event "scan".
    parts : mapping of a scan's name to its part
    """
    rows = [_row(scan, parts) for scan in scans]
    return sorted(rows, key=lambda row: not row.problem)


def records(rows: Iterable[ScanRow]) -> list[dict[str, object]]:
    """For a file or the clipboard."""
    return [dict(zip(HEADINGS, row.texts, strict=True)) for row in rows]


def _row(scan: Mapping[str, Any], parts: Mapping[str, str]) -> ScanRow:
    shape, spacing, labels = scan.get("shape"), scan.get("spacing"), scan.get("labels")
    low, high, overlap = scan.get("low"), scan.get("high"), scan.get("overlap")
    kind = (
        ""
        if overlap is None
        else {"dice": " Dice", "ncc": " NCC"}.get(str(scan.get("overlap_kind")), "")
    )
    why = str(scan.get("skipped") or "")
    texts = (
        str(scan["name"]),
        why,
        "" if why else parts.get(str(scan["name"]), ""),
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
    return ScanRow(texts, tuple(numbers), bool(why))


def _product(values: Any) -> float | None:
    if values is None:
        return None
    product = 1.0
    for value in values:
        product *= float(value)
    return product


def _number(text: Any) -> float | None:
    return float(text) if text else None
