"""Which registrations a viewer has open: they live with their layers, and go with the last of
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_shmoareg.plugin.placement import KEY, tag

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.registration.register import Registration


ROLES = ("moving", "fixed", "moving_labels", "fixed_labels")  # of what is registered


def itself(viewer: Viewer) -> Viewer:
    """The viewer itself: napari hands panels a proxy, whose layers are new objects at every look,
    and die at once.
    """
    wrapped: Viewer = getattr(viewer, "__wrapped__", viewer)
    return wrapped


def scenes(viewer: Viewer) -> dict[int, Registration]:
    """The registrations that are open, by number, in the order they were made."""
    _tell_apart(viewer)
    found = {
        tag(layer, "number"): tag(layer, "scene")
        for layer in viewer.layers
        if tag(layer, "scene") is not None
    }
    return dict(sorted(found.items()))


def next_number(viewer: Viewer) -> int:
    """A number that no open registration has."""
    return max(scenes(viewer), default=0) + 1


def layers_of_scene(viewer: Viewer, number: int, role: str | None = None) -> list[Layer]:
    """The layers of a registration, bottom first; those of one role, where it is given."""
    _tell_apart(viewer)
    return [
        layer
        for layer in viewer.layers
        if tag(layer, "number") == number and (role is None or tag(layer, "role") == role)
    ]


def renumbered(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Name and metadata of a layer of a registration under another number, what else there is as it
    is.
    """
    kept = {**options["metadata"][KEY], "number": number}
    name = re.sub(r"^#\d+ ", f"#{number} ", options["name"])
    return {**options, "name": name, "metadata": {**options["metadata"], KEY: kept}}


def _tell_apart(viewer: Viewer) -> None:
    """Give the later of two registrations that came with one number (read for another viewer) the
    next free one.
    """
    numbers: dict[int, int] = {}  # of each scene, by its id
    tagged = [layer for layer in viewer.layers if tag(layer, "scene") is not None]
    for layer in tagged:
        scene, number = id(tag(layer, "scene")), tag(layer, "number")
        if scene not in numbers:
            taken = number in numbers.values()
            numbers[scene] = max(tag(other, "number") for other in tagged) + 1 if taken else number
        if number != numbers[scene]:
            new = renumbered(
                {"name": re.sub(r" \[\d+\]$", "", layer.name), "metadata": layer.metadata},
                numbers[scene],
            )
            layer.metadata, layer.name = new["metadata"], new["name"]


def layer_in_role(viewer: Viewer, role: str) -> Layer | None:
    """The layer that was opened as moving, fixed, moving_labels or fixed_labels; the last one, if
    there are several.
    """
    found = [layer for layer in viewer.layers if tag(layer, "role") == role]
    return found[-1] if found else None


def title(number: int, scene: Registration) -> str:
    """Of a registration, for lists: ``#1 sub-05 onto sub-06 (small, refined 60)``."""
    settings = scene.report["settings"]
    how = [scene.weights, "diffeomorphic" if settings["diffeomorphic"] else "not diffeomorphic"]
    if settings.get("refine"):
        how.append(f"refined {settings['refine']}")
    return f"#{number} {scene.pair.moving.name} onto {scene.pair.fixed.name} ({', '.join(how)})"
