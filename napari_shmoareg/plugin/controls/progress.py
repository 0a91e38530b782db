"""Where a job is.

The button that says what is missing, and how far the work is.

How far a change is, and how long it will take.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import NamedTuple

from qtpy.QtWidgets import QLabel, QProgressBar, QPushButton, QSizePolicy, QVBoxLayout, QWidget


class Status(NamedTuple):
    """Where a job is: what people read, how far the whole is (0 to 1), seconds left or None."""

    title: str
    done: float
    left: float | None


FINENESS = 1000  # steps of the bar
SHORTCUT = "Ctrl+Return"


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


class ProgressRow(QWidget):
    """The Register button, with a bar and the time left while something runs."""

    def __init__(self) -> None:
        super().__init__()
        self.button = QPushButton(PanelState.nothing.value)
        self.button.setDefault(True)
        self.bar, self.told = QProgressBar(), QLabel()
        self.bar.setRange(0, FINENESS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.bar.setToolTip("How far the registration is.")
        self.told.setToolTip("What is being done, and about how long it will take.")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.told, self.bar, self.button):
            layout.addWidget(widget)
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

    def show_status(self, status: Status) -> None:
        """Say how far it is."""
        self.bar.setValue(round(FINENESS * status.done))
        self.told.setText(described(status))


def described(status: Status) -> str:
    """``deforming, 42 %, about 12 s left``."""
    parts = [status.title, f"{100 * status.done:.0f} %"]
    if status.left is not None:
        parts.append(_length(status.left))
    return ", ".join(parts)


def _length(seconds: float) -> str:
    if seconds < 1:
        return "nearly done"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"


ENOUGH = 0.03  # of the work: done in less, it says nothing of the time that is left


class Clock:
    """The time that is left, once the network has run unchanged: loading says nothing of how long a
    run takes.
    """

    def __init__(self) -> None:
        self._from: tuple[float, float] | None = None  # when, and how far it was then

    def left(self, done: float, *, ready: bool) -> float | None:
        """Seconds; None where it is not known yet.

        Parameters
        ----------
        done : float
            Of the work, 0 to 1.
        ready : bool
            Whether the network has run unchanged.
        """
        now = time.perf_counter()
        if not ready:
            return None
        if self._from is None or done < self._from[1]:
            self._from = now, done
        began, first = self._from
        return (now - began) * (1 - done) / (done - first) if done - first > ENOUGH else None


class ProgressBox(QWidget):
    """Words, and a bar while something runs."""

    def __init__(self) -> None:
        super().__init__()
        self.bar, self.told = QProgressBar(), QLabel()
        self.bar.setRange(0, FINENESS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.told.setWordWrap(True)
        self.told.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.clock = Clock()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.told)
        column.addWidget(self.bar)

    def begin(self) -> None:
        """Start from nothing."""
        self.clock = Clock()
        self.bar.setValue(0)
        self.told.setText("starting")

    def come(self, title: str, done: float, *, ready: bool) -> None:
        """Say where it is."""
        self.bar.setValue(round(FINENESS * done))
        self.told.setText(described(Status(title, done, self.clock.left(done, ready=ready))))

    def settle(self, *, busy: bool) -> None:
        """Show what there is to show."""
        self.bar.setVisible(busy)
        self.told.setVisible(busy or bool(self.told.text()))
