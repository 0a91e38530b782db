"""Everything that the experts decided at one location.  Fig. 6.

Double clicks in the canvas, taken from napari's zoom for a while.

Location view: what the experts decided where one double-clicks.  Fig. 6.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import Section, arranged, fill, narrowed, pick
from napari_shmoareg.plugin.controls.strips import CellStrip, DirectionStrip, TokenStrip, gate_name
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.experts.attention import AttentionBox
from napari_shmoareg.plugin.experts.outline import Outline
from napari_shmoareg.plugin.experts.pins import MOST, PinsBox, drop_orphans
from napari_shmoareg.plugin.placement import go_to, mm_per_unit, point_of, to_viewer
from napari_shmoareg.plugin.registrations import open_registrations, unwrap

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.location import CellReading, LocationReading
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


ENCODER = "Attention heads: which the token chose, and with what weight (Eq. 4; they sum to 1)"
DECODER = "Kernels: what each direction's gate gave them (T of Eq. 6); outlined is the chosen one"
IMAGES = ("moving", "fixed")


class LocationBox(QWidget):
    """Strips of all gates of a registration; those of a location are filled in, in place."""

    picked = Signal(object)  # the GateId

    def __init__(self) -> None:
        super().__init__()
        self.strips: dict[GateId, CellStrip] = {}
        self.sizes: dict[tuple[str, int], QLabel] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._body: QWidget | None = None

    def show_registration(self, registration: Registration | None) -> None:
        """Make the strips of a registration's gates."""
        if self._body is not None:
            self._column.removeWidget(self._body)
            self._body.setParent(None)
            self._body = None
        self.strips, self.sizes = {}, {}
        if registration is None:
            return
        self._body = body = QWidget()
        grid = QGridLayout(body)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(4)
        grid.setVerticalSpacing(1)
        for column in (1, 2):
            grid.setColumnStretch(column, 1)
        self._add_encoder(grid, registration)
        self._add_decoder(grid, registration)
        for strip in self.strips.values():
            strip.picked.connect(self.picked)
        self._column.addWidget(body)

    def show_reading(self, reading: LocationReading | None) -> None:
        """Fill the strips in, or empty them."""
        cells = {} if reading is None else {cell.gate: cell for cell in reading.cells}
        for gate, strip in self.strips.items():
            strip.show_cell(cells.get(gate))

    def mark(self, gate: GateId | None) -> None:
        """Mark the gate whose cell is outlined in the canvas."""
        for own, strip in self.strips.items():
            strip.mark(own == gate)

    def _add_encoder(self, grid: QGridLayout, registration: Registration) -> None:
        from napari_shmoareg.figures.palette import IMAGE_COLOURS

        of_encoder = registration.routing.select(part="encoder")
        layers = sorted({one.layer for one in of_encoder})
        if layers:
            _span(grid, _words(ENCODER))
            row = grid.rowCount()
            for column, image in enumerate(IMAGES, start=1):
                grid.addWidget(_heading(f"{image} image"), row, column)
        for layer in layers:
            gates = [one for one in of_encoder if one.layer == layer]
            spacing = registration.network_grid.coarsen(gates[0].stride).spacing
            _span(
                grid,
                self._size("encoder", layer, f"Layer {layer}: tokens of {_mm(spacing)}"),
            )
            for block in sorted({load.block or 0 for load in gates}):
                row = grid.rowCount()
                grid.addWidget(
                    _tip(QLabel(str(block)), f"Block {block} of encoder layer {layer}"), row, 0
                )
                for load in gates:
                    gate, count = load.gate, load.num_experts
                    if (gate.block or 0) == block and gate.image in IMAGES:
                        names = [f"Head {n}" for n in range(count)]
                        strip = TokenStrip(gate, names, [IMAGE_COLOURS[gate.image]] * count)
                        grid.addWidget(strip, row, 1 + IMAGES.index(gate.image))
                        self.strips[gate] = strip

    def _add_decoder(self, grid: QGridLayout, registration: Registration) -> None:
        from napari_shmoareg.figures.palette import expert_colours
        from napari_shmoareg.plugin.layers import expert_names, resolution

        maps = sorted(
            registration.routing.select(part="decoder"),
            key=lambda one: (one.stride, one.direction or ""),
        )
        if maps:
            _span(grid, _words(DECODER))
        for stride in dict.fromkeys(found.stride for found in maps):
            of_stride = [found for found in maps if found.stride == stride]
            first = of_stride[0]
            heading = (
                f"Layer {first.layer} ({resolution(stride)}): cells of"
                f" {_mm(registration.network_grid.coarsen(stride).spacing)}"
            )
            _span(grid, self._size("decoder", first.layer, heading))
            for found in of_stride:
                row, count = grid.rowCount(), found.num_experts
                strip = DirectionStrip(
                    found.gate, expert_names(registration, count), expert_colours(count)
                )
                direction = found.direction or ""
                grid.addWidget(
                    _tip(
                        QLabel(direction),
                        f"Component {direction} of the displacement: {_axis(direction)}",
                    ),
                    row,
                    0,
                )
                grid.addWidget(strip, row, 1, 1, 2)
                self.strips[found.gate] = strip

    def _size(self, part: str, layer: int, text: str) -> QLabel:
        label = _heading(text)
        self.sizes[part, layer] = label
        return label


