"""The Experts panel: which deformation expert each cell of the decoder chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout
from superqt.utils import signals_blocked

from napari_shmoareg.widgets import showing
from napari_shmoareg.widgets.experts.section import Section, fill, opacity_slider, pick
from napari_shmoareg.widgets.layers import expert_names, resolution
from napari_shmoareg.widgets.legend import Swatches
from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.scenes import layers_of_scene
from napari_shmoareg.widgets.shortcuts import says

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.expert_maps import ExpertMap
    from napari_shmoareg.analysis.scene import Scene

ALL = -1  # experts, in the list of those that are drawn
WORLD = ("left-right", "back-front", "down-up")


class DecoderSection(Section):
    """Which deformation expert every cell chose, per direction and resolution."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Deformation experts (SHMoE, decoder)", viewer)
        self._last: tuple[str, int] | None = None  # direction and stride that were shown
        self.on = QCheckBox("Show expert map")
        self.on.setToolTip(says("Show or hide the expert map; the key goes on to the next one", "expert_map"))
        self.direction, self.resolution, self.drawn = QComboBox(), QComboBox(), QComboBox()
        self.direction.setToolTip(says("Each component of the displacement has experts of its own", "direction"))
        self.resolution.setToolTip(
            "Of the decoder layer: its cells are as big as the network grid's voxels, or twice as big"
        )
        self.drawn.setToolTip("Draw the cells of all experts, each in its colour, or those of one expert alone")
        self.opacity = opacity_slider("How opaque the expert maps are")
        self.legend = Swatches()
        self.legend.setToolTip("Share of the cells of this map that chose each expert: its kernel size")
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
        self.opacity.valueChanged.connect(self._fade)

    def refresh(self) -> None:
        """Show which map is shown, and what its colours mean."""
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
        fill(self.direction, {m.place.direction: f"{m.place.direction} ({along(m)})" for m in maps})
        fill(self.resolution, {m.stride: resolution(m) for m in maps})
        if shown is not None:
            self._last = showing.which(shown)
        direction, stride = self._last or showing.which(opened[0])
        pick(self.direction, direction)
        pick(self.resolution, stride)
        seen = next((m for m in maps if (m.place.direction, m.stride) == self._wanted()), maps[0])
        entries = _entries(tag(opened[0], "scene"), seen)
        self.legend.show_entries(entries)
        fill(self.drawn, {ALL: "all experts"} | {n: f"{name} alone" for n, (_, name, _) in enumerate(entries)})
        alone = showing.alone(opened[maps.index(seen)])
        pick(self.drawn, ALL if alone is None else alone)

    def _wanted(self) -> tuple[str, int]:
        return self.direction.currentData(), self.resolution.currentData()

    def _choose(self, drawn: int | None = None) -> None:
        layer = showing.show_experts(self._viewer, self._number, *self._wanted())
        if layer is not None and drawn is not None:
            showing.draw_alone(layer, None if drawn == ALL else drawn)
        self.refresh()

    def _switch(self, on: bool) -> None:
        if on:
            self._choose()
        else:
            showing.show_role(self._viewer, self._number, "expert_map", False)

    def _fade(self, percent: int) -> None:
        showing.opacity_of(layers_of_scene(self._viewer, self._number, "expert_map"), percent / 100)


def along(expert_map: ExpertMap) -> str:
    """Along which direction of the patient a map's component of the displacement runs, nearly."""
    axis = "xyz".index(expert_map.place.direction or "x")
    return WORLD[int(np.abs(expert_map.volume.grid.affine[:3, axis]).argmax())]


def _entries(scene: Scene, expert_map: ExpertMap) -> list[tuple[str, str, float]]:
    """Colour, name and share of every expert of a map."""
    from napari_shmoareg.analysis.expert_palette import expert_colours

    count = expert_map.num_experts
    chosen = np.bincount(expert_map.volume.values.ravel(), minlength=count + 1)[1 : count + 1]
    named = (f"{name} (id {n})" for n, name in enumerate(expert_names(scene, count)))
    return list(zip(expert_colours(count), named, (float(n) / max(chosen.sum(), 1) for n in chosen), strict=True))
