"""ExpertLearning: how experts learn, beyond the paper."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from napari_shmoareg.engine.setting_rules import Rule

TOKEN_STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class ExpertLearning:
    """How the experts learn, beyond the paper; every default is the paper's protocol (Sec. IV-B), which has none of it.

    Parameters
    ----------
    known_motion : float
        Share of steps that take one scan of the pair, and that scan deformed at random, instead of the two: the true
        motion is known there (as in SynthMorph, Hoffmann et al. 2022). Pairs drawn by `pretrain` know theirs where one
        subject, or one set of shapes, was deformed twice.
    correspondence_weight : float
        Of a contrastive loss on the encoder's tokens, where the true motion is known: each token of the fixed image is
        to find the one that it came from among others of the moving image (InfoNCE, van den Oord et al. 2018,
        arXiv 1807.03748).
    correspondence_strides : str
        Strides of the tokens that are compared so, such as 4,8,16; those that the network has not are left out.
    teacher : {"none", "drawn", "descent"}
        Whose displacements are learned from directly, voxel by voxel. drawn: the true motion, where it is known.
        descent: what a refinement without a network finds for the pair (as the optimisation-guided self-training of
        Bigalke et al. 2023, arXiv 2306.16997); every step waits for it.
    teacher_weight : float
        Of the mean distance, in voxels, to the teacher's displacement.
    moa_output_scale : float
        Factor on the output projections of the attention heads where weights begin from nothing. Eq. (4) averages
        the chosen heads, where plain attention adds them up: 4 makes up for that with four heads.
    kernels_start : {"apart", "alike"}
        How the kernels of SHMoE begin from nothing. alike: the smallest one in the centre of each larger one, so that
        the experts begin as one function (as Net2Net, arXiv 1511.05641, and sparse upcycling, arXiv 2212.05055).
    balance : {"switch", "mutual", "bias"}
        What keeps the loads of the attention heads even. switch: the loss of Switch Transformers (arXiv 2101.03961),
        by its weight. mutual: a loss of even loads and sure tokens, the mutual information of Mod-Squad
        (arXiv 2212.08066), by the same weight. bias: no loss; a bias on the choice of each head, moved against its
        load (DeepSeek, arXiv 2408.15664).
    balance_rate : float
        By how much a bias of the choice moves in a step; it is added to probabilities.
    z_weight : float
        Of the mean squared logarithm of the sum of the gates' exponentials, which keeps logits small (z-loss of
        ST-MoE, arXiv 2202.08906).
    dense_share : float
        Share of the steps over which the number of heads that a token chooses falls from all to the network's own
        (dense to sparse, EvoMoE, arXiv 2112.14397); 0 for none.
    gate_temperature : float
        Of the gates of the attention heads at the first of these steps; it falls to 1 at the last of them.
    head_diversity_weight : float
        Of the mean squared cosine between what the heads chosen by a token attend to; 0 where they are orthogonal.
        Heads that attend alike are pushed apart (as the orthogonality of experts, arXiv 2310.09762).
    gate_jitter : float
        Standard deviation of noise on the logits that SHMoE chooses by, at the first step; it falls to 0 over the
        first third of the steps. Which expert is chosen varies, T does not (noisy gating, arXiv 1701.06538).
    expert_damping : float
        Factor on the gradient that reaches an expert of SHMoE at voxels where the error signal is above the quantile
        of Eq. (7), where it should not have been chosen; 1 for none. As in SMoE (Dryden and Hoefler 2022,
        arXiv 2211.13491).
    routing_target : {"error", "counterfactual"}
        Where the labels of Eq. (7) come from. error: the paper's error signal. counterfactual: the label is 1 for
        the expert whose residual alone would leave the least local error, 0 for the others (oracle assignment, as in
        multiple choice learning, arXiv 1606.07839).
    gates : {"learned", "frozen"}
        frozen: no gate learns; from nothing, they stay random. The control of Hash Layers (arXiv 2106.04426): what
        does a learned choice add?
    attention : {"learned", "off"}
        off: the output projections of the attention are 0 and stay 0, so that the encoder is its perceptrons alone.
        A control: what does attention add?
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
            (self.teacher in ("none", "drawn", "descent"), "teacher", "'none', 'drawn' or 'descent'"),
            (0 <= self.teacher_weight < math.inf, "teacher_weight", "at least 0"),
            (0 < self.moa_output_scale < math.inf, "moa_output_scale", "above 0"),
            (self.kernels_start in ("apart", "alike"), "kernels_start", "'apart' or 'alike'"),
            (self.balance in ("switch", "mutual", "bias"), "balance", "'switch', 'mutual' or 'bias'"),
            (0 <= self.balance_rate < math.inf, "balance_rate", "at least 0"),
            (0 <= self.z_weight < math.inf, "z_weight", "at least 0"),
            (0 <= self.dense_share <= 1, "dense_share", "between 0 and 1"),
            (1 <= self.gate_temperature < math.inf, "gate_temperature", "at least 1"),
            (0 <= self.head_diversity_weight < math.inf, "head_diversity_weight", "at least 0"),
            (0 <= self.gate_jitter < math.inf, "gate_jitter", "at least 0"),
            (0 <= self.expert_damping <= 1, "expert_damping", "between 0 and 1"),
            (self.routing_target in ("error", "counterfactual"), "routing_target", "'error' or 'counterfactual'"),
            (self.gates in ("learned", "frozen"), "gates", "'learned' or 'frozen'"),
            (self.attention in ("learned", "off"), "attention", "'learned' or 'off'"),
        )

    @property
    def compared_strides(self) -> tuple[int, ...]:
        """`correspondence_strides` as numbers."""
        return tuple(int(word) for word in self.correspondence_strides.split(","))

    @property
    def wants_motion(self) -> bool:
        """Whether anything is learned from a known motion."""
        return self.correspondence_weight > 0 or (self.teacher == "drawn" and self.teacher_weight > 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)

    def _has_strides(self) -> bool:
        try:
            return set(self.compared_strides) <= set(TOKEN_STRIDES)
        except (AttributeError, ValueError):
            return False
