"""Showing and hiding the layers of a registration, and the keyboard shortcuts for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.plugin.placement import KEY, tag
from napari_shmoareg.plugin.registrations import layers_of_registration, open_registrations

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image, Labels, Layer

    from napari_shmoareg.experts.maps import GateValues
    from napari_shmoareg.registration.register import Registration


IMAGES = ("moving", "fixed", "warped")
# roles of maps, of which one is visible at a time
MAPS = ("expert_map", "head_map", "gate_map", "attention", "what_if")


def current(viewer: Viewer) -> tuple[int, Registration] | None:
    """Number and registration of the selected layer, or else the newest; None if none is open."""
    opened = open_registrations(viewer)
    active = viewer.layers.selection.active
    number = None if active is None else tag(active, "number")
    if number not in opened:
        number = max(opened, default=None)
    return None if number is None else (number, opened[number])


def layers_in_role(viewer: Viewer, number: int, role: str) -> list[Layer]:
    """The layers of a registration in a role, made now if there are none; the Jacobian includes its
    folding.
    """
    from napari_shmoareg.plugin.layers import add_layers, map_layers

    registration = open_registrations(viewer).get(number)
    if registration is not None and not layers_of_registration(viewer, number, role):
        made = map_layers(registration, number, role)
        roles = [each[1]["metadata"][KEY]["role"] for each in made]
        wanted = [
            each
            for each, own in zip(made, roles, strict=True)
            if own in (role, "folding") and not layers_of_registration(viewer, number, own)
        ]
        add_layers(viewer, wanted)
    return layers_of_registration(viewer, number, role)


def show_role(viewer: Viewer, number: int, role: str, on: bool) -> list[Layer]:
    """Show or hide the layers of a registration in a role; the Jacobian includes its folding.

    Layers that were not asked for before are made when they are shown first.
    """
    if on:
        layers_in_role(viewer, number, role)
    roles = ("jacobian", "folding") if role == "jacobian" else (role,)
    layers = [layer for name in roles for layer in layers_of_registration(viewer, number, name)]
    for layer in layers:
        layer.visible = on
    return layers


def is_shown(viewer: Viewer, number: int, role: str) -> bool:
    """Whether any layer of a registration in a role is visible."""
    return any(layer.visible for layer in layers_of_registration(viewer, number, role))


def show_experts(
    viewer: Viewer, number: int, direction: str | None = None, stride: int | None = None
) -> Labels | None:
    """Show one expert map and hide all other maps, also those of heads and gates.

    Parameters
    ----------
    viewer : Viewer
    number : int
        Number of the registration.
    direction : {"x", "y", "z"}, optional
    stride : int, optional
        Voxels of the network grid per cell: 1 for full, 2 for half resolution.  Direction and
        stride default to those shown last, initially the finest map along x; a single expert (see
        `draw_single_expert`) stays selected too.

    Returns
    -------
    Labels or None
        The layer now shown; None without expert maps.
    """
    offered = offered_maps(viewer, number)
    if not offered:
        return None
    opened = expert_layers(viewer, number)
    before = next((layer for layer in opened if layer.visible), opened[0] if opened else None)
    last = direction_and_stride(before) if before is not None else offered[0]
    requested = direction or last[0], stride or last[1]
    chosen = expert_layer(viewer, number, requested if requested in offered else last)
    if before is not None and before is not chosen:
        draw_single_expert(chosen, single_expert(before))
        chosen.opacity = before.opacity
    show_only(viewer, chosen)
    return chosen


def offered_maps(viewer: Viewer, number: int) -> list[tuple[str, int]]:
    """Direction and stride of each expert map of a registration, finest first, open or not."""
    from napari_shmoareg.experts.maps import expert_maps

    registration = open_registrations(viewer).get(number)
    maps = [] if registration is None else expert_maps(registration)
    found = [(one.gate.direction or "", one.stride) for one in maps]
    return sorted(found, key=lambda each: each[::-1])


def expert_layer(viewer: Viewer, number: int, which: tuple[str, int]) -> Labels:
    """The layer of the expert map of a direction and stride, made now if there is none."""
    from napari_shmoareg.experts.maps import expert_maps
    from napari_shmoareg.plugin.layers import add_layers, expert_map_layer

    opened = expert_layers(viewer, number)
    for layer in opened:
        if direction_and_stride(layer) == which:
            return layer
    registration = open_registrations(viewer)[number]
    found = next(
        one for one in expert_maps(registration) if (one.gate.direction or "", one.stride) == which
    )
    air = bool(opened) and bool(tag(opened[0], "air"))
    (layer,) = add_layers(viewer, [expert_map_layer(registration, number, found, air=air)])
    return cast("Labels", layer)


def redraw_expert_maps(viewer: Viewer, number: int, *, air: bool) -> None:
    """Draw the open expert maps with or without air, and in the colours of the preferences."""
    from napari_shmoareg.plugin.layers import expert_map_layer

    for layer in expert_layers(viewer, number):
        found, registration = tag(layer, "expert_map"), tag(layer, "registration")
        data, options, _ = expert_map_layer(registration, number, found, air=air)
        layer.metadata, layer.data = options["metadata"], data
        layer.colormap = options["colormap"]


def single_expert(layer: Labels) -> int | None:
    """The only expert whose cells an expert map draws; None if it draws the cells of all."""
    return (
        int(layer.selected_label) - 1
        if layer.show_selected_label and layer.selected_label > 0
        else None
    )


def draw_single_expert(layer: Labels, expert: int | None) -> None:
    """Draw only the cells that chose one expert, given by its id; None draws the cells of all."""
    if single_expert(layer) != expert:
        layer.show_selected_label = False
        if expert is not None:
            layer.selected_label = expert + 1
            layer.show_selected_label = True


def expert_layers(viewer: Viewer, number: int) -> list[Labels]:
    """The expert maps of a registration, sorted by resolution (finest first) and direction."""
    layers = layers_of_registration(viewer, number, "expert_map")
    return sorted(layers, key=lambda layer: direction_and_stride(layer)[::-1])


def next_expert_map(viewer: Viewer, number: int) -> Labels | None:
    """Show the next expert map: x, y, z at full resolution, then at half, then none."""
    offered, shown = offered_maps(viewer, number), shown_map(viewer, number)
    following = offered.index(shown) + 1 if shown is not None else 0
    if following >= len(offered):
        show_role(viewer, number, "expert_map", False)
        return None
    return show_experts(viewer, number, *offered[following])


def shown_map(viewer: Viewer, number: int) -> tuple[str, int] | None:
    """Direction and stride of the visible expert map; None if none is."""
    layers = (layer for layer in expert_layers(viewer, number) if layer.visible)
    return next(map(direction_and_stride, layers), None)


def next_direction(viewer: Viewer, number: int) -> Labels | None:
    """Show the expert map of the next direction, at the same resolution."""
    shown = shown_map(viewer, number)
    if shown is None:
        return show_experts(viewer, number)
    direction, stride = shown
    row = [d for d, s in offered_maps(viewer, number) if s == stride]
    return show_experts(viewer, number, row[(row.index(direction) + 1) % len(row)], stride)


def show_head(viewer: Viewer, number: int, load: GateValues, head: int) -> Image | None:
    """Show the weight of one attention head at every token, by refilling the registration's head
    map.
    """
    from napari_shmoareg.plugin.layers import head_map

    layer = head_layer(viewer, number, make=True)
    if layer is None:
        return None
    if tag(layer, "load") is not load or tag(layer, "head") != head:
        refill(layer, *head_map(tag(layer, "registration"), number, load, head)[:2])
    show_only(viewer, layer)
    return layer


def next_head(viewer: Viewer, number: int) -> Image | None:
    """Show the next head of the same gate."""
    layer = head_layer(viewer, number, make=True)
    if layer is None:
        return None
    load, head = tag(layer, "load"), tag(layer, "head")
    return show_head(
        viewer, number, load, (head + 1) % load.values.shape[-1] if layer.visible else head
    )


def head_layer(viewer: Viewer, number: int, *, make: bool = False) -> Image | None:
    """The layer of a registration that shows one attention head, if open; `make` opens it."""
    find = layers_in_role if make else layers_of_registration
    found = find(viewer, number, "head_map")
    return found[0] if found else None


def show_only(viewer: Viewer, shown: Layer) -> None:
    """Show one map, hide all others, and select it, so that the status bar shows its values."""
    uncover(viewer, shown)
    viewer.layers.selection.active = shown


def uncover(viewer: Viewer, shown: Layer) -> None:
    """Show one map and hide all others, without selecting it."""
    for layer in list(viewer.layers):
        if layer is not shown and tag(layer, "role") in MAPS and layer.visible:
            layer.visible = False
    if not shown.visible:
        shown.visible = True


def refill(layer: Image, data: NDArray, options: dict[str, Any]) -> None:
    """Replace the map of a layer, in place."""
    layer.metadata = options["metadata"]
    layer.data = data
    layer.scale, layer.translate = options["scale"], options["translate"]
    if layer.colormap.name != options["colormap"]["name"]:
        layer.colormap = options["colormap"]
    layer.contrast_limits_range = layer.contrast_limits = options["contrast_limits"]
    layer.name = options["name"]


def show_image(viewer: Viewer, number: int, which: str) -> Layer | None:
    """Show one of the moving, fixed and warped images and hide the two others; None if it is not
    open.
    """
    layers = {name: image_layer(viewer, number, name) for name in IMAGES}
    if layers[which] is None:
        return None
    for name, layer in layers.items():
        if layer is not None:
            layer.visible = name == which
            # a blend ends; it would be half transparent over nothing
            layer.opacity = 1.0
    return layers[which]


def image_layer(viewer: Viewer, number: int, which: str) -> Layer | None:
    """The layer of a registration's moving, fixed or warped image; None if it is not open."""
    return layer_of(
        viewer, open_registrations(viewer)[number], number, "after" if which == "warped" else which
    )


