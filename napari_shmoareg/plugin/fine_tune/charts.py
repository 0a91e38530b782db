"""Charts over the training steps: losses, validation and expert loads."""

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

from napari_shmoareg.figures.palette import head_colours
from napari_shmoareg.plugin.controls.forms import arranged, fill, wrapped
from napari_shmoareg.plugin.controls.legend import Swatch, Swatches
from napari_shmoareg.plugin.fine_tune.history import Points, decimated, smoothed
from napari_shmoareg.plugin.fine_tune.run_model import TERMS, Alarm, RunState
from napari_shmoareg.plugin.layers import colours_of_experts

CURVE_POINTS = 600  # drawn per curve
AXIS_WIDTH = 52  # pixels
FAINT = 90  # of 255: opacity of the raw curve behind a smoothed one
GRID = 40  # of 255: opacity of the grid lines
DOT = 6  # pixels


class Theme(NamedTuple):
    """Colours of the window, as ``#rrggbb``."""

    background: str
    text: str


def theme_of(name: str) -> Theme:
    """Return the colours of a napari theme."""
    from napari.utils.theme import get_theme

    theme = get_theme(name)
    return Theme(theme.background.as_hex(format="long"), theme.text.as_hex(format="long"))


class Chart(QWidget):
    """A titled chart that shows the values under the mouse and lets the wheel scroll the panel.

    Parameters
    ----------
    title : str
    height : int
        Of the plot, in pixels.
    tip : str
    """

    def __init__(self, title: str, height: int, tip: str) -> None:
        import pyqtgraph as pg

        super().__init__()
        self._curves: dict[str, tuple[Any, Any]] = {}
        self._shown: dict[str, Points] = {}
        self._colours: dict[str, str] = {}
        self.title, self.readout = QLabel(title), QLabel()
        self.readout.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.readout.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.plot = _plot_without_wheel()
        self.plot.setFixedHeight(height)
        self.setToolTip(f"<qt>{tip}</qt>")
        item = self.plot.getPlotItem()
        item.setMouseEnabled(False, False)
        item.setMenuEnabled(False)
        item.hideButtons()
        item.getAxis("left").setWidth(AXIS_WIDTH)
        item.getAxis("left").enableAutoSIPrefix(False)
        item.getAxis("bottom").enableAutoSIPrefix(False)
        self.plot.scene().sigMouseMoved.connect(self._on_mouse_moved)
        self._line = pg.InfiniteLine(angle=90)
        self._line.setVisible(False)
        item.addItem(self._line, ignoreBounds=True)
        head = arranged(QHBoxLayout(), self.title, self.readout, wide=self.readout)
        arranged(QVBoxLayout(self), head, self.plot).setSpacing(1)

    def set_theme(self, theme: Theme) -> None:
        """Use the colours of the window."""
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
        """Replace the curves, decimated; with `smooth`, draw them faintly under running means."""
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
            raw.setSymbol(
                "o" if len(points.steps) == 1 else None
            )  # a line through one point is invisible
            raw.setSymbolBrush(QColor(colours[name]))
            raw.setSymbolSize(DOT)
            mean.setPen(_pen(colours[name], 255, 2))
            mean.setData(*(decimated(smoothed(points), CURVE_POINTS) if smooth else ([], [])))

    def mark(self, step: float | None) -> None:
        """Mark a step by a vertical line; None removes the line."""
        self._line.setVisible(step is not None)
        if step is not None:
            self._line.setPos(step)

    def set_log(self, on: bool) -> None:
        """Switch the logarithmic scale, which omits values of 0 and below."""
        self.plot.getPlotItem().setLogMode(False, on)

    def _on_mouse_moved(self, position: Any) -> None:
        """Show the values of the curves under the mouse."""
        box = self.plot.getPlotItem().getViewBox()
        if not self._shown or not box.sceneBoundingRect().contains(position):
            self.readout.setText("")
            return
        step = box.mapSceneToView(position).x()
        values_at = []
        for steps, values in self._shown.values():
            if len(steps):
                n = int(np.abs(steps - step).argmin())
                values_at.append((steps[n], f"{values[n]:.4g}"))
        texts = ", ".join(text for _, text in values_at)
        self.readout.setText(f"step {values_at[0][0]:.0f}: {texts}" if values_at else "")


