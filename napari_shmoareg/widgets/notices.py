"""Words to people, also before the window is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from napari.utils.notifications import Notification, NotificationSeverity, notification_manager
from qtpy.QtCore import QTimer

if TYPE_CHECKING:
    from napari import Viewer


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
    notification = Notification(text, severity=NotificationSeverity(severity))
    notification_manager.dispatch(notification)
    if viewer.window._qt_window.isVisible():
        return
    from napari._qt.dialogs.qt_notification import NapariQtNotification

    QTimer.singleShot(0, lambda: NapariQtNotification.show_notification(notification))
