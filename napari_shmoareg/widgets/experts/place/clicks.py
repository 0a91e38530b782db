"""Double clicks in the canvas, taken from napari's zoom for a while."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.widgets.placement import to_viewer
from napari_shmoareg.widgets.units import mm_per_unit

if TYPE_CHECKING:
    from napari import Viewer


ZOOM = "double_click_to_zoom"  # napari's own


class DoubleClicks:
    """Hands the places of double clicks to a method while it listens, in the place of napari's own zoom.

    Parameters
    ----------
    viewer : Viewer
        Held weakly.
    then : bound method
        Called with the place, (3,) mm RAS, or None in 3D, where a click has no depth.  Held weakly.
    """

    def __init__(self, viewer: Viewer, then: Callable[[NDArray[np.float64] | None], None]) -> None:
        self._viewer, self._then = weakref.ref(viewer), weakref.WeakMethod(then)
        self._clicked: Callable[[Any, Any], None] | None = None
        self._zoom: Callable[[Any, Any], None] | None = None

    @property
    def listening(self) -> bool:
        """Whether double clicks come here."""
        return self._clicked is not None

    def listen(self) -> None:
        """Take double clicks; napari's zoom is out of the list until `stop`."""
        viewer = self._viewer()
        if viewer is None or self._clicked is not None:
            return
        then = self._then

        def clicked(viewer: Any, event: Any) -> None:
            method, active = then(), viewer.layers.selection.active
            if method is not None and (active is None or active.mode == "pan_zoom"):  # else a layer is being edited
                method(_place(viewer, event))

        self._clicked, callbacks = clicked, viewer.mouse_double_click_callbacks
        self._zoom = next((found for found in callbacks if getattr(found, "__name__", "") == ZOOM), None)
        if self._zoom is None:
            callbacks.append(clicked)
        else:
            callbacks[callbacks.index(self._zoom)] = clicked

    def stop(self) -> None:
        """Leave double clicks to napari, as before."""
        viewer, clicked, self._clicked = self._viewer(), self._clicked, None
        if viewer is None or clicked is None:
            return
        callbacks = viewer.mouse_double_click_callbacks
        if clicked in callbacks:
            at = callbacks.index(clicked)
            callbacks[at : at + 1] = [] if self._zoom is None else [self._zoom]


def _place(viewer: Any, event: Any) -> NDArray[np.float64] | None:
    """Where an event was, mm RAS; None in 3D."""
    if viewer.dims.ndisplay != 2:
        return None
    return to_viewer(np.asarray(event.position, dtype=np.float64)[-3:] * mm_per_unit(viewer))
