"""Terminal output: errors, exit codes, progress, tables, stop signals."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from typer.core import TyperGroup

from napari_shmoareg.cli.allocator import return_freed_memory
from napari_shmoareg.errors import InputError
from napari_shmoareg.registration.progress import Phase, overall_progress

if TYPE_CHECKING:
    from napari_shmoareg.experts.load import ExpertLoad
    from napari_shmoareg.training.run_folder import RunControl


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED, MISUSED, CANCELLED = 1, 2, 130


class CommandGroup(TyperGroup):
    """The group of all commands; prints the errors of every command."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        with _print_errors(ctx, words), warnings.catch_warnings():
            warnings.showwarning = _print_warning
            _allow_undecodable_names()
            return super().invoke(ctx)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Parse the options before the subcommand."""
        with _print_errors(None):
            return super().make_context(info_name, args, *rest, **extra)


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    """Callback of ``--debug``, at any position of the command line."""
    if value:
        ctx.find_root().meta["debug"] = True
    return value


@contextlib.contextmanager
def _print_errors(ctx: Any, words: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # if the terminal was closed
            print_note(str(stop) or "Cancelled; nothing was written.")
        raise typer.Exit(CANCELLED) from stop
    except Exception as error:
        if hasattr(error, "format_message") and getattr(error, "exit_code", None) == MISUSED:
            print_note(_misuse(error))
            raise typer.Exit(MISUSED) from error
        if ctx is not None and ctx.find_root().meta.get("debug"):
            traceback.print_exception(error, file=sys.stderr)
        print_note(explain(error, inputs_in(words)))
        raise typer.Exit(FAILED) from error


def print_note(text: str) -> None:
    """Print one paragraph on stderr; the terminal wraps it."""
    typer.echo(text, err=True)


def _allow_undecodable_names() -> None:
    """Let file names that are not UTF-8 be printed with escaped bytes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def _print_warning(
    message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> None:
    """Print user warnings; ignore those for developers."""
    if issubclass(category, UserWarning):
        print_note(f"Warning: {message}")


def inputs_in(words: Sequence[str]) -> list[str]:
    """The arguments that name an existing file or folder, also after "="."""
    names = [word.split("=", 1)[-1] if word.startswith("-") else word for word in words]
    return list(dict.fromkeys(name for name in names if os.path.exists(name)))


def as_option(name: str, value: str) -> str:
    """Format a setting as a command line option: ``--size 96``."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value in ("", "True") else f"{flag} {value}"


def explain(error: BaseException, inputs: Sequence[str] = ()) -> str:
    """Return the message for an error that ended a command.

    Parameters
    ----------
    error : Exception
    inputs : sequence of str
        Input files of the command, for errors that do not name a file themselves.
    """
    if isinstance(error, InputError):
        return f"Error: {error.text_with(as_option)}"
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        paths = " to ".join(
            f"'{name}'" for name in (error.filename, error.filename2) if name is not None
        )
        where = f" ({paths})" if paths else ""
        hint = (
            " Free some space, or give a path on another disk." if error.errno in _DISK_FULL else ""
        )
        return f"Error: {os.strerror(error.errno)}{where}.{hint}"
    notes = getattr(error, "__notes__", ())
    if notes and (isinstance(error, MemoryError) or "can't allocate memory" in text):
        return (
            f"Error: this machine ran out of memory, {notes[0]}. Close other programs, or give a"
            " smaller file."
        )
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return "Error: the device ran out of memory. Give a smaller --size, or --device cpu."
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return (
            "Error: this machine ran out of memory. Give a smaller --size, or close other programs."
        )
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    given = [f"with {', '.join(inputs)}"] if inputs else []
    where = f", {[*notes, *given][0]}" if notes or given else ""
    return (
        f"Error: something went wrong inside shmoareg{where} ({type(error).__name__}: {first})."
        " This is a bug, not your mistake. Run the same command with --debug and report what it"
        " prints."
    )


def _misuse(error: Any) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "shmoareg"
    return f"Error: {message}. `{command} --help` shows how it is used."


ProgressCallback = Callable[[str, float], None]


@contextmanager
def progress(
    quiet: bool = False, parts: Mapping[str, Phase] | None = None
) -> Iterator[ProgressCallback]:
    """Show the progress of a task.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    parts : mapping of phase to Phase, optional
        Share of each phase in the task; a phase that is missing here counts as the whole task.

    Yields
    ------
    callable
        ``report(phase, fraction)``, with the fraction of the phase that is done, 0 to 1.
    """
    console = Console(stderr=True)
    if quiet:
        yield _forward(lambda title, done: None, {})
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("starting", total=1.0)
            yield _forward(
                lambda title, done: bar.update(task, description=title, completed=done), parts or {}
            )
    else:
        yield _forward(_lines(console), parts or {})


def _forward(report: ProgressCallback, parts: Mapping[str, Phase]) -> ProgressCallback:
    """Convert fractions of phases to fractions of the task that never decrease; free memory between
    phases.
    """
    furthest, current = 0.0, ""

    def forward(phase: str, fraction: float) -> None:
        nonlocal furthest, current
        if phase != current:
            current = phase
            return_freed_memory()
        title, done = overall_progress(parts, phase, fraction)
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


def _lines(console: Console) -> ProgressCallback:
    """Without a terminal (a log file): a line per phase, and one per tenth of a long phase."""
    last: tuple[str, int] | None = None

    def report(title: str, done: float) -> None:
        nonlocal last
        phase, tenth = title.split(",")[0], int(10 * done)
        if last is None or phase != last[0] or ("," in title and tenth > last[1]):
            last = phase, tenth
            console.print(f"{title} ...", markup=False, highlight=False, soft_wrap=True)

    return report


def show(*tables: Table) -> None:
    """Print tables on stdout, separated by empty lines."""
    console = Console(highlight=False)
    for number, table in enumerate(tables):
        if number:
            console.print()
        if table.title:  # printed here, because a table wraps its title to its own width
            console.print(table.title, style="bold", markup=False)
            table.title = None
        console.print(table)


def results(
    title: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[float | None], str]]
) -> Table:
    """Make a table of numbers.

    Parameters
    ----------
    title : str
    columns : sequence of str
        Headers of the number columns.
    rows : iterable of (name, values, format)
        A value that is None or NaN is shown empty; a row without values is left out.
    """
    table = plain_table(title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values, form in rows:
        cells = ["" if v is None or v != v else format(v, form) for v in values]
        if any(cells):
            table.add_row(name, *cells)
    return table


def load_tables(load: ExpertLoad) -> list[Table]:
    """Tables of shares of selections in percent: one row per layer and image or direction, summed
    over blocks.
    """
    whole = load.over_blocks()
    tables = []
    for part, title in (
        ("encoder", "attention heads (MoA)"),
        ("decoder", "deformation experts (SHMoE)"),
    ):
        share = whole.select(part=part).share
        if not share:
            continue
        table = plain_table(f"{title}: share of selections in % per expert")
        table.add_column("layer", no_wrap=True)
        for expert in range(max(len(s) for s in share.values())):
            table.add_column(str(expert), justify="right")
        for gate, shares in share.items():
            table.add_row(
                f"{part} {gate.layer} {gate.image or gate.direction or ''}",
                *(f"{100 * s:.0f}" for s in shares),
            )
        tables.append(table)
    return tables


def plain_table(title: str) -> Table:
    """A table without lines."""
    return Table(title=title, box=None, pad_edge=False, header_style="bold")


@contextmanager
def resumable(
    done: Callable[[], int],
    count: int,
    out: Path,
    unit: str = "pairs",
    finish: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """On Ctrl-C, call `finish`, print what the folder contains, and exit."""
    try:
        yield
    except KeyboardInterrupt:
        finish()
        print_note(
            f"Stopped after {done()} of {count} {unit}; {out} contains them. The same command"
            " continues."
        )
        raise typer.Exit(CANCELLED) from None


@contextmanager
def stop_on_signal(first: str, second: str, callback: Callable[[], None]) -> Iterator[None]:
    """Call back at the first Ctrl-C, kill or hang-up; the second one cancels.

    Parameters
    ----------
    first, second : str
        Messages at the first signal, and if a second one ends the command.
    callback : callable
    """
    signals: list[int] = []

    def handle(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt(second)
        signals.append(number)
        callback()
        with suppress(OSError):  # if the terminal was closed
            print_note(first)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # not under nohup
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    former = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def listen_to_parent(control: RunControl) -> threading.Thread:
    """Read "pause", "go" and "stop" lines from standard input in a thread; its end means stop.

    Parameters
    ----------
    control : RunControl
    """

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() in ("pause", "go", "stop"):
                control.set_request(line.strip())
        control.set_request("stop")

    thread = threading.Thread(target=listen, name="parent", daemon=True)
    thread.start()
    return thread
