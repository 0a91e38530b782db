"""Training settings: FineTuning (Sec. IV-B and beyond), ExpertLearning, RunSettings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from napari_shmoareg.settings import AffineMode, Rule, check_rules

TOKEN_STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class ExpertLearning:
    """How the experts learn, beyond the paper; every default is the paper's protocol (Sec. IV-B),
    which has none of it.

    Parameters
    ----------
    known_motion : float
        Share of steps that take one scan of the pair, and that scan deformed at random, instead of
        the two: the true motion is known there (as in SynthMorph, Hoffmann et al. 2022). Pairs
        drawn by `pretrain` know theirs where one subject, or one set of shapes, was deformed twice.
    correspondence_weight : float
        Of a contrastive loss on the encoder's tokens, where the true motion is known: each token of
        the fixed image is to find the one that it came from among others of the moving image
        (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748).
    correspondence_strides : str
        Strides of the tokens that are compared so, such as 4,8,16; those that the network has not
        are left out.
    teacher : {"none", "drawn", "descent"}
        Whose displacements are learned from directly, voxel by voxel. drawn: the true motion, where
        it is known. descent: what a refinement without a network finds for the pair (as the
        optimisation-guided self-training of Bigalke et al. 2023, arXiv 2306.16997); every step
        waits for it.
    teacher_weight : float
        Of the mean distance, in voxels, to the teacher's displacement.
    moa_output_scale : float
        Factor on the output projections of the attention heads where weights begin from nothing.
        Eq. (4) averages the chosen heads, where plain attention adds them up: 4 makes up for that
        with four heads.
    kernels_start : {"apart", "alike"}
        How the kernels of SHMoE begin from nothing. alike: the smallest one in the centre of each
        larger one, so that the experts begin as one function (as Net2Net, arXiv 1511.05641, and
        sparse upcycling, arXiv 2212.05055).
    balance : {"switch", "mutual", "bias"}
        What keeps the loads of the attention heads even. switch: the loss of Switch Transformers
        (arXiv 2101.03961), by its weight. mutual: a loss of even loads and sure tokens, the mutual
        information of Mod-Squad (arXiv 2212.08066), by the same weight. bias: no loss; a bias on
        the choice of each head, moved against its load (DeepSeek, arXiv 2408.15664).
    balance_rate : float
        By how much a bias of the choice moves in a step; it is added to probabilities.
    z_weight : float
        Of the mean squared logarithm of the sum of the gates' exponentials, which keeps logits
        small (z-loss of ST-MoE, arXiv 2202.08906).
    dense_share : float
        Share of the steps over which the number of heads that a token chooses falls from all to the
        network's own (dense to sparse, EvoMoE, arXiv 2112.14397); 0 for none.
    gate_temperature : float
        Of the gates of the attention heads at the first of these steps; it falls to 1 at the last
        of them.
    head_diversity_weight : float
        Of the mean squared cosine between what the heads chosen by a token attend to; 0 where they
        are orthogonal. Heads that attend alike are pushed apart (as the orthogonality of experts,
        arXiv 2310.09762).
    gate_jitter : float
        Standard deviation of noise on the logits that SHMoE chooses by, at the first step; it falls
        to 0 over the first third of the steps. Which expert is chosen varies, T does not (noisy
        gating, arXiv 1701.06538).
    expert_damping : float
        Factor on the gradient that reaches an expert of SHMoE at voxels where the error signal is
        above the quantile of Eq. (7), where it should not have been chosen; 1 for none. As in SMoE
        (Dryden and Hoefler 2022, arXiv 2211.13491).
    routing_target : {"error", "counterfactual"}
        Where the labels of Eq. (7) come from. error: the paper's error signal. counterfactual: the
        label is 1 for the expert whose residual alone would leave the least local error, 0 for the
        others (oracle assignment, as in multiple choice learning, arXiv 1606.07839).
    gates : {"learned", "frozen"}
        frozen: no gate learns; from nothing, they stay random. The control of Hash Layers (arXiv
        2106.04426): what does a learned choice add?
    attention : {"learned", "off"}
        off: the output projections of the attention are 0 and stay 0, so that the encoder is its
        perceptrons alone. A control: what does attention add?
    """

    known_motion: float = 0.0
    correspondence_weight: float = 0.0
    correspondence_strides: str = "4,8,16"
    teacher: Literal["none", "drawn", "descent"] = "none"
    teacher_weight: float = 0.1
    moa_output_scale: float = 1.0
    kernels_start: Literal["apart", "alike"] = "apart"
    balance: Literal["switch", "mutual", "bias"] = "switch"
    balance_rate: float = 0.001
    z_weight: float = 0.0
    dense_share: float = 0.0
    gate_temperature: float = 1.0
    head_diversity_weight: float = 0.0
    gate_jitter: float = 0.0
    expert_damping: float = 1.0
    routing_target: Literal["error", "counterfactual"] = "error"
    gates: Literal["learned", "frozen"] = "learned"
    attention: Literal["learned", "off"] = "learned"

    def expert_rules(self) -> tuple[Rule, ...]:
        """What these settings must be, for `check_rules`."""
        strides = f"strides among {', '.join(map(str, TOKEN_STRIDES))}, with commas between"
        return (
            (0 <= self.known_motion <= 1, "known_motion", "between 0 and 1"),
            (0 <= self.correspondence_weight < math.inf, "correspondence_weight", "at least 0"),
            (self._has_strides(), "correspondence_strides", strides),
            (0 <= self.teacher_weight < math.inf, "teacher_weight", "at least 0"),
            (0 < self.moa_output_scale < math.inf, "moa_output_scale", "above 0"),
            (0 <= self.balance_rate < math.inf, "balance_rate", "at least 0"),
            (0 <= self.z_weight < math.inf, "z_weight", "at least 0"),
            (0 <= self.dense_share <= 1, "dense_share", "between 0 and 1"),
            (1 <= self.gate_temperature < math.inf, "gate_temperature", "at least 1"),
            (0 <= self.head_diversity_weight < math.inf, "head_diversity_weight", "at least 0"),
            (0 <= self.gate_jitter < math.inf, "gate_jitter", "at least 0"),
            (0 <= self.expert_damping <= 1, "expert_damping", "between 0 and 1"),
        )

    @property
    def compared_strides(self) -> tuple[int, ...]:
        """`correspondence_strides` as numbers."""
        return tuple(int(word) for word in self.correspondence_strides.split(","))

    @property
    def uses_known_motion(self) -> bool:
        """Whether anything is learned from a known motion."""
        return self.correspondence_weight > 0 or (
            self.teacher == "drawn" and self.teacher_weight > 0
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)

    def _has_strides(self) -> bool:
        try:
            return set(self.compared_strides) <= set(TOKEN_STRIDES)
        except (AttributeError, ValueError):
            return False


ITERATIONS = 100_000  # of Sec. IV-B, from nothing


@dataclass(frozen=True)
class FineTuning(ExpertLearning):
    """Settings of learning, with those of `ExpertLearning`.  The defaults are the paper's (Sec.
    IV-B).

    Parameters
    ----------
    steps : int
        Optimiser steps in all; each sees both orders of every pair of its batch.
    batch : int
        Pairs per step. Their gradients are averaged one pair after the other, so memory is that of
        one pair; several processes share them. 1 in the paper.
    learning_rate : float
        Of Adam.
    final_rate : float or None
        Rate of the last step, reached along a cosine; None keeps the rate fixed.
    balance_heads : bool
        Divide the rate of each level's head by its stride.  Ours: a coarse head speaks in coarse
        voxels, so that at one rate for all a step moves the field 16 times as far there as at full
        resolution, and a bias of several voxels wanders about until the rate has fallen.  Off in
        the paper.
    smoothness_weight : float
        lambda_r of Eq. (8): 0.01 for brains, 0.1 for abdomens.
    bending_weight : float
        Of the bending energy of the displacement, which smooths without holding stretching back; 0
        in the paper.
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
        Of the mean square of the two orders' displacements composed, in voxels, which is 0 if each
        undoes the other (as ICON); 0 in the paper.
    balance_weight : float
        Of the unevenness of the encoder's loads, or of what else the balance is of; 0 in the paper.
    labels_per_step : int
        Labels drawn for the overlap at each step.
    diffeomorphic : float
        Share of steps in which residuals are integrated as velocities.  Ours: with a share between
        0 and 1 one set of weights serves both variants.
    cascade : float
        Share of steps whose pair is first registered by the network itself, at a coarser grid and
        without gradient, so that the step learns to improve on that (see `registration.cascade`); 0
        in the paper.
    passes : {"auto", "keep", "one"}
        In how many passes the new weights register: keep, as those that learning begins with; one,
        as in the paper. auto takes one where they learn, without a cascade, on grids as fine as
        those they will register on.
    augment_affine : float
        Strength of random affines, each image with its own: 1 is up to 10 degrees, 10 % of size and
        5 % of the field of view; 0 for none, as in the paper.
    augment_intensity : float
        Strength of random changes of contrast, each image with its own: 1 is a gamma between 1/1.6
        and 1.6, and noise of up to 4 % of the range; 0 for none, as in the paper.
    flips : {"none", "left-right", "all"}
        Mirror both images alike in half of the steps. Only where anatomy allows: a mirrored abdomen
        has its liver on the left.
    freeze_encoder : bool
        Leave the encoder as it is, and with it which attention heads see what; only the decoder
        learns.
    checkpointing : bool
        Keep only what passes between convolutions, warps and heads, and compute the rest again in
        the backward pass: half as much is kept (the peak on a CPU falls by an eighth), for a fifth
        more time.
    bfloat16 : {"auto", "on", "off"}
        Convolutions and products in bfloat16; fields, warps and losses stay in float32. auto uses
        it where the device is fast at it (see `registration.resources`): elsewhere a convolution
        takes up to a hundred times as long.
    largest_gradient : float
        Norm to which the gradient is clipped; 0 for no clipping, as in the paper.
    size : int
        Voxels along the longest axis; scans are brought to it.  0: that of the network's first
        pass.
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
            (0 <= self.similarity_weight < math.inf, "similarity_weight", "at least 0"),
            (0 <= self.overlap_weight < math.inf, "overlap_weight", "at least 0"),
            (0 <= self.inverse_weight < math.inf, "inverse_weight", "at least 0"),
            (0 <= self.balance_weight < math.inf, "balance_weight", "at least 0"),
            (self.labels_per_step >= 1, "labels_per_step", "at least 1"),
            (0 <= self.diffeomorphic <= 1, "diffeomorphic", "between 0 and 1"),
            (0 <= self.cascade <= 1, "cascade", "between 0 and 1"),
            (0 <= self.augment_affine <= 2, "augment_affine", "between 0 and 2"),
            (0 <= self.augment_intensity <= 2, "augment_intensity", "between 0 and 2"),
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
        return (
            self.final_rate
            + (self.learning_rate - self.final_rate) * (1 + math.cos(math.pi * phase)) / 2
        )


