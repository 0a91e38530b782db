"""``shmoareg inspect --pairs``: which experts a list of pairs chose, pair by pair.  Fig. 5 and
6.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import typer

from napari_shmoareg.cli.console import CANCELLED, Report, explain, progress, say
from napari_shmoareg.cli.options import Running
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import checksum_of, chosen_device, routing_of
from napari_shmoareg.io.work_folder import begin_work
from napari_shmoareg.registration.progress import placed, registering

if TYPE_CHECKING:
    from napari_shmoareg.cli.inspect_folder import InspectedPair
    from napari_shmoareg.datasets import PairFiles, PairList
    from napari_shmoareg.experts.load import ExpertLoad
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.register import Registration


MOST_PLACES = 5


class Point(NamedTuple):
    """A place in the world of the fixed images, mm RAS."""

    x: float
    y: float
    z: float

    def __str__(self) -> str:
        return f"({', '.join(repr(float(c)).removesuffix('.0') for c in self)})"


def parse_point(text: str) -> Point:
    """``--at``: three numbers, mm RAS."""
    try:
        point = Point(*(float(word) for word in text.split(",")))
    except (TypeError, ValueError):
        raise typer.BadParameter(f"'{text}' is not X,Y,Z: three numbers of mm") from None
    if not all(abs(number) < float("inf") for number in point):
        raise typer.BadParameter(f"'{text}' is not three finite numbers")
    return point


def inspect_pairs(
    listing: Path,
    out: Path,
    running: Running,
    at: Sequence[Point],
    *,
    nan: float | None,
    channel: int | None,
    **how: bool,
) -> ExpertLoad:
    """Register the pairs of a list that the folder does not have yet, and write what all of them
    come to.

    Parameters
    ----------
    listing : Path
        As for `read_pair_list`.
    out : Path
        A new folder, or one that the same command began.
    running : Running
    at : sequence of (x, y, z), mm RAS
        Places of Fig. 6; none: the five of `FRACTIONS`, and a boundary between labels.
    nan, channel
        As for `read_pair`.
    **how : bool
        quiet, debug.

    Raises
    ------
    InputError
        If the list, the weights, a place or the folder is not what it has to be, or no pair could
        be registered.
    """
    if len(at) > MOST_PLACES:
        raise InputError(
            f"{len(at)} places were given with --at; up to {MOST_PLACES} can be compared."
        )
    from napari_shmoareg.datasets import read_pair_list

    listed = read_pair_list(listing, nan=nan, channel=channel)
    name, network = running.network()
    plan = _plan(listed, running, name, at)
    from napari_shmoareg.cli.inspect_folder import (
        PAIRS,
        PLAN,
        check_unchanged,
        read_kept,
        write_results,
    )
    from napari_shmoareg.experts.load import repeated

    begin_work(out / PLAN, plan, "inspection")
    (out / PAIRS).mkdir(exist_ok=True)
    kept = {n: read_kept(out, n) for n in range(len(listed))}
    done, failures = {n: pair for n, pair in kept.items() if pair is not None}, dict[int, str]()
    check_unchanged(out, done)
    for first, again in repeated(tuple(files[:2]) for files in plan["pairs"]):
        say(
            f"Warning: pair {again} is pair {first} once more; it counts twice, and the spread"
            " comes out too small."
        )
    try:
        with progress(how["quiet"]) as report:
            report("loading", 0.0)
            _check_places(listed, [n for n in kept if n not in done], at, report)
            for number in (n for n in kept if n not in done):
                said = _told_in(report, number, len(listed))
                found = _inspected(listed, number, (running, network), at, said, how["debug"])
                _keep(found, out, number, done, failures)
        if not done:
            raise InputError(
                f"None of the {len(listed)} pairs could be registered. The first: {failures[0]}"
            )
        routing = routing_of(name) or ""
        return write_results(
            out, plan, dict(sorted(done.items())), failures, network.config.to_dict(), routing
        )
    except KeyboardInterrupt:
        say(
            f"Stopped after {len(done)} of {len(listed)} pairs; {out} holds them. The same command"
            " goes on."
        )
        raise typer.Exit(CANCELLED) from None


def _plan(listed: PairList, running: Running, name: str, at: Sequence[Point]) -> dict[str, Any]:
    """All that the counts depend on, as it stands in inspect.json."""
    from napari_shmoareg.io.machine import versions

    pairs = [[absolute(path) for path in _used(files)] for files in listed.files]
    return {
        "weights": weights_in_plan(name),
        "settings": settings_in_plan(running, listed),
        "places": [list(point) for point in at],
        "pairs": pairs,
        "versions": versions(),
    }


def weights_in_plan(name: str) -> dict[str, str]:
    """Which weights: others of the same name give other numbers."""
    return {"name": Path(name).name, "sha256": checksum_of(name)}


def settings_in_plan(running: Running, listed: PairList) -> dict[str, Any]:
    """How the pairs of a list are read and registered."""
    return {
        "affine": running.affine.value,
        "contrast": running.contrast.value,
        "diffeomorphic": running.diffeomorphic,
        "size": running.size,
        "device": chosen_device(running.device.value),
        "nan": listed.nan,
        "channel": listed.channel,
    }


def _used(files: PairFiles) -> tuple[Path | None, ...]:
    """The files of a pair that matter here: the labels of the fixed image give a boundary, others
    nothing.
    """
    return files.moving, files.fixed, files.fixed_labels


def absolute(path: Path | None) -> str | None:
    """The path by which a plan knows a file."""
    return None if path is None else str(path.resolve())


def _check_places(
    listed: PairList, numbers: Sequence[int], at: Sequence[Point], report: Report
) -> None:
    """Refuse a place that does not lie in every fixed image; a file that cannot be read is told
    when its turn comes.
    """
    from napari_shmoareg.experts.location import voxel_at
    from napari_shmoareg.io import read_image

    for fixed in dict.fromkeys(listed.files[n].fixed for n in numbers) if at else ():
        report(f"looking for the places in {fixed.name}", 0.0)
        try:
            grid = read_image(fixed, nan=listed.nan, channel=listed.channel).grid
        except (InputError, OSError):
            continue
        for point in at:
            try:
                voxel_at(grid, np.array(point))
            except InputError as error:
                raise InputError(
                    f"The place {point} does not lie in {fixed}. A place in mm means the same only"
                    " where the fixed images share a space; without --at, places relative to each"
                    " image are taken."
                ) from error


def _told_in(report: Report, number: int, count: int) -> Report:
    """From the phases of one pair to the fraction of the list."""
    parts = registering()

    def forward(phase: str, fraction: float) -> None:
        title, done = placed(parts, phase, fraction)
        report(f"pair {number + 1} of {count}, {title}", (number + done) / count)

    return forward


def _inspected(
    listed: PairList,
    number: int,
    using: tuple[Running, SHMoAReg],
    at: Sequence[Point],
    report: Report,
    debug: bool,
) -> InspectedPair | str:
    """One pair registered and counted, or why that failed."""
    from napari_shmoareg.cli.inspect_folder import state_of
    from napari_shmoareg.io import read_pair

    running, network = using
    try:
        report("reading", 0.0)
        moving, fixed, labels = _used(listed.files[number])
        files = state_of((moving, fixed, labels))
        pair = read_pair(
            str(moving), str(fixed), None, labels, nan=listed.nan, channel=listed.channel
        )
        return _counted(running.register(pair, network, report), at, files)
    except Exception as error:
        if debug:
            traceback.print_exception(error, file=sys.stderr)
        return explain(error).removeprefix("Error: ")


def _counted(
    registration: Registration, at: Sequence[Point], files: Mapping[str, list[int]]
) -> InspectedPair:
    from napari_shmoareg.cli.inspect_folder import InspectedPair
    from napari_shmoareg.experts.load import ExpertLoad
    from napari_shmoareg.experts.location import LocationLoad

    points, labels = _places(registration.pair, at)
    shape = registration.network_grid.shape
    about: dict[str, Any] = {
        "network_shape": shape,
        "network_spacing_mm": registration.network_grid.spacing,
    }
    about |= {"passes": registration.settings["passes"]}
    about |= {"choices": registration.choices, "warnings": registration.warnings}
    return InspectedPair(
        moving=registration.pair.moving.name,
        fixed=registration.pair.fixed.name,
        load=ExpertLoad.of(registration.routing, shape),
        places=LocationLoad.of(registration, points),
        points={name: [float(c) for c in point] for name, point in points.items()},
        boundary=labels,
        about=about,
        files=files,
    )


def _places(pair: VolumePair, at: Sequence[Point]) -> tuple[Mapping[str, Any], list[int] | None]:
    """The places of a pair, and which labels meet at its boundary."""
    from napari_shmoareg.experts.location import BOUNDARY, CENTRE, boundary_location, five_locations

    if at:
        return {str(point): point for point in at}, None
    points: dict[str, Any] = dict(five_locations(pair.fixed))
    found = (
        None if pair.fixed_labels is None else boundary_location(pair.fixed_labels, points[CENTRE])
    )
    if found is None:
        return points, None
    return points | {BOUNDARY: found.point}, list(found.labels)


def _keep(
    found: InspectedPair | str,
    out: Path,
    number: int,
    done: dict[int, InspectedPair],
    failures: dict[int, str],
) -> None:
    """On the disk before the next pair begins."""
    from napari_shmoareg.cli.inspect_folder import write_failure, write_pair

    if isinstance(found, str):
        say(f"pair {number + 1} failed: {found}")
        write_failure(found, out, number)
        failures[number] = found
    else:
        write_pair(found, out, number)
        done[number] = found
