"""Lists of points as 3D Slicer keeps them: .mrk.json and .fcsv."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.point_rows import FLIP, numbers_of, rows_of, text_of

SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"


def read_slicer_points(path: Path) -> NDArray[np.float64]:
    """Read a list of points, (n, 3) mm RAS, from a .mrk.json or .fcsv file.

    Raises
    ------
    InputError
        If it holds something else.
    """
    if path.name.lower().endswith(".json"):
        return _read_markups(path)
    heading, rows = rows_of(path)
    code = re.search(r"CoordinateSystem\s*=\s*(\w+)", " ".join(heading))
    # Older Slicers wrote a number, or nothing, for RAS.
    frame = {"0": "RAS", "1": "LPS", "2": "IJK"}.get(code[1], code[1]) if code else "RAS"
    if frame not in ("RAS", "LPS"):
        raise InputError(f"{path} is in the coordinates '{frame}'; LPS or RAS was expected. Save it anew in Slicer.")
    points = numbers_of(rows, [1, 2, 3], path)
    return points if frame == "RAS" else points * FLIP


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
    try:
        content: Any = json.loads(text_of(path))
        markups = content["markups"][0]
        frame = markups.get("coordinateSystem", "LPS")
        listed = [p["position"] for p in markups["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
        points = np.array(listed, dtype=np.float64)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} is no point list of 3D Slicer ({error!r}). Save it in Slicer as 'Markups JSON (.mrk.json)'."
        ) from error
    unit = markups.get("coordinateUnits", "mm")
    if frame not in ("LPS", "RAS") or unit not in ("mm", ["mm"] * 3) or points.ndim != 2 or points.shape[1] != 3:
        raise InputError(
            f"{path} holds points of the shape {points.shape} in '{frame}', {unit}; a list of points in LPS or RAS, "
            "mm, was expected. Save it anew in Slicer."
        )
    return points if frame == "RAS" else points * FLIP
