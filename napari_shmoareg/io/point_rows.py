"""Rows of points in text files: what is heading, what is number."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.untrusted import MAX_CELL, read_bytes

FLIP = np.array([-1.0, -1.0, 1.0])  # LPS to RAS, and back
WHAT = "a file of points (.csv, .fcsv or .mrk.json)"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+", re.ASCII)
_NO_SPREADSHEET = (
    "Save it with ';' or a tab between the columns, or with points in the numbers (12.5) and without separators of "
    "thousands."
)


class PointRow(NamedTuple):
    """A row of data: its line in the file, and its cells."""

    line: int
    cells: list[str]


@dataclass(frozen=True)
class PointTable:
    """What a text file of points holds.

    Attributes
    ----------
    notes : list of str
        Lines that are no data, without ``#``: comments and headings.
    columns : list of str
        Names of the columns, lower case; empty where no line names them.
    rows : list of PointRow
        Numbers in the cells have a decimal point, whatever the file has.
    """

    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[PointRow] = field(default_factory=list)


def rows_of(path: Path, *, headings: int | None = None, columns: int | None = None) -> PointTable:
    """The lines of a file of points, taken apart.

    The columns stand apart by ``;``, else by a tab, else by a comma, else by blanks.  With ``;``, a tab or quotes
    a comma within a number is a decimal comma.

    Parameters
    ----------
    path : Path
    headings : int, optional
        How many lines of words, besides comments, may stand before the data; any number by default.
    columns : int, optional
        How many numbers a row has where no heading names the columns, to notice decimal commas.

    Raises
    ------
    InputError
        If the file is missing, is no text, or its numbers cannot be told from its separators.
    """
    lines = [(n, line.strip()) for n, line in enumerate(text_of(path).splitlines(), 1)]
    between = _separator([line for _, line in lines if not line.startswith("#")])
    table = PointTable()
    words = 0
    for number, line in lines:
        if not line:
            continue
        comment = line.startswith("#")
        cells = _cells(path, number, line, between)
        beginning = not table.rows and (headings is None or words < headings)
        if comment or (beginning and not any(_is_number(cell) or _is_comma_number(cell) for cell in cells)):
            words += not comment
            table.notes.append(line.lstrip("# "))
            names = [cell.lower().lstrip("# ").removeprefix("columns").strip(" =") for cell in cells]
            if not comment or {"x", "fixed_x"} & set(names):
                table.columns[:] = names
        elif any(cells):
            table.rows.append(PointRow(number, cells))
    _check_widths(path, table, between, columns)
    _decimal_points(path, table, between)
    return table


def numbers_of(rows: list[PointRow], wanted: list[int], path: Path, *, by: str = "row") -> NDArray[np.float64]:
    """The wanted columns as numbers, (n, len(wanted)).

    Parameters
    ----------
    rows : list of PointRow
    wanted : list of int
    path : Path
    by : {"row", "line"}
        How a message names a row.

    Raises
    ------
    InputError
        If a row has no such numbers, one of them is NaN or infinite, or there is no row.
    """
    found = []
    for n, (line, cells) in enumerate(rows, 1):
        where = f"{path}, {by} {line if by == 'line' else n}"
        if any(column >= len(cells) or not _is_number(cells[column]) for column in wanted):
            what = "six numbers (a fixed and a moving point" if len(wanted) == 6 else "three numbers (a point"
            raise InputError(
                f"{where}: {what}; mm) were expected; got '{','.join(cells)[:80]}'. Mend that row, or open the file as "
                "what it is: pairs, or the points of one image."
            )
        row = [float(cells[column]) for column in wanted]
        if not np.isfinite(row).all():
            what = "six" if len(wanted) == 6 else "three"
            raise InputError(
                f"{where}: {what} finite numbers were expected; one is NaN or infinite: '{','.join(cells)[:80]}'. "
                "Remove that row."
            )
        found.append(row)
    if not found:
        raise InputError(
            f"{path} holds no points, and so no landmarks; rows of {len(wanted)} numbers were expected. Pick another "
            "file."
        )
    return np.array(found)


def frame_of(notes: list[str], path: Path) -> str | None:
    """ "LPS" or "RAS", where the lines that are no data say it.

    Raises
    ------
    InputError
        If they say both, or that the numbers are indices of voxels.
    """
    found = {word.upper() for word in re.findall(r"\b(LPS|RAS|IJK)\b", " ".join(notes), re.IGNORECASE)}
    if len(found) > 1 or "IJK" in found:
        raise InputError(
            f"{path} speaks of {' and '.join(sorted(found))}: all points of a file in LPS, or all in RAS, were "
            "expected, in mm. Save them in one of these, and name no other in its comments."
        )
    return found.pop() if found else None


def text_of(path: Path) -> str:
    """A file's text, UTF-8 or, where it is not, as spreadsheets on Windows write it.

    Raises
    ------
    InputError
        If there is no such file, or it is no text.
    """
    content = read_bytes(path, WHAT)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" not in content:
            return content.decode("cp1252", errors="replace")
        raise InputError(f"{path} cannot be read as text ({error.reason}); {WHAT} was expected.") from error


def _separator(lines: list[str]) -> str:
    """What stands between the columns, looking outside of quotes."""
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    marks = (mark for mark in (";", "\t", ",") if any(mark in line for line in bare))
    return next(marks, " ")


def _cells(path: Path, number: int, line: str, between: str) -> list[str]:
    if between == " ":
        line = re.sub(r"(?<=\S)\s+(?=[-+.\d])", ",", line)
    elif between == "," and not line.startswith("#"):
        if re.search(r"\d,\d", line) and re.search(r"\d\s+[-+.\d]", line):
            raise InputError(
                f"{path}, line {number}: both commas and blanks stand between digits ('{line[:60]}'), so its numbers "
                f"cannot be told apart. {_NO_SPREADSHEET}"
            )
        line = re.sub(r"(?<=\d)\s+(?=[-+.\d])", ",", line)
    try:
        mark = "," if between == " " else between
        cells = next(csv.reader(io.StringIO(line), delimiter=mark, strict=not line.startswith("#")), [])
    except csv.Error as error:
        raise InputError(f"{path}, line {number}, cannot be taken apart ({error}); {WHAT} was expected.") from error
    if any(len(cell) > MAX_CELL for cell in cells):
        raise InputError(f"{path}, line {number}: a cell has more than {MAX_CELL} characters; {WHAT} was expected.")
    return [cell.strip() for cell in cells]


def _check_widths(path: Path, table: PointTable, between: str, columns: int | None) -> None:
    """Refuse rows whose commas may be decimal ones: more cells than columns."""
    if between != ",":
        return
    named = len(table.columns) if len(table.columns) >= 3 else None
    for line, cells in table.rows:
        filled = len(cells)
        while filled and not cells[filled - 1]:
            filled -= 1
        whole = next((n for n, cell in enumerate(cells) if not re.fullmatch(r"[-+]?\d+", cell)), len(cells))
        if filled > named if named is not None else columns is not None and whole > columns:
            raise InputError(
                f"{path}, line {line}: {filled} cells were found for {named or columns} columns "
                f"('{','.join(cells)[:60]}'); its commas may be decimal ones, and cannot be told from those between "
                f"the columns. {_NO_SPREADSHEET}"
            )


def _decimal_points(path: Path, table: PointTable, between: str) -> None:
    """Turn decimal commas within cells into points; refuse what may be separators of thousands."""
    commas = [(line, cell) for line, cells in table.rows for cell in cells if _is_comma_number(cell)]
    if not commas:
        return
    points = any("." in cell and _is_number(cell) for _, cells in table.rows for cell in cells)
    thousands = all(_THOUSANDS.fullmatch(cell) for _, cell in commas) and between == ","
    odd = next((cell for _, cell in commas if cell.count(",") > 1 or "." in cell), None)
    if points or thousands or odd is not None:
        line, cell = commas[0]
        raise InputError(
            f"{path}, line {line}: the comma in '{odd or cell}' may be a decimal one or separate thousands. "
            f"{_NO_SPREADSHEET}"
        )
    for _, cells in table.rows:
        cells[:] = [cell.replace(",", ".") if _is_comma_number(cell) else cell for cell in cells]


def _is_comma_number(cell: str) -> bool:
    return "," in cell and re.fullmatch(r"[-+]?[\d.,]*\d[\d.,]*([eE][-+]?\d+)?", cell) is not None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None
