"""How often the experts are chosen at single places, and the pictures of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad, repeated, share_spread
from napari_shmoareg.experts.location import (
    BOUNDARY,
    CENTRE,
    FRACTIONS,
    LocationLoad,
    boundary_location,
    five_locations,
)
from napari_shmoareg.figures.experts import (
    LOCATION_COLOURS,
    load_caption,
    location_caption,
    location_figure,
)
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model import RoutingTrace
from napari_shmoareg.model.routing import GateId


@pytest.fixture
def places(registration):
    """The five places of the fixed image, and the boundary between its labels nearest the first."""
    five = five_locations(registration.pair.fixed)
    return five | {BOUNDARY: boundary_location(registration.pair.fixed_labels, five[CENTRE]).point}


def _shuffled(registration, seed):
    """The same registration, as if its gates had chosen otherwise."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for record in registration.routing:
        noise = torch.rand(record.routing.probabilities.shape, generator=generator)
        chosen = noise.topk(record.routing.experts.shape[1], dim=1).indices.to(torch.uint8)
        records.append(replace(record, routing=record.routing._replace(experts=chosen)))
    return replace(registration, routing=RoutingTrace(tuple(records)))


def test_counts_are_those_of_the_cell_nearest_to_the_place(registration, places):
    load = LocationLoad.of(registration, places)
    for name, point in places.items():
        for record in registration.routing:
            cells = registration.network_grid.coarsen(record.stride)
            every = np.stack(
                np.meshgrid(*(np.arange(n) for n in cells.shape), indexing="ij"), -1
            ).reshape(-1, 3)
            nearest = every[np.linalg.norm(cells.to_world(every) - point, axis=1).argmin()]
            chosen = record.routing.experts[(0, slice(None), *nearest)].tolist()
            gate = GateId(record.part, record.layer, record.block, record.image, record.direction)
            assert np.flatnonzero(load[name].counts[gate]).tolist() == sorted(chosen)
            assert load[name].counts[gate].sum() == len(chosen) and load[name].cells[gate] == 1


def test_two_pairs_add_up_exactly_at_every_place(registration, places):
    one = LocationLoad.of(registration, places)
    other = LocationLoad.of(
        _shuffled(registration, 3), {name: places[name] for name in (CENTRE, BOUNDARY)}
    )
    both = one + other
    assert list(both) == list(one)
    for name in both:
        for gate, counts in both[name].counts.items():
            more = other[name].counts[gate] if name in other.loads else 0
            assert (counts == one[name].counts[gate] + more).all()
            assert both[name].cells[gate] == (2 if name in other.loads else 1)
    assert any((other[CENTRE].counts[g] != one[CENTRE].counts[g]).any() for g in one[CENTRE])


def test_shares_of_selections_sum_to_one_and_of_tokens_to_k(registration, places):
    load = LocationLoad.of(registration, places) + LocationLoad.of(
        _shuffled(registration, 1), places
    )
    top_k = registration.settings["network"]["top_k"]
    for name in load:
        for gate in load[name]:
            assert load.share[name][gate].sum() == pytest.approx(1)
            assert load.share_of_tokens[name][gate].sum() == pytest.approx(
                top_k if gate.part == "encoder" else 1
            )
    rows = [row for row in load.rows() if row["place"] == CENTRE and row["part"] == "encoder"]
    assert sum(row["share_of_tokens"] for row in rows) == pytest.approx(
        top_k * len({_gate(r) for r in rows})
    )


def _gate(row):
    return tuple(row[key] for key in ("part", "layer", "block", "image", "direction"))


def test_a_place_outside_of_what_the_network_saw_is_refused(registration):
    with pytest.raises(InputError, match="outside"):
        LocationLoad.of(registration, {"far": (500.0, 0.0, 0.0)})


