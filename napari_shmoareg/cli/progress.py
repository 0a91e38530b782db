"""Progress on stderr: phase, bar, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[str, float], None]


class Part(NamedTuple):
    """A phase of a longer work: what people read, and which part of the whole it is, both 0 to 1."""

    title: str
    start: float
    end: float


# Ours: seconds of each phase, measured on a pair of 160x192x224 on two CPU cores, so that the time left is about
# right from the start.
SECONDS = {
    "loading": ("loading", 0.4),
    "reading": ("reading", 0.2),
    "align": ("aligning", 2.5),
    "conform": ("conforming", 0.5),
    "network": ("deforming", 2.5),
    "refine": ("refining", 0.25),  # of each step
    "warp": ("warping", 4.0),
    "measure": ("comparing", 3.0),
}
WRITING = ("measuring", "writing images", "writing expert maps", "drawing", "done")
WRITING_SECONDS = 8.0


def registering(refine: int = 0) -> Mapping[str, Part]:
    """The phases of a registration with so many steps of refinement, and its writing, in the whole."""
    seconds = {name: s * (refine if name == "refine" else 1) for name, (_, s) in SECONDS.items()}
    total, done, parts = sum(seconds.values()) + WRITING_SECONDS, 0.0, dict[str, Part]()
    for name, length in seconds.items():
        parts[name] = Part(SECONDS[name][0], done / total, (done + length) / total)
        done += length
    return parts | {name: Part(name, done / total, 1.0) for name in WRITING}


@contextmanager
def progress(quiet: bool = False, parts: Mapping[str, Part] | None = None) -> Iterator[Report]:
    """Show how far a piece of work is.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    parts : mapping of phase to Part, optional
        Where each phase stands in the whole; a phase that is not among them is the whole.

    Yields
    ------
    callable
        ``report(phase, fraction)`` with the fraction of the phase that is done, 0 to 1.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda phase, fraction: None
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("starting", total=1.0)
            yield _placed(lambda title, done: bar.update(task, description=title, completed=done), parts or {})
    else:
        yield _placed(_lines(console), parts or {})


def _placed(report: Report, parts: Mapping[str, Part]) -> Report:
    """From fractions of phases to fractions of the whole, which never run back."""
    furthest = 0.0

    def placed(phase: str, fraction: float) -> None:
        nonlocal furthest
        part = parts.get(phase, Part(phase, 0.0, 1.0))
        furthest = max(furthest, part.start + (part.end - part.start) * fraction)
        report(part.title, furthest)

    return placed


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=300,
    )


def _lines(console: Console) -> Report:
    """Where a bar cannot be drawn (a log file): a line per phase, and one per tenth of a long one."""
    last: tuple[str, int] | None = None

    def report(title: str, done: float) -> None:
        nonlocal last
        phase, tenth = title.split(",")[0], int(10 * done)
        if last is None or phase != last[0] or ("," in title and tenth > last[1]):
            last = phase, tenth
            console.print(f"{title} ...", markup=False, highlight=False, soft_wrap=True)

    return report
