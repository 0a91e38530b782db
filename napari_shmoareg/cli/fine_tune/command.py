"""The command itself: begin a run or go on with it, and tell how it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.cluster import hand_over
from napari_shmoareg.cli.cluster_options import ClusterOptions, SubmitOption
from napari_shmoareg.cli.dataset_options import Kind, parse_window
from napari_shmoareg.cli.errors import CANCELLED
from napari_shmoareg.cli.fine_tune.options import chosen, with_settings
from napari_shmoareg.cli.launching import launch, wants_launch, words_of
from napari_shmoareg.cli.options import Channel, Debug, Device, DeviceOption, Nan, Quiet
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.io.weights import NO_NETWORK, chosen_device, chosen_weights

if TYPE_CHECKING:
    from napari_shmoareg.io.training_run.plan import Plan


@with_settings
def fine_tune(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="Folder of the run: new, or with --resume its own.")
    ],
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATASET]",
            help="A folder of images, a CSV or JSON list of pairs, a Learn2Reg data set, OASIS or BTCV. May be left "
            "out with --resume.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|PATH|none",
            help="Weights to begin with; none begins from nothing, as the paper (Sec. IV-B).",
            show_default="the shipped ones",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="paper|small|tiny",
            help="Network that begins from nothing: the paper's (128 voxels, for a GPU), small (60 voxels, for a CPU).",
            show_default="paper",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME=VALUE",
            help="A part of that network: attention=mha and shmoe_strides=none make Table II's plain layers; repeat "
            "for more.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN, from its last state.")] = False,
    images: Annotated[
        str | None, typer.Option("--images", metavar="PATTERN", help="Which files are images: 'images/*.nii.gz'.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="PATTERN", help="Which are their label maps: 'labels/*.nii.gz'.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="REGEX", help="Finds the subject in a file's name: 'sub-([0-9]+)'."),
    ] = None,
    kind: Annotated[Kind | None, typer.Option("--kind", help="What the data set is.", show_default="auto")] = None,
    window: Annotated[
        Any,
        typer.Option(
            "--window", metavar="LOW,HIGH", parser=parse_window, help="Cut intensities off there, as for CT: -160,240."
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share the pairs of a step: one for each GPU.")
    ] = 1,
    submit: SubmitOption = None,
    cluster_option: ClusterOptions = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each event on stdout, for programs.")
    ] = False,
    with_parent: Annotated[
        bool,
        typer.Option(
            "--with-parent",
            help="Stop at a safe step when standard input closes; its lines 'pause', 'go' and 'stop' are obeyed.",
        ),
    ] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Train weights further on scans of your own, in a run that can be stopped, killed and gone on with.

    What is not given is as in the paper; --from none begins as it does (Sec. IV-B), from nothing.  Scans are looked
    at first, and divided by subject into those that learn, those that judge and those that stay unseen for
    `shmoareg evaluate`.  Ctrl-C stops after the current step and saves; --resume goes on to the same result.
    """
    from napari_shmoareg.cli.fine_tune.running import run_plan
    from napari_shmoareg.cli.fine_tune.telling import of_run, printed, told
    from napari_shmoareg.io.training_run.folder import RunFolder

    finding = {
        "images": images,
        "labels": labels,
        "subject": subject,
        "kind": None if kind is None else kind.value,
        "window": window,
        "nan": nan,
        "channel": channel,
    }
    with (printed if as_json else told)(quiet) as tell:
        found = {k: v for k, v in finding.items() if v is not None}
        plan = _plan(out, resume, dataset, weights, (preset, config or []), found, given, device)
        if cluster_option and submit is None:
            raise InputError("--cluster-option does nothing without --submit.")
        if submit is not None:
            begun = RunFolder(out).told
            sharing = {"processes": processes, "batch": plan.settings.batch}
            typer.echo(hand_over(words_of(ctx), out, submit.value, cluster_option, begun=begun, **sharing))
            return
        if wants_launch(processes):
            with of_run(out):
                code = launch(words_of(ctx), processes, batch=plan.settings.batch, device=device.value)
            raise typer.Exit(code)
        reason = run_plan(out, plan, resume, device.value, with_parent, tell)
    if reason == "stopped":
        raise typer.Exit(CANCELLED)


def _plan(
    out: Path,
    resume: bool,
    dataset: Path | None,
    weights: str | None,
    network: tuple[str | None, list[str]],
    finding: dict[str, Any],
    given: dict[str, Any],
    device: Device,
) -> Plan:
    """The plan of a new run, or that of an old one with what may be given anew."""
    from napari_shmoareg.io.training_run.folder import RunFolder
    from napari_shmoareg.io.training_run.from_nothing import begins_from_nothing, parse_changes, start_of
    from napari_shmoareg.io.training_run.plan import DatasetChoice, is_same_place, make_plan, read_plan

    preset, changes = network[0], parse_changes(network[1])
    settings, run = chosen(given)
    name = None if weights is None else _place(weights)
    if (preset is not None or changes) and name != NO_NETWORK:
        raise InputError("--preset and --config choose a network that begins from nothing: give --from none too.")
    place = None if dataset is None else str(user_path(dataset).absolute())
    if resume:
        if not RunFolder(out).told.is_file():
            raise InputError(f"{out} holds no run. Leave out --resume to begin one there, or name the folder of one.")
        plan = read_plan(RunFolder(out).told)
        begun_from = start_of(plan.weights)
        begun_from = begun_from if begins_from_nothing(plan.weights) else f"'{begun_from}'"
        if name is not None and not is_same_place(name, str(plan.weights["name"])):
            raise InputError(
                f"The run in {out} began from {begun_from}, not from '{weights}'. Leave out --from, or "
                "begin another run in another folder."
            )
        began = plan.weights.get("preset"), plan.weights.get("changes")
        if (preset or began[0], changes or began[1]) != began:
            raise InputError(
                f"The run in {out} began from {begun_from}. Leave out --preset and --config, or begin "
                "another run in another folder."
            )
        return plan.changed(settings, run, finding if place is None else {"path": place, **finding})
    if place is None and RunFolder(out).told.is_file():
        raise InputError(f"{out} holds a run already. Give --resume to go on with it, or another --out and a DATASET.")
    if place is None:
        raise InputError("There is nothing to learn from: give a DATASET (or --resume, to go on with a run).")
    name, _ = chosen_weights(name, chosen_device(device.value))
    return make_plan(name, DatasetChoice(place, **finding), settings, run, preset=preset, changes=changes)


def _place(weights: str) -> str:
    """A file by its whole path, so that the run finds it from everywhere; a shipped name, and "none", as it is."""
    if weights == NO_NETWORK:
        return weights
    where = user_path(weights)
    return str(where.absolute()) if where.is_file() else weights
