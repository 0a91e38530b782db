"""A training run beside the window: its command, its child process, its folder followed."""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.errors import in_words_of_the_form
from napari_shmoareg.plugin.controls.tasks import Task
from napari_shmoareg.plugin.fine_tune.run_model import RunUpdate, RunFiles, RunState

LAST_LINES = 12  # lines of what a child that broke down said last
MAX_EVENTS = 2000  # events that are handed over at once, so that a window does not stand still over them
NICENESS = 5  # of 19: leaves the processor to the window first

Event = Mapping[str, Any]


class ExitStatus(NamedTuple):
    """How a child ended: its exit code, negative for a signal, and the last lines that it said
    beside events.
    """

    code: int
    words: str

    @property
    def description(self) -> str:
        """``with exit code 3``, ``by the signal SIGKILL (the memory may have run out)``."""
        if self.code >= 0:
            return f"with exit code {self.code}"
        names = {int(s): s.name for s in signal.Signals}
        why = " (the memory may have run out)" if self.code == -9 else ""
        return f"by the signal {names.get(-self.code, -self.code)}{why}"


class Child:
    """Runs a command in a process of its own, and reads its events in a thread.

    Nothing here ever kills it.  It is asked to stop by its standard input being closed, which also
    happens, whatever becomes of this process, when that ends.

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
        self._other_lines: deque[str] = deque(maxlen=LAST_LINES)
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
        _lower_priority(self._process.pid)
        self._thread = threading.Thread(target=self._read, name="shmoareg fine-tune", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> ExitStatus | None:
        """How it ended; None as long as it runs, or has events that were not taken."""
        if self._thread.is_alive() or not self._events.empty() or self._code is None:
            return None
        with self.log.open(encoding="utf-8", errors="replace") as file:
            said = list(deque((line.rstrip() for line in file), maxlen=LAST_LINES))
        return ExitStatus(self._code, "\n".join(line for line in [*self._other_lines, *said] if line))

    def events(self) -> list[Event]:
        """What it told since the last call, oldest first."""
        found: list[Event] = []
        while len(found) < MAX_EVENTS:
            try:
                found.append(self._events.get_nowait())
            except queue.Empty:
                break
        return found

    def send(self, word: str) -> None:
        """Ask it to "pause", "go" or "stop"; one that has ended does not hear it."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{word}\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._other_lines.append(f"(it had ended before it was asked to {word})")

    def close_stdin(self) -> None:
        """Close its standard input: it stops at its next safe step, and saves.  Waits for
        nothing.
        """
        if self._process.stdin is None:
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # a word that it did not hear before it ended
            self._other_lines.append("(it had ended before it was let go)")

    def remove_log(self) -> None:
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
                    self._other_lines.append(line.rstrip())
        self._code = self._process.wait()


