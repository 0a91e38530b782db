"""The tab Regions of the Experts panel: the experts that the cells of each region chose."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QLabel,
    QPushButton,
    QTableWidgetItem,
)

from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.controls.bars import Bar, BarChart
from napari_shmoareg.plugin.controls.forms import Section, fill, weakly, wrapped
from napari_shmoareg.plugin.controls.tables import Figure, FigureTable, TableButtons, origin_of
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task, replay_of
from napari_shmoareg.plugin.experts.gate_picker import GatePicker, describe_gates
from napari_shmoareg.plugin.experts.region_source import RegionSource, Source
from napari_shmoareg.plugin.layers import expert_names
from napari_shmoareg.plugin.placement import go_to, to_viewer

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.contribution import Contribution
    from napari_shmoareg.experts.regions import RegionLoad
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


def selection_shares(registration: Registration, **where: object) -> NDArray[np.float64] | None:
    """Share of selections (N,), from the report, of the gates with these fields of `GateId`; None
    without such gates.
    """
    counts = [
        entry["counts"]
        for entry in registration.report.get("expert_loads", [])
        if all(entry[name] == value for name, value in where.items())
    ]
    if len({len(of_gate) for of_gate in counts}) != 1:
        return None
    total = np.sum(counts, axis=0, dtype=np.float64)
    return np.asarray(total / max(total.sum(), 1.0))


def expert_titles(registration: Registration, part: str, count: int) -> list[str]:
    """Names of the experts of encoder or decoder, by id, with the id."""
    if part == "encoder":
        return [f"head {n}" for n in range(count)]
    names = enumerate(expert_names(registration, count))
    return [name if name.startswith("expert") else f"{name} (id {n})" for n, name in names]


WHOLE, TOGETHER = "whole", "regions"
REFERENCES: dict[Any, str] = {WHOLE: "whole image, air included", TOGETHER: "all regions together"}


@dataclass(frozen=True, eq=False)
class RegionRequest:
    """What to count: the gates, the regions and the reference."""

    where: dict[str, Any]
    source: Source
    reference: Any  # a label, TOGETHER or WHOLE
    with_movement: bool = False  # also how far each expert moved the regions

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal requests."""
        about = tuple(sorted(self.where.items())), self.source.key, self.reference
        return *about, self.with_movement


@dataclass(frozen=True, eq=False)
class Regions:
    """The loads of some regions, and the request that they answer."""

    loads: list[RegionLoad]
    labels: Volume
    registration: weakref.ref[Registration]
    names: dict[int, str]
    reference: Any  # a label, TOGETHER or WHOLE
    gates: str
    source: str
    key: tuple[object, ...]  # of the request, without a reference to the layer
    # by gate and region, if requested
    moved: dict[tuple[GateId, int], Contribution]

    @property
    def against(self) -> str:
        """The name of the reference."""
        name = self.names.get(self.reference, self.reference)
        return REFERENCES.get(self.reference, f"region {name}")

    @property
    def differing(self) -> int:
        """Number of regions that differ from the reference by more than chance."""
        return sum(verdict(load) == ABOVE for load in self.loads)

    def __str__(self) -> str:
        return f"{self.gates}: {self.source}, against {self.against}"

    @property
    def about(self) -> dict[str, object]:
        """Pair, weights, regions and reference, for the rows of a file."""
        registration = self.registration()
        origin = {} if registration is None else origin_of(registration)
        return {**origin, "labels": self.source, "reference": self.against}


def count_regions(report: Report, registration: Registration, request: RegionRequest) -> Regions:
    """Count the loads of all regions, gate by gate, in any thread; can be cancelled between two
    gates.
    """
    from napari_shmoareg.experts.regions import region_loads

    report("reading the regions")
    labels, names = request.source.volume(registration), request.source.names(registration)
    reference = None if request.reference == WHOLE else request.reference
    gates, loads = [layer.gate for layer in registration.routing.select(**request.where)], []
    for n, gate in enumerate(gates):
        report(f"counting gate {n + 1} of {len(gates)}", n / len(gates))
        loads += region_loads(
            registration, labels, names=names, reference=reference, **gate._asdict()
        )
    report.check()
    moved = _movement(report, registration, labels, gates) if request.with_movement else {}
    return Regions(
        loads,
        labels,
        weakref.ref(registration),
        names,
        request.reference,
        gates=describe_gates(request.where),
        source=str(request.source),
        key=request.key,
        moved=moved,
    )


