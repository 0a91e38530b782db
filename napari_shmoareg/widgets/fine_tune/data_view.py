"""The tab of the data: what is learned from, and what the check-up says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_shmoareg.io.untrusted import typed_path
from napari_shmoareg.widgets.fine_tune.checking import Checking
from napari_shmoareg.widgets.fine_tune.checkup_table import CheckupTable
from napari_shmoareg.widgets.fine_tune.dataset_box import DatasetBox

if TYPE_CHECKING:
    from napari import Viewer

CHECK, CANCEL = "Check the scans", "Cancel"
TIP = (
    "Read every scan once: shape, spacing, orientation, values, labels, and how well it lies on another one after "
    "alignment. A run does this by itself when it starts; what was found is kept for it."
)
LATER = "Open layers are checked when the run starts."


class DataView(QWidget):
    """Data set, check-up and its table.

    Parameters
    ----------
    viewer : Viewer
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.dataset, self.table = DatasetBox(viewer), CheckupTable()
        self.check, self.told, self.checking = QPushButton(CHECK), QLabel(), Checking(self)
        self.told.setWordWrap(True)
        self.check.setToolTip(f"<qt>{TIP}</qt>")
        # For settings, weights, and the preset of what begins from nothing.
        self.asks: Callable[[], tuple[Mapping[str, Any], str, str | None]] = lambda: ({}, "auto", None)
        self._scans: list[Mapping[str, Any]] = []
        self._of_run: object = None  # what was shown of a run last
        self.check.clicked.connect(self._press)
        self.dataset.changed.connect(self._show)
        self.dataset.changed.connect(self.changed)
        self.checking.came.connect(self._came)
        self.checking.done.connect(self._done)
        self.checking.failed.connect(self._failed)
        row = QHBoxLayout()
        row.addWidget(self.told, 1)
        row.addWidget(self.check)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.dataset)
        column.addLayout(row)
        column.addWidget(self.table)
        self._show()

    def show_run(self, scans: Sequence[Mapping[str, Any]], parts: Mapping[str, str], problems: Sequence[str]) -> None:
        """Show what a run found of its scans, and what it warns of: once, so that a later check-up stays."""
        now = (len(scans), tuple(map(id, scans[-1:])), tuple(parts.items()), tuple(problems))
        if now == self._of_run:
            return
        self._of_run = now
        self.table.show_scans(scans, parts)
        if problems and not self.checking.busy:
            self.told.setText("\n".join(problems))

    def give_way(self) -> None:
        """End a check-up, as a run begins that does its own."""
        if self.checking.busy:
            self.checking.drop()
            self.told.setText("")
            self._show()

    def _press(self) -> None:
        if self.checking.busy:
            self.checking.cancel()
            self.check.setEnabled(False)
            return
        self._scans = []
        self.table.show_scans([], {})
        path = typed_path(self.dataset.path.text().strip())
        self.checking.begin(path, self.dataset.finding, *self.asks())
        self.told.setText("Opening the data set…")
        self._show()

    def _came(self, scans: Sequence[Mapping[str, Any]], of: int) -> None:
        self._scans += scans
        self.told.setText(f"{len(self._scans)} of {of} scans")
        self.table.show_scans(self._scans, {})

    def _done(self, parts: Mapping[str, str], problems: str) -> None:
        self.table.show_scans(self._scans, parts)
        self.told.setText(problems)
        self._show()

    def _failed(self, text: str) -> None:
        self.told.setText(text)
        self._show()

    def _show(self) -> None:
        busy, ready = self.checking.busy, self.dataset.missing is None and not self.dataset.from_layers
        self.check.setText(CANCEL if busy else CHECK)
        self.check.setEnabled(busy or ready)
        if self.dataset.from_layers and not busy:
            self.told.setText(LATER)
        elif self.told.text() == LATER:
            self.told.setText("")
