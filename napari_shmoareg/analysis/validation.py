"""How well a network registers pairs that it does not learn from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.analysis.metrics import SharedLabels, dice_in_both, mean
from napari_shmoareg.engine.cascade import cascade
from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.geometry import InputError, field
from napari_shmoareg.model import SHMoAReg


@dataclass(frozen=True)
class ValidatedPair:
    """One pair, on its network grid.

    Attributes
    ----------
    dice : float
        Mean over the labels that both have, carried by nearest neighbour; NaN without such.
    ncc : float
        Correlation of the warped and the fixed image, over all voxels.
    folding_percent : float
        Voxels whose Jacobian determinant is 0 or less.
    """

    dice: float
    ncc: float
    folding_percent: float


@dataclass(frozen=True)
class Validated:
    """Means over validation pairs.

    Attributes
    ----------
    dice : float
        NaN where no pair has labels.
    ncc, folding_percent, seconds : float
        Seconds are of all pairs together.
    per_pair : tuple of ValidatedPair
    """

    dice: float
    ncc: float
    folding_percent: float
    seconds: float
    per_pair: tuple[ValidatedPair, ...]

    @property
    def score(self) -> float:
        """What decides which network is best: Dice, or without labels the correlation."""
        return self.ncc if np.isnan(self.dice) else self.dice


def validate(
    network: SHMoAReg, pairs: Sequence[Conformed], *, between: Callable[[int], None] | None = None
) -> Validated:
    """Register pairs as `register` would, in all passes, and measure on the network grid.

    Parameters
    ----------
    network : SHMoAReg
        Left in the mode it came in; the random numbers of training are not touched.
    pairs : sequence of Conformed
        At the size that the weights are meant for, with label maps in whole numbers where there are any.
    between : callable, optional
        Called with the number of pairs done, after each; what it raises ends the work and comes out here.

    Raises
    ------
    InputError
        If there is no pair.
    """
    if len(pairs) == 0:
        raise InputError("There is no pair to validate on; give at least one.")
    began, training, found = time.perf_counter(), network.training, []
    network.eval()
    try:
        for number in range(len(pairs)):
            found.append(validated(pairs[number], displace(network, pairs[number])))
            if between is not None:
                between(number + 1)
    finally:
        network.train(training)
    with_labels = [pair.dice for pair in found if not np.isnan(pair.dice)]
    return Validated(
        dice=float(np.mean(with_labels)) if with_labels else float("nan"),
        ncc=float(np.mean([pair.ncc for pair in found])),
        folding_percent=float(np.mean([pair.folding_percent for pair in found])),
        seconds=time.perf_counter() - began,
        per_pair=tuple(found),
    )


@torch.no_grad()
def displace(network: SHMoAReg, pair: Conformed) -> Tensor:
    """What the network, in the mode it is in, finds for a pair: (1, 3, D, H, W), voxels of its grid, on the CPU."""
    device = next(network.parameters()).device
    return cascade(network, pair.moving.to(device), pair.fixed.to(device)).displacement.cpu()


def validated(pair: Conformed, displacement: Tensor) -> ValidatedPair:
    """Measure a displacement (1, 3, D, H, W), voxels of the network grid."""
    warped, fixed = field.warp(pair.moving, displacement).flatten(), pair.fixed.flatten()
    both = torch.stack([warped, fixed]).double()
    both = both - both.mean(1, keepdim=True)
    ncc = float((both[0] @ both[1]) / (both[0].norm() * both[1].norm()).clamp_min(1e-12))
    overlap = float("nan")
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        carried = field.warp(pair.moving_labels, displacement, mode="nearest")
        truth, before = _whole(pair.fixed_labels), _whole(pair.moving_labels)
        shared = SharedLabels.of(*(np.unique(labels).tolist() for labels in (before, truth)))
        overlap = mean(dice_in_both(_whole(carried), truth, shared))
    folded = field.jacobian_determinant(displacement) <= 0
    return ValidatedPair(overlap, ncc, 100 * float(folded.float().mean()))


def _whole(labels: Tensor) -> np.ndarray:
    return labels[0, 0].round().to(torch.int32).numpy()
