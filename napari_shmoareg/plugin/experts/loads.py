"""The tab Layers of the Experts panel: the loads of all gates as bars (Fig. 5), and their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import (
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_shmoareg.plugin import showing
from napari_shmoareg.plugin.controls.bars import Bar, BarChart
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.plugin.controls.forms import Section, arranged, weakly
from napari_shmoareg.plugin.controls.legend import Swatches
from napari_shmoareg.plugin.controls.tasks import Task, weights_of
from napari_shmoareg.plugin.layers import expert_names, resolution
from napari_shmoareg.plugin.placement import tag

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.load import ExpertLoad
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


FIGURE = ("expert_loads.png", "PNG (*.png);;SVG (*.svg)")
TABLE = ("loads.csv", "CSV (*.csv)")


class LoadFiles(QWidget):
    """Two buttons that save the loads as a figure and as a table.

    Parameters
    ----------
    registration : callable
        Returns the current registration or None, so that no reference is kept here.
    """

    def __init__(self, registration: Callable[[], Registration | None]) -> None:
        super().__init__()
        self._registration = registration
        self.task = Task(self, "a figure of the loads")
        self.task.finished.connect(_report_saved)
        self.task.failed.connect(_report_failed)
        self.figure, self.table = QPushButton("Save figure…"), QPushButton("Save CSV…")
        self.figure.setToolTip(
            "Write all bars as PNG or SVG (by the extension), with weights, pair and settings"
        )
        self.table.setToolTip("Write one row per gate and expert: count and share of selections")
        self.figure.clicked.connect(lambda: self._ask_path("Save figure", FIGURE, self.save_figure))
        self.table.clicked.connect(lambda: self._ask_path("Save table", TABLE, self.save_table))
        arranged(QHBoxLayout(self), self.figure, self.table)

    def save_figure(self, path: str | Path) -> None:
        """Draw and write the figure in the background, and report the outcome."""
        registration = self._registration()
        if registration is not None:
            self.task.start(lambda _: _write_figure(registration, Path(path)))

    def save_table(self, path: str | Path) -> None:
        """Write the table, and report the outcome."""
        registration = self._registration()
        if registration is None:
            return
        try:
            _report_saved(_write_table(registration, Path(path)))
        except Exception as error:
            _report_failed(explain(error))

    def _ask_path(self, title: str, what: tuple[str, str], save: Callable[[str], None]) -> None:
        registration = self._registration()
        start = (
            str((registration.folder or Path()) / what[0]) if registration is not None else what[0]
        )
        path, kind = QFileDialog.getSaveFileName(self, title, start, what[1])
        if path:
            ending = kind[kind.index(".") : -1] if "." in kind else ""
            save(path if Path(path).suffix else path + ending)


def figure_metadata(registration: Registration) -> dict[str, str]:
    """The metadata of a figure: software, weights, pair, settings."""
    pair, report = registration.pair, registration.report
    return {
        "Title": "expert loads",
        "Description": "Share of selections per expert, per gate",
        "Software": f"shmoareg {report.get('versions', {}).get('shmoareg', '')}".strip(),
        "Weights": registration.weights,
        "Pair": f"moving {pair.moving.name}, fixed {pair.fixed.name}",
        "Settings": json.dumps(dict(report["settings"]), default=str),
    }


def _write_figure(registration: Registration, path: Path) -> Path:
    from napari_shmoareg.figures.experts import load_caption, load_figure
    from napari_shmoareg.io.files import write_figure
    from napari_shmoareg.io.model_card import routing_of

    load, passes = load_of(registration), registration.report["settings"].get("passes")
    routing = routing_of(weights_of(registration)) or ""
    caption = load_caption(load, 1, [None if passes is None else len(passes)], routing)
    about = figure_metadata(registration) | {"Caption": caption}
    write_figure(load_figure(load, caption=caption), path, about)
    return path


def _write_table(registration: Registration, path: Path) -> Path:
    from napari_shmoareg.io.files import atomic_write
    from napari_shmoareg.io.report import write_loads

    with atomic_write(path) as file:
        write_loads(load_of(registration), file)
    return path


def _report_saved(path: Path) -> None:
    show_info(f"The loads are saved in {path}.")


def _report_failed(text: str) -> None:
    show_error(f"The loads could not be saved. {text}")


CLICK_TEXTS = {
    "weights": "Click: show its weight at every token",
    "times": "Click: show in how many blocks each token chose it",
    "decoder": "Click: show the cells that chose it; click again: the cells of all experts",
}


def load_of(registration: Registration) -> ExpertLoad:
    """The load of a registration from its report; empty for a network without experts."""
    from napari_shmoareg.experts.load import ExpertLoad

    return ExpertLoad.from_entries(registration.report.get("expert_loads") or ())


def charts_of(registration: Registration) -> dict[str, list[BarChart]]:
    """The charts of each layer by its title: of an encoder layer its blocks and all of them, of a
    decoder layer its directions (Fig. 5).

    All charts of the encoder have the same scale, and so have those of the decoder.
    """
    load, rows = load_of(registration), {}
    for part in ("encoder", "decoder"):
        of_part = load.select(part=part)
        whole = of_part.over_blocks() if part == "encoder" else of_part
        shares = {**whole.share, **of_part.share}.values()
        highest = max((float(share.max()) for share in shares), default=0.0) or 1.0
        for layer in sorted({gate.layer for gate in of_part}):
            of_layer = of_part.select(layer=layer)
            sets: dict[str, list[GateId]] = {}
            for gate in sorted(of_layer, key=lambda p: (p.block or 0, p.direction or "")):
                sets.setdefault(gate.direction or f"block {gate.block}", []).append(gate)
            charts = [_chart(registration, of_layer, *one, highest) for one in sets.items()]
            if part == "encoder" and len(sets) > 1:
                over = whole.select(layer=layer)
                one = "all blocks", list(over)
                charts.append(_chart(registration, over, *one, highest, blocks=len(sets)))
            routed = registration.routing.select(part=part, layer=layer)
            cells = f" ({resolution(routed[0].stride)} resolution)" if routed else ""
            rows[f"{part.capitalize()} layer {layer}{cells}"] = charts
    return rows


def _chart(
    registration: Registration,
    load: ExpertLoad,
    title: str,
    gates: list[GateId],
    highest: float,
    blocks: int = 1,
) -> BarChart:
    """Bars by expert; for each expert moving before fixed."""
    from napari_shmoareg.figures.palette import IMAGE_COLOURS, expert_colours

    images = [None, *IMAGE_COLOURS]
    gates = sorted(gates, key=lambda gate: images.index(gate.image))
    first, count, bars = gates[0], len(load.share[gates[0]]), []
    names, colours = expert_names(registration, count), expert_colours(count)
    for expert in range(count):
        for gate in gates:
            colour = IMAGE_COLOURS[gate.image] if gate.image else colours[expert]
            mark = str(expert) if gate.part == "encoder" else names[expert]
            tooltip = _tooltip(load, gate, expert, names[expert], blocks)
            share = float(load.share[gate][expert])
            bars.append(Bar(gate, expert, share, colour, mark, tooltip))
    where = f"{first.part} layer {first.layer}, {'direction ' if first.direction else ''}{title}"
    name = f"Load of {where}: shares of {count} experts"
    chart = BarChart(title, highest, pickable=True, accessible_name=name, equal=True)
    chart.show_bars(bars)
    return chart


def _tooltip(load: ExpertLoad, gate: GateId, expert: int, name: str, blocks: int) -> str:
    """The exact numbers of a bar, and the effect of a click."""
    counts, cells = load.counts[gate], load.cells[gate]
    count, total, experts = int(counts[expert]), int(counts.sum()), len(counts)
    where, top_k, in_each = f"{gate.part} layer {gate.layer}", total // max(cells, 1), ""
    if gate.part == "decoder":
        title = f"Expert {expert} ({name}) of {where}, direction {gate.direction}"
        unit, click = "cells", "decoder"
    else:
        block = "all blocks" if gate.block is None else f"block {gate.block}"
        title = f"Head {expert} of {where}, {block}, {gate.image} image"
        unit, click = "tokens", "times" if gate.block is None else "weights"
    if blocks > 1:
        in_each = f" in each of {blocks} blocks"
    share = f"{100 * load.share[gate][expert]:.2f} % of selections: {count:,} of {total:,}"
    each = f"{cells // blocks:,} {unit}, each chose {top_k} of {experts}{in_each}"
    equal = f"(equal shares: {100 / experts:.2f} %)"
    return "\n".join((title, share, f"{each} {equal}", CLICK_TEXTS[click]))


NARROW, NARROW_OF_FEW, FEW = 118, 78, 6  # minimum px of a chart, with more than or up to 6 bars
NO_EXPERTS = "This network has no experts (no MoA, no SHMoE), so there are no loads."
CAPTION = (
    "Bars are shares of selections: of all choices of the cells of a gate (a token of the encoder"
    " makes one per chosen head), so the bars of one gate sum to 100 %. Dotted: equal shares. All"
    " charts of the encoder have the same scale, and so have the charts of the decoder. A load does"
    " not measure how much an expert contributed, or whether the choice was good; only an"
    " intervention (What if) shows what depends on an expert."
)


class LayersView(Section):
    """Bars per expert for every layer; a click on a bar shows its map."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Loads of all gates", viewer)
        self.charts: list[BarChart] = []
        self._shown_for = weakly(None)
        self.legend, self.caption, self.files = (
            Swatches(),
            QLabel(CAPTION),
            LoadFiles(lambda: self.registration),
        )
        self.caption.setWordWrap(True)
        self._rows = QVBoxLayout()
        self.column.addWidget(self.legend)
        self.column.addLayout(self._rows)
        self.column.addWidget(self.caption)
        self.column.addWidget(self.files)

    def show_registration(self, number: int | None) -> None:
        """Draw the bars of a registration, and mark the bar whose map is shown."""
        self._number = number or 0
        registration = self.registration
        if registration is None or self._shown_for() is not registration:
            self._shown_for = weakly(registration)
            self._build({} if registration is None else charts_of(registration))
            self.caption.setText(CAPTION if self.charts or registration is None else NO_EXPERTS)
        self.refresh()

    def refresh(self) -> None:
        """Mark the bar whose map is shown."""
        self.setEnabled(bool(self._number))
        self.files.setEnabled(bool(self.charts))
        gate, expert = self._shown()
        for chart in self.charts:
            chart.mark(gate, expert)

    def _build(self, rows: Mapping[str, Sequence[BarChart]]) -> None:
        """Replace the charts."""
        while (item := self._rows.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.setParent(None)
                widget.deleteLater()
        self.charts = [chart for charts in rows.values() for chart in charts]
        colours: dict[str, str] = {}
        for title, charts in rows.items():
            narrow = NARROW if len(charts[0].bars) > FEW else NARROW_OF_FEW
            self._rows.addWidget(QLabel(title))
            self._rows.addWidget(ChartRow(charts, narrow))
        for chart in self.charts:
            chart.picked.connect(self._pick)
            colours |= {bar.gate.image: bar.colour for bar in chart.bars if bar.gate.image}
        self.legend.show_entries(
            [(colour, f"{image} image", None) for image, colour in colours.items()]
        )
        self.legend.setVisible(bool(colours))

    def _pick(self, bar: Bar) -> None:
        """Show the map of a bar's expert."""
        registration = self.registration
        if registration is None:
            return
        if bar.gate.part == "decoder":
            shown = self._show_cells(registration, bar)
        else:
            from napari_shmoareg.experts.maps import times_chosen, token_loads

            loads = (times_chosen if bar.gate.block is None else token_loads)(registration)
            load = next((load for load in loads if load.gate == bar.gate), None)
            shown = (
                load is not None
                and showing.show_head(self._viewer, self._number, load, bar.expert) is not None
            )
        if not shown:
            show_info(
                f"#{self._number} has no layer for this map: it was removed, or not saved in the"
                " folder."
            )
        self.refresh()

    def _show_cells(self, registration: Registration, bar: Bar) -> bool:
        """Draw only the cells of one expert, or of all experts if it is already shown alone."""
        stride = next((one.stride for one in registration.routing if one.gate == bar.gate), None)
        opened = [
            showing.direction_and_stride(layer)
            for layer in showing.expert_layers(self._viewer, self._number)
        ]
        if (bar.gate.direction, stride) not in opened:
            return False
        again = self._shown() == (bar.gate, bar.expert)
        layer = showing.show_experts(self._viewer, self._number, bar.gate.direction, stride)
        if layer is not None:
            showing.draw_single_expert(layer, None if again else bar.expert)
        return layer is not None

    def _shown(self) -> tuple[GateId | None, int]:
        """Gate and expert of the shown map; (None, -1) for a map of all experts."""
        head = showing.head_layer(self._viewer, self._number)
        if head is not None and head.visible:
            return tag(head, "load").gate, tag(head, "head")
        for layer in showing.expert_layers(self._viewer, self._number):
            expert = showing.single_expert(layer)
            if layer.visible and expert is not None:
                return tag(layer, "expert_map").gate, expert
        return None, -1


class ChartRow(QWidget):
    """Charts side by side, as many per row as fit; `narrow` is the minimum width of a chart."""

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
        """One chart wide: the others can wrap."""
        return QSize(
            max(chart.minimumSizeHint().width() for chart in self._charts),
            super().minimumSizeHint().height(),
        )

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
