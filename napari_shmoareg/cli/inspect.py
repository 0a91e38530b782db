"""``shmoareg inspect``: which experts made a registration.  Fig. 5."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from napari_shmoareg.cli.console import ProgressCallback, load_tables, print_note, progress, show
from napari_shmoareg.cli.options import (
    REGISTRATION,
    Channel,
    CommandRequest,
    Debug,
    Nan,
    Passes,
    Quiet,
    Weights,
    with_settings,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.registration.progress import registration_phases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from napari_shmoareg.cli.inspect_controls import ControlOptions
    from napari_shmoareg.experts.load import ExpertLoad
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.replay import Replay


DEFAULT_OUT, CONTROLS_OUT = Path("shmoareg-inspect"), Path("shmoareg-controls")


class Point(NamedTuple):
    """A location in the world space of the fixed images, mm RAS."""

    x: float
    y: float
    z: float

    def __str__(self) -> str:
        return f"({', '.join(repr(float(c)).removesuffix('.0') for c in self)})"


def parse_point(text: str) -> Point:
    """Parse ``--at``: three numbers, mm RAS."""
    try:
        point = Point(*(float(word) for word in text.split(",")))
    except (TypeError, ValueError):
        raise typer.BadParameter(f"'{text}' is not X,Y,Z: three numbers of mm") from None
    if not all(abs(number) < float("inf") for number in point):
        raise typer.BadParameter(f"'{text}' is not three finite numbers")
    return point


Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="DIR...|MOVING FIXED",
        help=(
            "Folders that `register` wrote (the loads of several are summed), or two images to"
            " register now."
        ),
        show_default=False,
    ),
]
PairsOption = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        metavar="LIST.csv",
        help=(
            "Register all pairs of a list instead: files in the columns moving, fixed and, if"
            " there are labels, fixed_labels. An unfinished list is continued."
        ),
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help=(
            "A new folder for tables and figures; with --pairs also one that the same command"
            " started."
        ),
        show_default=(
            f"{DEFAULT_OUT}; none for a single DIR, which has them; with --controls {CONTROLS_OUT}"
        ),
    ),
]
AtOption = Annotated[
    list[Point] | None,
    typer.Option(
        "--at",
        metavar="X,Y,Z",
        parser=parse_point,
        help="With --pairs: a location at which to count choices (mm, RAS, in every fixed"
        " image); up to five times.",
        show_default="five locations relative to each fixed image, and a boundary between its"
        " labels",
    ),
]
ControlsOption = Annotated[
    bool,
    typer.Option(
        "--controls",
        help=(
            "Test instead whether the choice matters: run the network again with experts"
            " shuffled, random, fixed, chosen by an untrained gate, with attention off and more,"
            " and measure the loss of accuracy (for one DIR, one pair or --pairs; about twenty"
            " runs of the network per pair)."
        ),
    ),
]
PassesOption = Annotated[
    Passes,
    typer.Option(
        "--passes", help="With --controls: change all passes of the network, or only the last."
    ),
]
CardOption = Annotated[
    Path | None,
    typer.Option(
        "--card",
        metavar="NEW.safetensors",
        help="With --controls: write a copy of the weights with the scores on its card.",
    ),
]
ROLES = ("moving", "fixed")


@partial(
    with_settings,
    settings=REGISTRATION,
    only=("affine", "contrast", "diffeomorphic", "device", "size"),
)
def inspect(
    what: Inputs = None,
    pairs: PairsOption = None,
    out: OutOption = None,
    at: AtOption = None,
    controls: ControlsOption = False,
    passes: PassesOption = Passes.all,
    card: CardOption = None,
    weights: Weights = None,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Show which experts were chosen, and how often: per layer, image and direction.

    The share of selections of every attention head (MoA) and of every deformation expert (SHMoE),
    as a table, as CSV and as figures. With --pairs: over a whole list, with the spread over pairs,
    and the experts chosen at single locations. With --controls: the cost of other choices, as
    controls.csv and a figure. A pair that fails is reported and left out; the exit code is 1 only
    if all fail. Ctrl-C keeps the finished pairs; the same command continues and tries failed pairs
    again.
    """
    request = CommandRequest.of(weights, given)
    reading = (request, nan, channel, quiet, debug)
    if not controls and (card is not None or passes is not Passes.all):
        raise InputError(
            f"{'--card' if card is not None else '--passes'} would have no effect without"
            " --controls."
        )
    if pairs is not None and what:
        raise InputError(
            f"--pairs {'measures' if controls else 'registers'} the pairs of {pairs}; do not"
            f" give a folder or an image ({what[0]}) too."
        )
    if controls and at:
        raise InputError(
            "--at gives locations at which to count choices, which --controls does not do: leave"
            " out one of them."
        )
    if controls:
        from napari_shmoareg.cli.inspect_controls import ControlOptions

        options = ControlOptions(out or CONTROLS_OUT, *reading, card=card, passes=passes.value)
        _control(what or [], pairs, options)
    elif pairs is not None:
        from napari_shmoareg.cli.inspect_pairs import inspect_pairs
        from napari_shmoareg.cli.pair_list import ListOptions

        load = inspect_pairs(pairs, at or (), ListOptions(out or DEFAULT_OUT, *reading))
        if not quiet:
            _print_loads(load)
            files = sorted((out or DEFAULT_OUT).glob("*.*"))
            typer.echo("\n".join(["\nSums over all pairs:", *(f"  {path}" for path in files)]))
    elif not what:
        raise typer.BadParameter(
            "Give folders that `register` wrote, two images (MOVING FIXED), or --pairs LIST.csv"
        )
    elif at:
        raise InputError("--at would have no effect without --pairs.")
    else:
        _inspect(what, out, request, nan, channel, quiet)