def bfloat16_of(value: Any) -> Any:
    """The word of a value: before there was "auto", True was "on" and False was "off"."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def upgraded(values: Any) -> Any:
    """Settings as an older version wrote them to a file, in today's words; what is no mapping stays
    as it is.
    """
    if not isinstance(values, dict) or "bfloat16" not in values:
        return values
    return values | {"bfloat16": bfloat16_of(values["bfloat16"])}


@dataclass(frozen=True)
class RunSettings:
    """What a run does beside its steps.

    Parameters
    ----------
    split : str
        How many subjects learn, judge and stay unseen: counts such as 60/10/10, or shares such as
        70%/15%/15%; auto is 70%/15%/15%, or the split that comes with the data set. Scans of one
        subject never stand on both sides.
    split_seed : int
        Decides who stands where.
    affine : {"auto", "rigid", "affine", "none"}
        How scans are brought together before the network sees them; none trusts the headers.
    validate_every : int
        Steps between two looks at the validation pairs; 0 for none. Each look may keep a new best
        network.
    validation_pairs : int
        How many pairs are looked at; each scan as often as the others.
    save_every : int
        Steps between two states on the disk: what a killed run does again at most.
    minutes : float
        Stop after so many minutes of steps, counted over the whole run; 0 for no such end.
    tensorboard : bool
        Write the curves for TensorBoard too.
    """

    split: str = "auto"
    split_seed: int = 0
    affine: AffineMode = "auto"
    validate_every: int = 100
    validation_pairs: int = 8
    save_every: int = 50
    minutes: float = 0.0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_rules(
            self,
            (self.split_seed >= 0, "split_seed", "at least 0"),
            (self.validate_every >= 0, "validate_every", "at least 0"),
            (self.validation_pairs >= 1, "validation_pairs", "at least 1"),
            (self.save_every >= 1, "save_every", "at least 1"),
            (0 <= self.minutes < float("inf"), "minutes", "at least 0, and a number"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)
