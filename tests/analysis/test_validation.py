"""validate(): its numbers against known displacements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.metrics import dice, mean
from napari_shmoareg.registration.conform import conform
from napari_shmoareg.training.validation import displace, validate, validated


@pytest.fixture
def seen(pair):
    return conform(pair, size=40, labels=True)


def test_a_zero_displacement_gives_the_start(seen):
    found = validated(seen, torch.zeros(1, 3, *seen.grid.shape))
    moving, fixed = (t[0, 0].numpy().astype(int) for t in (seen.moving_labels, seen.fixed_labels))
    assert found.dice == pytest.approx(mean(dice(moving, fixed)))
    assert found.ncc == pytest.approx(
        np.corrcoef(seen.moving.flatten(), seen.fixed.flatten())[0, 1], abs=1e-6
    )
    assert found.folding_percent == 0


def test_a_shift_that_is_undone_gives_one(seen):
    shift = torch.zeros(1, 3, *seen.grid.shape)
    shift[:, 2] = 1.0
    moved = replace(
        seen, moving=seen.fixed.roll(1, dims=4), moving_labels=seen.fixed_labels.roll(1, dims=4)
    )
    assert validated(moved, shift).dice > 0.999 > validated(moved, 0 * shift).dice
    assert validated(moved, shift).ncc > 0.99


def test_labels_are_carried_by_nearest_and_none_is_made_up_between_two(seen):
    half = torch.zeros(1, 3, *seen.grid.shape)
    # between a label 1 and a background 0 linear weights would round, between 1 and 5 they would
    # mix
    half[:, 2] = 0.4
    # 5, 9, 13 ...
    apart = [labels * 4 + (labels > 0) for labels in (seen.moving_labels, seen.fixed_labels)]
    mixed = replace(seen, moving_labels=apart[0], fixed_labels=apart[0])
    assert validated(mixed, half).dice == 1.0  # the nearest voxel is the same one


def test_a_field_that_turns_over_folds(seen):
    turned = torch.zeros(1, 3, *seen.grid.shape)
    turned[:, 0] = -2 * torch.arange(seen.grid.shape[0]).view(-1, 1, 1)
    assert validated(seen, turned).folding_percent == 100


def test_a_network_is_judged_in_eval_mode_and_left_as_it_came(seen, tiny_network):
    tiny_network.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    done = []
    found = validate(tiny_network, [seen, replace(seen, moving_labels=None)], between=done.append)
    assert tiny_network.training and torch.equal(torch.get_rng_state(), state)
    assert done == [1, 2]
    tiny_network.eval()
    alone = validated(seen, displace(tiny_network, seen))
    assert found.per_pair[0] == alone
    assert found.dice == alone.dice == found.score  # the pair without labels does not count
    assert np.isnan(found.per_pair[1].dice)


def test_without_labels_the_correlation_is_the_score(seen, tiny_network):
    found = validate(tiny_network, [replace(seen, fixed_labels=None)])
    assert np.isnan(found.dice) and found.score == found.ncc


def test_no_pair_is_refused(tiny_network):
    with pytest.raises(InputError, match="no validation pair"):
        validate(tiny_network, [])
