"""fine_tune(): a generator of training steps, and the loss of a pair, Eq. (8).

Sec. III-C, IV-B: Adam at 1e-4, both orders of each pair. Each `yield` is a safe point to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.geometry import field as fields
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg, SHMoARegConfig
from napari_shmoareg.model.decoder import Level
from napari_shmoareg.registration import losses
from napari_shmoareg.registration.cascade import run_at_scale
from napari_shmoareg.registration.conform import Conformed, conform
from napari_shmoareg.registration.losses import LossTerms
from napari_shmoareg.registration.refinement import adam
from napari_shmoareg.registration.resources import check_training_memory, choose_bfloat16
from napari_shmoareg.training.augmentation import augment, with_known_motion
from napari_shmoareg.training.distributed import TrainingGroup
from napari_shmoareg.training.expert_losses import (
    correspondence_loss,
    counterfactual_loss,
    descent_motion,
    end_point_error,
)
from napari_shmoareg.training.expert_training import (
    check_experts,
    experts_at,
    freeze_experts,
    frozen_parameters,
    head_counts,
    move_choice_bias,
    no_choices,
    record_gate_inputs,
    record_head_outputs,
    shared_strides,
)
from napari_shmoareg.training.settings import FineTuning

TERMS = ("total", "similarity", "smoothness", "routing", "overlap")
FURTHER_TERMS = (
    "balance",
    "z",
    "head_diversity",
    "correspondence",
    "teacher",
    "bending",
    "inverse",
)
ALL_TERMS = TERMS + FURTHER_TERMS
Skipped = tuple[int, str]


@dataclass(frozen=True)
class Step:
    """Result of one step of `fine_tune`.

    Attributes
    ----------
    step : int
        Steps done so far, including this one.
    pairs : tuple of int
        Indices of the pairs of the batch.
    total, similarity, smoothness, routing, overlap : float
        Eq. (8) and its unweighted terms, means over the batch; overlap is NaN without labels.
    further : dict of str to float
        The other unweighted terms (`FURTHER_TERMS`), means over the pairs that have them; NaN if
        none has.
    gradient : float
        Norm of the gradient before clipping.
    rate : float
        Learning rate.
    seconds : float
    counts : dict of str to tuple of int
        Selections of each expert, by gate: "encoder-1-moving" (all blocks of the layer),
        "decoder-1-x".
    skipped : tuple of (int, str)
        Pairs that this process could not read, with the reason; other pairs replaced them.
    """

    step: int
    pairs: tuple[int, ...]
    total: float
    similarity: float
    smoothness: float
    routing: float
    overlap: float
    gradient: float
    rate: float
    seconds: float
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    further: dict[str, float] = field(default_factory=dict)


class Batch:
    """Sums over the pairs of one step, to be added over the processes.

    Parameters
    ----------
    size : int
        Pairs in the whole batch, including those of other processes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # per pair: its terms, a flag for each, its index
        self._rows = torch.zeros(size, 2 * len(ALL_TERMS) + 1, dtype=torch.float64)
        self._counts: dict[str, Tensor] = {}
        self._skipped: list[Skipped] = []

    def note(
        self,
        item: int,
        index: int,
        terms: LossTerms,
        routing: RoutingTrace,
        skipped: tuple[Skipped, ...] = (),
    ) -> None:
        """Record one pair: position in the batch, index, loss and routing."""
        found = {name: getattr(terms, name) for name in TERMS} | dict(terms.further)
        if terms.overlap.isnan():  # without labels
            del found["overlap"]
        columns = torch.tensor([ALL_TERMS.index(name) for name in found])
        values = torch.stack([value.detach() for value in found.values()])
        row = torch.zeros(2, len(ALL_TERMS), dtype=torch.float64)
        row[0, columns], row[1, columns] = values.to("cpu", torch.float64), 1.0
        self._rows[item] = torch.cat([row.flatten(), torch.tensor([float(index)])])
        for name, count in counts_of(routing).items():
            self._counts[name] = self._counts[name] + count if name in self._counts else count
        self._skipped.extend(skipped)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Tensors to be summed in place over the processes, on the device."""
        self._rows = self._rows.to(device)
        self._counts = {name: count.to(device) for name, count in self._counts.items()}
        return [self._rows, *self._counts.values()]

    def check(self, step: int) -> None:
        """Reject a loss that is not finite, naming its pair.

        Parameters
        ----------
        step : int
            From 0.

        Raises
        ------
        NotFiniteError
        """
        totals = self._rows[:, 0].tolist()
        for index, total in zip(self.indices, totals, strict=True):
            if not abs(total) < float("inf"):
                raise NotFiniteError("loss", total, step, (index,))

    @property
    def indices(self) -> tuple[int, ...]:
        """Index of each pair."""
        return tuple(int(n) for n in self._rows[:, -1].tolist())

    def step(self, number: int, **more: Any) -> Step:
        """Make the `Step`: means over the batch."""
        sums, counts_per_term = self._rows[:, :-1].sum(0).view(2, -1).tolist()
        means = {
            name: total / pairs if pairs else float("nan")
            for name, total, pairs in zip(ALL_TERMS, sums, counts_per_term, strict=True)
        }
        further = {name: means.pop(name) for name in FURTHER_TERMS}
        counts = {
            name: tuple(int(n) for n in count.tolist()) for name, count in self._counts.items()
        }
        return Step(
            number,
            self.indices,
            **means,
            **more,
            counts=counts,
            skipped=tuple(self._skipped),
            further=further,
        )


class NotFiniteError(InputError):
    """A loss or gradient that is NaN or infinite; the weights are those before the step.

    Attributes
    ----------
    step : int
        Failed step, from 1.
    pairs : tuple of int
        Indices of the pairs that may have caused it.
    """

    def __init__(self, what: str, value: float, step: int, pairs: tuple[int, ...]) -> None:
        self.step, self.pairs = step + 1, pairs
        which = (
            f"pair {pairs[0]}"
            if len(pairs) == 1
            else f"one of the pairs {', '.join(map(str, pairs))}"
        )
        super().__init__(
            f"The {what} became {value} at step {self.step}, on {which}; the weights are those"
            " of the step before. Lower the learning rate, and check that pair."
        )


def counts_of(routing: RoutingTrace) -> dict[str, Tensor]:
    """Selections per expert (N,), int64 on the CPU, of each gate; blocks of an encoder layer are
    summed.
    """
    found: dict[str, Tensor] = {}
    for record in routing:
        name = f"{record.part}-{record.layer}-{record.image or record.direction}"
        count = torch.bincount(
            record.routing.experts.flatten().cpu().long(), minlength=record.num_experts
        )
        found[name] = found[name] + count if name in found else count
    return found


def passes_after(
    config: SHMoARegConfig, settings: FineTuning, *, learned: Sequence[int], used: Sequence[int]
) -> tuple[tuple[float, ...], str]:
    """Choose the passes of the trained weights, and say why.

    Ours: the coarse passes of a cascade serve grids finer than the training grid. If the network is
    trained in one pass at the resolution of registration, earlier passes would see grids that it
    was never trained on.

    Parameters
    ----------
    config : SHMoARegConfig
        Config of the initial weights.
    settings : FineTuning
        Uses passes and cascade.
    learned, used : (D, H, W)
        Network grids of one pair, in training and in registration.

    Returns
    -------
    passes : tuple of float
        As in `SHMoARegConfig`.
    reason : str
    """
    before = config.passes
    scales = ", ".join(f"{scale:g}" for scale in before)
    if len(before) == 1:
        return before, "one pass, as in the network's config"
    if settings.passes == "keep":
        return before, f"passes at {scales}, as set"
    if settings.passes == "one":
        return (1.0,), "one pass, as set"
    if settings.cascade > 0:
        return before, f"passes at {scales}: the cascade is trained with them"
    if tuple(learned) == tuple(used):
        return (1.0,), f"one pass: trained on the grids of registration, such as {tuple(used)}"
    return (
        before,
        f"passes at {scales}: trained on coarser grids {tuple(learned)} than {tuple(used)}",
    )


def with_config(network: SHMoAReg, config: SHMoARegConfig) -> SHMoAReg:
    """The same weights in a network with another config, such as other passes, on the same
    device.
    """
    if network.config == config:
        return network
    other = SHMoAReg(config)
    other.load_state_dict(network.state_dict())
    return other.to(next(network.parameters()).device).train(network.training)


FIRST_PASS = (0.45, 0.7)  # range of the scale of the first pass of a cascade in training


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
        Label fractions in each voxel.
    """
    # Warped separately from the labels: the error signal is its gradient.  Ours: border padding,
    # as in registration; zeros would add a false edge, all around a cropped scan.
    warped = fields.warp(moving, output.displacement, padding="border")
    similarity = losses.SIMILARITIES[settings.similarity](warped, fixed)
    smoothness = losses.smoothness(output.displacement)
    routing = similarity.new_zeros(())
    if settings.routing_weight > 0 and torch.isfinite(similarity + smoothness):
        if settings.routing_target == "counterfactual":
            routing = counterfactual_loss(output, moving, fixed, settings.similarity)
        else:
            routing = losses.routing_loss(similarity, output.routing, quantile=settings.quantile)
    overlap = similarity.new_full((), float("nan"))
    total = (
        settings.similarity_weight * similarity
        + settings.smoothness_weight * smoothness
        + settings.routing_weight * routing
    )
    if moving_labels is not None and fixed_labels is not None and settings.overlap_weight > 0:
        overlap = losses.overlap(fields.warp(moving_labels, output.displacement), fixed_labels)
        total = total + settings.overlap_weight * overlap
    return losses.LossTerms(total, similarity, smoothness, routing, overlap)


