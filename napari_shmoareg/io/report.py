"""Writing and reading of report.json and loads.csv of a registration folder."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.geometry import Grid
from napari_shmoareg.io.images import REPORT
from napari_shmoareg.io.itk import fits_itk
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.untrusted import inside, names_input, read_csv, read_object, user_path
from napari_shmoareg.metrics.measure import Quality
from napari_shmoareg.registration.register import Registration

LOADS = "experts/loads.csv"
COLUMNS = ("part", "layer", "block", "image", "direction", "expert", "count", "share")
FORMAT = 1
_NUMBER = (int, float, None)  # for `check_report`: a number or None


@dataclass(frozen=True, eq=False)
class RegistrationSummary:
    """Content of a registration folder without its images.

    Attributes
    ----------
    folder : Path
    report : dict
        The content of report.json.
    load : ExpertLoad
        The content of loads.csv; empty for a network without experts.
    """

    folder: Path
    report: dict[str, Any]
    load: ExpertLoad


def build_report(
    registration: Registration,
    quality: Quality,
    load: ExpertLoad,
    *,
    weights: str,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the content of report.json, JSON-serialisable (NaN and infinity as None).

    Parameters
    ----------
    registration : Registration
    quality : Quality
        Result of `measure(registration)`.
    load : ExpertLoad
        Result of `ExpertLoad.of(registration.routing)`.
    weights : str
        Name of the weights.
    extra : mapping, optional
        Stored under "extra": a known true error, a note.
    """
    pair, alignment = registration.pair, registration.alignment
    volumes = {
        "moving": pair.moving,
        "fixed": pair.fixed,
        "moving_labels": pair.moving_labels,
        "fixed_labels": pair.fixed_labels,
        "fixed_mask": pair.fixed_mask,
    }
    report = {
        "format": FORMAT,
        "versions": versions(),
        "weights": weights,
        "warnings": list(dict.fromkeys([*registration.warnings, *quality.warnings])),
        "notes": _grid_notes(pair.fixed.grid),
        "pair": {
            role: v and {"name": v.name, "dtype": str(v.values.dtype)} | _geometry(v.grid)
            for role, v in volumes.items()
        },
        "settings": registration.settings,
        "choices": registration.choices,
        "experts_of": _describe_passes(registration.settings["passes"]),
        "kept": registration.kept,
        "network_grid": _geometry(registration.network_grid),
        "affine": {
            "mode": alignment.mode,
            "matrix": alignment.matrix,
            "maps": "fixed world to moving world, mm, RAS",
            "reason": alignment.reason,
            "initial": alignment.initial,
            "similarity_before": alignment.before.information,
            "similarity_after": alignment.after.information,
            "agreement_before": alignment.before._asdict(),
            "agreement_after": alignment.after._asdict(),
        },
        "seconds": registration.seconds,
        "similarity_within": "overlap" if pair.fixed_mask is None else "mask",
        **quality.to_dict(),
        "expert_loads": [
            entry | {"share": share}
            for entry, share in zip(load.entries(), load.share.values(), strict=True)
        ],
    }
    return plain(report | ({"extra": extra} if extra else {}))


def write_summary(folder: Path, report: Mapping[str, Any], load: ExpertLoad) -> None:
    """Write report.json and experts/loads.csv into a folder."""
    (folder / REPORT).write_text(
        json.dumps(plain(report), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    (folder / LOADS).parent.mkdir(exist_ok=True)
    write_loads(load, folder / LOADS)


def write_loads(load: ExpertLoad, path: str | Path) -> None:
    """Write one row per gate and expert: part, layer, block, image, direction, expert, count,
    share.

    Cells that do not apply are empty (a decoder has no block). Shares sum to 1 within a layer,
    block, image and direction.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(load.rows())


@names_input
def read_registration_summary(folder: str | Path) -> RegistrationSummary:
    """Read report.json and loads.csv of a registration folder.

    Raises
    ------
    InputError
        If it is not a registration folder, or one of the two files is missing or damaged.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {folder}. Give the folder that 'shmoareg register --out' wrote."
        )
    for name in (REPORT, LOADS):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}: it is not a registration folder. Give one that 'shmoareg"
                " register --out' wrote."
            )
    report = read_object(inside(folder, REPORT), "the report of a registration")
    try:
        reported = ExpertLoad.from_entries(report["expert_loads"])
        check_report(report)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{folder / REPORT} is damaged ({error!r:.200}). Register the pair again."
        ) from error
    _, rows = read_csv(inside(folder, LOADS), "the loads of the experts")
    try:
        load = ExpertLoad.from_rows(row.cells for row in rows)
        if load.counts.keys() != reported.counts.keys() or not all(
            np.array_equal(counts, reported.counts[gate]) for gate, counts in load.counts.items()
        ):
            raise ValueError(f"its counts are not those of {REPORT}")
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise InputError(
            f"{folder / LOADS} is damaged ({error!r:.200}). Register the pair again."
        ) from error
    return RegistrationSummary(folder, report, reported)


