"""Draws as often as the window has time for, and no more."""

from __future__ import annotations

import time
from collections.abc import Callable

from qtpy.QtCore import QObject, QTimer

FASTEST = 0.25  # s between two drawings
SHARE = 8.0  # times that a drawing took, until the next one


class Pace(QObject):
    """Calls a function after it was asked to, at most four times a second; less where drawing takes long.

    Ours: in a window with a 3D canvas every change has the whole window put together anew, which takes a third of a
    second without a graphics card.  So it is measured, and no more than an eighth of the time goes into it.

    Parameters
    ----------
    parent : QObject
    draw : callable
    """

    def __init__(self, parent: QObject, draw: Callable[[], None]) -> None:
        super().__init__(parent)
        self._draw = draw
        self._next = self._began = 0.0
        self._due, self._after = QTimer(self), QTimer(self)
        for timer, act in ((self._due, self._now), (self._after, self._drawn)):
            timer.setSingleShot(True)
            timer.timeout.connect(act)

    def ask(self) -> None:
        """Have it drawn, now or soon."""
        if not self._due.isActive():
            self._due.start(max(0, round(1000 * (self._next - time.monotonic()))))

    def _now(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + FASTEST
        self._draw()
        self._after.start(0)  # comes when all that has to be painted is painted

    def _drawn(self) -> None:
        now = time.monotonic()
        self._next = max(self._next, now + SHARE * (now - self._began))
