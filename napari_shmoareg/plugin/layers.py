"""A registration or a pair as napari layer data tuples, bottom first.

They are plain tuples of data, options and type, without Qt or napari objects, so that a worker
thread can make them.  Expert maps and head maps keep their own grids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.plugin.deformation import grid_layers
from napari_shmoareg.plugin.placement import layer_options
from napari_shmoareg.plugin.registrations import unwrap

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.experts.maps import ExpertMap, GateValues
    from napari_shmoareg.geometry import Volume, VolumePair
    from napari_shmoareg.registration.register import Registration


LayerData = tuple[NDArray, dict[str, Any], str]

RESOLUTIONS = {1: "full", 2: "half"}
SHRINKS, GROWS, FOLDS = "#6a51a3", "#e66101", "#ff0000"
BLEND = 0.5  # opacity of a warped image over its fixed one
# voxels of a straight copy per cell of an oblique map, so that its cells keep their shape
FINER = 2.0


def layers_of(registration: Registration, number: int, *, maps: bool = False) -> list[LayerData]:
    """The layers of a registration, which overlay the fixed image.

    Parameters
    ----------
    registration : Registration
    number : int
        Number of the registration in its viewer: the layers are called ``#1 warped`` and so on.
    maps : bool
        Also all of `map_layers`, which the viewer otherwise makes when they are first shown.

    Returns
    -------
    list of (data, options, type)
        warped, warped labels; only the first is visible.
    """
    about: dict[str, Any] = {"registration": registration, "number": number}
    _, (low, high) = contrast(registration.pair.fixed, registration.pair.moving)
    layers = [_image(registration.warped, (low, high), f"#{number} warped", **about, role="warped")]
    layers[0][1]["opacity"] = BLEND
    if registration.warped_labels is not None:
        layers.append(
            _labels(
                registration.warped_labels,
                f"#{number} warped labels",
                **about,
                role="warped_labels",
            )
        )
    if maps:
        for role in ("jacobian", "head_map", "expert_map", "grid"):
            layers += map_layers(registration, number, role)
    return layers


def map_layers(registration: Registration, number: int, role: str) -> list[LayerData]:
    """The hidden map layers of a registration in a role.

    Parameters
    ----------
    registration : Registration
    number : int
    role : {"jacobian", "folding", "head_map", "expert_map", "arrows", "grid"}
        The Jacobian comes with the folding (if any), the arrows with the grid, and all expert maps
        together.
    """
    from napari_shmoareg.experts.maps import expert_maps, token_loads

    if role in ("jacobian", "folding"):
        return _jacobian(registration, number, {"registration": registration, "number": number})
    if role in ("arrows", "grid"):
        return grid_layers(registration, number)
    if role == "expert_map":
        return [expert_map_layer(registration, number, one) for one in expert_maps(registration)]
    if role == "head_map" and token_loads(registration):
        load = initial_gate(registration)
        head = int(load.values.sum(axis=(0, 1, 2)).argmax())
        return [head_map(registration, number, load, head)]
    return []


def layers_of_pair(pair: VolumePair) -> list[LayerData]:
    """The images of a pair in world coordinates, fixed below, and their labels as hidden
    outlines.
    """
    of_fixed, of_moving = contrast(pair.fixed, pair.moving)
    layers = [
        _image(pair.fixed, of_fixed, pair.fixed.name, role="fixed"),
        _image(pair.moving, of_moving, pair.moving.name, role="moving"),
    ]
    for volume, role in (
        (pair.fixed_labels, "fixed_labels"),
        (pair.moving_labels, "moving_labels"),
        (pair.fixed_mask, "fixed_mask"),
    ):
        if volume is not None:
            layers.append(_labels(volume, volume.name, role=role))
    return layers


def add_layers(viewer: Viewer, layers: list[LayerData]) -> list[Layer]:
    """Add layers to a viewer, in the GUI thread; its deformation grids then follow its slider."""
    from napari.layers import Layer

    from napari_shmoareg.plugin.viewer import set_up_viewer
    from napari_shmoareg.plugin.viewer_state import keep_view

    viewer = unwrap(viewer)
    set_up_viewer(viewer)
    before = viewer.layers.selection.active
    with keep_view(viewer):
        made = [Layer.create(data, options, kind) for data, options, kind in layers]
        added = [viewer.add_layer(layer) for layer in made]
    shown = [layer for layer in added if layer.visible]
    viewer.layers.selection.active = shown[-1] if shown else before
    return added


def contrast(fixed: Volume, moving: Volume) -> tuple[tuple[float, float], tuple[float, float]]:
    """Contrast limits of the fixed and of the moving image.

    Ours: percentiles of the content of each image; if the two ranges agree to within a quarter (one
    scanner, or the fixed scale of CT), the same limits for both, so that equal tissue looks equal.
    """
    a, b = _range(fixed), _range(moving)
    both = min(a[0], b[0]), max(a[1], b[1])
    span = both[1] - both[0]
    if min(a[1] - a[0], b[1] - b[0]) >= 0.75 * span:
        return both, both
    return a, b


def initial_gate(registration: Registration) -> GateValues:
    """The gate of the initial head map: the finest of the fixed image, last block."""
    from napari_shmoareg.experts.maps import token_loads

    loads = token_loads(registration)
    of_fixed = [load for load in loads if load.image == "fixed"] or loads
    finest = min(load.stride for load in of_fixed)
    return [load for load in of_fixed if load.stride == finest][-1]


def head_map(registration: Registration, number: int, load: GateValues, head: int) -> LayerData:
    """Weight of an attention head at every token, or the number of blocks that chose it, on the
    tokens' own grid.
    """
    counts = load.block is None
    where = f"layer {load.layer}" + ("" if counts else f" block {load.block}")
    volume = load.volume(head)
    data, options = layer_options(
        volume,
        finer=FINER,
        nearest=True,
        registration=registration,
        number=number,
        role="head_map",
        load=load,
        head=head,
    )
    options["name"] = f"#{number} head {head} of {where} ({load.image})" + (
        ", times chosen" if counts else ""
    )
    top = float(load.values.max(initial=0)) if counts else 1.0
    low, equal, high = weight_range(load)
    options |= {
        "colormap": head_colours() if counts else weight_colours(low, equal, high),
        "contrast_limits": (0.0, max(top, 1e-6)),
        "rendering": "translucent",
    }
    return data, options | {"interpolation2d": "nearest", "opacity": 0.8, "visible": False}, "image"


def weight_range(load: GateValues) -> tuple[float, float, float]:
    """Lowest colour, 1/k and highest colour for the weights of chosen heads: the largest deviation
    from 1/k to either side (99th percentile).
    """
    equal = 1 / max(load.top_k, 1)
    chosen = load.values[load.values > 0]
    away = float(np.percentile(np.abs(chosen - equal), 99)) if chosen.size else 0.0
    away = min(max(away, 1e-3), 0.99 * equal, 1.001 - equal)
    return equal - away, equal, equal + away


def weight_colours(low: float, equal: float, high: float) -> dict[str, Any]:
    """Transparent where a head was not chosen; violet below a weight of 1/k, pink at it, yellow
    above.
    """
    colours = [(*rgb, 1.0) for rgb in ((0.37, 0.0, 0.66), (0.8, 0.28, 0.47), (0.98, 0.9, 0.2))]
    edge = max(low - 1e-4, 1e-5)
    controls = [0.0, edge / 2, edge, equal, min(high, 1 - 1e-5), 1.0]
    return {
        "colors": np.array([(0, 0, 0, 0), (0, 0, 0, 0), *colours, colours[-1]]),
        "controls": np.array(controls),
        "name": f"weight {low:.4f} to {high:.4f}",
    }


def window_colours(low: float) -> dict[str, Any]:
    """Attention within a window: transparent outside, violet to yellow over the values inside, from
    a share `low` of the largest one.
    """
    inside = [(0.37, 0.0, 0.66, 0.75), (0.8, 0.28, 0.47, 0.85), (0.98, 0.9, 0.2, 1.0)]
    edge = max(low - 1e-3, 1e-6)
    return {
        "colors": np.array([(0, 0, 0, 0), (0, 0, 0, 0), *inside]),
        "controls": np.array([0.0, edge / 2, edge, (edge + 1) / 2, 1.0]),
        "name": f"attention from {low:.4f}",
    }


def head_colours() -> dict[str, Any]:
    """Transparent where a head was not chosen, then red to yellow."""
    colours = [
        (0.55, 0.0, 0.25, 0.0),
        (0.75, 0.1, 0.2, 0.45),
        (0.95, 0.45, 0.05, 0.75),
        (1.0, 0.95, 0.4, 1.0),
    ]
    return {
        "colors": np.array(colours),
        "controls": np.array([0.0, 1 / 3, 2 / 3, 1.0]),
        "name": "head",
    }


def resolution(stride: int) -> str:
    """Resolution relative to the network grid: "full", "half", "1/4" and so on."""
    return RESOLUTIONS.get(stride, f"1/{stride}")


def expert_names(registration: Registration, count: int) -> list[str]:
    """Names of the decoder's experts, by id: the size of their convolution if known."""
    kernels = registration.kernels
    return (
        [f"{k}×{k}×{k}" for k in kernels]
        if len(kernels) == count
        else [f"expert {n}" for n in range(count)]
    )


