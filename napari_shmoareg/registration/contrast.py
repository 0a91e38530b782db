"""Contrast of a pair: whether the two images show equal tissue equally bright, and what is done
where not.

Ours.  The network and the local correlation know no global contrast, but they do better where equal
is equally bright.  After the affine, most voxels lie on the tissue they should: the mean brightness
of the fixed image for each brightness of the moving one tells how the one translates into the
other, inverted or bent as it may be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.settings import RegistrationSettings, check_choice

BINS = 64
SAMPLED = 2_000_000  # voxels that a curve is measured on, at most
EMPTY = 0.02  # how far a voxel's brightness is from the background's where it shows nothing
# share of the variance that a bent curve explains beyond a straight one, for `auto` to act
WORTH = 0.08
UNRELATED = 0.15  # share of the variance explained, below which contrasts have no common curve
NARROW = 2.0  # bins: how far the curve is smoothed
_CENTRES = (np.arange(BINS) + 0.5) / BINS


class Relation(NamedTuple):
    """How the brightness of two images hangs together where both show something.

    Attributes
    ----------
    correlation : float
        Of brightness, in [-1, 1].
    explained : float
        Correlation ratio: share of the fixed image's variance that the moving image's brightness
        explains by any curve.  At least the square of the correlation (but for the bins).
    """

    correlation: float
    explained: float

    @property
    def bent(self) -> float:
        """What a bent or falling curve explains beyond a rising straight one."""
        return self.explained - max(self.correlation, 0.0) ** 2

    @property
    def unrelated(self) -> bool:
        """No curve explains much: self-similarity is the better measure."""
        return self.explained < UNRELATED


class Matched(NamedTuple):
    """The moving image as it goes on, and why."""

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
    """Give the moving image the contrast of the fixed one, where that helps.

    Parameters
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), in [0, 1]
        Roughly aligned.
    mode : {"auto", "keep", "match"}
        "auto" acts where a bent or falling curve explains clearly more than a rising straight one.
    backgrounds : (float, float)
        Brightness of what is empty in moving and in fixed: the one becomes the other.

    Raises
    ------
    InputError
        If the mode is none of the three.
    """
    check_choice(RegistrationSettings, "contrast", mode)
    a, b = _sampled(moving, fixed)
    seen = _shown(a, b, backgrounds)
    if not seen.any() or np.ptp(a[seen]) == 0 or np.ptp(b[seen]) == 0:
        return Matched(moving, False, "one image shows nothing to compare contrasts by")
    curve, relation = _curve(a[seen], b[seen])
    told = (
        f"correlation {relation.correlation:.2f}, any curve explains {100 * relation.explained:.0f}"
        " % of the variance"
    )
    if mode == "keep":
        return Matched(moving, False, f"kept, as asked ({told})")
    if mode == "auto" and relation.unrelated:
        return Matched(
            moving, False, f"kept: too little in common where the images overlap now ({told})"
        )
    if mode == "auto" and relation.bent <= WORTH:
        return Matched(moving, False, f"kept, as they are alike ({told})")
    low, high = _same_distribution(np.interp(a[seen], _CENTRES, curve), b[seen])
    values = moving.detach().cpu().numpy()
    matched = np.interp(np.interp(values, _CENTRES, curve), low, high).clip(0, 1)
    matched = np.where(np.abs(values - backgrounds[0]) > EMPTY, matched, backgrounds[1]).astype(
        np.float32
    )
    kind = "inverted" if relation.correlation < 0 else "differing"
    result = torch.as_tensor(matched, dtype=moving.dtype, device=moving.device)
    return Matched(
        result, True, f"matched: the moving image's {kind} contrast became the fixed one's ({told})"
    )


def relate(
    moving: Tensor, fixed: Tensor, *, backgrounds: tuple[float, float] = (0.0, 0.0)
) -> Relation:
    """How the brightness of two images hangs together; nothing, where one of them shows nothing."""
    a, b = _sampled(moving, fixed)
    seen = _shown(a, b, backgrounds)
    if not seen.any() or np.ptp(a[seen]) == 0 or np.ptp(b[seen]) == 0:
        return Relation(0.0, 0.0)
    return _curve(a[seen], b[seen])[1]


def _sampled(moving: Tensor, fixed: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Brightness of at most about `SAMPLED` voxels, the same of both."""
    step = max(1, moving.numel() // SAMPLED)
    a, b = (t.detach().flatten()[::step].cpu().numpy().astype(np.float64) for t in (moving, fixed))
    return a, b


def _shown(
    a: NDArray[np.float64], b: NDArray[np.float64], backgrounds: tuple[float, float]
) -> NDArray[np.bool_]:
    return (np.abs(a - backgrounds[0]) > EMPTY) & (np.abs(b - backgrounds[1]) > EMPTY)


def _curve(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], Relation]:
    """Mean of b for each bin of a, smoothed; and how the two hang together."""
    index = np.minimum((a * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    total = np.bincount(index, weights=b, minlength=BINS)
    means = total / np.maximum(count, 1)
    explained = float((count * (means - b.mean()) ** 2).sum() / (len(b) * b.var()))
    distance = np.arange(BINS)[:, None] - np.arange(BINS)
    weights = np.exp(-0.5 * (distance / NARROW) ** 2) * count + 1e-9 * np.exp(-np.abs(distance)) * (
        count > 0
    )
    smooth = (weights * means).sum(axis=1) / weights.sum(axis=1)
    return smooth, Relation(float(np.corrcoef(a, b)[0, 1]), explained)


def _same_distribution(
    here: NDArray[np.float64], there: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve that gives values the percentiles of other ones: means spread less than what they are
    means of.
    """
    levels = np.linspace(0, 100, 101)
    low, high = np.percentile(here, levels), np.percentile(there, levels)
    rising = np.r_[True, np.diff(low) > 1e-6]
    return low[rising], high[rising]
