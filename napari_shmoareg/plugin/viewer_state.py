"""Saves and restores the display of a viewer: layers, grid mode, camera and selection."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer


LAYER_ATTRIBUTES = ("visible", "opacity", "blending", "colormap")
GRID_ATTRIBUTES = ("enabled", "stride", "shape")


class ViewerState:
    """Visibilities, opacities, colours, name overlays, grid mode, zoom and selection of a viewer.

    Layers are weak references: a layer that is removed meanwhile is not restored.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._layers: weakref.WeakKeyDictionary[Layer, dict[str, Any]] = weakref.WeakKeyDictionary()
        for layer in viewer.layers:
            state = {
                name: getattr(layer, name) for name in LAYER_ATTRIBUTES if hasattr(layer, name)
            }
            self._layers[layer] = state | {"named": layer.name_overlay.visible}
        grid = viewer.canvas.grid
        self._grid = {name: getattr(grid, name) for name in GRID_ATTRIBUTES}
        self._view = viewer.scene.camera.center, viewer.scene.camera.zoom
        active = viewer.layers.selection.active
        self._active = None if active is None else weakref.ref(active)

    def restore(self, viewer: Viewer) -> None:
        """Restore the saved state; layers added since stay as they are."""
        for layer in viewer.layers:
            state = self._layers.get(layer)
            if state is None:
                continue
            for name, value in state.items():
                if name == "named":
                    layer.name_overlay.visible = value
                elif getattr(layer, name) != value:
                    setattr(layer, name, value)
        was_enabled = viewer.canvas.grid.enabled
        for name, value in self._grid.items():
            setattr(viewer.canvas.grid, name, value)
        if was_enabled and not self._grid["enabled"]:
            viewer.scene.camera.center, viewer.scene.camera.zoom = self._view
        active = None if self._active is None else self._active()
        if active in viewer.layers:
            viewer.layers.selection.active = active


@contextmanager
def keep_view(viewer: Viewer) -> Iterator[None]:
    """Preserve the slice and the camera while layers are added or removed."""
    camera = viewer.scene.camera
    point, view = viewer.dims.point, (camera.center, camera.zoom, camera.angles)
    empty = len(viewer.layers) == 0
    yield
    if not empty and len(viewer.dims.point) == len(point):
        if viewer.dims.point != point:
            viewer.dims.point = point
        if (camera.center, camera.zoom, camera.angles) != view:
            camera.center, camera.zoom, camera.angles = view
