"""Layers of volumes: world coordinates (mm, axes S, A, R), units, points, names of labels.

napari shows the last two axes of a viewer, so the world order here is z, y, x (S, A, R), in mm.
Layers get a scale and a translation only: napari 0.9 slices rotated layers wrongly in 2D.  An
oblique volume is shown as a copy on straight axes; the layer keeps the original voxels, which are
registered.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pint
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, LabelNames, Volume, background
from napari_shmoareg.geometry.volume import labels_in

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer, Points


LARGEST = 2**28  # maximum number of voxels of a copy


def straightened(grid: Grid) -> NDArray[np.float64]:
    """The affine of a canonical grid without its rotation, about the middle of the field of
    view.
    """
    affine = np.diag([*grid.spacing, 1.0])
    affine[:3, 3] = grid.centre - np.array(grid.spacing) * (np.array(grid.shape) - 1) / 2
    return affine


def straight_around(grid: Grid, finer: float) -> Grid:
    """A straight grid that covers the field of view of an oblique one."""
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
    """Resample a volume to another grid, (I, J, K), linear or nearest, without torch.

    `outside` fills the surroundings: by default the background of an image, 0 with `nearest`."""
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


def merge_painted(volume: Volume, grid: Grid, before: NDArray, now: NDArray) -> NDArray:
    """Transfer what was painted on a copy of labels to the original labels.

    Parameters
    ----------
    volume : Volume
        The original labels.
    grid : Grid
        Grid of the copy.
    before, now : (I, J, K) array
        The copy before and after painting.

    Returns
    -------
    array
        On the volume's grid.  A voxel changes if the nearest voxel of the copy was painted, or, if
        that one showed another label (at edges), the nearest one with the voxel's own label: an
        erased label leaves no remnants.  All other voxels keep their values.
    """
    from scipy.ndimage import binary_dilation

    def nearest(values: NDArray) -> NDArray:
        return straight_copy(Volume(values, grid), volume.grid, nearest=True)

    changed = before != now
    hit = nearest(changed.astype(np.uint8)) > 0
    painted = np.where(hit, nearest(now), volume.values)
    near = nearest(binary_dilation(changed, np.ones((3, 3, 3))).astype(np.uint8)) > 0
    edge = np.argwhere(near & ~hit & (nearest(before) != volume.values))
    centre, own = grid.to_index(volume.grid.to_world(edge)), volume.values[tuple(edge.T)]
    found, least = own.astype(now.dtype), np.full(len(edge), np.inf)
    for step in product((-1, 0, 1), repeat=3):
        index = np.clip(np.rint(centre).astype(int) + step, 0, np.array(grid.shape) - 1)
        away = np.linalg.norm((index - centre) * grid.spacing, axis=1)
        shown = tuple(index.T)
        closer = (before[shown] == own) & (away < least)
        found[closer], least[closer] = now[shown][closer], away[closer]
    painted[tuple(edge.T)] = found
    return painted


AXES = ("S", "A", "R")
UNITS = ("mm", "mm", "mm")
KEY = "shmoareg"  # of this plugin's entry in a layer's metadata
STRAIGHT = 0.1  # maximum offset of a corner, in voxels, for axes to count as straight


@dataclass(frozen=True, eq=False)
class LayerGeometry:
    """Data, scale and translation of a layer that shows a volume.

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


def to_layer_geometry(
    volume: Volume, *, finer: float = 1.0, nearest: bool = False, outside: float | None = None
) -> LayerGeometry:
    """Data, scale and translation of a layer that shows a volume.

    Parameters
    ----------
    volume : Volume
        In any orientation.
    finer : float
        Voxels of a copy on straight axes per voxel of the volume, along each axis; more than 1 for
        maps whose cells should keep their shape.
    nearest : bool
        Whether to copy by nearest neighbour; labels always are.
    outside : float or None
        Value around a copy; None for the image's background, or 0 with `nearest`.

    Returns
    -------
    LayerGeometry
        A view of the volume if its axes are straight to within a tenth of a voxel.
    """
    order, flip = volume.grid.axes_to_ras()
    canonical = volume.grid.canonical()
    straight = Grid(canonical.shape, straightened(canonical))
    off = np.abs(
        canonical.to_index(straight.corners()) - canonical.to_index(canonical.corners())
    ).max()
    if off <= STRAIGHT:
        return LayerGeometry(
            _as_shown(volume.values, order, flip), *_scale_translate(straight), copied=False
        )
    grid = straight_around(canonical, finer)
    copy = straight_copy(volume, grid, nearest=nearest or volume.is_labels, outside=outside)
    return LayerGeometry(copy.transpose(2, 1, 0), *_scale_translate(grid), copied=True)


