"""Bar charts of expert loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QColor,
    QFont,
    QFontMetricsF,
    QHelpEvent,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPalette,
    QPen,
)
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_shmoareg.plugin.controls.legend import GREY

if TYPE_CHECKING:
    from napari_shmoareg.model.routing import GateId


SMALL = 0.82  # of the font size
MARGIN = 4.0  # px
MARKED = QColor("#4c8dff")  # visible on light and dark themes, and not in napari's palette


@dataclass(frozen=True)
class Bar:
    """The bar of one expert at one gate.

    Attributes
    ----------
    gate : GateId
    expert : int
    share : float
        Share of the selections, 0 to 1: the height.
    colour : str
        ``#rrggbb``.
    mark : str
        Label below the bars of this expert, replaced by its id if there is no room.
    tooltip : str
    """

    gate: GateId
    expert: int
    share: float
    colour: str
    mark: str
    tooltip: str


@dataclass(frozen=True)
class States:
    """Indices of the highlighted bars: `marked` (map shown), `hovered` and `focused` (keyboard)."""

    marked: int | None
    hovered: int | None
    focused: int | None


class Chart:
    """The geometry of a chart in pixels.

    Parameters
    ----------
    bars : sequence of Bar
        By expert; those of the same expert (for several images) are side by side.
    highest : float
        Share at the upper edge.
    area : QRectF
        The whole chart.
    font : QFont
        Font of the widget; the chart uses a slightly smaller one.
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
        """Return the clickable area of a bar: the whole height of the plot."""
        bar = self.bars[index]
        group = [n for n, other in enumerate(self.bars) if other.expert == bar.expert]
        width = 0.84 * self.step / len(group)
        left = self.plot.left() + (bar.expert + 0.08) * self.step + group.index(index) * width
        return QRectF(left, self.plot.top(), width, self.plot.height())

    def rect(self, index: int) -> QRectF:
        """Return the drawn area of a bar."""
        column = self.column(index)
        height = column.height() * self.bars[index].share / self.highest
        return QRectF(column.left(), column.bottom() - height, column.width(), height)

    def hit(self, point: QPointF) -> int | None:
        """Return the index of the bar whose column contains a point."""
        return next((n for n in range(len(self.bars)) if self.column(n).contains(point)), None)

    def paint(self, painter: QPainter, palette: QPalette, title: str, states: States) -> None:
        """Draw the chart in the colours of the window."""
        text = palette.windowText().color()
        for index, colour in (
            (states.hovered, _faded(text, 50)),
            (states.marked, _faded(MARKED, 110)),
        ):
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
        """Write the title, the share at the upper edge, and the experts if there is room."""
        painter.setFont(self.font)
        painter.setPen(text)
        head = QRectF(
            self.plot.left(), self.area.top(), self.plot.width(), self.plot.top() - self.area.top()
        )
        painter.drawText(head, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, title)
        painter.setPen(_faded(text, 170))
        top = f"{100 * self.highest:.0f} %"
        painter.drawText(head, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, top)
        marks = {bar.expert: bar.mark for bar in self.bars}
        widest = max(self.metrics.horizontalAdvance(mark) for mark in marks.values()) + 3
        if widest > self.step:  # only ids: the names are in the tooltips
            marks = {expert: str(expert) for expert in marks}
            widest = max(self.metrics.horizontalAdvance(mark) for mark in marks.values()) + 3
        every = next((n for n in (1, 2, 3, 4, 6) if n * self.step >= widest), self.experts)
        below = self.area.bottom() - self.plot.bottom() - 1
        for expert in range(0, self.experts, every):
            middle = self.plot.left() + (expert + 0.5) * self.step
            label_area = QRectF(middle - widest, self.plot.bottom() + 1, 2 * widest, below)
            painter.drawText(
                label_area,
                Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignVCenter,
                marks[expert],
            )


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


STEP_KEYS: dict[int, int] = {Qt.Key.Key_Left.value: -1, Qt.Key.Key_Right.value: 1}
PICK_KEYS: tuple[int, ...] = tuple(
    key.value for key in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space)
)
HEIGHT = 96  # px


