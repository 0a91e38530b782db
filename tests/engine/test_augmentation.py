"""augment(): what changes, what must not, and that nothing else decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_shmoareg.registration.conform import conform
from napari_shmoareg.training.augmentation import ANGLE, augment
from napari_shmoareg.training.settings import FineTuning


@pytest.fixture
def seen(pair):
    """The phantom pair on its network grid, which is no cube."""
    return conform(pair, size=40, labels=True)


def draw(seed=0):
    return np.random.default_rng(seed)


def test_without_augmentation_the_pair_is_the_same_object(seen):
    assert augment(seen, FineTuning(), draw()) is seen


def test_the_same_draw_gives_the_same_pair_and_another_draw_another(seen):
    settings = FineTuning(augment_affine=1.0, augment_intensity=1.0, flips="all")
    first, again, other = (augment(seen, settings, draw(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.moving, again.moving) and torch.equal(
        first.fixed_labels, again.fixed_labels
    )
    assert not torch.equal(first.moving, other.moving)


def test_labels_follow_their_image_and_stay_whole(seen):
    changed = augment(seen, FineTuning(augment_affine=1.0), draw())
    for image, labels, old_image, old_labels in (
        (changed.moving, changed.moving_labels, seen.moving, seen.moving_labels),
        (changed.fixed, changed.fixed_labels, seen.fixed, seen.fixed_labels),
    ):
        assert not torch.equal(image, old_image)
        assert torch.equal(labels, labels.round())
        assert set(labels.unique().tolist()) <= set(old_labels.unique().tolist())
        brightest = 2  # label 2 is the brightest part of the phantom
        assert float(image[labels == brightest].mean()) == pytest.approx(
            float(old_image[old_labels == brightest].mean()), abs=0.05
        )


def test_both_images_are_posed_alike_but_for_a_fifth(seen):
    apart = []
    for seed in range(12):
        same = type(seen)(
            **(vars(seen) | {"moving": seen.fixed, "moving_labels": seen.fixed_labels})
        )
        changed = augment(same, FineTuning(augment_affine=1.0), draw(seed))
        between = (changed.moving - changed.fixed).abs().mean()
        moved = (changed.fixed - seen.fixed).abs().mean()
        apart.append(float(between / moved))
    assert 0.02 < np.mean(apart) < 0.6


def test_a_mirror_turns_both_images_and_their_labels_about_the_first_axis_alone(seen):
    drawn = [augment(seen, FineTuning(flips="left-right"), draw(seed)) for seed in range(12)]
    flipped = [torch.equal(d.moving, seen.moving.flip(2)) for d in drawn]
    assert 0 < sum(flipped) < 12
    for one, turned in zip(drawn, flipped, strict=True):
        for name in ("moving", "fixed", "moving_labels", "fixed_labels"):
            old = getattr(seen, name)
            assert torch.equal(getattr(one, name), old.flip(2) if turned else old)


def test_contrast_is_shared_for_mse_and_each_image_s_own_for_lncc(seen):
    same = type(seen)(**(vars(seen) | {"moving": seen.fixed}))
    grey = (seen.fixed > 0.3) & (seen.fixed < 0.7)
    for similarity, alike in (("mse", True), ("lncc", False)):
        gaps = []
        for seed in range(8):
            changed = augment(
                same, FineTuning(augment_intensity=1.0, similarity=similarity), draw(seed)
            )
            gaps.append(abs(float(changed.moving[grey].mean() - changed.fixed[grey].mean())))
            assert 0 <= float(changed.moving.min()) and float(changed.moving.max()) <= 1
        assert (max(gaps) < 0.01) is alike


def test_strength_scales_the_pose(seen):
    small, large = (augment(seen, FineTuning(augment_affine=a), draw(2)) for a in (0.1, 2.0))
    assert (small.fixed - seen.fixed).abs().mean() < 0.5 * (large.fixed - seen.fixed).abs().mean()
    assert 0.1 < ANGLE < 0.3
