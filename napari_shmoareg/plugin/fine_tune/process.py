"""A training run in a child process: its command, its process and its state."""

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
from napari_shmoareg.plugin.controls.errors import form_message
from napari_shmoareg.plugin.controls.tasks import Task
from napari_shmoareg.plugin.fine_tune.run_model import RunFiles, RunState, RunUpdate

LAST_LINES = 12  # of the output of a child that failed
MAX_EVENTS = 2000  # handled per call, so that the window stays responsive
NICENESS = 5  # of 19: gives the window priority on the processor

Event = Mapping[str, Any]


class ExitStatus(NamedTuple):
    """The exit code of a child, negative for a signal, and its last output lines besides events."""

    code: int
    last_lines: str

    @property
    def description(self) -> str:
        """``with exit code 3``, ``by the signal SIGKILL (the memory may have run out)``."""
        if self.code >= 0:
            return f"with exit code {self.code}"
        names = {int(s): s.name for s in signal.Signals}
        reason = " (the memory may have run out)" if self.code == -9 else ""
        return f"by the signal {names.get(-self.code, -self.code)}{reason}"


class Child:
    """Runs a command in a child process and reads its events in a thread.

    The child is never killed.  Closing its standard input asks it to stop, which also happens
    whenever this process ends.

    Parameters
    ----------
    command : sequence of str
        Prints one JSON object per line; other lines are kept as text.

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
                start_new_session=True,  # it ignores Ctrl-C in napari's terminal
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
        """Process id."""
        return self._process.pid

    @property
    def ended(self) -> ExitStatus | None:
        """Exit status; None while it runs or has unread events."""
        if self._thread.is_alive() or not self._events.empty() or self._code is None:
            return None
        with self.log.open(encoding="utf-8", errors="replace") as file:
            lines = list(deque((line.rstrip() for line in file), maxlen=LAST_LINES))
        return ExitStatus(
            self._code, "\n".join(line for line in [*self._other_lines, *lines] if line)
        )

    def events(self) -> list[Event]:
        """Return the new events, oldest first."""
        new: list[Event] = []
        while len(new) < MAX_EVENTS:
            try:
                new.append(self._events.get_nowait())
            except queue.Empty:
                break
        return new

    def send(self, word: str) -> None:
        """Send "pause", "go" or "stop", unless the child has ended."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{word}\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._other_lines.append(f"(the process ended before the request to {word})")

    def close_stdin(self) -> None:
        """Ask the child to save and stop at its next safe step, without waiting for it."""
        if self._process.stdin is None:
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # a request was unread when it ended
            self._other_lines.append("(the process ended before its input was closed)")

    def remove_log(self) -> None:
        """Delete the log, after a normal end."""
        self.log.unlink(missing_ok=True)

    def _read(self) -> None:
        """Read the output, in a thread that keeps the process object alive until the end."""
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
    """Parse a line as an event; None for other text."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _lower_priority(pid: int) -> None:
    """Give the window priority on the processor, if the system permits."""
    import psutil

    process = psutil.Process(pid)
    try:
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if psutil.WINDOWS else NICENESS)
    except psutil.Error:
        return  # it has ended, or may not be changed: training continues regardless


COMMAND = (sys.executable, "-m", "napari_shmoareg", "fine-tune")


@dataclass(frozen=True)
class RunRequest:
    """The options of a run: data set, settings and run folder.

    Attributes
    ----------
    out : str
        The run's folder.
    dataset : str
        A folder or a list; empty to resume a run with its own data set.
    file_options : mapping
        How to find the files (images, labels, subject, kind); empty values are omitted.
    weights, device : str
        "auto" for the command's default; weights "none" for random weights.
    settings : mapping
        By the names of `FineTuning` and `RunSettings`.
    preset : str
        Network of a run with random weights; empty otherwise.
    """

    out: str
    dataset: str = ""
    file_options: Mapping[str, str] = field(default_factory=dict)
    weights: str = "auto"
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""

    def arguments(self, *more: str) -> list[str]:
        """Return the arguments of ``shmoareg fine-tune``."""
        arguments = [self.dataset] if self.dataset else []
        arguments += ["--out", self.out]
        options = {
            **self.file_options,
            "from": self.weights,
            "preset": self.preset,
            "device": self.device,
        }
        for name, option in options.items():
            if option and option != "auto":
                arguments += [f"--{name}", option]
        for name, value in self.settings.items():
            arguments += _option(name, value)
        return [*arguments, *more]

    def command(self, *more: str) -> list[str]:
        """Return the command of a child that reports events and stops at most a step after us."""
        return [*COMMAND, *self.arguments("--json", "--with-parent", *more)]

    def command_line(self, *more: str) -> str:
        """Return the command as typed in a terminal."""
        return shlex.join(["shmoareg", "fine-tune", *self.arguments(*more)])


def _option(name: str, value: Any) -> Sequence[str]:
    kebab = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{kebab}" if value else f"--no-{kebab}"]
    return [] if value is None else [f"--{kebab}", str(value)]


POLL_INTERVAL = 250  # ms between reading events, and so between updates of the panel
READ_INTERVAL = 2.0  # s between reading a run folder


class Mode(Enum):
    """Which process works on the shown run."""

    nothing = "no run is open"
    own = "a child process of this panel"
    external = "another process"
    idle = "no process"


class Follower(QObject):
    """Tracks one run and sends it requests to pause, continue or stop.

    Attributes
    ----------
    changed : Signal
        The state changed; at most four times a second.
    status_changed : Signal
        The available requests changed: the mode, a pause or a pending request.
    started : Signal
        Another run is shown.
    failed : Signal(str)
        An error message.
    ended : Signal
        A child of this panel ended, for any reason.
    """

    changed, status_changed, started, ended = Signal(), Signal(), Signal(), Signal()
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.state, self.mode = RunState(), Mode.nothing
        self.folder: Path | None = None
        self.requested = ""  # pending request
        self._child_ref = child_ref = _ChildRef()
        # not `destroyed`: a slot can be collected before it is called
        weakref.finalize(self, child_ref.release)
        self._files: RunFiles | None = None
        self._reading = Task(parent, "reading a run")
        self._reading.finished.connect(self._on_read)
        self._reading.failed.connect(self._on_read_failed)
        self._last_read = self._last_event = 0.0
        self._last_status: object = None  # when `status_changed` was last emitted
        self._timer = QTimer(self)
        self._timer.setInterval(POLL_INTERVAL)
        self._timer.timeout.connect(self._poll)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last event of the child."""
        return time.monotonic() - self._last_event if self.mode is Mode.own else 0.0

    def start(self, command: Sequence[str], folder: Path) -> None:
        """Start a child on a run folder, keeping the state of the same folder.

        Does nothing while another child runs.
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
        """Show the run in a folder, and follow it while another process works on it."""
        self.close()
        self.state, self.folder, self.mode, self.requested = RunState(), folder, Mode.nothing, ""
        self._files = RunFiles(folder)
        self._read()
        self._timer.start()
        self.started.emit()

    def release(self) -> None:
        """Stop showing a run, unless a child of this panel works on it."""
        if self._child_ref.child is not None:
            return
        self.close()
        self.state, self.folder, self.mode, self.requested = RunState(), None, Mode.nothing, ""
        self.changed.emit()

    def request(self, word: str) -> None:
        """Ask the run to "pause", "go" or "stop" at its next safe step."""
        if self.folder is None:
            return
        if self._child_ref.child is not None:
            # always read; the request file only works once the folder exists
            self._child_ref.child.send(word)
            self.requested = word
            self.changed.emit()
            return
        from napari_shmoareg.training.run_folder import write_request

        try:
            write_request(self.folder / "wish", word)
        except InputError as error:
            self.failed.emit(form_message(error))
            return
        self.requested = word
        self.changed.emit()

    def close(self) -> None:
        """Stop following the run; a child stops at its next safe step, other processes continue."""
        self._child_ref.release()
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
        now = (
            self.mode,
            self.requested,
            self.state.paused,
            bool(self.state.about),
            bool(self.state.end),
        )
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
        """Clear the pending request once it is done."""
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
        """Apply an update from the files of a run."""
        update, worked_on = found
        update.apply_to(self.state)
        self.mode = Mode.external if worked_on else Mode.idle
        self._clear_done_request()
        if not worked_on:
            self._timer.stop()
        self._emit_status()
        self.changed.emit()

    def _on_read_failed(self, text: str) -> None:
        """Stop following a run with unreadable files."""
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
            from napari_shmoareg.training.run_folder import read_holder

            holder = read_holder(files.folder / "lock")
            update = files.read()
            if holder is not None:
                update.events.append(
                    {"event": "paused" if holder["doing"] == "paused" else "resumed"}
                )
            return update, holder is not None

        self._reading.start(work)


class _ChildRef:
    """The running child; not a Qt object, so that it can be released after the panel is deleted."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def release(self) -> None:
        """Ask the child to stop, and drop it."""
        if self.child is not None:
            self.child.close_stdin()
        self.child = None


def failure_text(ended: ExitStatus, child: Child, state: RunState) -> str:
    """Describe the failure of a child; empty after a normal end."""
    if state.error:
        return state.error
    if state.end and state.end["reason"] != "failed":
        return ""
    last = "\n".join(ended.last_lines.splitlines()[-5:])
    at = f" after step {state.step}" if state.step else " before its first step"
    output = f" Its last output:\n{last}\nThe full log is {child.log}." if last else ""
    resume = " Press Resume to continue from the saved state." if state.saved else ""
    return f"The run ended{at} {ended.description}, without giving a reason.{resume}{output}"
