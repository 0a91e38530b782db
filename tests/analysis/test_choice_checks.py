"""What choices follow: every figure against one counted by hand, on networks made to follow what is
asked.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.experts.choice_checks import (
    ChoiceCheck,
    check_choices,
    kappa,
    mean_checks,
    mutual_information,
    share_explained,
)
from napari_shmoareg.geometry import field
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.model.decoder import Level
from napari_shmoareg.model.gate_sites import gates_of
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.losses import squared_correlation
from napari_shmoareg.registration.replay import Replay


def test_kappa_is_cohens_and_1_only_without_change():
    one, other = np.array([[0, 0, 1, 1, 2, 2, 0, 1]]), np.array([[0, 1, 1, 1, 2, 0, 0, 1]])
    chance = (3 * 3 + 3 * 4 + 2 * 1) / 64
    assert kappa(one, other, 3) == pytest.approx((6 / 8 - chance) / (1 - chance))
    assert kappa(one, one, 3) == 1 and kappa(one * 0, one * 0, 3) is None
    lot = np.random.default_rng(0)
    sets = [lot.random((12, 20_000)).argsort(axis=0)[:4] for _ in range(2)]
    assert abs(kappa(*sets, 12)) < 0.01 and kappa(sets[0], sets[0][::-1], 12) == 1


def test_information_is_that_of_the_counts():
    labels = np.array([1, 1, 1, 1, 7, 7, 7, 7])
    assert mutual_information(np.array([[0, 0, 0, 0, 2, 2, 2, 2]]), labels) == pytest.approx(1)
    assert mutual_information(np.array([[0, 1, 0, 1, 0, 1, 0, 1]]), labels) == pytest.approx(0)
    halves = np.array([[0, 0, 0, 1, 1, 1, 1, 0]])
    assert mutual_information(halves, labels) == pytest.approx(
        1 + 0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)
    )
    assert mutual_information(np.array([[0, 0, 1, 1], [1, 1, 0, 0]]), labels[2:6]) == pytest.approx(
        0
    )
    assert share_explained(np.array([0, 0, 2, 2]), np.array([1, 1, 0, 0])) == pytest.approx(1)
    assert share_explained(np.array([1, 1]), np.array([0, 1])) is None


@pytest.fixture
def network(lively_network):
    made = lively_network(0.05)
    object.__setattr__(made.config, "passes", (0.7, 1.0))
    return made


@pytest.fixture
def replay(pair, network):
    return Replay.of(pair, network, settings={"size": 26})


@pytest.fixture
def checked(replay):
    told = []
    found = check_choices(replay, progress=lambda title, done: told.append(done))
    assert told == sorted(told) and told[-1] == 1
    return {check.gate: check for check in found}


def content(pair, replay):
    """Voxels of the network grid, (I, J, K), whose nearest voxel of the fixed image shows
    something.
    """
    shown = Intensity.of(pair.fixed).content(pair.fixed.values)
    return resample(pair.fixed_labels.with_values(shown.astype(np.int32)), replay.grid).values != 0


def test_every_gate_is_checked_and_the_network_left_as_it_was(replay, network, checked):
    _, routing = replay.run()
    assert [check.part for check in checked.values()] == [record.part for record in routing]
    for record, check in zip(routing, checked.values(), strict=True):
        assert check.stability is None or -0.2 < check.stability <= 1
        assert 0 <= check.information < 4 and 0 <= check.untrained_information < 4
        assert (check.best_agreement is None) == (record.part == "encoder")
        assert check.learned_information == check.information - check.untrained_information
    assert any(check.stability and check.stability < 0.999 for check in checked.values()), (
        "the noise changes something"
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(replay.run()[0], replay.run()[0])


def test_sign_share_and_best_expert_are_those_of_the_level_itself(pair, replay, network, checked):
    """The finest level computed once more, expert by expert, from what it was given."""
    levels = [m for m in network.decoder.levels if isinstance(m, Level)]
    given = []
    handle = levels[-1].register_forward_hook(lambda m, args, out: given.append((args, out)))
    replay.run()
    handle.remove()
    (_, _, below, steps), (features, _, routed) = given[0]
    assert steps is None, "not diffeomorphic: the residual is the step"
    i, j, k = replay.grid.shape
    inside = content(pair, replay)
    head = levels[-1].head
    for axis, record in enumerate(routed):
        chosen = record.routing.experts[0, 0, :i, :j, :k].numpy()[inside]
        residual = record.residual[0, 0, :i, :j, :k].numpy()[inside]
        check = next(
            c
            for p, c in checked.items()
            if (p.part, p.layer, p.direction) == ("decoder", 1, "xyz"[axis])
        )
        assert check.cells == inside.sum()
        joint = np.array(
            [
                [((chosen == e) & ((residual > 0) == s)).sum() for s in (False, True)]
                for e in range(3)
            ]
        )
        p = joint / joint.sum()
        outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
        bits = (p[p > 0] * np.log2(p[p > 0] / outer[p > 0])).sum()
        shares = p.sum(1)[p.sum(1) > 0]
        assert check.sign_share == pytest.approx(bits / -(shares * np.log2(shares)).sum(), abs=1e-9)

        start = field.upsample(below, features.shape[2:])
        images = []
        for image in (
            field.warp(replay.conformed.moving, replay.start, padding="border"),
            replay.conformed.fixed,
        ):
            spare = [n - m for n, m in zip(features.shape[2:], image.shape[2:], strict=True)]
            pads = (0, spare[2], 0, spare[1], 0, spare[0])
            images.append(torch.nn.functional.pad(image, pads, mode="replicate"))
        errors = []
        with torch.inference_mode():
            for e, kernel in enumerate(head.experts["xyz"[axis]]):
                gate = record.routing.probabilities[:, e : e + 1]
                step = torch.cat([r.residual for r in routed], 1).clone()
                step[:, axis : axis + 1] = gate * kernel(features)
                warped = field.warp(images[0], field.compose(start, step), padding="border")
                errors.append(
                    (1 - squared_correlation(warped, images[1], 5))[0, 0, :i, :j, :k].numpy()[
                        inside
                    ]
                )
        table = np.stack(errors)
        assert np.ptp(table, axis=0).max() > 1e-3
        telling = np.ptp(table, axis=0) > 1e-3
        assert check.best_cells == pytest.approx(telling.sum(), abs=3)
        agreed = (table.argmin(0) == chosen)[telling].mean()
        assert check.best_agreement == pytest.approx(agreed, abs=2e-3)


def test_a_gate_that_follows_the_sign_is_found_out_and_one_that_follows_a_label_too(
    pair, replay, network
):
    """The gate of x is told which label a voxel has; that of y takes kernel 0 where the residual
    will be positive.
    """
    labels = resample(pair.fixed_labels, replay.grid).values
    i, j, k = labels.shape
    sites = {s.direction: s for s in gates_of(network) if (s.part, s.layer) == ("decoder", 1)}
    head = sites["y"].owner
    outputs = {}
    handles = [
        head.register_forward_pre_hook(lambda m, args: outputs.update(y=m.convolve(args[0])[0][1]))
    ]

    def by_label(module, args, output):
        if any(n < m for n, m in zip(output.shape[2:], labels.shape, strict=True)):
            return output  # the coarse pass
        told = torch.full_like(output, 0.1)
        ids = torch.zeros(output.shape[2:], dtype=torch.int64)
        ids[:i, :j, :k] = torch.from_numpy(labels % 3)
        return told.scatter(1, ids[None, None], 0.8)

    def by_sign(module, args, output):
        positive = outputs["y"][:, :1] > 0
        negative = outputs["y"][:, 1:2] < 0
        chosen = torch.where(positive, 0, torch.where(negative, 1, 2))
        return torch.full_like(output, 0.1).scatter(1, chosen, 0.8)

    handles += [
        sites["x"].module.register_forward_hook(by_label),
        sites["y"].module.register_forward_hook(by_sign),
    ]
    found = {check.gate: check for check in check_choices(replay)}
    for handle in handles:
        handle.remove()
    x, y = (next(c for p, c in found.items() if (p.layer, p.direction) == (1, d)) for d in "xy")
    seen = labels[labels != 0]
    shares = np.bincount(seen % 3) / seen.size
    shares = shares[shares > 0]
    assert x.information == pytest.approx(-(shares * np.log2(shares)).sum())
    assert x.learned_information > 0.9 * x.information
    assert x.stability == pytest.approx(1)
    assert y.sign_share > 0.3 > 5 * (x.sign_share or 0)


def test_checks_of_pairs_are_averaged_gate_by_gate_or_layer_by_layer():
    def one(block, stability, bits, cells):
        return ChoiceCheck("encoder", 1, block, "moving", None, cells, stability, information=bits)

    checks = [one(0, 0.5, 0.2, 10), one(0, 0.7, None, 30), one(1, None, 0.6, 20)]
    first, second = mean_checks(checks)
    assert (first.block, first.stability, first.information, first.cells) == (
        0,
        pytest.approx(0.6),
        0.2,
        40,
    )
    assert (second.block, second.stability, second.sign_share) == (1, None, None)
    (whole,) = mean_checks(checks, by_layer=True)
    assert (whole.block, whole.image, whole.cells) == (None, None, 60)
    assert whole.information == pytest.approx(0.4) and whole.stability == pytest.approx(0.6)


def test_without_labels_there_is_no_information(pair, network):
    bare = Replay.of(
        replace(pair, moving_labels=None, fixed_labels=None), network, settings={"size": 26}
    )
    checks = check_choices(bare)
    assert all(c.information is None and c.untrained_information is None for c in checks)
    assert all(c.best_agreement is not None for c in checks if c.part == "decoder")
