"""Slices of volumes in radiological orientation, and the layout of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.registration.intensity import Intensity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from matplotlib.image import AxesImage


View = Literal["sagittal", "coronal", "axial"]
VIEWS: tuple[View, ...] = get_args(View)
ENDS = ("L", "R"), ("P", "A"), ("I", "S")
CONVENTION = "radiological: the patient's right (R) is on the left"


@dataclass(frozen=True, eq=False)
class Slice:
    """A plane of a volume, for ``imshow(pixels, extent=extent, origin="lower")``.

    Attributes
    ----------
    pixels : (V, U) array
        First row at the bottom, first column at the left.  Radiological, as in the viewer: the
        patient's right, or in a sagittal slice the front, is on the left; front or top is up.
    extent : (left, right, bottom, top)
        Edges in mm relative to the point of the slice, so that slices of volumes on different grids
        overlay each other.
    view : {"sagittal", "coronal", "axial"}
    """

    pixels: NDArray
    extent: tuple[float, float, float, float]
    view: View

    @property
    def ends(self) -> tuple[str, str, str, str]:
        """Orientation letters (L R P A I S) at the left, right, lower and upper edge."""
        horizontal, vertical = in_plane(self.view)
        return (*ENDS[horizontal][::-1], *ENDS[vertical])

    def outlines(self) -> NDArray[np.float64]:
        """Return the edges between different pixels, segments (n, 2, 2) of (x, y) in mm."""
        left, right, bottom, top = self.extent
        rows, columns = self.pixels.shape
        step = np.array([(right - left) / columns, (top - bottom) / rows])
        y, x = np.nonzero(self.pixels[:, 1:] != self.pixels[:, :-1])
        upright = np.stack([np.stack([x + 1, y], -1), np.stack([x + 1, y + 1], -1)], 1)
        y, x = np.nonzero(self.pixels[1:] != self.pixels[:-1])
        flat = np.stack([np.stack([x, y + 1], -1), np.stack([x + 1, y + 1], -1)], 1)
        return np.concatenate([upright, flat]) * step + np.array([left, bottom])


def in_plane(view: View) -> tuple[int, int]:
    """Return the horizontal (pointing left) and vertical axis of a view in the canonical grid."""
    horizontal, vertical = (axis for axis in range(3) if axis != VIEWS.index(view))
    return horizontal, vertical


def cut(volume: Volume, point: Sequence[float] | NDArray, view: View) -> Slice:
    """Extract the plane of voxels nearest to a point, without interpolation.

    Parameters
    ----------
    volume : Volume
        On any grid; its axes are permuted and flipped to be nearest to R, A, S.
    point : (3,) world position, mm RAS
        For a point outside the volume, the nearest plane is used.
    view : {"sagittal", "coronal", "axial"}
    """
    order, flip = volume.grid.axes_to_ras()
    values = np.transpose(volume.values, order)
    values = values[tuple(slice(None, None, -1) if back else slice(None) for back in flip)]
    grid = volume.grid.canonical()
    index = grid.to_index(point)
    axis = VIEWS.index(view)
    pixels = np.take(
        values, int(np.clip(np.rint(index[axis]), 0, grid.shape[axis] - 1)), axis=axis
    ).T[:, ::-1]
    edges = [
        ((end - index[a]) * grid.spacing[a])
        for a in in_plane(view)
        for end in (-0.5, grid.shape[a] - 0.5)
    ]
    least, most, bottom, top = (float(e) for e in edges)
    return Slice(pixels, (-most, -least, bottom, top), view)


def plane_grid(grid: Grid, point: Sequence[float] | NDArray, view: View) -> Grid:
    """Return the one-voxel-thick grid of the plane that `cut` extracts."""
    canonical, axis = grid.canonical(), VIEWS.index(view)
    start, shape = [0, 0, 0], list(canonical.shape)
    start[axis] = int(np.clip(np.rint(canonical.to_index(point)[axis]), 0, shape[axis] - 1))
    shape[axis] = 1
    return canonical.crop(start, shape)


def plane(
    grid: Grid, point: Sequence[float] | NDArray, view: View, steps: tuple[NDArray, NDArray]
) -> NDArray:
    """Return world positions (V, U, 3) in a plane at offsets (horizontal, vertical) in mm."""
    horizontal, vertical = on_screen(grid, view).T
    across, up = np.meshgrid(*steps)
    return np.asarray(point) + across[..., None] * horizontal + up[..., None] * vertical


def on_screen(grid: Grid, view: View) -> NDArray[np.float64]:
    """Return world unit vectors (3, 2) that point right and up in a view of a grid."""
    horizontal, vertical = (directions(grid)[:, a] for a in in_plane(view))
    return np.stack([-horizontal, vertical], axis=1)


def directions(grid: Grid) -> NDArray[np.float64]:
    """Return the world unit vectors (columns) of the canonical axes of a grid."""
    matrix = grid.canonical().affine[:3, :3]
    return matrix / np.linalg.norm(matrix, axis=0)


def middle(volume: Volume) -> NDArray[np.float64]:
    """Return the world position of the unweighted centre of an image's content (see `Intensity`).

    Without content, the centre of the grid.
    """
    values = volume.values
    content = (
        Intensity.of(volume).content(values)
        if values.min() < values.max()
        else np.zeros(values.shape, bool)
    )
    total = int(content.sum())
    if not total:
        return volume.grid.centre
    counts = [content.sum(axis=tuple(b for b in range(3) if b != a)) for a in range(3)]
    return volume.grid.to_world([float(np.arange(len(count)) @ count) / total for count in counts])


SMALLEST = 0.5  # inches: minimum size of a panel, for thin stacks
LEFT, TOP, BOTTOM = 0.35, 0.32, 0.3  # margins in inches


def extent(grid: Grid, view: View) -> tuple[float, float]:
    """Return width and height in mm of a view of a grid in canonical orientation."""
    size = [n * s for n, s in zip(grid.canonical().shape, grid.canonical().spacing, strict=True)]
    horizontal, vertical = in_plane(view)
    return size[horizontal], size[vertical]


def page(
    widths: Sequence[float],
    heights: Sequence[float],
    *,
    panel: float = 2.3,
    gap: float = 0.04,
    right: float = 0.85,
) -> tuple[Figure, GridSpec]:
    """Create a figure with one panel per width and height in mm, all at the same scale.

    Parameters
    ----------
    widths, heights : sequences of float, mm
        Of the columns and the rows.
    panel : float, inches
        Width of the widest panel (or 1/1.4 of the height of a very high one).
    gap : float, inches
        Between panels.
    right : float, inches
        Right margin, for a colour bar.

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


