"""The decision of a gate for one cell, drawn as a strip of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QColor,
    QFont,
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
    from napari_shmoareg.experts.location import CellReading
    from napari_shmoareg.model.routing import GateId


PICK_KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space)
GAP = 1.0  # px between two boxes
FAINT = 60  # of 255: opacity of a chosen box above its fill
BOX, WIDE_BOX, TEXT = 20, 18, 12  # px: heights


def gate_name(gate: GateId) -> str:
    """Name a gate: ``encoder layer 1, block 0, moving``, ``decoder layer 2, x``."""
    block = "" if gate.block is None else f", block {gate.block}"
    return f"{gate.part} layer {gate.layer}{block}, {gate.image or gate.direction}"


def short(value: float, digits: int = 2) -> str:
    """Format a number from 0 to 1 as ``.41``; ``?`` if unknown."""
    return "?" if value != value else f"{value:.{digits}f}".removeprefix("0")


class CellStrip(QWidget):
    """A strip with a box per expert; a click or Enter picks the gate.

    Parameters
    ----------
    gate : GateId
    names : sequence of str
        Of the experts, by id.
    colours : sequence of str
        Of the experts, by id: ``#rrggbb``.
    """

    picked = Signal(object)  # the GateId

    def __init__(self, gate: GateId, names: Sequence[str], colours: Sequence[str]) -> None:
        super().__init__()
        self.gate, self._names = gate, list(names)
        self._colours = [QColor(colour) for colour in colours]
        self.cell: CellReading | None = None
        self._marked = False
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName(gate_name(gate))

    def show_cell(self, cell: CellReading | None) -> None:
        """Show a decision of the gate, or None."""
        self.cell = cell
        self.setAccessibleDescription(self.line())
        self.update()

    def mark(self, on: bool) -> None:
        """Mark this as the gate with the cell outlined in the canvas."""
        if on != self._marked:
            self._marked = on
            self.update()

    @property
    def marked(self) -> bool:
        """Whether the cell of this gate is outlined in the canvas."""
        return self._marked

    def fills(self) -> dict[int, float]:
        """Return the drawn fill of the boxes, 0 to 1, by expert."""
        return (
            {}
            if self.cell is None
            else dict(zip(self.cell.experts, self.cell.weights, strict=True))
        )

    def line(self) -> str:
        """Return the text below the boxes."""
        return ""

    def brief(self) -> str:
        """Return a shorter text, for less room."""
        return self.line()

    def tooltip(self, expert: int) -> str:
        """Return the tooltip of a box."""
        if self.cell is None:
            return gate_name(self.gate)
        cell, value = (
            self.cell,
            "" if self.cell.values is None else f"gate value {self.cell.values[expert]:.4f}",
        )
        weight = dict(zip(cell.experts, cell.weights, strict=True)).get(expert)
        chosen = (
            "not chosen"
            if weight is None
            else "chosen"
            if weight != weight
            else f"chosen, weight {weight:.4f}"
        )
        certainty = (
            ""
            if cell.entropy is None
            else f"\nEntropy {cell.entropy:.3f}, margin {cell.margin:.4f}"
        )
        size = " × ".join(f"{mm:.1f}" for mm in cell.size)
        details = "; ".join(part for part in (chosen, value) if part)
        where = f"Cell {cell.cell} of {size} mm"
        return f"{self._names[expert]} of {gate_name(self.gate)}: {details}.{certainty}\n{where}"

    def box(self, expert: int) -> QRectF:
        """Return the drawn area of a box, in pixels of the strip."""
        width = (self.width() - 2) / len(self._names)
        return QRectF(1 + expert * width, 1, width - GAP, self.height() - TEXT - 3)

    def event(self, event: QEvent | None) -> bool:
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            point = QPointF(event.pos())
            hit = next(
                (
                    n
                    for n in range(len(self._names))
                    if self.box(n).left() <= point.x() < self.box(n).right()
                ),
                0,
            )
            QToolTip.showText(event.globalPos(), self.tooltip(hit), self)
            return True
        return bool(super().event(event))

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        if event is not None and event.button() == Qt.MouseButton.LeftButton:
            self.picked.emit(self.gate)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        if event is not None and Qt.Key(event.key()) in PICK_KEYS:
            self.picked.emit(self.gate)
        else:
            super().keyPressEvent(event)

    def sizeHint(self) -> QSize:
        return QSize(130, BOX + TEXT + 3)

    def minimumSizeHint(self) -> QSize:
        return QSize(90, BOX + TEXT + 3)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        for expert in range(len(self._names)):
            self._paint_box(painter, expert, self.box(expert))
        painter.setPen(self.palette().color(QPalette.ColorRole.WindowText))
        painter.setFont(self._font(9))
        below = QRectF(1, self.height() - TEXT - 1, self.width() - 2, TEXT)
        fits = painter.fontMetrics().horizontalAdvance(self.line()) <= below.width()
        text = self.line() if fits else self.brief()
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, text)
        if self._marked or self.hasFocus():
            style = Qt.PenStyle.SolidLine if self._marked else Qt.PenStyle.DotLine
            painter.setPen(QPen(self.palette().color(QPalette.ColorRole.WindowText), 1, style))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(QRectF(0.5, 0.5, self.width() - 1, self.height() - 1))
        painter.end()

    def _paint_box(self, painter: QPainter, expert: int, area: QRectF) -> None:
        """Draw a box; overridden per kind of gate."""

    def _font(self, pixels: float) -> QFont:
        font = QFont(self.font())
        font.setPixelSize(max(6, round(pixels)))
        return font


class TokenStrip(CellStrip):
    """The heads of an encoder gate; chosen ones are tinted, and filled by weight (Eq. 4)."""

    def line(self) -> str:
        return "   ".join(f"{head} {short(weight, 3)}" for head, weight in self.fills().items())

    def brief(self) -> str:
        return "  ".join(f"{head} {short(weight)}" for head, weight in self.fills().items())

    def _paint_box(self, painter: QPainter, expert: int, area: QRectF) -> None:
        fill = self.fills().get(expert)
        text = QColor(GREY)
        if fill is not None:
            tint = QColor(self._colours[expert])
            tint.setAlpha(FAINT)
            painter.fillRect(area, tint)
            high = area.height() * min(max(fill, 0.0), 1.0)
            painter.fillRect(
                QRectF(area.left(), area.bottom() - high, area.width(), high),
                QColor(self._colours[expert]),
            )
            text = self.palette().color(QPalette.ColorRole.WindowText)
        painter.setPen(QPen(GREY, 0.6))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(area)
        painter.setPen(text)
        painter.setFont(self._font(min(10.0, 0.85 * area.width())))
        painter.drawText(
            area.adjusted(0, 0, 0, -5),
            Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextDontClip,
            str(expert),
        )


class DirectionStrip(CellStrip):
    """The experts of a decoder gate, filled by value (T of Eq. 6); the chosen one is outlined."""

    def fills(self) -> dict[int, float]:
        if self.cell is None or self.cell.values is None:
            return {}
        return dict(enumerate(self.cell.values))

    def line(self) -> str:
        if self.cell is None:
            return ""
        if self.cell.margin is None:
            return "gate values were not saved"
        return f"margin {self.cell.margin:.3f}   entropy {self.cell.entropy:.3f}"

    def _paint_box(self, painter: QPainter, expert: int, area: QRectF) -> None:
        fill = self.fills().get(expert)
        chosen = self.cell is not None and expert in self.cell.experts
        if fill is not None:
            shade = QColor(GREY)
            shade.setAlpha(130)
            painter.fillRect(
                QRectF(area.left(), area.top(), area.width() * min(fill, 1.0), area.height()), shade
            )
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(GREY, 0.6))
        painter.drawRect(area)
        if chosen:
            painter.setPen(QPen(self._colours[expert], 3))
            painter.drawRect(area.adjusted(2, 2, -2, -2))
            painter.setPen(QPen(GREY, 0.6))
            painter.drawRect(area.adjusted(4, 4, -4, -4))
        painter.setPen(self.palette().color(QPalette.ColorRole.WindowText))
        font = self._font(10)
        font.setBold(chosen)
        painter.setFont(font)
        text = self._names[expert] + ("" if fill is None else f"  {short(fill)}")
        painter.drawText(area, Qt.AlignmentFlag.AlignCenter, text)