def layer_of(viewer: Viewer, registration: Registration, number: int, which: str) -> Image | None:
    """The layer of a registration's "fixed", "moving" or warped ("after") image; None if it is not
    open.
    """
    if which == "after":
        return next(iter(layers_of_registration(viewer, number, "warped")), None)
    own = getattr(registration.pair, which).values
    for layer in reversed(viewer.layers):
        if layer._type_string == "image" and tag(layer, "role") != "comparison":
            volume = tag(layer, "volume")
            values = layer.data if volume is None else volume.values
            if isinstance(values, np.ndarray) and _voxels(values) == _voxels(own):
                return layer
    return None


def opacity_of(layers: list[Layer], value: float | None = None) -> float:
    """The opacity of some layers; set it first, if a value is given."""
    for layer in layers:
        if value is not None:
            layer.opacity = value
    return float(layers[0].opacity) if layers else 1.0


def spacing_of(viewer: Viewer, number: int) -> float | None:
    """Mm between the nodes of a registration's deformation grid; None without one."""
    grids = layers_of_registration(viewer, number, "grid") or layers_of_registration(
        viewer, number, "arrows"
    )
    return float(grids[0].metadata[KEY]["spacing"]) if grids else None


def direction_and_stride(layer: Layer) -> tuple[str, int]:
    """Direction and stride of an expert map's layer."""
    expert_map = tag(layer, "expert_map")
    return expert_map.direction or "", expert_map.stride


