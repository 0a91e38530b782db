"""Dice, surface distances (voxels and surfels), folding and SDlogJ.

A surface voxel has a 6-neighbour outside its label; beyond the image counts as outside.  The
distances of a label missing in one map are NaN (MONAI gives NaN or infinity, MedPy raises).  A
surface element (surfel) is located at each corner between eight voxels of which only some are
inside; its area is that of its marching-cubes triangles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_shmoareg.geometry import LabelNames

Mask = NDArray[np.bool_]


def dice(a: NDArray, b: NDArray, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Compute the Dice overlap of each label of two maps on one grid.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
    labels : iterable of int, optional
        Default: all that occur in either map, except 0.

    Returns
    -------
    dict of int to float
        In [0, 1]; 0 for a label in only one map.  Labels in neither are skipped (as in Learn2Reg's
        script; TransMorph's counts them as 0).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    values, a, b = _compact(a, b, labels)
    count = len(values) + 1
    size_a, size_b = (
        np.bincount(a.ravel(), minlength=count),
        np.bincount(b.ravel(), minlength=count),
    )
    both = np.bincount(a[a == b], minlength=count)
    total = size_a + size_b
    return {v: float(2 * both[n] / total[n]) for n, v in enumerate(values, start=1) if total[n]}


class SharedLabels(NamedTuple):
    """The labels of the original images of a pair (without 0).

    Attributes
    ----------
    both, only_moving, only_fixed : tuple of int
    """

    both: tuple[int, ...]
    only_moving: tuple[int, ...] = ()
    only_fixed: tuple[int, ...] = ()

    @classmethod
    def of(cls, moving: Iterable[int], fixed: Iterable[int]) -> SharedLabels:
        """Compare the labels that occur in each image."""
        one, other = set(moving) - {0}, set(fixed) - {0}
        return cls(*(tuple(sorted(labels)) for labels in (one & other, one - other, other - one)))

    @property
    def missing(self) -> tuple[int, ...]:
        """The labels of only one image."""
        return tuple(sorted((*self.only_moving, *self.only_fixed)))

    @property
    def description(self) -> str:
        """The number of common labels, and the others, as text."""
        return self.describe()

    def describe(self, names: LabelNames | None = None) -> str:
        """As `description`, with the names of the labels."""
        count = len(self.both)
        if not self.missing:
            return f"{count} label{' is' if count == 1 else 's are'} in both images"
        sides = (("only moving", self.only_moving), ("only fixed", self.only_fixed))
        named = "; ".join(f"{side}: {_listed(labels, names)}" for side, labels in sides if labels)
        return (
            f"{count} of {count + len(self.missing)} labels {'is' if count == 1 else 'are'} in both"
            f" images; {named}"
        )


def dice_in_both(a: NDArray, b: NDArray, shared: SharedLabels) -> dict[int, float]:
    """As `dice`, for all labels of a pair: NaN for those of only one image.

    A label of both images that is missing in one map, as if warped out of the field of view, has 0.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
        The warped moving labels and the fixed labels.
    shared : SharedLabels
    """
    found = dice(a, b, shared.both)
    return {
        label: found.get(label, float("nan")) for label in sorted((*shared.both, *shared.missing))
    }


def mean(values: Mapping[int, float]) -> float:
    """Average over labels, ignoring NaN; NaN if none is left."""
    valid = [v for v in values.values() if not np.isnan(v)]
    return float(np.mean(valid)) if valid else float("nan")


def masks(
    a: NDArray, b: NDArray, labels: Iterable[int] | None = None
) -> Iterator[tuple[int, tuple[Mask, Mask] | None]]:
    """Yield the two masks of each label, cropped to their common bounding box.

    Parameters
    ----------
    a, b, labels
        As in `dice`.

    Yields
    ------
    label, (mask of a, mask of b)
        None instead of the masks if only one map has the label; labels in neither are skipped.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    values, a, b = _compact(a, b, labels)
    boxes_a, boxes_b = (ndimage.find_objects(m, max_label=len(values)) for m in (a, b))
    for n, (value, box_a, box_b) in enumerate(zip(values, boxes_a, boxes_b, strict=True), start=1):
        if box_a is None or box_b is None:
            if box_a is not None or box_b is not None:
                yield value, None
            continue
        box = tuple(
            slice(min(s.start, t.start), max(s.stop, t.stop))
            for s, t in zip(box_a, box_b, strict=True)
        )
        yield value, (a[box] == n, b[box] == n)


