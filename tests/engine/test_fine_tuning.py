"""fine_tune(): what a step does, stopping and going on, bad input."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.engine.drawing import Drawing
from napari_shmoareg.engine.fine_tuning import fine_tune, make_optimiser
from napari_shmoareg.engine.synthesis import DrawnPairs
from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.geometry import Grid, InputError, TooLargeError, field
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

SMALL = Drawing(extent=((48.0, 48.0), (64.0, 64.0), (48.0, 48.0)), size=(16, 16), labels=4)


@pytest.fixture
def pairs():
    return [DrawnPairs([], SMALL, seed=5)[i] for i in range(3)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SHMoAReg(SHMoARegConfig.preset("tiny"))


def test_learning_from_one_pair_makes_it_more_alike(network):
    x = torch.linspace(-1, 1, 16)
    ball = [((x[:, None, None] - s) ** 2 + x[:, None] ** 2 + x**2 < 0.4).float()[None, None] for s in (0.0, 0.25)]
    smooth = [torch.nn.functional.avg_pool3d(b, 3, 1, 1) for b in ball]
    pair = Conformed(moving=smooth[0], fixed=smooth[1], grid=Grid((16, 16, 16), np.eye(4)), affine=np.eye(4))
    settings = FineTuning(steps=60, learning_rate=3e-3)
    steps = list(fine_tune(network, [pair], settings))
    assert [s.step for s in steps] == list(range(1, 61))
    assert steps[-1].similarity < 0.6 * steps[0].similarity


def test_a_stopped_run_that_goes_on_equals_one_never_stopped(network, pairs):
    settings = FineTuning(steps=6, learning_rate=1e-3, overlap_weight=1.0, diffeomorphic=0.5)
    other = copy.deepcopy(network)
    whole = [s.total for s in fine_tune(network, pairs, settings)]
    optimiser = make_optimiser(other, settings)
    part = []
    for step in fine_tune(other, pairs, settings, optimiser=optimiser):
        part.append(step.total)
        if step.step == 3:
            break
    torch.manual_seed(1234)  # whatever happened in between
    part += [s.total for s in fine_tune(other, pairs, settings, optimiser=optimiser, start=3)]
    assert part == whole
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_every_pair_comes_once_an_epoch(network, pairs):
    seen = [s.pair for s in fine_tune(network, pairs, FineTuning(steps=6))]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_scans_are_brought_to_the_size_of_the_settings(network, pair):
    (step,) = fine_tune(network, [pair], FineTuning(steps=1, size=16, overlap_weight=1.0))
    assert 0 < step.overlap < 1
    assert step.similarity > 0


def test_without_labels_there_is_no_overlap(network, pairs):
    bare = [replace(p, moving_labels=None, fixed_labels=None) for p in pairs]
    (step,) = fine_tune(network, bare, FineTuning(steps=1, overlap_weight=1.0))
    assert np.isnan(step.overlap)
    assert np.isfinite(step.total)


def test_a_pair_with_nan_stops_the_run_and_leaves_the_weights_of_the_step_before(network, pairs):
    bad = replace(pairs[0], moving=torch.full_like(pairs[0].moving, float("nan")))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError, match=r"loss became nan at step 1, on pair 0.*step before"):
        list(fine_tune(network, [bad], FineTuning(steps=2)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_the_weight_of_inverse_consistency_makes_two_orders_undo_each_other(network, pairs):
    left = {}
    for weight in (0.0, 1.0):
        trained = copy.deepcopy(network)
        settings = FineTuning(steps=25, learning_rate=5e-3, smoothness_weight=0.0, inverse_weight=weight)
        list(fine_tune(trained, pairs, settings))
        with torch.no_grad():
            there, back = trained.both_orders(pairs[0].moving, pairs[0].fixed).displacement.chunk(2)
        left[weight] = float(field.compose(there, back).abs().mean())
    assert left[1.0] < 0.5 * left[0.0]


def test_balanced_heads_learn_at_a_rate_that_falls_with_their_stride(network):
    groups = make_optimiser(network, FineTuning(balance_heads=True)).param_groups
    factors = {id(p): group["factor"] for group in groups for p in group["params"]}
    for level in network.decoder.levels:
        assert {factors[id(p)] for p in level.head.parameters()} == {1 / level.stride}
        assert {factors[id(p)] for p in level.fusion.parameters()} == {1.0}
    assert len(factors) == len(list(network.parameters()))


def test_no_pair_is_refused(network):
    with pytest.raises(InputError, match="no pair to learn from"):
        next(fine_tune(network, [], FineTuning()))


def test_the_rate_falls_along_a_cosine_only_if_asked():
    fixed, falling = FineTuning(steps=11), FineTuning(steps=11, learning_rate=1e-2, final_rate=1e-4)
    assert {fixed.rate(s) for s in range(11)} == {1e-4}
    assert (falling.rate(0), falling.rate(10)) == pytest.approx((1e-2, 1e-4))
    assert falling.rate(5) == pytest.approx((1e-2 + 1e-4) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"quantile": 2}, "quantile"),
        ({"similarity": "mi"}, "'mse' or 'lncc'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FineTuning(**changes)


def test_a_step_too_large_for_memory_is_refused_before_it_begins(network, pairs, monkeypatch):
    from types import SimpleNamespace

    from napari_shmoareg.engine import memory

    before = copy.deepcopy(network.state_dict())
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=300 * 2**20))
    with pytest.raises(TooLargeError, match=r"A step of learning on the grid .* needs about .* GiB"):
        next(fine_tune(network, pairs, FineTuning(steps=1)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
