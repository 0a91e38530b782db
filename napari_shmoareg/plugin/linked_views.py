"""Linked views: axial, coronal and sagittal slices side by side, with one crosshair.

Two further canvases of napari beside the viewer's own show its layers with the same data.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QHideEvent
from qtpy.QtWidgets import QDockWidget, QSplitter

from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.registrations import unwrap
from napari_shmoareg.plugin.viewer import ORIENTATION, show_view, shown_view

if TYPE_CHECKING:
    from napari import Viewer
    from napari.components import ViewerModel
    from napari.layers import Layer
    from napari.qt import QtViewer


NAME = "Linked views (shmoareg)"
# what a view shows as the viewer does, by type; other layers follow the viewer's slice
FOLLOWED = {
    "image": ("visible", "opacity", "blending", "colormap", "contrast_limits", "gamma"),
    "labels": (
        "visible",
        "opacity",
        "blending",
        "colormap",
        "contour",
        "selected_label",
        "show_selected_label",
    ),
}
PLACED = ("scale", "translate", "affine")
REFRESH = 60  # ms between redrawing data that were changed in place
REACH = 1e5  # half the length of a line of the crosshair, in units of the viewer
COLOUR = "#ffb000"


class _Crosshair:
    """Two lines on a canvas through the point of its sliders."""

    def __init__(self, canvas: QtViewer) -> None:
        from vispy.scene.visuals import Line

        self.viewer = canvas.viewer
        self.line = Line(
            pos=[[0.0, 0.0]] * 4, color=COLOUR, connect="segments", parent=canvas.canvas.view.scene
        )
        self.line.set_gl_state("translucent", depth_test=False)
        self.line.order = 10**6  # above all layers

    def draw(self) -> None:
        """Move the lines to the point; hide them in 3D."""
        dims = self.viewer.dims
        self.line.visible = dims.ndisplay == 2
        y, x = (dims.point[axis] for axis in dims.displayed[-2:])
        self.line.set_data(pos=[[x - REACH, y], [x + REACH, y], [x, y - REACH], [x, y + REACH]])

    def remove(self) -> None:
        self.line.parent = None


class LinkedViews(QSplitter):
    """The coronal and sagittal views of a viewer that shows the axial one.

    Image and Labels layers are shown with the viewer's own data, visibility and colours.  A click
    moves the crosshair in all views; a double click acts as in the viewer.
    """

    def __init__(self, viewer: Viewer) -> None:
        from napari.components import ViewerModel
        from napari.qt import QtViewer

        super().__init__(Qt.Orientation.Horizontal)
        viewer = unwrap(viewer)
        self._viewer = weakref.ref(viewer)
        self._copies: weakref.WeakKeyDictionary[Layer, list[Layer]] = weakref.WeakKeyDictionary()
        self._changed: weakref.WeakSet[Layer] = weakref.WeakSet()
        self._timer = single_shot(self, REFRESH, self._refresh)
        self._busy = self._closed = False
        self.models: list[ViewerModel] = []
        self.views: list[QtViewer] = []
        for name in ("coronal", "sagittal"):
            model = ViewerModel(title=name)
            model.scene.camera.orientation = ORIENTATION
            self.models.append(model)
            self.views.append(QtViewer(model))
            self.addWidget(self.views[-1])
        self._sync_layers()
        for model, name in zip(self.models, ("coronal", "sagittal"), strict=True):
            show_view(model, name)
        canvases = (viewer.window._qt_viewer, *self.views)
        self.crosshairs = [_Crosshair(canvas) for canvas in canvases]
        for event in (
            viewer.layers.events.inserted,
            viewer.layers.events.removed,
            viewer.layers.events.reordered,
        ):
            event.connect(self._sync_layers)
        for each in (viewer, *self.models):
            each.dims.events.point.connect(self._on_point)
            each.dims.events.order.connect(self._draw)
            each.dims.events.ndisplay.connect(self._draw)
            each.mouse_drag_callbacks.append(self._on_press)
        for model in self.models:
            model.mouse_double_click_callbacks[:] = [self._on_double_click]
        self._follow(viewer)

    def changeEvent(self, event: QEvent | None) -> None:
        """Remove everything when the dock is closed."""
        super().changeEvent(event)
        if (
            event is not None
            and event.type() == QEvent.Type.ParentChange
            and self.parentWidget() is None
        ):
            self.end()

    def hideEvent(self, event: QHideEvent | None) -> None:
        """Remove everything when the window is closed: napari tells its docks no other way."""
        super().hideEvent(event)
        viewer = self._viewer()
        if viewer is None or not viewer.window._qt_window.isVisible():
            self.end()

    def end(self) -> None:
        """Disconnect from the viewer, and delete the canvases."""
        if self._closed:
            return
        self._closed = True
        viewer = self._viewer()
        if viewer is not None:
            for emitter in (
                viewer.layers.events.inserted,
                viewer.layers.events.removed,
                viewer.layers.events.reordered,
            ):
                emitter.disconnect(self._sync_layers)
            viewer.dims.events.point.disconnect(self._on_point)
            viewer.dims.events.order.disconnect(self._draw)
            viewer.dims.events.ndisplay.disconnect(self._draw)
            viewer.mouse_drag_callbacks.remove(self._on_press)
        for layer in list(self._copies):
            self._forget(layer)
        for crosshair in self.crosshairs:
            crosshair.remove()
        self.crosshairs.clear()
        for model, view in zip(self.models, self.views, strict=True):
            model.mouse_drag_callbacks.clear()
            model.mouse_double_click_callbacks.clear()
            model.layers.clear()
            view.close()
        self.models.clear()
        self.views.clear()
        self.deleteLater()

    def _sync_layers(self, event: Any = None) -> None:
        """Show the layers of the viewer, in its order."""
        from napari.layers import Layer
        from napari.layers.utils._link_layers import link_layers

        viewer = self._viewer()
        if viewer is None or self._closed:
            return
        shown = [
            layer for layer in viewer.layers if layer._type_string in FOLLOWED and layer.ndim == 3
        ]
        for layer in [layer for layer in self._copies if layer not in shown]:
            self._forget(layer)
        for layer in shown:
            if layer in self._copies:
                continue
            data, state, kind = layer.as_layer_data_tuple()
            copies = [Layer.create(data, {**state, "metadata": {}}, kind) for _ in self.models]
            link_layers([layer, *copies], FOLLOWED[kind])
            self._copies[layer] = copies
            for model, copy in zip(self.models, copies, strict=True):
                model.add_layer(copy)
            for name in PLACED:
                getattr(layer.events, name).connect(self._on_placed)
            layer.events.data.connect(self._on_data)
            layer.events.set_data.connect(self._on_set_data)
        for number, model in enumerate(self.models):
            for position, layer in enumerate(shown):
                now = model.layers.index(self._copies[layer][number])
                if now != position:
                    model.layers.move(now, position)

    def _forget(self, layer: Layer) -> None:
        """Remove the copies of a layer."""
        from napari.layers.utils._link_layers import unlink_layers

        copies = self._copies.pop(layer)
        for name in PLACED:
            getattr(layer.events, name).disconnect(self._on_placed)
        layer.events.data.disconnect(self._on_data)
        layer.events.set_data.disconnect(self._on_set_data)
        for copy in copies:
            unlink_layers([layer, copy])
        for model, copy in zip(self.models, copies, strict=True):
            if copy in model.layers:
                model.layers.remove(copy)

    def _on_placed(self, event: Any) -> None:
        for copy in self._copies.get(event.source, ()):
            for name in PLACED:
                setattr(copy, name, getattr(event.source, name))

    def _on_data(self, event: Any) -> None:
        for copy in self._copies.get(event.source, ()):
            if copy.data is not event.source.data:
                copy.data = event.source.data

    def _on_set_data(self, event: Any) -> None:
        """Redraw soon: the data may have been changed in place, or only the slice."""
        self._changed.add(event.source)
        if not self._timer.isActive():
            self._timer.start()

    def _refresh(self) -> None:
        for layer in list(self._changed):
            for copy in self._copies.get(layer, ()):
                copy.refresh(extent=False, thumbnail=False)
        self._changed.clear()

    def _on_point(self, event: Any) -> None:
        """Move all views to the point of one."""
        viewer = self._viewer()
        if viewer is None or self._busy or self._closed:
            return
        source = next(each for each in (viewer, *self.models) if each.dims is event.source)
        self._follow(source)

    def _follow(self, source: Any) -> None:
        viewer = self._viewer()
        self._busy = True
        try:
            for each in (viewer, *self.models):
                if each is not None and each is not source and each.dims.ndim == source.dims.ndim:
                    each.dims.point = source.dims.point
        finally:
            self._busy = False
        self._draw()

    def _draw(self, event: Any = None) -> None:
        for crosshair in self.crosshairs:
            crosshair.draw()

    def _on_press(self, viewer: Any, event: Any) -> Iterator[None]:
        """Move the crosshair to a click that is not a drag."""
        active = viewer.layers.selection.active
        start, dragged = event.position, False
        free = active is None or active.mode == "pan_zoom"
        yield
        while event.type == "mouse_move":
            dragged = True
            yield
        if not dragged and free and viewer.dims.ndisplay == 2:
            viewer.dims.point = start

    def _on_double_click(self, model: Any, event: Any) -> None:
        """Act as a double click at that point of the viewer, but do not zoom."""
        viewer = self._viewer()
        if viewer is None:
            return
        for callback in list(viewer.mouse_double_click_callbacks):
            if getattr(callback, "__name__", "") != "double_click_to_zoom":
                callback(viewer, event)


def show_linked_views() -> None:
    """Layers > Visualize: show the coronal and sagittal views beside the axial one."""
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        open_linked_views(viewer)


def open_linked_views(viewer: Viewer) -> LinkedViews:
    """Show the linked views of a viewer with the axes S, A, R; bring them to the front if open."""
    from napari_shmoareg.plugin.opening import to_front

    viewer = unwrap(viewer)
    found = viewer.window.dock_widgets.get(NAME)
    if isinstance(found, LinkedViews):
        frame = found.parentWidget()
        if isinstance(frame, QDockWidget):
            to_front(frame)
            return found
    if shown_view(viewer) != "axial":
        show_view(viewer, "axial")
    views = LinkedViews(viewer)
    viewer.window.add_dock_widget(views, name=NAME, area="right")
    return views
