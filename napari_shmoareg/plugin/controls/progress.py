"""Progress of a task with the remaining time, and the Register button."""

from __future__ import annotations

import time
from enum import Enum

from qtpy.QtWidgets import QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_shmoareg.plugin.controls.forms import arranged, wrapped

BAR_STEPS = 1000  # resolution of the progress bar
SHORTCUT = "Ctrl+Return"
LOADING_SHARE = 0.08  # of a registration: reading and loading, unsuitable for an estimate


class PanelState(Enum):
    """The state of the Register panel."""

    idle = "Register"
    registering = "Cancel"
    cancelling = "Cancelling…"
    adding = "Adding layers…"


TIPS = {
    PanelState.idle: f"Register the moving image to the fixed one ({SHORTCUT}).",
    PanelState.registering: "Cancel the registration; no layers are added.",
    PanelState.cancelling: "The registration stops at its next step.",
    PanelState.adding: "The result is being added to the viewer.",
}


def progress_text(title: str, done: float, left: float | None) -> str:
    """Return ``deforming, 42 %, about 12 s left``."""
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


MIN_SHARE = 0.03  # of the work, before which the remaining time is not estimated


class Clock:
    """Estimates the remaining time, counting down between two reports.

    Parameters
    ----------
    min_share : float
        Share of the work that must be done before an estimate.
    """

    def __init__(self, min_share: float = MIN_SHARE) -> None:
        self._min_share = min_share
        self._from: tuple[float, float] | None = None  # time and share at the start
        self._last = (0.0, -1.0)  # time and share of the last change

    def left(self, done: float, *, ready: bool = True) -> float | None:
        """Return the remaining seconds; None if unknown.

        Parameters
        ----------
        done : float
            Share of the work, 0 to 1.
        ready : bool
            Whether the current phase allows an estimate: loading does not.
        """
        now = time.perf_counter()
        if not ready:
            return None
        if self._from is None or done < self._from[1]:
            self._from = now, done
        if done != self._last[1]:
            self._last = now, done
        (began, first), at = self._from, self._last[0]
        if done - first <= self._min_share:
            return None
        return max(0.0, (at - began) * (1 - done) / (done - first) - (now - at))


class ProgressBox(QWidget):
    """A message, and a progress bar while a task runs; `min_share` as for `Clock`."""

    def __init__(self, min_share: float = MIN_SHARE) -> None:
        super().__init__()
        self.bar, self.message = QProgressBar(), QLabel()
        self.bar.setRange(0, BAR_STEPS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        wrapped(self.message, narrow=True)
        self._min_share = min_share
        self.clock = Clock(min_share)
        self.column = arranged(QVBoxLayout(self), self.message, self.bar)

    def begin(self) -> None:
        """Reset for a new task."""
        self.clock = Clock(self._min_share)
        self.bar.setValue(0)
        self.message.setText("starting")

    def show_progress(self, title: str, done: float, *, ready: bool = True) -> None:
        """Show the progress; `ready` as for `Clock.left`."""
        self.bar.setValue(round(BAR_STEPS * done))
        self.message.setText(progress_text(title, done, self.clock.left(done, ready=ready)))

    def update_visibility(self, *, busy: bool) -> None:
        """Show the bar while busy, and the message if there is one."""
        self.bar.setVisible(busy)
        self.message.setVisible(busy or bool(self.message.text()))


class ProgressRow(ProgressBox):
    """The Register button, with a progress bar and the remaining time during a registration."""

    def __init__(self) -> None:
        super().__init__(LOADING_SHARE)
        self.button = QPushButton(PanelState.idle.value)
        self.button.setDefault(True)
        self.bar.setToolTip("Progress of the registration.")
        self.message.setToolTip("The current phase and the approximate remaining time.")
        self.column.addWidget(self.button)
        self.show_state(PanelState.idle, None)

    def show_state(self, state: PanelState, missing: str | None) -> None:
        """Show the action of the button, or what is missing for it."""
        ready = state is not PanelState.idle or missing is None
        self.button.setText((state.value if ready else str(missing)).replace("&", "&&"))
        self.button.setToolTip(TIPS[state] if ready else f"Cannot register: {missing}.")
        self.button.setEnabled(
            state is PanelState.registering or (state is PanelState.idle and ready)
        )
        for widget in (self.bar, self.message):
            widget.setVisible(state is not PanelState.idle)
