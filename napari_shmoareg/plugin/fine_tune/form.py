"""Training settings as a form, generated from their classes."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible
from superqt.utils import signals_blocked

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import NO_NETWORK
from napari_shmoareg.plugin.controls.forms import WeightsCombo, captioned, combo_of
from napari_shmoareg.settings import Device, RegistrationSettings, help_texts, own_fields_first

WRONG = "#e8590c"  # of the border of a value that is refused; seen on light and on dark
KINDS = {int: "A whole number", float: "A number"}


class Field(QWidget):
    """Asks for one value.

    Parameters
    ----------
    kind : type
        int, float, str, bool, a Literal of words, or one of them or None.
    default
        To begin with.
    check : callable
        Raises `InputError` for a value that is refused.
    """

    changed = Signal()

    def __init__(self, kind: Any, default: Any, check: Callable[[Any], object]) -> None:
        super().__init__()
        self._kind, self._or_none = _without_none(kind)
        self._check = check
        self.control: QWidget
        if self._kind is bool:
            box = QCheckBox()
            box.toggled.connect(self._show)
            self.control = box
        elif get_origin(self._kind) is Literal:
            combo = QComboBox()
            combo.addItems([str(word) for word in get_args(self._kind)])
            combo.currentIndexChanged.connect(self._show)
            self.control = combo
        else:
            line = QLineEdit()
            line.setPlaceholderText("none" if self._or_none else "")
            line.textChanged.connect(self._show)
            self.control = line
        self.wrong = QLabel()
        self.wrong.setWordWrap(True)
        self.wrong.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(1)
        column.addWidget(self.control)
        column.addWidget(self.wrong)
        self.value = default

    @property
    def value(self) -> Any:
        """What it says.

        Raises
        ------
        InputError
            If that is no value of its kind, or is refused.
        """
        value = self._read()
        self._check(value)
        return value

    @value.setter
    def value(self, value: Any) -> None:
        if isinstance(self.control, QCheckBox):
            self.control.setChecked(bool(value))
        elif isinstance(self.control, QComboBox):
            self.control.setCurrentText(str(value))
        elif isinstance(self.control, QLineEdit):
            self.control.setText("" if value is None else _written(value))
        self._show()

    @property
    def error(self) -> str | None:
        """Why its value is refused; None if it is not."""
        try:
            _ = self.value
        except InputError as error:
            return str(error)
        return None

    def _read(self) -> Any:
        if isinstance(self.control, QCheckBox):
            return self.control.isChecked()
        if isinstance(self.control, QComboBox):
            return self.control.currentText()
        assert isinstance(self.control, QLineEdit)
        text = self.control.text().strip()
        if not text and self._or_none:
            return None
        try:
            return self._kind(text)
        except ValueError as error:
            raise InputError(f"{KINDS[self._kind]} was expected; got '{text}'.") from error

    def _show(self, *_: object) -> None:
        error = self.error
        self.wrong.setText(error or "")
        self.wrong.setVisible(error is not None)
        self.control.setStyleSheet(f"border: 1px solid {WRONG};" if error else "")
        self.changed.emit()


def _without_none(kind: Any) -> tuple[Any, bool]:
    """``float | None`` is float, or nothing."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [each for each in get_args(kind) if each is not types.NoneType]
        return rest[0], len(rest) < len(get_args(kind))
    return kind, False


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


MAIN = (
    "steps",
    "minutes",
    "learning_rate",
    "similarity",
    "smoothness_weight",
    "overlap_weight",
    "size",
    "augment_affine",
    "augment_intensity",
    "split",
    "validate_every",
)
NOTHING = {"nothing (paper)": "paper", "nothing (small)": "small"}  # words to presets
FROM_TIP = (
    "Weights to begin with: those that are shipped (auto), a .safetensors file such as that of"
    " another run, or nothing: random weights of the paper's network (for a GPU) or of the small"
    " one, learned as in Sec. IV-B."
)
DEVICE_TIP = help_texts(cast(Any, RegistrationSettings))["device"]


class FormValues(NamedTuple):
    """What the form says, as far as it differs from the defaults; weights and device are words.

    Where `weights` is "none", `preset` is the network that begins from nothing, and the steps are
    always among the settings."""

    weights: str
    device: str
    settings: dict[str, Any]
    preset: str | None = None


