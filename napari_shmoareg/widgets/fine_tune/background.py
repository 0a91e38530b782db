"""A piece of work beside the window, whose outcome is fetched when there is time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from napari_shmoareg.geometry import InputError

T = TypeVar("T")


class Outcome(NamedTuple, Generic[T]):
    """What came of it: a value, or an error in words."""

    value: T | None
    error: str = ""


class Background(Generic[T]):
    """Does one thing at a time in a thread; it never raises, and nothing waits for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: Outcome[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether something was begun whose outcome was not fetched."""
        return self._thread is not None

    def begin(self, work: Callable[[], T]) -> None:
        """Start a piece of work; one that is under way is forgotten."""
        self._outcome = None
        self._thread = thread = threading.Thread(target=lambda: self._run(work, thread), daemon=True)
        thread.start()

    def forget(self) -> None:
        """Want no outcome of what is under way, which goes on to its end."""
        self._thread = self._outcome = None

    def fetch(self) -> Outcome[T] | None:
        """The outcome, once."""
        if self._thread is None or self._thread.is_alive() or self._outcome is None:
            return None
        outcome, self._outcome, self._thread = self._outcome, None, None
        return outcome

    def _run(self, work: Callable[[], T], thread: Any) -> None:
        try:
            outcome: Outcome[T] = Outcome(work())
        except (InputError, OSError) as error:
            outcome = Outcome(None, str(error))
        except Exception as error:  # told in the window, and whole in the terminal
            logging.getLogger(__name__).error("work beside the window failed", exc_info=error)
            outcome = Outcome(None, f"Something went wrong inside shmoareg ({type(error).__name__}: {error}).")
        if self._thread is thread:
            self._outcome = outcome