def _span(grid: QGridLayout, label: QLabel) -> None:
    grid.addWidget(label, grid.rowCount(), 0, 1, 3)


def _words(text: str) -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    font = label.font()
    font.setItalic(True)
    label.setFont(font)
    return label


def _heading(text: str) -> QLabel:
    label = QLabel(text)
    label.setAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignBottom)
    return label


def _tip(label: QLabel, tip: str) -> QLabel:
    label.setToolTip(tip)
    return label


def _mm(spacing: tuple[float, float, float]) -> str:
    """The size of a cell: one number where it is as long along all axes."""
    if max(spacing) - min(spacing) < 0.05:
        return f"{spacing[0]:.1f} mm"
    return " × ".join(f"{length:.1f}" for length in spacing) + " mm"


def _axis(direction: str) -> str:
    """Along which axis of the network grid a component runs; the grid's axes lie nearest to right,
    front, up.
    """
    return {"x": "left to right", "y": "back to front", "z": "bottom to top"}.get(
        direction, direction
    )


ZOOM = "double_click_to_zoom"  # napari's own


class DoubleClicks:
    """Hands the locations of double clicks to a method while it listens; napari's own zoom rests.

    Parameters
    ----------
    viewer : Viewer
        Held weakly.
    then : bound method
        Called with the location, (3,) mm RAS, or None in 3D, where a click has no depth.  Held
        weakly.
    """

    def __init__(self, viewer: Viewer, then: Callable[[NDArray[np.float64] | None], None]) -> None:
        self._viewer, self._then = weakref.ref(viewer), weakref.WeakMethod(then)
        self._clicked: Callable[[Any, Any], None] | None = None
        self._zoom: Callable[[Any, Any], None] | None = None

    @property
    def listening(self) -> bool:
        """Whether double clicks come here."""
        return self._clicked is not None

    def listen(self) -> None:
        """Take double clicks; napari's zoom is out of the list until `stop`."""
        viewer = self._viewer()
        if viewer is None or self._clicked is not None:
            return
        then = self._then

        def clicked(viewer: Any, event: Any) -> None:
            method, active = then(), viewer.layers.selection.active
            # else a layer is being edited
            if method is not None and (active is None or active.mode == "pan_zoom"):
                method(_location(viewer, event))

        self._clicked, callbacks = clicked, viewer.mouse_double_click_callbacks
        self._zoom = next(
            (found for found in callbacks if getattr(found, "__name__", "") == ZOOM), None
        )
        if self._zoom is None:
            callbacks.append(clicked)
        else:
            callbacks[callbacks.index(self._zoom)] = clicked

    def stop(self) -> None:
        """Leave double clicks to napari, as before."""
        viewer, clicked, self._clicked = self._viewer(), self._clicked, None
        if viewer is None or clicked is None:
            return
        callbacks = viewer.mouse_double_click_callbacks
        if clicked in callbacks:
            at = callbacks.index(clicked)
            callbacks[at : at + 1] = [] if self._zoom is None else [self._zoom]


