"""The output folder of `inspect --pairs`: plan, one file per pair, tables, figures, summary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad, repeated, share_spread
from napari_shmoareg.experts.location import (
    BOUNDARY,
    CENTRE,
    FRACTIONS,
    LocationLoad,
    detailed_rows,
)
from napari_shmoareg.figures.experts import (
    CAUTION,
    load_caption,
    load_figure,
    location_caption,
    location_figure,
)
from napari_shmoareg.io.files import ENDINGS, write_figure, write_table, writing
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.report import plain
from napari_shmoareg.io.untrusted import check_fields, read_object
from napari_shmoareg.model.routing import GateId

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PLAN, PAIRS = "inspect.json", "pairs"


@dataclass(frozen=True, eq=False)
class InspectedPair:
    """What is kept of one pair.

    Attributes
    ----------
    moving, fixed : str
        Names of the images.
    load : ExpertLoad
    places : LocationLoad
    points : mapping of str to list of 3 float
        Where the places lie in the fixed image's world, mm RAS.
    boundary : list of 2 int, or None
        Labels that meet at the place "boundary".
    about : mapping
        The network grid, how often the network ran ("passes"), what was decided for the caller,
        warnings.
    files : mapping of str to (int, int)
        What was read: size in bytes and time of the last change (ns) by path.
    """

    moving: str
    fixed: str
    load: ExpertLoad
    places: LocationLoad
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
        "load": pair.load.entries(),
        "places": {name: pair.places[name].entries() for name in pair.places},
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
        places = LocationLoad(
            {name: ExpertLoad.from_entries(rows) for name, rows in told["places"].items()}
        )
        check_fields(_Named, {key: told[key] for key in get_type_hints(_Named)})
        named = {
            key: told[key] for key in ("moving", "fixed", "points", "boundary", "about", "files")
        }
        return InspectedPair(load=ExpertLoad.from_entries(told["load"]), places=places, **named)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{place} is damaged ({error!r}). Delete it; the same command then registers this pair"
            " again."
        ) from error


def state_of(files: Iterable[Path | None]) -> dict[str, list[int]]:
    """Size in bytes and time of the last change (ns) of files, by their absolute path; None is
    passed over.
    """
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
    changed = {
        n: [f for f, then in p.files.items() if state_of([Path(f)])[f] != list(then)]
        for n, p in pairs.items()
    }
    numbers = [n for n, names in changed.items() if names]
    if numbers:
        names = dict.fromkeys(name for n in numbers for name in changed[n])
        raise InputError(
            f"The inspection in '{out}' holds pairs of other files: since they were registered,"
            f" {', '.join(names)} changed. Delete"
            f" {', '.join(file_of(out, n).name for n in numbers)} in {out / PAIRS} to register"
            " those pairs again, or give another --out."
        )


def write_json(told: Mapping[str, Any], place: Path) -> None:
    """Write plain values as JSON, whole or not at all."""
    with writing(place) as temporary:
        temporary.write_text(
            json.dumps(plain(told), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


LOADS, PER_PAIR, PLACES = "loads.csv", "loads_per_pair.csv", "places.csv"
SUMMARY, CAPTIONS = "summary.json", "captions.md"


def write_results(
    out: Path,
    plan: Mapping[str, Any],
    pairs: Mapping[int, InspectedPair],
    failures: Mapping[int, str],
    network: Mapping[str, Any],
    routing: str = "",
) -> ExpertLoad:
    """Write tables, figures, captions and summary of the pairs that are done.

    Parameters
    ----------
    out : Path
    plan : mapping
        As the folder was begun with.
    pairs, failures : mappings by number, from 0
        At least one pair.
    network : mapping
        Its config.
    routing : str
        What the card of the weights says of their routing (`routing_sentence`).

    Returns
    -------
    ExpertLoad
        Of all pairs added up.
    """
    done = list(pairs.values())
    load, places = reduce(add, [p.load for p in done]), reduce(add, [p.places for p in done])
    spread = share_spread([p.load for p in done])
    write_table(_with_spread(load, spread), out / LOADS)
    named = [
        ({"pair": n + 1, "moving": p.moving, "fixed": p.fixed}, p.load) for n, p in pairs.items()
    ]
    write_table([who | row for who, found in named for row in detailed_rows(found)], out / PER_PAIR)
    write_table(places.rows(), out / PLACES)
    captions: dict[str, str] = {}
    if len(load):
        captions, figures = _figures(load, places, spread, done, network, routing)
        _write_figures(out, figures, captions, plan, done)
    summary = {
        "weights": plan["weights"],
        "settings": plan["settings"],
        "network": network,
        "versions": versions(),
    }
    summary |= {"pairs_listed": len(plan["pairs"]), "pairs_done": len(done)}
    summary["pairs"] = [{"pair": n + 1} | p.told() for n, p in pairs.items()]
    summary["failed"] = [
        {"pair": n + 1, "files": plan["pairs"][n], "error": e} for n, e in failures.items()
    ]
    write_json(
        summary | {"captions": captions, "caution": CAUTION, "routing": routing}, out / SUMMARY
    )
    with writing(out / CAPTIONS) as temporary:
        temporary.write_text(_captions(captions, plan, done, failures), encoding="utf-8")
    return load


def _figures(
    load: ExpertLoad,
    places: LocationLoad,
    spread: Mapping[GateId, np.ndarray],
    done: Sequence[InspectedPair],
    network: Mapping[str, Any],
    routing: str,
) -> tuple[dict[str, str], dict[str, Figure]]:
    """Fig. 5 and 6, and what they show."""
    passes, kernels = [len(pair.about["passes"]) for pair in done], network["kernels"]
    given = not set(FRACTIONS) <= set(places)
    tokens = [name for name in places if name != BOUNDARY]
    voxel = tokens[0] if given else BOUNDARY if BOUNDARY in places else CENTRE
    captions = {
        "expert_loads": load_caption(load, len(done), passes, routing),
        "expert_places": location_caption(
            places,
            len(done),
            given=given,
            voxel=voxel,
            told=_meeting(done) if voxel == BOUNDARY else "",
            passes=passes,
            routing=routing,
        ),
    }
    return captions, {
        "expert_loads": load_figure(load, spread=spread, caption=captions["expert_loads"]),
        "expert_places": location_figure(
            places, tokens=tokens, voxel=voxel, kernels=kernels, caption=captions["expert_places"]
        ),
    }


def _write_figures(
    out: Path,
    figures: Mapping[str, Figure],
    captions: Mapping[str, str],
    plan: Mapping[str, Any],
    done: Sequence[Any],
) -> None:
    about = {
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": f"{plan['weights']['name']} (SHA-256 {plan['weights']['sha256']})",
        "Pairs": (
            f"{len(done)}, moving to fixed: " + "; ".join(f"{p.moving} to {p.fixed}" for p in done)
        ),
        "Settings": json.dumps(plan["settings"]),
    }
    for name, figure in figures.items():
        for ending in ENDINGS:
            with writing(out / f"{name}{ending}") as temporary:
                title = {"Title": name.replace("_", " "), "Caption": captions[name]}
                write_figure(figure, temporary, title | about)


def _with_spread(load: ExpertLoad, spread: Mapping[GateId, np.ndarray]) -> list[dict[str, object]]:
    """Rows of the sum, each with the standard deviation over pairs of the share of selections."""
    gates = [
        (gate, expert) for gate, counts in load.counts.items() for expert in range(len(counts))
    ]
    return [
        row | {"share_sd_over_pairs": float(spread[gate][expert]) if gate in spread else ""}
        for (gate, expert), row in zip(gates, detailed_rows(load), strict=True)
    ]


def _meeting(done: Sequence[InspectedPair]) -> str:
    """Which labels meet at the boundary, and in how many pairs."""
    labels = {tuple(sorted(p.boundary)) for p in done if p.boundary is not None}
    having = sum(p.boundary is not None for p in done)
    told = f" (labels {' and '.join(map(str, next(iter(labels))))})" if len(labels) == 1 else ""
    told = told or f" (other labels from pair to pair: see {SUMMARY})"
    return told + (
        f", in the {having} of {len(done)} pairs that have such a boundary"
        if having < len(done)
        else ""
    )


def _captions(
    captions: Mapping[str, str],
    plan: Mapping[str, Any],
    done: Sequence[Any],
    failures: Mapping[int, str],
) -> str:
    titles = {
        "expert_loads": "Fig. 5: load of each expert",
        "expert_places": "Fig. 6: load at single places",
    }
    parts = ["# Which experts were chosen"]
    parts += [
        f"## {titles[name]} ({name}.png, {name}.svg)\n\n{text}" for name, text in captions.items()
    ]
    if not captions:
        parts += [
            "This network has no experts: neither a mixture of attention heads nor of deformations."
        ]
    parts += [f"## What a load is not\n\n{CAUTION}"]
    weights, settings = (
        plan["weights"],
        ", ".join(f"{k} {v}" for k, v in plan["settings"].items() if v is not None),
    )
    parts += [
        f"## How\n\n{len(done)} of {len(plan['pairs'])} listed pairs (in {SUMMARY}); weights"
        f" {weights['name']}, "
    ]
    parts[-1] += f"SHA-256 {weights['sha256']}; {settings}."
    again = repeated(tuple(files[:2]) for files in plan["pairs"])
    if again:
        parts[-1] += (
            " Listed more than once:"
            f" {', '.join(f'pair {n} (as {number})' for n, number in again)}; each "
        )
        parts[-1] += "time counts, so that the spread over pairs comes out too small."
    if failures:
        told = "\n".join(f"- pair {n + 1}: {error}" for n, error in failures.items())
        parts += [f"## Failed, and not counted\n\n{told}\n\nThe same command tries these again."]
    return "\n\n".join(parts) + "\n"
