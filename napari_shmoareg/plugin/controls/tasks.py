"""Long work that can be asked to end, from any thread.

Draws as often as the window has time for, and no more.

A piece of work beside the window, whose outcome is fetched when there is time.

Loads what a registration needs, beside the viewer.

Long work of the Experts panel, and the network run again.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.registration.progress import Interrupted, interruptible

if TYPE_CHECKING:
    from napari_shmoareg.registration.register import Registration
    from napari_shmoareg.registration.replay import Replay


class Cancellable:
    """Keeps whether a piece of work was asked to end; the work itself calls `check` from time to
    time.
    """

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


FASTEST = 0.25  # s between two drawings
SHARE = 8.0  # times that a drawing took, until the next one


class Pace(QObject):
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
        self._thread = thread = threading.Thread(
            target=lambda: self._run(work, thread), daemon=True
        )
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
            outcome = Outcome(
                None, f"Something went wrong inside shmoareg ({type(error).__name__}: {error})."
            )
        if self._thread is thread:
            self._outcome = outcome


LIBRARIES = {"torch": "lib/libtorch*.so", "SimpleITK": "_SimpleITK*.so"}  # whose loading takes long
FIRST = ("libtorch_cpu.so", "libtorch_cuda.so", "_SimpleITK")


class Ready(NamedTuple):
    """What there is to run with: names of the shipped weights, and whether there is a CUDA
    device.
    """

    weights: tuple[str, ...]
    cuda: bool


class WarmUp:
    """Imports in a thread of their own, started once; `ready` is None until they are done.

    A first import of torch would hold the viewer up for half a second wherever it happens, as
    Python lets nothing else run while a library is loaded.  So the large ones are loaded by the
    system beforehand, which Python waits for without holding anything up."""

    def __init__(self) -> None:
        self.ready: Ready | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if that was not done yet."""
        if self._thread is None:
            # No daemon: a program that ends while a library is being loaded is aborted by the
            # system.
            self._thread = threading.Thread(target=self._run, name="shmoareg warm-up")
            self._thread.start()

    @property
    def begun(self) -> bool:
        """Whether it was started."""
        return self._thread is not None

    @property
    def over(self) -> bool:
        """Whether it ended, well or not; if not, the registration itself will say why."""
        return self._thread is not None and not self._thread.is_alive()

    def wait(self) -> None:
        """Until it is over, in another thread."""
        self.start()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        collecting = gc.isenabled()
        gc.disable()  # a collection among all that is loaded would hold the viewer up as well
        try:
            for package, pattern in LIBRARIES.items():
                _load(package, pattern)
            self.ready = _import_all()
        finally:
            if collecting:
                gc.enable()


def _load(package: str, pattern: str) -> None:
    """Have the system load a package's large libraries, without holding Python's lock."""
    found = importlib.util.find_spec(package)
    if package in sys.modules or found is None or found.origin is None or sys.platform == "win32":
        return
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    for path in sorted(Path(found.origin).parent.glob(pattern)):
        if path.name.startswith(FIRST):
            # where this fails, the import will load it, and say so if it can't
            dlopen(os.fsencode(path), os.RTLD_NOW)


def _import_all() -> Ready:
    import torch

    from napari_shmoareg.io import shipped_weights
    from napari_shmoareg.registration.refinement import adam

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.sum().backward()
    adam([weight]).step()  # loads what a refinement needs
    return Ready(tuple(shipped_weights()), torch.cuda.is_available())


EVERY = 100  # ms between two looks at the worker
CANCEL = "Cancel"
# weights that a person showed
_CHOSEN: weakref.WeakKeyDictionary[Registration, str] = weakref.WeakKeyDictionary()


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
        Given this work, in the worker's thread; what it returns is the value.  It calls `tell` or
        `check` from time to time, which end it once it is cancelled.
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
            from napari_shmoareg.plugin.controls.errors import explain

            return Done(error=explain(error))
        finally:
            self._do = lambda _: None  # holds nothing any more

    def tell(self, title: str, done: float = 0.0) -> None:
        """Say where it is, 0 to 1, and `check`."""
        self.check()
        self.reached = (title, done)


class ReplayTask(QObject):
    """Runs one `Work` after another for a view, and ends with it.

    Parameters
    ----------
    owner : QWidget
        Whose view it is.  A work ends when the owner is destroyed, its dock closed, or the window
        closed.

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
    In a view: ``self.errand = ReplayTask(self)``; ``self.errand.ready.connect(self._take)``; then
    ``self.errand.start(lambda work: Experiment(replay_of(scene, work)))``, or
    ``self.errand.start_replay(scene)``."""

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
        # not `destroyed`: a slot can be collected before it is called
        weakref.finalize(owner, closed.set)
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

    def start_replay(self, scene: Registration, weights: str | Path | None = None) -> Work | None:
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
        from napari_shmoareg.plugin.controls.errors import explain

        self._end(Done(error=explain(error)))


def weights_of(scene: Registration) -> str:
    """Name or file of a registration's weights: what a person showed, or else what it says
    itself.
    """
    return _CHOSEN.get(scene) or str(scene.report.get("weights") or scene.weights)


def replay_of(scene: Registration, work: Work, weights: str | Path | None = None) -> Replay:
    """The network of a registration and its last pass, which can be made again; takes seconds, in a
    worker's thread.

    Parameters
    ----------
    scene : Registration
    work : Work
        Is told where this is, and ends it between any two layers of the network.
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
