"""Every failure as one plain paragraph on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from napari_shmoareg.geometry import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED, MISUSED, CANCELLED = 1, 2, 130


class PlainGroup(TyperGroup):
    """The group of all commands: what a command raises is said plainly, once, here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        with _said_plainly(ctx, words), warnings.catch_warnings():
            warnings.showwarning = _say_warning
            _print_any_name()
            return super().invoke(ctx)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read the options before the command's name."""
        with _said_plainly(None):
            return super().make_context(info_name, args, *rest, **extra)


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    """Callback of ``--debug``, wherever on the line it stands."""
    if value:
        ctx.find_root().meta["debug"] = True
    return value


@contextlib.contextmanager
def _said_plainly(ctx: Any, words: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # of a terminal that was closed
            say(str(stop) or "Cancelled; nothing was written.")
        raise typer.Exit(CANCELLED) from stop
    except Exception as error:
        if hasattr(error, "format_message") and getattr(error, "exit_code", None) == MISUSED:
            say(_misuse(error))
            raise typer.Exit(MISUSED) from error
        if ctx is not None and ctx.find_root().meta.get("debug"):
            traceback.print_exception(error, file=sys.stderr)
        say(explain(error, inputs_in(words)))
        raise typer.Exit(FAILED) from error


def say(text: str) -> None:
    """One paragraph on stderr, not wrapped: the terminal does that."""
    typer.echo(text, err=True)


def _print_any_name() -> None:
    """Let names that are not UTF-8 be printed, with their odd bytes as numbers."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def _say_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """What a user can act on; what only concerns programmers is left to the tests."""
    if issubclass(category, UserWarning):
        say(f"Warning: {message}")


def inputs_in(words: Sequence[str]) -> list[str]:
    """The words of a command that name a file or folder which is there, behind "=" too."""
    names = [word.split("=", 1)[-1] if word.startswith("-") else word for word in words]
    return list(dict.fromkeys(name for name in names if os.path.exists(name)))


def explain(error: BaseException, inputs: Sequence[str] = ()) -> str:
    """What a user should read when `error` ended a command.

    Parameters
    ----------
    error : Exception
    inputs : sequence of str
        What the command was given, for an error that does not say itself what was being read.
    """
    if isinstance(error, InputError):
        return f"Error: {error}"
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        place = " to ".join(f"'{name}'" for name in (error.filename, error.filename2) if name is not None)
        where = f" ({place})" if place else ""
        hint = " Free some space or name a place on another disk." if error.errno in _DISK_FULL else ""
        return f"Error: {os.strerror(error.errno)}{where}.{hint}"
    notes = getattr(error, "__notes__", ())
    if notes and (isinstance(error, MemoryError) or "can't allocate memory" in text):
        return f"Error: this machine ran out of memory, {notes[0]}. Close other programs, or give a smaller file."
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return "Error: the device ran out of memory. Give a smaller --size, or --device cpu."
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "Error: this machine ran out of memory. Give a smaller --size, or close other programs."
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    given = [f"with {', '.join(inputs)}"] if inputs else []
    where = f", {[*notes, *given][0]}" if notes or given else ""
    return (
        f"Error: something went wrong inside shmoareg{where} ({type(error).__name__}: {first}). This is a bug, not "
        "your mistake. Run the same command with --debug and report what it prints."
    )


def _misuse(error: Any) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "shmoareg"
    return f"Error: {message}. `{command} --help` shows how it is used."
