"""The layers of a result come into the viewer one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.register.job import Outcome, Status, explain
from napari_shmoareg.widgets.scenes import layers_of_scene

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
    arrived : Signal()
        After the last one.
    failed : Signal(str)
        A layer could not be added; why, in plain words.
    """

    came = Signal(object)
    arrived = Signal()
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer: weakref.ref[Viewer] | None = None
        self._outcome: Outcome | None = None
        self._inputs: Inputs = {}
        self._turn = QTimer(self)
        self._turn.setSingleShot(True)
        self._turn.timeout.connect(self._next)

    def begin(self, viewer: Viewer, outcome: Outcome, inputs: Inputs) -> None:
        """Add the layers of an outcome whose inputs were these."""
        self._viewer, self._outcome, self._inputs = weakref.ref(viewer), outcome, inputs
        self._turn.start(BREATH)

    def _next(self) -> None:
        viewer, outcome = None if self._viewer is None else self._viewer(), self._outcome
        if viewer is None or outcome is None:
            return
        from napari_shmoareg.widgets.layers import add_layers

        try:
            if outcome.layers:
                with _looking_as_before(viewer):
                    add_layers(viewer, [outcome.layers.pop(0)])
                self.came.emit(Status("adding layers", 1 - STEP * len(outcome.layers), None))
                self._turn.start(BREATH)
                return
            self._arrange(viewer, outcome.number)
        except Exception as error:
            self._outcome = None
            self.failed.emit(explain(error))
            return
        self._outcome = None
        self.arrived.emit()

    def _arrange(self, viewer: Viewer, number: int) -> None:
        """Fixed below, warped on top; what else was shown of moving images and results is hidden."""
        for layer in viewer.layers:
            if tag(layer, "number") not in (None, number) and tag(layer, "scene") is not None:
                layer.visible = False
        for role, shown in (("moving", False), ("fixed", True)):
            picked = self._inputs[role]()
            if picked is not None and picked in viewer.layers and picked.visible != shown:
                picked.visible = shown
        warped = layers_of_scene(viewer, number, "warped")
        if warped:
            viewer.layers.selection = {warped[-1]}


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
