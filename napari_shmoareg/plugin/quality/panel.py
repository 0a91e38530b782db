"""The Quality panel: compare, measure, save."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QEvent, Qt, QTimer, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QFrame,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import typed_path
from napari_shmoareg.plugin.controls.pickers import RegistrationPicker
from napari_shmoareg.plugin.controls.tables import (
    HEADINGS,
    LABEL_HEADINGS,
    PER_LABEL,
    Figure,
    FigureTable,
    as_tsv,
    cautions_of,
    has_fallen,
    label_rows,
    sides_of,
    summary_rows,
    table_of,
)
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.quality.compare_box import AS_THEY_ARE, CompareBox
from napari_shmoareg.plugin.scenes import itself
from napari_shmoareg.plugin.viewer import look_like_caution

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


TICK = 100  # ms between two looks at the progress
TIP = (
    "Write images, transform, expert maps, figures and all numbers into a new folder: what the"
    " command line writes."
)


class Stopped(Exception):
    """Raised within the work when it is to end."""


class Saving:
    """One folder being written, in a thread of its own; whole or not at all.

    Parameters
    ----------
    scene : Registration
    folder : Path
    """

    def __init__(self, scene: Registration, folder: Path) -> None:
        self.scene, self.folder = scene, folder
        self.reached = ("starting", 0.0)
        self.stop = threading.Event()

    def run(self) -> tuple[Exception | None]:
        """Write.  Never raises: returns the error, if there was one, in a tuple, as a worker would
        raise it.
        """
        from napari_shmoareg.io import write_registration

        scene = self.scene
        extra = scene.report.get("extra")
        write = partial(write_registration, scene, self.folder, weights=scene.weights, extra=extra)
        try:
            write(progress=self._tell)
        except Exception as error:
            return (error,)
        return (None,)

    def _tell(self, text: str, done: float) -> None:
        if self.stop.is_set() and done < 1:
            raise Stopped
        self.reached = (text, done)


class SaveBox(QWidget):
    """The button that saves everything, its progress, and where it lies afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._scene: Callable[[], Registration | None] = lambda: None
        self._saving: Saving | None = None
        self._lies: Path | None = None
        self.button = QPushButton("Save all…")
        self.button.setToolTip(TIP)
        self.button.clicked.connect(self._press)
        self.open = QPushButton("Open folder")
        self.open.setToolTip("Show the folder in the file manager.")
        self.open.clicked.connect(
            lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._lies)))
        )
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.text = QLabel()
        self.text.setWordWrap(True)
        row = QHBoxLayout()
        row.addWidget(self.button)
        row.addWidget(self.open)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row)
        layout.addWidget(self.bar)
        layout.addWidget(self.text)
        self._tick = QTimer(self)
        self._tick.setInterval(TICK)
        self._tick.timeout.connect(self._show_progress)
        self.show_scene(lambda: None)

    @property
    def busy(self) -> bool:
        """Whether a folder is being written."""
        return self._saving is not None

    def show_scene(self, scene: Callable[[], Registration | None]) -> None:
        """Offer to save a registration, given as what finds it, so that nothing is held here."""
        self._scene = scene
        found = scene()
        if not self.busy:
            self._lies = None if found is None else found.folder
            self._show("" if self._lies is None else f"It lies already in {self._lies}.")

    def save_all(self, folder: str | Path) -> None:
        """Write everything into a folder that does not exist or is empty; the window goes on
        meanwhile.
        """
        scene = self._scene()
        if scene is None or self.busy:
            return
        if scene.folder is not None:
            show_info(
                f"This registration was read from {scene.folder}, where everything lies already."
            )
            return
        self._saving = Saving(scene, typed_path(str(folder)))
        self._lies = None
        self._show("")
        self._tick.start()
        # The words do not hang on this box, which is gone when its dock was closed meanwhile.
        say = partial(_say_outcome, self._saving.folder)
        create_worker(self._saving.run, _connect={"returned": [say, self._done]})

    def cancel(self) -> None:
        """Stop after the part that is being written; nothing is left behind."""
        if self._saving is not None:
            self._saving.stop.set()
            self.button.setEnabled(False)
            self.text.setText("Stopping …")

    def _press(self) -> None:
        if self.busy:
            self.cancel()
            return
        scene = self._scene()
        chosen = QFileDialog.getExistingDirectory(self, "Save everything in")
        if chosen and scene is not None:
            self.save_all(place_in(Path(chosen), scene))

    def _done(self, outcome: tuple[Exception | None]) -> None:
        (error,) = outcome
        saving, self._saving = self._saving, None
        self._tick.stop()
        assert saving is not None
        if isinstance(error, Stopped):
            self._show("Stopped. Nothing was written.")
        elif error is not None:
            self._show("It could not be saved. Nothing was written.")
        else:
            self._lies = saving.folder
            self._show(f"Saved in {saving.folder}.")

    def _show_progress(self) -> None:
        if self._saving is not None and not self._saving.stop.is_set():
            text, done = self._saving.reached
            self.bar.setValue(round(100 * done))
            self.text.setText(f"{text} …")

    def _show(self, text: str) -> None:
        scene = self._scene()
        self.text.setText(text)
        self.text.setVisible(bool(text) or self.busy)
        self.bar.setVisible(self.busy)
        self.bar.setValue(0)
        self.open.setVisible(self._lies is not None)
        self.button.setText("Cancel" if self.busy else "Save all…")
        self.button.setEnabled(self.busy or (scene is not None and scene.folder is None))


