"""Up to five pinned locations, as a layer of numbered points, and their comparison (Fig. 6)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_info
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QToolButton, QVBoxLayout, QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import arranged, fill, narrowed
from napari_shmoareg.plugin.controls.legend import Swatch
from napari_shmoareg.plugin.controls.strips import gate_name, short
from napari_shmoareg.plugin.controls.tables import TableButtons
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.experts.pin_charts import Choice, Group, PinBars, PinTable
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


def groups_of(readings: NumberedReadings, layer: int, image: str, block: int | None) -> list[Group]:
    """The weight of every head in a block (Eq. 4) per pin, or the share of blocks that chose it
    (Fig. 6a).

    Parameters
    ----------
    readings : sequence of (number, LocationReading)
    layer : int
    image : {"moving", "fixed"}
    block : int or None
        None: over all blocks of the layer.
    """
    groups = []
    for number, reading in readings:
        cells = reading.select(part="encoder", layer=layer, image=image)
        if block is not None:
            cells = tuple(cell for cell in cells if cell.block == block)
        values = [0.0] * max((cell.num_experts for cell in cells), default=0)
        for cell in cells:
            for head, weight in zip(cell.experts, cell.weights, strict=True):
                values[head] += 1 / len(cells) if block is None else weight
        groups.append(Group(f"Pin {number}", PINS[number - 1], tuple(values)))
    return groups


def choices_of(
    registration: Registration, readings: NumberedReadings
) -> tuple[list[str], dict[tuple[int, int], Choice]]:
    """The directions of all decoder layers, and the choice of each pin there (Fig. 6b)."""
    from napari_shmoareg.figures.palette import expert_colours
    from napari_shmoareg.plugin.layers import RESOLUTIONS, expert_names

    columns: list[str] = []
    choices: dict[tuple[int, int], Choice] = {}
    for row, (number, reading) in enumerate(readings):
        for cell in reading.decoder:
            heading = f"{cell.direction} {RESOLUTIONS.get(cell.stride, f'1/{cell.stride}')}"
            if heading not in columns:
                columns.append(heading)
            first, count = cell.experts[0], cell.num_experts
            name, value = (
                expert_names(registration, count)[first],
                None if cell.values is None else cell.values[first],
            )
            details = "" if value is None else f", gate value {value:.3f}, margin {cell.margin:.3f}"
            tooltip = f"Pin {number}, {gate_name(cell.gate)}: {name}{details}"
            text = name if value is None else f"{name.partition('×')[0]}³ {short(value)}"
            choices[row, columns.index(heading)] = Choice(
                expert_colours(count)[first], text, tooltip
            )
    return columns, choices


OUTSIDE = "outside the network's field of view"
REFRESH_DELAY = 30  # ms between two updates while a pin is dragged
OVER_BLOCKS = "all: how often chosen"


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
        self._registration: weakref.ref[Registration] | None = None
        self._number = 0
        self._watched: weakref.ref[Any] | None = None
        self.readings: list[tuple[int, LocationReading]] = []
        self._soon = single_shot(self, REFRESH_DELAY, self.refresh)
        self._build()
        self.refresh()

    def show_registration(self, number: int, registration: Registration | None) -> None:
        """Switch to another registration, or none."""
        self._number, self._registration = (
            number,
            None if registration is None else weakref.ref(registration),
        )
        if registration is not None:
            encoder = registration.routing.select(part="encoder")
            decoder = registration.routing.select(part="decoder")
            layers = sorted({one.layer for one in encoder})
            fill(self.layer, {n: f"layer {n}" for n in layers})
            self._offer_blocks(registration)
            for widget in (self.layer, self.block, self.image, self.heads, self.bars):
                widget.setVisible(bool(encoder))  # none without MoA
            self.kernels.setVisible(bool(decoder))  # none without SHMoE
            self.table.setVisible(bool(decoder))
        self.refresh()

    def pin(self, point: NDArray[np.float64]) -> None:
        """Pin a location, mm RAS; a sixth is refused with a message."""
        viewer, registration = self._viewer(), self._current()
        if viewer is None or registration is None:
            return
        try:
            pin(viewer, self._number, registration, point)
        except InputError as error:
            show_info(str(error))
        self.refresh()

    def refresh(self) -> None:
        """Read the pins of the layer again."""
        viewer, registration = self._viewer(), self._current()
        points = (
            np.zeros((0, 3))
            if viewer is None or registration is None
            else pins_of(viewer, registration)[:MAX_PINS]
        )
        self._watch(
            None
            if viewer is None or registration is None
            else linked_layer(viewer, registration, "locations")
        )
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
        self.layer, self.block, self.image = QComboBox(), QComboBox(), QComboBox()
        self.layer.setToolTip("Encoder layer whose heads are compared")
        self.block.setToolTip(
            "The weight of every head in one block, or the share of blocks that chose it"
        )
        self.image.setToolTip("Image of the tokens")
        for image in ("fixed", "moving"):
            self.image.addItem(image, image)
        combos = QHBoxLayout()
        for combo in (self.layer, self.block, self.image):
            combo.activated.connect(lambda _: self._choose())
            narrowed(combo)
            combos.addWidget(combo, 1)
        self.bars, self.table = PinBars(), PinTable()
        self.bars.setAccessibleName("Weight of every head at each pin")
        self.table.setAccessibleName("Kernels that each pin chose")
        self.heads, self.kernels = (
            QLabel(),
            QLabel("Kernels, with the gate value of the chosen one (T of Eq. 6):"),
        )
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

    def _offer_blocks(self, registration: Registration) -> None:
        layer = self.layer.currentData()
        gates = registration.routing.select(part="encoder", layer=layer)
        blocks = sorted({one.block or 0 for one in gates})
        fill(self.block, {-1: OVER_BLOCKS} | {n: f"block {n}" for n in blocks})

    def _choose(self) -> None:
        registration = self._current()
        if registration is not None:
            self._offer_blocks(registration)
            self._draw()

    def _draw(self) -> None:
        registration, layer, block = (
            self._current(),
            self.layer.currentData(),
            self.block.currentData(),
        )
        if registration is None or not self.readings:
            return
        over = block in (None, -1)
        self.heads.setText(
            f"Heads of the {self.image.currentData()} image, "
            + ("share of the layer's blocks that chose each:" if over else "weight (Eq. 4):")
        )
        if layer is not None:
            groups = groups_of(
                self.readings, layer, self.image.currentData(), None if over else block
            )
            low = max((max(group.values, default=1.0) for group in groups), default=1.0) <= 0.5
            self.bars.show_groups(groups, 0.5 if low and not over else 1.0)
        columns, choices = choices_of(registration, self.readings)
        self.table.show_choices([(str(n), PINS[n - 1]) for n, _ in self.readings], columns, choices)

    def _rows(self) -> list[dict[str, object]]:
        registration = self._current()
        return [] if registration is None else rows_of(registration, self.readings)

    def _go(self, index: int) -> None:
        viewer, registration = self._viewer(), self._current()
        if viewer is not None and registration is not None:
            point = pins_of(viewer, registration)[index]
            centre_on(viewer, point)
            self.location_requested.emit(point)

    def _drop(self, index: int) -> None:
        viewer, registration = self._viewer(), self._current()
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

    def _current(self) -> Registration | None:
        return None if self._registration is None else self._registration()


def _read(registration: Registration | None, point: NDArray[np.float64]) -> LocationReading:
    from napari_shmoareg.experts.location import read_location

    assert registration is not None
    return read_location(registration, point)
