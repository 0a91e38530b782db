"""The table of landmark pairs: distances before, after the affine and after all, mm."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QApplication, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.widgets.figure_table import Figure, FigureTable
from napari_shmoareg.widgets.landmarks.layers import Distances
from napari_shmoareg.widgets.quality.rows import as_tsv

HEADINGS = ("pair", "before", "affine", "after")
TIPS = (
    "Number of the pair, as in the image.",
    "Distance of the two points as the images are filed, mm.",
    "Distance from where the affine takes the fixed point to the moving point, mm.",
    "Target registration error: distance from where the registration takes the fixed point to the moving point, mm.",
)
WHOLE = ("mean", "SD", "max")


class LandmarkTable(QWidget):
    """Mean, SD and maximum over all pairs, and each pair below; a click on a pair asks to show it."""

    asked = Signal(int)  # the pair, from 0, that was clicked
    chosen_changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._distances = Distances(*(np.zeros(0) for _ in range(3)))
        self.whole = FigureTable(("mm", *HEADINGS[1:]), ("Over all pairs.", *TIPS[1:]), stretch="all")
        self.pairs = FigureTable(HEADINGS, TIPS, stretch="all")
        self.pairs.setSortingEnabled(True)
        self.pairs.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.pairs.setToolTip("Click a pair to bring it into view, a heading to sort.")
        self.pairs.cellClicked.connect(lambda row, _column: self.asked.emit(self._pair_in(row)))
        self.pairs.itemSelectionChanged.connect(self.chosen_changed.emit)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.whole)
        layout.addWidget(self.pairs, 1)

    @property
    def chosen(self) -> set[int]:
        """The pairs that are selected, from 0."""
        return {self._pair_in(row) for row in self.pairs.selected_rows()}

    def show_distances(self, found: Distances) -> None:
        """Show other distances; what is selected and the order stay."""
        self._distances = found
        stages = found.before, found.affine, found.after
        self.whole.setRowCount(len(WHOLE) if len(found.before) else 0)
        for row, name in enumerate(WHOLE if len(found.before) else ()):
            cells = [QTableWidgetItem(name), *(Figure(_over_all(name, values), ".2f") for values in stages)]
            font = cells[-1].font()
            font.setBold(True)
            cells[-1].setFont(font)
            for column, cell in enumerate(cells):
                self.whole.setItem(row, column, cell)
        self.whole.fit(self.whole.rowCount())
        self._show_pairs(np.stack(stages, axis=1))

    def to_clipboard(self) -> None:
        """Put the distances on the clipboard, separated by tabs."""
        found, clipboard = self._distances, QApplication.clipboard()
        rows = [
            {"pair": n, "before_mm": before, "affine_mm": affine, "after_mm": after}
            for n, (before, affine, after) in enumerate(zip(found.before, found.affine, found.after, strict=True), 1)
        ]
        if rows and clipboard is not None:
            clipboard.setText(as_tsv([{k: None if np.isnan(v) else round(v, 4) for k, v in r.items()} for r in rows]))

    def _show_pairs(self, distances: np.ndarray) -> None:
        chosen = self.chosen
        blocked = self.pairs.blockSignals(True)
        self.pairs.setSortingEnabled(False)
        self.pairs.setRowCount(len(distances))
        for n, row in enumerate(distances):
            self.pairs.setItem(n, 0, Figure(n + 1, "d"))
            for column, value in enumerate(row, 1):
                self.pairs.setItem(n, column, Figure(None if np.isnan(value) else float(value), ".2f"))
        self.pairs.setSortingEnabled(True)
        self.pairs.select_rows([row for row in range(len(distances)) if self._pair_in(row) in chosen])
        self.pairs.blockSignals(blocked)
        self.chosen_changed.emit()

    def _pair_in(self, row: int) -> int:
        cell = self.pairs.item(row, 0)
        return int(cell.text()) - 1 if cell is not None else -1


def _over_all(name: str, values: np.ndarray) -> float | None:
    """ "mean", "SD" (of a sample) or "max"; None where it is not known."""
    if np.isnan(values).any() or (name == "SD" and len(values) < 2):
        return None
    if name == "SD":
        return float(np.std(values, ddof=1))
    return float(values.mean() if name == "mean" else values.max())
