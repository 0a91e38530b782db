"""Charts over training steps: losses, validation, loads of the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QWheelEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.figures.palette import expert_colours, head_colours
from napari_shmoareg.plugin.controls.forms import arranged, fill, wrapped
from napari_shmoareg.plugin.controls.legend import Swatch, Swatches
from napari_shmoareg.plugin.fine_tune.history import Points, decimated, smoothed
from napari_shmoareg.plugin.fine_tune.run_model import TERMS, Alarm, RunState

CURVE_POINTS = 600  # points of a curve on the screen
AXIS = 52  # pixels of the numbers to the left
FAINT = 90  # of 255: of what stands behind a smoothed curve
GRID = 40
DOT = 6  # pixels


class Theme(NamedTuple):
    """Colours of the window, ``#rrggbb``."""

    background: str
    text: str


def theme_of(name: str) -> Theme:
    """The colours of one of napari's themes."""
    from napari.utils.theme import get_theme

    theme = get_theme(name)
    return Theme(theme.background.as_hex(format="long"), theme.text.as_hex(format="long"))


class Chart(QWidget):
    """A chart with its title above it; the mouse reads values off, and turns the panel's page, not
    the chart.

    Parameters
    ----------
    title : str
    height : int
        Pixels, of the plot.
    tip : str
    """

    def __init__(self, title: str, height: int, tip: str) -> None:
        import pyqtgraph as pg

        super().__init__()
        self._curves: dict[str, tuple[Any, Any]] = {}
        self._shown: dict[str, Points] = {}
        self._colours: dict[str, str] = {}
        self.title, self.read = QLabel(title), QLabel()
        self.read.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.read.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.plot = _still_plot()
        self.plot.setFixedHeight(height)
        self.setToolTip(f"<qt>{tip}</qt>")
        item = self.plot.getPlotItem()
        item.setMouseEnabled(False, False)
        item.setMenuEnabled(False)
        item.hideButtons()
        item.getAxis("left").setWidth(AXIS)
        item.getAxis("left").enableAutoSIPrefix(False)
        item.getAxis("bottom").enableAutoSIPrefix(False)
        self.plot.scene().sigMouseMoved.connect(self._under)
        self._line = pg.InfiniteLine(angle=90)
        self._line.setVisible(False)
        item.addItem(self._line, ignoreBounds=True)
        head = arranged(QHBoxLayout(), self.title, self.read, wide=self.read)
        arranged(QVBoxLayout(self), head, self.plot).setSpacing(1)

    def set_theme(self, theme: Theme) -> None:
        """Take the colours of the window."""
        import pyqtgraph as pg

        self.plot.setBackground(theme.background)
        for name in ("left", "bottom"):
            axis = self.plot.getPlotItem().getAxis(name)
            axis.setPen(pg.mkPen(theme.text))
            axis.setTextPen(pg.mkPen(theme.text))
            axis.setGrid(GRID)
        self._line.setPen(pg.mkPen(theme.text, style=Qt.PenStyle.DotLine))

    def show_curves(
        self, curves: Mapping[str, Points], colours: Mapping[str, str], smooth: bool
    ) -> None:
        """Show these curves and no others, decimated; with `smooth` faintly, and their means over
        them.
        """
        self._shown, self._colours = dict(curves), dict(colours)
        item = self.plot.getPlotItem()
        for name in [name for name in self._curves if name not in curves]:
            for curve in self._curves.pop(name):
                item.removeItem(curve)
        for name, points in curves.items():
            if name not in self._curves:
                self._curves[name] = (item.plot(), item.plot())
                self._curves[name][1].setZValue(1)
            raw, mean = self._curves[name]
            raw.setPen(_pen(colours[name], FAINT if smooth else 255))
            raw.setData(*decimated(points, CURVE_POINTS))
            raw.setSymbol("o" if len(points.steps) == 1 else None)  # a line of one point is none
            raw.setSymbolBrush(QColor(colours[name]))
            raw.setSymbolSize(DOT)
            mean.setPen(_pen(colours[name], 255, 2))
            mean.setData(*(decimated(smoothed(points), CURVE_POINTS) if smooth else ([], [])))

    def mark(self, step: float | None) -> None:
        """Mark a step by a line; None for none."""
        self._line.setVisible(step is not None)
        if step is not None:
            self._line.setPos(step)

    def set_log(self, on: bool) -> None:
        """Draw values by their logarithm, those of 0 and less not at all."""
        self.plot.getPlotItem().setLogMode(False, on)

    def _under(self, place: Any) -> None:
        """Say what the curves hold under the mouse."""
        box = self.plot.getPlotItem().getViewBox()
        if not self._shown or not box.sceneBoundingRect().contains(place):
            self.read.setText("")
            return
        step = box.mapSceneToView(place).x()
        said = []
        for steps, values in self._shown.values():
            if len(steps):
                n = int(np.abs(steps - step).argmin())
                said.append((steps[n], f"{values[n]:.4g}"))
        self.read.setText(
            f"step {said[0][0]:.0f}: {', '.join(text for _, text in said)}" if said else ""
        )


