"""Landmarks in files: corresponding points, and points of one image; CSV, .mrk.json, .fcsv.

Files hold LPS mm (ITK, 3D Slicer) or RAS mm; here all points are RAS mm.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import writing
from napari_shmoareg.io.untrusted import (
    MAX_CELL,
    names_input,
    parse_json,
    read_bytes,
    read_text,
    user_path,
)

FLIP = np.array([-1.0, -1.0, 1.0])  # LPS to RAS, and back
WHAT = "a file of points (.csv, .fcsv or .mrk.json)"
_NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE
)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+", re.ASCII)
_NO_SPREADSHEET = (
    "Save it with ';' or a tab between the columns, or with points in the numbers (12.5) and"
    " without separators of thousands."
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

    The columns stand apart by ``;``, else by a tab, else by a comma, else by blanks.  With ``;``, a
    tab or quotes a comma within a number is a decimal comma.

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
        if comment or (
            beginning and not any(_is_number(cell) or _is_comma_number(cell) for cell in cells)
        ):
            words += not comment
            table.notes.append(line.lstrip("# "))
            names = [
                cell.lower().lstrip("# ").removeprefix("columns").strip(" =") for cell in cells
            ]
            if not comment or {"x", "fixed_x"} & set(names):
                table.columns[:] = names
        elif any(cells):
            table.rows.append(PointRow(number, cells))
    _check_widths(path, table, between, columns)
    _decimal_points(path, table, between)
    return table


def numbers_of(
    rows: list[PointRow], wanted: list[int], path: Path, *, by: str = "row"
) -> NDArray[np.float64]:
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
            what = (
                "six numbers (a fixed and a moving point"
                if len(wanted) == 6
                else "three numbers (a point"
            )
            raise InputError(
                f"{where}: {what}; mm) were expected; got '{','.join(cells)[:80]}'. Mend that row,"
                " or open the file as what it is: pairs, or the points of one image."
            )
        row = [float(cells[column]) for column in wanted]
        if not np.isfinite(row).all():
            what = "six" if len(wanted) == 6 else "three"
            raise InputError(
                f"{where}: {what} finite numbers were expected; one is NaN or infinite:"
                f" '{','.join(cells)[:80]}'. Remove that row."
            )
        found.append(row)
    if not found:
        raise InputError(
            f"{path} holds no points, and so no landmarks; rows of {len(wanted)} numbers were"
            " expected. Pick another file."
        )
    return np.array(found)


def frame_of(notes: list[str], path: Path) -> str | None:
    """ "LPS" or "RAS", where the lines that are no data say it.

    Raises
    ------
    InputError
        If they say both, or that the numbers are indices of voxels.
    """
    found = {
        word.upper() for word in re.findall(r"\b(LPS|RAS|IJK)\b", " ".join(notes), re.IGNORECASE)
    }
    if len(found) > 1 or "IJK" in found:
        raise InputError(
            f"{path} speaks of {' and '.join(sorted(found))}: all points of a file in LPS, or all"
            " in RAS, were expected, in mm. Save them in one of these, and name no other in its"
            " comments."
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
        raise InputError(
            f"{path} cannot be read as text ({error.reason}); {WHAT} was expected."
        ) from error


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
                f"{path}, line {number}: both commas and blanks stand between digits"
                f" ('{line[:60]}'), so its numbers cannot be told apart. {_NO_SPREADSHEET}"
            )
        line = re.sub(r"(?<=\d)\s+(?=[-+.\d])", ",", line)
    try:
        mark = "," if between == " " else between
        cells = next(
            csv.reader(io.StringIO(line), delimiter=mark, strict=not line.startswith("#")), []
        )
    except csv.Error as error:
        raise InputError(
            f"{path}, line {number}, cannot be taken apart ({error}); {WHAT} was expected."
        ) from error
    if any(len(cell) > MAX_CELL for cell in cells):
        raise InputError(
            f"{path}, line {number}: a cell has more than {MAX_CELL} characters; {WHAT} was"
            " expected."
        )
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
        whole = next(
            (n for n, cell in enumerate(cells) if not re.fullmatch(r"[-+]?\d+", cell)), len(cells)
        )
        if filled > named if named is not None else columns is not None and whole > columns:
            raise InputError(
                f"{path}, line {line}: {filled} cells were found for {named or columns} columns"
                f" ('{','.join(cells)[:60]}'); its commas may be decimal ones, and cannot be told"
                f" from those between the columns. {_NO_SPREADSHEET}"
            )


def _decimal_points(path: Path, table: PointTable, between: str) -> None:
    """Turn decimal commas within cells into points; refuse what may be separators of thousands."""
    commas = [
        (line, cell) for line, cells in table.rows for cell in cells if _is_comma_number(cell)
    ]
    if not commas:
        return
    points = any("." in cell and _is_number(cell) for _, cells in table.rows for cell in cells)
    thousands = all(_THOUSANDS.fullmatch(cell) for _, cell in commas) and between == ","
    odd = next((cell for _, cell in commas if cell.count(",") > 1 or "." in cell), None)
    if points or thousands or odd is not None:
        line, cell = commas[0]
        raise InputError(
            f"{path}, line {line}: the comma in '{odd or cell}' may be a decimal one or separate"
            f" thousands. {_NO_SPREADSHEET}"
        )
    for _, cells in table.rows:
        cells[:] = [cell.replace(",", ".") if _is_comma_number(cell) else cell for cell in cells]


def _is_comma_number(cell: str) -> bool:
    return "," in cell and re.fullmatch(r"[-+]?[\d.,]*\d[\d.,]*([eE][-+]?\d+)?", cell) is not None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"

LARGEST = 1e9  # mm from the origin, at which no image stands


def read_slicer_points(path: Path) -> NDArray[np.float64]:
    """Read a list of points, (n, 3) mm RAS, from a .mrk.json or .fcsv file.

    Raises
    ------
    InputError
        If it holds something else.
    """
    if path.name.lower().endswith(".json"):
        return _read_markups(path)
    table = rows_of(path)
    codes = set(re.findall(r"CoordinateSystem\s*=\s*(\w+)", " ".join(table.notes)))
    # Older Slicers wrote a number, or nothing, for RAS.
    frames = {{"0": "RAS", "1": "LPS", "2": "IJK"}.get(code, code) for code in codes} or {"RAS"}
    if len(frames) > 1 or not frames <= {"RAS", "LPS"}:
        raise InputError(
            f"{path} is in the coordinates '{' and '.join(sorted(frames))}'; LPS or RAS was"
            " expected. Save it again in Slicer."
        )
    known = {"x", "y", "z"} <= set(table.columns)
    points = numbers_of(
        table.rows, [table.columns.index(axis) for axis in "xyz"] if known else [1, 2, 3], path
    )
    return points if frames == {"RAS"} else points * FLIP


def write_slicer_points(points: ArrayLike, path: str | Path) -> None:
    """Write one list of points, (n, 3) mm RAS, for 3D Slicer (.mrk.json or .fcsv); whole or not at
    all.

    Raises
    ------
    InputError
        If the ending is another one, or the place is not writable.
    """
    name = Path(path).name.lower()
    lps = np.reshape(points, (-1, 3)) * FLIP
    if name.endswith(".json"):
        listed = [
            {
                "id": str(n),
                "label": str(n),
                "position": [round(v, 4) for v in row],
                "positionStatus": "defined",
            }
            for n, row in enumerate(lps.tolist(), 1)
        ]
        markups = [
            {
                "type": "Fiducial",
                "coordinateSystem": "LPS",
                "coordinateUnits": "mm",
                "controlPoints": listed,
            },
        ]
        text = json.dumps({"@schema": SCHEMA, "markups": markups}, indent=2) + "\n"
    elif name.endswith(".fcsv"):
        lines = [
            "# Markups fiducial file version = 4.11",
            "# CoordinateSystem = LPS",
            f"# columns = {FCSV_COLUMNS}",
        ]
        lines += [
            f"{n},{x:.4f},{y:.4f},{z:.4f},0,0,0,1,1,1,0,{n},," for n, (x, y, z) in enumerate(lps, 1)
        ]
        text = "\n".join(lines) + "\n"
    else:
        raise InputError(
            f"{Path(path).name} has none of the endings .mrk.json and .fcsv. Give it one of them."
        )
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_markups(path: Path) -> NDArray[np.float64]:
    text = read_text(path, WHAT)
    try:
        content = parse_json(text, path, "a point list")
    except InputError as error:
        raise InputError(f"{path} is no point list of 3D Slicer: {error}") from error
    try:
        lists = [markups for markups in content["markups"] if markups["controlPoints"]]
        lists = lists or [content["markups"][0]]
        frames, units = (
            _said(lists, "coordinateSystem", "LPS"),
            _said(lists, "coordinateUnits", "mm"),
        )
        listed = [dict(point) for markups in lists for point in markups["controlPoints"]]
        placed = [point for point in listed if point.get("positionStatus", "defined") == "defined"]
        points = np.array([_position(path, n, point) for n, point in enumerate(placed, 1)])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is no point list of 3D Slicer ({error!r:.200}). Save it in Slicer as 'Markups"
            " JSON (.mrk.json)'."
        ) from error
    if len(lists) > 1:
        raise InputError(
            f"{path} holds {len(lists)} lists of points; one was expected. Save each as its own"
            " file."
        )
    if not frames <= {"LPS", "RAS"} or units != {"mm"} or points.ndim != 2:
        raise InputError(
            f"{path} holds points of the shape {points.shape} in '{' '.join(frames)}',"
            f" {' '.join(units)}; a list of points in LPS or RAS, mm, was expected. Save it again"
            " in Slicer."
        )
    if len(placed) < len(listed):
        warnings.warn(
            f"{path}: {len(listed) - len(placed)} of {len(listed)} points have no position (they"
            " were not placed in Slicer) and were left out, so that the later ones are counted"
            " from a lower number.",
            UserWarning,
            stacklevel=2,
        )
    return points if frames == {"RAS"} else points * FLIP


def _said(lists: list[dict[str, Any]], key: str, otherwise: str) -> set[str]:
    """All values of a key; those of the axes one by one."""
    found = [markups.get(key, otherwise) for markups in lists]
    return {
        str(value)
        for values in found
        for value in (values if isinstance(values, list) else [values])
    }


def _position(path: Path, number: int, point: dict[str, Any]) -> list[float]:
    """Three finite numbers, or an error that names the point."""
    values = point["position"]
    numbers = values if isinstance(values, list) else []
    name = f"'{point['label']}'" if point.get("label") else f"number {number}"
    if len(numbers) != 3 or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in numbers
    ):
        raise InputError(
            f"{path}: the point {name} has the position {str(values)[:80]}; three numbers were"
            " expected."
        )
    if not all(abs(v) < LARGEST for v in numbers):
        raise InputError(
            f"{path}: the point {name} has the position {str(values)[:80]}, which is NaN, infinite"
            " or beyond any image. Place it again in Slicer, or delete it."
        )
    return [float(v) for v in numbers]


COLUMNS = ("fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z")
SLICER = (".mrk.json", ".json", ".fcsv")


@dataclass(frozen=True, eq=False)
class LandmarkPairs:
    """Points that show the same place of the body in two images.

    Attributes
    ----------
    moving, fixed : (n, 3) array, mm RAS
    notes : tuple of str
        What the file did not say and was assumed.
    """

    moving: NDArray[np.float64]
    fixed: NDArray[np.float64]
    notes: tuple[str, ...] = ()


@names_input
def read_landmark_pairs(path: str | Path) -> LandmarkPairs:
    """Read pairs of points from a CSV file.

    Six numbers a row.  A heading with ``fixed_x`` ... ``moving_z`` says which is which, in any
    order and with further columns between; without one the fixed point comes first, as in the lists
    of `shmoareg benchmark`.  A comment that says LPS or RAS gives the frame; without one it is LPS,
    as in ITK and 3D Slicer. Numbers may have a decimal comma where the columns stand apart by ``;``
    or a tab.

    Raises
    ------
    InputError
        If the file is missing or holds something else, a number is not finite, or decimal commas
        cannot be told from those between the columns.
    """
    path = user_path(path)
    table = rows_of(path, columns=6)
    notes = []
    wanted = [0, 1, 2, 3, 4, 5]
    if set(COLUMNS) <= set(table.columns):
        wanted = [table.columns.index(name) for name in COLUMNS]
    else:
        notes.append(
            "no column is called fixed_x: the first three numbers were taken as the fixed point"
        )
    numbers = numbers_of(table.rows, wanted, path)
    frame = frame_of(table.notes, path)
    if frame is None:
        notes.append("no line says LPS or RAS: LPS was taken")
    turned = numbers if frame == "RAS" else numbers * np.tile(FLIP, 2)
    return LandmarkPairs(moving=turned[:, 3:], fixed=turned[:, :3], notes=tuple(notes))


def write_landmark_pairs(path: str | Path, *, moving: ArrayLike, fixed: ArrayLike) -> None:
    """Write pairs of points as CSV; whole or not at all.

    ::

        # landmarks, mm, LPS (as in ITK and 3D Slicer)
        fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z

    Parameters
    ----------
    path : str or Path
    moving, fixed : (n, 3) array, mm RAS

    Raises
    ------
    InputError
        If the place is not writable or the disk is full.
    """
    both = np.hstack([np.reshape(fixed, (-1, 3)) * FLIP, np.reshape(moving, (-1, 3)) * FLIP])
    lines = ["# landmarks, mm, LPS (as in ITK and 3D Slicer)", ",".join(COLUMNS)]
    lines += [",".join(f"{value:.4f}" for value in row) for row in both]
    with writing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


@names_input
def read_points(path: str | Path) -> NDArray[np.float64]:
    """Read the points of one image, (n, 3) mm RAS.

    Parameters
    ----------
    path : str or Path
        A list of 3D Slicer (.mrk.json, or .fcsv), or a CSV file with three numbers a row (LPS
        unless a line says RAS).

    Raises
    ------
    InputError
        If the file is missing or holds something else.
    """
    path = user_path(path)
    if path.name.lower().endswith(SLICER):
        return read_slicer_points(path)
    table = rows_of(path, columns=3)
    points = numbers_of(table.rows, [0, 1, 2], path)
    return points if frame_of(table.notes, path) == "RAS" else points * FLIP


class Landmarks(NamedTuple):
    """Points that belong together, each (n, 3), mm RAS."""

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]


@names_input
def read_landmarks(path: str | Path) -> Landmarks:
    """Corresponding points of a pair.

    Parameters
    ----------
    path : str or Path
        A CSV file of six numbers a line: x, y, z in the fixed image, then in the moving one, in mm,
        LPS (as ITK, 3D Slicer's LPS files and elastix write them) unless a comment says RAS.  Lines
        that begin with # and a first line of words are passed over; where that line names the
        columns fixed_x ... moving_z, their order is taken from it.

    Raises
    ------
    InputError
        If a line does not hold six finite numbers, or there is none.
    """
    path = user_path(path)
    table = rows_of(path, headings=1, columns=6)
    named = set(COLUMNS) <= set(table.columns)
    wanted = [table.columns.index(name) for name in COLUMNS] if named else list(range(6))
    both = numbers_of(table.rows, wanted, path, by="line")
    turned = both if frame_of(table.notes, path) == "RAS" else both * np.tile(FLIP, 2)
    return Landmarks(turned[:, :3], turned[:, 3:])
