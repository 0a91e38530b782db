"""The Quality panel: comparison, tables and saving."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
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

from napari_shmoareg.geometry import LabelNames
from napari_shmoareg.io.label_names import reported_names
from napari_shmoareg.io.untrusted import typed_path
from napari_shmoareg.plugin.controls.forms import arranged, scrolled, wrapped
from napari_shmoareg.plugin.controls.pickers import NamesButton, RegistrationPicker
from napari_shmoareg.plugin.controls.tables import (
    HEADINGS,
    LABEL_HEADINGS,
    PER_LABEL,
    Figure,
    FigureTable,
    TableButtons,
    cautions_of,
    exclusive_labels,
    has_dropped,
    label_rows,
    summary_rows,
    table_of,
)
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.quality.apply_box import ApplyBox
from napari_shmoareg.plugin.quality.compare_box import NO_COMPARISON, CompareBox
from napari_shmoareg.plugin.registrations import label_names, named_layers, unwrap
from napari_shmoareg.plugin.viewer import style_as_caution

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.registration.register import Registration


TIP = (
    "Write images, transform, expert maps, figures and all values to a new folder, as the command"
    " line does."
)


class SaveBox(QWidget):
    """The button that saves everything, with the progress and the folder.

    Saving continues when the panel is closed, and notifies at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._registration: Callable[[], Registration | None] = lambda: None
        self._folder: Path | None = None
        self.button = QPushButton("Save all…")
        self.button.setToolTip(TIP)
        self.button.clicked.connect(self._on_clicked)
        self.open = QPushButton("Open folder")
        self.open.setToolTip("Show the folder in the file manager.")
        self.open.clicked.connect(
            lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._folder)))
        )
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.text = QLabel()
        wrapped(self.text)
        row = arranged(QHBoxLayout(), self.button, self.open)
        arranged(QVBoxLayout(self), row, self.bar, self.text)
        application = QApplication.instance()
        assert application is not None
        self.task = Task(application, "saving a registration")
        self.task.finished.connect(_notify_saved)
        self.task.failed.connect(show_error)
        self.task.progressed.connect(self._show_progress)
        self.task.finished.connect(self._on_saved)
        self.task.failed.connect(self._on_failed)
        self.task.cancelled.connect(self._on_cancelled)
        self.show_registration(lambda: None)

    @property
    def busy(self) -> bool:
        """Whether a folder is being written."""
        return self.task.busy

    def show_registration(self, registration: Callable[[], Registration | None]) -> None:
        """Show a registration, given as a function so that no reference is kept."""
        self._registration = registration
        found = registration()
        if not self.busy:
            self._folder = None if found is None else found.folder
            self._show("" if self._folder is None else f"Already saved in {self._folder}.")

    def save_all(self, folder: str | Path) -> None:
        """Write everything to a new or empty folder, in the background."""
        registration = self._registration()
        if registration is None or self.busy:
            return
        if registration.folder is not None:
            show_info(
                f"This registration was read from {registration.folder}, which contains everything."
            )
            return
        path = typed_path(str(folder))
        self.task.start(lambda report: _save(registration, path, report))
        self._end("")

    def cancel(self) -> None:
        """Cancel after the current part, leaving no files."""
        self.task.cancel()
        self.button.setEnabled(False)
        self.text.setText("Cancelling …")

    def _on_clicked(self) -> None:
        if self.busy:
            self.cancel()
            return
        registration = self._registration()
        chosen = QFileDialog.getExistingDirectory(self, "Save everything in")
        if chosen and registration is not None:
            self.save_all(folder_in(Path(chosen), registration))

    def _on_saved(self, folder: Path) -> None:
        self._end(f"Saved in {folder}.", folder)

    def _on_failed(self) -> None:
        self._end("Saving failed. Nothing was written.")

    def _on_cancelled(self) -> None:
        self._end("Cancelled. Nothing was written.")

    def _end(self, text: str, folder: Path | None = None) -> None:
        self._folder = folder
        self._show(text)

    def _show_progress(self, text: str, done: float) -> None:
        if self.button.isEnabled():
            self.bar.setValue(round(100 * done))
            self.text.setText(f"{text} …")

    def _show(self, text: str) -> None:
        registration = self._registration()
        self.text.setText(text)
        self.text.setVisible(bool(text) or self.busy)
        self.bar.setVisible(self.busy)
        self.bar.setValue(0)
        self.open.setVisible(self._folder is not None)
        self.button.setText(CANCEL if self.busy else "Save all…")
        self.button.setEnabled(
            self.busy or (registration is not None and registration.folder is None)
        )


