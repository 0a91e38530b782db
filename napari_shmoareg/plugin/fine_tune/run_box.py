"""The run folder, the state of the run and its buttons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import arranged, captioned
from napari_shmoareg.plugin.fine_tune.run_model import RunState, read_run_header

# settings that may change when a run is resumed: those of `training.plan` and the steps
CHANGEABLE = ("steps", "minutes", "validate_every", "validation_pairs", "save_every", "tensorboard")


@dataclass(frozen=True)
class RunFolderState:
    """The state of a run folder.

    Attributes
    ----------
    has_run : bool
    is_empty : bool
        Whether the run saved nothing, so that a new one can replace it.
    settings : dict
        By the names of `FineTuning` and `RunSettings`.
    """

    has_run: bool = False
    is_empty: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def inspect_folder(folder: Path | None) -> RunFolderState:
    """Inspect a run folder, or None."""
    from napari_shmoareg.training.run_folder import is_empty_run

    if folder is None or not (folder / "run.json").is_file():
        return RunFolderState()
    try:
        about = read_run_header(folder)
        return RunFolderState(
            True, is_empty_run(folder), {**about["settings"], **about["run_settings"]}
        )
    # of another program, or being written: reported when it is opened
    except (InputError, OSError):
        return RunFolderState(True)


DONE = "Done"
SILENCE = 60.0  # seconds without an event before the panel reports it
REQUEST_TEXTS = {
    "pause": "Pausing after this step…",
    "go": "Continuing…",
    "stop": "Saving and stopping after this step…",
}
ENDS = {
    "finished": "The run is done: {step} steps.",
    "stopped": "The run was stopped after step {step}; it can be resumed.",
    "minutes": "The time limit was reached after step {step}; raise Minutes to resume.",
    "failed": "The run failed after step {step}.",
}
NOTHING_SAVED = "The run was stopped before anything was saved: start it again."
PHASES = {
    "reading": "Reading the data set",
    "checkup": "Checking the scans",
    "preparing": "Preparing",
    "training": "Training",
    "validating": "Validating",
}


@dataclass(frozen=True)
class ButtonState:
    """The labels and availability of the buttons, the message and the progress.

    `done` is the completed fraction (None: no bar; -1: busy).  A run that `is_running` can be
    paused and stopped, any other started.
    """

    is_running: bool = False
    text: str = ""
    done: float | None = None
    start_text: str = "Start"
    start_action: str = "start"
    can_start: bool = False
    pause_text: str = "Pause"
    pause_action: str = "pause"
    can_pause: bool = False
    stop_text: str = "Stop"
    can_stop: bool = False
    can_use: bool = False
    no_command: str = ""  # why the command cannot be copied
    can_open: bool = True


def button_state(
    state: RunState,
    *,
    is_running: bool,
    is_own: bool,
    requested: str,
    silent_seconds: float,
    missing: str | None,
    can_resume: bool,
    has_weights: bool,
    can_restart: bool = False,
    no_command: str = "",
    steps: int = 0,
) -> ButtonState:
    """Return the message and the buttons for a run.

    Parameters
    ----------
    state : RunState
    is_running, is_own : bool
        Whether a process works on the run, and whether it is a child of this panel.
    requested : str
        The pending request: "pause", "go", "stop" or empty.
    silent_seconds : float
        Time since the last event.
    missing : str or None
        What is missing to start a new run.
    can_resume : bool
        Whether the selected folder contains a run.
    has_weights : bool
        Whether the run saved weights.
    can_restart : bool
        Whether the selected folder contains a run that saved nothing, which a new one can replace.
    no_command : str
        Why the command cannot be copied; empty if it can.
    steps : int
        Number of steps in the form: a finished run can only be resumed with more.
    """
    finished = can_resume and 0 < max(state.steps, steps) <= state.step
    paused = state.paused or requested == "go"
    return ButtonState(
        is_running=is_running,
        text=_text(state, is_running, is_own, requested, silent_seconds),
        done=_fraction(state, is_running),
        start_text=(
            DONE
            if finished
            else "Resume"
            if can_resume
            else missing or ("Start over" if can_restart else "Start")
        ),
        start_action="done"
        if finished
        else "resume"
        if can_resume
        else "restart"
        if can_restart
        else "start",
        can_start=not is_running and not finished and (can_resume or missing is None),
        pause_text="Continue" if paused else "Pause",
        pause_action="go" if paused else "pause",
        can_pause=is_running and requested == "" and bool(state.about),
        stop_text="Stopping…" if requested == "stop" else "Stop",
        can_stop=is_running and requested != "stop",
        can_use=has_weights,
        no_command=no_command,
        can_open=not (is_running and is_own),
    )


def figures(state: RunState) -> list[str]:
    """``1.2 s per step``, ``needs 3.1 of 12.4 GB``, ``best Dice 0.712 at step 300``."""
    texts = []
    seconds, memory, best = state.seconds_per_step, state.about.get("memory"), state.best
    if seconds is not None:
        texts.append(f"{seconds:.2g} s per step" if seconds < 10 else f"{seconds:.0f} s per step")
    if memory:
        texts.append(_memory(memory))
    if precision := state.about.get("bfloat16"):
        texts.append(f"{'bfloat16' if precision['used'] else 'float32'} ({precision['why']})")
    if best is not None:
        texts.append(
            f"best {'Dice' if best.measure == 'dice' else 'correlation'} {best.value:.3f} at step"
            f" {best.step}"
        )
    return texts


def length(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _text(
    state: RunState, is_running: bool, is_own: bool, requested: str, silent_seconds: float
) -> str:
    lines = []
    if is_running and requested:
        lines.append(REQUEST_TEXTS[requested])
    elif is_running and state.paused:
        lines.append(f"Paused at step {state.step} of {state.steps}.")
    elif is_running and state.phase and state.phase["phase"] != "training":
        phase = state.phase
        name = PHASES.get(phase["phase"], phase["phase"])
        detail = f": {phase['text']}" if phase["text"] else ""
        lines.append(f"{name}{detail} ({100 * phase['done']:.0f} %)")
    elif is_running and not state.step:
        lines.append("Starting…")
    elif is_running:
        left = "" if state.left_seconds is None else f", about {length(state.left_seconds)} left"
        lines.append(f"Step {state.step} of {state.steps}{left}.")
    elif state.end:
        reason = state.end["reason"]
        text = NOTHING_SAVED if reason == "stopped" and not state.saved else ENDS.get(reason)
        lines.append((text or "The run ended after step {step}.").format(step=state.step))
    elif state.about or state.step:
        lines.append(f"Step {state.step} of {state.steps}; no process works on this run now.")
    if state.error and not is_running:
        lines.append(state.error)
    if is_running and not is_own:
        lines.append("Another process works on this run.")
    texts = figures(state)
    if texts:
        text = "; ".join(texts)
        lines.append(f"{text[0].upper()}{text[1:]}.")
    if silent_seconds > SILENCE and is_running and not state.paused:
        lines.append(f"No message for {length(silent_seconds)}.")
    if state.skipped:
        lines.append(
            f"{len(state.skipped)} pairs could not be read (skipped.csv). Last error:"
            f" {state.skipped[-1][1]}"
        )
    if state.garbled:
        lines.append(f"{len(state.garbled)} events are invalid.")
    return "\n".join(lines)


def _fraction(state: RunState, is_running: bool) -> float | None:
    if not is_running:
        return None
    phase = state.phase
    if phase and phase["phase"] != "training":
        return float(phase["done"])
    return state.step / state.steps if state.step and state.steps else -1.0


def _memory(memory: Mapping[str, Any]) -> str:
    need, free = memory.get("need"), memory.get("free")
    if need is None:
        return "memory unknown"
    return f"needs {need / 1e9:.1f} GB" + ("" if free is None else f" of {free / 1e9:.1f} GB free")


BAR_STEPS = 1000  # resolution of the progress bar
TIPS = {
    "folder": (
        "Folder for the settings, metrics and weights of the run: a new or empty folder for a new"
        " run, or the folder of a run to resume."
    ),
    "open": "Show the run in a folder, finished or in progress in another program.",
    "start": (
        "Start training in a separate process; napari stays usable. Closing napari stops it at a"
        " safe step."
    ),
    "restart": (
        "The run in this folder saved nothing. Remove its files and start a new run with the"
        " settings of the form."
    ),
    "resume": (
        "Resume from the last saved step with the run's own data set and settings. Settings that"
        " can still be changed are taken from the form."
    ),
    "done": "All steps are done. Raise Steps in the settings to continue.",
    "pause": "Pause after the current step; memory stays allocated.",
    "go": "Continue after a pause.",
    "stop": (
        "Save and end after the current step; the run can be resumed later. During the check of the"
        " scans there is nothing to save yet."
    ),
    "use": "Select the best weights of this run in the Register panel.",
    "copy": "Copy the equivalent command line to the clipboard.",
}


class RunBox(QWidget):
    """Folder, buttons and progress of a run.

    Attributes
    ----------
    pressed : Signal(str)
        "start", "restart", "resume", "pause", "go", "stop", "use" or "copy".
    opened : Signal(str)
        Folder of a run to show.
    changed : Signal
        Another folder was entered.
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
        self.message, self.bar = QLabel(), QProgressBar()
        self.message.setWordWrap(True)
        self.message.setTextFormat(Qt.TextFormat.PlainText)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.bar.setRange(0, BAR_STEPS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.bar.setToolTip("Progress of the run.")
        self.start, self.pause, self.stop = (
            QPushButton("Start"),
            QPushButton("Pause"),
            QPushButton("Stop"),
        )
        self.open, self.use, self.copy = (
            QPushButton("Open run…"),
            QPushButton("Use in Register"),
            QPushButton("Copy"),
        )
        self.copy.setText("Copy command")
        for name in ("stop", "open", "use", "copy"):
            getattr(self, name).setToolTip(f"<qt>{TIPS[name]}</qt>")
        self.start.clicked.connect(lambda: self.pressed.emit(self._buttons.start_action))
        self.pause.clicked.connect(lambda: self.pressed.emit(self._buttons.pause_action))
        for name in ("stop", "use", "copy"):
            getattr(self, name).clicked.connect(lambda _=False, name=name: self.pressed.emit(name))
        self.open.clicked.connect(self._open)
        self._lay_out()
        self._buttons = ButtonState()
        self.show_button_state(self._buttons)

    def show_button_state(self, button_state: ButtonState) -> None:
        """Show the progress of the run and the buttons."""
        self._buttons = button_state
        self.start.setText(button_state.start_text.replace("&", "&&"))
        self.start.setEnabled(button_state.can_start)
        self.start.setVisible(not button_state.is_running)
        self.start.setToolTip(f"<qt>{TIPS[button_state.start_action]}</qt>")
        self.pause.setText(button_state.pause_text)
        self.pause.setEnabled(button_state.can_pause)
        self.pause.setVisible(button_state.is_running)
        self.pause.setToolTip(f"<qt>{TIPS[button_state.pause_action]}</qt>")
        self.stop.setText(button_state.stop_text)
        self.stop.setEnabled(button_state.can_stop)
        self.stop.setVisible(button_state.is_running)
        self.use.setEnabled(button_state.can_use)
        self.copy.setEnabled(not button_state.no_command)
        self.copy.setToolTip(f"<qt>{button_state.no_command or TIPS['copy']}</qt>")
        self.open.setEnabled(button_state.can_open)
        for widget in (self.folder, self.choose):
            widget.setEnabled(button_state.can_open)
        self.message.setText(button_state.text)
        self.message.setVisible(bool(button_state.text))
        self.bar.setVisible(button_state.done is not None)
        if button_state.done is not None:
            self.bar.setRange(0, 0 if button_state.done < 0 else BAR_STEPS)
            self.bar.setValue(round(BAR_STEPS * max(0.0, button_state.done)))

    def _lay_out(self) -> None:
        caption = captioned("Run folder", TIPS["folder"])
        row = arranged(QHBoxLayout(), caption, self.folder, self.choose, wide=self.folder)
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
        arranged(QVBoxLayout(self), row, self.message, self.bar, grid)

    def _choose(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self,
            "New folder for the run",
            self.folder.text() or str(Path.home() / "run"),
            options=NEW,
        )
        if path:
            self.folder.setText(path)

    def _open(self) -> None:
        path = QFileDialog.getExistingDirectory(
            self, "Folder of a run", self.folder.text() or str(Path.home())
        )
        if path:
            self.opened.emit(path)


NEW = QFileDialog.Option.DontConfirmOverwrite  # an existing folder can be a run to resume
