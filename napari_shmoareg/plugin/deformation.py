"""The deformation on the shown slice of the viewer, as a grid of lines or as arrows.

Shows the map that pulls the moving image back, without the affine: the node at x of the fixed image
is drawn at x + d(x), where its value comes from.  Points are in mm along S, A, R, as in the viewer.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.plugin.placement import (
    AXES,
    AXES_HIDDEN,
    KEY,
    UNITS,
    mm_per_unit,
    point_of,
    shown_axes,
    tag,
    to_viewer,
)
from napari_shmoareg.plugin.registrations import unwrap

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Vectors

    from napari_shmoareg.registration.register import Registration


SPACING = 8.0  # mm between the lines
FINEST = 2.0  # mm: longer lines between nodes are drawn in pieces, so that they bend
Segments = NDArray[np.float64]


def grid_lines(
    registration: Registration, axis: int, at: float, spacing: float = SPACING, *, flat: bool = True
) -> Segments:
    """The deformed grid of one plane.

    Parameters
    ----------
    registration : Registration
    axis : int
        Axis across the plane: 0, 1, 2 for S, A, R (axial, coronal, sagittal).
    at : float
        Position of the plane, mm.
    spacing : float
        Between lines, mm.
    flat : bool
        Leave out the component across the plane, which a slice cannot show.

    Returns
    -------
    (N, 2, 3) array
        Start and extent of each line segment, mm; segments outside the fixed image are left out.
    """
    ticks = [_ticks(registration, a, spacing) for a in range(3)]
    parts = []
    for along in (a for a in range(3) if a != axis):
        run = list(ticks)
        run[axis], run[along] = np.array([at]), _pieces(ticks[along], spacing)
        nodes = np.stack(np.meshgrid(*run, indexing="ij"), -1)
        moved = nodes + _displacement(registration, nodes, axis if flat else None)
        inside = _inside(registration, nodes)
        first, last = np.moveaxis(moved, along, 0)[:-1], np.moveaxis(moved, along, 0)[1:]
        both = np.moveaxis(inside, along, 0)
        parts.append(np.stack([first, last - first], axis=-2)[both[:-1] & both[1:]])
    return np.concatenate(parts)


def arrows(
    registration: Registration, axis: int, at: float, spacing: float = SPACING, *, flat: bool = True
) -> tuple[Segments, NDArray]:
    """The displacement at the nodes of one plane.

    Parameters
    ----------
    registration, axis, at, spacing, flat
        As for `grid_lines`.

    Returns
    -------
    segments : (N, 2, 3) array
        Node and displacement, mm.
    length : (N,) array
        Length of the whole displacement, mm, including the component across the plane.
    """
    ticks = [_ticks(registration, a, spacing) for a in range(3)]
    ticks[axis] = np.array([at])
    nodes = np.stack(np.meshgrid(*ticks, indexing="ij"), -1)
    nodes = nodes[_inside(registration, nodes)]
    whole = _displacement(registration, nodes, None)
    shown = whole.copy()
    if flat:
        shown[:, axis] = 0
    return np.stack([nodes, shown], axis=1), np.linalg.norm(whole, axis=-1)


def arrow_limit(registration: Registration) -> float:
    """Upper end of the arrows' colours: the 99th percentile of the displacement, mm."""
    field = registration.transform.field
    if field is None:
        return 1.0
    step = max(1, round((field.vectors.size / 3 / 2e5) ** (1 / 3)))
    length = np.linalg.norm(field.vectors[::step, ::step, ::step], axis=-1)
    return max(float(np.percentile(length, 99)), 0.1)


def _ticks(registration: Registration, axis: int, spacing: float) -> NDArray[np.float64]:
    """Positions of the lines along an axis of the viewer, about the middle of the fixed image."""
    grid = registration.pair.fixed.grid
    along = to_viewer(grid.corners())[:, axis]
    middle = float(to_viewer(grid.centre)[axis])
    reach = int((along.max() - middle) / spacing)
    return np.asarray(middle + spacing * np.arange(-reach, reach + 1), dtype=np.float64)


def _pieces(ticks: NDArray, spacing: float) -> NDArray[np.float64]:
    """Add positions between the nodes, at most about `FINEST` apart."""
    parts = max(1, round(spacing / FINEST))
    return np.linspace(ticks[0], ticks[-1], parts * (len(ticks) - 1) + 1)


def _inside(registration: Registration, nodes: NDArray) -> NDArray[np.bool_]:
    grid = registration.pair.fixed.grid
    index = grid.to_index(to_viewer(nodes))
    return np.all((index >= -0.5) & (index <= np.array(grid.shape) - 0.5), axis=-1)


def _displacement(
    registration: Registration, nodes: NDArray, without: int | None
) -> NDArray[np.float64]:
    """Displacement without the affine, (..., 3) mm S A R; one component can be left out."""
    field = registration.transform.field
    if field is None or not nodes.size:
        return np.zeros_like(nodes)
    vectors = np.array(to_viewer(field.at(to_viewer(nodes))))
    if without is not None:
        vectors[..., without] = 0
    return vectors


WAIT = 40  # minimum ms between two drawings while the slider moves
LINE, ARROW = 0.5, 0.9  # widths, mm
LINE_PIXELS, ARROW_PIXELS = 1.3, 2.2  # minimum widths on the screen
LENGTH = "length (mm)"
COLOUR = "#ffe066"

_followers: weakref.WeakKeyDictionary[Viewer, GridFollower] = weakref.WeakKeyDictionary()