def _voxels(values: NDArray) -> tuple[int, str, list[tuple[int, int]]]:
    """Identifies the memory of an array, however its axes are permuted or flipped."""
    steps = [
        (count, stride)
        for count, stride in zip(values.shape, values.strides, strict=True)
        if count > 1
    ]
    first = values.__array_interface__["data"][0] + sum(
        min(0, (count - 1) * stride) for count, stride in steps
    )
    return first, values.dtype.str, sorted((count, abs(stride)) for count, stride in steps)


KEYS = {
    "moving": "Shift+M",
    "fixed": "Shift+F",
    "expert_map": "Shift+E",
    "direction": "Shift+D",
    "head": "Shift+H",
    "grid": "Shift+G",
    "jacobian": "Shift+J",
}
NONE_OPEN = "No registration is open: register a pair first, or open a registration folder."


def bind_keys(viewer: Viewer) -> None:
    """Bind the keys of this plugin in a viewer; a second call changes nothing."""
    for action, key in KEYS.items():
        viewer.bind_key(key, _ACTIONS[action], overwrite=True)


def with_key(text: str, action: str) -> str:
    """A tooltip with its shortcut: ``Next head (Shift+H)``."""
    return f"{text} ({KEYS[action]})"


def _on_current_registration(
    action: Callable[[Viewer, int, Registration], str],
) -> Callable[[Viewer], None]:
    """Apply an action to the current registration, and show its message in the status bar."""

    def pressed(viewer: Viewer) -> None:
        found = current(viewer)
        viewer.status = NONE_OPEN if found is None else action(viewer, *found)

    pressed.__doc__ = action.__doc__
    return pressed


