"""The gates of a network.  Eq. (5)-(6)."""

from __future__ import annotations

from dataclasses import dataclass

from napari_shmoareg.model.decoder import Decoder, Level
from napari_shmoareg.model.moa import MoA, MultiHeadAttention
from napari_shmoareg.model.network import SHMoAReg
from napari_shmoareg.model.routing import AtGate, GateId, SigmoidGate, SoftmaxGate
from napari_shmoareg.model.shmoe import DIRECTIONS, SHMoE
from napari_shmoareg.model.swin import SwinBlock


@dataclass(frozen=True, eq=False)
class GateSite(AtGate):
    """A gate of a network, with the fields of its `GateId`; encoder gates serve both images.

    Attributes
    ----------
    gate : GateId
        Without an image.
    stride : int
        Voxels of the network grid per cell, along every axis.
    num_experts, top_k : int
    module : SoftmaxGate or SigmoidGate
        A forward hook on it can read or change the probabilities: (2B, *S, N) in the encoder,
        moving images first; (B, N, *S) in the decoder.  *S is padded to a multiple of the coarsest
        stride.
    owner : MoA or SHMoE
        The layer with the experts of the gate; an SHMoE has three gates.
    """

    gate: GateId
    stride: int
    num_experts: int
    top_k: int
    module: SoftmaxGate | SigmoidGate
    owner: MoA | SHMoE


def gates_of(network: SHMoAReg) -> tuple[GateSite, ...]:
    """List the gates of a network in the order of the forward pass; empty without experts.

    Examples
    --------
    >>> from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
    >>> from napari_shmoareg.model.gate_sites import gates_of
    >>> gates = gates_of(SHMoAReg(SHMoARegConfig.preset("tiny")))
    >>> [(gate.layer, gate.direction) for gate in gates if gate.part == "decoder"]
    [(2, 'x'), (2, 'y'), (2, 'z'), (1, 'x'), (1, 'y'), (1, 'z')]
    """
    return (*_encoder_gates(network), *_decoder_gates(network.decoder))


def attentions_of(network: SHMoAReg) -> list[tuple[int, int, MoA | MultiHeadAttention]]:
    """List layer (from 1), block (from 0) and attention of every Swin block, in forward order."""
    found = []
    for stage, layer in enumerate(network.encoder.layers):
        for number, block in enumerate(layer.blocks):  # type: ignore[arg-type, union-attr]
            assert isinstance(block, SwinBlock)
            found.append((stage + 1, number, block.attention))
    return found


def _encoder_gates(network: SHMoAReg) -> list[GateSite]:
    found = []
    for layer, block, moa in attentions_of(network):
        if isinstance(moa, MoA):
            gate, stride = GateId("encoder", layer, block), 2 ** (layer + 1)
            found.append(GateSite(gate, stride, moa.num_experts, moa.top_k, moa.gate, moa))
    return found


def _decoder_gates(decoder: Decoder) -> list[GateSite]:
    found = []
    for level in decoder.levels:
        assert isinstance(level, Level)
        head = level.head
        if isinstance(head, SHMoE):
            for direction in DIRECTIONS:
                gate = GateId("decoder", level.stride.bit_length(), direction=direction)
                module, count = head.gates[direction], len(head.kernels)
                assert isinstance(module, SigmoidGate)
                found.append(GateSite(gate, level.stride, count, head.top_k, module, head))
    return found