def _movement(
    report: Report, registration: Registration, labels: Volume, gates: Sequence[GateId]
) -> dict[tuple[GateId, int], Contribution]:
    """How far the experts of some gates moved each region; runs the network's last pass again."""
    from napari_shmoareg.experts.contribution import contributions, residuals_of

    replay = replay_of(registration, report)
    report("residuals of the experts", 0.5)
    residuals = [one for one in residuals_of(replay) if one.gate in gates]
    found = {}
    for region in labels.labels:
        mask = Volume(labels.values == region, labels.grid, labels.name, is_labels=True)
        for part in contributions(residuals, replay.grid, mask):
            found[part.gate, int(region)] = part
    return found


def describe_movement(moved: Contribution, names: Sequence[str]) -> str:
    """How far a region moved along a gate's axis, by expert, beside chance."""
    parts = ", ".join(
        f"{name} {by:.2f} ({chance:.2f})"
        for name, by, chance in zip(names, moved.by_expert, moved.by_chance, strict=True)
    )
    return (
        f" In the network's last pass this layer added {moved.mean:.2f} mm along"
        f" {moved.gate.direction} (mean without sign, before integration), of which by expert (by"
        f" chance, if the same choices lay anywhere in the region): {parts}."
    )


def share_of_reference(
    registration: Registration, found: Regions, load: RegionLoad
) -> np.ndarray | None:
    """Share of selections (N,) of the reference for a load's gate, or None if unknown."""
    if found.reference == TOGETHER:
        here = [one for one in found.loads if one.gate == load.gate]
        return np.average([one.share for one in here], axis=0, weights=[one.tokens for one in here])
    if found.reference != WHOLE:
        same = (
            one for one in found.loads if one.region == found.reference and one.gate == load.gate
        )
        return next((one.share for one in same), None)
    return selection_shares(
        registration,
        **{name: value for name, value in load.gate._asdict().items() if value is not None},
    )


def middle_of(labels: Volume, region: int) -> np.ndarray:
    """The centre, mm RAS, of the voxel of a region that is nearest to its centroid."""
    voxels = np.argwhere(labels.values == region)
    if not len(voxels):
        return labels.grid.centre
    points = labels.grid.to_world(voxels)
    nearest = np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()
    return np.asarray(points[nearest])


ABOVE, CHANCE, TOO_FEW = "● above chance", "as by chance", "too few blocks to tell"
REGION, REFERENCE = "#f08c00", "#868e96"  # of the bars
ROWS_SHOWN = 10
UNKNOWN = -2.0  # below every difference of distances
HEADINGS = ("Region", "Verdict", "Distance", "By chance", "Cells", "Blocks")
TIPS = (
    "Name or number of the region. Click a row to go there.",
    (
        "Whether the distance is larger than expected by chance. With many regions, one in twenty"
        " is above by chance alone"
    ),
    (
        "Distance between the shares of the region and of the reference: total variation, half the"
        " sum of the absolute differences; 0 for equal shares, 1 for disjoint ones"
    ),
    (
        "Distance expected by chance: 95th percentile over the same number of spatial blocks drawn"
        " at random from the reference"
    ),
    ("Tokens or voxels of the gate in the region; one that is partly in the region counts partly"),
    (
        "Spatial blocks that contain any of the region. The blocks are the sample, not the voxels,"
        " because neighbours choose similarly"
    ),
)


class _VerdictItem(Figure):
    """A verdict, sorted by the distance minus that expected by chance; unknown ones come first or
    last.
    """

    def __init__(self, load: RegionLoad) -> None:
        has_verdict = verdict(load) != TOO_FEW and load.expected is not None
        super().__init__(load.distance - (load.expected or 0.0) if has_verdict else UNKNOWN, ".3f")
        self.setText(verdict(load))
        self.setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)


