"""Similarities that compare neighbourhoods, made for many evaluations against one fixed image.

What depends on the fixed image alone is computed once.  D H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.engine.box import box
from napari_shmoareg.geometry import field

FLAT = 1e-5  # product of two variances below which a neighbourhood shows nothing


class LocalCorrelation:
    """One minus the mean squared local correlation of fixed(p) and warped(p + r(p)).

    Blind to contrast that is linear within a neighbourhood, inverted contrast included.  As
    `engine.losses.lncc`, but beyond its field of view the moving image goes on with its edge.

    Parameters
    ----------
    warped, fixed : Tensor (1, 1, D, H, W)
    window : int
        Edge of the neighbourhood in voxels, odd.
    """

    def __init__(self, warped: Tensor, fixed: Tensor, window: int = 7) -> None:
        self.warped, self.fixed, self.window = warped, fixed, window
        self.count = box(torch.ones_like(fixed), window)
        self.mean = self._mean(fixed)
        self.variance = (self._mean(fixed * fixed) - self.mean**2).clamp_min(0)

    def __call__(self, correction: Tensor) -> Tensor:
        """The loss, in [0, 1], of a correction (1, 3, D, H, W) in voxels."""
        seen = field.warp(self.warped, correction, padding="border")
        mean, square, product = self._mean(torch.cat([seen, seen * seen, seen * self.fixed], 1)).split(1, 1)
        cross = product - mean * self.mean
        spread = (square - mean * mean).clamp_min(0) * self.variance
        return 1 - (cross * cross / (spread + FLAT)).mean()

    def visible(self) -> float:
        """Share of the neighbourhoods with any contrast in which it is more than what counts as flat."""
        some = self.variance > 0.01 * FLAT**0.5
        return float((self.variance[some] > FLAT**0.5).float().mean()) if bool(some.any()) else 0.0

    def _mean(self, values: Tensor) -> Tensor:
        return box(values, self.window) / self.count


class SelfSimilarity:
    """Mean squared difference of self-similarity contexts (MIND-SSC, Heinrich et al. 2013).

    Each image is compared with itself: how alike are the twelve pairs of patches around a voxel
    that lie diagonally to each other.  Blind to any contrast as long as equal tissue is equal.
    Computed at full and compared at half resolution, as ConvexAdam does.

    Parameters
    ----------
    warped, fixed : Tensor (1, 1, D, H, W)
    radius, dilation : int
        Of a patch, and how far its centre lies from the voxel.
    """

    def __init__(self, warped: Tensor, fixed: Tensor, radius: int = 1, dilation: int = 2) -> None:
        self.pad = [p for n in reversed(fixed.shape[2:]) for p in (0, n % 2)]  # to even numbers, so that 2 make 1
        with torch.no_grad():
            self.warped, self.fixed = (
                F.avg_pool3d(F.pad(self_similarity(image, radius, dilation), self.pad, mode="replicate"), 2)
                for image in (warped, fixed)
            )

    def __call__(self, correction: Tensor) -> Tensor:
        """The loss of a correction (1, 3, D, H, W) in voxels of the images' grid."""
        small = F.avg_pool3d(F.pad(correction, self.pad, mode="replicate"), 2) / 2
        return (field.warp(self.warped, small, padding="border") - self.fixed).square().mean()


def self_similarity(image: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """Self-similarity context of an image (1, 1, D, H, W): (1, 12, D, H, W), in [0, 1].

    exp(-(distance - least distance) / variance) for each pair of neighbouring patches; the variance is the
    mean over the pairs, kept within a factor of 1000 of its own mean over the image.
    """
    pad = [dilation] * 6
    padded = F.pad(image, pad, mode="replicate")
    d, h, w = image.shape[2:]
    faces = [tuple(dilation * s if a == axis else 0 for a in range(3)) for axis in range(3) for s in (-1, 1)]
    seen = [
        padded[:, :, dilation + i : dilation + i + d, dilation + j : dilation + j + h, dilation + k : dilation + k + w]
        for i, j, k in faces
    ]
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6) if a // 2 != b // 2]
    squares = torch.cat([(seen[a] - seen[b]).square() for a, b in pairs], 1)
    distance = box(F.pad(squares, [radius] * 6, mode="replicate"), 2 * radius + 1)
    distance = distance[:, :, radius : radius + d, radius : radius + h, radius : radius + w]
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    middle = variance.mean().clamp_min(1e-12)
    return torch.exp(-distance / variance.clamp(middle * 1e-3, middle * 1e3))
