"""SHMoARegConfig: the configuration of the network, and presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

# Ours: range of each number; the paper's network is at most at a tenth of the upper limits.
LIMITS: dict[str, tuple[float, float]] = {
    "embed_dim": (1, 1024),
    "depths": (1, 32),
    "window": (1, 16),
    "mlp_ratio": (1, 16),
    "num_experts": (1, 128),
    "top_k": (1, 128),
    "heads": (1, 128),
    "drop_path": (0.0, 1.0),
    "full_channels": (1, 1024),
    "half_channels": (1, 1024),
    "bottleneck_channels": (1, 4096),
    "shmoe_strides": (1, 8),
    "kernels": (1, 15),
    "integration_steps": (1, 32),
    "size": (1, 4096),
    "passes": (0.0, 1.0),
}
LISTS = ("depths", "window", "shmoe_strides", "kernels", "passes")
LONGEST_LIST = 16


@dataclass(frozen=True)
class SHMoARegConfig:
    """Configuration of the network.  The defaults are the paper's.

    Parameters
    ----------
    embed_dim : int
        Channels of the first encoder layer, doubled in each further layer.  Sec. IV-B:
        TransMorph-small, 48.
    depths : tuple of int
        Swin blocks per encoder layer; its length is the number of layers (strides 4, 8, 16, 32).
    window : tuple of 3 int
        Attention window in tokens.  Ours: (4, 4, 4), the rule "input / 32" of TransMorph's author
        at 128 cubed: it needs no padding there and is 1.5-4 times as fast as (5, 6, 7).
    mlp_ratio : int
        Hidden width of a block's MLP, as a multiple of its channels.
    attention : {"moa", "mha"}
        Mixture of attention heads, or the standard multi-head attention of Table II.
    num_experts, top_k : int
        Number of attention heads, and how many of them each token chooses (12 and 4).
    heads : int
        The head dimension is ``d_m / heads``; with "mha" also the number of heads.  Ours: 4 as in
        TransMorph-small, so that four chosen experts cost as much as its four heads.
    relative_bias : bool
        Relative-position bias in attention, one table per block, shared by its experts.  Ours: not
        in Eq. (2), but in TransMorph-small.
    detach_weights : bool
        Normalise the chosen probabilities by a detached sum (as in MoA's paper, unlike Eq. 4), so
        that the logits of unchosen experts get gradients too.
    choice_bias : bool
        Add a bias to the probability of each head for the selection only; the weights are still
        those of Eq. (4).  Ours: balances the loads without a loss (DeepSeek, arXiv 2408.15664;
        `FineTuning.balance`); not in the paper.
    drop_path : float
        Maximum rate of stochastic depth, reached in the last block.  Ours: 0.1, one draw for both
        images.
    full_channels, half_channels : int
        Channels of the convolutional stems and of the decoder at full and half resolution.
    bottleneck_channels : int
        Decoder channels at the coarsest level.  Ours: 256 makes 18.88 M parameters.
    shmoe_strides : tuple of int
        Strides of the levels with an SHMoE head: any of 1, 2, 4, 8 (Table II); other levels have a
        3x3x3 convolution.
    kernels : tuple of int
        Kernel sizes of the SHMoE experts (1, 3, 5); their count is N of Eq. (6).  Top-k is 1.
    routing_only : bool
        Train the gate with the routing loss only (as in SMoE): T is detached in Eq. (6).
    diffeomorphic : bool
        The variant SHMoAReg_diff: each level predicts a velocity field, integrated by scaling and
        squaring.
    integration_steps : int
        Number of squarings.
    size : int
        Voxels along the longest axis of the network grid that the weights are meant for.
    passes : tuple of float
        Resolutions, as fractions of the full one, of successive passes of the network, each on the
        remaining motion; the last is 1.  Ours: the paper's single pass is (1,).

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    embed_dim: int = 48
    depths: tuple[int, ...] = (2, 2, 4, 2)
    window: tuple[int, int, int] = (4, 4, 4)
    mlp_ratio: int = 4
    attention: Literal["moa", "mha"] = "moa"
    num_experts: int = 12
    top_k: int = 4
    heads: int = 4
    relative_bias: bool = True
    detach_weights: bool = False
    choice_bias: bool = False
    drop_path: float = 0.1
    full_channels: int = 16
    half_channels: int = 24
    bottleneck_channels: int = 256
    shmoe_strides: tuple[int, ...] = (1, 2)
    kernels: tuple[int, ...] = (1, 3, 5)
    routing_only: bool = False
    diffeomorphic: bool = False
    integration_steps: int = 7
    size: int = 128
    passes: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("depths", "window", "shmoe_strides", "kernels"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        object.__setattr__(self, "passes", tuple(float(v) for v in self.passes))
        rules = (
            (
                self.attention in ("moa", "mha"),
                f"attention is 'moa' or 'mha', not {self.attention!r:.80}",
            ),
            (
                len(self.window) == 3 and min(self.window) > 0,
                f"window is three positive numbers, not {self.window}",
            ),
            (
                1 <= len(self.depths) <= 5 and min(self.depths) > 0,
                f"depths has 1-5 positive numbers, not {self.depths}",
            ),
            (
                1 <= self.top_k <= self.num_experts,
                f"top_k is 1 to num_experts ({self.num_experts}), not {self.top_k}",
            ),
            (
                self.embed_dim % self.heads == 0,
                f"embed_dim ({self.embed_dim}) is a multiple of heads ({self.heads})",
            ),
            (
                set(self.shmoe_strides) <= {1, 2, 4, 8},
                f"shmoe_strides are among 1, 2, 4, 8, not {self.shmoe_strides}",
            ),
            (
                len(self.kernels) > 0 and all(k > 0 and k % 2 == 1 for k in self.kernels),
                f"kernels are odd numbers, not {self.kernels}",
            ),
            (0 <= self.drop_path < 1, f"drop_path is at least 0 and below 1, not {self.drop_path}"),
            (
                len(self.passes) > 0
                and self.passes[-1] == 1
                and all(0 < share <= 1 for share in self.passes),
                f"passes are shares above 0, the last of them 1, not {self.passes}",
            ),
            (
                self.integration_steps >= 1,
                f"integration_steps is at least 1, not {self.integration_steps}",
            ),
        )
        for valid, message in rules:
            if not valid:
                raise ValueError(message)

    def _check_numbers(self) -> None:
        """Check types and ranges before a network is built."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            is_list = name in LISTS
            if is_list and not isinstance(value, list | tuple):
                raise ValueError(f"{name} is a list of numbers, not {value!r:.80}")
            numbers = list(value) if is_list else [value]
            kinds = (int, float) if isinstance(low, float) else (int,)
            if len(numbers) > LONGEST_LIST or not all(
                isinstance(n, kinds) and not isinstance(n, bool) for n in numbers
            ):
                raise ValueError(
                    f"{name} has up to {LONGEST_LIST} {'' if float in kinds else 'whole '}numbers,"
                    f" not {value!r:.80}"
                )
            if name != "passes" and not all(low <= n <= high for n in numbers):
                raise ValueError(f"{name} is from {low:g} to {high:g}, not {value!r:.80}")
        for name in (
            "relative_bias",
            "detach_weights",
            "choice_bias",
            "routing_only",
            "diffeomorphic",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is true or false, not {getattr(self, name)!r:.80}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the pyramid, full resolution first: 1, 2, 4 ..."""
        return tuple(2**level for level in range(len(self.depths) + 2))

    @property
    def learning_size(self) -> int:
        """Default training size, voxels along the longest axis: that of the first pass.

        Ours: a step costs 10 to 20 times a pass without gradients.
        """
        return round(self.size * self.passes[0])

    @property
    def channels(self) -> tuple[int, ...]:
        """Encoder channels at each of `strides`."""
        stages = tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))
        return (self.full_channels, self.half_channels, *stages)

    @property
    def stride(self) -> int:
        """The coarsest stride; the network pads its inputs to a multiple of it."""
        return self.strides[-1]

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SHMoARegConfig:
        """Return a named configuration, optionally with changed fields.

        Parameters
        ----------
        name : {"paper", "small", "tiny"}
            "paper": Sec. IV-B, 18.87 M parameters.  "small": for training and inference on a CPU.
            "tiny": for tests.
        """
        if name not in PRESETS:
            raise ValueError(
                f"There is no preset {name!r}; the presets are {', '.join(sorted(PRESETS))}."
            )
        return replace(cls(**PRESETS[name]), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SHMoARegConfig:
        """Create from the values of `to_dict`; unknown fields raise ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError(f"network settings are names and values, not {values!r:.80}")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"unknown network settings: {', '.join(sorted(map(str, unknown)))[:200]}"
            )
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "embed_dim": 24,
        "depths": (2, 2, 2),
        "full_channels": 8,
        "half_channels": 16,
        "bottleneck_channels": 96,
        "integration_steps": 5,
        "size": 160,
        "passes": (0.375, 1.0),
    },
    "tiny": {
        "embed_dim": 8,
        "depths": (1, 2),
        "num_experts": 6,
        "top_k": 2,
        "heads": 2,
        "window": (2, 3, 2),
        "full_channels": 4,
        "half_channels": 6,
        "bottleneck_channels": 12,
        "integration_steps": 4,
        "size": 32,
    },
}
