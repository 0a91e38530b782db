"""SHMoE: spatial heterogeneous mixture of experts.

Sec. III-C, Eq. (6), Fig. 3.  B batch, N experts, k chosen, C channels, D H W space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.model.routing import Direction, Routing, SigmoidGate, choose

SLAB = 32  # planes that are convolved at once without gradients
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class SHMoE(nn.Module):
    """Residual displacement whose x, y and z are each predicted, voxel by voxel, by one of N
    convolutions.

    The experts of a direction are one-channel convolutions with kernels of different sizes.  All
    kernels up to 3 and the gates' are computed as one convolution (kernel 3, 15 outputs for kernels
    1/3/5), each larger size as one more: the same numbers at a quarter of the time of nine
    convolutions and three gates.

    Parameters
    ----------
    channels : int
    kernels : tuple of int
        Odd; one expert of each size per direction.
    top_k : int
    routing_only : bool
        Multiply by a detached T, so that only the routing loss trains the gate.

    Attributes
    ----------
    jitter : float
        Standard deviation of noise on the logits that the choice is made by; 0 but while learning
        asks for it.
    damp : callable or None
        Changes the gradient, (B, k, D, H, W), that reaches the chosen experts' outputs; for
        learning.
    """

    def __init__(
        self,
        channels: int,
        kernels: tuple[int, ...] = (1, 3, 5),
        *,
        top_k: int = 1,
        routing_only: bool = False,
    ) -> None:
        super().__init__()
        self.kernels, self.top_k, self.routing_only = kernels, top_k, routing_only
        self.jitter, self.damp = 0.0, cast(Callable[[Tensor], Tensor] | None, None)
        self.gates = nn.ModuleDict(
            {direction: SigmoidGate(channels, len(kernels)) for direction in DIRECTIONS}
        )
        self.experts = nn.ModuleDict(
            {
                direction: nn.ModuleList(nn.Conv3d(channels, 1, k, padding=k // 2) for k in kernels)
                for direction in DIRECTIONS
            }
        )
        for direction in DIRECTIONS:
            for conv in self._convs(direction):
                start_at_zero(conv)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[Routing, ...]]:
        """Features (B, C, D, H, W) to the residual of each direction.

        Returns
        -------
        Tensor (B, 3, D, H, W), voxels of this level, float32
            Eq. (6): the chosen experts' outputs, times T.
        tuple of 3 Routing
            For x, y, z (array axes 0, 1, 2).
        """
        outputs, logits = self.convolve(features)
        residuals, routings = [], []
        for axis, direction in enumerate(DIRECTIONS):
            probabilities = self.gates[direction](logits[axis])
            weights, experts = choose(probabilities, self.top_k)
            if self.jitter > 0:
                noise = self.jitter * torch.randn_like(logits[axis])
                experts = choose(logits[axis].detach() + noise, self.top_k)[1]
                weights = probabilities.gather(1, experts)
            factor = weights.detach() if self.routing_only else weights
            chosen = outputs[axis].gather(1, experts)
            if self.damp is not None and chosen.requires_grad:
                chosen.register_hook(self.damp)
            residuals.append((factor * chosen).sum(1, keepdim=True))
            routings.append(Routing(probabilities, experts, weights))
        return torch.cat(residuals, dim=1), tuple(routings)

    @torch.no_grad()
    def alternatives(self, features: Tensor) -> tuple[Tensor, ...]:
        """What each expert would give if it were the one chosen: its output times its own T.  Eq.
        (6).

        Parameters
        ----------
        features : Tensor (B, C, D, H, W)

        Returns
        -------
        tuple of 3 Tensor (B, N, D, H, W), voxels of this level, float32
            For x, y, z; off the graph.
        """
        outputs, logits = self.convolve(features)
        gates = [self.gates[direction] for direction in DIRECTIONS]
        return tuple(
            gate(z) * output for gate, z, output in zip(gates, logits, outputs, strict=True)
        )

    def _convs(self, direction: Direction) -> list[nn.Conv3d]:
        return list(cast(nn.ModuleList, self.experts[direction]))  # type: ignore[arg-type]

    def convolve(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What every expert and every gate makes of the features (B, C, D, H, W), before any
        choice.

        Returns
        -------
        outputs : list of 3 Tensor (B, N, D, H, W), float32
            E_n of Eq. (6) for x, y, z: the residual that each expert alone would predict, before T;
            voxels.
        logits : list of 3 Tensor (B, N, D, H, W), float32
            Of the gates, before the sigmoid.
        """
        n = len(self.kernels)
        small = [i for i, k in enumerate(self.kernels) if k <= 3]
        convs = [self._convs(direction)[i] for direction in DIRECTIONS for i in small]
        weights = [F.pad(conv.weight, [(3 - conv.kernel_size[0]) // 2] * 6) for conv in convs]
        gates = [cast(SigmoidGate, self.gates[direction]) for direction in DIRECTIONS]
        weight = torch.cat([*weights, *(gate.weight for gate in gates)])
        bias = torch.cat([cast(Tensor, part.bias) for part in (*convs, *gates)])
        merged = F.conv3d(features, weight, bias, padding=1)
        kind = torch.promote_types(merged.dtype, torch.float32)
        merged = merged.to(kind)
        # One split, whose gradient is one concatenation; slices would each make a full tensor of
        # zeros.
        *pieces, x, y, z = merged.split([1] * (3 * len(small)) + [n] * 3, dim=1)
        columns = [
            dict(zip(small, pieces[axis * len(small) : (axis + 1) * len(small)], strict=True))
            for axis in range(3)
        ]
        for i in set(range(n)) - set(small):
            large = [self._convs(direction)[i] for direction in DIRECTIONS]
            weight = torch.cat([conv.weight for conv in large])
            output = same_convolution(
                features, weight, torch.cat([cast(Tensor, conv.bias) for conv in large])
            ).to(kind)
            for column, piece in zip(columns, output.split(1, dim=1), strict=True):
                column[i] = piece
        return [torch.cat([column[i] for i in range(n)], dim=1) for column in columns], [x, y, z]


class ConvHead(nn.Module):
    """The direction-homogeneous head of Table II: one 3x3x3 convolution to three channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 3, 3, padding=1)
        start_at_zero(self.conv)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[Routing, ...]]:
        """Features (B, C, D, H, W) to a residual (B, 3, D, H, W), float32; nothing is routed."""
        residual = self.conv(features)
        return residual.to(torch.promote_types(residual.dtype, torch.float32)), ()


def same_convolution(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of few outputs by a large kernel, zeros beyond the edge: `conv3d`, but faster
    on CPUs.

    On them its K planes are convolved as one, into K times as many channels, and added up shifted:
    three outputs leave most of a vector register empty, fifteen fill it.  Without gradients this
    goes slab by slab, to spare memory.

    Parameters
    ----------
    features : Tensor (B, C, D, H, W)
    weight : Tensor (O, C, K, K, K)
        K odd.
    bias : Tensor (O,)

    Returns
    -------
    Tensor (B, O, D, H, W)
        As of `conv3d`, but for rounding.
    """
    outputs, size, length = len(weight), weight.shape[-1], features.shape[2]
    r = size // 2
    if features.device.type != "cpu":
        return F.conv3d(features, weight, bias, padding=r)
    planes = weight.movedim(2, 0).flatten(0, 1)[:, :, None]  # (K * O, C, 1, K, K)
    slab = length if torch.is_grad_enabled() else SLAB
    found = []
    for first in range(0, length, slab):
        last = min(first + slab, length)
        begin, end = max(0, first - r), min(length, last + r)
        each = F.conv3d(features[:, :, begin:end], planes, padding=(0, r, r)).unflatten(
            1, (size, outputs)
        )
        each = F.pad(each, (0, 0, 0, 0, begin - (first - r), last + r - end))
        total = bias.view(-1, 1, 1, 1).to(each.dtype)
        for i in range(size):
            total = total + each[:, i, :, i : i + last - first]
        found.append(total)
    return torch.cat(found, dim=2) if len(found) > 1 else found[0]


def start_at_zero(conv: nn.Conv3d) -> None:
    """As TransMorph's registration head: weights N(0, 1e-5), no bias, so that learning starts at no
    motion.
    """
    if not conv.weight.is_meta:  # as of `SoftmaxGate`
        nn.init.normal_(conv.weight, std=1e-5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