def _toggle_image(which: str) -> Callable[[Viewer, int, Registration], str]:
    """Toggle between the warped image and another one."""

    def action(viewer: Viewer, number: int, registration: Registration) -> str:
        warped = image_layer(viewer, number, "warped")
        next_image = which if warped is not None and warped.visible else "warped"
        layer = show_image(viewer, number, next_image)
        if layer is None:
            return f"#{number}: the {next_image} image is not open."
        return f"#{number}: the {next_image} image, {layer.name}"

    action.__doc__ = f"SHMoAReg: toggle between the warped and the {which} image."
    return action


def _next_map(viewer: Viewer, number: int, registration: Registration) -> str:
    """SHMoAReg: next expert map."""
    return _status(next_expert_map(viewer, number), f"#{number}: no expert map")


def _next_direction(viewer: Viewer, number: int, registration: Registration) -> str:
    """SHMoAReg: expert map of the next direction."""
    return _status(next_direction(viewer, number), f"#{number} has no expert maps.")


def _next_head(viewer: Viewer, number: int, registration: Registration) -> str:
    """SHMoAReg: next attention head."""
    return _status(next_head(viewer, number), f"#{number} has no attention heads to choose from.")


def _toggle_role(role: str, name: str) -> Callable[[Viewer, int, Registration], str]:
    """Show or hide the layers in a role."""

    def action(viewer: Viewer, number: int, registration: Registration) -> str:
        on = not is_shown(viewer, number, role)
        layers = show_role(viewer, number, role, on)
        if not layers:
            return f"#{number} has no layer of the {name} (it was removed)."
        return f"#{number}: {name} {'shown' if on else 'hidden'}"

    action.__doc__ = f"SHMoAReg: show or hide the {name}."
    return action


def _status(layer: Layer | None, otherwise: str) -> str:
    return otherwise if layer is None else f"{layer.name} is shown"


_ACTIONS = {
    "moving": _on_current_registration(_toggle_image("moving")),
    "fixed": _on_current_registration(_toggle_image("fixed")),
    "expert_map": _on_current_registration(_next_map),
    "direction": _on_current_registration(_next_direction),
    "head": _on_current_registration(_next_head),
    "grid": _on_current_registration(_toggle_role("grid", "deformation grid")),
    "jacobian": _on_current_registration(_toggle_role("jacobian", "Jacobian")),
}
