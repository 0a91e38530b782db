"""Experts during training: initialisation, frozen parts, schedules, load balancing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from napari_shmoareg.errors import InputError
from napari_shmoareg.model import RoutingTrace, SHMoAReg, SHMoARegConfig
from napari_shmoareg.model.decoder import Level
from napari_shmoareg.model.gate_sites import gates_of
from napari_shmoareg.model.moa import MoA, MultiHeadAttention
from napari_shmoareg.model.routing import SoftmaxGate
from napari_shmoareg.model.shmoe import DIRECTIONS, SHMoE
from napari_shmoareg.registration.losses import damped
from napari_shmoareg.training.settings import ExpertLearning, FineTuning

JITTER_SHARE = 1 / 3  # share of the steps over which `gate_jitter` falls to 0
START_SETTINGS = ("moa_output_scale", "kernels_start")


def start_experts(network: SHMoAReg, settings: ExpertLearning) -> None:
    """Initialise the experts of a network with random weights, before its first step."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, MoA):
                module.output.mul_(settings.moa_output_scale)
            elif isinstance(module, SHMoE) and settings.kernels_start == "alike":
                _start_equal(module)


def check_start(settings: ExpertLearning) -> None:
    """Reject initialisation settings if training starts from given weights.

    Raises
    ------
    InputError
    """
    for name in START_SETTINGS:
        if getattr(settings, name) != getattr(ExpertLearning(), name):
            raise InputError(
                "initialises random weights, but this run starts from given weights.",
                setting=name,
                remedy="Leave it out.",
            )


def expert_config(config: SHMoARegConfig, settings: ExpertLearning) -> SHMoARegConfig:
    """The config with a choice bias if the settings train one."""
    return replace(config, choice_bias=True) if settings.balance == "bias" else config


def with_choice_bias(network: SHMoAReg) -> SHMoAReg:
    """The same weights in a network whose gates have a choice bias, initially 0."""
    if network.config.choice_bias:
        return network
    other = SHMoAReg(replace(network.config, choice_bias=True))
    biases = {
        name: value for name, value in other.state_dict().items() if name.endswith(".choice_bias")
    }
    other.load_state_dict(network.state_dict() | biases)
    return other.to(next(network.parameters()).device).train(network.training)


def check_experts(network: SHMoAReg, settings: FineTuning) -> None:
    """Reject settings that this network does not support.

    Raises
    ------
    InputError
        If its gates have no choice bias, or it has no tokens at the compared strides.
    """
    gates = softmax_gates(network)
    if settings.balance == "bias" and any(gate.choice_bias is None for gate in gates):
        raise InputError(
            "balance is 'bias', but the gates of this network have no choice bias. Add one with"
            " with_choice_bias(network)."
        )
    if settings.correspondence_weight > 0 and not shared_strides(network, settings):
        raise InputError(
            "correspondence_strides must name strides of the network's tokens "
            f"({_joined(network.config.strides[2:])}); got {settings.correspondence_strides!r}."
        )


def shared_strides(network: SHMoAReg, settings: ExpertLearning) -> tuple[int, ...]:
    """Strides of `ExpertLearning.correspondence_strides` at which the network has tokens."""
    return tuple(
        stride for stride in settings.compared_strides if stride in network.config.strides[2:]
    )


def frozen_parameters(network: SHMoAReg, settings: ExpertLearning) -> list[nn.Parameter]:
    """Parameters that are not trained: frozen gates, attention that is off."""
    frozen: list[nn.Parameter] = []
    if settings.gates == "frozen":
        frozen += [
            parameter for site in gates_of(network) for parameter in site.module.parameters()
        ]
    if settings.attention == "off":
        frozen += [
            parameter for attention in _attentions(network) for parameter in attention.parameters()
        ]
    return frozen


@torch.no_grad()
def freeze_experts(network: SHMoAReg, settings: ExpertLearning) -> None:
    """Freeze gates and attention as the settings say; attention that is off outputs 0."""
    for site in gates_of(network):
        if site.part == "decoder":  # those of the encoder follow freeze_encoder
            site.module.requires_grad_(True)
    for parameter in frozen_parameters(network, settings):
        parameter.requires_grad_(False)
    for attention in _attentions(network) if settings.attention == "off" else ():
        outputs = (
            [attention.output]
            if isinstance(attention, MoA)
            else list(attention.output.parameters())
        )
        for output in outputs:
            output.zero_()


