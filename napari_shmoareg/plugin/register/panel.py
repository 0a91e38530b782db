"""The Register panel: pickers, settings, progress and messages."""

from __future__ import annotations

import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin.controls.forms import arranged, scrolled
from napari_shmoareg.plugin.controls.pickers import PairPicker
from napari_shmoareg.plugin.controls.progress import SHORTCUT, PanelState, ProgressRow
from napari_shmoareg.plugin.controls.tables import (
    STAGES,
    cautions_of,
    dice_drop,
    label_summary,
    outcome_worse,
)
from napari_shmoareg.plugin.controls.tasks import Libraries, Task, preload, single_shot
from napari_shmoareg.plugin.opening import Panel, dock, show_expert_map
from napari_shmoareg.plugin.preferences import preferences
from napari_shmoareg.plugin.register.form import SettingsForm, from_preferences, to_preferences
from napari_shmoareg.plugin.register.job import (
    Inputs,
    LayerAdder,
    LayerRegistration,
    RegistrationResult,
)
from napari_shmoareg.plugin.registrations import next_number, pair_title, unwrap
from napari_shmoareg.plugin.viewer import style_as_caution, style_as_error
from napari_shmoareg.settings import RegistrationRequest

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


PAGE = "registration"  # as in the manifest


def load_settings() -> RegistrationRequest:
    """Load the saved settings, or the defaults."""
    page = preferences(PAGE)
    return from_preferences(
        {} if page is None else {name: getattr(page, name) for name in _names(page)}
    )


def save_settings(settings: RegistrationRequest) -> None:
    """Save the settings for the next start, or show a warning."""
    page = preferences(PAGE)
    if page is None:
        return
    try:
        for name, value in to_preferences(settings).items():
            if name in _names(page) and getattr(page, name) != value:
                setattr(page, name, value)
    except OSError as error:
        show_warning(f"The settings could not be saved for the next start of napari: {error}.")


def _names(page: Any) -> set[str]:
    return set(type(page).model_fields)


