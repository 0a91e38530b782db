"""Progress on stderr: phase, bar, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from napari_shmoareg.cli.allocator import return_freed_memory
from napari_shmoareg.engine.phases import Part, placed

Report = Callable[[str, float], None]


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
        yield _forward(lambda title, done: None, {})
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("starting", total=1.0)
            yield _forward(lambda title, done: bar.update(task, description=title, completed=done), parts or {})
    else:
        yield _forward(_lines(console), parts or {})


def _forward(report: Report, parts: Mapping[str, Part]) -> Report:
    """From fractions of phases to fractions of the whole, which never run back; memory is given back between phases."""
    furthest, current = 0.0, ""

    def forward(phase: str, fraction: float) -> None:
        nonlocal furthest, current
        if phase != current:
            current = phase
            return_freed_memory()
        title, done = placed(parts, phase, fraction)
        furthest = max(furthest, done)
        report(title, furthest)

    return forward


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
