"""Rows of numbers as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from napari_shmoareg.io.atomic import writing


def write_table(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Write rows as CSV, whole or not at all; the columns are those of the first row.

    Raises
    ------
    InputError
        If the place is not writable or the disk is full.
    """
    with (
        writing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
