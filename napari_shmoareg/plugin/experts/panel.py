"""The Experts panel: tabs with maps, loads, locations, regions, interventions and deformation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from html import escape
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
from napari_shmoareg.plugin.layers import expert_names
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
    ("Field", "The deformation: grid, arrows and volume change", (DeformationSection,)),
)
CONCLUSIONS_TIP = (
    "What may be concluded for this registration; each part links to the tab that shows it. Shares"
    " of the gain are from the model card of the weights, measured on pairs of scans: how much of"
    " the network's gain over the alignment is lost if the choices are shuffled over the cells, in"
    " all passes; for attention, if its output is removed. Evenness, margins and shares are of this"
    " registration, over cells that show more than air"
)
LINK = "#339af0"  # legible on dark and on light themes
NARROW_TABS = "QTabBar::tab { padding: 3px 4px; margin: 0px; }"  # all six fit side by side
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
        self.conclusions = QLabel()
        self.conclusions.setToolTip(f"<qt>{CONCLUSIONS_TIP}</qt>")
        self.conclusions.setTextFormat(Qt.TextFormat.RichText)  # its words are escaped
        self.conclusions.linkActivated.connect(self.open_tab)
        wrapped(self.note, self.conclusions)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setUsesScrollButtons(True)
        self.tabs.setStyleSheet(NARROW_TABS)
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
        head = arranged(QVBoxLayout(), self.registration, self.note, self.conclusions)
        head.setContentsMargins(6, 6, 6, 0)
        arranged(QVBoxLayout(self), head, self.tabs, wide=self.tabs)
        self._left = self._front
        self.tabs.currentChanged.connect(lambda _: self._on_tab())
        self.decoder.palette_changed.connect(self._recolour)
        self._view(RegionView).task.finished.connect(lambda _: self._show_conclusions())
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
        self.note.setVisible(bool(self.note.text()))
        self._show_conclusions()
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

    def open_tab(self, name: str) -> None:
        """Open a tab by its name."""
        self.tabs.setCurrentIndex([each for each, _, _ in TABS].index(name))

    def _show_conclusions(self) -> None:
        registration = open_registrations(self._viewer).get(self.number or 0)
        text = ""
        if registration is not None:
            found = self._view(RegionView).found_of(registration)
            regions = None if found is None else (found.differing, len(found.loads))
            text = _conclusions(registration, regions)
        self.conclusions.setText(text)
        self.conclusions.setVisible(bool(text))

    def _on_tab(self) -> None:
        """Update the tab in front; the one that was left hides what only it explains."""
        left, self._left = self._left, self._front
        for section in self.views[left] if left != self._left else ():
            section.leave()
        self._refresh()

    def _recolour(self) -> None:
        for section in self._sections():
            section.recolour()

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


_CONCLUSIONS: weakref.WeakKeyDictionary[Registration, tuple[object, str]] = (
    weakref.WeakKeyDictionary()
)  # what they depend on, and their text


def _conclusions(registration: Registration, regions: tuple[int, int] | None) -> str:
    """The conclusions of a registration as rich text with links to tabs, or ""."""
    from napari_shmoareg.experts.conclusions import conclusions
    from napari_shmoareg.io.model_card import card_of

    weights = weights_of(registration)
    if _CONCLUSIONS.get(registration, (None, ""))[0] != (weights, regions):
        names = expert_names(registration, len(registration.kernels))
        found = conclusions(registration, card_of(weights), names, regions)
        link = '<a href="{0}" style="color:{1}">{0}</a>'
        parts = [f"{escape(one.text)} ({link.format(one.topic, LINK)})." for one in found]
        _CONCLUSIONS[registration] = (weights, regions), " ".join(parts)
    return _CONCLUSIONS[registration][1]
