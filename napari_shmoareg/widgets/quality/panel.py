"""The panel "Quality": compare, measure, save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QFrame, QGroupBox, QLabel, QScrollArea, QVBoxLayout, QWidget

from napari_shmoareg.widgets.opening import Panel
from napari_shmoareg.widgets.quality.compare_box import AS_THEY_ARE, CompareBox
from napari_shmoareg.widgets.quality.saving import SaveBox
from napari_shmoareg.widgets.quality.table import QualityTable
from napari_shmoareg.widgets.registration_picker import RegistrationPicker
from napari_shmoareg.widgets.scenes import itself

if TYPE_CHECKING:
    from pathlib import Path

    from napari import Viewer

WIDTH = 320
INVITE = "Register a pair, or open the folder of a registration: its images and figures are judged here."


class QualityPanel(Panel):
    """Compares fixed and moving before and after, shows the figures, and saves everything.

    Parameters
    ----------
    napari_viewer : Viewer
    """

    kind = "Quality"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.setMinimumWidth(WIDTH)
        viewer = itself(napari_viewer)
        self.picker, self.compare_box = RegistrationPicker(viewer), CompareBox(viewer)
        self.table = QualityTable()
        self.saving = SaveBox()
        self.invitation = QLabel(INVITE)
        self.invitation.setWordWrap(True)
        self._parts = [_boxed("Compare", self.compare_box), _boxed("Figures", self.table), self.saving]
        inner = QWidget()
        column = QVBoxLayout(inner)
        for part in (self.picker, self.invitation, *self._parts):
            column.addWidget(part)
        column.addStretch()
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inner)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area)
        self.picker.picked.connect(self._pick)
        self._pick()

    def reset_choices(self, event: Any = None) -> None:
        """Follow the layers of the viewer; napari calls it when they change."""
        self.picker.refresh()
        self.compare_box.comparer.layers_changed()

    def save_all(self, folder: str | Path) -> None:
        """Write everything of the picked registration into a new or empty folder, beside the window."""
        self.saving.save_all(folder)

    def changeEvent(self, event: QEvent | None) -> None:
        """End the comparison when the dock is closed: napari then takes the panel out of it, and tells it no more."""
        super().changeEvent(event)
        if event is not None and event.type() == QEvent.Type.ParentChange and self.parentWidget() is None:
            self.compare_box.compare(AS_THEY_ARE)

    def _pick(self) -> None:
        """Another registration is looked at."""
        scene = self.picker.scene
        self.invitation.setVisible(scene is None)
        for part in self._parts:
            part.setVisible(scene is not None)
        self.compare_box.set_registration(self.picker.number)
        self.table.show_report(None if scene is None else scene.report)
        self.saving.show_scene(lambda: self.picker.scene)


def _boxed(title: str, part: QWidget) -> QGroupBox:
    box = QGroupBox(title)
    QVBoxLayout(box).addWidget(part)
    return box
