"""The form of the registration settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from qtpy.QtCore import Signal
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QSpinBox,
    QWidget,
)

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import NO_NETWORK
from napari_shmoareg.plugin.controls.forms import (
    LABELS,
    LARGEST,
    SMALLEST,
    WeightsCombo,
    captioned,
    combo_of,
    wrapped_tooltip,
)
from napari_shmoareg.settings import FILLS, RegistrationRequest, choices, help_texts

AS_WEIGHTS, NATIVE = "as the weights say", "native"
CUSTOM, VOXELS, VALUE = "Custom", "voxels", "value"
DEFAULT_SIZE = 128  # voxels, initial number
MAX_STEPS, STEP = 1000, 20  # refinement steps
VARIANTS: dict[str, bool | None] = {
    AS_WEIGHTS: None,
    "diffeomorphic": True,
    "not diffeomorphic": False,
}
CHOICES = choices(cast(Any, RegistrationRequest)) | {"diffeomorphic": tuple(VARIANTS)}
PRESETS: dict[str, dict[str, Any]] = {  # weights and device are unchanged
    "Quick": {},
    "Refined": {"refine": 60},
    "Unlike contrasts": {"refine": 60, "similarity": "mind"},
    "Headers are right": {"affine": "none"},
}
PRESET_TIP = (
    "Sets everything below except weights and device. Settings are saved for the next start of"
    " napari."
)


def to_preferences(settings: RegistrationRequest) -> dict[str, str | int]:
    """Convert settings to the texts and integers of the form and the preferences."""
    variant = next(text for text, value in VARIANTS.items() if value is settings.diffeomorphic)
    size = AS_WEIGHTS if settings.size is None else str(settings.size)
    values = {name: getattr(settings, name) for name in LABELS}
    return values | {"diffeomorphic": variant, "size": size, "fill": str(settings.fill)}


def from_preferences(values: Mapping[str, Any]) -> RegistrationRequest:
    """Convert preferences to settings; missing or invalid values become the defaults."""
    settings = RegistrationRequest()
    for name in (name for name in LABELS if name in values):
        value = values[name]
        if name == "diffeomorphic":
            value = VARIANTS.get(value)
        elif name == "size":
            value = int(value) if str(value).isdecimal() else {NATIVE: NATIVE}.get(value)
        elif name == "fill":
            value = value if value in FILLS else _number(str(value))
        elif name == "weights":
            value = str(value or "auto")
        with suppress(InputError):
            settings = replace(settings, **{name: value})
    return settings


def _number(text: str) -> float | None:
    """The number in a text; None if it is none."""
    with suppress(ValueError):
        return float(text)
    return None


def with_preset(settings: RegistrationRequest, name: str) -> RegistrationRequest:
    """Return a preset with the weights and device of these settings."""
    return RegistrationRequest(weights=settings.weights, device=settings.device, **PRESETS[name])


def preset_of(settings: RegistrationRequest) -> str | None:
    """Return the name of the preset that equals the settings, or None."""
    return next((name for name in PRESETS if with_preset(settings, name) == settings), None)


class SettingsForm(QWidget):
    """A form for a `RegistrationRequest`, initially showing `settings`."""

    changed = Signal()

    def __init__(self, settings: RegistrationRequest) -> None:
        super().__init__()
        self.preset = combo_of(CUSTOM, *PRESETS)
        self.preset.setToolTip(PRESET_TIP)
        self.combos = {name: combo_of(*choices) for name, choices in CHOICES.items()}
        self.weights, self.refine = WeightsCombo("auto", NO_NETWORK), QSpinBox()
        self.voxels = ChoiceOrNumber((AS_WEIGHTS, NATIVE), VOXELS, _voxels_box())
        self.fill = ChoiceOrNumber(FILLS, VALUE, _value_box())
        fields: dict[str, QWidget] = {
            **self.combos,
            "weights": self.weights,
            "size": self.voxels,
            "fill": self.fill,
            "refine": self.refine,
        }
        self.refine.setRange(0, MAX_STEPS)
        self.refine.setSingleStep(STEP)
        self.refine.setSpecialValueText("none")
        self.refine.setSuffix(" steps")
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(captioned("Preset", PRESET_TIP), self.preset)
        tips = help_texts(cast(Any, RegistrationRequest))
        for name, text in LABELS.items():
            fields[name].setToolTip(wrapped_tooltip(tips[name]))
            form.addRow(captioned(text, tips[name]), fields[name])
        self.settings = settings
        for combo in self.combos.values():
            combo.activated.connect(self._changed)
        self.preset.activated.connect(self._apply_preset)
        self.weights.changed.connect(self._changed)
        self.voxels.changed.connect(self._changed)
        self.fill.changed.connect(self._changed)
        self.refine.valueChanged.connect(self._changed)

    @property
    def settings(self) -> RegistrationRequest:
        """The settings of the form; without refinement, the similarity is unused and "auto"."""
        values = {name: combo.currentText() for name, combo in self.combos.items()}
        values |= {"weights": self.weights.value, "size": self.voxels.text}
        values["fill"] = self.fill.text
        if self.refine.value() == 0:
            values["similarity"] = "auto"
        return from_preferences({**values, "refine": self.refine.value()})

    @settings.setter
    def settings(self, settings: RegistrationRequest) -> None:
        values = to_preferences(settings)
        blocked = self.refine.blockSignals(True)
        self.refine.setValue(settings.refine)
        self.refine.blockSignals(blocked)
        for name, combo in self.combos.items():
            combo.setCurrentText(str(values[name]))
        self.voxels.text, self.fill.text = str(values["size"]), str(values["fill"])
        self.weights.value = settings.weights
        self._sync()

    def offer(self, weights: tuple[str, ...], cuda: bool) -> None:
        """List shipped weights by name; disable an unavailable device."""
        self.weights.offer(weights)
        device = self.combos["device"]
        index, model = device.findText("cuda"), device.model()
        if isinstance(model, QStandardItemModel) and (item := model.item(index)) is not None:
            item.setEnabled(cuda)
            item.setToolTip("" if cuda else "PyTorch found no CUDA GPU.")
        if not cuda and device.currentText() == "cuda":
            device.setCurrentText("auto")  # saved on a machine with a GPU

    def _changed(self, *_: object) -> None:
        self._sync()
        self.changed.emit()

    def _sync(self) -> None:
        """Update controls that depend on others."""
        self.combos["similarity"].setEnabled(self.refine.value() > 0)
        self.preset.setCurrentText(preset_of(self.settings) or CUSTOM)

    def _apply_preset(self, index: int) -> None:
        if index:
            self.settings = with_preset(self.settings, self.preset.currentText())
        self._changed()


def _voxels_box() -> QSpinBox:
    box = QSpinBox()
    box.setRange(SMALLEST, LARGEST)
    box.setSingleStep(16)
    box.setValue(DEFAULT_SIZE)
    return box


def _value_box() -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(-1e6, 1e6)
    box.setDecimals(2)
    box.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)
    return box


class ChoiceOrNumber(QWidget):
    """One of some choices, or a number in a field that is shown for it.

    Parameters
    ----------
    choices : sequence of str
    number_text : str
        The entry for a number.
    number : QSpinBox or QDoubleSpinBox
    """

    changed = Signal()

    def __init__(
        self, choices: Sequence[str], number_text: str, number: QSpinBox | QDoubleSpinBox
    ) -> None:
        super().__init__()
        self._number_text, self.number = number_text, number
        self.kind = combo_of(*choices, number_text)
        self.kind.setMinimumContentsLength(6)  # leave room for the number
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.kind, 1)
        layout.addWidget(self.number)
        self.number.hide()
        self.kind.activated.connect(self._changed)
        self.number.valueChanged.connect(self._changed)

    @property
    def text(self) -> str:
        """The choice, or the number as text."""
        chosen = self.kind.currentText()
        return str(self.number.value()) if chosen == self._number_text else chosen

    @text.setter
    def text(self, text: str) -> None:
        value = None if self.kind.findText(text) >= 0 else _number(text)
        self.kind.setCurrentText(text if value is None else self._number_text)
        self.number.setVisible(value is not None)
        if value is not None:
            blocked = self.number.blockSignals(True)
            if isinstance(self.number, QSpinBox):
                self.number.setValue(int(value))
            else:
                self.number.setValue(value)
            self.number.blockSignals(blocked)

    def _changed(self, *_: object) -> None:
        self.number.setVisible(self.kind.currentText() == self._number_text)
        self.changed.emit()
