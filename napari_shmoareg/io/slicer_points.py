"""Lists of points as 3D Slicer keeps them: .mrk.json and .fcsv."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.point_rows import FLIP, WHAT, numbers_of, rows_of
from napari_shmoareg.io.untrusted import parse_json, read_text

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
            f"{path} is in the coordinates '{' and '.join(sorted(frames))}'; LPS or RAS was expected. Save it again in "
            "Slicer."
        )
    known = {"x", "y", "z"} <= set(table.columns)
    points = numbers_of(table.rows, [table.columns.index(axis) for axis in "xyz"] if known else [1, 2, 3], path)
    return points if frames == {"RAS"} else points * FLIP


def write_slicer_points(points: ArrayLike, path: str | Path) -> None:
    """Write one list of points, (n, 3) mm RAS, for 3D Slicer (.mrk.json or .fcsv); whole or not at all.

    Raises
    ------
    InputError
        If the ending is another one, or the place is not writable.
    """
    name = Path(path).name.lower()
    lps = np.reshape(points, (-1, 3)) * FLIP
    if name.endswith(".json"):
        listed = [
            {"id": str(n), "label": str(n), "position": [round(v, 4) for v in row], "positionStatus": "defined"}
            for n, row in enumerate(lps.tolist(), 1)
        ]
        markups = [
            {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": listed},
        ]
        text = json.dumps({"@schema": SCHEMA, "markups": markups}, indent=2) + "\n"
    elif name.endswith(".fcsv"):
        lines = ["# Markups fiducial file version = 4.11", "# CoordinateSystem = LPS", f"# columns = {FCSV_COLUMNS}"]
        lines += [f"{n},{x:.4f},{y:.4f},{z:.4f},0,0,0,1,1,1,0,{n},," for n, (x, y, z) in enumerate(lps, 1)]
        text = "\n".join(lines) + "\n"
    else:
        raise InputError(f"{Path(path).name} has none of the endings .mrk.json and .fcsv. Give it one of them.")
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
        frames, units = _said(lists, "coordinateSystem", "LPS"), _said(lists, "coordinateUnits", "mm")
        listed = [dict(point) for markups in lists for point in markups["controlPoints"]]
        placed = [point for point in listed if point.get("positionStatus", "defined") == "defined"]
        points = np.array([_position(path, n, point) for n, point in enumerate(placed, 1)])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is no point list of 3D Slicer ({error!r:.200}). Save it in Slicer as 'Markups JSON (.mrk.json)'."
        ) from error
    if len(lists) > 1:
        raise InputError(f"{path} holds {len(lists)} lists of points; one was expected. Save each as its own file.")
    if not frames <= {"LPS", "RAS"} or units != {"mm"} or points.ndim != 2:
        raise InputError(
            f"{path} holds points of the shape {points.shape} in '{' '.join(frames)}', {' '.join(units)}; a list of "
            "points in LPS or RAS, mm, was expected. Save it again in Slicer."
        )
    if len(placed) < len(listed):
        warnings.warn(
            f"{path}: {len(listed) - len(placed)} of {len(listed)} points have no position (they were not placed in "
            "Slicer) and were left out, so that the later ones are counted from a lower number.",
            UserWarning,
            stacklevel=2,
        )
    return points if frames == {"RAS"} else points * FLIP


def _said(lists: list[dict[str, Any]], key: str, otherwise: str) -> set[str]:
    """All values of a key; those of the axes one by one."""
    found = [markups.get(key, otherwise) for markups in lists]
    return {str(value) for values in found for value in (values if isinstance(values, list) else [values])}


def _position(path: Path, number: int, point: dict[str, Any]) -> list[float]:
    """Three finite numbers, or an error that names the point."""
    values = point["position"]
    numbers = values if isinstance(values, list) else []
    name = f"'{point['label']}'" if point.get("label") else f"number {number}"
    if len(numbers) != 3 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise InputError(f"{path}: the point {name} has the position {str(values)[:80]}; three numbers were expected.")
    if not all(abs(v) < LARGEST for v in numbers):
        raise InputError(
            f"{path}: the point {name} has the position {str(values)[:80]}, which is NaN, infinite or beyond any "
            "image. Place it again in Slicer, or delete it."
        )
    return [float(v) for v in numbers]
