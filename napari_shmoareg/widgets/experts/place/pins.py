"""Places that are kept to be compared: a layer of numbered points."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.landmarks.layers import COLOURS, points_of
from napari_shmoareg.widgets.placement import AXES, KEY, tag, to_viewer
from napari_shmoareg.widgets.scenes import scenes
from napari_shmoareg.widgets.units import lengths, mm_per

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer, Points

    from napari_shmoareg.analysis.scene import Scene

MOST = 5
PINS = COLOURS[:MOST]
SIZE = 1 / 40  # of the fixed image's extent: a point's diameter
OWN = ("places", "token_box", "attention")  # roles of layers that go with their scene, and do not keep it open
TOO_MANY = f"There are {MOST} pins already, the most that can be told apart. Remove one first."


def layer_of_place(viewer: Viewer, scene: Scene | None, role: str) -> Layer | None:
    """The layer of a scene in one of the roles `OWN`; None where there is none."""
    return next((layer for layer in viewer.layers if tag(layer, "role") == role and scene_of(layer) is scene), None)


def scene_of(layer: Layer) -> Scene | None:
    """The scene that a layer of ours goes with, as long as it lives."""
    held = tag(layer, "of")
    return None if held is None else held()


def about(scene: Scene, role: str) -> dict[str, dict[str, object]]:
    """Metadata of a layer that goes with a scene.

    Held weakly, and not under "scene": else the layer itself would keep the registration open.
    """
    return {KEY: {"role": role, "of": weakref.ref(scene)}}


def drop_orphans(viewer: Viewer) -> None:
    """Take away what belongs to registrations that were closed."""
    opened = list(scenes(viewer).values())
    for layer in [layer for layer in viewer.layers if tag(layer, "role") in OWN]:
        gone = not any(scene_of(layer) is scene for scene in opened)
        if gone and layer in viewer.layers:  # a panel that listens may have been first
            viewer.layers.remove(layer)


def pins_of(viewer: Viewer, scene: Scene) -> NDArray[np.float64]:
    """The places that are pinned, (n, 3), mm RAS."""
    return points_of(layer_of_place(viewer, scene, "places"))  # type: ignore[arg-type]


def pin(viewer: Viewer, number: int, scene: Scene, point: ArrayLike) -> Points:
    """Keep a place, mm RAS; makes the layer, called ``#1 places``, where there is none.

    Raises
    ------
    InputError
        If there are five already.
    """
    points = pins_of(viewer, scene)
    if len(points) >= MOST:
        raise InputError(TOO_MANY)
    layer = layer_of_place(viewer, scene, "places") or _add_layer(viewer, number, scene)
    _put(layer, np.concatenate([points, np.reshape(point, (1, 3))]))  # type: ignore[arg-type]
    return layer  # type: ignore[return-value]


def unpin(viewer: Viewer, scene: Scene, index: int) -> None:
    """Let a place go; the others are numbered anew, and the layer goes with the last."""
    layer = layer_of_place(viewer, scene, "places")
    if layer is None:
        return
    points = np.delete(pins_of(viewer, scene), index, axis=0)
    if len(points):
        _put(layer, points)  # type: ignore[arg-type]
    else:
        viewer.layers.remove(layer)


def dress(layer: Points) -> None:
    """Number the points in their order, each in its colour; those beyond the fifth stay grey."""
    numbers = np.arange(1, len(layer.data) + 1)
    if list(layer.features.get("pin", ())) == list(numbers):
        return
    layer.features = {"pin": numbers}
    if len(numbers):
        layer.face_color = [PINS[n - 1] if n <= MOST else "#808080" for n in numbers]


def _put(layer: Points, points: NDArray[np.float64]) -> None:
    placed = [layer.world_to_data(p) for p in to_viewer(points) / mm_per(layer.units)]
    layer.selected_data = set()
    layer.data = np.reshape(placed, (-1, 3))
    dress(layer)


def _add_layer(viewer: Viewer, number: int, scene: Scene) -> Points:
    """On the steps of the other layers: others would make the sliders' own finer."""
    from napari.layers import Points

    grid = scene.pair.fixed.grid
    step = tuple(float(v) for v in viewer.layers.extent.step[-3:])
    units = lengths(viewer.layers.units)
    extent = float(np.ptp(grid.corners(), axis=0).max()) / mm_per(units)
    layer = Points(
        np.zeros((0, 3)),
        ndim=3,
        name=f"#{number} places",
        size=SIZE * extent / step[-1],
        scale=step,
        symbol="disc",
        border_color="black",
        border_width=0.08,
        features={"pin": np.zeros(0, dtype=int)},
        text={"string": "{pin}", "size": 9, "color": "black", "anchor": "center"},
        units=units,
        axis_labels=AXES,
        metadata=about(scene, "places"),
    )
    active = viewer.layers.selection.active
    viewer.add_layer(layer)
    viewer.layers.selection.active = active
    return layer
