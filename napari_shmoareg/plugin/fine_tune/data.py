"""The Data tab: the data set, its quality check and the table of scans."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QBrush, QColor
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMenu,
    QPushButton,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_shmoareg.io.untrusted import is_there, typed_path
from napari_shmoareg.plugin.controls.forms import arranged, captioned
from napari_shmoareg.plugin.controls.tables import FigureTable, TableButtons
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task, preload
from napari_shmoareg.plugin.fine_tune.form import ERROR_COLOUR
from napari_shmoareg.plugin.fine_tune.open_layers import LayersBox
from napari_shmoareg.plugin.fine_tune.run_model import PARTS
from napari_shmoareg.plugin.fine_tune.scan_rows import HEADINGS, ScanRow, records, rows_of
from napari_shmoareg.plugin.fine_tune.scan_rows import TIPS as SCAN_TIPS

if TYPE_CHECKING:
    from napari import Viewer


MAX_HEIGHT = 320  # pixels
MAX_COLUMN_WIDTH = 220  # pixels


class CheckupTable(QWidget):
    """The results of the quality check and the split of the scans."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[ScanRow] = []
        self._shown: object = None
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.table = FigureTable(HEADINGS, SCAN_TIPS)
        self.table.setMinimumHeight(140)
        self.table.setMaximumHeight(MAX_HEIGHT)
        self.table.setWordWrap(False)
        self.buttons = TableButtons(lambda: records(self._rows), "checkup.csv")
        arranged(QVBoxLayout(self), self.message, self.table, self.buttons)
        self.show_scans([], {})

    def show_scans(self, scans: Sequence[Mapping[str, Any]], parts: Mapping[str, str]) -> None:
        """Show scans; `parts` maps their names to train, validation or test."""
        state = (len(scans), tuple(map(id, scans[-1:])), tuple(parts.items()))
        if state == self._shown:
            return
        self._shown = state
        self._rows = rows_of(scans, parts)
        self.message.setText(summary(self._rows, parts))
        self.table.setSortingEnabled(False)
        self.table.setRowCount(len(self._rows))
        for n, row in enumerate(self._rows):
            for column, text in enumerate(row.texts):
                self.table.setItem(
                    n, column, _Cell(text, row.numbers[column], row.problem and column < 2)
                )
        header = self.table.horizontalHeader()
        assert header is not None
        header.setMaximumSectionSize(MAX_COLUMN_WIDTH)
        header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.table.setColumnHidden(1, not any(row.problem for row in self._rows))
        self.table.setColumnHidden(2, not parts)
        self.table.setSortingEnabled(True)
        for widget in (self.table, self.buttons):
            widget.setVisible(bool(self._rows))


class _Cell(QTableWidgetItem):
    """A cell that sorts by its number, if it has one."""

    def __init__(self, text: str, number: float | None, highlighted: bool) -> None:
        super().__init__(text)
        self.number = number
        self.setToolTip(f"<qt>{text}</qt>" if len(text) > 20 else "")
        if highlighted:
            self.setForeground(QBrush(QColor(ERROR_COLOUR)))

    def __lt__(self, other: QTableWidgetItem) -> bool:
        theirs = getattr(other, "number", None)
        if self.number is None or theirs is None:
            return self.text() < other.text() if self.number is theirs else theirs is None
        return self.number < theirs


def summary(rows: Sequence[ScanRow], parts: Mapping[str, str]) -> str:
    """``24 scans, 2 excluded. 16 train, 4 validation, 2 test.``"""
    if not rows:
        return ""
    excluded = sum(row.problem for row in rows)
    text = (
        f"{len(rows)} scans, {excluded} excluded."
        if excluded
        else f"{len(rows)} scans, all usable."
    )
    counts = Counter(parts.values())
    split = ", ".join(f"{counts[part]} {part}" for part in PARTS if part in counts)
    return f"{text} {split}." if split else text


FILES, LAYERS = "Files on disk", "Open layers"
KINDS = ("auto", "folder", "list", "learn2reg", "oasis", "btcv")
LISTS = "Lists (*.csv *.json)"
TIPS = {
    "dataset": (
        "A folder of images, a CSV or JSON list of pairs, a Learn2Reg data set (folder or JSON"
        " file), or the folder of OASIS or BTCV."
    ),
    "images": ("Pattern of the image files, such as images/*.nii.gz. Empty: all but label files."),
    "labels": (
        "Pattern of the label files, such as labels/*.nii.gz, or a template from the image's"
        " name, such as"
        " {name}_seg.nii.gz. Empty: all label files by name."
    ),
    "subject": (
        "A regular expression with one group that finds the subject in a scan's name, such as"
        " (sub-\\d+). Empty: the usual patterns. All scans of a subject are in the same subset."
    ),
    "window": (
        "Two values that intensities are clipped to, in the units of the files, such as -160,240"
        " for soft tissue in CT. Empty: none."
    ),
    "kind": "Layout of the data set; auto detects it.",
}
HINTS = {
    "images": "all images",
    "labels": "by name",
    "subject": "from the name",
    "window": "none",
}


