"""Up to five pinned locations, as a layer of numbered points, and their comparison (Fig. 6)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_info
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QHBoxLayout, QLabel, QToolButton, QVBoxLayout, QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.bars import Bar, BarChart, Box, BoxChart
from napari_shmoareg.plugin.controls.forms import arranged, weakly, wrapped
from napari_shmoareg.plugin.controls.legend import Swatch
from napari_shmoareg.plugin.controls.tables import TableButtons
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.experts.gate_picker import GatePicker, gate_name
from napari_shmoareg.plugin.layers import expert_names, resolution
from napari_shmoareg.plugin.placement import (
    AXES,
    COLOURS,
    KEY,
    centre_on,
    lengths,
    mm_per,
    points_of,
    tag,
    to_viewer,
)
from napari_shmoareg.plugin.registrations import open_registrations, pair_title

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer, Points

    from napari_shmoareg.experts.location import LocationReading
    from napari_shmoareg.registration.register import Registration


MAX_PINS = 5
PINS = COLOURS[:MAX_PINS]
SIZE = 1 / 40  # diameter of a point relative to the extent of the fixed image
# roles of layers that are removed with their registration, and do not keep it open
LINKED_ROLES = ("locations", "token_box", "attention")
TOO_MANY = f"There are {MAX_PINS} pins already, which is the maximum. Remove one first."


def linked_layer(viewer: Viewer, registration: Registration | None, role: str) -> Layer | None:
    """The layer of a registration in one of `LINKED_ROLES`, or None."""
    return next(
        (
            layer
            for layer in viewer.layers
            if tag(layer, "role") == role and registration_of(layer) is registration
        ),
        None,
    )


def registration_of(layer: Layer) -> Registration | None:
    """The registration that a layer is linked to, or None if it was closed."""
    reference = tag(layer, "of")
    return None if reference is None else reference()


def link_metadata(registration: Registration, role: str) -> dict[str, dict[str, object]]:
    """Metadata that link a layer to a registration.

    A weak reference, not under "registration": else the layer would keep the registration open.
    """
    return {KEY: {"role": role, "of": weakref.ref(registration)}}


def drop_orphans(viewer: Viewer) -> None:
    """Remove the linked layers of closed registrations."""
    opened = list(open_registrations(viewer).values())
    for layer in [layer for layer in viewer.layers if tag(layer, "role") in LINKED_ROLES]:
        gone = not any(registration_of(layer) is registration for registration in opened)
        if gone and layer in viewer.layers:  # another panel may have removed it already
            viewer.layers.remove(layer)


def pins_of(viewer: Viewer, registration: Registration) -> NDArray[np.float64]:
    """The pinned locations, (n, 3), mm RAS."""
    return points_of(linked_layer(viewer, registration, "locations"))  # type: ignore[arg-type]


def pin(viewer: Viewer, number: int, registration: Registration, point: ArrayLike) -> Points:
    """Pin a location, mm RAS; adds the layer ``#1 locations`` if missing.

    Raises
    ------
    InputError
        If there are five already.
    """
    points = pins_of(viewer, registration)
    if len(points) >= MAX_PINS:
        raise InputError(TOO_MANY)
    layer = linked_layer(viewer, registration, "locations") or _add_layer(
        viewer, number, registration
    )
    _set_points(layer, np.concatenate([points, np.reshape(point, (1, 3))]))  # type: ignore[arg-type]
    return layer  # type: ignore[return-value]


def unpin(viewer: Viewer, registration: Registration, index: int) -> None:
    """Remove a location and renumber the others; the layer is removed with the last one."""
    layer = linked_layer(viewer, registration, "locations")
    if layer is None:
        return
    points = np.delete(pins_of(viewer, registration), index, axis=0)
    if len(points):
        _set_points(layer, points)  # type: ignore[arg-type]
    else:
        viewer.layers.remove(layer)


def number_points(layer: Points) -> None:
    """Number and colour the points in their order; points beyond the fifth are grey."""
    numbers = np.arange(1, len(layer.data) + 1)
    if list(layer.features.get("pin", ())) == list(numbers):
        return
    layer.features = {"pin": numbers}
    if len(numbers):
        layer.face_color = [PINS[n - 1] if n <= MAX_PINS else "#808080" for n in numbers]


def _set_points(layer: Points, points: NDArray[np.float64]) -> None:
    data = [layer.world_to_data(p) for p in to_viewer(points) / mm_per(layer.units)]
    layer.selected_data = set()
    layer.data = np.reshape(data, (-1, 3))
    number_points(layer)


def _add_layer(viewer: Viewer, number: int, registration: Registration) -> Points:
    """Add an empty layer with the scale of the other layers, to keep the steps of the sliders."""
    from napari.layers import Points

    grid = registration.pair.fixed.grid
    step = tuple(float(v) for v in viewer.layers.extent.step[-3:])
    units = lengths(viewer.layers.units)
    extent = float(np.ptp(grid.corners(), axis=0).max()) / mm_per(units)
    layer = Points(
        np.zeros((0, 3)),
        ndim=3,
        name=f"#{number} locations",
        size=SIZE * extent / step[-1],
        scale=step,
        symbol="disc",
        border_color="black",
        border_width=0.08,
        features={"pin": np.zeros(0, dtype=int)},
        text={"string": "{pin}", "size": 9, "color": "black", "anchor": "center"},
        units=units,
        axis_labels=AXES,
        metadata=link_metadata(registration, "locations"),
    )
    active = viewer.layers.selection.active
    viewer.add_layer(layer)
    viewer.layers.selection.active = active
    return layer


NumberedReadings = Sequence[tuple[int, "LocationReading"]]  # numbers of pins from 1


def rows_of(registration: Registration, readings: NumberedReadings) -> list[dict[str, object]]:
    """One row per pin, gate and expert, if the cell chose the expert or its gate value is saved.

    Values are not rounded; unknown values and experts not chosen are empty.
    """
    rows: list[dict[str, object]] = []
    for number, reading in readings:
        for cell in reading.cells:
            weights = dict(zip(cell.experts, cell.weights, strict=True))
            for expert in range(cell.num_experts):
                value = None if cell.values is None else cell.values[expert]
                if value is None and expert not in weights:
                    continue
                weight = weights.get(expert)
                rows.append(
                    {
                        "pair": pair_title(registration),
                        "weights": registration.weights,
                        "pin": number,
                        **dict(zip(("r_mm", "a_mm", "s_mm"), reading.point.tolist(), strict=True)),
                        **cell.gate._asdict(),
                        "stride": cell.stride,
                        **dict(zip(("cell_i", "cell_j", "cell_k"), cell.cell, strict=True)),
                        "expert": expert,
                        "rank": cell.experts.index(expert) + 1 if expert in weights else None,
                        "weight": None if weight is None or weight != weight else weight,
                        "gate_value": value,
                        "entropy": cell.entropy,
                        "margin": cell.margin,
                    }
                )
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows]


def pin_bars(readings: NumberedReadings, **where: Any) -> list[Bar]:
    """The weight of every head (Eq. 4) per pin, or over all blocks of a layer the share of those
    that chose it (Fig. 6a).

    Parameters
    ----------
    readings : sequence of (number, LocationReading)
    **where
        Fields of `GateId`; without a block, over all blocks.
    """
    from napari_shmoareg.model.routing import GateId

    values: dict[int, list[float]] = {}
    for number, reading in readings:
        cells = reading.select(**where)
        values[number] = [0.0] * max((cell.num_experts for cell in cells), default=0)
        for cell in cells:
            for head, weight in zip(cell.experts, cell.weights, strict=True):
                values[number][head] += weight if "block" in where else 1 / len(cells)
    bars = []
    for number, of_pin in values.items():
        for head, value in enumerate(of_pin):
            others = [f"Pin {n}: {other[head]:.3f}" for n, other in values.items()]
            tip = "\n".join([f"Head {head}", *others])
            bars.append(Bar(GateId(**where), head, value, PINS[number - 1], str(head), tip))
    return bars


def kernel_boxes(
    registration: Registration, readings: NumberedReadings
) -> tuple[list[str], list[Box]]:
    """The directions of all decoder layers, and the choice of each pin there (Fig. 6b)."""
    from napari_shmoareg.figures.palette import expert_colours

    columns: list[str] = []
    boxes = []
    for row, (number, reading) in enumerate(readings):
        for cell in reading.decoder:
            heading = f"{cell.direction} {resolution(cell.stride)}"
            if heading not in columns:
                columns.append(heading)
            first, count = cell.experts[0], cell.num_experts
            name, colour = expert_names(registration, count)[first], expert_colours(count)[first]
            text, tip = name, f"Pin {number}, {gate_name(cell.gate)}: {name}"
            if cell.values is not None:
                text = f"{name.partition('×')[0]}³ {short(cell.values[first])}"
                tip += f", gate value {cell.values[first]:.3f}, margin {cell.margin:.3f}"
            ink = "white" if QColor(colour).lightnessF() < 0.6 else "black"
            box = Box(cell.gate, first, 1.0, colour, text, tip, ink=ink)
            boxes.append(replace(box, row=row, column=columns.index(heading)))
    return columns, boxes


def short(value: float, digits: int = 2) -> str:
    """Format a number from 0 to 1 as ``.41``; ``?`` if unknown."""
    return "?" if value != value else f"{value:.{digits}f}".removeprefix("0")


OUTSIDE = "outside the network's field of view"
REFRESH_DELAY = 30  # ms between two updates while a pin is dragged


class PinRow(QWidget):
    """A row of a pinned location: number, colour, coordinates and buttons."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.go, self.drop = QToolButton(), QToolButton()
        self.go.setText("Go to")
        self.go.setToolTip(f"Show the slice of pin {number}, and read the location")
        self.drop.setText("✕")
        self.drop.setToolTip(f"Remove pin {number}; later pins move up")
        swatch = Swatch(PINS[number - 1])
        arranged(QHBoxLayout(self), swatch, self.text, self.go, self.drop, wide=self.text)