class SettingsForm(QWidget):
    """Asks for `FineTuning`, `RunSettings`, the weights to begin with, and the device."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.device = WeightsCombo("auto", *NOTHING), combo_of(*get_args(Device))
        self._from_nothing = False
        self.weights.changed.connect(self._on_weights)
        self.fields: dict[str, Field] = {}
        self._defaults: dict[str, Any] = {}
        for settings in _classes():
            self._add(settings)
        above, inner = QWidget(), QWidget()
        main, more = _form(above), _form(inner)
        main.addRow(captioned("Begin with", FROM_TIP), self.weights)
        self.weights.setToolTip(f"<qt>{FROM_TIP}</qt>")
        ordered = [*MAIN, *(name for name in self.fields if name not in MAIN)]
        for name in ordered:
            words = self.fields[name].control.toolTip()
            (main if name in MAIN else more).addRow(
                captioned(title(name), words), self.fields[name]
            )
        more.addRow(captioned("Device", DEVICE_TIP), self.device)
        self.device.setToolTip(f"<qt>{DEVICE_TIP}</qt>")
        self.more = QCollapsible("More settings")
        self.more.setDuration(0)
        self.more.setCollapsedIcon("▶")
        self.more.setExpandedIcon("▼")
        self.more.addWidget(inner)
        self.defaults = QPushButton("Defaults")
        self.defaults.setToolTip("Set everything back, to the paper's settings where it has some.")
        self.defaults.clicked.connect(self.reset)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (above, self.more):
            column.addWidget(widget)
        column.addWidget(self.defaults, 0, Qt.AlignmentFlag.AlignRight)

    @property
    def wrong(self) -> str | None:
        """The title of the first setting that is refused, in the order of the form; None for
        none.
        """
        return next((title(name) for name, field in self.fields.items() if field.error), None)

    @property
    def chosen(self) -> FormValues:
        """What was chosen.

        Raises
        ------
        InputError
            If a value is refused.
        """
        values = {name: field.value for name, field in self.fields.items()}
        changed = {name: value for name, value in values.items() if value != self._defaults[name]}
        if self.weights.value not in NOTHING:
            return FormValues(self.weights.value, self.device.currentText(), changed)
        changed["steps"] = values["steps"]  # by default others than the command takes for it
        return FormValues(NO_NETWORK, self.device.currentText(), changed, NOTHING[self.weights.value])

    def show_values(self, values: dict[str, Any]) -> None:
        """Show other values, such as those of a run; names that are no setting are left out."""
        with signals_blocked(self):
            for name, value in values.items():
                if name in self.fields:
                    self.fields[name].value = value
        self.changed.emit()

    def restrict_to(self, names: Sequence[str] | None) -> None:
        """Have only these settings be changed, as of a run that was begun; None: all of them."""
        for name, field in self.fields.items():
            field.control.setEnabled(names is None or name in names)
        for widget in (self.weights, self.defaults):
            widget.setEnabled(names is None)

    def reset(self) -> None:
        """All as by default."""
        self.show_values(self._defaults)
        self.weights.value = "auto"
        self._from_nothing = False
        self.device.setCurrentText("auto")

    def _add(self, settings: type[Any]) -> None:
        """The fields of one class."""
        hints, words = get_type_hints(settings), _words(settings)
        for each in own_fields_first(settings):
            field = Field(hints[each.name], each.default, partial(_try, settings, each.name))
            field.control.setToolTip(f"<qt>{words[each.name]}</qt>")
            field.changed.connect(self.changed)
            self.fields[each.name], self._defaults[each.name] = field, each.default

    def _on_weights(self) -> None:
        now = self.weights.value in NOTHING
        self._follow_steps(now)
        self._from_nothing = now
        self.changed.emit()

    def _follow_steps(self, now: bool) -> None:
        """Steps that were left as by default follow the choice of what the run begins with."""
        usual, papers = self._defaults["steps"], _iterations()
        before, after = (usual, papers) if now else (papers, usual)
        field = self.fields["steps"]
        if now != self._from_nothing and not field.error and field.value == before:
            field.value = after


def title(name: str) -> str:
    """``learning_rate`` as ``Learning rate``."""
    return name.replace("_", " ").capitalize()


@cache
def _classes() -> tuple[type[Any], ...]:
    from napari_shmoareg.training.settings import FineTuning, RunSettings

    return FineTuning, RunSettings


def _iterations() -> int:
    from napari_shmoareg.training.settings import ITERATIONS

    return ITERATIONS


def _words(settings: Any) -> dict[str, str]:
    return help_texts(settings)


def _try(settings: type[Any], name: str, value: Any) -> object:
    """Settings with one other value, which may be refused."""
    try:
        return settings(**{name: value})
    except InputError as error:  # it stands below its field, so it need not be named
        raise InputError(f"{error.message[:1].upper()}{error.message[1:]}") from error


def _form(widget: QWidget) -> QFormLayout:
    form = QFormLayout(widget)
    form.setContentsMargins(0, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
    return form