class Areas(Chart):
    """Shares of experts over steps, one upon the other, filling the height from 0 to 100 %."""

    def show_shares(
        self, steps: Sequence[float] | np.ndarray, cumulated: np.ndarray, colours: Sequence[str]
    ) -> None:
        """Show other shares: cumulated (experts, n) at steps (n,), the first expert lowest."""
        item = self.plot.getPlotItem()
        for name in list(self._curves):
            for curve in self._curves.pop(name):
                item.removeItem(curve)
        item.setYRange(0, 100, padding=0)
        for expert, (upper, colour) in enumerate(zip(cumulated, colours, strict=True)):
            area = item.plot(
                steps, 100 * upper, fillLevel=0, brush=QColor(colour), pen=_pen("#808080", 255)
            )
            area.setZValue(-expert - 1)  # the highest behind all others
            self._curves[str(expert)] = (area,)  # type: ignore[assignment]


def _still_plot() -> Any:
    import pyqtgraph as pg

    class Still(pg.PlotWidget):  # type: ignore[misc]
        """Lets the panel scroll when the wheel is turned over it."""

        def wheelEvent(self, event: QWheelEvent) -> None:
            event.ignore()

    return Still()


def _pen(colour: str, alpha: int, width: int = 1) -> Any:
    import pyqtgraph as pg

    faint = QColor(colour)
    faint.setAlpha(alpha)
    return pg.mkPen(faint, width=width)


MOST = 200  # points of an area
NOTHING = "Loads come after the first ten steps of a run."
CALM = "No alarm: no gate sends all cells the same way."
PAPER = (1, 3, 5)  # kernels of the paper, where a run does not tell its own
WHAT = {"x": "direction x", "y": "direction y", "z": "direction z"}


class LoadsView(QWidget):
    """Shares of the experts at one place, stacked, and the alarms of all places.

    Attributes
    ----------
    switched : Signal
        Another place was picked.
    """

    switched = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.which = QComboBox(), QComboBox()
        self.layer.setToolTip("Which layer of the network.")
        self.which.setToolTip("Which image (encoder), or direction (decoder).")
        for combo in (self.layer, self.which):
            combo.activated.connect(self.switched)
        self.chart = Areas(
            "Share of selections over steps, %",
            200,
            "How often each expert is chosen, over the steps.",
        )
        self.legend, self.alarms, self.nothing = Swatches(), QLabel(), QLabel(NOTHING)
        wrapped(self.alarms, self.nothing)
        row = QHBoxLayout()
        row.addWidget(self.layer, 3)
        row.addWidget(self.which, 2)
        below = (self.nothing, self.chart, self.legend)
        arranged(QVBoxLayout(self), self.alarms, row, *below, None)

    @property
    def gate(self) -> str:
        """The picked one, such as "encoder-1-moving"."""
        return f"{self.layer.currentData() or ''}-{self.which.currentData() or ''}"

    def set_theme(self, theme: Theme) -> None:
        """Take the colours of the window."""
        self.chart.set_theme(theme)

    def show_state(self, state: RunState) -> None:
        """Draw what is known of the picked place."""
        self.nothing.setVisible(not state.shares)
        layers = dict.fromkeys(place.rpartition("-")[0] for place in state.shares)
        fill(self.layer, {layer: _layer_name(layer) for layer in layers})
        chosen = self.layer.currentData()
        which = [
            place.rpartition("-")[2] for place in state.shares if place.rpartition("-")[0] == chosen
        ]
        fill(self.which, {each: WHAT.get(each, each) for each in which})
        for combo in (self.layer, self.which):
            combo.setEnabled(bool(state.shares))
        self.alarms.setText(
            alarm_text(list(state.alarms.values())) if state.alarms or state.shares else ""
        )
        shares = state.shares.get(self.gate)
        if shares is None:
            self.legend.show_entries([])
            return
        last = shares.last
        colours = (
            head_colours(len(last))
            if self.gate.startswith("encoder")
            else expert_colours(len(last))
        )
        self.chart.show_shares(*shares.stacked(MOST), colours)
        names = expert_names(self.gate, len(last), state.about.get("kernels") or ())
        self.legend.show_entries(list(zip(colours, names, last, strict=True)))