class PinsBox(QWidget):
    """Lists and compares the pins of a registration, which are the points of a layer.

    Parameters
    ----------
    viewer : Viewer
    """

    location_requested = Signal(object)  # a location, (3,) mm RAS, to be read

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._registration = weakly(None)
        self._number = 0
        self._watched: weakref.ref[Any] | None = None
        self.readings: list[tuple[int, LocationReading]] = []
        self._soon = single_shot(self, REFRESH_DELAY, self.refresh)
        self._build()
        self.refresh()

    def show_registration(self, number: int, registration: Registration | None) -> None:
        """Switch to another registration, or none."""
        self._number, self._registration = number, weakly(registration)
        if registration is not None:
            self.readings = []
            self.where.offer(registration)
            for part in (self.where, self.heads, self.bars):
                part.setVisible(bool(self.where.gates))  # none without MoA
            for chart in (self.kernels, self.table):
                chart.setVisible(bool(registration.routing.select(part="decoder")))
        self.refresh()

    def pin(self, point: NDArray[np.float64]) -> None:
        """Pin a location, mm RAS; a sixth is refused with a message."""
        viewer, registration = self._viewer(), self._registration()
        if viewer is None or registration is None:
            return
        try:
            pin(viewer, self._number, registration, point)
        except InputError as error:
            show_info(str(error))
        self.refresh()

    def refresh(self) -> None:
        """Read the pins of the layer again."""
        viewer, registration = self._viewer(), self._registration()
        points, layer = np.zeros((0, 3)), None
        if viewer is not None and registration is not None:
            points = pins_of(viewer, registration)[:MAX_PINS]
            layer = linked_layer(viewer, registration, "locations")
        self._watch(layer)
        self.readings = []
        for number, (row, point) in enumerate(zip(self.rows, points, strict=False), start=1):
            text = f"{number}: {', '.join(f'{mm:.1f}' for mm in point)}"
            try:
                self.readings.append((number, _read(registration, point)))
            except InputError:
                text += f" ({OUTSIDE})"
            row.text.setText(text)
        for number, row in enumerate(self.rows):
            row.setVisible(number < len(points))
        self.compared.setVisible(any(reading.cells for _, reading in self.readings))
        self.none.setVisible(not len(points))
        self._draw()

    def _build(self) -> None:
        self.none = QLabel("No pins yet: pin up to five locations to compare them (mm R, A, S).")
        self.none.setWordWrap(True)
        self.rows = [PinRow(number) for number in range(1, MAX_PINS + 1)]
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.none)
        for index, row in enumerate(self.rows):
            row.go.clicked.connect(lambda _=False, n=index: self._go(n))
            row.drop.clicked.connect(lambda _=False, n=index: self._drop(n))
            column.addWidget(row)
        self.where = GatePicker("block", part="encoder")
        self.where.changed.connect(self._draw)
        self.bars = BarChart(
            axis=True, height=120, accessible_name="Weight of every head at each pin"
        )
        self.table = BoxChart(accessible_name="Kernels that each pin chose")
        self.heads = QLabel()
        self.kernels = QLabel("Kernels, with the gate value of the chosen one (T of Eq. 6):")
        wrapped(self.heads, self.kernels)
        self.buttons = TableButtons(self._rows, "places.csv")
        self.compared = QWidget()
        charts = (self.where, self.heads, self.bars, self.kernels, self.table, self.buttons)
        arranged(QVBoxLayout(self.compared), *charts).setContentsMargins(0, 4, 0, 0)
        column.addWidget(self.compared)

    def _draw(self) -> None:
        registration, where = self._registration(), self.where.where
        if registration is None or not self.readings:
            return
        over = "block" not in where
        self.heads.setText(
            f"Heads of the {where.get('image')} image, "
            + ("share of the layer's blocks that chose each:" if over else "weight (Eq. 4):")
        )
        if self.where.gates:
            bars = pin_bars(self.readings, **where)
            low = max((bar.value for bar in bars), default=1.0) <= 0.5
            self.bars.highest = 0.5 if low and not over else 1.0
            heads = np.reshape([bar.value for bar in bars], (len(self.readings), -1))
            self.bars.show_bars(
                bars,
                "; ".join(
                    f"Pin {number}: {', '.join(f'{value:.2f}' for value in of_pin)}"
                    for (number, _), of_pin in zip(self.readings, heads, strict=True)
                ),
            )
        columns, boxes = kernel_boxes(registration, self.readings)
        self.table.show_table([(str(n), PINS[n - 1]) for n, _ in self.readings], columns, boxes)

    def _rows(self) -> list[dict[str, object]]:
        registration = self._registration()
        return [] if registration is None else rows_of(registration, self.readings)

    def _go(self, index: int) -> None:
        viewer, registration = self._viewer(), self._registration()
        if viewer is not None and registration is not None:
            point = pins_of(viewer, registration)[index]
            centre_on(viewer, point)
            self.location_requested.emit(point)

    def _drop(self, index: int) -> None:
        viewer, registration = self._viewer(), self._registration()
        if viewer is not None and registration is not None:
            unpin(viewer, registration, index)
        self.refresh()

    def _watch(self, layer: Any) -> None:
        """Follow pins that are dragged, added or deleted in napari."""
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
            number_points(event.source)
        if not self._soon.isActive():
            self._soon.start()


def _read(registration: Registration | None, point: NDArray[np.float64]) -> LocationReading:
    from napari_shmoareg.experts.location import read_location

    assert registration is not None
    return read_location(registration, point)
