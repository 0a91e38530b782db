"""How a small chart of an expert load is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QPainter, QPalette, QPen

from napari_shmoareg.widgets.legend import GREY

if TYPE_CHECKING:
    from napari_shmoareg.analysis.expert_load import Place

SMALL = 0.82  # of the font
MARGIN = 4.0  # px
MARKED = QColor("#4c8dff")  # seen on light and on dark; napari's palette has no such colour


@dataclass(frozen=True)
class Bar:
    """What is drawn of one expert at one place.

    Attributes
    ----------
    place : Place
    expert : int
    share : float
        Of the selections, 0 to 1: the height.
    colour : str
        ``#rrggbb``.
    mark : str
        Under the bars of this expert, where there is room; else its id.
    says : str
        Tooltip, in lines.
    """

    place: Place
    expert: int
    share: float
    colour: str
    mark: str
    says: str


@dataclass(frozen=True)
class States:
    """Which bars stand out, by their index: whose map is shown, under the cursor, where the keys stand."""

    marked: int | None
    under: int | None
    focused: int | None


class Chart:
    """Where everything of a chart stands, in pixels.

    Parameters
    ----------
    bars : sequence of Bar
        By expert; those of one expert (of several images) stand side by side.
    highest : float
        Share at the upper edge.
    area : QRectF
        Of the whole chart.
    font : QFont
        Of the widget; the chart's is a little smaller.
    """

    def __init__(self, bars: Sequence[Bar], highest: float, area: QRectF, font: QFont) -> None:
        self.bars, self.highest, self.area = bars, highest, area
        self.font = _smaller(font)
        self.metrics = QFontMetricsF(self.font)
        line = self.metrics.height() + 2
        self.plot = area.adjusted(MARGIN, line, -MARGIN, -line)
        self.experts = 1 + max(bar.expert for bar in bars)
        self.step = self.plot.width() / self.experts

    def column(self, index: int) -> QRectF:
        """The whole height of the plot over one bar: where it can be hit."""
        bar = self.bars[index]
        beside = [n for n, other in enumerate(self.bars) if other.expert == bar.expert]
        wide = 0.84 * self.step / len(beside)
        left = self.plot.left() + (bar.expert + 0.08) * self.step + beside.index(index) * wide
        return QRectF(left, self.plot.top(), wide, self.plot.height())

    def rect(self, index: int) -> QRectF:
        """Where a bar is drawn."""
        column = self.column(index)
        height = column.height() * self.bars[index].share / self.highest
        return QRectF(column.left(), column.bottom() - height, column.width(), height)

    def hit(self, point: QPointF) -> int | None:
        """Which bar's column a point lies in."""
        return next((n for n in range(len(self.bars)) if self.column(n).contains(point)), None)

    def paint(self, painter: QPainter, palette: QPalette, title: str, states: States) -> None:
        """Draw it in the colours of the window."""
        text = palette.windowText().color()
        for index, colour in ((states.under, _faded(text, 50)), (states.marked, _faded(MARKED, 110))):
            if index is not None:
                painter.fillRect(self.column(index).adjusted(-1, 0, 1, 0), colour)
        painter.setPen(QPen(GREY, 1))
        for index, bar in enumerate(self.bars):
            painter.setBrush(QColor(bar.colour))
            painter.drawRect(self.rect(index).adjusted(0.5, 0, -0.5, 0))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawLine(self.plot.bottomLeft(), self.plot.bottomRight())
        painter.setPen(QPen(_faded(GREY, 110), 1))
        painter.drawLine(self.plot.topLeft(), self.plot.topRight())
        painter.setPen(QPen(text, 1, Qt.PenStyle.DotLine))
        equal = self.plot.bottom() - self.plot.height() / self.experts / self.highest
        painter.drawLine(QPointF(self.plot.left(), equal), QPointF(self.plot.right(), equal))
        if states.marked is not None:
            painter.setPen(QPen(MARKED, 2))
            painter.drawRect(self.column(states.marked).adjusted(-1, 0, 1, 1))
        if states.focused is not None:
            painter.setPen(QPen(text, 1))
            painter.drawRect(self.column(states.focused).adjusted(-1, 0, 1, 0))
        self._write(painter, text, title)

    def _write(self, painter: QPainter, text: QColor, title: str) -> None:
        """Title, the share at the upper edge, and the experts under their bars as far as there is room."""
        painter.setFont(self.font)
        painter.setPen(text)
        head = QRectF(self.plot.left(), self.area.top(), self.plot.width(), self.plot.top() - self.area.top())
        painter.drawText(head, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, title)
        painter.setPen(_faded(text, 170))
        top = f"{100 * self.highest:.0f} %"
        painter.drawText(head, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, top)
        marks = {bar.expert: bar.mark for bar in self.bars}
        widest = max(self.metrics.horizontalAdvance(mark) for mark in marks.values()) + 3
        if widest > self.step:  # ids alone, the names stand in the tooltips
            marks = {expert: str(expert) for expert in marks}
            widest = max(self.metrics.horizontalAdvance(mark) for mark in marks.values()) + 3
        every = next((n for n in (1, 2, 3, 4, 6) if n * self.step >= widest), self.experts)
        below = self.area.bottom() - self.plot.bottom() - 1
        for expert in range(0, self.experts, every):
            middle = self.plot.left() + (expert + 0.5) * self.step
            under = QRectF(middle - widest, self.plot.bottom() + 1, 2 * widest, below)
            painter.drawText(under, Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignVCenter, marks[expert])


def _smaller(font: QFont) -> QFont:
    font = QFont(font)
    if font.pixelSize() > 0:
        font.setPixelSize(max(9, round(SMALL * font.pixelSize())))
    else:
        font.setPointSizeF(max(7.0, SMALL * font.pointSizeF()))
    return font


def _faded(colour: QColor, alpha: int) -> QColor:
    faded = QColor(colour)
    faded.setAlpha(alpha)
    return faded
