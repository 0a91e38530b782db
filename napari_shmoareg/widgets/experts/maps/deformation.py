"""The Experts panel: what the deformation does, as a grid, arrows and changes of volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QFormLayout
from superqt.utils import signals_blocked

from napari_shmoareg.widgets import showing
from napari_shmoareg.widgets.deformation import SPACING
from napari_shmoareg.widgets.experts.section import Section
from napari_shmoareg.widgets.grid_overlay import set_spacing
from napari_shmoareg.widgets.layers import FOLDS
from napari_shmoareg.widgets.legend import Ramp, Swatches
from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.scenes import layers_of_scene
from napari_shmoareg.widgets.shortcuts import says

if TYPE_CHECKING:
    from napari import Viewer

MAP = "of the deformation without the affine: from a point of the fixed image to where its value comes from"


class DeformationSection(Section):
    """Grid, arrows and Jacobian on and off."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Deformation", viewer)
        self.switches = {
            "grid": QCheckBox("Deformation grid"),
            "arrows": QCheckBox("Arrows"),
            "jacobian": QCheckBox("Jacobian and folding"),
        }
        tooltips = {
            "grid": says(f"Lines bent by what lies in the slice {MAP}", "grid"),
            "arrows": f"What lies in the slice {MAP}; the colour is the whole length, through the slice too",
            "jacobian": says(
                "Change of volume at every voxel: 1 is none, 2 is twice as big, 0 or less is folding (red)", "jacobian"
            ),
        }
        self.spacing = QDoubleSpinBox()
        self.spacing.setRange(2, 50)
        self.spacing.setDecimals(1)
        self.spacing.setValue(SPACING)
        self.spacing.setSuffix(" mm")
        self.spacing.setKeyboardTracking(False)
        self.spacing.setToolTip("Between the lines of the grid, and between the arrows")
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
        self.spacing.valueChanged.connect(self._space)

    def refresh(self) -> None:
        """Show what is switched on, and what its colours mean."""
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
            most = tag(arrows, "longest")
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
        layers = layers_of_scene(self._viewer, self._number, role)
        return layers[0] if layers else None

    def _switch(self, role: str, on: bool) -> None:
        showing.show_role(self._viewer, self._number, role, on)
        self.refresh()

    def _space(self, spacing: float) -> None:
        set_spacing(self._viewer, spacing, self._number)
