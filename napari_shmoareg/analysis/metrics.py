"""Overlap, surface distance, similarity, folding.  Sec. IV-D.

Definitions, by name (papers use the same words for different numbers):

dice
    2 |A and B| / (|A| + |B|) per label, on voxels.
assd
    Pooled average symmetric surface distance in mm: the distances of all surface voxels of
    A to the surface of B, and of B to A, averaged together.  A surface voxel has a
    6-neighbour outside its label; beyond the image is outside.  As `monai.metrics`
    (``symmetric=True``) and MedPy >= 0.5.  Table I of the paper very likely holds another
    definition (all-voxel average distance), so do not compare the two.
hd95
    The larger of the two directed 95th percentiles of the same distances, in mm.
folding
    Percentage of all voxels whose Jacobian determinant is at most 0.
sdlogj
    Standard deviation of log(det) with det clipped to [1e-9, 1e9], over all voxels.
    (Learn2Reg's number of this name adds 3 to the determinant first.)

A label that is in neither map is skipped; in one only: Dice 0, distances NaN (left out of `mean`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def dice(a: NDArray, b: NDArray, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice overlap of each label of two maps on one grid.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
    labels : iterable of int, optional
        Which labels; by default all that occur in either, without 0.

    Returns
    -------
    dict of int to float
        In [0, 1]; 0 for a label that only one map has.  Labels in neither are skipped.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    values, a, b = _compact(a, b, labels)
    count = len(values) + 1
    size_a, size_b = np.bincount(a.ravel(), minlength=count), np.bincount(b.ravel(), minlength=count)
    both = np.bincount(a[a == b], minlength=count)
    total = size_a + size_b
    return {v: float(2 * both[n] / total[n]) for n, v in enumerate(values, start=1) if total[n]}


def assd(a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None) -> dict[int, float]:
    """Pooled average symmetric surface distance of each label, in mm.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
    spacing : 3 float
        Millimetres between voxels along i, j, k: `Grid.spacing`, whatever way the grid is
        turned.  (A sheared grid is measured as if its axes were at right angles.)
    labels : iterable of int, optional
        As in `dice`.

    Returns
    -------
    dict of int to float
        NaN for a label that only one map has.
    """
    return {label: value for label, (value, _) in surface(a, b, spacing, labels).items()}


def hd95(a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None) -> dict[int, float]:
    """95th-percentile Hausdorff distance of each label, in mm; arguments as in `assd`."""
    return {label: value for label, (_, value) in surface(a, b, spacing, labels).items()}


def surface(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, tuple[float, float]]:
    """``(assd, hd95)`` of each label in one pass; arguments as in `assd`."""
    values, a, b = _compact(a, b, labels)
    boxes_a, boxes_b = (ndimage.find_objects(m, max_label=len(values)) for m in (a, b))
    result = {}
    for n, (value, box_a, box_b) in enumerate(zip(values, boxes_a, boxes_b, strict=True), start=1):
        if box_a is None and box_b is None:
            continue
        if box_a is None or box_b is None:
            result[value] = (float("nan"), float("nan"))
            continue
        box = tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(box_a, box_b, strict=True))
        there, back = _distances(a[box] == n, b[box] == n, spacing)
        pooled = (there.sum() + back.sum()) / (there.size + back.size)
        result[value] = (float(pooled), float(max(np.percentile(there, 95), np.percentile(back, 95))))
    return result


def mean(values: Mapping[int, float]) -> float:
    """Mean over labels without NaN; NaN if nothing is left."""
    kept = [v for v in values.values() if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def folding(jacobian: NDArray) -> float:
    """Percentage of voxels whose Jacobian determinant is at most 0.

    Parameters
    ----------
    jacobian : (I, J, K) array
        Determinants; the same whether the displacement was in voxels or mm.
    """
    return float(100 * np.count_nonzero(np.asarray(jacobian) <= 0) / np.asarray(jacobian).size)


def sdlogj(jacobian: NDArray) -> float:
    """Standard deviation of the logarithm of the Jacobian determinant, clipped to [1e-9, 1e9]."""
    return float(np.log(np.clip(np.asarray(jacobian, dtype=np.float64), 1e-9, 1e9)).std())


def _distances(a: NDArray, b: NDArray, spacing: Sequence[float]) -> tuple[NDArray, NDArray]:
    """Distances in mm of each surface voxel of `a` to the surface of `b`, and the other way."""
    surface_a, surface_b = (m & ~ndimage.binary_erosion(m) for m in (a, b))
    return _to_nearest(surface_a, surface_b, spacing), _to_nearest(surface_b, surface_a, spacing)


def _to_nearest(points: NDArray, targets: NDArray, spacing: Sequence[float]) -> NDArray:
    """Distances in mm of each voxel of one mask to the nearest one of another."""
    nearest = ndimage.distance_transform_edt(~targets, sampling=spacing, return_distances=False, return_indices=True)
    here = np.nonzero(points)
    squares = [((n[here] - at) * s) ** 2 for n, at, s in zip(nearest, here, spacing, strict=True)]
    return np.sqrt(np.sum(squares, axis=0))


def _compact(a: NDArray, b: NDArray, labels: Iterable[int] | None) -> tuple[list[int], NDArray, NDArray]:
    """The label values, and both maps with the n-th of them as n + 1 and all else as 0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"Label maps to compare must stand on one grid; their shapes are {a.shape} and {b.shape}.")
    found = np.union1d(a, b)
    wanted = sorted({int(v) for v in (found if labels is None else labels)} - {0})
    rank = {value: n for n, value in enumerate(wanted, start=1)}
    table = np.array([rank.get(int(v), 0) for v in found], dtype=np.int32)
    return wanted, table[np.searchsorted(found, a)], table[np.searchsorted(found, b)]
