"""fine_tune(): a generator of steps.

Sec. IV-B: Adam at a fixed 1e-4, Eq. (8), both orders of every pair.  Each `yield` is a safe place to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.engine import losses
from napari_shmoareg.engine.cascade import coarse_pass
from napari_shmoareg.engine.conform import Conformed, conform
from napari_shmoareg.engine.memory import check_training_memory
from napari_shmoareg.engine.optimiser import adam
from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.geometry import InputError, VolumePair, field
from napari_shmoareg.model import NetworkOutput, SHMoAReg
from napari_shmoareg.model.decoder import Level

FIRST_PASS = (0.45, 0.7)  # resolution of the first pass of a cascade in training, as a share


@dataclass(frozen=True)
class Step:
    """What one step of `fine_tune` did.

    Attributes
    ----------
    step : int
        Steps done so far, this one included.
    pair : int
        Index of the pair it saw.
    total, similarity, smoothness, routing, overlap : float
        Eq. (8) and its terms before their weights; overlap is NaN without labels.
    rate : float
        Learning rate.
    seconds : float
    """

    step: int
    pair: int
    total: float
    similarity: float
    smoothness: float
    routing: float
    overlap: float
    rate: float
    seconds: float


def make_optimiser(network: SHMoAReg, settings: FineTuning) -> torch.optim.Adam:
    """Adam as in Sec. IV-B: no weight decay, no amsgrad.  Each group's ``factor`` multiplies the rate."""
    levels = [level for level in network.decoder.levels if isinstance(level, Level)]
    heads = {id(parameter): level.stride for level in levels for parameter in level.head.parameters()}
    groups: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for parameter in network.parameters():
        factor = 1 / heads.get(id(parameter), 1) if settings.balance_heads else 1.0
        groups.setdefault(factor, []).append(parameter)
    parts = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    return adam(parts, lr=settings.learning_rate)