def loss_of(
    network: SHMoAReg,
    pair: Conformed,
    settings: FineTuning,
    rng: np.random.Generator,
    device: torch.device,
) -> tuple[losses.LossTerms, RoutingTrace]:
    """Loss of both orders of a pair, on the graph, and the routing.

    Parameters
    ----------
    network : SHMoAReg
        In training mode.
    pair : Conformed
    settings : FineTuning
    rng : numpy.random.Generator
        Draws labels, variant, cascade, stochastic depth and the compared tokens.
    device : torch.device
    """
    first, second = pair.moving.to(device), pair.fixed.to(device)
    motion = (
        pair.motion.to(device) if pair.motion is not None and settings.uses_known_motion else None
    )
    first_labels = second_labels = None
    if (
        settings.overlap_weight > 0
        and pair.moving_labels is not None
        and pair.fixed_labels is not None
    ):
        both = _shares(
            pair.moving_labels.to(device),
            pair.fixed_labels.to(device),
            settings.labels_per_step,
            rng,
        )
        if both[0].shape[1]:  # without a common label there is no overlap
            first_labels, second_labels = torch.cat(both), torch.cat(both[::-1])
    diffeomorphic = bool(rng.random() < settings.diffeomorphic) or None
    torch.manual_seed(int(rng.integers(2**31)))
    bfloat16, _ = choose_bfloat16(settings.bfloat16, device)
    if settings.cascade > 0 and rng.random() < settings.cascade:
        first_pass = _first_pass(
            network, first, second, rng.uniform(*FIRST_PASS), bfloat16, diffeomorphic
        )
        first = fields.warp(first, first_pass, padding="border")
        if first_labels is not None and second_labels is not None:
            half = fields.warp(first_labels[:1], first_pass)
            first_labels, second_labels = (
                torch.cat([half, first_labels[1:]]),
                torch.cat([second_labels[:1], half]),
            )
        motion = None if motion is None else motion.after_first_pass(first_pass)
    teacher = motion if settings.teacher == "drawn" else None
    if settings.teacher == "descent" and settings.teacher_weight > 0:
        teacher = descent_motion(replace(pair, moving=first, fixed=second))
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        with (
            record_gate_inputs(network, settings.z_weight > 0) as gate_inputs,
            record_head_outputs(network, settings.head_diversity_weight > 0) as head_outputs,
        ):
            encoded = network.encode(first, second, checkpointing=settings.checkpointing)
        output = network.decode_both(
            encoded, diffeomorphic=diffeomorphic, checkpointing=settings.checkpointing
        )
    terms = total_loss(
        output,
        torch.cat([first, second]),
        torch.cat([second, first]),
        settings,
        first_labels,
        second_labels,
    )
    if (
        settings.balance_weight > 0
        and settings.balance in losses.BALANCES
        and output.routing.select(part="encoder")
    ):
        uneven = losses.BALANCES[settings.balance](output.routing)
        terms = terms.plus("balance", uneven, settings.balance_weight)
    if gate_inputs:
        logits = [gate.logits(tokens) for gate, tokens in gate_inputs]
        terms = terms.plus("z", losses.z_loss(logits), settings.z_weight)
    if head_outputs:
        similar_heads = losses.head_similarity(head_outputs)
        terms = terms.plus("head_diversity", similar_heads, settings.head_diversity_weight)
    if motion is not None and settings.correspondence_weight > 0:
        contrast = correspondence_loss(
            encoded.pyramid, motion, shared_strides(network, settings), rng
        )
        terms = terms.plus("correspondence", contrast, settings.correspondence_weight)
    if teacher is not None and settings.teacher_weight > 0:
        motion_error = end_point_error(output.displacement, teacher)
        terms = terms.plus("teacher", motion_error, settings.teacher_weight)
    if settings.bending_weight > 0:
        bending = losses.bending(output.displacement)
        terms = terms.plus("bending", bending, settings.bending_weight)
    if settings.inverse_weight > 0:
        forward, backward = output.displacement.chunk(2)
        inverse_error = fields.compose(forward, backward).square().mean()
        terms = terms.plus("inverse", inverse_error, settings.inverse_weight)
    return terms, output.routing


