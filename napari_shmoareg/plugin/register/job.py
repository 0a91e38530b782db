"""One registration, from layers to layers, off the GUI thread."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume, VolumePair
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.plugin.controls.tasks import Report, preload, single_shot
from napari_shmoareg.plugin.placement import tag, volume_of
from napari_shmoareg.plugin.registrations import (
    layers_of_registration,
    next_number,
    open_registrations,
    renumbered,
)
from napari_shmoareg.registration.progress import Interrupted, interruptible, overall_progress, registration_phases
from napari_shmoareg.settings import RegistrationRequest

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.registration.register import Registration


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """A registration, with its layers.

    Attributes
    ----------
    number : int
    registration : Registration
    layers : list of (data, options, type)
        Bottom first.
    notes : list of str
        What was done to the inputs that a person should know.
    """

    number: int
    registration: Registration
    layers: list[Any]
    notes: list[str] = field(default_factory=list)


class LayerRegistration:
    """Reads the layers, registers them, measures, and makes the layers of the result, as a task.

    Parameters
    ----------
    layers : mapping of role to Layer
        "moving", "fixed", "moving_labels", "fixed_labels"; labels may be left out.
    settings : RegistrationRequest
    number : int
        Of the registration, for the names of its layers.
    """

    def __init__(
        self, layers: Mapping[str, Layer], settings: RegistrationRequest, number: int
    ) -> None:
        self.number, self._layers, self._settings = number, dict(layers), settings
        self._parts, self._longest, self._furthest = registration_phases(settings.refine), 0, 0.0

    def __call__(self, report: Report) -> RegistrationResult:
        """Do it, in a thread of its own.

        Raises
        ------
        InputError
            With the error in the words of the form.
        Interrupted
            If it was cancelled.
        """
        # or the collector would stop viewer and work for a third of a second, to look at all of
        # torch
        gc.freeze()
        held = 0
        self._report = report
        outcome: RegistrationResult | Exception
        try:
            self._tell("loading", 0.0)
            preload().exception()  # an error of it the registration itself will meet
            held = _cuda_memory()
            outcome = self._register()
        except Interrupted:
            outcome = Interrupted()  # another one, as this one holds the network by its frames
        except Exception as error:
            outcome = InputError(explain(error, self._longest))
        finally:
            gc.unfreeze()
        self._layers.clear()
        _release_cuda(held)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _register(self) -> RegistrationResult:
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
        registration = replace(registration, report=report, weights=Path(weights).stem)
        self._tell("drawing", 0.6)
        layers = layers_of(registration, self.number)
        self._tell("drawing", 1.0)
        return RegistrationResult(self.number, registration, layers, notes)

    def _deform(self, pair: VolumePair) -> tuple[str, Registration]:
        """The name of the weights, and the registration; the network itself is gone at the end."""
        from napari_shmoareg.io import load_network
        from napari_shmoareg.io.model_card import NO_NETWORK, choose_device, choose_weights
        from napari_shmoareg.registration.register import SIZE, register

        asked, device = self._settings, choose_device(self._settings.device)
        network, weights, why = None, NO_NETWORK, "none, as requested"
        if asked.weights != NO_NETWORK:
            weights, why = choose_weights(asked.weights, device)
            network = load_network(weights, device=device)
        size = (
            asked.size
            if asked.size is not None
            else SIZE
            if network is None
            else network.config.size
        )
        self._longest = size if isinstance(size, int) else max(pair.fixed.grid.shape)
        with nullcontext() if network is None else interruptible(network, self._report.check):
            registration = register(pair, network, asked, device=device, progress=self._tell)
        return weights, replace(registration, choices={"weights": why, **registration.choices})

    def _tell(self, phase: str, fraction: float) -> None:
        title, done = overall_progress(self._parts, phase, fraction)
        self._furthest = max(done, self._furthest)
        self._report(title, self._furthest)


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


class LayerAdder(QObject):
    """Adds layers, one at each turn of the event loop, so that the viewer goes on in between.

    Parameters
    ----------
    parent : QObject
        With which it ends, whether all layers came or not.

    Attributes
    ----------
    progressed : Signal(str, float)
        After each layer.
    finished : Signal(int)
        After the last one, with the number that the registration has in the viewer.
    failed : Signal(str)
        A layer could not be added; why, in plain words.
    """

    progressed = Signal(str, float)
    finished = Signal(int)
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer: Callable[[], Viewer | None] = lambda: None
        self._result: RegistrationResult | None = None
        self._number, self._inputs = 0, dict[str, "weakref.ref[Layer]"]()
        self._added: list[weakref.ref[Layer]] = []
        self._turn = single_shot(self, BREATH, self._next)

    def start(self, viewer: Viewer, result: RegistrationResult, inputs: Inputs) -> None:
        """Add the layers of a result whose inputs were these."""
        self._viewer, self._result, self._inputs = weakref.ref(viewer), result, dict(inputs)
        self._number, self._added = result.number, []
        self._turn.start()

    def cancel(self) -> None:
        """Add no more, and take back what was added, unless all of it was."""
        if self._result is not None:
            self._result = None
            QTimer.singleShot(0, partial(_take_back, self._viewer, self._added))

    def _next(self) -> None:
        viewer, result = self._viewer(), self._result
        if viewer is None or result is None:
            return
        try:
            if result.layers:
                self._add_one(viewer, result.layers)
                if self._result is None:  # cancelled meanwhile
                    _take_back(self._viewer, self._added)
                    return
                self.progressed.emit("adding layers", 1 - STEP * len(result.layers))
                self._turn.start()
                return
            from napari_shmoareg.plugin.quality.compare import uncompared

            with uncompared(viewer):
                self._arrange(viewer, self._number)
        except Exception as error:
            self._result = None
            self.failed.emit(explain(error))
            return
        self._result = None
        self.finished.emit(self._number)

    def _add_one(self, viewer: Viewer, layers: list[Any]) -> None:
        """Add the next layer; before the first one, take another number if others have taken this
        one meanwhile.
        """
        from napari_shmoareg.plugin.layers import add_layers

        if not self._added and self._number in open_registrations(viewer):
            self._number = next_number(viewer)
            layers[:] = [
                (data, renumbered(options, self._number), kind) for data, options, kind in layers
            ]
        with _looking_as_before(viewer):
            self._added += map(weakref.ref, add_layers(viewer, [layers.pop(0)]))

    def _arrange(self, viewer: Viewer, number: int) -> None:
        """Fixed below, warped on top; the moving image, outlines of labels and other results are
        hidden.
        """
        for layer in viewer.layers:
            if (
                tag(layer, "number") not in (None, number)
                and tag(layer, "registration") is not None
            ):
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
        warped = layers_of_registration(viewer, number, "warped")
        if warped:
            viewer.layers.selection = {warped[-1]}


def _take_back(held: Callable[[], Viewer | None], added: Sequence[weakref.ref[Layer]]) -> None:
    viewer = held()
    for layer in [each() for each in added]:
        if viewer is not None and layer is not None and layer in viewer.layers:
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
