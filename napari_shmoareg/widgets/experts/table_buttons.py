"""Copy and Save CSV for a table of figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QApplication, QFileDialog, QHBoxLayout, QPushButton, QWidget

from napari_shmoareg.geometry import InputError
from napari_shmoareg.widgets.quality.rows import as_tsv

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene


def origin_of(scene: Scene) -> dict[str, object]:
    """Which registration the figures of a file are of: columns for each of its rows."""
    return {"pair": f"{scene.pair.moving.name} onto {scene.pair.fixed.name}", "weights": scene.weights}


class TableButtons(QWidget):
    """Two buttons that give the rows of a table to the clipboard or to a file.

    Parameters
    ----------
    rows : callable
        The rows as they are when a button is pressed.
    name : str
        Of the file, to begin with.
    """

    def __init__(self, rows: Callable[[], Sequence[Mapping[str, object]]], name: str) -> None:
        super().__init__()
        self._rows, self._name = rows, name
        self.copy = QPushButton("Copy")
        self.copy.setToolTip("Put the table on the clipboard, for a spreadsheet")
        self.save = QPushButton("Save CSV…")
        self.save.setToolTip("Write the table, with all its figures, to a CSV file")
        self.copy.clicked.connect(self.to_clipboard)
        self.save.clicked.connect(self._ask)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addStretch()
        row.addWidget(self.copy)
        row.addWidget(self.save)

    def to_clipboard(self) -> None:
        """Put the rows on the clipboard, separated by tabs."""
        rows, clipboard = self._rows(), QApplication.clipboard()
        if rows and clipboard is not None:
            clipboard.setText(as_tsv(rows))

    def save_to(self, path: str) -> None:
        """Write the rows as CSV; what keeps them from being written is told."""
        from napari_shmoareg.io.tables import write_table

        try:
            write_table(self._rows(), path)
        except InputError as error:
            show_error(str(error))
        else:
            show_info(f"The table lies in {path}.")

    def _ask(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the table", self._name, "CSV (*.csv)")
        if path:
            self.save_to(path)