def _inspect(
    what: Sequence[Path],
    out: Path | None,
    request: CommandRequest,
    nan: float | None,
    channel: int | None,
    quiet: bool,
) -> None:
    """Inspect registration folders, or register two images and inspect the result."""
    from napari_shmoareg.io.files import check_new_folder

    folders = [path for path in what if (path / "report.json").is_file()]
    pair = len(what) == 2 and not folders
    if len(what) == 1 and what[0].is_file():
        raise InputError(
            f"{what[0]} is a single file; a folder that `register` wrote, or two images (MOVING"
            " FIXED), were expected."
        )
    if not pair and len(what) > 1 and len(folders) < len(what):
        invalid = next(path for path in what if path not in folders)
        raise InputError(
            f"{invalid} is not a registration folder. Give registration folders, or two images:"
            " MOVING FIXED."
        )
    folder = out if out is not None or (not pair and len(what) == 1) else DEFAULT_OUT
    if folder is not None:
        check_new_folder(folder)
    if pair:
        from napari_shmoareg.io import read_pair

        found = _register_pair(
            lambda: read_pair(what[0], what[1], nan=nan, channel=channel), request, quiet
        )
    else:
        found = _read_folders(what)
    if folder is not None:
        _write(found, folder)
    if not quiet:
        _print_loads(found.load)
        where = what[0] if folder is None else folder
        typer.echo("\n" + _list_files(where, given=folder is None, experts=len(found.load) > 0))


def _control(what: Sequence[Path], pairs: Path | None, options: ControlOptions) -> None:
    """Run the controls on a list, a registration folder, or two images."""
    from napari_shmoareg.cli.inspect_controls import control_one, control_pairs

    if pairs is not None:
        control_pairs(pairs, options)
    elif len(what) == 2 and not any((path / "report.json").is_file() for path in what):

        def align_pair(network: SHMoAReg, report: ProgressCallback) -> Replay:
            from napari_shmoareg.io import read_pair

            report("reading", 0.0)
            return options.request.replay(
                read_pair(*what, nan=options.nan, channel=options.channel), network, report
            )

        control_one(align_pair, options)
    elif len(what) == 1 and what[0].is_dir():
        from napari_shmoareg.io import read_registration
        from napari_shmoareg.io.model_card import NO_NETWORK

        scene = read_registration(what[0])
        if scene.weights == NO_NETWORK:
            raise InputError(
                f"{what[0]} was registered without a network, so it has no experts to control."
            )

        def replay(network: SHMoAReg, report: ProgressCallback) -> Replay:
            from napari_shmoareg.registration.replay import Replay

            report("deforming", 0.05)
            return Replay.of(
                scene.pair, network, affine=scene.affine, settings=scene.report["settings"]
            )

        weights = options.request.weights
        weights = scene.weights if weights == "auto" else weights
        request = replace(options.request, weights=weights)
        control_one(replay, replace(options, request=request))
    else:
        raise typer.BadParameter(
            "With --controls give one DIR that `register` wrote, two images, or --pairs LIST.csv"
        )


class _Found(NamedTuple):
    """Loads, figures by file name, and metadata of the figures."""

    load: ExpertLoad
    figures: dict[str, Figure]
    about: dict[str, str]


