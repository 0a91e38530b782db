"""Which expert each voxel or token chose, on its own grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.experts.maps import expert_maps, times_chosen, token_loads


def test_there_is_a_map_for_every_decoder_layer_and_direction(registration):
    names = [m.name for m in expert_maps(registration)]
    assert sorted(names) == sorted(
        f"decoder-{layer}-{direction}" for layer in (1, 2) for direction in "xyz"
    )


def test_a_map_holds_the_expert_of_each_cell_plus_one(registration):
    for expert_map in expert_maps(registration):
        (record,) = registration.routing.select(
            part="decoder", layer=expert_map.layer, direction=expert_map.direction
        )
        assert expert_map.volume.is_labels and expert_map.volume.values.dtype == np.uint8
        assert (expert_map.volume.values == record.routing.experts[0, 0].numpy() + 1).all()
        assert set(np.unique(expert_map.volume.values)) <= {1, 2, 3}


def test_a_map_keeps_its_own_grid_over_the_field_of_view_of_the_network(registration):
    network = registration.network_grid
    for expert_map in expert_maps(registration):
        grid, stride = expert_map.volume.grid, expert_map.stride
        assert grid.same_space(network.coarsen(stride))
        assert grid.spacing == pytest.approx([stride * s for s in network.spacing])
        assert grid.to_world((-0.5,) * 3) == pytest.approx(network.to_world((-0.5,) * 3))
    assert {m.stride for m in expert_maps(registration)} == {1, 2}


def test_maps_and_loads_count_the_same(registration):
    load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
    for expert_map in expert_maps(registration):
        counted = np.bincount(expert_map.volume.values.ravel(), minlength=4)[1:]
        assert (counted == load.counts[expert_map.gate]).all()


def test_the_weights_of_a_token_sum_to_one_and_stand_at_the_chosen_heads(registration):
    loads = token_loads(registration)
    assert len(loads) == len(registration.routing.select(part="encoder"))
    for token_load in loads:
        ((_, routing),) = [
            (r.name, r.routing) for r in registration.routing if r.name == token_load.name
        ]
        assert token_load.values.shape == (*token_load.grid.shape, 6)
        assert token_load.values.sum(axis=-1) == pytest.approx(1, abs=1e-5)
        assert ((token_load.values > 0).sum(axis=-1) <= 2).all()
        i, j, k = (n // 2 for n in token_load.grid.shape)
        for rank in range(2):
            expert = int(routing.experts[0, rank, i, j, k])
            assert token_load.values[i, j, k, expert] == pytest.approx(
                float(routing.weights[0, rank, i, j, k])
            )
            assert token_load.volume(expert).values[i, j, k] == token_load.values[i, j, k, expert]


def test_token_loads_can_be_picked_by_place(registration):
    (one,) = token_loads(registration, layer=2, block=1, image="fixed")
    assert one.name == "encoder-2-1-fixed"


def test_times_chosen_adds_the_blocks_of_a_layer(registration):
    counted = {c.name: c for c in times_chosen(registration)}
    assert set(counted) == {
        f"encoder-{n}-{image}-times-chosen" for n in (1, 2) for image in ("moving", "fixed")
    }
    both = counted["encoder-2-fixed-times-chosen"].values
    blocks = [
        token_loads(registration, layer=2, block=b, image="fixed")[0].values > 0 for b in (0, 1)
    ]
    assert both.dtype == np.uint8
    assert (both == blocks[0].astype(int) + blocks[1]).all()
    assert (both.sum(axis=-1) == 2 * 2).all()


def test_a_record_that_does_not_fit_the_network_grid_is_refused(registration):
    wrong = replace(registration, network_grid=registration.network_grid.coarsen(2))
    with pytest.raises(ValueError, match="cells"):
        expert_maps(wrong)
