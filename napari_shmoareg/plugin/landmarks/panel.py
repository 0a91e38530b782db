"""The Landmarks panel: files, table and distances in mm."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QSizePolicy,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import arranged
from napari_shmoareg.plugin.controls.pickers import RegistrationPicker
from napari_shmoareg.plugin.controls.tables import Figure, FigureTable, as_tsv
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.landmarks.layers import (
    SIDES,
    AddButton,
    Distances,
    add_landmark_layers,
    landmark_layer,
    measure,
    number_points,
    remove_points,
    remove_unpaired,
    set_points,
)
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.placement import centre_on, follow_placement, landmarks_of
from napari_shmoareg.plugin.registrations import layer_in_role, unwrap

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer, Points


READ_FILTER = "Points (*.csv *.txt *.mrk.json *.json *.fcsv)"
KINDS = {"pairs": "Pairs…", "fixed": "Fixed points…", "moving": "Moving points…"}
SLICER = "3D Slicer (*.mrk.json *.fcsv)"
WRITE_FILTERS = {
    "pairs": ("landmarks.csv", "CSV (*.csv)"),
    "fixed": ("fixed.mrk.json", SLICER),
    "moving": ("moving.mrk.json", SLICER),
}
LOAD_TIP = (
    "Read landmarks, replacing the current ones. Pairs: CSV, six numbers per row, fixed"
    " point first. Points of one image: .mrk.json or .fcsv of 3D Slicer, or CSV. In mm, LPS unless"
    " the file specifies RAS."
)
SAVE_TIP = "Write the pairs as CSV (mm, LPS), or the points of one image for 3D Slicer."
SWAP_TIP = "Exchange fixed and moving points, for a file with the opposite order."


def load(viewer: Viewer, path: str, kind: str = "pairs") -> None:
    """Read landmarks into the two layers, replacing the current ones, or show an error.

    Parameters
    ----------
    viewer : Viewer
    path : str
    kind : {"pairs", "fixed", "moving"}
        Content of the file: pairs, or the points of one image.
    """
    from napari_shmoareg.io.landmarks import read_landmark_pairs, read_points

    notes: tuple[str, ...] = ()
    try:
        if kind == "pairs":
            pairs = read_landmark_pairs(path)
            found, notes = {"fixed": pairs.fixed, "moving": pairs.moving}, pairs.notes
        else:
            found = {kind: read_points(path)}
    except InputError as error:
        show_error(str(error))
        return
    layers = add_landmark_layers(viewer)
    for side, points in found.items():
        set_points(layers[side], points)
    if notes:
        show_info(f"{path}: {'; '.join(notes)}. If fixed and moving are exchanged, press 'Swap'.")


def save(viewer: Viewer, path: str, kind: str = "pairs") -> None:
    """Write complete pairs as CSV or the points of one image for 3D Slicer, or show an error."""
    from napari_shmoareg.io.landmarks import write_landmark_pairs, write_slicer_points

    points = {side: landmarks_of(landmark_layer(viewer, side)) for side in SIDES}
    count = min(len(found) for found in points.values()) if kind == "pairs" else len(points[kind])
    try:
        if kind == "pairs":
            write_landmark_pairs(
                path, moving=points["moving"][:count], fixed=points["fixed"][:count]
            )
        else:
            write_slicer_points(points[kind], path)
    except InputError as error:
        show_error(str(error))
    else:
        show_info(
            f"{count} {'pairs' if kind == 'pairs' else f'{kind} points'} were saved in {path}."
        )


def swap(viewer: Viewer) -> None:
    """Exchange fixed and moving points."""
    points = {side: landmarks_of(landmark_layer(viewer, side)) for side in SIDES}
    if any(len(found) for found in points.values()):
        layers = add_landmark_layers(viewer)
        set_points(layers["fixed"], points["moving"])
        set_points(layers["moving"], points["fixed"])


class FileButtons(QWidget):
    """Buttons to load, save and swap landmarks."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for text, tip, action_of_kind in (
            ("Load", LOAD_TIP, self._load),
            ("Save", SAVE_TIP, self._save),
        ):
            button, menu = QPushButton(text), QMenu(self)
            button.setToolTip(tip)
            for kind, entry in KINDS.items():
                action = menu.addAction(entry)
                if action is not None:
                    action.triggered.connect(partial(action_of_kind, kind))
            button.setMenu(menu)
            row.addWidget(button)
        self.swap = QPushButton("Swap")
        self.swap.setToolTip(SWAP_TIP)
        self.swap.clicked.connect(self._swap)
        row.addWidget(self.swap)

    def _load(self, kind: str, _checked: bool = False) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load landmarks", "", READ_FILTER)
        viewer = self._viewer()
        if path and viewer is not None:
            load(viewer, path, kind)

    def _save(self, kind: str, _checked: bool = False) -> None:
        name, filters = WRITE_FILTERS[kind]
        path, _ = QFileDialog.getSaveFileName(self, "Save landmarks", name, filters)
        viewer = self._viewer()
        if path and viewer is not None:
            save(viewer, path, kind)

    def _swap(self) -> None:
        viewer = self._viewer()
        if viewer is not None:
            swap(viewer)


