"""How a data set is read: what fine-tune and evaluate ask alike."""

from __future__ import annotations

from enum import StrEnum

import typer


class Kind(StrEnum):
    """How a data set lies on the disk."""

    auto = "auto"
    folder = "folder"
    list = "list"
    learn2reg = "learn2reg"
    oasis = "oasis"
    btcv = "btcv"


def parse_window(text: str) -> tuple[float, float]:
    """``--window``: two numbers."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not two numbers with a comma, such as -160,240") from None
    return low, high
