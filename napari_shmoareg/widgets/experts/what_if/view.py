"""The Experts panel: silence or force an expert, run again, and see what depended on it."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from napari_shmoareg.widgets import showing
from napari_shmoareg.widgets.experts.replaying import Errand
from napari_shmoareg.widgets.experts.section import Section
from napari_shmoareg.widgets.experts.table_buttons import TableButtons
from napari_shmoareg.widgets.experts.what_if.experimenting import Answer, Kept, answer, sweep
from napari_shmoareg.widgets.experts.what_if.form import WhatIfForm
from napari_shmoareg.widgets.experts.what_if.result import WhatIfResult
from napari_shmoareg.widgets.experts.what_if.shown import MOVED, effect_layer, show_effect
from napari_shmoareg.widgets.experts.what_if.sweep_table import SweepTable
from napari_shmoareg.widgets.legend import Ramp
from napari_shmoareg.widgets.register.job import Status
from napari_shmoareg.widgets.register.progress_row import described
from napari_shmoareg.widgets.scenes import scenes

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.importance import ImportanceRow
    from napari_shmoareg.analysis.scene import Scene

FINENESS = 1000  # steps of the bar
RUN, SWEEP, CANCEL = "Run", "Importance of all experts", "Cancel"
CAPTION = (
    "A load is not a contribution: only a change like this shows what depends on an expert, and only for this pair. "
    "The network's last pass is changed and nothing else; a refinement on the pair is left out on both sides."
)


class WhatIfView(Section):
    """Interventions on one registration, one at a time or on all experts.

    Parameters
    ----------
    viewer : Viewer
    """

    answered = Signal()  # the tables and layers of a change are there, or those of a sweep

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("What if", viewer)
        self.kept: Kept = weakref.WeakKeyDictionary()
        self._rows: list[ImportanceRow] = []
        self._doing, self._began = "", 0.0  # RUN, SWEEP, or nothing
        self._about: weakref.ref[Scene] | None = None  # whose figures are shown
        self.form, self.result, self.ramp = WhatIfForm(viewer), WhatIfResult(), Ramp()
        self.run, self.sweep = QPushButton(RUN), QPushButton(SWEEP)
        self.run.setToolTip("Run the network again with this change; takes some seconds, more the first time")
        self.sweep.setToolTip(
            "Change every expert of the part, layer and direction above in turn, within the region above, and list "
            "what that did. One run of the network per expert, two with random experts; Cancel keeps what is listed"
        )
        self.bar, self.told = QProgressBar(), QLabel()
        self.bar.setRange(0, FINENESS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.table = SweepTable()
        self.buttons = TableButtons(lambda: [row.to_dict() for row in self._rows], "importance.csv")
        caption = QLabel(CAPTION)
        for label in (caption, self.told):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        row = QHBoxLayout()
        row.addWidget(self.run)
        row.addWidget(self.sweep)
        self.column.addWidget(self.form)
        self.column.addLayout(row)
        self.boxes = {RUN: _box(self.ramp, self.result), SWEEP: _box(self.table, self.buttons)}
        for widget in (self.told, self.bar, *self.boxes.values(), caption):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self.errand = Errand(self)
        self.errand.came.connect(self._came)
        self.errand.ready.connect(self._take)
        self.errand.failed.connect(self._fail)
        self.errand.cancelled.connect(self._cancelled)
        self.form.changed.connect(self._settle)
        self.run.clicked.connect(lambda: self._press(RUN))
        self.sweep.clicked.connect(lambda: self._press(SWEEP))
        self.table.cellClicked.connect(lambda *_: self._show_expert())
        self._forget()
        self._settle()

    @property
    def scene(self) -> Scene | None:
        """The registration that the view is about."""
        return scenes(self._viewer).get(self._number)

    def refresh(self) -> None:
        """Offer what there is of the registration; figures of another one go."""
        scene = self.scene
        self.setEnabled(scene is not None or bool(self._doing))
        if not self._doing:
            if self._about is not None and self._about() is not scene:
                self._forget()
            self.form.offer(scene, lambda: self.scene)
        self._show_ramp()
        self._settle()

    def _press(self, what: str) -> None:
        """Start, or cancel what runs."""
        if self._doing:
            self.errand.cancel()
            self._settle()
            return
        scene, wish, kept = self.scene, self.form.wish, self.kept
        if scene is None or wish is None:
            return
        self._about, self._began, self._doing = weakref.ref(scene), time.perf_counter(), what
        if what == RUN:
            self.errand.start(lambda work: answer(work, scene, wish, kept), "a changed network")
        else:
            rows: list[ImportanceRow] = []
            self._rows = rows
            self.table.show_rows([])
            self.errand.start(lambda work: sweep(work, scene, wish, kept, rows), "the importance of all experts")
        first = min(map(self.column.indexOf, self.boxes.values()))
        self.column.removeWidget(self.boxes[what])
        self.column.insertWidget(first, self.boxes[what])  # what comes last stands at the top
        self.told.setText("starting")
        self._settle()

    def _came(self, title: str, done: float) -> None:
        """Say how far it is, and list the rows that have come."""
        spent = time.perf_counter() - self._began
        left = spent * (1 - done) / done if done > 0.03 else None
        self.bar.setValue(round(FINENESS * done))
        self.told.setText(described(Status(title, done, left)))
        self._list()

    def _list(self) -> None:
        if self._doing == SWEEP:
            for row in self._rows[len(self.table.rows) :]:
                self.table.add(row)
            self._show_table()

    def _take(self, value: Any) -> None:
        """The worker is done: show what it found, if the registration is still open."""
        found = self._about() if self._about is not None else None
        number = next((n for n, scene in scenes(self._viewer).items() if scene is found), None)
        if number is None:
            show_info("The registration was closed meanwhile; nothing of the change is shown.")
        elif isinstance(value, Answer):
            self.result.show_answer(value)
            show_effect(self._viewer, value.scene, number, value.effect)
            if number != self._number:
                show_info(f"What the change moved is in the layers of registration #{number}.")
        self._end("")

    def _fail(self, text: str) -> None:
        self._end(text)
        show_error(text)

    def _cancelled(self) -> None:
        kept = f"; the {len(self._rows)} experts listed stay" if self._doing == SWEEP and self._rows else ""
        self._end(f"Cancelled{kept}.")

    def _end(self, text: str) -> None:
        self._list()
        self._doing = ""
        self.told.setText(text)
        self.refresh()
        self.answered.emit()

    def _settle(self) -> None:
        """Bring the buttons up to date."""
        ready = self.scene is not None and self.form.wish is not None
        busy = bool(self._doing)
        for button, what in ((self.run, RUN), (self.sweep, SWEEP)):
            button.setText(CANCEL if self._doing == what else what)
            button.setEnabled(self._doing == what if busy else ready)
        self.form.setEnabled(not busy)
        self.bar.setVisible(busy)
        self.told.setVisible(busy or bool(self.told.text()))

    def _forget(self) -> None:
        """Show no figures."""
        self._about, self._rows = None, []
        self.result.show_answer(None)
        self.table.show_rows([])
        self._show_table()
        self.told.setText("")
        self._show_ramp()

    def _show_table(self) -> None:
        for widget in (self.table, self.buttons):
            widget.setVisible(bool(self.table.rows))

    def _show_ramp(self) -> None:
        """What the colours of the layer mean."""
        layer = effect_layer(self._viewer, self._number, MOVED) if self._number else None
        self.ramp.setVisible(layer is not None)
        if layer is not None:
            import numpy as np

            marks = ["0", "moved by the change", f"{layer.contrast_limits[1]:g} mm"]
            self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)

    def _show_expert(self) -> None:
        """Show the map of the expert of the row."""
        row, scene = self.table.chosen(), self.scene
        if row is None or scene is None:
            return
        if row.part == "decoder":
            strides = [m.stride for m in scene.expert_maps if m.place.layer == row.layer]
            showing.show_experts(self._viewer, self._number, row.direction, strides[0] if strides else None)
            return
        counts = [load for load in scene.times_chosen if load.place.layer == row.layer]
        wanted = next((load for load in counts if load.place.image == "fixed"), counts[0] if counts else None)
        if wanted is not None:
            showing.show_head(self._viewer, self._number, wanted, row.expert)


def _box(*widgets: QWidget) -> QWidget:
    """Widgets one below the other."""
    box = QWidget()
    column = QVBoxLayout(box)
    column.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        column.addWidget(widget)
    return box
