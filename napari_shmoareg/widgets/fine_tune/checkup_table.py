"""The table of a check-up: a line per scan, problems on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QBrush, QColor
from qtpy.QtWidgets import QLabel, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.widgets.experts.table_buttons import TableButtons
from napari_shmoareg.widgets.figure_table import FigureTable
from napari_shmoareg.widgets.fine_tune.fields import WRONG
from napari_shmoareg.widgets.fine_tune.scan_rows import HEADINGS, TIPS, ScanRow, records, rows_of

PARTS = ("train", "validation", "test")
MOST = 320  # pixels of height
WIDEST = 220  # pixels of a column


class CheckupTable(QWidget):
    """What the check-up found, and how the scans are divided."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[ScanRow] = []
        self._shown: object = None
        self.told = QLabel()
        self.told.setWordWrap(True)
        self.table = FigureTable(HEADINGS, TIPS)
        self.table.setMinimumHeight(140)
        self.table.setMaximumHeight(MOST)
        self.table.setWordWrap(False)
        self.buttons = TableButtons(lambda: records(self._rows), "checkup.csv")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.told, self.table, self.buttons):
            column.addWidget(widget)
        self.show_scans([], {})

    def show_scans(self, scans: Sequence[Mapping[str, Any]], parts: Mapping[str, str]) -> None:
        """Show other scans; `parts` says of each name whether it learns, judges or stays unseen."""
        state = (len(scans), tuple(map(id, scans[-1:])), tuple(parts.items()))
        if state == self._shown:
            return
        self._shown = state
        self._rows = rows_of(scans, parts)
        self.told.setText(summary(self._rows, parts))
        self.table.setSortingEnabled(False)
        self.table.setRowCount(len(self._rows))
        for n, row in enumerate(self._rows):
            for column, text in enumerate(row.texts):
                self.table.setItem(n, column, _Cell(text, row.numbers[column], row.problem and column < 2))
        header = self.table.horizontalHeader()
        assert header is not None
        header.setMaximumSectionSize(WIDEST)
        header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.table.setColumnHidden(1, not any(row.problem for row in self._rows))
        self.table.setColumnHidden(2, not parts)
        self.table.setSortingEnabled(True)
        for widget in (self.table, self.buttons):
            widget.setVisible(bool(self._rows))


class _Cell(QTableWidgetItem):
    """A cell that sorts by its number, where it has one."""

    def __init__(self, text: str, number: float | None, stands_out: bool) -> None:
        super().__init__(text)
        self.number = number
        self.setToolTip(f"<qt>{text}</qt>" if len(text) > 20 else "")
        if stands_out:
            self.setForeground(QBrush(QColor(WRONG)))

    def __lt__(self, other: QTableWidgetItem) -> bool:
        its = getattr(other, "number", None)
        if self.number is None or its is None:
            return self.text() < other.text() if self.number is its else its is None
        return self.number < its


def summary(rows: Sequence[ScanRow], parts: Mapping[str, str]) -> str:
    """``24 scans, 2 left out. 16 learn (train), 4 judge (validation), 2 stay unseen (test).``"""
    if not rows:
        return ""
    out = sum(row.problem for row in rows)
    text = f"{len(rows)} scans, {out} left out." if out else f"{len(rows)} scans, all can be used."
    counts = Counter(parts.values())
    does = dict(zip(PARTS, ("learn", "judge", "stay unseen"), strict=True))
    divided = [f"{counts[part]} {does[part]} ({part})" for part in PARTS if part in counts]
    return f"{text} {', '.join(divided)}." if divided else text