@contextmanager
def experts_at(network: SHMoAReg, settings: FineTuning, step: int) -> Iterator[None]:
    """Apply the schedules of a step (from 0) to forward and backward; restore the network
    afterwards.
    """
    gates = softmax_gates(network)
    levels = [cast(Level, level) for level in network.decoder.levels]
    heads = [level.head for level in levels if isinstance(level.head, SHMoE)]
    before = [(gate.top_k, gate.temperature) for gate in gates]
    damp = partial(damped, quantile=settings.quantile, factor=settings.expert_damping)
    try:
        for gate in gates:
            gate.top_k, gate.temperature = chosen_at(settings, step, len(gate.weight), gate.top_k)
        for head in heads:
            head.jitter = jitter_at(settings, step)
            head.damp = damp if settings.expert_damping < 1 else None
        for level in levels:
            level.compare_experts = (
                settings.routing_target == "counterfactual" and settings.routing_weight > 0
            )
        yield
    finally:
        for gate, (top_k, temperature) in zip(gates, before, strict=True):
            gate.top_k, gate.temperature = top_k, temperature
        for head in heads:
            head.jitter, head.damp = 0.0, None
        for level in levels:
            level.compare_experts = False


def chosen_at(settings: FineTuning, step: int, num_experts: int, top_k: int) -> tuple[int, float]:
    """Number of heads that a token chooses at a step (from 0), and the temperature of the gate."""
    last = settings.dense_share * settings.steps
    left = max(0.0, 1 - step / last) if last else 0.0
    return top_k + round(left * (num_experts - top_k)), 1 + left * (settings.gate_temperature - 1)


def jitter_at(settings: FineTuning, step: int) -> float:
    """Standard deviation of the noise on the SHMoE gate logits at a step (from 0)."""
    return settings.gate_jitter * max(0.0, 1 - step / (JITTER_SHARE * settings.steps))


@contextmanager
def record_head_outputs(network: SHMoAReg, enabled: bool = True) -> Iterator[list[Tensor]]:
    """Record the outputs of the chosen heads of each MoA layer that chooses at least two."""
    layers = [module for module in network.encoder.modules() if isinstance(module, MoA) and enabled]
    outputs: list[Tensor] = []
    try:
        for layer in layers:
            layer.watch = outputs if layer.top_k > 1 else None
        yield outputs
    finally:
        for layer in layers:
            layer.watch = None


@contextmanager
def record_gate_inputs(
    network: SHMoAReg, enabled: bool = True
) -> Iterator[list[tuple[SoftmaxGate, Tensor]]]:
    """Record the inputs of the MoA gates, in forward order."""
    inputs: list[tuple[SoftmaxGate, Tensor]] = []

    def record(gate: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append((cast(SoftmaxGate, gate), args[0]))

    handles = [gate.register_forward_pre_hook(record) for gate in softmax_gates(network) if enabled]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def no_choices(network: SHMoAReg) -> Tensor:
    """Zeros with the shape and device of `head_counts`."""
    gates = softmax_gates(network)
    device = next(network.parameters()).device
    return torch.zeros(
        len(gates), len(gates[0].weight) if gates else 0, dtype=torch.int64, device=device
    )


def head_counts(routing: RoutingTrace) -> Tensor:
    """Selections of each attention head, (gates, N) int64, in forward order; (0, 0) without MoA."""
    found: dict[tuple[int, int | None], Tensor] = {}
    for record in routing.select(part="encoder"):
        key = record.layer, record.block
        count = torch.bincount(record.routing.experts.flatten(), minlength=record.num_experts)
        found[key] = found[key] + count if key in found else count
    return torch.stack(list(found.values())) if found else torch.zeros(0, 0, dtype=torch.int64)


@torch.no_grad()
def move_choice_bias(network: SHMoAReg, counts: Tensor, rate: float) -> None:
    """Lower the bias of heads chosen more often than the mean, raise that of the others.

    arXiv 2408.15664, Algorithm 1.

    Parameters
    ----------
    network : SHMoAReg
        With a choice bias.
    counts : Tensor (gates, N)
        From `head_counts`, summed over all processes.
    rate : float
    """
    for gate, count in zip(softmax_gates(network), counts.double(), strict=True):
        assert gate.choice_bias is not None
        gate.choice_bias += rate * (count.mean() - count).sign().to(gate.choice_bias)


def softmax_gates(network: SHMoAReg) -> list[SoftmaxGate]:
    """The MoA gates of the network."""
    return [site.module for site in gates_of(network) if isinstance(site.module, SoftmaxGate)]


def _start_equal(head: SHMoE) -> None:
    smallest = min(head.kernels)
    for direction in DIRECTIONS:
        convs = [cast(nn.Conv3d, conv) for conv in cast(nn.ModuleList, head.experts[direction])]
        first = convs[head.kernels.index(smallest)]
        for conv, kernel in zip(convs, head.kernels, strict=True):
            if conv is first:
                continue
            pad = (kernel - smallest) // 2
            conv.weight.copy_(nn.functional.pad(first.weight, [pad] * 6))
            cast(Tensor, conv.bias).copy_(cast(Tensor, first.bias))


def _attentions(network: SHMoAReg) -> list[MoA | MultiHeadAttention]:
    return [
        module
        for module in network.encoder.modules()
        if isinstance(module, MoA | MultiHeadAttention)
    ]


def _joined(strides: tuple[int, ...]) -> str:
    return ", ".join(map(str, strides))
