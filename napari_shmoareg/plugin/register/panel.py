"""The Register panel: two layers in, the layers of a registration out."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from napari.settings import get_plugin_settings
from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QFrame,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin.controls.errors import explain, in_words_of_the_form
from napari_shmoareg.plugin.controls.pickers import PairPicker
from napari_shmoareg.plugin.controls.progress import SHORTCUT, PanelState, ProgressRow
from napari_shmoareg.plugin.controls.tables import STAGES, cautions_of, dice_fall, labels_in
from napari_shmoareg.plugin.controls.tasks import WarmUp
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.register.form import SettingsForm
from napari_shmoareg.plugin.register.job import Arrival, Inputs, Job, Outcome
from napari_shmoareg.plugin.scenes import itself, next_number
from napari_shmoareg.plugin.viewer import look_like_caution
from napari_shmoareg.settings import Settings

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


PLUGIN, PAGE = "shmoareg", "registration"  # of the manifest's configurations


def recall() -> Settings:
    """What was chosen last; the defaults at the first start."""
    kept = _kept()
    return (
        Settings()
        if kept is None
        else Settings.from_words({name: getattr(kept, name) for name in _names(kept)})
    )


def remember(settings: Settings) -> None:
    """Keep for the next start.  Each change is written at once; one that cannot be is told."""
    kept = _kept()
    if kept is None:
        return
    try:
        for name, word in settings.to_words().items():
            if name in _names(kept) and getattr(kept, name) != word:
                setattr(kept, name, word)
    except OSError as error:
        show_warning(f"The settings could not be kept for the next start of napari: {error}.")


def _kept() -> Any:
    """The page of the preferences; None where this plugin is not installed or is switched off."""
    return getattr(get_plugin_settings().get(PLUGIN), PAGE, None)


def _names(kept: Any) -> set[str]:
    return set(type(kept).model_fields)


class MessageBox(QWidget):
    """The last error, or notes on the last result, to be selected and copied; below, why it is as
    it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text, self.why = _text(), _text()
        self.reasons = QToolButton()
        self.reasons.setText("Why")
        self.reasons.setCheckable(True)
        self.reasons.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.reasons.setToolTip("What was decided for you, and why; and how long each phase took.")
        self.reasons.toggled.connect(self._open)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.text, self.reasons, self.why):
            layout.addWidget(widget)
        self.say("")

    def say(self, text: str, why: str = "", *, caution: bool = False) -> None:
        """Show a text, as a caution if it is one; the reasons are there to be opened, if there are
        any.
        """
        self.text.setText(text)
        look_like_caution(self.text, caution)
        self.why.setText(why)
        self.text.setVisible(bool(text))
        self.reasons.setVisible(bool(why))
        self._open(self.reasons.isChecked())

    def _open(self, is_open: bool) -> None:
        self.reasons.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.why.setVisible(is_open and bool(self.why.text()))


def result(number: int, scene: Registration) -> str:
    """Of a result what a person should see first: how alike the images became, and what to mind."""
    report = scene.report
    seconds = sum(report["seconds"].values())
    lines = [
        f"#{number} {scene.pair.moving.name} onto {scene.pair.fixed.name}: done in {seconds:.0f} s."
    ]
    before, after = (report["similarity"][stage]["ncc"] for stage in ("before", "after"))
    if before is not None and after is not None:
        lines.append(f"Correlation {before:.2f} before, {after:.2f} after.")
    if report["dice"] is not None:
        means = [report["dice"][stage]["mean"] for stage in STAGES]
        if None not in means:
            fell = " ↓" if dice_fall(report) is not None else ""
            before, affine, after = means
            lines.append(
                f"Dice of {labels_in(report)} {before:.2f} before, {affine:.2f} after the affine, "
                f"{after:.2f} after{fell}."
            )
    return " ".join(lines)


