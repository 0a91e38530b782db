"""Phases of a registration for progress and remaining time; interruption between layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class Phase(NamedTuple):
    """A phase of a task: its title, and its start and end as fractions of the whole task."""

    title: str
    start: float
    end: float


# Ours: title and seconds of each phase, measured on a pair of 160x192x224 on two CPU cores, so that
# the remaining time is about right from the start.
SECONDS = {
    "loading": ("loading", 2.5),
    "reading": ("reading", 0.4),
    "align": ("aligning", 6.0),
    "conform": ("conforming", 0.7),
    "network": ("deforming", 7.0),
    "refine": ("refining", 0.2),  # per step
    "measure": ("comparing", 2.0),
    "warp": ("warping", 1.8),
}
WRITING = ("measuring", "writing images", "writing expert maps", "drawing", "done")
WRITING_SECONDS = 5.0


def registration_phases(refine: int = 0) -> Mapping[str, Phase]:
    """Return the phases of a registration with `refine` steps of refinement, and of its output."""
    seconds = {name: s * (refine if name == "refine" else 1) for name, (_, s) in SECONDS.items()}
    total, done, parts = sum(seconds.values()) + WRITING_SECONDS, 0.0, dict[str, Phase]()
    for name, length in seconds.items():
        parts[name] = Phase(SECONDS[name][0], done / total, (done + length) / total)
        done += length
    return parts | {name: Phase(name, done / total, 1.0) for name in WRITING}


def overall_progress(parts: Mapping[str, Phase], phase: str, fraction: float) -> tuple[str, float]:
    """Return the title of a phase and the overall progress; an unknown phase spans 0 to 1."""
    part = parts.get(phase, Phase(phase, 0.0, 1.0))
    return part.title, part.start + (part.end - part.start) * fraction


class Interrupted(Exception):
    """The user interrupted the task.  Not a ``RuntimeError``, which some viewers swallow."""


@contextmanager
def interruptible(network: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call a function before every layer of a network, so that it can interrupt.

    Parameters
    ----------
    network : Module
    check : callable
        Called before each submodule; its exceptions end the forward pass and propagate.

    Examples
    --------
    >>> from torch import nn, zeros
    >>> from napari_shmoareg.registration.progress import interruptible
    >>> calls = []
    >>> with interruptible(nn.Sequential(nn.ReLU(), nn.ReLU()), lambda: calls.append(1)):
    ...     pass
    >>> calls
    []
    """
    handles = [module.register_forward_pre_hook(lambda *_: check()) for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
