"""Which open layers make a pair: roles, selection, order, grids, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.widgets.placement import KEY, tag
from napari_shmoareg.widgets.scenes import ROLES, layer_in_role

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Layer

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
        Images: those opened in a role, else the two that are selected, else by order, moving first; what can
        be registered comes first.  Labels:
        those opened in a role, else such that stand on the same grid as their image and are called most alike.
        Results are never suggested.
    """
    pair: Pair = dict(picked)
    images, labels = (
        [la for la in offered(viewer.layers, kind) if not _made_by_us(la)] for kind in ("image", "labels")
    )
    for role in (role for role in ROLES if role not in pair):
        in_role = layer_in_role(viewer, role)
        if in_role in (labels if role.endswith("labels") else images) and in_role not in pair.values():
            pair[role] = in_role
    chosen = [image for image in images if image in viewer.layers.selection]
    ordered = sorted([*(chosen if len(chosen) == 2 else ()), *images], key=lambda la: refused(la) is not None)
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
    return tag(layer, "scene") is not None or tag(layer, "number") is not None


def labels_of(image: Layer | None, other: Layer | None, labels: Sequence[Layer]) -> Layer | None:
    """Labels that belong to an image; none where they might as well be the other image's, and only one is there."""
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