def layer_options(
    volume: Volume,
    *,
    finer: float = 1.0,
    nearest: bool = False,
    outside: float | None = None,
    **about: Any,
) -> tuple[NDArray, dict[str, Any]]:
    """Data and keyword arguments of a layer that shows a volume.

    Parameters
    ----------
    volume : Volume
    finer, nearest, outside
        As for `to_layer_geometry`.
    **about
        Stored in ``layer.metadata["shmoareg"]``; `tag` reads it.

    Returns
    -------
    data : (S, A, R) array
    options : dict
        name, scale, translate, units, axis_labels, metadata; features if the labels have names.
    """
    geometry = to_layer_geometry(volume, finer=finer, nearest=nearest, outside=outside)
    tags = {
        "volume": volume,
        "copied": geometry.copied,
        "finer": finer,
        "fingerprint": _fingerprint(geometry),
        **about,
    }
    options = {
        "name": volume.name,
        "scale": geometry.scale,
        "translate": geometry.translate,
        "units": UNITS,
        "axis_labels": AXES,
        "metadata": {KEY: tags},
    }
    if volume.label_names:
        options["features"] = _features(volume.labels, volume.label_names)
    return geometry.data, options


NAME_COLUMN = "name"  # of the features of a labels layer, shown in the status bar


def _features(labels: Sequence[int], names: LabelNames) -> dict[str, Any]:
    """Features that give the status bar the names of labels; labels without a name get None."""
    index = sorted({0, *labels, *names.names})
    texts = [names.get(label) or None for label in index]
    return {"index": index, NAME_COLUMN: np.array(texts, dtype=object)}


def names_of(layer: Layer) -> LabelNames:
    """The names of a layer's labels: the column "index" and the first text column of its features.

    Their source is where this plugin read them, else the layer itself."""
    features: Any = getattr(layer, "features", None)
    if features is None or "index" not in features:
        return LabelNames()
    text = next((name for name in features if features[name].dtype.kind in "OUT"), None)
    if text is None:
        return LabelNames()
    rows = zip(features["index"], features[text], strict=True)
    names = {int(label): name for label, name in rows if isinstance(name, str) and name}
    known = [tag(layer, "label_names"), getattr(tag(layer, "volume"), "label_names", None)]
    for given in filter(None, known):
        if given.names.items() >= names.items():
            return LabelNames(names, given.source)
    return LabelNames(names, f"the layer '{layer.name}'" if names else "")


def name_layer(layer: Layer, names: LabelNames) -> None:
    """Name the labels of a layer, in its features and for its results."""
    named: Any = layer
    named.metadata[KEY] = {**named.metadata.get(KEY, {}), "label_names": names}
    named.features = _features(labels_in(np.asarray(named.data)), names)


def tag(layer: Layer, name: str, default: Any = None) -> Any:
    """A value that this plugin stored in a layer's metadata, or the default."""
    tags = layer.metadata.get(KEY)
    return tags.get(name, default) if isinstance(tags, dict) else default


