"""Silencing and forcing experts: what is changed, where, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.intervention import Intervention, changed_gates
from napari_shmoareg.experts.maps import expert_maps, token_loads
from napari_shmoareg.model.gate_sites import gates_of
from napari_shmoareg.model.routing import GateId
from napari_shmoareg.registration.register import register

OPTIONS = {"keep": "last", "affine": "none", "size": 20, "device": "cpu"}


def again(pair, network, registration, *changes):
    with changed_gates(network, changes, registration.network_grid):
        return register(pair, network, **OPTIONS)


def chosen(registration, **where):
    return {r.gate: r.routing.experts[0].numpy() for r in registration.routing.select(**where)}


def test_a_gate_decided_by_place_gives_exactly_that_map_where_it_was_decided(pair, tiny_network):
    """The plan is made in the world, by other arithmetic; padding, shifted windows and an oblique
    grid lie between.
    """
    grid = register(pair, tiny_network, **OPTIONS).network_grid
    middle = grid.centre

    def planned(points, count):
        right, front, up = np.moveaxis(points - middle, -1, 0)
        return (2 * (right + 0.3 * front > 0) + 1 * (up - 0.2 * right > 3)).astype(int) % count

    def planting(site):
        def hook(module, args, output):
            values = output if site.part == "encoder" else output.movedim(1, -1)
            # middles of the cells, in voxels of the network grid
            index = (np.stack(np.indices(values.shape[1:4]), -1) + 0.5) * site.stride - 0.5
            places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
            plan = torch.from_numpy(planned(places, site.num_experts))
            values[:] = torch.where(torch.arange(site.num_experts) == plan[..., None], 0.9, 0.01)
            return values if site.part == "encoder" else values.movedim(-1, 1)

        return site.module.register_forward_hook(hook)

    handles = [planting(site) for site in gates_of(tiny_network)]
    registration = register(pair, tiny_network, **OPTIONS)
    for handle in handles:
        handle.remove()

    def points(volume_grid):
        return volume_grid.to_world(
            np.stack(np.meshgrid(*map(np.arange, volume_grid.shape), indexing="ij"), -1)
        )

    maps = expert_maps(registration)
    assert len(maps) == 6
    for found in maps:
        plan = planned(points(found.volume.grid), found.num_experts)
        assert np.unique(plan).size > 1
        np.testing.assert_array_equal(found.volume.values, plan + 1)
    shifted = [load for load in token_loads(registration) if load.block == 1]
    window = tiny_network.config.window
    assert (
        all(any(n > w for n, w in zip(load.grid.shape, window, strict=True)) for load in shifted)
        and shifted
    )
    for load in token_loads(registration):
        np.testing.assert_array_equal(
            load.values.argmax(-1), planned(points(load.grid), load.values.shape[-1])
        )


def test_forcing_every_cell_to_what_it_chose_changes_nothing_to_the_last_bit(
    pair, tiny_network, registration
):
    for part in ("encoder", "decoder"):
        for rank in range(2 if part == "encoder" else 1):
            ids = {
                place: experts[rank] for place, experts in chosen(registration, part=part).items()
            }
            after = again(pair, tiny_network, registration, Intervention("force", ids, part))
            np.testing.assert_array_equal(
                after.displacement.vectors, registration.displacement.vectors
            )
            np.testing.assert_array_equal(after.warped.values, registration.warped.values)
            for a, b in zip(after.routing, registration.routing, strict=True):
                assert torch.equal(a.routing.experts, b.routing.experts)
                assert torch.equal(a.routing.weights, b.routing.weights)


def test_silencing_an_expert_that_nothing_chose_changes_nothing(pair, tiny_network):
    with torch.no_grad():  # expert 2 of x at full resolution is never chosen any more
        gate = next(g for g in gates_of(tiny_network) if (g.layer, g.direction) == (1, "x")).module
        gate.weight[2], gate.bias[2] = 0, -30
    before = register(pair, tiny_network, **OPTIONS)
    assert not (
        chosen(before, layer=1, direction="x")[GateId("decoder", 1, direction="x")] == 2
    ).any()
    unused = Intervention("silence", 2, "decoder", 1, direction="x")
    after = again(pair, tiny_network, before, unused)
    np.testing.assert_array_equal(after.displacement.vectors, before.displacement.vectors)
    used = again(
        pair, tiny_network, before, Intervention("silence", 0, "decoder", 1, direction="x")
    )
    assert not np.array_equal(used.displacement.vectors, before.displacement.vectors)


def test_a_silent_expert_is_chosen_nowhere_and_the_network_is_left_as_it_was(
    pair, tiny_network, registration
):
    change = Intervention("silence", 3, "encoder", image="fixed")
    after = again(pair, tiny_network, registration, change)
    for place, experts in chosen(after, part="encoder").items():
        assert (experts == 3).any() == (place.image == "moving")
    assert not any(site.module._forward_hooks for site in gates_of(tiny_network))
    third = register(pair, tiny_network, **OPTIONS)
    np.testing.assert_array_equal(third.displacement.vectors, registration.displacement.vectors)


def test_only_the_direction_and_the_layer_that_were_named_are_changed(
    pair, tiny_network, registration
):
    after = again(
        pair, tiny_network, registration, Intervention("force", 1, "decoder", 1, direction="y")
    )
    for place, experts in chosen(after, part="decoder").items():
        if (place.layer, place.direction) == (1, "y"):
            assert (experts == 1).all()
        else:
            np.testing.assert_array_equal(experts, chosen(registration, part="decoder")[place])


def test_a_region_is_changed_where_it_lies_and_nowhere_else(pair, tiny_network, registration):
    """The region stands on the oblique fixed grid, the cells on the network's."""
    region = pair.fixed_labels.with_values((pair.fixed_labels.values == 3).astype(np.int32))
    change = Intervention("force", 2, "decoder", 1, direction="z", region=region)
    after = again(pair, tiny_network, registration, change)
    place = GateId("decoder", 1, direction="z")
    before, now = chosen(registration)[place][0], chosen(after)[place][0]
    points = registration.network_grid.to_world(
        np.stack(np.meshgrid(*map(np.arange, registration.network_grid.shape), indexing="ij"), -1)
    )
    index = np.rint(region.grid.to_index(points)).astype(int)
    within = ((index >= 0) & (index < region.grid.shape)).all(-1)
    index[~within] = 0
    inside = within & (region.values[tuple(np.moveaxis(index, -1, 0))] == 1)
    assert inside.any()
    assert (now[inside] == 2).all()
    np.testing.assert_array_equal(now[~inside], before[~inside])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Intervention("silence", 1, "decoder", 7), "matches no gate"),
        (Intervention("silence", 1, "decoder", 1, image="fixed"), "matches no gate"),
        (Intervention("silence", 3, "decoder", 1), "experts 0 to 2"),
        (Intervention("force", -1, "encoder"), "experts 0 to 5"),
    ],
)
def test_what_is_not_there_is_refused(tiny_network, registration, change, says):
    with (
        pytest.raises(InputError, match=says),
        changed_gates(tiny_network, [change], registration.network_grid),
    ):
        pass


