"""What a run tells, for programs and for people."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import typer

from napari_shmoareg.cli.errors import explain, say
from napari_shmoareg.cli.progress import Report, progress
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.weights import NO_NETWORK

Event = Mapping[str, Any]
Tell = Callable[[Event], None]
SHOWN = 12  # scans in the table of the check-up; checkup.csv has all


@contextmanager
def of_run(run: Path) -> Iterator[None]:
    """Around processes that learn for this one: an error that ends them is told with what their run left."""
    try:
        yield
    except InputError as error:
        raise TeamFailedError(str(error), run) from error


class TeamFailedError(InputError):
    """Processes that learned together ended by an error.

    Attributes
    ----------
    run : Path
    """

    def __init__(self, text: str, run: Path) -> None:
        super().__init__(text)
        self.run = run


@contextmanager
def printed(quiet: bool) -> Iterator[Tell]:
    """Events as JSON on stdout, one a line; what ends the run by an error is told too.

    Parameters
    ----------
    quiet : bool
        Makes no difference.
    """
    last: dict[str, Any] = {"step": 0, "run": None}

    def tell(event: Event) -> None:
        last.update({name: event[name] for name in last if name in event})
        typer.echo(json.dumps(event, allow_nan=False))  # flushes

    try:
        yield tell
    except (typer.Exit, typer.Abort):
        raise
    except BaseException as error:
        text = str(error) if isinstance(error, KeyboardInterrupt) else explain(error).removeprefix("Error: ")
        if isinstance(error, TeamFailedError):
            last = _left_by(error.run)
        now = {"time": round(time.time(), 3)}
        tell({"event": "error", **now, "text": text})
        tell({"event": "end", **now, "reason": "failed", "step": last["step"], "weights": _weights(last["run"])})
        raise


def _left_by(run: Path) -> dict[str, Any]:
    """The step that a run saved, whoever learned in it."""
    from napari_shmoareg.io.training_run.folder import RunFolder
    from napari_shmoareg.io.training_run.standing import saved_step

    return {"step": saved_step(RunFolder(run)) or 0, "run": str(run)}


def _weights(run: str | None) -> str | None:
    """The weights that a failed run left."""
    from napari_shmoareg.io.training_run.folder import RunFolder

    found = None if run is None else RunFolder(run).weights
    return None if found is None else str(found)


@contextmanager
def told(quiet: bool) -> Iterator[Tell]:
    """Events as lines to read; progress on stderr.

    Parameters
    ----------
    quiet : bool
        Warnings only.
    """
    with ExitStack() as bars:
        yield Teller(quiet, bars).tell


class Teller:
    """Says what a run tells.

    Parameters
    ----------
    quiet : bool
    bars : ExitStack
        Holds the progress bar that is shown.
    """

    def __init__(self, quiet: bool, bars: ExitStack) -> None:
        self._quiet, self._bars = quiet, bars
        self._report: Report | None = None
        self._doing = ""
        self._scans: list[Event] = []
        self._about: Event = {}
        self._alarmed: set[str] = set()
        self._skipped: set[str] = set()
        self._done = 0.0
        self._best: int | None = None

    def tell(self, event: Event) -> None:
        """Say one event; most say nothing."""
        say_it = getattr(self, f"_tell_{event['event']}", None)
        if say_it is not None:
            say_it(event)

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

    def _tell_phase(self, event: Event) -> None:
        name = event["phase"]
        if name in ("checkup", "reading", "preparing"):
            words = {"checkup": f"looking at the scans, {event['text']}", "reading": "reading the data set"}
            self._bar(name, words.get(name, "preparing"), event["done"])
        elif name == "validating":
            self._bar("training", "fine-tuning, validating", self._done)

    def _tell_scan(self, event: Event) -> None:
        self._scans.append(event)
        if event["skipped"]:
            say(f"Warning: {event['name']} is left out: {event['skipped']}")

    def _tell_begin(self, event: Event) -> None:
        self._bars.close()
        self._about, self._best = event, (event["best"] or {}).get("step")
        for problem in (words for words in event["problems"] if not words.startswith("Left out: ")):  # those are said
            say(f"Warning: {problem}")
        if not self._quiet:
            self._show_scans(event)
        if event["weights"] == NO_NETWORK:
            self._print(f"Begins from {event['begins_from']}: {event['steps']} steps.")
        scans, pairs, memory = event["scans"], event["pairs"], event["memory"]
        judge = f"{scans['validation']} judge (by {event['validated']} of {pairs['validation']} pairs)"
        self._print(f"{scans['train']} scans learn ({pairs['train']} pairs), {judge}, {scans['test']} stay unseen.")
        grid = "x".join(str(n) for n in event["shape"])
        self._print(
            f"A step on the grid {grid} needs about {memory['need'] / 2**30:.1f} GiB of memory on {event['device']}; "
            f"{memory['free'] / 2**30:.1f} GiB are free."
        )
        precision = event["bfloat16"]
        self._print(f"Computing in {'bfloat16' if precision['used'] else 'float32'}: {precision['why']}.")
        if event["resumed_at"] is not None:
            self._print(f"Going on after step {event['resumed_at']} of {event['steps']}.")

    def _show_scans(self, event: Event) -> None:
        from napari_shmoareg.cli.fine_tune.checkup_table import checkup_table
        from napari_shmoareg.cli.tables import show

        used = [scan for scan in self._scans if not scan["skipped"]]
        show(checkup_table(used[:SHOWN], f"Check-up: {len(used)} of {len(self._scans)} scans can be used"))
        if len(used) > SHOWN:
            self._print(f"... and {len(used) - SHOWN} more in {event['run']}/checkup.csv")

    def _tell_step(self, event: Event) -> None:
        self._done = event["step"] / event["steps"]
        self._bar("training", f"fine-tuning, loss {event['total']:.5f}", self._done)

    def _tell_load(self, event: Event) -> None:
        now = {alarm["place"]: alarm["text"] for alarm in event["alarms"]}
        for place in now.keys() - self._alarmed:
            say(f"Warning: at step {event['step']}: {now[place]}")
        self._alarmed = set(now)

    def _tell_validation(self, event: Event) -> None:
        self._best = event["step"] if event["best"] else self._best
        dice = "" if event["dice"] is None else f"Dice {event['dice']:.4f}, "
        best = ", the best so far" if event["best"] and event["step"] else ""
        what = f"after step {event['step']}" if event["step"] else "before the first step"
        figures = f"{dice}correlation {event['ncc']:.4f}, folding {event['folding_percent']:.3f} %"
        self._print(f"Validation {what}: {figures}{best}")

    def _tell_skipped(self, event: Event) -> None:
        if event["pair"] not in self._skipped:
            self._skipped.add(event["pair"])
            say(f"Warning: the pair {event['pair']} is left out: {event['why']}")

    def _tell_paused(self, event: Event) -> None:
        say(f"Paused after step {event['step']}; `shmoareg runs go {shlex.quote(str(self._about['run']))}` goes on.")

    def _tell_resumed(self, event: Event) -> None:
        say("Going on.")

    def _tell_end(self, event: Event) -> None:
        self._bars.close()
        steps = self._about.get("steps")
        run = shlex.quote(str(self._about["run"])) if self._about else "RUN"
        of = f" of {steps}" if steps else ""
        if event["reason"] == "stopped":
            say(f"Stopped after step {event['step']}{of}. Go on with: shmoareg fine-tune --out {run} --resume")
        elif event["reason"] == "minutes":
            self._print(
                f"The time is over after step {event['step']}{of}. Go on with: shmoareg fine-tune --out {run} --resume "
                "--minutes MORE"
            )
        else:
            self._print(f"{event['step']} steps are done.")
        if event.get("best_step") == 0 < event["step"] and event["weights"] is not None:
            self._print(
                f"Nothing learned was better than the start, by validation: {event['weights']} holds the weights that "
                f"the run began with. Those of the last step are in {self._about['run']}/last.safetensors."
            )
        elif event["weights"] is not None:
            weights = shlex.quote(str(event["weights"]))
            self._print(
                f"Weights: {weights}\nUse them: shmoareg register MOVING FIXED --weights {weights} --out RESULT"
            )
            if self._about.get("pairs", {}).get("test"):
                self._print(f"Judge them on the unseen scans: shmoareg evaluate --run {run} --out TABLE")
