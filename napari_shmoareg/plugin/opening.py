"""Brings up panels, one of a kind in a viewer: from the menus, and when something was opened that
they are for.
"""

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
SETTLED = 100  # ms after which a window that is new has its size
TWO = (
    "Two selected images were expected, moving and fixed; {images} of the {layers} selected layers"
    " are images. Click the moving one in the layer list, then the fixed one with Ctrl (Cmd on a"
    " Mac) held down."
)


class Panel(QWidget):
    """A panel of this plugin, of which a viewer has one, whatever opened it.

    napari docks a panel under one name where a plugin's name is given (``napari -w shmoareg``, this
    plugin itself) and under another from its Plugins menu, and would open it twice.  Here both are
    one name, and to open a panel that is open brings it to the front.

    Attributes
    ----------
    kind : str
        What the manifest calls it, one of `PANELS`.
    """

    kind: ClassVar[str]

    def changeEvent(self, event: QEvent | None) -> None:
        """When it is put into a dock: be the one of its kind there."""
        super().changeEvent(event)
        frame = self.parentWidget()
        if (
            event is not None
            and event.type() == QEvent.Type.ParentChange
            and isinstance(frame, QDockWidget)
        ):
            _settle(frame, self.kind)


def dock(viewer: Viewer, name: str) -> Any:
    """A panel of this plugin, shown and in front of the others; a new one where the viewer has
    none.

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
    """Show a dock, before others that are tabbed with it."""
    frame.show()
    frame.raise_()


def fit(viewer: Viewer) -> None:
    """Show what is open whole, and select the newest warped image if there is one: once all layers
    and panels are in.

    At the start of napari that is when the window is shown and has its size.
    """
    held = weakref.ref(viewer)
    timer = QTimer(viewer.window._qt_window)  # it ends with the window
    timer.setSingleShot(True)

    def show() -> None:
        there = held()
        if there is None:
            return
        if timer.interval() == 0:  # the window is about to be drawn
            timer.start(SETTLED)
            return
        there.reset_view()
        warped = layers_of_registration(there, max(open_registrations(there), default=0), "warped")
        if warped:
            there.layers.selection = {warped[-1]}
        timer.deleteLater()

    timer.timeout.connect(show)
    timer.start(0)


def is_docked(viewer: Viewer, name: str) -> bool:
    """Whether a viewer has a panel, or had one that was closed."""
    return f"{name} ({PLUGIN})" in viewer.window.dock_widgets


def _settle(frame: Any, kind: str) -> None:
    """Give a dock that napari is making the name by which its panel is found again, whatever opened
    it.
    """
    from napari_shmoareg.plugin.viewer import draw_in_own_context

    name = f"{kind} ({PLUGIN})"
    if frame.name.startswith(f"{kind} ("):  # else somebody chose a name
        frame.name = name  # by which napari will know it
        frame.setObjectName(name)
        frame.setWindowTitle(name)
    viewer = frame._ref_qt_viewer().viewer
    draw_in_own_context(viewer)
    _raise_again(viewer)
    _open_from_menu()


def _raise_again(viewer: Any) -> None:
    """Have a window bring a panel of ours to the front where napari only hands it over: it is open
    already.
    """
    window = getattr(viewer, "window", None)
    if window is None or "add_plugin_dock_widget" in vars(window):
        return
    held, add = weakref.ref(window), type(window).add_plugin_dock_widget

    def add_plugin_dock_widget(
        plugin_name: str, widget_name: str | None = None, tabify: bool = False
    ) -> Any:
        frame, panel = add(held(), plugin_name, widget_name, tabify)
        if plugin_name == PLUGIN:
            to_front(frame)
        return frame, panel

    window.add_plugin_dock_widget = add_plugin_dock_widget


def _open_from_menu() -> None:
    """Have the entries of the Plugins menu open panels as `dock` does; napari's own hide one that
    is open.
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


def when_paired(viewer: Viewer) -> None:
    """Bring up the Register panel as soon as a moving and a fixed image are open; not where it was
    closed before.
    """

    def paired() -> bool:
        return all(layer_in_role(viewer, role) is not None for role in ("moving", "fixed"))

    def show() -> None:
        if not is_docked(viewer, "Register"):
            dock(viewer, "Register")
            fit(viewer)

    when(viewer, paired, show)


def when_complete(viewer: Viewer, registration: Registration, count: int) -> None:
    """Bring up the Experts panel as soon as all layers of a registration are open."""

    def complete() -> bool:
        return sum(tag(layer, "registration") is registration for layer in viewer.layers) == count

    def show() -> None:
        dock(viewer, "Experts")
        fit(viewer)

    when(viewer, complete, show)


def take_selected() -> None:
    """Layers > Register: the two selected images go into the Register panel; the one clicked last
    is the fixed one.
    """
    from napari import current_viewer
    from napari.utils.notifications import show_warning

    viewer = current_viewer()
    if viewer is None:
        return
    selected = [layer for layer in viewer.layers if layer in viewer.layers.selection]
    images = [layer for layer in selected if layer._type_string == "image"]
    if len(images) != 2:
        show_warning(TWO.format(images=len(images), layers=len(selected)))
        return
    moving, fixed = images
    from napari_shmoareg.plugin.controls.pickers import refused

    for layer in images:
        why = refused(layer)
        if why is not None:
            show_warning(f"The layer '{layer.name}' {why}. Two single 3D images were expected.")
            return
    if getattr(viewer.layers.selection, "_current", None) is moving:
        moving, fixed = fixed, moving
    pick(dock(viewer, "Register"), moving, fixed)


def pick(panel: RegisterPanel, moving: Layer, fixed: Layer) -> None:
    """Pick two images in the Register panel, as if by hand."""
    for role, layer in (("moving", moving), ("fixed", fixed)):
        panel.pickers.pickers[role].pick(layer)


def register_now(viewer: Viewer, moving: Layer, fixed: Layer, *, refine: int) -> None:
    """Register two images as the panel does by a click, and show the experts of the result.

    Parameters
    ----------
    viewer : Viewer
    moving, fixed : Image
    refine : int
        Steps, where nothing else was ever chosen in the panel.
    """
    from napari_shmoareg.plugin.controls.progress import PanelState
    from napari_shmoareg.settings import RegistrationRequest

    panel = dock(viewer, "Register")
    pick(panel, moving, fixed)
    if panel.form.settings == RegistrationRequest():
        panel.form.settings = RegistrationRequest(refine=refine)
    held, shown = weakref.ref(viewer), weakref.ref(panel)

    def done(number: int) -> None:
        there, still = held(), shown()
        if there is not None and still is not None:
            still.registered.disconnect(done)
            experts_of(there, number)

    panel.registered.connect(done)
    # else it is at something, and a click would end that
    if panel.progress.button.text() == PanelState.nothing.value:
        panel.progress.button.click()


def show_experts() -> None:
    """Layers > Visualize: the Experts panel, and an expert map of the newest registration."""
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        experts_of(viewer, max(open_registrations(viewer), default=0))


def experts_of(viewer: Viewer, number: int) -> None:
    """Bring up the Experts panel and show an expert map of a registration, if there is one of this
    number.
    """
    from napari_shmoareg.plugin import showing

    dock(viewer, "Experts")
    showing.show_experts(viewer, number)


def when(viewer: Viewer, ready: Callable[[], bool], then: Callable[[], Any]) -> None:
    """Do something once, when a layer came in and everything is ready."""

    def look(event: Any) -> None:
        if ready():
            viewer.layers.events.inserted.disconnect(look)
            then()

    viewer.layers.events.inserted.connect(look)
