"""Pictures of the experts: who chose whom, and how often.  Fig. 4 and 5, Sec. V-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.expert_load import ExpertLoad, Place
from napari_shmoareg.analysis.expert_maps import ExpertMap, expert_maps
from napari_shmoareg.analysis.expert_palette import IMAGE_COLOURS, expert_colours
from napari_shmoareg.analysis.panels import extent, legend, letters, page, say_convention, scaled, show
from napari_shmoareg.analysis.slices import View, cut, middle
from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.engine.registration import Registration

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
        raise ValueError("This network has no SHMoE layer in its decoder, so there are no expert maps to draw.")
    count = max(m.num_experts for m in maps)
    if kernels is None and count == 3:
        kernels = (1, 3, 5)
    if kernels is not None and len(kernels) != count:
        raise ValueError(f"{count} experts need as many kernel sizes; got {tuple(kernels)}.")
    rows: dict[int, list[ExpertMap]] = {}
    for expert_map in sorted(maps, key=lambda m: (m.stride, m.place.direction or "")):
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
                axes.set_title(f"{expert_map.place.direction}-direction", fontsize=10)
    left, right, bottom, top = np.array([[*axes.get_xlim(), *axes.get_ylim()] for axes in figure.axes]).T
    for axes in figure.axes:
        axes.set(xlim=(left.min(), right.max()), ylim=(bottom.min(), top.max()), facecolor="#dee2e6")
    figure.axes[0].set_title(f"warped ({view})", fontsize=10)
    say_convention(figure)
    names = [f"expert {n}" for n in range(count)]
    if kernels is not None:
        names = [f"{name}: {size}\u00d7{size}\u00d7{size}" for name, size in zip(names, kernels, strict=True)]
    legend(figure, dict(zip(names, colours, strict=True)))
    return figure


def load_figure(
    load: ExpertLoad, *, spread: Mapping[Place, NDArray[np.float64]] | None = None, caption: str = ""
) -> Figure:
    """Bars of every expert's share of selections, per encoder layer and block and per decoder layer.  Fig. 5.

    Parameters
    ----------
    load : ExpertLoad
        Of one pair or of many added up.  A dotted line marks equal shares.
    spread : mapping of Place to (N,) array, optional
        Half the length of the error bars, as a share: the standard deviation over pairs (`share_spread`).
    caption : str
        A line below: of what the load is, and what the error bars are.

    Raises
    ------
    ValueError
        If the load is empty: a network without experts.
    """
    from matplotlib.figure import Figure

    if not len(load):
        raise ValueError("This network has no experts (no MoA, no SHMoE), so there is no load to draw.")
    parts = {part: _rows(load.select(part=part)) for part in ("encoder", "decoder")}
    parts = {part: rows for part, rows in parts.items() if rows}
    columns = max(len(panels) for rows in parts.values() for _, panels in rows)
    heights = [1.6 * len(rows) + 0.45 for rows in parts.values()]
    figure = Figure(figsize=(max(2.7 * columns, 5.5), sum(heights) + 0.3), dpi=150, layout="constrained")
    figure.suptitle("Share of selections per expert (dotted: equal shares)", fontsize=11)
    pieces = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for piece, (part, rows) in zip(pieces, parts.items(), strict=True):
        _panels(piece, rows, spread or {})
        piece.supxlabel(EXPERTS_ARE[part], fontsize=8)
    below(figure, caption)
    return figure


def below(figure: Figure, caption: str) -> None:
    """A small caption at the foot of a figure of constrained layout, broken into lines that fit its width."""
    if caption:
        lines = wrap(caption, int(19 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")


Bars = dict[Place, np.ndarray]
Spread = Mapping[Place, NDArray[np.float64]]


def _rows(load: ExpertLoad) -> list[tuple[str, list[tuple[str, Bars]]]]:
    """One row per layer, one panel per block or direction, one set of bars per image."""
    layers: dict[tuple[str, int], dict[str, Bars]] = {}
    for place, share in load.share.items():
        if place.part == "encoder":
            name = "all blocks" if place.block is None else f"block {place.block}"
        else:
            name = place.direction or ""
        layers.setdefault((place.part, place.layer), {}).setdefault(name, {})[place] = share
    return [(f"{part} layer {layer}", sorted(panels.items())) for (part, layer), panels in sorted(layers.items())]


def _panels(piece: SubFigure, rows: list[tuple[str, list[tuple[str, Bars]]]], spread: Spread) -> None:
    """Draw the layers of one part, all on one scale."""
    grid = piece.add_gridspec(len(rows), max(len(panels) for _, panels in rows))
    all_bars = [bars for _, panels in rows for _, bars in panels]
    highest = max(float((share + spread.get(p, 0)).max()) for bars in all_bars for p, share in bars.items())
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
    for n, (place, share) in enumerate(bars.items()):
        ids = np.arange(len(share))
        colours = expert_colours(len(share)) if place.image is None else IMAGE_COLOURS[place.image]
        at = ids + (n - (len(bars) - 1) / 2) * width
        axes.bar(at, 100 * share, width, color=colours, edgecolor="0.35", linewidth=0.4, label=place.image)
        if place in spread:
            axes.errorbar(at, 100 * share, 100 * spread[place], fmt="none", ecolor="0.15", elinewidth=0.7, capsize=1.2)
    axes.axhline(100 / len(share), color="0.3", linewidth=0.8, linestyle=":")
    axes.set_xticks(ids)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
