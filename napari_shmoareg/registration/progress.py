"""Phases of a registration for progress and time left; cancelling between two layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class Part(NamedTuple):
    """A phase of a longer work: what people read, and which part of the whole it is, both 0 to
    1.
    """

    title: str
    start: float
    end: float


# Ours: seconds of each phase, measured on a pair of 160x192x224 on two CPU cores, so that the time
# left is about right from the start.
SECONDS = {
    "loading": ("loading", 2.5),
    "reading": ("reading", 0.4),
    "align": ("aligning", 6.0),
    "conform": ("conforming", 0.7),
    "network": ("deforming", 7.0),
    "refine": ("refining", 0.2),  # of each step
    "measure": ("comparing", 2.0),
    "warp": ("warping", 1.8),
}
WRITING = ("measuring", "writing images", "writing expert maps", "drawing", "done")
WRITING_SECONDS = 5.0


def registering(refine: int = 0) -> Mapping[str, Part]:
    """The phases of a registration with so many steps of refinement, and its writing, in the
    whole.
    """
    seconds = {name: s * (refine if name == "refine" else 1) for name, (_, s) in SECONDS.items()}
    total, done, parts = sum(seconds.values()) + WRITING_SECONDS, 0.0, dict[str, Part]()
    for name, length in seconds.items():
        parts[name] = Part(SECONDS[name][0], done / total, (done + length) / total)
        done += length
    return parts | {name: Part(name, done / total, 1.0) for name in WRITING}


def placed(parts: Mapping[str, Part], phase: str, fraction: float) -> tuple[str, float]:
    """What people read of a phase, and how far the whole is, 0 to 1; an unknown phase is the
    whole.
    """
    part = parts.get(phase, Part(phase, 0.0, 1.0))
    return part.title, part.start + (part.end - part.start) * fraction


class Interrupted(Exception):
    """The work was stopped because a person asked for it.  No ``RuntimeError``: nothing swallows
    it.
    """


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
    >>> from napari_shmoareg.registration.progress import interruptible
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
