"""How often each expert is chosen in a region, and how sure that is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.experts.maps import GateValues, expert_maps, token_loads
from napari_shmoareg.experts.regions import region_loads
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model import GateId, RoutedLayer, Routing, RoutingTrace
from napari_shmoareg.registration.register import Registration, register


@pytest.fixture(scope="module")
def scene(phantoms, lively_network) -> Registration:
    """Of the oblique, anisotropic pair, whose network grid is no multiple of the strides; not to be
    changed.
    """
    registration = register(
        phantoms, lively_network(0.03), affine="none", size=20, device="cpu", keep="last"
    )
    assert any(n % 4 for n in registration.network_grid.shape)
    return registration


def decided(scene: Registration, grid: Grid, values: np.ndarray) -> Registration:
    """A registration whose only gate is on a network grid of ours and chose these ids of three
    experts.
    """
    experts = torch.as_tensor(values[None, None], dtype=torch.uint8)
    routing = Routing(torch.ones(1, 3, *grid.shape), experts, torch.ones(1, 1, *grid.shape))
    layer = RoutedLayer(GateId("decoder", 1, direction="x"), 1, routing)
    return replace(scene, network_grid=grid, routing=RoutingTrace((layer,)))


def everywhere(grid: Grid) -> np.ndarray:
    """World points (I, J, K, 3) of a grid."""
    return grid.to_world(np.stack(np.indices(grid.shape), -1))


@cache
def noise(grid: Grid, seed: int, smooth: float) -> np.ndarray:
    """Ids of three experts at random; smooth by some voxels, so that neighbours choose alike."""
    fields = np.random.default_rng(seed).normal(size=(3, *grid.shape))
    return np.stack([gaussian_filter(field, smooth) for field in fields]).argmax(axis=0)


def ball(grid: Grid, seed: int, radius: float) -> Volume:
    """A ball of mm somewhere inside."""
    middle = grid.to_world(
        np.random.default_rng(1000 + seed).uniform(0.3, 0.7, 3) * np.array(grid.shape)
    )
    inside = np.linalg.norm(everywhere(grid) - middle, axis=-1) < radius
    return Volume(inside.astype(np.uint8), grid, "ball", is_labels=True)


def test_shares_sum_to_one_and_count_no_more_cells_than_there_are(scene, pair):
    loads = region_loads(scene, pair.fixed_labels)
    assert len(loads) == 12 * 4
    tokens = defaultdict(float)
    for load in loads:
        assert load.share.sum() == pytest.approx(1) and load.share.min() >= 0
        assert 0 <= load.distance <= 1 and load.blocks >= 1
        tokens[load.gate] += load.tokens
    cells = ExpertLoad.of(scene.routing).cells
    assert set(tokens) == set(cells)
    assert all(0 < tokens[place] < cells[place] for place in cells)


def test_a_region_over_everything_has_the_load_of_the_whole_image_exactly(scene):
    network = scene.network_grid
    labels = Volume(np.full(network.shape, 7), network, "all", is_labels=True)
    whole = ExpertLoad.of(scene.routing, network.shape)
    loads = region_loads(scene, labels)
    assert len(loads) == len(whole)
    for load in loads:
        assert (load.share == whole.share[load.gate]).all()
        assert load.distance == 0 and load.tokens == whole.cells[load.gate]


def test_padding_is_never_counted(scene):
    """Regions that reach far out of the field of view count the cells inside, and each once."""
    network = scene.network_grid
    wide = network.crop((-8, -8, -8), tuple(n + 16 for n in network.shape))
    labels = Volume(np.ones(wide.shape, np.uint8), wide, "wide", is_labels=True)
    cells = ExpertLoad.of(scene.routing).cells
    assert {load.gate: load.tokens for load in region_loads(scene, labels)} == cells


def test_planted_choices_are_found_at_the_right_place_of_the_world(scene, pair):
    """Where a world plane decides, regions drawn on another oblique grid on either side of it have
    one expert each.
    """
    network = scene.network_grid
    right = everywhere(network)[..., 0] > 4
    planted = decided(scene, network, np.where(right, 2, 0))
    other = pair.moving.grid
    x = everywhere(other)[..., 0]
    labels = Volume(np.where(x > 10, 2, np.where(x < -2, 1, 0)), other, "sides", is_labels=True)
    left_load, right_load = region_loads(planted, labels, names={1: "left", 2: "right"})
    assert (left_load.name, left_load.region, right_load.name) == ("left", 1, "right")
    assert left_load.share.tolist() == [1, 0, 0] and right_load.share.tolist() == [0, 0, 1]
    assert left_load.distance == pytest.approx(right.mean())
    _, from_left = region_loads(planted, labels, reference=1)
    assert from_left.distance == 1


def test_planted_tokens_of_the_moving_and_the_fixed_image_are_not_swapped(scene):
    network = scene.network_grid
    first = np.indices(network.shape)[0] < 8
    labels = Volume(np.where(first, 1, 2), network, "halves", is_labels=True)
    layers = []
    for record in scene.routing.select(part="encoder", layer=1):
        cells = record.routing.experts.shape[2:]
        half = torch.from_numpy(np.indices(cells)[0] < 8 // record.stride)
        heads = ((0, 1), (2, 3)) if record.image == "moving" else ((4, 5), (0, 5))
        one, other = (torch.tensor(pair)[:, None, None, None] for pair in heads)
        routing = record.routing._replace(experts=torch.where(half, one, other)[None])
        layers.append(replace(record, routing=routing))
    planted = replace(scene, routing=RoutingTrace(tuple(layers)))
    found = {
        (load.image, load.region): np.flatnonzero(load.share).tolist()
        for load in region_loads(planted, labels, part="encoder")
        if (load.share[load.share > 0] == 0.5).all()
    }
    assert found == {
        ("moving", 1): [0, 1],
        ("moving", 2): [2, 3],
        ("fixed", 1): [4, 5],
        ("fixed", 2): [0, 5],
    }


def test_a_cell_counts_by_the_share_of_its_volume_in_the_region(scene):
    network = scene.network_grid
    ids = np.random.default_rng(0).integers(0, 4, network.shape)
    labels = Volume(ids, network, "random", is_labels=True)
    loads = {(load.gate, load.region): load for load in region_loads(scene, labels)}
    for source in (token_loads(scene)[1], token_loads(scene)[-1], expert_maps(scene)[0]):
        sizes, inside, chosen = defaultdict(int), defaultdict(int), defaultdict(float)
        for voxel in np.ndindex(*network.shape):
            cell = tuple(n // source.stride for n in voxel)
            sizes[cell] += 1
            inside[cell, ids[voxel]] += 1
        for (cell, region), count in inside.items():
            if isinstance(source, GateValues):
                experts = np.flatnonzero(source.values[cell])
            else:
                experts = [source.volume.values[cell] - 1]
            for expert in experts:
                chosen[region, int(expert)] += count / sizes[cell]
        for region in (1, 2, 3):
            load = loads[source.gate, region]
            counted = np.array([chosen[region, expert] for expert in range(len(load.share))])
            assert load.share == pytest.approx(counted / counted.sum())
            tokens = sum(n / sizes[cell] for (cell, which), n in inside.items() if which == region)
            assert load.tokens == pytest.approx(tokens)


def test_picking_a_gate_changes_none_of_its_figures(scene, pair):
    every = [
        load
        for load in region_loads(scene, pair.fixed_labels)
        if load.gate == GateId("decoder", 2, None, None, "y")
    ]
    picked = region_loads(scene, pair.fixed_labels, part="decoder", layer=2, direction="y")
    assert [load.region for load in picked] == [1, 2, 3, 4]
    for one, other in zip(every, picked, strict=True):
        assert (one.share == other.share).all() and (one.distance, one.expected) == (
            other.distance,
            other.expected,
        )
        assert (one.low is None) == (other.low is None) and (
            one.low is None or (one.low == other.low).all()
        )


def test_a_reference_region_is_no_distance_from_itself_and_the_others_are_measured_from_it(
    scene, pair
):
    loads = region_loads(scene, pair.fixed_labels, reference=1, part="decoder", layer=1, block_mm=9)
    shares = {load.gate: load.share for load in loads if load.region == 1}
    for load in loads:
        assert load.distance == pytest.approx(np.abs(load.share - shares[load.gate]).sum() / 2)
        assert (load.distance == 0) is (load.region == 1) and (load.expected == 0) is (
            load.region == 1
        )


def test_a_reference_may_be_an_id_of_numpy_and_a_gate_has_no_other_fields(scene, pair):
    where = {"part": "decoder", "layer": 1, "direction": "x"}
    plain, same = (
        region_loads(scene, pair.fixed_labels, reference=r, **where) for r in (2, np.int64(2))
    )
    assert [load.distance for load in plain] == [load.distance for load in same] and plain[
        1
    ].distance == 0
    with pytest.raises(InputError, match="no field lyer"):
        region_loads(scene, pair.fixed_labels, lyer=1)


def test_a_region_between_the_middles_of_voxels_is_told_from_one_outside(scene):
    grid = scene.network_grid
    fine = grid.resampled([0.2 * s for s in grid.spacing])
    speck = np.zeros(fine.shape, np.uint8)
    speck[tuple(n // 2 for n in fine.shape)] = 1
    middle = grid.to_index(fine.to_world([n // 2 for n in fine.shape]))
    if np.abs(middle - np.rint(middle)).max() < 0.15:
        speck = np.roll(speck, 2, axis=0)
    with pytest.raises(InputError, match="smaller than the voxels"):
        region_loads(scene, Volume(speck, fine, "speck", is_labels=True))
    away = Grid(grid.shape, grid.affine + np.array([[0, 0, 0, 900.0]] + [[0.0] * 4] * 3))
    with pytest.raises(InputError, match="field of view"):
        region_loads(scene, Volume(np.ones(grid.shape, np.uint8), away, "away", is_labels=True))


def test_all_regions_together_leave_air_out(scene, pair):
    """Against them the distance is that from the average of all regions, each by its cells."""
    loads = region_loads(
        scene, pair.fixed_labels, reference="regions", part="decoder", layer=1, direction="x"
    )
    together = np.average(
        [load.share for load in loads], axis=0, weights=[load.tokens for load in loads]
    )
    one = Volume(
        (pair.fixed_labels.values > 0).astype(np.uint8), pair.fixed.grid, "body", is_labels=True
    )
    (body,) = region_loads(scene, one, part="decoder", layer=1, direction="x")
    np.testing.assert_allclose(body.share, together)
    assert body.distance > 1e-3  # air chooses otherwise
    for load in loads:
        assert load.distance == pytest.approx(np.abs(load.share - together).sum() / 2)
    (alone,) = region_loads(scene, one, reference="regions", part="decoder", layer=1, direction="x")
    assert alone.distance == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def roomy() -> Grid:
    """A network grid of 120 x 126 x 96 mm, oblique."""
    turn = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -9], [0, 0, 1, 3], [0, 0, 0, 1]])
    return Grid((48, 42, 40), turn @ np.diag([2.5, 3.0, 2.4, 1]))


@pytest.mark.parametrize("smooth", [0, 1.5])
@pytest.mark.parametrize("radius", [12, 25])
def test_a_region_of_noise_is_as_far_from_the_whole_as_chance_lets_it(scene, roomy, smooth, radius):
    distances, shares = [], []
    for seed in range(24):
        made = decided(scene, roomy, noise(roomy, seed, smooth))
        (load,) = region_loads(made, ball(roomy, seed, radius), draws=200, seed=seed)
        distances.append(load.distance <= load.expected)
        shares.append(load.distance / load.expected)
    assert np.mean(distances) >= 0.8, "far from the 95 % that are meant"
    assert np.median(shares) > 0.25, "what is expected of chance is far too much"


@pytest.mark.parametrize("smooth", [0, 1.5])
def test_a_region_that_chooses_otherwise_is_further_than_chance(scene, roomy, smooth):
    for seed in range(5):
        region = ball(roomy, seed, 25)
        values = np.where(
            region.values > 0, noise(roomy, seed, smooth) % 2, noise(roomy, seed, smooth)
        )
        (load,) = region_loads(decided(scene, roomy, values), region, draws=200)
        assert load.distance > load.expected


@pytest.mark.parametrize("smooth", [0, 1.5])
def test_the_interval_holds_the_share_that_the_noise_was_drawn_with(scene, roomy, smooth):
    """Of many images the 95 % interval of a region's share holds the third that each expert was
    given.
    """
    holds = []
    for seed in range(24):
        (load,) = region_loads(
            decided(scene, roomy, noise(roomy, seed, smooth)), ball(roomy, seed, 35), draws=200
        )
        assert load.blocks >= 9 and (load.low <= load.high).all()
        holds += ((load.low <= 1 / 3) & (load.high >= 1 / 3)).tolist()
    assert 0.85 <= np.mean(holds)


def test_fewer_blocks_give_a_wider_interval_and_the_fewest_none(scene, roomy):
    widths, blocks = [], []
    for radius in (25, 33, 45):
        found = [
            region_loads(
                decided(scene, roomy, noise(roomy, seed, 1.5)), ball(roomy, seed, radius), draws=200
            )[0]
            for seed in range(8)
        ]
        found = [load for load in found if load.low is not None]
        assert len(found) >= 5
        widths.append(np.mean([load.high - load.low for load in found]))
        blocks.append(np.mean([load.blocks for load in found]))
    assert blocks == sorted(blocks) and widths == sorted(widths, reverse=True)
    one = np.zeros(roomy.shape, np.uint8)
    one[2:5, 3:6, 4:7] = 1
    labels = Volume(one, roomy, "one", is_labels=True)
    (load,) = region_loads(decided(scene, roomy, noise(roomy, 0, 0)), labels)
    assert load.blocks == 1 and load.low is None and load.high is None and load.expected > 0.05


def test_a_ball_that_walls_of_blocks_cut_into_eight_is_one_sample(scene, roomy):
    """At every place: whether it lies in the middle of a block or on a corner of eight."""
    made = decided(scene, roomy, noise(roomy, 0, 1.5))
    for middle in np.random.default_rng(0).uniform((14, 12, 14), (34, 30, 26), (25, 3)):
        inside = np.linalg.norm(everywhere(roomy) - roomy.to_world(middle), axis=-1) < 8
        (load,) = region_loads(
            made, Volume(inside.astype(np.uint8), roomy, "ball", is_labels=True), draws=20
        )
        assert load.blocks <= 2 and load.low is None


def test_neighbours_that_choose_alike_make_the_interval_wider(scene, roomy):
    """As many voxels say less where they repeat each other: voxels are not the sample."""
    widths = []
    for smooth in (0, 1.5, 3):
        loads = [
            region_loads(
                decided(scene, roomy, noise(roomy, seed, smooth)), ball(roomy, seed, 35), draws=200
            )[0]
            for seed in range(5)
        ]
        widths.append(np.mean([load.high - load.low for load in loads]))
    assert widths[0] * 2 < widths[1] and widths[1] < widths[2]


def test_what_is_no_region_is_refused(scene, pair):
    with pytest.raises(InputError, match="is an image"):
        region_loads(scene, pair.fixed)
    empty = Volume(
        np.zeros((3, 3, 3), np.uint8),
        pair.fixed.grid.crop((0, 0, 0), (3, 3, 3)),
        "none",
        is_labels=True,
    )
    with pytest.raises(InputError, match="No region of 'none'"):
        region_loads(scene, empty)
    with pytest.raises(InputError, match="reference 9"):
        region_loads(scene, pair.fixed_labels, reference=9)
    for wrong in ({"block_mm": 0}, {"block_mm": np.nan}, {"draws": 0}):
        with pytest.raises(InputError, match="above 0"):
            region_loads(scene, pair.fixed_labels, **wrong)
