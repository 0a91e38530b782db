"""The panel "Landmarks": pairs of points, and how far the registration leaves them apart."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_info
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from napari_shmoareg.widgets.landmarks import files as landmark_files
from napari_shmoareg.widgets.landmarks.adding import AddButton
from napari_shmoareg.widgets.landmarks.layers import (
    SIDES,
    centre_on,
    dress,
    drop_points,
    landmark_layer,
    measure,
    mend_pairs,
    points_of,
    set_points,
)
from napari_shmoareg.widgets.landmarks.table import LandmarkTable
from napari_shmoareg.widgets.opening import Panel
from napari_shmoareg.widgets.registration_picker import RegistrationPicker
from napari_shmoareg.widgets.scenes import itself

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Points

WIDTH = 300
SOON = 40  # ms between two measurements while a point is dragged
INVITE = "Set the same places in the fixed and in the moving image, or load them: the registration is judged at them."


class LandmarksPanel(Panel):
    """Sets, reads, writes and measures pairs of landmarks.

    Parameters
    ----------
    napari_viewer : Viewer
    """

    kind = "Landmarks"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.setMinimumWidth(WIDTH)
        viewer = itself(napari_viewer)
        self._viewer = weakref.ref(viewer)
        self._watched: weakref.WeakSet[Points] = weakref.WeakSet()
        self._closed = self._dropping = False
        self._soon = _timer(self, SOON, self.update_table)
        self._build(viewer)
        self.reset_choices()

    def reset_choices(self, event: Any = None) -> None:
        """Follow the layers of the viewer; napari calls it when they change."""
        self.picker.refresh()
        viewer = self._viewer()
        if viewer is None or self._closed:
            return
        found = [layer for layer in (landmark_layer(viewer, side) for side in SIDES) if layer is not None]
        if self.add.adding and len(found) < len(SIDES):
            self.add.stop()
        new = [layer for layer in found if layer not in self._watched]
        if new:
            self._dropping = True
            _tell_of_dropped(mend_pairs(viewer))
            self._dropping = False
        for layer in new:
            self._watched.add(layer)
            layer.events.data.connect(self._points_changed)
            layer.events.set_data.connect(self._points_moved)
        self._soon.start()

    def changeEvent(self, event: QEvent | None) -> None:
        """When the dock is closed, which takes the panel out of it: end the setting of points, follow no layer."""
        super().changeEvent(event)
        if event is None or event.type() != QEvent.Type.ParentChange:
            return
        self._closed = self.parentWidget() is None
        if self._closed:
            self.add.stop()
            for layer in self._watched:
                layer.events.data.disconnect(self._points_changed)
                layer.events.set_data.disconnect(self._points_moved)
            self._watched.clear()
        self.reset_choices()

    def delete_pairs(self) -> None:
        """Delete the pairs that are selected in the table."""
        viewer, chosen = self._viewer(), sorted(self.table.chosen)
        if viewer is None or not chosen:
            return
        for layer in (landmark_layer(viewer, side) for side in SIDES):
            if layer is not None:
                kept = np.delete(points_of(layer), [n for n in chosen if n < len(layer.data)], axis=0)
                set_points(layer, kept)

    def load(self, path: str, kind: str = "pairs") -> None:
        """Read landmarks: "pairs", or the points of the "fixed" or the "moving" image."""
        viewer = self._viewer()
        if viewer is not None:
            landmark_files.load(viewer, path, kind)

    def save(self, path: str, kind: str = "pairs") -> None:
        """Write landmarks (see `load`)."""
        viewer = self._viewer()
        if viewer is not None:
            landmark_files.save(viewer, path, kind)

    def update_table(self) -> None:
        """Measure anew."""
        points = self._points()
        counts = {side: len(found) for side, found in points.items()}
        whole = min(counts.values())
        self.table.show_distances(measure(points["fixed"][:whole], points["moving"][:whole], self.picker.scene))
        self.invitation.setVisible(not any(counts.values()) and not self.add.adding)
        more = max(counts, key=lambda side: counts[side])
        odd = counts[more] - whole
        self.odd.setText(f"⚠ {odd} {more} point{'s have' if odd > 1 else ' has'} no partner: not measured.")
        self.odd.setVisible(odd > 0)

    def _build(self, viewer: Viewer) -> None:
        self.picker, self.table = RegistrationPicker(viewer), LandmarkTable()
        self.invitation, self.hint, self.odd = QLabel(INVITE), QLabel(), QLabel()
        self.add, self.delete, self.copy = AddButton(viewer, self.picker), QPushButton("Delete"), QPushButton("Copy")
        self.delete.setToolTip("Delete the pairs that are selected in the table.")
        self.copy.setToolTip("Put the distances on the clipboard, for a spreadsheet.")
        self.files = landmark_files.FileButtons(viewer)
        row = QHBoxLayout()
        for button in (self.add, self.delete, self.copy):
            row.addWidget(button)
        layout = QVBoxLayout(self)
        layout.addWidget(self.picker)
        layout.addLayout(row)
        layout.addWidget(self.files)
        for label in (self.invitation, self.hint, self.odd):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
            layout.addWidget(label)
        layout.addWidget(self.table, 1)
        self.add.said.connect(self._say)
        self.delete.clicked.connect(self.delete_pairs)
        self.copy.clicked.connect(self.table.to_clipboard)
        self.table.asked.connect(self._centre)
        self.table.chosen_changed.connect(lambda: self.delete.setEnabled(bool(self.table.chosen)))
        self.picker.picked.connect(self.update_table)
        self.delete.setEnabled(False)
        self._say("")

    def _points(self) -> dict[str, Any]:
        viewer = self._viewer()
        return {side: points_of(None if viewer is None else landmark_layer(viewer, side)) for side in SIDES}

    def _points_changed(self, event: Any) -> None:
        """Points came, went or were moved."""
        if str(event.action).endswith(("added", "removed", "changed")):
            if str(event.action).endswith("removed"):
                self._drop_partners(event.source, event.data_indices)
            dress(event.source)
            self._soon.start()
            self.add.points_changed()

    def _drop_partners(self, layer: Points, removed: tuple[int, ...]) -> None:
        """Points were deleted with napari's own means: their partners go too, or all later pairs would be others."""
        viewer = self._viewer()
        if viewer is None or self._dropping:
            return
        both = [landmark_layer(viewer, side) for side in SIDES]
        other = both[0] if layer is both[1] else both[1] if layer is both[0] else None
        lone = [] if other is None else [n for n in removed if n < len(other.data)]
        if other is not None and lone:
            self._dropping = True
            try:
                drop_points(other, lone)
            finally:
                self._dropping = False
            _tell_of_dropped(len(lone))

    def _points_moved(self, event: Any) -> None:
        """A point may be being dragged: napari tells of its data only when it is let go."""
        if not self._soon.isActive():
            self._soon.start()

    def _say(self, hint: str) -> None:
        self.hint.setText(hint)
        self.hint.setVisible(bool(hint))

    def _centre(self, pair: int) -> None:
        viewer, fixed = self._viewer(), self._points()["fixed"]
        if viewer is not None and pair < len(fixed):
            centre_on(viewer, fixed[pair])


def _tell_of_dropped(count: int) -> None:
    if count:
        show_info(f"{count} landmark{'s' if count > 1 else ''} whose partner was deleted went with it.")


def _timer(owner: QWidget, wait: int, then: Callable[[], None]) -> QTimer:
    """One that fires once, `wait` ms after it is started."""
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.setInterval(wait)
    timer.timeout.connect(then)
    return timer
