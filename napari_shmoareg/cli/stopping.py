"""Being asked to stop: Ctrl-C, kill, and a parent that goes away."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from napari_shmoareg.cli.errors import say

if TYPE_CHECKING:
    from napari_shmoareg.io.training_run.wishes import Wishes


@contextmanager
def asked_to_stop(
    first: str = "Stopping after this step; Ctrl-C again drops what was learned.",
    second: str = "",
    ask: Callable[[], None] | None = None,
) -> Iterator[list[int]]:
    """A list that fills at the first Ctrl-C, kill or closed terminal; the second one cancels.

    Parameters
    ----------
    first : str
        Said at the first one.
    second : str
        Said where the second one ends the command; by default that nothing was written.
    ask : callable, optional
        Called at the first one.
    """
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt(second)
        asked.append(number)
        if ask is not None:
            ask()
        with suppress(OSError):  # of a terminal that was closed
            say(first)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
        numbers.append(signal.SIGHUP)
    former = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def listen_to_parent(wishes: Wishes) -> threading.Thread:
    """Hear "pause", "go" and "stop", a line each, on standard input; its end asks to stop.

    Parameters
    ----------
    wishes : Wishes
    """

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() in ("pause", "go", "stop"):
                wishes.ask(line.strip())
        wishes.ask("stop")

    thread = threading.Thread(target=listen, name="parent", daemon=True)
    thread.start()
    return thread
