"""Checkerboard, swipe and difference of two images, as layers computed beside the window.

Arrays are as the viewer shows them (S, A, R), on the fixed image's grid, intensities in [0, 1].
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_warning
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.placement import (
    ASIDE,
    AXES,
    KEY,
    UNITS,
    layer_options,
    mm_per_unit,
    place,
    shown_axes,
)
from napari_shmoareg.plugin.showing import layer_of

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image, Layer

    from napari_shmoareg.registration.register import Registration


STAGES = ("before", "affine", "after")  # the moving image as filed, after the affine, warped


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared.

    Attributes
    ----------
    fixed, other : (S, A, R) float32 array, 0 to 1
        The fixed image and the moving one at a stage, on the grid on which the fixed one is shown.
        Ours: each on its own robust scale (`Intensity`), the moving one on the same at all stages,
        so that differences before and after can be compared; 0 outside the fixed image's field of
        view.
    spacing, origin : tuple of 3 float
        Of the voxels, and the place of the first one, mm along S, A, R.
    """

    fixed: NDArray[np.float32]
    other: NDArray[np.float32]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]


def moving_at(registration: Registration, stage: str) -> Volume:
    """The moving image on the fixed grid: as filed ("before"), after the affine, or warped
    ("after").

    Interpolates the whole image, which takes seconds; "after" is there already.
    """
    if stage == "after":
        return registration.warped
    from napari_shmoareg.geometry import Transform, warp_volume

    matrix = np.eye(4) if stage == "before" else registration.affine
    return warp_volume(registration.pair.moving, registration.pair.fixed.grid, Transform(matrix))


def sides(registration: Registration, other: Volume) -> Sides:
    """The fixed image, and the moving one as `moving_at` gives it, ready to be compared."""
    from napari_shmoareg.registration.intensity import Intensity

    pair = registration.pair
    placed = place(pair.fixed)
    fixed = Intensity.of(pair.fixed).scale(np.ascontiguousarray(placed.data))
    moved = Intensity.of(pair.moving).scale(np.ascontiguousarray(place(other).data))
    if placed.copied:
        seen = np.ones(pair.fixed.values.shape, np.uint8)
        outside = place(Volume(seen, pair.fixed.grid, is_labels=True)).data == 0
        fixed[outside] = moved[outside] = 0
    return Sides(fixed, moved, placed.scale, placed.translate)


def fill_checkerboard(
    out: NDArray[np.float32], both: Sides, tile: float, axes: Sequence[int]
) -> None:
    """Take alternate tiles from either image, in place.

    Parameters
    ----------
    out : (S, A, R) float32 array
    both : Sides
    tile : float
        Length of a tile's edge, mm.  Four tiles meet in the middle of the field of view.
    axes : sequence of int
        Along which the tiles alternate: those that are shown.
    """
    odd = np.zeros((1, 1, 1), dtype=np.int64)
    for axis in axes:
        count, spacing = out.shape[axis], both.spacing[axis]
        from_middle = (np.arange(count) - (count - 1) / 2) * spacing
        shape = [1, 1, 1]
        shape[axis] = count
        odd = odd + np.floor(from_middle / tile).astype(np.int64).reshape(shape)
    np.copyto(out, both.fixed)
    np.copyto(out, both.other, where=odd % 2 == 1)


def fill_swipe(
    out: NDArray[np.float32],
    both: Sides,
    edge: int,
    axis: int,
    rising: bool,
    was: int | None = None,
) -> None:
    """Take one side of an edge from the fixed image and the other side from the moving one, in
    place.

    Parameters
    ----------
    out : (S, A, R) float32 array
    both : Sides
    edge : int
        Index along `axis` of the first voxel beyond the edge.
    axis : int
        The one that is shown from left to right.
    rising : bool
        Whether the index rises to the right of the screen.  The fixed image is always on the left.
    was : int or None
        The edge that `out` shows now, so that only what lies between is written; None fills all.
    """
    low_side, high_side = (both.fixed, both.other) if rising else (both.other, both.fixed)
    if was is None:
        spans = [(0, edge, low_side), (edge, out.shape[axis], high_side)]
    else:
        spans = [(was, edge, low_side)] if edge > was else [(edge, was, high_side)]
    for start, stop, source in spans:
        part: list[slice] = [slice(None)] * 3
        part[axis] = slice(start, stop)
        out[tuple(part)] = source[tuple(part)]


def swipe_edge(count: int, position: float, rising: bool) -> int:
    """Where the edge lies: `position` is the share of the image's width that shows the fixed image,
    on the left.
    """
    share = position if rising else 1 - position
    return round(share * count)


def fill_difference(out: NDArray[np.float32], both: Sides) -> None:
    """The absolute difference of the two, in place."""
    np.subtract(both.fixed, both.other, out=out)
    np.abs(out, out=out)


