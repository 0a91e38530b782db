"""The layers of a result come into the viewer one by one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.register.job import Outcome, Status, explain
from napari_shmoareg.widgets.scenes import layers_of_scene, next_number, renumbered, scenes

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer


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
        weakref.finalize(self, going.end).atexit = False  # not `destroyed`: a slot can be collected before its call
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
            from napari_shmoareg.widgets.quality.comparer import uncompared

            with uncompared(viewer):
                self._arrange(viewer, going.number)
        except Exception as error:
            going.outcome = None
            self.failed.emit(explain(error))
            return
        going.outcome = None
        self.arrived.emit(going.number)

    def _arrange(self, viewer: Viewer, number: int) -> None:
        """Fixed below, warped on top; the moving image, outlines of labels and other results are hidden."""
        for layer in viewer.layers:
            if tag(layer, "number") not in (None, number) and tag(layer, "scene") is not None:
                layer.visible = False
        shown_or_not = {"moving": False, "moving_labels": False, "fixed_labels": False, "fixed": True}
        for role, shown in shown_or_not.items():
            picked = self._inputs[role]() if role in self._inputs else None
            if picked is not None and picked in viewer.layers and picked.visible != shown:
                picked.visible = shown
        warped = layers_of_scene(viewer, number, "warped")
        if warped:
            viewer.layers.selection = {warped[-1]}


class _Going:
    """A result of which some layers may be in the viewer; no part of Qt, so that it can clean up after a panel."""

    def __init__(self) -> None:
        self.ended, self.number = False, 0
        self.viewer: Callable[[], Viewer | None] = lambda: None
        self.outcome: Outcome | None = None
        self._added: list[weakref.ref[Layer]] = []

    def begin(self, viewer: Viewer, outcome: Outcome) -> None:
        """Nothing of it is there yet."""
        self.ended = False
        self.viewer, self.outcome, self.number, self._added = weakref.ref(viewer), outcome, outcome.number, []

    def add_one(self, viewer: Viewer, layers: list[Any]) -> None:
        """Add the next layer; before the first one, take another number if others have taken this one meanwhile."""
        from napari_shmoareg.widgets.layers import add_layers

        if not self._added and self.number in scenes(viewer):
            self.number = next_number(viewer)
            layers[:] = [(data, renumbered(options, self.number), kind) for data, options, kind in layers]
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
