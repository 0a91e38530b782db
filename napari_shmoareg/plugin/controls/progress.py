"""How far a task is and how long it will take; the Register button that says what is missing."""

from __future__ import annotations

import time
from enum import Enum

from qtpy.QtWidgets import QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_shmoareg.plugin.controls.forms import arranged, wrapped

FINENESS = 1000  # steps of the bar
SHORTCUT = "Ctrl+Return"
EARLY = 0.08  # of a registration: reading and loading, which say little of the time left


class PanelState(Enum):
    """What the panel is at."""

    nothing = "Register"
    registering = "Cancel"
    cancelling = "Cancelling…"
    adding = "Adding layers…"


TIPS = {
    PanelState.nothing: f"Bring the moving image onto the fixed one ({SHORTCUT}).",
    PanelState.registering: "End the registration; nothing is added.",
    PanelState.cancelling: "The registration ends at its next step.",
    PanelState.adding: "The result is put into the viewer.",
}


def described(title: str, done: float, left: float | None) -> str:
    """``deforming, 42 %, about 12 s left``."""
    parts = [title, f"{100 * done:.0f} %"]
    if left is not None:
        parts.append(_length(left))
    return ", ".join(parts)


def _length(seconds: float) -> str:
    if seconds < 1:
        return "nearly done"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"


ENOUGH = 0.03  # of the work: done in less, it says nothing of the time that is left


class Clock:
    """The time that is left, counted down between two reports.

    Parameters
    ----------
    enough : float
        Share of the work before which the time left is anyone's guess.
    """

    def __init__(self, enough: float = ENOUGH) -> None:
        self._enough = enough
        self._from: tuple[float, float] | None = None  # when, and how far it was then
        self._last = (0.0, -1.0)  # when it got as far as it is

    def left(self, done: float, *, ready: bool = True) -> float | None:
        """Seconds; None where it is not known yet.

        Parameters
        ----------
        done : float
            Of the work, 0 to 1.
        ready : bool
            Whether what is done by now says anything: loading does not.
        """
        now = time.perf_counter()
        if not ready:
            return None
        if self._from is None or done < self._from[1]:
            self._from = now, done
        if done != self._last[1]:
            self._last = now, done
        (began, first), at = self._from, self._last[0]
        if done - first <= self._enough:
            return None
        return max(0.0, (at - began) * (1 - done) / (done - first) - (now - at))


class ProgressBox(QWidget):
    """Words, and a bar while something runs.

    Parameters
    ----------
    enough : float
        As of `Clock`.
    """

    def __init__(self, enough: float = ENOUGH) -> None:
        super().__init__()
        self.bar, self.told = QProgressBar(), QLabel()
        self.bar.setRange(0, FINENESS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        wrapped(self.told, narrow=True)
        self._enough = enough
        self.clock = Clock(enough)
        self.column = arranged(QVBoxLayout(self), self.told, self.bar)

    def begin(self) -> None:
        """Start from nothing."""
        self.clock = Clock(self._enough)
        self.bar.setValue(0)
        self.told.setText("starting")

    def show_progress(self, title: str, done: float, *, ready: bool = True) -> None:
        """Say where it is; `ready` as of `Clock.left`."""
        self.bar.setValue(round(FINENESS * done))
        self.told.setText(described(title, done, self.clock.left(done, ready=ready)))

    def settle(self, *, busy: bool) -> None:
        """Show what there is to show."""
        self.bar.setVisible(busy)
        self.told.setVisible(busy or bool(self.told.text()))


class ProgressRow(ProgressBox):
    """The Register button, with a bar and the time left while something runs."""

    def __init__(self) -> None:
        super().__init__(EARLY)
        self.button = QPushButton(PanelState.nothing.value)
        self.button.setDefault(True)
        self.bar.setToolTip("How far the registration is.")
        self.told.setToolTip("What is being done, and about how long it will take.")
        self.column.addWidget(self.button)
        self.show_doing(PanelState.nothing, None)

    def show_doing(self, doing: PanelState, missing: str | None) -> None:
        """Say what a click would do, or what it would need."""
        ready = doing is not PanelState.nothing or missing is None
        self.button.setText((doing.value if ready else str(missing)).replace("&", "&&"))
        self.button.setToolTip(TIPS[doing] if ready else f"{missing}, then it can be registered.")
        self.button.setEnabled(
            doing is PanelState.registering or (doing is PanelState.nothing and ready)
        )
        for widget in (self.bar, self.told):
            widget.setVisible(doing is not PanelState.nothing)