def _listed(labels: Sequence[int], names: LabelNames | None, most: int = 12) -> str:
    known = names or LabelNames()
    named = ", ".join(known.describe(label) for label in labels[:most])
    return named + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _compact(
    a: NDArray, b: NDArray, labels: Iterable[int] | None
) -> tuple[list[int], NDArray, NDArray]:
    """Renumber the labels of both maps from 1, all else 0; returns the values and the maps."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(
            f"Label maps to compare must be on one grid; their shapes are {a.shape} and {b.shape}."
        )
    found = np.union1d(a, b)
    values = sorted({int(v) for v in (found if labels is None else labels)} - {0})
    rank = {value: n for n, value in enumerate(values, start=1)}
    table = np.array([rank.get(int(v), 0) for v in found], dtype=np.int32)
    return values, table[np.searchsorted(found, a)], table[np.searchsorted(found, b)]


_EDGE = 2  # voxels that Learn2Reg crops at each side
_PLANES = 16  # of the first axis per iteration, to bound memory


def folding(jacobian: NDArray) -> float:
    """Compute the percentage of all voxels with a Jacobian determinant of at most 0.

    As in VoxelMorph's and TransMorph's scripts: central differences, one-sided at the borders.

    Parameters
    ----------
    jacobian : (I, J, K) array
        Determinants; they are the same for displacements in voxels and in mm.
    """
    return float(100 * np.count_nonzero(np.asarray(jacobian) <= 0) / np.asarray(jacobian).size)


def folding_interior(jacobian: NDArray) -> float:
    """As `folding`, without two voxels at each side (Learn2Reg's crop); NaN if nothing is left.

    Usually smaller, as folds are frequent at the borders.  (Learn2Reg's own "num_foldings" is
    always 0, as it tests values clipped above 0.)"""
    inner = _interior(jacobian)
    return folding(inner) if inner.size else float("nan")


def folding_strict(displacement: NDArray) -> float:
    """Compute the percentage of voxels where any of the 8 one-sided determinants is at most 0.

    Each axis uses the forward or the backward difference: central differences can miss a fold of
    one voxel (Liu et al. 2024, "On finite difference Jacobian computation").  At a border the only
    difference is used for both; the derivative along an axis of one voxel is 0.  The central
    determinant is the mean of the eight, so this is never less than `folding` and often several
    times as large: do not compare the two.

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
    """Compute the standard deviation of log(det) over all voxels, det clipped to [1e-9, 1e9]."""
    return float(np.log(np.clip(np.asarray(jacobian, dtype=np.float64), 1e-9, 1e9)).std())


def sdlogj_l2r(jacobian: NDArray) -> float:
    """Compute SDlogJ as Learn2Reg: of det + 3, without two voxels at each side.

    At most a quarter of `sdlogj`: do not compare the two.  NaN if nothing is left.
    """
    inner = _interior(jacobian)
    return sdlogj(inner + 3) if inner.size else float("nan")


def _interior(jacobian: NDArray) -> NDArray:
    inner: NDArray = np.asarray(jacobian)[_EDGE:-_EDGE, _EDGE:-_EDGE, _EDGE:-_EDGE].astype(
        np.float64
    )
    return inner


def _any_folds(u: NDArray) -> NDArray[np.bool_]:
    """Return a mask of voxels where any of the eight determinants is at most 0; u (3, I, J, K)."""
    columns = []  # per axis: forward and backward differences (3, I, J, K)
    for axis in range(3):
        step = np.diff(u, axis=axis + 1)
        unit = np.eye(3, dtype=u.dtype)[axis].reshape(3, 1, 1, 1)
        if not step.shape[axis + 1]:
            columns.append((np.zeros_like(u) + unit,) * 2)
            continue
        ends = [np.take(step, [end], axis=axis + 1) for end in (0, -1)]
        forward, backward = (
            np.concatenate([step, ends[1]], axis + 1),
            np.concatenate([ends[0], step], axis + 1),
        )
        columns.append((forward + unit, backward + unit))
    bad = np.zeros(u.shape[1:], dtype=bool)
    for (a, d, g), (b, e, h), (c, f, i) in product(*columns):
        bad |= a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) <= 0
    return bad


