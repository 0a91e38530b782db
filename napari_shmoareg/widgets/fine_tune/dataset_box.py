"""What is learned from: files on the disk, or open layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QMenu,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_shmoareg.io.untrusted import is_there, typed_path
from napari_shmoareg.widgets.fine_tune.layers_box import LayersBox
from napari_shmoareg.widgets.register.form import captioned

if TYPE_CHECKING:
    from napari import Viewer

FILES, LAYERS = "Files on the disk", "Open layers"
KINDS = ("auto", "folder", "list", "learn2reg", "oasis", "btcv")
LISTS = "Lists (*.csv *.json)"
TIPS = {
    "dataset": "A folder of images, a CSV or JSON list of them, a Learn2Reg data set (its folder or its json), or the "
    "folder of OASIS or BTCV.",
    "images": "Which files are images, such as images/*.nii.gz; empty: all images that are no labels by their name.",
    "labels": "Which files are their labels, such as labels/*.nii.gz, or how their names are made, such as "
    "{name}_seg.nii.gz; empty: those that are called so.",
    "subject": "A regular expression with one group that finds the subject in a scan's name, such as (sub-\\d+); "
    "empty: by the name as usual. All scans of a subject stay on one side of the split.",
    "window": "Two values at which intensities are cut off, in the units of the files, such as -160,240 for soft "
    "tissue in CT; empty: none.",
    "kind": "How the data set is laid out. auto looks.",
}
HINTS = {"images": "all images", "labels": "as they are called", "subject": "from the names", "window": "none"}


class DatasetBox(QWidget):
    """Asks where the scans are.

    Parameters
    ----------
    viewer : Viewer
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.source = QComboBox()
        self.source.addItems([FILES, LAYERS])
        self.source.setToolTip("Where the scans are that are learned from.")
        self.path = QLineEdit()
        self.path.setPlaceholderText("folder or list")
        self.path.setToolTip(f"<qt>{TIPS['dataset']}</qt>")
        self.browse = QToolButton()
        self.browse.setText("Choose…")
        self.browse.setToolTip("Choose a folder, or a list.")
        self.browse.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.browse)
        menu.addAction("Folder…").triggered.connect(self._choose_folder)  # type: ignore[union-attr]
        menu.addAction("List (CSV, JSON)…").triggered.connect(self._choose_list)  # type: ignore[union-attr]
        self.browse.setMenu(menu)
        self.patterns = {name: QLineEdit() for name in HINTS}
        self.kind = QComboBox()
        self.kind.addItems(KINDS)
        self.layers = LayersBox(viewer)
        self._files = self._files_page()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.source, self._files, self.layers):
            column.addWidget(widget)
        self.source.currentIndexChanged.connect(self._turn)
        for line in (self.path, *self.patterns.values()):
            line.textChanged.connect(self.changed)
        self.kind.currentIndexChanged.connect(self.changed)
        self.layers.changed.connect(self.changed)
        self._turn()

    @property
    def from_layers(self) -> bool:
        """Whether open layers are learned from."""
        return self.source.currentText() == LAYERS

    @property
    def finding(self) -> dict[str, str]:
        """How files are found: the words that were given."""
        words = {name: line.text().strip() for name, line in self.patterns.items()}
        return {name: word for name, word in words.items() if word} | (
            {} if self.kind.currentText() == "auto" else {"kind": self.kind.currentText()}
        )

    @property
    def missing(self) -> str | None:
        """What keeps it from being used, in a few words; None if nothing does."""
        if self.from_layers:
            return None if len(self.layers.picked) > 1 else "Tick two image layers"
        text = self.path.text().strip()
        if not text:
            return "Choose a data set"
        return None if is_there(typed_path(text)) else "There is no such data set"

    def refresh(self) -> None:
        """Offer the layers that are open now, if layers are asked for."""
        if self.from_layers:
            self.layers.refresh()

    def _files_page(self) -> QWidget:
        page, more = QWidget(), QWidget()
        row = QHBoxLayout()
        row.addWidget(self.path, 1)
        row.addWidget(self.browse)
        form = QFormLayout(more)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for name, line in self.patterns.items():
            line.setPlaceholderText(HINTS[name])
            line.setToolTip(f"<qt>{TIPS[name]}</qt>")
            form.addRow(captioned(name.capitalize(), TIPS[name]), line)
        self.kind.setToolTip(f"<qt>{TIPS['kind']}</qt>")
        form.addRow(captioned("Layout", TIPS["kind"]), self.kind)
        self.more = QCollapsible("How the files are found")
        self.more.setDuration(0)
        self.more.setCollapsedIcon("▶")
        self.more.setExpandedIcon("▼")
        self.more.addWidget(more)
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.more)
        return page

    def _turn(self, *_: object) -> None:
        """Show what belongs to the source."""
        self._files.setVisible(not self.from_layers)
        self.layers.setVisible(self.from_layers)
        self.refresh()
        self.changed.emit()

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Data set", self.path.text() or str(Path.home()))
        if path:
            self.path.setText(path)

    def _choose_list(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Data set", self.path.text() or str(Path.home()), LISTS)
        if path:
            self.path.setText(path)
