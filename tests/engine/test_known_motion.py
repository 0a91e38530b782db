"""The true motion of pairs made of one subject, against the images themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.geometry import Grid, field
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.known_motion import KnownMotion, motion_of
from napari_shmoareg.training.augmentation import augment, with_known_motion
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.synthesis import SyntheticPairs, smooth_noise
from napari_shmoareg.training.synthesis_settings import SynthesisSettings

SHAPE = (24, 28, 20)
DRAWING = SynthesisSettings(
    extent=((74.0, 78.0), (92.0, 98.0), (80.0, 86.0)), size=(24, 28), labels=20, shapes=1.0
)


def smooth(seed: int, channels: int, size: float) -> torch.Tensor:
    return size * smooth_noise(SHAPE, 9, channels, np.random.default_rng(seed))[None]


def made(displacement: torch.Tensor) -> Conformed:
    """A smooth image, and itself warped, with labels in whole numbers."""
    image = (smooth(1, 1, 0.2) + 0.5).clamp(0, 1)
    fixed = field.warp(image, displacement, padding="border")
    labels = (3 * image).round()
    carried = field.warp(labels, displacement, mode="nearest", padding="border")
    grid = Grid(SHAPE, np.eye(4))
    motion = motion_of(displacement)
    return Conformed(
        image, fixed, grid, np.eye(4), moving_labels=labels, fixed_labels=carried, motion=motion
    )


def mistakes(pair: Conformed, motion: KnownMotion | None = None) -> list[tuple[float, float]]:
    """For each order the mean difference where the motion is known: as it is, and after the
    motion.
    """
    motion = motion or pair.motion
    found = []
    for order, (moving, fixed) in enumerate(((pair.moving, pair.fixed), (pair.fixed, pair.moving))):
        known = motion.known[order : order + 1].bool()
        warped = field.warp(moving, motion.displacement[order : order + 1], padding="border")
        assert float(known.float().mean()) > 0.4
        found.append(tuple(float((a - fixed).abs()[known].mean()) for a in (moving, warped)))
    return found


def test_the_motion_of_drawn_pairs_carries_each_image_s_labels_onto_the_other():
    for index in range(4):
        pair = SyntheticPairs([], replace(DRAWING, warp_length=(30.0, 60.0)), seed=2, motion=True)[
            index
        ]
        labels = ((pair.moving_labels, pair.fixed_labels), (pair.fixed_labels, pair.moving_labels))
        for order, (moving, fixed) in enumerate(labels):
            known = pair.motion.known[order : order + 1].expand_as(moving).bool()
            warped = field.warp(moving, pair.motion.displacement[order : order + 1])
            before, after = ((one - fixed).abs()[known].mean() for one in (moving, warped))
            assert float(after) < 0.35 * float(before)
            shown = fixed.sum(1, keepdim=True) > 0.6
            assert float(pair.motion.known[order : order + 1][shown].mean()) > 0.6
        there, back = pair.motion.displacement.chunk(2)
        sure = (pair.motion.known[1:] * field.warp(pair.motion.known[:1], back)) > 0.99
        assert float(field.compose(there, back).norm(dim=1, keepdim=True)[sure].mean()) < 0.15, (
            "voxels"
        )


def test_whether_the_motion_is_handed_out_changes_nothing_else():
    plain, known = SyntheticPairs([], DRAWING), SyntheticPairs([], DRAWING, motion=True)
    for index in range(3):
        a, b = plain[index], known[index]
        assert a.motion is None and b.motion is not None
        for name in ("moving", "fixed", "moving_labels", "fixed_labels"):
            assert torch.equal(getattr(a, name), getattr(b, name))


def test_the_motion_of_an_image_and_itself_warped_is_right_both_ways():
    for before, after in mistakes(made(smooth(2, 3, 1.5))):
        assert after < 0.15 * before


def test_what_a_first_pass_leaves_is_the_motion_of_the_images_that_it_made():
    pair = made(smooth(2, 3, 1.5))
    before = smooth(3, 3, 1.0)
    seen = replace(pair, moving=field.warp(pair.moving, before, padding="border"))
    wrong = mistakes(seen)
    left = pair.motion.after_first_pass(before)
    for (plain, after), (_, stale) in zip(mistakes(seen, left), wrong, strict=True):
        assert after < 0.25 * plain and after < 0.5 * stale


@pytest.mark.parametrize("changes", [{"augment_affine": 1.0}, {"flips": "all"}])
def test_a_known_motion_goes_along_with_poses_and_mirrors(changes):
    pair = made(smooth(2, 3, 1.5))
    changed = augment(pair, FineTuning(**changes), np.random.default_rng(2))
    assert not torch.equal(changed.moving, pair.moving)
    for before, after in mistakes(changed):
        assert after < 0.25 * before
    stale = mistakes(changed, pair.motion)
    assert all(
        after > 2 * right for (_, after), (_, right) in zip(stale, mistakes(changed), strict=True)
    )


def test_a_scan_deformed_at_random_is_its_own_partner_with_a_motion_that_is_known():
    two = replace(made(smooth(2, 3, 1.5)), fixed=torch.rand(1, 1, *SHAPE), motion=None)
    chosen = set()
    for seed in range(8):
        pair = with_known_motion(two, np.random.default_rng(seed))
        chosen.add("moving" if torch.equal(pair.moving, two.moving) else "fixed")
        again = with_known_motion(two, np.random.default_rng(seed))
        assert torch.equal(again.fixed, pair.fixed)
        length = pair.motion.displacement[:1].norm(dim=1)
        assert 0.3 < float(length.mean()) < 0.35 * max(SHAPE)
        if torch.equal(pair.moving, two.moving):
            warped = field.warp(pair.moving, pair.motion.displacement[:1], padding="border")
            torch.testing.assert_close(warped, pair.fixed)
            carried = field.warp(pair.moving_labels, pair.motion.displacement[:1], mode="nearest")
            known = pair.motion.known[:1].bool()
            assert torch.equal(carried[known], pair.fixed_labels[known])
    assert chosen == {"moving", "fixed"}
