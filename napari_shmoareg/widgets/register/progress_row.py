"""The button that says what is missing, and how far the work is."""

from __future__ import annotations

from enum import Enum

from qtpy.QtWidgets import QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_shmoareg.widgets.register.job import Status

FINENESS = 1000  # steps of the bar
SHORTCUT = "Ctrl+Return"


class Doing(Enum):
    """What the panel is at."""

    nothing = "Register"
    registering = "Cancel"
    cancelling = "Cancelling…"
    adding = "Adding layers…"


TIPS = {
    Doing.nothing: f"Bring the moving image onto the fixed one ({SHORTCUT}).",
    Doing.registering: "End the registration; nothing is added.",
    Doing.cancelling: "The registration ends at its next step.",
    Doing.adding: "The result is put into the viewer.",
}


class ProgressRow(QWidget):
    """The Register button, with a bar and the time left while something runs."""

    def __init__(self) -> None:
        super().__init__()
        self.button = QPushButton(Doing.nothing.value)
        self.button.setDefault(True)
        self.bar, self.told = QProgressBar(), QLabel()
        self.bar.setRange(0, FINENESS)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(8)
        self.bar.setToolTip("How far the registration is.")
        self.told.setToolTip("What is being done, and about how long it will take.")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.told, self.bar, self.button):
            layout.addWidget(widget)
        self.show_doing(Doing.nothing, None)

    def show_doing(self, doing: Doing, missing: str | None) -> None:
        """Say what a click would do, or what it would need."""
        ready = doing is not Doing.nothing or missing is None
        self.button.setText((doing.value if ready else str(missing)).replace("&", "&&"))
        self.button.setToolTip(TIPS[doing] if ready else f"{missing}, then it can be registered.")
        self.button.setEnabled(doing is Doing.registering or (doing is Doing.nothing and ready))
        for widget in (self.bar, self.told):
            widget.setVisible(doing is not Doing.nothing)

    def show_status(self, status: Status) -> None:
        """Say how far it is."""
        self.bar.setValue(round(FINENESS * status.done))
        self.told.setText(described(status))


def described(status: Status) -> str:
    """``deforming, 42 %, about 12 s left``."""
    parts = [status.title, f"{100 * status.done:.0f} %"]
    if status.left is not None:
        parts.append(_length(status.left))
    return ", ".join(parts)


def _length(seconds: float) -> str:
    if seconds < 1:
        return "nearly done"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"