def test_an_expert_that_only_padding_chose_is_silenced_nowhere(pair, tiny_network):
    """Padding is never counted, so it must not be changed either."""
    grid = register(pair, tiny_network, **OPTIONS).network_grid
    site = next(
        g for g in gates_of(tiny_network) if (g.part, g.layer, g.block) == ("encoder", 1, 0)
    )
    i, j, k = grid.coarsen(site.stride).shape

    def hook(module, args, output):
        planted = torch.full_like(output, 0.01)
        planted[..., 5] = 0.9
        inner = output[:, :i, :j, :k].clone()
        inner[..., 5] = 0
        planted[:, :i, :j, :k] = inner
        assert planted.numel() > inner.numel()
        return planted

    handle = site.module.register_forward_hook(hook)
    before = register(pair, tiny_network, **OPTIONS)
    assert not any(
        (ids == 5).any() for ids in chosen(before, part="encoder", layer=1, block=0).values()
    )
    after = again(pair, tiny_network, before, Intervention("silence", 5, "encoder", 1, 0))
    handle.remove()
    np.testing.assert_array_equal(after.displacement.vectors, before.displacement.vectors)


def test_only_the_block_that_was_named_is_changed(pair, tiny_network, registration):
    after = again(
        pair, tiny_network, registration, Intervention("silence", 1, "encoder", 2, block=1)
    )
    for place, ids in chosen(after, part="encoder").items():
        if (place.layer, place.block) == (2, 1):
            assert not (ids == 1).any() and (chosen(registration)[place] == 1).any()
        else:
            np.testing.assert_array_equal(ids, chosen(registration)[place])


def test_an_id_of_numpy_is_an_id_and_what_is_none_is_refused():
    change = Intervention("silence", np.int64(2), "decoder", 1)
    assert change.expert == 2 and isinstance(change.expert, int) and "expert 2" in str(change)
    with pytest.raises(InputError, match="An expert is an id"):
        Intervention("silence", 1.5, "decoder")


@pytest.mark.parametrize(
    ("place", "number", "says"),
    [
        (GateId("decoder", 1, direction="x"), 3, "outside -1"),
        (GateId("decoder", 2, direction="x"), 1, "which it does not select"),
        (GateId("encoder", 1, 0, "fixed"), 1, "which it does not select"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tiny_network, registration, place, number, says):
    ids = {place: np.full(registration.network_grid.shape, number)}
    change = Intervention("force", ids, "decoder", 1, direction="x")
    with (
        pytest.raises(InputError, match=says),
        changed_gates(tiny_network, [change], registration.network_grid),
    ):
        pass


def test_all_experts_may_be_silent_if_never_at_one_place(pair, tiny_network, registration):
    labels = pair.fixed_labels
    parts = [labels.with_values((labels.values == n).astype(np.int32)) for n in (1, 2, 3)]
    apart = [Intervention("silence", n, "decoder", 1, region=part) for n, part in enumerate(parts)]
    assert again(pair, tiny_network, registration, *apart).routing
    whole = {
        r.gate: np.full(r.routing.experts.shape[2:], 0)
        for r in registration.routing.select(part="decoder")
    }
    maps = [
        Intervention("silence", {p: ids + n for p, ids in whole.items()}, "decoder")
        for n in range(3)
    ]
    with pytest.raises(InputError, match="too few are left"):
        again(pair, tiny_network, registration, *maps)


def test_silencing_too_many_or_nowhere_is_refused(pair, tiny_network, registration):
    all_silent = [Intervention("silence", n, "decoder", 1) for n in range(3)]
    with pytest.raises(InputError, match="too few are left"):
        again(pair, tiny_network, registration, *all_silent)
    speck = pair.fixed_labels.with_values(np.zeros(pair.fixed.values.shape, np.int32))
    speck.values[18, 14, 11] = 1
    with pytest.raises(InputError, match="covers no cell"):
        again(
            pair, tiny_network, registration, Intervention("silence", 0, "encoder", 2, region=speck)
        )
    assert not any(site.module._forward_hooks for site in gates_of(tiny_network))


def test_an_unknown_action_is_refused():
    with pytest.raises(InputError, match="silence, force"):
        Intervention("remove", 0, "decoder")
