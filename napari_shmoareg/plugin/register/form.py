"""The settings of a registration as a form."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from qtpy.QtCore import Signal
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import QFormLayout, QHBoxLayout, QSpinBox, QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import NO_NETWORK
from napari_shmoareg.plugin.controls.forms import (
    LABELS,
    LARGEST,
    SMALLEST,
    WeightsCombo,
    _wrapped,
    captioned,
    combo_of,
)
from napari_shmoareg.settings import RegistrationRequest, choices, help_texts

AS_WEIGHTS, NATIVE = "as the weights say", "native"
CUSTOM, VOXELS = "Custom", "voxels"
USUAL_SIZE = 128  # voxels, where a number is asked for and none was given yet
MOST_STEPS, STEP = 1000, 20  # of the refinement
VARIANTS: dict[str, bool | None] = {
    AS_WEIGHTS: None,
    "diffeomorphic": True,
    "not diffeomorphic": False,
}
CHOICES = choices(cast(Any, RegistrationRequest)) | {"diffeomorphic": tuple(VARIANTS)}
PRESETS: dict[str, dict[str, Any]] = {  # weights and device stay as they are
    "Quick": {},
    "Refined": {"refine": 60},
    "Unlike contrasts": {"refine": 60, "similarity": "mind"},
    "Headers are right": {"affine": "none"},
}
PRESET_TIP = (
    "Sets everything below but weights and device. What you choose is kept for the next start of"
    " napari."
)


def to_words(settings: RegistrationRequest) -> dict[str, str | int]:
    """As the form shows settings and the preferences keep them: text and whole numbers."""
    variant = next(word for word, value in VARIANTS.items() if value is settings.diffeomorphic)
    size = AS_WEIGHTS if settings.size is None else str(settings.size)
    words = {name: getattr(settings, name) for name in LABELS}
    return words | {"diffeomorphic": variant, "size": size}


def from_words(words: Mapping[str, Any]) -> RegistrationRequest:
    """The way back; what is missing, or was written wrongly by hand, is as by default."""
    settings = RegistrationRequest()
    for name in (name for name in LABELS if name in words):
        value = words[name]
        if name == "diffeomorphic":
            value = VARIANTS.get(value)
        elif name == "size":
            value = int(value) if str(value).isdecimal() else {NATIVE: NATIVE}.get(value)
        elif name == "weights":
            value = str(value or "auto")
        with suppress(InputError):
            settings = replace(settings, **{name: value})
    return settings


def with_preset(settings: RegistrationRequest, name: str) -> RegistrationRequest:
    """One of `PRESETS`, on these weights and this device."""
    return RegistrationRequest(weights=settings.weights, device=settings.device, **PRESETS[name])


def preset_of(settings: RegistrationRequest) -> str | None:
    """Which of `PRESETS` settings are; None for none of them."""
    return next((name for name in PRESETS if with_preset(settings, name) == settings), None)


class SettingsForm(QWidget):
    """Asks for a `RegistrationRequest`; all of it at a glance, each with its tooltip.

    Parameters
    ----------
    settings : RegistrationRequest
        To begin with.
    """

    changed = Signal()

    def __init__(self, settings: RegistrationRequest) -> None:
        super().__init__()
        self.preset = combo_of(CUSTOM, *PRESETS)
        self.preset.setToolTip(PRESET_TIP)
        self.combos = {name: combo_of(*choices) for name, choices in CHOICES.items()}
        self.weights, self.voxels, self.refine = (
            WeightsCombo("auto", NO_NETWORK),
            _SizeField(),
            QSpinBox(),
        )
        fields: dict[str, QWidget] = {
            **self.combos,
            "weights": self.weights,
            "size": self.voxels,
            "refine": self.refine,
        }
        self.refine.setRange(0, MOST_STEPS)
        self.refine.setSingleStep(STEP)
        self.refine.setSpecialValueText("none")
        self.refine.setSuffix(" steps")
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(captioned("Preset", PRESET_TIP), self.preset)
        tips = help_texts(cast(Any, RegistrationRequest))
        for name, text in LABELS.items():
            fields[name].setToolTip(_wrapped(tips[name]))
            form.addRow(captioned(text, tips[name]), fields[name])
        self.settings = settings
        for combo in self.combos.values():
            combo.activated.connect(self._changed)
        self.preset.activated.connect(self._take_preset)
        self.weights.changed.connect(self._changed)
        self.voxels.changed.connect(self._changed)
        self.refine.valueChanged.connect(self._changed)

    @property
    def settings(self) -> RegistrationRequest:
        """What the form says; the similarity is of no use, and "auto", without refinement."""
        words = {name: combo.currentText() for name, combo in self.combos.items()}
        words |= {"weights": self.weights.value, "size": self.voxels.word}
        if self.refine.value() == 0:
            words["similarity"] = "auto"
        return from_words({**words, "refine": self.refine.value()})

    @settings.setter
    def settings(self, settings: RegistrationRequest) -> None:
        words = to_words(settings)
        blocked = self.refine.blockSignals(True)
        self.refine.setValue(settings.refine)
        self.refine.blockSignals(blocked)
        for name, combo in self.combos.items():
            combo.setCurrentText(str(words[name]))
        self.voxels.word = str(words["size"])
        self.weights.value = settings.weights
        self._agree()

    def offer(self, weights: tuple[str, ...], cuda: bool) -> None:
        """Offer shipped weights by name; grey out a device that is not there."""
        self.weights.offer(weights)
        device = self.combos["device"]
        index, model = device.findText("cuda"), device.model()
        if isinstance(model, QStandardItemModel) and (item := model.item(index)) is not None:
            item.setEnabled(cuda)
            item.setToolTip("" if cuda else "PyTorch finds no CUDA GPU here.")
        if not cuda and device.currentText() == "cuda":
            device.setCurrentText("auto")  # it was chosen where there was one

    def _changed(self, *_: object) -> None:
        self._agree()
        self.changed.emit()

    def _agree(self) -> None:
        """What depends on what is chosen."""
        self.combos["similarity"].setEnabled(self.refine.value() > 0)
        self.preset.setCurrentText(preset_of(self.settings) or CUSTOM)

    def _take_preset(self, index: int) -> None:
        if index:
            self.settings = with_preset(self.settings, self.preset.currentText())
        self._changed()


class _SizeField(QWidget):
    """As the weights say, native, or a number of voxels."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.kind = combo_of(AS_WEIGHTS, NATIVE, VOXELS)
        self.kind.setMinimumContentsLength(6)  # a number stands beside it
        self.number = QSpinBox()
        self.number.setRange(SMALLEST, LARGEST)
        self.number.setSingleStep(16)
        self.number.setValue(USUAL_SIZE)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.kind, 1)
        layout.addWidget(self.number)
        self.number.hide()
        self.kind.activated.connect(self._changed)
        self.number.valueChanged.connect(self._changed)

    @property
    def word(self) -> str:
        """As in `to_words`."""
        return (
            str(self.number.value())
            if self.kind.currentText() == VOXELS
            else self.kind.currentText()
        )

    @word.setter
    def word(self, word: str) -> None:
        self.kind.setCurrentText(VOXELS if word.isdecimal() else word)
        self.number.setVisible(word.isdecimal())
        if word.isdecimal():
            blocked = self.number.blockSignals(True)
            self.number.setValue(int(word))
            self.number.blockSignals(blocked)

    def _changed(self, *_: object) -> None:
        self.number.setVisible(self.kind.currentText() == VOXELS)
        self.changed.emit()
