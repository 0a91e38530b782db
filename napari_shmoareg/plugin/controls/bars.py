"""Painted charts of experts: bars (`BarChart`) and boxes in rows (`BoxChart`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QPoint, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QColor,
    QFont,
    QFontInfo,
    QFontMetricsF,
    QHelpEvent,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
)
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_shmoareg.plugin.controls.legend import GREY

if TYPE_CHECKING:
    from napari_shmoareg.model.routing import GateId


SMALL = 0.82  # of the font size
MARGIN, AXIS = 4.0, 26.0  # px beside the bars; at the left of them with numbers of an axis
MARKED = QColor("#4c8dff")  # visible on light and dark themes, and not in napari's palette
CENTRE = Qt.AlignmentFlag.AlignCenter
LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
STEP_KEYS: dict[int, int] = {Qt.Key.Key_Left.value: -1, Qt.Key.Key_Right.value: 1}
PICK_KEYS: tuple[int, ...] = tuple(
    key.value for key in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space)
)


@dataclass(frozen=True)
class Bar:
    """The bar of one expert at one gate.

    Attributes
    ----------
    gate : GateId
    expert : int
    value : float
        The height: a share of selections, a weight or a gate value, from 0.
    colour : str
        ``#rrggbb`` or ``#aarrggbb``.
    mark : str
        Label below the bars of this expert, replaced by its id if there is no room.
    tooltip : str
        "" for that of the chart.
    interval : (float, float), optional
        Drawn as a line with two ends.
    """

    gate: GateId
    expert: int
    value: float
    colour: str
    mark: str
    tooltip: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Box(Bar):
    """A framed cell with its mark inside, filled from the bottom up to its value, from 0 to 1; not
    filled if that is NaN.

    Attributes
    ----------
    row, column : int
    back, ring, ink : str
        Colours of the background, of an inner outline and of the mark; "" for none, none and that
        of the window.
    sideways : bool
        Whether it is filled from the left instead.
    bold : bool
    """

    row: int = 0
    column: int = 0
    back: str = ""
    ring: str = ""
    ink: str = ""
    sideways: bool = False
    bold: bool = False


class Chart(QWidget):
    """A painted chart with a tooltip per bar; a click, or the arrow keys and Enter, pick a bar.

    Subclasses place and paint the bars.

    Parameters
    ----------
    size : (int, int, int)
        Preferred and minimum width, and height, in pixels.
    pickable : bool
        Whether bars can be picked.
    accessible_name : str
        For screen readers.
    """

    picked = Signal(object)  # the Bar

    def __init__(
        self, size: tuple[int, int, int], *, pickable: bool = False, accessible_name: str = ""
    ) -> None:
        super().__init__()
        self.bars: list[Bar] = []
        self._size, self._pickable = size, pickable
        self._focused = 0  # by the keyboard
        self._hovered: int | None = None
        self._marked: int | None = None
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(accessible_name)
        if pickable:
            self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            self.setMouseTracking(True)
            self.setCursor(Qt.CursorShape.PointingHandCursor)

    def show_bars(self, bars: Iterable[Bar], description: str | None = None) -> None:
        """Replace the bars, and the description for screen readers (default: the first tooltip)."""
        self.bars = list(bars)
        first = self.bars[0].tooltip if self.bars else ""
        self.setAccessibleDescription(first if description is None else description)
        self.update()

    @property
    def marked(self) -> Bar | None:
        """The marked bar: that with the displayed map or outlined cell."""
        return None if self._marked is None else self.bars[self._marked]

    def mark(self, gate: GateId | None, expert: int = 0) -> None:
        """Mark the bar of an expert at a gate, if it is in this chart."""
        found = next(
            (n for n, bar in enumerate(self.bars) if (bar.gate, bar.expert) == (gate, expert)),
            None,
        )
        if found != self._marked:
            self._marked = found
            self.update()

    def rect_of(self, index: int) -> QRectF:
        """Return the drawn area of a bar, in pixels of the chart."""
        return QRectF(self.rect())

    def column_of(self, index: int) -> QRectF:
        """Return the clickable area of a bar, in pixels of the chart."""
        return self.rect_of(index)

    def paint(self, painter: QPainter, text: QColor) -> None:
        """Draw the chart; `text` is the colour of the window's text."""

    def sizeHint(self) -> QSize:
        return QSize(self._size[0], self._size[2])

    def minimumSizeHint(self) -> QSize:
        return QSize(self._size[1], self._size[2])

    def event(self, event: QEvent | None) -> bool:
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            index = self._hit(event.pos())
            if index is not None and self.bars[index].tooltip:
                area = self.column_of(index).toRect()
                QToolTip.showText(event.globalPos(), self.bars[index].tooltip, self, area)
                return True
            QToolTip.hideText()
        return bool(super().event(event))

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:
        if event is not None and self._pickable:
            self._hover(self._hit(event.pos()))

    def leaveEvent(self, event: QEvent | None) -> None:
        self._hover(None)
        super().leaveEvent(event)

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        if event is None or not self._pickable:
            super().mousePressEvent(event)
        elif event.button() == Qt.MouseButton.LeftButton:
            index = self._hit(event.pos())
            if index is not None:
                self._step_to(index)
                self.picked.emit(self.bars[index])

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        key = 0 if event is None else int(event.key())  # not all keys have a name
        if self._pickable and self.bars and key in PICK_KEYS:
            self.picked.emit(self.bars[self._focused])
        elif self._pickable and self.bars and key in STEP_KEYS:
            self._step_to(self._focused + STEP_KEYS[key])
            column = self.column_of(self._focused).toRect()
            QToolTip.showText(
                self.mapToGlobal(column.bottomLeft()), self.bars[self._focused].tooltip, self
            )
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        self.paint(painter, self.palette().windowText().color())
        painter.end()

    def _hit(self, point: QPoint) -> int | None:
        bars = range(len(self.bars))
        return next((n for n in bars if self.column_of(n).contains(QPointF(point))), None)

    def _step_to(self, index: int) -> None:
        self._focused = min(max(index, 0), len(self.bars) - 1)
        self.setAccessibleDescription(self.bars[self._focused].tooltip)
        self.update()

    def _hover(self, index: int | None) -> None:
        if index != self._hovered:
            self._hovered = index
            self.update()


