"""Helpers for forms and layouts: captions, combo boxes, sections and labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
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
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.plugin.registrations import open_registrations
from napari_shmoareg.settings import RegistrationRequest, own_fields_first

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


LABEL_WIDTH = 84  # pixels
SMALLEST, LARGEST = 16, 1024  # voxels along the longest axis
TITLES = {"affine": "Alignment", "diffeomorphic": "Deformation"}  # other than the field names
LABELS = {
    field.name: TITLES.get(field.name, field.name.capitalize())
    for field in own_fields_first(RegistrationRequest)
    if field.name != "refine_seconds"
}
"""Labels of the registration settings by name, in form order."""

FILE = "File…"


def captioned(text: str, tip: str) -> QLabel:
    """Return the caption of a form row, with a tooltip and the common width."""
    label = QLabel(text)
    label.setToolTip(wrapped_tooltip(tip))
    label.setMinimumWidth(LABEL_WIDTH)
    return label


def wrapped_tooltip(tip: str) -> str:
    """Convert to rich text, which Qt wraps."""
    return f"<qt>{tip}</qt>"


class WeightsCombo(QComboBox):
    """A combo box for weights: named entries or a .safetensors file.

    Parameters
    ----------
    *names : str
        The first is initially selected.
    """

    changed = Signal()

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.addItems([*names, FILE])
        narrowed(self, length=12)
        self._value = names[0]
        self.activated.connect(self._on_activated)

    @property
    def value(self) -> str:
        """The name of an entry, or the path of a file (displayed by its file name)."""
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

    def offer(self, names: Sequence[str]) -> None:
        """Add entries before the file entry."""
        for name in names:
            if self.findText(name) < 0:
                self.insertItem(self.count() - 1, name)

    def _on_activated(self, index: int) -> None:
        if self.itemText(index) != FILE:
            self._value = self.itemData(index) or self.itemText(index)
        else:
            path, _ = QFileDialog.getOpenFileName(
                self, "Weights", str(Path.home()), "Weights (*.safetensors)"
            )
            self.value = path or self._value
        self.changed.emit()


def combo_of(*texts: str) -> QComboBox:
    """Return a combo box that does not widen its form."""
    combo = QComboBox()
    combo.addItems(texts)
    narrowed(combo, length=12)
    return combo


def weakly(registration: Registration | None) -> Callable[[], Registration | None]:
    """Return a weak reference, which does not keep a registration open; of None, to None."""
    return (lambda: None) if registration is None else weakref.ref(registration)


class Section(QGroupBox):
    """A section of the Experts panel, for the layers of one registration."""

    def __init__(self, title: str, viewer: Viewer) -> None:
        super().__init__(title)
        self._viewer = viewer
        self._number = 0  # none
        self.column = QVBoxLayout(self)
        self.column.setSpacing(6)

    @property
    def registration(self) -> Registration | None:
        """The shown registration; None if it was closed."""
        return open_registrations(self._viewer).get(self._number)

    def number_of(self, registration: Registration | None) -> int | None:
        """Return the number of an open registration; None if it was closed."""
        opened = open_registrations(self._viewer).items()
        return next((number for number, found in opened if found is registration), None)

    def show_registration(self, number: int | None) -> None:
        """Switch to another registration, or to none."""
        self._number = number or 0
        self.refresh()

    def refresh(self) -> None:
        """Update from the state of the layers."""
        self.setEnabled(bool(self._number))


def arranged(
    layout: QBoxLayout, *parts: QWidget | QLayout | None, wide: QWidget | None = None
) -> QBoxLayout:
    """Add widgets and layouts to a layout without margins.

    None adds a stretch; the `wide` widget takes the remaining space.
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
    """Wrap the text of labels; with `narrow`, they do not widen their panel."""
    for label in labels:
        label.setWordWrap(True)
        if narrow:
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)


def scrolled(body: QWidget) -> QScrollArea:
    """Return a frameless scroll area for the body of a panel."""
    area = QScrollArea()
    area.setWidget(body)
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    return area


def narrowed(*combos: QComboBox, length: int = 0) -> None:
    """Set the minimum width of combo boxes in letters, regardless of their entries."""
    for combo in combos:
        combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        combo.setMinimumContentsLength(length)


def fill(combo: QComboBox, entries: Mapping[Any, str], chosen: Any = None) -> None:
    """Replace the entries of a combo box if they differ; keep the selection, or select `chosen`."""
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
    """Select an entry, if it exists, without emitting signals."""
    with signals_blocked(combo):
        index = combo.findData(value)
        if index >= 0:
            combo.setCurrentIndex(index)
