"""A list of the registrations that are open in a viewer.

Which open layers make a pair: roles, selection, order, grids, names.

The four pickers of a pair, which follow the layers of the viewer.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QHBoxLayout, QPushButton, QVBoxLayout, QWidget
from superqt.utils import signals_blocked

from napari_shmoareg.plugin.controls.forms import arranged, captioned, fill, narrowed
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.placement import KEY, tag
from napari_shmoareg.plugin.registrations import ROLES, layer_in_role, open_registrations, title

if TYPE_CHECKING:
    from napari import Viewer
    from napari.components import LayerList
    from napari.layers import Layer

    from napari_shmoareg.registration.register import Registration


NOTHING = "(no registration is open)"


class RegistrationPicker(QComboBox):
    """Offers the open registrations; a new one is picked when it comes.

    Parameters
    ----------
    viewer : Viewer
    """

    picked = Signal()  # another registration than before, or none

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._offered: list[weakref.ref[Registration]] = []
        narrowed(self, length=16)
        self.setToolTip(
            "The registration that is looked at. Each one that is open in the layer list is"
            " offered."
        )
        self.currentIndexChanged.connect(self._tell)
        self.refresh()

    @property
    def number(self) -> int | None:
        """Of the picked registration; None if none is open."""
        return self.currentData()

    @property
    def registration(self) -> Registration | None:
        """The picked registration, as long as it has a layer."""
        viewer = self._viewer()
        return (
            None
            if viewer is None or self.number is None
            else open_registrations(viewer).get(self.number)
        )

    def refresh(self) -> None:
        """Offer what is open now; the newest is picked if it is new, else what was picked stays."""
        viewer = self._viewer()
        found = {} if viewer is None else open_registrations(viewer)
        before = [ref() for ref in self._offered]
        if (
            self.count()
            and before == list(found.values())
            and all(registration is not None for registration in before)
        ):
            return
        was = before[self.currentIndex()] if 0 <= self.currentIndex() < len(before) else None
        fresh = [number for number, registration in found.items() if registration not in before]
        kept = [
            number
            for number, registration in found.items()
            if registration is was and was is not None
        ]
        entries = {number: title(number, registration) for number, registration in found.items()}
        fill(self, entries or {None: NOTHING}, *(fresh or kept or list(found))[-1:])
        self.setEnabled(bool(found))
        self._offered = [weakref.ref(registration) for registration in found.values()]
        if was is None or self.registration is not was:
            self._tell()

    def _tell(self) -> None:
        # Qt.ToolTipRole: the list may be narrow
        self.setItemData(self.currentIndex(), self.currentText(), 3)
        self.picked.emit()


KINDS = {"moving": "image", "fixed": "image", "moving_labels": "labels", "fixed_labels": "labels"}
Pair = dict[str, "Layer | None"]


def offered(layers: LayerList, kind: str) -> list[Layer]:
    """The layers of a kind ("image", "labels") that can be picked: inputs, and what was warped."""
    return [
        layer
        for layer in layers
        if layer._type_string == kind
        and not getattr(layer, "rgb", False)
        and (not _made_by_us(layer) or tag(layer, "role") in ("warped", "warped_labels"))
    ]


def suggest(viewer: Any, picked: Mapping[str, Layer | None]) -> Pair:
    """A pair from what is open.

    Parameters
    ----------
    viewer : Viewer
    picked : mapping of role to Layer or None
        What a person picked, which stays as it is.

    Returns
    -------
    dict of role to Layer or None
        Images: those opened in a role, else the two that are selected, else by order, moving first;
        what can be registered comes first.  Labels: those opened in a role, else such that stand on
        the same grid as their image and are called most alike. Results are never suggested.
    """
    pair: Pair = dict(picked)
    images, labels = (
        [la for la in offered(viewer.layers, kind) if not _made_by_us(la)]
        for kind in ("image", "labels")
    )
    for role in (role for role in ROLES if role not in pair):
        in_role = layer_in_role(viewer, role)
        if (
            in_role in (labels if role.endswith("labels") else images)
            and in_role not in pair.values()
        ):
            pair[role] = in_role
    chosen = [image for image in images if image in viewer.layers.selection]
    ordered = sorted(
        [*(chosen if len(chosen) == 2 else ()), *images], key=lambda la: refused(la) is not None
    )
    for role in ("moving", "fixed"):
        if role not in pair:
            pair[role] = next((image for image in ordered if image not in pair.values()), None)
    for role, image, other in (
        ("moving_labels", pair["moving"], pair["fixed"]),
        ("fixed_labels", pair["fixed"], pair["moving"]),
    ):
        if role not in pair:
            pair[role] = labels_of(image, other, [la for la in labels if la not in pair.values()])
    return pair


def give_roles(layers: LayerList, pair: Mapping[str, Layer | None]) -> None:
    """Tag the layers of a pair with their roles, and no others; results keep theirs."""
    for layer in layers:
        if _made_by_us(layer):
            continue
        role = next((role for role, picked in pair.items() if picked is layer), None)
        if tag(layer, "role") != role and (role is not None or tag(layer, "role") in ROLES):
            layer.metadata[KEY] = {**layer.metadata.get(KEY, {}), "role": role}


def missing(pair: Mapping[str, Layer | None]) -> str | None:
    """What keeps a pair from being registered, in a few words; None if nothing does."""
    for role in ("moving", "fixed"):
        if pair[role] is None:
            return f"Pick a {role} image"
    if pair["moving"] is pair["fixed"]:
        return "Moving and fixed are the same layer"
    if pair["moving_labels"] is not None and pair["moving_labels"] is pair["fixed_labels"]:
        return "Moving and fixed labels are the same layer"
    for role, layer in pair.items():
        if layer is None:
            continue
        words = role.replace("_", " ") + ("" if role.endswith("labels") else " image")
        why = refused(layer)
        if why is not None:
            return f"The {words} {why}"
    return None


def refused(layer: Layer) -> str | None:
    """Why a layer cannot be registered, in a few words that follow its name; None if it can."""
    if getattr(layer, "rgb", False):
        return "is a colour image: split it into its channels"
    if getattr(layer, "multiscale", False):
        return "is multiscale: open one level"
    return None if layer.ndim == 3 else f"has {layer.ndim} axes, not 3"


def _made_by_us(layer: Layer) -> bool:
    """Whether it shows a result."""
    return tag(layer, "registration") is not None or tag(layer, "number") is not None


def labels_of(image: Layer | None, other: Layer | None, labels: Sequence[Layer]) -> Layer | None:
    """Labels that belong to an image; none where they might as well be the other image's, and only
    one is there.
    """
    if image is None:
        return None
    near = [la for la in labels if _same_place(la, image)]
    if other is not None and _same_place(image, other):
        near = [la for la in near if _alike(la, image) >= _alike(la, other)]
        if len(near) == 1 and _alike(near[0], image) == _alike(near[0], other):
            return None
    return max(near, key=lambda la: _alike(la, image), default=None)


def _alike(a: Layer, b: Layer) -> int:
    """How many letters two names begin with in common."""
    pairs = zip(a.name, b.name, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _same_place(a: Layer, b: Layer) -> bool:
    if a.ndim != b.ndim or getattr(a, "multiscale", False) or getattr(b, "multiscale", False):
        return False
    if tuple(a.data.shape) != tuple(b.data.shape):
        return False
    points = np.vstack([np.zeros(a.ndim), np.eye(a.ndim)])
    return all(np.allclose(a.data_to_world(p), b.data_to_world(p), atol=1e-3) for p in points)


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
        narrowed(self, length=12)
        self.addItem(nothing)

    @property
    def layer(self) -> Layer | None:
        """The picked layer."""
        index = self.currentIndex() - 1
        return self._offered[index]() if 0 <= index < len(self._offered) else None

    def offer(self, layers: Sequence[Layer], picked: Layer | None) -> None:
        """Offer other layers, and pick one of them.  Emits nothing."""
        names = [self._nothing, *(layer.name for layer in layers)]
        self._offered = [weakref.ref(layer) for layer in layers]
        with signals_blocked(self):
            if names != [self.itemText(n) for n in range(self.count())]:
                self.clear()
                self.addItems(names)
            index = next((n for n, layer in enumerate(layers, 1) if layer is picked), 0)
            self.setCurrentIndex(index)

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
        # roles of images that were picked by themselves, and are not exchanged any more
        self._stays: set[str] = set()
        # what is opened together comes in one turn of the event loop
        self._soon = single_shot(self, 0, self._keep_images)
        self.pickers = {
            role: LayerPicker(NO_LABELS if "labels" in role else NO_IMAGE) for role in ROLES
        }
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
        arranged(QVBoxLayout(self), form, arranged(QHBoxLayout(), None, self.swap))
        self.refresh()

    @property
    def pair(self) -> Pair:
        """The picked layer of each role."""
        return {role: self.pickers[role].layer for role in ROLES}

    @property
    def missing(self) -> str | None:
        """What keeps the pair from being registered, in a few words; None if nothing does."""
        return missing(self.pair)

    def refresh(self) -> None:
        """Offer what is open now; a layer that was picked by hand stays picked for as long as it is
        open.
        """
        viewer = self._viewer()
        if viewer is None:
            return
        offers = {kind: offered(viewer.layers, kind) for kind in ("image", "labels")}
        now = self.pair
        self._by_hand = {r for r in self._by_hand if now[r] is None or now[r] in offers[KINDS[r]]}
        self._stays = {r for r in self._stays if now[r] in offers["image"]}
        wanted = suggest(viewer, {role: now[role] for role in self._by_hand | self._stays})
        for role, picker in self.pickers.items():
            picker.offer(offers[KINDS[role]], wanted[role])
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
            give_roles(
                viewer.layers,
                {r: la for r, la in self.pair.items() if "labels" not in r or r == role},
            )
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
        if (
            pair["moving"] is not None
            and pair["fixed"] is not None
            and pair["moving"] is not pair["fixed"]
        ):
            give_roles(viewer.layers, pair)
        self._soon.start()
        self.changed.emit()
