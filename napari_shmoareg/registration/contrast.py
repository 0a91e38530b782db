"""Contrast of a pair: compare the intensities of two images and match them if they differ.

Ours.  The network and the local correlation do not depend on global contrast, but work better if
equal tissue is equally bright.  After the affine, most voxels are on corresponding tissue: the mean
brightness of the fixed image for each brightness of the moving image gives the curve that maps one
contrast to the other, even if inverted or nonlinear.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.settings import RegistrationSettings, check_choice

BINS = 64
SAMPLED = 2_000_000  # voxels from which a curve is measured, at most
EMPTY = 0.02  # difference from the background up to which a voxel is empty
# fraction of variance that a nonlinear curve must explain beyond a line, for `auto` to match
MATCH_GAIN = 0.08
UNRELATED = 0.15  # explained fraction of variance below which contrasts are unrelated
CURVE_SIGMA = 2.0  # bins: smoothing of the curve
_CENTRES = (np.arange(BINS) + 0.5) / BINS


class Relation(NamedTuple):
    """Relation of the brightness of two images over their common content.

    Attributes
    ----------
    correlation : float
        Correlation of brightness, in [-1, 1].
    explained : float
        Correlation ratio: fraction of the fixed image's variance that any curve of the moving
        image's brightness explains.  At least the squared correlation (up to binning).
    """

    correlation: float
    explained: float

    @property
    def nonlinearity(self) -> float:
        """Variance explained by a nonlinear or falling curve beyond a rising line."""
        return self.explained - max(self.correlation, 0.0) ** 2

    @property
    def unrelated(self) -> bool:
        """Whether no curve explains much, so that self-similarity is the better metric."""
        return self.explained < UNRELATED


class Matched(NamedTuple):
    """The moving image, possibly with changed contrast, and why."""

    moving: Tensor
    changed: bool
    reason: str


def match_contrast(
    moving: Tensor,
    fixed: Tensor,
    mode: str = "auto",
    *,
    backgrounds: tuple[float, float] = (0.0, 0.0),
) -> Matched:
    """Match the contrast of the moving image to that of the fixed one, if that helps.

    Parameters
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), in [0, 1]
        Roughly aligned.
    mode : {"auto", "keep", "match"}
        "auto" matches if a nonlinear or falling curve explains clearly more than a rising line.
    backgrounds : (float, float)
        Background brightness of moving and of fixed; the first is mapped to the second.

    Raises
    ------
    InputError
        If the mode is not valid.
    """
    check_choice(RegistrationSettings, "contrast", mode)
    a, b = _sampled(moving, fixed)
    content = _common_content(a, b, backgrounds)
    if not content.any() or np.ptp(a[content]) == 0 or np.ptp(b[content]) == 0:
        return Matched(moving, False, "one image has no contrast to compare")
    curve, relation = _curve(a[content], b[content])
    numbers = (
        f"correlation {relation.correlation:.2f}, any curve explains {100 * relation.explained:.0f}"
        " % of the variance"
    )
    if mode == "keep":
        return Matched(moving, False, f"kept, as requested ({numbers})")
    if mode == "auto" and relation.unrelated:
        return Matched(
            moving, False, f"kept: too little in common where the images overlap ({numbers})"
        )
    if mode == "auto" and relation.nonlinearity <= MATCH_GAIN:
        return Matched(moving, False, f"kept, as they are similar ({numbers})")
    low, high = _same_distribution(np.interp(a[content], _CENTRES, curve), b[content])
    values = moving.detach().cpu().numpy()
    matched = np.interp(np.interp(values, _CENTRES, curve), low, high).clip(0, 1)
    matched = np.where(np.abs(values - backgrounds[0]) > EMPTY, matched, backgrounds[1]).astype(
        np.float32
    )
    kind = "inverted" if relation.correlation < 0 else "differing"
    result = torch.as_tensor(matched, dtype=moving.dtype, device=moving.device)
    return Matched(
        result,
        True,
        f"matched: the moving image's {kind} contrast became the fixed one's ({numbers})",
    )


def relate(
    moving: Tensor, fixed: Tensor, *, backgrounds: tuple[float, float] = (0.0, 0.0)
) -> Relation:
    """Measure the relation of the brightness of two images; zeros if one has no content."""
    a, b = _sampled(moving, fixed)
    content = _common_content(a, b, backgrounds)
    if not content.any() or np.ptp(a[content]) == 0 or np.ptp(b[content]) == 0:
        return Relation(0.0, 0.0)
    return _curve(a[content], b[content])[1]


def _sampled(moving: Tensor, fixed: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the brightness of about `SAMPLED` voxels at most, the same ones of both images."""
    step = max(1, moving.numel() // SAMPLED)
    a, b = (t.detach().flatten()[::step].cpu().numpy().astype(np.float64) for t in (moving, fixed))
    return a, b


def _common_content(
    a: NDArray[np.float64], b: NDArray[np.float64], backgrounds: tuple[float, float]
) -> NDArray[np.bool_]:
    return (np.abs(a - backgrounds[0]) > EMPTY) & (np.abs(b - backgrounds[1]) > EMPTY)


def _curve(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], Relation]:
    """Return the mean of b for each bin of a, smoothed, and the relation of a and b."""
    index = np.minimum((a * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    total = np.bincount(index, weights=b, minlength=BINS)
    means = total / np.maximum(count, 1)
    explained = float((count * (means - b.mean()) ** 2).sum() / (len(b) * b.var()))
    distance = np.arange(BINS)[:, None] - np.arange(BINS)
    weights = np.exp(-0.5 * (distance / CURVE_SIGMA) ** 2) * count + 1e-9 * np.exp(
        -np.abs(distance)
    ) * (count > 0)
    smooth = (weights * means).sum(axis=1) / weights.sum(axis=1)
    return smooth, Relation(float(np.corrcoef(a, b)[0, 1]), explained)


def _same_distribution(
    source: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve that matches percentiles, as means vary less than the values averaged."""
    levels = np.linspace(0, 100, 101)
    low, high = np.percentile(source, levels), np.percentile(target, levels)
    rising = np.r_[True, np.diff(low) > 1e-6]
    return low[rising], high[rising]
