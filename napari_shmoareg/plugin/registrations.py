"""The open registrations of a viewer; each lives as long as one of its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_shmoareg.plugin.placement import KEY, names_of, tag

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.geometry import LabelNames
    from napari_shmoareg.registration.register import Registration


# of the inputs
ROLES = ("moving", "fixed", "moving_labels", "fixed_labels", "fixed_mask")


def unwrap(viewer: Viewer) -> Viewer:
    """The viewer behind napari's proxy; the layers of a proxy are new, short-lived objects at every
    access.
    """
    wrapped: Viewer = getattr(viewer, "__wrapped__", viewer)
    return wrapped


def open_registrations(viewer: Viewer) -> dict[int, Registration]:
    """The open registrations by number, in the order of their creation."""
    _renumber_duplicates(viewer)
    found = {
        tag(layer, "number"): tag(layer, "registration")
        for layer in viewer.layers
        if tag(layer, "registration") is not None
    }
    return dict(sorted(found.items()))


def next_number(viewer: Viewer) -> int:
    """The next free number of a registration."""
    return max(open_registrations(viewer), default=0) + 1


def layers_of_registration(viewer: Viewer, number: int, role: str | None = None) -> list[Layer]:
    """The layers of a registration, bottom first; only those in a role, if given."""
    _renumber_duplicates(viewer)
    return [
        layer
        for layer in viewer.layers
        if tag(layer, "number") == number and (role is None or tag(layer, "role") == role)
    ]


def renumbered(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Layer options with another registration number in name and metadata."""
    tags = {**options["metadata"][KEY], "number": number}
    name = re.sub(r"^#\d+ ", f"#{number} ", options["name"])
    return {**options, "name": name, "metadata": {**options["metadata"], KEY: tags}}


def _renumber_duplicates(viewer: Viewer) -> None:
    """Give the later of two registrations with the same number (read for another viewer) the next
    free one.
    """
    numbers: dict[int, int] = {}  # by id of the registration
    tagged = [layer for layer in viewer.layers if tag(layer, "registration") is not None]
    for layer in tagged:
        registration, number = id(tag(layer, "registration")), tag(layer, "number")
        if registration not in numbers:
            in_use = number in numbers.values()
            numbers[registration] = (
                max(tag(other, "number") for other in tagged) + 1 if in_use else number
            )
        if number != numbers[registration]:
            new = renumbered(
                {"name": re.sub(r" \[\d+\]$", "", layer.name), "metadata": layer.metadata},
                numbers[registration],
            )
            layer.metadata, layer.name = new["metadata"], new["name"]


def layer_in_role(viewer: Viewer, role: str) -> Layer | None:
    """The last layer that was opened as moving, fixed, moving_labels or fixed_labels."""
    found = [layer for layer in viewer.layers if tag(layer, "role") == role]
    return found[-1] if found else None


def named_layers(viewer: Viewer, registration: Registration) -> list[Layer]:
    """The layers of a registration's labels: the warped ones, and its inputs by role and name."""
    inputs = {
        (role, volume.name)
        for role, volume in registration.pair.volumes.items()
        if volume.is_labels
    }
    return [
        layer
        for layer in viewer.layers
        if (tag(layer, "registration") is registration and tag(layer, "role") == "warped_labels")
        or (tag(layer, "role"), layer.name) in inputs
    ]


def label_names(viewer: Viewer, registration: Registration) -> LabelNames:
    """The names of a registration's labels: those loaded into its layers since, else its own."""
    for layer in named_layers(viewer, registration):
        role = str(tag(layer, "role")).replace("warped", "moving")
        own, names = registration.pair.volumes[role].label_names, names_of(layer)
        if names.names != own.names:
            return names
    return registration.pair.label_names


def title(number: int, registration: Registration) -> str:
    """Title of a registration in lists: ``#1 sub-05 onto sub-06 (small, refined 60)``."""
    settings = registration.report["settings"]
    how = [
        registration.weights,
        "diffeomorphic" if settings["diffeomorphic"] else "not diffeomorphic",
    ]
    if settings.get("refine"):
        how.append(f"refined {settings['refine']}")
    return f"#{number} {pair_title(registration)} ({', '.join(how)})"


def pair_title(registration: Registration) -> str:
    """The two images of a registration: ``sub-05 onto sub-06``."""
    return f"{registration.pair.moving.name} onto {registration.pair.fixed.name}"
