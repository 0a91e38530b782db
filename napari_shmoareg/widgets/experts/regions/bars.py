"""Bars of a region's shares beside those of the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPalette
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_shmoareg.widgets.legend import GREY

REGION = "#f08c00"
REFERENCE = "#868e96"
HEIGHT = 120
FOOT, HEAD = 18, 16  # pixels for the names, and for the largest share


class RegionBars(QWidget):
    """For each expert a bar of the region, with its 95 % interval, and one of the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.share: NDArray[np.float64] = np.zeros(0)
        self.reference: NDArray[np.float64] | None = None
        self.low: NDArray[np.float64] | None = None
        self.high: NDArray[np.float64] | None = None
        self.names: list[str] = []
        self.setFixedHeight(HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip("Share of selections per expert: orange the region with its 95 % interval, grey the reference")

    def show_shares(
        self,
        share: NDArray[np.float64],
        reference: NDArray[np.float64] | None,
        names: Sequence[str],
        low: NDArray[np.float64] | None = None,
        high: NDArray[np.float64] | None = None,
    ) -> None:
        """Show other shares (N,), from 0 to 1, and their intervals where there are any."""
        self.share, self.reference, self.names = np.asarray(share), reference, list(names)
        self.low, self.high = low, high
        self.update()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        if not len(self.share):
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        tops = [self.share, *(values for values in (self.reference, self.high) if values is not None)]
        top = max(float(max(values.max() for values in tops)), 1e-6)
        base, full = self.height() - FOOT, self.height() - FOOT - HEAD
        width = self.width() / len(self.share)
        bar = min(width * 0.36, 34.0)
        text = self.palette().color(QPalette.ColorRole.WindowText)
        font = painter.font()
        font.setPointSizeF(max(6.5, font.pointSizeF() * 0.8))
        painter.setFont(font)
        for n, share in enumerate(self.share):
            middle = (n + 0.5) * width
            pairs = [(middle - bar, float(share), REGION)]
            if self.reference is not None:
                pairs.append((middle, float(self.reference[n]), REFERENCE))
            for left, value, colour in pairs:
                height = full * value / top
                painter.fillRect(QRectF(left, base - height, bar - 1, height), QColor(colour))
            painter.setPen(text)
            if self.low is not None and self.high is not None:
                x = middle - bar / 2
                ends = [base - full * float(values[n]) / top for values in (self.low, self.high)]
                painter.drawLine(QPointF(x, ends[0]), QPointF(x, ends[1]))
                for y in ends:
                    painter.drawLine(QPointF(x - 2, y), QPointF(x + 2, y))
            place = QRectF(n * width, base + 1, width, FOOT - 2)
            painter.drawText(place, Qt.AlignmentFlag.AlignCenter, self.names[n] if n < len(self.names) else str(n))
        painter.setPen(GREY)
        painter.drawLine(QPointF(0, base), QPointF(self.width(), base))
        painter.setPen(text)
        painter.drawText(QRectF(0, 0, self.width(), HEAD), Qt.AlignmentFlag.AlignLeft, f"{100 * top:.0f} %")
        painter.end()
