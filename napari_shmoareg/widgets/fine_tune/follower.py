"""Follows a run: its child process, or its folder while others work on it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.geometry import InputError
from napari_shmoareg.widgets.fine_tune.background import Background
from napari_shmoareg.widgets.fine_tune.child import Child, Ended
from napari_shmoareg.widgets.fine_tune.known import Known
from napari_shmoareg.widgets.fine_tune.run_files import News, RunFiles

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
        What can be asked of the run is another: who works on it, whether it waits, what it was asked for.
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
        self.known, self.folder, self.mode = Known(), None, Mode.nothing  # type: tuple[Known, Path | None, Mode]
        self.asked = ""  # of the run, and not done yet
        self._held = held = _Held()
        weakref.finalize(self, held.let_go)  # not `destroyed`: a slot can be collected before it is called
        self._files: RunFiles | None = None
        self._reading: Background[tuple[News, bool]] = Background()
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
            self.known = Known()
        self.known.start_anew()
        self._held.child, self.folder, self.mode, self.asked = child, folder, Mode.own, ""
        self._files, self._heard = None, time.monotonic()
        self._timer.start()
        self.began.emit()
        self.changed.emit()

    def open(self, folder: Path) -> None:
        """Show a run that lies in a folder, and go on looking as long as another process works on it."""
        self.close()
        self.known, self.folder, self.mode, self.asked = Known(), folder, Mode.nothing, ""
        self._files = RunFiles(folder)
        self._read()
        self._timer.start()
        self.began.emit()

    def release(self) -> None:
        """Forget a run that no child of this panel works on."""
        if self._held.child is not None:
            return
        self.close()
        self.known, self.folder, self.mode, self.asked = Known(), None, Mode.nothing, ""
        self.changed.emit()

    def ask(self, word: str) -> None:
        """Ask the run to "pause", "go" or "stop"; it does so at its next safe step."""
        if self.folder is None:
            return
        if self._held.child is not None:
            self._held.child.say(word)  # heard at any time; a wish in the folder only once that was made
            self.asked = word
            self.changed.emit()
            return
        from napari_shmoareg.io.training_run.wishes import write_wish

        try:
            write_wish(self.folder / "wish", word)
        except InputError as error:
            self.failed.emit(str(error))
            return
        self.asked = word
        self.changed.emit()

    def close(self) -> None:
        """Let go of the run: a child stops at its next safe step, by itself; others go on."""
        self._held.let_go()
        self._timer.stop()
        self._files = None
        if self.mode is not Mode.nothing:
            self.mode = Mode.still
            self.changed.emit()

    def _look(self) -> None:
        if self._held.child is not None:
            self._hear(self._held.child)
        elif self._files is not None:
            self._watch()
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
        done = {"pause": self.known.paused, "go": not self.known.paused, "stop": bool(self.known.end)}
        if done.get(self.asked, False):
            self.asked = ""

    def _watch(self) -> None:
        outcome = self._reading.fetch()
        if outcome is not None and outcome.value is None:
            self._timer.stop()
            self._files = None
            self.folder = None
            self.failed.emit(outcome.error)
            self.changed.emit()
        elif outcome is not None and outcome.value is not None:
            news, worked_on = outcome.value
            news.tell(self.known)
            self.mode = Mode.elsewhere if worked_on else Mode.still
            self._obeyed()
            if not worked_on:
                self._timer.stop()
            self.changed.emit()
        elif not self._reading.busy and time.monotonic() - self._looked > LOOKS:
            self._read()

    def _read(self) -> None:
        files = self._files
        assert files is not None
        self._looked = time.monotonic()

        def work() -> tuple[News, bool]:
            from napari_shmoareg.io.training_run.lock import read_holder

            holder = read_holder(files.folder / "lock")
            news = files.read()
            if holder is not None:
                news.events.append({"event": "paused" if holder["doing"] == "paused" else "resumed"})
            return news, holder is not None

        self._reading.begin(work)


class _Held:
    """The child that runs; no part of Qt, so that it can be let go after a panel is gone."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def let_go(self) -> None:
        """Have the child stop by itself."""
        if self.child is not None:
            self.child.let_go()
        self.child = None


def broken(ended: Ended, child: Child, known: Known) -> str:
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
