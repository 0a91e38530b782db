"""fine_tune(): a generator of steps.

Sec. IV-B: Adam at a fixed 1e-4, Eq. (8), both orders of every pair.  Each `yield` is a safe place to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.engine.augmentation import augment, with_known_motion
from napari_shmoareg.engine.batch import Batch, NotFiniteError, Skipped, Step
from napari_shmoareg.engine.conform import Conformed, conform
from napari_shmoareg.engine.expert_training import (
    check_experts,
    experts_at,
    head_counts,
    held_back,
    hold_experts,
    move_choice_bias,
    no_choices,
)
from napari_shmoareg.engine.memory import check_training_memory
from napari_shmoareg.engine.optimiser import adam
from napari_shmoareg.engine.pair_loss import loss_of
from napari_shmoareg.engine.team import Team
from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.geometry import InputError, VolumePair
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.model.decoder import Level

__all__ = ["Step", "conformed_pair", "fine_tune", "learning", "make_optimiser"]

TRIES = 20  # pairs that are tried in place of one that cannot be read


def make_optimiser(network: SHMoAReg, settings: FineTuning) -> torch.optim.Adam:
    """Adam as in Sec. IV-B: no weight decay, no amsgrad.  Each group's ``factor`` multiplies the rate."""
    levels = [level for level in network.decoder.levels if isinstance(level, Level)]
    heads = {id(parameter): level.stride for level in levels for parameter in level.head.parameters()}
    groups: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for parameter in learning(network, settings):
        factor = 1 / heads.get(id(parameter), 1) if settings.balance_heads else 1.0
        groups.setdefault(factor, []).append(parameter)
    parts = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    return adam(parts, lr=settings.learning_rate)


def learning(network: SHMoAReg, settings: FineTuning) -> list[torch.nn.Parameter]:
    """The parameters that learn: all, or the decoder's; without those that the settings hold."""
    part = network.decoder if settings.freeze_encoder else network
    held = {id(parameter) for parameter in held_back(network, settings)}
    return [parameter for parameter in part.parameters() if id(parameter) not in held]


def fine_tune(
    network: SHMoAReg,
    pairs: Sequence[VolumePair | Conformed],
    settings: FineTuning | None = None,
    *,
    optimiser: torch.optim.Adam | None = None,
    start: int = 0,
    team: Team | None = None,
) -> Iterator[Step]:
    """Train a network on pairs, one step per `next`.

    Both orders of a pair are one batch of two.  Ours: the paper takes them as separate steps of
    batch size 1; together they share the encoder's work.

    Parameters
    ----------
    network : SHMoAReg
        Changed in place; left in training mode.
    pairs : sequence of VolumePair or Conformed
        Read lazily, in a new random order every epoch.  Scans are taken as aligned by their headers.
    settings : FineTuning, optional
    optimiser : Adam, optional
        From an earlier run, to go on with; see `make_optimiser`.
    start : int
        Steps already done by an earlier run with the same settings: the same pairs follow.
    team : Team, optional
        Processes that learn together, each with the same network and pairs: they share a step's batch, and
        the step is the same however many they are, up to rounding.

    Yields
    ------
    Step
        The same in every process, but for its seconds.

    Raises
    ------
    InputError
        If there is no pair, none can be read, or the loss or its gradient is not finite (the weights are then
        those before the step).
    TooLargeError
        If a step would not fit into memory.
    """
    settings, team = settings or FineTuning(), team or Team()
    if len(pairs) == 0:
        raise InputError("There is no pair to learn from; give at least one.")
    if settings.batch < team.size:
        raise InputError(f"A batch of {settings.batch} cannot be shared by {team.size} processes; give a larger batch.")
    optimiser = optimiser or make_optimiser(network, settings)
    device = next(network.parameters()).device
    check_experts(network, settings)
    learners = learning(network, settings)
    network.encoder.requires_grad_(not settings.freeze_encoder)
    hold_experts(network, settings)
    largest = 0
    for step in range(start, settings.steps):
        began = time.perf_counter()
        network.train()
        network.encoder.train(not settings.freeze_encoder)
        optimiser.zero_grad(set_to_none=False)
        batch, chosen = Batch(settings.batch), no_choices(network)
        for item in team.share(settings.batch):
            index, pair, skipped = _readable(pairs, step * settings.batch + item, network, settings)
            if pair.fixed.numel() > largest:
                largest = pair.fixed.numel()
                check_training_memory(network.config, pair.grid.shape, device, settings)
            rng = np.random.default_rng([settings.seed, 1, step, item] if item else [settings.seed, 1, step])
            changed = augment(pair, settings, np.random.default_rng([settings.seed, 2, step, item]))
            lot = np.random.default_rng([settings.seed, 3, step, item])
            if settings.known_motion > 0 and lot.random() < settings.known_motion:
                changed = with_known_motion(changed, lot)
            with experts_at(network, settings, step):
                terms, routing = loss_of(network, changed, settings, rng, device)
                if torch.isfinite(terms.total):
                    (terms.total / settings.batch).backward()
            batch.note(item, index, terms, routing, skipped)
            chosen += head_counts(routing).to(device)
        gradients = [_gradient(parameter) for parameter in learners]
        team.add([*gradients, *batch.tensors(device), chosen])
        batch.check(step)
        rate = settings.rate(step)
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        norm = torch.nn.utils.clip_grad_norm_(learners, settings.largest_gradient or math.inf)
        if not torch.isfinite(norm):
            raise NotFiniteError("gradient", float(norm), step, batch.indices)
        optimiser.step()
        if settings.balance == "bias":
            move_choice_bias(network, chosen, settings.balance_rate)
        yield batch.step(step + 1, gradient=float(norm), rate=rate, seconds=time.perf_counter() - began)


def conformed_pair(pair: VolumePair | Conformed, size: int, labels: bool) -> Conformed:
    """The pair on a network grid; one that already is stays as it is."""
    return pair if isinstance(pair, Conformed) else conform(pair, size=size, labels=labels)


def _readable(
    pairs: Sequence[VolumePair | Conformed], place: int, network: SHMoAReg, settings: FineTuning
) -> tuple[int, Conformed, tuple[Skipped, ...]]:
    """The pair that is due, or the next one that can be read; its index, and those that could not."""
    size, labels = settings.size or network.config.learning_size, settings.overlap_weight > 0
    due = _pair_of(place, len(pairs), settings.seed)
    skipped: list[Skipped] = []
    for further in range(min(TRIES, len(pairs))):
        index = (due + further) % len(pairs)
        try:
            return index, conformed_pair(pairs[index], size, labels), tuple(skipped)
        except (InputError, OSError) as error:
            skipped.append((index, str(error)))
            last = error
    raise InputError(f"{len(skipped)} pairs in a row could not be read. The last: {last}") from last


def _pair_of(place: int, count: int, seed: int) -> int:
    """Which pair stands at a place of the endless row: every pair once per epoch, in an order of the epoch's own."""
    epoch, within = divmod(place, count)
    endless = count > 100_000  # and random already
    return within if endless else int(np.random.default_rng([seed, 0, epoch]).permutation(count)[within])


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Zeros where nothing reached a parameter, so that every process has as many to add."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
