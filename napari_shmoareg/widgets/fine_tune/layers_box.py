"""Which open layers are learned from: a line per image, with its labels and its subject."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QHeaderView, QLabel, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.widgets.fine_tune.layer_files import Picked
from napari_shmoareg.widgets.fine_tune.layer_labels import labels_by_image
from napari_shmoareg.widgets.register import pairing
from napari_shmoareg.widgets.register.pickers import NO_LABELS, LayerPicker

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

HEADINGS = ("Image", "Labels", "Subject")
TIPS = (
    "Ticked images are learned from. Each is written on its own grid.",
    "Labels of this image, for the overlap loss and for Dice. They need not be there.",
    "Whose image it is: images of one subject never stand on both sides of the split. Double-click to change it.",
)
ROWS = 6  # shown at once
EXPLAINED = (
    "The ticked layers are written beside the run's folder when it starts, and learned from there. With few subjects, "
    "set Split to such as 2/0/0: all learn, and none judges."
)


class LayersBox(QWidget):
    """Offers the image layers of a viewer that are no results.

    Parameters
    ----------
    viewer : Viewer
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._images: list[weakref.ref[Layer]] = []
        self._by_hand: weakref.WeakSet[Layer] = weakref.WeakSet()  # whose labels a person picked
        self.table = QTableWidget(0, len(HEADINGS))
        for n, heading in enumerate(HEADINGS):
            item = QTableWidgetItem(heading)
            item.setToolTip(f"<qt>{TIPS[n]}</qt>")
            self.table.setHorizontalHeaderItem(n, item)
        rows, columns = self.table.verticalHeader(), self.table.horizontalHeader()
        assert rows is not None and columns is not None
        rows.setVisible(False)
        columns.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.table.setShowGrid(False)
        self.table.setMinimumHeight(ROWS * 28)
        self.table.itemChanged.connect(lambda _: self.changed.emit())
        explained = QLabel(EXPLAINED)
        explained.setWordWrap(True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.table)
        column.addWidget(explained)
        self.refresh()

    @property
    def picked(self) -> list[Picked]:
        """The ticked images."""
        found = []
        for row, held in enumerate(self._images):
            image, name = held(), self.table.item(row, 0)
            if image is not None and name is not None and name.checkState() == Qt.CheckState.Checked:
                subject = self.table.item(row, 2)
                found.append(Picked(image, self._picker(row).layer, subject.text() if subject else image.name))
        return found

    def refresh(self) -> None:
        """Offer what is open now; ticks, labels and subjects of layers that stay are kept."""
        viewer = self._viewer()
        if viewer is None:
            return
        images, labels = (
            [la for la in pairing.offered(viewer.layers, kind) if pairing.refused(la) is None and not _result(la)]
            for kind in ("image", "labels")
        )
        before = {id(held()): row for row, held in enumerate(self._images)}
        kept = {n: self._state(before[id(image)]) for n, image in enumerate(images) if id(image) in before}
        by_hand = {images[n]: state[1] for n, state in kept.items() if images[n] in self._by_hand}
        guessed = labels_by_image(
            [image for image in images if image not in by_hand], [la for la in labels if la not in by_hand.values()]
        )
        blocked = self.table.blockSignals(True)
        self.table.setRowCount(0)
        self.table.setRowCount(len(images))
        self._images = [weakref.ref(image) for image in images]
        for row, image in enumerate(images):
            ticked, chosen, subject = kept.get(row, (True, None, image.name))
            if image not in self._by_hand:
                chosen = guessed.get(image)
            name, whose = QTableWidgetItem(image.name), QTableWidgetItem(subject)
            name.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            name.setCheckState(Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked)
            name.setToolTip(image.name)
            picker = LayerPicker(NO_LABELS)
            picker.setMinimumContentsLength(4)
            picker.offer(labels, chosen if chosen in labels else None)
            picker.activated.connect(lambda _, held=self._images[row]: self._pick(held))
            self.table.setItem(row, 0, name)
            self.table.setCellWidget(row, 1, picker)
            self.table.setItem(row, 2, whose)
        self.table.blockSignals(blocked)
        self.changed.emit()

    def _pick(self, held: weakref.ref[Layer]) -> None:
        """A person picked the labels of an image, or none."""
        image = held()
        if image is not None:
            self._by_hand.add(image)
            rows = {other(): self._picker(row) for row, other in enumerate(self._images)}
            for other, picker in rows.items():  # labels are one image's
                if other is not image and picker.layer is not None and picker.layer is rows[image].layer:
                    picker.setCurrentIndex(0)
            self.changed.emit()

    def _state(self, row: int) -> tuple[bool, Layer | None, str]:
        name, subject = self.table.item(row, 0), self.table.item(row, 2)
        assert name is not None and subject is not None
        return name.checkState() == Qt.CheckState.Checked, self._picker(row).layer, subject.text()

    def _picker(self, row: int) -> LayerPicker:
        picker = self.table.cellWidget(row, 1)
        assert isinstance(picker, LayerPicker)
        return picker


def _result(layer: Layer) -> bool:
    """Whether it was warped by this plugin: no scan of anybody."""
    from napari_shmoareg.widgets.placement import tag

    return tag(layer, "scene") is not None or tag(layer, "number") is not None
