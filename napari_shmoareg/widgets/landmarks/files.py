"""Landmarks from files and to files: the buttons, and what they do."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QPushButton, QWidget

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.landmarks.layers import SIDES, add_landmark_layers, landmark_layer, points_of, set_points

if TYPE_CHECKING:
    from napari import Viewer

READS = "Points (*.csv *.txt *.mrk.json *.json *.fcsv)"
KINDS = {"pairs": "Pairs…", "fixed": "Fixed points…", "moving": "Moving points…"}
SLICER = "3D Slicer (*.mrk.json *.fcsv)"
WRITES = {
    "pairs": ("landmarks.csv", "CSV (*.csv)"),
    "fixed": ("fixed.mrk.json", SLICER),
    "moving": ("moving.mrk.json", SLICER),
}
LOAD_TIP = (
    "Read landmarks; they take the place of those that are there. Pairs: CSV, six numbers a row, fixed point first. "
    "Points of one image: 3D Slicer's .mrk.json or .fcsv, or CSV. In mm, LPS unless the file says RAS."
)
SAVE_TIP = "Write the pairs as CSV (mm, LPS), or the points of one image for 3D Slicer."
SWAP_TIP = "Exchange fixed and moving points, for a file that holds them the other way round."


def load(viewer: Viewer, path: str, kind: str = "pairs") -> None:
    """Read landmarks into the two layers, in place of those that are there; errors are told.

    Parameters
    ----------
    viewer : Viewer
    path : str
    kind : {"pairs", "fixed", "moving"}
        What the file holds: both points of each pair, or the points of one image.
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
        show_info(f"{path}: {'; '.join(notes)}. If fixed and moving are the wrong way round, press 'Swap'.")


def save(viewer: Viewer, path: str, kind: str = "pairs") -> None:
    """Write the whole pairs as CSV, or the points of one image for 3D Slicer (see `load`); errors are told."""
    from napari_shmoareg.io.landmarks import write_landmark_pairs
    from napari_shmoareg.io.slicer_points import write_slicer_points

    points = {side: points_of(landmark_layer(viewer, side)) for side in SIDES}
    count = min(len(found) for found in points.values()) if kind == "pairs" else len(points[kind])
    try:
        if kind == "pairs":
            write_landmark_pairs(path, moving=points["moving"][:count], fixed=points["fixed"][:count])
        else:
            write_slicer_points(points[kind], path)
    except InputError as error:
        show_error(str(error))
    else:
        show_info(f"{count} {'pairs' if kind == 'pairs' else f'{kind} points'} are saved in {path}.")


def swap(viewer: Viewer) -> None:
    """Exchange fixed and moving points."""
    points = {side: points_of(landmark_layer(viewer, side)) for side in SIDES}
    if any(len(found) for found in points.values()):
        layers = add_landmark_layers(viewer)
        set_points(layers["fixed"], points["moving"])
        set_points(layers["moving"], points["fixed"])


class FileButtons(QWidget):
    """Load, save, swap.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for text, tip, ask in (("Load", LOAD_TIP, self._load), ("Save", SAVE_TIP, self._save)):
            button, menu = QPushButton(text), QMenu(self)
            button.setToolTip(tip)
            for kind, words in KINDS.items():
                action = menu.addAction(words)
                if action is not None:
                    action.triggered.connect(partial(ask, kind))
            button.setMenu(menu)
            row.addWidget(button)
        self.swap = QPushButton("Swap")
        self.swap.setToolTip(SWAP_TIP)
        self.swap.clicked.connect(self._swap)
        row.addWidget(self.swap)

    def _load(self, kind: str, _checked: bool = False) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load landmarks", "", READS)
        viewer = self._viewer()
        if path and viewer is not None:
            load(viewer, path, kind)

    def _save(self, kind: str, _checked: bool = False) -> None:
        name, filters = WRITES[kind]
        path, _ = QFileDialog.getSaveFileName(self, "Save landmarks", name, filters)
        viewer = self._viewer()
        if path and viewer is not None:
            save(viewer, path, kind)

    def _swap(self) -> None:
        viewer = self._viewer()
        if viewer is not None:
            swap(viewer)
