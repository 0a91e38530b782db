"""Pictures of the experts' load at single places.  Fig. 6, Sec. V-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.expert_figures import EXPERTS_ARE, below
from napari_shmoareg.analysis.expert_load import ExpertLoad, Place
from napari_shmoareg.analysis.expert_palette import expert_colours
from napari_shmoareg.analysis.place_load import PlaceLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

PLACE_COLOURS = ("#343a40", "#1c7ed6", "#e8590c", "#2f9e44", "#ae3ec9")


def place_figure(
    load: PlaceLoad, *, tokens: Sequence[str], voxel: str, kernels: Sequence[int] | None = None, caption: str = ""
) -> Figure:
    """How often the cells at some places chose each expert: share of tokens, which sums to k.  Fig. 6.

    Parameters
    ----------
    load : PlaceLoad
        Of one pair or of many added up.
    tokens : sequence of str
        The places (at most five) of the encoder's panels, Fig. 6(a): one per layer and image, the blocks of a
        layer added up, a colour per place.
    voxel : str
        The place of the decoder's panels, Fig. 6(b): one per layer, a group of bars per direction.
    kernels : sequence of int, optional
        Kernel size of each decoder expert, for the legend.
    caption : str
        Lines below: of how many pairs, which places, which share.

    Raises
    ------
    ValueError
        If there is nothing to draw, a place is not in the load, or there are more places than colours.
    """
    from matplotlib.figure import Figure

    unknown = [name for name in (*tokens, voxel) if name not in load.loads]
    if unknown or len(tokens) > len(PLACE_COLOURS):
        raise ValueError(f"Up to {len(PLACE_COLOURS)} places of {list(load)} can be drawn; got {[*tokens, voxel]}.")
    whole = load.over_blocks()
    encoder = {name: whole[name].select(part="encoder") for name in tokens}
    encoder = {name: found for name, found in encoder.items() if len(found)}
    decoder = whole[voxel].select(part="decoder")
    layers = {place.layer for found in encoder.values() for place in found}
    heights = [1.45 * len(layers) + 0.75] * bool(encoder) + [2.2] * bool(len(decoder))
    if not heights:
        raise ValueError("This network has no experts (no MoA, no SHMoE), so there is no load to draw.")
    figure = Figure(figsize=(8.1, sum(heights) + 0.5), dpi=150, layout="constrained")
    figure.suptitle("How often a place chose each expert: share of tokens (dotted: all alike)", fontsize=11)
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
        bars = {name: load.share_of_tokens[gate] for name, load in loads.items() if gate in load.counts}
        chance = next(load.counts[gate].sum() / load.cells[gate] for load in loads.values() if gate in load.counts)
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
        names = [f"{name}: {size}\u00d7{size}\u00d7{size}" for name, size in zip(names, kernels, strict=True)]
    colours = dict(zip(names, expert_colours(count), strict=True))
    for axes, layer in zip(panels[0], layers, strict=True):
        gates: list[Place] = sorted(load.select(layer=layer), key=lambda gate: gate.direction or "")
        shares = np.array([load.share_of_tokens[gate] for gate in gates])
        chance = load.counts[gates[0]].sum() / load.cells[gates[0]]
        _grouped(axes, dict(zip(names, shares.T, strict=True)), colours, chance, among=count)
        axes.set_xticks(range(len(gates)), [f"{gate.direction}" for gate in gates])
        axes.set_title(f"(b) decoder layer {layer}, {voxel}", fontsize=8.5)
    _label(panels, "share of voxels (%)", "direction of the displacement")
    _legend(piece, colours)


def _grouped(
    axes: Axes, bars: Mapping[str, NDArray], colours: Mapping[str, str], chosen: float, *, among: int | None = None
) -> None:
    """Bars side by side, a name's in its colour; a dotted line where all N experts are chosen alike."""
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

    patches = [Patch(facecolor=colour, edgecolor="0.4", label=name) for name, colour in colours.items()]
    piece.legend(handles=patches, loc="outside upper center", ncols=len(patches), fontsize=8, frameon=False)
