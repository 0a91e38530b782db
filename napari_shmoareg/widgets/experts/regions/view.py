"""The Experts panel: which experts the cells of each region chose."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QPushButton, QSizePolicy

from napari_shmoareg.geometry import InputError
from napari_shmoareg.widgets.experts.regions.bars import RegionBars
from napari_shmoareg.widgets.experts.regions.counting import (
    REFERENCES,
    TOGETHER,
    WHOLE,
    Asked,
    Regions,
    count,
    middle_of,
    share_of_reference,
)
from napari_shmoareg.widgets.experts.regions.selections import called
from napari_shmoareg.widgets.experts.regions.source import RegionSource
from napari_shmoareg.widgets.experts.regions.table import RegionTable, interval, table_of, verdict
from napari_shmoareg.widgets.experts.regions.where_picker import WherePicker
from napari_shmoareg.widgets.experts.replaying import CANCEL, Errand
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

COMPUTE = "Compute"
CAPTION = (
    "Shares are of selections: they do not say what an expert contributed. The sample is blocks of space, not voxels: "
    "neighbours choose alike, so that few blocks tell little however many voxels they hold. Against the whole image "
    "a difference partly means 'is not air'; 'all regions together' leaves air out."
)
OTHERWISE = "<b>The form above says something else than what was counted</b> ({told}). Press Compute, or put it back."


class RegionView(Section):
    """Loads per region of labels or of drawn shapes, with an honest uncertainty.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__("Loads of regions", viewer)
        self._found: Regions | None = None
        self._kept: weakref.WeakKeyDictionary[Scene, Regions] = weakref.WeakKeyDictionary()
        self._asked: weakref.ref[Scene] | None = None  # of which regions are being counted
        self._own_reference = False  # whether a person picked it
        self.regions = RegionSource(viewer)
        self.where = WherePicker("block")
        self.reference = QComboBox()
        self.reference.setToolTip(
            "What each region is compared with: the whole image (air counts too: a "
            "difference then partly means 'is not air'), all regions together, or one of them"
        )
        self.reference.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.compute = QPushButton(COMPUTE)
        self.compute.setToolTip("Count what the cells of every region chose; takes a second or a few for each gate")
        self.table, self.bars = RegionTable(), RegionBars()
        self.buttons = TableButtons(lambda: [] if self._found is None else table_of(self._found), "regions.csv")
        self.says, self.detail, self.heading, self.told = QLabel(CAPTION), QLabel(), QLabel(), QLabel()
        for label in (self.says, self.detail, self.heading, self.told):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        form = QFormLayout()
        form.addRow("Regions", self.regions)
        form.addRow("Against", self.reference)
        self.column.addLayout(form)
        self.column.addWidget(self.where)
        figures = (self.heading, self.table, self.detail, self.bars, self.buttons)
        for widget in (self.compute, self.told, *figures, self.says):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self.errand = Errand(self)
        self.errand.ready.connect(self._take)
        self.errand.failed.connect(self._fail)
        self.errand.cancelled.connect(lambda: self._settle("Cancelled."))
        self.errand.came.connect(self._came)
        self.where.changed.connect(self._match)
        self.reference.currentIndexChanged.connect(lambda _: self._pick_reference())
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
        self.where.offer(scene)
        found = None if scene is None else self._kept.get(scene)
        if found is None or found is not self._found:
            self._show_found(found)
        self._watch()
        self._settle()

    def start(self) -> None:
        """Count, in a worker; the table follows.  Cancels while one counts."""
        scene, asked = self.scene, self._form()
        if self.errand.busy:
            self.errand.cancel()
        elif scene is not None and asked is not None:
            self._asked = weakref.ref(scene)
            self.errand.start(lambda work: count(work, scene, asked), "the loads of regions")
            self._settle("starting")

    def _form(self) -> Asked | None:
        """What the form says; None where it lacks something."""
        source = self.regions.source
        picked = self.reference.currentData()
        return None if source is None else Asked(self.where.where, source, WHOLE if picked is None else picked)

    def _came(self, title: str, done: float) -> None:
        self.told.setText(f"{title}, {100 * done:.0f} %")
        self._watch()

    def _watch(self) -> None:
        """End what counts for a registration that was closed."""
        asked = None if self._asked is None else self._asked()
        if self.errand.busy and not any(scene is asked for scene in scenes(self._viewer).values()):
            self.errand.cancel()

    def _settle(self, told: str | None = None) -> None:
        busy = self.errand.busy
        self.compute.setEnabled(busy or (self.scene is not None and self.regions.source is not None))
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
        scene, source = self.scene, self.regions.source
        names: dict[int, str] = {}
        if scene is not None and source is not None:
            try:
                names = source.names(scene)
            except InputError:
                names = {}  # nothing drawn so far: 'Compute' says so
        entries = {**REFERENCES, **names}
        if self.reference.currentData() not in entries:
            self._own_reference = False
        fill(self.reference, entries, None if self._own_reference else TOGETHER if len(names) > 1 else WHOLE)
        self._settle()

    def _pick_reference(self) -> None:
        self._own_reference = True
        self._match()

    def _take(self, found: Regions) -> None:
        scene = found.scene()
        if scene is not None:
            self._kept[scene] = found
            if scene is self.scene:
                self._show_found(found)
        self._settle("")

    def _fail(self, text: str) -> None:
        asked = None if self._asked is None else self._asked()
        if asked is not None:
            self._kept.pop(asked, None)
            if asked is self.scene:
                self._show_found(None)
        self._settle("")
        show_error(text)

    def _show_found(self, found: Regions | None) -> None:
        self._found = found
        loads = [] if found is None else found.loads
        scene = self.scene
        self.table.show_loads(loads, [] if scene is None or not loads else _columns(scene, loads))
        if loads:
            self.table.sortByColumn(1, Qt.SortOrder.DescendingOrder)  # what is most above chance first
            self.table.selectRow(0)
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Draw the bars of the row that is selected."""
        found, row, scene = self._found, self.table.chosen(), self.scene
        shown = found is not None and row is not None and scene is not None
        self._match()
        if not (shown and found and row is not None and scene):
            return
        load = found.loads[row]
        self.detail.setText(
            f"{load.name} (orange) against {found.against} (grey): distance {load.distance:.3f}, "
            + (f"by chance up to {load.expected:.3f}: " if load.expected is not None else "")
            + verdict(load).lstrip("● ")
            + "."
        )
        names = expert_names(scene, len(load.share)) if load.place.part == "decoder" else [str(n) for n in range(99)]
        self.bars.show_shares(load.share, share_of_reference(scene, found, load), names, load.low, load.high)
        self.bars.setToolTip("\n".join(interval(load, n, _columns(scene, [load])[n]) for n in range(len(load.share))))

    def _go(self) -> None:
        """Move the viewer to the region of the row."""
        found, row = self._found, self.table.chosen()
        if found is not None and row is not None:
            go_to(self._viewer, to_viewer(middle_of(found.labels, found.loads[row].region)))


def _columns(scene: Scene, loads: Sequence[RegionLoad]) -> list[str]:
    return called(scene, loads[0].place.part, max(len(load.share) for load in loads))
