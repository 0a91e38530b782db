"""Gates are named submodules: captum and plain hooks work on them as on any layer."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerActivation, LayerGradientXActivation

from napari_shmoareg.model.gate_sites import gates_of


@pytest.fixture
def images():
    return tuple(torch.rand(2, 1, 1, 20, 24, 17))


def site(network, **where):
    (found,) = [
        s
        for s in gates_of(network)
        if all(getattr(s, key) == value for key, value in where.items())
    ]
    return found


def test_captum_reads_the_gate_values_that_the_routing_records(tiny_network, images):
    def register(moving, fixed):
        return tiny_network(moving, fixed).displacement

    gate = site(tiny_network, part="decoder", layer=1, direction="y").module
    seen = LayerActivation(register, gate).attribute(images)
    recorded = tiny_network(*images).routing.select(layer=1, direction="y")[0].routing.probabilities
    i, j, k = recorded.shape[2:]
    torch.testing.assert_close(seen[:, :, :i, :j, :k], recorded)


def test_captum_attributes_the_motion_to_the_gate_as_autograd_does(tiny_network, images):
    """T of Eq. (6) multiplies the chosen expert's output: only the chosen one has a gradient."""

    def motion(moving, fixed):
        return tiny_network(moving, fixed).displacement[:, 0].abs().mean(dim=(1, 2, 3))

    gate = site(tiny_network, part="decoder", layer=1, direction="x").module
    found = LayerGradientXActivation(motion, gate).attribute(images)
    kept = []
    handle = gate.register_forward_hook(lambda module, args, output: kept.append(output))
    value = motion(*images).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(value, kept)
    torch.testing.assert_close(found, gradient * kept[0])
    chosen = kept[0].argmax(1, keepdim=True)
    others = torch.ones_like(found, dtype=torch.bool).scatter(1, chosen, False)
    assert found.abs().max() > 0 and not found[others].any()


def test_a_plain_hook_by_the_name_of_a_gate_sees_what_the_tokens_chose(tiny_network, images):
    name = "encoder.layers.1.blocks.1.attention.gate"
    kept = []
    tiny_network.get_submodule(name).register_forward_hook(
        lambda module, args, output: kept.append(output)
    )
    routing = tiny_network(*images).routing
    (values,) = kept
    for half, image in zip(values.chunk(2), ("moving", "fixed"), strict=True):
        record = routing.select(part="encoder", layer=2, block=1, image=image)[0].routing
        i, j, k = record.experts.shape[2:]
        assert torch.equal(
            half[:, :i, :j, :k].topk(2, dim=-1).indices.movedim(-1, 1), record.experts
        )
