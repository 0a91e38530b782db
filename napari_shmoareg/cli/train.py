"""``shmoareg fine-tune``: start or resume a training run, and report its progress."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from napari_shmoareg.cli.console import (
    CANCELLED,
    ProgressCallback,
    as_option,
    explain,
    print_note,
    progress,
)
from napari_shmoareg.cli.jobs import ClusterOptions, SubmitOption, submit_command
from napari_shmoareg.cli.launch import command_words, launch, needs_launch
from napari_shmoareg.cli.options import (
    Channel,
    Debug,
    DeviceOption,
    Kind,
    Nan,
    Quiet,
    parse_window,
    settings_in,
    with_settings,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import NO_NETWORK, choose_device, choose_weights
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.training.settings import FineTuning, RunSettings

if TYPE_CHECKING:
    from napari_shmoareg.training.plan import Plan


Event = Mapping[str, Any]
EventCallback = Callable[[Event], None]
SHOWN = 12  # scans in the table of the check-up; checkup.csv has all


@contextmanager
def report_run(run: Path) -> Iterator[None]:
    """Around processes that learn for this one: an error that ends them is told with what their run
    left.
    """
    try:
        yield
    except InputError as error:
        raise GroupFailedError(error.text_with(as_option), run) from error


class GroupFailedError(InputError):
    """Processes that learned together ended by an error.

    Attributes
    ----------
    run : Path
    """

    def __init__(self, text: str, run: Path) -> None:
        super().__init__(text)
        self.run = run


@contextmanager
def json_output(quiet: bool) -> Iterator[EventCallback]:
    """Events as JSON on stdout, one a line; what ends the run by an error is told too.

    Parameters
    ----------
    quiet : bool
        Makes no difference.
    """
    last: dict[str, Any] = {"step": 0, "run": None}

    def emit(event: Event) -> None:
        last.update({name: event[name] for name in last if name in event})
        typer.echo(json.dumps(event, allow_nan=False))  # flushes

    try:
        yield emit
    except (typer.Exit, typer.Abort):
        raise
    except BaseException as error:
        text = (
            str(error)
            if isinstance(error, KeyboardInterrupt)
            else explain(error).removeprefix("Error: ")
        )
        if isinstance(error, GroupFailedError):
            last = _saved_progress(error.run)
        now = {"time": round(time.time(), 3)}
        emit({"event": "error", **now, "text": text})
        emit(
            {
                "event": "end",
                **now,
                "reason": "failed",
                "step": last["step"],
                "weights": _weights(last["run"]),
            }
        )
        raise


def _saved_progress(run: Path) -> dict[str, Any]:
    """The step that a run saved, whoever learned in it."""
    from napari_shmoareg.training.run import RunFolder, saved_step

    return {"step": saved_step(RunFolder(run)) or 0, "run": str(run)}


def _weights(run: str | None) -> str | None:
    """The weights that a failed run left."""
    from napari_shmoareg.training.run import RunFolder

    found = None if run is None else RunFolder(run).weights
    return None if found is None else str(found)


@contextmanager
def console_output(quiet: bool) -> Iterator[EventCallback]:
    """Events as lines to read; progress on stderr.

    Parameters
    ----------
    quiet : bool
        Warnings only.
    """
    with ExitStack() as bars:
        yield EventPrinter(quiet, bars).print_event


class EventPrinter:
    """Says what a run tells.

    Parameters
    ----------
    quiet : bool
    bars : ExitStack
        Holds the progress bar that is shown.
    """

    def __init__(self, quiet: bool, bars: ExitStack) -> None:
        self._quiet, self._bars = quiet, bars
        self._report: ProgressCallback | None = None
        self._doing = ""
        self._scans: list[Event] = []
        self._about: Event = {}
        self._alarmed: set[str] = set()
        self._skipped: set[str] = set()
        self._done = 0.0
        self._best: int | None = None

    def print_event(self, event: Event) -> None:
        """Say one event; most say nothing."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _print(self, text: str) -> None:
        if not self._quiet:
            typer.echo(text)

    def _bar(self, doing: str, text: str, done: float) -> None:
        """Move the bar; a new one for each kind of work, as a bar never runs back."""
        if doing != self._doing:
            self._bars.close()
            self._report = self._bars.enter_context(progress(self._quiet))
            self._doing = doing
        if self._report is not None:
            self._report(text, done)

    def _on_phase(self, event: Event) -> None:
        name = event["phase"]
        if name in ("checkup", "reading", "preparing"):
            words = {
                "checkup": f"looking at the scans, {event['text']}",
                "reading": "reading the data set",
            }
            self._bar(name, words.get(name, "preparing"), event["done"])
        elif name == "validating":
            self._bar("training", "fine-tuning, validating", self._done)

    def _on_scan(self, event: Event) -> None:
        self._scans.append(event)
        if event["skipped"]:
            print_note(f"Warning: {event['name']} is left out: {event['skipped']}")

    def _on_begin(self, event: Event) -> None:
        self._bars.close()
        self._about, self._best = event, (event["best"] or {}).get("step")
        # those are said
        for problem in (words for words in event["problems"] if not words.startswith("Left out: ")):
            print_note(f"Warning: {problem}")
        if not self._quiet:
            self._show_scans(event)
        if event["weights"] == NO_NETWORK:
            self._print(f"Begins from {event['begins_from']}: {event['steps']} steps.")
        scans, pairs, memory = event["scans"], event["pairs"], event["memory"]
        validation = (
            f"{scans['validation']} judge (by {event['validated']} of {pairs['validation']} pairs)"
        )
        self._print(
            f"{scans['train']} scans learn ({pairs['train']} pairs), {validation}, {scans['test']} stay"
            " unseen."
        )
        grid = "x".join(str(n) for n in event["shape"])
        self._print(
            f"A step on the grid {grid} needs about {memory['need'] / 2**30:.1f} GiB of memory on"
            f" {event['device']}; {memory['free'] / 2**30:.1f} GiB are free."
        )
        precision = event["bfloat16"]
        self._print(
            f"Computing in {'bfloat16' if precision['used'] else 'float32'}: {precision['why']}."
        )
        if event["resumed_at"] is not None:
            self._print(f"Going on after step {event['resumed_at']} of {event['steps']}.")

    def _show_scans(self, event: Event) -> None:
        from napari_shmoareg.cli.console import show

        used = [scan for scan in self._scans if not scan["skipped"]]
        show(
            checkup_table(
                used[:SHOWN], f"Check-up: {len(used)} of {len(self._scans)} scans can be used"
            )
        )
        if len(used) > SHOWN:
            self._print(f"... and {len(used) - SHOWN} more in {event['run']}/checkup.csv")

    def _on_step(self, event: Event) -> None:
        self._done = event["step"] / event["steps"]
        self._bar("training", f"fine-tuning, loss {event['total']:.5f}", self._done)

    def _on_load(self, event: Event) -> None:
        now = {alarm["place"]: alarm["text"] for alarm in event["alarms"]}
        for gate in now.keys() - self._alarmed:
            print_note(f"Warning: at step {event['step']}: {now[gate]}")
        self._alarmed = set(now)

    def _on_validation(self, event: Event) -> None:
        self._best = event["step"] if event["best"] else self._best
        dice = "" if event["dice"] is None else f"Dice {event['dice']:.4f}, "
        best = ", the best so far" if event["best"] and event["step"] else ""
        when = f"after step {event['step']}" if event["step"] else "before the first step"
        figures = f"{dice}correlation {event['ncc']:.4f}, folding {event['folding_percent']:.3f} %"
        self._print(f"Validation {when}: {figures}{best}")

    def _on_skipped(self, event: Event) -> None:
        if event["pair"] not in self._skipped:
            self._skipped.add(event["pair"])
            print_note(f"Warning: the pair {event['pair']} is left out: {event['why']}")

    def _on_paused(self, event: Event) -> None:
        print_note(
            f"Paused after step {event['step']}; `shmoareg runs go"
            f" {shlex.quote(str(self._about['run']))}` goes on."
        )

    def _on_resumed(self, event: Event) -> None:
        print_note("Going on.")

    def _on_end(self, event: Event) -> None:
        self._bars.close()
        steps = self._about.get("steps")
        run = shlex.quote(str(self._about["run"])) if self._about else "RUN"
        of = f" of {steps}" if steps else ""
        if event["reason"] == "stopped":
            print_note(
                f"Stopped after step {event['step']}{of}. Go on with: shmoareg fine-tune --out"
                f" {run} --resume"
            )
        elif event["reason"] == "minutes":
            self._print(
                f"The time is over after step {event['step']}{of}. Go on with: shmoareg fine-tune"
                f" --out {run} --resume --minutes MORE"
            )
        else:
            self._print(f"{event['step']} steps are done.")
        if event.get("best_step") == 0 < event["step"] and event["weights"] is not None:
            self._print(
                f"Nothing learned was better than the start, by validation: {event['weights']}"
                " holds the weights that the run began with. Those of the last step are in"
                f" {self._about['run']}/last.safetensors."
            )
        elif event["weights"] is not None:
            weights = shlex.quote(str(event["weights"]))
            self._print(
                f"Weights: {weights}\nUse them: shmoareg register MOVING FIXED --weights {weights}"
                " --out RESULT"
            )
            if self._about.get("pairs", {}).get("test"):
                self._print(
                    f"Judge them on the unseen scans: shmoareg evaluate --run {run} --out TABLE"
                )


