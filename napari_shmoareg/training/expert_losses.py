"""Expert losses beyond the paper: correspondence, counterfactual labels, teachers.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) on the encoder's tokens; counterfactual labels
for Eq. (7); displacements of a teacher. B batch, N experts, C channels, D H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import field
from napari_shmoareg.model import NetworkOutput, RoutedLayer
from napari_shmoareg.model.shmoe import DIRECTIONS
from napari_shmoareg.registration import losses
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.deformation import refine_conformed
from napari_shmoareg.registration.intensity import background_of
from napari_shmoareg.registration.known_motion import KnownMotion
from napari_shmoareg.registration.refinement import DEFAULT_STEPS
from napari_shmoareg.settings import RegistrationSettings

# Ours: smoother than the default of a registration, because the network should not learn the
# roughness of the optimisation.
DESCENT = RegistrationSettings(refine=DEFAULT_STEPS, smoothness="balanced", diffeomorphic=False)


def descent_motion(pair: Conformed) -> KnownMotion:
    """Register a pair by refinement without a network, in both orders; the motion is known
    everywhere.

    Deterministic: the same pair gives the same motion.
    """
    swapped = replace(pair, moving=pair.fixed, fixed=pair.moving)
    scans = pair.pair
    empty = (
        (0.0, 0.0) if scans is None else (background_of(scans.moving), background_of(scans.fixed))
    )
    found = [
        refine_conformed(
            order,
            (order.moving, order.fixed),
            backgrounds,
            None,
            DESCENT,
            pair.fixed.device,
            _no_progress,
        )[0]
        for order, backgrounds in ((pair, empty), (swapped, empty[::-1]))
    ]
    displacement = torch.cat(found).to(pair.fixed.device)
    return KnownMotion(displacement, torch.ones_like(displacement[:, :1]))


def end_point_error(displacement: Tensor, motion: KnownMotion) -> Tensor:
    """Mean distance to a known motion, in voxels, over the voxels where it is known; 0 if there are
    none.

    Parameters
    ----------
    displacement : Tensor (2, 3, D, H, W), voxels
        For both orders.
    motion : KnownMotion
    """
    square = (displacement - motion.displacement).square().sum(1, keepdim=True)
    length = (square + 1e-12).sqrt()  # keeps the gradient finite at 0
    return (length * motion.known).sum() / motion.known.sum().clamp_min(1)


def _no_progress(_done: float) -> None:
    """Ignore progress: a step reports its own."""


TIE_TOLERANCE = 1e-6  # difference of local errors below which two experts count as equal


def counterfactual_loss(
    output: NetworkOutput, moving: Tensor, fixed: Tensor, similarity: str
) -> Tensor:
    """Eq. (7) with counterfactual labels, summed over SHMoE layers and directions.

    Parameters
    ----------
    output : NetworkOutput
        From a forward pass with `Level.compare_experts` set.
    moving, fixed : Tensor (B, 1, D, H, W)
    similarity : {"mse", "lncc"}
        Its local value is the error.
    """
    total = output.displacement.new_zeros(())
    for layer in output.routing.select(part="decoder"):
        if layer.stride > min(fixed.shape[2:]):  # no cell lies completely within the images
            continue
        errors = local_errors(layer, output.displacement.detach(), moving, fixed, similarity)
        i, j, k = errors.shape[2:]
        chosen = layer.routing.experts[:, :, :i, :j, :k]
        labels = counterfactual_labels(errors, chosen)
        total = total + losses.routing_classification(
            layer.routing.probabilities[:, :, :i, :j, :k], labels
        )
    return total


def counterfactual_labels(errors: Tensor, experts: Tensor) -> Tensor:
    """Labels: 1 for the expert of least error, 0 for the others; ties go to the chosen expert.

    Parameters
    ----------
    errors : Tensor (B, N, D, H, W)
    experts : Tensor (B, 1, D, H, W), int64
        Chosen.

    Returns
    -------
    Tensor (B, N, D, H, W)
    """
    least, best = errors.min(1, keepdim=True)
    right = torch.where(errors.gather(1, experts) <= least + TIE_TOLERANCE, experts, best)
    return torch.zeros_like(errors).scatter_(1, right, 1.0)


@torch.no_grad()
def local_errors(
    layer: RoutedLayer, displacement: Tensor, moving: Tensor, fixed: Tensor, similarity: str
) -> Tensor:
    """Local image error that each expert of a layer and direction would leave.

    The final displacement on the grid of the level, with the residual of the chosen expert replaced
    by that of each expert in this direction; everything else is unchanged. A first-order estimate,
    since residuals are added, not composed.

    Returns
    -------
    Tensor (B, N, D/s, H/s, W/s)
        For the cells that lie completely within the images.
    """
    stride = layer.stride
    if layer.alternatives is None or layer.residual is None or layer.direction is None:
        raise ValueError(
            f"the experts of {layer.name} were not compared: set `Level.compare_experts` before the"
            " forward"
        )
    axis = DIRECTIONS.index(layer.direction)
    moving, fixed, displacement = (_coarse(t, stride) for t in (moving, fixed, displacement))
    displacement = displacement / stride
    i, j, k = displacement.shape[2:]
    change = (layer.alternatives - layer.residual.detach())[:, :, :i, :j, :k]
    errors = []
    for expert in range(change.shape[1]):
        alternative = displacement.clone()
        alternative[:, axis] += change[:, expert]
        warped = field.warp(moving, alternative, padding="border")
        errors.append(losses.LOCAL_ERRORS[similarity](warped, fixed))
    return torch.cat(errors, dim=1)


def _coarse(values: Tensor, stride: int) -> Tensor:
    return values if stride == 1 else F.avg_pool3d(values, stride)


TOKENS = 256  # maximum per image and stride
TEMPERATURE = 0.1  # divides the cosines


def correspondence_loss(
    pyramid: Sequence[Tensor], motion: KnownMotion, strides: Sequence[int], rng: np.random.Generator
) -> Tensor:
    """InfoNCE loss of matching tokens: 0 for certain matches, log of their number at chance.

    Random fixed tokens of known motion are compared (cosine) with the moving features at the true
    positions of all of them (trilinear interpolation); a token's own position is the correct match.
    Mean over both directions, both orders and all strides.

    Parameters
    ----------
    pyramid : sequence of Tensor (2, C, D/s, H/s, W/s)
        `Encoded.pyramid` of one pair: features of the first image, then of the second, at strides s
        = 1, 2, 4 ...
    motion : KnownMotion
    strides : sequence of int
    rng : numpy.random.Generator
        Draws the tokens.

    Returns
    -------
    Tensor, scalar
        0 if no stride has at least two complete tokens with a known motion.
    """
    terms = []
    for stride in (s for s in strides if s <= min(motion.known.shape[2:])):
        features = pyramid[stride.bit_length() - 1].float()
        for moving, fixed in ((0, 1), (1, 0)):
            order = slice(moving, moving + 1)
            positions, usable = _tokens(motion.displacement[order], motion.known[order], stride)
            indices = torch.nonzero(usable.flatten()).flatten()
            if len(indices) < 2:
                continue
            drawn = rng.choice(len(indices), min(TOKENS, len(indices)), replace=False)
            indices = indices[torch.as_tensor(drawn, device=indices.device)]
            d, h, w = positions.shape[2:]
            fixed_features = features[fixed, :, :d, :h, :w].flatten(1)[:, indices]
            points = positions.flatten(2)[:, :, indices, None, None]
            moving_features = field.sample(features[order], points, padding="border").flatten(1)
            terms.append(_info_nce(fixed_features, moving_features.view_as(fixed_features)))
    return torch.stack(terms).mean() if terms else motion.displacement.new_zeros(())


def _tokens(displacement: Tensor, known: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Position of each cell's centre in the other image, in cells, and whether it is known."""
    share = F.avg_pool3d(known, stride)
    mean = F.avg_pool3d(displacement * known, stride) / share.clamp_min(1e-6)
    return field.identity(share.shape[2:], share.device) + mean / stride, share > 0.5


def _info_nce(fixed: Tensor, moving: Tensor) -> Tensor:
    """InfoNCE of two (C, M) tensors whose columns correspond."""
    scores = F.normalize(fixed, dim=0).T @ F.normalize(moving, dim=0) / TEMPERATURE
    right = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
