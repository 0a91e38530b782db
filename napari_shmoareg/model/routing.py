"""What a gate is, and what it decided.

B batch, N experts, k chosen, C channels, *S space (D, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Part = Literal["encoder", "decoder"]
Image = Literal["moving", "fixed"]
Direction = Literal["x", "y", "z"]


class Routing(NamedTuple):
    """The decision of one gate.

    Attributes
    ----------
    probabilities : Tensor (B, N, *S)
        What the gate gave each expert, in (0, 1): softmax for MoA (Eq. 5), sigmoid for SHMoE.
    experts : Tensor (B, k, *S), int64
        Ids of the chosen experts, from 0, the most probable first.
    weights : Tensor (B, k, *S)
        What each chosen expert's output is multiplied by (Eq. 4 for MoA, T of Eq. 6 for SHMoE).
    """

    probabilities: Tensor
    experts: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class RoutedLayer:
    """A routing and the place in the network where it was decided.

    Attributes
    ----------
    part : {"encoder", "decoder"}
    layer : int
        The paper's number: encoder 1-4 at stride 4-32; decoder 1 at full, 2 at half resolution ...
    stride : int
        Voxels of the network grid per cell, along every axis.
    routing : Routing
    block : int or None
        Encoder: Swin block within the layer, from 0.
    image : {"moving", "fixed"} or None
        Encoder: whose tokens.
    direction : {"x", "y", "z"} or None
        Decoder: component of the displacement (array axis 0, 1, 2 of the network grid).
    residual : Tensor (B, 1, *S) or None
        Decoder: the selected residual of this direction, on the graph, so that the error
        signal of Eq. (7) is ``autograd.grad(similarity, residual)``.
    alternatives : Tensor (B, N, *S) or None
        Decoder, in learning from counterfactual labels: the residual that each expert would give
        if it were the one chosen, off the graph.
    """

    part: Part
    layer: int
    stride: int
    routing: Routing
    block: int | None = None
    image: Image | None = None
    direction: Direction | None = None
    residual: Tensor | None = None
    alternatives: Tensor | None = None

    @property
    def num_experts(self) -> int:
        return self.routing.probabilities.shape[1]

    @property
    def name(self) -> str:
        """For people and file names: ``encoder-1-0-moving``, ``decoder-1-x``."""
        parts = (self.part, self.layer, self.block, self.image, self.direction)
        return "-".join(str(p) for p in parts if p is not None)

    def detached(self) -> RoutedLayer:
        """Off the graph and on the CPU, ids as uint8, without the residuals: what a registration
        keeps.
        """
        probabilities, experts, weights = (t.detach().cpu() for t in self.routing)
        routing = Routing(probabilities, experts.to(torch.uint8), weights)
        return replace(self, routing=routing, residual=None, alternatives=None)


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """What every gate chose, in the order of the forward."""

    layers: tuple[RoutedLayer, ...]

    def __iter__(self) -> Iterator[RoutedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def select(self, **where: object) -> tuple[RoutedLayer, ...]:
        """The layers whose fields have these values: ``trace.select(part="decoder",
        direction="x")``.
        """
        return tuple(
            r for r in self.layers if all(getattr(r, key) == value for key, value in where.items())
        )

    def detached(self) -> RoutingTrace:
        return RoutingTrace(tuple(r.detached() for r in self.layers))


class SoftmaxGate(nn.Module):
    """The routing network G of MoA: tokens in, probabilities out.  Eq. (5), Sec. III-B.

    Ours: initialised at random (std 0.02).  With the zero initialisation of the MoA code
    all probabilities tie and every token chooses the same experts at the first step.

    Parameters
    ----------
    channels, num_experts : int
    top_k : int
        Experts that each token chooses.
    choice_bias : bool
        See `SHMoARegConfig`.  The bias is a buffer, so that it is saved with the weights; no
        gradient reaches it.

    Attributes
    ----------
    top_k : int
    temperature : float
        Divides the logits; 1 but while learning goes from dense to sparse.
    choice_bias : Tensor (N,) or None
    """

    choice_bias: Tensor | None

    def __init__(
        self, channels: int, num_experts: int, *, top_k: int = 1, choice_bias: bool = False
    ) -> None:
        super().__init__()
        self.top_k, self.temperature = top_k, 1.0
        self.register_buffer("choice_bias", torch.zeros(num_experts) if choice_bias else None)
        self.weight = nn.Parameter(torch.empty(num_experts, channels))
        # nothing to fill there, and torch would load its compiler to do so, for seconds
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, *S, C) to probabilities (B, *S, N) in float32, summing to 1 over N.

        With a choice bias, an expert that the bias leaves out has at most a hair less than the
        least probable one that it takes in: the k largest are the experts chosen, with the
        probabilities that the softmax gave them, for whatever reads or changes them."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self.logits(tokens)
            probabilities = torch.softmax(
                logits if self.temperature == 1 else logits / self.temperature, dim=-1
            )
            return (
                probabilities
                if self.choice_bias is None
                else self._biased(probabilities, self.choice_bias)
            )

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, *S, C) to logits (B, *S, N), in float32 at least."""
        kind = torch.promote_types(tokens.dtype, torch.float32)
        return tokens.to(kind) @ self.weight.to(kind).T

    def _biased(self, probabilities: Tensor, bias: Tensor) -> Tensor:
        chosen = choose(probabilities + bias, self.top_k, dim=-1)[1]
        held = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, chosen, True)
        weakest = probabilities.gather(-1, chosen).amin(-1, keepdim=True).detach()
        below = torch.nextafter(weakest, torch.zeros_like(weakest))
        return torch.where(held, probabilities, torch.minimum(probabilities, below))


class SigmoidGate(nn.Module):
    """The routing gate T of SHMoE for one direction: a 3x3x3 convolution, then a sigmoid.  Sec.
    III-C.

    The convolution is computed by `SHMoE` together with those of the experts; `forward`
    takes its logits, so that a hook sees and may change the probabilities.

    Ours: a sigmoid.  Eq. (6) multiplies by T and Eq. (7) takes log T and log(1 - T): only
    values in (0, 1) serve both.  Default (not zero) initialisation: a zero gate ties.
    """

    def __init__(self, channels: int, num_experts: int) -> None:
        super().__init__()
        conv = nn.Conv3d(channels, num_experts, 3)
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = nn.Parameter(conv.bias.detach().clone())  # type: ignore[union-attr]

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (B, N, D, H, W) to probabilities (B, N, D, H, W) in float32."""
        with torch.autocast(logits.device.type, enabled=False):
            return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def choose(probabilities: Tensor, top_k: int, *, dim: int = 1) -> tuple[Tensor, Tensor]:
    """The k largest probabilities and the experts they belong to, along `dim`.

    For one expert of several, ``max`` is several times faster than ``topk`` on a CPU.
    """
    if top_k == 1:
        value, index = probabilities.max(dim=dim, keepdim=True)
        return value, index
    return torch.topk(probabilities, top_k, dim=dim)
