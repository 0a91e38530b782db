"""What came of the last registration, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from napari_shmoareg.widgets.notices import look_like_caution
from napari_shmoareg.widgets.quality.rows import STAGES, dice_fall, labels_in

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene


class Told(QWidget):
    """The last error, or notes on the last result, to be selected and copied; below, why it is as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.why = _text(), _text()
        self.reasons = QToolButton()
        self.reasons.setText("Why")
        self.reasons.setCheckable(True)
        self.reasons.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.reasons.setToolTip("What was decided for you, and why; and how long each phase took.")
        self.reasons.toggled.connect(self._open)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.text, self.reasons, self.why):
            layout.addWidget(widget)
        self.say("")

    def say(self, text: str, why: str = "", *, caution: bool = False) -> None:
        """Show a text, as a caution if it is one; the reasons are there to be opened, if there are any."""
        self.text.setText(text)
        look_like_caution(self.text, caution)
        self.why.setText(why)
        self.text.setVisible(bool(text))
        self.reasons.setVisible(bool(why))
        self._open(self.reasons.isChecked())

    def _open(self, is_open: bool) -> None:
        self.reasons.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.why.setVisible(is_open and bool(self.why.text()))


def result(number: int, scene: Scene) -> str:
    """Of a result what a person should see first: how alike the images became, and what to mind."""
    report = scene.report
    seconds = sum(report["seconds"].values())
    lines = [f"#{number} {scene.pair.moving.name} onto {scene.pair.fixed.name}: done in {seconds:.0f} s."]
    before, after = (report["similarity"][stage]["ncc"] for stage in ("before", "after"))
    if before is not None and after is not None:
        lines.append(f"Correlation {before:.2f} before, {after:.2f} after.")
    if report["dice"] is not None:
        means = [report["dice"][stage]["mean"] for stage in STAGES]
        if None not in means:
            fell = " ↓" if dice_fall(report) is not None else ""
            before, affine, after = means
            lines.append(
                f"Dice of {labels_in(report)} {before:.2f} before, {affine:.2f} after the affine, "
                f"{after:.2f} after{fell}."
            )
    return " ".join(lines)


def reasons(scene: Scene) -> str:
    """What was decided, and the seconds of each phase."""
    report = scene.report
    lines = [f"{name.capitalize()}: {why}" for name, why in report["choices"].items()]
    lines.append("Seconds: " + ", ".join(f"{name} {took:.1f}" for name, took in report["seconds"].items()) + ".")
    return "\n".join(lines)


def _text() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(
        Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
    )
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label
