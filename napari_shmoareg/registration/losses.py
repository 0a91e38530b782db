"""Terms of the training loss: similarity, smoothness, routing classification (Eq. 7), overlap.

Sec. III-C; `training.step.total_loss` adds them up to Eq. (8).  All in float32, outside autocast.
B batch, N experts, k chosen, L labels, D H W space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.model import RoutedLayer, RoutingTrace
from napari_shmoareg.registration.similarity import box_mean

SAMPLED = 100_000  # voxels from which a quantile is estimated, at most


class LossTerms(NamedTuple):
    """The unweighted terms of Eq. (8); `total` is the weighted sum.  Scalars.

    `further` contains the terms beyond Eq. (8) and the overlap, by the name of their weight.
    """

    total: Tensor
    similarity: Tensor
    smoothness: Tensor
    routing: Tensor
    overlap: Tensor
    further: Mapping[str, Tensor] = MappingProxyType({})

    def plus(self, name: str, value: Tensor, weight: float) -> LossTerms:
        """Return the terms with a further one."""
        return self._replace(
            total=self.total + weight * value, further={**self.further, name: value}
        )


def mse(warped: Tensor, fixed: Tensor) -> Tensor:
    """Compute the mean squared difference, L_sim of Sec. IV-B.  Both (B, 1, D, H, W)."""
    return (warped - fixed).square().mean()


def lncc(warped: Tensor, fixed: Tensor, window: int = 9) -> Tensor:
    """Compute one minus the squared local correlation coefficient, invariant to slow contrast.

    Parameters
    ----------
    warped, fixed : Tensor (B, 1, D, H, W)
    window : int
        Edge of the cubic neighbourhood in voxels, odd.

    Returns
    -------
    Tensor, scalar in [0, 1]
        Neighbourhoods without contrast in either image count as uncorrelated.
    """
    return 1 - squared_correlation(warped, fixed, window).sum() / (len(warped) * warped[0].numel())


def squared_correlation(warped: Tensor, fixed: Tensor, window: int = 9) -> Tensor:
    """Compute the squared local correlation of `lncc` at each voxel, (B, 1, D, H, W), in [0, 1]."""
    both = torch.cat([warped, fixed, warped * warped, fixed * fixed, warped * fixed], dim=1)
    a, b, aa, bb, ab = box_mean(both, window).split(1, dim=1)
    cross, spread = ab - a * b, (aa - a * a).clamp_min(0) * (bb - b * b).clamp_min(0)
    return cross * cross / (spread + 1e-5)


SIMILARITIES = {"mse": mse, "lncc": lncc}


def local_mse(warped: Tensor, fixed: Tensor) -> Tensor:
    """Compute the squared difference, mean over 3x3x3 voxels.  All (B, 1, D, H, W)."""
    return box_mean((warped - fixed).square(), 3)


def local_lncc(warped: Tensor, fixed: Tensor) -> Tensor:
    """Compute one minus the squared correlation in the window of `lncc`.  All (B, 1, D, H, W)."""
    return 1 - squared_correlation(warped, fixed, 9)


LOCAL_ERRORS = {"mse": local_mse, "lncc": local_lncc}


def smoothness(displacement: Tensor) -> Tensor:
    """Compute the diffusion regulariser L_reg: mean squared forward difference over the axes.

    Parameters
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels

    Notes
    -----
    Forward differences as in VoxelMorph and TransMorph, to which the paper's lambdas refer;
    central differences do not see a checkerboard."""
    return sum(displacement.diff(dim=axis).square().mean() for axis in (2, 3, 4)) / 3  # type: ignore[return-value]


def bending(displacement: Tensor) -> Tensor:
    """Compute the bending energy: mean squared second difference over the nine pairs of axes.

    Ours; the paper uses only the diffusion regulariser, which penalises stretching as much as
    roughness.  Bending energy does not penalise affine motion (Rueckert et al. 1999).

    Parameters
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels
        At least 3 voxels along each axis.
    """
    total = displacement.new_zeros(())
    for a in (2, 3, 4):
        once = displacement.diff(dim=a)
        total = total + once.diff(dim=a).square().mean()
        for b in range(a + 1, 5):
            total = total + 2 * once.diff(dim=b).square().mean()
    return total / 9


def overlap(warped_labels: Tensor, fixed_labels: Tensor) -> Tensor:
    """Compute one minus the soft Dice coefficient, averaged over labels in either image.

    Both (B, L, D, H, W), the fraction of each voxel that belongs to each label.
    """
    axes = (2, 3, 4)
    sizes = warped_labels.square().sum(axes) + fixed_labels.square().sum(axes)
    dice = 2 * (warped_labels * fixed_labels).sum(axes) / sizes.clamp_min(1e-6)
    present = (sizes > 1e-6).to(dice.dtype)
    return 1 - (dice * present).sum() / present.sum().clamp_min(1)


def are_fractions(*labels: Tensor) -> bool:
    """Whether labels (1, L, ...) are fractions of voxels rather than label maps (1, 1, ...)."""
    return labels[0].shape[1] > 1 or any(bool((each != each.round()).any()) for each in labels)


def error_signals(similarity: Tensor, layers: Sequence[RoutedLayer]) -> list[Tensor]:
    """Compute the scaled gradient of the similarity at each residual, (B, 1, D, H, W).

    Sec. III-C: epsilon.  Scaled by n / 2, the inverse of the factor of a mean of squares over n
    samples, so that the tolerance of `routing_labels` does not depend on the size.
    """
    residuals = [layer.residual for layer in layers if layer.residual is not None]
    gradients = torch.autograd.grad(similarity, residuals, retain_graph=True)
    return [g.detach() * (g.numel() / 2) for g in gradients]


def routing_labels(
    error: Tensor, experts: Tensor, num_experts: int, *, quantile: float = 0.5
) -> Tensor:
    """Compute the target labels Y of the gate.  Sec. III-C.

    A chosen expert is right where the error signal is small (label 1) and wrong where it exceeds
    the quantile (label 0; each unchosen expert then gets 1 / (N - k)).  Unchosen experts get 0
    otherwise.

    Ours: the quantile is computed per sample over voxels with a nonzero error signal.  In a
    background of 0 the signal is exactly 0 too, and a quantile over all voxels could be 0 for any
    q.

    Parameters
    ----------
    error : Tensor (B, 1, D, H, W)
    experts : Tensor (B, k, D, H, W), int64
    num_experts : int
        N.
    quantile : float in [0, 1]
        q of Sec. IV-B.

    Returns
    -------
    Tensor (B, N, D, H, W), in [0, 1]
    """
    magnitude = error.abs()
    threshold = torch.stack([_quantile(sample, quantile) for sample in magnitude]).view(
        -1, 1, 1, 1, 1
    )
    wrong = (magnitude > threshold + 1e-5).to(magnitude.dtype)
    k = experts.shape[1]
    share = wrong / (num_experts - k) if num_experts > k else wrong * 0
    labels = share.expand(-1, num_experts, -1, -1, -1).clone()
    return labels.scatter_(1, experts, (1 - wrong).expand_as(experts).contiguous())


def routing_classification(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Compute the binary cross-entropy of the routing tensor T(f) and the labels Y.  Eq. (7).

    Both (B, N, D, H, W); mean over experts, voxels and batch.
    """
    return F.binary_cross_entropy(probabilities.float(), labels.float())


