"""Distances between voxels, in mm: ASSD, HD95 and Taha and Hanbury's AVD.

A surface voxel has a 6-neighbour outside its label; beyond the image is outside.  Where a label is missing
from one map its distances are NaN (MONAI gives NaN or infinity, MedPy raises).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_shmoareg.analysis.metrics.overlap import masks

Distances = dict[str, float]
NAMES = ("assd", "hd95", "hd95_pooled")


def assd(a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None) -> dict[int, float]:
    """Pooled average symmetric surface distance of each label, in mm.

    The distances of all surface voxels of A to the surface of B, and of B to A, averaged together.
    As ``monai.metrics.compute_average_surface_distance(symmetric=True)`` and MedPy from 0.5 on (older MedPy
    averaged the two means).  Never compare it with Table I of the paper, whose "ASSD" is very likely
    another definition: `avd_th` or `assd_surfel`.

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
        NaN for a label that only one map has; labels in neither are skipped.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    return {label: found["assd"] for label, found in surface_distances(a, b, spacing, labels).items()}


def hd95(a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None) -> dict[int, float]:
    """The larger of the two directed 95th percentiles of the distances of `assd`, in mm; arguments as there.

    As MONAI's ``compute_hausdorff_distance(percentile=95)``.  (Learn2Reg's is `hd95_surfel`, in voxels.)
    """
    return {label: found["hd95"] for label, found in surface_distances(a, b, spacing, labels).items()}


def hd95_pooled(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """The 95th percentile of both directions' distances together, in mm: MedPy's ``hd95``; arguments as in `assd`."""
    return {label: found["hd95_pooled"] for label, found in surface_distances(a, b, spacing, labels).items()}


def surface(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, tuple[float, float]]:
    """``(assd, hd95)`` of each label in one pass; arguments as in `assd`."""
    found = surface_distances(a, b, spacing, labels)
    return {label: (distances["assd"], distances["hd95"]) for label, distances in found.items()}


def surface_distances(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, Distances]:
    """``assd``, ``hd95`` and ``hd95_pooled`` of each label in one pass; arguments as in `assd`."""
    result = {}
    for label, both in masks(a, b, labels):
        if both is None:
            result[label] = dict.fromkeys(NAMES, float("nan"))
            continue
        edges = [mask & ~ndimage.binary_erosion(mask) for mask in both]
        there, back = to_nearest(edges[0], edges[1], spacing), to_nearest(edges[1], edges[0], spacing)
        pooled = np.concatenate([there, back])
        result[label] = {
            "assd": float(pooled.mean()),
            "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
            "hd95_pooled": float(np.percentile(pooled, 95)),
        }
    return result


def avd_th(a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None) -> dict[int, float]:
    """Average distance over ALL voxels of a label, in mm; arguments as in `assd`.

    Of each voxel of A to the nearest voxel of B, which is 0 inside B; the mean over A, the same from B to A,
    and the larger of the two: the "AVD" of Taha and Hanbury 2015, the paper's reference for its ASSD, which
    that article does not define.  (SimpleITK's ``HausdorffDistanceImageFilter`` averages the two.)  Large
    structures get small numbers; never compare it with `assd`.
    """
    result = {}
    for label, both in masks(a, b, labels):
        if both is None:
            result[label] = float("nan")
            continue
        one, other = both
        result[label] = float(max(to_nearest(one, other, spacing).mean(), to_nearest(other, one, spacing).mean()))
    return result


def to_nearest(points: NDArray, targets: NDArray, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Distances (n,) in mm of each voxel of one mask to the nearest one of another, which is not empty."""
    nearest = ndimage.distance_transform_edt(~targets, sampling=spacing, return_distances=False, return_indices=True)
    here = np.nonzero(points)
    squares = [((n[here] - at) * s) ** 2 for n, at, s in zip(nearest, here, spacing, strict=True)]
    distances: NDArray[np.float64] = np.sqrt(np.sum(squares, axis=0))
    return distances
