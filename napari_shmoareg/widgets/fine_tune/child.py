"""The command that learns, as a child process that tells what it does."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LAST = 12  # lines of what a child that broke down said last
MOST = 2000  # events that are handed over at once, so that a window does not stand still over them
CALMER = 5  # of 19: leaves the processor to the window first

Event = Mapping[str, Any]


class Ended(NamedTuple):
    """How a child ended: its exit code, negative for a signal, and the last lines that it said beside events."""

    code: int
    words: str

    @property
    def how(self) -> str:
        """``with exit code 3``, ``by the signal SIGKILL (the memory may have run out)``."""
        if self.code >= 0:
            return f"with exit code {self.code}"
        names = {int(s): s.name for s in signal.Signals}
        why = " (the memory may have run out)" if self.code == -9 else ""
        return f"by the signal {names.get(-self.code, -self.code)}{why}"


class Child:
    """Runs a command in a process of its own, and reads its events in a thread.

    Nothing here ever kills it.  It is asked to stop by its standard input being closed, which also happens, whatever
    becomes of this process, when that ends.

    Parameters
    ----------
    command : sequence of str
        Prints one JSON object a line; other lines are kept as words.

    Raises
    ------
    OSError
        If it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        number, name = tempfile.mkstemp(prefix="shmoareg-fine-tune-", suffix=".log")
        self.log = Path(name)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._strays: deque[str] = deque(maxlen=LAST)
        self._code: int | None = None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=number,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                env=os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C in the terminal of napari is not for it
            )
        except OSError:
            self.log.unlink()
            raise
        finally:
            os.close(number)
        _calm(self._process.pid)
        self._thread = threading.Thread(target=self._read, name="shmoareg fine-tune", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> Ended | None:
        """How it ended; None as long as it runs, or has events that were not taken."""
        if self._thread.is_alive() or not self._events.empty() or self._code is None:
            return None
        with self.log.open(encoding="utf-8", errors="replace") as file:
            said = list(deque((line.rstrip() for line in file), maxlen=LAST))
        return Ended(self._code, "\n".join(line for line in [*self._strays, *said] if line))

    def events(self) -> list[Event]:
        """What it told since the last call, oldest first."""
        found: list[Event] = []
        while len(found) < MOST:
            try:
                found.append(self._events.get_nowait())
            except queue.Empty:
                break
        return found

    def say(self, word: str) -> None:
        """Ask it to "pause", "go" or "stop"; one that has ended does not hear it."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{word}\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._strays.append(f"(it had ended before it was asked to {word})")

    def let_go(self) -> None:
        """Close its standard input: it stops at its next safe step, and saves.  Waits for nothing."""
        if self._process.stdin is None:
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # a word that it did not hear before it ended
            self._strays.append("(it had ended before it was let go)")

    def forget(self) -> None:
        """Remove the log of one that ended well."""
        self.log.unlink(missing_ok=True)

    def _read(self) -> None:
        """In a thread that holds the process until it is over, whoever else forgot it."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                event = _parsed(line)
                if event is not None:
                    self._events.put(event)
                elif line.strip():
                    self._strays.append(line.rstrip())
        self._code = self._process.wait()


def _parsed(line: str) -> Event | None:
    """The event of a line, None where there is none in it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def _calm(pid: int) -> None:
    """Have the window come first on the processor, where the system lets us."""
    import psutil

    process = psutil.Process(pid)
    try:
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if psutil.WINDOWS else CALMER)
    except psutil.Error:
        return  # it has ended already, or may not be changed: it learns all the same
