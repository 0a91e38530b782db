"""Figures of a registration (overview, Jacobian), and a contact sheet of synthetic pairs.

They are `matplotlib.figure.Figure` objects, not managed by pyplot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.figures.panels import (
    VIEWS,
    Slice,
    View,
    colour_bar,
    cut,
    draw_convention,
    frame,
    legend,
    letters,
    lines,
    middle,
    on_screen,
    page,
    plane,
    plane_grid,
    scaled,
    show,
    views_of,
    write,
)
from napari_shmoareg.geometry import Transform, Volume, warp_volume
from napari_shmoareg.metrics import folding
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.register import Registration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLUMNS = ("moving", "fixed", "moving, labels", "fixed, labels")
DIMMED = 1.6  # vmax of images below labels, to darken them
COLOURS = 20  # in matplotlib's tab20
PANEL, GAP = 1.15, 0.17  # inches


def contact_sheet(pairs: Sequence[Conformed], *, across: int = 2) -> Figure:
    """Draw one axial slice of each pair: both images, and both with coloured labels.

    The slice with most labels is drawn; it fills its panel, so that the scale differs between
    pairs.  A label has the same colour in both images, but not across pairs.

    Parameters
    ----------
    pairs : sequence of Conformed
        As from `SyntheticPairs`, with labels as fractions; at least one.
    across : int
        Pairs per row.

    Returns
    -------
    matplotlib.figure.Figure
        Above each pair: its number, shape in voxels, and spacing in mm.
    """
    across = min(across, len(pairs))
    rows = -(-len(pairs) // across)
    figure, spec = page([1] * (across * len(COLUMNS)), [1] * rows, panel=PANEL, gap=GAP, right=0.1)
    for number, pair in enumerate(pairs):
        row, first = number // across, number % across * len(COLUMNS)
        for column, (images, labels) in enumerate(_slices(pair)):
            axes = figure.add_subplot(spec[row, first + column])
            show(axes, images, cmap="gray", vmin=0, vmax=1 if labels is None else DIMMED)
            if labels is not None:
                show(axes, labels, cmap="tab20", vmin=-0.5, vmax=COLOURS - 0.5)
            if row == 0:
                write(axes, 0.02, 0.02, COLUMNS[column], size=6)
            if column == 0:
                shape = "×".join(str(n) for n in pair.grid.shape)
                title = f"{number + 1}: {shape} voxels, {max(pair.grid.spacing):.1f} mm"
                axes.set_title(title, fontsize=7, loc="left", pad=3)
    draw_convention(figure)
    return figure


def _slices(pair: Conformed) -> list[tuple[Slice, Slice | None]]:
    """Return image and masked labels, or None, of each column."""
    labels = [
        None if shares is None else _strongest(shares)
        for shares in (pair.moving_labels, pair.fixed_labels)
    ]
    shown = sum((drawn > 0).sum(axis=(0, 1)) for drawn in labels if drawn is not None)
    plane = int(np.argmax(shown)) if np.any(shown) else pair.grid.shape[2] // 2
    point = pair.grid.to_world([0, 0, plane])
    images = [
        cut(Volume(image[0, 0].cpu().numpy(), pair.grid), point, "axial")
        for image in (pair.moving, pair.fixed)
    ]
    found: list[tuple[Slice, Slice | None]] = [(image, None) for image in images]
    for image, drawn in zip(images, labels, strict=True):
        if drawn is None:
            found.append((image, None))
            continue
        cutting = cut(Volume(drawn, pair.grid, is_labels=True), point, "axial")
        coloured = np.ma.masked_where(cutting.pixels == 0, (cutting.pixels - 1) % COLOURS)
        found.append((image, replace(cutting, pixels=coloured)))
    return found


def _strongest(shares: Tensor) -> NDArray[np.int64]:
    """Return per voxel (D, H, W) the label, from 1, with the largest fraction; 0 for the rest."""
    values = shares[0].cpu().numpy()
    everything = np.concatenate([1 - values.sum(axis=0, keepdims=True), values])
    return everything.argmax(axis=0)


FIXED_COLOUR, MOVED_COLOUR, FOLDING_COLOUR, GRID_COLOUR = "#2ee68a", "#ff9f1c", "#ff00ff", "#ffd43b"
DARK, LIGHT = "black", "#f7f7f7"  # backgrounds of images and of differences
MANY_LABELS = 12  # from this number on, outlines are thinner


def overview(
    registration: Registration,
    *,
    notes: Mapping[str, str] | None = None,
    point: NDArray | None = None,
) -> Figure:
    """Draw fixed, moving, warped and their differences, in three planes of the fixed image.

    Parameters
    ----------
    registration : Registration
        The moving image is positioned by its header and the affine.  Outlines of labels are drawn
        in green (fixed) and orange (moving).
    notes : mapping of {"moving", "warped"} to str, optional
        Text in the lower left of the column, such as "Dice 0.81".
    point : (3,) world position, mm RAS, optional
        Intersection of the planes; default: the `middle` of the fixed image.

    Returns
    -------
    matplotlib.figure.Figure
    """
    pair, fixed = registration.pair, registration.pair.fixed
    point = middle(fixed) if point is None else point
    unaligned = np.allclose(registration.alignment.matrix, np.eye(4))
    titles = {
        "fixed": "fixed",
        "moving": "moving (as filed)" if unaligned else "moving (after affine)",
        "warped": "warped",
        "before": "fixed \u2212 moving",
        "after": "fixed \u2212 warped",
    }
    widths, heights = views_of(fixed.grid)
    figure, spec = page([max(widths)] * len(titles), heights)
    all_labels = next((v for v in (pair.fixed_labels, pair.moving_labels) if v is not None), None)
    thin = 0.35 if all_labels is not None and len(all_labels.labels) >= MANY_LABELS else 0.7
    scales = Intensity.of(fixed), Intensity.of(pair.moving)
    for row, view in enumerate(VIEWS):
        slices, outlines = _columns(registration, point, view, scales)
        for column, (key, title) in enumerate(titles.items()):
            axes, cutting = figure.add_subplot(spec[row, column]), slices[key]
            differs = key in ("before", "after")
            drawn = show(
                axes,
                cutting,
                cmap="RdBu_r" if differs else "gray",
                vmin=-1 if differs else 0,
                vmax=1,
            )
            frame(axes, cutting, (max(widths), heights[row]), LIGHT if differs else DARK)
            if not differs and "fixed" in outlines:
                lines(axes, list(outlines["fixed"].outlines()), FIXED_COLOUR, thin)
            if key in ("moving", "warped") and key in outlines:
                lines(axes, list(outlines[key].outlines()), MOVED_COLOUR, thin)
            if row == 0:
                axes.set_title(title, fontsize=10)
                write(axes, 0.02, 0.02, (notes or {}).get(key, ""))
            if column == 0:
                axes.set_ylabel(view, fontsize=10)
                letters(axes, cutting)
    draw_convention(figure)
    colour_bar(figure, drawn, axes, "difference, images scaled to 0..1")
    drawn_labels = (
        (pair.fixed_labels, FIXED_COLOUR, "fixed"),
        (pair.moving_labels, MOVED_COLOUR, "moving, warped"),
    )
    legend(
        figure,
        {f"labels: {name}": colour for labels, colour, name in drawn_labels if labels is not None},
    )
    return figure


def _columns(
    registration: Registration, point: NDArray, view: View, scales: tuple[Intensity, Intensity]
) -> tuple[dict[str, Slice], dict[str, Slice]]:
    """Return images and differences of one plane, scaled to 0..1, and its labels."""
    pair = registration.pair
    grid, affine = (
        plane_grid(pair.fixed.grid, point, view),
        Transform(registration.alignment.matrix),
    )
    slices = {
        "fixed": scaled(cut(pair.fixed, point, view), scales[0]),
        "moving": scaled(cut(warp_volume(pair.moving, grid, affine), point, view), scales[1]),
        "warped": scaled(cut(registration.warped, point, view), scales[1]),
    }
    for name, other in (("before", "moving"), ("after", "warped")):
        slices[name] = replace(
            slices["fixed"], pixels=slices["fixed"].pixels - slices[other].pixels
        )
    moving_labels = pair.moving_labels and warp_volume(pair.moving_labels, grid, affine)
    labels = {
        "fixed": pair.fixed_labels,
        "moving": moving_labels,
        "warped": registration.warped_labels,
    }
    return slices, {
        name: cut(volume, point, view) for name, volume in labels.items() if volume is not None
    }


def jacobian_figure(registration: Registration, *, point: NDArray | None = None) -> Figure:
    """Draw the Jacobian determinant with folding, and the deformation as a warped grid.

    Above: red where the moving image is larger than the fixed one (determinant above 1), blue where
    it is smaller, on a logarithmic scale; magenta is folded (at most 0).  Below: a regular grid in
    the fixed image, warped by the deformation (without the affine).

    Parameters
    ----------
    registration : Registration
    point : (3,) world position, mm RAS, optional
        Intersection of the planes; default: the `middle` of the fixed image.
    """
    from matplotlib.colors import ListedColormap, LogNorm

    fixed, jacobian = registration.pair.fixed, registration.jacobian
    scale, limit = Intensity.of(fixed), _limit(jacobian.values)
    widths, heights = views_of(fixed.grid)
    figure, spec = page(widths, [max(heights)] * 2, panel=2.8)
    point = middle(fixed) if point is None else point
    for column, view in enumerate(VIEWS):
        axes, cutting = figure.add_subplot(spec[0, column]), cut(jacobian, point, view)
        drawn = show(axes, cutting, cmap="RdBu_r", norm=LogNorm(1 / limit, limit, clip=True))
        folded = np.ma.masked_where(cutting.pixels > 0, np.zeros(cutting.pixels.shape))
        show(axes, Slice(folded, cutting.extent, view), cmap=ListedColormap([FOLDING_COLOUR]))
        frame(axes, cutting, (widths[column], max(heights)), LIGHT)
        axes.set_title(view, fontsize=10)
        letters(axes, cutting)
        below = figure.add_subplot(spec[1, column])
        show(below, scaled(cut(fixed, point, view), scale), cmap="gray", vmin=0, vmax=1.5)
        draw_warped_grid(below, registration, point, cutting)
        frame(below, cutting, (widths[column], max(heights)), DARK)
        letters(below, cutting)
        if column == 0:
            axes.set_ylabel("Jacobian determinant", fontsize=10)
            below.set_ylabel("deformation", fontsize=10)
    draw_convention(figure)
    bar = colour_bar(figure, drawn, axes, "")
    ticks = [t for t in (0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.4, 2, 4) if 1 / limit <= t <= limit]
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.ax.minorticks_off()
    values = jacobian.values
    text = (
        f"folded: {folding(values):.3f} % of voxels; determinant {values.min():.2f} to"
        f" {values.max():.2f}"
    )
    legend(figure, {text: FOLDING_COLOUR})
    return figure


def draw_warped_grid(
    axes: Axes, registration: Registration, point: NDArray, cutting: Slice, count: int = 30
) -> None:
    """Draw a regular grid warped by the deformation, in the plane of a slice.

    It has `count` lines along the longest axis of the fixed image.
    """
    field, grid = registration.transform.field, registration.pair.fixed.grid
    left, right, bottom, top = cutting.extent
    step = max(n * s for n, s in zip(grid.shape, grid.spacing, strict=True)) / count
    ticks = [np.arange(low + step / 2, high, step) for low, high in ((left, right), (bottom, top))]
    fine = [np.linspace(low, high, 200) for low, high in ((left, right), (bottom, top))]
    base = on_screen(grid, cutting.view)
    for steps, upright in (((fine[0], ticks[1]), False), ((ticks[0], fine[1]), True)):
        points = plane(grid, point, cutting.view, steps)
        moved = points if field is None else points + field.at(points)
        flat = (moved - np.asarray(point)) @ base
        lines(axes, list(flat.transpose(1, 0, 2) if upright else flat), GRID_COLOUR, 0.6)


def _limit(jacobian: NDArray) -> float:
    """Return the determinant at the red end of the scale: covers 99 % of voxels, 1.2 to 4."""
    positive = jacobian[jacobian > 0]
    spread = np.abs(np.log(np.percentile(positive, [0.5, 99.5]))).max() if positive.size else 0.0
    return float(np.exp(np.clip(spread, np.log(1.2), np.log(4))))