def test_the_five_places_lie_at_quarters_of_what_the_image_shows_whichever_way_its_axes_run():
    values = np.zeros((40, 30, 20), np.float32)
    values[4:36, 6:22, 2:18] = np.random.default_rng(0).uniform(50, 100, (32, 16, 16))
    affine = np.array([[-2.0, 0, 0, 60], [0, 3, 0, -50], [0, 0, 2, 5], [0, 0, 0, 1]])
    found = five_locations(Volume(values, Grid(values.shape, affine), "fixed"))
    assert list(found) == list(FRACTIONS)
    low, high = (
        np.array([60 - 2 * 35.5, -50 + 3 * 5.5, 5 + 2 * 1.5]),
        np.array([60 - 2 * 3.5, -50 + 3 * 21.5, 40.0]),
    )
    for name, (right, front) in FRACTIONS.items():
        assert found[name] == pytest.approx(low + np.array([right, front, 0.5]) * (high - low))
    assert (
        found["upper left"][0] < found["upper right"][0]
        and found["upper left"][1] > found["lower left"][1]
    )


def test_the_boundary_is_the_nearest_voxel_between_two_labels():
    values = np.zeros((12, 10, 8), np.int16)
    values[1:6, 1:9, 1:7], values[6:9, 1:9, 1:7] = 3, 7
    labels = Volume(
        values, Grid(values.shape, np.diag([2.0, 3.0, 4.0, 1.0])), "labels", is_labels=True
    )
    found = boundary_location(labels, (0.0, 12.0, 12.0))
    assert found.point == pytest.approx((10.0, 12.0, 12.0)) and found.labels == (3, 7)
    found = boundary_location(labels, (20.0, 12.0, 12.0))
    assert found.point == pytest.approx((12.0, 12.0, 12.0)) and found.labels == (7, 3)


def test_without_two_labels_the_boundary_is_that_of_a_label_and_without_any_there_is_none():
    values = np.zeros((12, 10, 8), np.int16)
    labels = Volume(values, Grid(values.shape, np.eye(4)), "labels", is_labels=True)
    assert boundary_location(labels, (0.0, 0.0, 0.0)) is None
    values = values.copy()
    values[3:6, 3:6, 3:6] = 5
    found = boundary_location(labels.with_values(values), (4.0, 4.0, 0.0))
    assert found.point == pytest.approx((4.0, 4.0, 3.0)) and found.labels == (5, 0)


def test_bars_are_as_high_as_the_shares_of_tokens(registration, places):
    load = LocationLoad.of(registration, places) + LocationLoad.of(
        _shuffled(registration, 2), places
    )
    tokens = [name for name in places if name != BOUNDARY]
    figure = location_figure(
        load, tokens=tokens, voxel=BOUNDARY, kernels=(1, 3, 5), caption="of two pairs"
    )
    (axes,) = [a for a in figure.axes if "encoder layer 2, fixed" in a.get_title()]
    shares = load.over_blocks().share_of_tokens
    gate = GateId("encoder", 2, None, "fixed")
    expected = np.concatenate([100 * shares[name][gate] for name in tokens])
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(expected)
    (axes,) = [a for a in figure.axes if "decoder layer 1" in a.get_title()]
    expected = np.array([100 * shares[BOUNDARY][GateId("decoder", 1, direction=d)] for d in "xyz"])
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(expected.T.ravel())
    texts = [
        t.get_text()
        for piece in figure.subfigs
        for legend in piece.legends
        for t in legend.get_texts()
    ]
    assert texts == [*tokens, "expert 0: 1×1×1", "expert 1: 3×3×3", "expert 2: 5×5×5"]
    assert "of two pairs" in figure.get_supxlabel() and "share of tokens" in figure.get_suptitle()


def test_what_cannot_be_drawn_is_refused(registration, places):
    load = LocationLoad.of(registration, places)
    with pytest.raises(ValueError, match="can be drawn"):
        location_figure(load, tokens=["nowhere"], voxel=BOUNDARY)
    with pytest.raises(ValueError, match=f"Up to {len(LOCATION_COLOURS)} locations"):
        location_figure(load, tokens=list(places), voxel=BOUNDARY)
    empty = LocationLoad.of(replace(registration, routing=RoutingTrace(())), places)
    with pytest.raises(ValueError, match="no experts"):
        location_figure(empty, tokens=[CENTRE], voxel=CENTRE)


