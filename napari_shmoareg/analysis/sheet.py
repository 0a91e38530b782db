"""A contact sheet of drawn pairs, to look at before learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.analysis.panels import page, say_convention, show, write
from napari_shmoareg.analysis.slices import Slice, cut
from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.geometry import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("moving", "fixed", "moving, labels", "fixed, labels")
DIMMED = 1.6  # white of the images below the labels, 1 being theirs: darker
COLOURS = 20  # of matplotlib's tab20
PANEL, GAP = 1.15, 0.17  # inches


def contact_sheet(pairs: Sequence[Conformed], *, across: int = 2) -> Figure:
    """One axial slice of each pair: both images, and both again below the labels in colours.

    The slice is the one that shows most of the labels; every slice fills its panel, so that the
    scale differs from pair to pair.  A label has one colour in both images, and may have another in the next pair.

    Parameters
    ----------
    pairs : sequence of Conformed
        As `DrawnPairs` gives them, labels as shares; at least one.
    across : int
        Pairs side by side.

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
    say_convention(figure)
    return figure


def _slices(pair: Conformed) -> list[tuple[Slice, Slice | None]]:
    """For each column an image, and the labels on it, masked where there are none."""
    labels = [None if shares is None else _strongest(shares) for shares in (pair.moving_labels, pair.fixed_labels)]
    shown = sum((drawn > 0).sum(axis=(0, 1)) for drawn in labels if drawn is not None)
    plane = int(np.argmax(shown)) if np.any(shown) else pair.grid.shape[2] // 2
    point = pair.grid.to_world([0, 0, plane])
    images = [cut(Volume(image[0, 0].cpu().numpy(), pair.grid), point, "axial") for image in (pair.moving, pair.fixed)]
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
    """(D, H, W): number from 1 of the label with the largest share of each voxel, 0 where what is left has more."""
    values = shares[0].cpu().numpy()
    everything = np.concatenate([1 - values.sum(axis=0, keepdims=True), values])
    return everything.argmax(axis=0)
