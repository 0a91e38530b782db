"""The Experts panel: tabs with maps, loads, locations, regions, interventions and deformation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qtpy.QtCore import Qt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import QComboBox, QLabel, QScrollArea, QTabWidget, QVBoxLayout, QWidget

from napari_shmoareg.plugin.controls.forms import Section, arranged, fill, scrolled, weakly, wrapped
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
    "A load is only a share of selections: it does not measure how much an expert contributed, or"
    " whether the choice was good."
)
TABS: tuple[tuple[str, str, tuple[Callable[[Any], Section], ...]], ...] = (
    (
        "Maps",
        "Maps of experts, heads and gates over the image (Fig. 4)",
        (DecoderSection, EncoderSection, GateSection),
    ),
    (
        "Layers",
        "The load of every gate as bars; a click on a bar shows its map (Fig. 5)",
        (LayersView,),
    ),
    (
        "Location",
        "The experts chosen at double-clicked locations (Fig. 6)",
        (LocationView,),
    ),
    ("Regions", "Loads within labels or shapes, and how they differ", (RegionView,)),
    ("What if", "Silence or force experts, run again, and see what changes", (WhatIfView,)),
    ("Deformation", "Grid, arrows and volume change", (DeformationSection,)),
)
ROUTING_TIP = (
    "From the model card of these weights: how much of the network's gain over the alignment is"
    " lost if the choices of experts are shuffled over the cells, in all passes; for attention, if"
    " its output is removed. If no effect was found, the result does not depend on the choices that"
    " the loads and maps of that part show"
)
NOT_MEASURED = (
    "The effect of the routing of these weights was not measured. Controls in the tab What if"
    " show it for this pair, 'shmoareg inspect --controls --pairs' for many."
)
# events of layers
FOLLOWED = ("visible", "opacity", "name", "selected_label", "show_selected_label")
EMPTY = "No registration is open. Register a pair (panel Register), or open a registration folder."


class ExpertsPanel(Panel):
    """Maps, loads and interventions of a registration, in tabs.

    Parameters
    ----------
    napari_viewer : Viewer
    """

    kind = "Experts"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = viewer = unwrap(napari_viewer)
        self._connected: list[Any] = []
        self._shown: tuple[int | None, Callable[[], Registration | None]] = None, weakly(None)
        # tabs not yet updated after the last change of the layer list
        self._stale: set[str] = set()
        self.registration = QComboBox()
        self.registration.setToolTip(
            "The registration to show; the keys act on that of the selected layer, or the newest"
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
        """Number of the shown registration; None without any."""
        found = self.registration.currentData()
        return None if found is None else int(found)

    def reset_choices(self, event: Any = None) -> None:
        """Update the list of registrations; a new one is shown at once."""
        opened = open_registrations(self._viewer)
        listed = {self.registration.itemData(n) for n in range(self.registration.count())}
        new = max(set(opened) - listed, default=None)
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
        self._stop_listening()

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
        before, shown = self._shown
        self._shown = number, weakly(registration)
        self._stale = set(self.views)
        if number != before or registration is None or shown() is not registration:
            for name in self.views:  # also tabs behind: they refer to a closed registration
                self._update_tab(name)
        else:
            self._update_tab(self._front)
        if self.isVisible():
            self._listen()

    @property
    def _front(self) -> str:
        return TABS[self.tabs.currentIndex()][0]

    def _update_tab(self, name: str) -> None:
        """Have the views of a tab show the current registration."""
        self._stale.discard(name)
        number, registration = self._shown
        for section in self.views[name]:
            section.show_registration(None if registration() is None else number)

    def _sections(self) -> list[Section]:
        return [section for sections in self.views.values() for section in sections]

    def _view(self, kind: type[Kind]) -> Kind:
        return next(section for section in self._sections() if isinstance(section, kind))

    def _copied(self, number: int | None) -> bool:
        return number is not None and any(
            tag(layer, "copied") for layer in layers_of_registration(self._viewer, number)
        )

    def _listen(self) -> None:
        """Follow changes made elsewhere: by a key, in the list of layers."""
        self._stop_listening()
        if self.number is not None:
            for layer in layers_of_registration(self._viewer, self.number):
                names = [name for name in FOLLOWED if name in layer.events.emitters]
                for emitter in (layer.events[name] for name in names):
                    emitter.connect(self._refresh)
                    self._connected.append(emitter)

    def _stop_listening(self) -> None:
        for emitter in self._connected:
            emitter.disconnect(self._refresh)
        self._connected.clear()

    def _refresh(self, event: Any = None) -> None:
        """Refresh the views of the tab in front."""
        if self._front in self._stale:
            self._update_tab(self._front)
            return
        for section in self.views[self._front]:
            section.refresh()


def _page(sections: Sequence[Section], caption: str) -> QScrollArea:
    """The page of a tab, one view below the other."""
    body = QWidget()
    label = QLabel(caption)
    wrapped(label)
    column = arranged(QVBoxLayout(body), *sections, *([label] if caption else ()), None)
    column.setContentsMargins(6, 6, 6, 6)
    return scrolled(body)


def _note(registration: Registration, copied: bool) -> str:
    """Notes for the interpretation of the maps."""
    notes = []
    if (
        registration.report["settings"].get("untrained")
        or "untrained" in registration.weights.lower()
        or not registration.weights
    ):
        notes.append("These weights are untrained: the choices of the experts mean nothing.")
    expert_source = str(registration.report.get("experts_of", ""))
    if expert_source and not expert_source.startswith("the network's only"):
        notes.append(f"Shown: {expert_source}.")
    if copied:
        notes.append(
            "The fixed image is oblique: napari shows it and the maps as copies on straight axes,"
            " the maps by nearest neighbour. The originals are measured and saved."
        )
    return "\n".join(notes)


_ROUTING_LINES: weakref.WeakKeyDictionary[Registration, tuple[str, str]] = (
    weakref.WeakKeyDictionary()
)  # weights, and the text of their card


def _routing(registration: Registration) -> str:
    """The routing section of the model card of a registration's weights, or "" without a card."""
    from napari_shmoareg.io.model_card import routing_of

    weights = weights_of(registration)
    if _ROUTING_LINES.get(registration, ("", ""))[0] != weights:
        text = routing_of(weights) if len(registration.routing) else None
        _ROUTING_LINES[registration] = weights, "" if text is None else text or NOT_MEASURED
    return _ROUTING_LINES[registration][1]
