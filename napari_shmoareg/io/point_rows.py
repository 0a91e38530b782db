"""Rows of points in text files: what is heading, what is number."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import InputError

FLIP = np.array([-1.0, -1.0, 1.0])  # LPS to RAS, and back


def rows_of(path: Path) -> tuple[list[str], list[list[str]]]:
    """The lines of a file that are no data (comments and a heading, without #), and the cells of the others."""
    heading: list[str] = []
    rows: list[list[str]] = []
    for line in text_of(path).splitlines():
        bare = line.strip()
        separated = re.sub(r"[;\t]|(?<=\d)\s+(?=[-+.\d])", ",", bare)
        cells = [cell.strip() for cell in next(csv.reader(io.StringIO(separated)), [])]
        if bare.startswith("#") or (not rows and cells and not any(_is_number(cell) for cell in cells)):
            heading.append(bare.lstrip("# "))
        elif any(cells):
            rows.append(cells)
    return heading, rows


def numbers_of(rows: list[list[str]], wanted: list[int], path: Path) -> NDArray[np.float64]:
    """The wanted columns as numbers, (n, len(wanted))."""
    found = []
    for n, cells in enumerate(rows, 1):
        try:
            row = [float(cells[column]) for column in wanted]
        except (IndexError, ValueError) as error:
            what = "six numbers (a fixed and a moving point" if len(wanted) == 6 else "three numbers (a point"
            raise InputError(
                f"{path}, row {n}: {what}; mm) were expected; got '{','.join(cells)[:80]}'. Mend that row, or open the "
                "file as what it is: pairs, or the points of one image."
            ) from error
        found.append(row)
    if not found:
        raise InputError(f"{path} holds no points; rows of {len(wanted)} numbers were expected. Pick another file.")
    points = np.array(found)
    if not np.isfinite(points).all():
        raise InputError(f"{path} holds a number that is NaN or infinite. Remove that row.")
    return points


def frame_of(text: str) -> str | None:
    """ "LPS" or "RAS", where a text says it."""
    found = re.search(r"\b(LPS|RAS)\b", text)
    return found[1] if found else None


def text_of(path: Path) -> str:
    """A file's text, or an error that says what was expected."""
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give a file of points: .csv, .fcsv or .mrk.json.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as text ({error}). Points as .csv, .fcsv or .mrk.json were expected."
        ) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
