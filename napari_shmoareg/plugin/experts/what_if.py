"""The Experts panel: silence or force an expert, run again, and see what depended on it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin.controls.forms import Section, arranged, wrapped
from napari_shmoareg.plugin.controls.legend import Ramp
from napari_shmoareg.plugin.controls.progress import ProgressBox
from napari_shmoareg.plugin.controls.tables import origin_of
from napari_shmoareg.plugin.controls.tasks import CANCEL, Task
from napari_shmoareg.plugin.experts.what_if_form import WhatIfForm
from napari_shmoareg.plugin.experts.what_if_results import SweepBox, WhatIfResult, other_weights
from napari_shmoareg.plugin.experts.what_if_work import (
    CHOOSE,
    MOVED,
    Answer,
    Kept,
    Sweep,
    answer,
    effect_layer,
    show_effect,
    show_expert_of,
    sweep,
)
from napari_shmoareg.plugin.registrations import open_registrations

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


RUN, SWEEP = "Run", "Importance of all experts"
CAPTION = (
    "A load is not a contribution: only a change like this shows what depends on an expert, and"
    " only for this pair. Silence and force change the network's last pass and nothing else, a"
    " control all passes or the last; a refinement on the pair is left out on both sides."
)
FIRST = (
    "The first time, the network is loaded and run unchanged too; it is kept for one registration,"
    " so that going to another one and back loads and runs it again"
)


class WhatIfView(Section):
    """Interventions on one registration, one at a time or on all experts; their figures stay as
    long as it is open.

    Parameters
    ----------
    viewer : Viewer
    """

    answered = Signal()  # the tables and layers of a change are there, or those of a sweep

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("What if", viewer)
        self.kept: Kept = weakref.WeakKeyDictionary()
        self.answers: weakref.WeakKeyDictionary[Registration, Answer] = weakref.WeakKeyDictionary()
        self.sweeps: weakref.WeakKeyDictionary[Registration, Sweep] = weakref.WeakKeyDictionary()
        self._doing, self._last = "", RUN  # RUN, SWEEP, or nothing
        self._about: weakref.ref[Registration] | None = None  # of what runs, or ran last
        self._at: weakref.ref[Registration] | None = None  # that the panel showed last
        self.form, self.result, self.ramp = WhatIfForm(viewer), WhatIfResult(), Ramp()
        self.run, self.sweep, self.choose = (
            QPushButton(RUN),
            QPushButton(SWEEP),
            QPushButton("Choose weights…"),
        )
        self.run.setToolTip(f"Run the network again with this change: seconds to a minute. {FIRST}")
        self.sweep.setToolTip(
            "Change every expert of the part, layer and direction above in turn, within the region"
            " above, and list what that did. One run of the network per expert, two with random"
            " experts: seconds to a minute each; Cancel keeps what is listed. For silence and"
            f" force. {FIRST}"
        )
        self.choose.setToolTip(
            "Show the .safetensors file that this registration was made with, and go on with it"
        )
        self.progress, self.listed = ProgressBox(), SweepBox()
        self.bar, self.told = self.progress.bar, self.progress.message
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
        self.task.progressed.connect(self._came)
        self.task.finished.connect(self._take)
        self.task.failed.connect(self._fail)
        self.task.cancelled.connect(self._cancelled)
        self.form.changed.connect(self._settle)
        self.run.clicked.connect(lambda: self._press(RUN))
        self.sweep.clicked.connect(lambda: self._press(SWEEP))
        self.choose.clicked.connect(self._choose)
        self.table.cellClicked.connect(lambda *_: self._show_expert())
        self._show_kept()
        self._settle()

    @property
    def registration(self) -> Registration | None:
        """The registration that the view is about."""
        return open_registrations(self._viewer).get(self._number)

    def refresh(self) -> None:
        """Offer what there is of the registration, and show the figures that it has."""
        registration = self.registration
        self._watch()
        self.setEnabled(registration is not None or bool(self._doing))
        if registration is None or self._at is None or self._at() is not registration:
            self._at = None if registration is None else weakref.ref(registration)
            if not self._doing:
                self.told.setText("")
        if not self._doing:
            self.form.offer(registration, lambda: self.registration)
        self._show_kept()
        self._settle()

    def _press(self, what: str, weights: str | None = None) -> None:
        """Start, or cancel what runs."""
        if self._doing:
            self.task.cancel()
            self._settle()
            return
        registration, wish, kept = self.registration, self.form.wish, self.kept
        if registration is None or wish is None:
            return
        if weights is not None:
            kept.pop(registration, None)
        held = self._about = weakref.ref(registration)
        self._doing = self._last = what
        if what == RUN:
            self.task.name = "a changed network"
            self.task.start(lambda report: answer(report, held, wish, kept, weights))
        else:
            found = self.sweeps[registration] = Sweep(wish.of_all, origin_of(registration))
            self.task.name = "the importance of experts"
            self.task.start(lambda report: sweep(report, held, wish, kept, found, weights))
        first = min(map(self.column.indexOf, self.boxes.values()))
        self.column.removeWidget(self.boxes[what])
        self.column.insertWidget(first, self.boxes[what])  # what comes last stands at the top
        self.progress.begin()
        self._show_kept()
        self._settle()

    def _choose(self) -> None:
        """Run once more what was run last, with the weights that a person shows."""
        path, _ = QFileDialog.getOpenFileName(
            self, "Weights of this registration", "", "Weights (*.safetensors)"
        )
        if path and not self._doing:
            self._press(self._last, path)

    def _running(self) -> tuple[int, Registration] | tuple[None, None]:
        """Number and registration of what runs, or ran last; None where it was closed."""
        about = None if self._about is None else self._about()
        return next(
            (
                (n, registration)
                for n, registration in open_registrations(self._viewer).items()
                if registration is about
            ),
            (None, None),
        )

    def _watch(self) -> None:
        """End what runs for a registration that was closed."""
        if self._doing and self._running()[0] is None:
            self.task.cancel()

    def _came(self, title: str, done: float) -> None:
        """Say how far it is, and list the rows that have come."""
        self._watch()
        number, registration = self._running()
        of = f"Registration #{number}: " if number not in (None, self._number) else ""
        self.progress.show_progress(
            of + title, done, ready=registration is not None and registration in self.kept
        )
        if self._doing == SWEEP:
            self.listed.follow()

    def _take(self, value: Any) -> None:
        """The worker is done: keep what it found, if the registration is still open."""
        number, registration = self._running()
        said = ""
        if number is None or registration is None:
            self._gone()
        else:
            if isinstance(value, tuple):
                self.answers[registration], effect = value
                show_effect(self._viewer, registration, number, effect)
            if number != self._number:
                said = (
                    f"Done. The figures are those of registration #{number}: pick it to see them."
                )
                show_info(said)
        self._end(said)

    def _gone(self) -> None:
        show_info("The registration was closed meanwhile; nothing of the change is shown.")

    def _fail(self, text: str) -> None:
        number, _ = self._running()
        self._end(
            text if number == self._number or number is None else f"Registration #{number}: {text}"
        )
        show_error(text)

    def _cancelled(self) -> None:
        number, registration = self._running()
        if registration is None:
            self._gone()
        found = (
            self.sweeps.get(registration)
            if registration is not None and self._doing == SWEEP
            else None
        )
        kept = (
            f"; the {len(found.rows)} experts listed stay"
            if found is not None and found.rows
            else ""
        )
        of = f" with registration #{number}" if kept and number != self._number else ""
        self._end(f"Cancelled{kept}{of}.")

    def _end(self, text: str) -> None:
        self._doing = ""
        self.told.setText(text)
        self.refresh()
        self.answered.emit()

    def _settle(self) -> None:
        """Bring the buttons up to date."""
        registration = self.registration
        wish = self.form.wish
        ready = registration is not None and wish is not None
        single = wish is not None and not wish.control  # about one expert, as a sweep is about each
        busy = bool(self._doing)
        for button, what in ((self.run, RUN), (self.sweep, SWEEP)):
            button.setText(CANCEL if self._doing == what else what)
            button.setEnabled(self._doing == what if busy else ready and (single or what == RUN))
        self.form.setEnabled(not busy)
        self.progress.update_visibility(busy=busy)
        last: Any = (
            None
            if registration is None
            else (self.answers if self._last == RUN else self.sweeps).get(registration)
        )
        other = last is not None and bool(other_weights(last.alike))
        lost = self.told.text().endswith(CHOOSE) and self._running()[1] is registration
        self.choose.setVisible(not busy and ready and (other or lost))

    def _show_kept(self) -> None:
        """Show the figures of the registration; a sweep that runs shows its own."""
        registration, listed = (
            self.registration,
            self._running()[1] if self._doing == SWEEP else self.registration,
        )
        found = None if registration is None else self.answers.get(registration)
        if found is None or found is not self.result.answer:
            self.result.show_answer(found)
        self.listed.show_sweep(None if listed is None else self.sweeps.get(listed))
        layer = effect_layer(self._viewer, self._number, MOVED) if self._number else None
        self.ramp.setVisible(layer is not None)
        if layer is not None:
            import numpy as np

            marks = ["0", "moved by the change", f"{layer.contrast_limits[1]:g} mm"]
            # what its colours mean
            self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)

    def _show_expert(self) -> None:
        """Show the map of the expert of the row, in the registration that the row is of."""
        row = self.table.chosen()
        number, registration = (
            self._running() if self._doing == SWEEP else (self._number, self.registration)
        )
        if row is not None and number is not None and registration is not None:
            show_expert_of(self._viewer, number, registration, row)


def _box(*widgets: QWidget) -> QWidget:
    """Widgets one below the other."""
    box = QWidget()
    arranged(QVBoxLayout(box), *widgets)
    return box
