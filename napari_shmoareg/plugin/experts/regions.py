"""How often each expert of some gates was chosen, as the report of a registration has it.

What the Regions view has counted in a worker's thread.

A table of what each region's cells chose, and of how far that is from the reference.

The Experts panel: which experts the cells of each region chose.
"""

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
    QComboBox,
    QFormLayout,
    QLabel,
    QPushButton,
    QTableWidgetItem,
)

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.controls.bars import RegionBars
from napari_shmoareg.plugin.controls.forms import Section, fill, narrowed, wrapped
from napari_shmoareg.plugin.controls.tables import Figure, FigureTable, TableButtons, origin_of
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task
from napari_shmoareg.plugin.experts.gate_picker import GatePicker, describe_gates
from napari_shmoareg.plugin.experts.region_source import RegionSource, Source
from napari_shmoareg.plugin.layers import expert_names
from napari_shmoareg.plugin.placement import go_to, to_viewer
from napari_shmoareg.plugin.registrations import open_registrations

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.experts.regions import RegionLoad
    from napari_shmoareg.registration.register import Registration


def selections(registration: Registration, **where: object) -> NDArray[np.float64] | None:
    """Share of selections (N,) of the gates with these fields of `GateId`; None where there is no
    such gate.
    """
    entries = registration.report.get("expert_loads", [])
    counts = [
        entry["counts"]
        for entry in entries
        if all(entry[name] == value for name, value in where.items())
    ]
    if not counts or len({len(count) for count in counts}) > 1:
        return None
    total = np.sum(counts, axis=0, dtype=np.float64)
    return np.asarray(total / max(total.sum(), 1.0))


def called(registration: Registration, part: str, count: int) -> list[str]:
    """What the experts of the encoder or decoder are called, by id, with the id."""
    if part == "encoder":
        return [f"head {n}" for n in range(count)]
    return [
        name if name.startswith("expert") else f"{name} (id {n})"
        for n, name in enumerate(expert_names(registration, count))
    ]


WHOLE, TOGETHER = "whole", "regions"
REFERENCES: dict[Any, str] = {WHOLE: "whole image, air included", TOGETHER: "all regions together"}


@dataclass(frozen=True, eq=False)
class RegionRequest:
    """What is to be counted: the gates, the regions, and what they are compared with."""

    where: dict[str, Any]
    source: Source
    reference: Any  # a label, TOGETHER or WHOLE

    @property
    def key(self) -> tuple[object, ...]:
        """The same for as long as the same is asked."""
        return tuple(sorted(self.where.items())), self.source.key, self.reference


@dataclass(frozen=True, eq=False)
class Regions:
    """What was counted: the loads of some regions, and what they are of."""

    loads: list[RegionLoad]
    labels: Volume
    registration: weakref.ref[Registration]
    names: dict[int, str]
    reference: Any  # a label, TOGETHER or WHOLE
    gates: str
    source: str
    key: tuple[object, ...]  # of what was asked; the layer itself is not held

    @property
    def against(self) -> str:
        """The reference, in words."""
        name = self.names.get(self.reference, self.reference)
        return REFERENCES.get(self.reference, f"region {name}")

    def __str__(self) -> str:
        return f"{self.gates}: {self.source}, against {self.against}"

    @property
    def about(self) -> dict[str, object]:
        """What a row of a file has to say beside its figures."""
        registration = self.registration()
        origin = {} if registration is None else origin_of(registration)
        return {**origin, "labels": self.source, "reference": self.against}