HEADINGS = ("pair", "before", "affine", "after")
TIPS = (
    "Number of the pair, as in the image.",
    "Distance of the two points before registration, mm.",
    "Distance of the moving point from the fixed point mapped by the affine, mm.",
    (
        "Target registration error: distance of the moving point from the fixed point mapped by the"
        " registration, mm."
    ),
)
STATISTICS = ("mean", "SD", "max")


class LandmarkTable(QWidget):
    """Mean, SD and maximum over all pairs, and a list of the pairs."""

    pair_clicked = Signal(int)  # index of the clicked pair, from 0
    chosen_changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._distances = Distances(*(np.zeros(0) for _ in range(3)))
        self.whole = FigureTable(
            ("mm", *HEADINGS[1:]), ("Over all pairs.", *TIPS[1:]), stretch="all"
        )
        self.pairs = FigureTable(HEADINGS, TIPS, stretch="all")
        self.pairs.setSortingEnabled(True)
        self.pairs.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.pairs.setToolTip("Click a pair to show it, or a heading to sort.")
        self.pairs.cellClicked.connect(
            lambda row, _column: self.pair_clicked.emit(self._pair_in(row))
        )
        self.pairs.itemSelectionChanged.connect(self.chosen_changed.emit)
        arranged(QVBoxLayout(self), self.whole, self.pairs, wide=self.pairs)

    @property
    def chosen(self) -> set[int]:
        """Indices of the selected pairs, from 0."""
        return {self._pair_in(row) for row in self.pairs.selected_rows()}

    def show_distances(self, found: Distances) -> None:
        """Replace the distances, keeping the selection and the order."""
        self._distances = found
        stages = found.before, found.affine, found.after
        self.whole.setRowCount(len(STATISTICS) if len(found.before) else 0)
        for row, name in enumerate(STATISTICS if len(found.before) else ()):
            cells = [
                QTableWidgetItem(name),
                *(Figure(_statistic(name, values), ".2f") for values in stages),
            ]
            font = cells[-1].font()
            font.setBold(True)
            cells[-1].setFont(font)
            for column, cell in enumerate(cells):
                self.whole.setItem(row, column, cell)
        self.whole.fit(self.whole.rowCount())
        self._show_pairs(np.stack(stages, axis=1))

    def to_clipboard(self) -> None:
        """Copy the distances to the clipboard, separated by tabs."""
        found, clipboard = self._distances, QApplication.clipboard()
        rows = [
            {"pair": n, "before_mm": before, "affine_mm": affine, "after_mm": after}
            for n, (before, affine, after) in enumerate(
                zip(found.before, found.affine, found.after, strict=True), 1
            )
        ]
        if rows and clipboard is not None:
            clipboard.setText(
                as_tsv(
                    [{k: None if np.isnan(v) else round(v, 4) for k, v in r.items()} for r in rows]
                )
            )

    def _show_pairs(self, distances: np.ndarray) -> None:
        chosen = self.chosen
        blocked = self.pairs.blockSignals(True)
        self.pairs.setSortingEnabled(False)
        self.pairs.setRowCount(len(distances))
        for n, row in enumerate(distances):
            self.pairs.setItem(n, 0, Figure(n + 1, "d"))
            for column, value in enumerate(row, 1):
                self.pairs.setItem(
                    n, column, Figure(None if np.isnan(value) else float(value), ".2f")
                )
        self.pairs.setSortingEnabled(True)
        self.pairs.select_rows(
            [row for row in range(len(distances)) if self._pair_in(row) in chosen]
        )
        self.pairs.blockSignals(blocked)
        self.chosen_changed.emit()

    def _pair_in(self, row: int) -> int:
        cell = self.pairs.item(row, 0)
        return int(cell.text()) - 1 if cell is not None else -1