def test_the_spread_is_the_standard_deviation_of_the_pairs_own_shares(registration):
    loads = [
        ExpertLoad.of(r.routing)
        for r in (registration, _shuffled(registration, 1), _shuffled(registration, 2))
    ]
    spread = share_spread(loads)
    assert set(spread) == set(loads[0])
    for place, found in spread.items():
        shares = np.array([load.counts[place] / load.counts[place].sum() for load in loads])
        slow = np.sqrt(((shares - shares.mean(axis=0)) ** 2).sum(axis=0) / 2)
        assert found == pytest.approx(slow)
    assert share_spread(loads[:1]) == {}


def test_captions_say_which_share_of_how_much_and_what_the_error_bars_are(registration, places):
    load, at = ExpertLoad.of(registration.routing), LocationLoad.of(registration, places)
    tokens = sum(n for place, n in load.cells.items() if place.part == "encoder")
    two = load_caption(load + load, 2, passes=[2, 2])
    assert "Share of selections" in two and "sums to 100 %" in two and "2 pairs" in two
    assert (
        f"{2 * tokens:,} decisions of the encoder's gates (each gate decides once per token)" in two
    )
    assert "standard deviation over the pairs" in two and "last of the network's 2 passes" in two
    found = (
        "Routing of these weights (6 pairs, Dice): of the encoder: no effect found (-5 % [-12, 3])."
    )
    assert load_caption(load, 1, (2,), found) == f"{load_caption(load, 1, (2,))} {found}"
    plain = location_caption(at, 1, given=False, voxel=CENTRE)
    assert location_caption(at, 1, given=False, voxel=CENTRE, routing=found) == f"{plain} {found}"
    assert "No error bars" in load_caption(load, 1) and "one pair" in load_caption(load, 1)
    said = location_caption(at, 1, given=False, voxel=BOUNDARY, detail=" (labels 1 and 2)")
    assert (
        "Share of tokens" in said
        and "sums to k" in said
        and "k = 2 of" in said
        and "labels 1 and 2" in said
    )
    assert "need not share a space" not in said and "as requested" in location_caption(
        at, 1, given=True, voxel=CENTRE
    )
    assert "need not share a space" in location_caption(at + at, 2, given=False, voxel=BOUNDARY)


def test_captions_say_what_is_known_of_the_passes(registration):
    load = ExpertLoad.of(registration.routing)
    assert "pass" not in load_caption(load, 2, passes=[1, 1])
    assert "passes over a pair (1 to 2, by the size" in load_caption(load, 2, passes=[2, 1])
    assert "was not saved for every pair" in load_caption(load, 2, passes=[2, None])


def test_why_the_centre_stands_for_a_boundary_is_true_of_empty_label_maps_too(registration, places):
    at = LocationLoad.of(registration, places)
    said = location_caption(at, 1, given=False, voxel=CENTRE)
    assert (
        "as there is no boundary of labels in the fixed image" in said
        and "have no labels" not in said
    )
    assert "no boundary of labels in any fixed image" in location_caption(
        at + at, 2, given=False, voxel=CENTRE
    )
    assert "boundary of labels" not in location_caption(at, 1, given=True, voxel=CENTRE)


def test_the_caption_of_one_pair_says_which_heights_a_bar_can_have(registration, places):
    at = LocationLoad.of(registration, places)
    said = location_caption(at, 1, given=False, voxel=CENTRE)
    heights = {
        part: {
            round(100 * share)
            for load in at.over_blocks().share_of_tokens.values()
            for g in load
            if g.part == part
            for share in load[g]
        }
        for part in ("encoder", "decoder")
    }
    assert heights["encoder"] <= {0, 50, 100} and heights["decoder"] == {0, 100}
    assert "With one pair a bar can only be 0, 50 or 100 % in (a), 0 or 100 % in (b)." in said
    assert "can only be" not in location_caption(at + at, 2, given=False, voxel=CENTRE)


def test_what_comes_again_is_found_with_where_it_was_first():
    assert (
        repeated(["a", "b", "a", "c", "a", "b"]) == [(1, 3), (1, 5), (2, 6)]
        and repeated("abc") == []
    )
