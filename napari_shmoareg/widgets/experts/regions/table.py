"""A table of what each region's cells chose, and of how far that is from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QTableWidgetItem

from napari_shmoareg.widgets.figure_table import Figure, FigureTable

if TYPE_CHECKING:
    from napari_shmoareg.analysis.region_loads import RegionLoad
    from napari_shmoareg.widgets.experts.regions.counting import Regions

ABOVE, CHANCE, TOO_FEW = "● above chance", "as by chance", "too few blocks to tell"
ROWS_SHOWN = 10
UNKNOWN = -2.0  # below every difference of distances
HEADINGS = ("Region", "Verdict", "Distance", "By chance", "Cells", "Blocks")
TIPS = (
    "Name or number of the region. Click a row to go there.",
    "Whether the distance is more than chance gives. Many regions at once: one in twenty is above by chance alone",
    "How far the region's shares are from those of the reference: half the sum of the differences (total variation), "
    "0 for the same shares, 1 for nothing in common",
    "What this distance reaches by chance: its 95th percentile over as many blocks of space drawn at random from the "
    "reference",
    "Tokens or voxels of the gate behind the figures; one that lies partly in the region counts partly",
    "Blocks of space that hold any of it. They are the sample, not the voxels: neighbours choose alike",
)


class _Verdict(Figure):
    """Sorts by how far the distance is above what chance gives; what cannot be told comes first, or last."""

    def __init__(self, load: RegionLoad) -> None:
        known = verdict(load) != TOO_FEW and load.expected is not None
        super().__init__(load.distance - (load.expected or 0.0) if known else UNKNOWN, ".3f")
        self.setText(verdict(load))
        self.setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)


class RegionTable(FigureTable):
    """One row per region, with the share of selections of every expert."""

    def __init__(self) -> None:
        super().__init__(HEADINGS, TIPS)
        self.setToolTip("Shares are of selections. Click a heading to sort, a row to go to the region.")

    def show_loads(self, loads: Sequence[RegionLoad], experts: Sequence[str]) -> None:
        """Show other loads; `experts` is what the columns of shares are called."""
        self.setSortingEnabled(False)
        self.clearContents()
        self.setColumnCount(len(HEADINGS) + len(experts))
        for n, expert in enumerate(experts):
            heading = QTableWidgetItem(expert)
            heading.setToolTip(f"Share of selections of {expert}; its 95 % interval is shown under the cursor")
            self.setHorizontalHeaderItem(len(HEADINGS) + n, heading)
        self.setRowCount(len(loads))
        for row, load in enumerate(loads):
            name = QTableWidgetItem(titled(load, loads))
            name.setData(Qt.ItemDataRole.UserRole, row)
            cells = [
                name,
                _Verdict(load),
                Figure(load.distance, ".3f"),
                Figure(load.expected, ".3f"),
                Figure(load.tokens, ",.0f" if load.tokens >= 100 else ".1f"),
                Figure(load.blocks, "d"),
                *(Figure(100 * float(share), ".1f") for share in load.share),
            ]
            for column, cell in enumerate(cells):
                at = column - len(HEADINGS)
                cell.setToolTip(interval(load, at, experts[at]) if at >= 0 else _said(load))
                self.setItem(row, column, cell)
        self.setSortingEnabled(True)
        self.resizeColumnsToContents()
        self.fit(min(max(len(loads), 1), ROWS_SHOWN))

    def chosen(self) -> int | None:
        """Which of the loads is selected, in the order they were given; None without any."""
        rows = self.selected_rows()
        item = self.item(rows[0], 0) if rows else None
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))


def titled(load: RegionLoad, loads: Sequence[RegionLoad]) -> str:
    """Name of a region; with the block, where there are several."""
    several = len({other.place for other in loads}) > 1
    return f"{load.name}, block {load.place.block}" if several else load.name


def verdict(load: RegionLoad) -> str:
    """Whether a region's distance is more than what chance gives."""
    if load.low is None or load.expected is None:
        return TOO_FEW
    return ABOVE if load.distance > load.expected else CHANCE


def interval(load: RegionLoad, expert: int, name: str) -> str:
    """``head 3: 12.1 % of the selections (95 %: 8.0 to 15.9)``."""
    said = f"{name}: {100 * load.share[expert]:.1f} % of the selections"
    if load.low is None or load.high is None:
        return f"{said} (too few blocks of space, {load.blocks}, to say how sure that is)"
    return f"{said} (95 % interval {100 * load.low[expert]:.1f} to {100 * load.high[expert]:.1f} %)"


def table_of(found: Regions) -> list[dict[str, object]]:
    """All figures for a file or the clipboard: a row per region, three columns per expert (shares from 0 to 1)."""
    rows: list[dict[str, object]] = []
    loads = found.loads
    most = max((len(load.share) for load in loads), default=0)
    for load in loads:
        row: dict[str, object] = {**found.about, "region": load.region, "name": load.name, **load.place._asdict()}
        row |= {"distance": load.distance, "expected_by_chance": load.expected, "verdict": verdict(load).lstrip("● ")}
        row |= {"cells": load.tokens, "blocks": load.blocks}
        for n in range(most):
            for what, values in (("share", load.share), ("low", load.low), ("high", load.high)):
                row[f"{what}_{n}"] = None if values is None or n >= len(values) else float(values[n])
        rows.append(row)
    return rows


def _said(load: RegionLoad) -> str:
    if verdict(load) == TOO_FEW:
        return f"{load.name}: only {load.blocks} blocks of space hold any of it, too few to tell chance from more."
    more = "more than" if verdict(load) == ABOVE else "no more than"
    return f"{load.name}: {load.distance:.3f} from the reference, {more} chance gives ({load.expected:.3f})."