class RegionTable(FigureTable):
    """One row per region, with the share of selections of every expert."""

    def __init__(self) -> None:
        super().__init__(HEADINGS, TIPS)
        self.setToolTip(
            "Shares are of selections. Click a heading to sort, a row to go to the region."
        )

    def show_loads(self, loads: Sequence[RegionLoad], experts: Sequence[str]) -> None:
        """Show other loads; `experts` are the headings of the shares."""
        self.setSortingEnabled(False)
        self.setColumnCount(len(HEADINGS) + len(experts))
        for n, expert in enumerate(experts, start=len(HEADINGS)):
            heading = QTableWidgetItem(expert)
            heading.setToolTip(
                f"Share of selections of {expert}; the tooltip of a cell shows its 95 % interval"
            )
            self.setHorizontalHeaderItem(n, heading)
        self.show_rows(_cells(load, region_title(load, loads), experts) for load in loads)
        self.setSortingEnabled(True)
        self.resizeColumnsToContents()
        self.fit(min(max(len(loads), 1), ROWS_SHOWN))


def _cells(load: RegionLoad, title: str, experts: Sequence[str]) -> list[QTableWidgetItem]:
    """The cells of a region's row."""
    shares = [Figure(100 * float(share), ".1f") for share in load.share]
    cells = [
        QTableWidgetItem(title),
        _VerdictItem(load),
        Figure(load.distance, ".3f"),
        Figure(load.expected, ".3f"),
        Figure(load.tokens, ",.0f" if load.tokens >= 100 else ".1f"),
        Figure(load.blocks, "d"),
    ]
    for cell in cells:
        cell.setToolTip(_verdict_tooltip(load))
    for n, cell in enumerate(shares):
        cell.setToolTip(interval(load, n, experts[n]))
    return [*cells, *shares]


def region_title(load: RegionLoad, loads: Sequence[RegionLoad]) -> str:
    """Name of a region, with the block if there are several gates."""
    several = len({other.gate for other in loads}) > 1
    return f"{load.name}, block {load.block}" if several else load.name


def verdict(load: RegionLoad) -> str:
    """Whether a region's distance is larger than expected by chance."""
    if load.low is None or load.expected is None:
        return TOO_FEW
    return ABOVE if load.distance > load.expected else CHANCE


def interval(load: RegionLoad, expert: int, name: str) -> str:
    """``head 3: 12.1 % of the selections (95 % interval 8.0 to 15.9 %)``."""
    text = f"{name}: {100 * load.share[expert]:.1f} % of the selections"
    if load.low is None or load.high is None:
        return f"{text} (too few spatial blocks, {load.blocks}, for an interval)"
    return f"{text} (95 % interval {100 * load.low[expert]:.1f} to {100 * load.high[expert]:.1f} %)"


def region_bars(
    registration: Registration, load: RegionLoad, reference: NDArray[np.float64] | None
) -> list[Bar]:
    """Per expert a bar of the region, with its 95 % interval, and one of the reference."""
    names = [str(n) for n in range(len(load.share))]
    if load.part == "decoder":
        names = expert_names(registration, len(load.share))
    bars = []
    for n, (name, share) in enumerate(zip(names, load.share, strict=True)):
        ends = None
        if load.low is not None and load.high is not None:
            ends = float(load.low[n]), float(load.high[n])
        bars.append(Bar(load.gate, n, float(share), REGION, name, "", ends))
        if reference is not None:
            bars.append(Bar(load.gate, n, float(reference[n]), REFERENCE, name, ""))
    return bars


def table_of(found: Regions) -> list[dict[str, object]]:
    """Rows for a file or the clipboard: one per region, three columns per expert (shares from 0 to
    1).
    """
    rows: list[dict[str, object]] = []
    most = max((len(load.share) for load in found.loads), default=0)
    for load in found.loads:
        row: dict[str, object] = {**found.about, "region": load.region, "name": load.name}
        row |= load.gate._asdict()
        row |= {"distance": load.distance, "expected_by_chance": load.expected}
        row |= {"verdict": verdict(load).lstrip("● "), "cells": load.tokens, "blocks": load.blocks}
        if (moved := found.moved.get((load.gate, load.region))) is not None:
            row["moved_mm"] = moved.mean
            row |= {f"moved_mm_{n}": float(by) for n, by in enumerate(moved.by_expert)}
        for n in range(most):
            for what, values in (("share", load.share), ("low", load.low), ("high", load.high)):
                given = () if values is None else values[n : n + 1]
                row[f"{what}_{n}"] = next(map(float, given), None)
        rows.append(row)
    return rows


