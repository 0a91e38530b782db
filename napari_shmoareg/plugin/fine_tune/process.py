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
from napari_shmoareg.plugin.fine_tune.run_model import News, RunFiles, RunState

LAST = 12  # lines of what a child that broke down said last
MOST = 2000  # events that are handed over at once, so that a window does not stand still over them
CALMER = 5  # of 19: leaves the processor to the window first

Event = Mapping[str, Any]


class Ended(NamedTuple):
    """How a child ended: its exit code, negative for a signal, and the last lines that it said
    beside events.
    """

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
        """Close its standard input: it stops at its next safe step, and saves.  Waits for
        nothing.
        """
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


CALLED = (sys.executable, "-m", "napari_shmoareg", "fine-tune")


@dataclass(frozen=True)
class Order:
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
    finding: Mapping[str, str] = field(default_factory=dict)
    weights: str = "auto"
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""

    def arguments(self, *more: str) -> list[str]:
        """What follows ``shmoareg fine-tune``."""
        found = [self.dataset] if self.dataset else []
        found += ["--out", self.out]
        words = {**self.finding, "from": self.weights, "preset": self.preset, "device": self.device}
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
        return [*CALLED, *self.arguments("--json", "--with-parent", *more)]

    def written(self, *more: str) -> str:
        """As a person types it."""
        return shlex.join(["shmoareg", "fine-tune", *self.arguments(*more)])


def _option(name: str, value: Any) -> Sequence[str]:
    kebab = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{kebab}" if value else f"--no-{kebab}"]
    return [] if value is None else [f"--{kebab}", str(value)]


