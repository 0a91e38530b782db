"""The tab Location of the Experts panel: the choices of all gates at a double-clicked location
(Fig. 6).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from math import nan
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
from napari_shmoareg.plugin.controls.bars import Box, BoxChart
from napari_shmoareg.plugin.controls.forms import Section, arranged, fill, pick, weakly, wrapped
from napari_shmoareg.plugin.controls.legend import GREY
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.experts.attention import AttentionBox
from napari_shmoareg.plugin.experts.gate_picker import gate_name
from napari_shmoareg.plugin.experts.outline import Outline
from napari_shmoareg.plugin.experts.pins import MAX_PINS, PinsBox, drop_orphans, short
from napari_shmoareg.plugin.layers import expert_names, resolution
from napari_shmoareg.plugin.placement import go_to, mm_per_unit, point_of, to_viewer
from napari_shmoareg.plugin.registrations import open_registrations, unwrap

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.location import CellReading, LocationReading
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


ENCODER = "Attention heads that the token chose, with their weights (Eq. 4; they sum to 1)"
DECODER = "Kernels with the gate values of each direction (T of Eq. 6); the chosen one is outlined"
IMAGES = ("moving", "fixed")
# the network grid's axes are nearest to right, front, up
AXES = {"x": "left to right", "y": "back to front", "z": "bottom to top"}
FAINT, SHADE = 60, "#82808080"  # opacity of a chosen box, of 255; fill of decoder boxes


class CellStrip(BoxChart):
    """The decision of a gate for one cell, with a box per expert; a click picks the gate.

    Heads of the encoder are tinted if chosen and filled by weight (Eq. 4); experts of the decoder
    are filled by gate value (T of Eq. 6), and the chosen one is outlined.

    Parameters
    ----------
    gate : GateId
    names, colours : sequence of str
        Of the experts, by id; ``#rrggbb``.
    """

    def __init__(self, gate: GateId, names: Sequence[str], colours: Sequence[str]) -> None:
        super().__init__(pickable=True, accessible_name=gate_name(gate))
        self.gate, self._names, self._colours = gate, list(names), list(colours)
        self.show_cell(None)

    def show_cell(self, cell: CellReading | None) -> None:
        """Show a decision of the gate, or None."""
        self.cell = cell
        chosen = {} if cell is None else dict(zip(cell.experts, cell.weights, strict=True))
        if self.gate.part == "encoder":
            boxes = [self._head(n, chosen.get(n)) for n in range(len(self._names))]
            self.lines = [
                gap.join(f"{head} {short(weight, digits)}" for head, weight in chosen.items())
                for gap, digits in (("   ", 3), ("  ", 2))
            ]
        else:
            boxes = [self._kernel(n, n in chosen) for n in range(len(self._names))]
            self.lines = [""]
            if cell is not None and cell.margin is None:
                self.lines = ["gate values were not saved"]
            elif cell is not None:
                self.lines = [f"margin {cell.margin:.3f}   entropy {cell.entropy:.3f}"]
        self.show_bars(boxes, self.lines[0])

    def _head(self, n: int, weight: float | None) -> Box:
        box = partial(Box, self.gate, n, column=n, mark=str(n), tooltip=self._tooltip(n))
        colour = self._colours[n]
        if weight is None:
            return box(nan, colour, ink=GREY.name())
        return box(weight, colour, back=f"#{FAINT:02x}{colour[1:]}")

    def _kernel(self, n: int, chosen: bool) -> Box:
        box = partial(Box, self.gate, n, column=n, tooltip=self._tooltip(n), sideways=True)
        ring, name = self._colours[n] if chosen else "", self._names[n]
        if self.cell is None or self.cell.values is None:
            return box(nan, SHADE, name, ring=ring, bold=chosen)
        value = self.cell.values[n]
        return box(value, SHADE, f"{name}  {short(value)}", ring=ring, bold=chosen)

    def _tooltip(self, expert: int) -> str:
        cell = self.cell
        if cell is None:
            return gate_name(self.gate)
        weight = dict(zip(cell.experts, cell.weights, strict=True)).get(expert)
        details = ["not chosen" if weight is None else "chosen"]
        if weight is not None and weight == weight:
            details = [f"chosen, weight {weight:.4f}"]
        if cell.values is not None:
            details.append(f"gate value {cell.values[expert]:.4f}")
        text = f"{self._names[expert]} of {gate_name(self.gate)}: {'; '.join(details)}."
        if cell.entropy is not None:
            text += f"\nEntropy {cell.entropy:.3f}, margin {cell.margin:.4f}"
        size = " × ".join(f"{mm:.1f}" for mm in cell.size)
        return f"{text}\nCell {cell.cell} of {size} mm"


class LocationBox(QWidget):
    """Strips of all gates of a registration, which show the values at a location."""

    picked = Signal(object)  # a GateId

    def __init__(self) -> None:
        super().__init__()
        self.strips: dict[GateId, CellStrip] = {}
        self._column = arranged(QVBoxLayout(self))
        self._body = QWidget()

    def show_registration(self, registration: Registration | None) -> None:
        """Create the strips of a registration's gates."""
        self._column.removeWidget(self._body)
        self._body.setParent(None)
        self.strips, self._body = {}, QWidget()
        if registration is None:
            return
        grid = QGridLayout(self._body)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(4)
        grid.setVerticalSpacing(1)
        for column in (1, 2):
            grid.setColumnStretch(column, 1)
        self._add_encoder(grid, registration)
        self._add_decoder(grid, registration)
        self._column.addWidget(self._body)

    def show_reading(self, reading: LocationReading | None) -> None:
        """Show the values of a location in the strips, or clear them."""
        cells = {} if reading is None else {cell.gate: cell for cell in reading.cells}
        for gate, strip in self.strips.items():
            strip.show_cell(cells.get(gate))

    def mark(self, gate: GateId | None) -> None:
        """Mark the gate whose cell is outlined in the canvas."""
        for strip in self.strips.values():
            strip.mark(gate)

    def _add_encoder(self, grid: QGridLayout, registration: Registration) -> None:
        """A row per block, with the moving image left and the fixed right."""
        from napari_shmoareg.figures.palette import IMAGE_COLOURS

        of_encoder = registration.routing.select(part="encoder")
        if of_encoder:
            _span(grid, _heading(ENCODER, italic=True))
            row = grid.rowCount()
            for column, image in enumerate(IMAGES, start=1):
                grid.addWidget(_heading(f"{image} image"), row, column)
        rows: dict[tuple[int, int], int] = {}
        for one in sorted(of_encoder, key=lambda one: (one.layer, one.block or 0)):
            gate, count, at = one.gate, one.num_experts, (one.layer, one.block or 0)
            if gate.image not in IMAGES:
                continue
            if one.layer not in {layer for layer, _ in rows}:
                size = _mm(registration.network_grid.coarsen(one.stride).spacing)
                _span(grid, _heading(f"Layer {one.layer}: tokens of {size}"))
            if at not in rows:
                rows[at] = grid.rowCount()
                tip = f"Block {at[1]} of encoder layer {one.layer}"
                grid.addWidget(_tip(QLabel(str(at[1])), tip), rows[at], 0)
            names = [f"Head {n}" for n in range(count)]
            strip = self._strip(gate, names, [IMAGE_COLOURS[gate.image]] * count)
            grid.addWidget(strip, rows[at], 1 + IMAGES.index(gate.image))

    def _add_decoder(self, grid: QGridLayout, registration: Registration) -> None:
        """A row per direction."""
        from napari_shmoareg.figures.palette import expert_colours

        maps = registration.routing.select(part="decoder")
        if maps:
            _span(grid, _heading(DECODER, italic=True))
        stride = 0
        for one in sorted(maps, key=lambda one: (one.stride, one.direction or "")):
            if one.stride != stride:
                stride = one.stride
                size = _mm(registration.network_grid.coarsen(stride).spacing)
                _span(grid, _heading(f"Layer {one.layer} ({resolution(stride)}): cells of {size}"))
            row, count, direction = grid.rowCount(), one.num_experts, one.direction or ""
            towards = AXES.get(direction, direction)
            label = _tip(QLabel(direction), f"Component {direction} of the displacement: {towards}")
            grid.addWidget(label, row, 0)
            names, colours = expert_names(registration, count), expert_colours(count)
            grid.addWidget(self._strip(one.gate, names, colours), row, 1, 1, 2)

    def _strip(self, gate: GateId, names: Sequence[str], colours: Sequence[str]) -> CellStrip:
        strip = self.strips[gate] = CellStrip(gate, names, colours)
        strip.picked.connect(lambda bar: self.picked.emit(bar.gate))
        return strip


