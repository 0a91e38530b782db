"""One small chart of an expert load: bars that can be asked, and picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QHelpEvent, QKeyEvent, QMouseEvent, QPainter, QPaintEvent
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_shmoareg.widgets.experts.layers.bar_drawing import Bar, Chart, States

if TYPE_CHECKING:
    from napari_shmoareg.analysis.expert_load import Place

STEPS: dict[int, int] = {Qt.Key.Key_Left.value: -1, Qt.Key.Key_Right.value: 1}
PICKS: tuple[int, ...] = tuple(key.value for key in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space))
HEIGHT = 96  # px


class LoadBars(QWidget):
    """Bars per expert, those of several images side by side; a dotted line at equal shares.

    A click picks a bar; so do the arrow keys and Enter, when the chart has the focus.

    Parameters
    ----------
    title : str
    bars : sequence of Bar
        By expert.
    highest : float
        Share at the upper edge.
    spoken : str
        What it is, for those who do not see it.
    """

    picked = Signal(object)  # the Bar

    def __init__(self, title: str, bars: Sequence[Bar], highest: float, spoken: str) -> None:
        super().__init__()
        self.title, self.bars, self.highest = title, list(bars), highest
        self._at = 0  # where the keys stand
        self._under: int | None = None  # the cursor
        self._marked: int | None = None
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(spoken)
        self.setAccessibleDescription(self.bars[0].says)

    @property
    def marked(self) -> Bar | None:
        """The bar whose map is shown."""
        return None if self._marked is None else self.bars[self._marked]

    def mark(self, place: Place | None, expert: int) -> None:
        """Mark the bar whose map is shown, if it is one of these."""
        found = next((n for n, bar in enumerate(self.bars) if (bar.place, bar.expert) == (place, expert)), None)
        if found != self._marked:
            self._marked = found
            if found is not None:
                self._step_to(found)
            self.update()

    def rect_of(self, index: int) -> QRectF:
        """Where a bar is drawn, in pixels of the chart."""
        return self._chart().rect(index)

    def column_of(self, index: int) -> QRectF:
        """Where a bar can be hit: the whole height over it."""
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
                QToolTip.showText(event.globalPos(), self.bars[index].says, self, self.column_of(index).toRect())
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
        key = int(event.key())  # of which not all have a name
        if key in PICKS:
            self.picked.emit(self.bars[self._at])
        elif key in STEPS:
            self._step_to(self._at + STEPS[key])
            column = self.column_of(self._at).toRect()
            QToolTip.showText(self.mapToGlobal(column.bottomLeft()), self.bars[self._at].says, self)
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        states = States(self._marked, self._under, self._at if self.hasFocus() else None)
        self._chart().paint(painter, self.palette(), self.title, states)
        painter.end()

    def _chart(self) -> Chart:
        return Chart(self.bars, self.highest, QRectF(self.rect()), self.font())

    def _step_to(self, index: int) -> None:
        self._at = min(max(index, 0), len(self.bars) - 1)
        self.setAccessibleDescription(self.bars[self._at].says)
        self.update()

    def _hover(self, index: int | None) -> None:
        if index != self._under:
            self._under = index
            self.update()