# what an overlap is: of labels, or of images where there are none
OVERLAP_NAMES = {"dice": "Dice", "ncc": "correlation"}


def checkup_table(scans: Sequence[Mapping[str, Any]], title: str) -> Table:
    """One line per scan: where its voxels stand, its values, its labels, how well it lies on its
    partner.

    Parameters
    ----------
    scans : sequence of mapping
        Events "scan".
    title : str
    """
    table = Table(title=title, box=None, pad_edge=False, header_style="bold")
    with_subjects = any(scan["subject"] != scan["name"] for scan in scans)
    for head in ("scan", *(["subject"] if with_subjects else []), "shape", "mm", "axes"):
        table.add_column(head, no_wrap=True)
    for head in ("range", "labels", "overlap"):
        table.add_column(head, justify="right", no_wrap=True)
    for scan in scans:
        table.add_row(
            scan["name"],
            *([scan["subject"]] if with_subjects else []),
            "x".join(str(n) for n in scan["shape"] or ()),
            "x".join(f"{mm:.3g}" for mm in scan["spacing"] or ()),
            scan["orientation"] or "",
            "" if scan["low"] is None else f"{scan['low']:.4g} to {scan['high']:.4g}",
            "" if scan["labels"] is None else _labels(scan["labels"]),
            (
                ""
                if scan["overlap"] is None
                else f"{OVERLAP_NAMES[scan['overlap_kind']]} {scan['overlap']:.2f}"
            ),
        )
    return table


