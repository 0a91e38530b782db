"""A forward pass that is stopped in the middle, and goes on as before when it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_shmoareg.registration.progress import Interrupted, interruptible


def test_a_forward_pass_ends_within_one_layer_of_being_stopped(tiny_network):
    done = []
    leaves = [m for m in tiny_network.modules() if not list(m.children())]
    for module in leaves:
        module.register_forward_hook(lambda *_: done.append(1))

    def check():
        if len(done) == 5:
            raise Interrupted

    images = torch.rand(2, 1, 1, 32, 32, 32)
    with pytest.raises(Interrupted), interruptible(tiny_network, check), torch.inference_mode():
        tiny_network(*images)
    assert len(done) == 5


def test_a_network_is_left_as_it_was():
    network = nn.Sequential(nn.ReLU(), nn.ReLU())
    asked = []
    with interruptible(network, lambda: asked.append(1)):
        network(torch.ones(2))
    assert len(asked) == 3  # the network and its two layers
    network(torch.ones(2))
    assert len(asked) == 3


def test_asking_changes_nothing(tiny_network):
    images = torch.rand(2, 1, 1, 32, 32, 32)
    with torch.inference_mode():
        alone = tiny_network(*images).displacement
        with interruptible(tiny_network, lambda: None):
            asked = tiny_network(*images).displacement
    assert torch.equal(alone, asked)


def test_being_stopped_is_no_runtime_error():
    assert not issubclass(Interrupted, RuntimeError)
