"""A list of the registrations that are open in a viewer."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox

from napari_shmoareg.widgets.scenes import scenes, title

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.scene import Scene

NOTHING = "(no registration is open)"


class RegistrationPicker(QComboBox):
    """Offers the open registrations; a new one is picked when it comes.

    Parameters
    ----------
    viewer : Viewer
    """

    picked = Signal()  # another registration than before, or none

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._offered: list[weakref.ref[Scene]] = []
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(16)
        self.setToolTip("The registration that is looked at. Each one that is open in the layer list is offered.")
        self.currentIndexChanged.connect(self._tell)
        self.refresh()

    @property
    def number(self) -> int | None:
        """Of the picked registration; None if none is open."""
        return self.currentData()

    @property
    def scene(self) -> Scene | None:
        """The picked registration, as long as it has a layer."""
        viewer = self._viewer()
        return None if viewer is None or self.number is None else scenes(viewer).get(self.number)

    def refresh(self) -> None:
        """Offer what is open now; the newest is picked if it is new, else what was picked stays."""
        viewer = self._viewer()
        found = {} if viewer is None else scenes(viewer)
        before = [ref() for ref in self._offered]
        if self.count() and before == list(found.values()) and all(scene is not None for scene in before):
            return
        was = before[self.currentIndex()] if 0 <= self.currentIndex() < len(before) else None
        fresh = [number for number, scene in found.items() if scene not in before]
        kept = [number for number, scene in found.items() if scene is was and was is not None]
        blocked = self.blockSignals(True)
        self.clear()
        for number, scene in found.items():
            self.addItem(title(number, scene), number)
        if not found:
            self.addItem(NOTHING, None)
        self.setEnabled(bool(found))
        pick = (fresh or kept or list(found))[-1:]
        self.setCurrentIndex(max(0, self.findData(pick[0]) if pick else 0))
        self.blockSignals(blocked)
        self._offered = [weakref.ref(scene) for scene in found.values()]
        if was is None or self.scene is not was:
            self._tell()

    def _tell(self) -> None:
        self.setItemData(self.currentIndex(), self.currentText(), 3)  # Qt.ToolTipRole: the list may be narrow
        self.picked.emit()
