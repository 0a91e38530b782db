"""FineTuning: the settings of learning, with the paper's defaults.

Sec. IV-B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from napari_shmoareg.engine.expert_settings import ExpertLearning
from napari_shmoareg.engine.setting_rules import check_rules

ITERATIONS = 100_000  # of Sec. IV-B, from nothing


@dataclass(frozen=True)
class FineTuning(ExpertLearning):
    """Settings of learning, with those of `ExpertLearning`.  The defaults are the paper's (Sec. IV-B).

    Parameters
    ----------
    steps : int
        Optimiser steps in all; each sees both orders of every pair of its batch.
    batch : int
        Pairs per step. Their gradients are averaged one pair after the other, so memory is that of one pair; several
        processes share them. 1 in the paper.
    learning_rate : float
        Of Adam.
    final_rate : float or None
        Rate of the last step, reached along a cosine; None keeps the rate fixed.
    balance_heads : bool
        Divide the rate of each level's head by its stride.  Ours: a coarse head speaks in coarse voxels, so
        that at one rate for all a step moves the field 16 times as far there as at full resolution, and
        a bias of several voxels wanders about until the rate has fallen.  Off in the paper.
    smoothness_weight : float
        lambda_r of Eq. (8): 0.01 for brains, 0.1 for abdomens.
    bending_weight : float
        Of the bending energy of the displacement, which smooths without holding stretching back; 0 in the paper.
    routing_weight : float
        lambda_rc of Eq. (8).
    quantile : float
        q: share of voxels whose expert counts as rightly chosen.
    similarity : {"mse", "lncc"}
        "lncc" for scans of differing contrast.
    similarity_weight : float
        Of the similarity; 1 in Eq. (8).
    overlap_weight : float
        Of one minus the mean soft Dice, if both images have labels; 0 in the paper.
    inverse_weight : float
        Of the mean square of the two orders' displacements composed, in voxels, which is 0 if each undoes the
        other (as ICON); 0 in the paper.
    balance_weight : float
        Of the unevenness of the encoder's loads, or of what else the balance is of; 0 in the paper.
    labels_per_step : int
        Labels drawn for the overlap at each step.
    diffeomorphic : float
        Share of steps in which residuals are integrated as velocities.  Ours: with a share between 0 and 1
        one set of weights serves both variants.
    cascade : float
        Share of steps whose pair is first registered by the network itself, at a coarser grid and without
        gradient, so that the step learns to improve on that (see `engine.cascade`); 0 in the paper.
    passes : {"auto", "keep", "one"}
        In how many passes the new weights register: keep, as those that learning begins with; one, as in the paper.
        auto takes one where they learn, without a cascade, on grids as fine as those they will register on.
    augment_affine : float
        Strength of random affines, each image with its own: 1 is up to 10 degrees, 10 % of size and 5 % of the field
        of view; 0 for none, as in the paper.
    augment_intensity : float
        Strength of random changes of contrast, each image with its own: 1 is a gamma between 1/1.6 and 1.6, and noise
        of up to 4 % of the range; 0 for none, as in the paper.
    flips : {"none", "left-right", "all"}
        Mirror both images alike in half of the steps. Only where anatomy allows: a mirrored abdomen has its liver on
        the left.
    freeze_encoder : bool
        Leave the encoder as it is, and with it which attention heads see what; only the decoder learns.
    checkpointing : bool
        Keep only what passes between convolutions, warps and heads, and compute the rest again in the backward
        pass: half as much is kept (the peak on a CPU falls by an eighth), for a fifth more time.
    bfloat16 : {"auto", "on", "off"}
        Convolutions and products in bfloat16; fields, warps and losses stay in float32. auto uses it where the device
        is fast at it (see `engine.device`): elsewhere a convolution takes up to a hundred times as long.
    largest_gradient : float
        Norm to which the gradient is clipped; 0 for no clipping, as in the paper.
    size : int
        Voxels along the longest axis; scans are brought to it.  0: that of the network's first pass.
    seed : int
        Decides the order of pairs, which labels are drawn, and stochastic depth.
    """

    steps: int = 1000
    batch: int = 1
    learning_rate: float = 1e-4
    final_rate: float | None = None
    balance_heads: bool = False
    smoothness_weight: float = 0.01
    bending_weight: float = 0.0
    routing_weight: float = 0.001
    quantile: float = 0.5
    similarity: Literal["mse", "lncc"] = "mse"
    similarity_weight: float = 1.0
    overlap_weight: float = 0.0
    inverse_weight: float = 0.0
    balance_weight: float = 0.0
    labels_per_step: int = 12
    diffeomorphic: float = 0.0
    cascade: float = 0.0
    passes: Literal["auto", "keep", "one"] = "auto"
    augment_affine: float = 0.0
    augment_intensity: float = 0.0
    flips: Literal["none", "left-right", "all"] = "none"
    freeze_encoder: bool = False
    checkpointing: bool = False
    bfloat16: Literal["auto", "on", "off"] = "auto"
    largest_gradient: float = 0.0
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bfloat16", bfloat16_of(self.bfloat16))
        check_rules(
            self,
            (self.steps >= 1, "steps", "at least 1"),
            (self.batch >= 1, "batch", "at least 1"),
            (0 < self.learning_rate < math.inf, "learning_rate", "above 0"),
            (self.final_rate is None or 0 < self.final_rate < math.inf, "final_rate", "above 0"),
            (0 <= self.smoothness_weight < math.inf, "smoothness_weight", "at least 0"),
            (0 <= self.bending_weight < math.inf, "bending_weight", "at least 0"),
            (0 <= self.routing_weight < math.inf, "routing_weight", "at least 0"),
            (0 <= self.quantile <= 1, "quantile", "between 0 and 1"),
            (self.similarity in ("mse", "lncc"), "similarity", "'mse' or 'lncc'"),
            (0 <= self.similarity_weight < math.inf, "similarity_weight", "at least 0"),
            (0 <= self.overlap_weight < math.inf, "overlap_weight", "at least 0"),
            (0 <= self.inverse_weight < math.inf, "inverse_weight", "at least 0"),
            (0 <= self.balance_weight < math.inf, "balance_weight", "at least 0"),
            (self.labels_per_step >= 1, "labels_per_step", "at least 1"),
            (0 <= self.diffeomorphic <= 1, "diffeomorphic", "between 0 and 1"),
            (0 <= self.cascade <= 1, "cascade", "between 0 and 1"),
            (self.passes in ("auto", "keep", "one"), "passes", "'auto', 'keep' or 'one'"),
            (0 <= self.augment_affine <= 2, "augment_affine", "between 0 and 2"),
            (0 <= self.augment_intensity <= 2, "augment_intensity", "between 0 and 2"),
            (self.flips in ("none", "left-right", "all"), "flips", "'none', 'left-right' or 'all'"),
            (self.bfloat16 in ("auto", "on", "off"), "bfloat16", "'auto', 'on' or 'off'"),
            (self.largest_gradient >= 0, "largest_gradient", "at least 0"),
            (self.size == 0 or self.size >= 8, "size", "0 or at least 8"),
            (self.seed >= 0, "seed", "at least 0"),
            *self.expert_rules(),
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if self.final_rate is None:
            return self.learning_rate
        phase = min(step / max(self.steps - 1, 1), 1.0)
        return self.final_rate + (self.learning_rate - self.final_rate) * (1 + math.cos(math.pi * phase)) / 2


def bfloat16_of(value: Any) -> Any:
    """The word of a value: before there was "auto", True was "on" and False was "off"."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def upgraded(values: Any) -> Any:
    """Settings as an older version wrote them to a file, in today's words; what is no mapping stays as it is."""
    if not isinstance(values, dict) or "bfloat16" not in values:
        return values
    return values | {"bfloat16": bfloat16_of(values["bfloat16"])}
