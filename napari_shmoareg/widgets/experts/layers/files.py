"""The Experts panel, Layers: its loads as a figure and as a table, in files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QPushButton, QWidget

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.experts.replaying import weights_of

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene

FIGURE = ("expert_loads.png", "PNG (*.png);;SVG (*.svg)")
TABLE = ("loads.csv", "CSV (*.csv)")


class LoadFiles(QWidget):
    """Two buttons.

    Parameters
    ----------
    scene : callable
        Finds the registration that is meant, or None, so that nothing is held here.
    """

    def __init__(self, scene: Callable[[], Scene | None]) -> None:
        super().__init__()
        self._scene = scene
        self.figure, self.table = QPushButton("Save figure…"), QPushButton("Save CSV…")
        self.figure.setToolTip("Write all bars as a PNG or SVG (by the ending) that says weights, pair and settings")
        self.table.setToolTip("Write one row per gate and expert: count, and share of selections")
        self.figure.clicked.connect(lambda: self._ask("Save figure", FIGURE, self.save_figure))
        self.table.clicked.connect(lambda: self._ask("Save table", TABLE, self.save_table))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.figure)
        row.addWidget(self.table)

    def save_figure(self, path: str | Path) -> None:
        """Draw and write the figure, in a thread of its own; how it went is told."""
        scene = self._scene()
        if scene is not None:
            create_worker(partial(_write_figure, scene, Path(path)), _connect={"returned": partial(_tell, path)})

    def save_table(self, path: str | Path) -> None:
        """Write the table; how it went is told."""
        scene = self._scene()
        if scene is not None:
            _tell(path, _write_table(scene, Path(path)))

    def _ask(self, title: str, what: tuple[str, str], save: Callable[[str], None]) -> None:
        scene = self._scene()
        start = str((scene.folder or Path()) / what[0]) if scene is not None else what[0]
        path, kind = QFileDialog.getSaveFileName(self, title, start, what[1])
        if path:
            ending = kind[kind.index(".") : -1] if "." in kind else ""
            save(path if Path(path).suffix else path + ending)


def about_scene(scene: Scene) -> dict[str, str]:
    """What a figure of a registration says of itself: software, weights, pair, settings."""
    pair, report = scene.pair, scene.report
    return {
        "Title": "expert loads",
        "Description": "Share of selections per expert, per gate",
        "Software": f"shmoareg {report.get('versions', {}).get('shmoareg', '')}".strip(),
        "Weights": scene.weights,
        "Pair": f"moving {pair.moving.name}, fixed {pair.fixed.name}",
        "Settings": json.dumps(dict(report["settings"]), default=str),
    }


def _write_figure(scene: Scene, path: Path) -> tuple[Exception | None]:
    """Never raises: returns the error, if there was one, in a tuple, as a worker would raise it."""
    from napari_shmoareg.analysis.expert_figures import load_figure
    from napari_shmoareg.analysis.load_captions import load_caption
    from napari_shmoareg.io.report import write_figure
    from napari_shmoareg.io.weights import routing_of
    from napari_shmoareg.widgets.experts.layers.loads import load_of

    try:
        load, passes = load_of(scene), scene.report["settings"].get("passes")
        routing = routing_of(weights_of(scene)) or ""
        caption = load_caption(load, 1, [None if passes is None else len(passes)], routing)
        write_figure(load_figure(load, caption=caption), path, about_scene(scene) | {"Caption": caption})
    except Exception as error:
        return (error,)
    return (None,)


def _write_table(scene: Scene, path: Path) -> tuple[Exception | None]:
    from napari_shmoareg.io.atomic import writing
    from napari_shmoareg.io.summary import write_loads
    from napari_shmoareg.widgets.experts.layers.loads import load_of

    try:
        with writing(path) as file:
            write_loads(load_of(scene), file)
    except Exception as error:
        return (error,)
    return (None,)


def _tell(path: str | Path, outcome: tuple[Exception | None]) -> None:
    (error,) = outcome
    if error is None:
        show_info(f"The loads are saved in {path}.")
    else:
        show_error(_explain(error))


def _explain(error: Exception) -> str:
    """Why nothing was saved; an error that no one foresaw goes to the terminal as well."""
    if isinstance(error, InputError):
        return str(error)
    logging.getLogger(__name__).error("the loads could not be saved", exc_info=error)
    return f"The loads could not be saved ({type(error).__name__}: {error}). The terminal says more."