def grid_layers(
    registration: Registration, number: int
) -> list[tuple[NDArray, dict[str, Any], str]]:
    """The displacement as arrows and the deformation grid, as hidden layers of the middle axial
    slice.
    """
    size = layer_scale(registration)
    at = float(to_viewer(registration.pair.fixed.grid.centre)[0])
    lines = grid_lines(registration, 0, at)
    segments, length = arrows(registration, 0, at)
    most = arrow_limit(registration)
    shared = {"scale": (size,) * 3, "units": UNITS, "axis_labels": AXES, "visible": False}
    metadata = {"registration": registration, "number": number, "spacing": SPACING}
    return [
        (
            segments / size,
            shared
            | {
                "name": f"#{number} displacement",
                "metadata": {KEY: metadata | {"role": "arrows", "arrow_limit": most}},
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
                "metadata": {KEY: metadata | {"role": "grid"}},
                "vector_style": "line",
                "edge_width": LINE / size,
                "edge_color": COLOUR,
                "opacity": 0.9,
            },
            "vectors",
        ),
    ]


def layer_scale(registration: Registration) -> float:
    """Mm per unit of a grid's layer: the coarsest spacing of the fixed image.

    It is the same along all axes, or lines would be thick in one direction, and the coarsest,
    because the slider of a viewer steps by the finest of its layers."""
    return max(registration.pair.fixed.grid.spacing)


def follow_slider(viewer: Viewer) -> GridFollower:
    """Have all deformation grids of a viewer follow its slider, also grids that are added later.

    Does not keep the viewer alive; a second call changes nothing.
    """
    viewer = unwrap(viewer)
    if viewer not in _followers:
        _followers[viewer] = GridFollower(viewer)
    return _followers[viewer]


def set_spacing(viewer: Viewer, spacing: float, number: int | None = None) -> None:
    """Draw the grids and arrows (of one registration) with a spacing in mm between their nodes."""
    for layer in _overlays(unwrap(viewer)):
        if number is None or tag(layer, "number") == number:
            layer.metadata[KEY]["spacing"] = float(spacing)
    follow_slider(viewer).draw()


class GridFollower:
    """Draws the visible deformation grids and arrows of a viewer on the shown slice.

    Parameters
    ----------
    viewer : Viewer
        Stored as a weak reference.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = weakref.ref(viewer)
        self._drawn: weakref.WeakKeyDictionary[Vectors, tuple[Any, ...]] = (
            weakref.WeakKeyDictionary()
        )
        self._soon = _throttled(weakref.WeakMethod(self.draw))
        for name in ("point", "order", "ndisplay", "units"):
            getattr(viewer.dims.events, name).connect(self._changed)
        viewer.scene.camera.events.zoom.connect(self._changed)
        viewer.layers.events.inserted.connect(self._inserted)
        for layer in _overlays(viewer):
            layer.events.visible.connect(self._changed)
        self.draw()

    def draw(self) -> None:
        """Draw the visible layers that are out of date."""
        viewer = self._viewer()
        if viewer is None or viewer.dims.ndim < 3:
            return
        for layer in _overlays(viewer):
            if not layer.visible:
                continue
            planes = _planes(viewer)
            requested = (planes, viewer.dims.ndisplay, tag(layer, "spacing"))
            if self._drawn.get(layer) != requested:
                self._drawn[layer] = requested
                if planes:
                    _redraw(layer, planes, flat=viewer.dims.ndisplay == 2)
                else:
                    from napari.utils.notifications import show_warning

                    show_warning(f"'{layer.name}' is not drawn: {AXES_HIDDEN}")
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
    """Axis and position (mm) of the shown slice; in 3D of the three slices through the sliders'
    point.

    Empty if fewer than two of the axes S, A, R are shown.
    """
    shown, point = shown_axes(viewer), point_of(viewer)
    if len(shown) < 2:
        return ()
    return tuple(
        (axis, float(point[axis]))
        for axis in range(3)
        if viewer.dims.ndisplay == 3 or axis not in shown
    )


def _redraw(layer: Vectors, planes: tuple[tuple[int, float], ...], *, flat: bool) -> None:
    registration, spacing = tag(layer, "registration"), tag(layer, "spacing")
    size = layer_scale(registration)
    if tag(layer, "role") == "grid":
        layer.data = (
            np.concatenate(
                [grid_lines(registration, axis, at, spacing, flat=flat) for axis, at in planes]
            )
            / size
        )
        return
    drawn = [arrows(registration, axis, at, spacing, flat=flat) for axis, at in planes]
    layer.data = np.concatenate([segments for segments, _ in drawn]) / size
    layer.features = {LENGTH: np.concatenate([length for _, length in drawn])}
    layer.edge_color = LENGTH
    layer.edge_contrast_limits = (0.0, tag(layer, "arrow_limit"))


def _thicken(layer: Vectors, zoom: float) -> None:
    """Widen thin lines, which would be drawn as dots; the zoom is in pixels per mm."""
    thin, pixels = (LINE, LINE_PIXELS) if tag(layer, "role") == "grid" else (ARROW, ARROW_PIXELS)
    width = max(thin, pixels / zoom) / layer_scale(tag(layer, "registration"))
    if abs(layer.edge_width / width - 1) > 0.1:
        layer.edge_width = width


def _throttled(draw: weakref.WeakMethod) -> Any:
    """The method at most every `WAIT` ms; at once without a window."""
    from qtpy.QtWidgets import QApplication
    from superqt.utils import qthrottled

    def call() -> None:
        method = draw()
        if method is not None:
            method()

    return call if QApplication.instance() is None else qthrottled(call, timeout=WAIT)