class LoadBars(QWidget):
    """Bars per expert, those of several images side by side; a dotted line at equal shares.

    A click picks a bar, or the arrow keys and Enter.

    Parameters
    ----------
    title : str
    bars : sequence of Bar
        By expert.
    highest : float
        Share at the upper edge.
    accessible_name : str
        For screen readers.
    """

    picked = Signal(object)  # the Bar

    def __init__(
        self, title: str, bars: Sequence[Bar], highest: float, accessible_name: str
    ) -> None:
        super().__init__()
        self.title, self.bars, self.highest = title, list(bars), highest
        self._focused = 0  # by the keyboard
        self._hovered: int | None = None
        self._marked: int | None = None
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(accessible_name)
        self.setAccessibleDescription(self.bars[0].tooltip)

    @property
    def marked(self) -> Bar | None:
        """The bar with the displayed map."""
        return None if self._marked is None else self.bars[self._marked]

    def mark(self, gate: GateId | None, expert: int) -> None:
        """Mark the bar with the displayed map, if it is in this chart."""
        found = next(
            (n for n, bar in enumerate(self.bars) if (bar.gate, bar.expert) == (gate, expert)),
            None,
        )
        if found != self._marked:
            self._marked = found
            if found is not None:
                self._step_to(found)
            self.update()

    def rect_of(self, index: int) -> QRectF:
        """Return the drawn area of a bar, in pixels of the chart."""
        return self._chart().rect(index)

    def column_of(self, index: int) -> QRectF:
        """Return the clickable area of a bar, in pixels of the chart."""
        return self._chart().column(index)

    def sizeHint(self) -> QSize:
        return QSize(150, HEIGHT)

    def minimumSizeHint(self) -> QSize:
        return QSize(70, HEIGHT)

    def event(self, event: QEvent | None) -> bool:
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            index = self._chart().hit(QPointF(event.pos()))
            if index is None:
                QToolTip.hideText()
            else:
                QToolTip.showText(
                    event.globalPos(),
                    self.bars[index].tooltip,
                    self,
                    self.column_of(index).toRect(),
                )
            return True
        return bool(super().event(event))

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:
        if event is not None:
            self._hover(self._chart().hit(QPointF(event.pos())))

    def leaveEvent(self, event: QEvent | None) -> None:
        self._hover(None)
        super().leaveEvent(event)

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        if event is not None and event.button() == Qt.MouseButton.LeftButton:
            index = self._chart().hit(QPointF(event.pos()))
            if index is not None:
                self._step_to(index)
                self.picked.emit(self.bars[index])

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        if event is None:
            return
        key = int(event.key())  # not all keys have a name
        if key in PICK_KEYS:
            self.picked.emit(self.bars[self._focused])
        elif key in STEP_KEYS:
            self._step_to(self._focused + STEP_KEYS[key])
            column = self.column_of(self._focused).toRect()
            QToolTip.showText(
                self.mapToGlobal(column.bottomLeft()), self.bars[self._focused].tooltip, self
            )
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        states = States(self._marked, self._hovered, self._focused if self.hasFocus() else None)
        self._chart().paint(painter, self.palette(), self.title, states)
        painter.end()

    def _chart(self) -> Chart:
        return Chart(self.bars, self.highest, QRectF(self.rect()), self.font())

    def _step_to(self, index: int) -> None:
        self._focused = min(max(index, 0), len(self.bars) - 1)
        self.setAccessibleDescription(self.bars[self._focused].tooltip)
        self.update()

    def _hover(self, index: int | None) -> None:
        if index != self._hovered:
            self._hovered = index
            self.update()


REGION = "#f08c00"
REFERENCE = "#868e96"
REGION_BARS_HEIGHT = 120
FOOT, HEAD = 18, 16  # pixels for the names and for the largest share


class RegionBars(QWidget):
    """Per expert, a bar of the region with its 95 % interval and a bar of the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.share: NDArray[np.float64] = np.zeros(0)
        self.reference: NDArray[np.float64] | None = None
        self.low: NDArray[np.float64] | None = None
        self.high: NDArray[np.float64] | None = None
        self.names: list[str] = []
        self.setFixedHeight(REGION_BARS_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(
            "Share of selections per expert: orange the region with its 95 % interval, grey the"
            " reference"
        )

    def show_shares(
        self,
        share: NDArray[np.float64],
        reference: NDArray[np.float64] | None,
        names: Sequence[str],
        low: NDArray[np.float64] | None = None,
        high: NDArray[np.float64] | None = None,
    ) -> None:
        """Replace the shares (N,), from 0 to 1, and the optional intervals."""
        self.share, self.reference, self.names = np.asarray(share), reference, list(names)
        self.low, self.high = low, high
        self.update()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        if not len(self.share):
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        tops = [
            self.share,
            *(values for values in (self.reference, self.high) if values is not None),
        ]
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
            area = QRectF(n * width, base + 1, width, FOOT - 2)
            painter.drawText(
                area,
                Qt.AlignmentFlag.AlignCenter,
                self.names[n] if n < len(self.names) else str(n),
            )
        painter.setPen(GREY)
        painter.drawLine(QPointF(0, base), QPointF(self.width(), base))
        painter.setPen(text)
        painter.drawText(
            QRectF(0, 0, self.width(), HEAD), Qt.AlignmentFlag.AlignLeft, f"{100 * top:.0f} %"
        )
        painter.end()