def routing_loss(similarity: Tensor, trace: RoutingTrace, *, quantile: float = 0.5) -> Tensor:
    """Sum Eq. (7) over all SHMoE layers and directions (as SMoE does over layers).  A scalar."""
    layers = [layer for layer in trace if layer.residual is not None]
    if not layers:
        return similarity.new_zeros(())
    total = similarity.new_zeros(())
    for layer, error in zip(layers, error_signals(similarity, layers), strict=True):
        i, j, k = layer.routing.experts.shape[2:]
        labels = routing_labels(
            error[:, :, :i, :j, :k], layer.routing.experts, layer.num_experts, quantile=quantile
        )
        total = total + routing_classification(layer.routing.probabilities, labels)
    return total


def load_balance(trace: RoutingTrace) -> Tensor:
    """Compute the switch loss of the encoder's gates: 1 if balanced, N / k if collapsed.  A scalar.

    N sum_i f_i P_i as in MoA and JetMoE, with f the fraction of selections and P the mean
    probability, averaged over the layers.  Ours: the paper has none and reports balanced loads; in
    short runs, experts without a gradient from Eq. (4) are otherwise never chosen again."""
    layers = trace.select(part="encoder")
    terms = []
    for layer in layers:
        mean = layer.routing.probabilities.mean(dim=(0, 2, 3, 4))
        count = torch.bincount(layer.routing.experts.flatten(), minlength=layer.num_experts)
        terms.append(layer.num_experts * (count / count.sum() * mean).sum())
    return torch.stack(terms).mean()


