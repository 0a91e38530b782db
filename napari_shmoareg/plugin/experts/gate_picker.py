"""A widget that picks gates of the network: encoder or decoder, layer, block, image, direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QSizePolicy, QWidget
from superqt.utils import signals_blocked

from napari_shmoareg.plugin.controls.forms import fill

if TYPE_CHECKING:
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


PARTS = {"decoder": "decoder: deformation experts", "encoder": "encoder: attention heads"}
FIELDS = ("layer", "block", "image", "direction")
ALL = {"layer": "all layers", "block": "all blocks", "image": "both", "direction": "all directions"}
ANY = "all"
TIPS = {
    "part": "Attention heads of the encoder, or deformation experts of the decoder",
    "layer": (
        "The paper's layer number; in brackets the resolution of its cells relative to the network"
        " grid"
    ),
    "block": "Each block of a layer has its own gate",
    "image": "Both images pass through the same encoder, each with its own choices",
    "direction": (
        "x is left-right, y back-front, z down-up of the network grid; each has its own experts"
    ),
}


def gate_name(gate: GateId) -> str:
    """Name a gate: ``encoder layer 1, block 0, moving``, ``decoder layer 2, x``."""
    block = "" if gate.block is None else f", block {gate.block}"
    return f"{gate.part} layer {gate.layer}{block}, {gate.image or gate.direction}"


def describe_gates(where: Mapping[str, Any]) -> str:
    """Describe gates by fields of `GateId`: ``decoder layer 1, direction x``; missing fields mean
    all.
    """
    part, layer = where["part"], where.get("layer")
    parts = [f"all {part} layers" if layer is None else f"{part} layer {layer}"]
    if part == "decoder":
        parts.append(
            f"direction {where['direction']}" if where.get("direction") else ALL["direction"]
        )
    else:
        parts.append(ALL["block"] if where.get("block") is None else f"block {where['block']}")
        parts.append(f"{where['image']} image" if where.get("image") else "both images")
    return ", ".join(parts)


class GatePicker(QWidget):
    """Picks one or several gates.

    Parameters
    ----------
    all_of : sequence of str
        Fields of `GateId` that offer "all".
    part : {"encoder", "decoder"}, optional
        The only one to offer, without a row for it.
    """

    changed = Signal()

    def __init__(self, *all_of: str, part: str | None = None) -> None:
        super().__init__()
        self._all_of, self._only = all_of, part
        self._gates: dict[GateId, tuple[int, int]] = {}  # stride and number of experts
        self.part = QComboBox()
        self.fields = {name: QComboBox() for name in FIELDS}
        # not squeezed where there is little room
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._form = QFormLayout(self)
        self._form.setContentsMargins(0, 0, 0, 0)
        for name, combo in {"part": self.part, **self.fields}.items():
            combo.setToolTip(TIPS[name])
            combo.activated.connect(lambda _: self._update())
            self._form.addRow(name.capitalize(), combo)
        self._form.setRowVisible(self.part, part is None)

    @property
    def where(self) -> dict[str, Any]:
        """Fields of `GateId` to select by; a field set to "all" is left out."""
        picked = {name: combo.currentData() for name, combo in self._relevant().items()}
        return {"part": self.part.currentData()} | {
            n: v for n, v in picked.items() if v not in (ANY, None)
        }

    @property
    def gates(self) -> list[GateId]:
        """The picked gates."""
        where = self.where
        return [
            gate for gate in self._gates if all(getattr(gate, n) == v for n, v in where.items())
        ]

    @property
    def num_experts(self) -> int:
        """Number of experts of the picked gates; 0 without any."""
        return max((self._gates[gate][1] for gate in self.gates), default=0)

    def offer(self, registration: Registration | None) -> None:
        """Offer the gates of a registration, and keep the picked values that it has."""
        routed = () if registration is None else registration.routing
        offered = [one for one in routed if self._only in (None, one.part)]
        self._gates = {one.gate: (one.stride, one.num_experts) for one in offered}
        parts = {gate.part for gate in self._gates}
        fill(self.part, {part: text for part, text in PARTS.items() if part in parts})
        self._update()

    def pick(self, **where: Any) -> None:
        """Pick values of some fields."""
        for name, value in where.items():
            combo = self.part if name == "part" else self.fields[name]
            combo.setCurrentIndex(max(combo.findData(ANY if value is None else value), 0))
            self._update()

    def show_gate(self, registration: Registration | None, gate: GateId | None) -> None:
        """Offer the gates of a registration and pick one, without `changed`."""
        with signals_blocked(self):
            self.offer(registration)
            if gate is not None:
                self.pick(**{name: v for name, v in gate._asdict().items() if v is not None})

    def _relevant(self) -> dict[str, QComboBox]:
        names = (
            ("layer", "direction")
            if self.part.currentData() == "decoder"
            else ("layer", "block", "image")
        )
        return {name: self.fields[name] for name in names}

    def _update(self) -> None:
        """Offer in every field the values that exist for the fields above it."""
        gates = [gate for gate in self._gates if gate.part == self.part.currentData()]
        relevant = self._relevant()
        for name, combo in self.fields.items():
            self._form.setRowVisible(combo, name in relevant)
        for name, combo in relevant.items():
            values = sorted(
                {getattr(gate, name) for gate in gates if getattr(gate, name) is not None}
            )
            entries: dict[Any, str] = {
                value: self._value_text(name, value, gates) for value in values
            }
            every = {ANY: ALL[name]} if name in self._all_of and len(values) > 1 else {}
            fill(combo, every | entries)
            picked = combo.currentData()
            gates = [
                gate for gate in gates if picked in (ANY, None) or getattr(gate, name) == picked
            ]
        self.changed.emit()

    def _value_text(self, name: str, value: Any, gates: list[GateId]) -> str:
        if name != "layer":
            return str(value)
        stride = next(self._gates[gate][0] for gate in gates if gate.layer == value)
        return f"{value} ({'full' if stride == 1 else f'1/{stride}'} resolution)"
