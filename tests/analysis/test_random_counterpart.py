"""The null of an intervention: as much changed, for others, elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_shmoareg.experts.experiment import Experiment
from napari_shmoareg.experts.gate_edits import cells_in
from napari_shmoareg.experts.intervention import Intervention, changed_gates
from napari_shmoareg.model.gate_sites import gates_of
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.replay import Replay


@pytest.fixture
def experiment(pair, tiny_network):
    return Experiment(Replay.of(pair, tiny_network, settings={"size": 20}))


def content_cells(pair, grid, stride):
    """Cells of which at least half shows something in the fixed image: read voxel by voxel."""
    shown = Intensity.of(pair.fixed).content(pair.fixed.values)
    points = grid.to_world(np.stack(np.indices(grid.shape), -1))
    index = np.rint(pair.fixed.grid.to_index(points)).astype(int)
    within = ((index >= 0) & (index < pair.fixed.grid.shape)).all(-1)
    index[~within] = 0
    inside = within & shown[tuple(np.moveaxis(index, -1, 0))]
    cells = np.zeros(grid.coarsen(stride).shape)
    number = np.zeros(cells.shape)
    for voxel in np.ndindex(*grid.shape):
        cell = tuple(v // stride for v in voxel)
        cells[cell] += inside[voxel]
        number[cell] += 1
    return cells >= number / 2


@pytest.mark.parametrize(("part", "expert"), [("encoder", 1), ("decoder", 1), ("decoder", 2)])
def test_the_random_counterpart_silences_as_many_selections_of_others_in_content_and_air(
    pair, experiment, part, expert
):
    null = experiment.null(Intervention("silence", expert, part, 1), seed=3)
    assert null.ranks
    for record in experiment.base.routing.select(part=part, layer=1):
        ranks, chosen = null.expert[record.gate], record.routing.experts[0].numpy()
        own = (chosen == expert).any(axis=0)
        for stratum in (
            shown := content_cells(pair, experiment.replay.grid, record.stride),
            ~shown,
        ):
            assert (ranks[stratum] >= 0).sum() == own[stratum].sum()
        drawn = ranks >= 0
        lost = np.take_along_axis(chosen, np.maximum(ranks, 0)[None], axis=0)[0][drawn]
        others = ((chosen != expert).any(axis=0) & ~own).sum()
        if part == "encoder" or others >= own.sum():
            assert not (lost == expert).any()
    effect = experiment.run(null)
    assert effect.changed > 0
    other = experiment.null(Intervention("silence", expert, part, 1), seed=4).expert
    assert any((ranks != other[place]).any() for place, ranks in null.expert.items())


def test_the_random_counterpart_lies_in_patches_as_the_experts_own_cells_do(experiment):
    """Cells beside one another: of lone cells drawn by lot far fewer would have a neighbour."""

    def neighbours(mask):
        pairs = [
            (mask[1:] & mask[:-1]).sum(),
            (mask[:, 1:] & mask[:, :-1]).sum(),
            (mask[..., 1:] & mask[..., :-1]).sum(),
        ]
        return sum(pairs) / max(mask.sum(), 1)

    change = Intervention("silence", 2, "decoder", 1, direction="x")
    (record,) = experiment.base.routing.select(layer=1, direction="x")
    own = record.routing.experts[0, 0].numpy() == 2
    ((_, ranks),) = experiment.null(change, seed=1).expert.items()
    lone = np.zeros(own.size, bool)
    lone[np.random.default_rng(0).choice(own.size, own.sum(), replace=False)] = True
    assert neighbours(ranks >= 0) > (neighbours(own) + neighbours(lone.reshape(own.shape))) / 2


def test_the_counterpart_of_an_expert_with_most_selections_says_how_many_are_its_own(
    pair, tiny_network
):
    gate = next(g for g in gates_of(tiny_network) if (g.layer, g.direction) == (1, "x")).module
    with torch.no_grad():
        gate.bias[1] += 0.35
    experiment, most = Experiment(Replay.of(pair, tiny_network, settings={"size": 20})), 1
    (record,) = experiment.base.routing.select(layer=1, direction="x")
    chosen = record.routing.experts[0, 0].numpy()
    assert 0.6 < (chosen == most).mean() < 0.95
    null = experiment.null(Intervention("silence", most, "decoder", 1, direction="x"))
    ((_, ranks),) = null.expert.items()
    own = ((ranks >= 0) & (chosen == most)).sum() / (ranks >= 0).sum()
    assert f"({100 * own:.0f} % of them its own" in str(null)
    assert own < 1


@pytest.mark.parametrize("image", ["moving", None])
def test_as_many_selections_are_silenced_in_every_block_though_earlier_ones_changed_the_tokens(
    experiment, image
):
    """The ranks of the counterpart hold among what a token chooses by then, not what it chose
    before.
    """
    change = Intervention("silence", 1, "encoder", image=image)
    null = experiment.null(change)
    counted = {}

    def count(site):
        def hook(module, args, output):
            counted[site.layer, site.block] = (output == 0).sum()

        return site.module.register_forward_hook(hook, prepend=False)

    with changed_gates(experiment.replay.network, [null], experiment.replay.grid):
        handles = [
            count(site) for site in gates_of(experiment.replay.network) if site.part == "encoder"
        ]
        experiment.replay.run()
    for handle in handles:
        handle.remove()
    for (layer, block), silenced in counted.items():
        records = experiment.base.routing.select(part="encoder", layer=layer, block=block)
        wanted = sum(
            int((r.routing.experts == 1).sum()) for r in records if image in (None, r.image)
        )
        assert silenced == wanted > 0


def test_the_counterpart_keeps_to_the_region(pair, experiment):
    region = pair.fixed_labels.with_values((pair.fixed_labels.values == 3).astype(np.int32))
    inside = cells_in(region, experiment.replay.grid, 1)
    (record,) = experiment.base.routing.select(layer=1, direction="y")
    chosen = record.routing.experts[0, 0].numpy()
    expert = int(np.bincount(chosen[inside]).argmax())
    change = Intervention("silence", expert, "decoder", 1, direction="y", region=region)
    ((_, ranks),) = experiment.null(change).expert.items()
    assert (ranks >= 0).any() and not (ranks >= 0)[~inside].any()
    assert experiment.share(change) == pytest.approx((chosen[inside] == expert).mean())
    effect = experiment.run(change)
    assert effect.cells == inside.sum() and effect.changed == pytest.approx(
        (chosen[inside] == expert).mean()
    )


def test_the_random_counterpart_of_forcing_acts_at_the_same_cells(experiment):
    change = Intervention("force", 2, "decoder", 1, direction="z")
    null = experiment.null(change)
    ((place, ids),) = null.expert.items()
    chosen = experiment.base.routing.select(layer=1, direction="z")[0].routing.experts[0, 0].numpy()
    assert place.direction == "z"
    np.testing.assert_array_equal(ids >= 0, chosen != 2)
    assert ((ids != chosen) & (ids != 2))[ids >= 0].all()