def mutual_information(trace: RoutingTrace) -> Tensor:
    """Compute the negative mutual information of heads and tokens; 0 if balanced and confident.

    Per layer (log N - H(P) + max(H(p) - log k, 0)) / log N, with P the mean of the probabilities p
    of its tokens and H the entropy; averaged over tokens and layers, as in Mod-Squad (arXiv
    2212.08066).  0 if each token is sure of k heads and all heads have equal load.  Ours: the
    entropy of a token has the lower limit of k equal heads, as k are chosen; without it one head
    would get all the weight."""
    terms = []
    for layer in trace.select(part="encoder"):
        p, k = layer.routing.probabilities, layer.routing.experts.shape[1]
        even, sure = math.log(layer.num_experts), math.log(k)
        unevenness = even - _entropy(p.mean(dim=(0, 2, 3, 4)), 0)
        terms.append((unevenness + (_entropy(p, 1) - sure).clamp_min(0).mean()) / even)
    return torch.stack(terms).mean()


BALANCES = {"switch": load_balance, "mutual": mutual_information}


def z_loss(logits: Sequence[Tensor]) -> Tensor:
    """Compute the mean squared log-sum-exp of the logits (..., N) of all gates (ST-MoE).  A scalar.

    arXiv 2202.08906.
    """
    return torch.stack([torch.logsumexp(z, dim=-1).square().mean() for z in logits]).mean()


def head_similarity(attended: Sequence[Tensor]) -> Tensor:
    """Compute the mean squared cosine between the chosen heads of a token.  A scalar in [0, 1].

    Parameters
    ----------
    attended : sequence of Tensor (..., k, d)
        One per layer, k >= 2: the chosen heads' outputs of Eq. (1), before the output projection.
    """
    terms = []
    for heads in attended:
        unit = F.normalize(heads.float(), dim=-1)
        cosines = unit @ unit.transpose(-1, -2)
        k = heads.shape[-2]
        terms.append(
            (cosines.square().sum((-1, -2)) - unit.square().sum((-1, -2))).mean() / (k * (k - 1))
        )
    return torch.stack(terms).mean()


def damped(gradient: Tensor, *, quantile: float, factor: float) -> Tensor:
    """Damp a gradient of chosen experts where it is large (see the error signal of Sec. III-C).

    Parameters
    ----------
    gradient : Tensor (B, k, D, H, W)
    quantile : float in [0, 1]
        Of the nonzero magnitudes per sample; a choice above it counts as wrong, as in
        `routing_labels`.
    factor : float in [0, 1]
        Applied to the gradient there.
    """
    magnitude = gradient.abs()
    threshold = torch.stack([_quantile(sample, quantile) for sample in magnitude]).view(
        -1, 1, 1, 1, 1
    )
    return torch.where(magnitude > threshold, factor * gradient, gradient)


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Return the q-quantile of at most `SAMPLED` positive values; 0 if there are none."""
    values = values.flatten()
    values = values[values > 0]
    if values.numel() == 0:
        return values.new_zeros(())
    if values.numel() > SAMPLED:
        values = values[:: -(-values.numel() // SAMPLED)]
    rank = min(values.numel(), max(1, round(q * values.numel())))
    return torch.kthvalue(values, rank).values
