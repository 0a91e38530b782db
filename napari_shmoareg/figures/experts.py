"""Figures of the experts and their captions: maps, loads, loads at a location.  Fig. 4-6, Sec.
V-D.
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
    extent,
    legend,
    letters,
    middle,
    page,
    say_convention,
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
    """Expert-ID maps of each decoder layer and direction beside the warped image.  Fig. 4.

    Nothing is resampled: each map is drawn with the voxels of its own grid.

    Parameters
    ----------
    registration : Registration
    kernels : sequence of int, optional
        Kernel size of each expert, for the legend: `SHMoARegConfig.kernels`.  Without them
        three experts are taken for the paper's 1, 3, 5, and others are told by their ids alone.
    view : {"sagittal", "coronal", "axial"}
    point : (3,) world position, mm RAS, optional
        Where the plane lies; by default in the `middle` of the fixed image.

    Raises
    ------
    ValueError
        If the network has no SHMoE layer, or not as many experts as `kernels`.
    """
    from matplotlib.colors import ListedColormap

    maps = expert_maps(registration)
    if not maps:
        raise ValueError(
            "This network has no SHMoE layer in its decoder, so there are no expert maps to draw."
        )
    count = max(m.num_experts for m in maps)
    if kernels is None and count == 3:
        kernels = (1, 3, 5)
    if kernels is not None and len(kernels) != count:
        raise ValueError(f"{count} experts need as many kernel sizes; got {tuple(kernels)}.")
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
    colours = expert_colours(count)
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
    say_convention(figure)
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
    """Bars of every expert's share of selections, per encoder layer and block and per decoder
    layer.  Fig. 5.

    Parameters
    ----------
    load : ExpertLoad
        Of one pair or of many added up.  A dotted line marks equal shares.
    spread : mapping of GateId to (N,) array, optional
        Half the length of the error bars, as a share: the standard deviation over pairs
        (`share_spread`).
    caption : str
        A line below: of what the load is, and what the error bars are.

    Raises
    ------
    ValueError
        If the load is empty: a network without experts.
    """
    from matplotlib.figure import Figure

    if not len(load):
        raise ValueError(
            "This network has no experts (no MoA, no SHMoE), so there is no load to draw."
        )
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
    below(figure, caption)
    return figure


def below(figure: Figure, caption: str) -> None:
    """A small caption at the foot of a figure of constrained layout, broken into lines that fit its
    width.
    """
    if caption:
        lines = wrap(caption, int(19 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")


Bars = dict[GateId, np.ndarray]
Spread = Mapping[GateId, NDArray[np.float64]]


def _rows(load: ExpertLoad) -> list[tuple[str, list[tuple[str, Bars]]]]:
    """One row per layer, one panel per block or direction, one set of bars per image."""
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
    """Draw the layers of one part, all on one scale."""
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
        colours = expert_colours(len(share)) if gate.image is None else IMAGE_COLOURS[gate.image]
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
    "A load says how often an expert was chosen: not how much it contributed, nor that it chose"
    " well. Only an intervention (silence or force it, and run again) shows what depends on it."
)
FIVE = (
    "The places are fractions of the box around the content of {fixed}, in its axial middle plane"
    " (the centre; a quarter and three quarters across; upper is the front, left is the patient's"
    " left){why}"
)
GIVEN = (
    "The places are positions in the world of the fixed images (mm, RAS), as asked; each lies in"
    " every one of them"
)


def load_caption(
    load: ExpertLoad, pairs: int, passes: Iterable[int | None] = (1,), routing: str = ""
) -> str:
    """What the bars and the error bars of Fig. 5 (`load_figure`) are.

    Parameters
    ----------
    load : ExpertLoad
        Of all pairs added up.
    pairs : int
    passes : iterable of int or None
        How often the network ran on each pair; the loads are of the last time.  None: that is not
        known.
    routing : str
        Whether the routing of these weights matters, as their card says (`routing_sentence`).
    """
    cells = {part: sum(load.select(part=part).cells.values()) for part in ("encoder", "decoder")}
    counted = [
        f"{cells[part]:,} decisions of the {part}'s gates (each gate decides once per {what})"
        for part, what in CELLS.items()
        if cells[part]
    ]
    bars = "Error bars: standard deviation over the pairs of each pair's own share."
    return (
        "Share of selections: of all choices that a gate made, the part that fell on an expert; it"
        " sums to 100 % over "
        f"the experts of a gate ({_choices(load)}). Counted: {_pairs(pairs)},"
        f" {' and '.join(counted)}, those "
        "of the background too. "
        f"{bars if pairs > 1 else 'No error bars: one pair has no spread.'}"
        f"{_last(passes)}{_also(routing)}"
    )


def location_caption(
    load: LocationLoad,
    pairs: int,
    *,
    given: bool,
    voxel: str,
    told: str = "",
    passes: Iterable[int | None] = (1,),
    routing: str = "",
) -> str:
    """What the bars of Fig. 6 (`location_figure`) are.

    Parameters
    ----------
    load : LocationLoad
        Of all pairs added up.
    pairs : int
    given : bool
        Whether the places are positions that a person named; otherwise they are the five of
        `FRACTIONS`.
    voxel : str
        The place of the decoder's panels.
    told : str
        More about it: which labels meet there, how many pairs have such a boundary.
    passes, routing
        As for `load_caption`.
    """
    if voxel == BOUNDARY:
        where = (
            "the voxel on a boundary between two labels of the fixed image that is nearest the"
            f" centre{told}"
        )
    else:
        lacking = (
            f", as there is no boundary of labels in {'any' if pairs > 1 else 'the'} fixed image"
        )
        where = f"the place '{voxel}'{'' if given else lacking}"
    many = (
        "each pair's own fixed image",
        ", because the fixed images of a list need not share a space",
    )
    fixed, why = many if pairs > 1 else ("the fixed image", "")
    places = GIVEN if given else FIVE.format(fixed=fixed, why=why)
    return (
        "Share of tokens: how often the one token (voxel) that holds a place chose an expert, over"
        f" {_pairs(pairs)} and the blocks of a layer; it sums to k times 100 % over the experts"
        f" ({_choices(load[voxel])}). {places}. Tokens of the moving image are those at the same"
        f" place after the affine and any earlier passes. (b): {where}. No error bars: at one place"
        " a pair says yes or no to an expert, once per"
        f" block.{_heights(load[voxel]) if pairs == 1 else ''}{_last(passes)}{_also(routing)}"
    )


def _also(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


def _heights(load: ExpertLoad) -> str:
    """Which heights the bars of one pair can have: " With one pair a bar can only be 0, 50 or 100 %
    in (a), ...".
    """
    told = dict[str, str]()
    for part, panel in (("encoder", "(a)"), ("decoder", "(b)")):
        blocks = set(load.over_blocks().select(part=part).cells.values())
        heights = [
            f"{100 * share:.3g}"
            for share in sorted({n / count for count in blocks for n in range(count + 1)})
        ]
        if heights:
            told[panel] = f"{', '.join(heights[:-1])} or {heights[-1]} %"
    if len(set(told.values())) == 1:
        return f" With one pair a bar can only be {next(iter(told.values()))}."
    return (
        " With one pair a bar can only be"
        f" {', '.join(f'{height} in {panel}' for panel, height in told.items())}."
    )


def _choices(load: ExpertLoad) -> str:
    """How many experts a cell chooses: "a token chooses k = 4 of 12, a voxel k = 1 of 3 per
    direction".
    """
    words = {"encoder": ("a token chooses", ""), "decoder": ("a voxel chooses", " per direction")}
    told = []
    for part, (chooses, after) in words.items():
        found = load.select(part=part)
        kinds = {
            (int(counts.sum()) // found.cells[gate], len(counts))
            for gate, counts in found.counts.items()
        }
        told += [f"{chooses} k = {k} of {n}{after}" for k, n in sorted(kinds)]
    return ", ".join(told)


def _pairs(pairs: int) -> str:
    return f"{pairs} pairs" if pairs > 1 else "one pair"


def _last(passes: Iterable[int | None]) -> str:
    found = set(passes)
    known = sorted(n for n in found if n is not None)
    if len(known) < len(found):
        return (
            " Of the network's last pass over a pair; how many there were was not kept for every"
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


PLACE_COLOURS = ("#343a40", "#1c7ed6", "#e8590c", "#2f9e44", "#ae3ec9")


def location_figure(
    load: LocationLoad,
    *,
    tokens: Sequence[str],
    voxel: str,
    kernels: Sequence[int] | None = None,
    caption: str = "",
) -> Figure:
    """How often the cells at some places chose each expert: share of tokens, which sums to k.  Fig.
    6.

    Parameters
    ----------
    load : LocationLoad
        Of one pair or of many added up.
    tokens : sequence of str
        The places (at most five) of the encoder's panels, Fig. 6(a): one per layer and image, the
        blocks of a layer added up, a colour per place.
    voxel : str
        The place of the decoder's panels, Fig. 6(b): one per layer, a group of bars per direction.
    kernels : sequence of int, optional
        Kernel size of each decoder expert, for the legend.
    caption : str
        Lines below: of how many pairs, which places, which share.

    Raises
    ------
    ValueError
        If there is nothing to draw, a place is not in the load, or there are more places than
        colours.
    """
    from matplotlib.figure import Figure

    unknown = [name for name in (*tokens, voxel) if name not in load.loads]
    if unknown or len(tokens) > len(PLACE_COLOURS):
        raise ValueError(
            f"Up to {len(PLACE_COLOURS)} places of {list(load)} can be drawn; got"
            f" {[*tokens, voxel]}."
        )
    whole = load.over_blocks()
    encoder = {name: whole[name].select(part="encoder") for name in tokens}
    encoder = {name: found for name, found in encoder.items() if len(found)}
    decoder = whole[voxel].select(part="decoder")
    layers = {gate.layer for found in encoder.values() for gate in found}
    heights = [1.45 * len(layers) + 0.75] * bool(encoder) + [2.2] * bool(len(decoder))
    if not heights:
        raise ValueError(
            "This network has no experts (no MoA, no SHMoE), so there is no load to draw."
        )
    figure = Figure(figsize=(8.1, sum(heights) + 0.5), dpi=150, layout="constrained")
    figure.suptitle(
        "How often a place chose each expert: share of tokens (dotted: all alike)", fontsize=11
    )
    pieces = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if encoder:
        _encoder(pieces.pop(0), encoder)
    if len(decoder):
        _decoder(pieces.pop(0), decoder, voxel, kernels)
    below(figure, caption)
    return figure


def _encoder(piece: SubFigure, loads: Mapping[str, ExpertLoad]) -> None:
    """A row of panels per layer, a column per image, a colour per place."""
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
        _grouped(axes, bars, dict(zip(loads, PLACE_COLOURS, strict=False)), chance)
        axes.set_title(f"(a) encoder layer {gate.layer}, {gate.image}", fontsize=8.5)
    _label(panels, "share of tokens (%)", EXPERTS_ARE["encoder"])
    _legend(piece, dict(zip(loads, PLACE_COLOURS, strict=False)))


def _decoder(piece: SubFigure, load: ExpertLoad, voxel: str, kernels: Sequence[int] | None) -> None:
    """A panel per layer: a group of bars per direction, a colour per expert."""
    layers = sorted({gate.layer for gate in load})
    panels = piece.subplots(1, len(layers), squeeze=False)
    count = max(len(counts) for counts in load.counts.values())
    names = [f"expert {n}" for n in range(count)]
    if kernels is not None and len(kernels) == count:
        names = [
            f"{name}: {size}\u00d7{size}\u00d7{size}"
            for name, size in zip(names, kernels, strict=True)
        ]
    colours = dict(zip(names, expert_colours(count), strict=True))
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
    """Bars side by side, a name's in its colour; a dotted line where all N experts are chosen
    alike.
    """
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
