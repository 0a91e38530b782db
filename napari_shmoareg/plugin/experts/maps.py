"""The tabs Maps and Deformation of the Experts panel: expert, head and gate maps (Fig. 4), grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFormLayout, QLabel, QWidget
from superqt.utils import signals_blocked

from napari_shmoareg.plugin import gate_layers, showing
from napari_shmoareg.plugin.controls.forms import Section, fill, opacity_slider, pick
from napari_shmoareg.plugin.controls.legend import Ramp, Swatches
from napari_shmoareg.plugin.deformation import SPACING, set_spacing
from napari_shmoareg.plugin.layers import FOLDS, expert_names, resolution
from napari_shmoareg.plugin.placement import tag
from napari_shmoareg.plugin.registrations import layers_of_registration, open_registrations
from napari_shmoareg.plugin.showing import with_key

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image
    from numpy.typing import NDArray

    from napari_shmoareg.experts.maps import ExpertMap, GateValues
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


NOT_KEPT = (
    "The gate values are not saved in this folder: it was written by an earlier version. Register"
    " again."
)
NO_GATES = "This network has no experts, so there are no gates to show."
MEASURES = {"entropy": "Gate entropy (how sure)", "margin": "Gate margin"}
RANGE_ENDS = {"entropy": ("sure", "all equal"), "margin": ("a tie", "clear")}
STRETCHED_ENDS = {"entropy": ("surer", "more equal"), "margin": ("nearer a tie", "clearer")}
MEASURE_TIP = (
    "Entropy of the gate values of all experts, divided by its maximum: 0 if one expert has all the"
    " weight, 1 if all are equal. Margin: value of the last chosen expert minus that of the first"
    " one not chosen: 0 is a tie. Ours: for the entropy, the decoder's gate values (sigmoid) are"
    " normalized to sum to 1."
)


class GateSection(Section):
    """Controls of the gate map: how certain a gate was in every cell, as entropy or margin."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Gates (how sure they were)", viewer)
        self._last: GateId | None = None  # the gate shown last
        self.on = QCheckBox("Show gate map")
        self.on.setToolTip("Show or hide how certain a gate was in every cell; bright is unsure")
        self.measure, self.layer, self.which = QComboBox(), QComboBox(), QComboBox()
        fill(self.measure, MEASURES)
        self.measure.setToolTip(MEASURE_TIP)
        self.layer.setToolTip("Layer of the decoder or encoder, and the resolution of its cells")
        self.which.setToolTip("Gate of that layer: of a direction, or of a block and an image")
        self.stretch = QCheckBox("Spread colours over the values")
        self.stretch.setToolTip(
            "From the 1st to the 99th percentile of this map; otherwise from 0 to 1, so that all"
            " gates can be compared"
        )
        self.opacity = opacity_slider("Opacity of the gate map")
        self.ramp, self.message = Ramp(), QLabel()
        self.message.setWordWrap(True)
        self.controls = QWidget()
        form = QFormLayout(self.controls)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow(self.on)
        for name, widget in (("Show", self.measure), ("Layer", self.layer), ("Gate", self.which)):
            form.addRow(name, widget)
        form.addRow(self.stretch)
        form.addRow("Opacity", self.opacity)
        for part in (self.controls, self.ramp, self.message):
            self.column.addWidget(part)
        self.on.toggled.connect(self._switch)
        for combo in (self.measure, self.layer, self.which):
            combo.activated.connect(lambda _: self._choose())
        self.stretch.toggled.connect(lambda _: self._choose())
        self.opacity.valueChanged.connect(self._set_opacity)

    def refresh(self) -> None:
        """Show the gate of the layer, and how certain it was."""
        gates = self._gates()
        self.setEnabled(bool(self._number))
        self.controls.setEnabled(bool(gates))
        layer = gate_layers.gate_layer(self._viewer, self._number)
        self.ramp.setVisible(layer is not None)
        with signals_blocked(self.on), signals_blocked(self.opacity), signals_blocked(self.stretch):
            self.on.setChecked(layer is not None and bool(layer.visible))
            if layer is not None:
                self.opacity.setValue(round(100 * layer.opacity))
                self.stretch.setChecked(tag(layer, "stretched"))
        if not gates:
            self.message.setText(self._missing())
            return
        if layer is not None:
            fill(self.measure, MEASURES, tag(layer, "measure"))
        strides = {
            _layer_name(gate.gate): gate.stride
            for gate in sorted(gates, key=lambda g: (g.part, g.stride))
        }
        self._last = self._last if layer is None else tag(layer, "gate").gate
        shown = None if layer is None else self._last
        fill(
            self.layer,
            {at: f"{at} ({_cells(n)})" for at, n in strides.items()},
            shown and _layer_name(shown),
        )
        names = [
            _gate_label(gate.gate)
            for gate in gates
            if _layer_name(gate.gate) == self.layer.currentData()
        ]
        fill(self.which, {name: name for name in names}, shown and _gate_label(shown))
        self._show_legend(layer)

    def _show_legend(self, layer: Image | None) -> None:
        """Show the colours, the median and the quartiles."""
        if layer is None:
            self.message.clear()
            return
        low, high = layer.contrast_limits
        least, most = RANGE_ENDS[tag(layer, "measure")]
        marks = [f"{low:.2g} {least}", f"{high:.2g} {most}"]
        if tag(layer, "stretched"):
            least, most = STRETCHED_ENDS[tag(layer, "measure")]
            marks = [f"{low:.3g} {least}", f"{high:.3g} {most}"]
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)
        first, median, third = tag(layer, "quartiles")
        self.message.setText(
            f"{MEASURES[tag(layer, 'measure')].split(' (')[0]} of"
            f" {gate_layers.short_gate_name(tag(layer, 'gate').gate)}: median {median:.3g}, half of"
            f" the cells between {first:.3g} and {third:.3g}."
        )

    def _gates(self) -> list[GateValues]:
        from napari_shmoareg.experts.maps import gate_values

        registration = open_registrations(self._viewer).get(self._number)
        return [] if registration is None else gate_values(registration)

    def _missing(self) -> str:
        registration = open_registrations(self._viewer).get(self._number)
        if registration is None:
            return ""
        return NOT_KEPT if registration.report.get("expert_loads") else NO_GATES

    def _choose(self) -> None:
        """Show the picked gate; in another layer, the gate most similar to it."""
        gates = [
            gate for gate in self._gates() if _layer_name(gate.gate) == self.layer.currentData()
        ]
        last = self._last or gates[0].gate
        picked = self.which.currentData()
        gate = min(
            gates, key=lambda one: (_gate_label(one.gate) != picked, _mismatches(one.gate, last))
        )
        measure = self.measure.currentData()
        gate_layers.show_gate(
            self._viewer, self._number, gate, measure, stretched=self.stretch.isChecked()
        )
        self.refresh()

    def _switch(self, on: bool) -> None:
        if on:
            self._choose()
        else:
            showing.show_role(self._viewer, self._number, "gate_map", False)

    def _set_opacity(self, percent: int) -> None:
        showing.opacity_of(
            layers_of_registration(self._viewer, self._number, "gate_map"), percent / 100
        )


