"""How often each expert is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.model import RoutedLayer, Routing, RoutingTrace
from napari_shmoareg.model.routing import GateId

SHAPE = (22, 17, 9)


def _record(seed, *, stride, experts=6, top_k=2, shape=SHAPE, **gate):
    torch.manual_seed(seed)
    cells = tuple(-(-n // stride) for n in shape)
    probabilities = torch.rand(1, experts, *cells).softmax(dim=1)
    weights, chosen = probabilities.topk(top_k, dim=1)
    return RoutedLayer(
        GateId(**gate),
        stride,
        Routing(probabilities, chosen, weights / weights.sum(1, True)),
    )


@pytest.fixture
def trace():
    """Two encoder layers (two blocks in the first) for both images, one decoder layer of three
    directions.
    """
    places = [(1, 4, 0), (1, 4, 1), (2, 8, 0)]
    encoder = [
        _record(10 * n + m, part="encoder", layer=layer, stride=stride, block=block, image=image)
        for n, (layer, stride, block) in enumerate(places)
        for m, image in enumerate(("moving", "fixed"))
    ]
    decoder = [
        _record(90 + n, part="decoder", layer=1, stride=1, experts=3, top_k=1, direction=direction)
        for n, direction in enumerate("xyz")
    ]
    return RoutingTrace((*encoder, *decoder))


def test_counts_are_those_of_a_loop_over_all_cells(trace):
    load = ExpertLoad.of(trace, SHAPE)
    record = trace.select(layer=1, block=1, image="fixed")[0]
    slow = np.zeros(6, dtype=int)
    for expert in record.routing.experts.flatten().tolist():
        slow[expert] += 1
    assert (load.counts[GateId("encoder", 1, 1, "fixed")] == slow).all()


def test_shares_sum_to_one_and_shares_of_tokens_to_k(trace):
    load = ExpertLoad.of(trace)
    for place in load:
        assert load.share[place].sum() == pytest.approx(1)
        assert load.share_of_tokens[place].sum() == pytest.approx(
            2 if place.part == "encoder" else 1
        )


def test_a_partial_cell_counts_as_one_and_padding_not_at_all(trace):
    load = ExpertLoad.of(trace, SHAPE)
    assert load.cells[GateId("encoder", 1, 0, "moving")] == 6 * 5 * 3
    assert load.cells[GateId("encoder", 2, 0, "moving")] == 3 * 3 * 2
    assert load.cells[GateId("decoder", 1, direction="z")] == 22 * 17 * 9


def test_a_record_with_padding_is_refused(trace):
    with pytest.raises(ValueError, match="Crop the padding"):
        ExpertLoad.of(trace, (22, 17, 8 - 4))


def test_moving_and_fixed_are_told_apart(trace):
    load = ExpertLoad.of(trace)
    for image in ("moving", "fixed"):
        (record,) = trace.select(layer=2, image=image)
        expected = np.bincount(record.routing.experts.numpy().ravel(), minlength=6)
        assert (load.counts[GateId("encoder", 2, 0, image)] == expected).all()
    moving, fixed = (load.select(image=image).over_blocks().share for image in ("moving", "fixed"))
    assert not np.allclose(next(iter(moving.values())), next(iter(fixed.values())))


def test_the_network_keeps_moving_and_fixed_apart_in_its_load(tiny_network):
    moving, fixed = torch.rand(2, 1, 1, *SHAPE)
    with torch.no_grad():
        there, back = (
            ExpertLoad.of(tiny_network(a, b).routing, SHAPE).select(part="encoder")
            for a, b in ((moving, fixed), (fixed, moving))
        )
    other = {"moving": "fixed", "fixed": "moving"}
    for place, count in there.counts.items():
        assert (count == back.counts[place._replace(image=other[place.image])]).all()
    assert any((count != back.counts[place]).any() for place, count in there.counts.items())


def test_the_load_of_two_pairs_is_the_sum_of_both_loads(trace):
    bigger = RoutingTrace(
        tuple(
            _record(7, part="encoder", layer=1, stride=4, block=b, image="moving") for b in (0, 5)
        )
    )
    one, two = ExpertLoad.of(trace), ExpertLoad.of(bigger)
    both = one + two
    shared, only = GateId("encoder", 1, 0, "moving"), GateId("encoder", 1, 5, "moving")
    assert (both.counts[shared] == one.counts[shared] + two.counts[shared]).all()
    assert both.cells[shared] == one.cells[shared] + two.cells[shared]
    assert (both.counts[only] == two.counts[only]).all()
    assert both.share[shared].sum() == pytest.approx(1)
    assert len(one) == 9, "adding changed what was added"


def test_a_batch_of_two_is_counted_as_two_pairs(trace):
    record = trace.layers[0]
    twice = RoutedLayer(
        GateId("encoder", 1, 0, "moving"), 4, Routing(*(torch.cat([t, t]) for t in record.routing))
    )
    one, two = (ExpertLoad.of(RoutingTrace((r,))) for r in (record, twice))
    place = next(iter(one))
    assert (two.counts[place] == 2 * one.counts[place]).all() and two.cells[place] == 2 * one.cells[
        place
    ]


def test_blocks_of_a_layer_add_up(trace):
    load = ExpertLoad.of(trace)
    whole = load.over_blocks()
    parts = (
        load.counts[GateId("encoder", 1, 0, "fixed")]
        + load.counts[GateId("encoder", 1, 1, "fixed")]
    )
    assert (whole.counts[GateId("encoder", 1, None, "fixed")] == parts).all()
    assert whole.share_of_tokens[GateId("encoder", 1, None, "fixed")].sum() == pytest.approx(2)


def test_rows_name_every_place_and_expert_and_read_back(trace):
    load = ExpertLoad.of(trace)
    rows = load.rows()
    assert list(rows[0]) == "part layer block image direction expert count share".split()
    assert len(rows) == 6 * 6 + 3 * 3
    as_text = [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
    ]
    again = ExpertLoad.from_rows(as_text, {place: 2 for place in load if place.part == "encoder"})
    assert list(again) == list(load) and again.cells == load.cells
    assert all((again.counts[place] == load.counts[place]).all() for place in load)
