"""What is taken elsewhere: weights to the Register panel, the command to the clipboard."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QApplication

from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.widgets.fine_tune.ordering import Ordering

COPIED = "The command is on the clipboard."


def use(viewer: Viewer | None, ordering: Ordering) -> None:
    """Choose a run's weights in the Register panel, and bring that up."""
    from napari_shmoareg.widgets.opening import dock

    if viewer is None or ordering.weights is None:
        return
    panel = dock(viewer, "Register")
    panel.form.settings = replace(panel.form.settings, weights=str(ordering.weights))
    panel.form.changed.emit()  # kept for the next start, as what is chosen by hand


def copy(ordering: Ordering) -> None:
    """Put the command of what the panel says on the clipboard."""
    clipboard = QApplication.clipboard()
    try:
        written = ordering.written()
    except InputError as error:
        show_error(str(error))
        return
    if clipboard is not None:
        clipboard.setText(written)
        show_info(COPIED)