def volume_of(layer: Layer, *, as_placed: bool = True) -> Volume:
    """The volume that a layer shows, whatever its source.

    A layer of this plugin that was not moved or edited gives the original voxels on their own grid;
    an edited layer its current values.  An edited copy of labels gives the labels on their own
    grid, changed only where painted; an edited copy of an image stays on the copy's grid.  Other
    layers are used as they lie in the viewer, with the axes z, y, x (S, A, R) in the layer's units
    (pixels count as mm).

    Parameters
    ----------
    layer : Image or Labels
    as_placed : bool
        False gives a moved layer of this plugin where it was (see `placement_of`).

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
    about: dict[str, Any] = {"name": layer.name, "is_labels": is_labels}
    if is_labels:
        about["label_names"] = names_of(layer)
    stored: Volume | None = tag(layer, "volume")
    placement = placement_of(layer)
    if placement is not None and not as_placed:
        matrix = np.linalg.inv(placement) @ matrix
    if stored is not None and not _reshaped(layer) and (placement is None or not as_placed):
        if not tag(layer, "copied"):
            values = _as_stored(data, stored.grid)
            return Volume(values.copy() if is_labels else values, stored.grid, **about)
        if (
            zlib.crc32(np.ascontiguousarray(data).data) == tag(layer, "fingerprint")[2]
            and is_labels == stored.is_labels
        ):
            return Volume(stored.values, stored.grid, **about)
        if is_labels and stored.is_labels:
            shown = to_layer_geometry(stored, finer=tag(layer, "finer", 1.0)).data
            before = shown.transpose(2, 1, 0)
            now = data.transpose(2, 1, 0)
            if before.shape == now.shape:
                painted = merge_painted(stored, Grid(now.shape, matrix), before, now)
                return Volume(painted, stored.grid, **about)
    values = data.transpose(2, 1, 0)
    return Volume(values.copy() if is_labels else values, Grid(values.shape, matrix), **about)


def placement_of(layer: Layer) -> NDArray[np.float64] | None:
    """Where a layer of this plugin was moved: its world now from that of its volume, (4, 4) RAS mm.

    None if it was not moved, was cropped, or has no volume.
    """
    if tag(layer, "volume") is None or _reshaped(layer):
        return None
    scale, translate, _ = tag(layer, "fingerprint")
    original = np.eye(4)
    original[:3, :3], original[:3, 3] = np.diag(scale[::-1]), translate[::-1]
    current = _data_to_ras(layer)
    return None if np.allclose(current, original, atol=1e-6) else current @ np.linalg.inv(original)


def volume_before(layer: Layer, placement: NDArray[np.float64] | None) -> Volume:
    """The volume of a layer where its image was before it was moved by `placement`, if at all.

    A layer of this plugin that was not moved, or was moved alike, gives its volume in its own
    world; the placement of any other layer is taken back.
    """
    if placement is None:
        return volume_of(layer)
    own = placement_of(layer)
    if tag(layer, "volume") is not None and (own is None or np.allclose(own, placement)):
        return volume_of(layer, as_placed=False)
    volume = volume_of(layer)
    grid = Grid(volume.grid.shape, np.linalg.inv(placement) @ volume.grid.affine)
    return replace(volume, grid=grid)


def to_viewer(points: ArrayLike) -> NDArray[np.float64]:
    """Viewer coordinates (..., 3), S A R mm, of world points (..., 3), R A S mm, and vice versa."""
    return np.asarray(points, dtype=np.float64)[..., ::-1]


def _data_to_ras(layer: Layer) -> NDArray[np.float64]:
    """Affine (4, 4) from indices in x, y, z order (the data's axes reversed) to RAS mm."""
    origin = np.asarray(layer.data_to_world((0, 0, 0)), dtype=float)
    columns = [np.asarray(layer.data_to_world(row), dtype=float) - origin for row in np.eye(3)]
    unit = np.array([_in_mm(u) for u in layer.units])
    linear, shift = np.stack(columns, axis=1) * unit[:, None], origin * unit
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear[::-1, ::-1], shift[::-1]
    return matrix


def _in_mm(unit: Any) -> float:
    """Millimetres per unit; a pixel counts as 1 mm."""
    if str(unit) in ("pixel", "dimensionless", ""):
        return 1.0
    try:
        return float((1 * unit).to("mm").magnitude)
    except Exception as error:  # pint: the unit is no length
        raise InputError(
            f"A layer's unit is '{unit}', which is no length; mm (or um, m ...) was expected."
        ) from error


def _fingerprint(geometry: LayerGeometry) -> tuple[Any, Any, int]:
    """Scale, translation and, for a copy, checksum of the values, to detect changes of a layer."""
    checksum = zlib.crc32(np.ascontiguousarray(geometry.data).data) if geometry.copied else 0
    return geometry.scale, geometry.translate, checksum


def _reshaped(layer: Layer) -> bool:
    """Whether a layer of this plugin has another shape: cropped, for example."""
    grid = tag(layer, "volume").grid.canonical()
    if tag(layer, "copied"):
        grid = straight_around(grid, tag(layer, "finer", 1.0))
    return layer.data.shape != grid.shape[::-1]


def _scale_translate(grid: Grid) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    (a, b, c), (x, y, z) = grid.spacing, (float(v) for v in grid.affine[:3, 3])
    return (c, b, a), (z, y, x)


def _as_shown(values: NDArray, order: NDArray, flip: NDArray) -> NDArray:
    """A view with the axes S, A, R, all increasing."""
    canonical = values.transpose(*order)[
        tuple(slice(None, None, -1 if back else 1) for back in flip)
    ]
    return canonical.transpose(2, 1, 0)


def _as_stored(shown: NDArray, grid: Grid) -> NDArray:
    """The inverse of `_as_shown`."""
    order, flip = grid.axes_to_ras()
    canonical = shown.transpose(2, 1, 0)[
        tuple(slice(None, None, -1 if back else 1) for back in flip)
    ]
    return canonical.transpose(*np.argsort(order))


AXES_HIDDEN = (
    "fewer than two of the axes S, A, R are on the canvas. Change the order of the axes (Ctrl+E)."
)


def mm_per(units: Sequence[Any] | None) -> float:
    """Mm per unit of some axes; 1 for pixels and without a unit of length."""
    if not units or not units[-1].is_compatible_with("mm"):
        return 1.0
    return float((1 * units[-1]).to("mm").magnitude)


def lengths(units: Sequence[Any] | None) -> tuple[Any, ...]:
    """The units of the axes S, A, R among those of a viewer; mm if they are not lengths."""
    last = tuple(units or ())[-3:]
    if len(last) == 3 and all(unit.is_compatible_with("mm") for unit in last):
        return last
    return tuple(pint.get_application_registry().Unit(name) for name in UNITS)


def mm_per_unit(viewer: Viewer) -> float:
    """Mm per unit of a viewer's positions: sliders, camera and mouse."""
    return mm_per(viewer.dims.units)


def shown_axes(viewer: Viewer) -> tuple[int, ...]:
    """The axes S, A, R (0, 1, 2) on the canvas, in their order there."""
    further = viewer.dims.ndim - 3
    return tuple(axis - further for axis in viewer.dims.displayed if axis >= further)


def point_of(viewer: Viewer) -> NDArray[np.float64]:
    """The position of the sliders, mm along S, A, R."""
    return np.asarray(viewer.dims.point[-3:], dtype=np.float64) * mm_per_unit(viewer)


def go_to(viewer: Viewer, point: ArrayLike) -> None:
    """Move the sliders to a point, mm along S, A, R; sliders of further axes stay."""
    target = [float(v) for v in np.asarray(point) / mm_per_unit(viewer)]
    current = viewer.dims.point
    viewer.dims.point = (*current[:-3], *target[-len(current) :])


COLOURS = ("#ffb000", "#00c2ff", "#ff5d8f", "#7bd148", "#c58bff", "#ff7a1a", "#29d3a5", "#f4f06a")


def points_of(layer: Points | None) -> NDArray[np.float64]:
    """The points of a layer, (n, 3) mm RAS."""
    if layer is None or not len(layer.data):
        return np.zeros((0, 3))
    return to_viewer([layer.data_to_world(point) for point in layer.data]) * mm_per(layer.units)


def landmarks_of(layer: Points | None) -> NDArray[np.float64]:
    """The points of a landmark layer where its image was before it was moved, (n, 3) mm RAS.

    A landmark layer has the placement of its image as its affine (see `follow_placement`)."""
    if layer is None or not len(layer.data):
        return np.zeros((0, 3))
    return to_viewer(layer.data * layer.scale + layer.translate) * mm_per(layer.units)


def follow_placement(landmarks: Layer, image: Layer | None) -> None:
    """Move a landmark layer to where its image was moved."""
    placement = None if image is None else placement_of(image)
    affine = np.eye(4)
    if placement is not None:
        affine[:3, :3] = placement[2::-1, 2::-1]
        affine[:3, 3] = to_viewer(placement[:3, 3]) / mm_per(landmarks.units)
    if not np.allclose(landmarks.affine.affine_matrix, affine):
        landmarks.affine = affine


def centre_on(viewer: Viewer, point: ArrayLike) -> None:
    """Show the slice of a point, mm RAS, and centre the canvas on it."""
    target = to_viewer(point)
    go_to(viewer, target)
    world = (*viewer.dims.point[:-3], *(target / mm_per_unit(viewer)))
    shown = [float(world[axis]) for axis in viewer.dims.displayed]
    viewer.scene.camera.center = tuple([0.0, *shown][-3:])
