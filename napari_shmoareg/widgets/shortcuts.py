"""Keys for what is done all the time, chosen among those that napari leaves free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_shmoareg.widgets import showing

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.analysis.scene import Scene

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


def bind(viewer: Viewer) -> None:
    """Bind the keys of this plugin in a viewer; a second call changes nothing."""
    for act, key in KEYS.items():
        viewer.bind_key(key, _ACTS[act], overwrite=True)


def says(text: str, act: str) -> str:
    """A tooltip with its shortcut: ``Next head (Shift+H)``."""
    return f"{text} ({KEYS[act]})"


def _on_current(act: Callable[[Viewer, int, Scene], str]) -> Callable[[Viewer], None]:
    """Of an act on a registration a key's act: on the selected or the newest one, and said in the status bar."""

    def pressed(viewer: Viewer) -> None:
        found = showing.current(viewer)
        viewer.status = NONE_OPEN if found is None else act(viewer, *found)

    pressed.__doc__ = act.__doc__
    return pressed


def _against(which: str) -> Callable[[Viewer, int, Scene], str]:
    """Change between the warped image and another one."""

    def act(viewer: Viewer, number: int, scene: Scene) -> str:
        warped = showing.image_layer(viewer, number, "warped")
        turn = which if warped is not None and warped.visible else "warped"
        layer = showing.show_image(viewer, number, turn)
        if layer is None:
            return f"#{number}: the {turn} image is not open."
        return f"#{number}: the {turn} image, {layer.name}"

    act.__doc__ = f"SHMoAReg: change between the warped and the {which} image."
    return act


def _next_map(viewer: Viewer, number: int, scene: Scene) -> str:
    """SHMoAReg: next expert map."""
    return _told(showing.next_expert_map(viewer, number), f"#{number}: no expert map")


def _next_direction(viewer: Viewer, number: int, scene: Scene) -> str:
    """SHMoAReg: expert map of the next direction."""
    return _told(showing.next_direction(viewer, number), f"#{number} has no expert maps.")


def _next_head(viewer: Viewer, number: int, scene: Scene) -> str:
    """SHMoAReg: next attention head."""
    return _told(showing.next_head(viewer, number), f"#{number} has no attention heads to choose from.")


def _switched(role: str, name: str) -> Callable[[Viewer, int, Scene], str]:
    """Show or hide what has a role."""

    def act(viewer: Viewer, number: int, scene: Scene) -> str:
        on = not showing.is_shown(viewer, number, role)
        layers = showing.show_role(viewer, number, role, on)
        if not layers:
            return f"#{number} has no layer of the {name} (it was removed)."
        return f"#{number}: {name} {'shown' if on else 'hidden'}"

    act.__doc__ = f"SHMoAReg: show or hide the {name}."
    return act


def _told(layer: Layer | None, otherwise: str) -> str:
    return otherwise if layer is None else f"{layer.name} is shown"


_ACTS = {
    "moving": _on_current(_against("moving")),
    "fixed": _on_current(_against("fixed")),
    "expert_map": _on_current(_next_map),
    "direction": _on_current(_next_direction),
    "head": _on_current(_next_head),
    "grid": _on_current(_switched("grid", "deformation grid")),
    "jacobian": _on_current(_switched("jacobian", "Jacobian")),
}
