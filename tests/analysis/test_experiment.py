"""What depends on an expert: figures of an intervention against the same taken by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.analysis.experiment import Experiment, recorded_alike
from napari_shmoareg.analysis.expert_load import place_of
from napari_shmoareg.analysis.importance import importance
from napari_shmoareg.analysis.intervention import Intervention, intervening
from napari_shmoareg.analysis.metrics import dice
from napari_shmoareg.engine.registration import register
from napari_shmoareg.engine.replay import Replay
from napari_shmoareg.geometry import InputError

OPTIONS = {"affine": "none", "size": 20, "device": "cpu"}


@pytest.fixture
def experiment(pair, tiny_network, registration):
    matrix = registration.alignment.matrix
    return Experiment(Replay.of(pair, tiny_network, affine=matrix, settings=registration.settings))


def test_the_unchanged_run_is_the_registration_to_the_last_bit(experiment, registration):
    np.testing.assert_array_equal(experiment.base.displacement.vectors, registration.displacement.vectors)
    np.testing.assert_array_equal(experiment.base.warped.values, registration.warped.values)
    assert experiment.base.folding_percent == registration.folding_percent
    recorded = {place_of(r): r.routing.experts[0, 0].numpy() for r in registration.routing}
    assert recorded_alike(experiment, recorded) == 1
    one = next(iter(recorded))
    recorded[one] = recorded[one] + 1
    assert recorded_alike(experiment, recorded) < 1


def test_a_cascade_is_replayed_with_its_earlier_passes_as_they_were(pair, lively_network):
    network = lively_network(0.05)
    object.__setattr__(network.config, "passes", (0.7, 1.0))
    registration = register(pair, network, affine="none", size=26, device="cpu")
    assert registration.settings["passes"] == [0.7, 1.0]
    experiment = Experiment(Replay.of(pair, network, settings=registration.settings))
    np.testing.assert_array_equal(experiment.base.displacement.vectors, registration.displacement.vectors)


def test_an_effect_says_what_a_registration_under_the_same_hooks_gives(pair, tiny_network, registration, experiment):
    change = Intervention("silence", 0, "decoder", 1, direction="x")
    effect = experiment.run(change)
    with intervening(tiny_network, [change], registration.network_grid):
        other = register(pair, tiny_network, **OPTIONS)
    difference = other.displacement.vectors - registration.displacement.vectors
    length = np.sqrt((difference.astype(np.float64) ** 2).sum(-1))
    assert length.max() > 0.01
    np.testing.assert_allclose(effect.moved.values, length, atol=1e-5)
    np.testing.assert_array_equal(effect.difference.values, other.warped.values - registration.warped.values)
    before, after = (dice(r.warped_labels.values, pair.fixed_labels.values) for r in (registration, other))
    assert effect.dice_change == pytest.approx({label: after[label] - before[label] for label in before})
    assert effect.folding_change == pytest.approx(other.folding_percent - registration.folding_percent)
    assert effect.max_mm <= length.max() and effect.mean_mm <= effect.p95_mm <= effect.max_mm
    first = registration.routing.select(layer=1, direction="x")[0].routing.experts[0, 0].numpy()
    assert effect.cells == first.size
    assert effect.changed == pytest.approx((first == 0).mean())
    assert experiment.share(change) == pytest.approx((first == 0).mean())


def test_a_change_in_the_encoder_runs_the_encoder_again(experiment):
    effect = experiment.run(Intervention("silence", 2, "encoder"))
    assert effect.changed > 0 and effect.max_mm > 0
    assert all(not (r.routing.experts == 2).any() for r in effect.outcome.routing.select(part="encoder"))
    again = experiment.run(Intervention("silence", 0, "decoder", 1, direction="x"))
    assert any((r.routing.experts == 2).any() for r in again.outcome.routing.select(part="encoder"))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_random_counterpart_silences_as_many_selections_at_other_cells(experiment, part):
    change = Intervention("silence", 1, part, 1)
    null = experiment.null(change, seed=3)
    for record in experiment.base.routing.select(part=part, layer=1):
        ids, chosen = null.expert[place_of(record)], record.routing.experts[0].numpy()
        assert (ids >= 0).sum() == (chosen == 1).sum()
        drawn = ids >= 0
        assert (chosen[:, drawn] == ids[drawn]).any(axis=0).all()  # only what was chosen can be silenced
        assert np.unique(ids[drawn]).size > 1
    assert experiment.run(null).changed > 0
    other = experiment.null(change, seed=4).expert
    assert any((ids != other[place]).any() for place, ids in null.expert.items())


def test_the_random_counterpart_of_forcing_acts_at_the_same_cells(experiment):
    change = Intervention("force", 2, "decoder", 1, direction="z")
    null = experiment.null(change)
    ((place, ids),) = null.expert.items()
    chosen = experiment.base.routing.select(layer=1, direction="z")[0].routing.experts[0, 0].numpy()
    assert place.direction == "z"
    np.testing.assert_array_equal(ids >= 0, chosen != 2)
    assert ((ids != chosen) & (ids != 2))[ids >= 0].all()


def test_importance_has_a_row_per_expert_that_equals_a_run_by_hand(experiment):
    rows = list(importance(experiment, part="decoder", layer=1, direction="y", seed=7))
    assert [(row.number, row.total, row.expert) for row in rows] == [(1, 3, 0), (2, 3, 1), (3, 3, 2)]
    assert sum(row.share for row in rows) == pytest.approx(1)
    change = Intervention("silence", 1, "decoder", 1, direction="y")
    effect, beside = experiment.run(change), experiment.run(experiment.null(change, seed=7 + 2))
    assert rows[1].mean_mm == effect.mean_mm and rows[1].mean_dice_change == effect.mean_dice_change
    assert rows[1].null_mm == beside.mean_mm
    whole = importance(experiment, null=False)
    first = next(whole)
    assert (first.part, first.layer, first.total, first.null_mm) == ("encoder", 1, 2 * 6 + 2 * 3 * 3, None)
    with pytest.raises(InputError, match="no gate"):
        next(importance(experiment, part="decoder", layer=9))


def test_without_labels_there_is_no_dice(pair, tiny_network):
    from dataclasses import replace

    bare = replace(pair, moving_labels=None, fixed_labels=None)
    experiment = Experiment(Replay.of(bare, tiny_network, settings={"size": 20}))
    effect = experiment.run(Intervention("silence", 0, "decoder"))
    assert effect.dice_change == {} and effect.mean_dice_change is None and experiment.base.mean_dice is None
