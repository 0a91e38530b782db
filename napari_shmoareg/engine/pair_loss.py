"""What a pair costs: Eq. (8) of both its orders, and what learning may add to it.

Sec. III-C, Sec. IV-B.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.engine import losses
from napari_shmoareg.engine.cascade import coarse_pass
from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.engine.correspondence import correspondence_loss
from napari_shmoareg.engine.counterfactual import counterfactual_loss
from napari_shmoareg.engine.device import choose_bfloat16
from napari_shmoareg.engine.expert_training import attended_by_heads, seen_by_gates, shared_strides
from napari_shmoareg.engine.teacher import descent_motion, end_point_error
from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.geometry import field
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg

FIRST_PASS = (0.45, 0.7)  # resolution of the first pass of a cascade in training, as a share


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
    # Apart from the labels: the error signal goes back through it.  Ours: the edge goes on beyond the field of view, as
    # in registering; zeros would draw an edge that is none, which in a cropped scan is everywhere.
    warped = field.warp(moving, output.displacement, padding="border")
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
        overlap = losses.overlap(field.warp(moving_labels, output.displacement), fixed_labels)
        total = total + settings.overlap_weight * overlap
    return losses.LossTerms(total, similarity, smoothness, routing, overlap)


def loss_of(
    network: SHMoAReg, pair: Conformed, settings: FineTuning, rng: np.random.Generator, device: torch.device
) -> tuple[losses.LossTerms, RoutingTrace]:
    """The loss of both orders of a pair, on the graph, and what the gates chose.

    Parameters
    ----------
    network : SHMoAReg
        In training mode.
    pair : Conformed
    settings : FineTuning
    rng : numpy.random.Generator
        Decides labels, variant, cascade, stochastic depth and which tokens are compared.
    device : torch.device
    """
    first, second = pair.moving.to(device), pair.fixed.to(device)
    motion = pair.motion.to(device) if pair.motion is not None and settings.wants_motion else None
    first_labels = second_labels = None
    if settings.overlap_weight > 0 and pair.moving_labels is not None and pair.fixed_labels is not None:
        both = _shares(pair.moving_labels.to(device), pair.fixed_labels.to(device), settings.labels_per_step, rng)
        if both[0].shape[1]:  # with no label in common there is nothing to overlap
            first_labels, second_labels = torch.cat(both), torch.cat(both[::-1])
    diffeomorphic = bool(rng.random() < settings.diffeomorphic) or None
    torch.manual_seed(int(rng.integers(2**31)))
    bfloat16, _ = choose_bfloat16(settings.bfloat16, device)
    if settings.cascade > 0 and rng.random() < settings.cascade:
        before = _first_pass(network, first, second, rng.uniform(*FIRST_PASS), bfloat16, diffeomorphic)
        first = field.warp(first, before, padding="border")
        if first_labels is not None and second_labels is not None:
            half = field.warp(first_labels[:1], before)
            first_labels, second_labels = torch.cat([half, first_labels[1:]]), torch.cat([second_labels[:1], half])
        motion = None if motion is None else motion.after_first_pass(before)
    teacher = motion if settings.teacher == "drawn" else None
    if settings.teacher == "descent" and settings.teacher_weight > 0:
        teacher = descent_motion(replace(pair, moving=first, fixed=second))
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        with (
            seen_by_gates(network, settings.z_weight > 0) as seen,
            attended_by_heads(network, settings.head_diversity_weight > 0) as attended,
        ):
            encoded = network.encode(first, second, checkpointing=settings.checkpointing)
        output = network.decode_both(encoded, diffeomorphic=diffeomorphic, checkpointing=settings.checkpointing)
    terms = total_loss(
        output, torch.cat([first, second]), torch.cat([second, first]), settings, first_labels, second_labels
    )
    if settings.balance_weight > 0 and settings.balance in losses.BALANCES and output.routing.select(part="encoder"):
        uneven = losses.BALANCES[settings.balance](output.routing)
        terms = terms._replace(total=terms.total + settings.balance_weight * uneven)
    if seen:
        logits = [gate.logits(tokens) for gate, tokens in seen]
        terms = terms._replace(total=terms.total + settings.z_weight * losses.z_loss(logits))
    if attended:
        alike = losses.head_similarity(attended)
        terms = terms._replace(total=terms.total + settings.head_diversity_weight * alike)
    if motion is not None and settings.correspondence_weight > 0:
        apart = correspondence_loss(encoded.pyramid, motion, shared_strides(network, settings), rng)
        terms = terms._replace(total=terms.total + settings.correspondence_weight * apart)
    if teacher is not None and settings.teacher_weight > 0:
        missed = end_point_error(output.displacement, teacher)
        terms = terms._replace(total=terms.total + settings.teacher_weight * missed)
    if settings.bending_weight > 0:
        terms = terms._replace(total=terms.total + settings.bending_weight * losses.bending(output.displacement))
    if settings.inverse_weight > 0:
        there, back = output.displacement.chunk(2)
        undone = field.compose(there, back).square().mean()
        terms = terms._replace(total=terms.total + settings.inverse_weight * undone)
    return terms, output.routing


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