class BarChart(Chart):
    """Bars per expert, those of the same expert (for images, pins or a reference) side by side.

    Parameters
    ----------
    title : str
    highest : float
        Value at the upper edge.
    pickable, accessible_name
        As for `Chart`.
    height : int
        In pixels.
    fill, widest : float
        Share of an expert's width that its bars take, and the largest width of a bar in pixels.
    equal : bool
        Whether a dotted line is at equal shares.
    axis : bool
        Whether numbers are at the left, and lines at the half and at the whole; otherwise the
        highest share is written above.
    """

    def __init__(
        self,
        title: str = "",
        highest: float = 1.0,
        *,
        pickable: bool = False,
        accessible_name: str = "",
        height: int = 96,
        fill: float = 0.84,
        widest: float = float("inf"),
        equal: bool = False,
        axis: bool = False,
    ) -> None:
        super().__init__((150, 70, height), pickable=pickable, accessible_name=accessible_name)
        self.title, self.highest = title, highest
        self._fill, self._widest, self._equal, self._axis = fill, widest, equal, axis

    def mark(self, gate: GateId | None, expert: int = 0) -> None:
        before = self._marked
        super().mark(gate, expert)
        if self._marked is not None and self._marked != before:
            self._step_to(self._marked)

    @property
    def plot(self) -> QRectF:
        """The area of the bars, in pixels of the chart."""
        line = QFontMetricsF(_smaller(self.font())).height() + 2
        left = AXIS if self._axis else MARGIN
        return QRectF(self.rect()).adjusted(left, line, -MARGIN, -line)

    def column_of(self, index: int) -> QRectF:
        """Return the clickable area of a bar: the whole height of the plot."""
        bar, plot, step = self.bars[index], self.plot, self._step
        group = [n for n, other in enumerate(self.bars) if other.expert == bar.expert]
        width = min(self._fill * step / len(group), self._widest)
        middle = plot.left() + (bar.expert + 0.5) * step
        left = middle + (group.index(index) - len(group) / 2) * width
        return QRectF(left, plot.top(), width, plot.height())

    def rect_of(self, index: int) -> QRectF:
        column = self.column_of(index)
        height = column.height() * min(self.bars[index].value / self.highest, 1.0)
        return QRectF(column.left(), column.bottom() - height, column.width(), height)

    def paint(self, painter: QPainter, text: QColor) -> None:
        if not self.bars:
            return
        plot = self.plot
        for index, colour in ((self._hovered, _faded(text, 50)), (self._marked, _faded(MARKED))):
            if index is not None:
                painter.fillRect(self.column_of(index).adjusted(-1, 0, 1, 0), colour)
        if self._axis:
            self._draw_axis(painter, plot, text)
        painter.setPen(QPen(GREY, 1) if self._pickable else QPen(Qt.PenStyle.NoPen))
        for index, bar in enumerate(self.bars):
            painter.setBrush(QColor(bar.colour))
            if bar.value > 0 or self._pickable:
                painter.drawRect(self.rect_of(index).adjusted(0.5, 0, -0.5, 0))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for index, bar in enumerate(self.bars):
            if bar.interval is not None:
                painter.setPen(text)
                self._draw_interval(painter, self.column_of(index), bar.interval)
        painter.setPen(QPen(GREY, 1))
        painter.drawLine(plot.bottomLeft(), plot.bottomRight())
        if self._equal:
            painter.setPen(QPen(_faded(GREY), 1))
            painter.drawLine(plot.topLeft(), plot.topRight())
            painter.setPen(QPen(text, 1, Qt.PenStyle.DotLine))
            _level(painter, plot, 1 / self._experts / self.highest)
        if self._marked is not None:
            painter.setPen(QPen(MARKED, 2))
            painter.drawRect(self.column_of(self._marked).adjusted(-1, 0, 1, 1))
        if self.hasFocus():
            painter.setPen(QPen(text, 1))
            painter.drawRect(self.column_of(self._focused).adjusted(-1, 0, 1, 0))
        self._write(painter, plot, text)

    @property
    def _experts(self) -> int:
        return 1 + max(bar.expert for bar in self.bars)

    @property
    def _step(self) -> float:
        return self.plot.width() / self._experts

    def _draw_axis(self, painter: QPainter, plot: QRectF, text: QColor) -> None:
        painter.setFont(_sized(self.font(), TABLE_FONT))
        for share in (0.0, 0.5, 1.0):
            painter.setPen(QPen(GREY, 0.5, Qt.PenStyle.DotLine))
            y = _level(painter, plot, share)
            painter.setPen(text)
            mark = QRectF(0, y - 8, plot.left() - 4, 16)
            painter.drawText(mark, RIGHT, f"{share * self.highest:g}")

    def _draw_interval(
        self, painter: QPainter, column: QRectF, interval: tuple[float, float]
    ) -> None:
        x = column.center().x()
        ends = [column.bottom() - column.height() * end / self.highest for end in interval]
        painter.drawLine(QPointF(x, ends[0]), QPointF(x, ends[1]))
        for y in ends:
            painter.drawLine(QPointF(x - 2, y), QPointF(x + 2, y))

    def _write(self, painter: QPainter, plot: QRectF, text: QColor) -> None:
        """Write the title, the share at the upper edge, and the experts if there is room."""
        metrics = QFontMetricsF(_smaller(self.font()))
        painter.setFont(_smaller(self.font()))
        painter.setPen(text)
        head = QRectF(plot.left(), 0, plot.width(), plot.top())
        painter.drawText(head, LEFT, self.title)
        painter.setPen(_faded(text, 170))
        if not self._axis:
            top = f"{100 * self.highest:.0f} %"
            painter.drawText(head, RIGHT if self.title else LEFT, top)
        marks = {bar.expert: bar.mark for bar in self.bars}
        step, widest = self._step, max(map(metrics.horizontalAdvance, marks.values())) + 3
        if widest > step:  # only ids: the names are in the tooltips
            marks = {expert: str(expert) for expert in marks}
            widest = max(map(metrics.horizontalAdvance, marks.values())) + 3
        every = next((n for n in (1, 2, 3, 4, 6) if n * step >= widest), len(marks))
        for expert in range(0, len(marks), every):
            middle = plot.left() + (expert + 0.5) * step
            below = QRectF(middle - widest, plot.bottom() + 1, 2 * widest, plot.top() - 1)
            painter.drawText(below, CENTRE, marks[expert])


