"""Landmark files: pairs of points, or points of one image; CSV, .mrk.json, .fcsv.

Files store LPS mm (ITK, 3D Slicer) or RAS mm; in memory all points are RAS mm.
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
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.untrusted import (
    MAX_CELL,
    names_input,
    parse_json,
    read_bytes,
    read_text,
    user_path,
)

FLIP = np.array([-1.0, -1.0, 1.0])  # LPS to RAS, and back
_EXPECTED = "a file of points (.csv, .fcsv or .mrk.json)"
_NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE
)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+", re.ASCII)
_SAVE_CLEARLY = (
    "Save it with ';' or a tab between the columns, or with decimal points (12.5) and without"
    " thousands separators."
)


class PointRow(NamedTuple):
    """A data row: line number and cells."""

    line: int
    cells: list[str]


@dataclass(frozen=True)
class PointTable:
    """Content of a text file of points.

    Attributes
    ----------
    notes : list of str
        Comments and headings, without ``#``.
    columns : list of str
        Column names, lower case; empty if no line names them.
    rows : list of PointRow
        Numbers always have a decimal point, unlike perhaps in the file.
    """

    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[PointRow] = field(default_factory=list)


def read_table(
    path: Path, *, headings: int | None = None, columns: int | None = None
) -> PointTable:
    """Read the rows and cells of a file of points.

    Columns are separated by ``;``, else by a tab, else by a comma, else by blanks. With ``;``, a
    tab or quotes, a comma within a number is a decimal comma.

    Parameters
    ----------
    path : Path
    headings : int, optional
        Maximum number of heading lines, besides comments; unlimited by default.
    columns : int, optional
        Numbers per row if no heading names the columns, to detect decimal commas.

    Raises
    ------
    InputError
        If the file is missing, not text, or its numbers and separators are ambiguous.
    """
    lines = [(n, line.strip()) for n, line in enumerate(_read_point_text(path).splitlines(), 1)]
    separator = _separator([line for _, line in lines if not line.startswith("#")])
    table = PointTable()
    words = 0
    for number, line in lines:
        if not line:
            continue
        comment = line.startswith("#")
        cells = _cells(path, number, line, separator)
        beginning = not table.rows and (headings is None or words < headings)
        if comment or (
            beginning and not any(_is_number(cell) or _has_comma(cell) for cell in cells)
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
    _check_widths(path, table, separator, columns)
    _decimal_points(path, table, separator)
    return table


def numbers_of(
    rows: list[PointRow], indices: list[int], path: Path, *, by: str = "row"
) -> NDArray[np.float64]:
    """Convert some columns to numbers, (n, len(indices)).

    Parameters
    ----------
    rows : list of PointRow
    indices : list of int
    path : Path
    by : {"row", "line"}
        Whether a message gives the row or the line number.

    Raises
    ------
    InputError
        If a row lacks a number, one is NaN or infinite, or there are no rows.
    """
    found = []
    for n, (line, cells) in enumerate(rows, 1):
        where = f"{path}, {by} {line if by == 'line' else n}"
        if any(column >= len(cells) or not _is_number(cells[column]) for column in indices):
            what = (
                "six numbers (a fixed and a moving point"
                if len(indices) == 6
                else "three numbers (a point"
            )
            raise InputError(
                f"{where}: {what}; mm) were expected; got '{','.join(cells)[:80]}'. Correct that"
                " row, or open the file as what it contains: pairs, or points of one image."
            )
        row = [float(cells[column]) for column in indices]
        if not np.isfinite(row).all():
            what = "six" if len(indices) == 6 else "three"
            raise InputError(
                f"{where}: {what} finite numbers were expected; one is NaN or infinite:"
                f" '{','.join(cells)[:80]}'. Remove that row."
            )
        found.append(row)
    if not found:
        raise InputError(
            f"{path} contains no points; rows of {len(indices)} numbers were expected. Pick another"
            " file."
        )
    return np.array(found)


def frame_of(notes: list[str], path: Path) -> str | None:
    """Coordinate frame, "LPS" or "RAS", that the comments and headings name, if any.

    Raises
    ------
    InputError
        If they name both, or say that the numbers are voxel indices.
    """
    found = {
        word.upper() for word in re.findall(r"\b(LPS|RAS|IJK)\b", " ".join(notes), re.IGNORECASE)
    }
    if len(found) > 1 or "IJK" in found:
        raise InputError(
            f"{path} mentions {' and '.join(sorted(found))}: all points in LPS, or all in RAS, were"
            " expected, in mm. Save them in one of these, and mention no other in its comments."
        )
    return found.pop() if found else None


def _read_point_text(path: Path) -> str:
    """Read the text of a file: UTF-8, else Windows-1252, as written by spreadsheets."""
    content = read_bytes(path, _EXPECTED)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" not in content:
            return content.decode("cp1252", errors="replace")
        raise InputError(
            f"{path} cannot be read as text ({error.reason}); {_EXPECTED} was expected."
        ) from error


def _separator(lines: list[str]) -> str:
    """Column separator, found outside quotes."""
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    marks = (mark for mark in (";", "\t", ",") if any(mark in line for line in bare))
    return next(marks, " ")


def _cells(path: Path, number: int, line: str, separator: str) -> list[str]:
    if separator == " ":
        line = re.sub(r"(?<=\S)\s+(?=[-+.\d])", ",", line)
    elif separator == "," and not line.startswith("#"):
        if re.search(r"\d,\d", line) and re.search(r"\d\s+[-+.\d]", line):
            raise InputError(
                f"{path}, line {number}: both commas and blanks are between digits ('{line[:60]}'),"
                f" so its numbers are ambiguous. {_SAVE_CLEARLY}"
            )
        line = re.sub(r"(?<=\d)\s+(?=[-+.\d])", ",", line)
    try:
        mark = "," if separator == " " else separator
        cells = next(
            csv.reader(io.StringIO(line), delimiter=mark, strict=not line.startswith("#")), []
        )
    except csv.Error as error:
        raise InputError(
            f"{path}, line {number}, cannot be split into columns ({error}); {_EXPECTED} was"
            " expected."
        ) from error
    if any(len(cell) > MAX_CELL for cell in cells):
        raise InputError(
            f"{path}, line {number}: a cell has more than {MAX_CELL} characters; {_EXPECTED} was"
            " expected."
        )
    return [cell.strip() for cell in cells]


def _check_widths(path: Path, table: PointTable, separator: str, columns: int | None) -> None:
    """Refuse rows with more cells than columns, whose commas may be decimal commas."""
    if separator != ",":
        return
    named = len(table.columns) if len(table.columns) >= 3 else None
    for line, cells in table.rows:
        filled = len(cells)
        while filled and not cells[filled - 1]:
            filled -= 1
        integers = next(
            (n for n, cell in enumerate(cells) if not re.fullmatch(r"[-+]?\d+", cell)), len(cells)
        )
        if filled > named if named is not None else columns is not None and integers > columns:
            raise InputError(
                f"{path}, line {line}: {filled} cells were found for {named or columns} columns"
                f" ('{','.join(cells)[:60]}'); its commas may be decimal commas, which cannot be"
                f" distinguished from separators. {_SAVE_CLEARLY}"
            )


def _decimal_points(path: Path, table: PointTable, separator: str) -> None:
    """Replace decimal commas in cells by points; refuse possible thousands separators."""
    commas = [(line, cell) for line, cells in table.rows for cell in cells if _has_comma(cell)]
    if not commas:
        return
    points = any("." in cell and _is_number(cell) for _, cells in table.rows for cell in cells)
    thousands = all(_THOUSANDS.fullmatch(cell) for _, cell in commas) and separator == ","
    odd = next((cell for _, cell in commas if cell.count(",") > 1 or "." in cell), None)
    if points or thousands or odd is not None:
        line, cell = commas[0]
        raise InputError(
            f"{path}, line {line}: the comma in '{odd or cell}' may be a decimal comma or a"
            f" thousands separator. {_SAVE_CLEARLY}"
        )
    for _, cells in table.rows:
        cells[:] = [cell.replace(",", ".") if _has_comma(cell) else cell for cell in cells]


def _has_comma(cell: str) -> bool:
    return "," in cell and re.fullmatch(r"[-+]?[\d.,]*\d[\d.,]*([eE][-+]?\d+)?", cell) is not None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"

LARGEST = 1e9  # mm from the origin; no image is that far away


def read_slicer_points(path: Path) -> NDArray[np.float64]:
    """Read a list of points, (n, 3) mm RAS, from a .mrk.json or .fcsv file."""
    if path.name.lower().endswith(".json"):
        return _read_markups(path)
    table = read_table(path)
    codes = set(re.findall(r"CoordinateSystem\s*=\s*(\w+)", " ".join(table.notes)))
    # Older Slicers wrote a number, or nothing, for RAS.
    frames = {{"0": "RAS", "1": "LPS", "2": "IJK"}.get(code, code) for code in codes} or {"RAS"}
    if len(frames) > 1 or not frames <= {"RAS", "LPS"}:
        raise InputError(
            f"{path} is in the coordinates '{' and '.join(sorted(frames))}'; LPS or RAS was"
            " expected. Save it again in Slicer."
        )
    has_axes = {"x", "y", "z"} <= set(table.columns)
    points = numbers_of(
        table.rows, [table.columns.index(axis) for axis in "xyz"] if has_axes else [1, 2, 3], path
    )
    return points if frames == {"RAS"} else points * FLIP


def write_slicer_points(points: ArrayLike, path: str | Path) -> None:
    """Write one list of points, (n, 3) mm RAS, for 3D Slicer (.mrk.json or .fcsv), atomically.

    Raises
    ------
    InputError
        If the ending is another one, or the path is not writable.
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
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_markups(path: Path) -> NDArray[np.float64]:
    text = read_text(path, _EXPECTED)
    try:
        content = parse_json(text, path, "a point list")
    except InputError as error:
        raise InputError(f"{path} is not a point list of 3D Slicer: {error}") from error
    try:
        lists = [markups for markups in content["markups"] if markups["controlPoints"]]
        lists = lists or [content["markups"][0]]
        frames, units = (
            _values_of(lists, "coordinateSystem", "LPS"),
            _values_of(lists, "coordinateUnits", "mm"),
        )
        listed = [dict(point) for markups in lists for point in markups["controlPoints"]]
        defined = [point for point in listed if point.get("positionStatus", "defined") == "defined"]
        points = np.array([_position(path, n, point) for n, point in enumerate(defined, 1)])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a point list of 3D Slicer ({error!r:.200}). Save it in Slicer as"
            " 'Markups JSON (.mrk.json)'."
        ) from error
    if len(lists) > 1:
        raise InputError(
            f"{path} contains {len(lists)} point lists; one was expected. Save each as a separate"
            " file."
        )
    if not frames <= {"LPS", "RAS"} or units != {"mm"} or points.ndim != 2:
        raise InputError(
            f"{path} contains points of the shape {points.shape} in '{' '.join(frames)}',"
            f" {' '.join(units)}; a list of points in LPS or RAS, mm, was expected. Save it again"
            " in Slicer."
        )
    if len(defined) < len(listed):
        warnings.warn(
            f"{path}: {len(listed) - len(defined)} of {len(listed)} points have no position (they"
            " were not placed in Slicer) and were left out, so later points are renumbered.",
            UserWarning,
            stacklevel=2,
        )
    return points if frames == {"RAS"} else points * FLIP


