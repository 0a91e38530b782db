"""The deformation on a plane of the viewer: a grid of lines, or arrows.

Drawn is the map that pulls the moving image back, without the affine: the node at x of the fixed
image stands at x + d(x), where its value comes from.  Points are in mm along S, A, R, as in the viewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.widgets.placement import to_viewer

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene

SPACING = 8.0  # mm between the lines
FINEST = 2.0  # mm: longer stretches between nodes are drawn in pieces, so that they bend
Segments = NDArray[np.float64]


def grid_lines(scene: Scene, axis: int, at: float, spacing: float = SPACING, *, flat: bool = True) -> Segments:
    """The deformed grid of one plane.

    Parameters
    ----------
    scene : Scene
    axis : int
        Across which the plane lies: 0, 1, 2 for S, A, R (axial, coronal, sagittal).
    at : float
        Where, mm.
    spacing : float
        Between lines, mm.
    flat : bool
        Leave out what leads away from the plane, as a slice cannot show it.

    Returns
    -------
    (N, 2, 3) array
        Start and extent of each piece of line, mm; those outside the fixed image are left out.
    """
    ticks = [_ticks(scene, a, spacing) for a in range(3)]
    parts = []
    for along in (a for a in range(3) if a != axis):
        run = list(ticks)
        run[axis], run[along] = np.array([at]), _pieces(ticks[along], spacing)
        nodes = np.stack(np.meshgrid(*run, indexing="ij"), -1)
        moved = nodes + _displacement(scene, nodes, axis if flat else None)
        inside = _inside(scene, nodes)
        first, last = np.moveaxis(moved, along, 0)[:-1], np.moveaxis(moved, along, 0)[1:]
        both = np.moveaxis(inside, along, 0)
        parts.append(np.stack([first, last - first], axis=-2)[both[:-1] & both[1:]])
    return np.concatenate(parts)


def arrows(
    scene: Scene, axis: int, at: float, spacing: float = SPACING, *, flat: bool = True
) -> tuple[Segments, NDArray]:
    """The displacement at the nodes of one plane.

    Parameters
    ----------
    scene, axis, at, spacing, flat
        As for `grid_lines`.

    Returns
    -------
    segments : (N, 2, 3) array
        Node and displacement, mm.
    length : (N,) array
        Of the whole displacement, mm: what leads away from the plane counts.
    """
    ticks = [_ticks(scene, a, spacing) for a in range(3)]
    ticks[axis] = np.array([at])
    nodes = np.stack(np.meshgrid(*ticks, indexing="ij"), -1)
    nodes = nodes[_inside(scene, nodes)]
    whole = _displacement(scene, nodes, None)
    shown = whole.copy()
    if flat:
        shown[:, axis] = 0
    return np.stack([nodes, shown], axis=1), np.linalg.norm(whole, axis=-1)


def longest(scene: Scene) -> float:
    """What most of the displacement stays below, mm (99th percentile): where the colours of the arrows end."""
    field = scene.transform.field
    if field is None:
        return 1.0
    step = max(1, round((field.vectors.size / 3 / 2e5) ** (1 / 3)))
    length = np.linalg.norm(field.vectors[::step, ::step, ::step], axis=-1)
    return max(float(np.percentile(length, 99)), 0.1)


def _ticks(scene: Scene, axis: int, spacing: float) -> NDArray[np.float64]:
    """Places of the lines along an axis of the viewer, about the middle of the fixed image."""
    grid = scene.pair.fixed.grid
    along = to_viewer(grid.corners())[:, axis]
    middle = float(to_viewer(grid.centre)[axis])
    reach = int((along.max() - middle) / spacing)
    return np.asarray(middle + spacing * np.arange(-reach, reach + 1), dtype=np.float64)


def _pieces(ticks: NDArray, spacing: float) -> NDArray[np.float64]:
    """Places between the nodes too, so that no two are much more than `FINEST` apart."""
    parts = max(1, round(spacing / FINEST))
    return np.linspace(ticks[0], ticks[-1], parts * (len(ticks) - 1) + 1)


def _inside(scene: Scene, nodes: NDArray) -> NDArray[np.bool_]:
    grid = scene.pair.fixed.grid
    index = grid.to_index(to_viewer(nodes))
    return np.all((index >= -0.5) & (index <= np.array(grid.shape) - 0.5), axis=-1)


def _displacement(scene: Scene, nodes: NDArray, without: int | None) -> NDArray[np.float64]:
    """Of the deformation alone, (..., 3) mm S A R; without the part along one axis."""
    field = scene.transform.field
    if field is None or not nodes.size:
        return np.zeros_like(nodes)
    vectors = np.array(to_viewer(field.at(to_viewer(nodes))))
    if without is not None:
        vectors[..., without] = 0
    return vectors
