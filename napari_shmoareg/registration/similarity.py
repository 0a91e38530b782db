"""Similarity metrics: global and local correlation, mutual information, self-similarity (MIND).

Terms of the fixed image alone are computed once.  D H W space.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import Grid, Transform, Volume, VolumePair, field, inside, pull
from napari_shmoareg.registration.intensity import Intensity


def box_filter(values: Tensor, window: int) -> Tensor:
    """Sum over the cube around each voxel, divided by its volume; zeros outside the image.

    Parameters
    ----------
    values : Tensor (B, C, D, H, W)
    window : int
        Edge of the cube in voxels, odd.
    """
    result: Tensor = _Box.apply(values, window)
    return result


def box_mean(values: Tensor, window: int) -> Tensor:
    """Average over the part inside the image of the cube around each voxel."""
    with torch.no_grad():
        share = box_filter(torch.ones_like(values[:1, :1]), window)
    return box_filter(values, window) / share


class _Box(torch.autograd.Function):
    """Box filter with zeros outside; it is its own adjoint, so that its gradient is as cheap."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, window: int) -> Tensor:
        ctx.window = window
        return _pooled(values, window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _pooled(gradient, ctx.window), None


def _pooled(values: Tensor, window: int) -> Tensor:
    half = window // 2
    for axis in range(3):
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = window, half
        # pooling refuses a window larger than the image
        if values.shape[2 + axis] < window:
            values, pad = F.pad(values, [n for p in reversed(pad) for n in (p, p)]), [0, 0, 0]
        values = F.avg_pool3d(values, size, stride=1, padding=pad)
    return values


LEAST_COUNT = 1e-6  # divisor where no voxel of a neighbourhood counts
FLAT = 1e-5  # product of two variances below which a neighbourhood has no contrast


class LocalCorrelation:
    """One minus the mean squared local correlation of fixed(p) and warped(p + r(p)).

    Invariant to contrast changes that are linear within a neighbourhood, including inversion.  As
    `registration.losses.lncc`, but the moving image is extended by its edge values.

    Parameters
    ----------
    warped, fixed : Tensor (1, 1, D, H, W)
    window : int
        Edge of the neighbourhood in voxels, odd.
    weight : Tensor (1, 1, D, H, W), 0 or 1, or None
        Voxels that count, also within a neighbourhood; None for all.
    """

    def __init__(
        self, warped: Tensor, fixed: Tensor, window: int = 7, weight: Tensor | None = None
    ) -> None:
        self.warped, self.fixed, self.window, self.weight = warped, fixed, window, weight
        self.count = box_filter(torch.ones_like(fixed) if weight is None else weight, window)
        if weight is not None:
            self.count = self.count.clamp_min(LEAST_COUNT)
        self.mean = self._mean(fixed)
        self.variance = (self._mean(fixed * fixed) - self.mean**2).clamp_min(0)

    def __call__(self, correction: Tensor) -> Tensor:
        """Return the loss, in [0, 1], of a correction (1, 3, D, H, W) in voxels."""
        image = field.warp(self.warped, correction, padding="border")
        mean, square, product = self._mean(
            torch.cat([image, image * image, image * self.fixed], 1)
        ).split(1, 1)
        cross = product - mean * self.mean
        spread = (square - mean * mean).clamp_min(0) * self.variance
        return 1 - weighted_mean(cross * cross / (spread + FLAT), self.weight)

    def visible(self) -> float:
        """Return the fraction of neighbourhoods with any contrast that do not count as flat."""
        some = self.variance > 0.01 * FLAT**0.5
        return float((self.variance[some] > FLAT**0.5).float().mean()) if bool(some.any()) else 0.0

    def _mean(self, values: Tensor) -> Tensor:
        counted = values if self.weight is None else values * self.weight
        return box_filter(counted, self.window) / self.count


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Average over all voxels, or over those of a weight of 0 or 1 (of one channel)."""
    if weight is None:
        return values.mean()
    shared = weight.expand_as(values)
    return (values * shared).sum() / shared.sum()


class SelfSimilarity:
    """Mean squared difference of self-similarity contexts (MIND-SSC, Heinrich et al. 2013).

    Each image is compared with itself: the distances of the twelve pairs of diagonally adjacent
    patches around a voxel.  Independent of contrast as long as equal tissue has equal intensity.
    Computed at full and compared at half resolution, as in ConvexAdam.

    Parameters
    ----------
    warped, fixed : Tensor (1, 1, D, H, W)
    radius, dilation : int
        Radius of a patch, and distance of its centre from the voxel.
    weight : Tensor (1, 1, D, H, W), 0 or 1, or None
        Voxels whose contexts count (a context reaches 3 voxels further); None for all.
    """

    def __init__(
        self,
        warped: Tensor,
        fixed: Tensor,
        radius: int = 1,
        dilation: int = 2,
        weight: Tensor | None = None,
    ) -> None:
        # to even sizes, for pooling by 2
        self.pad = [p for n in reversed(fixed.shape[2:]) for p in (0, n % 2)]
        with torch.no_grad():
            self.warped, self.fixed = (
                F.avg_pool3d(
                    F.pad(self_similarity(image, radius, dilation), self.pad, mode="replicate"), 2
                )
                for image in (warped, fixed)
            )
        self.weight = weight
        if weight is not None:
            self.weight = F.max_pool3d(F.pad(weight, self.pad), 2)

    def __call__(self, correction: Tensor) -> Tensor:
        """Return the loss of a correction (1, 3, D, H, W) in voxels of the images' grid."""
        small = F.avg_pool3d(F.pad(correction, self.pad, mode="replicate"), 2) / 2
        difference = field.warp(self.warped, small, padding="border") - self.fixed
        return weighted_mean(difference.square(), self.weight)


def self_similarity(image: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """Compute the self-similarity context (1, 12, D, H, W), in [0, 1], of (1, 1, D, H, W).

    exp(-(distance - smallest distance) / variance) for each pair of neighbouring patches; the
    variance is the mean over the pairs, clamped to a factor of 1000 around its image mean."""
    pad = [dilation] * 6
    padded = F.pad(image, pad, mode="replicate")
    d, h, w = image.shape[2:]
    faces = [
        tuple(dilation * s if a == axis else 0 for a in range(3))
        for axis in range(3)
        for s in (-1, 1)
    ]
    patches = [
        padded[
            :,
            :,
            dilation + i : dilation + i + d,
            dilation + j : dilation + j + h,
            dilation + k : dilation + k + w,
        ]
        for i, j, k in faces
    ]
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6) if a // 2 != b // 2]
    squares = torch.cat([(patches[a] - patches[b]).square() for a, b in pairs], 1)
    distance = box_filter(F.pad(squares, [radius] * 6, mode="replicate"), 2 * radius + 1)
    distance = distance[:, :, radius : radius + d, radius : radius + h, radius : radius + w]
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    middle = variance.mean().clamp_min(1e-12)
    return torch.exp(-distance / variance.clamp(middle * 1e-3, middle * 1e3))


POINTS = 1_000_000  # of the fixed grid to compare, at most
WINDOW = 7  # compared points along the edge of a neighbourhood
NO_VARIANCE = 1e-7  # product of two variances below which a neighbourhood has no contrast


class Similarity(NamedTuple):
    """Similarity of two images, with intensities in [0, 1] (see `Intensity`).

    Attributes
    ----------
    ncc : float
        Normalised cross-correlation, in [-1, 1]; 0 if an image is constant.
    mse : float
        Mean squared difference.
    nmi : float
        Normalised mutual information (see `nmi`), contrast-independent; NaN if both are constant.
    overlap : float
        Fraction of the fixed field of view, or of the mask, covered by the moving image; only it is
        compared.
    information : float
        As `nmi`, of both images smoothed by one compared voxel, so that interpolation blur has
        no effect.
    local : float
        Mean squared local correlation of the smoothed images, in [0, 1], over content.
    coverage : float
        Fraction of the content of one image inside the field of view of the other: the larger of
        the two.
    """

    ncc: float
    mse: float
    nmi: float
    overlap: float
    information: float
    local: float
    coverage: float

    @property
    def score(self) -> float:
        """Score of a transform of a pair, in [0, 1].

        Mean of `information` (global) and `local`, times the square root of the coverage.
        """
        shared = 0.0 if np.isnan(self.information) else self.information
        return float(np.sqrt(self.coverage) * (shared + self.local) / 2)


def compare_images(pair: VolumePair, transform: Transform) -> Similarity | None:
    """Compare fixed(x) with moving(T(x)) inside the moving image's field of view and the mask.

    Ours: on every second (third ...) voxel if the fixed image has more than a million voxels.

    Parameters
    ----------
    pair : VolumePair
    transform : Transform
        Fixed world to moving world.

    Returns
    -------
    Similarity or None
        None if the images do not overlap.
    """
    step = int(np.ceil((pair.fixed.values.size / POINTS) ** (1 / 3)))
    first = _first_samples(pair.fixed_mask, step)
    sampled = tuple(slice(start, None, step) for start in first)
    values = pair.fixed.values[sampled]
    i, j, k = values.shape
    to_voxel = np.diag([step, step, step, 1.0])
    to_voxel[:3, 3] = first
    grid = Grid((i, j, k), pair.fixed.grid.affine @ to_voxel)
    points = transform.map_points(
        grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    )
    in_view = inside(pair.moving.grid, points)
    counted = np.ones(grid.shape, dtype=bool)
    if pair.fixed_mask is not None:
        counted = pair.fixed_mask.values[sampled] != 0
        in_view &= counted
    if not in_view.any():
        return None
    scales = Intensity.of(pair.moving), Intensity.of(pair.fixed)
    warped = scales[0].scale(pull(pair.moving, grid, points).values)
    fixed = scales[1].scale(values)
    contents = [
        counted & (np.abs(image - scale.scale(np.array([scale.background]))[0]) > 0.05)
        for image, scale in zip((warped, fixed), scales, strict=True)
    ]
    a, b = warped[in_view].astype(np.float64), fixed[in_view].astype(np.float64)
    smooth = gaussian_filter(warped, 1.0), gaussian_filter(fixed, 1.0)
    spread = a.std() * b.std()
    ncc = float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0
    return Similarity(
        ncc=ncc,
        mse=float(((a - b) ** 2).mean()),
        nmi=nmi(a, b),
        overlap=float(in_view.mean() if pair.fixed_mask is None else in_view[counted].mean()),
        information=nmi(smooth[0][in_view], smooth[1][in_view]),
        local=_local_correlation(*smooth, in_view, in_view & (contents[0] | contents[1])),
        coverage=_coverage(pair, grid, in_view, contents[0], contents[1], scales[0]),
    )


def _first_samples(mask: Volume | None, step: int) -> list[int]:
    """The first voxel along each axis of every `step`-th, so that a thin mask is met."""
    if mask is None:
        return [0, 0, 0]
    found, inside = [], mask.values != 0
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        counts = inside.sum(axis=others)
        met = [int(counts[start::step].sum()) for start in range(min(step, len(counts)))]
        found.append(int(np.argmax(met)))
    return found


def _local_correlation(
    a: NDArray, b: NDArray, in_view: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> float:
    """Average the squared local correlation over `counted`; 0 if empty."""
    if not counted.any():
        return 0.0
    mask = torch.from_numpy(in_view.astype(np.float32))
    x, y = (torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) * mask for v in (a, b))
    sums = box_filter(torch.stack([mask, x, y, x * x, y * y, x * y])[None], WINDOW)[0]
    count = sums[0].clamp_min(1e-6)
    mean_x, mean_y, square_x, square_y, product = (value / count for value in sums[1:])
    covariance = product - mean_x * mean_y
    variances = (square_x - mean_x**2).clamp_min(0) * (square_y - mean_y**2).clamp_min(0)
    squared = (covariance**2 / (variances + NO_VARIANCE)).numpy()
    return float(squared[counted].mean(dtype=np.float64))


def _coverage(
    pair: VolumePair,
    grid: Grid,
    in_view: NDArray[np.bool_],
    moving_content: NDArray[np.bool_],
    fixed_content: NDArray[np.bool_],
    scale: Intensity,
) -> float:
    """Compute the larger fraction of one image's content inside the other's field of view."""
    of_fixed = float((fixed_content & in_view).sum() / max(1, int(fixed_content.sum())))
    thin = max(1, round((pair.moving.values.size / POINTS) ** (1 / 3)))
    part = pair.moving.values[::thin, ::thin, ::thin]
    volume = abs(float(np.linalg.det(pair.moving.grid.affine[:3, :3]))) * thin**3
    whole = float(scale.content(part).sum()) * volume
    covered = float((moving_content & in_view).sum()) * abs(
        float(np.linalg.det(grid.affine[:3, :3]))
    )
    return max(of_fixed, min(1.0, covered / whole) if whole > 0 else 0.0)


def nmi(a: NDArray, b: NDArray, bins: int = 32) -> float:
    """Compute the normalised mutual information 2 I / (H(a) + H(b)), 0 to 1.

    NaN if both are constant.

    Ours: 32 bins between the 0.5th and 99.5th percentile of each image, so that a few bright
    voxels do not compress the rest into one bin.
    """
    return information(_binned(a, bins), _binned(b, bins), bins)


def information(a: NDArray[np.int64], b: NDArray[np.int64], bins: int) -> float:
    """Compute 2 I / (H(a) + H(b)) of bin numbers from 0; NaN if both use one bin only."""
    joint = np.bincount((a * bins + b).ravel(), minlength=bins * bins).reshape(bins, bins)
    separate = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
    return 2 * (separate - _entropy(joint)) / separate if separate > 0 else float("nan")


def _binned(values: NDArray, bins: int) -> NDArray:
    """Return the bin of each voxel, from 0, between two percentiles or, if equal, the extremes."""
    values = np.asarray(values, dtype=np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    if high <= low:
        low, high = values.min(), values.max()
    if high <= low:
        return np.zeros(values.shape, dtype=np.int64)
    return np.clip((values - low) / (high - low) * bins, 0, bins - 1).astype(np.int64)


def _entropy(counts: NDArray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
