"""What a change moved, as two layers of a registration, made once and filled anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.widgets.placement import layer_options, tag
from napari_shmoareg.widgets.scenes import layers_of_scene
from napari_shmoareg.widgets.showing import show_experts, show_head, show_only

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.analysis.experiment import Effect
    from napari_shmoareg.analysis.importance import ImportanceRow
    from napari_shmoareg.analysis.scene import Scene
    from napari_shmoareg.geometry import Volume

ROLE = "what_if"
MOVED, DIFFERENCE = "moved", "difference"
NAMES = {MOVED: "what if: moved (mm)", DIFFERENCE: "what if: warped difference"}
LEAST = 0.01  # mm: a ramp that ends lower would show rounding
BLUE, RED = (0.13, 0.4, 0.85), (0.85, 0.15, 0.1)


def show_effect(viewer: Viewer, scene: Scene, number: int, effect: Effect) -> list[Image]:
    """Show how far a change moved everything, and (hidden) what it did to the warped image.

    Parameters
    ----------
    viewer : Viewer
    scene : Scene
    number : int
        Of the registration.
    effect : Effect

    Returns
    -------
    list of Image
        "moved" and "difference"; the layers of an effect shown before, as far as they are there.
    """
    top = ramp_end(effect)
    least = float(np.abs(effect.difference.values).max(initial=0)) or 1.0
    strongest = float(np.percentile(np.abs(effect.difference.values), 99.9)) or least
    shown = [
        _fill(viewer, scene, number, MOVED, effect.moved, (0.0, top), moved_colours()),
        _fill(viewer, scene, number, DIFFERENCE, effect.difference, (-strongest, strongest), difference_colours()),
    ]
    for layer in shown:
        layer.metadata["shmoareg"]["effect"] = str(effect.interventions[0])
    show_only(viewer, shown[0])
    return shown


def show_expert_of(viewer: Viewer, number: int, scene: Scene, row: ImportanceRow) -> None:
    """Show the map of the expert that a row of importance is about."""
    if row.part == "decoder":
        strides = [m.stride for m in scene.expert_maps if m.place.layer == row.layer]
        show_experts(viewer, number, row.direction, strides[0] if strides else None)
        return
    counts = [load for load in scene.times_chosen if load.place.layer == row.layer]
    wanted = next((load for load in counts if load.place.image == "fixed"), counts[0] if counts else None)
    if wanted is not None:
        show_head(viewer, number, wanted, row.expert)


def effect_layer(viewer: Viewer, number: int, which: str) -> Image | None:
    """The layer of a registration that shows "moved" or "difference", if it is there."""
    found = [layer for layer in layers_of_scene(viewer, number, ROLE) if tag(layer, "which") == which]
    return found[0] if found else None


def ramp_end(effect: Effect) -> float:
    """Mm at which the colours end: a round number at or above the 99.5th percentile of what moved."""
    reached = max(float(np.percentile(effect.moved.values, 99.5)), effect.max_mm / 4, LEAST)
    power = 10.0 ** np.floor(np.log10(reached))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= reached * (1 - 1e-9)))


def moved_colours() -> dict[str, Any]:
    """Clear where nothing moved, then violet to yellow."""
    colours = [(0.25, 0.0, 0.4, 0.0), (0.55, 0.1, 0.6, 0.55), (0.95, 0.45, 0.3, 0.8), (1.0, 0.95, 0.4, 1.0)]
    return {"colors": np.array(colours), "controls": np.array([0.0, 0.25, 0.6, 1.0]), "name": "moved"}


def difference_colours() -> dict[str, Any]:
    """Blue darker, red brighter with the change, clear where nothing changed."""
    sides = np.linspace(-1, 1, 17)
    colours = [(*(RED if side > 0 else BLUE), min(1.0, 1.3 * abs(side))) for side in sides]
    return {"colors": np.array(colours), "controls": (sides + 1) / 2, "name": "with minus without"}


def _fill(
    viewer: Viewer,
    scene: Scene,
    number: int,
    which: str,
    volume: Volume,
    limits: tuple[float, float],
    colours: dict[str, Any],
) -> Image:
    data, options = layer_options(volume, outside=0.0, scene=scene, number=number, role=ROLE, which=which)
    options["name"] = f"#{number} {NAMES[which]}"
    layer = effect_layer(viewer, number, which)
    if layer is None:
        options |= {"colormap": colours, "contrast_limits": limits, "rendering": "translucent", "opacity": 0.9}
        return viewer.add_image(_own(data), **options, visible=which == MOVED)
    layer.metadata = options["metadata"]
    layer.data = _own(data)
    layer.scale, layer.translate = options["scale"], options["translate"]
    layer.contrast_limits_range = layer.contrast_limits = limits
    return layer


def _own(data: NDArray) -> NDArray:
    return np.asarray(data, dtype=np.float32)
