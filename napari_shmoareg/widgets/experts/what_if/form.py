"""What is to be changed: silence or force an expert, where in the network and where in the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QVBoxLayout, QWidget

from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.widgets.experts.regions.selections import called, selections
from napari_shmoareg.widgets.experts.regions.source import RegionSource, Source
from napari_shmoareg.widgets.experts.regions.where_picker import WherePicker, said_where
from napari_shmoareg.widgets.experts.section import fill

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.intervention import Intervention
    from napari_shmoareg.analysis.scene import Scene

ACTIONS = {"silence": "silence it: never chosen", "force": "force it: always chosen"}
DONE = {"silence": "Silenced", "force": "Forced"}
ACTION_TIP = (
    "Silence: where the expert was chosen the next best takes its place. Force: where it was not chosen it takes the "
    "place, and the gate value, of the weakest chosen one"
)
NULL_TIP = (
    "Run the same change for its random counterpart too: other experts' selections, as many, in patches alike, in the "
    "same shares of content and background; one draw. Twice the time"
)
EACH = 0  # of the regions: all of them together


@dataclass(frozen=True, eq=False)
class Wish:
    """What a person asks for, to be made an `Intervention` in any thread.

    Attributes
    ----------
    action : str
    expert : int
    where : dict
        Fields of `Place`; what is left out means all.
    source : Source or None
        Of the region; None is everywhere.
    region : int
        Its number; 0 is all regions of the source.
    null : bool
        Whether to run the change for random experts too.
    """

    action: Any
    expert: int
    where: dict[str, Any]
    source: Source | None
    region: int
    null: bool

    @property
    def within(self) -> str:
        """The region in words."""
        if self.source is None:
            return "everywhere"
        return f"'{self.source.name}'" if self.region == EACH else f"region {self.region} of '{self.source.name}'"

    @property
    def of_all(self) -> str:
        """What a sweep does that is asked for with this, in words: a sweep takes all blocks and both images."""
        gates = said_where({name: self.where.get(name) for name in ("part", "layer", "direction")})
        beside = "each beside its random counterpart" if self.null else "without random counterparts"
        where = self.within if self.source is None else f"in {self.within}"
        return f"{DONE[self.action]} in turn: every expert of {gates}, {where}, {beside}"

    def place(self, scene: Scene) -> Volume | None:
        """The region in the fixed world: not 0 is inside; None for everywhere.

        Raises
        ------
        InputError
            If the region is empty.
        """
        if self.source is None:
            return None
        labels = self.source.volume(scene)
        inside = labels.values != 0 if self.region == EACH else labels.values == self.region
        if not inside.any():
            raise InputError(f"There is no voxel in {self.within}. Draw or pick a region inside the fixed image.")
        return Volume(inside.astype(np.uint8), labels.grid, self.within, is_labels=True)

    def intervention(self, scene: Scene) -> Intervention:
        """The change, with its region.

        Raises
        ------
        InputError
            If the region is empty.
        """
        from napari_shmoareg.analysis.intervention import Intervention

        return Intervention(self.action, self.expert, **self.where, region=self.place(scene))


class WhatIfForm(QWidget):
    """The rows of the form.

    Parameters
    ----------
    viewer : Viewer
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._scene: Any = lambda: None
        self.action, self.expert, self.region = QComboBox(), QComboBox(), QComboBox()
        self.action.setToolTip(ACTION_TIP)
        self.expert.setToolTip("Which expert, with its share of the selections of the gates picked here")
        self.region.setToolTip("Which of the regions; the cells that lie in it by half of their volume or more")
        self.where = WherePicker("layer", "block", "image", "direction")
        self.source = RegionSource(viewer, everywhere=True)
        self.null = QCheckBox("Beside it random experts")
        self.null.setToolTip(NULL_TIP)
        self.null.setChecked(True)
        for combo in (self.action, self.expert, self.region):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        fill(self.action, ACTIONS)
        top, below = QFormLayout(), QFormLayout()
        top.addRow("Action", self.action)
        for name, widget in (("Expert", self.expert), ("Within", self.source)):
            below.addRow(name, widget)
        self._below = below
        below.addRow("Region", self.region)
        below.addRow(self.null)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(top)
        column.addWidget(self.where)
        column.addLayout(below)
        self.where.changed.connect(self._offer_experts)
        self.source.changed.connect(self._offer_regions)
        for combo in (self.action, self.expert, self.region):
            combo.activated.connect(lambda _: self.changed.emit())
        self._offer_regions()

    @property
    def wish(self) -> Wish | None:
        """What is asked for; None where there is nothing to ask."""
        expert = self.expert.currentData()
        if expert is None:
            return None
        region = int(self.region.currentData() or EACH)
        picked = self.source.source
        return Wish(self.action.currentData(), expert, self.where.where, picked, region, self.null.isChecked())

    def offer(self, scene: Scene | None, find: Any) -> None:
        """Offer what there is of a registration; `find` gives it again later, so that nothing is held here."""
        self._scene = find
        self.where.offer(scene)
        self.source.offer(scene)
        self._offer_experts()

    def _offer_experts(self) -> None:
        scene, where = self._scene(), self.where.where
        count = self.where.num_experts if scene is not None else 0
        names = [] if scene is None else called(scene, where["part"] or "", count)
        share = None if scene is None else selections(scene, **where)
        if share is not None and len(share) == count:
            names = [f"{name}: {100 * part:.1f} %" for name, part in zip(names, share, strict=True)]
        fill(self.expert, dict(enumerate(names)))
        self.changed.emit()

    def _offer_regions(self) -> None:
        scene, source = self._scene(), self.source.source
        names: dict[int, str] = {}
        if scene is not None and source is not None:
            try:
                names = source.names(scene)
            except InputError:
                names = {}  # nothing drawn so far: 'Run' says so
        fill(self.region, {EACH: "all of them", **names})
        for widget in (self.region, self._below.labelForField(self.region)):
            if widget is not None:
                widget.setVisible(source is not None)
        self.changed.emit()
