"""Tokens that find each other across a pair whose motion is known.

Ours, beyond the paper.  InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) on the encoder's tokens.
B batch, C channels, D H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.engine.known_motion import KnownMotion
from napari_shmoareg.geometry import field

TOKENS = 256  # of each image and stride, at most
TEMPERATURE = 0.1  # of the cosines


def correspondence_loss(
    pyramid: Sequence[Tensor], motion: KnownMotion, strides: Sequence[int], rng: np.random.Generator
) -> Tensor:
    """How badly tokens find where they came from: 0 if surely, the logarithm of their number if at chance.

    Each of some fixed tokens, drawn among those whose motion is known, is compared with the moving features at the
    places of all of them (cosines, by trilinear interpolation); its own is the right one.  Mean of both directions,
    both orders and all strides.

    Parameters
    ----------
    pyramid : sequence of Tensor (2, C, D/s, H/s, W/s)
        Of `Encoded`, one pair: features of the first image, then of the second, at strides s = 1, 2, 4 ...
    motion : KnownMotion
    strides : sequence of int
    rng : numpy.random.Generator
        Draws the tokens.

    Returns
    -------
    Tensor, scalar
        0 where fewer than two whole tokens of every stride have a known motion.
    """
    terms = []
    for stride in (s for s in strides if s <= min(motion.known.shape[2:])):
        features = pyramid[stride.bit_length() - 1].float()
        for moving, fixed in ((0, 1), (1, 0)):
            order = slice(moving, moving + 1)
            positions, usable = _tokens(motion.displacement[order], motion.known[order], stride)
            places = torch.nonzero(usable.flatten()).flatten()
            if len(places) < 2:
                continue
            drawn = rng.choice(len(places), min(TOKENS, len(places)), replace=False)
            places = places[torch.as_tensor(drawn, device=places.device)]
            d, h, w = positions.shape[2:]
            ours = features[fixed, :, :d, :h, :w].flatten(1)[:, places]
            there = positions.flatten(2)[:, :, places, None, None]
            theirs = field.sample(features[order], there, padding="border").flatten(1)
            terms.append(_info_nce(ours, theirs.view_as(ours)))
    return torch.stack(terms).mean() if terms else motion.displacement.new_zeros(())


def _tokens(displacement: Tensor, known: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Where the middle of each whole cell lies in the other image, in its cells; and whether that is known."""
    share = F.avg_pool3d(known, stride)
    mean = F.avg_pool3d(displacement * known, stride) / share.clamp_min(1e-6)
    return field.identity(share.shape[2:], share.device) + mean / stride, share > 0.5


def _info_nce(ours: Tensor, theirs: Tensor) -> Tensor:
    """Both (C, M), column by column the same place."""
    scores = F.normalize(ours, dim=0).T @ F.normalize(theirs, dim=0) / TEMPERATURE
    right = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
