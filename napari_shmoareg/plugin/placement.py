"""World coordinates of layers: mm, axes S, A, R, units, points.

napari shows the last two of a viewer's axes, so the world's order here is z, y, x (S, A, R), in mm.
Layers get a scale and a translation only: napari 0.9 slices turned layers wrongly in 2D.  An
oblique volume is shown as a copy on straight axes; its own voxels stay with the layer, and are what
is registered.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pint
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, background

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer, Points


LARGEST = 2**28  # voxels of a copy, at most


def straightened(grid: Grid) -> NDArray[np.float64]:
    """The affine of a canonical grid without its tilt, about the middle of the field of view."""
    affine = np.diag([*grid.spacing, 1.0])
    affine[:3, 3] = grid.centre - np.array(grid.spacing) * (np.array(grid.shape) - 1) / 2
    return affine


def straight_around(grid: Grid, finer: float) -> Grid:
    """A straight grid over the whole field of view of a tilted one."""
    corners = grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = np.array(grid.spacing) / finer
    spacing *= max(1.0, float(np.prod((high - low) / spacing)) / LARGEST) ** (1 / 3)
    i, j, k = (int(n) for n in np.maximum(1, np.ceil((high - low) / spacing - 1e-6)))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (np.array([i, j, k]) - 1) / 2
    return Grid((i, j, k), affine)


def straight_copy(
    volume: Volume, grid: Grid, *, nearest: bool, outside: float | None = None
) -> NDArray:
    """The values of a volume on another grid, (I, J, K), linear or nearest; without torch.

    Around it stands what is given as `outside`: by default the background of an image, and 0 with
    `nearest`."""
    from scipy.ndimage import affine_transform

    if outside is None:
        outside = 0.0 if nearest else background(volume)
    matrix = volume.grid.inverse @ grid.affine
    values = volume.values if nearest else volume.values.astype(volume.float_type, copy=False)
    return affine_transform(
        values,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=grid.shape,
        order=0 if nearest else 1,
        mode="grid-constant",
        cval=outside,
        prefilter=False,
    )


def own_voxels(volume: Volume, grid: Grid, before: NDArray, now: NDArray) -> NDArray:
    """The labels of a volume with what was painted on its copy.

    Parameters
    ----------
    volume : Volume
        Labels, as filed.
    grid : Grid
        Of the copy.
    before, now : (I, J, K) array
        The copy as made, and as painted.

    Returns
    -------
    array
        On the volume's grid.  A voxel changes if the voxel of the copy that is nearest to it was
        painted, or, where that one showed another label (at edges), the nearest one that showed its
        own: a label that is erased leaves no crumbs.  All others keep their values.
    """
    from scipy.ndimage import binary_dilation

    def nearest(values: NDArray) -> NDArray:
        return straight_copy(Volume(values, grid), volume.grid, nearest=True)

    changed = before != now
    hit = nearest(changed.astype(np.uint8)) > 0
    painted = np.where(hit, nearest(now), volume.values)
    near = nearest(binary_dilation(changed, np.ones((3, 3, 3))).astype(np.uint8)) > 0
    edge = np.argwhere(near & ~hit & (nearest(before) != volume.values))
    place, own = grid.to_index(volume.grid.to_world(edge)), volume.values[tuple(edge.T)]
    found, least = own.astype(now.dtype), np.full(len(edge), np.inf)
    for step in product((-1, 0, 1), repeat=3):
        index = np.clip(np.rint(place).astype(int) + step, 0, np.array(grid.shape) - 1)
        away = np.linalg.norm((index - place) * grid.spacing, axis=1)
        shown = tuple(index.T)
        closer = (before[shown] == own) & (away < least)
        found[closer], least[closer] = now[shown][closer], away[closer]
    painted[tuple(edge.T)] = found
    return painted


AXES = ("S", "A", "R")
UNITS = ("mm", "mm", "mm")
KEY = "shmoareg"  # of what this plugin keeps in a layer's metadata
STRAIGHT = 0.1  # voxels by which a corner may be off, for axes to count as straight


@dataclass(frozen=True, eq=False)
class Placed:
    """A volume as napari takes it.

    Attributes
    ----------
    data : (S, A, R) array
        A view of the volume's values, or the copy on straight axes.
    scale, translate : tuple of 3 float
        Spacing and position of the first voxel, mm, along S, A, R.
    copied : bool
        Whether it is a copy on straight axes.
    """

    data: NDArray
    scale: tuple[float, float, float]
    translate: tuple[float, float, float]
    copied: bool


def place(
    volume: Volume, *, finer: float = 1.0, nearest: bool = False, outside: float | None = None
) -> Placed:
    """How to show a volume.

    Parameters
    ----------
    volume : Volume
        In any orientation.
    finer : float
        How many voxels a copy on straight axes has for one of the volume, along each axis; more for
        maps whose cells should keep their shape.
    nearest : bool
        Whether a copy takes the nearest voxel, as that of labels does.
    outside : float or None
        What stands around a copy; None for the image's background, and 0 with `nearest`.

    Returns
    -------
    Placed
        A view wherever the axes are straight to within a tenth of a voxel.
    """
    order, flip = volume.grid.axes_to_ras()
    canonical = volume.grid.canonical()
    straight = Grid(canonical.shape, straightened(canonical))
    off = np.abs(
        canonical.to_index(straight.corners()) - canonical.to_index(canonical.corners())
    ).max()
    if off <= STRAIGHT:
        return Placed(
            _as_shown(volume.values, order, flip), *_scale_translate(straight), copied=False
        )
    grid = straight_around(canonical, finer)
    copy = straight_copy(volume, grid, nearest=nearest or volume.is_labels, outside=outside)
    return Placed(copy.transpose(2, 1, 0), *_scale_translate(grid), copied=True)


def layer_options(
    volume: Volume,
    *,
    finer: float = 1.0,
    nearest: bool = False,
    outside: float | None = None,
    **about: Any,
) -> tuple[NDArray, dict[str, Any]]:
    """Data and keyword arguments for a layer that shows a volume.

    Parameters
    ----------
    volume : Volume
    finer, nearest, outside
        As for `place`.
    **about
        Kept with the layer, under ``layer.metadata["shmoareg"]``; `tag` reads it.

    Returns
    -------
    data : (S, A, R) array
    options : dict
        name, scale, translate, units, axis_labels, metadata.
    """
    placed = place(volume, finer=finer, nearest=nearest, outside=outside)
    kept = {
        "volume": volume,
        "copied": placed.copied,
        "finer": finer,
        "print": _print(placed),
        **about,
    }
    options = {
        "name": volume.name,
        "scale": placed.scale,
        "translate": placed.translate,
        "units": UNITS,
        "axis_labels": AXES,
        "metadata": {KEY: kept},
    }
    return placed.data, options


def tag(layer: Layer, name: str, default: Any = None) -> Any:
    """What this plugin keeps with a layer under a name; the default where there is nothing."""
    kept = layer.metadata.get(KEY)
    return kept.get(name, default) if isinstance(kept, dict) else default


def volume_of(layer: Layer) -> Volume:
    """The volume that a layer shows, wherever it came from.

    Of a layer of this plugin that was not moved or changed the original voxels on their own grid;
    of one that was edited what it holds now, of a copy of labels too on their own grid, with every
    voxel that was not painted as it was.  An edited copy of an image is taken on the copy's grid.
    Other layers are taken as they lie in the viewer, whose axes count as z, y, x (S, A, R) in the
    layer's units (pixels as mm).

    Parameters
    ----------
    layer : Image or Labels

    Raises
    ------
    InputError
        If the layer is not a single 3D volume of numbers.
    """
    is_labels = layer._type_string == "labels"
    if layer._type_string not in ("image", "labels") or getattr(layer, "rgb", False):
        kind = (
            "a colour image"
            if getattr(layer, "rgb", False)
            else f"of the type {layer._type_string}"
        )
        raise InputError(
            f"The layer '{layer.name}' is {kind}; an Image or Labels layer of one channel was"
            " expected."
        )
    if getattr(layer, "multiscale", False):
        raise InputError(
            f"The layer '{layer.name}' is multiscale; a single 3D array was expected. Open one"
            " level of it."
        )
    data = np.asarray(layer.data)
    if data.ndim != 3:
        raise InputError(
            f"The layer '{layer.name}' has {data.ndim} axes {data.shape}; SHMoAReg registers 3D"
            " volumes. Pick one volume or channel: right-click the layer, 'Split Stack'."
        )
    matrix = _data_to_ras(layer)
    kept: Volume | None = tag(layer, "volume")
    if kept is not None and not _moved(layer):
        if not tag(layer, "copied"):
            values = _as_stored(data, kept.grid)
            return Volume(values.copy() if is_labels else values, kept.grid, layer.name, is_labels)
        if (
            zlib.crc32(np.ascontiguousarray(data).data) == tag(layer, "print")[2]
            and is_labels == kept.is_labels
        ):
            return Volume(kept.values, kept.grid, layer.name, is_labels)
        if is_labels and kept.is_labels:
            before = place(kept, finer=tag(layer, "finer", 1.0)).data.transpose(2, 1, 0)
            now = data.transpose(2, 1, 0)
            if before.shape == now.shape:
                return Volume(
                    own_voxels(kept, Grid(now.shape, matrix), before, now),
                    kept.grid,
                    layer.name,
                    is_labels,
                )
    values = data.transpose(2, 1, 0)
    return Volume(
        values.copy() if is_labels else values, Grid(values.shape, matrix), layer.name, is_labels
    )


def to_viewer(points: ArrayLike) -> NDArray[np.float64]:
    """Viewer coordinates (..., 3), S A R mm, of world points (..., 3), R A S mm; and the other way
    round.
    """
    return np.asarray(points, dtype=np.float64)[..., ::-1]


def _data_to_ras(layer: Layer) -> NDArray[np.float64]:
    """Index (x, y, z order: the data's axes reversed) to RAS mm, (4, 4)."""
    origin = np.asarray(layer.data_to_world((0, 0, 0)), dtype=float)
    columns = [np.asarray(layer.data_to_world(row), dtype=float) - origin for row in np.eye(3)]
    unit = np.array([_in_mm(u) for u in layer.units])
    linear, shift = np.stack(columns, axis=1) * unit[:, None], origin * unit
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear[::-1, ::-1], shift[::-1]
    return matrix


def _in_mm(unit: Any) -> float:
    """Millimetres per unit; a pixel, which has no length, counts as one."""
    if str(unit) in ("pixel", "dimensionless", ""):
        return 1.0
    try:
        return float((1 * unit).to("mm").magnitude)
    except Exception as error:  # pint: the unit is no length
        raise InputError(
            f"A layer's unit is '{unit}', which is no length; mm (or um, m ...) was expected."
        ) from error


def _print(placed: Placed) -> tuple[Any, Any, int]:
    """By which a layer that was not touched is known: place, and for a copy its values."""
    values = zlib.crc32(np.ascontiguousarray(placed.data).data) if placed.copied else 0
    return placed.scale, placed.translate, values


def _moved(layer: Layer) -> bool:
    """Whether a layer of ours stands elsewhere than where it was put, or has another shape."""
    scale, translate, _ = tag(layer, "print")
    put = np.eye(4)
    put[:3, :3], put[:3, 3] = np.diag(scale[::-1]), translate[::-1]
    if (
        not tag(layer, "copied")
        and layer.data.shape != tag(layer, "volume").grid.canonical().shape[::-1]
    ):
        return True  # cropped, say; what a copy holds is compared by itself
    return not np.allclose(_data_to_ras(layer), put, atol=1e-6)


def _scale_translate(grid: Grid) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    (a, b, c), (x, y, z) = grid.spacing, (float(v) for v in grid.affine[:3, 3])
    return (c, b, a), (z, y, x)


def _as_shown(values: NDArray, order: NDArray, flip: NDArray) -> NDArray:
    """A view with the axes S, A, R, all rising."""
    turned = values.transpose(*order)[tuple(slice(None, None, -1 if back else 1) for back in flip)]
    return turned.transpose(2, 1, 0)


def _as_stored(shown: NDArray, grid: Grid) -> NDArray:
    """The way back of `_as_shown`."""
    order, flip = grid.axes_to_ras()
    turned = shown.transpose(2, 1, 0)[tuple(slice(None, None, -1 if back else 1) for back in flip)]
    return turned.transpose(*np.argsort(order))


ASIDE = (
    "fewer than two of the axes S, A, R are on the canvas. Change the order of the axes (Ctrl+E)."
)


def mm_per(units: Sequence[Any] | None) -> float:
    """Mm per unit of length, of the units of some axes; 1 for pixels, and where there is no one
    unit of length.
    """
    if not units or not units[-1].is_compatible_with("mm"):
        return 1.0
    return float((1 * units[-1]).to("mm").magnitude)


def lengths(units: Sequence[Any] | None) -> tuple[Any, ...]:
    """The units of the axes S, A, R among those of a viewer's axes; mm, where they are no
    lengths.
    """
    last = tuple(units or ())[-3:]
    if len(last) == 3 and all(unit.is_compatible_with("mm") for unit in last):
        return last
    return tuple(pint.get_application_registry().Unit(name) for name in UNITS)


def mm_per_unit(viewer: Viewer) -> float:
    """Mm per unit of a viewer's positions: of its sliders, its camera and its mouse."""
    return mm_per(viewer.dims.units)


def shown_axes(viewer: Viewer) -> tuple[int, ...]:
    """Which of the axes S, A, R (0, 1, 2) are on the canvas, in their order there."""
    further = viewer.dims.ndim - 3
    return tuple(axis - further for axis in viewer.dims.displayed if axis >= further)


def point_of(viewer: Viewer) -> NDArray[np.float64]:
    """Where the sliders stand, mm along S, A, R."""
    return np.asarray(viewer.dims.point[-3:], dtype=np.float64) * mm_per_unit(viewer)


def go_to(viewer: Viewer, place: ArrayLike) -> None:
    """Move the sliders to a place, mm along S, A, R; those of further axes stay."""
    there = [float(v) for v in np.asarray(place) / mm_per_unit(viewer)]
    point = viewer.dims.point
    viewer.dims.point = (*point[:-3], *there[-len(point) :])


COLOURS = ("#ffb000", "#00c2ff", "#ff5d8f", "#7bd148", "#c58bff", "#ff7a1a", "#29d3a5", "#f4f06a")


def points_of(layer: Points | None) -> NDArray[np.float64]:
    """The points of a layer, (n, 3) mm RAS."""
    if layer is None or not len(layer.data):
        return np.zeros((0, 3))
    return to_viewer([layer.data_to_world(point) for point in layer.data]) * mm_per(layer.units)


def centre_on(viewer: Viewer, point: ArrayLike) -> None:
    """Bring a place, mm RAS, into the slice and to the middle of the canvas."""
    place = to_viewer(point)
    go_to(viewer, place)
    world = (*viewer.dims.point[:-3], *(place / mm_per_unit(viewer)))
    shown = [float(world[axis]) for axis in viewer.dims.displayed]
    viewer.scene.camera.center = tuple([0.0, *shown][-3:])
