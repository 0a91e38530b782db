"""What colours mean: swatches with names and shares, and ramps from one number to another."""

from __future__ import annotations

from collections.abc import Sequence

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

GREY = QColor(128, 128, 128)  # of edges: seen on light and on dark


class Swatch(QWidget):
    """A little field of one colour.

    Parameters
    ----------
    colour : str
        ``#rrggbb``.
    """

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
    """Rows of a colour, its name and a share in percent; a share of nothing is left out."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rows = QGridLayout(self)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setVerticalSpacing(2)
        self._rows.setColumnStretch(1, 1)
        self._named: list[tuple[str, str]] = []
        self._shares: list[QLabel] = []

    def show_entries(self, entries: Sequence[tuple[str, str, float | None]]) -> None:
        """Show other rows: colour, name, share (0 to 1, or None)."""
        kept = [(colour, name) for colour, name, _ in entries]
        if kept == self._named:  # other shares only: nothing flickers
            for label, (_, _, share) in zip(self._shares, entries, strict=True):
                label.setText(_percent(share))
            return
        self._named, self._shares = kept, []
        while (item := self._rows.takeAt(0)) is not None:
            _drop(item)
        for row, (colour, name, share) in enumerate(entries):
            said = QLabel(_percent(share))
            self._shares.append(said)
            said.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            named = QLabel(name)
            named.setWordWrap(True)
            for column, widget in enumerate((Swatch(colour), named, said)):
                self._rows.addWidget(widget, row, column)

    def texts(self) -> list[str]:
        """What is written, row by row."""
        return _written(self._rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


class _Band(QWidget):
    """Colours beside each other, on mid grey where they are clear."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = np.zeros((0, 4))
        self.setFixedHeight(12)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        gradient = QLinearGradient(0, 0, self.width(), 0)
        for at, rgba in zip(np.linspace(0, 1, len(self.colours)), self.colours, strict=True):
            gradient.setColorAt(float(at), QColor.fromRgbF(*(float(v) for v in rgba)))
        area = QRectF(0.5, 0.5, self.width() - 1, self.height() - 1)
        painter.fillRect(area, GREY)
        painter.setPen(GREY)
        painter.setBrush(gradient)
        painter.drawRect(area)
        painter.end()


class Ramp(QWidget):
    """A band of colours with numbers under it, evenly spread."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._band, self._under = _Band(), QHBoxLayout()
        arranged(QVBoxLayout(self), self._band, self._under).setSpacing(1)

    def show_colours(self, colours: ArrayLike, marks: Sequence[str]) -> None:
        """Show other colours, (n, 4) from 0 to 1, from left to right, and two or three marks."""
        self._band.colours = np.asarray(colours, dtype=float)
        self._band.update()
        while (item := self._under.takeAt(0)) is not None:
            _drop(item)
        for n, mark in enumerate(marks):
            side = Qt.AlignmentFlag.AlignLeft if n == 0 else Qt.AlignmentFlag.AlignHCenter
            label = QLabel(mark)
            label.setAlignment(Qt.AlignmentFlag.AlignRight if n == len(marks) - 1 else side)
            self._under.addWidget(label)

    def texts(self) -> list[str]:
        """The marks, from left to right."""
        return _written(self._under)


def _drop(item: QLayoutItem) -> None:
    """Take what a layout held off the screen."""
    widget = item.widget()
    if widget is not None:
        widget.setParent(None)


def _written(layout: QLayout) -> list[str]:
    """The texts of a layout's labels, in their order."""
    items = [layout.itemAt(n) for n in range(layout.count())]
    labels = [item.widget() for item in items if item is not None]
    return [label.text() for label in labels if isinstance(label, QLabel)]
