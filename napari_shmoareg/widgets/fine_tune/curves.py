"""The tab of the curves: losses, validation, and the pair that is shown."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_shmoareg.widgets.fine_tune.charts import Chart, Theme
from napari_shmoareg.widgets.fine_tune.known import TERMS, Known
from napari_shmoareg.widgets.legend import Swatch

COLOURS = {  # seen on light and on dark
    "total": "#1c7ed6",
    "similarity": "#e8590c",
    "smoothness": "#2f9e44",
    "routing": "#ae3ec9",
    "overlap": "#e03131",
}
VALIDATION = "#1098ad"
TIPS = {
    "total": "What is made small: the weighted sum of the others.",
    "similarity": "How unlike warped and fixed are, before its weight.",
    "smoothness": "How unsmooth the displacement is, before its weight.",
    "routing": "How far the choices of the decoder's experts are from the errors that they should follow.",
    "overlap": "One minus the soft Dice of labels, before its weight; only where it is weighed.",
}
NOTHING = "Curves come with the first steps of a run."
SHOW = "Show the validation pair"


class CurvesView(QWidget):
    """Losses over the steps, what the validation pairs say, and a switch that shows one of them in the viewer.

    Attributes
    ----------
    switched : Signal
        A curve, the scale or the validation pair was switched on or off.
    """

    switched = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.nothing = QLabel(NOTHING)
        self.nothing.setWordWrap(True)
        self.terms = {name: QCheckBox(name.capitalize()) for name in TERMS}
        self.log, self.preview, self.told = QCheckBox("Logarithmic"), QCheckBox(SHOW), QLabel()
        self.log.setToolTip("Draw the losses by their logarithm: terms of unlike size side by side.")
        self.log.setChecked(True)
        self.preview.setToolTip(
            "Put a validation pair into the viewer, moving, fixed and warped; it is registered anew at each look."
        )
        self.told.setWordWrap(True)
        self.losses = Chart("Losses over steps", 190, "Faint: each step. Strong: the mean of the last ones.")
        self.dice = Chart("Validation", 120, "Mean over the validation pairs; the dotted line marks the best look.")
        self.folding = Chart(
            "Folding, %", 90, "Share of voxels where the deformation turns tissue inside out, validation pairs."
        )
        grid = QGridLayout()
        grid.setHorizontalSpacing(6)
        places = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
        for (name, box), (row, place) in zip(self.terms.items(), places, strict=True):
            box.setChecked(True)
            box.setToolTip(TIPS[name])
            box.toggled.connect(self.switched)
            grid.addWidget(Swatch(COLOURS[name]), row, 2 * place)
            grid.addWidget(box, row, 2 * place + 1)
            grid.setColumnStretch(2 * place + 1, 1)
        grid.addWidget(self.log, 2, 3)
        self.log.toggled.connect(self.switched)
        self.preview.toggled.connect(self.switched)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.nothing)
        column.addLayout(grid)
        for widget in (self.losses, self.dice, self.folding, self.preview, self.told):
            column.addWidget(widget)
        column.addStretch(1)

    def set_theme(self, theme: Theme) -> None:
        """Take the colours of the window."""
        for chart in (self.losses, self.dice, self.folding):
            chart.set_theme(theme)

    def show_known(self, known: Known) -> None:
        """Draw what is known."""
        self.nothing.setVisible(not len(known.terms["total"]))
        self.terms["overlap"].setEnabled(len(known.terms["overlap"]) > 0 or not len(known.terms["total"]))
        wanted = [name for name in TERMS if self.terms[name].isChecked() and len(known.terms[name])]
        self.losses.set_log(self.log.isChecked())
        self.losses.show_curves({name: known.terms[name].points for name in wanted}, COLOURS, smooth=True)
        best = known.best
        measure = best.measure if best is not None else "dice"
        words = "Dice" if measure == "dice" else "correlation"
        told = f"Validation {words}" + ("" if best is None else f": best {best.value:.3f} at step {best.step}")
        self.dice.title.setText(told)
        for chart, name in ((self.dice, measure), (self.folding, "folding_percent")):
            chart.show_curves({name: known.judged[name].points}, {name: VALIDATION}, smooth=False)
            chart.mark(None if best is None else best.step)