COMPUTED = ("checkerboard", "swipe", "difference")
BESIDE = "side by side"
WORDS = {"before": "moving as filed", "affine": "moving after affine", "after": "warped"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a comparison needs.

    Attributes
    ----------
    registration : Registration
    number : int
        Of the registration in its viewer.
    mode : str
        "blend", "two colours", "checkerboard", "swipe", "difference" or "side by side".
    stage : str
        Of the moving image: "before", "affine" or "after".
    sides : Sides or None
        For the modes that are computed.
    extra : dict of name to (data, options)
        Layers that the viewer does not have: "fixed", "before", "affine", "after".
    """

    registration: Registration
    number: int
    mode: str
    stage: str
    sides: Sides | None = None
    extra: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)


def prepare(
    registration: Registration,
    number: int,
    mode: str,
    stage: str,
    present: Collection[str],
    kept: MutableMapping[str, Volume],
) -> Prepared:
    """Compute what a comparison needs.  Takes seconds: for a worker thread.

    Parameters
    ----------
    registration : Registration
    number : int
    mode, stage : str
        As in `Prepared`.
    present : collection of str
        Which of "fixed" and "after" have a layer in the viewer.
    kept : mutable mapping of stage to Volume
        The moving image on the fixed grid, as far as it was computed before; what is new is put
        there.
    """
    wanted = (
        {stage, "after", "before" if stage == "after" else stage} if mode == BESIDE else {stage}
    )
    for name in sorted(wanted - kept.keys() - {"after"}):
        kept[name] = moving_at(registration, name)
    volumes = {
        name: registration.warped if name == "after" else kept[name] for name in sorted(wanted)
    }
    if mode in COMPUTED:
        return Prepared(registration, number, mode, stage, sides(registration, volumes[stage]))
    extra = {}
    windows = _windows(registration)
    for name, volume in {"fixed": registration.pair.fixed, **volumes}.items():
        if name not in present:
            data, options = layer_options(
                volume, registration=registration, number=number, role="comparison"
            )
            options["contrast_limits"] = windows["fixed" if name == "fixed" else "moving"]
            extra[name] = data, options | {"name": f"#{number} {WORDS.get(name, name)}"}
    return Prepared(registration, number, mode, stage, None, extra)


def _windows(registration: Registration) -> dict[str, tuple[float, float]]:
    """Dark and bright, where no layer says what to show."""
    from napari_shmoareg.plugin.layers import contrast

    fixed, moving = contrast(registration.pair.fixed, registration.pair.moving)
    return {"fixed": fixed, "moving": moving}


COLOURS = ("green", "magenta")  # of the fixed and of the other image


class Comparison:
    """One comparison that a viewer shows; the looks of before are the caller's to keep and put
    back.

    Parameters
    ----------
    viewer : Viewer
    prepared : Prepared
    amount : float
        Share of the other image in a blend or of two colours; edge of a tile in mm; place of a
        swipe's edge, 0 to 1 from the left of the screen.
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
        """Where it is shown; held weakly."""
        viewer = self._viewer()
        assert viewer is not None, "the viewer is gone"
        return viewer

    def show(self) -> None:
        """Make the viewer show it."""

    def set_amount(self, amount: float) -> None:
        """Blend otherwise, make other tiles, or move the edge."""
        self.amount = amount

    def end(self) -> None:
        """Remove what was added."""
        for layer in self.added:
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)

    @property
    def whole(self) -> bool:
        """Whether all layers that it shows are still in the viewer."""
        return all(layer in self.viewer.layers for layer in self._shown())

    def _shown(self) -> list[Layer]:
        fixed, other = self.images["fixed"], self.images[self.prepared.stage]
        return [layer for layer in (fixed, other) if layer is not None]

    def _add(self, layer: Image) -> Image:
        """Put a layer into the viewer just above the fixed image, below what is laid over it."""
        self.viewer.layers.insert(self._next, layer)
        self._next += 1
        self.added.append(layer)
        return layer

    def _only(self, shown: list[Layer], *, overlays: bool) -> None:
        """Show some layers and no other image; outlines, points, grids and arrows stay, if
        `overlays`.
        """
        for layer in self.viewer.layers:
            filled = layer._type_string == "image" or (
                layer._type_string == "labels" and layer.contour == 0
            )
            if layer in shown:
                layer.visible = True
            elif filled or not overlays:
                layer.visible = False


class Mixed(Comparison):
    """Fixed and other image laid over one another: the upper one transparent, or each in a colour
    of its own.
    """

    def show(self) -> None:
        """Show the two."""
        fixed, other = self._both()
        self._only([fixed, other], overlays=True)
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
        """The other image's share: 0 shows the fixed one alone, 1 the other one alone."""
        super().set_amount(amount)
        fixed, other = self._both()
        if self.prepared.mode == "two colours":
            fixed.opacity, other.opacity = min(1.0, 2 * (1 - amount)), min(1.0, 2 * amount)
            return
        self._lower.opacity = 1.0
        self._upper.opacity = amount if self._upper is other else 1 - amount

    def _both(self) -> tuple[Image, Image]:
        fixed, other = self._shown()
        return fixed, other