def _cells(stride: int) -> str:
    return f"{resolution(stride)} resolution"


def _layer_name(gate: GateId) -> str:
    return f"{gate.part} {gate.layer}"


def _mismatches(gate: GateId, other: GateId) -> tuple[bool, ...]:
    return (
        gate.image != other.image,
        gate.direction != other.direction,
        gate.block != other.block,
    )


def _gate_label(gate: GateId) -> str:
    return (
        f"direction {gate.direction}"
        if gate.direction
        else f"block {gate.block}, {gate.image} image"
    )


ALL = -1  # all experts, in the list of experts to draw
WORLD = ("left-right", "back-front", "down-up")


class DecoderSection(Section):
    """Controls of the expert maps: the expert of every cell, per direction and resolution."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Deformation experts (SHMoE, decoder)", viewer)
        self._last: tuple[str, int] | None = None  # direction and stride shown last
        self.on = QCheckBox("Show expert map")
        self.on.setToolTip(
            with_key("Show or hide the expert map; the key shows the next one", "expert_map")
        )
        self.direction, self.resolution, self.drawn = QComboBox(), QComboBox(), QComboBox()
        self.direction.setToolTip(
            with_key("Each component of the displacement has its own experts", "direction")
        )
        self.resolution.setToolTip(
            "Resolution of the decoder layer: its cells are as large as the voxels of the network"
            " grid, or twice as large"
        )
        self.drawn.setToolTip(
            "Draw the cells of all experts, each in its colour, or the cells of one expert only"
        )
        self.opacity = opacity_slider("Opacity of the expert maps")
        self.legend = Swatches()
        self.legend.setToolTip(
            "Experts by kernel size, with the share of the cells of this map that chose each"
        )
        form = QFormLayout()
        form.addRow("Direction", self.direction)
        form.addRow("Resolution", self.resolution)
        form.addRow("Cells of", self.drawn)
        form.addRow("Opacity", self.opacity)
        self.column.addWidget(self.on)
        self.column.addLayout(form)
        self.column.addWidget(self.legend)
        self.on.toggled.connect(self._switch)
        self.direction.activated.connect(lambda _: self._choose())
        self.resolution.activated.connect(lambda _: self._choose())
        self.drawn.activated.connect(lambda _: self._choose(self.drawn.currentData()))
        self.opacity.valueChanged.connect(self._set_opacity)

    def refresh(self) -> None:
        """Show the current map, and a legend of its colours."""
        opened = showing.expert_layers(self._viewer, self._number)
        self.setEnabled(bool(opened))
        if not opened:
            self.legend.show_entries([])
            return
        shown = next((layer for layer in opened if layer.visible), None)
        maps = [tag(layer, "expert_map") for layer in opened]
        with signals_blocked(self.on), signals_blocked(self.opacity):
            self.on.setChecked(shown is not None)
            self.opacity.setValue(round(100 * showing.opacity_of(opened)))
        fill(self.direction, {m.direction: f"{m.direction} ({along(m)})" for m in maps})
        fill(self.resolution, {m.stride: resolution(m.stride) for m in maps})
        if shown is not None:
            self._last = showing.direction_and_stride(shown)
        direction, stride = self._last or showing.direction_and_stride(opened[0])
        pick(self.direction, direction)
        pick(self.resolution, stride)
        shown_map = next((m for m in maps if (m.direction, m.stride) == self._selected()), maps[0])
        entries = _entries(tag(opened[0], "registration"), shown_map)
        self.legend.show_entries(entries)
        fill(
            self.drawn,
            {ALL: "all experts"} | {n: f"{name} alone" for n, (_, name, _) in enumerate(entries)},
        )
        alone = showing.single_expert(opened[maps.index(shown_map)])
        pick(self.drawn, ALL if alone is None else alone)

    def _selected(self) -> tuple[str, int]:
        return self.direction.currentData(), self.resolution.currentData()

    def _choose(self, drawn: int | None = None) -> None:
        layer = showing.show_experts(self._viewer, self._number, *self._selected())
        if layer is not None and drawn is not None:
            showing.draw_single_expert(layer, None if drawn == ALL else drawn)
        self.refresh()

    def _switch(self, on: bool) -> None:
        if on:
            self._choose()
        else:
            showing.show_role(self._viewer, self._number, "expert_map", False)

    def _set_opacity(self, percent: int) -> None:
        showing.opacity_of(
            layers_of_registration(self._viewer, self._number, "expert_map"), percent / 100
        )


def along(expert_map: ExpertMap) -> str:
    """The approximate anatomical direction of a map's displacement component."""
    axis = "xyz".index(expert_map.direction or "x")
    return WORLD[int(np.abs(expert_map.volume.grid.affine[:3, axis]).argmax())]


