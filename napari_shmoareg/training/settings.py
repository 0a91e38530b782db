"""Training settings: FineTuning (Sec. IV-B and beyond), ExpertLearning, RunSettings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from napari_shmoareg.settings import AffineMode, Rule, check_rules

TOKEN_STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class ExpertLearning:
    """Training of the experts beyond the paper; the defaults are the paper's protocol (Sec. IV-B).

    Parameters
    ----------
    known_motion : float
        Share of steps that pair one scan with a random deformation of itself, so that the true
        motion is known (as in SynthMorph, Hoffmann et al. 2022). For the synthetic pairs of
        `pretrain` it is known if one subject, or one set of shapes, was deformed twice.
    correspondence_weight : float
        Weight of a contrastive loss on the encoder's tokens, where the true motion is known: each
        token of the fixed image has to match its true counterpart in the moving image (InfoNCE, van
        den Oord et al. 2018, arXiv 1807.03748).
    correspondence_strides : str
        Strides of the compared tokens, such as 4,8,16; strides that the network does not have are
        ignored.
    teacher : {"none", "drawn", "descent"}
        Source of displacements for voxel-wise supervision. drawn: the true motion, where it is
        known. descent: the result of a refinement without a network (as the optimisation-guided
        self-training of Bigalke et al. 2023, arXiv 2306.16997), which makes every step slower.
    teacher_weight : float
        Weight of the mean distance, in voxels, to the teacher's displacement.
    moa_output_scale : float
        Factor on the output projections of the attention heads at random initialisation. Eq. (4)
        averages the chosen heads, whereas plain attention adds them: 4 compensates for that with
        four heads.
    kernels_start : {"apart", "alike"}
        Random initialisation of the SHMoE kernels. alike: the smallest kernel is copied into the
        centre of each larger one, so that all experts start as the same function (as Net2Net, arXiv
        1511.05641, and sparse upcycling, arXiv 2212.05055).
    balance : {"switch", "mutual", "bias"}
        Load balancing of the attention heads. switch: the loss of Switch Transformers (arXiv
        2101.03961), weighted by balance_weight. mutual: the mutual information loss of Mod-Squad
        (arXiv 2212.08066), for even loads and confident tokens, with the same weight. bias: no
        loss; a bias on the choice of each head, adjusted against its load (DeepSeek, arXiv
        2408.15664).
    balance_rate : float
        Change of the choice bias per step; the bias is added to probabilities.
    z_weight : float
        Weight of the mean squared log-sum-exp of the gate logits, which keeps them small (z-loss of
        ST-MoE, arXiv 2202.08906).
    dense_share : float
        Share of the steps over which the number of heads per token falls from all to that of the
        network (dense to sparse, EvoMoE, arXiv 2112.14397); 0 for none.
    gate_temperature : float
        Temperature of the attention gates at the first of these steps; it falls to 1 at the last
        one.
    head_diversity_weight : float
        Weight of the mean squared cosine between the outputs of the heads that a token chooses; 0
        if they are orthogonal. It pushes similar heads apart (as the orthogonality of experts,
        arXiv 2310.09762).
    gate_jitter : float
        Standard deviation of noise on the SHMoE gate logits at the first step; it falls to 0 over
        the first third of the steps. It changes which expert is chosen, but not T (noisy gating,
        arXiv 1701.06538).
    expert_damping : float
        Factor on the gradient of an SHMoE expert at voxels with an error signal above the quantile
        of Eq. (7), where it should not have been chosen; 1 for no damping. As in SMoE (Dryden and
        Hoefler 2022, arXiv 2211.13491).
    routing_target : {"error", "counterfactual"}
        Source of the labels of Eq. (7). error: the paper's error signal. counterfactual: the label
        is 1 for the expert with the residual that would leave the least local error, 0 for the
        others (oracle assignment, as in multiple choice learning, arXiv 1606.07839).
    gates : {"learned", "frozen"}
        frozen: gates are not trained; with random weights they stay random. The control of Hash
        Layers (arXiv 2106.04426): what does a learned choice add?
    attention : {"learned", "off"}
        off: the output projections of the attention are fixed at 0, so that the encoder consists of
        its perceptrons alone. A control: what does attention add?
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
        """Conditions on these settings, for `check_rules`."""
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
        """Whether a loss uses a known motion."""
        return self.correspondence_weight > 0 or (
            self.teacher == "drawn" and self.teacher_weight > 0
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable values."""
        return asdict(self)

    def _has_strides(self) -> bool:
        try:
            return set(self.compared_strides) <= set(TOKEN_STRIDES)
        except (AttributeError, ValueError):
            return False


ITERATIONS = 100_000  # of Sec. IV-B, from random weights


@dataclass(frozen=True)
class FineTuning(ExpertLearning):
    """Training settings, including those of `ExpertLearning`. The defaults are the paper's (Sec.
    IV-B).

    Parameters
    ----------
    steps : int
        Total number of optimiser steps; each uses both orders of every pair of its batch.
    batch : int
        Pairs per step. Gradients are accumulated pair by pair, so memory is that of one pair;
        several processes share them. 1 in the paper.
    learning_rate : float
        Of Adam.
    final_rate : float or None
        Learning rate of the last step (cosine schedule); None keeps the rate constant.
    balance_heads : bool
        Divide the learning rate of each level's head by its stride. Ours: a coarse head predicts
        coarse voxels, so that with one rate a step moves the field up to 16 times as far as at full
        resolution, and a bias of several voxels drifts until the rate has fallen. Off in the paper.
    smoothness_weight : float
        lambda_r of Eq. (8): 0.01 for brains, 0.1 for abdomens.
    bending_weight : float
        Weight of the bending energy of the displacement, which smooths without penalising
        stretching; 0 in the paper.
    routing_weight : float
        lambda_rc of Eq. (8).
    quantile : float
        q: share of voxels at which the chosen expert counts as correct.
    similarity : {"mse", "lncc"}
        "lncc" for scans with different contrasts.
    similarity_weight : float
        Weight of the similarity; 1 in Eq. (8).
    overlap_weight : float
        Weight of one minus the mean soft Dice, if both images have labels; 0 in the paper.
    inverse_weight : float
        Weight of the mean square, in voxels, of the composed displacements of both orders, which is
        0 if they are inverse to each other (as ICON); 0 in the paper.
    balance_weight : float
        Weight of the loss that balance selects, against uneven loads in the encoder; 0 in the
        paper.
    labels_per_step : int
        Number of random labels in the overlap of each step.
    diffeomorphic : float
        Share of steps that integrate residuals as velocities. Ours: with a share between 0 and 1,
        one set of weights serves both variants.
    cascade : float
        Share of steps that first register the pair with the network itself, on a coarser grid and
        without gradient, and then learn to improve the result (see `registration.cascade`); 0 in
        the paper.
    passes : {"auto", "keep", "one"}
        Passes in which the trained weights register. keep: as the initial weights. one: as in the
        paper. auto: one if training uses no cascade and grids as fine as those of registration.
    augment_affine : float
        Strength of random affines, different for each image: 1 is up to 10 degrees, 10 % of size
        and 5 % of the field of view; 0 for none, as in the paper.
    augment_intensity : float
        Strength of random contrast changes, different for each image: 1 is a gamma between 1/1.6
        and 1.6, and noise of up to 4 % of the range; 0 for none, as in the paper.
    flips : {"none", "left-right", "all"}
        Flip both images in half of the steps. Only if the anatomy allows it: a flipped abdomen has
        its liver on the left.
    freeze_encoder : bool
        Train only the decoder; the encoder, and with it the choice of attention heads, does not
        change.
    checkpointing : bool
        Store only the tensors between convolutions, warps and heads, and recompute the rest in the
        backward pass: half as much is stored (the peak on a CPU falls by an eighth), for a fifth
        more time.
    bfloat16 : {"auto", "on", "off"}
        Compute convolutions and products in bfloat16; fields, warps and losses stay in float32.
        auto uses it if the device is fast at it (see `registration.resources`): on others a
        convolution takes up to a hundred times as long.
    largest_gradient : float
        Norm to which the gradient is clipped; 0 for no clipping, as in the paper.
    size : int
        Voxels along the longest axis, to which scans are resampled. 0: that of the network's first
        pass.
    seed : int
        Seed for the order of pairs, the random labels and stochastic depth.
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
        """Learning rate of a step (from 0)."""
        if self.final_rate is None:
            return self.learning_rate
        phase = min(step / max(self.steps - 1, 1), 1.0)
        return (
            self.final_rate
            + (self.learning_rate - self.final_rate) * (1 + math.cos(math.pi * phase)) / 2
        )