def reasons(scene: Registration) -> str:
    """What was decided, and the seconds of each phase."""
    report = scene.report
    lines = [f"{name.capitalize()}: {why}" for name, why in report["choices"].items()]
    lines.append(
        "Seconds: "
        + ", ".join(f"{name} {took:.1f}" for name, took in report["seconds"].items())
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


EVERY = 100  # ms between two looks at the worker
AFTER = 500  # ms from a complete pair to the loading of what it needs: the viewer draws first
WIDTH = 300
CANCELLED = "The registration was cancelled; nothing was added."


class RegisterPanel(Panel):
    """Pick two images, choose how, register; the result is laid over the fixed image.

    Parameters
    ----------
    napari_viewer : Viewer

    Attributes
    ----------
    registered : Signal(int)
        A registration of this number has all its layers in the viewer.
    """

    kind = "Register"
    registered = Signal(int)

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        viewer = itself(napari_viewer)
        self._viewer = weakref.ref(viewer)
        self._job: Job | None = None
        self._worker: Any = None
        self._inputs: Inputs = {}
        self._outcome: Outcome | None = None  # whose layers are being added
        self._doing = PanelState.nothing
        self._warm = WarmUp()
        self._closed = closed = threading.Event()
        # not `destroyed`: a slot can be collected before it is called
        weakref.finalize(self, closed.set)
        self.pickers, self.form = PairPicker(viewer), SettingsForm(recall())
        self.progress, self.told = ProgressRow(), MessageBox()
        self._lay_out()
        self._looks, self._soon, self._arrival = QTimer(self), QTimer(self), Arrival(self)
        self._looks.setInterval(EVERY)
        self._looks.timeout.connect(self._look)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._warm.start)
        self._arrival.came.connect(self.progress.show_status)
        self._arrival.arrived.connect(self._arrived)
        self._arrival.failed.connect(self._fail)
        self.pickers.changed.connect(self._show)
        self.form.changed.connect(self._keep)
        self.progress.button.clicked.connect(self._press)
        shortcut = QShortcut(QKeySequence(SHORTCUT), self)
        shortcut.activated.connect(self._start)
        self._show()

    def reset_choices(self, event: Any = None) -> None:
        """Offer the layers that are open now; napari calls it when they change."""
        self.pickers.refresh()

    def changeEvent(self, event: QEvent | None) -> None:
        """A dock that is closed lets its panel go, which then lives on for as long as Python
        likes.
        """
        super().changeEvent(event)
        if event is None or event.type() != QEvent.Type.ParentChange:
            return
        if self.parent() is not None:
            self._closed.clear()
            return
        self._closed.set()
        self._arrival.end()

    def _lay_out(self) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setContentsMargins(0, 0, 6, 0)
        for widget in (self.pickers, _line(), self.form, self.told):
            column.addWidget(widget)
        column.addStretch()
        self._scroll = QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QFrame.Shape.NoFrame)
        self._scroll.setWidget(inner)
        layout = QVBoxLayout(self)
        layout.addWidget(self._scroll, 1)
        layout.addWidget(self.progress)
        self.setMinimumWidth(WIDTH)

    def _press(self) -> None:
        """The button: start or cancel."""
        if self._job is None:
            self._start()
            return
        self._job.cancel()
        self._show(PanelState.cancelling)

    def _start(self) -> None:
        viewer = self._viewer()
        if (
            viewer is None
            or self._doing is not PanelState.nothing
            or self.pickers.missing is not None
        ):
            return
        picked = {role: layer for role, layer in self.pickers.pair.items() if layer is not None}
        self._inputs = {role: weakref.ref(layer) for role, layer in picked.items()}
        self._job = job = Job(picked, self.form.settings, next_number(viewer), self._warm.wait)
        self._worker = create_worker(job, _start_thread=False, _ignore_errors=True)
        self._worker.returned.connect(self._finish)
        self._worker.errored.connect(self._broke)
        worker, closed = weakref.ref(self._worker), self._closed
        # the panel or the window was closed
        job.cancel_when(lambda: closed.is_set() or getattr(worker(), "abort_requested", False))
        self.told.say("")
        self._show(PanelState.registering)
        self._looks.start()
        self._worker.start()

    def _finish(self, outcome: Outcome) -> None:
        """The worker is done: begin to add, or say why not."""
        closed = self._closed.is_set() or (
            self._worker is not None and self._worker.abort_requested
        )
        self._job = self._worker = None
        viewer = self._viewer()
        if closed or viewer is None:
            return
        if outcome.error:
            self._fail(outcome.error)
        elif outcome.scene is None:
            self.told.say(CANCELLED)
            self._show(PanelState.nothing)
            show_info(CANCELLED)
        else:
            self._outcome = outcome
            self._show(PanelState.adding)
            self._arrival.begin(viewer, outcome, self._inputs)

    def _broke(self, error: Exception) -> None:
        """The worker ended by an error that no one foresaw."""
        if not self._closed.is_set():
            self._job = self._worker = None
            self._fail(explain(error))

    def _fail(self, text: str) -> None:
        self._outcome = None
        self.told.say(text)
        self._scroll.ensureWidgetVisible(self.told)
        self._show(PanelState.nothing)
        show_error(text)

    def _arrived(self, number: int) -> None:
        """All layers are there: say what came of it."""
        outcome, self._outcome = self._outcome, None
        if outcome is None or outcome.scene is None:
            return
        cautions = [in_words_of_the_form(text) for text in cautions_of(outcome.scene.report)]
        notes = [*outcome.notes, *cautions]
        text = "\n\n".join([result(number, outcome.scene), *notes])
        self.told.say(text, reasons(outcome.scene), caution=bool(cautions))
        self._scroll.ensureWidgetVisible(self.told)
        self._show(PanelState.nothing)
        if notes:
            show_warning("\n\n".join(notes))
        self.registered.emit(number)

    def _look(self) -> None:
        """At the worker and at the warming up, from time to time."""
        if self._job is not None:
            self.progress.show_status(self._job.status)
        if self._warm.over:
            if self._warm.ready is not None:
                self.form.offer(*self._warm.ready)
            if self._job is None:
                self._looks.stop()

    def _show(self, doing: PanelState | None = None) -> None:
        """Bring the button up to date; with two images to register begin to load what that
        needs.
        """
        self._doing = self._doing if doing is None else doing
        missing = self.pickers.missing
        self.progress.show_doing(self._doing, missing)
        for widget in (self.pickers, self.form):
            widget.setEnabled(self._doing is PanelState.nothing)
        if missing is None and not self._warm.begun and not self._soon.isActive():
            self._soon.start(AFTER)
            self._looks.start()

    def _keep(self) -> None:
        remember(self.form.settings)


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFrameShadow(QFrame.Shadow.Sunken)
    return line