def _print_loads(load: ExpertLoad) -> None:
    if len(load):
        show(*load_tables(load))
    else:
        typer.echo(
            "This network has no experts: neither a mixture of attention heads nor of deformations."
        )


def _read_folders(folders: Sequence[Path]) -> _Found:
    from napari_shmoareg.experts.load import repeated, share_spread
    from napari_shmoareg.figures.experts import load_caption, load_figure
    from napari_shmoareg.io.model_card import routing_of
    from napari_shmoareg.io.report import read_registration_summary

    for first, _ in repeated(folder.resolve() for folder in folders):
        print_note(
            f"Warning: {folders[first - 1]} is given more than once; it is counted each time,"
            " and the spread is too small."
        )
    read = [read_registration_summary(folder) for folder in folders]
    reports = [summary.report for summary in read]
    load = reduce(add, [summary.load for summary in read])
    names = {str(report.get("weights")) for report in reports}
    routing = (routing_of(names.pop()) or "") if len(names) == 1 else ""
    caption = load_caption(load, len(read), [_passes(report) for report in reports], routing)
    about = {
        "Weights": "; ".join(dict.fromkeys(str(report.get("weights")) for report in reports)),
        "Pair": "; ".join(
            _names(*((report["pair"][role] or {}).get("name") for role in ROLES))
            for report in reports
        ),
        "Settings": "; ".join(
            dict.fromkeys(json.dumps(report.get("settings")) for report in reports)
        ),
    }
    if not len(load):
        return _Found(load, {}, about)
    spread = share_spread([summary.load for summary in read])
    return _Found(
        load, {"expert_loads.png": load_figure(load, spread=spread, caption=caption)}, about
    )


def _passes(report: Mapping[str, Any]) -> int | None:
    """Number of passes of the network; None in a folder of a version that did not save it."""
    passes = (report.get("settings") or {}).get("passes")
    return None if passes is None else len(passes)


def _register_pair(read: Callable[[], VolumePair], request: CommandRequest, quiet: bool) -> _Found:
    with progress(quiet, registration_phases()) as report:
        report("loading", 0.0)
        from napari_shmoareg.experts.load import ExpertLoad
        from napari_shmoareg.figures.experts import expert_map_figure, load_caption, load_figure
        from napari_shmoareg.io.model_card import routing_of

        name, network = request.network()
        report("reading", 0.0)
        registration = request.register(read(), network, report)
        report("drawing", 0.0)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        caption = load_caption(
            load, 1, [len(registration.settings["passes"])], routing_of(name) or ""
        )
        figures = {"expert_loads.png": load_figure(load, caption=caption)} if len(load) else {}
        if registration.routing.select(part="decoder"):
            figures["expert_maps.png"] = expert_map_figure(
                registration, kernels=network.config.kernels
            )
    pair = registration.pair
    about = {"Weights": name, "Pair": _names(pair.moving.name, pair.fixed.name)}
    return _Found(
        load, figures, about | {"Settings": json.dumps(registration.settings, default=str)}
    )


def _names(moving: object, fixed: object) -> str:
    return f"moving {moving}, fixed {fixed}"


def _write(found: _Found, out: Path) -> None:
    from napari_shmoareg.io.files import new_folder, write_figure
    from napari_shmoareg.io.machine import versions
    from napari_shmoareg.io.report import write_loads

    with new_folder(out) as folder:
        write_loads(found.load, folder / "loads.csv")
        for name, figure in found.figures.items():
            about = {
                "Title": name.removesuffix(".png").replace("_", " "),
                "Software": f"shmoareg {versions()['shmoareg']}",
            }
            write_figure(figure, folder / name, about | found.about)


def _list_files(folder: Path, given: bool, experts: bool) -> str:
    """List the CSV file and the figures, and say how to get missing figures."""
    names = (
        ("experts/loads.csv", "figures/expert_loads.png", "figures/expert_maps.png")
        if given
        else ()
    )
    found = [
        path
        for path in [folder / name for name in names] or sorted(folder.iterdir())
        if path.exists()
    ]
    drawn = any(path.suffix == ".png" for path in found)
    lines = ["Loads of each block, and figures:" if drawn else "Loads of each block:"]
    lines += [f"  {path}" for path in found]
    if experts and not drawn:
        lines.append(
            "It was registered without figures; give --out FOLDER to plot the loads there."
        )
    return "\n".join(lines)