def bfloat16_of(value: Any) -> Any:
    """Convert the booleans of earlier versions: True is "on", False is "off"."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def upgraded(values: Any) -> Any:
    """Convert settings that an older version wrote to a file; anything but a mapping is returned as
    is.
    """
    if not isinstance(values, dict) or "bfloat16" not in values:
        return values
    return values | {"bfloat16": bfloat16_of(values["bfloat16"])}


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run besides its steps.

    Parameters
    ----------
    split : str
        Subjects for training, validation and testing: counts such as 60/10/10, or shares such as
        70%/15%/15%; auto is 70%/15%/15%, or the split of the data set itself. Scans of one subject
        are never in two of them.
    split_seed : int
        Seed of the random split.
    affine : {"auto", "rigid", "affine", "none"}
        Alignment of the scans before the network; none relies on the headers.
    validate_every : int
        Steps between two validations; 0 for none. Each validation may save new best weights.
    validation_pairs : int
        Number of validation pairs; each scan is used equally often.
    save_every : int
        Steps between two saved states: the most that a killed run has to repeat.
    minutes : float
        Stop after this many minutes of steps, counted over the whole run; 0 for no limit.
    tensorboard : bool
        Also write curves for TensorBoard.
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
        """As JSON-serialisable values."""
        return asdict(self)
