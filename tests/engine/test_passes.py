"""In how many passes fine-tuned weights register."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import passes_after, with_config

TWO = SHMoARegConfig.preset("tiny", passes=(0.5, 1.0))
FINE, COARSE = (37, 52, 34), (18, 26, 17)


@pytest.mark.parametrize(
    ("settings", "learned", "expected"),
    [
        (FineTuning(), FINE, (1.0,)),
        (FineTuning(), COARSE, (0.5, 1.0)),
        (FineTuning(cascade=0.5), FINE, (0.5, 1.0)),
        (FineTuning(passes="keep"), FINE, (0.5, 1.0)),
        (FineTuning(passes="one"), COARSE, (1.0,)),
    ],
)
def test_one_pass_only_where_it_learned_what_it_will_see(settings, learned, expected):
    passes, reason = passes_after(TWO, settings, learned=learned, used=FINE)
    assert passes == expected
    assert ("one pass" in reason) is (expected == (1.0,))


def test_weights_of_one_pass_stay_so():
    one = replace(TWO, passes=(1.0,))
    assert passes_after(one, FineTuning(passes="keep"), learned=COARSE, used=FINE)[0] == (1.0,)


def test_other_passes_are_the_same_weights_in_another_network():
    network = SHMoAReg(TWO)
    other = with_config(network, replace(network.config, passes=(1.0,)))
    assert other.config.passes == (1.0,) and network.config.passes == (0.5, 1.0)
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True)
    )
    assert with_config(other, other.config) is other