class Areas(Chart):
    """Shares of the experts over the steps, stacked from 0 to 100 %."""

    def show_shares(
        self, steps: Sequence[float] | np.ndarray, cumulated: np.ndarray, colours: Sequence[str]
    ) -> None:
        """Replace the shares: cumulated (experts, n) at steps (n,), the first expert lowest."""
        item = self.plot.getPlotItem()
        for name in list(self._curves):
            for curve in self._curves.pop(name):
                item.removeItem(curve)
        item.setYRange(0, 100, padding=0)
        for expert, (upper, colour) in enumerate(zip(cumulated, colours, strict=True)):
            area = item.plot(
                steps, 100 * upper, fillLevel=0, brush=QColor(colour), pen=_pen("#808080", 255)
            )
            area.setZValue(-expert - 1)  # the highest area is behind all others
            self._curves[str(expert)] = (area,)  # type: ignore[assignment]


def _plot_without_wheel() -> Any:
    import pyqtgraph as pg

    class Plot(pg.PlotWidget):  # type: ignore[misc]
        """Passes wheel events on, so that the panel scrolls."""

        def wheelEvent(self, event: QWheelEvent) -> None:
            event.ignore()

    return Plot()


def _pen(colour: str, alpha: int, width: int = 1) -> Any:
    import pyqtgraph as pg

    transparent = QColor(colour)
    transparent.setAlpha(alpha)
    return pg.mkPen(transparent, width=width)


AREA_POINTS = 200  # drawn per area
NOTHING = "Loads appear after the first ten steps of a run."
NO_ALARM = "No alarm: no gate sends all cells to the same expert."
PAPER_KERNELS = (1, 3, 5)  # where the run does not list its own
DIRECTIONS = {"x": "direction x", "y": "direction y", "z": "direction z"}


class LoadsView(QWidget):
    """Stacked shares of the experts of one gate, and the alarms of all gates.

    Attributes
    ----------
    switched : Signal
        Another gate was picked.
    """

    switched = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.which = QComboBox(), QComboBox()
        self.layer.setToolTip("Layer of the network.")
        self.which.setToolTip("Image (encoder) or direction (decoder).")
        for combo in (self.layer, self.which):
            combo.activated.connect(self.switched)
        self.chart = Areas(
            "Share of selections over steps, %",
            200,
            "How often each expert is selected, over the steps.",
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
        """The picked gate, such as "encoder-1-moving"."""
        return f"{self.layer.currentData() or ''}-{self.which.currentData() or ''}"

    def set_theme(self, theme: Theme) -> None:
        """Use the colours of the window."""
        self.chart.set_theme(theme)

    def show_state(self, state: RunState) -> None:
        """Draw the loads of the picked gate."""
        self.nothing.setVisible(not state.shares)
        layers = dict.fromkeys(gate.rpartition("-")[0] for gate in state.shares)
        fill(self.layer, {layer: _layer_name(layer) for layer in layers})
        chosen = self.layer.currentData()
        which = [
            gate.rpartition("-")[2] for gate in state.shares if gate.rpartition("-")[0] == chosen
        ]
        fill(self.which, {each: DIRECTIONS.get(each, each) for each in which})
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
            else colours_of_experts(len(last))
        )
        self.chart.show_shares(*shares.stacked(AREA_POINTS), colours)
        names = expert_names(self.gate, len(last), state.about.get("kernels") or ())
        self.legend.show_entries(list(zip(colours, names, last, strict=True)))


def expert_names(gate: str, count: int, kernels: Sequence[int]) -> list[str]:
    """Name the experts of a gate: heads of the encoder, kernels of the decoder."""
    if gate.startswith("encoder"):
        return [f"head {n}" for n in range(count)]
    sizes = (
        kernels if len(kernels) == count else PAPER_KERNELS if count == len(PAPER_KERNELS) else ()
    )
    return [f"{k}×{k}×{k}" for k in sizes] or [f"expert {n}" for n in range(count)]


