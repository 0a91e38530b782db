"""One registration, from layers to layers, off the GUI thread."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.geometry import Volume, VolumePair
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.plugin.controls.progress import Status
from napari_shmoareg.plugin.controls.tasks import Cancellable
from napari_shmoareg.plugin.placement import tag, volume_of
from napari_shmoareg.plugin.scenes import layers_of_scene, next_number, renumbered, scenes
from napari_shmoareg.registration.progress import Interrupted, interruptible, placed, registering
from napari_shmoareg.settings import Settings

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.registration.register import Registration


EARLY = 0.08  # share of the work before which the time left is anyone's guess


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job came to: a scene with its layers, or an error in plain words, or neither, if it
    was cancelled.

    Attributes
    ----------
    number : int
    scene : Registration or None
    layers : list of (data, options, type)
        Bottom first.
    error : str
    notes : list of str
        What was done to the inputs that a person should know.
    """

    number: int
    scene: Registration | None = None
    layers: list[Any] = field(default_factory=list)
    error: str = ""
    notes: list[str] = field(default_factory=list)


class Job(Cancellable):
    """Reads the layers, registers them, measures, and makes the layers of the result.

    Parameters
    ----------
    layers : mapping of role to Layer
        "moving", "fixed", "moving_labels", "fixed_labels"; labels may be left out.
    settings : Settings
    number : int
        Of the registration, for the names of its layers.
    before : callable
        Called first, in the worker's thread: waits for what is still being loaded.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        settings: Settings,
        number: int,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.number, self._layers, self._settings, self._before = (
            number,
            dict(layers),
            settings,
            before,
        )
        self._parts, self._longest, self._held = registering(settings.refine), 0, 0
        self._began = time.perf_counter()
        self._reached = ("starting", 0.0, self._began)

    def __repr__(self) -> str:
        return f"registration #{self.number}"  # where napari asks whether to close its window

    def __call__(self) -> Outcome:
        """As `run`."""
        return self.run()

    @property
    def status(self) -> Status:
        """Where it is now, from any thread."""
        title, done, at = self._reached
        if done < EARLY:
            return Status(title, done, None)
        left = (at - self._began) * (1 - done) / done - (time.perf_counter() - at)
        return Status(title, done, max(0.0, left))

    def run(self) -> Outcome:
        """Do it.  Never raises: what went wrong is in the outcome."""
        # or the collector would stop viewer and work for a third of a second, to look at all of
        # torch
        gc.freeze()
        try:
            self._tell("loading", 0.0)
            self._before()
            self._held = _cuda_memory()
            outcome = self._register()
        except Interrupted:
            outcome = Outcome(self.number)
        except Exception as error:
            outcome = Outcome(self.number, error=explain(error, self._longest))
        finally:
            gc.unfreeze()
        self._layers.clear()
        _release_cuda(self._held)
        return outcome

    def _register(self) -> Outcome:
        from napari_shmoareg.experts.load import ExpertLoad
        from napari_shmoareg.io.report import build_report
        from napari_shmoareg.metrics.measure import measure
        from napari_shmoareg.plugin.layers import layers_of

        self._tell("reading", 0.0)
        pair, notes = _read(self._layers)
        weights, registration = self._deform(pair)
        self._tell("measuring", 0.0)
        quality = measure(registration)
        self._tell("measuring", 0.4)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        report = build_report(registration, quality, load, weights=weights)
        scene = replace(registration, report=report, weights=Path(weights).stem)
        self._tell("drawing", 0.6)
        layers = layers_of(scene, self.number)
        self._tell("drawing", 1.0)
        return Outcome(self.number, scene, layers, notes=notes)

    def _deform(self, pair: VolumePair) -> tuple[str, Registration]:
        """The name of the weights, and the registration; the network itself is gone at the end."""
        from napari_shmoareg.io import load_network
        from napari_shmoareg.io.model_card import NO_NETWORK, chosen_device, chosen_weights
        from napari_shmoareg.registration.register import SIZE, register

        asked, device = self._settings, chosen_device(self._settings.device)
        network, weights, why = None, NO_NETWORK, "none, as requested"
        if asked.weights != NO_NETWORK:
            weights, why = chosen_weights(asked.weights, device)
            network = load_network(weights, device=device)
        size = (
            asked.size
            if asked.size is not None
            else SIZE
            if network is None
            else network.config.size
        )
        self._longest = size if isinstance(size, int) else max(pair.fixed.grid.shape)
        with nullcontext() if network is None else interruptible(network, self.check):
            registration = register(
                pair,
                network,
                affine=asked.affine,
                size=asked.size,
                diffeomorphic=asked.diffeomorphic,
                device=device,
                refine=asked.refine,
                similarity=asked.similarity,
                contrast=asked.contrast,
                smoothness=asked.smoothness,
                keep=asked.keep,
                progress=self._tell,
            )
        return weights, replace(registration, choices={"weights": why, **registration.choices})

    def _tell(self, phase: str, fraction: float) -> None:
        self.check()
        title, done = placed(self._parts, phase, fraction)
        self._reached = title, max(done, self._reached[1]), time.perf_counter()


def _read(layers: Mapping[str, Layer]) -> tuple[VolumePair, list[str]]:
    """The pair that layers show, labels brought onto their images' grids; and what was done for
    that.
    """
    from napari_shmoareg.geometry.resample import resample

    volumes = {role: volume_of(layer) for role, layer in layers.items()}
    notes: list[str] = []
    found: dict[str, Volume] = dict(volumes)
    for role in ("moving", "fixed"):
        labels, image = volumes.get(f"{role}_labels"), volumes[role]
        if labels is not None and not labels.grid.same_space(image.grid):
            found[f"{role}_labels"] = resample(labels, image.grid)
            notes.append(
                f"The labels '{labels.name}' stand on another grid than their image '{image.name}':"
                " they were taken onto it by nearest neighbour."
            )
    return VolumePair(**found), notes


def _cuda_memory() -> int:
    """Bytes in use on a CUDA device, 0 without one; does not load torch for that."""
    return 0 if (cuda := _cuda()) is None else cuda.memory_allocated()


def _release_cuda(held: int) -> None:
    """Give the device's memory back to other programs."""
    if _cuda_memory() > held:
        gc.collect()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


