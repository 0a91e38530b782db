"""The Experts panel: which experts the cells of each region chose."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QPushButton, QSizePolicy

from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.widgets.experts.regions.bars import RegionBars
from napari_shmoareg.widgets.experts.regions.selections import called, selections
from napari_shmoareg.widgets.experts.regions.source import RegionSource, Source
from napari_shmoareg.widgets.experts.regions.table import RegionTable, interval, table_of, verdict
from napari_shmoareg.widgets.experts.regions.where_picker import WherePicker
from napari_shmoareg.widgets.experts.replaying import Errand, Work
from napari_shmoareg.widgets.experts.section import Section, fill
from napari_shmoareg.widgets.experts.table_buttons import TableButtons
from napari_shmoareg.widgets.layers import expert_names
from napari_shmoareg.widgets.placement import to_viewer
from napari_shmoareg.widgets.scenes import scenes
from napari_shmoareg.widgets.units import go_to

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.region_loads import RegionLoad
    from napari_shmoareg.analysis.scene import Scene

WHOLE, TOGETHER = "whole", "regions"
REFERENCES: dict[Any, str] = {WHOLE: "whole image", TOGETHER: "all regions together"}
CAPTION = (
    "Shares are of selections: they do not say what an expert contributed. The sample is blocks of space, not voxels: "
    "neighbours choose alike, so that few blocks tell little however many voxels they hold."
)


@dataclass(frozen=True, eq=False)
class Regions:
    """What was computed: the loads of some regions, and what they are of."""

    loads: list[RegionLoad]
    labels: Volume
    scene: weakref.ref[Scene]
    where: dict[str, Any]
    reference: Any  # a label, TOGETHER, or None for the whole image
    names: dict[int, str]


class RegionView(Section):
    """Loads per region of labels or of drawn shapes, with an honest uncertainty.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Loads of regions", viewer)
        self._found: Regions | None = None
        self.regions = RegionSource(viewer)
        self.where = WherePicker("block")
        self.reference = QComboBox()
        self.reference.setToolTip(
            "What each region is compared with: the whole image (air counts too), all regions together, or one of them"
        )
        self.reference.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.compute = QPushButton("Compute")
        self.compute.setToolTip("Count what the cells of every region chose; takes a second or a few")
        self.table, self.bars = RegionTable(), RegionBars()
        self.buttons = TableButtons(lambda: table_of([] if self._found is None else self._found.loads), "regions.csv")
        self.says, self.detail = QLabel(CAPTION), QLabel()
        for label in (self.says, self.detail):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        form = QFormLayout()
        form.addRow("Regions", self.regions)
        form.addRow("Against", self.reference)
        self.column.addLayout(form)
        self.column.addWidget(self.where)
        for widget in (self.compute, self.table, self.detail, self.bars, self.buttons, self.says):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self.errand = Errand(self)
        self.errand.ready.connect(self._take)
        self.errand.failed.connect(self._fail)
        self.errand.cancelled.connect(self._settle)
        self.regions.changed.connect(self._offer_references)
        self.compute.clicked.connect(self.start)
        self.table.itemSelectionChanged.connect(self._show_chosen)
        self.table.cellClicked.connect(lambda *_: self._go())
        self._show_found(None)

    @property
    def scene(self) -> Scene | None:
        """The registration that the view is about."""
        return scenes(self._viewer).get(self._number)

    def refresh(self) -> None:
        """Offer the layers and gates that there are by now; figures of another registration go."""
        scene = self.scene
        self.setEnabled(scene is not None)
        self.regions.offer(scene)
        if self._found is None or self._found.scene() is not scene:
            self._show_found(None)
        self.where.offer(scene)
        self._settle()

    def start(self) -> None:
        """Count, in a worker; the table follows."""
        scene, source = self.scene, self.regions.source
        if scene is None or source is None or self.errand.busy:
            return
        picked, where = self.reference.currentData(), self.where.where
        reference = None if picked in (WHOLE, None) else picked if picked == TOGETHER else int(picked)
        self.errand.start(lambda work: count(work, scene, source, where, reference), "the loads of regions")
        self._settle()

    def _settle(self) -> None:
        busy = self.errand.busy
        self.compute.setEnabled(not busy and self.scene is not None and self.regions.source is not None)
        self.compute.setText("Computing…" if busy else "Compute")

    def _offer_references(self) -> None:
        scene, source = self.scene, self.regions.source
        names: dict[int, str] = {}
        if scene is not None and source is not None:
            try:
                names = source.names(scene)
            except InputError:
                names = {}  # nothing drawn so far: 'Compute' says so
        fill(self.reference, {**REFERENCES, **names})
        self._settle()

    def _take(self, found: Regions) -> None:
        fill(self.reference, {**REFERENCES, **found.names})  # shapes may have been drawn since
        self._show_found(found if found.scene() is self.scene else None)
        self._settle()

    def _fail(self, text: str) -> None:
        self._settle()
        show_error(text)

    def _show_found(self, found: Regions | None) -> None:
        self._found = found
        loads = [] if found is None else found.loads
        scene = self.scene
        self.table.show_loads(loads, [] if scene is None or not loads else _columns(scene, loads))
        for widget in (self.table, self.buttons):
            widget.setVisible(bool(loads))
        if loads:
            self.table.sortByColumn(1, _descending())  # what is most above chance first
            self.table.selectRow(0)
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Draw the bars of the row that is selected."""
        found, row, scene = self._found, self.table.chosen(), self.scene
        shown = found is not None and row is not None and scene is not None
        self.bars.setVisible(shown)
        self.detail.setVisible(shown)
        if not (shown and found and row is not None and scene):
            return
        load = found.loads[row]
        told = {None: "the whole image", TOGETHER: "all regions together"} | found.names
        against = told.get(found.reference, "the reference")
        self.detail.setText(
            f"{load.name} (orange) against {against} (grey): distance {load.distance:.3f}, "
            + (f"by chance up to {load.expected:.3f}: " if load.expected is not None else "")
            + verdict(load).lstrip("● ")
            + "."
        )
        names = expert_names(scene, len(load.share)) if load.place.part == "decoder" else [str(n) for n in range(99)]
        self.bars.show_shares(load.share, _reference(scene, found, load), names, load.low, load.high)
        self.bars.setToolTip("\n".join(interval(load, n, _columns(scene, [load])[n]) for n in range(len(load.share))))

    def _go(self) -> None:
        """Move the viewer to the region of the row."""
        found, row = self._found, self.table.chosen()
        if found is not None and row is not None:
            go_to(self._viewer, to_viewer(middle_of(found.labels, found.loads[row].region)))


def count(work: Work, scene: Scene, source: Source, where: dict[str, Any], reference: Any) -> Regions:
    """The loads of all regions of a source, in any thread."""
    from napari_shmoareg.analysis.region_loads import region_loads

    work.tell("reading the regions")
    labels, names = source.volume(scene), source.names(scene)
    work.tell("counting", 0.1)
    loads = region_loads(scene, labels, names=names, reference=reference, **where)
    work.check()
    return Regions(loads, labels, weakref.ref(scene), where, reference, names)


def middle_of(labels: Volume, region: int) -> np.ndarray:
    """The centre, mm RAS, of the voxel of a region that is nearest to its centroid."""
    voxels = np.argwhere(labels.values == region)
    if not len(voxels):
        return labels.grid.centre
    points = labels.grid.to_world(voxels)
    nearest = np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()
    return np.asarray(points[nearest])


def _columns(scene: Scene, loads: Sequence[RegionLoad]) -> list[str]:
    return called(scene, loads[0].place.part, max(len(load.share) for load in loads))


def _reference(scene: Scene, found: Regions, load: RegionLoad) -> np.ndarray | None:
    """Share of the reference at a load's place."""
    if found.reference == TOGETHER:
        here = [one for one in found.loads if one.place == load.place]
        return np.average([one.share for one in here], axis=0, weights=[one.tokens for one in here])
    if found.reference is not None:
        same = (one for one in found.loads if one.region == found.reference and one.place == load.place)
        return next((one.share for one in same), None)
    return selections(scene, **{name: value for name, value in load.place._asdict().items() if value is not None})


def _descending() -> Any:
    from qtpy.QtCore import Qt

    return Qt.SortOrder.DescendingOrder
