"""Drawn pairs: repeatable, in range, and what their settings say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, field
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration import losses
from napari_shmoareg.registration.cascade import rescale_displacement
from napari_shmoareg.training import recipes
from napari_shmoareg.training.recipes import (
    RECIPES,
    recipe,
    split_subjects,
    validation_pairs,
)
from napari_shmoareg.training.run_writer import measures_of_kind
from napari_shmoareg.training.synthesis import SyntheticPairs, align_subjects, smooth_noise
from napari_shmoareg.training.synthesis_settings import SynthesisSettings
from napari_shmoareg.training.validation import validate

EXTENT = ((74.0, 78.0), (92.0, 98.0), (80.0, 86.0))
DRAWING = SynthesisSettings(extent=EXTENT, size=(16, 18), labels=3)
STILL = replace(
    DRAWING, shapes=0.0, same_subject=1.0, pose_angle=0.0, pose_scale=0.0, pose_shift=0.0, angle=0.0, scale=0.0,
    shift=0.0, warp=0.0, same_warp=0.0, same_contrast=1.0, noise=0.0, bias=0.0, gamma=0.0,
)  # fmt: skip
TORSOS = SynthesisSettings(size=(16, 18), torso=0.6, labels=3)
CLOSE = replace(DRAWING, close=1.0, close_spacing=(1.5, 2.5), close_shift=10.0)


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
    return align_subjects(
        [label_map(np.diag([3.0, 3, 3, 1]), "a"), label_map(turned, "b")], outside=[500]
    )


def test_an_item_is_always_the_same_and_another_one_differs(subjects):
    first, second = (
        SyntheticPairs(subjects, DRAWING, seed=3),
        SyntheticPairs(subjects, DRAWING, seed=3),
    )
    assert torch.equal(first[7].moving, second[7].moving)
    assert torch.equal(first[7].fixed_labels, second[7].fixed_labels)
    assert not torch.equal(first[7].moving, first[8].moving)


# Of item 2 of seed 4: shape, spacing, then mean of moving, spread of fixed, one voxel, and sums of
# both label sets.
AS_EVER = {
    "subjects": (
        replace(DRAWING, shapes=0.0),
        (13, 16, 15),
        5.8078,
        (0.10437, 0.21976, 0.2127, 197.5, 137.23438),
    ),
    "close": (
        replace(CLOSE, shapes=0.0),
        (18, 17, 18),
        1.6541,
        (0.45931, 0.29298, 0.3325, 1891.625, 1442.875),
    ),
    "torsos": (
        replace(TORSOS, torso=1.0),
        (14, 13, 18),
        22.3381,
        (0.31878, 0.29757, 0.7258, 18.0, 18.34375),
    ),
    "shapes": (
        replace(DRAWING, shapes=1.0),
        (13, 16, 15),
        5.8078,
        (0.15529, 0.22579, 0.80396, 193.25, 141.4375),
    ),
}


@pytest.mark.parametrize("name", AS_EVER)
def test_a_seed_draws_the_same_pair_as_ever(name, subjects):
    """A run that goes on must see the pairs that it would have seen; so must one that is
    repeated.
    """
    drawing, shape, spacing, numbers = AS_EVER[name]
    pair = SyntheticPairs([] if name == "shapes" else subjects, drawing, seed=4)[2]
    assert pair.grid.shape == shape
    assert pair.grid.spacing == pytest.approx([spacing] * 3, abs=1e-4)
    found = (
        pair.moving.mean(),
        pair.fixed.std(),
        pair.moving[0, 0, 8, 9, 7],
        pair.moving_labels.sum(),
        pair.fixed_labels.square().sum(),
    )
    assert [float(v) for v in found] == pytest.approx(numbers, rel=1e-3)


@pytest.mark.parametrize("drawing", [DRAWING, CLOSE, TORSOS])
def test_everything_is_drawn_on_the_device_asked_for(drawing, subjects):
    """Whatever is made without saying where would be made on a device that holds no numbers, and
    fail.
    """
    plain, said = SyntheticPairs(subjects, drawing), SyntheticPairs(subjects, drawing, device="cpu")
    for index in range(8):  # random shapes are among them
        wanted = plain[index]
        with torch.device("meta"):
            pair = said[index]
        for name in ("moving", "fixed", "moving_labels", "fixed_labels"):
            assert torch.equal(getattr(pair, name), getattr(wanted, name))


def test_a_subject_that_is_there_is_not_brought_again(subjects):
    assert SyntheticPairs(subjects, DRAWING).subjects[0] is subjects[0]
    elsewhere = subjects[0].to("meta")
    assert elsewhere.classes.device.type == "meta" and subjects[0].classes.device.type == "cpu"
    assert elsewhere.to("meta") is elsewhere


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("drawing", [DRAWING, CLOSE])
def test_a_gpu_draws_pairs_of_the_same_kind(drawing, subjects):
    drawing = replace(drawing, noise=0.0)
    here, there = (
        SyntheticPairs(subjects, drawing),
        SyntheticPairs(subjects, drawing, device="cuda"),
    )
    place = there.subjects[0].classes.data_ptr()
    for index in range(12):
        a, b = here[index], there[index]
        assert b.moving.is_cuda and b.fixed_labels.is_cuda
        assert a.grid.shape == b.grid.shape == tuple(b.moving.shape[2:])
        assert a.moving_labels.shape == b.moving_labels.shape
        # rounding, at most
        assert float((a.moving_labels - b.moving_labels.cpu()).abs().mean()) < 0.01
        assert float(a.fixed.mean()) == pytest.approx(float(b.fixed.mean()), abs=0.03)
        assert float(a.fixed.std()) == pytest.approx(float(b.fixed.std()), abs=0.03)
    assert torch.equal(there[3].moving, there[3].moving)
    assert there.subjects[0].classes.data_ptr() == place and there.subjects[0].classes.is_cuda


def test_close_ups_are_small_views_at_a_fine_spacing(subjects):
    smallest = min(low for low, _ in EXTENT)
    spacings = []
    for index in range(12):
        pair = SyntheticPairs(subjects, replace(CLOSE, shapes=0.0))[index]
        i, j, k = pair.grid.shape
        assert 16 <= max(i, j, k) <= 18
        assert min(i, j, k) >= 0.75 * max(i, j, k) - 0.5
        spacings.append(pair.grid.spacing[0])
        assert 1.5 <= spacings[-1] <= 2.5
        assert (
            max(n * s for n, s in zip(pair.grid.shape, pair.grid.spacing, strict=True)) < smallest
        )
        assert float(pair.moving_labels.sum()) > 0 < float(pair.fixed_labels.sum())
    assert max(spacings) - min(spacings) > 0.5


def test_a_share_of_the_pairs_are_close_ups(subjects):
    pairs = SyntheticPairs(subjects, replace(CLOSE, close=0.5))
    close = [pairs[i].grid.spacing[0] < 3 for i in range(40)]
    assert 10 < sum(close) < 30


def test_close_ups_look_off_the_middle_of_a_subject_but_not_past_random_shapes(subjects):
    """Nothing but the view is drawn here: no rotation, no deformation."""
    far = replace(STILL, close=1.0, close_spacing=(1.5, 2.5), close_shift=500.0, stripped=0.0)
    shown = {}
    for name, drawing in {
        "near": replace(far, close_shift=0.0),
        "far": far,
        "far shapes": replace(far, shapes=1.0),
    }.items():
        pairs = SyntheticPairs(subjects, drawing)
        shown[name] = [float(pairs[i].moving_labels.sum()) > 0 for i in range(8)]
    assert all(shown["near"]) and all(shown["far shapes"])
    assert sum(shown["far"]) <= 2, "subjects half a metre away were in view"


def test_images_are_in_range_and_labels_are_shares(subjects):
    for index in range(12):
        pair = SyntheticPairs(subjects, DRAWING)[index]
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
        classes.append(
            subject.classes.numpy()[tuple(index.clip(0, np.array(subject.classes.shape) - 1).T)]
        )
    assert np.mean(classes[0] == classes[1]) > 0.9


def test_one_subject_without_deformation_gives_two_equal_label_sets(subjects):
    pair = SyntheticPairs(subjects, STILL)[0]
    assert torch.equal(pair.moving_labels, pair.fixed_labels)


def test_a_deformation_moves_labels(subjects):
    pair = SyntheticPairs(subjects, replace(STILL, same_warp=6.0))[0]
    assert not torch.equal(pair.moving_labels, pair.fixed_labels)


def test_stripping_leaves_only_brain(subjects):
    bare, whole = (SyntheticPairs(subjects, replace(STILL, stripped=s))[0] for s in (1.0, 0.0))
    assert (bare.moving > 0).float().mean() < (whole.moving > 0).float().mean()


def test_without_subjects_shapes_are_drawn():
    pair = SyntheticPairs([], DRAWING)[0]
    assert float(pair.moving_labels.sum()) > 0


def test_a_later_phase_draws_other_grids(subjects):
    pairs = SyntheticPairs(subjects, [(0, DRAWING), (5, replace(DRAWING, size=(24, 24)))])
    assert max(pairs[4].moving.shape) <= 18
    assert max(pairs[5].moving.shape) == 24


def test_the_shape_of_the_grid_changes_from_pair_to_pair(subjects):
    assert len({SyntheticPairs(subjects, DRAWING)[i].grid.shape for i in range(12)}) > 4


def test_noise_is_smooth_at_the_length_asked_for():
    noise = smooth_noise((40, 36, 44), 12, 3, np.random.default_rng(0))
    assert noise.shape == (3, 40, 36, 44)
    assert float(noise.diff(dim=1).abs().mean()) < 0.2 * float(noise.std())


def test_validation_sees_only_held_out_subjects(subjects):
    train, held = split_subjects(subjects * 4)
    assert (len(train), len(held)) == (6, 2)


def measures(network, pairs):
    """Soft Dice before and after registration, folding in percent."""
    found = measures_of_kind(validate(network, pairs), "maps")
    return [found[f"maps_{name}"] for name in ("before", "after", "folding")]


def test_validation_of_a_network_that_moves_nothing_changes_nothing(subjects):
    network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    before, after, folding = measures(
        network, validation_pairs(subjects, DRAWING, size=18, count=2)
    )
    assert after == pytest.approx(before, abs=1e-3)
    assert folding == 0
    assert network.training


def test_validation_pairs_show_everything_at_the_size_of_the_weights_up_to_a_limit(
    subjects, monkeypatch
):
    monkeypatch.setattr(recipes, "VALIDATION_SIZE", 24)
    for size, longest in ((20, 20), (24, 24), (108, 24)):
        (pair,) = validation_pairs(subjects, CLOSE, size=size, count=1)
        assert max(pair.grid.shape) == longest
        assert longest * pair.grid.spacing[0] >= EXTENT[1][0]  # no close-up
        assert pair.moving_labels.shape[1] == 8


class TwoPasses(nn.Module):
    """Answers every pass with one of its voxels along j."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = replace(SHMoARegConfig.preset("tiny"), passes=(0.5, 1.0))
        self.modes = []

    def forward(self, moving, fixed, *, diffeomorphic=None):
        self.modes.append(self.training)
        displacement = torch.zeros(1, 3, *moving.shape[2:])
        displacement[:, 1] = 1.0
        return NetworkOutput(displacement, RoutingTrace(()))


