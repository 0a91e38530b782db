"""The Experts panel: what each attention head of the encoder weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLabel
from superqt.utils import signals_blocked

from napari_shmoareg.widgets import showing
from napari_shmoareg.widgets.experts.section import Section, fill, opacity_slider
from napari_shmoareg.widgets.legend import Ramp
from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.scenes import layers_of_scene
from napari_shmoareg.widgets.shortcuts import says

if TYPE_CHECKING:
    from napari import Viewer
    from numpy.typing import NDArray

    from napari_shmoareg.analysis.expert_maps import TokenLoad


class EncoderSection(Section):
    """How much one attention head weighs at every token, or how many blocks chose it."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Attention heads (MoA, encoder)", viewer)
        self.on = QCheckBox("Show head map")
        self.on.setToolTip("Show or hide the weight of one attention head at every token")
        self.layer, self.image, self.block, self.head = QComboBox(), QComboBox(), QComboBox(), QComboBox()
        self.layer.setToolTip("Layer of the encoder: the tokens of each are twice as big as those of the one before")
        self.image.setToolTip("Both images pass the same encoder; each has choices of its own")
        self.block.setToolTip("Block of the layer: each has a gate of its own")
        self.head.setToolTip(says("Attention head, with its share of selections", "head"))
        self.counted = QCheckBox("How often chosen, all blocks")
        self.counted.setToolTip(
            "Not the weight in one block, but in how many blocks of the layer a token chose the head"
        )
        self.opacity = opacity_slider("How opaque the head map is")
        self.ramp, self.says = Ramp(), QLabel()
        self.says.setWordWrap(True)
        form = QFormLayout()
        for name, widget in (("Layer", self.layer), ("Image", self.image), ("Block", self.block)):
            form.addRow(name, widget)
        form.addRow(self.counted)
        form.addRow("Head", self.head)
        form.addRow("Opacity", self.opacity)
        self.column.addWidget(self.on)
        self.column.addLayout(form)
        self.column.addWidget(self.ramp)
        self.column.addWidget(self.says)
        self.on.toggled.connect(self._switch)
        for combo in (self.layer, self.image, self.block, self.head):
            combo.activated.connect(lambda _: self._choose())
        self.counted.toggled.connect(lambda _: self._choose())
        self.opacity.valueChanged.connect(self._fade)

    def refresh(self) -> None:
        """Show which head is in the layer, and its load."""
        layer = showing.head_layer(self._viewer, self._number)
        self.setEnabled(layer is not None)
        if layer is None:
            self.says.clear()
            return
        scene, load, head = (tag(layer, name) for name in ("scene", "load", "head"))
        counted = load.place.block is None
        with signals_blocked(self.on), signals_blocked(self.counted), signals_blocked(self.opacity):
            self.on.setChecked(bool(layer.visible))
            self.counted.setChecked(counted)
            self.opacity.setValue(round(100 * layer.opacity))
        places = [other.place for other in scene.token_loads]
        strides = {other.place.layer: other.stride for other in scene.token_loads}
        fill(self.layer, {n: f"{n} (1/{strides[n]} resolution)" for n in sorted(strides)}, load.place.layer)
        fill(self.image, {p.image: p.image for p in places}, load.place.image)
        blocks = {p.block: str(p.block) for p in places if p.layer == load.place.layer}
        fill(self.block, blocks, load.place.block)
        self.block.setEnabled(not counted)
        shares = shares_of(load)
        fill(self.head, {n: f"{n} ({100 * share:.1f} %)" for n, share in enumerate(shares)}, head)
        top = f"{layer.contrast_limits[1]:g} blocks" if counted else "weight 1"
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), ["0", top])
        where = f"all blocks of layer {load.place.layer}" if counted else f"this block of layer {load.place.layer}"
        self.says.setText(
            f"Head {head} has {100 * shares[head]:.1f} % of the selections in {where}, {load.place.image} image "
            f"(equal shares: {100 / len(shares):.1f} %)."
        )

    def _choose(self) -> None:
        """Show the head that is picked, of the gate that comes nearest to what is picked."""
        layer = showing.head_layer(self._viewer, self._number)
        scene = tag(layer, "scene")
        counted = self.counted.isChecked()
        wanted = (self.layer.currentData(), self.image.currentData(), None if counted else self.block.currentData())
        loads = scene.times_chosen if counted else scene.token_loads
        load = min(loads, key=lambda one: [a != b for a, b in zip(_where(one), wanted, strict=True)])
        showing.show_head(self._viewer, self._number, load, min(self.head.currentData(), load.values.shape[-1] - 1))
        self.refresh()

    def _switch(self, on: bool) -> None:
        if on:
            self._choose()
        else:
            showing.show_role(self._viewer, self._number, "head_map", False)

    def _fade(self, percent: int) -> None:
        showing.opacity_of(layers_of_scene(self._viewer, self._number, "head_map"), percent / 100)


def shares_of(load: TokenLoad) -> NDArray[np.float64]:
    """Share of selections of every head of a gate; of counts over all blocks likewise."""
    values = load.values if load.place.block is None else load.values > 0
    chosen = values.sum(axis=(0, 1, 2), dtype=np.float64)
    return chosen / max(float(chosen.sum()), 1.0)


def _where(load: TokenLoad) -> tuple[int, str | None, int | None]:
    return load.place.layer, load.place.image, load.place.block
