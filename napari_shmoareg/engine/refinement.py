"""Refinement: the displacement of one pair is improved on that pair itself.

Ours, beyond the paper.  What the network found is taken as it is, and a correction to it is
descended coarse to fine, by Adam, under a similarity of the pair's own voxels and the diffusion
regulariser of L_reg.  No weights change.  The correction lives on a grid of twice the spacing,
smoothed, and is integrated as a velocity where the result has to stay invertible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.engine import losses
from napari_shmoareg.engine.cascade import coarser, stretch, to_shape
from napari_shmoareg.engine.local_similarity import LocalCorrelation, SelfSimilarity
from napari_shmoareg.engine.optimiser import adam
from napari_shmoareg.geometry import InputError, field

DEFAULT_STEPS = 60
MEASURES = {"lncc": LocalCorrelation, "mind": SelfSimilarity}
SMOOTHNESS = {"lncc": 0.6, "mind": 0.2}  # chosen on drawn pairs and the built-in sample
SMALLEST = 24  # voxels along the longest axis; a level below that shows too little


@dataclass(frozen=True)
class Refinement:
    """Settings of a refinement.

    Parameters
    ----------
    steps : int
        Over all levels together.
    similarity : {"lncc", "mind"}
        Squared local correlation, or self-similarity context, which compares each image with itself only.
    levels : tuple of float
        Resolutions of the levels, as shares of the finest one, rising; each gets the same number of steps.
    finest : int
        Voxels along the longest axis of the finest level, at most; the network grid's own where that has fewer.
    smoothness_weight : float or None
        Of the diffusion regulariser, on the sum of start and correction on the correction's grid; None takes
        `SMOOTHNESS` of the similarity.
    rate : float
        Of Adam, in voxels of the correction's own grid.
    damping : float
        How strongly faint gradients are held back, in root mean squares of the first gradient of a level.
    squarings : int
        Of the integration, where the result has to be invertible.
    """

    steps: int = DEFAULT_STEPS
    similarity: Literal["lncc", "mind"] = "lncc"
    levels: tuple[float, ...] = (0.5, 1.0)
    finest: int = 112
    smoothness_weight: float | None = None
    rate: float = 0.5
    damping: float = 2.0
    squarings: int = 4

    def __post_init__(self) -> None:
        rules = (
            (self.steps >= 1, "steps", "at least 1"),
            (self.similarity in MEASURES, "similarity", "'lncc' or 'mind'"),
            (bool(self.levels) and all(0 < share <= 1 for share in self.levels), "levels", "shares above 0, at most 1"),
            (tuple(sorted(self.levels)) == self.levels, "levels", "rising"),
            (self.smoothness_weight is None or self.smoothness_weight >= 0, "smoothness_weight", "at least 0"),
            (self.finest >= SMALLEST, "finest", f"at least {SMALLEST}"),
            (self.rate > 0, "rate", "above 0"),
            (self.damping >= 0, "damping", "at least 0"),
            (self.squarings >= 1, "squarings", "at least 1"),
        )
        for holds, name, wanted in rules:
            if not holds:
                raise InputError(f"{name} must be {wanted}; got {getattr(self, name)!r}.")

    @property
    def smoothness(self) -> float:
        """The weight of the regulariser that holds."""
        return SMOOTHNESS[self.similarity] if self.smoothness_weight is None else self.smoothness_weight


@dataclass(frozen=True)
class RefinementStep:
    """What one step of `refine` did.

    Attributes
    ----------
    step : int
        Steps done so far, this one included.
    similarity, smoothness : float
        Before their weights and before the step, at its level's resolution; smaller is better.
    displacement : Tensor (1, 3, D, H, W)
        So far, on the full grid, in its voxels.
    """

    step: int
    similarity: float
    smoothness: float
    displacement: Tensor


def refine(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor,
    settings: Refinement | None = None,
    *,
    diffeomorphic: bool = False,
) -> Iterator[RefinementStep]:
    """Improve a displacement on the pair it belongs to, one step per `next`.

    Stopping early is safe: the last step's displacement is what was reached.

    Parameters
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), in [0, 1]
    displacement : Tensor (1, 3, D, H, W), voxels
        What to start from: warped(p) = moving(p + u(p)).
    settings : Refinement, optional
    diffeomorphic : bool
        Compose with an integrated velocity, so that an invertible start stays invertible.

    Yields
    ------
    RefinementStep

    Raises
    ------
    InputError
        If the loss is not finite.
    """
    settings = settings or Refinement()
    with torch.inference_mode(False):  # tensors born in inference mode cannot be differentiated
        images, total = (moving.clone(), fixed.clone()), displacement.detach().float().clone()
    shapes = _shapes(fixed.shape[2:], settings)
    done = 0
    for number, shape in enumerate(shapes):
        steps = settings.steps * (number + 1) // len(shapes) - done
        if steps == 0:
            continue
        level = _Level(*images, total, shape, settings, diffeomorphic)
        for _ in range(steps):
            similarity, smoothness = level.descend()
            done += 1
            yield RefinementStep(done, similarity, smoothness, level.total())
        total = level.total()


class _Level:
    """One resolution: images, the start, and the correction that is descended."""

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        start: Tensor,
        shape: tuple[int, int, int],
        settings: Refinement,
        diffeomorphic: bool,
    ) -> None:
        self.settings, self.diffeomorphic, self.start, self.shape = settings, diffeomorphic, start, shape
        control = coarser(shape, 0.5)
        with torch.inference_mode(False), torch.no_grad():
            warped = to_shape(field.warp(moving, start, padding="border"), shape)
            self.measure = MEASURES[settings.similarity](warped, to_shape(fixed, shape))
            self.base = stretch(start, control)
            self.velocity = torch.zeros((1, 3, *control), device=fixed.device)
        self.velocity.requires_grad_(True)
        self.optimiser: torch.optim.Adam | None = None

    def descend(self) -> tuple[float, float]:
        """Make one step; similarity and smoothness as they were before it."""
        with torch.inference_mode(False), torch.enable_grad():
            correction = self.correction()
            similarity = self.measure(stretch(correction, self.shape))
            smoothness = losses.smoothness(self.base + correction)
            loss = similarity + self.settings.smoothness * smoothness
            if not torch.isfinite(loss):
                raise InputError(
                    f"The refinement's loss became {float(loss)}: register without --refine (in Python: refine=0), and "
                    "look at the images."
                )
            self.velocity.grad = None
            loss.backward()
            if self.optimiser is None:
                self.optimiser = adam([self.velocity], lr=self.settings.rate, eps=self._damping())
            self.optimiser.step()
        return float(similarity.detach()), float(smoothness.detach())

    def _damping(self) -> float:
        """Adam moves every voxel alike, however faint its gradient.

        Damped by the typical gradient of the level's first step, voxels where nothing is seen stay where they are.
        """
        gradient = self.velocity.grad
        return 1e-12 if gradient is None else max(self.settings.damping * float(gradient.square().mean().sqrt()), 1e-12)

    def correction(self) -> Tensor:
        """The correction on its own grid, in its voxels."""
        smooth = self.velocity
        for _ in range(2):
            smooth = F.avg_pool3d(smooth, 3, stride=1, padding=1, count_include_pad=False)
        return field.integrate(smooth, self.settings.squarings) if self.diffeomorphic else smooth

    def total(self) -> Tensor:
        """Start and correction, composed, on the full grid; the start itself is never resampled."""
        with torch.inference_mode(False), torch.no_grad():
            return field.compose(self.start, stretch(self.correction(), self.start.shape[2:]))


def _shapes(shape: Sequence[int], settings: Refinement) -> list[tuple[int, int, int]]:
    """The grids of the levels, without those that are too small; the finest at least."""
    most = min(1.0, settings.finest / max(shape))
    found = [coarser(shape, share * most) for share in settings.levels]
    return [small for small in found if max(small) >= SMALLEST] or [coarser(shape, most)]
