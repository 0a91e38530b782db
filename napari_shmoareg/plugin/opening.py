"""Opens panels, one of each kind per viewer: from the menus, and after files were opened."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QDockWidget, QWidget

from napari_shmoareg.plugin.placement import tag
from napari_shmoareg.plugin.registrations import (
    layer_in_role,
    layers_of_registration,
    open_registrations,
)

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.plugin.register.panel import RegisterPanel
    from napari_shmoareg.registration.register import Registration


PLUGIN = "shmoareg"
PANELS = ("Register", "Quality", "Experts", "Landmarks", "Fine-tune")
SETTLED = 100  # ms until a new window has its size
NOT_TWO_IMAGES = (
    "Two selected images were expected, moving and fixed; {images} of the {layers} selected layers"
    " are images. Click the moving image in the layer list, then Ctrl-click (Mac: Cmd-click) the"
    " fixed image."
)


class Panel(QWidget):
    """A panel of this plugin; a viewer has at most one of each kind.

    napari docks a panel under one name if a plugin's name is given (``napari -w shmoareg``, this
    plugin itself) and under another from its Plugins menu, and would open it twice.  Here both
    names are the same, and opening an open panel brings it to the front.

    Attributes
    ----------
    kind : str
        Its name in the manifest, one of `PANELS`.
    """

    kind: ClassVar[str]

    def changeEvent(self, event: QEvent | None) -> None:
        """Name the dock that the panel is put into."""
        super().changeEvent(event)
        frame = self.parentWidget()
        if (
            event is not None
            and event.type() == QEvent.Type.ParentChange
            and isinstance(frame, QDockWidget)
        ):
            _name_dock(frame, self.kind)


def dock(viewer: Viewer, name: str) -> Any:
    """Show a panel of this plugin in front of the others; create it if the viewer has none.

    Parameters
    ----------
    viewer : Viewer
    name : {"Register", "Quality", "Experts", "Landmarks", "Fine-tune"}
    """
    frame, panel = viewer.window.add_plugin_dock_widget(
        PLUGIN, name, tabify=any(is_docked(viewer, other) for other in PANELS)
    )
    to_front(frame)
    return panel


def to_front(frame: QDockWidget) -> None:
    """Show a dock in front of the docks that are tabbed with it."""
    frame.show()
    frame.raise_()


def fit_view(viewer: Viewer) -> None:
    """Fit the view to all layers and select the newest warped image, once all layers and panels are
    open.

    At the start of napari this waits until the window is shown and has its size.
    """
    viewer_ref = weakref.ref(viewer)
    timer = QTimer(viewer.window._qt_window)  # deleted with the window
    timer.setSingleShot(True)

    def show() -> None:
        viewer = viewer_ref()
        if viewer is None:
            return
        if timer.interval() == 0:  # the window is about to be drawn
            timer.start(SETTLED)
            return
        viewer.reset_view()
        newest = max(open_registrations(viewer), default=0)
        warped = layers_of_registration(viewer, newest, "warped")
        if warped:
            viewer.layers.selection = {warped[-1]}
        timer.deleteLater()

    timer.timeout.connect(show)
    timer.start(0)


def is_docked(viewer: Viewer, name: str) -> bool:
    """Whether a viewer has a panel, or had one that was closed since."""
    return f"{name} ({PLUGIN})" in viewer.window.dock_widgets


def _name_dock(frame: Any, kind: str) -> None:
    """Give a new dock one name, whether a menu, the command line or this plugin opened it."""
    from napari_shmoareg.plugin.viewer import draw_in_own_context

    name = f"{kind} ({PLUGIN})"
    if frame.name.startswith(f"{kind} ("):  # else a caller chose a name
        frame.name = name  # napari finds the dock by it
        frame.setObjectName(name)
        frame.setWindowTitle(kind)  # the text of its tab
    viewer = frame._ref_qt_viewer().viewer
    draw_in_own_context(viewer)
    _raise_again(viewer)
    _open_from_menu()


def _raise_again(viewer: Any) -> None:
    """Have a window bring a panel of this plugin to the front if it is already open; napari only
    returns it.
    """
    window = getattr(viewer, "window", None)
    if window is None or "add_plugin_dock_widget" in vars(window):
        return
    window_ref, add = weakref.ref(window), type(window).add_plugin_dock_widget

    def add_plugin_dock_widget(
        plugin_name: str, widget_name: str | None = None, tabify: bool = False
    ) -> Any:
        frame, panel = add(window_ref(), plugin_name, widget_name, tabify)
        if plugin_name == PLUGIN:
            to_front(frame)
        return frame, panel

    window.add_plugin_dock_widget = add_plugin_dock_widget


def _open_from_menu() -> None:
    """Have the entries of the Plugins menu open panels by `dock`; napari's own hide an open
    panel.
    """
    from napari._app_model import get_app_model

    commands = get_app_model().commands
    for kind in PANELS:
        command = f"{PLUGIN}.{kind.lower().replace('-', '_')}"
        if (
            command in commands
            and getattr(commands[command].callback, "func", None) is not _dock_in_current
        ):
            title = commands._commands.pop(command).title
            commands.register_command(command, partial(_dock_in_current, kind), title)


def _dock_in_current(kind: str) -> None:
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        dock(viewer, kind)


def show_register_when_paired(viewer: Viewer) -> None:
    """Open the Register panel once a moving and a fixed image are open, unless it was closed
    before.
    """

    def paired() -> bool:
        return all(layer_in_role(viewer, role) is not None for role in ("moving", "fixed"))

    def show() -> None:
        if not is_docked(viewer, "Register"):
            dock(viewer, "Register")
            fit_view(viewer)

    run_when(viewer, paired, show)


def show_experts_when_complete(viewer: Viewer, registration: Registration, count: int) -> None:
    """Open the Experts panel once all layers of a registration are open."""

    def complete() -> bool:
        return sum(tag(layer, "registration") is registration for layer in viewer.layers) == count

    def show() -> None:
        dock(viewer, "Experts")
        fit_view(viewer)

    run_when(viewer, complete, show)


def register_selected() -> None:
    """Layers > Register: pick the two selected images in the Register panel; the one clicked last
    is the fixed image.
    """
    from napari import current_viewer
    from napari.utils.notifications import show_warning

    viewer = current_viewer()
    if viewer is None:
        return
    selected = [layer for layer in viewer.layers if layer in viewer.layers.selection]
    images = [layer for layer in selected if layer._type_string == "image"]
    if len(images) != 2:
        show_warning(NOT_TWO_IMAGES.format(images=len(images), layers=len(selected)))
        return
    moving, fixed = images
    from napari_shmoareg.plugin.controls.pickers import rejection

    for layer in images:
        reason = rejection(layer)
        if reason is not None:
            show_warning(f"The layer '{layer.name}' {reason}. Two single 3D images were expected.")
            return
    if getattr(viewer.layers.selection, "_current", None) is moving:
        moving, fixed = fixed, moving
    pick(dock(viewer, "Register"), moving, fixed)


def pick(panel: RegisterPanel, moving: Layer, fixed: Layer) -> None:
    """Pick two images in the Register panel."""
    for role, layer in (("moving", moving), ("fixed", fixed)):
        panel.pickers.pickers[role].pick(layer)


def register_now(viewer: Viewer, moving: Layer, fixed: Layer, *, refine: int) -> None:
    """Register two images by the panel, and show the experts of the result.

    Parameters
    ----------
    viewer : Viewer
    moving, fixed : Image
    refine : int
        Refinement steps, if the panel still has its default settings.
    """
    from napari_shmoareg.plugin.controls.progress import PanelState
    from napari_shmoareg.settings import RegistrationRequest

    panel = dock(viewer, "Register")
    pick(panel, moving, fixed)
    if panel.form.settings == RegistrationRequest():
        panel.form.settings = RegistrationRequest(refine=refine)
    viewer_ref, panel_ref = weakref.ref(viewer), weakref.ref(panel)

    def on_registered(number: int) -> None:
        viewer, panel = viewer_ref(), panel_ref()
        if viewer is not None and panel is not None:
            panel.registered.disconnect(on_registered)
            show_expert_map(viewer, number)

    panel.registered.connect(on_registered)
    # else the panel is busy, and a click would cancel that
    if panel.progress.button.text() == PanelState.idle.value:
        panel.progress.button.click()


def show_experts() -> None:
    """Layers > Visualize: open the Experts panel and show an expert map of the newest
    registration.
    """
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        show_expert_map(viewer, max(open_registrations(viewer), default=0))


def show_expert_map(viewer: Viewer, number: int) -> None:
    """Open the Experts panel and show an expert map of the registration with a number, if open."""
    from napari_shmoareg.plugin import showing

    dock(viewer, "Experts")
    showing.show_experts(viewer, number)


def run_when(viewer: Viewer, ready: Callable[[], bool], then: Callable[[], Any]) -> None:
    """Call a function once, after the first inserted layer that makes `ready` true."""

    def on_inserted(event: Any) -> None:
        if ready():
            viewer.layers.events.inserted.disconnect(on_inserted)
            then()

    viewer.layers.events.inserted.connect(on_inserted)
