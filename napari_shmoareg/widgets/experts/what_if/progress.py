"""How far a change is, and how long it will take."""

from __future__ import annotations

import time

from qtpy.QtWidgets import QLabel, QProgressBar, QSizePolicy, QVBoxLayout, QWidget

from napari_shmoareg.widgets.register.job import Status
from napari_shmoareg.widgets.register.progress_row import described

FINENESS = 1000  # steps of the bar
ENOUGH = 0.03  # of the work: done in less, it says nothing of the time that is left


class Clock:
    """The time that is left, once the network has run unchanged: loading says nothing of how long a run takes."""

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
