"""Charts that compare pinned locations (Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QFont, QHelpEvent, QPainter, QPaintEvent, QPalette, QPen
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_shmoareg.plugin.controls.legend import GREY

LEFT, BELOW, ABOVE = 26.0, 14.0, 6.0  # px around the bars
SMALL = 9  # font size, px
CELL = 22  # px: height of a row of the table


@dataclass(frozen=True)
class Group:
    """The bars of one location: a value from 0 to 1 per expert, and a colour ``#rrggbb``."""

    name: str
    colour: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """The expert that one location chose in one direction: colour, text and tooltip."""

    colour: str
    text: str
    tooltip: str


class _Chart(QWidget):
    """A chart with tooltips."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def tooltip_at(self, point: QPointF) -> str:
        """The tooltip at a point of the widget."""
        return ""

    def event(self, event: QEvent | None) -> bool:
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.tooltip_at(QPointF(event.pos())), self)
            return True
        return bool(super().event(event))

    def _pen(self) -> QColor:
        return self.palette().color(QPalette.ColorRole.WindowText)

    def _small(self) -> QFont:
        font = QFont(self.font())
        font.setPixelSize(SMALL)
        return font


class PinBars(_Chart):
    """A bar per location for every head of an encoder layer (Fig. 6a)."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: tuple[Group, ...] = ()
        self.highest = 1.0
        self.setFixedHeight(120)

    def show_groups(self, groups: Sequence[Group], highest: float = 1.0) -> None:
        """Show bars of other locations; `highest` is the value at the upper edge."""
        self.groups, self.highest = tuple(groups), highest
        self.setAccessibleDescription(
            "; ".join(
                f"{one.name}: " + ", ".join(f"{value:.2f}" for value in one.values)
                for one in groups
            )
        )
        self.update()

    def tooltip_at(self, point: QPointF) -> str:
        count = len(self.groups[0].values) if self.groups else 0
        area = self._area()
        if not count or not area.left() <= point.x() < area.right():
            return ""
        head = min(int((point.x() - area.left()) / (area.width() / count)), count - 1)
        return "\n".join(
            [f"Head {head}"] + [f"{one.name}: {one.values[head]:.3f}" for one in self.groups]
        )

    def bar(self, group: int, head: int) -> QRectF:
        """The rectangle of a bar, in pixels."""
        area, count = self._area(), len(self.groups[group].values)
        wide = area.width() / count
        each = (wide - 3) / len(self.groups)
        high = area.height() * min(self.groups[group].values[head] / self.highest, 1.0)
        return QRectF(
            area.left() + head * wide + 1.5 + group * each,
            area.bottom() - high,
            max(each - 0.5, 1),
            high,
        )

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter, area = QPainter(self), self._area()
        painter.setFont(self._small())
        for share in (0.0, 0.5, 1.0):
            y = area.bottom() - share * area.height()
            painter.setPen(
                QPen(GREY, 0.5, Qt.PenStyle.SolidLine if share == 0 else Qt.PenStyle.DotLine)
            )
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
            painter.setPen(self._pen())
            mark = QRectF(0, y - 6, LEFT - 4, 12)
            painter.drawText(
                mark,
                Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter,
                f"{share * self.highest:g}",
            )
        count = len(self.groups[0].values) if self.groups else 0
        for head in range(count):
            wide = area.width() / count
            under = QRectF(area.left() + head * wide, area.bottom() + 1, wide, BELOW - 1)
            painter.setPen(self._pen())
            painter.drawText(
                under, Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextDontClip, str(head)
            )
            for group, one in enumerate(self.groups):
                if one.values[head] > 0:
                    painter.fillRect(self.bar(group, head), QColor(one.colour))
        painter.end()

    def _area(self) -> QRectF:
        return QRectF(LEFT, ABOVE, max(self.width() - LEFT - 2, 1), self.height() - ABOVE - BELOW)


class PinTable(_Chart):
    """The kernel that each location chose in each direction, in its colour (Fig. 6b)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[tuple[str, str], ...] = ()
        self.columns: tuple[str, ...] = ()
        self.choices: dict[tuple[int, int], Choice] = {}

    def show_choices(
        self,
        rows: Sequence[tuple[str, str]],
        columns: Sequence[str],
        choices: dict[tuple[int, int], Choice],
    ) -> None:
        """Show other choices.

        Parameters
        ----------
        rows : sequence of (name, colour)
            The locations.
        columns : sequence of str
            The directions of each layer.
        choices : mapping of (row, column) to Choice
        """
        self.rows, self.columns, self.choices = tuple(rows), tuple(columns), choices
        self.setFixedHeight(CELL * (len(self.rows) + 1) + 2)
        self.setAccessibleDescription("; ".join(choice.tooltip for choice in choices.values()))
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(260, CELL * (len(self.rows) + 1) + 2)

    def cell(self, row: int, column: int) -> QRectF:
        """The rectangle of a choice, in pixels."""
        wide = (self.width() - LEFT - 2) / max(len(self.columns), 1)
        return QRectF(LEFT + column * wide, CELL * (row + 1), wide - 2, CELL - 2)

    def tooltip_at(self, point: QPointF) -> str:
        found = [
            choice.tooltip
            for (row, column), choice in self.choices.items()
            if self.cell(row, column).contains(point)
        ]
        return found[0] if found else ""

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        painter.setFont(self._small())
        painter.setPen(self._pen())
        for column, name in enumerate(self.columns):
            above = self.cell(-1, column)
            painter.drawText(above, Qt.AlignmentFlag.AlignCenter, name)
        for row, (name, colour) in enumerate(self.rows):
            first = self.cell(row, 0)
            painter.fillRect(QRectF(2, first.top() + 4, 12, 12), QColor(colour))
            painter.setPen(QColor("black"))
            painter.drawText(QRectF(2, first.top() + 4, 12, 12), Qt.AlignmentFlag.AlignCenter, name)
        for (row, column), choice in self.choices.items():
            area = self.cell(row, column)
            painter.setPen(QPen(GREY, 0.8))
            painter.setBrush(QColor(choice.colour))
            painter.drawRect(area)
            dark = QColor(choice.colour).lightnessF() < 0.6
            painter.setPen(QColor("white" if dark else "black"))
            painter.drawText(area, Qt.AlignmentFlag.AlignCenter, choice.text)
        painter.end()
