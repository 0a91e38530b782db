"""What is to be changed: an expert silenced or forced, or another choice of experts as a control;
and where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QVBoxLayout, QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.controls.forms import arranged, fill, narrowed
from napari_shmoareg.plugin.experts.gate_picker import GatePicker, describe_gates
from napari_shmoareg.plugin.experts.region_source import RegionSource, Source
from napari_shmoareg.plugin.experts.regions import called, selections

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.controls import Control
    from napari_shmoareg.experts.intervention import Intervention
    from napari_shmoareg.registration.register import Registration


ACTIONS = {"silence": "silence it: never chosen", "force": "force it: always chosen"}
DONE = {"silence": "Silenced", "force": "Forced"}
ACTION_TIP = (
    "Silence: where the expert was chosen the next best takes its place. Force: where it was not"
    " chosen it takes the place, and the gate value, of the weakest chosen one. The others are"
    " controls: they change the choice at all of the gates picked below"
)
PASSES = {"all": "all passes", "last": "the last pass alone"}
PASSES_TIP = (
    "The network runs at a coarse grid first, then on what is left: in all passes a control tells"
    " what the whole result depends on, in the last one what its maps and loads stand for. Silence"
    " and force change the last pass"
)
# controls that are about one expert, or about those chosen most often
ONE_OR_OFTEN = ("fixed", "silenced")
OFTEN = -1  # in place of an expert: the ones that are chosen most often
NULL_TIP = (
    "Run the same change for its random counterpart too: other experts' selections, as many, in"
    " patches alike, in the same shares of content and background; one draw. Twice the time"
)
EACH = 0  # of the regions: all of them together


@dataclass(frozen=True, eq=False)
class ChangeRequest:
    """What a person asks for, to be made an `Intervention` in any thread.

    Attributes
    ----------
    action : str
        "silence", "force", or the name of a control.
    expert : int or None
        None for a control that is about no single one.
    where : dict
        Fields of `GateId`; what is left out means all.
    source : Source or None
        Of the region; None is everywhere.
    region : int
        Its number; 0 is all regions of the source.
    null : bool
        Whether to run the change for random experts too.
    passes : {"all", "last"}
        Of a control.
    """

    action: Any
    expert: int | None
    where: dict[str, Any]
    source: Source | None
    region: int
    null: bool
    passes: Any = "last"

    @property
    def control(self) -> bool:
        """Whether it is a control."""
        return self.action not in ACTIONS

    @property
    def within(self) -> str:
        """The region in words."""
        if self.source is None:
            return "everywhere"
        return (
            f"'{self.source.name}'"
            if self.region == EACH
            else f"region {self.region} of '{self.source.name}'"
        )

    @property
    def of_all(self) -> str:
        """What a sweep does that is asked for with this, in words: a sweep takes all blocks and
        both images.
        """
        gates = describe_gates(
            {name: self.where.get(name) for name in ("part", "layer", "direction")}
        )
        beside = (
            "each beside its random counterpart" if self.null else "without random counterparts"
        )
        where = self.within if self.source is None else f"in {self.within}"
        return f"{DONE[self.action]} in turn: every expert of {gates}, {where}, {beside}"

    def mask(self, registration: Registration) -> Volume | None:
        """The region in the fixed world: not 0 is inside; None for everywhere.

        Raises
        ------
        InputError
            If the region is empty.
        """
        if self.source is None:
            return None
        labels = self.source.volume(registration)
        inside = labels.values != 0 if self.region == EACH else labels.values == self.region
        if not inside.any():
            raise InputError(
                f"There is no voxel in {self.within}. Draw or pick a region inside the fixed image."
            )
        return Volume(inside.astype(np.uint8), labels.grid, self.within, is_labels=True)

    def change(self, registration: Registration) -> Intervention | Control:
        """The change; an intervention with its region.

        Raises
        ------
        InputError
            If the region is empty.
        """
        from napari_shmoareg.experts.controls import Control
        from napari_shmoareg.experts.intervention import Intervention

        if self.control:
            return Control(self.action, **self.where, passes=self.passes, expert=self.expert)
        assert self.expert is not None
        return Intervention(self.action, self.expert, **self.where, region=self.mask(registration))


class WhatIfForm(QWidget):
    """The rows of the form.

    Parameters
    ----------
    viewer : Viewer
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._registration: Any = lambda: None
        self.action, self.expert, self.region, self.passes = (
            QComboBox(),
            QComboBox(),
            QComboBox(),
            QComboBox(),
        )
        self.action.setToolTip(ACTION_TIP)
        self.expert.setToolTip(
            "Which expert, with its share of the selections of the gates picked here"
        )
        self.region.setToolTip(
            "Which of the regions; the cells that lie in it by half of their volume or more"
        )
        self.where = GatePicker("layer", "block", "image", "direction")
        self.source = RegionSource(viewer, everywhere=True)
        self.null = QCheckBox("Beside it random experts")
        self.null.setToolTip(NULL_TIP)
        self.null.setChecked(True)
        self.passes.setToolTip(PASSES_TIP)
        narrowed(self.action, self.expert, self.region, self.passes)
        fill(self.action, ACTIONS)
        fill(self.passes, PASSES)
        top, below = QFormLayout(), QFormLayout()
        top.addRow("Action", self.action)
        top.addRow("Passes", self.passes)
        for name, widget in (("Expert", self.expert), ("Within", self.source)):
            below.addRow(name, widget)
        self._top, self._below = top, below
        below.addRow("Region", self.region)
        below.addRow(self.null)
        arranged(QVBoxLayout(self), top, self.where, below)
        self.where.changed.connect(self._offer_actions)
        self.source.changed.connect(self._offer_regions)
        self.action.activated.connect(lambda _: self._offer_experts())
        for combo in (self.expert, self.region, self.passes):
            combo.activated.connect(lambda _: self.changed.emit())
        self._offer_regions()

    @property
    def wish(self) -> ChangeRequest | None:
        """What is asked for; None where there is nothing to ask."""
        expert, action = self.expert.currentData(), self.action.currentData()
        if expert is None:  # the part has no experts, or there is no registration
            return None
        if action not in ACTIONS:
            alone = expert if self._needs_expert and expert != OFTEN else None
            return ChangeRequest(
                action, alone, self.where.where, None, EACH, False, self.passes.currentData()
            )
        region = int(self.region.currentData() or EACH)
        picked = self.source.source
        return ChangeRequest(
            action, expert, self.where.where, picked, region, self.null.isChecked()
        )

    @property
    def _needs_expert(self) -> bool:
        """Whether the action is about one expert: of the controls only one that stands everywhere
        in the decoder.
        """
        action = self.action.currentData()
        return action in ACTIONS or (
            action in ONE_OR_OFTEN and self.where.part.currentData() == "decoder"
        )

    def offer(self, registration: Registration | None, find: Any) -> None:
        """Offer what there is of a registration; `find` gives it again later, so that nothing is
        held here.
        """
        self._registration = find
        self.where.offer(registration)
        self.source.offer(registration)
        self._offer_actions()

    def _offer_actions(self) -> None:
        """Silence and force, and the controls that the part has."""
        part = self.where.part.currentData()
        if self._registration() is not None and part is not None:
            from napari_shmoareg.experts.controls import KINDS

            kinds: dict[Any, Any] = {
                name: kind for name, kind in KINDS.items() if part in kind.parts
            }
            fill(
                self.action,
                ACTIONS | {name: f"control: {kind.title}" for name, kind in kinds.items()},
            )
            for name, kind in kinds.items():
                self.action.setItemData(
                    self.action.findData(name), kind.description, Qt.ItemDataRole.ToolTipRole
                )
        self._offer_experts()

    def _offer_experts(self) -> None:
        registration, where, action = (
            self._registration(),
            self.where.where,
            self.action.currentData(),
        )
        count = self.where.num_experts if registration is not None else 0
        names = [] if registration is None else called(registration, where["part"] or "", count)
        share = None if registration is None else selections(registration, **where)
        if share is not None and len(share) == count:
            names = [f"{name}: {100 * part:.1f} %" for name, part in zip(names, share, strict=True)]
        often = {OFTEN: "the one chosen most often"} if action in ONE_OR_OFTEN and names else {}
        fill(self.expert, often | dict(enumerate(names)))
        control = action not in ACTIONS
        self._show(self._below, self.expert, self._needs_expert)
        self._show(self._top, self.passes, control)
        self._show(self._below, self.source, not control)
        self.null.setVisible(not control)
        self._offer_regions()

    @staticmethod
    def _show(form: QFormLayout, field: QWidget, shown: bool) -> None:
        for widget in (field, form.labelForField(field)):
            if widget is not None:
                widget.setVisible(shown)

    def _offer_regions(self) -> None:
        registration, source = self._registration(), self.source.source
        names: dict[int, str] = {}
        if registration is not None and source is not None:
            try:
                names = source.names(registration)
            except InputError:
                names = {}  # nothing drawn so far: 'Run' says so
        fill(self.region, {EACH: "all of them", **names})
        self._show(
            self._below, self.region, source is not None and self.action.currentData() in ACTIONS
        )
        self.changed.emit()