def _span(grid: QGridLayout, label: QLabel) -> None:
    grid.addWidget(label, grid.rowCount(), 0, 1, 3)


def _heading(text: str, *, italic: bool = False) -> QLabel:
    label = QLabel(text)
    label.setAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignBottom)
    label.setWordWrap(italic)
    font = label.font()
    font.setItalic(italic)
    label.setFont(font)
    return label


def _tip(label: QLabel, tip: str) -> QLabel:
    label.setToolTip(tip)
    return label


def _mm(spacing: tuple[float, float, float]) -> str:
    """The size of a cell: one number if it is the same along all axes."""
    if max(spacing) - min(spacing) < 0.05:
        return f"{spacing[0]:.1f} mm"
    return " × ".join(f"{length:.1f}" for length in spacing) + " mm"


ZOOM = "double_click_to_zoom"  # napari's callback


class DoubleClicks:
    """Passes the locations of double clicks to a method while listening, in place of napari's zoom.

    Parameters
    ----------
    viewer : Viewer
        Stored as a weak reference.
    then : bound method
        Called with the location, (3,) mm RAS, or None in 3D, where a click has no depth.  Stored as
        a weak reference.
    """

    def __init__(self, viewer: Viewer, then: Callable[[NDArray[np.float64] | None], None]) -> None:
        self._viewer, self._then = weakref.ref(viewer), weakref.WeakMethod(then)
        self._callback: Callable[[Any, Any], None] | None = None
        self._zoom: Callable[[Any, Any], None] | None = None

    @property
    def listening(self) -> bool:
        """Whether double clicks are handled here."""
        return self._callback is not None

    def listen(self) -> None:
        """Handle double clicks; napari's zoom is replaced until `stop`."""
        viewer = self._viewer()
        if viewer is None or self._callback is not None:
            return
        then = self._then

        def clicked(viewer: Any, event: Any) -> None:
            method, active = then(), viewer.layers.selection.active
            # else a layer is being edited
            if method is not None and (active is None or active.mode == "pan_zoom"):
                method(_location(viewer, event))

        self._callback, callbacks = clicked, viewer.mouse_double_click_callbacks
        self._zoom = next(
            (found for found in callbacks if getattr(found, "__name__", "") == ZOOM), None
        )
        if self._zoom is None:
            callbacks.append(clicked)
        else:
            callbacks[callbacks.index(self._zoom)] = clicked

    def stop(self) -> None:
        """Restore napari's zoom."""
        viewer, clicked, self._callback = self._viewer(), self._callback, None
        if viewer is None or clicked is None:
            return
        callbacks = viewer.mouse_double_click_callbacks
        if clicked in callbacks:
            at = callbacks.index(clicked)
            callbacks[at : at + 1] = [] if self._zoom is None else [self._zoom]