class MessageBox(QWidget):
    """The last error or result as selectable text, with expandable reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.why = _text(), _text()
        self.reasons = QToolButton()
        self.reasons.setText("Why")
        self.reasons.setCheckable(True)
        self.reasons.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.reasons.setToolTip("Automatic choices with their reasons, and the time of each phase.")
        self.reasons.toggled.connect(self._open)
        arranged(QVBoxLayout(self), self.text, self.reasons, self.why)
        self.show_message("")

    def show_message(self, text: str, why: str = "", *, caution: bool = False) -> None:
        """Show a text, optionally styled as a caution, and optional reasons."""
        self.text.setText(text)
        style_as_caution(self.text, caution)
        self.why.setText(why)
        self.text.setVisible(bool(text))
        self.reasons.setVisible(bool(why))
        self._open(self.reasons.isChecked())

    def _open(self, is_open: bool) -> None:
        self.reasons.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.why.setVisible(is_open and bool(self.why.text()))


def summary(number: int, registration: Registration) -> str:
    """Summarise a result: time, correlation and Dice."""
    report = registration.report
    seconds = sum(report["seconds"].values())
    lines = [f"#{number} {pair_title(registration)}: done in {seconds:.0f} s."]
    before, after = (report["similarity"][stage]["ncc"] for stage in ("before", "after"))
    if before is not None and after is not None:
        where = " in the mask" if report.get("similarity_within") == "mask" else ""
        lines.append(f"Correlation{where} {before:.2f} before, {after:.2f} after.")
    if report["dice"] is not None:
        means = [report["dice"][stage]["mean"] for stage in STAGES]
        if None not in means:
            arrow = " ↓" if dice_drop(report) is not None else ""
            before, affine, after = means
            lines.append(
                f"Dice of {label_summary(report)} {before:.2f} before, {affine:.2f} after the"
                f" affine, {after:.2f} after{arrow}."
            )
    return " ".join(lines)


def reasons(registration: Registration) -> str:
    """List the automatic choices and the seconds of each phase."""
    report = registration.report
    lines = [f"{name.capitalize()}: {reason}" for name, reason in report["choices"].items()]
    lines.append(
        "Seconds: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["seconds"].items())
        + "."
    )
    return "\n".join(lines)


def _text() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(
        Qt.TextInteractionFlag.TextSelectableByMouse
        | Qt.TextInteractionFlag.TextSelectableByKeyboard
    )
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label


REFINE_STEPS = 60  # offered after a result that got worse


class ResultBox(QWidget):
    """What to do with a finished registration, and in red what got worse, with a remedy.

    Attributes
    ----------
    refine_requested : Signal()
    """

    refine_requested = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer, self._number = weakref.ref(viewer), 0
        self.worse = _text()
        style_as_error(self.worse)
        self.refine = QPushButton(f"Refine ({REFINE_STEPS} steps)")
        self.refine.setToolTip("Register this pair again and refine the deformation on it.")
        self.quality = QPushButton("Quality")
        self.quality.setToolTip("Compare the images and show all measures.")
        self.experts = QPushButton("Experts")
        self.save = QPushButton("Save all…")
        self.save.setToolTip("Write images, transform, maps and measures to a folder.")
        self.refine.clicked.connect(self.refine_requested)
        self.quality.clicked.connect(self._show_quality)
        self.experts.clicked.connect(self._show_experts)
        self.save.clicked.connect(lambda: self._show_quality().saving.button.click())
        row = arranged(QHBoxLayout(), self.quality, self.experts, self.save)
        arranged(QVBoxLayout(self), self.worse, self.refine, row)
        self.hide()

    def show_result(self, number: int, registration: Registration) -> None:
        """Show the actions for a result."""
        self._number, worse = number, outcome_worse(registration.report)
        self.worse.setText(worse)
        self.worse.setVisible(bool(worse))
        self.refine.setVisible(bool(worse) and not registration.report["settings"].get("refine"))
        has_experts = bool(registration.routing)
        self.experts.setEnabled(has_experts)
        self.experts.setToolTip(
            "Show which experts were chosen where."
            if has_experts
            else "This registration used no network, so it has no experts."
        )
        self.show()

    def _show_quality(self) -> Any:
        viewer = self._viewer()
        assert viewer is not None, "the viewer was deleted"
        panel = dock(viewer, "Quality")
        panel.picker.setCurrentIndex(panel.picker.findData(self._number))
        return panel

    def _show_experts(self) -> None:
        viewer = self._viewer()
        if viewer is not None:
            show_expert_map(viewer, self._number)


POLL_INTERVAL = 100  # ms between checks whether the libraries are loaded
PRELOAD_DELAY = 500  # ms from a complete pair to preloading, so that the viewer draws first
WIDTH = 300
CANCELLED = "The registration was cancelled; no layers were added."


class RegisterPanel(Panel):
    """Registers two image layers and adds the result to the viewer.

    Attributes
    ----------
    registered : Signal(int)
        Number of a registration whose layers were all added.
    """

    kind = "Register"
    registered = Signal(int)

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        viewer = unwrap(napari_viewer)
        self._viewer = weakref.ref(viewer)
        self._inputs: Inputs = {}
        self._result: RegistrationResult | None = None  # being added
        self._state = PanelState.idle
        self._libraries: Future[Libraries] | None = None
        self.pickers, self.form = PairPicker(viewer), SettingsForm(load_settings())
        self.progress, self.message_box = ProgressRow(), MessageBox()
        self.result_box = ResultBox(viewer)
        self._lay_out()
        self.task, self._adder = Task(self, "a registration"), LayerAdder(self)
        self._preload_timer = single_shot(self, PRELOAD_DELAY, self._preload)
        self._poll_timer = QTimer(self)
        self._poll_timer.setInterval(POLL_INTERVAL)
        self._poll_timer.timeout.connect(self._offer)
        self.task.progressed.connect(self.progress.show_progress)
        self.task.finished.connect(self._add_layers)
        self.task.failed.connect(self._on_failed)
        self.task.cancelled.connect(self._on_cancelled)
        self._adder.progressed.connect(lambda *at: self.progress.show_progress(*at, ready=False))
        self._adder.finished.connect(self._on_added)
        self._adder.failed.connect(self._on_failed)
        self.pickers.changed.connect(self._on_pair_changed)
        self.result_box.refine_requested.connect(self._refine)
        self.form.changed.connect(self._save_settings)
        self.progress.button.clicked.connect(self._on_clicked)
        shortcut = QShortcut(QKeySequence(SHORTCUT), self)
        shortcut.activated.connect(self._start)
        self._show()

    def reset_choices(self, event: Any = None) -> None:
        """List the open layers; called by napari when they change."""
        self.pickers.refresh()

    def changeEvent(self, event: QEvent | None) -> None:
        """Cancel when the dock is closed; the panel object may live longer."""
        super().changeEvent(event)
        closed = event is not None and event.type() == QEvent.Type.ParentChange
        if closed and self.parent() is None:
            self.task.drop()
            self._adder.cancel()
            self._show(PanelState.idle)

    def _lay_out(self) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setContentsMargins(0, 0, 6, 0)
        for widget in (self.pickers, _line(), self.form, self.message_box, self.result_box):
            column.addWidget(widget)
        column.addStretch()
        self._scroll = scrolled(inner)
        layout = QVBoxLayout(self)
        layout.addWidget(self._scroll, 1)
        layout.addWidget(self.progress)
        self.setMinimumWidth(WIDTH)

    def _on_clicked(self) -> None:
        """Start or cancel."""
        if not self.task.busy:
            self._start()
            return
        self.task.cancel()
        self._show(PanelState.cancelling)

    def _start(self) -> None:
        viewer = self._viewer()
        if viewer is None or self._state is not PanelState.idle or self.pickers.missing is not None:
            return
        picked = {role: layer for role, layer in self.pickers.pair.items() if layer is not None}
        self._inputs = {role: weakref.ref(layer) for role, layer in picked.items()}
        number = next_number(viewer)
        self.task.name = f"registration #{number}"
        self.progress.begin()
        self._clear_result()
        self._show(PanelState.registering)
        self.task.start(
            LayerRegistration(picked, self.form.settings, number, self.pickers.landmarks)
        )

    def _refine(self) -> None:
        """Register the same pair again, with refinement."""
        self.form.refine.setValue(REFINE_STEPS)
        self._start()

    def _on_pair_changed(self) -> None:
        """Remove what concerns another pair."""
        now = {role: layer for role, layer in self.pickers.pair.items() if layer is not None}
        shown = {role: ref() for role, ref in self._inputs.items()}
        if self._state is PanelState.idle and self._inputs and now != shown:
            self._inputs = {}
            self._clear_result()
        self._show()

    def _clear_result(self) -> None:
        self.message_box.show_message("")
        self.result_box.hide()

    def _on_cancelled(self) -> None:
        self.message_box.show_message(CANCELLED)
        self._show(PanelState.idle)
        show_info(CANCELLED)

    def _add_layers(self, result: RegistrationResult) -> None:
        """Start adding the layers of a result."""
        viewer = self._viewer()
        if self._state is PanelState.cancelling:  # it finished before it was cancelled
            self._on_cancelled()
        elif viewer is not None:
            self._result = result
            self._show(PanelState.adding)
            self._adder.start(viewer, result, self._inputs)

    def _on_failed(self, text: str) -> None:
        self._result = None
        self.message_box.show_message(text)
        self._scroll.ensureWidgetVisible(self.message_box)
        self._show(PanelState.idle)
        show_error(text)

    def _on_added(self, number: int) -> None:
        """Report a result with all layers added."""
        result, self._result = self._result, None
        if result is None:
            return
        cautions = cautions_of(result.registration.report)
        notes = [*result.notes, *cautions]
        text = "\n\n".join([summary(number, result.registration), *notes])
        self.message_box.show_message(text, reasons(result.registration), caution=bool(cautions))
        self.result_box.show_result(number, result.registration)
        self._scroll.ensureWidgetVisible(self.result_box)
        self._show(PanelState.idle)
        if notes:
            show_warning("\n\n".join(notes))
        self.registered.emit(number)

    def _preload(self) -> None:
        self._libraries = preload()
        self._poll_timer.start()

    def _offer(self) -> None:
        """List weights and devices once the libraries are loaded.

        The registration reports import errors.
        """
        if self._libraries is not None and self._libraries.done():
            self._poll_timer.stop()
            if self._libraries.exception() is None:
                self.form.offer(*self._libraries.result())

    def _show(self, state: PanelState | None = None) -> None:
        """Update the controls; with a complete pair, start preloading."""
        self._state = self._state if state is None else state
        missing = self.pickers.missing
        self.progress.show_state(self._state, missing)
        for widget in (self.pickers, self.form):
            widget.setEnabled(self._state is PanelState.idle)
        if missing is None and self._libraries is None and not self._preload_timer.isActive():
            self._preload_timer.start()

    def _save_settings(self) -> None:
        save_settings(self.form.settings)


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFrameShadow(QFrame.Shadow.Sunken)
    return line