def test_validation_runs_all_passes(subjects):
    network = TwoPasses()
    (pair,) = validation_pairs(subjects, DRAWING, size=32, count=1)
    _, after, folding = measures(network, [pair])
    coarse = torch.zeros(1, 3, *(round(n / 2) for n in pair.grid.shape))
    coarse[:, 1] = 1.0
    fine = torch.zeros(1, 3, *pair.grid.shape)
    fine[:, 1] = 1.0
    both = field.compose(rescale_displacement(coarse, pair.grid.shape), fine)
    wanted = 1 - float(losses.overlap(field.warp(pair.moving_labels, both), pair.fixed_labels))
    assert after == pytest.approx(wanted, abs=1e-6)
    assert folding == 0
    assert network.modes == [False, False] and network.training


def test_a_recipe_takes_other_steps_and_an_unknown_one_is_refused():
    begins = RECIPES["small"].phases[1].begins
    assert recipe("small", steps=100).pairs([]).phases[1][0] == round(100 * begins)
    with pytest.raises(InputError, match="no recipe 'huge'; available are large, small, tiny"):
        recipe("huge")


def test_the_recipe_that_was_called_paper_says_its_name_and_where_the_papers_own_learning_is():
    with pytest.raises(InputError, match=r"called 'large'.*fine-tune DATASET --from none"):
        recipe("paper")
    assert recipe("large").preset == "paper"
    assert recipe("small", seed=7, bfloat16="off").settings.bfloat16 == "off"
    assert recipe("small").settings.bfloat16 == "auto"


def test_maps_that_share_too_few_labels_are_refused():
    one = label_map(np.eye(4), "a")
    other = one.with_values(np.where(one.values > 0, 99, 0))
    with pytest.raises(InputError, match="shares 0 labels"):
        align_subjects([one, other])