AIR = 0  # value of a cell without content, where air is left out


def expert_map_layer(
    registration: Registration,
    number: int,
    expert_map: ExpertMap,
    *,
    air: bool = False,
    palette: str | None = None,
) -> LayerData:
    """One expert map; the status bar names the expert under the cursor.

    Parameters
    ----------
    registration : Registration
    number : int
    expert_map : ExpertMap
    air : bool
        Also draw cells that show only air in the fixed image.
    palette : str, optional
        Of `EXPERT_PALETTES`; default: the one in the preferences.
    """
    from napari_shmoareg.experts.maps import content_cells

    count, gate = expert_map.num_experts, expert_map.gate
    about: dict[str, Any] = {
        "registration": registration,
        "number": number,
        "role": "expert_map",
        "expert_map": expert_map,
        "air": air,
    }
    volume = expert_map.volume
    if not air:
        shown = np.where(content_cells(registration, expert_map.stride), volume.values, AIR)
        volume = type(volume)(shown.astype(np.uint8), volume.grid, volume.name, is_labels=True)
    data, options = layer_options(volume, finer=FINER, **about)
    named = [f"{name} (id {n})" for n, name in enumerate(expert_names(registration, count))]
    options |= {
        "name": f"#{number} expert {gate.direction} ({resolution(expert_map.stride)})",
        "colormap": expert_colormap(count, palette),
        "features": {"index": np.arange(count + 1), "expert": ["air", *named]},
        "opacity": 0.5,
        "visible": False,
    }
    return data, options, "labels"