class DatasetBox(QWidget):
    """Controls that select the data set: files on disk or open layers."""

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.source = QComboBox()
        self.source.addItems([FILES, LAYERS])
        self.source.setToolTip("Source of the training scans.")
        self.path = QLineEdit()
        self.path.setPlaceholderText("folder or list")
        self.path.setToolTip(f"<qt>{TIPS['dataset']}</qt>")
        self.browse = QToolButton()
        self.browse.setText("Choose…")
        self.browse.setToolTip("Choose a folder or a list.")
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
        arranged(QVBoxLayout(self), self.source, self._files, self.layers)
        self.source.currentIndexChanged.connect(self._on_source)
        for line in (self.path, *self.patterns.values()):
            line.textChanged.connect(self.changed)
        self.kind.currentIndexChanged.connect(self.changed)
        self.layers.changed.connect(self.changed)
        self._on_source()

    @property
    def from_layers(self) -> bool:
        """Whether the data set is made of open layers."""
        return self.source.currentText() == LAYERS

    @property
    def file_options(self) -> dict[str, str]:
        """The options for finding the files that are not empty."""
        texts = {name: line.text().strip() for name, line in self.patterns.items()}
        return {name: text for name, text in texts.items() if text} | (
            {} if self.kind.currentText() == "auto" else {"kind": self.kind.currentText()}
        )

    @property
    def missing(self) -> str | None:
        """What is still missing, in a few words; None if nothing."""
        if self.from_layers:
            return None if len(self.layers.picked) > 1 else "Tick two image layers"
        text = self.path.text().strip()
        if not text:
            return "Choose a data set"
        return None if is_there(typed_path(text)) else "The data set does not exist"

    def refresh(self) -> None:
        """Update the list of open layers if they are the source."""
        if self.from_layers:
            self.layers.refresh()

    def _files_page(self) -> QWidget:
        page, more = QWidget(), QWidget()
        row = arranged(QHBoxLayout(), self.path, self.browse, wide=self.path)
        form = QFormLayout(more)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for name, line in self.patterns.items():
            line.setPlaceholderText(HINTS[name])
            line.setToolTip(f"<qt>{TIPS[name]}</qt>")
            form.addRow(captioned(name.capitalize(), TIPS[name]), line)
        self.kind.setToolTip(f"<qt>{TIPS['kind']}</qt>")
        form.addRow(captioned("Layout", TIPS["kind"]), self.kind)
        self.more = QCollapsible("How to find the files")
        self.more.setDuration(0)
        self.more.setCollapsedIcon("▶")
        self.more.setExpandedIcon("▼")
        self.more.addWidget(more)
        arranged(QVBoxLayout(page), row, self.more)
        return page

    def _on_source(self, *_: object) -> None:
        """Show the controls of the source."""
        self._files.setVisible(not self.from_layers)
        self.layers.setVisible(self.from_layers)
        self.refresh()
        self.changed.emit()

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(
            self, "Data set", self.path.text() or str(Path.home())
        )
        if path:
            self.path.setText(path)

    def _choose_list(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Data set", self.path.text() or str(Path.home()), LISTS
        )
        if path:
            self.path.setText(path)


ScanQueue = queue.SimpleQueue  # (scan as in the event "scan", total number of scans)


def _check(
    path: Path,
    file_options: Mapping[str, str],
    settings: Mapping[str, Any],
    start: Sequence[Any],
    prepared: Path | None,
    report: Report,
    found: ScanQueue[tuple[dict[str, Any], int]],
) -> tuple[dict[str, str], str]:
    """Check scans as a run would, queueing each; return their subsets by name and the problems."""
    preload().exception()
    from napari_shmoareg.datasets import Checkup, open_dataset, split_dataset

    options: dict[str, Any] = dict(file_options)
    if "window" in options:
        options["window"] = options["window"].split(",")
    dataset = open_dataset(path, **options)
    size = settings["size"] or _network_size(*start)
    labels = settings["overlap_weight"] > 0
    split = split_dataset(dataset, settings["split"], settings["split_seed"])
    checkup = Checkup(
        dataset,
        size=size,
        affine=settings["affine"],
        labels=labels,
        prepared=prepared,
        training=split.train,
    )
    for scan in checkup.run():
        report.check()
        found.put((scan.to_dict(), len(dataset.scans)))
    report.check()
    problems = "\n".join(checkup.problems)
    usable = set(checkup.usable)
    return {
        name: part for part in PARTS for name in getattr(split, part) if name in usable
    }, problems


def _network_size(weights: str, preset: str | None) -> int:
    """Return the training size in voxels of these weights, or of a preset."""
    from napari_shmoareg.io import load_network
    from napari_shmoareg.io.model_card import choose_weights
    from napari_shmoareg.model import SHMoARegConfig

    if preset is not None:
        return SHMoARegConfig.preset(preset).learning_size
    return load_network(choose_weights(weights)[0]).config.learning_size