def _labels(values: Sequence[int]) -> str:
    return ",".join(str(v) for v in values) if len(values) <= 4 else f"{len(values)} labels"


@with_settings
def fine_tune(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="RUN", help="Folder of the run: new, or with --resume its own."
        ),
    ],
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATASET]",
            help=(
                "A folder of images, a CSV or JSON list of pairs, a Learn2Reg data set, OASIS or"
                " BTCV. May be left "
                "out with --resume."
            ),
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
            help=(
                "Network that begins from nothing: the paper's (128 voxels, for a GPU), small (60"
                " voxels, for a CPU)."
            ),
            show_default="paper",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME=VALUE",
            help=(
                "A part of that network: attention=mha and shmoe_strides=none make Table II's plain"
                " layers; repeat "
                "for more."
            ),
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in RUN, from its last state.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            "--images", metavar="PATTERN", help="Which files are images: 'images/*.nii.gz'."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="PATTERN", help="Which are their label maps: 'labels/*.nii.gz'."
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject", metavar="REGEX", help="Finds the subject in a file's name: 'sub-([0-9]+)'."
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What the data set is.", show_default="auto")
    ] = None,
    window: Annotated[
        Any,
        typer.Option(
            "--window",
            metavar="LOW,HIGH",
            parser=parse_window,
            help="Cut intensities off there, as for CT: -160,240.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    processes: Annotated[
        int,
        typer.Option(
            "--processes", min=1, help="Processes that share the pairs of a step: one for each GPU."
        ),
    ] = 1,
    submit: SubmitOption = None,
    cluster_option: ClusterOptions = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object for each event on stdout, for programs."
        ),
    ] = False,
    with_parent: Annotated[
        bool,
        typer.Option(
            "--with-parent",
            help=(
                "Stop at a safe step when standard input closes; its lines 'pause', 'go' and 'stop'"
                " are obeyed."
            ),
        ),
    ] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Train weights further on scans of your own, in a run that can be stopped, killed and gone on
    with.

    What is not given is as in the paper; --from none begins as it does (Sec. IV-B), from nothing.
    Scans are looked at first, and divided by subject into those that learn, those that judge and
    those that stay unseen for `shmoareg evaluate`.  Ctrl-C stops after the current step and saves;
    --resume goes on to the same result."""
    from napari_shmoareg.cli.training_process import run_plan
    from napari_shmoareg.training.run import RunFolder

    reading = {
        "images": images,
        "labels": labels,
        "subject": subject,
        "kind": None if kind is None else kind.value,
        "window": window,
        "nan": nan,
        "channel": channel,
    }
    with (json_output if as_json else console_output)(quiet) as emit:
        options = {k: v for k, v in reading.items() if v is not None}
        plan = _plan(out, resume, dataset, weights, (preset, config or []), options, given, device)
        if cluster_option and submit is None:
            raise InputError("--cluster-option does nothing without --submit.")
        if submit is not None:
            started_file = RunFolder(out).run_json
            sharing = {"processes": processes, "batch": plan.settings.batch}
            typer.echo(
                submit_command(
                    command_words(ctx),
                    out,
                    submit.value,
                    cluster_option,
                    started_file=started_file,
                    **sharing,
                )
            )
            return
        if needs_launch(processes):
            with report_run(out):
                code = launch(
                    command_words(ctx), processes, batch=plan.settings.batch, device=device
                )
            raise typer.Exit(code)
        reason = run_plan(out, plan, resume, device, with_parent, emit)
    if reason == "stopped":
        raise typer.Exit(CANCELLED)


def _plan(
    out: Path,
    resume: bool,
    dataset: Path | None,
    weights: str | None,
    network: tuple[str | None, list[str]],
    options: dict[str, Any],
    given: dict[str, Any],
    device: str,
) -> Plan:
    """The plan of a new run, or that of an old one with what may be given anew."""
    from napari_shmoareg.datasets.dataset import DatasetChoice
    from napari_shmoareg.training.plan import (
        describe_start,
        is_same_path,
        make_plan,
        parse_changes,
        read_plan,
        starts_from_scratch,
    )
    from napari_shmoareg.training.run import RunFolder

    preset, changes = network[0], parse_changes(network[1])
    settings, run = settings_in(given, FineTuning), settings_in(given, RunSettings)
    name = None if weights is None else _weights_path(weights)
    if (preset is not None or changes) and name != NO_NETWORK:
        raise InputError(
            "--preset and --config choose a network that begins from nothing: give --from none too."
        )
    path = None if dataset is None else str(user_path(dataset).absolute())
    if resume:
        if not RunFolder(out).run_json.is_file():
            raise InputError(
                f"{out} holds no run. Leave out --resume to begin one there, or name the folder of"
                " one."
            )
        plan = read_plan(RunFolder(out).run_json)
        start = describe_start(plan.weights)
        start = start if starts_from_scratch(plan.weights) else f"'{start}'"
        if name is not None and not is_same_path(name, str(plan.weights["name"])):
            raise InputError(
                f"The run in {out} began from {start}, not from '{weights}'. Leave out --from,"
                " or begin another run in another folder."
            )
        network_of_run = plan.weights.get("preset"), plan.weights.get("changes")
        if (preset or network_of_run[0], changes or network_of_run[1]) != network_of_run:
            raise InputError(
                f"The run in {out} began from {start}. Leave out --preset and --config, or"
                " begin another run in another folder."
            )
        return plan.changed(settings, run, options if path is None else {"path": path, **options})
    if path is None and RunFolder(out).run_json.is_file():
        raise InputError(
            f"{out} holds a run already. Give --resume to go on with it, or another --out and a"
            " DATASET."
        )
    if path is None:
        raise InputError(
            "There is nothing to learn from: give a DATASET (or --resume, to go on with a run)."
        )
    name, _ = choose_weights(name, choose_device(device))
    return make_plan(
        name, DatasetChoice(path, **options), settings, run, preset=preset, changes=changes
    )


def _weights_path(weights: str) -> str:
    """A file by its whole path, so that the run finds it from everywhere; a shipped name, and
    "none", as it is.
    """
    if weights == NO_NETWORK:
        return weights
    path = user_path(weights)
    return str(path.absolute()) if path.is_file() else weights
