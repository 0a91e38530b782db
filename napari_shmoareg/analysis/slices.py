"""Slices through a volume, turned the way people look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.geometry import Grid, Volume

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
        First row at the bottom, first column at the left.  Radiological, as in the viewer: the patient's right,
        or in a sagittal slice the front, is on the left; front or top is up.
    extent : (left, right, bottom, top)
        Edges in mm from the point that the slice was cut at, so that slices of volumes on
        different grids lie on top of each other.
    view : {"sagittal", "coronal", "axial"}
    """

    pixels: NDArray
    extent: tuple[float, float, float, float]
    view: View

    @property
    def ends(self) -> tuple[str, str, str, str]:
        """What lies left, right, below and above: letters of L R P A I S."""
        horizontal, vertical = in_plane(self.view)
        return (*ENDS[horizontal][::-1], *ENDS[vertical])

    def outlines(self) -> NDArray[np.float64]:
        """Edges between pixels of differing value, segments (n, 2, 2) of (horizontal, vertical) mm."""
        left, right, bottom, top = self.extent
        rows, columns = self.pixels.shape
        step = np.array([(right - left) / columns, (top - bottom) / rows])
        y, x = np.nonzero(self.pixels[:, 1:] != self.pixels[:, :-1])
        upright = np.stack([np.stack([x + 1, y], -1), np.stack([x + 1, y + 1], -1)], 1)
        y, x = np.nonzero(self.pixels[1:] != self.pixels[:-1])
        flat = np.stack([np.stack([x, y + 1], -1), np.stack([x + 1, y + 1], -1)], 1)
        return np.concatenate([upright, flat]) * step + np.array([left, bottom])


def in_plane(view: View) -> tuple[int, int]:
    """Horizontal and vertical axis of a view, as axes of the canonical (R, A, S) grid; the horizontal one runs left."""
    horizontal, vertical = (axis for axis in range(3) if axis != VIEWS.index(view))
    return horizontal, vertical


def cut(volume: Volume, point: Sequence[float] | NDArray, view: View) -> Slice:
    """The plane of voxels nearest to a point; nothing is interpolated.

    Parameters
    ----------
    volume : Volume
        On any grid; its axes are permuted and flipped to lie nearest to R, A, S.
    point : (3,) world position, mm RAS
        A point outside the volume gives its nearest plane.
    view : {"sagittal", "coronal", "axial"}
    """
    order, flip = volume.grid.axes_to_ras()
    values = np.transpose(volume.values, order)
    values = values[tuple(slice(None, None, -1) if back else slice(None) for back in flip)]
    grid = volume.grid.canonical()
    index = grid.to_index(point)
    axis = VIEWS.index(view)
    pixels = np.take(values, int(np.clip(np.rint(index[axis]), 0, grid.shape[axis] - 1)), axis=axis).T[:, ::-1]
    edges = [((end - index[a]) * grid.spacing[a]) for a in in_plane(view) for end in (-0.5, grid.shape[a] - 0.5)]
    least, most, bottom, top = (float(e) for e in edges)
    return Slice(pixels, (-most, -least, bottom, top), view)


def plane_grid(grid: Grid, point: Sequence[float] | NDArray, view: View) -> Grid:
    """The grid, one voxel thick, of the plane that `cut` shows of a volume on `grid`."""
    canonical, axis = grid.canonical(), VIEWS.index(view)
    start, shape = [0, 0, 0], list(canonical.shape)
    start[axis] = int(np.clip(np.rint(canonical.to_index(point)[axis]), 0, shape[axis] - 1))
    shape[axis] = 1
    return canonical.crop(start, shape)


def plane(grid: Grid, point: Sequence[float] | NDArray, view: View, steps: tuple[NDArray, NDArray]) -> NDArray:
    """World positions (V, U, 3) of the points of the cut plane at given mm (horizontal, vertical) from `point`."""
    horizontal, vertical = on_screen(grid, view).T
    across, up = np.meshgrid(*steps)
    return np.asarray(point) + across[..., None] * horizontal + up[..., None] * vertical


def on_screen(grid: Grid, view: View) -> NDArray[np.float64]:
    """Unit vectors (3, 2) in the world that point to the right and up in a view of a grid."""
    horizontal, vertical = (directions(grid)[:, a] for a in in_plane(view))
    return np.stack([-horizontal, vertical], axis=1)


def directions(grid: Grid) -> NDArray[np.float64]:
    """Unit vectors (columns) of the canonical axes of a grid in the world."""
    matrix = grid.canonical().affine[:3, :3]
    return matrix / np.linalg.norm(matrix, axis=0)


def middle(volume: Volume) -> NDArray[np.float64]:
    """World position of the centre of what an image shows: of its content (see `Intensity`), all counting alike.

    An image without content gives the centre of its grid.
    """
    values = volume.values
    content = Intensity.of(volume).content(values) if values.min() < values.max() else np.zeros(values.shape, bool)
    total = int(content.sum())
    if not total:
        return volume.grid.centre
    counts = [content.sum(axis=tuple(b for b in range(3) if b != a)) for a in range(3)]
    return volume.grid.to_world([float(np.arange(len(count)) @ count) / total for count in counts])