def _entries(registration: Registration, expert_map: ExpertMap) -> list[tuple[str, str, float]]:
    """Colour, name and share of every expert of a map."""
    from napari_shmoareg.figures.palette import expert_colours

    count = expert_map.num_experts
    chosen = np.bincount(expert_map.volume.values.ravel(), minlength=count + 1)[1 : count + 1]
    names = (f"{name} (id {n})" for n, name in enumerate(expert_names(registration, count)))
    return list(
        zip(
            expert_colours(count),
            names,
            (float(n) / max(chosen.sum(), 1) for n in chosen),
            strict=True,
        )
    )


class EncoderSection(Section):
    """Controls of the head map: weight of a head at every token, or number of blocks that chose
    it.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Attention heads (MoA, encoder)", viewer)
        self.on = QCheckBox("Show head map")
        self.on.setToolTip("Show or hide the weight of one attention head at every token")
        self.layer, self.image, self.block, self.head = (
            QComboBox(),
            QComboBox(),
            QComboBox(),
            QComboBox(),
        )
        self.layer.setToolTip(
            "Layer of the encoder: its tokens are twice as large as those of the previous layer"
        )
        self.image.setToolTip(
            "Both images pass through the same encoder, each with its own choices"
        )
        self.block.setToolTip("Block of the layer: each has its own gate")
        self.head.setToolTip(with_key("Attention head, with its share of selections", "head"))
        self.counted = QCheckBox("How often chosen, all blocks")
        self.counted.setToolTip(
            "Show the number of blocks of the layer in which a token chose the head, instead of the"
            " weight in one block"
        )
        self.opacity = opacity_slider("Opacity of the head map")
        self.ramp, self.message = Ramp(), QLabel()
        self.message.setWordWrap(True)
        form = QFormLayout()
        for name, widget in (("Layer", self.layer), ("Image", self.image), ("Block", self.block)):
            form.addRow(name, widget)
        form.addRow(self.counted)
        form.addRow("Head", self.head)
        form.addRow("Opacity", self.opacity)
        self.column.addWidget(self.on)
        self.column.addLayout(form)
        self.column.addWidget(self.ramp)
        self.column.addWidget(self.message)
        self.on.toggled.connect(self._switch)
        for combo in (self.layer, self.image, self.block, self.head):
            combo.activated.connect(lambda _: self._choose())
        self.counted.toggled.connect(lambda _: self._choose())
        self.opacity.valueChanged.connect(self._set_opacity)

    def refresh(self) -> None:
        """Show the head of the layer, and its load."""
        layer = showing.head_layer(self._viewer, self._number)
        self.setEnabled(layer is not None)
        if layer is None:
            self.message.clear()
            return
        registration, load, head = (tag(layer, name) for name in ("registration", "load", "head"))
        counted = load.block is None
        with signals_blocked(self.on), signals_blocked(self.counted), signals_blocked(self.opacity):
            self.on.setChecked(bool(layer.visible))
            self.counted.setChecked(counted)
            self.opacity.setValue(round(100 * layer.opacity))
        routed = registration.routing.select(part="encoder")
        strides = {one.layer: one.stride for one in routed}
        fill(
            self.layer,
            {n: f"{n} (1/{strides[n]} resolution)" for n in sorted(strides)},
            load.layer,
        )
        fill(self.image, {one.image: one.image for one in routed}, load.image)
        blocks = {one.block: str(one.block) for one in routed if one.layer == load.layer}
        fill(self.block, blocks, load.block)
        self.block.setEnabled(not counted)
        shares = shares_of(load)
        fill(self.head, {n: f"{n} ({100 * share:.1f} %)" for n, share in enumerate(shares)}, head)
        top = f"{layer.contrast_limits[1]:g} blocks" if counted else "weight 1"
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), ["0", top])
        where = (
            f"all blocks of layer {load.layer}" if counted else f"this block of layer {load.layer}"
        )
        self.message.setText(
            f"Head {head} has {100 * shares[head]:.1f} % of the selections in {where},"
            f" {load.image} image (equal shares: {100 / len(shares):.1f} %)."
        )

    def _choose(self) -> None:
        """Show the picked head, of the gate most similar to the picked one."""
        from napari_shmoareg.experts.maps import times_chosen, token_loads

        layer = showing.head_layer(self._viewer, self._number)
        registration = tag(layer, "registration")
        counted = self.counted.isChecked()
        selected = (
            self.layer.currentData(),
            self.image.currentData(),
            None if counted else self.block.currentData(),
        )
        loads = (times_chosen if counted else token_loads)(registration)
        load = min(
            loads, key=lambda one: [a != b for a, b in zip(_where(one), selected, strict=True)]
        )
        showing.show_head(
            self._viewer,
            self._number,
            load,
            min(self.head.currentData(), load.values.shape[-1] - 1),
        )
        self.refresh()

    def _switch(self, on: bool) -> None:
        if on:
            self._choose()
        else:
            showing.show_role(self._viewer, self._number, "head_map", False)

    def _set_opacity(self, percent: int) -> None:
        showing.opacity_of(
            layers_of_registration(self._viewer, self._number, "head_map"), percent / 100
        )


def shares_of(load: GateValues) -> NDArray[np.float64]:
    """Share of selections of every head of a gate, or of the counts over all blocks."""
    values = load.values if load.block is None else load.values > 0
    chosen = values.sum(axis=(0, 1, 2), dtype=np.float64)
    return chosen / max(float(chosen.sum()), 1.0)


def _where(load: GateValues) -> tuple[int, str | None, int | None]:
    return load.layer, load.image, load.block


MAP = (
    "of the deformation without the affine: from a point of the fixed image to the source of its"
    " value"
)


class DeformationSection(Section):
    """Controls of the deformation grid, the arrows and the Jacobian."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Deformation", viewer)
        self.switches = {
            "grid": QCheckBox("Deformation grid"),
            "arrows": QCheckBox("Arrows"),
            "jacobian": QCheckBox("Jacobian and folding"),
        }
        tooltips = {
            "grid": with_key(f"Lines bent by the in-plane part {MAP}", "grid"),
            "arrows": (
                f"The in-plane part {MAP}; the colour is the length of the whole displacement,"
                " including the part across the slice"
            ),
            "jacobian": with_key(
                "Volume change at every voxel: 1 is none, 2 is twice as large, 0 or less is"
                " folding (red)",
                "jacobian",
            ),
        }
        self.spacing = QDoubleSpinBox()
        self.spacing.setRange(2, 50)
        self.spacing.setDecimals(1)
        self.spacing.setValue(SPACING)
        self.spacing.setSuffix(" mm")
        self.spacing.setKeyboardTracking(False)
        self.spacing.setToolTip("Spacing of the grid lines and of the arrows")
        self.arrow_ramp, self.jacobian_ramp, self.folding = Ramp(), Ramp(), Swatches()
        for role, box in self.switches.items():
            box.setToolTip(tooltips[role])
            box.toggled.connect(lambda on, role=role: self._switch(role, on))
        form = QFormLayout()
        form.addRow("Spacing", self.spacing)
        self.column.addWidget(self.switches["grid"])
        self.column.addLayout(form)
        under = (self.arrow_ramp, self.switches["jacobian"], self.jacobian_ramp, self.folding)
        for widget in (self.switches["arrows"], *under):
            self.column.addWidget(widget)
        self.spacing.valueChanged.connect(self._set_spacing)

    def refresh(self) -> None:
        """Show which layers are visible, and legends of their colours."""
        self.setEnabled(bool(self._number))
        found = {role: self._layer(role) for role in self.switches}
        for role, box in self.switches.items():
            layer = found[role]
            with signals_blocked(box):
                box.setEnabled(layer is not None)
                box.setChecked(layer is not None and layer.visible)
        arrows, jacobian = found["arrows"], found["jacobian"]
        self.arrow_ramp.setVisible(arrows is not None and arrows.visible)
        self.jacobian_ramp.setVisible(jacobian is not None and jacobian.visible)
        self.folding.setVisible(jacobian is not None and jacobian.visible)
        if (spacing := showing.spacing_of(self._viewer, self._number)) is not None:
            with signals_blocked(self.spacing):
                self.spacing.setValue(spacing)
        if arrows is not None:
            most = tag(arrows, "arrow_limit")
            colours = arrows.edge_colormap.map(np.linspace(0, 1, 16))
            self.arrow_ramp.show_colours(colours, ["0", f"{most / 2:.1f}", f"{most:.1f} mm"])
        if jacobian is not None:
            low, high = jacobian.contrast_limits
            colours = jacobian.colormap.map((np.geomspace(low, high, 33) - low) / (high - low))
            self.jacobian_ramp.show_colours(colours, [f"{low:.2g}", "1", f"{high:.2g}"])
            share = tag(jacobian, "folding_percent")
            text = f"folding: {share:.3g} % of the voxels" if share else "none of the voxels folds"
            self.folding.show_entries([(FOLDS, text, None)])

    def _layer(self, role: str) -> Any:
        layers = layers_of_registration(self._viewer, self._number, role)
        return layers[0] if layers else None

    def _switch(self, role: str, on: bool) -> None:
        showing.show_role(self._viewer, self._number, role, on)
        self.refresh()

    def _set_spacing(self, spacing: float) -> None:
        set_spacing(self._viewer, spacing, self._number)