def _say_outcome(folder: Path, outcome: tuple[Exception | None]) -> None:
    """Tell that everything is saved, or why not."""
    (error,) = outcome
    if error is None:
        show_info(f"The registration is saved in {folder}.")
    elif not isinstance(error, Stopped):
        from napari_shmoareg.plugin.controls.errors import explain

        show_error(explain(error))


def place_in(chosen: Path, scene: Registration) -> Path:
    """The chosen folder if it is empty, else a new one in it that is named after the pair."""
    if not any(chosen.iterdir()):
        return chosen
    pair: Any = scene.pair
    name = re.sub(r"[^\w.-]+", "_", f"{pair.moving.name}_onto_{pair.fixed.name}")
    taken = {entry.name for entry in chosen.iterdir()}
    number = next(
        n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}_{n}") not in taken
    )
    return chosen / (name if number == 1 else f"{name}_{number}")


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
        self.labels.setToolTip(
            "Overlap (Dice) and surface distances (mm) of each label. Click a heading to sort."
        )
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
        from napari_shmoareg.io.files import write_table

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


WIDTH = 320
INVITE = (
    "Register a pair, or open the folder of a registration: its images and figures are judged here."
)


class QualityPanel(Panel):
    """Compares fixed and moving before and after, shows the figures, and saves everything.

    Parameters
    ----------
    napari_viewer : Viewer
    """

    kind = "Quality"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.setMinimumWidth(WIDTH)
        viewer = itself(napari_viewer)
        self.picker, self.compare_box = RegistrationPicker(viewer), CompareBox(viewer)
        self.table = QualityTable()
        self.saving = SaveBox()
        self.invitation = QLabel(INVITE)
        self.invitation.setWordWrap(True)
        self._parts = [
            _boxed("Compare", self.compare_box),
            _boxed("Figures", self.table),
            self.saving,
        ]
        inner = QWidget()
        column = QVBoxLayout(inner)
        for part in (self.picker, self.invitation, *self._parts):
            column.addWidget(part)
        column.addStretch()
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inner)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area)
        self.picker.picked.connect(self._pick)
        self._pick()

    def reset_choices(self, event: Any = None) -> None:
        """Follow the layers of the viewer; napari calls it when they change."""
        self.picker.refresh()
        self.compare_box.comparer.layers_changed()

    def save_all(self, folder: str | Path) -> None:
        """Write everything of the picked registration into a new or empty folder, beside the
        window.
        """
        self.saving.save_all(folder)

    def changeEvent(self, event: QEvent | None) -> None:
        """End the comparison when the dock is closed: napari then takes the panel out of it, and
        tells it no more.
        """
        super().changeEvent(event)
        if (
            event is not None
            and event.type() == QEvent.Type.ParentChange
            and self.parentWidget() is None
        ):
            self.compare_box.compare(AS_THEY_ARE)

    def _pick(self) -> None:
        """Another registration is looked at."""
        scene = self.picker.scene
        self.invitation.setVisible(scene is None)
        for part in self._parts:
            part.setVisible(scene is not None)
        self.compare_box.set_registration(self.picker.number)
        self.table.show_report(None if scene is None else scene.report)
        self.saving.show_scene(lambda: self.picker.scene)


def _boxed(title: str, part: QWidget) -> QGroupBox:
    box = QGroupBox(title)
    QVBoxLayout(box).addWidget(part)
    return box