def check_report(report: Mapping[str, Any]) -> None:
    """Check the types of the displayed parts of a report; missing parts are ignored."""
    per_label = {"": {"mean": _NUMBER, "per_label": {"": _NUMBER}}}
    kinds: dict[str, Any] = {
        "warnings": [str],
        "weights": str,
        "settings": {"passes": [_NUMBER], "network": {"kernels": [int]}},
        "choices": {"": str},
        "seconds": {"": float},
        "similarity": {"": {"": _NUMBER}},
        "jacobian": {"": _NUMBER},
        "displacement_mm": {"": _NUMBER},
        "folding_percent": _NUMBER,
        "pair": {"": {"name": str, "shape": [int], "affine": [[float]]}},
        "network_grid": {"shape": [int], "affine": [[float]]},
        "labels": {"": [int]},
        "label_names": {"": str},
        "label_names_from": str,
        "dice": per_label,
        "assd_mm": per_label,
        "hd95_mm": per_label,
    }
    free = {"dice", "labels", "label_names", "label_names_from", "assd_mm", "hd95_mm"}
    for name, kind in kinds.items():
        if name in report and not (report[name] is None and name in free):
            _check_kind(report[name], kind, name)
    labels = report.get("dice") or {}
    if not all(
        re.fullmatch(r"-?\d{1,18}", label)
        for stage in labels.values()
        for label in stage["per_label"]
    ):
        raise ValueError("a label of dice is not a whole number")
    if not all(re.fullmatch(r"-?\d{1,18}", label) for label in report.get("label_names") or ()):
        raise ValueError("a label of label_names is not a whole number")


def _check_kind(value: Any, kind: Any, name: str) -> None:
    """Check a value against a type, [type of items], {"": type of values} or {name: type}; None is
    allowed in "pair".
    """
    if isinstance(kind, dict) and value is None and name.startswith("pair."):
        return
    if kind is _NUMBER and value is None:
        return
    if isinstance(kind, dict) and isinstance(value, dict):
        for key, inner in value.items():
            expected = kind.get("", kind.get(key))
            if expected is not None:
                _check_kind(inner, expected, f"{name}.{key:.60}")
    elif isinstance(kind, list) and isinstance(value, list):
        for inner in value:
            _check_kind(inner, kind[0], name)
    elif kind in (float, int, _NUMBER):
        kinds = int if kind is int else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not abs(value) < 2**53:
            raise ValueError(f"{name} is {value!r:.60}; a number was expected")
    elif not (isinstance(kind, type) and isinstance(value, kind)):
        raise ValueError(f"{name} is {value!r:.60}; another type was expected")


def plain(value: Any) -> Any:
    """Convert to JSON types: arrays to lists, keys and other objects to text, NaN and infinity to
    None.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _describe_passes(passes: Sequence[float]) -> str:
    """Describe which pass of the network the expert maps and loads are from."""
    if not passes:
        return "no network"
    if len(passes) == 1:
        return "the network's only pass"
    return f"the last of {len(passes)} passes: it chose on what the earlier ones left over"


def _grid_notes(fixed: Grid) -> list[str]:
    """Notes on files that other programs cannot use because of their grid."""
    if fits_itk(fixed):
        return []
    return [
        "The axes of the fixed image's grid are not at right angles: ITK, 3D Slicer and ANTs refuse"
        " warped.nii.gz and displacement.nii.gz, which are on that grid. Give them transform.h5,"
        " which is on straightened axes."
    ]


def _geometry(grid: Grid) -> dict[str, Any]:
    return {"shape": grid.shape, "spacing_mm": grid.spacing, "affine": grid.affine}
