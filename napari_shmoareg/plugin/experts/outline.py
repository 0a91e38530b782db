"""The outline of the cell that covers a location, on the shown slice."""

from __future__ import annotations

import weakref
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.plugin.controls.forms import weakly
from napari_shmoareg.plugin.experts.pins import drop_orphans, link_metadata, linked_layer
from napari_shmoareg.plugin.placement import (
    AXES,
    UNITS,
    mm_per_unit,
    point_of,
    shown_axes,
    tag,
    to_viewer,
)
from napari_shmoareg.plugin.registrations import open_registrations

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.location import CellReading
    from napari_shmoareg.registration.register import Registration


ROLE = "token_box"
COLOUR = "#39ff14"
WIDTH, PIXELS = 0.4, 1.8  # line width in mm; minimum width on the screen in pixels
FOLLOWED = ("point", "order", "ndisplay")
CORNERS = np.array(list(product((-0.5, 0.5), repeat=3)))
EDGES = [(a, b) for a in range(8) for b in range(a) if np.abs(CORNERS[a] - CORNERS[b]).sum() == 1]


class Outline:
    """Outlines one cell of a registration, and redraws it when the slider moves.

    Parameters
    ----------
    viewer : Viewer
        Stored as a weak reference.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = weakref.ref(viewer)
        self._registration = weakly(None)
        self._number = 0
        self._cell: CellReading | None = None
        self._following = False
        self._made = False  # whether the cell has its layer
        self._hidden_here = False  # not by the user

    def show(self, number: int, registration: Registration, cell: CellReading) -> None:
        """Outline another cell; adds the layer ``#1 cell`` if missing and the slice cuts the
        cell.
        """
        self._number, self._registration, self._cell = number, weakly(registration), cell
        self._made = False
        self._follow()
        self.draw()

    def clear(self) -> None:
        """Remove the outline and stop following the slider."""
        self._cell = None
        self._hidden_here = False
        viewer = self._viewer()
        if viewer is None:
            return
        if self._following:
            for name in FOLLOWED:
                getattr(viewer.dims.events, name).disconnect(self._changed)
            self._following = False
        for layer in [layer for layer in viewer.layers if tag(layer, "role") == ROLE]:
            viewer.layers.remove(layer)

    def draw(self) -> None:
        """Draw the cut of the shown slice through the cell, or the whole cell in 3D.

        If the slice misses the cell, the layer is hidden: an empty layer crashed the drawing (an
        empty outline removed, a new empty one added, and pins: segmentation fault in
        glDrawArrays)."""
        viewer, registration = self._viewer(), self._registration()
        if viewer is None or registration is None or self._cell is None:
            return
        layer = linked_layer(viewer, registration, ROLE)
        if layer is None and self._made:  # it was removed, which moved the slider
            return
        corners = corners_of(registration, self._cell)
        segments = whole(corners) if viewer.dims.ndisplay == 3 else _in_slice(viewer, corners)
        size = max(registration.pair.fixed.grid.spacing)
        width = max(WIDTH, PIXELS / (viewer.scene.camera.zoom / mm_per_unit(viewer))) / size
        if layer is None:
            # not if the slider moves because the registration's last layer is removed: a layer
            # added then is removed at once
            if len(segments) and any(
                registration is found for found in open_registrations(viewer).values()
            ):
                self._made = True
                self._add(viewer, registration, segments / size, width)
            return
        self._made = True
        if not len(segments):
            self._hidden_here |= bool(layer.visible)
            layer.visible = False
            return
        layer.data = segments / size
        if abs(layer.edge_width / width - 1) > 0.1:
            layer.edge_width = width
        if self._hidden_here:
            self._hidden_here, layer.visible = False, True

    def _add(
        self, viewer: Viewer, registration: Registration, data: NDArray[np.float64], width: float
    ) -> None:
        from napari.layers import Vectors

        drop_orphans(viewer)
        self._hidden_here = False
        layer = Vectors(
            data,
            ndim=3,
            name=f"#{self._number} cell",
            scale=(max(registration.pair.fixed.grid.spacing),) * 3,
            units=UNITS,
            axis_labels=AXES,
            vector_style="line",
            edge_width=width,
            edge_color=COLOUR,
            opacity=1.0,
            metadata=link_metadata(registration, ROLE),
        )
        active = viewer.layers.selection.active
        viewer.add_layer(layer)
        viewer.layers.selection.active = active

    def _follow(self) -> None:
        viewer = self._viewer()
        if viewer is not None and not self._following:
            for name in FOLLOWED:
                getattr(viewer.dims.events, name).connect(self._changed)
            self._following = True

    def _changed(self, event: Any = None) -> None:
        self.draw()


def corners_of(registration: Registration, cell: CellReading) -> NDArray[np.float64]:
    """The eight corners of a cell, (8, 3), mm along S, A, R."""
    grid = registration.network_grid.coarsen(cell.stride)
    return to_viewer(grid.to_world(np.asarray(cell.cell) + CORNERS))


def whole(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The twelve edges of a box, (12, 2, 3): start and vector."""
    return np.array([[corners[a], corners[b] - corners[a]] for a, b in EDGES])


def cut(corners: NDArray[np.float64], axis: int, at: float) -> NDArray[np.float64]:
    """The sides, (n, 2, 3), of the cut of a plane across an axis through a box of eight corners.

    Each side is a start and a vector; n is 3 to 6, or 0 if the plane misses the box.
    """
    away = corners[:, axis] - at
    # move a plane through a corner slightly off the corner
    away = np.where(away == 0, 1e-9, away)
    points = [
        corners[a] + (corners[b] - corners[a]) * away[a] / (away[a] - away[b])
        for a, b in EDGES
        if away[a] * away[b] < 0
    ]
    if len(points) < 3:
        return np.zeros((0, 2, 3))
    found = np.array(points)
    found[:, axis] = at
    others = [n for n in range(3) if n != axis]
    spread = found[:, others] - found[:, others].mean(axis=0)
    ring = found[np.argsort(np.arctan2(spread[:, 1], spread[:, 0]))]
    return np.stack([ring, np.roll(ring, -1, axis=0) - ring], axis=1)


def _in_slice(viewer: Viewer, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cut of the shown slice; empty unless two of the axes S, A, R are on the canvas."""
    hidden = [axis for axis in range(3) if axis not in shown_axes(viewer)]
    if len(hidden) != 1:
        return np.zeros((0, 2, 3))
    return cut(corners, hidden[0], float(point_of(viewer)[hidden[0]]))
