"""Folding and unevenness of a deformation, from its Jacobian determinant."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

_EDGE = 2  # voxels that Learn2Reg leaves out along each side
_PLANES = 16  # of the first axis at a time, to bound memory


def folding(jacobian: NDArray) -> float:
    """Percentage of voxels whose Jacobian determinant is at most 0, over all voxels.

    As VoxelMorph's and TransMorph's scripts: central differences, one-sided at the borders.

    Parameters
    ----------
    jacobian : (I, J, K) array
        Determinants; the same whether the displacement was in voxels or mm.
    """
    return float(100 * np.count_nonzero(np.asarray(jacobian) <= 0) / np.asarray(jacobian).size)


def folding_interior(jacobian: NDArray) -> float:
    """As `folding`, without two voxels along each side, as Learn2Reg crops; NaN if nothing is left.

    Usually smaller, as folds gather at the borders.  (Learn2Reg's own "num_foldings" is always 0, as it tests
    values that were clipped above 0.)
    """
    inner = _interior(jacobian)
    return folding(inner) if inner.size else float("nan")


def folding_strict(displacement: NDArray) -> float:
    """Percentage of voxels at which any of the eight one-sided determinants is at most 0.

    Each axis by its forward or by its backward difference: central differences can miss a fold of one voxel
    (Liu et al. 2024, "On finite difference Jacobian computation").  At a border the one difference there is
    stands for both; an axis of one voxel has no change along it.  The central determinant is the mean of the
    eight, so this is never less than `folding`, and often several times as much: do not compare the two.

    Parameters
    ----------
    displacement : (3, I, J, K) array
        In voxels, component c along axis c.
    """
    u = np.asarray(displacement, dtype=np.float32)
    planes = u.shape[1]
    folded = 0
    for start in range(0, planes, _PLANES):
        stop = min(start + _PLANES, planes)
        first, last = max(start - 1, 0), min(stop + 1, planes)
        bad = _any_folds(u[:, first:last])
        folded += int(np.count_nonzero(bad[start - first : stop - first]))
    return 100 * folded / u[0].size


def sdlogj(jacobian: NDArray) -> float:
    """Standard deviation of the logarithm of the Jacobian determinant, clipped to [1e-9, 1e9], over all voxels."""
    return float(np.log(np.clip(np.asarray(jacobian, dtype=np.float64), 1e-9, 1e9)).std())


def sdlogj_l2r(jacobian: NDArray) -> float:
    """Learn2Reg's number of this name: 3 is added to the determinant first, two voxels along each side are left out.

    A quarter of `sdlogj` or less: never compare the two.  NaN if nothing is left.
    """
    inner = _interior(jacobian)
    return sdlogj(inner + 3) if inner.size else float("nan")


def _interior(jacobian: NDArray) -> NDArray:
    inner: NDArray = np.asarray(jacobian)[_EDGE:-_EDGE, _EDGE:-_EDGE, _EDGE:-_EDGE].astype(np.float64)
    return inner


def _any_folds(u: NDArray) -> NDArray[np.bool_]:
    """Where any of the eight determinants of a displacement (3, I, J, K) is at most 0."""
    columns = []  # per axis: forward and backward differences (3, I, J, K)
    for axis in range(3):
        step = np.diff(u, axis=axis + 1)
        unit = np.eye(3, dtype=u.dtype)[axis].reshape(3, 1, 1, 1)
        if not step.shape[axis + 1]:
            columns.append((np.zeros_like(u) + unit,) * 2)
            continue
        ends = [np.take(step, [place], axis=axis + 1) for place in (0, -1)]
        forward, backward = np.concatenate([step, ends[1]], axis + 1), np.concatenate([ends[0], step], axis + 1)
        columns.append((forward + unit, backward + unit))
    bad = np.zeros(u.shape[1:], dtype=bool)
    for (a, d, g), (b, e, h), (c, f, i) in product(*columns):
        bad |= a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) <= 0
    return bad
