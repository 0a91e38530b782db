"""Landmarks as two Points layers, numbered and coloured alike, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.widgets.placement import AXES, KEY, UNITS, tag, to_viewer

if TYPE_CHECKING:
    from napari import Viewer
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
                units=UNITS,
                axis_labels=AXES,
                metadata={KEY: {"role": f"landmarks_{side}"}},
            )
            viewer.add_layer(layer)
        found[side] = layer
    return found


def points_of(layer: Points | None) -> NDArray[np.float64]:
    """The points of a layer, (n, 3) mm RAS."""
    if layer is None or not len(layer.data):
        return np.zeros((0, 3))
    return to_viewer([layer.data_to_world(point) for point in layer.data])


def set_points(layer: Points, points: ArrayLike) -> None:
    """Replace a layer's points by others, (n, 3) mm RAS."""
    placed = [layer.world_to_data(point) for point in to_viewer(np.reshape(points, (-1, 3)))]
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


def centre_on(viewer: Viewer, point: ArrayLike) -> None:
    """Bring a place, mm RAS, into the slice and to the middle of the canvas."""
    place = to_viewer(point)
    viewer.dims.point = tuple(float(v) for v in place)
    shown = [float(place[axis]) for axis in viewer.dims.displayed]
    viewer.scene.camera.center = tuple([0.0, *shown][-3:])


def _step_and_size(viewer: Viewer) -> tuple[tuple[float, ...], float]:
    """Voxels and extent of what is shown, mm: points on other steps would make the sliders' own finer."""
    if not len(viewer.layers):
        return (1.0, 1.0, 1.0), 300.0
    low, high = viewer.layers.extent.world[:, -3:]
    return tuple(float(v) for v in viewer.layers.extent.step[-3:]), float(np.nanmax(high - low))
