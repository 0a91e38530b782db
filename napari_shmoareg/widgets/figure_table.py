"""Tables of figures: cells that sort by number."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap, QPolygon
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_shmoareg.widgets.notices import CAUTION, ON_CAUTION
from napari_shmoareg.widgets.quality.rows import shown


class Figure(QTableWidgetItem):
    """A cell that sorts by its number; cells without one come last."""

    def __init__(self, value: float | None, form: str) -> None:
        super().__init__(shown(value, form))
        self.value = value
        self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def mark_fallen(self) -> None:
        """Mark a figure that became worse: an arrow down, in the colour of cautions."""
        self.setBackground(QColor(CAUTION))
        self.setForeground(QColor(ON_CAUTION))
        self.setIcon(_arrow_down())

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, its = self.value, getattr(other, "value", None)
        return its is None if mine is None or its is None else mine < its


class FigureTable(QTableWidget):
    """A table that is read, not edited, whose rows are selected whole.

    Parameters
    ----------
    headings : sequence of str
    tips : sequence of str
        Of the headings, where they have any.
    stretch : {"none", "first", "all"}
        Which columns take the width that is left; the others are as wide as they need.
    """

    def __init__(self, headings: Sequence[str], tips: Sequence[str] = (), stretch: str = "none") -> None:
        super().__init__(0, len(headings))
        for column, heading in enumerate(headings):
            item = QTableWidgetItem(heading)
            item.setToolTip(tips[column] if tips else "")
            self.setHorizontalHeaderItem(column, item)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setShowGrid(False)
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        assert rows is not None and columns is not None
        rows.setVisible(False)
        self._columns, modes = columns, QHeaderView.ResizeMode
        columns.setSectionResizeMode(modes.Stretch if stretch == "all" else modes.ResizeToContents)
        if stretch == "first":
            columns.setSectionResizeMode(0, modes.Stretch)

    def fit(self, rows: int) -> None:
        """Make it as high as some of its rows, and as its scroll bar, should it need one."""
        height = self._columns.sizeHint().height() + 2 * self.frameWidth() + sum(self.rowHeight(n) for n in range(rows))
        bar = self.horizontalScrollBar()
        stretched = self._columns.sectionResizeMode(0) == QHeaderView.ResizeMode.Stretch
        wide = self._columns.length() > self.width() and not stretched
        self.setFixedHeight(height + (bar.sizeHint().height() if bar is not None and wide else 2))

    def selected_rows(self) -> list[int]:
        """The rows that are selected."""
        model = self.selectionModel()
        return [] if model is None else sorted(index.row() for index in model.selectedRows())

    def select_rows(self, rows: Sequence[int]) -> None:
        """Select these rows and no others."""
        self.clearSelection()
        mode = self.selectionMode()
        self.setSelectionMode(QAbstractItemView.SelectionMode.MultiSelection)
        for row in rows:
            self.selectRow(row)
        self.setSelectionMode(mode)


def _arrow_down() -> QIcon:
    picture = QPixmap(16, 16)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(ON_CAUTION))
    painter.drawRect(6, 1, 4, 8)
    painter.drawPolygon(QPolygon([QPoint(2, 8), QPoint(14, 8), QPoint(8, 15)]))
    painter.end()
    return QIcon(picture)
