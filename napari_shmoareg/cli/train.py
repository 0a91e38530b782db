"""``shmoareg fine-tune``: start or resume a training run."""

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
SHOWN = 12  # scans in the printed table; checkup.csv has all


@contextmanager
def report_run(run: Path) -> Iterator[None]:
    """Convert errors of launched training processes, so that they are reported with their run."""
    try:
        yield
    except InputError as error:
        raise GroupFailedError(error.text_with(as_option), run) from error


class GroupFailedError(InputError):
    """Training in several processes ended with an error.

    Attributes
    ----------
    run : Path
    """

    def __init__(self, text: str, run: Path) -> None:
        super().__init__(text)
        self.run = run


@contextmanager
def json_output(quiet: bool) -> Iterator[EventCallback]:
    """Print events as JSON lines on stdout, including the error that ends a run.

    Parameters
    ----------
    quiet : bool
        Ignored.
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
    """The saved step of a run."""
    from napari_shmoareg.training.run_folder import RunFolder, saved_step

    return {"step": saved_step(RunFolder(run)) or 0, "run": str(run)}


def _weights(run: str | None) -> str | None:
    """The weights of a failed run."""
    from napari_shmoareg.training.run_folder import RunFolder

    found = None if run is None else RunFolder(run).weights
    return None if found is None else str(found)


@contextmanager
def console_output(quiet: bool) -> Iterator[EventCallback]:
    """Print events as text, with progress on stderr.

    Parameters
    ----------
    quiet : bool
        Print warnings only.
    """
    with ExitStack() as bars:
        yield EventPrinter(quiet, bars).print_event


class EventPrinter:
    """Prints the events of a run.

    Parameters
    ----------
    quiet : bool
    bars : ExitStack
        Holds the current progress bar.
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
        """Print one event, if it has a handler."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _print(self, text: str) -> None:
        if not self._quiet:
            typer.echo(text)

    def _bar(self, doing: str, text: str, done: float) -> None:
        """Update the bar; each kind of work has a new one, because a bar never goes back."""
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
                "checkup": f"checking the scans, {event['text']}",
                "reading": "reading the data set",
            }
            self._bar(name, words.get(name, "preparing"), event["done"])
        elif name == "validating":
            self._bar("training", f"{self._doing_text}, validating", self._done)

    @property
    def _doing_text(self) -> str:
        return "pretraining" if self._about.get("drawn_from") else "fine-tuning"

    def _on_scan(self, event: Event) -> None:
        self._scans.append(event)
        if event["skipped"]:
            print_note(f"Warning: {event['name']} is left out: {event['skipped']}")

    def _on_begin(self, event: Event) -> None:
        self._bars.close()
        self._about, self._best = event, (event["best"] or {}).get("step")
        # those were printed
        for problem in (words for words in event["problems"] if not words.startswith("Left out: ")):
            print_note(f"Warning: {problem}")
        if not self._quiet and self._scans:
            self._show_scans(event)
        if event["weights"] == NO_NETWORK:
            self._print(f"Starting from {event['begins_from']}: {event['steps']} steps.")
        scans, pairs, memory = event["scans"], event["pairs"], event["memory"]
        if event["drawn_from"]:
            held_out = f"; {scans['validation']} of the label maps" if scans["validation"] else ""
            self._print(
                f"Training on synthetic pairs of {event['drawn_from']}, validation on"
                f" {event['validated']} others{held_out}."
            )
        else:
            validation = (
                f"{scans['validation']} for validation ({event['validated']} of"
                f" {pairs['validation']} pairs)"
            )
            self._print(
                f"{scans['train']} scans for training ({pairs['train']} pairs), {validation},"
                f" {scans['test']} for testing."
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
            self._print(f"Resuming after step {event['resumed_at']} of {event['steps']}.")

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
        self._bar("training", f"{self._doing_text}, loss {event['total']:.5f}", self._done)

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
        kinds = [name.removesuffix("_before") for name in event if name.endswith("_before")]
        kinds = [
            f"; {kind}: Dice {event[f'{kind}_before']:.4f} to {event[f'{kind}_after']:.4f}"
            for kind in kinds
        ]
        self._print(f"Validation {when}: {figures}{''.join(kinds)}{best}")

    def _on_skipped(self, event: Event) -> None:
        if event["pair"] not in self._skipped:
            self._skipped.add(event["pair"])
            print_note(f"Warning: the pair {event['pair']} is left out: {event['why']}")

    def _on_paused(self, event: Event) -> None:
        print_note(
            f"Paused after step {event['step']}; `shmoareg runs go"
            f" {shlex.quote(str(self._about['run']))}` continues."
        )

    def _on_resumed(self, event: Event) -> None:
        print_note("Continuing.")

    def _on_end(self, event: Event) -> None:
        self._bars.close()
        steps = self._about.get("steps")
        again = resume_hint(self._about.get("run"), bool(self._about.get("drawn_from")))
        of = f" of {steps}" if steps else ""
        if event["reason"] == "stopped":
            print_note(f"Stopped after step {event['step']}{of}. {again}")
        elif event["reason"] == "minutes":
            more = " --minutes MORE" if again.endswith("--resume") else ""
            self._print(f"The time limit was reached after step {event['step']}{of}. {again}{more}")
        else:
            self._print(f"{event['step']} steps are done.")
        if event.get("best_step") == 0 < event["step"] and is_best(event["weights"]):
            self._print(
                "By validation, nothing was better than the initial weights, which are in"
                f" {event['weights']}. Those of the last step are in"
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
                    "Evaluate them on the test scans: shmoareg evaluate --run"
                    f" {shlex.quote(str(self._about['run']))} --out TABLE"
                )


def is_best(weights: str | None) -> bool:
    """Whether weights of a run are those that were best by validation."""
    return weights is not None and Path(weights).name.startswith("best")


def resume_hint(run: object, pretrains: bool) -> str:
    """How a run is continued, in words."""
    if pretrains:
        return "The same `shmoareg pretrain` command continues."
    where = "RUN" if run is None else shlex.quote(str(run))
    return f"Continue with: shmoareg fine-tune --out {where} --resume"


# measure of an overlap: of labels, or of images if there are none
OVERLAP_NAMES = {"dice": "Dice", "ncc": "correlation"}


def checkup_table(scans: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Table of scans: grid, values, labels, overlap with the reference.

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
                " BTCV. Optional with --resume."
            ),
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|PATH|none",
            help="Initial weights; none means random weights, as in the paper (Sec. IV-B).",
            show_default="the shipped ones",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="paper|small|tiny",
            help=(
                "Network for random weights: paper (128 voxels, for a GPU), small (60 voxels,"
                " for a CPU) or tiny."
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
                "Setting of that network: attention=mha and shmoe_strides=none give the plain"
                " layers of Table II; repeatable."
            ),
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in RUN from its last state.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            "--images", metavar="PATTERN", help="Pattern of the images: 'images/*.nii.gz'."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="PATTERN", help="Pattern of their label maps: 'labels/*.nii.gz'."
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject", metavar="REGEX", help="Finds the subject in a file's name: 'sub-([0-9]+)'."
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="Type of the data set.", show_default="auto")
    ] = None,
    window: Annotated[
        Any,
        typer.Option(
            "--window",
            metavar="LOW,HIGH",
            parser=parse_window,
            help="Clip intensities to this range, such as -160,240 for CT.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    processes: Annotated[
        int,
        typer.Option(
            "--processes", min=1, help="Processes that share the pairs of a step: one per GPU."
        ),
    ] = 1,
    submit: SubmitOption = None,
    cluster_option: ClusterOptions = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per event on stdout, for programs."),
    ] = False,
    with_parent: Annotated[
        bool,
        typer.Option(
            "--with-parent",
            help=(
                "Stop at a safe step when standard input closes; read 'pause', 'go' and 'stop'"
                " lines from it."
            ),
        ),
    ] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Train weights on your own scans, in a run that can be stopped, killed and resumed.

    Defaults are those of the paper; --from none starts from random weights, as it does (Sec. IV-B).
    Scans are checked first, and split by subject into training, validation and test scans, the
    latter for `shmoareg evaluate`. Ctrl-C stops after the current step and saves; --resume
    continues to the same result.
    """
    from napari_shmoareg.cli.training_process import run_plan
    from napari_shmoareg.training.run_folder import RunFolder

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
            raise InputError("--cluster-option has no effect without --submit.")
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
    """Make the plan of a new run, or read that of an existing one and apply changed options."""
    from napari_shmoareg.datasets.dataset import DatasetChoice
    from napari_shmoareg.training.plan import (
        describe_start,
        is_same_path,
        make_plan,
        parse_changes,
        read_plan,
        starts_from_scratch,
    )
    from napari_shmoareg.training.run_folder import RunFolder

    preset, changes = network[0], parse_changes(network[1])
    settings, run = settings_in(given, FineTuning), settings_in(given, RunSettings)
    name = None if weights is None else weights_path(weights)
    if (preset is not None or changes) and name != NO_NETWORK:
        raise InputError(
            "--preset and --config are for a network with random weights: give --from none too."
        )
    path = None if dataset is None else str(user_path(dataset).absolute())
    if resume:
        if not RunFolder(out).run_json.is_file():
            raise InputError(
                f"{out} contains no run. Leave out --resume to start one there, or give the"
                " folder of a run."
            )
        plan = read_plan(RunFolder(out).run_json)
        start = describe_start(plan.weights)
        start = start if starts_from_scratch(plan.weights) else f"'{start}'"
        if name is not None and not is_same_path(name, str(plan.weights["name"])):
            raise InputError(
                f"The run in {out} started from {start}, not from '{weights}'. Leave out --from,"
                " or start another run in another folder."
            )
        network_of_run = plan.weights.get("preset"), plan.weights.get("changes")
        if (preset or network_of_run[0], changes or network_of_run[1]) != network_of_run:
            raise InputError(
                f"The run in {out} started from {start}. Leave out --preset and --config, or"
                " start another run in another folder."
            )
        return plan.changed(settings, run, options if path is None else {"path": path, **options})
    if path is None and RunFolder(out).run_json.is_file():
        raise InputError(
            f"{out} already contains a run. Give --resume to continue it, or another --out and a"
            " DATASET."
        )
    if path is None:
        raise InputError(
            "There is no training data: give a DATASET (or --resume, to continue a run)."
        )
    name, _ = choose_weights(name, choose_device(device))
    return make_plan(
        name, DatasetChoice(path, **options), settings, run, preset=preset, changes=changes
    )


def weights_path(weights: str) -> str:
    """The absolute path of a weights file, so that the run finds it from anywhere; names as they
    are.
    """
    if weights == NO_NETWORK:
        return weights
    path = user_path(weights)
    return str(path.absolute()) if path.is_file() else weights
