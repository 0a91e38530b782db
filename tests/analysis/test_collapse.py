"""RoutingWatch: alarms where routing collapses, silence where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.training.monitor import RoutingWatch

TOP_K = {"encoder": 4, "decoder": 1}


def fed(counts_of_step, steps=30, window=10):
    watch = RoutingWatch(TOP_K, window)
    for step in range(1, steps + 1):
        watch.add(step, counts_of_step(step))
    return watch


def test_even_loads_raise_no_alarm():
    watch = fed(lambda step: {"encoder-1-moving": (40,) * 12, "decoder-1-x": (30, 31, 29)})
    assert watch.alarms == []
    assert watch.shares["decoder-1-x"] == pytest.approx([30 / 90, 31 / 90, 29 / 90])


def test_one_expert_for_all_cells_is_a_collapse_and_it_is_named():
    (alarm,) = fed(lambda step: {"decoder-2-y": (1, 999, 0), "decoder-1-y": (300, 400, 300)}).alarms
    assert alarm.place == "decoder-2-y"
    assert "decoder layer 2, y: routing has collapsed: expert 1 has 100 %" in alarm.text


def test_the_same_four_heads_for_all_tokens_are_a_collapse_though_four_are_in_use():
    same_four = tuple(100 if n < 4 else 0 for n in range(12))
    (alarm,) = fed(lambda step: {"encoder-2-fixed": same_four}).alarms
    assert "collapsed" in alarm.text


def test_loads_that_fall_to_half_their_evenness_are_told_before_they_collapse():
    def narrowing(step):
        return {"decoder-1-z": (100, 100, 100) if step <= 10 else (280, 15, 5)}

    (alarm,) = fed(narrowing).alarms
    assert (
        "fewer experts are in use: evenness fell from 1.00 to 0.16; expert 0 has 93 %" in alarm.text
    )


def test_uneven_loads_from_the_start_are_no_alarm_as_the_shipped_weights_have_them():
    assert fed(lambda step: {"decoder-1-x": (720, 270, 10)}).alarms == []


def test_nothing_is_said_before_the_first_window_is_full():
    assert fed(lambda step: {"decoder-1-x": (1000, 0, 0)}, steps=9).alarms == []
    assert fed(lambda step: {"decoder-1-x": (1000, 0, 0)}, steps=10).alarms != []


def test_only_the_last_steps_count():
    def recovered(step):
        return {"decoder-1-x": (1000, 0, 0) if step <= 20 else (300, 400, 300)}

    watch = fed(recovered, steps=30)
    assert watch.alarms == [] and watch.step == 30
    assert np.isclose(sum(watch.shares["decoder-1-x"]), 1)
