"""The tab of the loads: shares of experts over the steps, and collapsed routing."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_shmoareg.analysis.expert_palette import expert_colours, head_colours
from napari_shmoareg.widgets.experts.section import fill
from napari_shmoareg.widgets.fine_tune.charts import Areas, Theme
from napari_shmoareg.widgets.fine_tune.known import Alarm, Known
from napari_shmoareg.widgets.legend import Swatches

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
        self.chart = Areas("Share of selections over steps, %", 200, "How often each expert is chosen, over the steps.")
        self.legend, self.alarms, self.nothing = Swatches(), QLabel(), QLabel(NOTHING)
        for label in (self.alarms, self.nothing):
            label.setWordWrap(True)
        row = QHBoxLayout()
        row.addWidget(self.layer, 3)
        row.addWidget(self.which, 2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.alarms)
        column.addLayout(row)
        for widget in (self.nothing, self.chart, self.legend):
            column.addWidget(widget)
        column.addStretch(1)

    @property
    def place(self) -> str:
        """The picked one, such as "encoder-1-moving"."""
        return f"{self.layer.currentData() or ''}-{self.which.currentData() or ''}"

    def set_theme(self, theme: Theme) -> None:
        """Take the colours of the window."""
        self.chart.set_theme(theme)

    def show_known(self, known: Known) -> None:
        """Draw what is known of the picked place."""
        self.nothing.setVisible(not known.shares)
        layers = dict.fromkeys(place.rpartition("-")[0] for place in known.shares)
        fill(self.layer, {layer: _layer_name(layer) for layer in layers})
        chosen = self.layer.currentData()
        which = [place.rpartition("-")[2] for place in known.shares if place.rpartition("-")[0] == chosen]
        fill(self.which, {each: WHAT.get(each, each) for each in which})
        for combo in (self.layer, self.which):
            combo.setEnabled(bool(known.shares))
        self.alarms.setText(alarms_told(list(known.alarms.values())) if known.alarms or known.shares else "")
        shares = known.shares.get(self.place)
        if shares is None:
            self.legend.show_entries([])
            return
        last = shares.last
        colours = head_colours(len(last)) if self.place.startswith("encoder") else expert_colours(len(last))
        self.chart.show_shares(*shares.stacked(MOST), colours)
        names = names_of(self.place, len(last), known.about.get("kernels") or ())
        self.legend.show_entries(list(zip(colours, names, last, strict=True)))


def names_of(place: str, count: int, kernels: Sequence[int]) -> list[str]:
    """What the experts at a place are called: heads of the encoder, kernels of the decoder."""
    if place.startswith("encoder"):
        return [f"head {n}" for n in range(count)]
    known = kernels if len(kernels) == count else PAPER if count == len(PAPER) else ()
    return [f"{k}×{k}×{k}" for k in known] or [f"expert {n}" for n in range(count)]


def alarms_told(alarms: Sequence[Alarm]) -> str:
    """The alarms with their steps, those that are not over first."""
    lines = []
    for alarm in sorted(alarms, key=lambda alarm: (alarm.over is not None, alarm.step)):
        since = f"⚠ Step {alarm.step}" if alarm.over is None else f"Steps {alarm.step} to {alarm.over} (over)"
        lines.append(f"{since}. {alarm.text}")
    return "\n\n".join(lines) or CALM


def _layer_name(layer: str) -> str:
    part, _, number = layer.partition("-")
    return f"{part.capitalize()} layer {number}" if number else layer
