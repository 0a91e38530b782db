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

SLAB = 32  # planes per convolution without gradients
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class SHMoE(nn.Module):
    """Residual displacement; each component of each voxel is predicted by one of N convolutions.

    The experts of a direction are one-channel convolutions with kernels of different sizes.  All
    kernels up to 3 and the gates are computed as one convolution (kernel 3, 15 outputs for kernels
    1/3/5), each larger size as another one: the same result in a quarter of the time of nine
    convolutions and three gates.

    Parameters
    ----------
    channels : int
    kernels : tuple of int
        Odd kernel sizes; one expert of each size per direction.
    top_k : int
    routing_only : bool
        Detach T, so that only the routing loss trains the gate.

    Attributes
    ----------
    jitter : float
        Standard deviation of noise on the logits for the selection; 0 except in training.
    damp : callable or None
        Modifies the gradient, (B, k, D, H, W), of the chosen experts' outputs; for training.
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
        """Predict the residual of each direction from features (B, C, D, H, W).

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
        """Compute the residual of each expert if it were chosen: its output times its T.  Eq. (6).

        Parameters
        ----------
        features : Tensor (B, C, D, H, W)

        Returns
        -------
        tuple of 3 Tensor (B, N, D, H, W), voxels of this level, float32
            For x, y, z; detached.
        """
        outputs, logits = self.convolve(features)
        gates = [self.gates[direction] for direction in DIRECTIONS]
        return tuple(
            gate(z) * output for gate, z, output in zip(gates, logits, outputs, strict=True)
        )

    def _convs(self, direction: Direction) -> list[nn.Conv3d]:
        return list(cast(nn.ModuleList, self.experts[direction]))  # type: ignore[arg-type]

    def convolve(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the outputs of all experts and gates from features (B, C, D, H, W).

        Returns
        -------
        outputs : list of 3 Tensor (B, N, D, H, W), float32
            E_n of Eq. (6) for x, y, z: the residual of each expert before T, in voxels.
        logits : list of 3 Tensor (B, N, D, H, W), float32
            Gate logits, before the sigmoid.
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
        # One split has one concatenation as gradient; each slice would create a full zero tensor.
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
    """The direction-homogeneous head of Table II: one 3x3x3 convolution to 3 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 3, 3, padding=1)
        start_at_zero(self.conv)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[Routing, ...]]:
        """Predict a residual (B, 3, D, H, W), float32, of features (B, C, D, H, W); no routing."""
        residual = self.conv(features)
        return residual.to(torch.promote_types(residual.dtype, torch.float32)), ()


def same_convolution(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with zero padding; faster than `conv3d` on CPUs for few outputs and large kernels.

    On CPUs the K kernel planes are convolved at once, into K times as many channels, then shifted
    and summed: three outputs leave most of a vector register empty, fifteen fill it.  Without
    gradients it runs slab by slab to save memory.

    Parameters
    ----------
    features : Tensor (B, C, D, H, W)
    weight : Tensor (O, C, K, K, K)
        K odd.
    bias : Tensor (O,)

    Returns
    -------
    Tensor (B, O, D, H, W)
        As from `conv3d`, up to rounding.
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
    """Initialise as TransMorph's registration head, with no motion: weights N(0, 1e-5), bias 0."""
    if not conv.weight.is_meta:  # as in `SoftmaxGate`
        nn.init.normal_(conv.weight, std=1e-5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
