"""Charts over steps in the colours of the window, drawn by pyqtgraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QWheelEvent
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_shmoareg.widgets.fine_tune.history import Points, decimated, smoothed

MOST = 600  # points of a curve on the screen
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
    """A chart with its title above it; the mouse reads values off, and turns the panel's page, not the chart.

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
        head = QHBoxLayout()
        head.addWidget(self.title)
        head.addWidget(self.read, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(1)
        column.addLayout(head)
        column.addWidget(self.plot)

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

    def show_curves(self, curves: Mapping[str, Points], colours: Mapping[str, str], smooth: bool) -> None:
        """Show these curves and no others, decimated; with `smooth` faintly, and their means over them."""
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
            raw.setData(*decimated(points, MOST))
            raw.setSymbol("o" if len(points.steps) == 1 else None)  # a line of one point is none
            raw.setSymbolBrush(QColor(colours[name]))
            raw.setSymbolSize(DOT)
            mean.setPen(_pen(colours[name], 255, 2))
            mean.setData(*(decimated(smoothed(points), MOST) if smooth else ([], [])))

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
        self.read.setText(f"step {said[0][0]:.0f}: {', '.join(text for _, text in said)}" if said else "")


class Areas(Chart):
    """Shares of experts over steps, one upon the other, filling the height from 0 to 100 %."""

    def show_shares(self, steps: Sequence[float] | np.ndarray, cumulated: np.ndarray, colours: Sequence[str]) -> None:
        """Show other shares: cumulated (experts, n) at steps (n,), the first expert lowest."""
        item = self.plot.getPlotItem()
        for name in list(self._curves):
            for curve in self._curves.pop(name):
                item.removeItem(curve)
        item.setYRange(0, 100, padding=0)
        for expert, (upper, colour) in enumerate(zip(cumulated, colours, strict=True)):
            area = item.plot(steps, 100 * upper, fillLevel=0, brush=QColor(colour), pen=_pen("#808080", 255))
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
