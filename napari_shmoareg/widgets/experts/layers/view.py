"""The Experts panel, Layers: the loads of all gates as bars, each of which shows its map.  Fig. 5."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from napari.utils.notifications import show_info
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_shmoareg.widgets import showing
from napari_shmoareg.widgets.experts.layers.bar_drawing import Bar
from napari_shmoareg.widgets.experts.layers.files import LoadFiles
from napari_shmoareg.widgets.experts.layers.load_bars import LoadBars
from napari_shmoareg.widgets.experts.layers.loads import LayerRow, rows_of
from napari_shmoareg.widgets.experts.section import Section
from napari_shmoareg.widgets.legend import Swatches
from napari_shmoareg.widgets.placement import tag
from napari_shmoareg.widgets.scenes import scenes

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.expert_load import Place
    from napari_shmoareg.analysis.scene import Scene

NARROW, NARROW_OF_FEW, FEW = 118, 78, 6  # px that a chart should have, that of few bars less
NOTHING = "This network has no experts (no MoA, no SHMoE), so there are no loads."
CAPTION = (
    "Bars are shares of selections: of all choices that the cells of a gate made (a token of the encoder makes one per "
    "chosen head), so the bars of one gate sum to 100 %. Dotted: equal shares. All charts of the encoder have "
    "one scale, and so have those of the decoder. A load does not say how much an expert contributed, nor that it "
    "chose well; only a change (What if) shows what depends on an expert."
)


class LayersView(Section):
    """Bars per expert for every layer; a click on one shows its map."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Loads of all gates", viewer)
        self.charts: list[LoadBars] = []
        self._of: weakref.ref[Scene] | None = None
        self.legend, self.says, self.files = Swatches(), QLabel(CAPTION), LoadFiles(self._scene)
        self.says.setWordWrap(True)
        self._rows = QVBoxLayout()
        self.column.addWidget(self.legend)
        self.column.addLayout(self._rows)
        self.column.addWidget(self.says)
        self.column.addWidget(self.files)

    def show_registration(self, number: int | None) -> None:
        """Draw the bars of another registration, and mark the one whose map is shown."""
        self._number = number or 0
        scene = self._scene()
        if scene is None or self._of is None or self._of() is not scene:
            self._of = None if scene is None else weakref.ref(scene)
            self._build([] if scene is None else rows_of(scene))
            self.says.setText(CAPTION if self.charts or scene is None else NOTHING)
        self.refresh()

    def refresh(self) -> None:
        """Mark the bar whose map is shown, wherever it was switched on."""
        self.setEnabled(bool(self._number))
        self.files.setEnabled(bool(self.charts))
        place, expert = self._shown()
        for chart in self.charts:
            chart.mark(place, expert)

    def _build(self, rows: Sequence[LayerRow]) -> None:
        """Put other charts in the place of those that are there."""
        while (item := self._rows.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.setParent(None)
                widget.deleteLater()
        self.charts = []
        colours: dict[str, str] = {}
        for row in rows:
            title = QLabel(row.title)
            charts = [LoadBars(one.title, one.bars, row.highest, one.spoken) for one in row.charts]
            for chart in charts:
                chart.picked.connect(self._pick)
                colours |= {bar.place.image: bar.colour for bar in chart.bars if bar.place.image}
            self._rows.addWidget(title)
            self._rows.addWidget(ChartRow(charts, NARROW if len(charts[0].bars) > FEW else NARROW_OF_FEW))
            self.charts += charts
        self.legend.show_entries([(colour, f"{image} image", None) for image, colour in colours.items()])
        self.legend.setVisible(bool(colours))

    def _pick(self, bar: Bar) -> None:
        """Show the map of a bar's expert."""
        scene = self._scene()
        if scene is None:
            return
        if bar.place.part == "decoder":
            done = self._show_cells(scene, bar)
        else:
            loads = scene.token_loads if bar.place.block is not None else scene.times_chosen
            load = next((load for load in loads if load.place == bar.place), None)
            done = load is not None and showing.show_head(self._viewer, self._number, load, bar.expert) is not None
        if not done:
            show_info(f"#{self._number} has no layer for this map: it was removed, or not kept with the folder.")
        self.refresh()

    def _show_cells(self, scene: Scene, bar: Bar) -> bool:
        """Draw the cells of one expert alone; where that is so already, those of all experts."""
        stride = next((m.stride for m in scene.expert_maps if m.place == bar.place), None)
        opened = [showing.which(layer) for layer in showing.expert_layers(self._viewer, self._number)]
        if (bar.place.direction, stride) not in opened:
            return False
        again = self._shown() == (bar.place, bar.expert)
        layer = showing.show_experts(self._viewer, self._number, bar.place.direction, stride)
        if layer is not None:
            showing.draw_alone(layer, None if again else bar.expert)
        return layer is not None

    def _shown(self) -> tuple[Place | None, int]:
        """Place and expert of the map that is shown; of a map of all experts none."""
        head = showing.head_layer(self._viewer, self._number)
        if head is not None and head.visible:
            return tag(head, "load").place, tag(head, "head")
        for layer in showing.expert_layers(self._viewer, self._number):
            expert = showing.alone(layer)
            if layer.visible and expert is not None:
                return tag(layer, "expert_map").place, expert
        return None, -1

    def _scene(self) -> Scene | None:
        return scenes(self._viewer).get(self._number)


class ChartRow(QWidget):
    """Charts beside each other, as many in a row as there is room for.

    Parameters
    ----------
    charts : sequence of QWidget
    narrow : int
        Pixels that a chart should have at least.
    """

    def __init__(self, charts: Sequence[QWidget], narrow: int) -> None:
        super().__init__()
        self._narrow = narrow
        self._charts = list(charts)
        self._columns = 0
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(4)
        self._arrange(min(2, len(self._charts)))

    def minimumSizeHint(self) -> QSize:
        """One chart wide, as the others can go under it."""
        return QSize(max(chart.minimumSizeHint().width() for chart in self._charts), super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        super().resizeEvent(event)
        self._arrange(min(len(self._charts), max(1, self.width() // self._narrow)))

    def _arrange(self, columns: int) -> None:
        if columns == self._columns:
            return
        for column in range(max(columns, self._columns)):
            self._grid.setColumnStretch(column, int(column < columns))
        self._columns = columns
        for n, chart in enumerate(self._charts):
            self._grid.addWidget(chart, n // columns, n % columns, Qt.AlignmentFlag.AlignTop)
