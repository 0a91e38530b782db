"""The form of the tab What if: an intervention on an expert, or a control, and its region."""

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
from napari_shmoareg.plugin.experts.regions import expert_titles, selection_shares

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.controls import Control
    from napari_shmoareg.experts.intervention import Intervention
    from napari_shmoareg.registration.register import Registration


ACTIONS = {"silence": "silence it: never chosen", "force": "force it: always chosen"}
PAST_TENSE = {"silence": "Silenced", "force": "Forced"}
ACTION_TIP = (
    "Silence: the next best expert replaces this one wherever it was chosen. Force: this expert"
    " replaces the weakest chosen one and takes over that one's gate value wherever"
    " it was not chosen. The others are controls: they change the choices of all gates picked below"
)
PASSES = {"all": "all passes", "last": "the last pass alone"}
PASSES_TIP = (
    "The network runs on a coarse grid first, then on the remaining deformation. A control of all"
    " passes tests what the whole result depends on; a control of the last pass tests what the maps"
    " and loads show. Silence and force change the last pass"
)
# controls of one expert, or of the most chosen experts
SINGLE_EXPERT_CONTROLS = ("fixed", "silenced")
MOST_CHOSEN = -1  # instead of an expert: the most chosen ones
NULL_TIP = (
    "Also run the same change for its random counterpart: the same number of selections of other"
    " experts, in patches of the same kind, with the same shares of content and background; one"
    " draw. Takes twice the time"
)
ALL_REGIONS = 0  # all regions together


@dataclass(frozen=True, eq=False)
class ChangeRequest:
    """The request of the form, which becomes an `Intervention` or `Control` in any thread.

    Attributes
    ----------
    action : str
        "silence", "force", or the name of a control.
    expert : int or None
        None for a control of several experts.
    where : dict
        Fields of `GateId`; missing fields mean all.
    source : Source or None
        Source of the region; None is everywhere.
    region : int
        Number of the region; 0 is all regions of the source.
    null : bool
        Whether to run the change for random experts too.
    passes : {"all", "last"}
        Passes that a control changes.
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
        """Whether the action is a control."""
        return self.action not in ACTIONS

    @property
    def within(self) -> str:
        """Description of the region."""
        if self.source is None:
            return "everywhere"
        return (
            f"'{self.source.name}'"
            if self.region == ALL_REGIONS
            else f"region {self.region} of '{self.source.name}'"
        )

    @property
    def sweep_title(self) -> str:
        """Description of a sweep with this request; a sweep covers all blocks and both images."""
        gates = describe_gates(
            {name: self.where.get(name) for name in ("part", "layer", "direction")}
        )
        null = "each with its random counterpart" if self.null else "without random counterparts"
        where = self.within if self.source is None else f"in {self.within}"
        return f"{PAST_TENSE[self.action]} in turn: every expert of {gates}, {where}, {null}"

    def mask(self, registration: Registration) -> Volume | None:
        """The region in the space of the fixed image: nonzero is inside; None for everywhere.

        Raises
        ------
        InputError
            If the region is empty.
        """
        if self.source is None:
            return None
        labels = self.source.volume(registration)
        inside = labels.values != 0 if self.region == ALL_REGIONS else labels.values == self.region
        if not inside.any():
            raise InputError(
                f"There is no voxel in {self.within}. Draw or pick a region inside the fixed image."
            )
        return Volume(inside.astype(np.uint8), labels.grid, self.within, is_labels=True)

    def change(self, registration: Registration) -> Intervention | Control:
        """The control, or the intervention with its region.

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
        self.expert.setToolTip("The expert, with its share of the selections of the picked gates")
        self.region.setToolTip(
            "The region: cells with at least half of their volume in it are changed"
        )
        self.where = GatePicker("layer", "block", "image", "direction")
        self.source = RegionSource(viewer, everywhere=True)
        self.null = QCheckBox("Compare with random experts")
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
    def request(self) -> ChangeRequest | None:
        """The request, or None if the form has no expert."""
        expert, action = self.expert.currentData(), self.action.currentData()
        if expert is None:  # the part has no experts, or there is no registration
            return None
        if action not in ACTIONS:
            alone = expert if self._needs_expert and expert != MOST_CHOSEN else None
            return ChangeRequest(
                action, alone, self.where.where, None, ALL_REGIONS, False, self.passes.currentData()
            )
        region = int(self.region.currentData() or ALL_REGIONS)
        picked = self.source.source
        return ChangeRequest(
            action, expert, self.where.where, picked, region, self.null.isChecked()
        )

    @property
    def _needs_expert(self) -> bool:
        """Whether the action is on one expert; of the controls, only some in the decoder are."""
        action = self.action.currentData()
        return action in ACTIONS or (
            action in SINGLE_EXPERT_CONTROLS and self.where.part.currentData() == "decoder"
        )

    def offer(self, registration: Registration | None, find: Any) -> None:
        """Offer the gates and regions of a registration; `find` returns it later, so that no
        reference is kept here.
        """
        self._registration = find
        self.where.offer(registration)
        self.source.offer(registration)
        self._offer_actions()

    def _offer_actions(self) -> None:
        """Offer silence, force and the controls of the picked part."""
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
        names = (
            [] if registration is None else expert_titles(registration, where["part"] or "", count)
        )
        share = None if registration is None else selection_shares(registration, **where)
        if share is not None and len(share) == count:
            names = [f"{name}: {100 * part:.1f} %" for name, part in zip(names, share, strict=True)]
        often = (
            {MOST_CHOSEN: "the one chosen most often"}
            if action in SINGLE_EXPERT_CONTROLS and names
            else {}
        )
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
                names = {}  # nothing drawn so far: 'Run' reports it
        fill(self.region, {ALL_REGIONS: "all of them", **names})
        self._show(
            self._below, self.region, source is not None and self.action.currentData() in ACTIONS
        )
        self.changed.emit()
