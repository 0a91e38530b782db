"""Which labels layer is which image's; none in doubt."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from napari_shmoareg.widgets.placement import tag

if TYPE_CHECKING:
    from napari.layers import Layer

COPY = re.compile(r" \[\d+\]$")  # as napari tells layers of one name apart
WORDS = {"label", "labels", "seg", "segmentation", "mask", "masks", "image", "img"}  # not part of whose it is


def labels_by_image(images: Sequence[Layer], labels: Sequence[Layer]) -> dict[Layer, Layer]:
    """The labels of images: of the same role, or else of the same name.

    Parameters
    ----------
    images, labels : sequence of Layer

    Returns
    -------
    dict of Layer to Layer
        Each labels layer once at most; images without labels, or with several that might be theirs, are left out, and
        so are labels that might be of several images.
    """
    found: dict[Layer, Layer] = {}
    for key_of in (role, subject):
        left = [image for image in images if image not in found]
        free = [la for la in labels if la not in found.values()]
        found |= _alone(left, free, key_of)
    return found


def role(layer: Layer) -> str:
    """``moving`` of a moving image and of its labels; empty without one."""
    return str(tag(layer, "role") or "").removesuffix("_labels")


def subject(layer: Layer) -> str:
    """What a name says without the words for images and labels: ``sub-1`` of ``sub-1_seg``, in small letters."""
    parts = re.split(r"[\s_.-]+", COPY.sub("", layer.name).lower())
    return "-".join(part for part in parts if part and part not in WORDS)


def _alone(images: Sequence[Layer], labels: Sequence[Layer], key_of: Callable[[Layer], Hashable]) -> dict[Layer, Layer]:
    """Pairs of one image and one labels layer that alone have a key."""
    found = {}
    for image in images:
        key = key_of(image)
        mine = [la for la in labels if key_of(la) == key]
        if key and len(mine) == 1 and sum(key_of(other) == key for other in images) == 1:
            found[image] = mine[0]
    return found
