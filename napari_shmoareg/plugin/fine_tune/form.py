"""The form of the training settings, generated from their classes."""

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

ERROR_COLOUR = "#e8590c"  # border of an invalid value; visible on light and dark themes
KINDS = {int: "A whole number", float: "A number"}


class Field(QWidget):
    """A control for one value.

    Parameters
    ----------
    kind : type
        int, float, str, bool, a Literal of strings, or an optional one of them.
    default
        Initial value.
    check : callable
        Raises `InputError` for an invalid value.
    zero : str
        What 0 means, such as "off", shown in its place; the number can be entered too.
    """

    changed = Signal()

    def __init__(
        self, kind: Any, default: Any, check: Callable[[Any], object], zero: str = ""
    ) -> None:
        super().__init__()
        self._zero = zero
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
        self.error_label = QLabel()
        self.error_label.setWordWrap(True)
        self.error_label.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(1)
        column.addWidget(self.control)
        column.addWidget(self.error_label)
        self.value = default

    @property
    def value(self) -> Any:
        """The entered value.

        Raises
        ------
        InputError
            If it has the wrong type or is invalid.
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
            is_zero = bool(self._zero) and value == 0 and value is not None
            text = self._zero if is_zero else "" if value is None else _as_text(value)
            self.control.setText(text)
        self._show()

    @property
    def error(self) -> str | None:
        """Why the value is invalid; None if it is valid."""
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
        if self._zero and text.lower() == self._zero:
            return self._kind(0)
        try:
            return self._kind(text)
        except ValueError as error:
            raise InputError(f"{KINDS[self._kind]} was expected; got '{text}'.") from error

    def _show(self, *_: object) -> None:
        error = self.error
        self.error_label.setText(error or "")
        self.error_label.setVisible(error is not None)
        self.control.setStyleSheet(f"border: 1px solid {ERROR_COLOUR};" if error else "")
        self.changed.emit()


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Split ``float | None`` into (float, True); another type gives (type, False)."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [each for each in get_args(kind) if each is not types.NoneType]
        return rest[0], len(rest) < len(get_args(kind))
    return kind, False


def _as_text(value: Any) -> str:
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
# what 0 means in a field
OFF = dict.fromkeys(
    (
        "routing_weight",
        "overlap_weight",
        "bending_weight",
        "inverse_weight",
        "balance_weight",
        "cascade",
        "augment_affine",
        "augment_intensity",
        "largest_gradient",
        "known_motion",
        "correspondence_weight",
        "z_weight",
        "dense_share",
        "head_diversity_weight",
        "gate_jitter",
    ),
    "off",
)
ZERO = OFF | {"minutes": "no limit", "validate_every": "never", "size": "as the weights"}
NOTHING = {"nothing (paper)": "paper", "nothing (small)": "small"}  # entry to preset
FROM_TIP = (
    "Initial weights: the shipped ones (auto), a .safetensors file, for example of another run, or"
    " nothing: random weights of the paper's network (for a GPU) or of the small one, trained as in"
    " Sec. IV-B."
)
DEVICE_TIP = help_texts(cast(Any, RegistrationSettings))["device"]


class FormValues(NamedTuple):
    """Values of the form: weights, device, and the settings that differ from the defaults.

    With `weights` "none", `preset` is the randomly initialised network, and the settings always
    include the steps."""

    weights: str
    device: str
    settings: dict[str, Any]
    preset: str | None = None


class SettingsForm(QWidget):
    """A form for `FineTuning`, `RunSettings`, the initial weights and the device."""

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
        main.addRow(captioned("Start from", FROM_TIP), self.weights)
        self.weights.setToolTip(f"<qt>{FROM_TIP}</qt>")
        ordered = [*MAIN, *(name for name in self.fields if name not in MAIN)]
        for name in ordered:
            tip = self.fields[name].control.toolTip()
            (main if name in MAIN else more).addRow(captioned(title(name), tip), self.fields[name])
        more.addRow(captioned("Device", DEVICE_TIP), self.device)
        self.device.setToolTip(f"<qt>{DEVICE_TIP}</qt>")
        self.more = QCollapsible("More settings")
        self.more.setDuration(0)
        self.more.setCollapsedIcon("▶")
        self.more.setExpandedIcon("▼")
        self.more.addWidget(inner)
        self.defaults = QPushButton("Defaults")
        self.defaults.setToolTip(
            "Reset all settings to their defaults: the paper's values where it gives them."
        )
        self.defaults.clicked.connect(self.reset)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (above, self.more):
            column.addWidget(widget)
        column.addWidget(self.defaults, 0, Qt.AlignmentFlag.AlignRight)

    @property
    def invalid_setting(self) -> str | None:
        """Title of the first invalid setting, in form order; None if all are valid."""
        return next((title(name) for name, field in self.fields.items() if field.error), None)

    @property
    def chosen(self) -> FormValues:
        """The values of the form.

        Raises
        ------
        InputError
            If a value is invalid.
        """
        values = {name: field.value for name, field in self.fields.items()}
        changed = {name: value for name, value in values.items() if value != self._defaults[name]}
        if self.weights.value not in NOTHING:
            return FormValues(self.weights.value, self.device.currentText(), changed)
        changed["steps"] = values["steps"]  # the command's default differs
        return FormValues(
            NO_NETWORK, self.device.currentText(), changed, NOTHING[self.weights.value]
        )

    def show_values(self, values: dict[str, Any]) -> None:
        """Show these values, for example those of a run; unknown names are ignored."""
        with signals_blocked(self):
            for name, value in values.items():
                if name in self.fields:
                    self.fields[name].value = value
        self.changed.emit()

    def restrict_to(self, names: Sequence[str] | None) -> None:
        """Enable only these settings, as for a run to resume; None enables all."""
        for name, field in self.fields.items():
            field.control.setEnabled(names is None or name in names)
        for widget in (self.weights, self.defaults):
            widget.setEnabled(names is None)

    def reset(self) -> None:
        """Reset everything to the defaults."""
        self.show_values(self._defaults)
        self.weights.value = "auto"
        self._from_nothing = False
        self.device.setCurrentText("auto")

    def _add(self, settings: type[Any]) -> None:
        """Add the fields of a settings class."""
        hints, tips = get_type_hints(settings), help_texts(cast(Any, settings))
        for each in own_fields_first(settings):
            check = partial(_try, settings, each.name)
            field = Field(hints[each.name], each.default, check, ZERO.get(each.name, ""))
            field.control.setToolTip(f"<qt>{tips[each.name]}</qt>")
            field.changed.connect(self.changed)
            self.fields[each.name], self._defaults[each.name] = field, each.default

    def _on_weights(self) -> None:
        now = self.weights.value in NOTHING
        self._follow_steps(now)
        self._from_nothing = now
        self.changed.emit()

    def _follow_steps(self, now: bool) -> None:
        """Change default steps with the choice of the initial weights."""
        usual, paper = self._defaults["steps"], _iterations()
        before, after = (usual, paper) if now else (paper, usual)
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


def _try(settings: type[Any], name: str, value: Any) -> object:
    """Construct settings with one changed value, which may be invalid."""
    try:
        return settings(**{name: value})
    except InputError as error:  # shown below the field, so its name is omitted
        raise InputError(f"{error.message[:1].upper()}{error.message[1:]}") from error


def _form(widget: QWidget) -> QFormLayout:
    form = QFormLayout(widget)
    form.setContentsMargins(0, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
    return form