Distances = dict[str, float]
NAMES = ("assd", "hd95", "hd95_pooled")


def assd(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Compute the pooled average symmetric surface distance of each label, in mm.

    The distances of all surface voxels of A to the surface of B, and of B to A, averaged together.
    As ``monai.metrics.compute_average_surface_distance(symmetric=True)`` and MedPy from 0.5 on
    (older MedPy averaged the two means).  Do not compare it with Table I of the paper, whose "ASSD"
    is very likely another definition: `avd_th` or `assd_surfel`.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
    spacing : 3 float
        Millimetres between voxels along i, j, k: `Grid.spacing`, in any orientation.  (A sheared
        grid is measured as if its axes were orthogonal.)
    labels : iterable of int, optional
        As in `dice`.

    Returns
    -------
    dict of int to float
        NaN for a label in only one map; labels in neither are skipped.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    return {
        label: found["assd"] for label, found in surface_distances(a, b, spacing, labels).items()
    }


def hd95(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Compute the larger directed 95th percentile of the distances of `assd`, in mm.

    Arguments as in `assd`.  As MONAI's ``compute_hausdorff_distance(percentile=95)``.  (That of
    Learn2Reg is `hd95_surfel`, in voxels.)"""
    return {
        label: found["hd95"] for label, found in surface_distances(a, b, spacing, labels).items()
    }


def hd95_pooled(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Compute the pooled 95th percentile, in mm, MedPy's ``hd95``; arguments as in `assd`."""
    return {
        label: found["hd95_pooled"]
        for label, found in surface_distances(a, b, spacing, labels).items()
    }


def surface(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, tuple[float, float]]:
    """Compute ``(assd, hd95)`` of each label in one pass; arguments as in `assd`."""
    found = surface_distances(a, b, spacing, labels)
    return {label: (distances["assd"], distances["hd95"]) for label, distances in found.items()}


def surface_distances(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, Distances]:
    """Compute ``assd``, ``hd95`` and ``hd95_pooled`` in one pass; arguments as in `assd`."""
    result = {}
    for label, both in masks(a, b, labels):
        if both is None:
            result[label] = dict.fromkeys(NAMES, float("nan"))
            continue
        edges = [mask & ~ndimage.binary_erosion(mask) for mask in both]
        a_to_b, b_to_a = (
            to_nearest(edges[0], edges[1], spacing),
            to_nearest(edges[1], edges[0], spacing),
        )
        pooled = np.concatenate([a_to_b, b_to_a])
        result[label] = {
            "assd": float(pooled.mean()),
            "hd95": float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))),
            "hd95_pooled": float(np.percentile(pooled, 95)),
        }
    return result


def avd_th(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Compute the average distance over ALL voxels of a label, in mm; arguments as in `assd`.

    The mean over A of the distance of each voxel to the nearest voxel of B (0 inside B), the same
    from B to A, and the larger of the two: the "AVD" of Taha and Hanbury 2015, the paper's
    reference for its ASSD, which that article does not define.  (SimpleITK's
    ``HausdorffDistanceImageFilter`` averages the two.)  Large structures get small values; do not
    compare it with `assd`."""
    result = {}
    for label, both in masks(a, b, labels):
        if both is None:
            result[label] = float("nan")
            continue
        one, other = both
        result[label] = float(
            max(to_nearest(one, other, spacing).mean(), to_nearest(other, one, spacing).mean())
        )
    return result


def to_nearest(points: NDArray, targets: NDArray, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Compute the distances (n,) in mm of the voxels of a mask to another, non-empty mask."""
    nearest = ndimage.distance_transform_edt(
        ~targets, sampling=spacing, return_distances=False, return_indices=True
    )
    indices = np.nonzero(points)
    squares = [
        ((n[indices] - at) * s) ** 2 for n, at, s in zip(nearest, indices, spacing, strict=True)
    ]
    distances: NDArray[np.float64] = np.sqrt(np.sum(squares, axis=0))
    return distances


_BITS = np.array([128, 64, 32, 16, 8, 4, 2, 1]).reshape(2, 2, 2)
# Triangles between inside and outside of eight voxels (bits): area vectors in eighths of a voxel's
# faces, unsigned.  All 256 neighbourhoods are one of these, mirrored, rotated or inverted.
_TRIANGLES: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: ((1, 1, 1),),
    3: ((2, 2, 0), (2, 2, 0)),
    6: ((1, 1, 1), (1, 1, 1)),
    7: ((4, 0, 0), (2, 2, 2), (1, 1, 1)),
    15: ((4, 0, 0), (4, 0, 0)),
    22: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    23: ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1)),
    24: ((1, 1, 1), (1, 1, 1)),
    25: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    27: ((1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2)),
    30: ((4, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1)),
    60: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    105: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}


