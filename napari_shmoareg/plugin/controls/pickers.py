"""Combo boxes for open registrations and for the layers of a pair."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error, show_info, show_warning
from numpy.typing import NDArray
from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry.volume import labels_in
from napari_shmoareg.io.label_names import FILTER, read_label_names
from napari_shmoareg.plugin.controls.forms import (
    arranged,
    captioned,
    combo_of,
    fill,
    narrowed,
    wrapped_tooltip,
)
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.placement import KEY, landmarks_of, name_layer, tag
from napari_shmoareg.plugin.registrations import (
    ROLES,
    layer_in_role,
    named_layers,
    open_registrations,
    title,
)

if TYPE_CHECKING:
    from napari import Viewer
    from napari.components import LayerList
    from napari.layers import Layer

    from napari_shmoareg.geometry.transform import LandmarkKind
    from napari_shmoareg.registration.register import Registration

    LandmarkStart = tuple[LandmarkKind, NDArray[np.float64], NDArray[np.float64]]


NOTHING = "(no registration is open)"


class RegistrationPicker(QComboBox):
    """A combo box of the open registrations, which selects a new one."""

    picked = Signal()  # the registration changed, possibly to None

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._entries: list[weakref.ref[Registration]] = []
        narrowed(self, length=16)
        self.setToolTip(
            "The registration to show. Lists all registrations with layers in the layer list."
        )
        self.currentIndexChanged.connect(self._emit_picked)
        self.refresh()

    @property
    def number(self) -> int | None:
        """Number of the picked registration; None if none is open."""
        return self.currentData()

    @property
    def registration(self) -> Registration | None:
        """The picked registration, if it still has a layer."""
        viewer = self._viewer()
        return (
            None
            if viewer is None or self.number is None
            else open_registrations(viewer).get(self.number)
        )

    def refresh(self) -> None:
        """List the open registrations; select the newest new one, else keep the selection."""
        viewer = self._viewer()
        found = {} if viewer is None else open_registrations(viewer)
        before = [ref() for ref in self._entries]
        if (
            self.count()
            and before == list(found.values())
            and all(registration is not None for registration in before)
        ):
            return
        previous = before[self.currentIndex()] if 0 <= self.currentIndex() < len(before) else None
        new = [number for number, registration in found.items() if registration not in before]
        remaining = [
            number
            for number, registration in found.items()
            if registration is previous and previous is not None
        ]
        entries = {number: title(number, registration) for number, registration in found.items()}
        fill(self, entries or {None: NOTHING}, *(new or remaining or list(found))[-1:])
        self.setEnabled(bool(found))
        self._entries = [weakref.ref(registration) for registration in found.values()]
        if previous is None or self.registration is not previous:
            self._emit_picked()

    def _emit_picked(self) -> None:
        # Qt.ToolTipRole: the list may be narrow
        self.setItemData(self.currentIndex(), self.currentText(), 3)
        self.picked.emit()


KINDS = {role: "image" if role in ("moving", "fixed") else "labels" for role in ROLES}
Pair = dict[str, "Layer | None"]


def selectable_layers(layers: LayerList, kind: str) -> list[Layer]:
    """Return the layers of a kind ("image", "labels") that can be picked: inputs and results."""
    return [
        layer
        for layer in layers
        if layer._type_string == kind
        and not getattr(layer, "rgb", False)
        and (not _is_result(layer) or tag(layer, "role") in ("warped", "warped_labels"))
    ]


def suggest(viewer: Any, picked: Mapping[str, Layer | None]) -> Pair:
    """Suggest a pair from the open layers, never from results.

    Parameters
    ----------
    viewer : Viewer
    picked : mapping of role to Layer or None
        Picks of the user, which are kept.

    Returns
    -------
    dict of role to Layer or None
        Images: those opened in a role, else the two selected ones, else by order, moving first;
        layers that can be registered come first.  Labels: those opened in a role, else those on the
        grid of their image with the most similar name.
    """
    # a layer may be both mask and labels
    pair: Pair = {role: layer for role, layer in picked.items() if role != "fixed_mask"}
    images, labels = (
        [la for la in selectable_layers(viewer.layers, kind) if not _is_result(la)]
        for kind in ("image", "labels")
    )
    mask = picked.get("fixed_mask") or layer_in_role(viewer, "fixed_mask")
    for role in (role for role in ROLES[:-1] if role not in pair):
        in_role = layer_in_role(viewer, role)
        if (
            in_role in (images if KINDS[role] == "image" else labels)
            and in_role not in pair.values()
        ):
            pair[role] = in_role
    chosen = [image for image in images if image in viewer.layers.selection]
    ordered = sorted(
        [*(chosen if len(chosen) == 2 else ()), *images], key=lambda la: rejection(la) is not None
    )
    for role in ("moving", "fixed"):
        if role not in pair:
            pair[role] = next((image for image in ordered if image not in pair.values()), None)
    for role, image, other in (
        ("moving_labels", pair["moving"], pair["fixed"]),
        ("fixed_labels", pair["fixed"], pair["moving"]),
    ):
        if role not in pair:
            others = (*pair.values(), mask)
            pair[role] = labels_of(image, other, [la for la in labels if la not in others])
    if "fixed_mask" in picked:
        mask = picked["fixed_mask"]
    return pair | {"fixed_mask": mask if mask in labels else None}


def tag_roles(layers: LayerList, pair: Mapping[str, Layer | None]) -> None:
    """Tag only the layers of a pair with their roles; results keep their tags."""
    for layer in layers:
        if _is_result(layer):
            continue
        role = next((role for role, picked in pair.items() if picked is layer), None)
        if tag(layer, "role") != role and (role is not None or tag(layer, "role") in ROLES):
            layer.metadata[KEY] = {**layer.metadata.get(KEY, {}), "role": role}


def missing(pair: Mapping[str, Layer | None]) -> str | None:
    """Return what is missing to register a pair, in a few words; None if nothing."""
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
        name = role.replace("_", " ") + (" image" if KINDS[role] == "image" else "")
        reason = rejection(layer)
        if reason is not None:
            return f"The {name} {reason}"
    return None


def rejection(layer: Layer) -> str | None:
    """Return why a layer cannot be registered, as a predicate; None if it can."""
    if getattr(layer, "rgb", False):
        return "is a colour image: split it into its channels"
    if getattr(layer, "multiscale", False):
        return "is multiscale: open one level"
    return None if layer.ndim == 3 else f"has {layer.ndim} axes, not 3"


def _is_result(layer: Layer) -> bool:
    """Whether a layer shows a result."""
    return tag(layer, "registration") is not None or tag(layer, "number") is not None


def labels_of(image: Layer | None, other: Layer | None, labels: Sequence[Layer]) -> Layer | None:
    """Return the labels that match an image best; None if the only match is ambiguous."""
    if image is None:
        return None
    candidates = [la for la in labels if _same_grid(la, image)]
    if other is not None and _same_grid(image, other):
        candidates = [
            la for la in candidates if _common_prefix(la, image) >= _common_prefix(la, other)
        ]
        if len(candidates) == 1 and _common_prefix(candidates[0], image) == _common_prefix(
            candidates[0], other
        ):
            return None
    return max(candidates, key=lambda la: _common_prefix(la, image), default=None)


def _common_prefix(a: Layer, b: Layer) -> int:
    """Return the length of the common prefix of two names."""
    pairs = zip(a.name, b.name, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _same_grid(a: Layer, b: Layer) -> bool:
    if a.ndim != b.ndim or getattr(a, "multiscale", False) or getattr(b, "multiscale", False):
        return False
    if tuple(a.data.shape) != tuple(b.data.shape):
        return False
    points = np.vstack([np.zeros(a.ndim), np.eye(a.ndim)])
    return all(np.allclose(a.data_to_world(p), b.data_to_world(p), atol=1e-3) for p in points)


NO_IMAGE, NO_LABELS = "(pick an image)", "(none)"
TIPS = {
    "moving": "The image to deform.",
    "fixed": "The image to register to. The result is on its grid.",
    "moving_labels": "Optional labels of the moving image, warped with it.",
    "fixed_labels": "Optional labels of the fixed image. With both labels, Dice is measured.",
    "fixed_mask": (
        "Optional labels on the fixed image: alignment, refinement and similarity count only voxels"
        " in them, of any label. The deformation is smooth everywhere."
    ),
}
CAPTIONS = {"moving": "Moving", "fixed": "Fixed", "fixed_mask": "Mask"}  # else labels
PLACED = "as placed"
STARTS: dict[str, LandmarkKind] = {
    "landmarks: rigid": "rigid",
    "landmarks: affine": "affine",
    "landmarks: thin-plate": "thin-plate",
}
START_TIP = (
    "Where the alignment starts. as placed: from where the moving image lies; drag and turn it with"
    " the layer's transform mode. landmarks: from a fit to the pairs of the Landmarks panel, at"
    " least 3 for rigid, 4 for affine and 5 for thin-plate, which also bends and is not aligned"
    " further."
)
SWAP_TIP = "Exchange moving and fixed, with their labels; without the mask."


class LayerPicker(QComboBox):
    """A combo box of layers that keeps its selection when layers are added, removed or renamed.

    Parameters
    ----------
    nothing : str
        Text of the entry for no layer.
    """

    def __init__(self, nothing: str) -> None:
        super().__init__()
        self._nothing, self._entries = nothing, list[weakref.ref]()
        narrowed(self, length=12)
        self.addItem(nothing)

    @property
    def layer(self) -> Layer | None:
        """The picked layer."""
        index = self.currentIndex() - 1
        return self._entries[index]() if 0 <= index < len(self._entries) else None

    def offer(self, layers: Sequence[Layer], picked: Layer | None) -> None:
        """Replace the layers and select one, without signals."""
        names = [self._nothing, *(layer.name for layer in layers)]
        self._entries = [weakref.ref(layer) for layer in layers]
        with signals_blocked(self):
            if names != [self.itemText(n) for n in range(self.count())]:
                self.clear()
                self.addItems(names)
            index = next((n for n, layer in enumerate(layers, 1) if layer is picked), 0)
            self.setCurrentIndex(index)

    def pick(self, layer: Layer) -> None:
        """Pick a listed layer, as the user does."""
        index = next((n for n, ref in enumerate(self._entries, 1) if ref() is layer), 0)
        self.setCurrentIndex(index)
        self.activated.emit(index)


NAMES_TIP = (
    "Load the names of the labels: a colour table of 3D Slicer or FreeSurfer, a label description"
    " of ITK-SNAP, a CSV or TSV table, or a dataset.json. They are shown under the cursor and in"
    " every table."
)


class NamesButton(QPushButton):
    """A button that loads names of labels from a file into layers.

    Attributes
    ----------
    layers : callable
        Returns the labels layers to name.
    """

    def __init__(self) -> None:
        super().__init__("Label names…")
        self.layers: Callable[[], Sequence[Layer]] = list
        self.setToolTip(wrapped_tooltip(NAMES_TIP))
        self.clicked.connect(self._choose_file)

    def load(self, path: str) -> None:
        """Name the labels of the layers by a file, or show why not."""
        layers = self.layers()
        if not layers:
            show_error("No labels are picked whose names could be loaded.")
            return
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                names = read_label_names(path)
        except InputError as error:
            show_error(str(error))
            return
        for warning in caught:
            show_warning(str(warning.message))
        labels = {layer: labels_in(np.asarray(layer.data)) for layer in layers}
        fitting = [layer for layer in layers if names.within(labels[layer])]
        for layer in fitting:
            name_layer(layer, names)
        found = set().union(*(labels[layer] for layer in layers))
        count = len(names.within(found).names)
        tell = show_info if count == len(found) else show_warning
        tell(f"{names.source} names {count} of the {len(found)} labels.")

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load names of labels", "", FILTER)
        if path:
            self.load(path)


class PairPicker(QWidget):
    """Pickers of the images and labels of a pair and of its start, and buttons that swap them and
    load the names of the labels.
    """

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._picked_by_hand: set[str] = set()
        # roles of images that were suggested and must not change any more
        self._fixed_roles: set[str] = set()
        # layers opened together arrive in one turn of the event loop
        self._timer = single_shot(self, 0, self._keep_images)
        self.pickers = {
            role: LayerPicker(NO_IMAGE if KINDS[role] == "image" else NO_LABELS) for role in ROLES
        }
        self.swap = QPushButton("Swap")
        self.swap.setToolTip(SWAP_TIP)
        self.swap.clicked.connect(self._swap)
        self.names = NamesButton()
        self.names.layers = self._named_layers
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setContentsMargins(0, 0, 0, 0)
        for role in ("moving", "moving_labels", "fixed", "fixed_labels", "fixed_mask"):
            picker = self.pickers[role]
            picker.setToolTip(TIPS[role])
            picker.activated.connect(lambda _index, role=role: self._on_picked(role))
            form.addRow(captioned(CAPTIONS.get(role, "labels"), TIPS[role]), picker)
        self.start = combo_of(PLACED, *STARTS)
        self.start.setToolTip(wrapped_tooltip(START_TIP))
        form.addRow(captioned("Start", START_TIP), self.start)
        arranged(QVBoxLayout(self), form, arranged(QHBoxLayout(), None, self.names, self.swap))
        self.refresh()

    @property
    def pair(self) -> Pair:
        """The picked layer of each role."""
        return {role: self.pickers[role].layer for role in ROLES}

    @property
    def landmarks(self) -> LandmarkStart | None:
        """The kind of fit and the fixed and moving landmarks, mm RAS; None to start as placed."""
        viewer, kind = self._viewer(), STARTS.get(self.start.currentText())
        if viewer is None or kind is None:
            return None
        layers = (layer_in_role(viewer, f"landmarks_{side}") for side in ("fixed", "moving"))
        fixed, moving = (landmarks_of(layer) for layer in layers)
        count = min(len(fixed), len(moving))
        return kind, fixed[:count], moving[:count]

    @property
    def missing(self) -> str | None:
        """What is missing to register the pair, in a few words; None if nothing."""
        return missing(self.pair)

    def refresh(self) -> None:
        """List the open layers; a layer picked by the user stays picked while it is open."""
        viewer = self._viewer()
        if viewer is None:
            return
        offers = {kind: selectable_layers(viewer.layers, kind) for kind in ("image", "labels")}
        now = self.pair
        self._picked_by_hand = {
            r for r in self._picked_by_hand if now[r] is None or now[r] in offers[KINDS[r]]
        }
        self._fixed_roles = {r for r in self._fixed_roles if now[r] in offers["image"]}
        suggested = suggest(
            viewer, {role: now[role] for role in self._picked_by_hand | self._fixed_roles}
        )
        for role, picker in self.pickers.items():
            picker.offer(offers[KINDS[role]], suggested[role])
        self._tag_pair(viewer)

    def _named_layers(self) -> list[Layer]:
        """The picked labels, and those of results made from them."""
        viewer, picked = self._viewer(), [la for r, la in self.pair.items() if "labels" in r and la]
        found = list(picked)
        for registration in {} if viewer is None else open_registrations(viewer).values():
            layers = named_layers(viewer, registration)
            if any(layer in picked for layer in layers):
                found += [layer for layer in layers if layer not in found]
        return found

    def _keep_images(self) -> None:
        """Keep a complete suggested pair when layers are added."""
        if self.missing is None:
            self._fixed_roles = {"moving", "fixed"}

    def _on_picked(self, role: str) -> None:
        """Handle a pick of the user; labels not picked by hand follow their image."""
        self._picked_by_hand.add(role)
        viewer = self._viewer()
        if viewer is not None and role == "fixed_mask":
            self.refresh()
        elif viewer is not None:
            tag_roles(
                viewer.layers,
                {r: la for r, la in self.pair.items() if KINDS[r] == "image" or r == role},
            )
            self.refresh()

    def _swap(self) -> None:
        for a, b in (("moving", "fixed"), ("moving_labels", "fixed_labels")):
            here, there = self.pickers[a].currentIndex(), self.pickers[b].currentIndex()
            self.pickers[a].setCurrentIndex(there)
            self.pickers[b].setCurrentIndex(here)
        self.pickers["fixed_mask"].setCurrentIndex(0)
        self._picked_by_hand = set(ROLES)
        viewer = self._viewer()
        if viewer is not None:
            self._tag_pair(viewer)

    def _tag_pair(self, viewer: Viewer) -> None:
        pair = self.pair
        if (
            pair["moving"] is not None
            and pair["fixed"] is not None
            and pair["moving"] is not pair["fixed"]
        ):
            tag_roles(viewer.layers, pair)
        self._timer.start()
        self.changed.emit()
