"""Drawn pairs: repeatable, in range, and what their settings say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.engine.drawing import Drawing
from napari_shmoareg.engine.pretraining import RECIPES, recipe, split_subjects, validate, validation_pairs
from napari_shmoareg.engine.subjects import align_subjects
from napari_shmoareg.engine.synthesis import DrawnPairs, smooth_noise
from napari_shmoareg.geometry import Grid, InputError, Volume
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

EXTENT = ((74.0, 78.0), (92.0, 98.0), (80.0, 86.0))
DRAWING = Drawing(extent=EXTENT, size=(16, 18), labels=3)
STILL = replace(
    DRAWING, shapes=0.0, same_subject=1.0, pose_angle=0.0, pose_scale=0.0, pose_shift=0.0, angle=0.0, scale=0.0,
    shift=0.0, warp=0.0, same_warp=0.0, same_contrast=1.0, noise=0.0, bias=0.0, gamma=0.0,
)  # fmt: skip


def label_map(affine: np.ndarray, name: str) -> Volume:
    """Eight blocks and a shell of not-brain (500), on a grid of any place."""
    values = np.zeros((24, 30, 26), np.int16)
    values[2:22, 2:28, 2:24] = 500
    for n in range(8):
        i, j, k = (4 + 8 * (n & 1), 5 + 10 * (n >> 1 & 1), 5 + 8 * (n >> 2))
        values[i : i + 7, j : j + 9, k : k + 7] = n + 1
    return Volume(values, Grid(values.shape, affine), name, is_labels=True)


@pytest.fixture
def subjects():
    turned = np.array([[0, -3.1, 0, 40], [2.9, 0, 0.2, -7], [0, 0, -3.0, 12], [0, 0, 0, 1]])
    return align_subjects([label_map(np.diag([3.0, 3, 3, 1]), "a"), label_map(turned, "b")], outside=[500])


def test_an_item_is_always_the_same_and_another_one_differs(subjects):
    first, second = DrawnPairs(subjects, DRAWING, seed=3), DrawnPairs(subjects, DRAWING, seed=3)
    assert torch.equal(first[7].moving, second[7].moving)
    assert torch.equal(first[7].fixed_labels, second[7].fixed_labels)
    assert not torch.equal(first[7].moving, first[8].moving)


def test_images_are_in_range_and_labels_are_shares(subjects):
    for index in range(12):
        pair = DrawnPairs(subjects, DRAWING)[index]
        for image in (pair.moving, pair.fixed):
            assert image.shape[2:] == pair.grid.shape
            assert 16 <= max(pair.grid.shape) <= 18
            assert torch.isfinite(image).all()
            assert 0 <= float(image.min()) < float(image.max()) <= 1
        for labels in (pair.moving_labels, pair.fixed_labels):
            assert 1 <= labels.shape[1] <= 3
            assert 0 <= float(labels.min()) <= float(labels.max()) <= 1
            assert float(labels.sum(1).max()) <= 1 + 1e-6


def test_alignment_brings_turned_and_flipped_maps_into_one_frame(subjects):
    a, b = subjects
    points = np.random.default_rng(0).uniform(-20, 20, (200, 3))
    classes = []
    for subject in (a, b):
        index = np.rint(points @ subject.to_index[:3, :3].T + subject.to_index[:3, 3]).astype(int)
        classes.append(subject.classes[tuple(index.clip(0, np.array(subject.classes.shape) - 1).T)])
    assert np.mean(classes[0] == classes[1]) > 0.9


def test_one_subject_without_deformation_gives_two_equal_label_sets(subjects):
    pair = DrawnPairs(subjects, STILL)[0]
    assert torch.equal(pair.moving_labels, pair.fixed_labels)


def test_a_deformation_moves_labels(subjects):
    pair = DrawnPairs(subjects, replace(STILL, same_warp=6.0))[0]
    assert not torch.equal(pair.moving_labels, pair.fixed_labels)


def test_stripping_leaves_only_brain(subjects):
    bare, whole = (DrawnPairs(subjects, replace(STILL, stripped=s))[0] for s in (1.0, 0.0))
    assert (bare.moving > 0).float().mean() < (whole.moving > 0).float().mean()


def test_without_subjects_shapes_are_drawn():
    pair = DrawnPairs([], DRAWING)[0]
    assert float(pair.moving_labels.sum()) > 0


def test_a_later_phase_draws_other_grids(subjects):
    pairs = DrawnPairs(subjects, [(0, DRAWING), (5, replace(DRAWING, size=(24, 24)))])
    assert max(pairs[4].moving.shape) <= 18
    assert max(pairs[5].moving.shape) == 24


def test_the_shape_of_the_grid_changes_from_pair_to_pair(subjects):
    assert len({DrawnPairs(subjects, DRAWING)[i].grid.shape for i in range(12)}) > 4


def test_noise_is_smooth_at_the_length_asked_for():
    noise = smooth_noise((40, 36, 44), 12, 3, np.random.default_rng(0))
    assert noise.shape == (3, 40, 36, 44)
    assert float(noise.diff(dim=1).abs().mean()) < 0.2 * float(noise.std())


def test_validation_sees_only_held_out_subjects(subjects):
    train, held = split_subjects(subjects * 4)
    assert (len(train), len(held)) == (6, 2)


def test_validation_of_a_network_that_moves_nothing_changes_nothing(subjects):
    network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    before, after, folding = validate(network, validation_pairs(subjects, DRAWING, count=2))
    assert after == pytest.approx(before, abs=1e-3)
    assert folding == 0
    assert network.training


def test_a_recipe_takes_other_steps_and_an_unknown_one_is_refused():
    begins = RECIPES["small"].phases[1].begins
    assert recipe("small", steps=100).pairs([]).phases[1][0] == round(100 * begins)
    with pytest.raises(InputError, match="no recipe 'huge'; there are paper, small, tiny"):
        recipe("huge")


def test_maps_that_share_too_few_labels_are_refused():
    one = label_map(np.eye(4), "a")
    other = one.with_values(np.where(one.values > 0, 99, 0))
    with pytest.raises(InputError, match="shares 0 labels"):
        align_subjects([one, other])