EVERY = 250  # ms between two looks at a child, and so between two drawings
LOOKS = 2.0  # s between two looks into a folder


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

    changed, turned, began, ended = Signal(), Signal(), Signal(), Signal()
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self.known, self.mode = RunState(), Mode.nothing
        self.folder: Path | None = None
        self.asked = ""  # of the run, and not done yet
        self._held = held = _Held()
        # not `destroyed`: a slot can be collected before it is called
        weakref.finalize(self, held.let_go)
        self._files: RunFiles | None = None
        self._reading = Task(parent, "reading a run")
        self._reading.finished.connect(self._take)
        self._reading.failed.connect(self._lose)
        self._looked = self._heard = 0.0
        self._told: object = None  # of how it stood when `turned` was last emitted
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY)
        self._timer.timeout.connect(self._look)

    @property
    def silent(self) -> float:
        """Seconds since the child told something."""
        return time.monotonic() - self._heard if self.mode is Mode.own else 0.0

    def start(self, command: Sequence[str], folder: Path) -> None:
        """Start a child that works on a folder.  What is known of the same folder stays known.

        Nothing happens while a child is held: there is one at a time.
        """
        if self._held.child is not None:
            return
        try:
            child = Child(command)
        except OSError as error:
            self.failed.emit(f"The run could not be started: {error}.")
            return
        if folder != self.folder:
            self.known = RunState()
        self.known.start_anew()
        self._held.child, self.folder, self.mode, self.asked = child, folder, Mode.own, ""
        self._reading.drop()
        self._files, self._heard = None, time.monotonic()
        self._timer.start()
        self.began.emit()
        self.changed.emit()

    def open(self, folder: Path) -> None:
        """Show a run that lies in a folder, and go on looking as long as another process works on
        it.
        """
        self.close()
        self.known, self.folder, self.mode, self.asked = RunState(), folder, Mode.nothing, ""
        self._files = RunFiles(folder)
        self._read()
        self._timer.start()
        self.began.emit()

    def release(self) -> None:
        """Forget a run that no child of this panel works on."""
        if self._held.child is not None:
            return
        self.close()
        self.known, self.folder, self.mode, self.asked = RunState(), None, Mode.nothing, ""
        self.changed.emit()

    def ask(self, word: str) -> None:
        """Ask the run to "pause", "go" or "stop"; it does so at its next safe step."""
        if self.folder is None:
            return
        if self._held.child is not None:
            # heard at any time; a wish in the folder only once that was made
            self._held.child.say(word)
            self.asked = word
            self.changed.emit()
            return
        from napari_shmoareg.training.run import write_request

        try:
            write_request(self.folder / "wish", word)
        except InputError as error:
            self.failed.emit(in_words_of_the_form(error))
            return
        self.asked = word
        self.changed.emit()

    def close(self) -> None:
        """Let go of the run: a child stops at its next safe step, by itself; others go on."""
        self._held.let_go()
        self._timer.stop()
        self._reading.drop()
        self._files = None
        if self.mode is not Mode.nothing:
            self.mode = Mode.still
            self.changed.emit()

    def _look(self) -> None:
        if self._held.child is not None:
            self._hear(self._held.child)
        elif self._files is not None:
            self._watch()
        self._turn()

    def _turn(self) -> None:
        now = self.mode, self.asked, self.known.paused, bool(self.known.about), bool(self.known.end)
        if now != self._told:
            self._told = now
            self.turned.emit()

    def _hear(self, child: Child) -> None:
        events = child.events()
        for event in events:
            self.known.take(event)
        if events:
            self._heard = time.monotonic()
            self._obeyed()
        ended = child.ended
        if ended is not None:
            self._held.child = None
            self._timer.stop()
            self.mode, self.asked = Mode.still, ""
            text = broken(ended, child, self.known)
            if text:
                self.known.error = text
                self.failed.emit(text)
            else:
                child.forget()
            self.ended.emit()
        if events or ended is not None or self.silent > 5:
            self.changed.emit()

    def _obeyed(self) -> None:
        """Whether what was asked is done."""
        done = {
            "pause": self.known.paused,
            "go": not self.known.paused,
            "stop": bool(self.known.end),
        }
        if done.get(self.asked, False):
            self.asked = ""

    def _watch(self) -> None:
        if not self._reading.busy and time.monotonic() - self._looked > LOOKS:
            self._read()

    def _take(self, found: tuple[News, bool]) -> None:
        """Of the files of a run."""
        news, worked_on = found
        news.tell(self.known)
        self.mode = Mode.elsewhere if worked_on else Mode.still
        self._obeyed()
        if not worked_on:
            self._timer.stop()
        self._turn()
        self.changed.emit()

    def _lose(self, text: str) -> None:
        """Its files cannot be read."""
        self._timer.stop()
        self._files = None
        self.folder = None
        self.failed.emit(text)
        self.changed.emit()

    def _read(self) -> None:
        files = self._files
        assert files is not None
        self._looked = time.monotonic()

        def work(_: object) -> tuple[News, bool]:
            from napari_shmoareg.training.run import read_holder

            holder = read_holder(files.folder / "lock")
            news = files.read()
            if holder is not None:
                news.events.append(
                    {"event": "paused" if holder["doing"] == "paused" else "resumed"}
                )
            return news, holder is not None

        self._reading.start(work)


class _Held:
    """The child that runs; no part of Qt, so that it can be let go after a panel is gone."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def let_go(self) -> None:
        """Have the child stop by itself."""
        if self.child is not None:
            self.child.let_go()
        self.child = None


def broken(ended: Ended, child: Child, known: RunState) -> str:
    """What to tell of a child that did not end as it should; empty for one that did."""
    if known.error:
        return known.error
    if known.end and known.end["reason"] != "failed":
        return ""
    last = "\n".join(ended.words.splitlines()[-5:])
    at = f" after step {known.step}" if known.step else " before its first step"
    said = f" It said last:\n{last}\nAll of it is in {child.log}." if last else ""
    again = " What was saved is still there: press Resume." if known.saved else ""
    return f"The run ended{at} {ended.how}, without saying why.{again}{said}"
