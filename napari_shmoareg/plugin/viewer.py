"""Views of the viewer (axial, coronal, sagittal; radiological), and messages to its user."""

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


# napari's colour of warnings, dark and light, and what is read on it
CAUTION, ON_CAUTION = "#e3b617", "#1e1e21"


def look_like_caution(widget: QWidget, on: bool) -> None:
    """Give a text, or take from it, the look of a caution, whatever the theme of the window."""
    style = f"background-color: {CAUTION}; color: {ON_CAUTION}; border-radius: 4px; padding: 6px;"
    widget.setStyleSheet(style if on else "")


def tell(viewer: Viewer, severity: Literal["info", "warning", "error"], text: str) -> None:
    """Notify: in the terminal at once, and in the window, as soon as there is one.

    At the start of napari files are opened before the window is shown, and napari leaves out in the
    window what is said until then.

    Parameters
    ----------
    viewer : Viewer
    severity : {"info", "warning", "error"}
    text : str
    """
    # names of files may hold what Qt cannot show
    text = text.encode("utf-8", "replace").decode("utf-8")
    notification = Notification(text, severity=NotificationSeverity(severity))
    notification_manager.dispatch(notification)
    if viewer.window._qt_window.isVisible():
        return
    from napari._qt.dialogs.qt_notification import NapariQtNotification

    QTimer.singleShot(0, lambda: NapariQtNotification.show_notification(notification))


ORIENTATION: tuple[Literal["towards"], Literal["up"], Literal["left"]] = ("towards", "up", "left")
ORDERS = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}  # of the axes S, A, R
OUTLINED = ("warped_labels", "moving_labels", "fixed_labels")
OUTLINE = 2  # voxels


def face(viewer: Viewer) -> None:
    """Turn the camera as radiologists look: front or top up, the patient's right on the left."""
    if tuple(str(way) for way in viewer.scene.camera.orientation) != ORIENTATION:
        viewer.scene.camera.orientation = ORIENTATION


def axial(viewer: Viewer) -> None:
    """Look from the feet: front up, the patient's right on the left."""
    look(viewer, "axial")


def coronal(viewer: Viewer) -> None:
    """Look from the front: top up, the patient's right on the left."""
    look(viewer, "coronal")


def sagittal(viewer: Viewer) -> None:
    """Look from the patient's left: top up, front on the left."""
    look(viewer, "sagittal")


def look(viewer: Viewer, view: str) -> None:
    """Show "axial", "coronal" or "sagittal" slices, in 2D, whole.

    Nothing happens in a viewer of more than the three axes S, A, R: which of them to show is not
    ours to say."""
    if viewer.dims.ndim != 3:
        return
    face(viewer)
    viewer.dims.ndisplay = 2
    viewer.dims.order = ORDERS[view]
    viewer.reset_view()


def shown_view(viewer: Viewer) -> str | None:
    """Which of the three views is shown; None in 3D, or for other axes."""
    if viewer.dims.ndim != 3 or viewer.dims.ndisplay == 3:
        return None
    return {0: "axial", 1: "coronal", 2: "sagittal"}[viewer.dims.order[0]]


def centre_on(viewer: Viewer, volume: Volume) -> None:
    """Move the sliders to the middle of what an image shows."""
    from napari_shmoareg.figures.panels import middle

    if viewer.dims.ndim >= 3:
        go_to(viewer, to_viewer(middle(volume)))


def attend(viewer: Viewer) -> None:
    """Make a viewer ours: turned radiologically, keys bound, grids that follow the slider, labels
    as outlines.

    To be called when layers of ours are about to be added, or were; a second call changes nothing
    more."""
    from napari_shmoareg.plugin.deformation import attach
    from napari_shmoareg.plugin.showing import bind

    viewer = unwrap(viewer)
    face(viewer)
    bind(viewer)
    attach(viewer)
    draw_in_own_context(viewer)
    if _outline not in viewer.layers.events.inserted.callbacks:
        viewer.layers.events.inserted.connect(_outline)
        for layer in viewer.layers:
            _outline_layer(layer)


def draw_in_own_context(viewer: Viewer) -> None:
    """Have the canvas's OpenGL context current whenever layers are removed, by whatever and
    whomever.

    napari 0.9.2 deletes the textures, buffers and programs of a removed layer at once, in whichever
    context Qt used last.  Where that is the window's and not the canvas's, Mesa frees shaders that
    the canvas goes on drawing with: a segmentation fault in glDrawArrays one or two paints later,
    as when a layer is removed, the grid turned off and a layer inserted in one turn of the event
    loop.

    Parameters
    ----------
    viewer : Viewer
        One without a window has no canvas: nothing is done.  A second call changes nothing more.
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
        emitter.connect(canvas.set_current, position="first")  # held weakly, before napari's own


def _outline(event: Any) -> None:
    """Draw labels of anatomy as outlines when they come in."""
    _outline_layer(event.value)


def _outline_layer(layer: Layer) -> None:
    if tag(layer, "role") in OUTLINED and layer.contour == 0:
        layer.contour = OUTLINE
