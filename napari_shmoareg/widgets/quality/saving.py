"""Saves everything of a registration to a folder, beside the window."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QTimer, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_shmoareg.io.untrusted import typed_path

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene

TICK = 100  # ms between two looks at the progress
TIP = "Write images, transform, expert maps, figures and all numbers into a new folder: what the command line writes."


class Stopped(Exception):
    """Raised within the work when it is to end."""


class Saving:
    """One folder being written, in a thread of its own; whole or not at all.

    Parameters
    ----------
    scene : Scene
    folder : Path
    """

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder = scene, folder
        self.reached = ("starting", 0.0)
        self.stop = threading.Event()

    def run(self) -> tuple[Exception | None]:
        """Write.  Never raises: returns the error, if there was one, in a tuple, as a worker would raise it."""
        from napari_shmoareg.io.report import write_registration

        scene = self.scene
        assert scene.registration is not None
        extra = scene.report.get("extra")
        write = partial(write_registration, scene.registration, self.folder, weights=scene.weights, extra=extra)
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
        self._scene: Callable[[], Scene | None] = lambda: None
        self._saving: Saving | None = None
        self._lies: Path | None = None
        self.button = QPushButton("Save all…")
        self.button.setToolTip(TIP)
        self.button.clicked.connect(self._press)
        self.open = QPushButton("Open folder")
        self.open.setToolTip("Show the folder in the file manager.")
        self.open.clicked.connect(lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._lies))))
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

    def show_scene(self, scene: Callable[[], Scene | None]) -> None:
        """Offer to save a registration, given as what finds it, so that nothing is held here."""
        self._scene = scene
        found = scene()
        if not self.busy:
            self._lies = None if found is None else found.folder
            self._show("" if self._lies is None else f"It lies already in {self._lies}.")

    def save_all(self, folder: str | Path) -> None:
        """Write everything into a folder that does not exist or is empty; the window goes on meanwhile."""
        scene = self._scene()
        if scene is None or self.busy:
            return
        if scene.registration is None:
            show_info(f"This registration was read from {scene.folder}, where everything lies already.")
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
        self.button.setEnabled(self.busy or (scene is not None and scene.registration is not None))


def _say_outcome(folder: Path, outcome: tuple[Exception | None]) -> None:
    """Tell that everything is saved, or why not."""
    (error,) = outcome
    if error is None:
        show_info(f"The registration is saved in {folder}.")
    elif not isinstance(error, Stopped):
        from napari_shmoareg.widgets.register.job import explain

        show_error(explain(error))


def place_in(chosen: Path, scene: Scene) -> Path:
    """The chosen folder if it is empty, else a new one in it that is named after the pair."""
    if not any(chosen.iterdir()):
        return chosen
    pair: Any = scene.pair
    name = re.sub(r"[^\w.-]+", "_", f"{pair.moving.name}_onto_{pair.fixed.name}")
    taken = {entry.name for entry in chosen.iterdir()}
    number = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}_{n}") not in taken)
    return chosen / (name if number == 1 else f"{name}_{number}")