@torch.no_grad()
def _first_pass(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    share: float,
    bfloat16: bool,
    diffeomorphic: bool | None,
) -> Tensor:
    """Displacement of the network on a coarser grid, in evaluation mode, upsampled to the full
    grid.
    """
    training = network.training
    network.eval()
    try:
        with torch.autocast(fixed.device.type, torch.bfloat16, enabled=bfloat16):
            return run_at_scale(network, moving, fixed, share, diffeomorphic=diffeomorphic)
    finally:
        network.train(training)


def _shares(
    first: Tensor, second: Tensor, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Turn label maps (1, 1, ...) into `count` random channels; label fractions are returned as
    they are.
    """
    if losses.are_fractions(first, second):
        return first, second
    common = np.intersect1d(torch.unique(first).cpu().numpy(), torch.unique(second).cpu().numpy())
    common = common[common != 0]
    chosen = torch.as_tensor(
        rng.choice(common, min(count, len(common)), replace=False), device=first.device
    )
    values = chosen.view(1, -1, 1, 1, 1)
    return (first == values).float(), (second == values).float()


__all__ = ["Step", "conformed_pair", "fine_tune", "make_optimiser", "trainable_parameters"]

TRIES = 20  # pairs to try in place of one that cannot be read


def make_optimiser(network: SHMoAReg, settings: FineTuning) -> torch.optim.Adam:
    """Make Adam as in Sec. IV-B (no weight decay, no amsgrad); a group's ``factor`` scales its
    rate.
    """
    levels = [level for level in network.decoder.levels if isinstance(level, Level)]
    heads = {
        id(parameter): level.stride for level in levels for parameter in level.head.parameters()
    }
    groups: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for parameter in trainable_parameters(network, settings):
        factor = 1 / heads.get(id(parameter), 1) if settings.balance_heads else 1.0
        groups.setdefault(factor, []).append(parameter)
    parts = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    return adam(parts, lr=settings.learning_rate)


def trainable_parameters(network: SHMoAReg, settings: FineTuning) -> list[torch.nn.Parameter]:
    """The parameters that are trained: all or the decoder's, except those that the settings
    freeze.
    """
    part = network.decoder if settings.freeze_encoder else network
    frozen = {id(parameter) for parameter in frozen_parameters(network, settings)}
    return [parameter for parameter in part.parameters() if id(parameter) not in frozen]


def fine_tune(
    network: SHMoAReg,
    pairs: Sequence[VolumePair | Conformed],
    settings: FineTuning | None = None,
    *,
    optimiser: torch.optim.Adam | None = None,
    start: int = 0,
    group: TrainingGroup | None = None,
) -> Iterator[Step]:
    """Train a network on pairs, one step per `next`.

    Both orders of a pair form one batch of two. Ours: the paper uses separate steps of batch size
    1; together they share the encoder's work.

    Parameters
    ----------
    network : SHMoAReg
        Trained in place; left in training mode.
    pairs : sequence of VolumePair or Conformed
        Read lazily, in a new random order every epoch. Scans are assumed to be aligned by their
        headers.
    settings : FineTuning, optional
    optimiser : Adam, optional
        From an earlier run, to resume it; see `make_optimiser`.
    start : int
        Steps already done by an earlier run with the same settings; the order of pairs continues.
    group : TrainingGroup, optional
        Processes that train together, each with the same network and pairs. They share the batch of
        a step; up to rounding, the step does not depend on their number.

    Yields
    ------
    Step
        The same in every process, except for its seconds.

    Raises
    ------
    InputError
        If there is no pair, none can be read, or the loss or its gradient is not finite (the
        weights are then those before the step).
    TooLargeError
        If a step would not fit into memory.
    """
    settings, group = settings or FineTuning(), group or TrainingGroup()
    if len(pairs) == 0:
        raise InputError("There is no training pair; give at least one.")
    if settings.batch < group.size:
        raise InputError(
            f"A batch of {settings.batch} cannot be shared by {group.size} processes; give a larger"
            " batch."
        )
    optimiser = optimiser or make_optimiser(network, settings)
    device = next(network.parameters()).device
    check_experts(network, settings)
    parameters = trainable_parameters(network, settings)
    network.encoder.requires_grad_(not settings.freeze_encoder)
    freeze_experts(network, settings)
    largest = 0
    for step in range(start, settings.steps):
        start_time = time.perf_counter()
        network.train()
        network.encoder.train(not settings.freeze_encoder)
        optimiser.zero_grad(set_to_none=False)
        batch, chosen = Batch(settings.batch), no_choices(network)
        for item in group.share(settings.batch):
            index, pair, skipped = _next_readable_pair(
                pairs, step * settings.batch + item, network, settings
            )
            if pair.fixed.numel() > largest:
                largest = pair.fixed.numel()
                check_training_memory(network.config, pair.grid.shape, device, settings)
            rng = np.random.default_rng(
                [settings.seed, 1, step, item] if item else [settings.seed, 1, step]
            )
            changed = augment(pair, settings, np.random.default_rng([settings.seed, 2, step, item]))
            motion_rng = np.random.default_rng([settings.seed, 3, step, item])
            if settings.known_motion > 0 and motion_rng.random() < settings.known_motion:
                changed = with_known_motion(changed, motion_rng)
            with experts_at(network, settings, step):
                terms, routing = loss_of(network, changed, settings, rng, device)
                if torch.isfinite(terms.total):
                    (terms.total / settings.batch).backward()
            batch.note(item, index, terms, routing, skipped)
            chosen += head_counts(routing).to(device)
        gradients = [_gradient(parameter) for parameter in parameters]
        group.add([*gradients, *batch.tensors(device), chosen])
        batch.check(step)
        rate = settings.rate(step)
        for param_group in optimiser.param_groups:
            param_group["lr"] = rate * param_group.get("factor", 1.0)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.largest_gradient or math.inf)
        if not torch.isfinite(norm):
            raise NotFiniteError("gradient", float(norm), step, batch.indices)
        optimiser.step()
        if settings.balance == "bias":
            move_choice_bias(network, chosen, settings.balance_rate)
        yield batch.step(
            step + 1, gradient=float(norm), rate=rate, seconds=time.perf_counter() - start_time
        )


def conformed_pair(pair: VolumePair | Conformed, size: int, labels: bool) -> Conformed:
    """Conform a pair to the network grid, unless it is conformed already."""
    return pair if isinstance(pair, Conformed) else conform(pair, size=size, labels=labels)


def _next_readable_pair(
    pairs: Sequence[VolumePair | Conformed], position: int, network: SHMoAReg, settings: FineTuning
) -> tuple[int, Conformed, tuple[Skipped, ...]]:
    """The due pair, or the next readable one; its index and the skipped ones."""
    size, labels = settings.size or network.config.learning_size, settings.overlap_weight > 0
    due = _pair_index(position, len(pairs), settings.seed)
    skipped: list[Skipped] = []
    for further in range(min(TRIES, len(pairs))):
        index = (due + further) % len(pairs)
        try:
            return index, conformed_pair(pairs[index], size, labels), tuple(skipped)
        except (InputError, OSError) as error:
            skipped.append((index, str(error)))
            last = error
    raise InputError(f"{len(skipped)} pairs in a row could not be read. The last: {last}") from last


def _pair_index(position: int, count: int, seed: int) -> int:
    """Index of the pair at a position of the endless sequence: a new permutation every epoch."""
    epoch, within = divmod(position, count)
    endless = count > 100_000  # generated pairs, which are random already
    return (
        within
        if endless
        else int(np.random.default_rng([seed, 0, epoch]).permutation(count)[within])
    )


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """The gradient, or zeros, so that all processes sum the same tensors."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