def expert_colormap(count: int, palette: str | None = None) -> dict[int | None, str]:
    """Colours of an expert map's cells, by expert id + 1."""
    colours: dict[int | None, str] = {0: "transparent", None: "transparent"}
    return colours | dict(enumerate(colours_of_experts(count, palette), start=1))


def colours_of_experts(count: int, palette: str | None = None) -> list[str]:
    """A colour per expert, of a palette or that in the preferences."""
    from napari_shmoareg.figures.palette import expert_colours
    from napari_shmoareg.plugin.preferences import expert_palette

    return expert_colours(count, palette or expert_palette())


def _jacobian(registration: Registration, number: int, about: dict[str, Any]) -> list[LayerData]:
    """The Jacobian determinant, transparent where the volume is unchanged, and the folding, if
    any.
    """
    values = registration.jacobian.values
    folded = values <= 0
    share = 100 * float(folded.mean())
    data, options = layer_options(
        registration.jacobian, outside=1.0, **about, role="jacobian", folding_percent=share
    )
    most = jacobian_range(values)
    options |= {
        "name": f"#{number} Jacobian",
        "colormap": jacobian_colours(most),
        "contrast_limits": (1 / most, most),
        "rendering": "translucent",
        "visible": False,
    }
    layers: list[LayerData] = [(data, options, "image")]
    if folded.any():
        volume = type(registration.jacobian)(
            folded.astype(np.uint8), registration.jacobian.grid, "folding", is_labels=True
        )
        data, options = layer_options(volume, **about, role="folding", folding_percent=share)
        options |= {
            "name": f"#{number} folding",
            "colormap": {0: "transparent", 1: FOLDS, None: "transparent"},
            "features": {"index": [0, 1], "folding": ["no", "yes: determinant 0 or less"]},
            "opacity": 1.0,
            "visible": False,
        }
        layers.append((data, options, "labels"))
    return layers


def jacobian_range(values: NDArray) -> float:
    """Largest volume ratio of the Jacobian's colours: 1.5, 2, 3 or 4."""
    change = np.abs(np.log(values[values > 0]))
    reached = float(np.exp(np.percentile(change, 99.5))) if change.size else 1.0
    return next((most for most in (1.5, 2.0, 3.0) if reached <= most), 4.0)


def jacobian_colours(most: float) -> dict[str, Any]:
    """Purple shrinks, orange grows, 1 is transparent; on a log scale, so that half and twice are
    equally strong.
    """
    ratio = np.linspace(-1, 1, 33)  # of the logarithms
    positions = (most**ratio - 1 / most) / (most - 1 / most)
    rgb = {
        side: np.array([int(code[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        for side, code in _SIDES.items()
    }
    colours = [[*rgb[bool(r > 0)], min(1.0, 1.2 * abs(r))] for r in ratio]
    positions[0], positions[-1] = 0.0, 1.0
    return {
        "colors": np.array(colours),
        "controls": positions,
        "name": f"Jacobian {1 / most:.2g} to {most:g}",
    }


_SIDES = {False: SHRINKS, True: GROWS}


def _image(volume: Volume, limits: tuple[float, float], name: str, **about: Any) -> LayerData:
    data, options = layer_options(volume, **about)
    return data, options | {"name": name, "colormap": "gray", "contrast_limits": limits}, "image"


def _labels(volume: Volume, name: str, **about: Any) -> LayerData:
    """Labels as outlines in the colour of their image, so that the images stay visible."""
    data, options = layer_options(volume, **about)
    options |= {"name": name, "opacity": 0.9, "visible": False}
    return data, options | {"colormap": outline_colours(about["role"])}, "labels"


def outline_colours(role: str) -> dict[int | None, str]:
    """One colour for all labels of the moving, fixed or warped image, for outlines."""
    from napari_shmoareg.figures.palette import OUTLINE_COLOURS

    return {0: "transparent", None: OUTLINE_COLOURS[role.removesuffix("_labels")]}


def _range(volume: Volume) -> tuple[float, float]:
    """Intensity range of the content; of the finite values if the image is constant or has NaN."""
    from napari_shmoareg.registration.intensity import Intensity

    values = volume.values
    finite = values if values.dtype.kind in "biu" else values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < high and finite.size == values.size:
        scale = Intensity.of(volume)
        low, high = scale.low, scale.high
    return (low, high) if low < high else (low, low + 1.0)