def assd_surfel(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Compute the average symmetric surface distance over surfels, in mm; arguments as in `assd`.

    Surfels are weighted by area; both directions are pooled.  As the package surface-distance
    (Nikolov et al. 2018), whose ``compute_average_surface_distance`` returns the two directions
    separately.  Clearly smaller than `assd`: do not compare the two."""
    return {
        label: found["assd_surfel"]
        for label, found in surfel_distances(a, b, spacing, labels).items()
    }


def hd95_surfel(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Compute the larger directed distance that covers 95 % of the surface area, in mm.

    Arguments as in `assd`.  As ``compute_robust_hausdorff(..., 95)`` of the package
    surface-distance.  Learn2Reg's HD95 is this with a spacing of 1 along each axis (in voxels)."""
    return {
        label: found["hd95_surfel"]
        for label, found in surfel_distances(a, b, spacing, labels).items()
    }


def surfel_distances(
    a: NDArray, b: NDArray, spacing: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, Distances]:
    """Compute ``assd_surfel`` and ``hd95_surfel`` in one pass; arguments as in `assd`."""
    areas = _areas(tuple(float(s) for s in spacing))
    result = {}
    for label, both in masks(a, b, labels):
        if both is None:
            result[label] = dict.fromkeys(("assd_surfel", "hd95_surfel"), float("nan"))
            continue
        codes = [_codes(mask) for mask in both]
        edges = [(code > 0) & (code < 255) for code in codes]
        a_to_b, b_to_a = (
            to_nearest(edges[0], edges[1], spacing),
            to_nearest(edges[1], edges[0], spacing),
        )
        weights = [areas[code[edge]] for code, edge in zip(codes, edges, strict=True)]
        total = a_to_b @ weights[0] + b_to_a @ weights[1]
        result[label] = {
            "assd_surfel": float(total / (weights[0].sum() + weights[1].sum())),
            "hd95_surfel": max(
                _quantile(a_to_b, weights[0], 0.95), _quantile(b_to_a, weights[1], 0.95)
            ),
        }
    return result


def _codes(mask: NDArray) -> NDArray[np.uint8]:
    """Encode as bits which of the 8 voxels around each corner are inside; shape + 1 per axis."""
    padded = np.pad(mask, 1).astype(np.uint8)
    i, j, k = (n + 1 for n in mask.shape)
    codes = np.zeros((i, j, k), dtype=np.uint8)
    for x, y, z in product((0, 1), repeat=3):
        codes += np.uint8(_BITS[x, y, z]) * padded[x : x + i, y : y + j, z : z + k]
    return codes


def _quantile(distances: NDArray, weights: NDArray, fraction: float) -> float:
    """Return the weighted quantile of the distances."""
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(distances[order][min(int(np.searchsorted(reached, fraction)), len(order) - 1)])


@lru_cache(maxsize=16)
def _areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Compute the surfel area in mm^2 of each of the 256 neighbourhoods."""
    faces = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    areas = np.zeros(256)
    for code, triangles in _TRIANGLES.items():
        inside, vectors = (_BITS & code) > 0, np.array(triangles) / 8
        for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
            turned = np.transpose(inside, order)[:: flips[0], :: flips[1], :: flips[2]]
            number = int(_BITS[turned].sum())
            areas[[number, 255 - number]] = np.linalg.norm(vectors[:, order] * faces, axis=1).sum()
    return areas
