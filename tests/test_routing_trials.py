"""benchmarks/routing_trials.py: its controls change what they name, and its rows are kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_shmoareg.geometry import Grid
from napari_shmoareg.model import SHMoARegConfig
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.training.settings import FineTuning

SHAPE = (14, 16, 12)  # padded to 16, 16, 16


@pytest.fixture(scope="module")
def trials():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "routing_trials.py"
    spec = importlib.util.spec_from_file_location("routing_trials", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["routing_trials"] = module
    spec.loader.exec_module(module)
    return module


def test_every_arm_is_a_setting_that_exists(trials):
    for arm in trials.ARMS.values():
        FineTuning(**arm.settings)
        SHMoARegConfig.preset("small", **arm.config)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_shuffled_choices_have_the_same_loads_at_other_places(part, trials, lively_network):
    network = lively_network(0.3)
    images = torch.rand(2, 1, 1, *SHAPE)
    with torch.no_grad():
        plain = network(*images)
        with trials.shuffled(network, part, 1):
            mixed = network(*images)
        again = network(*images)
    assert torch.equal(again.displacement, plain.displacement), "a hook was left behind"
    assert not torch.equal(mixed.displacement, plain.displacement)
    first = (
        {"part": part, "stride": 4, "block": 0}
        if part == "encoder"
        else {"part": part, "stride": 2}
    )
    for before, after in zip(
        plain.routing.select(**first), mixed.routing.select(**first), strict=True
    ):
        a, b = before.routing, after.routing
        loads = [torch.bincount(r.experts.flatten(), minlength=before.num_experts) for r in (a, b)]
        assert torch.equal(*loads) and not torch.equal(a.experts, b.experts)
        if part == "decoder":
            torch.testing.assert_close(a.weights, b.weights)
        else:
            torch.testing.assert_close(
                a.weights.flatten(2).sort().values, b.weights.flatten(2).sort().values
            )


def test_attention_taken_away_is_attention_that_learned_nothing(trials, lively_network):
    network = lively_network(0.3)
    images = torch.rand(2, 1, 1, *SHAPE)
    with torch.no_grad():
        plain = network(*images).displacement
        with trials.without_attention(network):
            without = network(*images).displacement
        for layer in network.encoder.layers:
            for block in layer.blocks:
                block.attention.output.zero_()
        assert torch.equal(network(*images).displacement, without)
    assert not torch.equal(plain, without)


def test_what_matters_is_the_share_of_the_gain_that_is_lost(trials):
    pairs = [
        {"before": 0.5, "after": 0.7, "encoder": 0.65},
        {"before": 0.4, "after": 0.5, "encoder": 0.45},
    ]
    assert trials.matters(pairs, "encoder") == pytest.approx(0.1 / 0.3, abs=1e-4)
    assert trials.matters([{"before": 0.5, "after": 0.4, "encoder": 0.4}], "encoder") is None


def test_overlap_is_one_for_labels_on_themselves_and_follows_the_displacement(trials):
    labels = torch.zeros(1, 1, 8, 9, 7)
    labels[..., 2:5, 3:6, 2:5], labels[..., 5:6, 3:6, 2:5] = 1, 2
    pair = Conformed(
        labels, labels, Grid((8, 9, 7), np.eye(4)), np.eye(4), None, labels.roll(1, 2), labels
    )
    shift = torch.zeros(1, 3, 8, 9, 7)
    assert trials.overlap(pair, None) < 0.8
    shift[:, 0] = 1
    assert trials.overlap(pair, shift) == pytest.approx(1)


def test_rows_outlive_a_line_that_was_cut_off(trials, tmp_path):
    path = tmp_path / "trials.jsonl"
    trials.append_row(path, {"arm": "baseline", "seed": 0})
    path.write_text(path.read_text(encoding="utf-8") + '{"arm": "muti', encoding="utf-8")
    trials.append_row(path, {"arm": "mutual", "seed": 0})
    assert [row["arm"] for row in trials.read_rows(path)] == ["baseline", "mutual"]
