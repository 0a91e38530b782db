"""Refinement: instance optimisation of the displacement of one pair.

Ours, beyond the paper.  A greedy descent, coarse to fine, as in the fluid steps of SyN and greedy:
warp, compute the derivative of a local similarity in closed form, smooth it (fluid), compose it
with the displacement, smooth the result (elastic).  The network is not changed and autograd is not
used, so that it needs little memory.  It starts from the network's displacement or the identity.

D H W space.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import field
from napari_shmoareg.registration.similarity import (
    FLAT,
    LEAST_COUNT,
    LocalCorrelation,
    SelfSimilarity,
    self_similarity,
    weighted_mean,
)

LOADED_LIBRARIES = Path("/proc/self/maps")  # of a Linux process


def adam(parameters: Any, **options: Any) -> torch.optim.Adam:
    """Create ``torch.optim.Adam``, whose first use imports triton, see `without_triton`."""
    with without_triton():
        return torch.optim.Adam(parameters, **options)


@contextmanager
def without_triton() -> Iterator[None]:
    """Block the import of triton if it is not loaded yet and would crash the process.

    CUDA builds of torch include triton, whose LLVM conflicts with that of a software or AMD OpenGL
    driver: ``import triton`` caused a segmentation fault after a window was drawn with Mesa's
    llvmpipe.  Nothing here is compiled, so triton is not needed."""
    if (
        "triton" in sys.modules
        or not LOADED_LIBRARIES.is_file()
        or "libLLVM" not in LOADED_LIBRARIES.read_text(encoding="utf-8", errors="replace")
    ):
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["triton"]


DEFAULT_STEPS = 60
MEASURES = {"lncc": LocalCorrelation, "mind": SelfSimilarity}
SMOOTHNESS = {"accurate": 0.55, "balanced": 0.7, "smooth": 0.9}  # elastic smoothing, in voxels
# the same for a network's displacement
NETWORK_SMOOTHNESS = {"accurate": 0.0, "balanced": 1.0, "smooth": 2.0}
BRIGHTNESS = 10.0  # weight of the intensity difference for images of similar contrast
SMALLEST = 12  # voxels along the longest axis of a level, at least
PATIENCE = 5  # steps over which the gain is measured
# longest force below which images count as equal; about 1 to 20 where motion is needed
STILL = 1e-3
LEAST_JACOBIAN = 0.05  # of a displacement without folding: it may be less between voxels
UNFOLD_EVERY = 5  # steps between checks for folding
UNFOLDING = 20  # iterations of smoothing, at most
WINDOWS = (5, 7)  # of the local correlation: on coarser levels and on the finest


@dataclass(frozen=True)
class Refinement:
    """Settings of a refinement.

    Parameters
    ----------
    steps : int
        Maximum per level; a level ends earlier when its gain becomes small.
    similarity : {"lncc", "mind"}
        Squared local correlation, or self-similarity context, for images of different contrast.
    levels : tuple of float
        Resolutions of the levels as fractions of the finest one, ascending.
    finest : int
        Maximum number of voxels along the longest axis of the finest level; that of the network
        grid if smaller.
    fluid : float
        Standard deviation of the Gaussian smoothing of each update, in voxels of the level.
    elastic : float
        The same for the displacement after each update; larger is smoother.
    step : float
        Maximum length of an update, in voxels of the level.
    brightness : float
        Weight of the squared intensity difference added to the local correlation, for images of
        similar contrast.
    gain : float
        A level continues while the last five steps bring at least this fraction of its total gain.

    Raises
    ------
    InputError
        If a setting is out of its range.
    """

    steps: int = DEFAULT_STEPS
    similarity: Literal["lncc", "mind"] = "lncc"
    levels: tuple[float, ...] = (0.25, 0.5, 1.0)
    finest: int = 192
    fluid: float = 1.0
    elastic: float = SMOOTHNESS["accurate"]
    step: float = 1.0
    brightness: float = 0.0
    gain: float = 0.01

    def __post_init__(self) -> None:
        levels = self.levels
        rules = (
            (self.steps >= 1, "steps", "at least 1"),
            (self.similarity in MEASURES, "similarity", "'lncc' or 'mind'"),
            (
                bool(levels) and all(0 < share <= 1 for share in levels),
                "levels",
                "fractions above 0, at most 1",
            ),
            (tuple(sorted(levels)) == levels, "levels", "ascending"),
            (self.finest >= SMALLEST, "finest", f"at least {SMALLEST}"),
            (self.fluid >= 0, "fluid", "at least 0"),
            (self.elastic >= 0, "elastic", "at least 0"),
            (0 < self.step <= 1, "step", "above 0, at most 1"),
            (self.brightness >= 0, "brightness", "at least 0"),
            (0 <= self.gain < 1, "gain", "at least 0, below 1"),
        )
        for valid, name, requirement in rules:
            if not valid:
                raise InputError(f"{name} must be {requirement}; got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class RefinementStep:
    """State after one step of `refine`.

    Attributes
    ----------
    step : int
        Number of steps so far, including this one.
    level : float
        Resolution of the level as a fraction of the finest.
    similarity : float
        Loss before the step, on the grid of the level; smaller is better.
    done : float
        Estimated fraction of the work done, in [0, 1].
    field : Tensor (3, d, h, w)
        Displacement on the grid of the level, in its voxels.
    """

    step: int
    level: float
    similarity: float
    done: float
    field: Tensor

    def displacement(self, shape: Sequence[int]) -> Tensor:
        """Resample to a grid over the same field of view: (1, 3, D, H, W) in its voxels."""
        return rescale(self.field, shape)[None]


def refine(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor | None,
    settings: Refinement | None = None,
    *,
    diffeomorphic: bool = False,
    weight: Tensor | None = None,
) -> Iterator[RefinementStep]:
    """Refine the displacement of a pair, one step per `next`.

    It can be stopped at any time; the result is the displacement of the last step.

    Parameters
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), in [0, 1]
        Any size; along an axis of one voxel nothing moves.
    displacement : Tensor (1, 3, D, H, W), voxels, or None
        Start: warped(p) = moving(p + u(p)).  None is the identity.
    settings : Refinement, optional
    diffeomorphic : bool
        Keep the Jacobian determinant above 0 by smoothing the displacement where an update folds
        it.
    weight : Tensor (1, 1, D, H, W), 0 or 1, or None
        Voxels whose similarity counts; None for all.  The displacement is smooth everywhere.

    Yields
    ------
    RefinementStep

    Raises
    ------
    InputError
        If the loss is not finite.
    """
    settings = settings or Refinement()
    full = tuple(fixed.shape[2:])
    shapes = _shapes(full, settings)
    work = [shape[0] * shape[1] * shape[2] for shape in shapes]
    with torch.inference_mode():
        start = None if displacement is None else displacement[0].float()
        current = torch.zeros((3, *full), device=fixed.device) if start is None else start
    count, before = 0, 0.0
    for number, shape in enumerate(shapes):
        share = shape[0] / full[0] if full[0] > 1 else max(shape) / max(full)
        level = _Level(
            moving, fixed, current, shape, settings, weight, finest=number == len(shapes) - 1
        )
        for done, loss in level.run(diffeomorphic):
            count += 1
            yield RefinementStep(
                count, share, loss, (before + work[number] * done) / sum(work), level.field
            )
        before += work[number]
        current = level.field


class _Force(Protocol):
    """A similarity on one grid: its loss and the descent direction of every voxel."""

    shape: tuple[int, int, int]

    def __call__(self, displacement: Tensor) -> tuple[float, Tensor]: ...


class _LocalCorrelationForce:
    """Force of one minus the mean squared local correlation, and of the intensity difference.

    With local means m, variances v and covariance c of fixed F and warped W, the derivative at the
    centre voxel of c^2 / (v_F v_W) is 2 c / (v_F v_W) (F - m_F - c / v_W (W - m_W)) times the
    gradient of W; that of b / 2 (F - W)^2 is b (F - W) times the gradient.  The second term acts
    where a neighbourhood is too flat to correlate.  With a weight, voxels of weight 0 count neither
    themselves nor in the neighbourhood of others."""

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        window: int,
        brightness: float,
        weight: Tensor | None = None,
    ) -> None:
        self.moving, self.fixed, self.window, self.brightness = moving, fixed, window, brightness
        self.shape, self.weight = _shape_of(fixed), weight
        self.count = _box(torch.ones((1, *self.shape), device=fixed.device), window)
        if weight is not None:
            self.count = _box(weight[None], window).clamp_min_(LEAST_COUNT)
        mean, square = self._mean(torch.stack([fixed, fixed * fixed]))
        self.fixed_variance = square.sub_(mean * mean).clamp_min_(0)
        self.fixed_mean = mean

    def __call__(self, displacement: Tensor) -> tuple[float, Tensor]:
        warped = _pull(self.moving[None], displacement)[0]
        mean, square, product = self._mean(
            torch.stack([warped, warped * warped, warped * self.fixed])
        )
        variance = square.sub_(mean * mean).clamp_min_(0)
        covariance = product.sub_(mean * self.fixed_mean)
        ratio = covariance / (variance * self.fixed_variance).add_(FLAT)
        loss = 1 - float(weighted_mean(ratio * covariance, self.weight))
        faint = FLAT**0.5 / 30  # in numerator and denominator, so that equal images give no force
        slope = covariance.add_(covariance.sign().mul_(faint)).div_(variance.add_(faint))
        residual = (self.fixed - self.fixed_mean).sub_(slope.mul_(mean.neg_().add_(warped)))
        factor = ratio.mul_(residual).mul_(2)
        if self.brightness:
            difference = self.fixed - warped
            loss += self.brightness / 2 * float(weighted_mean(difference.square(), self.weight))
            factor.add_(difference, alpha=self.brightness)
        if self.weight is not None:
            factor.mul_(self.weight)
        return loss, _gradient(warped).mul_(factor)

    def _mean(self, values: Tensor) -> Tensor:
        """Average over the neighbourhoods of (C, D, H, W); `values` may be changed."""
        counted = values if self.weight is None else values.mul_(self.weight)
        return _box(counted, self.window).div_(self.count)


class _SelfSimilarityForce:
    """Force of the mean squared difference of self-similarity contexts, at half the resolution."""

    def __init__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> None:
        self.shape = _scaled_shape(fixed.shape, 0.5)
        pool = [
            _area_matrix(a, b, fixed.device) for a, b in zip(self.shape, fixed.shape, strict=True)
        ]
        self.moving, self.fixed = (
            separable(pool, self_similarity(v[None, None])[0]) for v in (moving, fixed)
        )
        self.weight = None if weight is None else weight_on(weight, self.shape)

    def __call__(self, displacement: Tensor) -> tuple[float, Tensor]:
        warped = _pull(self.moving, displacement)
        difference = self.fixed - warped
        force = torch.zeros_like(displacement)
        for channel, image in zip(difference, warped, strict=True):
            force += channel * _gradient(image)
        if self.weight is not None:
            force.mul_(self.weight)
        return float(weighted_mean(difference.square(), self.weight)), force


class _Level:
    """One resolution: its images, and the displacement to optimise, in its voxels."""

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        start: Tensor,
        shape: tuple[int, int, int],
        settings: Refinement,
        weight: Tensor | None = None,
        *,
        finest: bool,
    ) -> None:
        self.settings = settings
        with torch.inference_mode():
            images = [_to_shape(image[0, 0].float(), shape) for image in (moving, fixed)]
            counted = None if weight is None else weight_on(weight[0, 0].float(), shape)
            self.force: _Force
            match settings.similarity:
                case "lncc":
                    window = WINDOWS[1] if finest else WINDOWS[0]
                    self.force = _LocalCorrelationForce(
                        images[0], images[1], window, settings.brightness, counted
                    )
                case "mind":
                    self.force = _SelfSimilarityForce(images[0], images[1], counted)
                case _:
                    assert_never(settings.similarity)
            self.field = rescale(start, self.force.shape)

    def run(self, diffeomorphic: bool) -> Iterator[tuple[float, float]]:
        """Optimise; yields the fraction done and the loss before each step.

        The displacement with the smallest loss is retained.
        """
        losses: list[float] = []
        best, longest = self.field, 0.0
        for number in range(self.settings.steps):
            with torch.inference_mode():
                loss, force = self.force(self.field)
                if loss != loss or abs(loss) == float("inf"):
                    raise InputError(
                        f"The refinement's loss became {loss}.",
                        remedy="Register without refinement, {refine:0}, and check the images.",
                    )
                if loss <= min(losses, default=loss):
                    best = self.field
                losses.append(loss)
                spent = number >= PATIENCE and losses[-1 - PATIENCE] - loss < self.settings.gain * (
                    losses[0] - loss
                )
                update = _gaussian(force, self.settings.fluid)
                peak = float(update.square().sum(0).max().sqrt())
                longest = max(longest, peak)
                if spent or peak < STILL:
                    break
                moved = _composed(self.field, update.mul_(self.settings.step / longest))
                self.field = _gaussian(moved, self.settings.elastic)
                if diffeomorphic and number % UNFOLD_EVERY == UNFOLD_EVERY - 1:
                    self.field = _unfolded(self.field)
            yield (number + 1) / self.settings.steps, loss
        with torch.inference_mode():
            if losses and self.force(self.field)[0] > min(losses):
                self.field = best
            if diffeomorphic:
                self.field = _unfolded(self.field)


def smoothed(displacement: Tensor, smoothness: str) -> Tensor:
    """Smooth a network's displacement (1, 3, D, H, W) by a level of `NETWORK_SMOOTHNESS`."""
    with torch.inference_mode():
        return _gaussian(displacement[0].float(), NETWORK_SMOOTHNESS[smoothness])[None]


