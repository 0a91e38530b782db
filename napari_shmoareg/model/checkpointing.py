"""Gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def checkpointed(function: Callable[..., Any], *inputs: Any, enabled: bool = False) -> Any:
    """Call a module or function; if `enabled`, recompute its activations in the backward pass.

    The recomputation uses the same random numbers and autocast.  Less memory, more time (torch's
    non-reentrant checkpoint, through which gradients of inner values such as Eq. (7)'s also pass).
    """
    if not enabled or not torch.is_grad_enabled():
        return function(*inputs)
    from torch.utils.checkpoint import checkpoint

    return checkpoint(function, *inputs, use_reentrant=False)
