"""Background tasks with progress reports, timers, preloading and replays of a registration."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.registration.progress import Interrupted, interruptible

if TYPE_CHECKING:
    from napari_shmoareg.registration.register import Registration
    from napari_shmoareg.registration.replay import Replay


REPORT_INTERVAL = 100  # ms between two progress signals
CANCEL = "Cancel"


class Report:
    """The progress callback of a task, which raises once the task is cancelled.

    Parameters
    ----------
    ended : callable
        Whether to stop for another reason, for example a closed window.
    forward : callable, optional
        Also called with every title and fraction.

    Attributes
    ----------
    reached : (str, float)
        The last title and fraction, 0 to 1.
    """

    def __init__(
        self,
        ended: Callable[[], bool] = lambda: False,
        forward: Callable[[str, float], None] = lambda title, fraction: None,
    ) -> None:
        self.reached = ("starting", 0.0)
        self._stop, self._is_ended, self._forward = threading.Event(), ended, forward

    def __call__(self, title: str, fraction: float = 0.0) -> None:
        """Report progress, from the thread of the task.

        Raises
        ------
        Interrupted
            If the task was cancelled.
        """
        self.check()
        self.reached = (title, fraction)
        self._forward(title, fraction)

    def check(self) -> None:
        """Raise `Interrupted` if the task was cancelled."""
        if self.cancelled:
            raise Interrupted

    def cancel(self) -> None:
        """Stop the task at its next report."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether the task should stop."""
        return self._stop.is_set() or self._is_ended()

    def part(self, low: float, high: float) -> Report:
        """Return a report for a part of the work, from `low` to `high` of the whole."""
        return Report(
            lambda: self.cancelled,
            lambda title, fraction: self(title, low + (high - low) * fraction),
        )


class _Run:
    """A function and its result, for a napari worker; calling it never raises."""

    def __init__(self, function: Callable[[Report], Any], name: str) -> None:
        self._function, self._name, self.report = function, name, Report()
        self.value: Any = None
        self.error, self.docked, self.interrupted, self.ended = "", False, False, False

    def __repr__(self) -> str:
        return self._name  # shown when napari asks whether to close its window

    def __call__(self) -> None:
        try:
            self.value = self._function(self.report)
        except Interrupted:
            self.interrupted = True
        except Exception as error:
            self.error = explain(error)
        self._function = lambda _: None  # release its references
        self.ended = True


def _is_over(closed: threading.Event, worker: Callable[[], Any]) -> bool:
    """Whether the owner was deleted or napari is closing."""
    return closed.is_set() or getattr(worker(), "abort_requested", False)


class Task(QObject):
    """Runs one function at a time in a background thread.

    Stops when it is cancelled, its owner is destroyed, the owner's dock is closed or napari is
    closed.

    Parameters
    ----------
    owner : QObject
        A widget, or the application for work that a closed dock does not end.
    name : str
        Shown when napari asks whether to close its window, for example "registration #1".

    Attributes
    ----------
    progressed : Signal(str, float)
        A title and a fraction, ten times a second and once at the end.
    finished : Signal(object)
        The return value of the function.
    failed : Signal(str)
        The error message, not yet shown.  Unexpected errors are logged with a traceback.
    cancelled : Signal()
        The task was cancelled or its owner deleted.

    Examples
    --------
    In a widget: ``self.task = Task(self, "a replay")``; ``self.task.finished.connect(self._show)``;
    ``self.task.start(lambda report: replay_of(registration, report))``.
    """

    progressed = Signal(str, float)
    finished = Signal(object)
    failed = Signal(str)
    cancelled = Signal()

    def __init__(self, owner: QObject, name: str) -> None:
        super().__init__(owner)
        self.name = name
        self._run: _Run | None = None
        self._closed = closed = threading.Event()
        # not `destroyed`: a slot can be collected before it is called
        weakref.finalize(owner, closed.set)
        self._timer = QTimer(self)
        self._timer.setInterval(REPORT_INTERVAL)
        self._timer.timeout.connect(self._poll)

    @property
    def busy(self) -> bool:
        """Whether a function is running."""
        return self._run is not None

    def start(self, function: Callable[[Report], Any]) -> bool:
        """Call a function in a new thread; return False without starting it while busy.

        The function takes a `Report`, which it calls regularly with a title and a fraction.
        """
        if self._run is not None:
            return False
        self._run = run = _Run(function, self.name)
        run.docked = self._is_shown()
        worker = create_worker(run, _start_thread=False, _ignore_errors=True)
        run.report = Report(partial(_is_over, self._closed, weakref.ref(worker)))
        worker.finished.connect(self._end)
        self._timer.start()
        worker.start()
        return True

    def cancel(self) -> None:
        """Stop at the next report, then emit `cancelled`."""
        if self._run is not None:
            self._run.report.cancel()

    def drop(self) -> None:
        """Cancel without further signals; another function can start immediately."""
        self.cancel()
        self._run = None
        self._timer.stop()

    def _is_shown(self) -> bool:
        """Whether the window of the owner is open."""
        window = getattr(self.parent(), "window", lambda: None)()
        return window is not None and window.isVisible()

    def _poll(self) -> bool:
        """Emit the progress; return whether the owner still exists."""
        run = self._run
        if run is None:
            return False
        closed = self._closed.is_set() or (run.docked and not self._is_shown())
        if closed:
            run.report.cancel()
        self.progressed.emit(*run.report.reached)
        return not closed

    def _end(self) -> None:
        run = self._run
        if run is None or not run.ended:  # a worker that was dropped
            return
        owner_exists = self._poll()
        self._run = None
        value, run.value = run.value, None  # napari may keep the run for longer
        self._timer.stop()
        if run.error:
            self.failed.emit(run.error)
        elif run.interrupted or not owner_exists:
            self.cancelled.emit()
        else:
            self.finished.emit(value)


