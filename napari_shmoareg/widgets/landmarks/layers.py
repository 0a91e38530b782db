"""Landmarks as two Points layers, numbered and coloured alike, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.widgets.placement import AXES, KEY, tag, to_viewer
from napari_shmoareg.widgets.units import go_to, lengths, mm_per, mm_per_unit

if TYPE_CHECKING:
    from napari import Viewer
    from napari.components import LayerList
    from napari.layers import Points

    from napari_shmoareg.analysis.scene import Scene

SIDES = ("fixed", "moving")
SYMBOLS = {"fixed": "disc", "moving": "cross"}
COLOURS = ("#ffb000", "#00c2ff", "#ff5d8f", "#7bd148", "#c58bff", "#ff7a1a", "#29d3a5", "#f4f06a")
SIZE = 1 / 90  # of what the viewer shows: a point's diameter


@dataclass(frozen=True, eq=False)
class Distances:
    """Between the two points of each pair, mm, (n,) each; NaN where there is no registration.

    Attributes
    ----------
    before : array
        As the images are filed: fixed point to moving point.
    affine, after : array
        From where the affine, or the whole registration, takes the fixed point, to the moving point: the target
        registration error.
    """

    before: NDArray[np.float64]
    affine: NDArray[np.float64]
    after: NDArray[np.float64]


def measure(fixed: ArrayLike, moving: ArrayLike, scene: Scene | None) -> Distances:
    """Distances of pairs of points, both (n, 3), mm RAS."""
    x, y = np.reshape(fixed, (-1, 3)).astype(float), np.reshape(moving, (-1, 3)).astype(float)
    before = np.linalg.norm(x - y, axis=1)
    if scene is None or not len(x):
        unknown = np.full(len(x), np.nan)
        return Distances(before, unknown, unknown)
    from napari_shmoareg.geometry import Transform

    return Distances(before, Transform(scene.affine).distance(x, y), scene.transform.distance(x, y))


def landmark_layer(viewer: Viewer, side: str) -> Points | None:
    """The layer with the landmarks of the "fixed" or the "moving" image."""
    return next((layer for layer in viewer.layers if tag(layer, "role") == f"landmarks_{side}"), None)


def add_landmark_layers(viewer: Viewer) -> dict[str, Points]:
    """The two layers; made where there are none."""
    from napari.layers import Points

    found = {}
    step, shown = _step_and_size(viewer)
    for side in SIDES:
        layer = landmark_layer(viewer, side)
        if layer is None:
            layer = Points(
                np.zeros((0, 3)),
                ndim=3,
                name=f"landmarks ({side})",
                size=SIZE * shown / step[-1],
                scale=step,
                symbol=SYMBOLS[side],
                border_color="black",
                border_width=0.05,
                features={"pair": np.zeros(0, dtype=int)},
                text={"string": "{pair}", "size": 10, "color": "white", "anchor": "upper_left"},
                units=lengths(viewer.layers.units),
                axis_labels=AXES,
                metadata={KEY: {"role": f"landmarks_{side}"}},
            )
            viewer.add_layer(layer)
        found[side] = layer
    if _follow_units not in viewer.layers.events.inserted.callbacks:
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(_follow_units, position="last")
    return found


def points_of(layer: Points | None) -> NDArray[np.float64]:
    """The points of a layer, (n, 3) mm RAS."""
    if layer is None or not len(layer.data):
        return np.zeros((0, 3))
    return to_viewer([layer.data_to_world(point) for point in layer.data]) * mm_per(layer.units)


def set_points(layer: Points, points: ArrayLike) -> None:
    """Replace a layer's points by others, (n, 3) mm RAS."""
    placed = [layer.world_to_data(p) for p in to_viewer(np.reshape(points, (-1, 3))) / mm_per(layer.units)]
    layer.selected_data = set()
    layer.data = np.reshape(placed, (-1, 3))
    dress(layer)


def dress(layer: Points) -> None:
    """Number the points in their order, and give each pair its colour."""
    numbers = np.arange(1, len(layer.data) + 1)
    if list(layer.features.get("pair", ())) == list(numbers):
        return
    layer.features = {"pair": numbers}
    if len(numbers):
        layer.face_color = [COLOURS[(n - 1) % len(COLOURS)] for n in numbers]


def mend_pairs(viewer: Viewer) -> int:
    """Drop points whose partner was deleted while no panel looked on: a gap in the other layer's numbers tells.

    Returns
    -------
    int
        How many were dropped.
    """
    layers = [layer for layer in (landmark_layer(viewer, side) for side in SIDES) if layer is not None]
    if len(layers) < len(SIDES):
        return 0
    numbers = [_rising_numbers(layer) for layer in layers]
    dropped = 0
    for layer, mine, others in zip(layers, numbers, numbers[::-1], strict=True):
        lone = [n for n, number in enumerate(mine) if number not in others and number < max(others, default=0)]
        drop_points(layer, lone)
        dropped += len(lone)
    return dropped


def drop_points(layer: Points, indices: list[int]) -> None:
    """Delete points, and number the others anew."""
    if indices:
        layer.selected_data = set()
        layer.remove(indices)
    dress(layer)


def centre_on(viewer: Viewer, point: ArrayLike) -> None:
    """Bring a place, mm RAS, into the slice and to the middle of the canvas."""
    place = to_viewer(point)
    go_to(viewer, place)
    world = (*viewer.dims.point[:-3], *(place / mm_per_unit(viewer)))
    shown = [float(world[axis]) for axis in viewer.dims.displayed]
    viewer.scene.camera.center = tuple([0.0, *shown][-3:])


def _follow_units(event: Any) -> None:
    """Give the landmarks the units of the other layers: napari takes a click for one in the layer's own."""
    layers: LayerList = event.source
    ours = [layer for layer in layers if str(tag(layer, "role")).startswith("landmarks_")]
    others = [layer for layer in layers if layer not in ours]
    wanted = lengths(layers.get_extent(others).units if others else None)
    for layer in ours:
        _in_units(layer, wanted)


def _in_units(layer: Points, units: Any) -> None:
    """Say a layer's place in other units."""
    ratio = mm_per(layer.units) / mm_per(units)
    if ratio == 1:
        return
    scale, translate = np.asarray(layer.scale) * ratio, np.asarray(layer.translate) * ratio
    if ratio < 1:  # either way what is shown is for a moment too large, not too small, so that the sliders stay
        layer.units = units
    layer.scale, layer.translate = scale, translate
    layer.units = units


def _rising_numbers(layer: Points) -> list[float]:
    """The numbers of a layer's points as far as they rise; points added since then have others, or none."""
    rising: list[float] = []
    for number in np.asarray(layer.features.get("pair", ()), dtype=float):
        if not number > (rising[-1] if rising else 0):
            break
        rising.append(float(number))
    return rising


def _step_and_size(viewer: Viewer) -> tuple[tuple[float, ...], float]:
    """Voxels and extent of what is shown, mm: points on other steps would make the sliders' own finer."""
    if not len(viewer.layers):
        return (1.0, 1.0, 1.0), 300.0
    low, high = viewer.layers.extent.world[:, -3:]
    return tuple(float(v) for v in viewer.layers.extent.step[-3:]), float(np.nanmax(high - low))
