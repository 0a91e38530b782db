"""``shmoareg inspect``: which experts made a registration.  Fig. 5."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_shmoareg.cli.options import (
    Affine,
    AffineOption,
    Channel,
    Debug,
    Device,
    DeviceOption,
    DiffeomorphicOption,
    Nan,
    Quiet,
    Size,
    Weights,
)
from napari_shmoareg.cli.progress import progress
from napari_shmoareg.cli.running import Running
from napari_shmoareg.cli.tables import load_tables, show
from napari_shmoareg.engine.phases import registering
from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from napari_shmoareg.analysis.expert_load import ExpertLoad
    from napari_shmoareg.geometry import VolumePair

DEFAULT_OUT = Path("shmoareg-inspect")


def inspect(
    what: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...|MOVING FIXED",
            help="Folders that `register` wrote (the loads of several are added up), or two images to register now.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="A new folder for loads.csv and figures.",
            show_default=f"{DEFAULT_OUT}; one DIR has them already",
        ),
    ] = None,
    weights: Weights = None,
    affine: AffineOption = Affine.auto,
    diffeomorphic: DiffeomorphicOption = None,
    device: DeviceOption = Device.auto,
    size: Size = None,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show which experts were chosen, and how often: per layer, image and direction.

    The share of selections of every attention head (MoA) and of every deformation expert (SHMoE), as a table, as
    CSV and as figures.
    """
    from napari_shmoareg.io.places import check_new_folder

    folders = [path for path in what if (path / "report.json").is_file()]
    pair = len(what) == 2 and not folders
    if len(what) == 1 and what[0].is_file():
        raise InputError(
            f"{what[0]} is one file; a folder that `register` wrote, or two images (MOVING FIXED), were expected."
        )
    if not pair and len(what) > 1 and len(folders) < len(what):
        odd = next(path for path in what if path not in folders)
        raise InputError(f"{odd} is not a registration folder. Give such folders, or two images: MOVING FIXED.")
    place = out if out is not None or (not pair and len(what) == 1) else DEFAULT_OUT
    if place is not None:
        check_new_folder(place)
    if pair:
        from napari_shmoareg.io.images import read_pair

        running = Running(weights, affine, diffeomorphic, device, size)
        load, figures = _registered(lambda: read_pair(what[0], what[1], nan=nan, channel=channel), running, quiet)
    else:
        load, figures = _read(what)
    if place is not None:
        _write(load, figures, place)
    if not quiet:
        if len(load):
            show(*load_tables(load))
        else:
            typer.echo("This network has no experts: neither a mixture of attention heads nor of deformations.")
        typer.echo(f"\n{_where(what[0] if place is None else place, given=place is None, experts=len(load) > 0)}")


def _read(folders: list[Path]) -> tuple[ExpertLoad, dict[str, Figure]]:
    from napari_shmoareg.analysis.expert_figures import load_figure
    from napari_shmoareg.io.summary import read_registration_summary

    load = reduce(add, [read_registration_summary(folder).load for folder in folders])
    return load, {"expert_loads.png": load_figure(load)} if len(load) else {}


def _registered(read: Callable[[], VolumePair], running: Running, quiet: bool) -> tuple[ExpertLoad, dict[str, Figure]]:
    with progress(quiet, registering()) as report:
        report("loading", 0.0)
        from napari_shmoareg.analysis.expert_figures import expert_map_figure, load_figure
        from napari_shmoareg.analysis.expert_load import ExpertLoad

        _, network = running.network()
        report("reading", 0.0)
        registration = running.register(read(), network, report)
        report("drawing", 0.0)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        figures = {"expert_loads.png": load_figure(load)} if len(load) else {}
        if registration.routing.select(part="decoder"):
            figures["expert_maps.png"] = expert_map_figure(registration, kernels=network.config.kernels)
    return load, figures


def _write(load: ExpertLoad, figures: dict[str, Figure], place: Path) -> None:
    from napari_shmoareg.io.atomic import new_folder
    from napari_shmoareg.io.report import write_figure
    from napari_shmoareg.io.summary import write_loads

    with new_folder(place) as folder:
        write_loads(load, folder / "loads.csv")
        for name, figure in figures.items():
            write_figure(figure, folder / name, {"Title": name.removesuffix(".png").replace("_", " ")})


def _where(folder: Path, given: bool, experts: bool) -> str:
    """Where the CSV file and the figures lie, and how to get figures that were not drawn."""
    names = ("experts/loads.csv", "figures/expert_loads.png", "figures/expert_maps.png") if given else ()
    found = [path for path in ([folder / name for name in names] or sorted(folder.iterdir())) if path.exists()]
    drawn = any(path.suffix == ".png" for path in found)
    lines = ["Each block by itself, and the figures:" if drawn else "Each block by itself:"]
    lines += [f"  {path}" for path in found]
    if experts and not drawn:
        lines.append("It was registered without figures; give --out FOLDER to draw the loads there.")
    return "\n".join(lines)
