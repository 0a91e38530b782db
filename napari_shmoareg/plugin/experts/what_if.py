"""The tab What if of the Experts panel: silence or force experts and run the network again."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin.controls.forms import Section, arranged, fill, weakly, wrapped
from napari_shmoareg.plugin.controls.legend import Ramp
from napari_shmoareg.plugin.controls.progress import ProgressBox
from napari_shmoareg.plugin.controls.tables import origin_of
from napari_shmoareg.plugin.controls.tasks import CANCEL, Task
from napari_shmoareg.plugin.experts.gate_picker import GatePicker
from napari_shmoareg.plugin.experts.region_source import RegionSource
from napari_shmoareg.plugin.experts.regions import expert_titles, selection_shares
from napari_shmoareg.plugin.experts.what_if_results import SweepBox, WhatIfResult, other_weights
from napari_shmoareg.plugin.experts.what_if_work import (
    ACTIONS,
    ALL_REGIONS,
    CHOOSE_WEIGHTS,
    MOVED,
    Answer,
    ChangeRequest,
    ExperimentCache,
    RegistrationRef,
    Sweep,
    answer,
    effect_layer,
    show_effect,
    show_expert_of,
    sweep,
)

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


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


class WhatIfForm(QWidget):
    """The rows of the form.

    Parameters
    ----------
    viewer : Viewer
    registration : callable
        Returns the current registration or None, so that no reference is kept here.
    """

    changed = Signal()

    def __init__(self, viewer: Viewer, registration: RegistrationRef) -> None:
        super().__init__()
        self._registration = registration
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

    def offer(self) -> None:
        """Offer the gates and regions of the registration."""
        self.where.offer(self._registration())
        self.source.offer(self._registration())
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
        registration, action = self._registration(), self.action.currentData()
        names: list[str] = []
        if registration is not None:
            where, count = self.where.where, self.where.num_experts
            names = expert_titles(registration, where["part"] or "", count)
            share = selection_shares(registration, **where)
            if share is not None and len(share) == count:
                named = zip(names, share, strict=True)
                names = [f"{name}: {100 * part:.1f} %" for name, part in named]
        often = action in SINGLE_EXPERT_CONTROLS and names
        most: dict[int, str] = {MOST_CHOSEN: "the one chosen most often"} if often else {}
        fill(self.expert, most | dict(enumerate(names)))
        control = action not in ACTIONS
        self._below.setRowVisible(self.expert, self._needs_expert)
        self._top.setRowVisible(self.passes, control)
        self._below.setRowVisible(self.source, not control)
        self.null.setVisible(not control)
        self._offer_regions()

    def _offer_regions(self) -> None:
        fill(self.region, {ALL_REGIONS: "all of them"} | self.source.names(self._registration()))
        within = self.source.source is not None and self.action.currentData() in ACTIONS
        self._below.setRowVisible(self.region, within)
        self.changed.emit()


RUN, SWEEP = "Run", "Importance of all experts"
CAPTION = (
    "A load is not a contribution: only an intervention like this shows what depends on an expert,"
    " and only for this pair. Silence and force change only the last pass of the network, a control"
    " all passes or the last. Both results are without the refinement on the pair."
)
FIRST = (
    "The first time, the network is also loaded and run unchanged. This is cached for one"
    " registration only"
)


class WhatIfView(Section):
    """Interventions on one registration, one at a time or on all experts; results are cached while
    it is open.

    Parameters
    ----------
    viewer : Viewer
    """

    answered = Signal()  # the tables and layers of a change or a sweep are shown

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("What if", viewer)
        self.cache: ExperimentCache = weakref.WeakKeyDictionary()
        self.answers: weakref.WeakKeyDictionary[Registration, Answer] = weakref.WeakKeyDictionary()
        self.sweeps: weakref.WeakKeyDictionary[Registration, Sweep] = weakref.WeakKeyDictionary()
        self._action, self._last = "", RUN  # RUN, SWEEP or ""
        self._running_for = weakly(None)  # of the current or last run
        self._shown_for = weakly(None)  # shown last
        self.form = WhatIfForm(viewer, lambda: self.registration)
        self.result, self.ramp = WhatIfResult(), Ramp()
        self.run, self.sweep, self.choose = (
            QPushButton(RUN),
            QPushButton(SWEEP),
            QPushButton("Choose weights…"),
        )
        self.run.setToolTip(f"Run the network again with this change: seconds to a minute. {FIRST}")
        self.sweep.setToolTip(
            "Change every expert of the part, layer and direction above in turn, within the region"
            " above, and list the effects. One run of the network per expert, two with random"
            " experts: seconds to a minute each. Cancel keeps the listed rows. Only for silence and"
            f" force. {FIRST}"
        )
        self.choose.setToolTip(
            "Choose the .safetensors file of this registration, and run again with it"
        )
        self.progress, self.listed = ProgressBox(), SweepBox()
        self.bar, self.status = self.progress.bar, self.progress.message
        self.table, self.buttons = self.listed.table, self.listed.buttons
        caption = QLabel(CAPTION)
        wrapped(caption, narrow=True)
        row = arranged(QHBoxLayout(), self.run, self.sweep)
        self.column.addWidget(self.form)
        self.column.addLayout(row)
        self.boxes = {RUN: _box(self.ramp, self.result), SWEEP: self.listed}
        for widget in (self.progress, self.choose, *self.boxes.values(), caption):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self.task = Task(self, "a changed network")
        self.task.progressed.connect(self._on_progress)
        self.task.finished.connect(self._on_finished)
        self.task.failed.connect(self._on_failed)
        self.task.cancelled.connect(self._on_cancelled)
        self.form.changed.connect(self._update_buttons)
        self.run.clicked.connect(lambda: self._toggle(RUN))
        self.sweep.clicked.connect(lambda: self._toggle(SWEEP))
        self.choose.clicked.connect(self._choose)
        self.table.cellClicked.connect(lambda *_: self._show_expert())
        self._show_results()
        self._update_buttons()

    def refresh(self) -> None:
        """Update the form for the registration, and show its results."""
        registration = self.registration
        self._cancel_if_closed()
        self.setEnabled(registration is not None or bool(self._action))
        if registration is None or self._shown_for() is not registration:
            self._shown_for = weakly(registration)
            if not self._action:
                self.status.setText("")
        if not self._action:
            self.form.offer()
        self._show_results()
        self._update_buttons()

    def _toggle(self, what: str, weights: str | None = None) -> None:
        """Start a run, or cancel the current one."""
        if self._action:
            self.task.cancel()
            self._update_buttons()
            return
        registration, request, cache = self.registration, self.form.request, self.cache
        if registration is None or request is None:
            return
        if weights is not None:
            cache.pop(registration, None)
        registration_ref = self._running_for = weakly(registration)
        self._action = self._last = what
        if what == RUN:
            self.task.name = "a changed network"
            self.task.start(
                lambda report: answer(report, registration_ref, request, cache, weights)
            )
        else:
            found = self.sweeps[registration] = Sweep(request.sweep_title, origin_of(registration))
            self.task.name = "the importance of experts"
            self.task.start(
                lambda report: sweep(report, registration_ref, request, cache, found, weights)
            )
        first = min(map(self.column.indexOf, self.boxes.values()))
        self.column.removeWidget(self.boxes[what])
        self.column.insertWidget(first, self.boxes[what])  # the last result is at the top
        self.progress.begin()
        self._show_results()
        self._update_buttons()

    def _choose(self) -> None:
        """Repeat the last run with weights that the user chooses."""
        path, _ = QFileDialog.getOpenFileName(
            self, "Weights of this registration", "", "Weights (*.safetensors)"
        )
        if path and not self._action:
            self._toggle(self._last, path)

    def _running_registration(self) -> tuple[int, Registration] | tuple[None, None]:
        """Number and registration of the current or last run; None if it was closed."""
        registration = self._running_for()
        number = self.number_of(registration)
        return (None, None) if number is None or registration is None else (number, registration)

    def _cancel_if_closed(self) -> None:
        """Cancel a run for a registration that was closed."""
        if self._action and self._running_registration()[0] is None:
            self.task.cancel()

    def _on_progress(self, title: str, done: float) -> None:
        """Show the progress and the new rows."""
        self._cancel_if_closed()
        number, registration = self._running_registration()
        of = f"Registration #{number}: " if number not in (None, self._number) else ""
        self.progress.show_progress(
            of + title, done, ready=registration is not None and registration in self.cache
        )
        if self._action == SWEEP:
            self.listed.follow()

    def _on_finished(self, value: Any) -> None:
        """Store and show the result, if the registration is still open."""
        number, registration = self._running_registration()
        message = ""
        if number is None or registration is None:
            self._report_closed()
        else:
            if isinstance(value, tuple):
                self.answers[registration], effect = value
                show_effect(self._viewer, registration, number, effect)
            if number != self._number:
                message = (
                    f"Done. The results belong to registration #{number}: select it to see them."
                )
                show_info(message)
        self._finish(message)

    def _report_closed(self) -> None:
        show_info("The registration was closed meanwhile; no result is shown.")

    def _on_failed(self, text: str) -> None:
        number, _ = self._running_registration()
        self._finish(
            text if number == self._number or number is None else f"Registration #{number}: {text}"
        )
        show_error(text)

    def _on_cancelled(self) -> None:
        number, registration = self._running_registration()
        if registration is None:
            self._report_closed()
        found = (
            self.sweeps.get(registration)
            if registration is not None and self._action == SWEEP
            else None
        )
        rows = (
            f"; the {len(found.rows)} experts listed stay"
            if found is not None and found.rows
            else ""
        )
        of = f" with registration #{number}" if rows and number != self._number else ""
        self._finish(f"Cancelled{rows}{of}.")

    def _finish(self, text: str) -> None:
        self._action = ""
        self.status.setText(text)
        self.refresh()
        self.answered.emit()

    def _update_buttons(self) -> None:
        """Update texts and states of the buttons."""
        registration = self.registration
        request = self.form.request
        ready = registration is not None and request is not None
        single = request is not None and not request.control  # on one expert, as needed for a sweep
        busy = bool(self._action)
        for button, what in ((self.run, RUN), (self.sweep, SWEEP)):
            button.setText(CANCEL if self._action == what else what)
            button.setEnabled(self._action == what if busy else ready and (single or what == RUN))
        self.form.setEnabled(not busy)
        self.progress.update_visibility(busy=busy)
        last: Any = (
            None
            if registration is None
            else (self.answers if self._last == RUN else self.sweeps).get(registration)
        )
        other = last is not None and bool(other_weights(last.agreement))
        lost = (
            self.status.text().endswith(CHOOSE_WEIGHTS)
            and self._running_registration()[1] is registration
        )
        self.choose.setVisible(not busy and ready and (other or lost))

    def _show_results(self) -> None:
        """Show the results of the registration; a running sweep shows its own."""
        registration, listed = (
            self.registration,
            self._running_registration()[1] if self._action == SWEEP else self.registration,
        )
        found = None if registration is None else self.answers.get(registration)
        if found is None or found is not self.result.answer:
            self.result.show_answer(found)
        self.listed.show_sweep(None if listed is None else self.sweeps.get(listed))
        layer = effect_layer(self._viewer, self._number, MOVED) if self._number else None
        self.ramp.setVisible(layer is not None)
        if layer is not None:
            marks = ["0", "moved by the change", f"{layer.contrast_limits[1]:g} mm"]
            self.ramp.show_layer(layer, marks)

    def _show_expert(self) -> None:
        """Show the map of the row's expert, in the row's registration."""
        row = self.table.chosen()
        number, registration = (
            self._running_registration()
            if self._action == SWEEP
            else (self._number, self.registration)
        )
        if row is not None and number is not None and registration is not None:
            show_expert_of(self._viewer, number, registration, self.table.rows[row])


def _box(*widgets: QWidget) -> QWidget:
    """Widgets one below the other."""
    box = QWidget()
    arranged(QVBoxLayout(box), *widgets)
    return box