def _location(viewer: Any, event: Any) -> NDArray[np.float64] | None:
    """Where an event was, mm RAS; None in 3D."""
    if viewer.dims.ndisplay != 2:
        return None
    return to_viewer(np.asarray(event.position, dtype=np.float64)[-3:] * mm_per_unit(viewer))


INVITE = (
    "Double-click a voxel in the canvas (napari's zoom by double click rests while this view is in"
    " front)."
)
FLAT = "In 3D a click has no depth. Go to 2D, or give the location in mm."
FAR = 10000.0  # mm: as far as locations can be given
NOTHING = "This network has no experts (no MoA, no SHMoE), so nothing was chosen at any location."
NO_GATES = "This folder was written before gates were kept: only what was chosen is known."


class LocationView(Section):
    """Reads all gates at a location, compares up to five, and shows what a token attends to.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Experts at a location", viewer)
        self.reading: LocationReading | None = None
        # that was read last, exactly; the boxes round it
        self._location: NDArray[np.float64] | None = None
        self._registration: weakref.ref[Registration] | None = None
        self._clicks = clicks = DoubleClicks(unwrap(viewer), self._clicked)
        self._outline = Outline(unwrap(viewer))
        # not `destroyed`: a slot can be collected before its call
        weakref.finalize(self, clicks.stop).atexit = False
        self._soon = single_shot(self, 0, self._show_cell)  # the strips are drawn first
        self._build(viewer)
        self.refresh()

    def refresh(self) -> None:
        """Take up the registration of the number, and the pins as they are.

        The location that was read stays, where the one before was onto the same image.
        """
        super().refresh()
        viewer = unwrap(self._viewer)
        registration, before = open_registrations(viewer).get(self._number), self._found()
        if registration is not before:
            self._outline.clear()
        drop_orphans(viewer)
        if registration is None or registration is not before:
            self._take_up(registration, before)
        self.pins.refresh()

    def read(self, point: ArrayLike) -> None:
        """Read a location, (3,) mm RAS; where nothing can be read it is said why."""
        from napari_shmoareg.experts.location import read_location
        from napari_shmoareg.experts.maps import gate_values

        registration = self._found()
        if registration is None:
            return
        self._location = location = np.array(point, dtype=np.float64)
        for box, value in zip(self.coordinates, location, strict=True):
            with signals_blocked(box):
                box.setValue(float(value))
        try:
            self.reading = read_location(registration, location)
            kept = NO_GATES if self.reading.cells else NOTHING
            said = "" if gate_values(registration) else kept
        except InputError as error:
            self.reading, said = None, str(error)
        self._say(said)
        self.box.show_reading(self.reading)
        self.pin.setEnabled(self.reading is not None)
        self._soon.start()

    def read_middle(self) -> None:
        """Read the location in the middle of the canvas, on the slice that is shown."""
        viewer = unwrap(self._viewer)
        there, camera = point_of(viewer), np.asarray(viewer.scene.camera.center, dtype=np.float64)
        shown = [axis - (viewer.dims.ndim - 3) for axis in viewer.dims.displayed]
        for axis, at in zip(shown, camera[-len(shown) :], strict=True):
            if axis >= 0:
                there[axis] = at * mm_per_unit(viewer)
        self.read(to_viewer(there))

    @property
    def picked(self) -> CellReading | None:
        """The cell, at the location that was read, of the gate that is picked."""
        gate = self.gate.currentData()
        return next(
            (cell for cell in (self.reading.cells if self.reading else ()) if cell.gate == gate),
            None,
        )

    def event(self, event: QEvent | None) -> bool:
        """Give double clicks back before it is deleted: Qt hides nothing then."""
        if event is not None and event.type() == QEvent.Type.DeferredDelete:
            self._clicks.stop()
        return bool(super().event(event))

    def showEvent(self, event: QShowEvent | None) -> None:
        super().showEvent(event)
        self._clicks.listen()
        self._soon.start()

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
        self.box = LocationBox()
        self.box.picked.connect(self._pick)
        self.column.addWidget(self.box)
        self.outlined, self.gate = QCheckBox("Outline its cell"), QComboBox()
        self.outlined.setChecked(True)
        self.outlined.setToolTip(
            "Draw the borders of the token, or cell, of the picked gate that covers the location"
        )
        self.gate.setToolTip(
            "Whose cell is outlined and whose attention is shown; a click on a strip picks it too"
        )
        narrowed(self.gate)
        self.gates = QWidget()
        arranged(QHBoxLayout(self.gates), QLabel("Gate"), self.gate, wide=self.gate)
        self.column.addWidget(self.gates)
        self.column.addWidget(self.outlined)
        self.attention, self.pins = AttentionBox(unwrap(viewer)), PinsBox(unwrap(viewer))
        self.column.addWidget(self.attention)
        self.column.addWidget(self.pins)
        self.outlined.toggled.connect(lambda _: self._show_cell())
        self.gate.activated.connect(lambda _: self._show_cell())
        self.pins.asked.connect(self.read)

    def _where(self) -> tuple[QHBoxLayout, QHBoxLayout]:
        """The location in mm, to be read and given; and what can be done with it."""
        row, below = QHBoxLayout(), QHBoxLayout()
        self.coordinates = []
        for n, (axis, tip) in enumerate(
            zip("RAS", ("to the right", "to the front", "up"), strict=True)
        ):
            box = QDoubleSpinBox()
            box.setRange(-FAR, FAR)
            box.setDecimals(1)
            box.setPrefix(f"{axis} ")
            box.setButtonSymbols(QDoubleSpinBox.ButtonSymbols.NoButtons)
            box.setKeyboardTracking(False)
            # napari's own has 90: three would not fit into a narrow dock
            box.setStyleSheet("min-width: 58px;")
            box.setToolTip(f"The location that is read, mm {tip}; another one can be given")
            box.setAccessibleName(f"{axis}, mm {tip}")
            box.valueChanged.connect(lambda value, n=n: self._typed(n, value))
            self.coordinates.append(box)
            row.addWidget(box, 1)
        self.middle, self.pin = (
            QPushButton("&Read middle of view"),
            QPushButton("&Pin location"),
        )
        self.middle.setToolTip(
            "Read the location in the middle of the canvas, on the slice that is shown (Alt+R)"
        )
        self.pin.setToolTip(f"Keep this location, to be compared with others; up to {MOST} (Alt+P)")
        self.middle.clicked.connect(self.read_middle)
        self.pin.clicked.connect(self._pin)
        for button in (self.middle, self.pin):
            below.addWidget(button)
        return row, below

    def _take_up(self, registration: Registration | None, before: Registration | None) -> None:
        point = None if self.reading is None else self.reading.point
        self._registration = None if registration is None else weakref.ref(registration)
        self.reading = None
        self.box.show_registration(registration)
        fill(self.gate, {gate: gate_name(gate) for gate in self.box.strips})
        for widget in (self.gates, self.outlined):
            widget.setVisible(bool(self.box.strips))
        self.pin.setEnabled(False)
        self.attention.show_registration(self._number, registration)
        self.pins.show_registration(self._number, registration)
        self._say("")
        if registration is None or before is None or point is None:
            return
        if before.pair.fixed.grid.same_space(registration.pair.fixed.grid):
            self.read(point)

    def _clicked(self, point: NDArray[np.float64] | None) -> None:
        if point is None:
            self._say(FLAT)
        else:
            self.read(point)

    def _typed(self, axis: int, value: float) -> None:
        location = np.array(
            [box.value() for box in self.coordinates] if self._location is None else self._location
        )
        location[axis] = value
        self.read(location)
        if self.reading is not None:
            go_to(unwrap(self._viewer), to_viewer(location))

    def _pin(self) -> None:
        if self.reading is not None:
            self.pins.pin(self.reading.point)

    def _pick(self, gate: GateId) -> None:
        pick(self.gate, gate)
        self._show_cell()

    def _show_cell(self) -> None:
        """Outline the cell of the picked gate, and show what it attends to."""
        cell, registration = self.picked, self._found()
        self.box.mark(self.gate.currentData())
        if (
            cell is not None
            and registration is not None
            and self.outlined.isChecked()
            and self.isVisible()
        ):
            self._outline.show(self._number, registration, cell)
        else:
            self._outline.clear()
        self.attention.show_cell(cell)

    def _say(self, text: str) -> None:
        self.says.setText(text or INVITE)

    def _found(self) -> Registration | None:
        return None if self._registration is None else self._registration()