def alarm_text(alarms: Sequence[Alarm]) -> str:
    """List the alarms with their steps, active ones first."""
    lines = []
    for alarm in sorted(alarms, key=lambda alarm: (alarm.over is not None, alarm.step)):
        since = (
            f"⚠ Step {alarm.step}"
            if alarm.over is None
            else f"Steps {alarm.step} to {alarm.over} (over)"
        )
        lines.append(f"{since}. {alarm.text}")
    return "\n\n".join(lines) or NO_ALARM


def _layer_name(layer: str) -> str:
    part, _, number = layer.partition("-")
    return f"{part.capitalize()} layer {number}" if number else layer


COLOURS = {  # visible on light and dark themes
    "total": "#1c7ed6",
    "similarity": "#e8590c",
    "smoothness": "#2f9e44",
    "routing": "#ae3ec9",
    "overlap": "#e03131",
}
VALIDATION = "#1098ad"
TIPS = {
    "total": "The minimised loss: the weighted sum of the other terms.",
    "similarity": "Dissimilarity of the warped and fixed images, before weighting.",
    "smoothness": "Roughness of the displacement, before weighting.",
    "routing": (
        "Distance between the decoder's expert choices and the errors that they should follow."
    ),
    "overlap": "One minus the soft Dice of the labels, before weighting; empty with weight 0.",
}
NO_CURVES = "Curves appear with the first steps of a run."
SHOW = "Show the validation pair"


class CurvesView(QWidget):
    """Losses and validation measures over the steps, and a switch that shows a validation pair.

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
        self.log.setToolTip("Use a logarithmic scale, to compare terms of different size.")
        self.log.setChecked(True)
        self.preview.setToolTip(
            "Show a validation pair in the viewer: moving, fixed and warped. It is registered again"
            " at each validation."
        )
        self.message.setWordWrap(True)
        self.losses = Chart("Losses over steps", 190, "Faint: each step. Strong: the running mean.")
        self.dice = Chart(
            "Validation",
            120,
            "Mean over the validation pairs; the dotted line marks the best step.",
        )
        self.folding = Chart(
            "Folding, %",
            90,
            "Share of voxels where the deformation folds, over the validation pairs.",
        )
        grid = QGridLayout()
        grid.setHorizontalSpacing(6)
        cells = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
        for (name, box), (row, column) in zip(self.terms.items(), cells, strict=True):
            box.setChecked(True)
            box.setToolTip(TIPS[name])
            box.toggled.connect(self.switched)
            grid.addWidget(Swatch(COLOURS[name]), row, 2 * column)
            grid.addWidget(box, row, 2 * column + 1)
            grid.setColumnStretch(2 * column + 1, 1)
        grid.addWidget(self.log, 2, 3)
        self.log.toggled.connect(self.switched)
        self.preview.toggled.connect(self.switched)
        charts = (self.losses, self.dice, self.folding)
        arranged(QVBoxLayout(self), self.nothing, grid, *charts, self.preview, self.message, None)

    def set_theme(self, theme: Theme) -> None:
        """Use the colours of the window."""
        for chart in (self.losses, self.dice, self.folding):
            chart.set_theme(theme)

    def show_state(self, state: RunState) -> None:
        """Draw the curves of a run."""
        self.nothing.setVisible(not len(state.terms["total"]))
        self.terms["overlap"].setEnabled(
            len(state.terms["overlap"]) > 0 or not len(state.terms["total"])
        )
        names = [name for name in TERMS if self.terms[name].isChecked() and len(state.terms[name])]
        self.losses.set_log(self.log.isChecked())
        self.losses.show_curves(
            {name: state.terms[name].points for name in names}, COLOURS, smooth=True
        )
        best = state.best
        measure = best.measure if best is not None else "dice"
        label = "Dice" if measure == "dice" else "correlation"
        title = f"Validation {label}" + (
            "" if best is None else f": best {best.value:.3f} at step {best.step}"
        )
        self.dice.title.setText(title)
        for chart, name in ((self.dice, measure), (self.folding, "folding_percent")):
            chart.show_curves(
                {name: state.validation[name].points}, {name: VALIDATION}, smooth=False
            )
            chart.mark(None if best is None else best.step)
