"""The tabs Maps and Deformation of the Experts panel: expert, head and gate maps (Fig. 4), grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QSlider,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.plugin import gate_layers, showing
from napari_shmoareg.plugin.controls.forms import Section, fill
from napari_shmoareg.plugin.controls.legend import Ramp, Swatches
from napari_shmoareg.plugin.deformation import SPACING, set_spacing
from napari_shmoareg.plugin.experts.gate_picker import GatePicker
from napari_shmoareg.plugin.layers import (
    FOLDS,
    expert_names,
    initial_gate,
    resolution,
    weight_range,
)
from napari_shmoareg.plugin.placement import tag
from napari_shmoareg.plugin.preferences import expert_palette, set_expert_palette
from napari_shmoareg.plugin.registrations import layers_of_registration
from napari_shmoareg.plugin.showing import with_key

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image, Layer
    from numpy.typing import NDArray

    from napari_shmoareg.experts.maps import ExpertMap, GateValues
    from napari_shmoareg.registration.register import Registration


NOT_KEPT = (
    "The gate values are not saved in this folder: it was written by an earlier version. Register"
    " again."
)
NO_GATES = "This network has no experts, so there are no gates to show."
MEASURES = {"entropy": "Gate entropy (how sure)", "margin": "Gate margin"}
RANGE_ENDS = {"entropy": ("sure", "all equal"), "margin": ("a tie", "clear")}
STRETCHED_ENDS = {"entropy": ("surer", "more equal"), "margin": ("nearer a tie", "clearer")}
SPREAD = (
    "From the 1st to the 99th percentile of this map; otherwise from 0 to 1, so that all gates can"
    " be compared"
)
MEASURE_TIP = (
    "Entropy of the gate values of all experts, divided by its maximum: 0 if one expert has all the"
    " weight, 1 if all are equal. Margin: value of the last chosen expert minus that of the first"
    " one not chosen: 0 is a tie. Ours: for the entropy, the decoder's gate values (sigmoid) are"
    " normalized to sum to 1."
)


class MapSection(Section):
    """Controls of one kind of map: shows or hides it, fades it, and picks what it shows.

    Subclasses implement `refresh` and `choose`, and add their rows with `add_rows`.

    Parameters
    ----------
    viewer : Viewer
    title : str
    role : str
        Of the layers.
    name, tip : str
        Name of the map, and tooltip of its check box.
    """

    def __init__(self, viewer: Viewer, title: str, role: str, name: str, tip: str) -> None:
        super().__init__(title, viewer)
        self._role = role
        self.on = QCheckBox(f"Show {name}")
        self.on.setToolTip(tip)
        self.on.toggled.connect(self._switch)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(5, 100)
        self.opacity.setValue(70)  # until there is a layer
        self.opacity.setToolTip(f"Opacity of the {name}")
        self.opacity.valueChanged.connect(self._set_opacity)
        self.ramp, self.message, self.controls = Ramp(), QLabel(), QWidget()
        self.message.setWordWrap(True)
        for widget in (self.controls, self.ramp, self.message):
            self.column.addWidget(widget)

    def add_rows(self, *rows: tuple[str, QWidget, str]) -> None:
        """Add the controls below the check box: caption, widget and tooltip; "" for none."""
        form = QFormLayout(self.controls)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow(self.on)
        for caption, widget, tip in rows:
            if tip:
                widget.setToolTip(tip)
            if caption:
                form.addRow(caption, widget)
            else:
                form.addRow(widget)
            if isinstance(widget, QComboBox):
                widget.activated.connect(lambda _: self.choose())
            elif isinstance(widget, QCheckBox):
                widget.toggled.connect(lambda _: self.choose())
            elif isinstance(widget, GatePicker):
                widget.changed.connect(self.choose)
        form.addRow("Opacity", self.opacity)

    def choose(self) -> None:
        """Show the map that the controls describe."""

    def show_state(self, layers: Sequence[Layer]) -> None:
        """Show whether any layer is visible, and their opacity."""
        with signals_blocked(self.on), signals_blocked(self.opacity):
            self.on.setChecked(any(layer.visible for layer in layers))
            if layers:
                self.opacity.setValue(round(100 * layers[0].opacity))

    def _switch(self, on: bool) -> None:
        if on:
            self.choose()
        else:
            showing.show_role(self._viewer, self._number, self._role, False)

    def _set_opacity(self, percent: int) -> None:
        for layer in layers_of_registration(self._viewer, self._number, self._role):
            layer.opacity = percent / 100


class GateSection(MapSection):
    """Controls of the gate map: how certain a gate was in every cell, as entropy or margin."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(
            viewer,
            "Gates (how sure they were)",
            "gate_map",
            "gate map",
            "Show or hide how certain a gate was in every cell; bright is unsure",
        )
        self.measure, self.where = QComboBox(), GatePicker()
        self.stretch = QCheckBox("Spread colours over the values")
        fill(self.measure, MEASURES)
        self.add_rows(
            ("Show", self.measure, MEASURE_TIP), ("", self.where, ""), ("", self.stretch, SPREAD)
        )

    def refresh(self) -> None:
        """Show the gate of the layer, and how certain it was."""
        super().refresh()
        gates, layer = self._gates(), gate_layers.gate_layer(self._viewer, self._number)
        self.controls.setEnabled(bool(gates))
        self.ramp.setVisible(layer is not None)
        self.message.clear()
        self.show_state([] if layer is None else [layer])
        registration = self.registration
        self.where.show_gate(registration, None if layer is None else tag(layer, "gate").gate)
        if not gates:
            if registration is not None:
                had = registration.report.get("expert_loads")
                self.message.setText(NOT_KEPT if had else NO_GATES)
        elif layer is not None:
            with signals_blocked(self.stretch):
                self.stretch.setChecked(tag(layer, "stretched"))
            fill(self.measure, MEASURES, tag(layer, "measure"))
            self._show_legend(layer)

    def choose(self) -> None:
        gate = next(found for found in self._gates() if found.gate == self.where.gates[0])
        options = {"stretched": self.stretch.isChecked()}
        gate_layers.show_gate(
            self._viewer, self._number, gate, self.measure.currentData(), **options
        )
        self.refresh()

    def _show_legend(self, layer: Image) -> None:
        """Show the colours, the median and the quartiles."""
        measure, digits, ends = tag(layer, "measure"), ".2g", RANGE_ENDS
        if tag(layer, "stretched"):
            digits, ends = ".3g", STRETCHED_ENDS
        named = zip(layer.contrast_limits, ends[measure], strict=True)
        self.ramp.show_layer(layer, [f"{limit:{digits}} {end}" for limit, end in named])
        first, median, third = tag(layer, "quartiles")
        self.message.setText(
            f"{MEASURES[measure].split(' (')[0]} of"
            f" {gate_layers.short_gate_name(tag(layer, 'gate').gate)}: median {median:.3g}, half of"
            f" the cells between {first:.3g} and {third:.3g}."
        )

    def _gates(self) -> list[GateValues]:
        from napari_shmoareg.experts.maps import gate_values

        registration = self.registration
        return [] if registration is None else gate_values(registration)


