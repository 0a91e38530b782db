"""Colour legends: swatches with names and shares, and colour ramps with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from qtpy.QtCore import QRectF, QSize, Qt
from qtpy.QtGui import QColor, QLinearGradient, QPainter, QPaintEvent
from qtpy.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QLayoutItem,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin.controls.forms import arranged

if TYPE_CHECKING:
    from napari.layers import Image


GREY = QColor(128, 128, 128)  # of edges; visible on light and dark themes


class Swatch(QWidget):
    """A small rectangle of one colour, ``#rrggbb``."""

    def __init__(self, colour: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.colour = colour
        self.setFixedSize(QSize(18, 12))

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        painter.setPen(GREY)
        painter.setBrush(QColor(self.colour))
        painter.drawRect(QRectF(0.5, 0.5, self.width() - 1, self.height() - 1))
        painter.end()


class Swatches(QWidget):
    """Rows of a colour, its name and an optional share in percent."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rows = QGridLayout(self)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setVerticalSpacing(2)
        self._rows.setColumnStretch(1, 1)
        self._entries: list[tuple[str, str]] = []
        self._shares: list[QLabel] = []

    def show_entries(self, entries: Sequence[tuple[str, str, float | None]]) -> None:
        """Replace the rows: colour, name, share (0 to 1, or None)."""
        entries_shown = [(colour, name) for colour, name, _ in entries]
        if entries_shown == self._entries:  # only the shares differ: avoid flicker
            for label, (_, _, share) in zip(self._shares, entries, strict=True):
                label.setText(_percent(share))
            return
        self._entries, self._shares = entries_shown, []
        while (item := self._rows.takeAt(0)) is not None:
            _remove(item)
        for row, (colour, name, share) in enumerate(entries):
            share_label = QLabel(_percent(share))
            self._shares.append(share_label)
            share_label.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            name_label = QLabel(name)
            name_label.setWordWrap(True)
            for column, widget in enumerate((Swatch(colour), name_label, share_label)):
                self._rows.addWidget(widget, row, column)

    def texts(self) -> list[str]:
        """Return the texts, row by row."""
        return _texts(self._rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


class _Band(QWidget):
    """A row of colours, on mid grey where they are transparent."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = np.zeros((0, 4))
        self.setFixedHeight(12)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        gradient = QLinearGradient(0, 0, self.width(), 0)
        for position, rgba in zip(np.linspace(0, 1, len(self.colours)), self.colours, strict=True):
            gradient.setColorAt(float(position), QColor.fromRgbF(*(float(v) for v in rgba)))
        area = QRectF(0.5, 0.5, self.width() - 1, self.height() - 1)
        painter.fillRect(area, GREY)
        painter.setPen(GREY)
        painter.setBrush(gradient)
        painter.drawRect(area)
        painter.end()


class Ramp(QWidget):
    """A band of colours above evenly spaced numbers."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._band, self._marks = _Band(), QHBoxLayout()
        arranged(QVBoxLayout(self), self._band, self._marks).setSpacing(1)

    def show_colours(self, colours: ArrayLike, marks: Sequence[str]) -> None:
        """Replace the colours, (n, 4) from 0 to 1, left to right, and the two or three marks."""
        self._band.colours = np.asarray(colours, dtype=float)
        self._band.update()
        while (item := self._marks.takeAt(0)) is not None:
            _remove(item)
        for n, mark in enumerate(marks):
            side = Qt.AlignmentFlag.AlignLeft if n == 0 else Qt.AlignmentFlag.AlignHCenter
            label = QLabel(mark)
            label.setAlignment(Qt.AlignmentFlag.AlignRight if n == len(marks) - 1 else side)
            self._marks.addWidget(label)

    def show_layer(self, layer: Image, marks: Sequence[str]) -> None:
        """Show the colours of a layer, from its least to its largest contrast limit."""
        self.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)

    def texts(self) -> list[str]:
        """Return the marks, from left to right."""
        return _texts(self._marks)


def _remove(item: QLayoutItem) -> None:
    """Remove a widget from the screen."""
    widget = item.widget()
    if widget is not None:
        widget.setParent(None)


def _texts(layout: QLayout) -> list[str]:
    """Return the texts of a layout's labels in order."""
    items = [layout.itemAt(n) for n in range(layout.count())]
    labels = [item.widget() for item in items if item is not None]
    return [label.text() for label in labels if isinstance(label, QLabel)]
