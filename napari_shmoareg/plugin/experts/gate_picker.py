"""A widget that picks gates of the network: encoder or decoder, layer, block, image, direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QWidget

from napari_shmoareg.plugin.controls.forms import fill, narrowed

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
    """

    changed = Signal()

    def __init__(self, *all_of: str) -> None:
        super().__init__()
        self._all_of = all_of
        self._gates: dict[GateId, tuple[int, int]] = {}  # stride and number of experts
        self.part = QComboBox()
        self.fields = {name: QComboBox() for name in FIELDS}
        self._form = QFormLayout(self)
        self._form.setContentsMargins(0, 0, 0, 0)
        for name, combo in {"part": self.part, **self.fields}.items():
            combo.setToolTip(TIPS[name])
            narrowed(combo)
            combo.activated.connect(lambda _: self._update())
            self._form.addRow(name.capitalize(), combo)

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
        self._gates = {}
        if registration is not None:
            self._gates = {one.gate: (one.stride, one.num_experts) for one in registration.routing}
        parts = {gate.part for gate in self._gates}
        fill(self.part, {part: text for part, text in PARTS.items() if part in parts})
        self._update()

    def pick(self, **where: Any) -> None:
        """Pick values of some fields."""
        for name, value in where.items():
            combo = self.part if name == "part" else self.fields[name]
            combo.setCurrentIndex(max(combo.findData(ANY if value is None else value), 0))
            self._update()

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
            label = self._form.labelForField(combo)
            for widget in (combo, label):
                if widget is not None:
                    widget.setVisible(name in relevant)
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
