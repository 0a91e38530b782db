"""Rows of a form, with captions and tooltips; sections of a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QBoxLayout,
    QComboBox,
    QFileDialog,
    QFrame,
    QGroupBox,
    QLabel,
    QLayout,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.settings import RegistrationRequest, own_fields_first

if TYPE_CHECKING:
    from napari import Viewer


LABEL_WIDTH = 84  # pixels
SMALLEST, LARGEST = 16, 1024  # voxels along the longest axis that a form offers
TITLES = {"affine": "Alignment", "diffeomorphic": "Deformation"}  # where not their names
LABELS = {
    field.name: TITLES.get(field.name, field.name.capitalize())
    for field in own_fields_first(RegistrationRequest)
    if field.name != "refine_seconds"
}
"""Settings of a registration by their names, in the order of the form."""

FILE = "File…"


def captioned(text: str, tip: str) -> QLabel:
    """A caption of a row with its tooltip, as wide as all others."""
    label = QLabel(text)
    label.setToolTip(_wrapped(tip))
    label.setMinimumWidth(LABEL_WIDTH)
    return label


def _wrapped(tip: str) -> str:
    """Rich text, which Qt breaks into lines."""
    return f"<qt>{tip}</qt>"


class WeightsCombo(QComboBox):
    """Asks for weights: one of some words, or a .safetensors file.

    Parameters
    ----------
    *words : str
        The first is chosen to begin with.
    """

    changed = Signal()

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.addItems([*words, FILE])
        narrow(self)
        self._value = words[0]
        self.activated.connect(self._take)

    @property
    def value(self) -> str:
        """A word, or the path of a file, which is shown by its name."""
        return self._value

    @value.setter
    def value(self, weights: str) -> None:
        self._value = weights
        values = [self.itemData(n) or self.itemText(n) for n in range(self.count())]
        if weights not in values:
            self.insertItem(1, Path(weights).name, weights)
            self.setItemData(1, weights, Qt.ItemDataRole.ToolTipRole)
            values.insert(1, weights)
        self.setCurrentIndex(values.index(weights))

    def offer(self, words: Sequence[str]) -> None:
        """Offer other words too, before the file."""
        for word in words:
            if self.findText(word) < 0:
                self.insertItem(self.count() - 1, word)

    def _take(self, index: int) -> None:
        if self.itemText(index) != FILE:
            self._value = self.itemData(index) or self.itemText(index)
        else:
            path, _ = QFileDialog.getOpenFileName(
                self, "Weights", str(Path.home()), "Weights (*.safetensors)"
            )
            self.value = path or self._value
        self.changed.emit()


def combo_of(*texts: str) -> QComboBox:
    """A list of words that does not widen its form."""
    combo = QComboBox()
    combo.addItems(texts)
    return narrow(combo)


def narrow(combo: QComboBox) -> QComboBox:
    """The combo, no wider than 12 letters need."""
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(12)
    return combo


class Section(QGroupBox):
    """A part of the Experts panel: acts on the layers of one registration and shows how they are.

    Parameters
    ----------
    title : str
    viewer : Viewer
    """

    def __init__(self, title: str, viewer: Viewer) -> None:
        super().__init__(title)
        self._viewer = viewer
        self._number = 0  # none
        self.column = QVBoxLayout(self)
        self.column.setSpacing(6)

    def show_registration(self, number: int | None) -> None:
        """Be about another registration, or about none."""
        self._number = number or 0
        self.refresh()

    def refresh(self) -> None:
        """Show the state of the layers."""
        self.setEnabled(bool(self._number))


def arranged(
    layout: QBoxLayout, *parts: QWidget | QLayout | None, wide: QWidget | None = None
) -> QBoxLayout:
    """A row or column of widgets and layouts without margins; None is a stretch, and one of the
    widgets may be `wide`: it takes the room that is left.
    """
    layout.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        if part is None:
            layout.addStretch(1)
        elif isinstance(part, QLayout):
            layout.addLayout(part)
        else:
            layout.addWidget(part, int(part is wide))
    return layout


def wrapped(*labels: QLabel, narrow: bool = False) -> None:
    """Have labels break their lines; `narrow` ones do not widen their panel either."""
    for label in labels:
        label.setWordWrap(True)
        if narrow:
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)


def scrolled(body: QWidget) -> QScrollArea:
    """A frameless area in which a panel's body is scrolled."""
    area = QScrollArea()
    area.setWidget(body)
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    return area


def narrowed(*combos: QComboBox, length: int = 0) -> None:
    """Have combos be as wide as so many letters, however long their entries are."""
    for combo in combos:
        combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        combo.setMinimumContentsLength(length)


def opacity_slider(tooltip: str) -> QSlider:
    """From 5 to 100 percent."""
    slider = QSlider(Qt.Orientation.Horizontal)
    slider.setRange(5, 100)
    slider.setToolTip(tooltip)
    return slider


def fill(combo: QComboBox, entries: Mapping[Any, str], chosen: Any = None) -> None:
    """Give a combo other entries, as far as they differ, keeping or making a choice; they do not
    widen it.
    """
    narrowed(combo, length=combo.minimumContentsLength())
    with signals_blocked(combo):
        if [(combo.itemData(n), combo.itemText(n)) for n in range(combo.count())] != list(
            entries.items()
        ):
            before = combo.currentData()
            combo.clear()
            for value, text in entries.items():
                combo.addItem(text, value)
            pick(combo, before)
        if chosen is not None:
            pick(combo, chosen)


def pick(combo: QComboBox, value: Any) -> None:
    """Choose an entry without acting on it; nothing where there is no such entry."""
    with signals_blocked(combo):
        index = combo.findData(value)
        if index >= 0:
            combo.setCurrentIndex(index)
