"""report.json and loads.csv of a registration folder, written and read back."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_shmoareg import __version__
from napari_shmoareg.analysis.expert_load import ExpertLoad, Place
from napari_shmoareg.analysis.quality import Quality
from napari_shmoareg.engine.registration import Registration
from napari_shmoareg.geometry import Grid, InputError
from napari_shmoareg.io.contents import REPORT
from napari_shmoareg.io.itk import is_orthonormal
from napari_shmoareg.io.untrusted import user_path

LOADS = "experts/loads.csv"
COLUMNS = ("part", "layer", "block", "image", "direction", "expert", "count", "share")
FORMAT = 1
LIBRARIES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "safetensors", "matplotlib")


@dataclass(frozen=True, eq=False)
class RegistrationSummary:
    """What a registration folder says without its images.

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
    """Everything that report.json says, JSON-ready (NaN and infinity as None).

    Parameters
    ----------
    registration : Registration
    quality : Quality
        Of `measure(registration)`.
    load : ExpertLoad
        Of `ExpertLoad.of(registration.routing)`.
    weights : str
        Name of the weights.
    extra : mapping, optional
        Put under "extra": a known true error, a note.
    """
    pair, alignment = registration.pair, registration.alignment
    volumes = {
        "moving": pair.moving,
        "fixed": pair.fixed,
        "moving_labels": pair.moving_labels,
        "fixed_labels": pair.fixed_labels,
    }
    report = {
        "format": FORMAT,
        "versions": versions(),
        "weights": weights,
        "warnings": registration.warnings + _limits(pair.fixed.grid),
        "pair": {
            role: v and {"name": v.name, "dtype": str(v.values.dtype)} | _place(v.grid) for role, v in volumes.items()
        },
        "settings": registration.settings,
        "choices": registration.choices,
        "experts_of": _passes(registration.settings["passes"]),
        "local_correlation": registration.local_correlation,
        "network_grid": _place(registration.network_grid),
        "affine": {
            "mode": alignment.mode,
            "matrix": alignment.matrix,
            "maps": "fixed world to moving world, mm, RAS",
            "reason": alignment.reason,
            "similarity_before": alignment.similarity_before,
            "similarity_after": alignment.similarity_after,
        },
        "seconds": registration.seconds,
        **quality.to_dict(),
        "expert_loads": [
            place._asdict() | {"cells": load.cells[place], "counts": load.counts[place], "share": share}
            for place, share in load.share.items()
        ],
    }
    return plain(report | ({"extra": extra} if extra else {}))


def write_summary(folder: Path, report: Mapping[str, Any], load: ExpertLoad) -> None:
    """Write report.json and experts/loads.csv into a folder that is being built."""
    (folder / REPORT).write_text(json.dumps(plain(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / LOADS).parent.mkdir(exist_ok=True)
    write_loads(load, folder / LOADS)


def write_loads(load: ExpertLoad, path: str | Path) -> None:
    """Write one row per place and expert: part, layer, block, image, direction, expert, count, share.

    What does not apply (a decoder has no block) is empty.  Shares sum to 1 within a layer,
    block, image and direction.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(load.rows())


def read_registration_summary(folder: str | Path) -> RegistrationSummary:
    """Read report.json and loads.csv of a folder that `write_registration` made.

    Raises
    ------
    InputError
        If it is no such folder, or one of the two files is missing or damaged.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder that 'shmoareg register --out' wrote.")
    for name in (REPORT, LOADS):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}: it is no registration folder. Give one that 'shmoareg register --out' wrote."
            )
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        known = {Place(*(entry[field] for field in Place._fields)): entry for entry in report["expert_loads"]}
        top_k = {p: sum(e["counts"]) // e["cells"] for p, e in known.items() if e["cells"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / REPORT} is damaged ({error}). Register the pair again.") from error
    try:
        with (folder / LOADS).open(newline="", encoding="utf-8") as file:
            load = ExpertLoad.from_rows(csv.DictReader(file), top_k)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / LOADS} is damaged ({error!r}). Register the pair again.") from error
    return RegistrationSummary(folder, report, load)


def versions() -> dict[str, str | None]:
    """Versions of shmoareg, Python and the libraries that made a result; None for one that is not installed."""
    found: dict[str, str | None] = {"shmoareg": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"torch": str(torch.__version__)}  # with its build: +cpu, +cu130


def plain(value: Any) -> Any:
    """The same as JSON knows it: arrays as lists, keys and unknown things as text, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _passes(passes: Sequence[float]) -> str:
    """Of which run of the network the expert maps and loads are."""
    if len(passes) == 1:
        return "the network's only pass"
    return f"the last of {len(passes)} passes: it chose on what the earlier ones had left over"


def _limits(fixed: Grid) -> list[str]:
    """Which files of the folder other programs cannot use, because of the grid they stand on."""
    if is_orthonormal(fixed):
        return []
    return [
        "The axes of the fixed image's grid are not at right angles: ITK, 3D Slicer and ANTs refuse warped.nii.gz and "
        "displacement.nii.gz, which stand on that grid. Give them transform.h5, which stands on straightened axes."
    ]


def _place(grid: Grid) -> dict[str, Any]:
    return {"shape": grid.shape, "spacing_mm": grid.spacing, "affine": grid.affine}
