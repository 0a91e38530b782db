"""The Register panel: two layers in, the layers of a registration out."""

from __future__ import annotations

import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from napari.settings import get_plugin_settings
from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QFrame,
    QLabel,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin.controls.forms import arranged, scrolled
from napari_shmoareg.plugin.controls.pickers import PairPicker
from napari_shmoareg.plugin.controls.progress import SHORTCUT, PanelState, ProgressRow
from napari_shmoareg.plugin.controls.tables import STAGES, cautions_of, dice_fall, labels_in
from napari_shmoareg.plugin.controls.tasks import Libraries, Task, preload, single_shot
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.register.form import SettingsForm, from_words, to_words
from napari_shmoareg.plugin.register.job import (
    Inputs,
    LayerAdder,
    LayerRegistration,
    RegistrationResult,
)
from napari_shmoareg.plugin.registrations import next_number, pair_title, unwrap
from napari_shmoareg.plugin.viewer import look_like_caution
from napari_shmoareg.settings import RegistrationRequest

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


PLUGIN, PAGE = "shmoareg", "registration"  # of the manifest's configurations


def recall() -> RegistrationRequest:
    """What was chosen last; the defaults at the first start."""
    kept = _kept()
    return from_words({} if kept is None else {name: getattr(kept, name) for name in _names(kept)})


def remember(settings: RegistrationRequest) -> None:
    """Keep for the next start.  Each change is written at once; one that cannot be is told."""
    kept = _kept()
    if kept is None:
        return
    try:
        for name, word in to_words(settings).items():
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
        arranged(QVBoxLayout(self), self.text, self.reasons, self.why)
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


def summary(number: int, registration: Registration) -> str:
    """Of a result what a person should see first: how alike the images became, and what to mind."""
    report = registration.report
    seconds = sum(report["seconds"].values())
    lines = [f"#{number} {pair_title(registration)}: done in {seconds:.0f} s."]
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


def reasons(registration: Registration) -> str:
    """What was decided, and the seconds of each phase."""
    report = registration.report
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


EVERY = 100  # ms between two looks whether the libraries are loaded
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
        viewer = unwrap(napari_viewer)
        self._viewer = weakref.ref(viewer)
        self._inputs: Inputs = {}
        self._result: RegistrationResult | None = None  # whose layers are being added
        self._doing = PanelState.nothing
        self._libraries: Future[Libraries] | None = None
        self.pickers, self.form = PairPicker(viewer), SettingsForm(recall())
        self.progress, self.told = ProgressRow(), MessageBox()
        self._lay_out()
        self.task, self._adder = Task(self, "a registration"), LayerAdder(self)
        self._soon = single_shot(self, AFTER, self._preload)
        self._looks = QTimer(self)
        self._looks.setInterval(EVERY)
        self._looks.timeout.connect(self._offer)
        self.task.progressed.connect(self.progress.show_progress)
        self.task.finished.connect(self._add)
        self.task.failed.connect(self._fail)
        self.task.cancelled.connect(self._cancelled)
        self._adder.progressed.connect(lambda *at: self.progress.show_progress(*at, ready=False))
        self._adder.finished.connect(self._added)
        self._adder.failed.connect(self._fail)
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
        closed = event is not None and event.type() == QEvent.Type.ParentChange
        if closed and self.parent() is None:
            self.task.drop()
            self._adder.cancel()
            self._show(PanelState.nothing)

    def _lay_out(self) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setContentsMargins(0, 0, 6, 0)
        for widget in (self.pickers, _line(), self.form, self.told):
            column.addWidget(widget)
        column.addStretch()
        self._scroll = scrolled(inner)
        layout = QVBoxLayout(self)
        layout.addWidget(self._scroll, 1)
        layout.addWidget(self.progress)
        self.setMinimumWidth(WIDTH)

    def _press(self) -> None:
        """The button: start or cancel."""
        if not self.task.busy:
            self._start()
            return
        self.task.cancel()
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
        number = next_number(viewer)
        self.task.name = f"registration #{number}"
        self.progress.begin()
        self.told.say("")
        self._show(PanelState.registering)
        self.task.start(LayerRegistration(picked, self.form.settings, number))

    def _cancelled(self) -> None:
        self.told.say(CANCELLED)
        self._show(PanelState.nothing)
        show_info(CANCELLED)

    def _add(self, result: RegistrationResult) -> None:
        """It is registered: begin to add its layers."""
        viewer = self._viewer()
        if self._doing is PanelState.cancelling:  # it was over before it heard of that
            self._cancelled()
        elif viewer is not None:
            self._result = result
            self._show(PanelState.adding)
            self._adder.start(viewer, result, self._inputs)

    def _fail(self, text: str) -> None:
        self._result = None
        self.told.say(text)
        self._scroll.ensureWidgetVisible(self.told)
        self._show(PanelState.nothing)
        show_error(text)

    def _added(self, number: int) -> None:
        """All layers are there: say how it went."""
        result, self._result = self._result, None
        if result is None:
            return
        cautions = cautions_of(result.registration.report)
        notes = [*result.notes, *cautions]
        text = "\n\n".join([summary(number, result.registration), *notes])
        self.told.say(text, reasons(result.registration), caution=bool(cautions))
        self._scroll.ensureWidgetVisible(self.told)
        self._show(PanelState.nothing)
        if notes:
            show_warning("\n\n".join(notes))
        self.registered.emit(number)

    def _preload(self) -> None:
        self._libraries = preload()
        self._looks.start()

    def _offer(self) -> None:
        """Offer weights and devices once the libraries are loaded; if they cannot be, the
        registration will say why.
        """
        if self._libraries is not None and self._libraries.done():
            self._looks.stop()
            if self._libraries.exception() is None:
                self.form.offer(*self._libraries.result())

    def _show(self, doing: PanelState | None = None) -> None:
        """Bring the button up to date; with two images to register begin to load what that
        needs.
        """
        self._doing = self._doing if doing is None else doing
        missing = self.pickers.missing
        self.progress.show_doing(self._doing, missing)
        for widget in (self.pickers, self.form):
            widget.setEnabled(self._doing is PanelState.nothing)
        if missing is None and self._libraries is None and not self._soon.isActive():
            self._soon.start()

    def _keep(self) -> None:
        remember(self.form.settings)


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFrameShadow(QFrame.Shadow.Sunken)
    return line