def _values_of(lists: list[dict[str, Any]], key: str, default: str) -> set[str]:
    """All values of a key; lists of values are flattened."""
    found = [markups.get(key, default) for markups in lists]
    return {
        str(value)
        for values in found
        for value in (values if isinstance(values, list) else [values])
    }


def _position(path: Path, number: int, point: dict[str, Any]) -> list[float]:
    """Position of a point: three finite numbers, else an error that names the point."""
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
    """Points that show the same anatomical location in two images.

    Attributes
    ----------
    moving, fixed : (n, 3) array, mm RAS
    notes : tuple of str
        Assumptions about what the file does not specify.
    """

    moving: NDArray[np.float64]
    fixed: NDArray[np.float64]
    notes: tuple[str, ...] = ()


@names_input
def read_landmark_pairs(path: str | Path) -> LandmarkPairs:
    """Read pairs of points from a CSV file.

    Each row has six numbers. A heading with ``fixed_x`` ... ``moving_z`` names the columns, in any
    order and with other columns between; without one the fixed point comes first, as in the lists
    of `shmoareg benchmark`. A comment with LPS or RAS gives the frame; the default is LPS, as in
    ITK and 3D Slicer. Decimal commas are allowed if the columns are separated by ``;`` or a tab.

    Raises
    ------
    InputError
        If the file is missing or contains something else, a number is not finite, or decimal commas
        cannot be distinguished from separators.
    """
    path = user_path(path)
    table = read_table(path, columns=6)
    notes = []
    indices = [0, 1, 2, 3, 4, 5]
    if set(COLUMNS) <= set(table.columns):
        indices = [table.columns.index(name) for name in COLUMNS]
    else:
        notes.append(
            "no column is named fixed_x: the first three numbers were used as the fixed point"
        )
    numbers = numbers_of(table.rows, indices, path)
    frame = frame_of(table.notes, path)
    if frame is None:
        notes.append("no line says LPS or RAS: LPS was assumed")
    ras = numbers if frame == "RAS" else numbers * np.tile(FLIP, 2)
    return LandmarkPairs(moving=ras[:, 3:], fixed=ras[:, :3], notes=tuple(notes))


