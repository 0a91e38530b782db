"""fine_tune(): what a step does, stopping and going on, bad input."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.geometry import Grid, field
from napari_shmoareg.model import RoutingTrace, SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.losses import LossTerms
from napari_shmoareg.training import step as step_module
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import Batch, NotFiniteError, fine_tune, make_optimiser
from napari_shmoareg.training.synthesis import SyntheticPairs
from napari_shmoareg.training.synthesis_settings import SynthesisSettings

SMALL = SynthesisSettings(
    extent=((48.0, 48.0), (64.0, 64.0), (48.0, 48.0)), size=(16, 16), labels=4
)


@pytest.fixture
def pairs():
    return [SyntheticPairs([], SMALL, seed=5)[i] for i in range(3)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SHMoAReg(SHMoARegConfig.preset("tiny"))


@pytest.mark.slow
def test_learning_from_one_pair_makes_it_more_alike(network):
    x = torch.linspace(-1, 1, 16)
    ball = [
        ((x[:, None, None] - s) ** 2 + x[:, None] ** 2 + x**2 < 0.4).float()[None, None]
        for s in (0.0, 0.25)
    ]
    smooth = [torch.nn.functional.avg_pool3d(b, 3, 1, 1) for b in ball]
    pair = Conformed(
        moving=smooth[0], fixed=smooth[1], grid=Grid((16, 16, 16), np.eye(4)), affine=np.eye(4)
    )
    settings = FineTuning(steps=60, learning_rate=3e-3)
    steps = list(fine_tune(network, [pair], settings))
    assert [s.step for s in steps] == list(range(1, 61))
    assert steps[-1].similarity < 0.6 * steps[0].similarity


@pytest.mark.parametrize("cascade", [0.0, 0.5])
def test_a_stopped_run_that_goes_on_equals_one_never_stopped(network, pairs, cascade):
    settings = FineTuning(
        steps=6, learning_rate=1e-3, overlap_weight=1.0, diffeomorphic=0.5, cascade=cascade
    )
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
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True)
    )


class Witness:
    """Stands in for the first pass and looks on at the loss."""

    def __init__(self, monkeypatch, displacement=None):
        self.passes, self.losses, self.seeds = [], [], []
        true_pass, true_loss, true_seed = (
            step_module.run_at_scale,
            step_module.total_loss,
            torch.manual_seed,
        )

        def run_at_scale(network, moving, fixed, share, *, diffeomorphic=None):
            found = displacement
            if found is None:
                found = true_pass(network, moving, fixed, share, diffeomorphic=diffeomorphic)
            self.passes.append(
                (share, diffeomorphic, network.training, torch.is_grad_enabled(), found)
            )
            return found

        def total_loss(output, *rest):
            self.losses.append(rest)
            return true_loss(output, *rest)

        def manual_seed(seed):
            self.seeds.append(seed)
            return true_seed(seed)

        monkeypatch.setattr(step_module, "run_at_scale", run_at_scale)
        monkeypatch.setattr(step_module, "total_loss", total_loss)
        monkeypatch.setattr(torch, "manual_seed", manual_seed)


def test_a_step_of_the_cascade_learns_from_what_the_first_pass_left(network, pairs, monkeypatch):
    pair = pairs[0]
    shift = torch.zeros(1, 3, *pair.grid.shape)
    shift[:, 1] = 2.0
    witness = Witness(monkeypatch, shift)
    list(fine_tune(network, [pair], FineTuning(steps=1, cascade=1.0, overlap_weight=1.0)))
    ((moving, fixed, _, moving_labels, fixed_labels),) = witness.losses
    for image, labels, here in ((moving, moving_labels, 0), (fixed, fixed_labels, 1)):
        assert torch.equal(image[here : here + 1], field.warp(pair.moving, shift, padding="border"))
        assert torch.equal(labels[here : here + 1], field.warp(pair.moving_labels, shift))
        assert torch.equal(image[1 - here :][:1], pair.fixed)
        assert torch.equal(labels[1 - here :][:1], pair.fixed_labels)


def test_the_first_pass_has_no_gradient_and_leaves_the_network_in_training(
    network, pairs, monkeypatch
):
    witness = Witness(monkeypatch)
    settings = FineTuning(steps=6, cascade=1.0, diffeomorphic=0.5)
    for _ in fine_tune(network, pairs, settings):
        assert network.training
    assert len(witness.passes) == 6
    low, high = step_module.FIRST_PASS
    for share, _, training, gradient, found in witness.passes:
        assert low <= share <= high
        assert not training and not gradient and not found.requires_grad
    assert {diffeomorphic for _, diffeomorphic, *_ in witness.passes} == {None, True}


def test_a_share_of_the_steps_is_cascaded(network, pairs, monkeypatch):
    witness = Witness(monkeypatch)
    list(fine_tune(network, pairs, FineTuning(steps=24, cascade=0.5)))
    assert 5 < len(witness.passes) < 19


def test_without_a_cascade_the_random_numbers_are_those_of_before_there_was_one(
    network, pairs, monkeypatch
):
    witness = Witness(monkeypatch)
    list(fine_tune(copy.deepcopy(network), pairs, FineTuning(steps=3, diffeomorphic=0.5, seed=7)))
    assert witness.passes == []
    wanted = []
    for step in range(3):
        rng = np.random.default_rng([7, 1, step])
        rng.random()  # diffeomorphic or not
        wanted.append(int(rng.integers(2**31)))
    assert witness.seeds == wanted


def test_a_cascade_that_is_never_drawn_changes_no_loss(network, pairs):
    plain, never = (
        [
            s.total
            for s in fine_tune(
                copy.deepcopy(network), pairs, FineTuning(steps=3, diffeomorphic=0.5, cascade=c)
            )
        ]
        for c in (0.0, 1e-12)
    )
    assert plain == never


def test_one_label_in_shares_stays_shares_and_one_in_whole_numbers_is_found(
    network, pairs, monkeypatch
):
    witness = Witness(monkeypatch)
    both = (pairs[0].moving_labels, pairs[0].fixed_labels)
    common = int((torch.minimum(*both) > 0.5).sum((0, 2, 3, 4)).argmax())
    shares = [labels[:, common : common + 1] for labels in both]
    assert all(bool((labels > 0.5).any()) for labels in shares)
    one = replace(pairs[0], moving_labels=shares[0], fixed_labels=shares[1])
    whole = replace(
        pairs[0],
        moving_labels=5 * (shares[0] > 0.5).float(),
        fixed_labels=5 * (shares[1] > 0.5).float(),
    )
    settings = FineTuning(steps=1, overlap_weight=1.0)
    for pair in (one, whole):
        list(fine_tune(copy.deepcopy(network), [pair], settings))
    (*_, found, _), (*_, rounded, _) = witness.losses
    assert torch.equal(found, torch.cat(shares))
    assert torch.equal(rounded, (torch.cat(shares) > 0.5).float())


def test_every_pair_comes_once_an_epoch(network, pairs):
    seen = [s.pairs[0] for s in fine_tune(network, pairs, FineTuning(steps=6))]
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


def test_labels_without_a_common_one_are_no_labels(network, pairs):
    found = []
    for there, here in ((2.0, 3.0), (None, None)):
        maps = [None if v is None else v * (pairs[0].fixed > 0.5).float() for v in (there, here)]
        pair = replace(pairs[0], moving_labels=maps[0], fixed_labels=maps[1])
        found += fine_tune(copy.deepcopy(network), [pair], FineTuning(steps=1, overlap_weight=1.0))
    assert np.isnan(found[0].overlap) and found[0].total == pytest.approx(found[1].total)


def test_the_overlap_of_a_batch_is_the_mean_over_its_pairs_with_labels():
    batch = Batch(3)
    for item, overlap in enumerate((0.25, float("nan"), 0.75)):
        batch.note(
            item, item, LossTerms(*torch.tensor([1.0, 0.5, 0.25, 0.125, overlap])), RoutingTrace(())
        )
    step = batch.step(1, gradient=0.0, rate=0.0, seconds=0.0)
    assert (step.overlap, step.total, step.similarity) == (0.5, 1.0, 0.5)


def test_a_further_term_is_the_mean_over_the_pairs_that_have_it():
    terms = LossTerms(*torch.tensor([1.0, 0.5, 0.25, 0.125, float("nan")]))
    batch = Batch(3)
    for item, value in enumerate((1.0, None, 4.0)):
        held = terms if value is None else terms.plus("teacher", torch.tensor(value), 0.5)
        batch.note(item, item, held, RoutingTrace(()))
    step = batch.step(1, gradient=0.0, rate=0.0, seconds=0.0)
    assert step.further["teacher"] == 2.5 and np.isnan(step.further["bending"])
    assert step.total == pytest.approx((1.5 + 1.0 + 3.0) / 3)


def test_terms_and_weights_add_up_to_the_loss(network, pairs):
    weights = {"balance": 0.05, "z": 0.001, "bending": 0.2, "inverse": 0.3, "head_diversity": 0.1}
    settings = FineTuning(steps=1, **{f"{name}_weight": weight for name, weight in weights.items()})
    (step,) = fine_tune(network, pairs[:1], settings)
    assert {name for name, value in step.further.items() if value == value} == set(weights)
    paper = (
        settings.similarity_weight * step.similarity
        + settings.smoothness_weight * step.smoothness
        + settings.routing_weight * step.routing
    )
    beyond = sum(weight * step.further[name] for name, weight in weights.items())
    assert step.total == pytest.approx(paper + beyond, rel=1e-5)


def test_a_pair_with_nan_stops_the_run_and_leaves_the_weights_of_the_step_before(network, pairs):
    bad = replace(pairs[0], moving=torch.full_like(pairs[0].moving, float("nan")))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError, match=r"loss became nan at step 1, on pair 0.*step before"):
        list(fine_tune(network, [bad], FineTuning(steps=2)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_the_weight_of_inverse_consistency_makes_two_orders_undo_each_other(network, pairs):
    left = {}
    for weight in (0.0, 1.0):
        trained = copy.deepcopy(network)
        settings = FineTuning(
            steps=25, learning_rate=5e-3, smoothness_weight=0.0, inverse_weight=weight
        )
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
    with pytest.raises(InputError, match="no training pair"):
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
        ({"cascade": 1.5}, "cascade must be between 0 and 1; got 1.5"),
        ({"similarity": "mi"}, "'mse' or 'lncc'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FineTuning(**changes)


def test_a_step_too_large_for_memory_is_refused_before_it_begins(network, pairs, monkeypatch):
    from types import SimpleNamespace

    from napari_shmoareg.registration import resources

    before = copy.deepcopy(network.state_dict())
    monkeypatch.setattr(
        resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=300 * 2**20)
    )
    with pytest.raises(TooLargeError, match=r"A training step on the grid .* needs about .* GiB"):
        next(fine_tune(network, pairs, FineTuning(steps=1)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_batch_is_the_mean_of_its_pairs(pairs):
    one = [pairs[0], pairs[0]]
    # which would be drawn for each pair
    alone = SHMoAReg(SHMoARegConfig.preset("tiny", drop_path=0.0))
    twice = copy.deepcopy(alone)
    (single,) = fine_tune(alone, one, FineTuning(steps=1))
    (double,) = fine_tune(twice, one, FineTuning(steps=1, batch=2))
    assert sorted(double.pairs) == [0, 1] and len(single.pairs) == 1
    assert double.total == pytest.approx(single.total, rel=1e-5)
    assert double.gradient == pytest.approx(single.gradient, rel=1e-3)
    assert all(sum(count) == 2 * sum(single.counts[name]) for name, count in double.counts.items())


def test_an_epoch_of_batches_sees_every_pair_once(network, pairs):
    seen = [s.pairs for s in fine_tune(network, pairs, FineTuning(steps=2, batch=3))]
    assert [sorted(batch) for batch in seen] == [[0, 1, 2], [0, 1, 2]]


def test_every_cell_is_counted_once_for_each_expert_it_chose(network, pairs):
    (step,) = fine_tune(network, [pairs[0]], FineTuning(steps=1))
    voxels = pairs[0].fixed.numel()
    config = network.config
    assert {len(step.counts[f"decoder-1-{axis}"]) for axis in "xyz"} == {len(config.kernels)}
    assert {sum(step.counts[f"decoder-1-{axis}"]) for axis in "xyz"} == {2 * voxels}
    tokens = int(np.prod([-(-n // 4) for n in pairs[0].grid.shape]))
    for image in ("moving", "fixed"):  # both orders, each block of the layer
        assert (
            sum(step.counts[f"encoder-1-{image}"]) == 2 * tokens * config.top_k * config.depths[0]
        )


def test_a_frozen_encoder_stays_as_it_is_and_the_decoder_learns(network, pairs):
    before = copy.deepcopy(network.state_dict())
    settings = FineTuning(steps=2, learning_rate=1e-3, freeze_encoder=True)
    assert {
        id(p) for group in make_optimiser(network, settings).param_groups for p in group["params"]
    } == {id(p) for p in network.decoder.parameters()}
    list(fine_tune(network, pairs, settings))
    changed = {
        name.split(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(before[name], value)
    }
    assert changed == {"decoder"}
    # and is free again where not asked for
    list(fine_tune(network, pairs, FineTuning(steps=1, learning_rate=1e-3)))
    assert any(
        not torch.equal(before[n], v)
        for n, v in network.encoder.state_dict(prefix="encoder.").items()
    )


@pytest.mark.parametrize("diffeomorphic", [0.0, 1.0])
def test_checkpointing_changes_memory_and_nothing_else(network, pairs, diffeomorphic):
    other, kept = copy.deepcopy(network), {}
    for trained, again in ((network, False), (other, True)):
        settings = FineTuning(
            steps=2,
            learning_rate=1e-3,
            overlap_weight=1.0,
            diffeomorphic=diffeomorphic,
            checkpointing=again,
        )
        held: dict[int, int] = {}

        def pack(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trained.both_orders(pairs[0].moving, pairs[0].fixed, checkpointing=again)
        kept[again] = sum(held.values())
        list(fine_tune(trained, pairs, settings))
    assert kept[True] < 0.7 * kept[False]
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


class Damaged(list):
    """Pairs of which some cannot be read."""

    def __init__(self, pairs, damaged):
        super().__init__(pairs)
        self.damaged = damaged

    def __getitem__(self, index):
        if index in self.damaged:
            raise InputError(f"scan-{index}.nii.gz cannot be read")
        return super().__getitem__(index)


def test_a_pair_that_cannot_be_read_is_told_and_another_takes_its_place(network, pairs):
    steps = list(fine_tune(network, Damaged(pairs, {1}), FineTuning(steps=3)))
    assert sorted(step.pairs[0] for step in steps) == [0, 2, 2]
    assert [s for step in steps for s in step.skipped] == [(1, "scan-1.nii.gz cannot be read")]


def test_where_no_pair_can_be_read_the_last_one_is_named(network, pairs):
    with pytest.raises(
        InputError, match=r"3 pairs in a row could not be read. The last: scan-\d.nii.gz"
    ):
        next(fine_tune(network, Damaged(pairs, {0, 1, 2}), FineTuning(steps=3)))


def test_the_pair_whose_loss_is_not_finite_is_named_among_those_of_its_batch(network, pairs):
    pairs[1] = replace(pairs[1], fixed=torch.full_like(pairs[1].fixed, float("nan")))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(NotFiniteError, match="on pair 1;") as caught:
        list(fine_tune(network, pairs, FineTuning(steps=1, batch=3)))
    assert caught.value.pairs == (1,) and caught.value.step == 1
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