def _location(viewer: Any, event: Any) -> NDArray[np.float64] | None:
    """The location of a mouse event, mm RAS; None in 3D."""
    if viewer.dims.ndisplay != 2:
        return None
    return to_viewer(np.asarray(event.position, dtype=np.float64)[-3:] * mm_per_unit(viewer))


HINT = (
    "Double-click a voxel in the canvas (while this view is in front, napari does not zoom on a"
    " double click)."
)
NO_DEPTH = "In 3D a click has no depth. Switch to 2D, or enter the location in mm."
COORDINATES = (("R", "to the right"), ("A", "to the front"), ("S", "up"))
MAX_MM = 10000.0  # largest coordinate that can be entered
NO_EXPERTS = (
    "This network has no experts (no MoA, no SHMoE), so nothing was chosen at any location."
)
NO_GATES = (
    "This folder was written by a version that did not save gate values: it only has the choices."
)


class LocationView(Section):
    """Shows the choices of all gates at a location, compares up to five locations, and shows the
    attention of a token.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Experts at a location", viewer)
        self.reading: LocationReading | None = None
        # the last location, exact; the boxes round it
        self._location: NDArray[np.float64] | None = None
        self._registration = weakly(None)
        self._clicks = clicks = DoubleClicks(unwrap(viewer), self._on_double_click)
        self._outline = Outline(unwrap(viewer))
        # not `destroyed`: a slot can be collected before its call
        weakref.finalize(self, clicks.stop).atexit = False
        self._soon = single_shot(self, 0, self._show_cell)  # the strips are drawn first
        self._build(viewer)
        self.refresh()

    def refresh(self) -> None:
        """Update the registration and the pins.

        The location stays if the previous registration has the same fixed image space.
        """
        super().refresh()
        viewer = unwrap(self._viewer)
        registration, before = open_registrations(viewer).get(self._number), self._registration()
        if registration is not before:
            self._outline.clear()
        drop_orphans(viewer)
        if registration is None or registration is not before:
            self._use_registration(registration, before)
        self.pins.refresh()

    def read(self, point: ArrayLike) -> None:
        """Read a location, (3,) mm RAS; a message explains if that is not possible."""
        from napari_shmoareg.experts.location import read_location
        from napari_shmoareg.experts.maps import gate_values

        registration = self._registration()
        if registration is None:
            return
        self._location = location = np.array(point, dtype=np.float64)
        for box, value in zip(self.coordinates, location, strict=True):
            with signals_blocked(box):
                box.setValue(float(value))
        try:
            self.reading = read_location(registration, location)
            missing = NO_GATES if self.reading.cells else NO_EXPERTS
            message = "" if gate_values(registration) else missing
        except InputError as error:
            self.reading, message = None, str(error)
        self._set_message(message)
        self.box.show_reading(self.reading)
        self.pin.setEnabled(self.reading is not None)
        self._soon.start()

    def read_middle(self) -> None:
        """Read the location in the middle of the canvas, on the shown slice."""
        viewer = unwrap(self._viewer)
        middle, camera = point_of(viewer), np.asarray(viewer.scene.camera.center, dtype=np.float64)
        shown = [axis - (viewer.dims.ndim - 3) for axis in viewer.dims.displayed]
        for axis, at in zip(shown, camera[-len(shown) :], strict=True):
            if axis >= 0:
                middle[axis] = at * mm_per_unit(viewer)
        self.read(to_viewer(middle))

    @property
    def picked(self) -> CellReading | None:
        """The cell of the picked gate at the location."""
        cells = self.reading.cells if self.reading else ()
        return next((cell for cell in cells if cell.gate == self.gate.currentData()), None)

    def event(self, event: QEvent | None) -> bool:
        """Restore double clicks before deletion: Qt sends no hide event then."""
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
        self.message, self.box = QLabel(HINT), LocationBox()
        wrapped(self.message)
        self.coordinates = [self._coordinate(n, *one) for n, one in enumerate(COORDINATES)]
        self.middle, self.pin = QPushButton("&Read middle of view"), QPushButton("&Pin location")
        self.middle.setToolTip(
            "Read the location in the middle of the canvas, on the shown slice (Alt+R)"
        )
        self.pin.setToolTip(
            f"Keep this location to compare it with others; up to {MAX_PINS} (Alt+P)"
        )
        self.gate, self.gates = QComboBox(), QWidget()
        self.gate.setToolTip(
            "The gate whose cell is outlined and whose attention is shown; a click on a strip picks"
            " it too"
        )
        self.outlined = QCheckBox("Outline its cell")
        self.outlined.setChecked(True)
        self.outlined.setToolTip(
            "Draw the border of the token or cell of the picked gate that covers the location"
        )
        self.attention, self.pins = AttentionBox(unwrap(viewer)), PinsBox(unwrap(viewer))
        arranged(QHBoxLayout(self.gates), QLabel("Gate"), self.gate, wide=self.gate)
        self.column.addWidget(self.message)
        for row in (self.coordinates, (self.middle, self.pin)):
            self.column.addLayout(arranged(QHBoxLayout(), *row))
        for part in (self.box, self.gates, self.outlined, self.attention, self.pins):
            self.column.addWidget(part)
        self.box.picked.connect(self._pick)
        self.middle.clicked.connect(self.read_middle)
        self.pin.clicked.connect(self._pin)
        self.outlined.toggled.connect(lambda _: self._show_cell())
        self.gate.activated.connect(lambda _: self._show_cell())
        self.pins.location_requested.connect(self.read)

    def _coordinate(self, n: int, axis: str, tip: str) -> QDoubleSpinBox:
        """Create the box of one coordinate in mm."""
        box = QDoubleSpinBox()
        box.setRange(-MAX_MM, MAX_MM)
        box.setDecimals(1)
        box.setPrefix(f"{axis} ")
        box.setButtonSymbols(QDoubleSpinBox.ButtonSymbols.NoButtons)
        box.setKeyboardTracking(False)
        # napari's style has 90 px: three boxes would not fit into a narrow dock
        box.setStyleSheet("min-width: 58px;")
        box.setToolTip(f"The location, mm {tip}; can be edited")
        box.setAccessibleName(f"{axis}, mm {tip}")
        box.valueChanged.connect(lambda value: self._on_typed(n, value))
        return box

    def _use_registration(
        self, registration: Registration | None, before: Registration | None
    ) -> None:
        point = None if self.reading is None else self.reading.point
        self._registration = weakly(registration)
        self.reading = None
        self.box.show_registration(registration)
        fill(self.gate, {gate: gate_name(gate) for gate in self.box.strips})
        for widget in (self.gates, self.outlined):
            widget.setVisible(bool(self.box.strips))
        self.pin.setEnabled(False)
        self.attention.show_registration(self._number, registration)
        self.pins.show_registration(self._number, registration)
        self._set_message("")
        if registration is None or before is None or point is None:
            return
        if before.pair.fixed.grid.same_space(registration.pair.fixed.grid):
            self.read(point)

    def _on_double_click(self, point: NDArray[np.float64] | None) -> None:
        if point is None:
            self._set_message(NO_DEPTH)
        else:
            self.read(point)

    def _on_typed(self, axis: int, value: float) -> None:
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
        """Outline the cell of the picked gate, and show its attention."""
        cell, registration = self.picked, self._registration()
        self.box.mark(self.gate.currentData())
        shown = self.outlined.isChecked() and self.isVisible()
        if shown and cell is not None and registration is not None:
            self._outline.show(self._number, registration, cell)
        else:
            self._outline.clear()
        self.attention.show_cell(cell)

    def _set_message(self, text: str) -> None:
        self.message.setText(text or HINT)
