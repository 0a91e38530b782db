"""What a gate is, and what it decided.

B batch, N experts, k chosen, C channels, *S space (D, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Part = Literal["encoder", "decoder"]
Image = Literal["moving", "fixed"]
Direction = Literal["x", "y", "z"]

MOST = 1024  # layers, blocks, experts of a gate; the networks here have 12 experts at most


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


class GateId(NamedTuple):
    """The address of a gate in a network, written ``encoder-1-0-moving``, ``decoder-1-x``.

    Attributes
    ----------
    part : {"encoder", "decoder"}
    layer : int
        The paper's number: encoder 1-4 at stride 4-32; decoder 1 at full, 2 at half resolution ...
    block : int or None
        Encoder: Swin block within the layer, from 0; None for all blocks together.
    image : {"moving", "fixed"} or None
        Encoder: whose tokens; None where one gate serves both.
    direction : {"x", "y", "z"} or None
        Decoder: component of the displacement (array axis 0, 1, 2 of the network grid).
    """

    part: Part
    layer: int
    block: int | None = None
    image: Image | None = None
    direction: Direction | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> GateId:
        """From the entries of a JSON object, or of a row of a table; other keys are left alone.

        Raises
        ------
        KeyError, ValueError
            If a field is missing, or there is no such gate.
        """
        gate = cls(*(fields[name] for name in cls._fields))
        choices = (get_args(Part), (None, *get_args(Image)), (None, *get_args(Direction)))
        words = zip((gate.part, gate.image, gate.direction), choices, strict=True)
        numbers = (gate.layer, 0 if gate.block is None else gate.block)
        if not all(word in choice for word, choice in words) or not all(
            type(n) is int and 0 <= n < MOST for n in numbers
        ):
            raise ValueError(f"there is no gate {tuple(gate)!r:.120}")
        return gate

    def __str__(self) -> str:
        return "-".join(str(field) for field in self if field is not None)

    def matches(self, **fields: object) -> bool:
        """Whether its fields have these values: ``gate.matches(part="decoder", layer=1)``."""
        return all(getattr(self, name) == value for name, value in fields.items())


class AtGate:
    """Reads the fields of its `gate` as its own."""

    gate: GateId

    @property
    def part(self) -> Part:
        return self.gate.part

    @property
    def layer(self) -> int:
        return self.gate.layer

    @property
    def block(self) -> int | None:
        return self.gate.block

    @property
    def image(self) -> Image | None:
        return self.gate.image

    @property
    def direction(self) -> Direction | None:
        return self.gate.direction


@dataclass(frozen=True, eq=False)
class RoutedLayer(AtGate):
    """A routing and the gate that decided it, whose fields (`GateId`) it has too.

    Attributes
    ----------
    gate : GateId
    stride : int
        Voxels of the network grid per cell, along every axis.
    routing : Routing
    residual : Tensor (B, 1, *S) or None
        Decoder: the selected residual of this direction, on the graph, so that the error
        signal of Eq. (7) is ``autograd.grad(similarity, residual)``.
    alternatives : Tensor (B, N, *S) or None
        Decoder, in learning from counterfactual labels: the residual that each expert would give
        if it were the one chosen, off the graph.
    """

    gate: GateId
    stride: int
    routing: Routing
    residual: Tensor | None = None
    alternatives: Tensor | None = None

    @property
    def num_experts(self) -> int:
        return self.routing.probabilities.shape[1]

    @property
    def name(self) -> str:
        """For people and file names: ``encoder-1-0-moving``, ``decoder-1-x``."""
        return str(self.gate)

    def detached(self) -> RoutedLayer:
        """Off the graph and on the CPU, ids as uint8, without the residuals: what a registration
        keeps.
        """
        probabilities, experts, weights = (t.detach().cpu() for t in self.routing)
        routing = Routing(probabilities, experts.to(torch.uint8), weights)
        return replace(self, routing=routing, residual=None, alternatives=None)


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """What every gate chose, in the order of the forward.

    Iterates over its layers; ``trace[GateId("decoder", 1, direction="x")]`` is that of one gate.
    """

    layers: tuple[RoutedLayer, ...] = ()

    def __iter__(self) -> Iterator[RoutedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, gate: GateId) -> RoutedLayer:
        for layer in self.layers:
            if layer.gate == gate:
                return layer
        raise KeyError(str(gate))

    def select(self, **fields: object) -> tuple[RoutedLayer, ...]:
        """The layers whose attributes match: ``trace.select(part="decoder", stride=1)``."""
        return tuple(
            layer
            for layer in self.layers
            if all(getattr(layer, name) == value for name, value in fields.items())
        )

    def detached(self) -> RoutingTrace:
        return RoutingTrace(tuple(layer.detached() for layer in self.layers))


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
