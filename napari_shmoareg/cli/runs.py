"""``shmoareg runs``: show, pause, continue or stop a training run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_shmoareg.cli.options import Debug
from napari_shmoareg.cli.train import is_best, resume_hint
from napari_shmoareg.errors import InputError

if TYPE_CHECKING:
    from napari_shmoareg.training.run_folder import RunStatus


NOT_BETTER = " (the initial weights of the run: nothing was better so far)"
SHOWN = 5  # validations


class Word(StrEnum):
    """A request to a run."""

    show = "show"
    pause = "pause"
    go = "go"
    stop = "stop"


def runs(
    word: Annotated[
        Word,
        typer.Argument(
            metavar="show|pause|go|stop", help="What to do; show only reads.", show_default=False
        ),
    ],
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run, as given to --out or --run.")
    ],
    debug: Debug = False,
) -> None:
    """Show the status of a run of `shmoareg fine-tune` or `pretrain`, or request it to pause,
    continue or stop at its next safe step.
    """
    from napari_shmoareg.training.run_folder import RunFolder, read_run_status, write_request

    folder = RunFolder(run)
    status = read_run_status(folder)
    if word is Word.show:
        typer.echo(describe_run(folder.path, folder.weights, status))
        return
    if status.holder is None:
        raise InputError(
            f"No process is running {folder.path}, so it cannot {word.value}."
            f" {_resume_hint(folder.path, status)}"
        )
    write_request(folder.request, word.value)
    typer.echo(
        f"Requested process {status.holder['pid']} on {status.holder['host']} to {word.value}."
    )


def describe_run(path: Path, weights: Path | None, status: RunStatus) -> str:
    """Describe the status of a run in a few lines."""
    from napari_shmoareg.training.plan import describe_start

    holder = status.holder
    doing = "no process is running"
    if holder is not None:
        doing = f"process {holder['pid']} on {holder['host']} is {holder['doing']}"
    lines = [
        f"Run {path}: step {status.step} of {status.steps}; {doing}",
        (
            f"Data set: {status.run_json['dataset']['path'] or 'synthetic torsos'}; started from"
            f" {describe_start(status.run_json['from'])}"
        ),
        f"Training time: {_length(status.seconds)}",
    ]
    if status.last:
        lines.append(f"Last loss: {float(status.last['total']):.5f}")
    lines += [
        f"Validation after step {row['step']}: {_figures(row)}"
        for row in status.validation[-SHOWN:]
    ]
    if status.best is not None:
        lines.append(f"Best: step {status.best['step']}, {_figures(status.best)}")
    at_start = status.best is not None and status.best["step"] == "0" and status.step > 0
    lines += [f"Alarm: {text}" for text in status.alarms]
    if status.skipped:
        lines.append(f"A pair could not be read {len(status.skipped)} times; see skipped.csv")
    lines.append(f"Saved state: {'none' if status.saved is None else f'step {status.saved}'}")
    if weights is not None:
        lines.append(
            f"Weights: {weights}{NOT_BETTER if at_start and is_best(str(weights)) else ''}"
        )
    if holder is None and (status.saved or 0) < status.steps:
        lines.append(_resume_hint(path, status))
    return "\n".join(lines)


def _resume_hint(path: Path, status: RunStatus) -> str:
    return resume_hint(path, "recipe" in (status.run_json["dataset"].get("options") or {}))


def _figures(row: dict[str, str]) -> str:
    dice = f"Dice {float(row['dice']):.4f}, " if row["dice"] else ""
    return (
        f"{dice}correlation {float(row['ncc']):.4f}, folding {float(row['folding_percent']):.3f} %"
    )


def _length(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
