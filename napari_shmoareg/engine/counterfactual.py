"""Labels of Eq. (7) from what each expert would have done.

Ours, in place of the error signal of Sec. III-C.  B batch, N experts, D H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.engine import losses
from napari_shmoareg.geometry import field
from napari_shmoareg.model import NetworkOutput, RoutedLayer
from napari_shmoareg.model.shmoe import DIRECTIONS

ALIKE = 1e-6  # difference of local errors below which two experts do equally well


def counterfactual_loss(output: NetworkOutput, moving: Tensor, fixed: Tensor, similarity: str) -> Tensor:
    """Eq. (7) with counterfactual labels, for every SHMoE layer and direction, summed.  A scalar.

    Parameters
    ----------
    output : NetworkOutput
        Of levels that compared their experts.
    moving, fixed : Tensor (B, 1, D, H, W)
    similarity : {"mse", "lncc"}
        Whose local value is the error.
    """
    total = output.displacement.new_zeros(())
    for layer in output.routing.select(part="decoder"):
        if layer.stride > min(fixed.shape[2:]):  # no cell lies wholly within the images
            continue
        errors = local_errors(layer, output.displacement.detach(), moving, fixed, similarity)
        i, j, k = errors.shape[2:]
        chosen = layer.routing.experts[:, :, :i, :j, :k]
        labels = counterfactual_labels(errors, chosen)
        total = total + losses.routing_classification(layer.routing.probabilities[:, :, :i, :j, :k], labels)
    return total


def counterfactual_labels(errors: Tensor, experts: Tensor) -> Tensor:
    """1 for the expert of the least error, 0 for the others; the chosen one keeps the label where none is better.

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
    right = torch.where(errors.gather(1, experts) <= least + ALIKE, experts, best)
    return torch.zeros_like(errors).scatter_(1, right, 1.0)


@torch.no_grad()
def local_errors(layer: RoutedLayer, displacement: Tensor, moving: Tensor, fixed: Tensor, similarity: str) -> Tensor:
    """What each expert of a layer and direction would leave of the difference of the images.

    The final displacement, on the grid of the level, with the expert's residual in the place of the chosen one in
    this direction, everywhere; all else as it is.  To first order: residuals are exchanged by addition.

    Returns
    -------
    Tensor (B, N, D/s, H/s, W/s)
        Cells that lie wholly within the images.
    """
    stride = layer.stride
    if layer.alternatives is None or layer.residual is None or layer.direction is None:
        raise ValueError(
            f"the experts of {layer.name} were not compared: set `Level.compare_experts` before the forward"
        )
    axis = DIRECTIONS.index(layer.direction)
    moving, fixed, displacement = (_coarse(t, stride) for t in (moving, fixed, displacement))
    displacement = displacement / stride
    i, j, k = displacement.shape[2:]
    change = (layer.alternatives - layer.residual.detach())[:, :, :i, :j, :k]
    errors = []
    for expert in range(change.shape[1]):
        instead = displacement.clone()
        instead[:, axis] += change[:, expert]
        warped = field.warp(moving, instead, padding="border")
        errors.append(losses.LOCAL_ERRORS[similarity](warped, fixed))
    return torch.cat(errors, dim=1)


def _coarse(values: Tensor, stride: int) -> Tensor:
    return values if stride == 1 else F.avg_pool3d(values, stride)
