"""How a viewer looks, remembered and put back: what is shown, how, and in which cells."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer


OF_LAYERS = ("visible", "opacity", "blending", "colormap")
OF_GRID = ("enabled", "stride", "shape")


class ViewerState:
    """Visibilities, opacities, colours, name overlays, grid mode, zoom and selection of a viewer at
    one time.

    Layers are held weakly: one that is removed meanwhile is gone.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        self._layers: weakref.WeakKeyDictionary[Layer, dict[str, Any]] = weakref.WeakKeyDictionary()
        for layer in viewer.layers:
            had = {name: getattr(layer, name) for name in OF_LAYERS if hasattr(layer, name)}
            self._layers[layer] = had | {"named": layer.name_overlay.visible}
        grid = viewer.canvas.grid
        self._grid = {name: getattr(grid, name) for name in OF_GRID}
        self._view = viewer.scene.camera.center, viewer.scene.camera.zoom
        active = viewer.layers.selection.active
        self._active = None if active is None else weakref.ref(active)

    def put_back(self, viewer: Viewer) -> None:
        """Make the viewer look so again; layers that came later stay as they are."""
        for layer in viewer.layers:
            kept = self._layers.get(layer)
            if kept is None:
                continue
            for name, value in kept.items():
                if name == "named":
                    layer.name_overlay.visible = value
                elif getattr(layer, name) != value:
                    setattr(layer, name, value)
        cells = viewer.canvas.grid.enabled
        for name, value in self._grid.items():
            setattr(viewer.canvas.grid, name, value)
        if cells and not self._grid["enabled"]:
            viewer.scene.camera.center, viewer.scene.camera.zoom = self._view
        active = None if self._active is None else self._active()
        if active in viewer.layers:
            viewer.layers.selection.active = active
