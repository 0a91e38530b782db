"""Long work that can be asked to end, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from napari_shmoareg.engine.interruption import Interrupted


class Cancellable:
    """Keeps whether a piece of work was asked to end; the work itself calls `check` from time to time."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._unwanted: Callable[[], bool] = lambda: False

    def cancel(self) -> None:
        """Ask it to end; it does so at its next `check`."""
        self._stop.set()

    def cancel_when(self, unwanted: Callable[[], bool]) -> None:
        """Have it end as well when this says so, such as for a window that was closed."""
        self._unwanted = unwanted

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set() or self._unwanted()

    def check(self) -> None:
        """End here if it was cancelled.

        Raises
        ------
        Interrupted
        """
        if self.cancelled:
            raise Interrupted
