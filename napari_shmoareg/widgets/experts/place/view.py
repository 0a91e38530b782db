"""Place view: what the experts decided where one double-clicks.  Fig. 6."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QHBoxLayout, QLabel, QPushButton, QWidget
from superqt.utils import signals_blocked

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.experts.place.attention_box import AttentionBox
from napari_shmoareg.widgets.experts.place.box import PlaceBox
from napari_shmoareg.widgets.experts.place.clicks import DoubleClicks
from napari_shmoareg.widgets.experts.place.outline import Outline
from napari_shmoareg.widgets.experts.place.pins import MOST, drop_orphans
from napari_shmoareg.widgets.experts.place.pins_box import PinsBox
from napari_shmoareg.widgets.experts.place.strips import gate_name
from napari_shmoareg.widgets.experts.section import Section, fill, pick
from napari_shmoareg.widgets.placement import to_viewer
from napari_shmoareg.widgets.scenes import itself, scenes
from napari_shmoareg.widgets.units import go_to, mm_per_unit, point_of

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.expert_load import Place
    from napari_shmoareg.analysis.place_reading import CellReading, PlaceReading
    from napari_shmoareg.analysis.scene import Scene

INVITE = "Double-click a voxel in the canvas (napari's zoom by double click rests while this view is in front)."
FLAT = "In 3D a click has no depth. Go to 2D, or give the place in mm."
FAR = 10000.0  # mm: as far as places can be given
NOTHING = "This network has no experts (no MoA, no SHMoE), so nothing was chosen at any place."
NO_GATES = "This folder was written before gates were kept: only what was chosen is known."


class PlaceView(Section):
    """Reads all gates at a place, compares up to five places, and shows what a token attends to.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Experts at a place", viewer)
        self.reading: PlaceReading | None = None
        self._place: NDArray[np.float64] | None = None  # that was read last, exactly; the boxes round it
        self._scene: weakref.ref[Scene] | None = None
        self._clicks = clicks = DoubleClicks(itself(viewer), self._clicked)
        self._outline = Outline(itself(viewer))
        weakref.finalize(self, clicks.stop).atexit = False  # not `destroyed`: a slot can be collected before its call
        self._soon = QTimer(self)  # the strips are drawn first
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._show_cell)
        self._build(viewer)
        self.refresh()

    def refresh(self) -> None:
        """Take up the registration of the number, and the pins as they are.

        The place that was read stays, where the one before was onto the same image.
        """
        super().refresh()
        viewer = itself(self._viewer)
        scene, before = scenes(viewer).get(self._number), self._found()
        if scene is not before:
            self._outline.clear()
        drop_orphans(viewer)
        if scene is None or scene is not before:
            self._take_up(scene, before)
        self.pins.refresh()

    def read(self, point: ArrayLike) -> None:
        """Read a place, (3,) mm RAS; where nothing can be read it is said why."""
        from napari_shmoareg.analysis.place_reading import read_place

        scene = self._found()
        if scene is None:
            return
        self._place = place = np.array(point, dtype=np.float64)
        for box, value in zip(self.coordinates, place, strict=True):
            with signals_blocked(box):
                box.setValue(float(value))
        try:
            self.reading = read_place(scene, place)
            kept = NO_GATES if self.reading.cells else NOTHING
            said = "" if scene.gates else kept
        except InputError as error:
            self.reading, said = None, str(error)
        self._say(said)
        self.box.show_reading(self.reading)
        self.pin.setEnabled(self.reading is not None)
        self._soon.start(0)

    def read_middle(self) -> None:
        """Read the place in the middle of the canvas, on the slice that is shown."""
        viewer = itself(self._viewer)
        there, camera = point_of(viewer), np.asarray(viewer.scene.camera.center, dtype=np.float64)
        shown = [axis - (viewer.dims.ndim - 3) for axis in viewer.dims.displayed]
        for axis, at in zip(shown, camera[-len(shown) :], strict=True):
            if axis >= 0:
                there[axis] = at * mm_per_unit(viewer)
        self.read(to_viewer(there))

    @property
    def picked(self) -> CellReading | None:
        """The cell, at the place that was read, of the gate that is picked."""
        place = self.gate.currentData()
        return next((cell for cell in (self.reading.cells if self.reading else ()) if cell.place == place), None)

    def event(self, event: QEvent | None) -> bool:
        """Give double clicks back before it is deleted: Qt hides nothing then."""
        if event is not None and event.type() == QEvent.Type.DeferredDelete:
            self._clicks.stop()
        return bool(super().event(event))

    def showEvent(self, event: QShowEvent | None) -> None:
        super().showEvent(event)
        self._clicks.listen()
        self._soon.start(0)

    def hideEvent(self, event: QHideEvent | None) -> None:
        super().hideEvent(event)
        self._clicks.stop()
        self._outline.clear()

    def _build(self, viewer: Viewer) -> None:
        self.says = QLabel(INVITE)
        self.says.setWordWrap(True)
        self.column.addWidget(self.says)
        for row in self._where():
            self.column.addLayout(row)
        self.box = PlaceBox()
        self.box.picked.connect(self._pick)
        self.column.addWidget(self.box)
        self.outlined, self.gate = QCheckBox("Outline its cell"), QComboBox()
        self.outlined.setChecked(True)
        self.outlined.setToolTip("Draw the borders of the token, or cell, of the picked gate that covers the place")
        self.gate.setToolTip("Whose cell is outlined and whose attention is shown; a click on a strip picks it too")
        self.gate.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.gates = QWidget()
        gates = QHBoxLayout(self.gates)
        gates.setContentsMargins(0, 0, 0, 0)
        gates.addWidget(QLabel("Gate"))
        gates.addWidget(self.gate, 1)
        self.column.addWidget(self.gates)
        self.column.addWidget(self.outlined)
        self.attention, self.pins = AttentionBox(itself(viewer)), PinsBox(itself(viewer))
        self.column.addWidget(self.attention)
        self.column.addWidget(self.pins)
        self.outlined.toggled.connect(lambda _: self._show_cell())
        self.gate.activated.connect(lambda _: self._show_cell())
        self.pins.asked.connect(self.read)

    def _where(self) -> tuple[QHBoxLayout, QHBoxLayout]:
        """The place in mm, to be read and given; and what can be done with it."""
        row, below = QHBoxLayout(), QHBoxLayout()
        self.coordinates = []
        for n, (axis, tip) in enumerate(zip("RAS", ("to the right", "to the front", "up"), strict=True)):
            box = QDoubleSpinBox()
            box.setRange(-FAR, FAR)
            box.setDecimals(1)
            box.setPrefix(f"{axis} ")
            box.setButtonSymbols(QDoubleSpinBox.ButtonSymbols.NoButtons)
            box.setKeyboardTracking(False)
            box.setStyleSheet("min-width: 58px;")  # napari's own has 90: three would not fit into a narrow dock
            box.setToolTip(f"The place that is read, mm {tip}; another one can be given")
            box.setAccessibleName(f"{axis}, mm {tip}")
            box.valueChanged.connect(lambda value, n=n: self._typed(n, value))
            self.coordinates.append(box)
            row.addWidget(box, 1)
        self.middle, self.pin = QPushButton("&Read middle of view"), QPushButton("&Pin this place")
        self.middle.setToolTip("Read the place in the middle of the canvas, on the slice that is shown (Alt+R)")
        self.pin.setToolTip(f"Keep this place, to be compared with others; up to {MOST} (Alt+P)")
        self.middle.clicked.connect(self.read_middle)
        self.pin.clicked.connect(self._pin)
        for button in (self.middle, self.pin):
            below.addWidget(button)
        return row, below

    def _take_up(self, scene: Scene | None, before: Scene | None) -> None:
        point = None if self.reading is None else self.reading.point
        self._scene = None if scene is None else weakref.ref(scene)
        self.reading = None
        self.box.show_scene(scene)
        fill(self.gate, {place: gate_name(place) for place in self.box.strips})
        for widget in (self.gates, self.outlined):
            widget.setVisible(bool(self.box.strips))
        self.pin.setEnabled(False)
        self.attention.show_scene(self._number, scene)
        self.pins.show_scene(self._number, scene)
        self._say("")
        if scene is None or before is None or point is None:
            return
        if before.pair.fixed.grid.same_space(scene.pair.fixed.grid):
            self.read(point)

    def _clicked(self, point: NDArray[np.float64] | None) -> None:
        if point is None:
            self._say(FLAT)
        else:
            self.read(point)

    def _typed(self, axis: int, value: float) -> None:
        place = np.array([box.value() for box in self.coordinates] if self._place is None else self._place)
        place[axis] = value
        self.read(place)
        if self.reading is not None:
            go_to(itself(self._viewer), to_viewer(place))

    def _pin(self) -> None:
        if self.reading is not None:
            self.pins.pin(self.reading.point)

    def _pick(self, place: Place) -> None:
        pick(self.gate, place)
        self._show_cell()

    def _show_cell(self) -> None:
        """Outline the cell of the picked gate, and show what it attends to."""
        cell, scene = self.picked, self._found()
        self.box.mark(self.gate.currentData())
        if cell is not None and scene is not None and self.outlined.isChecked() and self.isVisible():
            self._outline.show(self._number, scene, cell)
        else:
            self._outline.clear()
        self.attention.show_cell(cell)

    def _say(self, text: str) -> None:
        self.says.setText(text or INVITE)

    def _found(self) -> Scene | None:
        return None if self._scene is None else self._scene()
