"""What depends on an expert: figures of an intervention against the same taken by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.experts.experiment import Experiment, importance, recorded_agreement
from napari_shmoareg.experts.intervention import Intervention, changed_gates
from napari_shmoareg.io import read_registration, write_registration
from napari_shmoareg.metrics import dice
from napari_shmoareg.model import RoutingTrace
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.register import register
from napari_shmoareg.registration.replay import Replay

OPTIONS = {"keep": "last", "affine": "none", "size": 20, "device": "cpu"}


@pytest.fixture
def experiment(pair, tiny_network, registration):
    matrix = registration.alignment.matrix
    return Experiment(Replay.of(pair, tiny_network, affine=matrix, settings=registration.settings))


def test_the_unchanged_run_is_the_registration_to_the_last_bit(experiment, registration):
    np.testing.assert_array_equal(
        experiment.base.displacement.vectors, registration.displacement.vectors
    )
    np.testing.assert_array_equal(experiment.base.warped.values, registration.warped.values)
    assert experiment.base.folding_percent == registration.folding_percent
    assert recorded_agreement(experiment, registration.routing) == 1
    first, *others = registration.routing
    turned = first.routing._replace(experts=(first.routing.experts + 1) % first.num_experts)
    other = RoutingTrace((replace(first, routing=turned), *others))
    assert recorded_agreement(experiment, other) < 1
    assert recorded_agreement(experiment, RoutingTrace()) == 1


SETTINGS = {
    "contrast matched": {"contrast": "match"},
    "diffeomorphic": {"diffeomorphic": True},
    "aligned": {"affine": "rigid"},
    "native": {"size": "native"},
    "two passes": {"size": 26},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_replay_is_the_registration_whatever_it_was_asked_for(pair, lively_network, name):
    """To the last bit; and each setting matters here, so that one that is forgotten would show."""
    asked = OPTIONS | SETTINGS[name]
    network = lively_network(0.05)
    if name == "two passes":
        object.__setattr__(network.config, "passes", (0.7, 1.0))
    registration = register(pair, network, **asked)
    matrix = registration.alignment.matrix
    replayed = Experiment(
        Replay.of(pair, network, affine=matrix, settings=registration.settings)
    ).base
    np.testing.assert_array_equal(replayed.displacement.vectors, registration.displacement.vectors)
    plain = Experiment(
        Replay.of(pair, lively_network(0.05), settings={"size": 20, "contrast": "keep"})
    ).base
    assert not np.array_equal(plain.displacement.vectors, registration.displacement.vectors)


def test_a_replay_of_a_folder_is_the_registration(pair, tiny_network, registration, tmp_path):
    write_registration(registration, tmp_path / "result", weights="tiny", figures=False)
    scene = read_registration(tmp_path / "result")
    replay = Replay.of(
        scene.pair, tiny_network, affine=scene.affine, settings=scene.report["settings"]
    )
    np.testing.assert_array_equal(
        Experiment(replay).base.displacement.vectors, registration.displacement.vectors
    )


def test_an_effect_says_what_a_registration_under_the_same_hooks_gives(
    pair, tiny_network, registration, experiment
):
    change = Intervention("silence", 0, "decoder", 1, direction="x")
    effect = experiment.run(change)
    with changed_gates(tiny_network, [change], registration.network_grid):
        other = register(pair, tiny_network, **OPTIONS)
    difference = other.displacement.vectors - registration.displacement.vectors
    length = np.sqrt((difference.astype(np.float64) ** 2).sum(-1))
    assert length.max() > 0.01
    np.testing.assert_allclose(effect.moved.values, length, atol=1e-5)
    np.testing.assert_array_equal(
        effect.difference.values, other.warped.values - registration.warped.values
    )
    before, after = (
        dice(r.warped_labels.values, pair.fixed_labels.values) for r in (registration, other)
    )
    assert effect.dice_change == pytest.approx(
        {label: after[label] - before[label] for label in before}
    )
    assert effect.folding_change == pytest.approx(
        other.folding_percent - registration.folding_percent
    )
    content = Intensity.of(pair.fixed).content(pair.fixed.values)
    assert 0.1 < content.mean() < 0.9
    assert effect.mean_mm == pytest.approx(length[content].mean(), rel=1e-4)
    assert effect.p95_mm == pytest.approx(np.percentile(length[content], 95), rel=1e-4)
    assert effect.max_mm == pytest.approx(length[content].max(), rel=1e-4)
    first = registration.routing.select(layer=1, direction="x")[0].routing.experts[0, 0].numpy()
    assert effect.cells == first.size
    assert effect.changed == pytest.approx((first == 0).mean())
    assert experiment.share(change) == pytest.approx((first == 0).mean())


def test_a_change_in_the_encoder_runs_the_encoder_again(experiment):
    effect = experiment.run(Intervention("silence", 2, "encoder"))
    assert effect.changed > 0 and effect.max_mm > 0
    assert all(
        not (r.routing.experts == 2).any() for r in effect.outcome.routing.select(part="encoder")
    )
    again = experiment.run(Intervention("silence", 0, "decoder", 1, direction="x"))
    assert any((r.routing.experts == 2).any() for r in again.outcome.routing.select(part="encoder"))


def test_importance_has_a_row_per_expert_that_equals_a_run_by_hand(experiment):
    rows = list(importance(experiment, part="decoder", layer=1, direction="y", seed=7))
    assert [(row.number, row.total, row.expert) for row in rows] == [
        (1, 3, 0),
        (2, 3, 1),
        (3, 3, 2),
    ]
    assert sum(row.share for row in rows) == pytest.approx(1)
    change = Intervention("silence", 1, "decoder", 1, direction="y")
    effect, beside = experiment.run(change), experiment.run(experiment.null(change, seed=7 + 2))
    assert rows[1].mean_mm == effect.mean_mm and rows[1].mean_dice_change == effect.mean_dice_change
    assert rows[1].null_mm == beside.mean_mm
    whole = importance(experiment, null=False)
    first = next(whole)
    assert (first.part, first.layer, first.total, first.null_mm) == (
        "encoder",
        1,
        2 * 6 + 2 * 3 * 3,
        None,
    )
    with pytest.raises(InputError, match="no gate"):
        next(importance(experiment, part="decoder", layer=9))


def test_the_order_of_the_chosen_is_no_other_choice(experiment):
    """The second head's value raised above the first one's: the same two heads, the other way
    round.
    """
    routing = experiment.base.routing
    turned = RoutingTrace(
        tuple(
            replace(r, routing=r.routing._replace(experts=r.routing.experts.flip(1)))
            for r in routing
        )
    )
    assert experiment._choices((Intervention("silence", 0, "encoder"),), turned)[1] == 0


def test_a_label_of_one_image_alone_is_in_no_mean(pair, tiny_network):
    moving = pair.moving_labels.values.copy()
    free = np.argwhere(moving > 0)[::7]
    for n, voxel in enumerate(free):
        moving[tuple(voxel)] = 100 + n  # none of them is in the fixed labels
    speckled = replace(pair, moving_labels=pair.moving_labels.with_values(moving))
    experiment = Experiment(Replay.of(speckled, tiny_network, settings={"size": 20}))
    effect = experiment.run(Intervention("force", 2, "decoder"))
    both = [label for label in pair.fixed_labels.labels if (moving == label).any()]
    for scores in (experiment.base.dice, effect.outcome.dice, effect.dice_change):
        assert {label for label, value in scores.items() if not np.isnan(value)} == set(both)
        assert set(scores) == {*both, *range(100, 100 + len(free))}
    assert experiment.base.mean_dice == pytest.approx(
        np.mean([experiment.base.dice[label] for label in both])
    )
    assert effect.mean_dice_change == pytest.approx(
        np.mean([effect.dice_change[label] for label in both])
    )


def test_too_little_memory_is_told_before_it_is_taken(pair, tiny_network, monkeypatch):
    replay = Replay.of(pair, tiny_network, settings={"size": 20})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(TooLargeError, match="compared on the fixed image's grid"):
        Experiment(replay)


def test_a_map_of_experts_has_no_share_and_no_counterpart(experiment):
    change = experiment.null(Intervention("silence", 1, "decoder", 1))
    for ask in (experiment.share, experiment.null):
        with pytest.raises(InputError, match=r"one expert|no single expert"):
            ask(change)


def test_without_labels_there_is_no_dice(pair, tiny_network):
    bare = replace(pair, moving_labels=None, fixed_labels=None)
    experiment = Experiment(Replay.of(bare, tiny_network, settings={"size": 20}))
    effect = experiment.run(Intervention("silence", 0, "decoder"))
    assert (
        effect.dice_change == {}
        and effect.mean_dice_change is None
        and experiment.base.mean_dice is None
    )
