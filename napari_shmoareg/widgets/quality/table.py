"""Two tables of figures: of the whole registration, and of each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_shmoareg.geometry import InputError
from napari_shmoareg.widgets.figure_table import Figure, FigureTable
from napari_shmoareg.widgets.notices import look_like_caution
from napari_shmoareg.widgets.quality.rows import (
    HEADINGS,
    LABEL_HEADINGS,
    PER_LABEL,
    as_tsv,
    cautions_of,
    has_fallen,
    label_rows,
    sides_of,
    summary_rows,
    table_of,
)

DICE_AFTER = LABEL_HEADINGS.index("Dice\nafter")
LABELS_SHOWN = 12  # rows of the table of labels before it scrolls


class QualityTable(QWidget):
    """Figures before, after the affine and after all, with a table of labels to unfold."""

    def __init__(self) -> None:
        super().__init__()
        self._report: Mapping[str, Any] | None = None
        self.warnings = QLabel()
        self.warnings.setWordWrap(True)
        self.warnings.setTextFormat(Qt.TextFormat.PlainText)
        look_like_caution(self.warnings, on=True)
        self.whole = FigureTable(HEADINGS, stretch="first")
        self.labels = FigureTable(LABEL_HEADINGS)
        self.labels.setSortingEnabled(True)
        self.labels.setToolTip("Overlap (Dice) and surface distances (mm) of each label. Click a heading to sort.")
        self.fold = QCollapsible("Each label")
        self.fold.setToolTip("Show or hide the figures of each label.")
        self.fold.addWidget(self.labels)
        self.copy = QPushButton("Copy")
        self.copy.setToolTip("Put both tables on the clipboard, for a spreadsheet.")
        self.copy.clicked.connect(self.to_clipboard)
        self.save = QPushButton("Save table…")
        self.save.setToolTip("Write both tables to a CSV file.")
        self.save.clicked.connect(self._ask)
        row = QHBoxLayout()
        row.addStretch()
        row.addWidget(self.copy)
        row.addWidget(self.save)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for part in (self.warnings, self.whole, self.fold):
            layout.addWidget(part)
        layout.addLayout(row)
        self.show_report(None)

    def show_report(self, report: Mapping[str, Any] | None) -> None:
        """Show the figures of a registration; None for none."""
        self._report = report
        told = [] if report is None else cautions_of(report)
        self.warnings.setText("\n\n".join(told))
        self.warnings.setVisible(bool(told))
        rows = [] if report is None else summary_rows(report)
        self.whole.setRowCount(len(rows))
        for n, row in enumerate(rows):
            name = QTableWidgetItem(row.name)
            figures = [Figure(value, row.form) for value in row.values]
            if row.name.startswith("Dice") and has_fallen(row.values):
                figures[-1].mark_fallen()
            cells = [name, *figures]
            font = name.font()
            font.setBold(True)
            cells[-1].setFont(font)
            for column, cell in enumerate(cells):
                cell.setToolTip(row.tip)
                self.whole.setItem(n, column, cell)
        self.whole.fit(len(rows))
        labels = [] if report is None else label_rows(report)
        self._show_labels(labels)
        self.fold.setVisible(bool(labels))
        for button in (self.copy, self.save):
            button.setEnabled(report is not None)

    def to_clipboard(self) -> None:
        """Put both tables on the clipboard, separated by tabs."""
        clipboard = QApplication.clipboard()
        if self._report is not None and clipboard is not None:
            clipboard.setText(as_tsv(table_of(self._report)))

    def save_to(self, path: str) -> None:
        """Write both tables as CSV; what keeps it from being written is told."""
        from napari_shmoareg.io.tables import write_table

        if self._report is None:
            return
        try:
            write_table(table_of(self._report), path)
        except InputError as error:
            show_error(str(error))
        else:
            show_info(f"The table lies in {path}.")

    def _show_labels(self, labels: list[list[float | None]]) -> None:
        forms = ["d", *(form for _, _, form in PER_LABEL for _ in range(3))]
        sides = sides_of(self._report)
        self.labels.setSortingEnabled(False)
        self.labels.setRowCount(len(labels))
        for n, row in enumerate(labels):
            for column, (value, form) in enumerate(zip(row, forms, strict=True)):
                cell = Figure(value, form)
                only = sides.get(int(row[0] or 0))
                if only is not None:
                    cell.setToolTip(f"Only the {only} image has this label: it is in no mean.")
                    if column == 0:
                        cell.setText(f"{cell.text()} ({only} only)")
                if column == DICE_AFTER and has_fallen(row[1 : DICE_AFTER + 1]):
                    cell.mark_fallen()
                self.labels.setItem(n, column, cell)
        self.labels.setSortingEnabled(True)
        self.labels.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.labels.resizeColumnsToContents()
        self.labels.fit(min(len(labels), LABELS_SHOWN))

    def _ask(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the table", "quality.csv", "CSV (*.csv)")
        if path:
            self.save_to(path)
