"""The settings of a registration as a form."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import QComboBox, QFileDialog, QFormLayout, QHBoxLayout, QSpinBox, QWidget

from napari_shmoareg.io.model_card import NO_NETWORK
from napari_shmoareg.plugin.controls.forms import _wrapped, captioned
from napari_shmoareg.settings import (
    AS_WEIGHTS,
    CHOICES,
    LABELS,
    LARGEST,
    MOST_STEPS,
    NATIVE,
    PRESETS,
    SMALLEST,
    Settings,
    described,
)

FILE, CUSTOM, VOXELS = "File…", "Custom", "voxels"
USUAL_SIZE = 128  # voxels, where a number is asked for and none was given yet
STEP = 20  # of the refinement's steps
PRESET_TIP = (
    "Sets everything below but weights and device. What you choose is kept for the next start of"
    " napari."
)


class SettingsForm(QWidget):
    """Asks for `Settings`; all of it at a glance, each with its tooltip.

    Parameters
    ----------
    settings : Settings
        To begin with.
    """

    changed = Signal()

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        # the one to go back to, when the dialog for a file is cancelled
        self._weights = settings.weights
        self.preset = _combo((CUSTOM, *PRESETS))
        self.preset.setToolTip(PRESET_TIP)
        self.combos = {name: _combo(choices) for name, choices in CHOICES.items()}
        self.weights, self.voxels, self.refine = (
            _combo(("auto", NO_NETWORK, FILE)),
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
        for name, text in LABELS.items():
            fields[name].setToolTip(_wrapped(described(Settings)[name]))
            form.addRow(captioned(text, described(Settings)[name]), fields[name])
        self.settings = settings
        for combo in self.combos.values():
            combo.activated.connect(self._changed)
        self.preset.activated.connect(self._take_preset)
        self.weights.activated.connect(self._take_weights)
        self.voxels.changed.connect(self._changed)
        self.refine.valueChanged.connect(self._changed)

    @property
    def settings(self) -> Settings:
        """What the form says; the similarity is of no use, and "auto", without refinement."""
        words = {name: combo.currentText() for name, combo in self.combos.items()}
        words |= {"weights": self._weights, "size": self.voxels.word}
        if self.refine.value() == 0:
            words["similarity"] = "auto"
        return Settings.from_words({**words, "refine": self.refine.value()})

    @settings.setter
    def settings(self, settings: Settings) -> None:
        words = settings.to_words()
        blocked = self.refine.blockSignals(True)
        self.refine.setValue(settings.refine)
        self.refine.blockSignals(blocked)
        for name, combo in self.combos.items():
            combo.setCurrentText(str(words[name]))
        self.voxels.word = str(words["size"])
        self._show_weights(settings.weights)
        self._agree()

    def offer(self, weights: tuple[str, ...], cuda: bool) -> None:
        """Offer shipped weights by name; grey out a device that is not there."""
        for name in weights:
            if self.weights.findText(name) < 0:
                self.weights.insertItem(self.weights.count() - 1, name)
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
        self.preset.setCurrentText(self.settings.preset or CUSTOM)

    def _take_preset(self, index: int) -> None:
        if index:
            self.settings = self.settings.with_preset(self.preset.currentText())
        self._changed()

    def _take_weights(self, index: int) -> None:
        if self.weights.itemText(index) != FILE:
            self._weights = self.weights.itemData(index) or self.weights.itemText(index)
        else:
            path, _ = QFileDialog.getOpenFileName(
                self, "Weights", str(Path.home()), "Weights (*.safetensors)"
            )
            self._show_weights(path or self._weights)
        self._changed()

    def _show_weights(self, weights: str) -> None:
        """Show a choice, that of a file by its name."""
        self._weights = weights
        known = [
            self.weights.itemData(n) or self.weights.itemText(n)
            for n in range(self.weights.count())
        ]
        if weights not in known:
            self.weights.insertItem(1, Path(weights).name, weights)
            self.weights.setItemData(1, weights, Qt.ItemDataRole.ToolTipRole)
            known.insert(1, weights)
        self.weights.setCurrentIndex(known.index(weights))


class _SizeField(QWidget):
    """As the weights say, native, or a number of voxels."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.kind = _combo((AS_WEIGHTS, NATIVE, VOXELS))
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
        """As in `Settings.to_words`."""
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


def _combo(texts: tuple[str, ...]) -> QComboBox:
    combo = QComboBox()
    combo.addItems(texts)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(12)
    return combo
