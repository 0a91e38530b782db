"""A network that can be stopped between any two layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Interrupted(Exception):
    """The work was stopped because a person asked for it.  No ``RuntimeError``: nothing swallows it."""


@contextmanager
def interruptible(network: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Ask before every layer of a network whether to go on.

    Parameters
    ----------
    network : Module
    check : callable
        Called before each submodule runs; what it raises ends the forward pass and comes out of it.

    Examples
    --------
    >>> from torch import nn, zeros
    >>> from napari_shmoareg.engine.interruption import interruptible
    >>> asked = []
    >>> with interruptible(nn.Sequential(nn.ReLU(), nn.ReLU()), lambda: asked.append(1)):
    ...     pass
    >>> asked
    []
    """
    handles = [module.register_forward_pre_hook(lambda *_: check()) for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
