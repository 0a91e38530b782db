"""RunControl, validation pairs, positions and pairs that stay in their places."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from napari_shmoareg.datasets.pairs import NamedPairs, spread_evenly, unordered_pairs
from napari_shmoareg.errors import InputError
from napari_shmoareg.training.logs import event
from napari_shmoareg.training.run_folder import RunControl, write_request
from napari_shmoareg.training.run_writer import Position
from napari_shmoareg.training.step import Step
from napari_shmoareg.training.validation import ValidationResult

NAN = float("nan")


def test_a_wish_from_outside_is_obeyed_once_and_taken_away(tmp_path):
    file = tmp_path / "wish"
    control = RunControl(file)
    assert not control.pause and not control.stop
    write_request(file, "pause")
    assert control.pause and not file.exists()
    write_request(file, "go")
    assert not control.pause and not control.stop
    file.write_text("dance", encoding="utf-8")
    assert not control.pause and not control.stop and not file.exists()
    write_request(file, "stop")
    assert control.stop and control.stop and list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="pause, go, stop; got 'dance'"):
        control.set_request("dance")


def test_a_wish_for_an_earlier_process_is_forgotten(tmp_path):
    write_request(tmp_path / "wish", "stop")
    control = RunControl(tmp_path / "wish")
    control.clear()
    assert not control.stop


@pytest.mark.parametrize("count", [2, 5, 10, 20])
def test_validation_pairs_show_every_scan_as_often_as_the_others(count):
    names = list(itertools.permutations("abcde", 2))
    chosen = [names[n] for n in spread_evenly(names, count)]
    assert len(set(chosen)) == count
    used = Counter(itertools.chain(*chosen))
    assert max(used.values()) - min(used[name] for name in "abcde") <= 1
    assert spread_evenly(names, count) == spread_evenly(names, count)
    assert spread_evenly(names, 100) == list(range(20))


def test_each_pair_stands_once_whichever_scan_moves():
    assert unordered_pairs([("b", "a"), ("a", "b"), ("c", "a"), ("b", "c"), ("c", "b")]) == [
        ("b", "a"),
        ("c", "a"),
        ("b", "c"),
    ]


def test_a_pair_that_is_gone_keeps_its_place_and_is_refused():
    def make(moving, fixed):
        images = {"moving": np.ones(3), "fixed": np.ones(3)}
        return SimpleNamespace(**images, moving_labels=None, fixed_labels=None, name=moving + fixed)

    there = NamedPairs([("b", "c")], make).renamed([("a", "b"), ("b", "c")])
    assert len(there) == 2 and there[1].name == "bc" and there[1:][0].name == "bc"
    assert (there.present, there.pair_names) == (1, ["a and b", "b and c"])
    with pytest.raises(InputError, match=r"a and b could be used when the run began.*checkup.csv"):
        there[0]
    assert there.select([1]).names == (("b", "c"),)


def test_the_best_look_is_strictly_better_by_dice_or_without_labels_by_correlation():
    def look(dice, ncc):
        return ValidationResult(dice, ncc, 0.0, 1.0, ())

    position, best = Position(step=0).with_validation(look(0.5, 0.1))
    assert best and position.validated == 0
    assert (
        not position.with_validation(look(0.5, 0.9))[1]
        and position.with_validation(look(0.51, 0.0))[1]
    )
    assert position.with_validation(look(0.4, 0.9))[0].best["dice"] == 0.5
    bare, best = Position().with_validation(look(NAN, 0.1))
    assert best and bare.validation["dice"] is None
    assert bare.with_validation(look(NAN, 0.2))[1] and not bare.with_validation(look(NAN, NAN))[1]


def test_selections_are_added_up_until_they_are_written():
    step = Step(3, (0,), *[0.0] * 7, 2.5, counts={"decoder-1-x": (4, 0, 1)})
    position = Position(step=2, seconds=1.0).after(step).after(step)
    assert position.counts == {"decoder-1-x": [8, 0, 2]}
    assert (position.step, position.seconds, position.reset_counts().counts) == (3, 6.0, {})


def test_an_event_is_plain_json_without_nan():
    told = event("step", name="a", value=NAN, pairs=(("a", "b"),), inside={"x": float("inf")})
    assert told["event"] == "step" and told["name"] == "a"
    assert told["value"] is None and told["pairs"] == [["a", "b"]] and told["inside"] == {"x": None}