def _cuda() -> Any:
    """``torch.cuda`` where it is in use; a torch that is only half loaded has none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if getattr(cuda, "is_initialized", bool)() else None


Inputs = Mapping[str, "weakref.ref[Layer]"]
BREATH = 10  # ms between two layers, for the viewer to draw and to listen
STEP = 0.01  # of the whole work, that a layer counts for on the bar


class Arrival(QObject):
    """Adds layers, one at each turn of the event loop, so that the viewer goes on in between.

    Parameters
    ----------
    parent : QObject
        With which it ends, whether all layers came or not.

    Attributes
    ----------
    came : Signal(Status)
        After each layer.
    arrived : Signal(int)
        After the last one, with the number that the registration has in the viewer.
    failed : Signal(str)
        A layer could not be added; why, in plain words.
    """

    came = Signal(object)
    arrived = Signal(int)
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._going = going = _Going()
        # not `destroyed`: a slot can be collected before its call
        weakref.finalize(self, going.end).atexit = False
        self._inputs: Inputs = {}
        self._turn = QTimer(self)
        self._turn.setSingleShot(True)
        self._turn.timeout.connect(self._next)

    def begin(self, viewer: Viewer, outcome: Outcome, inputs: Inputs) -> None:
        """Add the layers of an outcome whose inputs were these."""
        self._going.begin(viewer, outcome)
        self._inputs = inputs
        self._turn.start(BREATH)

    def end(self) -> None:
        """Add no more, and take back what was added, unless all of it was."""
        self._going.end()

    def _next(self) -> None:
        going = self._going
        viewer, outcome = going.viewer(), going.outcome
        if viewer is None or outcome is None:
            return
        try:
            if outcome.layers:
                going.add_one(viewer, outcome.layers)
                if going.ended:
                    return
                self.came.emit(Status("adding layers", 1 - STEP * len(outcome.layers), None))
                self._turn.start(BREATH)
                return
            from napari_shmoareg.plugin.quality.compare import uncompared

            with uncompared(viewer):
                self._arrange(viewer, going.number)
        except Exception as error:
            going.outcome = None
            self.failed.emit(explain(error))
            return
        going.outcome = None
        self.arrived.emit(going.number)

    def _arrange(self, viewer: Viewer, number: int) -> None:
        """Fixed below, warped on top; the moving image, outlines of labels and other results are
        hidden.
        """
        for layer in viewer.layers:
            if tag(layer, "number") not in (None, number) and tag(layer, "scene") is not None:
                layer.visible = False
        shown_or_not = {
            "moving": False,
            "moving_labels": False,
            "fixed_labels": False,
            "fixed": True,
        }
        for role, shown in shown_or_not.items():
            picked = self._inputs[role]() if role in self._inputs else None
            if picked is not None and picked in viewer.layers and picked.visible != shown:
                picked.visible = shown
        warped = layers_of_scene(viewer, number, "warped")
        if warped:
            viewer.layers.selection = {warped[-1]}


class _Going:
    """A result of which some layers may be in the viewer; no part of Qt, so that it can clean up
    after a panel.
    """

    def __init__(self) -> None:
        self.ended, self.number = False, 0
        self.viewer: Callable[[], Viewer | None] = lambda: None
        self.outcome: Outcome | None = None
        self._added: list[weakref.ref[Layer]] = []

    def begin(self, viewer: Viewer, outcome: Outcome) -> None:
        """Nothing of it is there yet."""
        self.ended = False
        self.viewer, self.outcome, self.number, self._added = (
            weakref.ref(viewer),
            outcome,
            outcome.number,
            [],
        )

    def add_one(self, viewer: Viewer, layers: list[Any]) -> None:
        """Add the next layer; before the first one, take another number if others have taken this
        one meanwhile.
        """
        from napari_shmoareg.plugin.layers import add_layers

        if not self._added and self.number in scenes(viewer):
            self.number = next_number(viewer)
            layers[:] = [
                (data, renumbered(options, self.number), kind) for data, options, kind in layers
            ]
        with _looking_as_before(viewer):
            self._added += map(weakref.ref, add_layers(viewer, [layers.pop(0)]))
        if self.ended:
            self._take_back()

    def end(self) -> None:
        """The panel is gone: take back what was added, unless all of it was."""
        self.ended = True
        if self.outcome is not None and threading.current_thread() is threading.main_thread():
            QTimer.singleShot(0, self._take_back)

    def _take_back(self) -> None:
        self.outcome = None
        viewer = self.viewer()
        if viewer is None:
            return
        for layer in [added() for added in self._added]:
            if layer is not None and layer in viewer.layers:
                viewer.layers.remove(layer)


@contextmanager
def _looking_as_before(viewer: Viewer) -> Iterator[None]:
    """Keep slice and camera while a layer is added."""
    camera = viewer.scene.camera
    point, seen = viewer.dims.point, (camera.center, camera.zoom, camera.angles)
    empty = len(viewer.layers) == 0
    yield
    if not empty and len(viewer.dims.point) == len(point):
        if viewer.dims.point != point:
            viewer.dims.point = point
        if (camera.center, camera.zoom, camera.angles) != seen:
            camera.center, camera.zoom, camera.angles = seen