def show(axes: Axes, cutting: Slice, **options: Any) -> AxesImage:
    """Draw a slice in mm with equal aspect, without ticks."""
    options = {"interpolation": "nearest"} | options
    drawn = axes.imshow(
        cutting.pixels, extent=cutting.extent, origin="lower", aspect="equal", **options
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def frame(axes: Axes, cutting: Slice, size: tuple[float, float], colour: str) -> None:
    """Extend the axes around a slice to a size in mm, so that all panels are of equal size."""
    left, right, bottom, top = cutting.extent
    across, up = (left + right) / 2, (bottom + top) / 2
    axes.set(
        xlim=(across - size[0] / 2, across + size[0] / 2), ylim=(up - size[1] / 2, up + size[1] / 2)
    )
    axes.set_facecolor(colour)


def lines(axes: Axes, segments: Sequence[Any], colour: str, width: float = 0.7) -> None:
    """Draw lines, each (n, 2) in mm, without moving the limits of the axes."""
    from matplotlib.collections import LineCollection

    axes.add_collection(
        LineCollection(list(segments), colors=colour, linewidths=width), autolim=False
    )


def letters(axes: Axes, cutting: Slice) -> None:
    """Draw the orientation letters of a slice at its edges."""
    positions = ((0.015, 0.5), (0.985, 0.5), (0.5, 0.015), (0.5, 0.985))
    for (x, y), letter in zip(positions, cutting.ends, strict=True):
        write(axes, x, y, letter)


def draw_convention(figure: Figure) -> None:
    """Write the orientation convention in the lower right corner."""
    figure.text(0.995, 0.005, CONVENTION, ha="right", va="bottom", fontsize=6.5, color="0.35")


def write(axes: Axes, x: float, y: float, text: str, size: float = 8) -> None:
    """Write outlined text at a position in axes fractions, aligned to the nearest edge."""
    from matplotlib.patheffects import withStroke

    across = "left" if x < 0.3 else "right" if x > 0.7 else "center"
    up = "bottom" if y < 0.3 else "top" if y > 0.7 else "center"
    edge = [withStroke(linewidth=2, foreground="black")]
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        ha=across,
        va=up,
        color="white",
        fontsize=size,
        path_effects=edge,
    )


def colour_bar(figure: Figure, drawn: AxesImage, beside: Axes, label: str) -> Any:
    """Add a thin colour bar in the right margin, as high as the panel beside it."""
    box, wide = beside.get_position(), figure.get_figwidth()
    axes = figure.add_axes((box.x1 + 0.08 / wide, box.y0, 0.1 / wide, box.height))
    bar = figure.colorbar(drawn, cax=axes)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return bar


def legend(figure: Figure, entries: Mapping[str, str]) -> None:
    """Add a legend, text to colour, in the lower margin."""
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=colour, edgecolor="0.4", label=text) for text, colour in entries.items()
    ]
    if patches:
        figure.legend(
            handles=patches,
            loc="lower left",
            ncols=len(patches),
            fontsize=8,
            frameon=False,
            handlelength=1.2,
        )


def scaled(cutting: Slice, intensity: Intensity) -> Slice:
    """Scale the pixels of a slice to [0, 1] by the intensity scale of its image."""
    return replace(cutting, pixels=intensity.scale(cutting.pixels))


def views_of(grid: Grid) -> tuple[list[float], list[float]]:
    """Return the widths and heights in mm of the sagittal, coronal and axial view."""
    pairs = [extent(grid, view) for view in VIEWS]
    return [w for w, _ in pairs], [h for _, h in pairs]
