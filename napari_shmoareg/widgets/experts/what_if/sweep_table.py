"""The importance of all experts, a row each, as they come."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QSizePolicy, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.widgets.experts.table_buttons import TableButtons
from napari_shmoareg.widgets.figure_table import Figure, FigureTable

if TYPE_CHECKING:
    from napari_shmoareg.analysis.importance import ImportanceRow
    from napari_shmoareg.widgets.experts.what_if.experimenting import Sweep

SHOWN = 12  # rows before it scrolls
ALIKE = 0.98  # share of the cells that have to choose as recorded, for the weights to count as the same
COUNTERPART = (
    "other experts' selections, as many, in patches alike, in the same shares of content and background; one draw"
)
HEADINGS = (
    "Gate",
    "Expert",
    "moved, mm",
    "random",
    "times",
    "Dice",
    "random",
    "Share, %",
    "95 %, mm",
    "Folding, pp",
    "Turned, %",
)
TIPS = (
    "Part, layer and direction; the blocks of an encoder layer are changed together, for both images",
    "Id from 0. Click a row to see the expert's map",
    "How far the change moved the displacement, mean over what the fixed image shows",
    f"The same for {COUNTERPART}",
    f"How many times as far as the random counterpart: {COUNTERPART}",
    "Mean Dice with the change minus without it: below 0 the change harmed",
    f"The same for {COUNTERPART}",
    "Share of the selections of these gates",
    "95th percentile of how far it moved",
    "Change of the share of folded voxels, in percentage points",
    "Share of the cells meant, at which others were chosen than without the change",
)


class SweepTable(FigureTable):
    """Rows of importance, which come one by one and can be sorted meanwhile."""

    def __init__(self) -> None:
        super().__init__(HEADINGS, TIPS)
        self.setToolTip("Click a heading to sort, a row to see the expert's map.")
        self.rows: list[ImportanceRow] = []
        self.show_rows([])

    def show_rows(self, rows: list[ImportanceRow]) -> None:
        """Show other rows, from the start."""
        self.rows = []
        self.setRowCount(0)
        self.setSortingEnabled(True)
        self.sortByColumn(-1, Qt.SortOrder.DescendingOrder)
        for row in rows:
            self.add(row)

    def add(self, row: ImportanceRow) -> None:
        """Show one more row."""
        self.setSortingEnabled(False)
        at = self.rowCount()
        self.setRowCount(at + 1)
        gate = QTableWidgetItem(gate_of(row))
        gate.setData(Qt.ItemDataRole.UserRole, len(self.rows))
        self.rows.append(row)
        cells = [
            gate,
            Figure(row.expert, "d"),
            Figure(row.mean_mm, ".3f"),
            Figure(row.null_mm, ".3f"),
            Figure(times(row), ".2f"),
            Figure(row.mean_dice_change, "+.4f"),
            Figure(row.null_dice_change, "+.4f"),
            Figure(100 * row.share, ".1f"),
            Figure(row.p95_mm, ".3f"),
            Figure(row.folding_change, "+.4f"),
            Figure(100 * row.changed, ".1f"),
        ]
        for column, cell in enumerate(cells):
            self.setItem(at, column, cell)
        self.setSortingEnabled(True)
        if len(self.rows) <= SHOWN:
            self.fit(self.rowCount())

    def chosen(self) -> ImportanceRow | None:
        """The row that is selected; None without any."""
        rows = self.selected_rows()
        item = self.item(rows[0], 0) if rows else None
        return None if item is None else self.rows[int(item.data(Qt.ItemDataRole.UserRole))]


def other_weights(alike: float) -> list[str]:
    """A warning where the network that was run does not choose as the registration did."""
    if alike >= ALIKE:
        return []
    return [
        f"The weights that were found choose as this registration says at only {100 * alike:.0f} % of the cells: are "
        "they the ones it was made with? If not, press 'Choose weights…'."
    ]


class SweepBox(QWidget):
    """The table, with what was done above it, and its buttons."""

    def __init__(self) -> None:
        super().__init__()
        self.sweep: Sweep | None = None
        self.heading, self.note, self.table = QLabel(), QLabel(), SweepTable()
        self.buttons = TableButtons(lambda: [] if self.sweep is None else self.sweep.table(), "importance.csv")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for label in (self.heading, self.note):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        for widget in (self.heading, self.note, self.table, self.buttons):
            column.addWidget(widget)
        self.show_sweep(None)

    def show_sweep(self, sweep: Sweep | None) -> None:
        """Show another sweep, from its first row, or none."""
        if sweep is not self.sweep or sweep is None:
            self.sweep = sweep
            self.table.show_rows([])
        self.follow()

    def follow(self) -> None:
        """Show the rows that have come since."""
        sweep = self.sweep
        for row in [] if sweep is None else sweep.rows[len(self.table.rows) :]:
            self.table.add(row)
        if sweep is not None:
            self.heading.setText(f"<b>{escape(sweep.title)}</b><br>{escape(', '.join(map(str, sweep.about.values())))}")
            self.note.setText("\n".join(other_weights(sweep.alike)))
        for widget in (self.heading, self.table, self.buttons):
            widget.setVisible(bool(self.table.rows))
        self.note.setVisible(bool(self.table.rows) and bool(self.note.text()))


def gate_of(row: ImportanceRow) -> str:
    """``decoder 1 x``, ``encoder 3``."""
    return " ".join(str(part) for part in (row.part, row.layer, row.direction) if part is not None)


def times(row: ImportanceRow) -> float | None:
    """How many times as far the expert's change moved things as that of random experts."""
    return row.mean_mm / row.null_mm if row.null_mm else None
