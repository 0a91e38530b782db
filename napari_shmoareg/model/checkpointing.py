"""Parts whose inner values are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def run(part: Callable[..., Any], *inputs: Any, again: bool = False) -> Any:
    """The outputs of a module or function; with `again` and gradients asked for, what it computes
    inside is not kept.

    The recomputation draws the same random numbers and runs under the same autocast.  Less memory,
    more time (torch's non-reentrant checkpoint, which gradients of inner values such as Eq. (7)'s
    pass through as well)."""
    if not again or not torch.is_grad_enabled():
        return part(*inputs)
    from torch.utils.checkpoint import checkpoint

    return checkpoint(part, *inputs, use_reentrant=False)