def fine_tune(
    network: SHMoAReg,
    pairs: Sequence[VolumePair | Conformed],
    settings: FineTuning | None = None,
    *,
    optimiser: torch.optim.Adam | None = None,
    start: int = 0,
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

    Yields
    ------
    Step

    Raises
    ------
    InputError
        If there is no pair, or the loss or its gradient is not finite (the weights are then those
        before the step).
    TooLargeError
        If a step would not fit into memory.
    """
    settings = settings or FineTuning()
    if len(pairs) == 0:
        raise InputError("There is no pair to learn from; give at least one.")
    optimiser = optimiser or make_optimiser(network, settings)
    device = next(network.parameters()).device
    network.train()
    largest = 0
    for step in range(start, settings.steps):
        began = time.perf_counter()
        index = _pair_of(step, len(pairs), settings.seed)
        rng = np.random.default_rng([settings.seed, 1, step])
        pair = conformed_pair(pairs[index], settings.size or network.config.learning_size, settings.overlap_weight > 0)
        if pair.fixed.numel() > largest:
            largest = pair.fixed.numel()
            check_training_memory(network.config, pair.grid.shape, device)
        terms = _both_orders(network, pair, settings, rng, device)
        if not torch.isfinite(terms.total):
            raise InputError(_not_finite("loss", float(terms.total.detach()), step, index))
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(step) * group.get("factor", 1.0)
        optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.largest_gradient or math.inf)
        if not torch.isfinite(norm):
            raise InputError(_not_finite("gradient", float(norm), step, index))
        optimiser.step()
        yield Step(
            step=step + 1,
            pair=index,
            rate=settings.rate(step),
            seconds=time.perf_counter() - began,
            **{name: float(term.detach()) for name, term in terms._asdict().items()},
        )


def conformed_pair(pair: VolumePair | Conformed, size: int, labels: bool) -> Conformed:
    """The pair on a network grid; one that already is stays as it is."""
    return pair if isinstance(pair, Conformed) else conform(pair, size=size, labels=labels)


def total_loss(
    output: NetworkOutput,
    moving: Tensor,
    fixed: Tensor,
    settings: FineTuning,
    moving_labels: Tensor | None = None,
    fixed_labels: Tensor | None = None,
) -> losses.LossTerms:
    """Eq. (8): similarity + lambda_r smoothness + lambda_rc routing classification (+ overlap).

    Parameters
    ----------
    output : NetworkOutput
        In training mode, on the graph.
    moving, fixed : Tensor (B, 1, D, H, W)
    settings : FineTuning
    moving_labels, fixed_labels : Tensor (B, L, D, H, W), optional
        Shares of labels in each voxel.
    """
    warped = field.warp(moving, output.displacement)  # apart from the labels: the error signal goes back through it
    similarity = losses.SIMILARITIES[settings.similarity](warped, fixed)
    smoothness = losses.smoothness(output.displacement)
    routing = similarity.new_zeros(())
    if settings.routing_weight > 0 and torch.isfinite(similarity + smoothness):
        routing = losses.routing_loss(similarity, output.routing, quantile=settings.quantile)
    overlap = similarity.new_full((), float("nan"))
    total = (
        settings.similarity_weight * similarity
        + settings.smoothness_weight * smoothness
        + settings.routing_weight * routing
    )
    if moving_labels is not None and fixed_labels is not None and settings.overlap_weight > 0:
        overlap = losses.overlap(field.warp(moving_labels, output.displacement), fixed_labels)
        total = total + settings.overlap_weight * overlap
    return losses.LossTerms(total, similarity, smoothness, routing, overlap)


def _both_orders(
    network: SHMoAReg, pair: Conformed, settings: FineTuning, rng: np.random.Generator, device: torch.device
) -> losses.LossTerms:
    first, second = pair.moving.to(device), pair.fixed.to(device)
    first_labels = second_labels = None
    if settings.overlap_weight > 0 and pair.moving_labels is not None and pair.fixed_labels is not None:
        both = _shares(pair.moving_labels.to(device), pair.fixed_labels.to(device), settings.labels_per_step, rng)
        first_labels, second_labels = torch.cat(both), torch.cat(both[::-1])
    diffeomorphic = bool(rng.random() < settings.diffeomorphic) or None
    torch.manual_seed(int(rng.integers(2**31)))
    if settings.cascade > 0 and rng.random() < settings.cascade:
        before = _first_pass(network, first, second, rng.uniform(*FIRST_PASS), settings.bfloat16, diffeomorphic)
        first = field.warp(first, before, padding="border")
        if first_labels is not None and second_labels is not None:
            half = field.warp(first_labels[:1], before)
            first_labels, second_labels = torch.cat([half, first_labels[1:]]), torch.cat([second_labels[:1], half])
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
        output = network.both_orders(first, second, diffeomorphic=diffeomorphic)
    terms = total_loss(
        output, torch.cat([first, second]), torch.cat([second, first]), settings, first_labels, second_labels
    )
    if settings.balance_weight > 0 and output.routing.select(part="encoder"):
        terms = terms._replace(total=terms.total + settings.balance_weight * losses.load_balance(output.routing))
    if settings.inverse_weight > 0:
        there, back = output.displacement.chunk(2)
        undone = field.compose(there, back).square().mean()
        terms = terms._replace(total=terms.total + settings.inverse_weight * undone)
    return terms


@torch.no_grad()
def _first_pass(
    network: SHMoAReg, moving: Tensor, fixed: Tensor, share: float, bfloat16: bool, diffeomorphic: bool | None
) -> Tensor:
    """The network's own displacement from a coarser grid, on the full one, as it would be found outside training."""
    training = network.training
    network.eval()
    try:
        with torch.autocast(fixed.device.type, torch.bfloat16, enabled=bfloat16):
            return coarse_pass(network, moving, fixed, share, diffeomorphic=diffeomorphic)
    finally:
        network.train(training)


def _shares(first: Tensor, second: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Label maps (1, 1, ...) as `count` drawn channels; what already is shares, of one label or more, stays."""
    if first.shape[1] > 1 or any(bool((labels != labels.round()).any()) for labels in (first, second)):
        return first, second
    common = np.intersect1d(torch.unique(first).cpu().numpy(), torch.unique(second).cpu().numpy())
    common = common[common != 0]
    chosen = torch.as_tensor(rng.choice(common, min(count, len(common)), replace=False), device=first.device)
    wanted = chosen.view(1, -1, 1, 1, 1)
    return (first == wanted).float(), (second == wanted).float()


def _pair_of(step: int, count: int, seed: int) -> int:
    """Which pair a step sees: every pair once per epoch, in an order of the epoch's own."""
    epoch, place = divmod(step, count)
    endless = count > 100_000  # and random already
    return place if endless else int(np.random.default_rng([seed, 0, epoch]).permutation(count)[place])


def _not_finite(what: str, value: float, step: int, index: int) -> str:
    return (
        f"The {what} became {value} at step {step + 1}, on pair {index}; the weights are those of the step before. "
        "Lower the learning rate, and look at that pair."
    )
