"""The whole network: sizes, variants, ablations, what it returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_shmoareg.geometry import field
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig


def lively(**changes) -> SHMoAReg:
    """A tiny network whose heads do not start at zero, so that it moves things."""
    torch.manual_seed(0)
    network = SHMoAReg(SHMoARegConfig.preset("tiny", **changes)).eval()
    for level in network.decoder.levels:
        for conv in (m for m in level.head.modules() if isinstance(m, nn.Conv3d)):
            nn.init.normal_(conv.weight, std=0.05)
    return network


@pytest.mark.parametrize("shape", [(8, 8, 8), (20, 24, 17), (40, 40, 5), (9, 33, 12)])
def test_any_size_comes_back_at_that_size(shape):
    network = lively()
    moving, fixed = torch.rand(2, 1, 1, *shape)
    with torch.no_grad():
        displacement, routing = network(moving, fixed)
    assert displacement.shape == (1, 3, *shape)
    assert torch.isfinite(displacement).all()
    for record in routing:
        cells = tuple(-(-n // record.stride) for n in shape)
        assert record.routing.experts.shape[2:] == cells
        assert record.routing.probabilities.shape[2:] == cells


def test_a_shallow_stack_is_registered():
    network = lively()
    with torch.no_grad():
        displacement, _ = network(*torch.rand(2, 1, 1, 128, 128, 20))
    assert displacement.shape == (1, 3, 128, 128, 20)


def test_an_untrained_network_moves_nothing():
    network = SHMoAReg(SHMoARegConfig.preset("tiny")).eval()
    with torch.no_grad():
        displacement, _ = network(*torch.rand(2, 1, 1, 16, 20, 12))
    assert displacement.abs().max() < 1e-2


def test_one_record_per_gate_in_the_order_of_the_forward():
    routing = lively()(*torch.rand(2, 1, 1, 16, 20, 12)).routing
    assert [r.name for r in routing] == [
        *(f"encoder-1-0-{i}" for i in ("moving", "fixed")),
        *(f"encoder-2-{b}-{i}" for b in (0, 1) for i in ("moving", "fixed")),
        *(f"decoder-{n}-{d}" for n in (2, 1) for d in "xyz"),
    ]
    assert [r.stride for r in routing.select(part="decoder", direction="y")] == [2, 1]


def test_records_of_moving_and_fixed_are_not_swapped():
    network = lively()
    moving, fixed = torch.rand(2, 1, 1, 16, 20, 12)
    with torch.no_grad():
        there, same = network(moving, fixed).routing, network(moving, moving).routing
    key = {"part": "encoder", "layer": 1, "block": 0}
    (a,), (b,) = there.select(**key, image="moving"), same.select(**key, image="moving")
    (c,), (d,) = there.select(**key, image="fixed"), same.select(**key, image="fixed")
    assert torch.equal(a.routing.experts, b.routing.experts)
    assert not torch.equal(c.routing.experts, d.routing.experts)
    assert not torch.equal(a.routing.experts, c.routing.experts)


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_both_orders_at_once_equal_one_after_the_other(diffeomorphic):
    network = lively().double()
    first, second = torch.rand(2, 1, 1, 11, 20, 13, dtype=torch.float64)
    with torch.no_grad():
        both = network.both_orders(first, second, diffeomorphic=diffeomorphic)
        there = network(first, second, diffeomorphic=diffeomorphic)
        back = network(second, first, diffeomorphic=diffeomorphic)
    torch.testing.assert_close(
        both.displacement, torch.cat([there.displacement, back.displacement]), rtol=1e-4, atol=1e-5
    )
    for joint, a, b in zip(both.routing, there.routing, back.routing, strict=True):
        assert joint.name == a.name
        assert torch.equal(joint.routing.experts, torch.cat([a.routing.experts, b.routing.experts]))


def test_the_diffeomorphic_variant_has_the_same_weights_and_does_not_fold():
    network = lively()
    with torch.no_grad():
        for level in network.decoder.levels:
            for conv in (m for m in level.head.modules() if isinstance(m, nn.Conv3d)):
                conv.weight *= 2
        images = torch.rand(2, 1, 1, 24, 28, 20)
        plain = network(*images).displacement
        smooth = network(*images, diffeomorphic=True).displacement
    folded, whole = (
        float((field.jacobian_determinant(u) <= 0).float().mean()) for u in (plain, smooth)
    )
    assert folded > 0.1
    assert whole < folded / 50


def test_with_plain_heads_and_plain_attention_nothing_is_routed():
    routing = lively(attention="mha", shmoe_strides=())(*torch.rand(2, 1, 1, 16, 20, 12)).routing
    assert len(routing) == 0


@pytest.mark.parametrize("strides", [(), (1,), (1, 2), (1, 2, 4), (1, 2, 4, 8)])
def test_shmoe_stands_at_just_the_resolutions_asked_for(strides):
    routing = lively(shmoe_strides=strides)(*torch.rand(2, 1, 1, 16, 24, 12)).routing
    assert {r.stride for r in routing.select(part="decoder")} == set(strides)


def test_every_parameter_learns():
    network = SHMoAReg(SHMoARegConfig.preset("tiny", drop_path=0.0))
    from napari_shmoareg.training.settings import FineTuning
    from napari_shmoareg.training.step import total_loss

    moving, fixed = torch.rand(2, 1, 1, 16, 20, 12)
    total_loss(
        network.both_orders(moving, fixed),
        torch.cat([moving, fixed]),
        torch.cat([fixed, moving]),
        FineTuning(),
    ).total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_hook_on_a_gate_decides_what_is_chosen():
    network = lively()
    gate = network.decoder.levels[-1].head.gates["y"]
    images = torch.rand(2, 1, 1, 16, 20, 12)
    with torch.no_grad():
        handle = gate.register_forward_hook(
            lambda module, args, p: p * torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1)
        )
        forced = network(*images).routing
        handle.remove()
        free = network(*images).routing
    assert forced.select(layer=1, direction="y")[0].routing.experts.unique().tolist() == [2]
    assert len(free.select(layer=1, direction="y")[0].routing.experts.unique()) > 1


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\).*\(1, 1, 8, 8, 8\)"):
        lively()(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 9))


def test_a_config_survives_a_round_trip_and_refuses_what_it_does_not_know():
    config = SHMoARegConfig.preset("small", top_k=3, diffeomorphic=True)
    assert SHMoARegConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="colour"):
        SHMoARegConfig.from_dict({"colour": "red"})
    with pytest.raises(ValueError, match=r"top_k is 1 to num_experts \(12\), not 13"):
        SHMoARegConfig(top_k=13)
    with pytest.raises(ValueError, match="paper, small, tiny"):
        SHMoARegConfig.preset("huge")


def test_the_alternatives_of_a_level_are_what_each_expert_gives_when_it_is_forced():
    network = lively()
    level = network.decoder.levels[-1]
    images = torch.rand(2, 1, 1, 16, 24, 16)
    with torch.no_grad():
        assert all(record.alternatives is None for record in network(*images).routing)
        level.compare_experts = True
        output = network(*images)
    records = {
        record.direction: record for record in output.routing.select(part="decoder", layer=1)
    }
    assert len(records) == 3
    for record in records.values():
        assert (
            record.alternatives.shape == (1, 3, 16, 24, 16)
            and not record.alternatives.requires_grad
        )
        chosen = record.alternatives.gather(1, record.routing.experts)
        torch.testing.assert_close(chosen, record.residual)
    assert records["x"].detached().alternatives is None
    other = output.routing.select(part="decoder", layer=2)
    assert all(record.alternatives is None for record in other)

    for expert in range(3):

        def force(module, args, p, expert=expert):
            return torch.where(torch.arange(3).view(1, 3, 1, 1, 1) == expert, p, torch.zeros(()))

        handle = level.head.gates["y"].register_forward_hook(force)
        level.compare_experts = False
        with torch.no_grad():
            forced = (
                network(*images).routing.select(part="decoder", layer=1, direction="y")[0].residual
            )
        handle.remove()
        torch.testing.assert_close(forced[:, 0], records["y"].alternatives[:, expert])
