"""How slices are put on a page: panels in mm, outlines, letters, colour bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_shmoareg.analysis.slices import CONVENTION, VIEWS, Slice, View, in_plane
from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.geometry import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from matplotlib.image import AxesImage

SMALLEST = 0.5  # inches; a thin stack is given at least this much
LEFT, TOP, BOTTOM = 0.35, 0.32, 0.3  # margins in inches


def extent(grid: Grid, view: View) -> tuple[float, float]:
    """Width and height in mm of a view of a grid, turned to lie nearest to R, A, S."""
    size = [n * s for n, s in zip(grid.canonical().shape, grid.canonical().spacing, strict=True)]
    horizontal, vertical = in_plane(view)
    return size[horizontal], size[vertical]


def page(
    widths: Sequence[float], heights: Sequence[float], *, panel: float = 2.3, gap: float = 0.04, right: float = 0.85
) -> tuple[Figure, GridSpec]:
    """A figure with one panel per width and height in mm, all on one scale.

    Parameters
    ----------
    widths, heights : sequences of float, mm
        Of the columns and the rows.
    panel : float, inches
        Across the widest panel (a very high one may take 1.4 times as much).
    gap : float, inches
        Between panels.
    right : float, inches
        Margin on the right, where a colour bar may stand.

    Returns
    -------
    figure : matplotlib.figure.Figure
    spec : GridSpec
        Rows by columns.
    """
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    scale = panel / max(max(widths), max(heights) / 1.4)
    across = [max(w * scale, SMALLEST) for w in widths]
    down = [max(h * scale, SMALLEST) for h in heights]
    wide = LEFT + right + sum(across) + gap * (len(across) - 1)
    high = TOP + BOTTOM + sum(down) + gap * (len(down) - 1)
    figure = Figure(figsize=(wide, high), dpi=150, facecolor="white")
    spec = GridSpec(
        len(down),
        len(across),
        figure=figure,
        width_ratios=across,
        height_ratios=down,
        left=LEFT / wide,
        right=1 - right / wide,
        top=1 - TOP / high,
        bottom=BOTTOM / high,
        wspace=gap * len(across) / sum(across),
        hspace=gap * len(down) / sum(down),
    )
    return figure, spec


def show(axes: Axes, cutting: Slice, **how: Any) -> AxesImage:
    """Draw a slice in mm, in true proportions, without ticks."""
    how = {"interpolation": "nearest"} | how
    drawn = axes.imshow(cutting.pixels, extent=cutting.extent, origin="lower", aspect="equal", **how)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def frame(axes: Axes, cutting: Slice, size: tuple[float, float], colour: str) -> None:
    """Widen the axes around a slice to a size in mm, so that all panels of a page are alike."""
    left, right, bottom, top = cutting.extent
    across, up = (left + right) / 2, (bottom + top) / 2
    axes.set(xlim=(across - size[0] / 2, across + size[0] / 2), ylim=(up - size[1] / 2, up + size[1] / 2))
    axes.set_facecolor(colour)


def lines(axes: Axes, segments: Sequence[Any], colour: str, width: float = 0.7) -> None:
    """Draw lines, each (n, 2) in mm, without moving the limits of the axes."""
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(list(segments), colors=colour, linewidths=width), autolim=False)


def letters(axes: Axes, cutting: Slice) -> None:
    """What lies at the left, right, lower and upper edge: letters of L R P A I S."""
    places = ((0.015, 0.5), (0.985, 0.5), (0.5, 0.015), (0.5, 0.985))
    for (x, y), letter in zip(places, cutting.ends, strict=True):
        write(axes, x, y, letter)


def say_convention(figure: Figure) -> None:
    """Which side is which, in small letters in the lower right corner."""
    figure.text(0.995, 0.005, CONVENTION, ha="right", va="bottom", fontsize=6.5, color="0.35")


def write(axes: Axes, x: float, y: float, text: str, size: float = 8) -> None:
    """Text at a place in fractions of the axes, aligned to the nearest edge, readable on any image."""
    from matplotlib.patheffects import withStroke

    across = "left" if x < 0.3 else "right" if x > 0.7 else "center"
    up = "bottom" if y < 0.3 else "top" if y > 0.7 else "center"
    edge = [withStroke(linewidth=2, foreground="black")]
    axes.text(x, y, text, transform=axes.transAxes, ha=across, va=up, color="white", fontsize=size, path_effects=edge)


def colour_bar(figure: Figure, drawn: AxesImage, beside: Axes, label: str) -> Any:
    """A thin colour bar in the right margin, as high as the panel it stands beside."""
    box, wide = beside.get_position(), figure.get_figwidth()
    axes = figure.add_axes((box.x1 + 0.08 / wide, box.y0, 0.1 / wide, box.height))
    bar = figure.colorbar(drawn, cax=axes)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return bar


def legend(figure: Figure, entries: Mapping[str, str]) -> None:
    """What the colours mean, text to colour, in the lower margin."""
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colour, edgecolor="0.4", label=text) for text, colour in entries.items()]
    if patches:
        figure.legend(
            handles=patches, loc="lower left", ncols=len(patches), fontsize=8, frameon=False, handlelength=1.2
        )


def scaled(cutting: Slice, intensity: Intensity) -> Slice:
    """A slice as the network sees it, 0 to 1 on the scale of its image."""
    return replace(cutting, pixels=intensity.scale(cutting.pixels))


def views_of(grid: Grid) -> tuple[list[float], list[float]]:
    """Widths and heights in mm of the sagittal, coronal and axial view."""
    pairs = [extent(grid, view) for view in VIEWS]
    return [w for w, _ in pairs], [h for _, h in pairs]
