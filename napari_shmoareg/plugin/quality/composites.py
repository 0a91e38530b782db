"""Comparison layers: blend, colours, checkerboard, swipe, difference and side by side.

Arrays are as the viewer shows them (S, A, R), on the fixed image's grid, intensities in [0, 1].
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from napari.utils.notifications import show_warning
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.placement import (
    AXES,
    AXES_HIDDEN,
    KEY,
    UNITS,
    layer_options,
    mm_per_unit,
    shown_axes,
    to_layer_geometry,
)
from napari_shmoareg.plugin.showing import layer_of
from napari_shmoareg.plugin.viewer_state import keep_view

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image, Layer, Vectors

    from napari_shmoareg.registration.register import Registration


STAGES = ("before", "affine", "after")  # the moving image as filed, after the affine, warped


@dataclass(frozen=True, eq=False)
class ImagePair:
    """The two images of a comparison.

    Attributes
    ----------
    fixed, other : (S, A, R) float32 array, 0 to 1
        The fixed image and the moving one at a stage, on the displayed grid of the fixed image.
        Ours: each on its own robust scale (`Intensity`), the moving one on the same at all stages,
        so that differences before and after are comparable; 0 outside the fixed field of view.
    spacing, origin : tuple of 3 float
        Voxel spacing and position of the first voxel, mm along S, A, R.
    """

    fixed: NDArray[np.float32]
    other: NDArray[np.float32]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]


def moving_at(registration: Registration, stage: str) -> Volume:
    """Return the moving image on the fixed grid: "before", after the "affine", or warped ("after").

    Interpolates the whole image, which takes seconds, except for "after".
    """
    if stage == "after":
        return registration.warped
    from napari_shmoareg.geometry import Transform, warp_volume

    matrix = np.eye(4) if stage == "before" else registration.affine
    return warp_volume(registration.pair.moving, registration.pair.fixed.grid, Transform(matrix))


def image_pair(registration: Registration, other: Volume) -> ImagePair:
    """Return the fixed image and a result of `moving_at`, scaled for comparison."""
    from napari_shmoareg.registration.intensity import Intensity

    pair = registration.pair
    geometry = to_layer_geometry(pair.fixed)
    fixed = Intensity.of(pair.fixed).scale(np.ascontiguousarray(geometry.data))
    moved = Intensity.of(pair.moving).scale(np.ascontiguousarray(to_layer_geometry(other).data))
    if geometry.copied:
        inside = np.ones(pair.fixed.values.shape, np.uint8)
        outside = to_layer_geometry(Volume(inside, pair.fixed.grid, is_labels=True)).data == 0
        fixed[outside] = moved[outside] = 0
    return ImagePair(fixed, moved, geometry.scale, geometry.translate)


def fill_checkerboard(
    out: NDArray[np.float32], images: ImagePair, tile: float, axes: Sequence[int]
) -> None:
    """Fill with alternating tiles of the two images, in place.

    Parameters
    ----------
    out : (S, A, R) float32 array
    images : ImagePair
    tile : float
        Edge length in mm.  Four tiles meet at the centre of the field of view.
    axes : sequence of int
        The displayed axes, along which the tiles alternate.
    """
    odd = np.zeros((1, 1, 1), dtype=np.int64)
    for axis in axes:
        count, spacing = out.shape[axis], images.spacing[axis]
        from_centre = (np.arange(count) - (count - 1) / 2) * spacing
        shape = [1, 1, 1]
        shape[axis] = count
        odd = odd + np.floor(from_centre / tile).astype(np.int64).reshape(shape)
    np.copyto(out, images.fixed)
    np.copyto(out, images.other, where=odd % 2 == 1)


def fill_swipe(
    out: NDArray[np.float32],
    images: ImagePair,
    edge: int,
    axis: int,
    rising: bool,
    previous: int | None = None,
) -> None:
    """Fill with the fixed image on one side of an edge and the moving image on the other, in place.

    Parameters
    ----------
    out : (S, A, R) float32 array
    images : ImagePair
    edge : int
        Index along `axis` of the first voxel beyond the edge.
    axis : int
        The axis displayed from left to right.
    rising : bool
        Whether the index increases to the right.  The fixed image is always on the left.
    previous : int or None
        The edge in `out`, so that only the part in between is written; None fills all.
    """
    low_side, high_side = (images.fixed, images.other) if rising else (images.other, images.fixed)
    if previous is None:
        spans = [(0, edge, low_side), (edge, out.shape[axis], high_side)]
    else:
        spans = [(previous, edge, low_side)] if edge > previous else [(edge, previous, high_side)]
    for start, stop, source in spans:
        part: list[slice] = [slice(None)] * 3
        part[axis] = slice(start, stop)
        out[tuple(part)] = source[tuple(part)]


def swipe_edge(count: int, position: float, rising: bool) -> int:
    """Return the index of the edge, with the fixed image on the share `position` at the left."""
    share = position if rising else 1 - position
    return round(share * count)


def swipe_lines(
    corner: NDArray[np.float64],
    size: NDArray[np.float64],
    shape: Sequence[int],
    shown: Sequence[int],
    at: float,
) -> NDArray[np.float64]:
    """Return the edge of a swipe with its handle, ``‹|›``, on every slice.

    Parameters
    ----------
    corner, size : (3,) array
        Start and extent of the field of view, mm along S, A, R.
    shape : sequence of int
        Its voxels.
    shown : sequence of int
        The displayed axes, the vertical and the horizontal one last.
    at : float
        Position of the edge along the horizontal axis, mm.

    Returns
    -------
    (N, 2, 3) array
        Start and extent of the line segments, mm.
    """
    up, across = shown[-2:]
    through = ({0, 1, 2} - {up, across}).pop()
    grip = HANDLE * size[across]
    parts = [((corner[up], at), (size[up], 0.0))]
    middle = corner[up] + size[up] / 2
    parts += [
        ((middle + end * grip, at + 0.6 * side * grip), (-end * grip, side * grip))
        for side in (-1, 1)
        for end in (-1, 1)
    ]
    slices = corner[through] + (np.arange(shape[through]) + 0.5) * size[through] / shape[through]
    lines = np.zeros((len(slices), len(parts), 2, 3))
    lines[..., 0, through] = slices[:, None]
    for n, (start, extent) in enumerate(parts):
        lines[:, n, 0, [up, across]] = start
        lines[:, n, 1, [up, across]] = extent
    return lines.reshape(-1, 2, 3)


def fill_difference(out: NDArray[np.float32], images: ImagePair) -> None:
    """Fill with the absolute difference, in place."""
    np.subtract(images.fixed, images.other, out=out)
    np.abs(out, out=out)


COMPUTED = ("checkerboard", "swipe", "difference")
SIDE_BY_SIDE = "side by side"
STAGE_NAMES = {"before": "moving as filed", "affine": "moving after affine", "after": "warped"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """The data of a comparison.

    Attributes
    ----------
    registration : Registration
    number : int
        Number of the registration in its viewer.
    mode : str
        "blend", "two colours", "checkerboard", "swipe", "difference" or "side by side".
    stage : str
        Stage of the moving image: "before", "affine" or "after".
    image_pair : ImagePair or None
        For the computed modes.
    extra : dict of name to (data, options)
        Layers missing in the viewer: "fixed", "before", "affine", "after".
    """

    registration: Registration
    number: int
    mode: str
    stage: str
    image_pair: ImagePair | None = None
    extra: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)


def prepare(
    registration: Registration,
    number: int,
    mode: str,
    stage: str,
    present: Collection[str],
    cache: MutableMapping[str, Volume],
) -> Prepared:
    """Compute the data of a comparison.  Takes seconds: for a worker thread.

    Parameters
    ----------
    registration : Registration
    number : int
    mode, stage : str
        As in `Prepared`.
    present : collection of str
        Those of "fixed" and "after" with a layer in the viewer.
    cache : mutable mapping of stage to Volume
        The moving images computed so far; new ones are added.
    """
    stages = (
        {stage, "after", "before" if stage == "after" else stage}
        if mode == SIDE_BY_SIDE
        else {stage}
    )
    for name in sorted(stages - cache.keys() - {"after"}):
        cache[name] = moving_at(registration, name)
    volumes = {
        name: registration.warped if name == "after" else cache[name] for name in sorted(stages)
    }
    if mode in COMPUTED:
        return Prepared(registration, number, mode, stage, image_pair(registration, volumes[stage]))
    extra = {}
    windows = _windows(registration)
    for name, volume in {"fixed": registration.pair.fixed, **volumes}.items():
        if name not in present:
            data, options = layer_options(
                volume, registration=registration, number=number, role="comparison"
            )
            options["contrast_limits"] = windows["fixed" if name == "fixed" else "moving"]
            extra[name] = data, options | {"name": f"#{number} {STAGE_NAMES.get(name, name)}"}
    return Prepared(registration, number, mode, stage, None, extra)


def _windows(registration: Registration) -> dict[str, tuple[float, float]]:
    """Return contrast limits for images without a layer."""
    from napari_shmoareg.plugin.layers import contrast

    fixed, moving = contrast(registration.pair.fixed, registration.pair.moving)
    return {"fixed": fixed, "moving": moving}


_AnyLayer = TypeVar("_AnyLayer", bound="Layer")
COLOURS = ("green", "magenta")  # of the fixed and of the other image


class Comparison:
    """A comparison shown in a viewer; the caller saves and restores the state of the viewer.

    Parameters
    ----------
    viewer : Viewer
    prepared : Prepared
    amount : float
        Share of the other image for a blend or two colours; edge length of a tile in mm; position
        of a swipe's edge, 0 to 1 from the left of the screen.
    """

    def __init__(self, viewer: Viewer, prepared: Prepared, amount: float) -> None:
        from napari.layers import Image

        self._viewer, self.prepared, self.amount = weakref.ref(viewer), prepared, amount
        self.images = {
            name: layer_of(viewer, prepared.registration, prepared.number, name)
            for name in ("fixed", "after")
        }
        fixed = self.images["fixed"]
        self._next = 0 if fixed is None else viewer.layers.index(fixed) + 1
        self.added: list[Layer] = []
        for name, (data, options) in prepared.extra.items():
            like = self.images["after"] if name != "fixed" else None
            if like is not None:
                options = options | {
                    "contrast_limits": like.contrast_limits,
                    "colormap": like.colormap,
                }
            self.images[name] = self._add(Image(data, **options))
        self.show()

    @property
    def viewer(self) -> Viewer:
        """The viewer, referenced weakly."""
        viewer = self._viewer()
        assert viewer is not None, "the viewer was deleted"
        return viewer

    def show(self) -> None:
        """Show the comparison."""

    def set_amount(self, amount: float) -> None:
        """Change the blending, the tiles or the edge."""
        self.amount = amount

    def end(self) -> None:
        """Remove the added layers."""
        with keep_view(self.viewer):
            for layer in self.added:
                if layer in self.viewer.layers:
                    self.viewer.layers.remove(layer)

    @property
    def is_complete(self) -> bool:
        """Whether all its layers are still in the viewer."""
        return all(layer in self.viewer.layers for layer in self._shown())

    def _shown(self) -> list[Layer]:
        fixed, other = self.images["fixed"], self.images[self.prepared.stage]
        return [layer for layer in (fixed, other) if layer is not None]

    def _add(self, layer: _AnyLayer) -> _AnyLayer:
        """Insert a layer directly above the fixed image."""
        with keep_view(self.viewer):
            self.viewer.layers.insert(self._next, layer)
        self._next += 1
        self.added.append(layer)
        return layer

    def _show_only(self, shown: list[Layer], *, overlays: bool) -> None:
        """Show only these images; with `overlays`, keep outlines, points, grids and arrows."""
        for layer in self.viewer.layers:
            filled = layer._type_string == "image" or (
                layer._type_string == "labels" and layer.contour == 0
            )
            if layer in shown:
                layer.visible = True
            elif filled or not overlays:
                layer.visible = False


class Overlay(Comparison):
    """Overlaid images: the upper one transparent, or each in its own colour."""

    def show(self) -> None:
        """Show both images."""
        fixed, other = self._pair()
        self._show_only([fixed, other], overlays=True)
        self._lower, self._upper = sorted((fixed, other), key=self.viewer.layers.index)
        coloured = self.prepared.mode == "two colours"
        if coloured:
            fixed.colormap, other.colormap = COLOURS
        self._lower.blending, self._upper.blending = (
            "translucent_no_depth",
            "additive" if coloured else "translucent",
        )
        self.set_amount(self.amount)

    def set_amount(self, amount: float) -> None:
        """Set the share of the other image: 0 shows only the fixed one, 1 only the other one."""
        super().set_amount(amount)
        fixed, other = self._pair()
        if self.prepared.mode == "two colours":
            fixed.opacity, other.opacity = min(1.0, 2 * (1 - amount)), min(1.0, 2 * amount)
            return
        self._lower.opacity = 1.0
        self._upper.opacity = amount if self._upper is other else 1 - amount

    def _pair(self) -> tuple[Image, Image]:
        fixed, other = self._shown()
        return fixed, other


class SideBySide(Comparison):
    """Fixed, moving (on the fixed grid) and warped image in separate cells with one camera."""

    def show(self) -> None:
        """Show the named cells in a row."""
        for layer in self._shown():
            layer.name_overlay.visible = True
            layer.opacity = 1.0
        self._show_only(self._shown(), overlays=False)
        camera, grid = self.viewer.scene.camera, self.viewer.canvas.grid
        centre, zoom = camera.center, camera.zoom
        fitted = []  # zoom that fits everything, without and with cells
        for enabled in (False, True):
            grid.stride, grid.shape, grid.enabled = 1, (1, -1), enabled
            self.viewer.reset_view()
            fitted.append(camera.zoom)
        camera.center, camera.zoom = centre, zoom * fitted[1] / fitted[0]

    def _shown(self) -> list[Layer]:
        return [layer for layer in self.images.values() if layer is not None]


DIFFERENCE_LIMITS = (0.0, 0.5)  # Ours: of intensities in [0, 1], the same before and after
EDGE_COLOUR = "#ffe066"
EDGE_PARTS = 250  # widths of the edge in the longest side of the field of view
HANDLE = 0.03  # size of the handle, as a share of the width of the field of view
GRAB_DISTANCE = 8.0  # screen pixels from the edge of a swipe within which it can be dragged


class Composite(Comparison):
    """Checkerboard, swipe or difference: one image computed from the two."""

    dragged = Signal(float)  # the dragged edge of a swipe, as an amount

    def show(self) -> None:
        """Add the layer."""
        from napari.layers import Image

        prepared, images = self.prepared, self.prepared.image_pair
        assert images is not None
        self._image_pair = images
        self._edge: int | None = None
        title = (
            f"|difference| {prepared.stage}"
            if prepared.mode == "difference"
            else f"{prepared.mode}, {STAGE_NAMES[prepared.stage]}"
        )
        self.layer = Image(
            np.zeros_like(images.fixed),
            name=f"#{prepared.number} {title}",
            scale=images.spacing,
            translate=images.origin,
            units=UNITS,
            axis_labels=AXES,
            contrast_limits=self._limits(),
            colormap="inferno" if prepared.mode == "difference" else "gray",
            metadata={
                KEY: {
                    "registration": prepared.registration,
                    "number": prepared.number,
                    "role": "comparison",
                    "stage": prepared.stage,
                }
            },
        )
        self.edge: Vectors | None = self._edge_layer() if prepared.mode == "swipe" else None
        self._fill()
        self._add(self.layer)
        if self.edge is not None:
            self._add(self.edge)
        self._show_only([self.layer], overlays=True)
        self.viewer.layers.selection.active = self.layer
        self._warn_if_hidden()
        for emitter in self._emitters():
            emitter.connect(self.follow)
        self.layer.mouse_drag_callbacks.append(self.drag)

    def end(self) -> None:
        """Remove the layer, and disconnect from the viewer."""
        for emitter in self._emitters():
            emitter.disconnect(self.follow)
        super().end()

    def set_amount(self, amount: float) -> None:
        """Change the tiles or the edge."""
        super().set_amount(amount)
        self._fill()
        self.layer.refresh(extent=False)

    def follow(self, event: Any = None) -> None:
        """Recompute for the displayed axes."""
        self._edge = None
        self.set_amount(self.amount)
        self._warn_if_hidden()

    def follow_window(self) -> None:
        """Take the contrast limits of the fixed image, except for a difference."""
        self.layer.contrast_limits = self._limits()

    def edge_at(self, position: ArrayLike) -> float:
        """Return the amount that moves the edge of a swipe to a world position."""
        axis, rising = self._horizontal_axis()
        point = np.asarray(position) * mm_per_unit(self.viewer)  # in the units of the layer
        share = (self.layer.world_to_data(point)[axis] + 0.5) / self.layer.data.shape[axis]
        return float(np.clip(share if rising else 1 - share, 0, 1))

    def drag(self, layer: Image, event: Any) -> Any:
        """Drag the edge of a swipe with the mouse."""
        if self.prepared.mode != "swipe" or self.viewer.dims.ndisplay != 2 or self._axes_hidden:
            return
        axis, _ = self._horizontal_axis()
        width = layer.data.shape[axis] * layer.scale[axis] / mm_per_unit(self.viewer)
        if (
            abs(self.edge_at(event.position) - self.amount) * width * self.viewer.scene.camera.zoom
            > GRAB_DISTANCE
        ):
            return
        layer.mouse_pan = False
        yield
        while event.type == "mouse_move":
            self.dragged.emit(self.edge_at(event.position))
            yield
        layer.mouse_pan = True

    def _shown(self) -> list[Layer]:
        return [self.layer]

    def _emitters(self) -> list[Any]:
        viewer = self.viewer
        return [
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
            viewer.scene.camera.events.orientation,
        ]

    @property
    def _axes_hidden(self) -> bool:
        """Whether too few of the axes S, A, R are displayed for tiles or an edge."""
        return self.prepared.mode != "difference" and len(shown_axes(self.viewer)) < 2

    def _warn_if_hidden(self) -> None:
        if self._axes_hidden:
            show_warning(f"The {self.prepared.mode} shows only the fixed image: {AXES_HIDDEN}")

    def _horizontal_axis(self) -> tuple[int, bool]:
        """Return the horizontal axis of the screen, and whether it increases to the right."""
        return shown_axes(self.viewer)[-1], str(self.viewer.scene.camera.orientation[-1]) == "right"

    def _fill(self) -> None:
        out, mode = self.layer.data, self.prepared.mode
        if mode == "difference":
            fill_difference(out, self._image_pair)
        elif self._axes_hidden:
            np.copyto(out, self._image_pair.fixed)
        elif mode == "checkerboard":
            fill_checkerboard(out, self._image_pair, self.amount, shown_axes(self.viewer))
        else:
            axis, rising = self._horizontal_axis()
            edge = swipe_edge(out.shape[axis], self.amount, rising)
            fill_swipe(out, self._image_pair, edge, axis, rising, self._edge)
            self._edge = edge
            if self.edge is not None:
                shown = shown_axes(self.viewer)
                spacing = np.array(self._image_pair.spacing)
                corner = self._image_pair.origin - spacing / 2
                at = corner[axis] + edge * spacing[axis]
                lines = swipe_lines(corner, out.shape * spacing, out.shape, shown, at)
                lines[:, 0] -= self._image_pair.origin
                self.edge.data = lines / spacing

    def _edge_layer(self) -> Vectors:
        """The layer of the edge and its handle, in voxels of the image, so that sliders keep their
        steps.
        """
        from napari.layers import Vectors

        images = self._image_pair
        size = np.multiply(images.fixed.shape, images.spacing)
        return Vectors(
            np.zeros((1, 2, 3)),
            name=f"#{self.prepared.number} edge of the swipe",
            scale=images.spacing,
            translate=images.origin,
            units=UNITS,
            axis_labels=AXES,
            vector_style="line",
            edge_width=float(size.max() / EDGE_PARTS / np.mean(images.spacing)),
            edge_color=EDGE_COLOUR,
            metadata={KEY: {"number": self.prepared.number, "role": "comparison"}},
        )

    def _limits(self) -> tuple[float, float]:
        """Return the contrast limits: those of the fixed image."""
        if self.prepared.mode == "difference":
            return DIFFERENCE_LIMITS
        from napari_shmoareg.registration.intensity import Intensity

        fixed = self.images["fixed"]
        if fixed is None:
            return 0.0, 1.0
        low, high = Intensity.of(self.prepared.registration.pair.fixed).scale(
            np.array(fixed.contrast_limits)
        )
        return (float(low), float(high)) if high > low else (0.0, 1.0)
