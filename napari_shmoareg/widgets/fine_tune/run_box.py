"""Where a run goes, its buttons, and how far it is."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.widgets.fine_tune.standing import Standing
from napari_shmoareg.widgets.register.form import captioned

FINENESS = 1000  # steps of the bar
TIPS = {
    "folder": "Where everything of the run goes: settings, figures, weights. A new or empty folder for a new run; the "
    "folder of a run to go on with it.",
    "open": "Show a run that lies in a folder: one that ended, or one that another program works on right now.",
    "start": "Start learning in a process of its own; napari stays usable. Closing napari stops it at a safe step.",
    "anew": "The run in this folder saved nothing: its files are removed, and another begins with the settings of the "
    "form.",
    "resume": "Go on from the last saved step, with the run's own data set and settings; those of the form that can "
    "still be changed are taken from there.",
    "over": "All steps are done. Raise Steps in the settings to go on.",
    "pause": "Wait after the current step; memory stays taken.",
    "go": "Go on after a pause.",
    "stop": "Save after the current step, and end. It can be resumed later.",
    "use": "Choose the best weights of this run in the Register panel.",
    "copy": "Put the command that does the same in a terminal on the clipboard.",
}


class RunBox(QWidget):
    """Folder, buttons and progress of a run.

    Attributes
    ----------
    pressed : Signal(str)
        "start", "anew", "resume", "pause", "go", "stop", "use" or "copy".
    opened : Signal(str)
        A folder of a run that is to be shown.
    changed : Signal
        Another folder stands in the field.
    """

    pressed, opened = Signal(str), Signal(str)
    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.choose = QLineEdit(), QToolButton()
        self.folder.setPlaceholderText("new folder")
        self.folder.setToolTip(f"<qt>{TIPS['folder']}</qt>")
        self.folder.textChanged.connect(self.changed)
        self.choose.setText("Choose…")
        self.choose.setToolTip("Choose a folder for the run.")
        self.choose.clicked.connect(self._choose)
        self.told, self.bar = QLabel(), QProgressBar()
        self.told.setWordWrap(True)
        self.told.setTextFormat(Qt.TextFormat.PlainText)
        self.told.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.bar.setRange(0, FINENESS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.bar.setToolTip("How far the run is.")
        self.start, self.pause, self.stop = QPushButton("Start"), QPushButton("Pause"), QPushButton("Stop")
        self.open, self.use, self.copy = QPushButton("Open run…"), QPushButton("Use in Register"), QPushButton("Copy")
        self.copy.setText("Copy command")
        for name in ("stop", "open", "use", "copy"):
            getattr(self, name).setToolTip(f"<qt>{TIPS[name]}</qt>")
        self.start.clicked.connect(lambda: self.pressed.emit(self._standing.start_does))
        self.pause.clicked.connect(lambda: self.pressed.emit(self._standing.pause_does))
        for name in ("stop", "use", "copy"):
            getattr(self, name).clicked.connect(lambda _=False, name=name: self.pressed.emit(name))
        self.open.clicked.connect(self._open)
        self._lay_out()
        self._standing = Standing()
        self.show_standing(self._standing)

    def show_standing(self, standing: Standing) -> None:
        """Say how far the run is, and what the buttons would do."""
        self._standing = standing
        self.start.setText(standing.start_says.replace("&", "&&"))
        self.start.setEnabled(standing.can_start)
        self.start.setVisible(not standing.works)
        self.start.setToolTip(f"<qt>{TIPS[standing.start_does]}</qt>")
        self.pause.setText(standing.pause_says)
        self.pause.setEnabled(standing.can_pause)
        self.pause.setVisible(standing.works)
        self.pause.setToolTip(f"<qt>{TIPS[standing.pause_does]}</qt>")
        self.stop.setText(standing.stop_says)
        self.stop.setEnabled(standing.can_stop)
        self.stop.setVisible(standing.works)
        self.use.setEnabled(standing.can_use)
        self.copy.setEnabled(not standing.uncopied)
        self.copy.setToolTip(f"<qt>{standing.uncopied or TIPS['copy']}</qt>")
        self.open.setEnabled(standing.can_open)
        for widget in (self.folder, self.choose):
            widget.setEnabled(standing.can_open)
        self.told.setText(standing.text)
        self.told.setVisible(bool(standing.text))
        self.bar.setVisible(standing.done is not None)
        if standing.done is not None:
            self.bar.setRange(0, 0 if standing.done < 0 else FINENESS)
            self.bar.setValue(round(FINENESS * max(0.0, standing.done)))

    def _lay_out(self) -> None:
        row = QHBoxLayout()
        row.addWidget(captioned("Run folder", TIPS["folder"]))
        row.addWidget(self.folder, 1)
        row.addWidget(self.choose)
        grid = QGridLayout()
        grid.addWidget(self.start, 0, 0, 1, 6)
        grid.addWidget(self.pause, 0, 0, 1, 3)
        grid.addWidget(self.stop, 0, 3, 1, 3)
        grid.addWidget(self.open, 1, 0, 1, 2)
        grid.addWidget(self.use, 1, 2, 1, 2)
        grid.addWidget(self.copy, 1, 4, 1, 2)
        for n in range(6):
            grid.setColumnStretch(n, 1)
        grid.setSpacing(4)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.told)
        column.addWidget(self.bar)
        column.addLayout(grid)

    def _choose(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self, "A new folder for the run", self.folder.text() or str(Path.home() / "run"), options=NEW
        )
        if path:
            self.folder.setText(path)

    def _open(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "The folder of a run", self.folder.text() or str(Path.home()))
        if path:
            self.opened.emit(path)


NEW = QFileDialog.Option.DontConfirmOverwrite  # an existing folder can be a run to go on with