def _verdict_tooltip(load: RegionLoad) -> str:
    if verdict(load) == TOO_FEW:
        return (
            f"{load.name}: only {load.blocks} spatial blocks contain any of it, too few to compare"
            " with chance."
        )
    more = "more than" if verdict(load) == ABOVE else "no more than"
    return (
        f"{load.name}: distance {load.distance:.3f} from the reference, {more} expected by chance"
        f" ({load.expected:.3f})."
    )


COMPUTE = "Compute"
CAPTION = (
    "Shares of selections do not measure what an expert contributed. The sample is spatial blocks,"
    " not voxels: neighbours choose similarly, so a few blocks give little evidence, however many"
    " voxels they contain. Against the whole image a difference partly means 'is not air'; 'all"
    " regions together' excludes air."
)
OUTDATED = (
    "<b>The form above differs from what was counted</b> ({counted}). Press Compute, or restore"
    " the form."
)


class RegionView(Section):
    """Loads per region of labels or of drawn shapes, with uncertainty.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Loads of regions", viewer)
        self._result: Regions | None = None
        self._results: weakref.WeakKeyDictionary[Registration, Regions] = (
            weakref.WeakKeyDictionary()
        )
        self._counting_for = weakly(None)  # of the running count
        self._reference_picked = False  # whether the user picked the reference
        self.regions = RegionSource(viewer)
        self.where = GatePicker("block")
        self.reference = QComboBox()
        self.reference.setToolTip(
            "Reference of each region: the whole image (with air: a difference then partly means"
            " 'is not air'), all regions together, or one of them"
        )
        self.compute = QPushButton(COMPUTE)
        self.compute.setToolTip(
            "Count the choices of the cells of every region; takes a few seconds per gate"
        )
        self.with_movement = QCheckBox("Movement by expert, mm")
        self.with_movement.setToolTip(
            "Split what the gates of the decoder add in each region (residuals of Eq. 6, last pass)"
            " by the experts that made it. Runs the network again; takes seconds"
        )
        self.table, self.bars = RegionTable(), BarChart(height=120, fill=0.72, widest=34)
        self.buttons = TableButtons(
            lambda: [] if self._result is None else table_of(self._result), "regions.csv"
        )
        self.caption, self.detail, self.heading, self.status = (
            QLabel(CAPTION),
            QLabel(),
            QLabel(),
            QLabel(),
        )
        wrapped(self.caption, self.detail, self.heading, self.status, narrow=True)
        form = QFormLayout()
        form.addRow("Regions", self.regions)
        form.addRow("Against", self.reference)
        self.column.addLayout(form)
        self.column.addWidget(self.where)
        self.column.addWidget(self.with_movement)
        self.with_movement.toggled.connect(lambda _: self._match())
        figures = (self.heading, self.table, self.detail, self.bars, self.buttons)
        for widget in (self.compute, self.status, *figures, self.caption):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self.task = Task(self, "the loads of regions")
        self.task.finished.connect(self._on_finished)
        self.task.failed.connect(self._on_failed)
        self.task.cancelled.connect(lambda: self._update("Cancelled."))
        self.task.progressed.connect(self._on_progress)
        self.where.changed.connect(self._match)
        self.reference.currentIndexChanged.connect(lambda _: self._on_reference_picked())
        self.regions.changed.connect(self._offer_references)
        self.compute.clicked.connect(self.start)
        self.table.itemSelectionChanged.connect(self._show_chosen)
        self.table.cellClicked.connect(lambda *_: self._go())
        self._show_result(None)

    def refresh(self) -> None:
        """Update the offered layers and gates; hide results of another registration."""
        registration = self.registration
        self.setEnabled(registration is not None)
        self.regions.offer(registration)
        self.where.offer(registration)
        found = None if registration is None else self._results.get(registration)
        if found is None or found is not self._result:
            self._show_result(found)
        self._cancel_if_closed()
        self._update()

    def found_of(self, registration: Registration) -> Regions | None:
        """What was counted for a registration."""
        return self._results.get(registration)

    def start(self) -> None:
        """Count in a worker and show the table; cancels a running count."""
        registration, request = self.registration, self._request()
        if self.task.busy:
            self.task.cancel()
        elif registration is not None and request is not None:
            self._counting_for = weakly(registration)
            self.task.start(lambda report: count_regions(report, registration, request))
            self._update("starting")

    def _request(self) -> RegionRequest | None:
        """The request in the form, or None if it is incomplete."""
        source = self.regions.source
        picked = self.reference.currentData()
        return (
            None
            if source is None
            else RegionRequest(
                self.where.where,
                source,
                WHOLE if picked is None else picked,
                self.with_movement.isChecked() and self.with_movement.isEnabled(),
            )
        )

    def _on_progress(self, title: str, done: float) -> None:
        self.status.setText(f"{title}, {100 * done:.0f} %")
        self._cancel_if_closed()

    def _cancel_if_closed(self) -> None:
        """Cancel counting for a registration that was closed."""
        if self.task.busy and self.number_of(self._counting_for()) is None:
            self.task.cancel()

    def _update(self, status: str | None = None) -> None:
        busy = self.task.busy
        self.compute.setEnabled(
            busy or (self.registration is not None and self.regions.source is not None)
        )
        self.compute.setText(CANCEL if busy else COMPUTE)
        if status is not None:
            self.status.setText(status)
        self.status.setVisible(bool(self.status.text()))
        self._match()

    def _match(self) -> None:
        """Show the results only while the form matches them."""
        self.with_movement.setEnabled(self.where.where.get("part") == "decoder")
        found, form = self._result, self._request()
        same = found is not None and form is not None and form.key == found.key
        self.heading.setVisible(found is not None)
        if found is not None:
            counted = str(found)
            title = f"<b>{escape(counted[:1].upper() + counted[1:])}</b>"
            self.heading.setText(title if same else OUTDATED.format(counted=escape(counted)))
        for widget in (self.table, self.buttons):
            widget.setVisible(same)
        for of_row in (self.bars, self.detail):
            of_row.setVisible(same and self.table.chosen() is not None)

    def _offer_references(self) -> None:
        names = self.regions.names(self.registration)
        entries = {**REFERENCES, **names}
        if self.reference.currentData() not in entries:
            self._reference_picked = False
        fill(
            self.reference,
            entries,
            None if self._reference_picked else TOGETHER if len(names) > 1 else WHOLE,
        )
        self._update()

    def _on_reference_picked(self) -> None:
        self._reference_picked = True
        self._match()

    def _on_finished(self, found: Regions) -> None:
        registration = found.registration()
        if registration is not None:
            self._results[registration] = found
            if registration is self.registration:
                self._show_result(found)
        self._update("")

    def _on_failed(self, text: str) -> None:
        registration = self._counting_for()
        if registration is not None:
            self._results.pop(registration, None)
            if registration is self.registration:
                self._show_result(None)
        self._update("")
        show_error(text)

    def _show_result(self, found: Regions | None) -> None:
        self._result = found
        loads = [] if found is None else found.loads
        registration = self.registration
        self.table.show_loads(
            loads, [] if registration is None or not loads else _columns(registration, loads)
        )
        if loads:
            # most above chance first
            self.table.sortByColumn(1, Qt.SortOrder.DescendingOrder)
            self.table.selectRow(0)
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Draw the bars of the selected row."""
        found, row, registration = self._result, self.table.chosen(), self.registration
        shown = found is not None and row is not None and registration is not None
        self._match()
        if not (shown and found and row is not None and registration):
            return
        load = found.loads[row]
        self.detail.setText(
            f"{load.name} (orange) against {found.against} (grey): distance {load.distance:.3f}, "
            + (f"by chance up to {load.expected:.3f}: " if load.expected is not None else "")
            + verdict(load).lstrip("● ")
            + "."
        )
        titles = _columns(registration, [load])
        if (moved := found.moved.get((load.gate, load.region))) is not None:
            self.detail.setText(self.detail.text() + describe_movement(moved, titles))
        self.bars.setToolTip("\n".join(interval(load, n, title) for n, title in enumerate(titles)))
        bars = region_bars(registration, load, share_of_reference(registration, found, load))
        self.bars.highest = max(max(bar.value, *(bar.interval or (0.0,))) for bar in bars) or 1.0
        self.bars.show_bars(bars)

    def _go(self) -> None:
        """Move the viewer to the region of the row."""
        found, row = self._result, self.table.chosen()
        if found is not None and row is not None:
            go_to(self._viewer, to_viewer(middle_of(found.labels, found.loads[row].region)))


def _columns(registration: Registration, loads: Sequence[RegionLoad]) -> list[str]:
    return expert_titles(registration, loads[0].part, max(len(load.share) for load in loads))
