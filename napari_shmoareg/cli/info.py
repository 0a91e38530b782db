"""``shmoareg info``: versions, device, shipped weights with their cards."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import typer
from rich.table import Table
from rich.text import Text

from napari_shmoareg.cli.options import Debug
from napari_shmoareg.cli.tables import show


def info(debug: Debug = False) -> None:
    """Versions, the device that would be used, and the shipped weights with what is known of them."""
    from napari_shmoareg.io.model_card import read_card, shipped_weights

    names = shipped_weights()
    show(_machine(), *(_card(name, read_card(name)) for name in names))
    if not names:
        typer.echo("\nNo weights are shipped with this version: give --weights FILE.safetensors.")


def _machine() -> Table:
    import psutil

    from napari_shmoareg.io.versions import torch_build, versions

    found = versions()
    memory = psutil.virtual_memory()
    rows = {
        "Python": f"{found.pop('python')} on {platform.system()} {platform.machine()}",
        **{name: number or "not installed" for name, number in found.items()},
        "device": _device(torch_build()["cuda"]),
        "CPU threads": str(_threads()),
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
    }
    return _two_columns("", rows)


def _device(cuda: str | None) -> str:
    """Only a build for CUDA has to be loaded, which takes seconds, to know the GPU."""
    if cuda is None:
        return "cpu (this build of PyTorch has no CUDA)"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu (no CUDA device found)"


def _threads() -> int | str:
    """Those that PyTorch takes, unless it is told otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return os.environ.get("OMP_NUM_THREADS", cores)


def _card(name: str, card: Mapping[str, object]) -> Table:
    return _two_columns(f"weights: {name}", {key.replace("_", " "): _text(value) for key, value in card.items()})


def _two_columns(title: str, rows: Mapping[str, str]) -> Table:
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
