"""The folder of `inspect --pairs`: its plan, and one file per pair, so that the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import numpy as np

from napari_shmoareg.analysis.expert_load import ExpertLoad, Place
from napari_shmoareg.analysis.place_load import PlaceLoad
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.summary import plain
from napari_shmoareg.io.untrusted import check_fields, read_object

PLAN, PAIRS = "inspect.json", "pairs"


@dataclass(frozen=True, eq=False)
class InspectedPair:
    """What is kept of one pair.

    Attributes
    ----------
    moving, fixed : str
        Names of the images.
    load : ExpertLoad
    places : PlaceLoad
    points : mapping of str to list of 3 float
        Where the places lie in the fixed image's world, mm RAS.
    boundary : list of 2 int, or None
        Labels that meet at the place "boundary".
    about : mapping
        The network grid, how often the network ran ("passes"), what was decided for the caller, warnings.
    files : mapping of str to (int, int)
        What was read: size in bytes and time of the last change (ns) by path.
    """

    moving: str
    fixed: str
    load: ExpertLoad
    places: PlaceLoad
    points: Mapping[str, list[float]]
    boundary: list[int] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """All of it but the counts, for the summary."""
        named = {"moving": self.moving, "fixed": self.fixed, "places_mm_ras": self.points}
        return {**named, "boundary_labels": self.boundary, **self.about}


@dataclass(frozen=True)
class _Named:
    """What the file of a pair holds beside its counts, and of which kind."""

    moving: str
    fixed: str
    points: dict[str, tuple[float, float, float]]
    boundary: tuple[int, int] | None
    about: dict[str, Any]
    files: dict[str, tuple[int, int]]


def file_of(out: Path, number: int) -> Path:
    """Where a pair, from 0, is kept."""
    return out / PAIRS / f"{number + 1:04d}.json"


def write_pair(pair: InspectedPair, out: Path, number: int) -> None:
    """Keep a pair that is done, whole or not at all."""
    told = {
        "moving": pair.moving,
        "fixed": pair.fixed,
        "points": pair.points,
        "boundary": pair.boundary,
        "about": pair.about,
        "files": pair.files,
        "load": _listed(pair.load),
        "places": {name: _listed(pair.places[name]) for name in pair.places},
    }
    write_json(told, file_of(out, number))


def write_failure(error: str, out: Path, number: int) -> None:
    """Keep why a pair failed; the next run tries it again."""
    write_json({"error": error}, file_of(out, number))


def read_kept(out: Path, number: int) -> InspectedPair | None:
    """A pair that was done before; None for one that was not, or failed.

    Raises
    ------
    InputError
        If its file is damaged.
    """
    place = file_of(out, number)
    if not place.is_file():
        return None
    try:
        told = read_object(place, "an inspected pair")
        if "error" in told:
            return None
        places = PlaceLoad({name: _load(rows) for name, rows in told["places"].items()})
        check_fields(_Named, {key: told[key] for key in get_type_hints(_Named)})
        named = {key: told[key] for key in ("moving", "fixed", "points", "boundary", "about", "files")}
        return InspectedPair(load=_load(told["load"]), places=places, **named)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{place} is damaged ({error!r}). Delete it; the same command then registers this pair again."
        ) from error


def state_of(files: Iterable[Path | None]) -> dict[str, list[int]]:
    """Size in bytes and time of the last change (ns) of files, by their absolute path; None is passed over."""
    found = {str(path.resolve()): path.stat() for path in files if path is not None}
    return {name: [told.st_size, told.st_mtime_ns] for name, told in found.items()}


class _Kept(Protocol):
    """A pair that is done: which files it was read from, as of `state_of`."""

    @property
    def files(self) -> Mapping[str, Sequence[int]]: ...


def check_unchanged(out: Path, pairs: Mapping[int, _Kept]) -> None:
    """See that the files of the pairs that are kept are still those that were read.

    Raises
    ------
    InputError
        If one has another size or time.
    """
    changed = {n: [f for f, then in p.files.items() if state_of([Path(f)])[f] != list(then)] for n, p in pairs.items()}
    numbers = [n for n, names in changed.items() if names]
    if numbers:
        names = dict.fromkeys(name for n in numbers for name in changed[n])
        raise InputError(
            f"The inspection in '{out}' holds pairs of other files: since they were registered, "
            f"{', '.join(names)} changed. Delete {', '.join(file_of(out, n).name for n in numbers)} in {out / PAIRS} "
            "to register those pairs again, or give another --out."
        )


def _listed(load: ExpertLoad) -> list[dict[str, Any]]:
    return [p._asdict() | {"cells": load.cells[p], "counts": load.counts[p].tolist()} for p in load]


def _load(rows: Sequence[Mapping[str, Any]]) -> ExpertLoad:
    places = [Place(*(row[name] for name in Place._fields)) for row in rows]
    counts = {p: np.array(row["counts"], dtype=np.int64) for p, row in zip(places, rows, strict=True)}
    return ExpertLoad(counts, {p: int(row["cells"]) for p, row in zip(places, rows, strict=True)})


def write_json(told: Mapping[str, Any], place: Path) -> None:
    """Write plain values as JSON, whole or not at all."""
    with writing(place) as temporary:
        temporary.write_text(json.dumps(plain(told), indent=1, allow_nan=False) + "\n", encoding="utf-8")
