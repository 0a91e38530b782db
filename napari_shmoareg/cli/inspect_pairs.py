"""``shmoareg inspect --pairs``: experts chosen in a list of pairs. Fig. 5 and 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.cli.console import ProgressCallback, print_note
from napari_shmoareg.cli.pair_list import (
    ListOptions,
    file_states,
    list_plan,
    list_summary,
    process_pairs,
    write_figures,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad, repeated, share_spread
from napari_shmoareg.experts.location import (
    BOUNDARY,
    CENTRE,
    FRACTIONS,
    LocationLoad,
    boundary_location,
    detailed_rows,
    five_locations,
    voxel_at,
)
from napari_shmoareg.figures.experts import (
    CAUTION,
    load_caption,
    load_figure,
    location_caption,
    location_figure,
)
from napari_shmoareg.io import read_image, read_pair
from napari_shmoareg.io.files import atomic_write, write_table
from napari_shmoareg.io.model_card import routing_of
from napari_shmoareg.io.work_folder import check_row, write_json
from napari_shmoareg.model.routing import GateId
from napari_shmoareg.registration.progress import overall_progress, registration_phases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from napari_shmoareg.cli.inspect import Point
    from napari_shmoareg.cli.options import CommandRequest
    from napari_shmoareg.datasets import PairFiles, PairList
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.register import Registration


LOADS, PER_PAIR, PLACES = "loads.csv", "loads_per_pair.csv", "places.csv"
SUMMARY, CAPTIONS = "summary.json", "captions.md"
MOST_PLACES = 5


@dataclass(frozen=True, eq=False)
class InspectedPair:
    """The saved results of one pair.

    Attributes
    ----------
    moving, fixed : str
        Names of the images.
    load : ExpertLoad
    places : LocationLoad
    points : mapping of str to list of 3 float
        Locations in the world space of the fixed image, mm RAS.
    boundary : list of 2 int, or None
        Labels that meet at the location "boundary".
    about : mapping
        Network grid, passes, automatic choices, warnings.
    files : mapping of str to (int, int)
        From `file_states`.
    """

    moving: str
    fixed: str
    load: ExpertLoad
    places: LocationLoad
    points: Mapping[str, list[float]]
    boundary: list[int] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, registration: Registration, at: Sequence[Point], files: Mapping[str, Sequence[int]]
    ) -> InspectedPair:
        """Count the experts that a registration chose, in total and at locations."""
        points, labels = _places(registration.pair, at)
        shape = registration.network_grid.shape
        about = {
            "network_shape": shape,
            "network_spacing_mm": registration.network_grid.spacing,
            "passes": registration.settings["passes"],
            "choices": registration.choices,
            "warnings": registration.warnings,
        }
        return cls(
            moving=registration.pair.moving.name,
            fixed=registration.pair.fixed.name,
            load=ExpertLoad.of(registration.routing, shape),
            places=LocationLoad.of(registration, points),
            points={name: [float(c) for c in point] for name, point in points.items()},
            boundary=labels,
            about=about,
            files=files,
        )

    def row(self) -> dict[str, Any]:
        """As a JSON row."""
        return vars(self) | {
            "load": self.load.entries(),
            "places": {name: self.places[name].entries() for name in self.places},
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> InspectedPair:
        """Parse a JSON row; raises ValueError, KeyError or TypeError if it is damaged."""
        check_row(_Row, row)
        places = LocationLoad(
            {name: ExpertLoad.from_entries(rows) for name, rows in row["places"].items()}
        )
        return cls(**(dict(row) | {"load": ExpertLoad.from_entries(row["load"]), "places": places}))

    def summary(self) -> dict[str, Any]:
        """Everything but the counts."""
        named = {"moving": self.moving, "fixed": self.fixed, "places_mm_ras": self.points}
        return {**named, "boundary_labels": self.boundary, **self.about}


@dataclass(frozen=True)
class _Row:
    """The types of a row, besides its counts."""

    moving: str
    fixed: str
    points: dict[str, tuple[float, float, float]]
    boundary: tuple[int, int] | None
    about: dict[str, Any]
    files: dict[str, tuple[int, int]]


def inspect_pairs(listing: Path, at: Sequence[Point], options: ListOptions) -> ExpertLoad:
    """Register the pairs of a list that the folder does not have yet, and write the results of all.

    Parameters
    ----------
    listing : Path
        As for `read_pair_list`.
    at : sequence of (x, y, z), mm RAS
        Locations of Fig. 6; if empty, the five of `FRACTIONS` and a boundary between labels.
    options : ListOptions
        `out` is a new folder, or one that the same command started.
    """
    if len(at) > MOST_PLACES:
        raise InputError(
            f"{len(at)} locations were given with --at; up to {MOST_PLACES} can be compared."
        )
    from napari_shmoareg.datasets import read_pair_list

    listed = read_pair_list(listing, nan=options.nan, channel=options.channel)
    name, network = options.request.network()
    plan = list_plan(listed, options, name, _used) | {"places": [list(point) for point in at]}
    for first, again in repeated(tuple(files[:2]) for files in plan["pairs"]):
        print_note(
            f"Warning: pair {again} is the same as pair {first}; it counts twice, and the spread"
            " is too small."
        )

    def inspected(number: int, report: ProgressCallback) -> InspectedPair:
        return _inspected(listed, number, at, options.request, network, report)

    def check(numbers: Sequence[int], report: ProgressCallback) -> None:
        _check_places(listed, numbers, at, report)

    verb = ("register", "registered")
    with process_pairs(listed, plan, options, InspectedPair.of_row, inspected, verb, check) as (
        done,
        failures,
    ):
        config, routing = network.config.to_dict(), routing_of(name) or ""
        return write_results(options.out, plan, done, failures, config, routing)


def _used(files: PairFiles) -> tuple[Path | None, ...]:
    """The files of a pair that are used: images, and the fixed labels for a boundary."""
    return files.moving, files.fixed, files.fixed_labels


def _inspected(
    listed: PairList,
    number: int,
    at: Sequence[Point],
    request: CommandRequest,
    network: SHMoAReg,
    report: ProgressCallback,
) -> InspectedPair:
    """Read, register and count one pair."""
    parts = registration_phases()

    def phases(phase: str, fraction: float) -> None:
        report(*overall_progress(parts, phase, fraction))

    phases("reading", 0.0)
    moving, fixed, labels = _used(listed.files[number])
    files = file_states((moving, fixed, labels))
    pair = read_pair(str(moving), str(fixed), None, labels, nan=listed.nan, channel=listed.channel)
    return InspectedPair.of(request.register(pair, network, phases), at, files)


def _check_places(
    listed: PairList, numbers: Sequence[int], at: Sequence[Point], report: ProgressCallback
) -> None:
    """Reject locations outside a fixed image; unreadable files are reported when their pair is
    processed.
    """
    for fixed in dict.fromkeys(listed.files[n].fixed for n in numbers) if at else ():
        report(f"checking the locations in {fixed.name}", 0.0)
        try:
            grid = read_image(fixed, nan=listed.nan, channel=listed.channel).grid
        except (InputError, OSError):
            continue
        for point in at:
            try:
                voxel_at(grid, np.array(point))
            except InputError as error:
                raise InputError(
                    f"The location {point} is outside of {fixed}. Locations in mm need fixed"
                    " images in a common space; without --at, locations relative to each image"
                    " are used."
                ) from error


def _places(pair: VolumePair, at: Sequence[Point]) -> tuple[Mapping[str, Any], list[int] | None]:
    """Locations of a pair, and the labels that meet at its boundary."""
    if at:
        return {str(point): point for point in at}, None
    points: dict[str, Any] = dict(five_locations(pair.fixed))
    found = (
        None if pair.fixed_labels is None else boundary_location(pair.fixed_labels, points[CENTRE])
    )
    if found is None:
        return points, None
    return points | {BOUNDARY: found.point}, list(found.labels)


def write_results(
    out: Path,
    plan: Mapping[str, Any],
    pairs: Mapping[int, InspectedPair],
    failures: Mapping[int, str],
    network: Mapping[str, Any],
    routing: str = "",
) -> ExpertLoad:
    """Write tables, figures, captions and summary of the finished pairs."""
    done = list(pairs.values())
    load, places = reduce(add, [p.load for p in done]), reduce(add, [p.places for p in done])
    spread = share_spread([p.load for p in done])
    write_table(_with_spread(load, spread), out / LOADS)
    named = [
        ({"pair": n + 1, "moving": p.moving, "fixed": p.fixed}, p.load) for n, p in pairs.items()
    ]
    write_table(
        [names | row for names, found in named for row in detailed_rows(found)], out / PER_PAIR
    )
    write_table(places.rows(), out / PLACES)
    captions: dict[str, str] = {}
    if len(load):
        captions, figures = _figures(load, places, spread, done, network, routing)
        _write_figures(out, figures, captions, plan, done)
    summary = {key: plan[key] for key in ("weights", "settings", "versions")}
    summary |= {"network": network, "captions": captions, "caution": CAUTION, "routing": routing}
    summary |= list_summary(plan, {n: p.summary() for n, p in pairs.items()}, failures)
    write_json(summary, out / SUMMARY)
    with atomic_write(out / CAPTIONS) as temporary:
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
    """Captions and figures of Fig. 5 and 6."""
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
            detail=_meeting(done) if voxel == BOUNDARY else "",
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
    done: Sequence[InspectedPair],
) -> None:
    titled = {n: (figure, n.replace("_", " "), captions[n]) for n, figure in figures.items()}
    write_figures(out, titled, plan, [(pair.moving, pair.fixed) for pair in done])


def _with_spread(load: ExpertLoad, spread: Mapping[GateId, np.ndarray]) -> list[dict[str, object]]:
    """Rows of the summed load, with the standard deviation over pairs of the share of
    selections.
    """
    gates = [
        (gate, expert) for gate, counts in load.counts.items() for expert in range(len(counts))
    ]
    return [
        row | {"share_sd_over_pairs": float(spread[gate][expert]) if gate in spread else ""}
        for (gate, expert), row in zip(gates, detailed_rows(load), strict=True)
    ]


def _meeting(done: Sequence[InspectedPair]) -> str:
    """Describe the labels that meet at the boundary, and the number of pairs."""
    labels = {tuple(sorted(p.boundary)) for p in done if p.boundary is not None}
    with_boundary = sum(p.boundary is not None for p in done)
    note = f" (labels {' and '.join(map(str, next(iter(labels))))})" if len(labels) == 1 else ""
    note = note or f" (different labels in different pairs: see {SUMMARY})"
    return note + (
        f", in the {with_boundary} of {len(done)} pairs that have such a boundary"
        if with_boundary < len(done)
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
        "expert_places": "Fig. 6: load at single locations",
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
        parts[-1] += "time counts, so the spread over pairs is too small."
    if failures:
        errors = "\n".join(f"- pair {n + 1}: {error}" for n, error in failures.items())
        parts += [
            f"## Failed pairs, not counted\n\n{errors}\n\nThe same command tries these again."
        ]
    return "\n\n".join(parts) + "\n"