def _save(registration: Registration, folder: Path, report: Report) -> Path:
    """Write a registration atomically; it cannot be cancelled once written."""
    from napari_shmoareg.io import write_registration

    write_registration(
        registration,
        folder,
        weights=registration.weights,
        extra=registration.report.get("extra"),
        progress=lambda title, done: report(title, done) if done < 1 else None,
    )
    return folder


def _notify_saved(folder: Path) -> None:
    show_info(f"The registration was saved in {folder}.")


def folder_in(chosen: Path, registration: Registration) -> Path:
    """Return the chosen folder if it is empty, else a new one in it, named after the pair."""
    if not any(chosen.iterdir()):
        return chosen
    pair: Any = registration.pair
    name = re.sub(r"[^\w.-]+", "_", f"{pair.moving.name}_onto_{pair.fixed.name}")
    names = {entry.name for entry in chosen.iterdir()}
    number = next(
        n for n in range(1, len(names) + 2) if (name if n == 1 else f"{name}_{n}") not in names
    )
    return chosen / (name if number == 1 else f"{name}_{number}")


DICE_AFTER = LABEL_HEADINGS.index("Dice\nafter")
NAME_WIDTH = 150  # pixels; a longer name is whole in the tooltip
LABELS_SHOWN = 12  # rows of the table of labels before it scrolls


class QualityTable(QWidget):
    """A table of the measures at the three stages, and an expandable table of labels."""

    def __init__(self) -> None:
        super().__init__()
        self._report: Mapping[str, Any] | None = None
        self.warnings = QLabel()
        wrapped(self.warnings)
        self.warnings.setTextFormat(Qt.TextFormat.PlainText)
        style_as_caution(self.warnings, on=True)
        self.whole = FigureTable(HEADINGS, stretch="first")
        self.labels = FigureTable(LABEL_HEADINGS)
        self.labels.setSortingEnabled(True)
        header = self.labels.horizontalHeader()
        assert header is not None
        header.setMaximumSectionSize(NAME_WIDTH)
        self.labels.setToolTip(
            "Overlap (Dice) and surface distances (mm) of each label. Click a heading to sort."
        )
        self.fold = QCollapsible("Each label")
        self.fold.setToolTip("Show or hide the values of each label.")
        self.names, self.load = QLabel(), NamesButton()
        wrapped(self.names)
        below = QWidget()
        arranged(QHBoxLayout(below), self.names, self.load, wide=self.names)
        self.fold.addWidget(self.labels)
        self.fold.addWidget(below)
        self.buttons = TableButtons(
            lambda: [] if self._report is None else table_of(self._report), "quality.csv"
        )
        arranged(QVBoxLayout(self), self.warnings, self.whole, self.fold, self.buttons)
        self.show_report(None)

    def show_report(self, report: Mapping[str, Any] | None) -> None:
        """Show the values of a report, or None."""
        self._report = report
        cautions = [] if report is None else cautions_of(report)
        self.warnings.setText("\n\n".join(cautions))
        self.warnings.setVisible(bool(cautions))
        rows = [] if report is None else summary_rows(report)
        self.whole.setRowCount(len(rows))
        for n, row in enumerate(rows):
            name = QTableWidgetItem(row.name)
            figures = [Figure(value, row.spec) for value in row.values]
            if row.name.startswith("Dice") and has_dropped(row.values):
                figures[-1].mark_dropped()
            cells = [name, *figures]
            font = name.font()
            font.setBold(True)
            cells[-1].setFont(font)
            for column, cell in enumerate(cells):
                cell.setToolTip(row.tip)
                self.whole.setItem(n, column, cell)
        self.whole.fit(len(rows))
        labels = [] if report is None else label_rows(report)
        names = LabelNames() if report is None else reported_names(report)
        self.names.setText(f"Names from {names.source}." if names else "The labels have no names.")
        self._show_labels(labels, names)
        self.fold.setVisible(bool(labels))
        self.buttons.setEnabled(report is not None)

    def _show_labels(self, labels: list[list[float | None]], names: LabelNames) -> None:
        forms = ["d", *(form for _, _, form in PER_LABEL for _ in range(3))]
        sides = exclusive_labels(self._report)
        self.labels.setSortingEnabled(False)
        self.labels.setRowCount(len(labels))
        for n, row in enumerate(labels):
            for column, (value, form) in enumerate(zip(row, forms, strict=True)):
                cell, label = Figure(value, form), int(row[0] or 0)
                only = sides.get(label)
                if column == 0:
                    cell.setText(names.describe(label))
                    cell.setTextAlignment(
                        Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
                    )
                    if names.get(label):
                        cell.setToolTip(f"{names.describe(label)}; name from {names.source}.")
                if only is not None:
                    cell.setToolTip(
                        f"Only the {only} image has this label: it is excluded from the means."
                    )
                    if column == 0:
                        cell.setText(f"{cell.text()} ({only} only)")
                if column == DICE_AFTER and has_dropped(row[1 : DICE_AFTER + 1]):
                    cell.mark_dropped()
                self.labels.setItem(n, column, cell)
        self.labels.setSortingEnabled(True)
        self.labels.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.labels.resizeColumnsToContents()
        self.labels.fit(min(len(labels), LABELS_SHOWN))


