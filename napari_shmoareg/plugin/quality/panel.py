"""The Quality panel: compare, measure, save."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QEvent, Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_shmoareg.io.untrusted import typed_path
from napari_shmoareg.plugin.controls.forms import arranged, scrolled, wrapped
from napari_shmoareg.plugin.controls.pickers import RegistrationPicker
from napari_shmoareg.plugin.controls.tables import (
    HEADINGS,
    LABEL_HEADINGS,
    PER_LABEL,
    Figure,
    FigureTable,
    TableButtons,
    cautions_of,
    has_fallen,
    label_rows,
    sides_of,
    summary_rows,
    table_of,
)
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.quality.compare_box import AS_THEY_ARE, CompareBox
from napari_shmoareg.plugin.scenes import itself
from napari_shmoareg.plugin.viewer import look_like_caution

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


TIP = (
    "Write images, transform, expert maps, figures and all numbers into a new folder: what the"
    " command line writes."
)


class SaveBox(QWidget):
    """The button that saves everything, its progress, and where it lies afterwards.

    The saving goes on, and says how it went, when the panel is closed meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scene: Callable[[], Registration | None] = lambda: None
        self._lies: Path | None = None  # of what is saved, or being saved
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
        wrapped(self.text)
        row = arranged(QHBoxLayout(), self.button, self.open)
        arranged(QVBoxLayout(self), row, self.bar, self.text)
        program = QApplication.instance()
        assert program is not None
        self.task = Task(program, "saving a registration")
        self.task.finished.connect(_say_saved)
        self.task.failed.connect(show_error)
        self.task.progressed.connect(self._show_progress)
        self.task.finished.connect(self._saved)
        self.task.failed.connect(self._failed)
        self.task.cancelled.connect(self._cancelled)
        self.show_scene(lambda: None)

    @property
    def busy(self) -> bool:
        """Whether a folder is being written."""
        return self.task.busy

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
        path = typed_path(str(folder))
        self.task.start(lambda report: _save(scene, path, report))
        self._end("")

    def cancel(self) -> None:
        """Stop after the part that is being written; nothing is left behind."""
        self.task.cancel()
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

    def _saved(self, folder: Path) -> None:
        self._end(f"Saved in {folder}.", folder)

    def _failed(self) -> None:
        self._end("It could not be saved. Nothing was written.")

    def _cancelled(self) -> None:
        self._end("Stopped. Nothing was written.")

    def _end(self, text: str, folder: Path | None = None) -> None:
        self._lies = folder
        self._show(text)

    def _show_progress(self, text: str, done: float) -> None:
        if self.button.isEnabled():
            self.bar.setValue(round(100 * done))
            self.text.setText(f"{text} …")

    def _show(self, text: str) -> None:
        scene = self._scene()
        self.text.setText(text)
        self.text.setVisible(bool(text) or self.busy)
        self.bar.setVisible(self.busy)
        self.bar.setValue(0)
        self.open.setVisible(self._lies is not None)
        self.button.setText(CANCEL if self.busy else "Save all…")
        self.button.setEnabled(self.busy or (scene is not None and scene.folder is None))


def _save(scene: Registration, folder: Path, report: Report) -> Path:
    """Write a registration, whole or not at all; what is written cannot be cancelled any more."""
    from napari_shmoareg.io import write_registration

    write_registration(
        scene,
        folder,
        weights=scene.weights,
        extra=scene.report.get("extra"),
        progress=lambda title, done: report(title, done) if done < 1 else None,
    )
    return folder


def _say_saved(folder: Path) -> None:
    show_info(f"The registration is saved in {folder}.")


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
        wrapped(self.warnings)
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
        self.buttons = TableButtons(
            lambda: [] if self._report is None else table_of(self._report), "quality.csv"
        )
        arranged(QVBoxLayout(self), self.warnings, self.whole, self.fold, self.buttons)
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
        self.buttons.setEnabled(report is not None)

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
        wrapped(self.invitation)
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
        area = scrolled(inner)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        arranged(QVBoxLayout(self), area)
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
