"""The part of each expert in the movement, and what is concluded from a registration."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.experts.conclusions import conclusions, evenness_of
from napari_shmoareg.experts.contribution import contributions, residuals_of
from napari_shmoareg.experts.maps import content_cells, expert_maps
from napari_shmoareg.geometry import Volume
from napari_shmoareg.registration.replay import Replay

KERNELS = ("1×1×1", "3×3×3", "5×5×5")


@pytest.fixture(scope="module")
def replay(phantoms, lively_network) -> Replay:
    return Replay.of(phantoms, lively_network(0.03), settings={"diffeomorphic": False})


def test_residuals_are_what_the_experts_add_and_their_parts_sum_to_the_whole(replay):
    found = residuals_of(replay)
    _, routing = replay.run()
    assert [one.gate for one in found] == [one.gate for one in routing.select(part="decoder")]
    for one, record in zip(found, routing.select(part="decoder"), strict=True):
        np.testing.assert_array_equal(one.chosen, record.routing.experts[0, 0].numpy())
    for part in contributions(found, replay.grid):
        assert part.by_expert.sum() == pytest.approx(part.mean)
        assert part.chosen.sum() == pytest.approx(1) and part.mean > 0
        assert part.by_chance.sum() == pytest.approx(part.mean)


def test_a_level_that_moves_by_one_voxel_moves_by_its_stride_in_mm(replay, monkeypatch):
    from napari_shmoareg.model.shmoe import SHMoE

    forward = SHMoE.forward

    def planted(self, features):
        residual, routings = forward(self, features)
        residual = residual * 0
        residual[:, 1] = -1.0
        return residual, routings

    monkeypatch.setattr(SHMoE, "forward", planted)
    for one in residuals_of(replay):
        expected = one.stride * replay.grid.spacing[1] if one.gate.direction == "y" else 0.0
        np.testing.assert_allclose(np.abs(one.values), expected, rtol=1e-5)


def test_an_expert_that_moves_more_than_others_has_more_than_its_share(replay):
    found = residuals_of(replay)
    one = next(each for each in found if len(np.unique(each.chosen)) > 1)
    rare = int(np.bincount(one.chosen.ravel()).argsort()[::-1][1])
    one.values[:] = np.where(one.chosen == rare, 3.0, 1.0)
    (part,) = contributions([one], replay.grid)
    share = (one.chosen == rare).mean()
    assert part.by_expert[rare] == pytest.approx(3 * share)
    assert part.by_expert[rare] > part.by_chance[rare]
    region = np.zeros(replay.pair.fixed.grid.shape, np.uint8)
    assert contributions([one], replay.grid, Volume(region, replay.pair.fixed.grid)) == []


def test_air_is_left_out_of_the_shares(registration):
    one = expert_maps(registration)[-1]
    inside = content_cells(registration, one.stride)
    assert inside.any() and not inside.all() and inside.shape == one.volume.values.shape
    counts = [(one.volume.values[inside] == n + 1).sum() for n in range(one.num_experts)]
    np.testing.assert_allclose(one.shares(inside), np.array(counts) / inside.sum())
    assert one.shares().sum() == pytest.approx(1)


def test_conclusions_name_what_decides_and_where_it_is_shown(registration):
    score = {"score": 0.38, "low": 0.16, "high": 0.63}
    none = {"score": -0.03, "low": -0.09, "high": 0.05}
    card = {"routing_matters": {"pairs": 6, "measure": "dice", "decoder": score, "encoder": none}}
    found = conclusions(registration, card, KERNELS, regions=(2, 7))
    texts = {one.text: one.topic for one in found}
    words = " ".join(texts)
    assert "kernels: 38 % [16, 63] of the gain depends on it" in words
    assert "heads: no effect found (-3 % [-9, 5])" in words
    assert texts["2 of 7 regions differ by more than chance"] == "Regions"
    assert {"Maps", "Layers", "What if", "Regions"} == set(texts.values())
    even = evenness_of(registration, "encoder")
    assert 0 <= even.evenness <= 1 and f"evenness {even.evenness:.2f} of 1" in words
    assert "was not measured" in conclusions(registration, {}, KERNELS)[0].text
    without = conclusions(registration, None, KERNELS)
    assert (
        "the weights are not at hand" in without[0].text and "not compared yet" in without[-1].text
    )
    assert conclusions(registration, {"routing_matters": {"pairs": "?"}}, KERNELS)[0].text
