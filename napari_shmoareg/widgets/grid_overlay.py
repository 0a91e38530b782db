"""The deformation grid follows the slider: it is drawn anew on every slice that is shown."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.widgets.deformation import SPACING, arrows, grid_lines, longest
from napari_shmoareg.widgets.placement import AXES, KEY, UNITS, tag, to_viewer
from napari_shmoareg.widgets.scenes import itself
from napari_shmoareg.widgets.units import ASIDE, mm_per_unit, point_of, shown_axes

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Vectors

    from napari_shmoareg.analysis.scene import Scene

WAIT = 40  # ms at least between two drawings while the slider moves
LINE, ARROW = 0.5, 0.9  # mm; on the screen at least so many pixels:
LINE_PIXELS, ARROW_PIXELS = 1.3, 2.2
LENGTH = "length (mm)"
COLOUR = "#ffe066"

_followers: weakref.WeakKeyDictionary[Viewer, Follower] = weakref.WeakKeyDictionary()


def grid_layers(scene: Scene, number: int) -> list[tuple[NDArray, dict[str, Any], str]]:
    """The displacement as arrows, and the deformation grid above it: hidden layers of the middle axial slice."""
    size = layer_scale(scene)
    at = float(to_viewer(scene.pair.fixed.grid.centre)[0])
    lines = grid_lines(scene, 0, at)
    segments, length = arrows(scene, 0, at)
    most = longest(scene)
    shared = {"scale": (size,) * 3, "units": UNITS, "axis_labels": AXES, "visible": False}
    kept = {"scene": scene, "number": number, "spacing": SPACING}
    return [
        (
            segments / size,
            shared
            | {
                "name": f"#{number} displacement",
                "metadata": {KEY: kept | {"role": "arrows", "longest": most}},
                "vector_style": "arrow",
                "edge_width": ARROW / size,
                "features": {LENGTH: length},
                "edge_color": LENGTH,
                "edge_colormap": "turbo",
                "edge_contrast_limits": (0.0, most),
                "opacity": 1.0,
            },
            "vectors",
        ),
        (
            lines / size,
            shared
            | {
                "name": f"#{number} deformation grid",
                "metadata": {KEY: kept | {"role": "grid"}},
                "vector_style": "line",
                "edge_width": LINE / size,
                "edge_color": COLOUR,
                "opacity": 0.9,
            },
            "vectors",
        ),
    ]


def layer_scale(scene: Scene) -> float:
    """Mm per unit of a grid's layer: the coarsest spacing of the fixed image.

    The same along all axes, or lines would be thick in one direction; and the coarsest, as the slider
    of a viewer steps by the finest of its layers.
    """
    return max(scene.pair.fixed.grid.spacing)


def attach(viewer: Viewer) -> Follower:
    """Let the grids of a viewer follow its slider from now on, those that are added later too.

    Parameters
    ----------
    viewer : Viewer
        Is not kept alive; a second call changes nothing.
    """
    viewer = itself(viewer)
    if viewer not in _followers:
        _followers[viewer] = Follower(viewer)
    return _followers[viewer]


def set_spacing(viewer: Viewer, spacing: float, number: int | None = None) -> None:
    """Draw the grids and arrows (of one registration) with so many mm between their nodes."""
    for layer in _overlays(itself(viewer)):
        if number is None or tag(layer, "number") == number:
            layer.metadata[KEY]["spacing"] = float(spacing)
    attach(viewer).draw()


class Follower:
    """Draws the deformation grids and arrows of a viewer on the slice that is shown, as far as they are visible.

    Parameters
    ----------
    viewer : Viewer
        Held weakly.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = weakref.ref(viewer)
        self._drawn: weakref.WeakKeyDictionary[Vectors, tuple[Any, ...]] = weakref.WeakKeyDictionary()
        self._soon = _throttled(weakref.WeakMethod(self.draw))
        for name in ("point", "order", "ndisplay", "units"):
            getattr(viewer.dims.events, name).connect(self._changed)
        viewer.scene.camera.events.zoom.connect(self._changed)
        viewer.layers.events.inserted.connect(self._inserted)
        for layer in _overlays(viewer):
            layer.events.visible.connect(self._changed)
        self.draw()

    def draw(self) -> None:
        """Draw what is visible and not drawn yet."""
        viewer = self._viewer()
        if viewer is None or viewer.dims.ndim < 3:
            return
        for layer in _overlays(viewer):
            if not layer.visible:
                continue
            planes = _planes(viewer)
            wanted = (planes, viewer.dims.ndisplay, tag(layer, "spacing"))
            if self._drawn.get(layer) != wanted:
                self._drawn[layer] = wanted
                if planes:
                    _redraw(layer, planes, flat=viewer.dims.ndisplay == 2)
                else:
                    from napari.utils.notifications import show_warning

                    show_warning(f"'{layer.name}' is not drawn: {ASIDE}")
            _thicken(layer, viewer.scene.camera.zoom / mm_per_unit(viewer))

    def _changed(self, event: Any = None) -> None:
        viewer = self._viewer()
        if viewer is not None and any(layer.visible for layer in _overlays(viewer)):
            self._soon()

    def _inserted(self, event: Any) -> None:
        if tag(event.value, "role") in ("grid", "arrows"):
            event.value.events.visible.connect(self._changed)
            self._changed()


def _overlays(viewer: Viewer) -> list[Vectors]:
    return [layer for layer in viewer.layers if tag(layer, "role") in ("grid", "arrows")]


def _planes(viewer: Viewer) -> tuple[tuple[int, float], ...]:
    """Axis and place (mm) of the slice that is shown; in 3D of the three through the sliders' point.

    None where fewer than two of the axes S, A, R are shown.
    """
    shown, point = shown_axes(viewer), point_of(viewer)
    if len(shown) < 2:
        return ()
    return tuple((axis, float(point[axis])) for axis in range(3) if viewer.dims.ndisplay == 3 or axis not in shown)


def _redraw(layer: Vectors, planes: tuple[tuple[int, float], ...], *, flat: bool) -> None:
    scene, spacing = tag(layer, "scene"), tag(layer, "spacing")
    size = layer_scale(scene)
    if tag(layer, "role") == "grid":
        layer.data = np.concatenate([grid_lines(scene, axis, at, spacing, flat=flat) for axis, at in planes]) / size
        return
    drawn = [arrows(scene, axis, at, spacing, flat=flat) for axis, at in planes]
    layer.data = np.concatenate([segments for segments, _ in drawn]) / size
    layer.features = {LENGTH: np.concatenate([length for _, length in drawn])}
    layer.edge_color = LENGTH
    layer.edge_contrast_limits = (0.0, tag(layer, "longest"))


def _thicken(layer: Vectors, zoom: float) -> None:
    """Lines thinner than a pixel would be drawn as dots; the zoom in pixels per mm."""
    thin, pixels = (LINE, LINE_PIXELS) if tag(layer, "role") == "grid" else (ARROW, ARROW_PIXELS)
    wanted = max(thin, pixels / zoom) / layer_scale(tag(layer, "scene"))
    if abs(layer.edge_width / wanted - 1) > 0.1:
        layer.edge_width = wanted


def _throttled(draw: weakref.WeakMethod) -> Any:
    """The method at most every `WAIT` ms; at once where there is no window."""
    from qtpy.QtWidgets import QApplication
    from superqt.utils import qthrottled

    def call() -> None:
        method = draw()
        if method is not None:
            method()

    return call if QApplication.instance() is None else qthrottled(call, timeout=WAIT)
