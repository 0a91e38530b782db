"""Long work of the Experts panel, and the network run again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QWidget

from napari_shmoareg.engine.interruption import Interrupted, interruptible
from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.cancelling import Cancellable

if TYPE_CHECKING:
    from pathlib import Path

    from napari_shmoareg.analysis.scene import Scene
    from napari_shmoareg.engine.replay import Replay

EVERY = 100  # ms between two looks at the worker
CANCEL = "Cancel"
_CHOSEN: weakref.WeakKeyDictionary[Scene, str] = weakref.WeakKeyDictionary()  # weights that a person showed


class WeightsError(InputError):
    """The weights of a registration cannot be read."""


@dataclass(frozen=True, eq=False)
class Done:
    """What a work came to: a value, or an error in plain words, or neither, if it was cancelled."""

    value: Any = None
    error: str = ""


class Work(Cancellable):
    """Something long, called in a thread of its own; never raises.

    Parameters
    ----------
    do : callable
        Given this work, in the worker's thread; what it returns is the value.  It calls `tell` or `check` from
        time to time, which end it once it is cancelled.
    name : str
        For napari, where it asks whether to close its window.
    """

    def __init__(self, do: Callable[[Work], Any], name: str = "the experts' work") -> None:
        super().__init__()
        self._do, self._name = do, name
        self.reached = ("starting", 0.0)

    def __repr__(self) -> str:
        return self._name

    def __call__(self) -> Done:
        """Do it."""
        try:
            return Done(self._do(self))
        except Interrupted:
            return Done()
        except Exception as error:
            from napari_shmoareg.widgets.register.job import explain

            return Done(error=explain(error))
        finally:
            self._do = lambda _: None  # holds nothing any more

    def tell(self, title: str, done: float = 0.0) -> None:
        """Say where it is, 0 to 1, and `check`."""
        self.check()
        self.reached = (title, done)


class Errand(QObject):
    """Runs one `Work` after another for a view, and ends with it.

    Parameters
    ----------
    owner : QWidget
        Whose view it is.  A work ends when the owner is destroyed, its dock closed, or the window closed.

    Attributes
    ----------
    came : Signal(str, float)
        Where the work is: a title, and 0 to 1.
    ready : Signal(object)
        The value that a work returned.
    failed : Signal(str)
        What went wrong, in plain words; not yet shown to anyone.
    cancelled : Signal()
        The work ended because it was cancelled.

    Examples
    --------
    In a view: ``self.errand = Errand(self)``; ``self.errand.ready.connect(self._take)``; then
    ``self.errand.start(lambda work: Experiment(replay_of(scene, work)))``, or ``self.errand.start_replay(scene)``.
    """

    came = Signal(str, float)
    ready = Signal(object)
    failed = Signal(str)
    cancelled = Signal()

    def __init__(self, owner: QWidget) -> None:
        super().__init__(owner)
        self._owner = owner
        self._work: Work | None = None
        self._worker: Any = None
        self._docked = False
        closed = threading.Event()
        weakref.finalize(owner, closed.set)  # not `destroyed`: a slot can be collected before it is called
        self._closed = closed
        self._looks = QTimer(self)
        self._looks.setInterval(EVERY)
        self._looks.timeout.connect(self._look)

    @property
    def busy(self) -> bool:
        """Whether a work is running."""
        return self._work is not None

    def start(self, do: Callable[[Work], Any], name: str = "the experts' work") -> Work | None:
        """Begin, in a thread of its own; None and nothing where one is still running."""
        if self._work is not None:
            return None
        self._work = work = Work(do, name)
        self._docked = self._is_there()
        self._worker = worker = create_worker(work, _start_thread=False, _ignore_errors=True)
        worker.returned.connect(self._end)
        worker.errored.connect(self._broke)
        closed, held = self._closed, weakref.ref(worker)
        work.cancel_when(lambda: closed.is_set() or getattr(held(), "abort_requested", False))
        self._looks.start()
        worker.start()
        return work

    def start_replay(self, scene: Scene, weights: str | Path | None = None) -> Work | None:
        """Begin to make a registration's `Replay`, which `ready` then hands over."""
        return self.start(lambda work: replay_of(scene, work, weights), "the network's replay")

    def cancel(self) -> None:
        """Ask the work to end; it does so within a layer of the network."""
        if self._work is not None:
            self._work.cancel()

    def _is_there(self) -> bool:
        window = self._owner.window()
        return window is not None and window.isVisible()

    def _look(self) -> None:
        if self._work is None:
            return
        if self._docked and not self._is_there():  # the dock was closed
            self._work.cancel()
        self.came.emit(*self._work.reached)

    def _end(self, done: Done) -> None:
        work, self._work, self._worker = self._work, None, None
        self._looks.stop()
        if done.error:
            self.failed.emit(done.error)
        elif work is None or work.cancelled:
            self.cancelled.emit()
        else:
            self.ready.emit(done.value)

    def _broke(self, error: Exception) -> None:
        """It ended by an error that no one foresaw."""
        from napari_shmoareg.widgets.register.job import explain

        self._end(Done(error=explain(error)))


def weights_of(scene: Scene) -> str:
    """Name or file of a registration's weights: what a person showed, or else what it says itself."""
    return _CHOSEN.get(scene) or str(scene.report.get("weights") or scene.weights)


def replay_of(scene: Scene, work: Work, weights: str | Path | None = None) -> Replay:
    """The network of a registration and its last pass, which can be made again; takes seconds, in a worker's thread.

    Parameters
    ----------
    scene : Scene
    work : Work
        Is told where this is, and ends it between any two layers of the network.
    weights : str or Path, optional
        Other weights than the registration says, as where their file has moved; once read, they are those of
        this scene for every view.

    Raises
    ------
    WeightsError
        If there are no such weights.
    TooLargeError
        If the memory would not suffice; asked before anything is computed.
    Interrupted
        If the work was cancelled.
    """
    from napari_shmoareg.engine.device import find_device
    from napari_shmoareg.engine.memory import check_network_memory
    from napari_shmoareg.engine.replay import Replay
    from napari_shmoareg.io.checkpoint import load_network

    settings, pair = scene.report["settings"], scene.pair
    device = find_device("cpu" if settings.get("device") == "cpu" else "auto")
    work.tell("loading the network")
    try:
        network = load_network(weights or weights_of(scene), device=device)
    except InputError as error:
        raise WeightsError(str(error)) from error
    if weights:
        _CHOSEN[scene] = str(weights)
    grids = {"moving": pair.moving.grid, "fixed": pair.fixed.grid}
    check_network_memory(network.config, scene.network_grid, **grids, device=device)
    work.tell("running the network's earlier passes", 0.2)
    with interruptible(network, work.check):
        replay = Replay.of(pair, network, affine=scene.affine, settings=settings)
    work.tell("ready", 1.0)
    return replay