def count(report: Report, registration: Registration, asked: RegionRequest) -> Regions:
    """The loads of all regions, gate by gate, in any thread; it can be cancelled between two
    gates.
    """
    from napari_shmoareg.experts.regions import region_loads

    report("reading the regions")
    labels, names = asked.source.volume(registration), asked.source.names(registration)
    reference = None if asked.reference == WHOLE else asked.reference
    gates, loads = [layer.gate for layer in registration.routing.select(**asked.where)], []
    for n, gate in enumerate(gates):
        report(f"counting gate {n + 1} of {len(gates)}", n / len(gates))
        loads += region_loads(
            registration, labels, names=names, reference=reference, **gate._asdict()
        )
    report.check()
    where, source = describe_gates(asked.where), str(asked.source)
    return Regions(
        loads, labels, weakref.ref(registration), names, asked.reference, where, source, asked.key
    )


def share_of_reference(
    registration: Registration, found: Regions, load: RegionLoad
) -> np.ndarray | None:
    """Share of the reference (N,) of a load's gate; None where it is not known."""
    if found.reference == TOGETHER:
        here = [one for one in found.loads if one.gate == load.gate]
        return np.average([one.share for one in here], axis=0, weights=[one.tokens for one in here])
    if found.reference != WHOLE:
        same = (
            one for one in found.loads if one.region == found.reference and one.gate == load.gate
        )
        return next((one.share for one in same), None)
    return selections(
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
ROWS_SHOWN = 10
UNKNOWN = -2.0  # below every difference of distances
HEADINGS = ("Region", "Verdict", "Distance", "By chance", "Cells", "Blocks")
TIPS = (
    "Name or number of the region. Click a row to go there.",
    (
        "Whether the distance is more than chance gives. Many regions at once: one in twenty is"
        " above by chance alone"
    ),
    (
        "How far the region's shares are from those of the reference: half the sum of the"
        " differences (total variation), 0 for the same shares, 1 for nothing in common"
    ),
    (
        "What this distance reaches by chance: its 95th percentile over as many blocks of space"
        " drawn at random from the reference"
    ),
    (
        "Tokens or voxels of the gate behind the figures; one that lies partly in the region counts"
        " partly"
    ),
    (
        "Blocks of space that hold any of it. They are the sample, not the voxels: neighbours"
        " choose alike"
    ),
)


class _Verdict(Figure):
    """Sorts by how far the distance is above what chance gives; what cannot be told comes first, or
    last.
    """

    def __init__(self, load: RegionLoad) -> None:
        known = verdict(load) != TOO_FEW and load.expected is not None
        super().__init__(load.distance - (load.expected or 0.0) if known else UNKNOWN, ".3f")
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
        """Show other loads; `experts` is what the columns of shares are called."""
        self.setSortingEnabled(False)
        self.clearContents()
        self.setColumnCount(len(HEADINGS) + len(experts))
        for n, expert in enumerate(experts):
            heading = QTableWidgetItem(expert)
            heading.setToolTip(
                f"Share of selections of {expert}; its 95 % interval is shown under the cursor"
            )
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
    several = len({other.gate for other in loads}) > 1
    return f"{load.name}, block {load.block}" if several else load.name


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
    """All figures for a file or the clipboard: a row per region, three columns per expert (shares
    from 0 to 1).
    """
    rows: list[dict[str, object]] = []
    loads = found.loads
    most = max((len(load.share) for load in loads), default=0)
    for load in loads:
        row: dict[str, object] = {
            **found.about,
            "region": load.region,
            "name": load.name,
            **load.gate._asdict(),
        }
        row |= {
            "distance": load.distance,
            "expected_by_chance": load.expected,
            "verdict": verdict(load).lstrip("● "),
        }
        row |= {"cells": load.tokens, "blocks": load.blocks}
        for n in range(most):
            for what, values in (("share", load.share), ("low", load.low), ("high", load.high)):
                row[f"{what}_{n}"] = (
                    None if values is None or n >= len(values) else float(values[n])
                )
        rows.append(row)
    return rows


def _said(load: RegionLoad) -> str:
    if verdict(load) == TOO_FEW:
        return (
            f"{load.name}: only {load.blocks} blocks of space hold any of it, too few to tell"
            " chance from more."
        )
    more = "more than" if verdict(load) == ABOVE else "no more than"
    return (
        f"{load.name}: {load.distance:.3f} from the reference, {more} chance gives"
        f" ({load.expected:.3f})."
    )


COMPUTE = "Compute"
CAPTION = (
    "Shares are of selections: they do not say what an expert contributed. The sample is blocks of"
    " space, not voxels: neighbours choose alike, so that few blocks tell little however many"
    " voxels they hold. Against the whole image a difference partly means 'is not air'; 'all"
    " regions together' leaves air out."
)
OTHERWISE = (
    "<b>The form above says something else than what was counted</b> ({told}). Press Compute, or"
    " put it back."
)


class RegionView(Section):
    """Loads per region of labels or of drawn shapes, with an honest uncertainty.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Loads of regions", viewer)
        self._found: Regions | None = None
        self._kept: weakref.WeakKeyDictionary[Registration, Regions] = weakref.WeakKeyDictionary()
        self._asked: weakref.ref[Registration] | None = None  # of which regions are being counted
        self._own_reference = False  # whether a person picked it
        self.regions = RegionSource(viewer)
        self.where = GatePicker("block")
        self.reference = QComboBox()
        self.reference.setToolTip(
            "What each region is compared with: the whole image (air counts too: a "
            "difference then partly means 'is not air'), all regions together, or one of them"
        )
        narrowed(self.reference)
        self.compute = QPushButton(COMPUTE)
        self.compute.setToolTip(
            "Count what the cells of every region chose; takes a second or a few for each gate"
        )
        self.table, self.bars = RegionTable(), RegionBars()
        self.buttons = TableButtons(
            lambda: [] if self._found is None else table_of(self._found), "regions.csv"
        )
        self.says, self.detail, self.heading, self.told = (
            QLabel(CAPTION),
            QLabel(),
            QLabel(),
            QLabel(),
        )
        wrapped(self.says, self.detail, self.heading, self.told, narrow=True)
        form = QFormLayout()
        form.addRow("Regions", self.regions)
        form.addRow("Against", self.reference)
        self.column.addLayout(form)
        self.column.addWidget(self.where)
        figures = (self.heading, self.table, self.detail, self.bars, self.buttons)
        for widget in (self.compute, self.told, *figures, self.says):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self.task = Task(self, "the loads of regions")
        self.task.finished.connect(self._take)
        self.task.failed.connect(self._fail)
        self.task.cancelled.connect(lambda: self._settle("Cancelled."))
        self.task.progressed.connect(self._came)
        self.where.changed.connect(self._match)
        self.reference.currentIndexChanged.connect(lambda _: self._pick_reference())
        self.regions.changed.connect(self._offer_references)
        self.compute.clicked.connect(self.start)
        self.table.itemSelectionChanged.connect(self._show_chosen)
        self.table.cellClicked.connect(lambda *_: self._go())
        self._show_found(None)

    @property
    def registration(self) -> Registration | None:
        """The registration that the view is about."""
        return open_registrations(self._viewer).get(self._number)

    def refresh(self) -> None:
        """Offer the layers and gates that there are by now; figures of another registration go."""
        registration = self.registration
        self.setEnabled(registration is not None)
        self.regions.offer(registration)
        self.where.offer(registration)
        found = None if registration is None else self._kept.get(registration)
        if found is None or found is not self._found:
            self._show_found(found)
        self._watch()
        self._settle()

    def start(self) -> None:
        """Count, in a worker; the table follows.  Cancels while one counts."""
        registration, asked = self.registration, self._form()
        if self.task.busy:
            self.task.cancel()
        elif registration is not None and asked is not None:
            self._asked = weakref.ref(registration)
            self.task.start(lambda report: count(report, registration, asked))
            self._settle("starting")

    def _form(self) -> RegionRequest | None:
        """What the form says; None where it lacks something."""
        source = self.regions.source
        picked = self.reference.currentData()
        return (
            None
            if source is None
            else RegionRequest(self.where.where, source, WHOLE if picked is None else picked)
        )

    def _came(self, title: str, done: float) -> None:
        self.told.setText(f"{title}, {100 * done:.0f} %")
        self._watch()

    def _watch(self) -> None:
        """End what counts for a registration that was closed."""
        asked = None if self._asked is None else self._asked()
        if self.task.busy and not any(
            registration is asked for registration in open_registrations(self._viewer).values()
        ):
            self.task.cancel()

    def _settle(self, told: str | None = None) -> None:
        busy = self.task.busy
        self.compute.setEnabled(
            busy or (self.registration is not None and self.regions.source is not None)
        )
        self.compute.setText(CANCEL if busy else COMPUTE)
        if told is not None:
            self.told.setText(told)
        self.told.setVisible(bool(self.told.text()))
        self._match()

    def _match(self) -> None:
        """Show the figures only as long as the form says what they are of."""
        found, form = self._found, self._form()
        same = found is not None and form is not None and form.key == found.key
        self.heading.setVisible(found is not None)
        if found is not None:
            told = str(found)
            shown = f"<b>{escape(told[:1].upper() + told[1:])}</b>"
            self.heading.setText(shown if same else OTHERWISE.format(told=escape(told)))
        for widget in (self.table, self.buttons):
            widget.setVisible(same)
        for of_row in (self.bars, self.detail):
            of_row.setVisible(same and self.table.chosen() is not None)

    def _offer_references(self) -> None:
        registration, source = self.registration, self.regions.source
        names: dict[int, str] = {}
        if registration is not None and source is not None:
            try:
                names = source.names(registration)
            except InputError:
                names = {}  # nothing drawn so far: 'Compute' says so
        entries = {**REFERENCES, **names}
        if self.reference.currentData() not in entries:
            self._own_reference = False
        fill(
            self.reference,
            entries,
            None if self._own_reference else TOGETHER if len(names) > 1 else WHOLE,
        )
        self._settle()

    def _pick_reference(self) -> None:
        self._own_reference = True
        self._match()

    def _take(self, found: Regions) -> None:
        registration = found.registration()
        if registration is not None:
            self._kept[registration] = found
            if registration is self.registration:
                self._show_found(found)
        self._settle("")

    def _fail(self, text: str) -> None:
        asked = None if self._asked is None else self._asked()
        if asked is not None:
            self._kept.pop(asked, None)
            if asked is self.registration:
                self._show_found(None)
        self._settle("")
        show_error(text)

    def _show_found(self, found: Regions | None) -> None:
        self._found = found
        loads = [] if found is None else found.loads
        registration = self.registration
        self.table.show_loads(
            loads, [] if registration is None or not loads else _columns(registration, loads)
        )
        if loads:
            # what is most above chance first
            self.table.sortByColumn(1, Qt.SortOrder.DescendingOrder)
            self.table.selectRow(0)
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Draw the bars of the row that is selected."""
        found, row, registration = self._found, self.table.chosen(), self.registration
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
        names = (
            expert_names(registration, len(load.share))
            if load.part == "decoder"
            else [str(n) for n in range(99)]
        )
        self.bars.show_shares(
            load.share, share_of_reference(registration, found, load), names, load.low, load.high
        )
        self.bars.setToolTip(
            "\n".join(
                interval(load, n, _columns(registration, [load])[n]) for n in range(len(load.share))
            )
        )

    def _go(self) -> None:
        """Move the viewer to the region of the row."""
        found, row = self._found, self.table.chosen()
        if found is not None and row is not None:
            go_to(self._viewer, to_viewer(middle_of(found.labels, found.loads[row].region)))


def _columns(registration: Registration, loads: Sequence[RegionLoad]) -> list[str]:
    return called(registration, loads[0].part, max(len(load.share) for load in loads))