STRIP_HEIGHT, LINE_HEIGHT, ROW_HEIGHT = 35, 14, 22  # px: of a strip, its text, a row of a table
BOX_FONT, TABLE_FONT = 10.0, 9.0  # px


class BoxChart(Chart):
    """Boxes in rows: a strip with a text below, or a table with headings and named rows.

    Parameters
    ----------
    pickable, accessible_name
        As for `Chart`.

    Attributes
    ----------
    lines : sequence of str
        Texts below a strip: the first that fits is drawn, or else the last.
    columns : sequence of str
        Headings of a table.
    rows : sequence of (str, str)
        Names and colours of the rows of a table; empty for a strip.
    """

    def __init__(self, *, pickable: bool = False, accessible_name: str = "") -> None:
        super().__init__(
            (130, 90, STRIP_HEIGHT), pickable=pickable, accessible_name=accessible_name
        )
        self.lines: Sequence[str] = ()
        self.columns: Sequence[str] = ()
        self.rows: Sequence[tuple[str, str]] = ()

    def show_table(
        self, rows: Sequence[tuple[str, str]], columns: Sequence[str], boxes: Iterable[Box]
    ) -> None:
        """Show a table: names and colours of the rows, headings of the columns, and the boxes."""
        self.rows, self.columns, boxes = tuple(rows), tuple(columns), tuple(boxes)
        self._size = 260, 90, ROW_HEIGHT * (len(self.rows) + 1) + 2
        self.updateGeometry()
        self.show_bars(boxes, "; ".join(box.tooltip for box in boxes))

    def rect_of(self, index: int) -> QRectF:
        box = self.bars[index]
        assert isinstance(box, Box)
        if self.rows:
            return self._cell(box.row, box.column)
        width = (self.width() - 2) / len(self.bars)
        return QRectF(1 + box.column * width, 1, width - 1, self.height() - LINE_HEIGHT - 1)

    def column_of(self, index: int) -> QRectF:
        """Return the clickable area: of a strip, also the text below."""
        area = self.rect_of(index)
        return area if self.rows else area.adjusted(-1, -1, 1, LINE_HEIGHT + 1)

    def paint(self, painter: QPainter, text: QColor) -> None:
        for index, box in enumerate(self.bars):
            if isinstance(box, Box):
                self._draw_box(painter, box, self.rect_of(index), text)
        painter.setPen(text)
        painter.setFont(_sized(self.font(), TABLE_FONT))
        for column, heading in enumerate(self.columns):
            painter.drawText(self._cell(-1, column), CENTRE, heading)
        for row, (name, colour) in enumerate(self.rows):
            swatch = QRectF(2, self._cell(row, 0).top() + 4, 12, 12)
            painter.fillRect(swatch, QColor(colour))
            painter.setPen(QColor("black"))
            painter.drawText(swatch, CENTRE, name)
        if self.lines:
            below = QRectF(1, self.height() - LINE_HEIGHT + 1, self.width() - 2, LINE_HEIGHT - 2)
            width = painter.fontMetrics().horizontalAdvance
            fits = (line for line in self.lines if width(line) <= below.width())
            painter.drawText(below, LEFT, next(fits, self.lines[-1]))
        if self._marked is not None or self.hasFocus():
            style = Qt.PenStyle.DotLine if self._marked is None else Qt.PenStyle.SolidLine
            painter.setPen(QPen(text, 1, style))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(QRectF(0.5, 0.5, self.width() - 1, self.height() - 1))

    def _cell(self, row: int, column: int) -> QRectF:
        width = (self.width() - AXIS - 2) / max(len(self.columns), 1)
        return QRectF(AXIS + column * width, ROW_HEIGHT * (row + 1), width - 2, ROW_HEIGHT - 2)

    def _draw_box(self, painter: QPainter, box: Box, area: QRectF, text: QColor) -> None:
        if box.back:
            painter.fillRect(area, QColor(box.back))
        filled, value = QRectF(area), 0.0 if box.value != box.value else min(box.value, 1.0)
        if box.sideways:
            filled.setWidth(area.width() * value)
        else:
            filled.setTop(area.bottom() - area.height() * value)
        painter.fillRect(filled, QColor(box.colour))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(GREY, 0.6))
        painter.drawRect(area)
        if box.ring:
            painter.setPen(QPen(QColor(box.ring), 3))
            painter.drawRect(area.adjusted(2, 2, -2, -2))
            painter.setPen(QPen(GREY, 0.6))
            painter.drawRect(area.adjusted(4, 4, -4, -4))
        narrow = min(BOX_FONT, 0.85 * area.width())
        font = _sized(self.font(), TABLE_FONT if self.rows else narrow)
        font.setBold(box.bold)
        painter.setFont(font)
        painter.setPen(QColor(box.ink) if box.ink else text)
        raised = area if self.rows or box.sideways else area.adjusted(0, 0, 0, -5)
        painter.drawText(raised, CENTRE | Qt.TextFlag.TextDontClip, box.mark)


def _level(painter: QPainter, plot: QRectF, share: float) -> float:
    """Draw a horizontal line at a share of the height, and return its y."""
    y = plot.bottom() - share * plot.height()
    painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
    return y


def _smaller(font: QFont) -> QFont:
    return _sized(font, max(9, SMALL * QFontInfo(font).pixelSize()))


def _sized(font: QFont, pixels: float) -> QFont:
    font = QFont(font)
    font.setPixelSize(max(6, round(pixels)))
    return font


def _faded(colour: QColor, alpha: int = 110) -> QColor:
    faded = QColor(colour)
    faded.setAlpha(alpha)
    return faded