WIDTH = 344  # no figure of the table is cut
INVITE = "Register a pair, or open the folder of a registration, to assess its quality here."


class QualityPanel(Panel):
    """Compares the images, shows the measures, and saves everything."""

    kind = "Quality"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.setMinimumWidth(WIDTH)
        viewer = unwrap(napari_viewer)
        self.picker, self.compare_box = RegistrationPicker(viewer), CompareBox(viewer)
        self.table = QualityTable()
        self.saving = SaveBox()
        self.apply_box = ApplyBox(viewer)
        self.invitation = QLabel(INVITE)
        wrapped(self.invitation)
        self._parts = [
            _boxed("Compare", self.compare_box),
            _boxed("Measures", self.table),
            _boxed("Apply to another layer", self.apply_box),
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
        self.picker.picked.connect(self._on_picked)
        self._viewer = weakref.ref(viewer)
        self.table.load.layers = self._named_layers
        self._on_picked()

    def reset_choices(self, event: Any = None) -> None:
        """Update from the layers; called by napari when they change."""
        self.picker.refresh()
        self._follow_names()
        self.compare_box.comparer.layers_changed()
        self.apply_box.refresh()

    def save_all(self, folder: str | Path) -> None:
        """Write the picked registration to a new or empty folder, in the background."""
        self.saving.save_all(folder)

    def changeEvent(self, event: QEvent | None) -> None:
        """End the comparison when the dock is closed, which reparents the panel."""
        super().changeEvent(event)
        if (
            event is not None
            and event.type() == QEvent.Type.ParentChange
            and self.parentWidget() is None
        ):
            self.compare_box.compare(NO_COMPARISON)

    def _on_picked(self) -> None:
        """Show another registration."""
        registration = self.picker.registration
        self.invitation.setVisible(registration is None)
        for part in self._parts:
            part.setVisible(registration is not None)
        self.compare_box.set_registration(self.picker.number)
        self.apply_box.set_registration(self.picker.number)
        self._show_measures()
        self._follow_names()
        self.saving.show_registration(self._with_names)

    def _named_layers(self) -> list[Layer]:
        viewer, registration = self._viewer(), self.picker.registration
        return [] if viewer is None or registration is None else named_layers(viewer, registration)

    def _follow_names(self) -> None:
        """Show the measures again when labels get other names; connecting twice does nothing."""
        for layer in self._named_layers():
            layer.events.features.connect(self._show_measures)

    def _with_names(self) -> Registration | None:
        """The picked registration, with the names of labels that were loaded since."""
        viewer, registration = self._viewer(), self.picker.registration
        if viewer is None or registration is None:
            return None
        names = label_names(viewer, registration)
        return (
            registration if names == registration.pair.label_names else renamed(registration, names)
        )

    def _show_measures(self) -> None:
        """Show the measures with the current names of the labels."""
        registration = self._with_names()
        self.table.show_report(None if registration is None else registration.report)


def renamed(registration: Registration, names: LabelNames) -> Registration:
    """Return a registration whose labels have these names, also in its report."""
    pair = registration.pair
    volumes = {
        role: replace(volume, label_names=names) if volume.is_labels else volume
        for role, volume in pair.volumes.items()
    }
    labels = registration.report.get("labels") or {}
    known = names.within(sorted(label for side in labels.values() for label in side))
    report = {
        **registration.report,
        "label_names": {str(label): name for label, name in known.names.items()},
        "label_names_from": known.source,
    }
    return replace(registration, pair=replace(pair, **volumes), report=report)


def _boxed(title: str, part: QWidget) -> QGroupBox:
    box = QGroupBox(title)
    QVBoxLayout(box).addWidget(part)
    return box