CHECK = "Check the scans"
TIP = (
    "Read every scan once: shape, spacing, orientation, values, labels, and agreement with"
    " another scan after alignment (Dice, or correlation without labels). A run checks the scans"
    " when it starts. If a new run folder is entered, the prepared scans are saved there, and the"
    " run reuses them."
)
ENDED = "The check was cancelled before all scans were read."
CHECKED_LATER = "Open layers are checked when the run starts."


class DataView(QWidget):
    """The data set, its quality check and the table of scans."""

    changed = Signal()
    labels_requested = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.use_labels = QPushButton("Train on the overlap of the labels too")
        self.use_labels.setToolTip(
            "All usable scans have labels. Sets Overlap weight to 1: the loss then rewards labels"
            " that overlap, which the paper's loss does not use."
        )
        self.use_labels.clicked.connect(self.labels_requested)
        self.use_labels.hide()
        self.dataset, self.table = DatasetBox(viewer), CheckupTable()
        self.check, self.message = QPushButton(CHECK), QLabel()
        self.checking = Task(self, "the check of the scans")
        self._found: ScanQueue[tuple[dict[str, Any], int]] = ScanQueue()
        self.message.setWordWrap(True)
        self.check.setToolTip(f"<qt>{TIP}</qt>")
        # returns the settings, the initial weights, and the preset without weights
        self.get_settings: Callable[[], tuple[Mapping[str, Any], str, str | None]] = lambda: (
            {},
            "auto",
            None,
        )
        # returns the folder for prepared scans; None if there is no folder for a new run
        self.get_prepared: Callable[[], Path | None] = lambda: None
        # whether the loss of the labels is off
        self.labels_unused: Callable[[], bool] = lambda: False
        self._scans: list[Mapping[str, Any]] = []
        self._shown_run: object = None  # what was last shown of a run
        self.check.clicked.connect(self._toggle_check)
        self.dataset.changed.connect(self._show)
        self.dataset.changed.connect(self.changed)
        self.checking.progressed.connect(self._on_progress)
        self.checking.finished.connect(self._on_finished)
        self.checking.failed.connect(self._on_failed)
        self.checking.cancelled.connect(lambda: self._on_finished(({}, ENDED)))
        row = arranged(QHBoxLayout(), self.message, self.check, wide=self.message)
        arranged(QVBoxLayout(self), self.dataset, row, self.use_labels, self.table)
        self._show()

    def show_run(
        self, scans: Sequence[Mapping[str, Any]], parts: Mapping[str, str], problems: Sequence[str]
    ) -> None:
        """Show the scans and warnings of a run, only once, so that a later check stays visible."""
        now = (len(scans), tuple(map(id, scans[-1:])), tuple(parts.items()), tuple(problems))
        if now == self._shown_run:
            return
        self._shown_run = now
        self.table.show_scans(scans, parts)
        if problems and not self.checking.busy:
            self.message.setText("\n".join(problems))

    def offer_labels(self) -> None:
        """Propose the loss of the labels if all checked scans have them and it is off."""
        usable = [scan for scan in self._scans if not scan.get("skipped")]
        labelled = bool(usable) and all(scan.get("labels") for scan in usable)
        self.use_labels.setVisible(labelled and self.labels_unused() and not self.checking.busy)

    def cancel_check(self) -> None:
        """Cancel the check when a run starts, which does its own."""
        if self.checking.busy:
            self.checking.drop()
            self.message.setText("")
            self._show()

    def _toggle_check(self) -> None:
        if self.checking.busy:
            self.checking.cancel()
            self.check.setEnabled(False)
            return
        self._scans = []
        self.table.show_scans([], {})
        path = typed_path(self.dataset.path.text().strip())
        file_options, (settings, *start) = self.dataset.file_options, self.get_settings()
        self._found = found = ScanQueue[tuple[dict[str, Any], int]]()
        prepared = self.get_prepared()
        self.checking.start(
            lambda report: _check(path, file_options, settings, start, prepared, report, found)
        )
        self.message.setText("Opening the data set…")
        self._show()

    def _on_progress(self) -> None:
        """Show all scans checked since the last call."""
        found = [self._found.get() for _ in range(self._found.qsize())]
        if found:
            self._scans += [scan for scan, _ in found]
            self.message.setText(f"{len(self._scans)} of {found[-1][1]} scans")
            self.table.show_scans(self._scans, {})

    def _on_finished(self, checked: tuple[Mapping[str, str], str]) -> None:
        parts, problems = checked
        self.table.show_scans(self._scans, parts)
        self.message.setText(problems)
        self.offer_labels()
        self._show()

    def _on_failed(self, text: str) -> None:
        self.message.setText(text)
        self._show()

    def _show(self) -> None:
        busy, ready = (
            self.checking.busy,
            self.dataset.missing is None and not self.dataset.from_layers,
        )
        self.check.setText(CANCEL if busy else CHECK)
        self.check.setEnabled(busy or ready)
        if self.dataset.from_layers and not busy:
            self.message.setText(CHECKED_LATER)
        elif self.message.text() == CHECKED_LATER:
            self.message.setText("")
