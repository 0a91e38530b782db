"""The four pickers of a pair, which follow the layers of the viewer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from napari_shmoareg.widgets.register import pairing
from napari_shmoareg.widgets.register.form import captioned
from napari_shmoareg.widgets.scenes import ROLES

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

NO_IMAGE, NO_LABELS = "(pick an image)", "(none)"
TIPS = {
    "moving": "The image that is deformed.",
    "fixed": "The image that the moving one is brought onto. The result stands on its grid.",
    "moving_labels": "Labels of the moving image, to be carried along. They need not be there.",
    "fixed_labels": "Labels of the fixed image. With both labels the overlap (Dice) is measured.",
}
SWAP_TIP = "Exchange moving and fixed, with their labels."


class LayerPicker(QComboBox):
    """Offers layers, and holds on to the picked one when others come, go or are renamed.

    Parameters
    ----------
    nothing : str
        What the entry for no layer is called.
    """

    def __init__(self, nothing: str) -> None:
        super().__init__()
        self._nothing, self._offered = nothing, list[weakref.ref]()
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(12)
        self.addItem(nothing)

    @property
    def layer(self) -> Layer | None:
        """The picked layer."""
        index = self.currentIndex() - 1
        return self._offered[index]() if 0 <= index < len(self._offered) else None

    def offer(self, layers: Sequence[Layer], picked: Layer | None) -> None:
        """Offer other layers, and pick one of them.  Emits nothing."""
        names = [self._nothing, *(layer.name for layer in layers)]
        blocked = self.blockSignals(True)
        if names != [self.itemText(n) for n in range(self.count())]:
            self.clear()
            self.addItems(names)
        self._offered = [weakref.ref(layer) for layer in layers]
        self.setCurrentIndex(next((n for n, layer in enumerate(layers, 1) if layer is picked), 0))
        self.blockSignals(blocked)

    def pick(self, layer: Layer) -> None:
        """Pick one of the layers that are offered, as if by hand."""
        index = next((n for n, offered in enumerate(self._offered, 1) if offered() is layer), 0)
        self.setCurrentIndex(index)
        self.activated.emit(index)


class PairPicker(QWidget):
    """Moving and fixed image with their labels, and a button that exchanges them.

    Parameters
    ----------
    viewer : Viewer
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._by_hand: set[str] = set()
        self._stays: set[str] = set()  # roles of images that were picked by themselves, and are not exchanged any more
        self._soon = QTimer(self)  # what is opened together comes in one turn of the event loop
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._keep_images)
        self.pickers = {role: LayerPicker(NO_LABELS if "labels" in role else NO_IMAGE) for role in ROLES}
        self.swap = QPushButton("Swap")
        self.swap.setToolTip(SWAP_TIP)
        self.swap.clicked.connect(self._swap)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setContentsMargins(0, 0, 0, 0)
        for role in ("moving", "moving_labels", "fixed", "fixed_labels"):
            picker = self.pickers[role]
            picker.setToolTip(TIPS[role])
            picker.activated.connect(lambda _index, role=role: self._pick(role))
            caption = "labels" if role.endswith("labels") else role.capitalize()
            form.addRow(captioned(caption, TIPS[role]), picker)
        row = QHBoxLayout()
        row.addStretch()
        row.addWidget(self.swap)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addLayout(row)
        self.refresh()

    @property
    def pair(self) -> pairing.Pair:
        """The picked layer of each role."""
        return {role: self.pickers[role].layer for role in ROLES}

    @property
    def missing(self) -> str | None:
        """What keeps the pair from being registered, in a few words; None if nothing does."""
        return pairing.missing(self.pair)

    def refresh(self) -> None:
        """Offer what is open now; a layer that was picked by hand stays picked for as long as it is open."""
        viewer = self._viewer()
        if viewer is None:
            return
        offers = {kind: pairing.offered(viewer.layers, kind) for kind in ("image", "labels")}
        now = self.pair
        self._by_hand = {r for r in self._by_hand if now[r] is None or now[r] in offers[pairing.KINDS[r]]}
        self._stays = {r for r in self._stays if now[r] in offers["image"]}
        wanted = pairing.suggest(viewer, {role: now[role] for role in self._by_hand | self._stays})
        for role, picker in self.pickers.items():
            picker.offer(offers[pairing.KINDS[role]], wanted[role])
        self._settle(viewer)

    def _keep_images(self) -> None:
        """From here on layers that come do not take the place of a pair that is there."""
        if self.missing is None:
            self._stays = {"moving", "fixed"}

    def _pick(self, role: str) -> None:
        """A person picked; labels that were not picked by hand follow their image."""
        self._by_hand.add(role)
        viewer = self._viewer()
        if viewer is not None:
            pairing.give_roles(viewer.layers, {r: la for r, la in self.pair.items() if "labels" not in r or r == role})
            self.refresh()

    def _swap(self) -> None:
        for a, b in (("moving", "fixed"), ("moving_labels", "fixed_labels")):
            here, there = self.pickers[a].currentIndex(), self.pickers[b].currentIndex()
            self.pickers[a].setCurrentIndex(there)
            self.pickers[b].setCurrentIndex(here)
        self._by_hand = set(ROLES)
        viewer = self._viewer()
        if viewer is not None:
            self._settle(viewer)

    def _settle(self, viewer: Viewer) -> None:
        pair = self.pair
        if pair["moving"] is not None and pair["fixed"] is not None and pair["moving"] is not pair["fixed"]:
            pairing.give_roles(viewer.layers, pair)
        self._soon.start(0)
        self.changed.emit()