def expert_names(place: str, count: int, kernels: Sequence[int]) -> list[str]:
    """What the experts at a place are called: heads of the encoder, kernels of the decoder."""
    if place.startswith("encoder"):
        return [f"head {n}" for n in range(count)]
    sizes = kernels if len(kernels) == count else PAPER if count == len(PAPER) else ()
    return [f"{k}×{k}×{k}" for k in sizes] or [f"expert {n}" for n in range(count)]


def alarm_text(alarms: Sequence[Alarm]) -> str:
    """The alarms with their steps, those that are not over first."""
    lines = []
    for alarm in sorted(alarms, key=lambda alarm: (alarm.over is not None, alarm.step)):
        since = (
            f"⚠ Step {alarm.step}"
            if alarm.over is None
            else f"Steps {alarm.step} to {alarm.over} (over)"
        )
        lines.append(f"{since}. {alarm.text}")
    return "\n\n".join(lines) or CALM


def _layer_name(layer: str) -> str:
    part, _, number = layer.partition("-")
    return f"{part.capitalize()} layer {number}" if number else layer


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
    "routing": (
        "How far the choices of the decoder's experts are from the errors that they should follow."
    ),
    "overlap": "One minus the soft Dice of labels, before its weight; only where it is weighed.",
}
NO_CURVES = "Curves come with the first steps of a run."
SHOW = "Show the validation pair"


class CurvesView(QWidget):
    """Losses over the steps, what the validation pairs say, and a switch that shows one of them in
    the viewer.

    Attributes
    ----------
    switched : Signal
        A curve, the scale or the validation pair was switched on or off.
    """

    switched = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.nothing = QLabel(NO_CURVES)
        self.nothing.setWordWrap(True)
        self.terms = {name: QCheckBox(name.capitalize()) for name in TERMS}
        self.log, self.preview, self.message = QCheckBox("Logarithmic"), QCheckBox(SHOW), QLabel()
        self.log.setToolTip(
            "Draw the losses by their logarithm: terms of unlike size side by side."
        )
        self.log.setChecked(True)
        self.preview.setToolTip(
            "Put a validation pair into the viewer, moving, fixed and warped; it is registered anew"
            " at each look."
        )
        self.message.setWordWrap(True)
        self.losses = Chart(
            "Losses over steps", 190, "Faint: each step. Strong: the mean of the last ones."
        )
        self.dice = Chart(
            "Validation",
            120,
            "Mean over the validation pairs; the dotted line marks the best look.",
        )
        self.folding = Chart(
            "Folding, %",
            90,
            "Share of voxels where the deformation turns tissue inside out, validation pairs.",
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
        charts = (self.losses, self.dice, self.folding)
        arranged(QVBoxLayout(self), self.nothing, grid, *charts, self.preview, self.message, None)

    def set_theme(self, theme: Theme) -> None:
        """Take the colours of the window."""
        for chart in (self.losses, self.dice, self.folding):
            chart.set_theme(theme)

    def show_state(self, state: RunState) -> None:
        """Draw what is known."""
        self.nothing.setVisible(not len(state.terms["total"]))
        self.terms["overlap"].setEnabled(
            len(state.terms["overlap"]) > 0 or not len(state.terms["total"])
        )
        wanted = [name for name in TERMS if self.terms[name].isChecked() and len(state.terms[name])]
        self.losses.set_log(self.log.isChecked())
        self.losses.show_curves(
            {name: state.terms[name].points for name in wanted}, COLOURS, smooth=True
        )
        best = state.best
        measure = best.measure if best is not None else "dice"
        words = "Dice" if measure == "dice" else "correlation"
        told = f"Validation {words}" + (
            "" if best is None else f": best {best.value:.3f} at step {best.step}"
        )
        self.dice.title.setText(told)
        for chart, name in ((self.dice, measure), (self.folding, "folding_percent")):
            chart.show_curves({name: state.validation[name].points}, {name: VALIDATION}, smooth=False)
            chart.mark(None if best is None else best.step)
