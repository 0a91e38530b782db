"""Two images in one: checkerboard, swipe, difference.

Arrays as the viewer shows them (S, A, R), on the fixed image's grid, intensities in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Volume
from napari_shmoareg.widgets.placement import place

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene

STAGES = ("before", "affine", "after")  # the moving image as filed, after the affine, warped


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared.

    Attributes
    ----------
    fixed, other : (S, A, R) float32 array, 0 to 1
        The fixed image and the moving one at a stage, on the grid on which the fixed one is shown.
        Ours: each on its own robust scale (`Intensity`), the moving one on the same at all stages, so that
        differences before and after can be compared; 0 outside the fixed image's field of view.
    spacing, origin : tuple of 3 float
        Of the voxels, and the place of the first one, mm along S, A, R.
    """

    fixed: NDArray[np.float32]
    other: NDArray[np.float32]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]


def moving_at(scene: Scene, stage: str) -> Volume:
    """The moving image on the fixed grid: as filed ("before"), after the affine, or warped ("after").

    Interpolates the whole image, which takes seconds; "after" is there already.
    """
    if stage == "after":
        return scene.warped
    from napari_shmoareg.geometry import Transform, warp_volume

    matrix = np.eye(4) if stage == "before" else scene.affine
    return warp_volume(scene.pair.moving, scene.pair.fixed.grid, Transform(matrix))


def sides(scene: Scene, other: Volume) -> Sides:
    """The fixed image, and the moving one as `moving_at` gives it, ready to be compared."""
    from napari_shmoareg.engine.intensity import Intensity

    pair = scene.pair
    placed = place(pair.fixed)
    fixed = Intensity.of(pair.fixed).scale(np.ascontiguousarray(placed.data))
    moved = Intensity.of(pair.moving).scale(np.ascontiguousarray(place(other).data))
    if placed.copied:
        seen = np.ones(pair.fixed.values.shape, np.uint8)
        outside = place(Volume(seen, pair.fixed.grid, is_labels=True)).data == 0
        fixed[outside] = moved[outside] = 0
    return Sides(fixed, moved, placed.scale, placed.translate)


def fill_checkerboard(out: NDArray[np.float32], both: Sides, tile: float, axes: Sequence[int]) -> None:
    """Take alternate tiles from either image, in place.

    Parameters
    ----------
    out : (S, A, R) float32 array
    both : Sides
    tile : float
        Length of a tile's edge, mm.  Four tiles meet in the middle of the field of view.
    axes : sequence of int
        Along which the tiles alternate: those that are shown.
    """
    odd = np.zeros((1, 1, 1), dtype=np.int64)
    for axis in axes:
        count, spacing = out.shape[axis], both.spacing[axis]
        from_middle = (np.arange(count) - (count - 1) / 2) * spacing
        shape = [1, 1, 1]
        shape[axis] = count
        odd = odd + np.floor(from_middle / tile).astype(np.int64).reshape(shape)
    np.copyto(out, both.fixed)
    np.copyto(out, both.other, where=odd % 2 == 1)


def fill_swipe(
    out: NDArray[np.float32], both: Sides, edge: int, axis: int, rising: bool, was: int | None = None
) -> None:
    """Take one side of an edge from the fixed image and the other side from the moving one, in place.

    Parameters
    ----------
    out : (S, A, R) float32 array
    both : Sides
    edge : int
        Index along `axis` of the first voxel beyond the edge.
    axis : int
        The one that is shown from left to right.
    rising : bool
        Whether the index rises to the right of the screen.  The fixed image is always on the left.
    was : int or None
        The edge that `out` shows now, so that only what lies between is written; None fills all.
    """
    low_side, high_side = (both.fixed, both.other) if rising else (both.other, both.fixed)
    if was is None:
        spans = [(0, edge, low_side), (edge, out.shape[axis], high_side)]
    else:
        spans = [(was, edge, low_side)] if edge > was else [(edge, was, high_side)]
    for start, stop, source in spans:
        part: list[slice] = [slice(None)] * 3
        part[axis] = slice(start, stop)
        out[tuple(part)] = source[tuple(part)]


def swipe_edge(count: int, position: float, rising: bool) -> int:
    """Where the edge lies: `position` is the share of the image's width that shows the fixed image, on the left."""
    share = position if rising else 1 - position
    return round(share * count)


def fill_difference(out: NDArray[np.float32], both: Sides) -> None:
    """The absolute difference of the two, in place."""
    np.subtract(both.fixed, both.other, out=out)
    np.abs(out, out=out)
