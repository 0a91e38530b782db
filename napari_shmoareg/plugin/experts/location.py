"""The tab Location of the Experts panel: the choices of all gates at a double-clicked location
(Fig. 6).
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
from napari_shmoareg.plugin.experts.pins import MAX_PINS, PinsBox, drop_orphans
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


class LocationBox(QWidget):
    """Strips of all gates of a registration, which show the values at a location."""

    picked = Signal(object)  # a GateId

    def __init__(self) -> None:
        super().__init__()
        self.strips: dict[GateId, CellStrip] = {}
        self.sizes: dict[tuple[str, int], QLabel] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._body: QWidget | None = None

    def show_registration(self, registration: Registration | None) -> None:
        """Create the strips of a registration's gates."""
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
        """Show the values of a location in the strips, or clear them."""
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
            _span(grid, _caption(ENCODER))
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
            _span(grid, _caption(DECODER))
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


def _caption(text: str) -> QLabel:
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
    """The size of a cell: one number if it is the same along all axes."""
    if max(spacing) - min(spacing) < 0.05:
        return f"{spacing[0]:.1f} mm"
    return " × ".join(f"{length:.1f}" for length in spacing) + " mm"


def _axis(direction: str) -> str:
    """The anatomical direction of a component; the network grid's axes are nearest to right,
    front, up.
    """
    return {"x": "left to right", "y": "back to front", "z": "bottom to top"}.get(
        direction, direction
    )


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
        self._registration: weakref.ref[Registration] | None = None
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
        registration, before = open_registrations(viewer).get(self._number), self._current()
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

        registration = self._current()
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
        gate = self.gate.currentData()
        return next(
            (cell for cell in (self.reading.cells if self.reading else ()) if cell.gate == gate),
            None,
        )

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
        self.message = QLabel(HINT)
        self.message.setWordWrap(True)
        self.column.addWidget(self.message)
        for row in self._build_controls():
            self.column.addLayout(row)
        self.box = LocationBox()
        self.box.picked.connect(self._pick)
        self.column.addWidget(self.box)
        self.outlined, self.gate = QCheckBox("Outline its cell"), QComboBox()
        self.outlined.setChecked(True)
        self.outlined.setToolTip(
            "Draw the border of the token or cell of the picked gate that covers the location"
        )
        self.gate.setToolTip(
            "The gate whose cell is outlined and whose attention is shown; a click on a strip picks"
            " it too"
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
        self.pins.location_requested.connect(self.read)

    def _build_controls(self) -> tuple[QHBoxLayout, QHBoxLayout]:
        """Create the boxes of the location in mm, and the buttons below."""
        row, below = QHBoxLayout(), QHBoxLayout()
        self.coordinates = []
        for n, (axis, tip) in enumerate(
            zip("RAS", ("to the right", "to the front", "up"), strict=True)
        ):
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
            box.valueChanged.connect(lambda value, n=n: self._on_typed(n, value))
            self.coordinates.append(box)
            row.addWidget(box, 1)
        self.middle, self.pin = (
            QPushButton("&Read middle of view"),
            QPushButton("&Pin location"),
        )
        self.middle.setToolTip(
            "Read the location in the middle of the canvas, on the shown slice (Alt+R)"
        )
        self.pin.setToolTip(
            f"Keep this location to compare it with others; up to {MAX_PINS} (Alt+P)"
        )
        self.middle.clicked.connect(self.read_middle)
        self.pin.clicked.connect(self._pin)
        for button in (self.middle, self.pin):
            below.addWidget(button)
        return row, below

    def _use_registration(
        self, registration: Registration | None, before: Registration | None
    ) -> None:
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
        cell, registration = self.picked, self._current()
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

    def _set_message(self, text: str) -> None:
        self.message.setText(text or HINT)

    def _current(self) -> Registration | None:
        return None if self._registration is None else self._registration()