def _parsed(line: str) -> Event | None:
    """The event of a line, None where there is none in it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def _lower_priority(pid: int) -> None:
    """Have the window come first on the processor, where the system lets us."""
    import psutil

    process = psutil.Process(pid)
    try:
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if psutil.WINDOWS else NICENESS)
    except psutil.Error:
        return  # it has ended already, or may not be changed: it learns all the same


COMMAND = (sys.executable, "-m", "napari_shmoareg", "fine-tune")


@dataclass(frozen=True)
class RunRequest:
    """What is to be learned from, how, and where it goes.

    Attributes
    ----------
    out : str
        The run's folder.
    dataset : str
        A folder or a list; empty for a run that goes on with its own.
    finding : mapping
        Options of how its files are found (images, labels, subject, kind); empty words are left
        out.
    weights, device : str
        "auto" for the command's own choice; weights "none" to begin from nothing.
    settings : mapping
        By the names of `FineTuning` and `RunSettings`.
    preset : str
        Of the network that begins from nothing; empty otherwise.
    """

    out: str
    dataset: str = ""
    file_options: Mapping[str, str] = field(default_factory=dict)
    weights: str = "auto"
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""

    def arguments(self, *more: str) -> list[str]:
        """What follows ``shmoareg fine-tune``."""
        found = [self.dataset] if self.dataset else []
        found += ["--out", self.out]
        words = {**self.file_options, "from": self.weights, "preset": self.preset, "device": self.device}
        for name, word in words.items():
            if word and word != "auto":
                found += [f"--{name}", word]
        for name, value in self.settings.items():
            found += _option(name, value)
        return [*found, *more]

    def command(self, *more: str) -> list[str]:
        """The whole command, whose child tells what it does and does not outlive this program by
        more than a step.
        """
        return [*COMMAND, *self.arguments("--json", "--with-parent", *more)]

    def command_line(self, *more: str) -> str:
        """As a person types it."""
        return shlex.join(["shmoareg", "fine-tune", *self.arguments(*more)])


def _option(name: str, value: Any) -> Sequence[str]:
    kebab = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{kebab}" if value else f"--no-{kebab}"]
    return [] if value is None else [f"--{kebab}", str(value)]


POLL_INTERVAL = 250  # ms between two looks at a child, and so between two drawings
READ_INTERVAL = 2.0  # s between two looks into a folder


class Mode(Enum):
    """Who works on the run that is shown."""

    nothing = "no run is open"
    own = "a child process of this panel"
    elsewhere = "another process"
    still = "nobody"


class Follower(QObject):
    """Knows of one run at a time, and asks it to pause, go on or stop.

    Parameters
    ----------
    parent : QObject

    Attributes
    ----------
    changed : Signal
        More is known, at most four times a second.
    turned : Signal
        What can be asked of the run is another: who works on it, whether it waits, what it was
        asked for.
    began : Signal
        Another run is shown from here on.
    failed : Signal(str)
        Something went wrong, in plain words.
    ended : Signal
        A child of this panel ended, whichever way.
    """

    changed, status_changed, started, ended = Signal(), Signal(), Signal(), Signal()
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.state, self.mode = RunState(), Mode.nothing
        self.folder: Path | None = None
        self.requested = ""  # of the run, and not done yet
        self._child_ref = held = _ChildRef()
        # not `destroyed`: a slot can be collected before it is called
        weakref.finalize(self, held.close_stdin)
        self._files: RunFiles | None = None
        self._reading = Task(parent, "reading a run")
        self._reading.finished.connect(self._on_read)
        self._reading.failed.connect(self._on_read_failed)
        self._last_read = self._last_event = 0.0
        self._last_status: object = None  # of how it stood when `status_changed` was last emitted
        self._timer = QTimer(self)
        self._timer.setInterval(POLL_INTERVAL)
        self._timer.timeout.connect(self._poll)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the child told something."""
        return time.monotonic() - self._last_event if self.mode is Mode.own else 0.0

    def start(self, command: Sequence[str], folder: Path) -> None:
        """Start a child that works on a folder.  What is known of the same folder stays known.

        Nothing happens while a child is held: there is one at a time.
        """
        if self._child_ref.child is not None:
            return
        try:
            child = Child(command)
        except OSError as error:
            self.failed.emit(f"The run could not be started: {error}.")
            return
        if folder != self.folder:
            self.state = RunState()
        self.state.begin_process()
        self._child_ref.child, self.folder, self.mode, self.requested = child, folder, Mode.own, ""
        self._reading.drop()
        self._files, self._last_event = None, time.monotonic()
        self._timer.start()
        self.started.emit()
        self.changed.emit()

    def open(self, folder: Path) -> None:
        """Show a run that lies in a folder, and go on looking as long as another process works on
        it.
        """
        self.close()
        self.state, self.folder, self.mode, self.requested = RunState(), folder, Mode.nothing, ""
        self._files = RunFiles(folder)
        self._read()
        self._timer.start()
        self.started.emit()

    def release(self) -> None:
        """Forget a run that no child of this panel works on."""
        if self._child_ref.child is not None:
            return
        self.close()
        self.state, self.folder, self.mode, self.requested = RunState(), None, Mode.nothing, ""
        self.changed.emit()

    def request(self, word: str) -> None:
        """Ask the run to "pause", "go" or "stop"; it does so at its next safe step."""
        if self.folder is None:
            return
        if self._child_ref.child is not None:
            # heard at any time; a wish in the folder only once that was made
            self._child_ref.child.send(word)
            self.requested = word
            self.changed.emit()
            return
        from napari_shmoareg.training.run import write_request

        try:
            write_request(self.folder / "wish", word)
        except InputError as error:
            self.failed.emit(in_words_of_the_form(error))
            return
        self.requested = word
        self.changed.emit()

    def close(self) -> None:
        """Let go of the run: a child stops at its next safe step, by itself; others go on."""
        self._child_ref.close_stdin()
        self._timer.stop()
        self._reading.drop()
        self._files = None
        if self.mode is not Mode.nothing:
            self.mode = Mode.idle
            self.changed.emit()

    def _poll(self) -> None:
        if self._child_ref.child is not None:
            self._read_events(self._child_ref.child)
        elif self._files is not None:
            self._read_when_due()
        self._emit_status()

    def _emit_status(self) -> None:
        now = self.mode, self.requested, self.state.paused, bool(self.state.about), bool(self.state.end)
        if now != self._last_status:
            self._last_status = now
            self.status_changed.emit()

    def _read_events(self, child: Child) -> None:
        events = child.events()
        for event in events:
            self.state.apply(event)
        if events:
            self._last_event = time.monotonic()
            self._clear_done_request()
        ended = child.ended
        if ended is not None:
            self._child_ref.child = None
            self._timer.stop()
            self.mode, self.requested = Mode.idle, ""
            text = failure_text(ended, child, self.state)
            if text:
                self.state.error = text
                self.failed.emit(text)
            else:
                child.remove_log()
            self.ended.emit()
        if events or ended is not None or self.silent_seconds > 5:
            self.changed.emit()

    def _clear_done_request(self) -> None:
        """Whether what was asked is done."""
        done = {
            "pause": self.state.paused,
            "go": not self.state.paused,
            "stop": bool(self.state.end),
        }
        if done.get(self.requested, False):
            self.requested = ""

    def _read_when_due(self) -> None:
        if not self._reading.busy and time.monotonic() - self._last_read > READ_INTERVAL:
            self._read()

    def _on_read(self, found: tuple[RunUpdate, bool]) -> None:
        """Of the files of a run."""
        update, worked_on = found
        update.notify(self.state)
        self.mode = Mode.external if worked_on else Mode.idle
        self._clear_done_request()
        if not worked_on:
            self._timer.stop()
        self._emit_status()
        self.changed.emit()

    def _on_read_failed(self, text: str) -> None:
        """Its files cannot be read."""
        self._timer.stop()
        self._files = None
        self.folder = None
        self.failed.emit(text)
        self.changed.emit()

    def _read(self) -> None:
        files = self._files
        assert files is not None
        self._last_read = time.monotonic()

        def work(_: object) -> tuple[RunUpdate, bool]:
            from napari_shmoareg.training.run import read_holder

            holder = read_holder(files.folder / "lock")
            update = files.read()
            if holder is not None:
                update.events.append(
                    {"event": "paused" if holder["doing"] == "paused" else "resumed"}
                )
            return update, holder is not None

        self._reading.start(work)


class _ChildRef:
    """The child that runs; no part of Qt, so that it can be let go after a panel is gone."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def close_stdin(self) -> None:
        """Have the child stop by itself."""
        if self.child is not None:
            self.child.close_stdin()
        self.child = None


def failure_text(ended: ExitStatus, child: Child, state: RunState) -> str:
    """What to tell of a child that did not end as it should; empty for one that did."""
    if state.error:
        return state.error
    if state.end and state.end["reason"] != "failed":
        return ""
    last = "\n".join(ended.last_lines.splitlines()[-5:])
    at = f" after step {state.step}" if state.step else " before its first step"
    said = f" It said last:\n{last}\nAll of it is in {child.log}." if last else ""
    again = " What was saved is still there: press Resume." if state.saved else ""
    return f"The run ended{at} {ended.description}, without saying why.{again}{said}"
