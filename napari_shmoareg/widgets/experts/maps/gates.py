"""The Experts panel: how sure the gates were of their choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLabel, QWidget
from superqt.utils import signals_blocked

from napari_shmoareg.widgets import gate_maps, showing
from napari_shmoareg.widgets.experts.section import Section, fill, opacity_slider
from napari_shmoareg.widgets.layers import RESOLUTIONS
from napari_shmoareg.widgets.legend import Ramp
from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.scenes import layers_of_scene, scenes

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.analysis.expert_load import Place
    from napari_shmoareg.analysis.gate_values import GateValues

NOT_KEPT = "The gate values were not kept with this folder: it was written by an earlier version. Register again."
NO_GATES = "This network has no experts, so there are no gates to look at."
MEASURES = {"entropy": "Gate entropy (how sure)", "margin": "Gate margin"}
ENDS = {"entropy": ("sure", "all alike"), "margin": ("a tie", "clear")}
MORE = {"entropy": ("surer", "more alike"), "margin": ("nearer a tie", "clearer")}
MEASURE_TIP = (
    "Entropy of what the gate gave all experts, over the most it could be: 0 where one expert has all, 1 where all are "
    "alike. Margin: how much more the last chosen expert got than the first that was not chosen: 0 is a tie. "
    "The decoder's gates (sigmoid) are made to sum to 1 for the entropy, which is ours."
)


class GateSection(Section):
    """How sure a gate was in every cell, as entropy or as margin."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Gates (how sure they were)", viewer)
        self._last: Place | None = None  # of the gate that was shown
        self.on = QCheckBox("Show gate map")
        self.on.setToolTip("Show or hide how sure a gate was in every cell; bright is unsure")
        self.measure, self.layer, self.which = QComboBox(), QComboBox(), QComboBox()
        fill(self.measure, MEASURES)
        self.measure.setToolTip(MEASURE_TIP)
        self.layer.setToolTip("Layer of the decoder or encoder, and of what resolution its cells are")
        self.which.setToolTip("Which gate of that layer: of a direction, or of a block and an image")
        self.stretch = QCheckBox("Spread colours over the values")
        self.stretch.setToolTip(
            "From the 1st to the 99th percentile of this map. Else from 0 to 1, in which all gates can be compared"
        )
        self.opacity = opacity_slider("How opaque the gate map is")
        self.ramp, self.says = Ramp(), QLabel()
        self.says.setWordWrap(True)
        self.controls = QWidget()
        form = QFormLayout(self.controls)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow(self.on)
        for name, widget in (("Show", self.measure), ("Layer", self.layer), ("Gate", self.which)):
            form.addRow(name, widget)
        form.addRow(self.stretch)
        form.addRow("Opacity", self.opacity)
        for part in (self.controls, self.ramp, self.says):
            self.column.addWidget(part)
        self.on.toggled.connect(self._switch)
        for combo in (self.measure, self.layer, self.which):
            combo.activated.connect(lambda _: self._choose())
        self.stretch.toggled.connect(lambda _: self._choose())
        self.opacity.valueChanged.connect(self._fade)

    def refresh(self) -> None:
        """Show which gate is in the layer, and how sure it was."""
        gates = self._gates()
        self.setEnabled(bool(self._number))
        self.controls.setEnabled(bool(gates))
        layer = gate_maps.gate_layer(self._viewer, self._number)
        self.ramp.setVisible(layer is not None)
        with signals_blocked(self.on), signals_blocked(self.opacity), signals_blocked(self.stretch):
            self.on.setChecked(layer is not None and bool(layer.visible))
            if layer is not None:
                self.opacity.setValue(round(100 * layer.opacity))
                self.stretch.setChecked(tag(layer, "stretched"))
        if not gates:
            self.says.setText(self._missing())
            return
        if layer is not None:
            fill(self.measure, MEASURES, tag(layer, "measure"))
        strides = {_of(gate.place): gate.stride for gate in sorted(gates, key=lambda g: (g.place.part, g.stride))}
        self._last = self._last if layer is None else tag(layer, "gate").place
        shown = None if layer is None else self._last
        fill(self.layer, {at: f"{at} ({_cells(n)})" for at, n in strides.items()}, shown and _of(shown))
        names = [_which(gate.place) for gate in gates if _of(gate.place) == self.layer.currentData()]
        fill(self.which, {name: name for name in names}, shown and _which(shown))
        self._say(layer)

    def _say(self, layer: Image | None) -> None:
        """The colours, and where most cells lie."""
        if layer is None:
            self.says.clear()
            return
        low, high = layer.contrast_limits
        least, most = ENDS[tag(layer, "measure")]
        marks = [f"{low:.2g} {least}", f"{high:.2g} {most}"]
        if tag(layer, "stretched"):
            least, most = MORE[tag(layer, "measure")]
            marks = [f"{low:.3g} {least}", f"{high:.3g} {most}"]
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)
        first, median, third = tag(layer, "quartiles")
        self.says.setText(
            f"{MEASURES[tag(layer, 'measure')].split(' (')[0]} of {gate_maps.gate_name(tag(layer, 'gate').place)}: "
            f"median {median:.3g}, half of the cells between {first:.3g} and {third:.3g}."
        )

    def _gates(self) -> list[GateValues]:
        scene = scenes(self._viewer).get(self._number)
        return [] if scene is None else scene.gates

    def _missing(self) -> str:
        scene = scenes(self._viewer).get(self._number)
        if scene is None:
            return ""
        return NOT_KEPT if scene.report.get("expert_loads") else NO_GATES

    def _choose(self) -> None:
        """Show the gate that is picked, or, in another layer, the one that comes nearest to what is picked."""
        gates = [gate for gate in self._gates() if _of(gate.place) == self.layer.currentData()]
        last = self._last or gates[0].place
        picked = self.which.currentData()
        gate = min(gates, key=lambda one: (_which(one.place) != picked, _differs(one.place, last)))
        measure = self.measure.currentData()
        gate_maps.show_gate(self._viewer, self._number, gate, measure, stretched=self.stretch.isChecked())
        self.refresh()

    def _switch(self, on: bool) -> None:
        if on:
            self._choose()
        else:
            showing.show_role(self._viewer, self._number, "gate_map", False)

    def _fade(self, percent: int) -> None:
        showing.opacity_of(layers_of_scene(self._viewer, self._number, "gate_map"), percent / 100)


def _cells(stride: int) -> str:
    return RESOLUTIONS.get(stride, f"1/{stride}") + " resolution"


def _of(place: Place) -> str:
    return f"{place.part} {place.layer}"


def _differs(place: Place, other: Place) -> tuple[bool, ...]:
    return place.image != other.image, place.direction != other.direction, place.block != other.block


def _which(place: Place) -> str:
    return f"direction {place.direction}" if place.direction else f"block {place.block}, {place.image} image"
