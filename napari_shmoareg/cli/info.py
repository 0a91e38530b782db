"""``shmoareg info``: versions, device, shipped weights with their cards."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import typer
from rich.table import Table
from rich.text import Text

from napari_shmoareg.cli.options import Debug
from napari_shmoareg.cli.tables import show


def info(debug: Debug = False) -> None:
    """Versions, the device that would be used, and the shipped weights with what is known of them."""
    from napari_shmoareg.io.checkpoint import read_card, shipped_weights

    names = shipped_weights()
    show(_machine(), *(_card(name, read_card(name)) for name in names))
    if not names:
        typer.echo("\nNo weights are shipped with this version: give --weights FILE.safetensors.")


def _machine() -> Table:
    import psutil
    import torch

    from napari_shmoareg.io.summary import versions

    found = versions()
    cuda = torch.cuda.is_available()
    memory = psutil.virtual_memory()
    rows = {
        "Python": f"{found.pop('python')} on {platform.system()} {platform.machine()}",
        **{name: number or "not installed" for name, number in found.items()},
        "device": torch.cuda.get_device_name() if cuda else "cpu (no CUDA device found)",
        "CPU threads": str(torch.get_num_threads()),
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
    }
    return _two_columns("", rows)


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