def separable(matrices: Sequence[Tensor], values: Tensor) -> Tensor:
    """Apply matrices (D, d), (H, h), (W, w) along the axes of values (C, d, h, w)."""
    first, second, third = matrices
    values = torch.matmul(torch.matmul(second, values), third.T)
    channels, depth, height, width = values.shape
    return torch.matmul(first, values.reshape(channels, depth, height * width)).reshape(
        channels, -1, height, width
    )


def rescale(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample a displacement (3, d, h, w) to another grid of the field of view and its voxels."""
    own_shape = tuple(displacement.shape[1:])
    if own_shape == tuple(shape):
        return displacement
    device = displacement.device
    matrices = [
        _linear_matrix(new, old, device) if new > old else _area_matrix(new, old, device)
        for new, old in zip(shape, own_shape, strict=True)
    ]
    ratio = torch.tensor(
        [new / old for new, old in zip(shape, own_shape, strict=True)], device=device
    )
    return separable(matrices, displacement) * ratio[:, None, None, None]


def _to_shape(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Downsample an image (D, H, W) by area averaging."""
    if tuple(image.shape) == shape:
        return image
    return separable(
        [_area_matrix(a, b, image.device) for a, b in zip(shape, image.shape, strict=True)],
        image[None],
    )[0]


def weight_on(weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Reduce a weight (D, H, W): voxels whose whole volume counts, or any part of it if none."""
    share = _to_shape(weight, shape)
    whole = share > 0.999
    return (whole if bool(whole.any()) else share > 0).float()


def _pull(values: Tensor, displacement: Tensor) -> Tensor:
    """Warp values (C, D, H, W) by u (3, D, H, W); edge values outside."""
    return field.warp(values[None], displacement[None], padding="border")[0]


def _gradient(image: Tensor) -> Tensor:
    """Compute central differences (3, D, H, W), one-sided at edges; 0 for an axis of length 1."""
    result = torch.zeros((3, *image.shape), device=image.device)
    for axis, n in enumerate(image.shape):
        if n == 1:
            continue
        out = result[axis]
        if n > 2:
            torch.sub(
                image.narrow(axis, 2, n - 2),
                image.narrow(axis, 0, n - 2),
                out=out.narrow(axis, 1, n - 2),
            )
            out.narrow(axis, 1, n - 2).mul_(0.5)
        out.select(axis, 0).copy_(image.select(axis, 1) - image.select(axis, 0))
        out.select(axis, n - 1).copy_(image.select(axis, n - 1) - image.select(axis, n - 2))
    return result


def _composed(displacement: Tensor, update: Tensor) -> Tensor:
    """Compose u with an update v of at most a voxel, to first order: u + (du/dp) v + v."""
    result = displacement + update
    for axis, along in enumerate(update):
        n = displacement.shape[axis + 1]
        if n == 1:
            continue
        change = displacement.narrow(axis + 1, 2, n - 2) - displacement.narrow(axis + 1, 0, n - 2)
        result.narrow(axis + 1, 1, n - 2).addcmul_(change, along.narrow(axis, 1, n - 2), value=0.5)
        for end, inner in ((0, 1), (n - 1, n - 2)):
            outward = (
                displacement.select(axis + 1, end) - displacement.select(axis + 1, inner)
            ) * (end - inner)
            result.select(axis + 1, end).addcmul_(outward, along.select(axis, end))
    return result


def _unfolded(displacement: Tensor) -> Tensor:
    """Smooth a displacement around folds until it has none; if needed, everywhere."""
    for number in range(UNFOLDING):
        folded = field.jacobian_determinant(displacement[None])[0] < LEAST_JACOBIAN
        if not bool(folded.any()):
            break
        share = (
            _gaussian((_box(folded.float(), 5) > 0).float(), 1.0)
            if number < UNFOLDING // 2
            else 1.0
        )
        displacement = displacement + share * (_gaussian(displacement, 1.0) - displacement)
    return displacement


def _box(values: Tensor, window: int) -> Tensor:
    """Sum values (C, D, H, W) over the part of a window inside the grid."""
    for axis in (1, 2, 3):
        n, sums = values.shape[axis], values.clone()
        for offset in range(1, min(window // 2, n - 1) + 1):
            sums.narrow(axis, 0, n - offset).add_(values.narrow(axis, offset, n - offset))
            sums.narrow(axis, offset, n - offset).add_(values.narrow(axis, 0, n - offset))
        values = sums
    return values


def _gaussian(values: Tensor, sigma: float) -> Tensor:
    """Smooth values (C, D, H, W) with a Gaussian, replicating edges.

    Sums shifted copies: for few weights several times faster than one-channel convolutions."""
    if sigma == 0:
        return values
    reach = max(1, int(3 * sigma + 0.5))
    kernel = torch.exp(-0.5 * (torch.arange(reach + 1, dtype=torch.float64) / sigma) ** 2)
    weights = (kernel / (2 * kernel.sum() - kernel[0])).tolist()
    for axis in (1, 2, 3):
        n = values.shape[axis]
        if n == 1:
            continue
        first, last = values.narrow(axis, 0, 1), values.narrow(axis, n - 1, 1)
        smooth = values * weights[0]
        for offset, weight in enumerate(weights[1:], 1):
            inner, outer = max(n - offset, 0), min(offset, n)
            smooth.narrow(axis, 0, inner).add_(values.narrow(axis, n - inner, inner), alpha=weight)
            smooth.narrow(axis, n - inner, inner).add_(values.narrow(axis, 0, inner), alpha=weight)
            smooth.narrow(axis, 0, outer).add_(first, alpha=weight)
            smooth.narrow(axis, n - outer, outer).add_(last, alpha=weight)
        values = smooth
    return values


def _area_matrix(new: int, old: int, device: torch.device) -> Tensor:
    """Return the matrix (new, old) of area averaging."""
    return F.interpolate(torch.eye(old)[None], size=new, mode="area")[0].T.contiguous().to(device)


def _linear_matrix(new: int, old: int, device: torch.device) -> Tensor:
    """Return the matrix (new, old) of linear interpolation with aligned voxel edges."""
    interpolated = F.interpolate(torch.eye(old)[None], size=new, mode="linear", align_corners=False)
    return interpolated[0].T.contiguous().to(device)


def _shape_of(image: Tensor) -> tuple[int, int, int]:
    d, h, w = image.shape
    return d, h, w


def _shapes(shape: Sequence[int], settings: Refinement) -> list[tuple[int, int, int]]:
    """Return the shapes of the levels without those too small; at least the finest."""
    most = min(1.0, settings.finest / max(shape))
    found = [_scaled_shape(shape, share * most) for share in settings.levels]
    return [small for small in found if max(small) >= SMALLEST] or [
        _scaled_shape(shape, most * settings.levels[-1])
    ]


def _scaled_shape(shape: Sequence[int], share: float) -> tuple[int, int, int]:
    i, j, k = (max(1, round(n * share)) for n in shape)
    return i, j, k
