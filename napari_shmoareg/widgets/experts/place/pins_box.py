"""Up to five places, kept and compared.  Fig. 6."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_info
from numpy.typing import NDArray
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QToolButton, QVBoxLayout, QWidget

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.experts.place.pin_charts import PinBars, PinTable
from napari_shmoareg.widgets.experts.place.pins import MOST, PINS, dress, layer_of_place, pin, pins_of, unpin
from napari_shmoareg.widgets.experts.place.table import choices_of, groups_of, rows_of
from napari_shmoareg.widgets.experts.section import fill
from napari_shmoareg.widgets.experts.table_buttons import TableButtons
from napari_shmoareg.widgets.landmarks.layers import centre_on
from napari_shmoareg.widgets.legend import Swatch

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.place_reading import PlaceReading
    from napari_shmoareg.analysis.scene import Scene

OUTSIDE = "outside of what the network saw"
SOON = 30  # ms between two looks while a pin is dragged
OVER_BLOCKS = "all: how often chosen"


class PinRow(QWidget):
    """A pinned place: its number in its colour, where it is, and what can be done with it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.go, self.drop = QToolButton(), QToolButton()
        self.go.setText("Go to")
        self.go.setToolTip(f"Show the slice of pin {number}, and read it")
        self.drop.setText("✕")
        self.drop.setToolTip(f"Remove pin {number}; those after it move up")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(Swatch(PINS[number - 1]))
        row.addWidget(self.text, 1)
        row.addWidget(self.go)
        row.addWidget(self.drop)