def _statistic(name: str, values: np.ndarray) -> float | None:
    """Return the "mean", "SD" (of a sample) or "max"; None if unknown."""
    if np.isnan(values).any() or (name == "SD" and len(values) < 2):
        return None
    if name == "SD":
        return float(np.std(values, ddof=1))
    return float(values.mean() if name == "mean" else values.max())


WIDTH = 300
UPDATE_INTERVAL = 40  # ms between updates while a point is dragged
INVITE = (
    "Set or load corresponding points in the fixed and moving images to measure the registration."
)


class LandmarksPanel(Panel):
    """Sets, reads, writes and measures pairs of landmarks."""

    kind = "Landmarks"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.setMinimumWidth(WIDTH)
        viewer = unwrap(napari_viewer)
        self._viewer = weakref.ref(viewer)
        self._watched: weakref.WeakSet[Layer] = weakref.WeakSet()
        self._closed = self._removing = False
        self._timer = single_shot(self, UPDATE_INTERVAL, self.update_table)
        self._build(viewer)
        self.reset_choices()

    def reset_choices(self, event: Any = None) -> None:
        """Update from the layers; called by napari when they change."""
        self.picker.refresh()
        viewer = self._viewer()
        if viewer is None or self._closed:
            return
        found = [
            layer for layer in (landmark_layer(viewer, side) for side in SIDES) if layer is not None
        ]
        if self.add.adding and len(found) < len(SIDES):
            self.add.stop()
        new = [layer for layer in found if layer not in self._watched]
        if new:
            self._removing = True
            _notify_removed(remove_unpaired(viewer))
            self._removing = False
        moving = layer_in_role(viewer, "moving")
        if moving is not None and moving not in self._watched:
            self._watched.add(moving)
            moving.events.affine.connect(self._image_moved)
        self._image_moved()
        for layer in new:
            self._watched.add(layer)
            layer.events.data.connect(self._points_changed)
            layer.events.set_data.connect(self._points_moved)
        self._timer.start()

    def changeEvent(self, event: QEvent | None) -> None:
        """Stop adding pairs and disconnect from the layers when the dock is closed."""
        super().changeEvent(event)
        if event is None or event.type() != QEvent.Type.ParentChange:
            return
        self._closed = self.parentWidget() is None
        if self._closed:
            self.add.stop()
            for layer in self._watched:
                if layer._type_string != "points":
                    layer.events.affine.disconnect(self._image_moved)
                    continue
                layer.events.data.disconnect(self._points_changed)
                layer.events.set_data.disconnect(self._points_moved)
            self._watched.clear()
        self.reset_choices()

    def delete_pairs(self) -> None:
        """Delete the pairs selected in the table."""
        viewer, chosen = self._viewer(), sorted(self.table.chosen)
        if viewer is None or not chosen:
            return
        for layer in (landmark_layer(viewer, side) for side in SIDES):
            if layer is not None:
                remaining = np.delete(
                    landmarks_of(layer), [n for n in chosen if n < len(layer.data)], axis=0
                )
                set_points(layer, remaining)

    def load(self, path: str, kind: str = "pairs") -> None:
        """Read landmarks: "pairs", or the points of the "fixed" or the "moving" image."""
        viewer = self._viewer()
        if viewer is not None:
            load(viewer, path, kind)

    def save(self, path: str, kind: str = "pairs") -> None:
        """Write landmarks (see `load`)."""
        viewer = self._viewer()
        if viewer is not None:
            save(viewer, path, kind)

    def update_table(self) -> None:
        """Measure the pairs and update the table."""
        points = self._points()
        counts = {side: len(found) for side, found in points.items()}
        paired = min(counts.values())
        self.table.show_distances(
            measure(points["fixed"][:paired], points["moving"][:paired], self.picker.registration)
        )
        self.invitation.setVisible(not any(counts.values()) and not self.add.adding)
        side = max(counts, key=lambda side: counts[side])
        unpaired = counts[side] - paired
        self.unpaired_note.setText(
            f"⚠ {unpaired} {side} point{'s have' if unpaired > 1 else ' has'} no partner and"
            " cannot be measured."
        )
        self.unpaired_note.setVisible(unpaired > 0)

    def _build(self, viewer: Viewer) -> None:
        self.picker, self.table = RegistrationPicker(viewer), LandmarkTable()
        self.invitation, self.hint, self.unpaired_note = QLabel(INVITE), QLabel(), QLabel()
        self.add, self.delete, self.copy = (
            AddButton(viewer, self.picker),
            QPushButton("Delete"),
            QPushButton("Copy"),
        )
        self.delete.setToolTip("Delete the pairs selected in the table.")
        self.copy.setToolTip("Copy the distances to the clipboard, for a spreadsheet.")
        self.files = FileButtons(viewer)
        row = arranged(QHBoxLayout(), self.add, self.delete, self.copy)
        layout = QVBoxLayout(self)
        layout.addWidget(self.picker)
        layout.addLayout(row)
        layout.addWidget(self.files)
        for label in (self.invitation, self.hint, self.unpaired_note):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
            layout.addWidget(label)
        layout.addWidget(self.table, 1)
        self.add.hint_changed.connect(self._show_hint)
        self.delete.clicked.connect(self.delete_pairs)
        self.copy.clicked.connect(self.table.to_clipboard)
        self.table.pair_clicked.connect(self._centre)
        self.table.chosen_changed.connect(lambda: self.delete.setEnabled(bool(self.table.chosen)))
        self.picker.picked.connect(self.update_table)
        self.delete.setEnabled(False)
        self._show_hint("")

    def _points(self) -> dict[str, Any]:
        viewer = self._viewer()
        return {
            side: landmarks_of(None if viewer is None else landmark_layer(viewer, side))
            for side in SIDES
        }

    def _points_changed(self, event: Any) -> None:
        """Update after points were added, removed or moved."""
        if str(event.action).endswith(("added", "removed", "changed")):
            if str(event.action).endswith("removed"):
                self._drop_partners(event.source, event.data_indices)
            number_points(event.source)
            self._timer.start()
            self.add.points_changed()

    def _drop_partners(self, layer: Points, removed: tuple[int, ...]) -> None:
        """Remove the partners of deleted points, which would otherwise shift all later pairs."""
        viewer = self._viewer()
        if viewer is None or self._removing:
            return
        both = [landmark_layer(viewer, side) for side in SIDES]
        other = both[0] if layer is both[1] else both[1] if layer is both[0] else None
        unpaired = [] if other is None else [n for n in removed if n < len(other.data)]
        if other is not None and unpaired:
            self._removing = True
            try:
                remove_points(other, unpaired)
            finally:
                self._removing = False
            _notify_removed(len(unpaired))

    def _image_moved(self, event: Any = None) -> None:
        """Move the landmarks of the moving image with it."""
        viewer = self._viewer()
        layer = None if viewer is None else landmark_layer(viewer, "moving")
        if viewer is not None and layer is not None and not self.add.adding:
            follow_placement(layer, layer_in_role(viewer, "moving"))

    def _points_moved(self, event: Any) -> None:
        """Update while a point is dragged, as napari emits a data event only at the end."""
        if not self._timer.isActive():
            self._timer.start()

    def _show_hint(self, hint: str) -> None:
        self.hint.setText(hint)
        self.hint.setVisible(bool(hint))

    def _centre(self, pair: int) -> None:
        viewer, fixed = self._viewer(), self._points()["fixed"]
        if viewer is not None and pair < len(fixed):
            centre_on(viewer, fixed[pair])


def _notify_removed(count: int) -> None:
    if count:
        show_info(f"{count} landmark{'s' if count > 1 else ''} without a partner removed.")