ALL = -1  # all experts, in the list of experts to draw
WORLD = ("left-right", "back-front", "down-up")


PALETTES = {"distinct": "distinct", "paper": "as in the paper (red, white, blue)"}
PALETTE_TIP = (
    "Colours of the experts in maps and bars. The distinct ones can be told apart over grey images,"
    " also by colour-blind eyes"
)


class DecoderSection(MapSection):
    """Controls of the expert maps: the expert of every cell, per direction and resolution.

    Attributes
    ----------
    palette_changed : Signal
        Other colours were chosen, for all views.
    """

    palette_changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(
            viewer,
            "Deformation experts (SHMoE, decoder)",
            "expert_map",
            "expert map",
            with_key("Show or hide the expert map; the key shows the next one", "expert_map"),
        )
        self._last: tuple[str, int] | None = None  # direction and stride shown last
        self.direction, self.resolution, self.drawn = QComboBox(), QComboBox(), QComboBox()
        self.air, self.colours = QCheckBox("Draw air too"), QComboBox()
        fill(self.colours, PALETTES, expert_palette())
        self.add_rows(
            (
                "Direction",
                self.direction,
                with_key("Each component of the displacement has its own experts", "direction"),
            ),
            (
                "Resolution",
                self.resolution,
                "Resolution of the decoder layer: its cells are as large as the voxels of the"
                " network grid, or twice as large",
            ),
            (
                "Cells of",
                self.drawn,
                "Draw the cells of all experts, each in its colour, or the cells of one expert"
                " only",
            ),
            ("Colours", self.colours, PALETTE_TIP),
            ("", self.air, "Also draw, and count, cells where the fixed image shows only air"),
        )
        self.legend = Swatches()
        self.legend.setToolTip("Experts by kernel size, with the share of cells that chose each")
        self.share_of = QLabel()
        self.column.addWidget(self.legend)
        self.column.addWidget(self.share_of)
        for widget in (self.ramp, self.message):
            widget.hide()

    def refresh(self) -> None:
        """Show the current map, and a legend of its colours."""
        from napari_shmoareg.experts.maps import expert_maps

        registration = self.registration
        maps = [] if registration is None else expert_maps(registration)
        self.setEnabled(bool(maps))
        if registration is None or not maps:
            self.legend.show_entries([])
            self.share_of.clear()
            return
        opened = showing.expert_layers(self._viewer, self._number)
        self.show_state(opened)
        offered = showing.offered_maps(self._viewer, self._number)
        shown = showing.shown_map(self._viewer, self._number) or self._last
        self._last = shown if shown in offered else offered[0]
        direction, stride = self._last
        fill(self.direction, {m.direction: f"{m.direction} ({along(m)})" for m in maps}, direction)
        fill(self.resolution, {m.stride: resolution(m.stride) for m in maps}, stride)
        drawn = {bool(tag(layer, "air")) for layer in opened}
        if len(drawn) == 1:
            with signals_blocked(self.air):
                self.air.setChecked(drawn.pop())
        fill(self.colours, PALETTES, expert_palette())
        shown_map = next(m for m in maps if (m.direction, m.stride) == self._last)
        entries = _entries(registration, shown_map, air=self.air.isChecked())
        self.legend.show_entries(entries)
        cells = "all cells of this map" if self.air.isChecked() else "its cells without air"
        self.share_of.setText(f"Shares of {cells}.")
        names = {n: f"{name} alone" for n, (_, name, _) in enumerate(entries)}
        layers = (one for one in opened if showing.direction_and_stride(one) == self._last)
        layer = next(layers, None)
        alone = None if layer is None else showing.single_expert(layer)
        fill(self.drawn, {ALL: "all experts"} | names, ALL if alone is None else alone)

    def choose(self) -> None:
        """Show the map that the controls describe, in their colours."""
        if self.colours.currentData() != expert_palette():
            set_expert_palette(self.colours.currentData())
            self.palette_changed.emit()
        showing.redraw_expert_maps(self._viewer, self._number, air=self.air.isChecked())
        drawn = self.drawn.currentData()
        layer = showing.show_experts(self._viewer, self._number, *self._selected())
        if layer is not None and drawn is not None:
            showing.draw_single_expert(layer, None if drawn == ALL else drawn)
        if layer is not None and bool(tag(layer, "air")) != self.air.isChecked():
            showing.redraw_expert_maps(self._viewer, self._number, air=self.air.isChecked())
        self.refresh()

    def _selected(self) -> tuple[str, int]:
        return self.direction.currentData(), self.resolution.currentData()