def single_shot(owner: QObject, wait: int, then: Callable[[], Any]) -> QTimer:
    """Return a timer that calls a function once, `wait` ms after its last start."""
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(wait)
    timer.timeout.connect(then)
    return timer


MIN_INTERVAL = 0.25  # s between two calls
PAUSE_FACTOR = 8.0  # pause after a call, in multiples of its duration


class Throttle(QObject):
    """Calls a drawing function on request, at most four times a second, less if it is slow.

    Ours: with a 3D canvas, every change recomposes the whole window, which takes a third of a
    second without a graphics card.  So the duration is measured, and drawing takes at most an
    eighth of the time.
    """

    def __init__(self, parent: QObject, draw: Callable[[], None]) -> None:
        super().__init__(parent)
        self._draw = draw
        self._next = self._began = 0.0
        self._timer = single_shot(self, 0, self._run_draw)
        self._painted = single_shot(self, 0, self._measure)

    def request(self) -> None:
        """Draw now or soon."""
        if not self._timer.isActive():
            self._timer.start(max(0, round(1000 * (self._next - time.monotonic()))))

    def _run_draw(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + MIN_INTERVAL
        self._draw()
        self._painted.start()  # fires after all pending painting

    def _measure(self) -> None:
        now = time.monotonic()
        self._next = max(self._next, now + PAUSE_FACTOR * (now - self._began))


class Libraries(NamedTuple):
    """Names of the shipped weights, and whether a CUDA device is available."""

    weights: tuple[str, ...]
    cuda: bool


@cache
def preload() -> Future[Libraries]:
    """Import the libraries of a registration once, in a background thread.

    Importing torch blocks other Python threads for half a second."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="shmoareg preload")
    return executor.submit(_import_libraries)  # Python waits for it at exit


def _import_libraries() -> Libraries:
    import torch

    from napari_shmoareg.io import shipped_weights
    from napari_shmoareg.registration.refinement import adam

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.sum().backward()
    adam([weight]).step()  # imports what a refinement needs
    return Libraries(tuple(shipped_weights()), torch.cuda.is_available())


# weights that the user located
_CHOSEN_WEIGHTS: weakref.WeakKeyDictionary[Registration, str] = weakref.WeakKeyDictionary()


class WeightsError(InputError):
    """The weights of a registration cannot be read."""


def weights_of(registration: Registration) -> str:
    """Return the weights that the user located for a registration, else those it names."""
    return _CHOSEN_WEIGHTS.get(registration) or str(
        registration.report.get("weights") or registration.weights
    )


def replay_of(
    registration: Registration, report: Report, weights: str | Path | None = None
) -> Replay:
    """Return the replay of a registration: its network and last pass.  Takes seconds.

    Parameters
    ----------
    registration : Registration
    report : Report
        Can cancel between any two layers of the network.
    weights : str or Path, optional
        Weights to use instead of the named ones, for example if their file has moved; afterwards
        used for this registration everywhere.

    Raises
    ------
    WeightsError
        If the weights cannot be read.
    TooLargeError
        If the memory is insufficient; checked before computing.
    Interrupted
        If the task was cancelled.
    """
    from napari_shmoareg.io import load_network
    from napari_shmoareg.registration.replay import Replay
    from napari_shmoareg.registration.resources import check_network_memory, find_device

    settings, pair = registration.report["settings"], registration.pair
    device = find_device("cpu" if settings.get("device") == "cpu" else "auto")
    report("loading the network")
    try:
        network = load_network(weights or weights_of(registration), device=device)
    except InputError as error:
        raise WeightsError(str(error)) from error
    if weights:
        _CHOSEN_WEIGHTS[registration] = str(weights)
    grids = {"moving": pair.moving.grid, "fixed": pair.fixed.grid}
    check_network_memory(network.config, registration.network_grid, **grids, device=device)
    report("running the network's earlier passes", 0.2)
    with interruptible(network, report.check):
        replay = Replay.of(pair, network, affine=registration.affine, settings=settings)
    report("ready", 1.0)
    return replay
