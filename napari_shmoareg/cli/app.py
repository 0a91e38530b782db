"""The command ``shmoareg`` and its subcommands; ``shmoareg info``."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from napari_shmoareg import __version__
from napari_shmoareg.cli.benchmark import benchmark
from napari_shmoareg.cli.console import CommandGroup, show
from napari_shmoareg.cli.evaluate import evaluate
from napari_shmoareg.cli.inspect import inspect
from napari_shmoareg.cli.options import Debug
from napari_shmoareg.cli.pretrain import pretrain
from napari_shmoareg.cli.register import apply, demo, register
from napari_shmoareg.cli.runs import runs
from napari_shmoareg.cli.train import fine_tune


def info(debug: Debug = False) -> None:
    """Show versions, the default device, and the shipped weights with their cards."""
    from napari_shmoareg.io import read_card, shipped_weights

    names = shipped_weights()
    show(_machine(), *(_card(name, read_card(name)) for name in names))
    if not names:
        typer.echo("\nThis version ships no weights: give --weights FILE.safetensors.")


def _machine() -> Table:
    import psutil

    from napari_shmoareg.io.machine import torch_build, versions

    found = versions()
    memory = psutil.virtual_memory()
    rows = {
        "Python": f"{found.pop('python')} on {platform.system()} {platform.machine()}",
        **{name: number or "not installed" for name, number in found.items()},
        "device": _device(torch_build()["cuda"]),
        "CPU threads": str(_threads()),
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
    }
    return _key_value_table("", rows)


def _device(cuda: str | None) -> str:
    """Describe the device; only a CUDA build of PyTorch has to be imported for it, which takes
    seconds.
    """
    if cuda is None:
        return "cpu (this build of PyTorch has no CUDA)"
    import torch

    return (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu (no CUDA device found)"
    )


def _threads() -> int | str:
    """Number of threads that PyTorch uses by default."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return os.environ.get("OMP_NUM_THREADS", cores)


def _card(name: str, card: Mapping[str, object]) -> Table:
    return _key_value_table(
        f"weights: {name}", {key.replace("_", " "): _text(value) for key, value in card.items()}
    )


def _key_value_table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title or None, show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, Text(value))
    return table


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


app = typer.Typer(
    cls=CommandGroup,
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
        "Register one image to another.",
        "shmoareg register moving.nii.gz fixed.nii.gz --out result",
    ),
    (
        "apply",
        apply,
        "Apply the transform to another image or label map.",
        (
            "shmoareg apply result labels.nii.gz --labels --reference fixed.nii.gz --out"
            " carried.nii.gz"
        ),
    ),
    ("inspect", inspect, "See which experts made a result.", "shmoareg inspect result"),
    (
        "fine-tune",
        fine_tune,
        "Train weights on your own scans.",
        "shmoareg fine-tune FOLDER --images 'images/*.nii.gz' --out my-run --steps 500",
    ),
    (
        "runs",
        runs,
        "Show, pause, continue or stop a fine-tune run.",
        "shmoareg runs show my-run",
    ),
    (
        "evaluate",
        evaluate,
        "Measure the accuracy of weights on a data set.",
        "shmoareg evaluate --run my-run --out my-table",
    ),
    (
        "pretrain",
        pretrain,
        "Train weights on synthetic images alone.",
        "shmoareg pretrain LABELMAPS --run my-run --minutes 60",
    ),
    (
        "benchmark",
        benchmark,
        "Compare methods on pairs with labels or landmarks.",
        (
            "shmoareg benchmark FOLDER --images 'images/*.nii.gz' --labels 'labels/*.nii.gz'"
            " --pairs 12 --out compared"
        ),
    ),
    ("info", info, "Versions, device, shipped weights.", "shmoareg info"),
)
for _name, _command, _short, _example in COMMANDS:
    app.command(_name, short_help=_short, epilog=f"Example: {_example}")(_command)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"shmoareg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def shmoareg(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Register 3D medical images with SHMoAReg, and see which experts made the result."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
