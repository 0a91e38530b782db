"""The contrastive loss on tokens, against features that are and are not a code of the place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from napari_shmoareg.geometry import field
from napari_shmoareg.registration.known_motion import KnownMotion
from napari_shmoareg.training.expert_losses import TOKENS, correspondence_loss

SHAPE = (24, 32, 16)
STRIDES = (4, 8)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def code(positions: torch.Tensor) -> torch.Tensor:
    """A feature vector (1, 32, D, H, W) of each place: smooth, and another one everywhere."""
    waves = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)) / 4
    phase = torch.einsum("nc,bcdhw->bndhw", waves, positions)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def pyramid(displacement: torch.Tensor) -> list[torch.Tensor]:
    """Features at strides 1 to 8 of a first image, and of a second one that shows at p what it
    shows at p + u(p).
    """
    levels = []
    for stride in (1, 2, 4, 8):
        cells = tuple(n // stride for n in SHAPE)
        middle = stride * field.identity(cells) + (stride - 1) / 2
        moved = middle + field.sample(displacement, middle, padding="border")
        levels.append(torch.cat([code(middle), code(moved)]))
    return levels


def shifted(by: float) -> tuple[torch.Tensor, KnownMotion]:
    u = torch.zeros(1, 3, *SHAPE)
    u[:, 1] = by
    known = torch.ones(2, 1, *SHAPE)
    known[:, :, :, :8] = known[:, :, :, -8:] = 0
    return u, KnownMotion(torch.cat([u, -u]), known)


def test_features_that_follow_the_motion_find_each_other_and_others_do_not():
    u, motion = shifted(5.0)
    followed = pyramid(u)
    right = float(correspondence_loss(followed, motion, STRIDES, rng()))
    still = KnownMotion(torch.zeros_like(motion.displacement), motion.known)
    wrong = float(correspondence_loss(followed, still, STRIDES, rng()))
    assert right < 0.3 and wrong > right + 1


def test_features_alike_everywhere_are_at_chance():
    _, motion = shifted(0.0)
    alike = [torch.ones(2, 6, *(n // s for n in SHAPE)) for s in (1, 2, 4, 8)]
    for stride, count in ((4, 6 * 4 * 4), (8, 3 * 2 * 2)):
        loss = float(correspondence_loss(alike, motion, (stride,), rng()))
        assert loss == pytest.approx(math.log(min(TOKENS, count)), rel=1e-5)


def test_tokens_whose_motion_is_not_known_do_not_count():
    _, motion = shifted(0.0)
    features = [torch.rand(2, 6, *(n // s for n in SHAPE)) for s in (1, 2, 4, 8)]
    other = [level.clone() for level in features]
    for level in other:
        level[:, :, :, : level.shape[3] // 4] = 100 * torch.rand_like(
            level[:, :, :, : level.shape[3] // 4]
        )
    first, second = (
        float(correspondence_loss(levels, motion, STRIDES, rng())) for levels in (features, other)
    )
    assert first == second
    nothing = KnownMotion(motion.displacement, torch.zeros_like(motion.known))
    assert float(correspondence_loss(features, nothing, STRIDES, rng())) == 0


def test_an_image_thinner_than_a_token_has_none_to_compare():
    motion = KnownMotion(torch.zeros(2, 3, 12, 20, 6), torch.ones(2, 1, 12, 20, 6))
    features = [torch.rand(2, 6, *(-(-n // 8) * 8 // s for n in (12, 20, 6))) for s in (1, 2, 4, 8)]
    assert float(correspondence_loss(features, motion, (8,), rng())) == 0
    assert float(correspondence_loss(features, motion, (4, 8), rng())) > 0


def test_the_loss_pulls_a_token_to_where_it_came_from():
    u, motion = shifted(5.0)
    # blind to the motion
    levels = [level.clone().requires_grad_() for level in pyramid(torch.zeros_like(u))]
    optimiser = torch.optim.Adam(levels[2:], lr=0.1)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = correspondence_loss(levels, motion, STRIDES, rng())
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
