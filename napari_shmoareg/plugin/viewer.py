"""Standard views (axial, coronal, sagittal; radiological), viewer setup and notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from napari.utils.notifications import Notification, NotificationSeverity, notification_manager
from qtpy.QtCore import QTimer

from napari_shmoareg.plugin.placement import go_to, tag, to_viewer
from napari_shmoareg.plugin.registrations import unwrap

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer
    from qtpy.QtWidgets import QWidget

    from napari_shmoareg.geometry import Volume


# napari's colour of warnings in every theme, and of text on it
CAUTION, ON_CAUTION = "#e3b617", "#1e1e21"


def style_as_caution(widget: QWidget, on: bool) -> None:
    """Style a text as a warning, or reset its style, in any theme."""
    style = f"background-color: {CAUTION}; color: {ON_CAUTION}; border-radius: 4px; padding: 6px;"
    widget.setStyleSheet(style if on else "")


# napari's colour of errors, lighter, to be read on dark and on light themes
ERROR = "#e5484d"


def style_as_error(widget: QWidget) -> None:
    """Style a text as something that went wrong, in any theme."""
    widget.setStyleSheet(f"color: {ERROR}; font-weight: bold;")


def notify(viewer: Viewer, severity: Literal["info", "warning", "error"], text: str) -> None:
    """Show a notification in the terminal at once, and in the window once it is shown.

    At the start of napari files are opened before the window is shown, and napari does not show
    earlier notifications in the window.
    """
    # file names may contain characters that Qt cannot show
    text = text.encode("utf-8", "replace").decode("utf-8")
    notification = Notification(text, severity=NotificationSeverity(severity))
    notification_manager.dispatch(notification)
    if viewer.window._qt_window.isVisible():
        return
    from napari._qt.dialogs.qt_notification import NapariQtNotification

    QTimer.singleShot(0, lambda: NapariQtNotification.show_notification(notification))


ORIENTATION: tuple[Literal["towards"], Literal["up"], Literal["left"]] = ("towards", "up", "left")
ORDERS = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}  # of the axes S, A, R
OUTLINED = ("warped_labels", "moving_labels", "fixed_labels", "fixed_mask")
OUTLINE = 1  # voxel


def orient(viewer: Viewer) -> None:
    """Set the radiological orientation: front or top up, the patient's right on the left."""
    if tuple(str(way) for way in viewer.scene.camera.orientation) != ORIENTATION:
        viewer.scene.camera.orientation = ORIENTATION


def axial(viewer: Viewer) -> None:
    """Show the axial view, from the feet: front up, the patient's right on the left."""
    show_view(viewer, "axial")


def coronal(viewer: Viewer) -> None:
    """Show the coronal view, from the front: top up, the patient's right on the left."""
    show_view(viewer, "coronal")


def sagittal(viewer: Viewer) -> None:
    """Show the sagittal view, from the patient's left: top up, front on the left."""
    show_view(viewer, "sagittal")


def show_view(viewer: Viewer, view: str) -> None:
    """Show "axial", "coronal" or "sagittal" slices in 2D, fitted to the canvas.

    Does nothing in a viewer with more axes than S, A, R: the user decides which to show."""
    if viewer.dims.ndim != 3:
        return
    orient(viewer)
    viewer.dims.ndisplay = 2
    viewer.dims.order = ORDERS[view]
    viewer.reset_view()


def shown_view(viewer: Viewer) -> str | None:
    """The name of the view that is shown; None in 3D, or for other axes."""
    if viewer.dims.ndim != 3 or viewer.dims.ndisplay == 3:
        return None
    return {0: "axial", 1: "coronal", 2: "sagittal"}[viewer.dims.order[0]]


def centre_on(viewer: Viewer, volume: Volume) -> None:
    """Move the sliders to the middle of the content of an image."""
    from napari_shmoareg.figures.panels import middle

    if viewer.dims.ndim >= 3:
        go_to(viewer, to_viewer(middle(volume)))


def set_up_viewer(viewer: Viewer) -> None:
    """Set up a viewer: radiological orientation, keys, deformation grids that follow the slider,
    labels as outlines.

    Call it when layers of this plugin are added; a second call changes nothing."""
    from napari_shmoareg.plugin.deformation import follow_slider
    from napari_shmoareg.plugin.showing import bind_keys

    viewer = unwrap(viewer)
    orient(viewer)
    bind_keys(viewer)
    follow_slider(viewer)
    draw_in_own_context(viewer)
    if _outline not in viewer.layers.events.inserted.callbacks:
        viewer.layers.events.inserted.connect(_outline)
        for layer in viewer.layers:
            _outline_layer(layer)


def draw_in_own_context(viewer: Viewer) -> None:
    """Make the canvas's OpenGL context current whenever a layer is removed.

    napari 0.9.2 deletes the textures, buffers and programs of a removed layer at once, in whichever
    context Qt used last.  If that is the window's and not the canvas's, Mesa frees shaders that the
    canvas still draws with: a segmentation fault in glDrawArrays one or two paints later, for
    example if a layer is removed, the grid turned off and a layer inserted in one turn of the event
    loop.  Does nothing without a window; a second call changes nothing.
    """
    window = getattr(unwrap(viewer), "window", None)
    if window is None:
        return
    canvas = window._qt_viewer.canvas._scene_canvas
    for emitter in (
        viewer.layers.events.removing,
        viewer.layers.events.removed,
        viewer.layers.events.end_batch,
    ):
        emitter.connect(canvas.set_current, position="first")  # a weak reference, before napari's


def _outline(event: Any) -> None:
    """Draw inserted labels of anatomy as outlines."""
    _outline_layer(event.value)


def _outline_layer(layer: Layer) -> None:
    from napari_shmoareg.plugin.layers import outline_colours

    role = tag(layer, "role")
    if role in OUTLINED and layer.contour == 0:
        layer.contour, layer.colormap = OUTLINE, outline_colours(role)