def write_landmark_pairs(path: str | Path, *, moving: ArrayLike, fixed: ArrayLike) -> None:
    """Write pairs of points as CSV, atomically.

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
        If the path is not writable or the disk is full.
    """
    both = np.hstack([np.reshape(fixed, (-1, 3)) * FLIP, np.reshape(moving, (-1, 3)) * FLIP])
    lines = ["# landmarks, mm, LPS (as in ITK and 3D Slicer)", ",".join(COLUMNS)]
    lines += [",".join(f"{value:.4f}" for value in row) for row in both]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


@names_input
def read_points(path: str | Path) -> NDArray[np.float64]:
    """Read the points of one image, (n, 3) mm RAS.

    Parameters
    ----------
    path : str or Path
        A 3D Slicer list (.mrk.json or .fcsv), or a CSV file with three numbers per row (LPS unless
        a line says RAS).

    Raises
    ------
    InputError
        If the file is missing or contains something else.
    """
    path = user_path(path)
    if path.name.lower().endswith(SLICER):
        return read_slicer_points(path)
    table = read_table(path, columns=3)
    points = numbers_of(table.rows, [0, 1, 2], path)
    return points if frame_of(table.notes, path) == "RAS" else points * FLIP


class Landmarks(NamedTuple):
    """Corresponding points, each (n, 3), mm RAS."""

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]


@names_input
def read_landmarks(path: str | Path) -> Landmarks:
    """Read corresponding points of a pair.

    Parameters
    ----------
    path : str or Path
        A CSV file with six numbers per line: x, y, z in the fixed image, then in the moving image,
        in mm, LPS (as written by ITK, 3D Slicer's LPS files and elastix) unless a comment says RAS.
        Lines that begin with # and one heading line are skipped; if the heading names the columns
        fixed_x ... moving_z, it defines their order.

    Raises
    ------
    InputError
        If a line does not have six finite numbers, or there are no lines.
    """
    path = user_path(path)
    table = read_table(path, headings=1, columns=6)
    named = set(COLUMNS) <= set(table.columns)
    indices = [table.columns.index(name) for name in COLUMNS] if named else list(range(6))
    both = numbers_of(table.rows, indices, path, by="line")
    ras = both if frame_of(table.notes, path) == "RAS" else both * np.tile(FLIP, 2)
    return Landmarks(ras[:, :3], ras[:, 3:])
