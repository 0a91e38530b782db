"""Work beside the viewer: a task in a thread, its reports and its end; timers and throttles.

The libraries that a registration needs, loaded ahead; the network of a registration, run again.
"""

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


EVERY = 100  # ms between two reports to the owner of a task
CANCEL = "Cancel"


class Report:
    """What the function of a task is given: it says where it is, and ends here once cancelled.

    Parameters
    ----------
    ended : callable
        Whether the work is to end for another reason, such as a window that was closed.
    forward : callable, optional
        Gets every title and fraction too.

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
        self._stop, self._ended, self._forward = threading.Event(), ended, forward

    def __call__(self, title: str, fraction: float = 0.0) -> None:
        """Say where the work is, from its thread.

        Raises
        ------
        Interrupted
            If it was cancelled.
        """
        self.check()
        self.reached = (title, fraction)
        self._forward(title, fraction)

    def check(self) -> None:
        """End here if the work was cancelled.

        Raises
        ------
        Interrupted
        """
        if self.cancelled:
            raise Interrupted

    def cancel(self) -> None:
        """Have the work end at its next report."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether the work is to end."""
        return self._stop.is_set() or self._ended()

    def part(self, low: float, high: float) -> Report:
        """For a part of the work: its fractions 0 to 1 are `low` to `high` of the whole."""
        return Report(
            lambda: self.cancelled,
            lambda title, fraction: self(title, low + (high - low) * fraction),
        )


class _Run:
    """A function with its outcome, for a worker of napari; calling it never raises."""

    def __init__(self, function: Callable[[Report], Any], name: str) -> None:
        self._function, self._name, self.report = function, name, Report()
        self.value: Any = None
        self.error, self.docked, self.interrupted, self.ended = "", False, False, False

    def __repr__(self) -> str:
        return self._name  # in napari's question whether to close its window

    def __call__(self) -> None:
        try:
            self.value = self._function(self.report)
        except Interrupted:
            self.interrupted = True
        except Exception as error:
            self.error = explain(error)
        self._function = lambda _: None  # holds nothing any more
        self.ended = True


def _is_over(closed: threading.Event, worker: Callable[[], Any]) -> bool:
    """Whether the owner is gone, or napari is being closed."""
    return closed.is_set() or getattr(worker(), "abort_requested", False)


class Task(QObject):
    """Long work beside the viewer, one piece at a time.

    It ends when it is cancelled, its owner is destroyed, the owner's dock is closed or napari is
    closed; napari names it where it asks whether to close its window.

    Parameters
    ----------
    owner : QObject
        Whose work it is: a widget, or the program for work that a closed dock does not end.
    name : str
        In plain words, such as "registration #1".

    Attributes
    ----------
    progressed : Signal(str, float)
        Where the work is: a title, and 0 to 1.  Ten times a second, and once more at its end.
    finished : Signal(object)
        What the function returned.
    failed : Signal(str)
        Its error, explained; not yet shown to anyone.  One that is not foreseen is logged whole.
    cancelled : Signal()
        It ended because it was cancelled, or its owner is gone.

    Examples
    --------
    In a widget: ``self.task = Task(self, "a replay")``; ``self.task.finished.connect(self._show)``;
    ``self.task.start(lambda report: replay_of(scene, report))``.
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
        self._timer.setInterval(EVERY)
        self._timer.timeout.connect(self._look)

    @property
    def busy(self) -> bool:
        """Whether it runs."""
        return self._run is not None

    def start(self, function: Callable[[Report], Any]) -> bool:
        """Call a function in a thread of its own.

        Parameters
        ----------
        function : callable
            Given a `Report`, which it calls with a title and a fraction from time to time.

        Returns
        -------
        bool
            False where the task is busy: nothing is begun.
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
        """Have it end at its next report, if there is one; then `cancelled` follows."""
        if self._run is not None:
            self._run.report.cancel()

    def drop(self) -> None:
        """Cancel it and emit nothing more of it; another one can be started at once."""
        self.cancel()
        self._run = None
        self._timer.stop()

    def _is_shown(self) -> bool:
        """Whether the window that its owner is in is open."""
        window = getattr(self.parent(), "window", lambda: None)()
        return window is not None and window.isVisible()

    def _look(self) -> bool:
        """Report, and say whether the owner is still there."""
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
        there = self._look()
        self._run = None
        value, run.value = run.value, None  # napari may keep the run for longer
        self._timer.stop()
        if run.error:
            self.failed.emit(run.error)
        elif run.interrupted or not there:
            self.cancelled.emit()
        else:
            self.finished.emit(value)


