"""Figures of the experts and their captions: maps, loads, loads at a location.

Fig. 4-6, Sec. V-D.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.experts.location import BOUNDARY, LocationLoad
from napari_shmoareg.experts.maps import ExpertMap, expert_maps
from napari_shmoareg.figures.palette import IMAGE_COLOURS, expert_colours
from napari_shmoareg.figures.panels import (
    View,
    cut,
    draw_convention,
    extent,
    legend,
    letters,
    middle,
    page,
    scaled,
    show,
)
from napari_shmoareg.model.routing import GateId
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.register import Registration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


EXPERTS_ARE = {"encoder": "expert: attention head", "decoder": "expert: convolution kernel"}
RESOLUTIONS = {1: "full resolution", 2: "1/2 resolution", 4: "1/4 resolution", 8: "1/8 resolution"}


def expert_map_figure(
    registration: Registration,
    *,
    kernels: Sequence[int] | None = None,
    view: View = "axial",
    point: NDArray | None = None,
) -> Figure:
    """Draw expert maps of each decoder layer and direction beside the warped image.  Fig. 4.

    Maps are not resampled: each is drawn with the voxels of its own grid.

    Parameters
    ----------
    registration : Registration
    kernels : sequence of int, optional
        Kernel size of each expert, for the legend: `SHMoARegConfig.kernels`.  Default: 1, 3, 5 for
        three experts, otherwise only ids are shown.
    view : {"sagittal", "coronal", "axial"}
    point : (3,) world position, mm RAS, optional
        Point in the plane; default: the `middle` of the fixed image.

    Raises
    ------
    ValueError
        If the network has no SHMoE layer, or not as many experts as `kernels`.
    """
    from matplotlib.colors import ListedColormap

    maps = expert_maps(registration)
    if not maps:
        raise ValueError(
            "This network has no SHMoE layer in its decoder and so no expert maps to draw."
        )
    count = max(m.num_experts for m in maps)
    if kernels is None and count == 3:
        kernels = (1, 3, 5)
    if kernels is not None and len(kernels) != count:
        raise ValueError(
            f"{count} kernel sizes were expected, one per expert; got {tuple(kernels)}."
        )
    rows: dict[int, list[ExpertMap]] = {}
    for expert_map in sorted(maps, key=lambda m: (m.stride, m.direction or "")):
        rows.setdefault(expert_map.stride, []).append(expert_map)
    grids = [registration.pair.fixed.grid, registration.network_grid]
    sizes = [extent(grid, view) for grid in grids]
    figure, spec = page(
        [max(w for w, _ in sizes)] * (1 + max(len(row) for row in rows.values())),
        [max(h for _, h in sizes)] * len(rows),
        right=0.1,
    )
    point = middle(registration.pair.fixed) if point is None else point
    colours = expert_colours(count, "paper")
    warped = scaled(cut(registration.warped, point, view), Intensity.of(registration.pair.moving))
    for n, (stride, row) in enumerate(rows.items()):
        axes = figure.add_subplot(spec[n, 0])
        show(axes, warped, cmap="gray", vmin=0, vmax=1)
        letters(axes, warped)
        axes.set_ylabel(RESOLUTIONS.get(stride, f"1/{stride} resolution"), fontsize=10)
        for column, expert_map in enumerate(row, start=1):
            axes = figure.add_subplot(spec[n, column])
            cutting = cut(expert_map.volume, point, view)
            show(axes, cutting, cmap=ListedColormap(colours), vmin=0.5, vmax=count + 0.5)
            if n == 0:
                axes.set_title(f"{expert_map.direction}-direction", fontsize=10)
    left, right, bottom, top = np.array(
        [[*axes.get_xlim(), *axes.get_ylim()] for axes in figure.axes]
    ).T
    for axes in figure.axes:
        axes.set(
            xlim=(left.min(), right.max()), ylim=(bottom.min(), top.max()), facecolor="#dee2e6"
        )
    figure.axes[0].set_title(f"warped ({view})", fontsize=10)
    draw_convention(figure)
    names = [f"expert {n}" for n in range(count)]
    if kernels is not None:
        names = [
            f"{name}: {size}\u00d7{size}\u00d7{size}"
            for name, size in zip(names, kernels, strict=True)
        ]
    legend(figure, dict(zip(names, colours, strict=True)))
    return figure


def load_figure(
    load: ExpertLoad,
    *,
    spread: Mapping[GateId, NDArray[np.float64]] | None = None,
    caption: str = "",
) -> Figure:
    """Draw the share of selections of every expert, per layer and block or direction.  Fig. 5.

    Parameters
    ----------
    load : ExpertLoad
        Of one pair, or the sum over pairs.  A dotted line marks equal shares.
    spread : mapping of GateId to (N,) array, optional
        Half the length of the error bars: the standard deviation of shares over pairs
        (`share_spread`).
    caption : str
        Text below the figure.

    Raises
    ------
    ValueError
        If the load is empty, for a network without experts.
    """
    from matplotlib.figure import Figure

    if not len(load):
        raise ValueError("This network has no experts (no MoA, no SHMoE) and so no load to draw.")
    parts = {part: _rows(load.select(part=part)) for part in ("encoder", "decoder")}
    parts = {part: rows for part, rows in parts.items() if rows}
    columns = max(len(panels) for rows in parts.values() for _, panels in rows)
    heights = [1.6 * len(rows) + 0.45 for rows in parts.values()]
    figure = Figure(
        figsize=(max(2.7 * columns, 5.5), sum(heights) + 0.3), dpi=150, layout="constrained"
    )
    figure.suptitle("Share of selections per expert (dotted: equal shares)", fontsize=11)
    pieces = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for piece, (part, rows) in zip(pieces, parts.items(), strict=True):
        _panels(piece, rows, spread or {})
        piece.supxlabel(EXPERTS_ARE[part], fontsize=8)
    add_caption(figure, caption)
    return figure


def add_caption(figure: Figure, caption: str) -> None:
    """Add a wrapped caption at the bottom of a figure with constrained layout."""
    if caption:
        lines = wrap(caption, int(19 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")


Bars = dict[GateId, np.ndarray]
Spread = Mapping[GateId, NDArray[np.float64]]


def _rows(load: ExpertLoad) -> list[tuple[str, list[tuple[str, Bars]]]]:
    """Group shares into a row per layer, a panel per block or direction, bars per image."""
    layers: dict[tuple[str, int], dict[str, Bars]] = {}
    for gate, share in load.share.items():
        if gate.part == "encoder":
            name = "all blocks" if gate.block is None else f"block {gate.block}"
        else:
            name = gate.direction or ""
        layers.setdefault((gate.part, gate.layer), {}).setdefault(name, {})[gate] = share
    return [
        (f"{part} layer {layer}", sorted(panels.items()))
        for (part, layer), panels in sorted(layers.items())
    ]


def _panels(
    piece: SubFigure, rows: list[tuple[str, list[tuple[str, Bars]]]], spread: Spread
) -> None:
    """Draw the layers of one part at the same scale."""
    grid = piece.add_gridspec(len(rows), max(len(panels) for _, panels in rows))
    all_bars = [bars for _, panels in rows for _, bars in panels]
    highest = max(
        float((share + spread.get(p, 0)).max()) for bars in all_bars for p, share in bars.items()
    )
    for n, (title, panels) in enumerate(rows):
        for column, (name, bars) in enumerate(panels):
            axes = piece.add_subplot(grid[n, column])
            _bars(axes, bars, spread)
            axes.set_title(f"{title}, {name}" if name else title, fontsize=8.5)
            axes.set_ylim(0, 105 * highest)
            if column == 0:
                axes.set_ylabel("share (%)", fontsize=8)
            if n == column == 0 and len(bars) > 1:
                axes.legend(fontsize=7, frameon=False, loc="best", handlelength=1, borderpad=0.1)


def _bars(axes: Axes, bars: Bars, spread: Spread) -> None:
    width = 0.8 / len(bars)
    for n, (gate, share) in enumerate(bars.items()):
        ids = np.arange(len(share))
        colours = (
            expert_colours(len(share), "paper") if gate.image is None else IMAGE_COLOURS[gate.image]
        )
        at = ids + (n - (len(bars) - 1) / 2) * width
        axes.bar(
            at,
            100 * share,
            width,
            color=colours,
            edgecolor="0.35",
            linewidth=0.4,
            label=gate.image,
        )
        if gate in spread:
            axes.errorbar(
                at,
                100 * share,
                100 * spread[gate],
                fmt="none",
                ecolor="0.15",
                elinewidth=0.7,
                capsize=1.2,
            )
    axes.axhline(100 / len(share), color="0.3", linewidth=0.8, linestyle=":")
    axes.set_xticks(ids)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


CELLS = {"encoder": "token", "decoder": "voxel"}
CAUTION = (
    "A load is how often an expert was chosen, not how much it contributed or whether the choice"
    " was good. Only an intervention (silence or force it, and rerun) shows what depends on it."
)
DEFAULT_LOCATIONS = (
    "The locations are fractions of the bounding box of the content of {fixed}, in its central"
    " axial plane (the centre; at a quarter and three quarters across; upper is anterior, left is"
    " the patient's left){why}"
)
GIVEN_LOCATIONS = (
    "The locations are world positions of the fixed images (mm, RAS), as requested; each is inside"
    " all of them"
)


def load_caption(
    load: ExpertLoad, pairs: int, passes: Iterable[int | None] = (1,), routing: str = ""
) -> str:
    """Return the caption of Fig. 5 (`load_figure`).

    Parameters
    ----------
    load : ExpertLoad
        Sum over all pairs.
    pairs : int
    passes : iterable of int or None
        Number of passes per pair, None if unknown; the loads are of the last pass.
    routing : str
        Whether the routing of these weights matters, from their card (`routing_sentence`).
    """
    cells = {part: sum(load.select(part=part).cells.values()) for part in ("encoder", "decoder")}
    counted = [
        f"{cells[part]:,} decisions of the {part}'s gates (each gate decides once per {what})"
        for part, what in CELLS.items()
        if cells[part]
    ]
    bars = "Error bars: standard deviation over the pairs of each pair's own share."
    return (
        "Share of selections: the fraction of all choices of a gate that selected an expert; it"
        f" sums to 100 % over the experts of a gate ({_choices(load)}). Counted: {_pairs(pairs)},"
        f" {' and '.join(counted)}, including the background. "
        f"{bars if pairs > 1 else 'No error bars for one pair.'}"
        f"{_last(passes)}{_appended(routing)}"
    )


def location_caption(
    load: LocationLoad,
    pairs: int,
    *,
    given: bool,
    voxel: str,
    detail: str = "",
    passes: Iterable[int | None] = (1,),
    routing: str = "",
) -> str:
    """Return the caption of Fig. 6 (`location_figure`).

    Parameters
    ----------
    load : LocationLoad
        Sum over all pairs.
    pairs : int
    given : bool
        Whether the locations were given by the user; otherwise they are the five of `FRACTIONS`.
    voxel : str
        Location of the decoder's panels.
    detail : str
        Further text on it: which labels meet there, how many pairs have such a boundary.
    passes, routing
        As in `load_caption`.
    """
    if voxel == BOUNDARY:
        where = (
            "the voxel on a boundary between two labels of the fixed image nearest to the"
            f" centre{detail}"
        )
    else:
        reason = (
            f", as there is no boundary of labels in {'any' if pairs > 1 else 'the'} fixed image"
        )
        where = f"the location '{voxel}'{'' if given else reason}"
    many = (
        "each pair's own fixed image",
        ", because the fixed images of a list need not share a space",
    )
    fixed, why = many if pairs > 1 else ("the fixed image", "")
    locations = GIVEN_LOCATIONS if given else DEFAULT_LOCATIONS.format(fixed=fixed, why=why)
    return (
        "Share of tokens: how often the token (voxel) that contains a location chose an expert,"
        f" over {_pairs(pairs)} and the blocks of a layer; it sums to k times 100 % over the"
        f" experts ({_choices(load[voxel])}). {locations}. Tokens of the moving image are those at"
        " the same location after the affine and any earlier passes."
        f" (b): {where}. No error bars: at one location, a pair selects an expert or not, once per"
        f" block.{_heights(load[voxel]) if pairs == 1 else ''}{_last(passes)}{_appended(routing)}"
    )


def _appended(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


def _heights(load: ExpertLoad) -> str:
    """List the possible heights of the bars of one pair, as a sentence."""
    texts = dict[str, str]()
    for part, panel in (("encoder", "(a)"), ("decoder", "(b)")):
        blocks = set(load.over_blocks().select(part=part).cells.values())
        heights = [
            f"{100 * share:.3g}"
            for share in sorted({n / count for count in blocks for n in range(count + 1)})
        ]
        if heights:
            texts[panel] = f"{', '.join(heights[:-1])} or {heights[-1]} %"
    if len(set(texts.values())) == 1:
        return f" With one pair a bar can only be {next(iter(texts.values()))}."
    return (
        " With one pair a bar can only be"
        f" {', '.join(f'{height} in {panel}' for panel, height in texts.items())}."
    )


def _choices(load: ExpertLoad) -> str:
    """Describe k and N per part: "a token chooses k = 4 of 12, ..."."""
    words = {"encoder": ("a token chooses", ""), "decoder": ("a voxel chooses", " per direction")}
    texts = []
    for part, (chooses, after) in words.items():
        found = load.select(part=part)
        kinds = {
            (int(counts.sum()) // found.cells[gate], len(counts))
            for gate, counts in found.counts.items()
        }
        texts += [f"{chooses} k = {k} of {n}{after}" for k, n in sorted(kinds)]
    return ", ".join(texts)


def _pairs(pairs: int) -> str:
    return f"{pairs} pairs" if pairs > 1 else "one pair"


def _last(passes: Iterable[int | None]) -> str:
    found = set(passes)
    known = sorted(n for n in found if n is not None)
    if len(known) < len(found):
        return (
            " Of the network's last pass over a pair; the number of passes was not saved for every"
            " pair."
        )
    if len(known) > 1:
        return (
            f" Of the last of the network's passes over a pair ({known[0]} to {known[-1]}, by the"
            " size of its grid)."
        )
    return (
        f" Of the last of the network's {known[0]} passes over a pair."
        if known and known[0] > 1
        else ""
    )


LOCATION_COLOURS = ("#343a40", "#1c7ed6", "#e8590c", "#2f9e44", "#ae3ec9")


def location_figure(
    load: LocationLoad,
    *,
    tokens: Sequence[str],
    voxel: str,
    kernels: Sequence[int] | None = None,
    caption: str = "",
) -> Figure:
    """Draw how often the cells at locations chose each expert (shares sum to k).  Fig. 6.

    Parameters
    ----------
    load : LocationLoad
        Of one pair, or the sum over pairs.
    tokens : sequence of str
        Locations (at most five) of the encoder's panels, Fig. 6(a): one panel per layer and image,
        summed over blocks, a colour per location.
    voxel : str
        Location of the decoder's panels, Fig. 6(b): one per layer, a group of bars per direction.
    kernels : sequence of int, optional
        Kernel size of each decoder expert, for the legend.
    caption : str
        Text below the figure.

    Raises
    ------
    ValueError
        If there is nothing to draw, a location is not in the load, or there are more locations than
        colours.
    """
    from matplotlib.figure import Figure

    unknown = [name for name in (*tokens, voxel) if name not in load.loads]
    if unknown or len(tokens) > len(LOCATION_COLOURS):
        raise ValueError(
            f"Up to {len(LOCATION_COLOURS)} locations of {list(load)} can be drawn; got"
            f" {[*tokens, voxel]}."
        )
    whole = load.over_blocks()
    encoder = {name: whole[name].select(part="encoder") for name in tokens}
    encoder = {name: found for name, found in encoder.items() if len(found)}
    decoder = whole[voxel].select(part="decoder")
    layers = {gate.layer for found in encoder.values() for gate in found}
    heights = [1.45 * len(layers) + 0.75] * bool(encoder) + [2.2] * bool(len(decoder))
    if not heights:
        raise ValueError("This network has no experts (no MoA, no SHMoE) and so no load to draw.")
    figure = Figure(figsize=(8.1, sum(heights) + 0.5), dpi=150, layout="constrained")
    figure.suptitle(
        "How often a location chose each expert: share of tokens (dotted: equal shares)",
        fontsize=11,
    )
    pieces = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if encoder:
        _encoder(pieces.pop(0), encoder)
    if len(decoder):
        _decoder(pieces.pop(0), decoder, voxel, kernels)
    add_caption(figure, caption)
    return figure


def _encoder(piece: SubFigure, loads: Mapping[str, ExpertLoad]) -> None:
    """Draw a row of panels per layer, a column per image, a colour per location."""
    gates = list(dict.fromkeys(gate for load in loads.values() for gate in load))
    images = list(dict.fromkeys(gate.image for gate in gates))
    layers = sorted({gate.layer for gate in gates})
    panels = piece.subplots(len(layers), len(images), squeeze=False)
    for gate in gates:
        axes = panels[layers.index(gate.layer), images.index(gate.image)]
        bars = {
            name: load.share_of_tokens[gate] for name, load in loads.items() if gate in load.counts
        }
        chance = next(
            load.counts[gate].sum() / load.cells[gate]
            for load in loads.values()
            if gate in load.counts
        )
        _grouped(axes, bars, dict(zip(loads, LOCATION_COLOURS, strict=False)), chance)
        axes.set_title(f"(a) encoder layer {gate.layer}, {gate.image}", fontsize=8.5)
    _label(panels, "share of tokens (%)", EXPERTS_ARE["encoder"])
    _legend(piece, dict(zip(loads, LOCATION_COLOURS, strict=False)))


def _decoder(piece: SubFigure, load: ExpertLoad, voxel: str, kernels: Sequence[int] | None) -> None:
    """Draw a panel per layer: a group of bars per direction, a colour per expert."""
    layers = sorted({gate.layer for gate in load})
    panels = piece.subplots(1, len(layers), squeeze=False)
    count = max(len(counts) for counts in load.counts.values())
    names = [f"expert {n}" for n in range(count)]
    if kernels is not None and len(kernels) == count:
        names = [
            f"{name}: {size}\u00d7{size}\u00d7{size}"
            for name, size in zip(names, kernels, strict=True)
        ]
    colours = dict(zip(names, expert_colours(count, "paper"), strict=True))
    for axes, layer in zip(panels[0], layers, strict=True):
        gates: list[GateId] = sorted(
            load.select(layer=layer), key=lambda gate: gate.direction or ""
        )
        shares = np.array([load.share_of_tokens[gate] for gate in gates])
        chance = load.counts[gates[0]].sum() / load.cells[gates[0]]
        _grouped(axes, dict(zip(names, shares.T, strict=True)), colours, chance, among=count)
        axes.set_xticks(range(len(gates)), [f"{gate.direction}" for gate in gates])
        axes.set_title(f"(b) decoder layer {layer}, {voxel}", fontsize=8.5)
    _label(panels, "share of voxels (%)", "direction of the displacement")
    _legend(piece, colours)


def _grouped(
    axes: Axes,
    bars: Mapping[str, NDArray],
    colours: Mapping[str, str],
    chosen: float,
    *,
    among: int | None = None,
) -> None:
    """Draw grouped bars, a colour per name, and a dotted line at equal shares of all N experts."""
    width = 0.84 / len(colours)
    for n, (name, colour) in enumerate(colours.items()):
        if name in bars:
            at = np.arange(len(bars[name])) + (n - (len(colours) - 1) / 2) * width
            axes.bar(at, 100 * bars[name], width, color=colour, edgecolor="0.35", linewidth=0.3)
    longest = max(len(share) for share in bars.values())
    axes.axhline(100 * chosen / (among or longest), color="0.3", linewidth=0.8, linestyle=":")
    for edge in range(longest - 1):
        axes.axvline(edge + 0.5, color="0.88", linewidth=0.6, zorder=0)
    axes.set_xticks(range(longest))
    axes.set_xlim(-0.6, longest - 0.4)
    axes.set_ylim(0, 103)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(panels: NDArray, left: str, under: str) -> None:
    for axes in panels[:, 0]:
        axes.set_ylabel(left, fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel(under, fontsize=8)


def _legend(piece: SubFigure, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=colour, edgecolor="0.4", label=name) for name, colour in colours.items()
    ]
    piece.legend(
        handles=patches, loc="outside upper center", ncols=len(patches), fontsize=8, frameon=False
    )
