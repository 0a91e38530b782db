"""The Experts panel: who registered what, and how it bent."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qtpy.QtCore import Qt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import QComboBox, QLabel, QScrollArea, QTabWidget, QVBoxLayout, QWidget

from napari_shmoareg.plugin.controls.forms import Section, arranged, fill, scrolled, wrapped
from napari_shmoareg.plugin.controls.tasks import weights_of
from napari_shmoareg.plugin.experts.loads import LayersView
from napari_shmoareg.plugin.experts.location import LocationView
from napari_shmoareg.plugin.experts.maps import (
    DecoderSection,
    DeformationSection,
    EncoderSection,
    GateSection,
)
from napari_shmoareg.plugin.experts.regions import RegionView
from napari_shmoareg.plugin.experts.what_if import WhatIfView
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.placement import tag
from napari_shmoareg.plugin.registrations import (
    layers_of_registration,
    open_registrations,
    title,
    unwrap,
)
from napari_shmoareg.plugin.viewer import set_up_viewer

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.registration.register import Registration


Kind = TypeVar("Kind", bound=Section)
CAPTION = (
    "A load is a share of selections, nothing more: it does not say how much an expert contributed,"
    " nor that it chose well."
)
TABS: tuple[tuple[str, str, tuple[Callable[[Any], Section], ...]], ...] = (
    (
        "Maps",
        "Maps of experts, heads and gates over the image (Fig. 4)",
        (DecoderSection, EncoderSection, GateSection),
    ),
    (
        "Layers",
        "The load of every gate as bars; a click shows the map behind a bar (Fig. 5)",
        (LayersView,),
    ),
    (
        "Location",
        "Which experts were chosen at locations that you double-click (Fig. 6)",
        (LocationView,),
    ),
    ("Regions", "Loads within labels or shapes, and how they differ", (RegionView,)),
    ("What if", "Silence or force experts, run again, and see what changes", (WhatIfView,)),
    ("Deformation", "Grid, arrows and changes of volume", (DeformationSection,)),
)
ROUTING_TIP = (
    "From the card of these weights. How much of what the network gains over the alignment is lost"
    " when the choices of experts are shuffled over the cells, in all passes; for attention, when"
    " its output is removed. Where no effect was found, loads and maps of that part describe a"
    " choice that the result does not depend on"
)
NOT_MEASURED = (
    "Whether the routing of these weights matters was not measured. Controls in the tab What if"
    " show it for this pair, 'shmoareg inspect --controls --pairs' for many."
)
# events of layers
FOLLOWED = ("visible", "opacity", "name", "selected_label", "show_selected_label")
EMPTY = "No registration is open. Register a pair (panel Register), or open a registration folder."


class ExpertsPanel(Panel):
    """Which maps of a registration are shown, and what they say.

    Parameters
    ----------
    napari_viewer : Viewer
    """

    kind = "Experts"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = viewer = unwrap(napari_viewer)
        self._listening: list[Any] = []
        self._shown: tuple[int | None, weakref.ref[Registration] | None] = (None, None)
        # tabs that do not know of the last changes to the list of layers
        self._stale: set[str] = set()
        self.registration = QComboBox()
        self.registration.setToolTip(
            "Whose maps to show; the keys act on the one of the selected layer, or the newest"
        )
        self.note = QLabel()
        self.routing = QLabel()
        self.routing.setToolTip(ROUTING_TIP)
        self.routing.setTextFormat(Qt.TextFormat.PlainText)  # a card can hold anything
        wrapped(self.note, self.routing)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setUsesScrollButtons(True)
        bar = self.tabs.tabBar()
        assert bar is not None
        bar.setDrawBase(False)
        self.views: dict[str, list[Section]] = {}
        for n, (name, tip, makers) in enumerate(TABS):
            self.views[name] = [make(viewer) for make in makers]
            self.tabs.addTab(_page(self.views[name], CAPTION if name == "Maps" else ""), name)
            self.tabs.setTabToolTip(n, tip)
        self.decoder, self.encoder = self._view(DecoderSection), self._view(EncoderSection)
        self.gates, self.layers = self._view(GateSection), self._view(LayersView)
        self.deformation = self._view(DeformationSection)
        head = arranged(QVBoxLayout(), self.registration, self.note, self.routing)
        head.setContentsMargins(6, 6, 6, 0)
        arranged(QVBoxLayout(self), head, self.tabs, wide=self.tabs)
        self.tabs.currentChanged.connect(lambda _: self._refresh())
        self.setMinimumWidth(300)
        self.registration.currentIndexChanged.connect(lambda _: self._show())
        self.reset_choices()

    @property
    def number(self) -> int | None:
        """Of the registration that is shown; None without any."""
        found = self.registration.currentData()
        return None if found is None else int(found)

    def reset_choices(self, event: Any = None) -> None:
        """Take up registrations that were opened, and drop those that were closed; a new one is
        shown at once.
        """
        opened = open_registrations(self._viewer)
        known = {self.registration.itemData(n) for n in range(self.registration.count())}
        new = max(set(opened) - known, default=None)
        if opened:
            set_up_viewer(self._viewer)
        fill(
            self.registration,
            {number: title(number, registration) for number, registration in opened.items()},
            new,
        )
        self._show()

    def showEvent(self, event: QShowEvent | None) -> None:
        super().showEvent(event)
        self.reset_choices()
        self._listen()

    def hideEvent(self, event: QHideEvent | None) -> None:
        super().hideEvent(event)
        self._hush()

    def _show(self) -> None:
        number = self.number
        registration = open_registrations(self._viewer).get(number) if number is not None else None
        self.registration.setEnabled(registration is not None)
        self.registration.setToolTip(self.registration.currentText())
        self.note.setText(
            EMPTY if registration is None else _note(registration, self._copied(number))
        )
        self.routing.setText("" if registration is None else _routing(registration))
        for label in (self.note, self.routing):
            label.setVisible(bool(label.text()))
        before, held = self._shown
        self._shown = number, None if registration is None else weakref.ref(registration)
        self._stale = set(self.views)
        if number != before or registration is None or held is None or held() is not registration:
            for name in self.views:  # also those behind: they hold the one that was closed
                self._tell(name)
        else:
            self._tell(self._front)
        if self.isVisible():
            self._listen()

    @property
    def _front(self) -> str:
        return TABS[self.tabs.currentIndex()][0]

    def _tell(self, name: str) -> None:
        """Have the views of a tab be about the registration that is shown."""
        self._stale.discard(name)
        number, registration = self._shown
        for section in self.views[name]:
            section.show_registration(None if registration is None else number)

    def _sections(self) -> list[Section]:
        return [section for sections in self.views.values() for section in sections]

    def _view(self, kind: type[Kind]) -> Kind:
        return next(section for section in self._sections() if isinstance(section, kind))

    def _copied(self, number: int | None) -> bool:
        return number is not None and any(
            tag(layer, "copied") for layer in layers_of_registration(self._viewer, number)
        )

    def _listen(self) -> None:
        """Follow what is switched elsewhere: by a key, in the list of layers."""
        self._hush()
        if self.number is not None:
            for layer in layers_of_registration(self._viewer, self.number):
                names = [name for name in FOLLOWED if name in layer.events.emitters]
                for emitter in (layer.events[name] for name in names):
                    emitter.connect(self._refresh)
                    self._listening.append(emitter)

    def _hush(self) -> None:
        for emitter in self._listening:
            emitter.disconnect(self._refresh)
        self._listening.clear()

    def _refresh(self, event: Any = None) -> None:
        """The views of the tab in front; those of another one when it comes to the front."""
        if self._front in self._stale:
            self._tell(self._front)
            return
        for section in self.views[self._front]:
            section.refresh()


def _page(sections: Sequence[Section], caption: str) -> QScrollArea:
    """What a tab shows, one view under the other."""
    body = QWidget()
    label = QLabel(caption)
    wrapped(label)
    column = arranged(QVBoxLayout(body), *sections, *([label] if caption else ()), None)
    column.setContentsMargins(6, 6, 6, 6)
    return scrolled(body)


def _note(registration: Registration, copied: bool) -> str:
    """What has to be known before the maps are read."""
    notes = []
    if (
        registration.report["settings"].get("untrained")
        or "untrained" in registration.weights.lower()
        or not registration.weights
    ):
        notes.append("These weights are untrained: the choices of the experts mean nothing.")
    told = str(registration.report.get("experts_of", ""))
    if told and not told.startswith("the network's only"):
        notes.append(f"Shown is {told}.")
    if copied:
        notes.append(
            "The fixed image is oblique: napari shows it and the maps as copies on straight axes,"
            " the maps by nearest neighbour. What is measured and saved are the originals."
        )
    return "\n".join(notes)


_ROUTING_LINES: weakref.WeakKeyDictionary[Registration, tuple[str, str]] = (
    weakref.WeakKeyDictionary()
)  # weights, and what they say


def _routing(registration: Registration) -> str:
    """What the card of a registration's weights says of their routing; empty where there is no card
    to read.
    """
    from napari_shmoareg.io.model_card import routing_of

    weights = weights_of(registration)
    if _ROUTING_LINES.get(registration, ("", ""))[0] != weights:
        known = routing_of(weights) if len(registration.routing) else None
        _ROUTING_LINES[registration] = weights, "" if known is None else known or NOT_MEASURED
    return _ROUTING_LINES[registration][1]
