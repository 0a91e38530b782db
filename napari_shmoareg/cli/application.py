"""The command ``shmoareg`` and its commands, in the order a newcomer meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from napari_shmoareg import __version__
from napari_shmoareg.cli.apply import apply
from napari_shmoareg.cli.benchmark import benchmark
from napari_shmoareg.cli.demo import demo
from napari_shmoareg.cli.errors import PlainGroup
from napari_shmoareg.cli.evaluate import evaluate
from napari_shmoareg.cli.fine_tune import fine_tune
from napari_shmoareg.cli.info import info
from napari_shmoareg.cli.inspect import inspect
from napari_shmoareg.cli.pretrain import pretrain
from napari_shmoareg.cli.register import register
from napari_shmoareg.cli.runs_command import runs

app = typer.Typer(
    cls=PlainGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`shmoareg COMMAND --help` explains a command. Start with `shmoareg demo`.",
)

COMMANDS: tuple[tuple[str, Callable[..., None], str, str], ...] = (
    ("demo", demo, "Try it on a built-in pair.", "shmoareg demo --out first-try"),
    (
        "register",
        register,
        "Bring one image onto another.",
        "shmoareg register moving.nii.gz fixed.nii.gz --out result",
    ),
    (
        "apply",
        apply,
        "Carry another image or labels the same way.",
        "shmoareg apply result labels.nii.gz --labels --reference fixed.nii.gz --out carried.nii.gz",
    ),
    ("inspect", inspect, "See which experts made a result.", "shmoareg inspect result"),
    (
        "fine-tune",
        fine_tune,
        "Train the weights further on your own scans.",
        "shmoareg fine-tune FOLDER --images 'images/*.nii.gz' --out my-run --steps 500",
    ),
    ("runs", runs, "Show, pause, go on with or stop a run of fine-tune.", "shmoareg runs show my-run"),
    (
        "evaluate",
        evaluate,
        "Measure weights on a data set, in tables.",
        "shmoareg evaluate --run my-run --out my-table",
    ),
    (
        "pretrain",
        pretrain,
        "Learn weights from drawn images alone.",
        "shmoareg pretrain LABELMAPS --run my-run --minutes 60",
    ),
    (
        "benchmark",
        benchmark,
        "Compare methods on pairs with labels or landmarks.",
        "shmoareg benchmark FOLDER --images 'images/*.nii.gz' --labels 'labels/*.nii.gz' --pairs 12 --out compared",
    ),
    ("info", info, "Versions, device, shipped weights.", "shmoareg info"),
)
for _name, _command, _short, _example in COMMANDS:
    app.command(_name, short_help=_short, epilog=f"Example: {_example}")(_command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"shmoareg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def shmoareg(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Register 3D medical images with SHMoAReg, and see which experts made the result."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