def single_shot(owner: QObject, wait: int, then: Callable[[], Any]) -> QTimer:
    """A timer that calls a function once, `wait` ms after it was last started."""
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(wait)
    timer.timeout.connect(then)
    return timer


FASTEST = 0.25  # s between two drawings
SHARE = 8.0  # times that a drawing took, until the next one


class Throttle(QObject):
    """Calls a function after it was asked to, at most four times a second; less where drawing takes
    long.

    Ours: in a window with a 3D canvas every change has the whole window put together anew, which
    takes a third of a second without a graphics card.  So it is measured, and no more than an
    eighth of the time goes into it.

    Parameters
    ----------
    parent : QObject
    draw : callable
    """

    def __init__(self, parent: QObject, draw: Callable[[], None]) -> None:
        super().__init__(parent)
        self._draw = draw
        self._next = self._began = 0.0
        self._due = single_shot(self, 0, self._now)
        self._after = single_shot(self, 0, self._drawn)

    def request(self) -> None:
        """Have it drawn, now or soon."""
        if not self._due.isActive():
            self._due.start(max(0, round(1000 * (self._next - time.monotonic()))))

    def _now(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + FASTEST
        self._draw()
        self._after.start()  # comes when all that has to be painted is painted

    def _drawn(self) -> None:
        now = time.monotonic()
        self._next = max(self._next, now + SHARE * (now - self._began))


class Libraries(NamedTuple):
    """What there is to run with: names of the shipped weights, and whether there is a CUDA
    device.
    """

    weights: tuple[str, ...]
    cuda: bool


@cache
def preload() -> Future[Libraries]:
    """Begin to import what a registration needs, in a thread of its own, once.

    While torch is loaded, Python lets nothing else run for half a second."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="shmoareg preload")
    return executor.submit(_import_libraries)  # which Python waits for before it ends


def _import_libraries() -> Libraries:
    import torch

    from napari_shmoareg.io import shipped_weights
    from napari_shmoareg.registration.refinement import adam

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.sum().backward()
    adam([weight]).step()  # loads what a refinement needs
    return Libraries(tuple(shipped_weights()), torch.cuda.is_available())


# weights that a person showed
_CHOSEN: weakref.WeakKeyDictionary[Registration, str] = weakref.WeakKeyDictionary()


class WeightsError(InputError):
    """The weights of a registration cannot be read."""


def weights_of(scene: Registration) -> str:
    """Name or file of a registration's weights: what a person showed, or else what it says
    itself.
    """
    return _CHOSEN.get(scene) or str(scene.report.get("weights") or scene.weights)


def replay_of(scene: Registration, report: Report, weights: str | Path | None = None) -> Replay:
    """The network of a registration and its last pass, which can be made again; takes seconds, in a
    worker's thread.

    Parameters
    ----------
    scene : Registration
    report : Report
        Ends it between any two layers of the network.
    weights : str or Path, optional
        Other weights than the registration says, as where their file has moved; once read, they are
        those of this scene for every view.

    Raises
    ------
    WeightsError
        If there are no such weights.
    TooLargeError
        If the memory would not suffice; asked before anything is computed.
    Interrupted
        If the work was cancelled.
    """
    from napari_shmoareg.io import load_network
    from napari_shmoareg.registration.replay import Replay
    from napari_shmoareg.registration.resources import check_network_memory, find_device

    settings, pair = scene.report["settings"], scene.pair
    device = find_device("cpu" if settings.get("device") == "cpu" else "auto")
    report("loading the network")
    try:
        network = load_network(weights or weights_of(scene), device=device)
    except InputError as error:
        raise WeightsError(str(error)) from error
    if weights:
        _CHOSEN[scene] = str(weights)
    grids = {"moving": pair.moving.grid, "fixed": pair.fixed.grid}
    check_network_memory(network.config, scene.network_grid, **grids, device=device)
    report("running the network's earlier passes", 0.2)
    with interruptible(network, report.check):
        replay = Replay.of(pair, network, affine=scene.affine, settings=settings)
    report("ready", 1.0)
    return replay
