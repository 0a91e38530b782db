"""Shapes that were drawn in the viewer, as regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, InputError, Volume
from napari_shmoareg.widgets.placement import to_viewer
from napari_shmoareg.widgets.units import mm_per

if TYPE_CHECKING:
    from napari.layers import Shapes

CLOSED = ("rectangle", "polygon", "ellipse")
FLAT = 0.5  # of the layer's units: how far the corners of a shape may stand off its plane


def drawn_regions(layer: Shapes, grid: Grid, thickness: float = 0.0) -> Volume:
    """What lies in the shapes of a layer, as labels.

    Parameters
    ----------
    layer : Shapes
        In the viewer's axes S, A, R; rectangles, polygons and ellipses count, lines and paths do not.
    grid : Grid
        Of the result, usually the fixed image's.
    thickness : float
        Mm either side of the plane that a shape was drawn in; it always holds the voxels that the plane cuts.

    Returns
    -------
    Volume
        Labels on `grid`: n + 1 where the centre of a voxel lies within shape n; of shapes that overlap the later.

    Raises
    ------
    InputError
        If the layer does not have the three axes, holds no closed shape, or one that is not flat.
    """
    values = np.zeros(grid.shape, dtype=np.int32)
    for number, corners, kind in closed_shapes(layer):
        _fill(values, grid, number, _Prism(layer, corners, kind, thickness))
    return Volume(values, grid, layer.name, is_labels=True)


def closed_shapes(layer: Shapes) -> list[tuple[int, NDArray[np.float64], str]]:
    """Number (from 1), corners (n, 3) in the layer's own coordinates and kind of what encloses anything."""
    if layer.ndim != 3:
        raise InputError(
            f"The shapes of '{layer.name}' have {layer.ndim} axes, so they stand in no slice; three (S, A, R) were "
            "expected. Draw in a layer made by 'Draw'."
        )
    kinds = [str(getattr(kind, "value", kind)) for kind in layer.shape_type]
    shapes = enumerate(zip(layer.data, kinds, strict=True), start=1)
    found = [(n, np.asarray(corners, dtype=np.float64), kind) for n, (corners, kind) in shapes if kind in CLOSED]
    if not found:
        raise InputError(
            f"Nothing is drawn in '{layer.name}' that encloses a region. Draw a polygon, rectangle or ellipse in it."
        )
    return found


class _Prism:
    """A flat shape with a thickness, which can tell what lies in it."""

    def __init__(self, layer: Shapes, corners: NDArray[np.float64], kind: str, thickness: float) -> None:
        origin = np.asarray(layer.data_to_world((0, 0, 0)), dtype=float)
        columns = np.stack([np.asarray(layer.data_to_world(row), dtype=float) - origin for row in np.eye(3)])
        scale = mm_per(layer.units)
        self.linear, self.origin = to_viewer(columns * scale).T, to_viewer(origin * scale)  # to mm RAS
        flat = int(np.ptp(corners, axis=0).argmin())
        if np.ptp(corners[:, flat]) > FLAT:
            raise InputError(f"A shape of '{layer.name}' does not lie in one plane. Draw it in one slice.")
        self.across = [axis for axis in range(3) if axis != flat]
        self.corners, self.kind, self.thickness = corners[:, self.across], kind, thickness
        normal = np.cross(self.linear[:, self.across[0]], self.linear[:, self.across[1]])
        self.normal = normal / np.linalg.norm(normal)
        self.outline = corners @ self.linear.T + self.origin
        self.middle = float((self.outline @ self.normal).mean())

    def reach(self, grid: Grid) -> float:
        """Mm either side: the thickness, and as much at least as the voxels need that the plane cuts."""
        return max(self.thickness, float(np.abs(self.normal @ grid.affine[:3, :3]).sum()) / 2)

    def holds(self, points: NDArray[np.float64], reach: float) -> NDArray[np.bool_]:
        """Whether world points (n, 3), mm RAS, lie in it."""
        away = points @ self.normal - self.middle
        slack = 1e-6
        found = (away > -reach - (slack if self.thickness >= reach else -slack)) & (away <= reach + slack)
        own = (points[found] - self.origin) @ np.linalg.inv(self.linear).T
        within = in_ellipse if self.kind == "ellipse" else in_polygon
        found[found] = within(own[:, self.across], self.corners)
        return found


def _fill(values: NDArray, grid: Grid, number: int, prism: _Prism) -> None:
    """Number the voxels of a shape, looking only at the box of voxels around it."""
    reach = prism.reach(grid)
    ends = np.concatenate([prism.outline + side * reach * prism.normal for side in (-1, 1)])
    index = grid.to_index(ends)
    first = np.clip(np.floor(index.min(axis=0)), 0, grid.shape).astype(int)
    stop = np.clip(np.ceil(index.max(axis=0)) + 1, first, grid.shape).astype(int)
    if (stop <= first).any():
        return
    part = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    box = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(first, stop, strict=True)), indexing="ij"), -1)
    found = prism.holds(grid.to_world(box.reshape(-1, 3)), reach).reshape(box.shape[:3])
    values[part][found] = number


def in_polygon(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (n, 2) lie in a polygon (m, 2): where a ray from them crosses its edges an odd number of times."""
    odd = np.zeros(len(points), dtype=bool)
    x, y = points.T
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if ay == by:
            continue
        crosses = (ay > y) != (by > y)
        odd ^= crosses & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return odd


def in_ellipse(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (n, 2) lie in the ellipse that fits into a box of four corners, one after the other."""
    axes = np.stack([corners[1] - corners[0], corners[3] - corners[0]], axis=1) / 2
    if abs(np.linalg.det(axes)) < 1e-12:
        return np.zeros(len(points), dtype=bool)
    own = (points - corners.mean(axis=0)) @ np.linalg.inv(axes).T
    return (own**2).sum(axis=1) <= 1
