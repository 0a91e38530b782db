"""The check-up of a data set as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

KINDS = {"dice": "Dice", "ncc": "correlation"}  # what an overlap is: of labels, or of images where there are none


def checkup_table(scans: Sequence[Mapping[str, Any]], title: str) -> Table:
    """One line per scan: where its voxels stand, its values, its labels, how well it lies on its partner.

    Parameters
    ----------
    scans : sequence of mapping
        Events "scan".
    title : str
    """
    table = Table(title=title, box=None, pad_edge=False, header_style="bold")
    with_subjects = any(scan["subject"] != scan["name"] for scan in scans)
    for head in ("scan", *(["subject"] if with_subjects else []), "shape", "mm", "axes"):
        table.add_column(head, no_wrap=True)
    for head in ("range", "labels", "overlap"):
        table.add_column(head, justify="right", no_wrap=True)
    for scan in scans:
        table.add_row(
            scan["name"],
            *([scan["subject"]] if with_subjects else []),
            "x".join(str(n) for n in scan["shape"] or ()),
            "x".join(f"{mm:.3g}" for mm in scan["spacing"] or ()),
            scan["orientation"] or "",
            "" if scan["low"] is None else f"{scan['low']:.4g} to {scan['high']:.4g}",
            "" if scan["labels"] is None else _labels(scan["labels"]),
            "" if scan["overlap"] is None else f"{KINDS[scan['overlap_kind']]} {scan['overlap']:.2f}",
        )
    return table


def _labels(values: Sequence[int]) -> str:
    return ",".join(str(v) for v in values) if len(values) <= 4 else f"{len(values)} labels"