def along(expert_map: ExpertMap) -> str:
    """The approximate anatomical direction of a map's displacement component."""
    axis = "xyz".index(expert_map.direction or "x")
    return WORLD[int(np.abs(expert_map.volume.grid.affine[:3, axis]).argmax())]


def _entries(
    registration: Registration, expert_map: ExpertMap, *, air: bool
) -> list[tuple[str, str, float]]:
    """Colour, name and share of every expert of a map."""
    from napari_shmoareg.experts.maps import content_cells
    from napari_shmoareg.plugin.layers import colours_of_experts

    count = expert_map.num_experts
    cells = None if air else content_cells(registration, expert_map.stride)
    names = (f"{name} (id {n})" for n, name in enumerate(expert_names(registration, count)))
    shares = map(float, expert_map.shares(cells))
    return list(zip(colours_of_experts(count), names, shares, strict=True))


class EncoderSection(MapSection):
    """Controls of the head map: weight of a head at every token, or number of blocks that chose
    it.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(
            viewer,
            "Attention heads (MoA, encoder)",
            "head_map",
            "head map",
            "Show or hide the weight of one attention head at every token",
        )
        self.where, self.head = GatePicker(part="encoder"), QComboBox()
        self.counted = QCheckBox("How often chosen, all blocks")
        self.add_rows(
            ("", self.where, ""),
            (
                "",
                self.counted,
                "Show the number of blocks of the layer in which a token chose the head, instead of"
                " the weight in one block",
            ),
            ("Head", self.head, with_key("Attention head, with its share of selections", "head")),
        )

    def refresh(self) -> None:
        """Show the head of the layer, and its load."""
        from napari_shmoareg.experts.maps import token_loads

        registration = self.registration
        layer = showing.head_layer(self._viewer, self._number)
        self.setEnabled(registration is not None and bool(token_loads(registration)))
        if registration is None or not self.isEnabled():
            self.message.clear()
            return
        self.show_state([] if layer is None else [layer])
        self.ramp.setVisible(layer is not None)
        if layer is None:
            load = initial_gate(registration)
            head = int(shares_of(load).argmax())
        else:
            load, head = tag(layer, "load"), tag(layer, "head")
        counted = load.block is None
        with signals_blocked(self.counted):
            self.counted.setChecked(counted)
        self.where.show_gate(registration, load.gate)
        self.where.fields["block"].setEnabled(not counted)
        shares = shares_of(load)
        fill(self.head, {n: f"{n} ({100 * share:.1f} %)" for n, share in enumerate(shares)}, head)
        if layer is not None and counted:
            self.ramp.show_layer(layer, ["0", f"{layer.contrast_limits[1]:g} blocks"])
        elif layer is not None:
            low, equal, high = weight_range(load)
            colours = layer.colormap.map(np.linspace(low, high, 16))
            marks = [f"{low:.3g}", f"1/{load.top_k} = {equal:.3g}", f"{high:.3g}"]
            self.ramp.show_colours(colours, marks)
        self.message.setText(_describe_head(load, head, shares[head], len(shares)))

    def choose(self) -> None:
        from napari_shmoareg.experts.maps import times_chosen, token_loads

        registration, gate = self.registration, self.where.gates[0]
        if registration is None:
            return
        counted = self.counted.isChecked()
        gate = gate._replace(block=None) if counted else gate
        loads = (times_chosen if counted else token_loads)(registration)
        load = next(load for load in loads if load.gate == gate)
        head = min(self.head.currentData(), load.values.shape[-1] - 1)
        showing.show_head(self._viewer, self._number, load, head)
        self.refresh()


def _describe_head(load: GateValues, head: int, share: float, count: int) -> str:
    """Share of selections and of tokens of a head, and what a share can be at most."""
    where = f"layer {load.layer}, {load.image} image"
    text = f"Head {head} has {100 * share:.1f} % of the selections"
    most = f"a token chooses {load.top_k} of {count}, so no head can have more than"
    most += f" {100 / load.top_k:.0f} % of the selections; equal shares: {100 / count:.1f} %"
    if load.block is None:
        return f"{text} in all blocks of {where} ({most})."
    tokens = float((load.values[..., head] > 0).mean())
    return (
        f"{text} in this block of {where}: {100 * tokens:.0f} % of the tokens chose it ({most})."
        " Clear where it was not chosen; the colour is its weight among the chosen heads."
    )


def shares_of(load: GateValues) -> NDArray[np.float64]:
    """Share of selections of every head of a gate, or of the counts over all blocks."""
    values = load.values if load.block is None else load.values > 0
    chosen = values.sum(axis=(0, 1, 2), dtype=np.float64)
    return chosen / max(float(chosen.sum()), 1.0)


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
                box.setChecked(layer is not None and layer.visible)
        arrows, jacobian = found["arrows"], found["jacobian"]
        self.arrow_ramp.setVisible(arrows is not None and arrows.visible)
        self.jacobian_ramp.setVisible(jacobian is not None and jacobian.visible)
        self.folding.setVisible(jacobian is not None and jacobian.visible)
        self.spacing.setEnabled(found["grid"] is not None or arrows is not None)
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