class PinsBox(QWidget):
    """The pins of a registration, which are the points of a layer, and how they differ.

    Parameters
    ----------
    viewer : Viewer
    """

    asked = Signal(object)  # a place, (3,) mm RAS, to be read

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._scene: weakref.ref[Scene] | None = None
        self._number = 0
        self._watched: weakref.ref[Any] | None = None
        self.readings: list[tuple[int, PlaceReading]] = []
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(SOON)
        self._soon.timeout.connect(self.refresh)
        self._build()
        self.refresh()

    def show_scene(self, number: int, scene: Scene | None) -> None:
        """Be about another registration, or none."""
        self._number, self._scene = number, None if scene is None else weakref.ref(scene)
        if scene is not None:
            layers = sorted({load.place.layer for load in scene.token_loads})
            fill(self.layer, {n: f"layer {n}" for n in layers})
            self._offer_blocks(scene)
            for widget in (self.layer, self.block, self.image, self.heads, self.bars):
                widget.setVisible(bool(scene.token_loads))  # none without MoA
            self.kernels.setVisible(bool(scene.expert_maps))  # none without SHMoE
            self.table.setVisible(bool(scene.expert_maps))
        self.refresh()

    def pin(self, point: NDArray[np.float64]) -> None:
        """Keep a place, mm RAS; a sixth is refused in plain words."""
        viewer, scene = self._viewer(), self._found()
        if viewer is None or scene is None:
            return
        try:
            pin(viewer, self._number, scene, point)
        except InputError as error:
            show_info(str(error))
        self.refresh()

    def refresh(self) -> None:
        """Read the pins anew, as they are in their layer."""
        viewer, scene = self._viewer(), self._found()
        points = np.zeros((0, 3)) if viewer is None or scene is None else pins_of(viewer, scene)[:MOST]
        self._watch(None if viewer is None or scene is None else layer_of_place(viewer, scene, "places"))
        self.readings = []
        for number, (row, point) in enumerate(zip(self.rows, points, strict=False), start=1):
            told = f"{number}: {', '.join(f'{mm:.1f}' for mm in point)}"
            try:
                self.readings.append((number, _read(scene, point)))
            except InputError:
                told += f" ({OUTSIDE})"
            row.text.setText(told)
        for number, row in enumerate(self.rows):
            row.setVisible(number < len(points))
        self.compared.setVisible(any(reading.cells for _, reading in self.readings))
        self.none.setVisible(not len(points))
        self._draw()

    def _build(self) -> None:
        self.none = QLabel("No pins yet: pin up to five places to compare them (mm R, A, S).")
        self.none.setWordWrap(True)
        self.rows = [PinRow(number) for number in range(1, MOST + 1)]
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.none)
        for index, row in enumerate(self.rows):
            row.go.clicked.connect(lambda _=False, n=index: self._go(n))
            row.drop.clicked.connect(lambda _=False, n=index: self._drop(n))
            column.addWidget(row)
        self.layer, self.block, self.image = QComboBox(), QComboBox(), QComboBox()
        self.layer.setToolTip("Encoder layer whose heads are compared")
        self.block.setToolTip("The weight of every head in one block, or in which share of the blocks it was chosen")
        self.image.setToolTip("Whose tokens")
        for image in ("fixed", "moving"):
            self.image.addItem(image, image)
        combos = QHBoxLayout()
        for combo in (self.layer, self.block, self.image):
            combo.activated.connect(lambda _: self._choose())
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combos.addWidget(combo, 1)
        self.bars, self.table = PinBars(), PinTable()
        self.bars.setAccessibleName("Weight of every head at each pin")
        self.table.setAccessibleName("Kernels that each pin chose")
        self.heads, self.kernels = QLabel(), QLabel("Kernels, with what the gate gave the chosen one (T of Eq. 6):")
        for label in (self.heads, self.kernels):
            label.setWordWrap(True)
        self.buttons = TableButtons(self._rows, "places.csv")
        self.compared = QWidget()
        inner = QVBoxLayout(self.compared)
        inner.setContentsMargins(0, 4, 0, 0)
        inner.addLayout(combos)
        for widget in (self.heads, self.bars, self.kernels, self.table, self.buttons):
            inner.addWidget(widget)
        column.addWidget(self.compared)

    def _offer_blocks(self, scene: Scene) -> None:
        layer = self.layer.currentData()
        blocks = sorted({load.place.block or 0 for load in scene.token_loads if load.place.layer == layer})
        fill(self.block, {-1: OVER_BLOCKS} | {n: f"block {n}" for n in blocks})

    def _choose(self) -> None:
        scene = self._found()
        if scene is not None:
            self._offer_blocks(scene)
            self._draw()

    def _draw(self) -> None:
        scene, layer, block = self._found(), self.layer.currentData(), self.block.currentData()
        if scene is None or not self.readings:
            return
        over = block in (None, -1)
        self.heads.setText(
            f"Heads of the {self.image.currentData()} image, "
            + ("share of the layer's blocks that chose them:" if over else "weight (Eq. 4):")
        )
        if layer is not None:
            groups = groups_of(self.readings, layer, self.image.currentData(), None if over else block)
            low = max((max(group.values, default=1.0) for group in groups), default=1.0) <= 0.5
            self.bars.show_groups(groups, 0.5 if low and not over else 1.0)
        columns, choices = choices_of(scene, self.readings)
        self.table.show_choices([(str(n), PINS[n - 1]) for n, _ in self.readings], columns, choices)

    def _rows(self) -> list[dict[str, object]]:
        scene = self._found()
        return [] if scene is None else rows_of(scene, self.readings)

    def _go(self, index: int) -> None:
        viewer, scene = self._viewer(), self._found()
        if viewer is not None and scene is not None:
            point = pins_of(viewer, scene)[index]
            centre_on(viewer, point)
            self.asked.emit(point)

    def _drop(self, index: int) -> None:
        viewer, scene = self._viewer(), self._found()
        if viewer is not None and scene is not None:
            unpin(viewer, scene, index)
        self.refresh()

    def _watch(self, layer: Any) -> None:
        """Follow pins that are dragged, added or deleted with napari's own means."""
        before = None if self._watched is None else self._watched()
        if before is layer:
            return
        if before is not None:
            before.events.data.disconnect(self._changed)
            before.events.set_data.disconnect(self._changed)
        self._watched = None if layer is None else weakref.ref(layer)
        if layer is not None:
            layer.events.data.connect(self._changed)
            layer.events.set_data.connect(self._changed)

    def _changed(self, event: Any) -> None:
        if event.type == "data" and str(event.action).endswith(("added", "removed", "changed")):
            dress(event.source)
        if not self._soon.isActive():
            self._soon.start()

    def _found(self) -> Scene | None:
        return None if self._scene is None else self._scene()


def _read(scene: Scene | None, point: NDArray[np.float64]) -> PlaceReading:
    from napari_shmoareg.analysis.place_reading import read_place

    assert scene is not None
    return read_place(scene, point)