class Beside(Comparison):
    """Fixed image, moving image on its grid, and warped image in cells of their own, with one
    camera.
    """

    def show(self) -> None:
        """Show the cells, named, in one row."""
        for layer in self._shown():
            layer.name_overlay.visible = True
            layer.opacity = 1.0
        self._only(self._shown(), overlays=False)
        camera, grid = self.viewer.scene.camera, self.viewer.canvas.grid
        centre, zoom = camera.center, camera.zoom
        whole = []  # zoom at which all is seen, without cells and with them
        for enabled in (False, True):
            grid.stride, grid.shape, grid.enabled = 1, (1, -1), enabled
            self.viewer.reset_view()
            whole.append(camera.zoom)
        camera.center, camera.zoom = centre, zoom * whole[1] / whole[0]

    def _shown(self) -> list[Layer]:
        return [layer for layer in self.images.values() if layer is not None]


DIFFERENCE_LIMITS = (0.0, 0.5)  # Ours: of intensities in [0, 1], the same before and after
NEAR = 8.0  # pixels of the screen from the edge of a swipe within which it can be taken


class Computed(Comparison):
    """Checkerboard, swipe or difference: one image, computed from the two."""

    dragged = Signal(float)  # where the mouse took the edge of a swipe, as an amount

    def show(self) -> None:
        """Add the layer."""
        from napari.layers import Image

        made, both = self.prepared, self.prepared.sides
        assert both is not None
        self._both = both
        self._edge: int | None = None
        word = (
            f"|difference| {made.stage}"
            if made.mode == "difference"
            else f"{made.mode}, {WORDS[made.stage]}"
        )
        self.layer = Image(
            np.zeros_like(both.fixed),
            name=f"#{made.number} {word}",
            scale=both.spacing,
            translate=both.origin,
            units=UNITS,
            axis_labels=AXES,
            contrast_limits=self._limits(),
            colormap="inferno" if made.mode == "difference" else "gray",
            metadata={
                KEY: {
                    "registration": made.registration,
                    "number": made.number,
                    "role": "comparison",
                    "stage": made.stage,
                }
            },
        )
        self._fill()
        self._add(self.layer)
        self._only([self.layer], overlays=True)
        self.viewer.layers.selection.active = self.layer
        self._say_if_aside()
        for emitter in self._emitters():
            emitter.connect(self.follow)
        self.layer.mouse_drag_callbacks.append(self.drag)

    def end(self) -> None:
        """Remove the layer, and follow the viewer no more."""
        for emitter in self._emitters():
            emitter.disconnect(self.follow)
        super().end()

    def set_amount(self, amount: float) -> None:
        """Make other tiles, or move the edge."""
        super().set_amount(amount)
        self._fill()
        self.layer.refresh(extent=False)

    def follow(self, event: Any = None) -> None:
        """Compute anew for the axes that are shown now."""
        self._edge = None
        self.set_amount(self.amount)
        self._say_if_aside()

    def edge_at(self, position: ArrayLike) -> float:
        """The amount with which the edge of a swipe goes through a place of the viewer's world."""
        axis, rising = self._across()
        place = np.asarray(position) * mm_per_unit(self.viewer)  # a layer knows its own units only
        share = (self.layer.world_to_data(place)[axis] + 0.5) / self.layer.data.shape[axis]
        return float(np.clip(share if rising else 1 - share, 0, 1))

    def drag(self, layer: Image, event: Any) -> Any:
        """Take the edge of a swipe with the mouse."""
        if self.prepared.mode != "swipe" or self.viewer.dims.ndisplay != 2 or self._aside:
            return
        axis, _ = self._across()
        width = layer.data.shape[axis] * layer.scale[axis] / mm_per_unit(self.viewer)
        if (
            abs(self.edge_at(event.position) - self.amount) * width * self.viewer.scene.camera.zoom
            > NEAR
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
    def _aside(self) -> bool:
        """Whether too few of the axes S, A, R are shown for tiles or an edge."""
        return self.prepared.mode != "difference" and len(shown_axes(self.viewer)) < 2

    def _say_if_aside(self) -> None:
        if self._aside:
            show_warning(f"The {self.prepared.mode} shows the fixed image alone: {ASIDE}")

    def _across(self) -> tuple[int, bool]:
        """The axis that runs across the screen, and whether it rises to the right."""
        return shown_axes(self.viewer)[-1], str(self.viewer.scene.camera.orientation[-1]) == "right"

    def _fill(self) -> None:
        out, mode = self.layer.data, self.prepared.mode
        if mode == "difference":
            fill_difference(out, self._both)
        elif self._aside:
            np.copyto(out, self._both.fixed)
        elif mode == "checkerboard":
            fill_checkerboard(out, self._both, self.amount, shown_axes(self.viewer))
        else:
            axis, rising = self._across()
            edge = swipe_edge(out.shape[axis], self.amount, rising)
            fill_swipe(out, self._both, edge, axis, rising, was=self._edge)
            self._edge = edge

    def _limits(self) -> tuple[float, float]:
        """Dark and bright: those that the fixed image is shown with."""
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
