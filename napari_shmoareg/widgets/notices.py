"""Words to people, also before the window is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from napari.utils.notifications import Notification, NotificationSeverity, notification_manager
from qtpy.QtCore import QTimer

if TYPE_CHECKING:
    from napari import Viewer
    from qtpy.QtWidgets import QWidget

CAUTION, ON_CAUTION = "#e3b617", "#1e1e21"  # napari's colour of warnings, dark and light, and what is read on it


def look_like_caution(widget: QWidget, on: bool) -> None:
    """Give a text, or take from it, the look of a caution, whatever the theme of the window."""
    style = f"background-color: {CAUTION}; color: {ON_CAUTION}; border-radius: 4px; padding: 6px;"
    widget.setStyleSheet(style if on else "")


def tell(viewer: Viewer, severity: Literal["info", "warning", "error"], text: str) -> None:
    """Notify: in the terminal at once, and in the window, as soon as there is one.

    At the start of napari files are opened before the window is shown, and napari leaves out in the window
    what is said until then.

    Parameters
    ----------
    viewer : Viewer
    severity : {"info", "warning", "error"}
    text : str
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # names of files may hold what Qt cannot show
    notification = Notification(text, severity=NotificationSeverity(severity))
    notification_manager.dispatch(notification)
    if viewer.window._qt_window.isVisible():
        return
    from napari._qt.dialogs.qt_notification import NapariQtNotification

    QTimer.singleShot(0, lambda: NapariQtNotification.show_notification(notification))
