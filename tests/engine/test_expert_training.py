"""How experts begin, which learn, how many are chosen, how they are balanced, and whom they learn
from.
"""

from __future__ import annotations

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import field
from napari_shmoareg.model import (
    GateId,
    RoutedLayer,
    Routing,
    RoutingTrace,
    SHMoAReg,
    SHMoARegConfig,
)
from napari_shmoareg.model.gate_sites import gates_of
from napari_shmoareg.model.moa import MoA
from napari_shmoareg.model.routing import choose
from napari_shmoareg.model.shmoe import SHMoE
from napari_shmoareg.registration import losses
from napari_shmoareg.registration.known_motion import KnownMotion
from napari_shmoareg.training import step as step_module
from napari_shmoareg.training.expert_losses import descent_motion, end_point_error
from napari_shmoareg.training.expert_training import (
    check_start,
    chosen_at,
    expert_config,
    experts_at,
    jitter_at,
    move_choice_bias,
    record_head_outputs,
    softmax_gates,
    start_experts,
    with_choice_bias,
)
from napari_shmoareg.training.recipes import RunningMean
from napari_shmoareg.training.settings import ExpertLearning, FineTuning
from napari_shmoareg.training.step import fine_tune, make_optimiser, trainable_parameters
from napari_shmoareg.training.synthesis import SyntheticPairs
from napari_shmoareg.training.synthesis_settings import SynthesisSettings


def fresh(settings: FineTuning | None = None, seed: int = 0, **changes) -> SHMoAReg:
    torch.manual_seed(seed)
    config = SHMoARegConfig.preset("tiny", drop_path=0.0, **changes)
    return SHMoAReg(expert_config(config, settings or FineTuning()))


@pytest.fixture(scope="module")
def pairs():
    drawn = SyntheticPairs([], SynthesisSettings(size=(12, 14)), seed=3, motion=True)
    return [drawn[n] for n in range(3)]


def parts(network: SHMoAReg) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: SHMoAReg) -> set[str]:
    return {
        name for name, value in network.state_dict().items() if not torch.equal(before[name], value)
    }


def test_by_default_nothing_here_is_done():
    paper = FineTuning()
    assert (paper.known_motion, paper.correspondence_weight, paper.teacher, paper.z_weight) == (
        0,
        0,
        "none",
        0,
    )
    assert (paper.balance_weight, paper.balance, paper.dense_share, paper.gate_temperature) == (
        0,
        "switch",
        0,
        1,
    )
    assert (paper.routing_target, paper.gates, paper.attention) == ("error", "learned", "learned")
    assert (paper.moa_output_scale, paper.kernels_start) == (1, "apart")
    assert (paper.head_diversity_weight, paper.gate_jitter, paper.expert_damping) == (0, 0, 1)
    network = fresh()
    before = parts(network)
    start_experts(network, paper)
    assert not changed(before, network)
    assert not expert_config(network.config, paper).choice_bias


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known_motion": 2.0}, "known_motion must be between 0 and 1; got 2.0"),
        ({"correspondence_strides": "4,6"}, "correspondence_strides must be strides among 4, 8"),
        ({"correspondence_strides": ""}, "correspondence_strides"),
        ({"teacher": "me"}, "'none', 'drawn' or 'descent'"),
        ({"moa_output_scale": 0.0}, "moa_output_scale must be above 0"),
        ({"balance": "even"}, "'switch', 'mutual' or 'bias'"),
        ({"dense_share": -0.1}, "dense_share"),
        ({"gate_temperature": 0.5}, "gate_temperature must be at least 1"),
        ({"expert_damping": 1.5}, "expert_damping must be between 0 and 1"),
        ({"gate_jitter": -1.0}, "gate_jitter must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FineTuning(**changes)


def test_the_settings_keep_their_places_among_those_of_learning():
    assert FineTuning(7).steps == 7
    assert {field.name for field in fields(ExpertLearning)} < set(FineTuning().to_dict())


# ---- how they begin


def test_kernels_that_start_alike_are_one_function_and_others_are_not():
    features = torch.randn(1, 4, 7, 6, 5)
    spread = {}
    for start in ("apart", "alike"):
        network = fresh()
        start_experts(network, FineTuning(kernels_start=start))
        head = next(
            module for module in reversed(list(network.modules())) if isinstance(module, SHMoE)
        )
        with torch.no_grad():
            outputs = head.convolve(features)[0]
        spread[start] = [float((out - out[:, :1]).abs().max() / out.abs().max()) for out in outputs]
        assert [tuple(conv.weight.shape[2:]) for conv in head.experts["x"]] == [
            (1,) * 3,
            (3,) * 3,
            (5,) * 3,
        ]
        assert not torch.equal(outputs[0], outputs[1]), "directions are still drawn apart"
    assert max(spread["alike"]) < 1e-5 and min(spread["apart"]) > 0.5


def test_kernels_that_started_alike_learn_apart(pairs):
    network = fresh()
    settings = FineTuning(steps=3, learning_rate=1e-2, kernels_start="alike", similarity="lncc")
    start_experts(network, settings)
    list(fine_tune(network, pairs, settings))
    small, middle, large = network.decoder.levels[-1].head.experts["x"]
    assert not torch.equal(small.weight[..., 0, 0, 0], middle.weight[..., 1, 1, 1])
    assert bool((large.weight[..., 0, 0, 0] != 0).any())


def test_the_scale_multiplies_what_attention_adds_at_the_start():
    tokens = torch.randn(1, 4, 4, 4, 8)
    found = []
    for scale in (1.0, 4.0):
        network = fresh()
        start_experts(network, FineTuning(moa_output_scale=scale))
        block = network.encoder.layers[0].blocks[0]
        from napari_shmoareg.model.windows import WindowLayout

        layout = WindowLayout((4, 4, 4), (4, 4, 4), block.window, False)
        with torch.no_grad():
            found.append(block.attention(tokens, layout, None)[0])
    torch.testing.assert_close(found[1], 4 * found[0])


def test_how_weights_begin_from_nothing_is_refused_where_they_begin_from_others():
    check_start(FineTuning(gates="frozen"))
    for changes in ({"moa_output_scale": 4.0}, {"kernels_start": "alike"}):
        with pytest.raises(
            InputError,
            match=r"(moa_output_scale|kernels_start) initialises random weights.*given weights.*Leave it out",
        ):
            check_start(FineTuning(**changes))


# ---- which learn


def test_frozen_gates_stay_and_all_else_learns(pairs):
    network = fresh()
    gates = {id(p) for site in gates_of(network) for p in site.module.parameters()}
    names = {name for name, p in network.named_parameters() if id(p) in gates}
    assert any(name.startswith("encoder") for name in names) and any(
        name.startswith("decoder") for name in names
    )
    before = parts(network)
    settings = FineTuning(steps=2, learning_rate=1e-3, gates="frozen")
    assert not gates & {
        id(p) for group in make_optimiser(network, settings).param_groups for p in group["params"]
    }
    list(fine_tune(network, pairs, settings))
    moved = changed(before, network)
    assert not moved & names
    assert {"encoder.patches.weight", "decoder.levels.3.head.experts.x.0.weight"} <= moved
    list(fine_tune(network, pairs, FineTuning(steps=1, learning_rate=1e-3)))
    assert changed(before, network) >= names, "free again where nothing is frozen"


@pytest.mark.parametrize("attention", ["moa", "mha"])
def test_attention_that_is_off_adds_nothing_and_stays_so(attention, pairs):
    network = fresh(attention=attention)
    settings = FineTuning(steps=2, learning_rate=1e-2, attention="off")
    list(fine_tune(network, pairs, settings))
    blocks = [block for layer in network.encoder.layers for block in layer.blocks]
    outputs = [p for block in blocks for p in block.attention.parameters()]
    assert outputs and not {id(p) for p in outputs} & {
        id(p) for p in trainable_parameters(network, settings)
    }
    network.eval()
    images = torch.rand(2, 1, 1, 16, 12, 20)
    with torch.no_grad():
        before = network(*images).displacement
        for block in blocks:
            for name, parameter in block.attention.named_parameters():
                if not name.startswith("output"):
                    parameter.add_(torch.randn_like(parameter))
        assert torch.equal(network(*images).displacement, before)
    assert float(before.abs().max()) > 0


# ---- how many are chosen


def test_from_dense_to_sparse_all_heads_are_chosen_first_and_the_networks_own_number_in_the_end():
    settings = FineTuning(steps=30, dense_share=1 / 3, gate_temperature=3.0)
    rows = [chosen_at(settings, step, 12, 4) for step in range(30)]
    assert rows[0] == (12, 3.0)
    assert all(row == (4, 1.0) for row in rows[10:])
    counts, heat = zip(*rows[:11], strict=True)
    assert list(counts) == sorted(counts, reverse=True) and list(heat) == sorted(heat, reverse=True)
    assert len(set(counts)) > 5
    assert chosen_at(FineTuning(steps=30), 0, 12, 4) == (4, 1.0)


def test_a_step_chooses_what_is_due_and_between_steps_the_network_is_its_own(pairs):
    network = fresh()
    settings = FineTuning(steps=4, dense_share=0.5, gate_temperature=2.0)
    chosen = []
    for step in fine_tune(network, [pairs[0]], settings):
        assert all((gate.top_k, gate.temperature) == (2, 1.0) for gate in softmax_gates(network))
        chosen.append(sum(step.counts["encoder-1-moving"]))
    tokens = 2 * int(np.prod([-(-n // 4) for n in pairs[0].grid.shape]))
    assert chosen == [6 * tokens, 4 * tokens, 2 * tokens, 2 * tokens]


def test_a_hot_gate_is_less_sure():
    gate = softmax_gates(fresh())[0]
    tokens = 20 * torch.randn(1, 3, 3, 3, 8)
    with torch.no_grad():
        sure = gate(tokens)
        gate.temperature = 4.0
        unsure = gate(tokens)
    torch.testing.assert_close(unsure, torch.softmax(tokens @ gate.weight.T / 4, -1))
    assert float(unsure.max()) < float(sure.max())


# ---- how they are balanced


def trace(probabilities: torch.Tensor, top_k: int) -> RoutingTrace:
    """Of one layer whose tokens (T, N) have these probabilities."""
    p = probabilities.T[None, :, :, None, None]
    weights, experts = choose(p, top_k)
    return RoutingTrace(
        (RoutedLayer(GateId("encoder", 1, 0, "moving"), 4, Routing(p, experts, weights)),)
    )


def test_mutual_information_is_best_for_sure_tokens_on_even_loads():
    n, k = 6, 2
    # each token on two heads, each head of two tokens
    sure = torch.eye(n).roll(1, 0) + torch.eye(n)
    even = losses.mutual_information(trace(sure / 2, k))
    indifferent = losses.mutual_information(trace(torch.full((n, n), 1 / n), k))
    alike = losses.mutual_information(trace((sure / 2)[:1].expand(n, n), k))
    one = losses.mutual_information(trace(torch.eye(n), k))
    assert float(even) == pytest.approx(0, abs=1e-6)
    assert float(one) == pytest.approx(0, abs=1e-6), "surer than k heads is no better"
    worst = (math.log(n) - math.log(k)) / math.log(n)
    assert float(indifferent) == pytest.approx(worst) and float(alike) == pytest.approx(worst)


def test_the_loss_of_a_balance_is_the_one_asked_for(pairs, monkeypatch):
    totals = {}
    for balance, weight in (("switch", 0.0), ("switch", 1.0), ("mutual", 1.0), ("bias", 1.0)):
        settings = FineTuning(steps=1, balance=balance, balance_weight=weight)
        (step,) = fine_tune(fresh(settings), [pairs[0]], settings)
        totals[balance, weight] = step.total
    plain = totals["switch", 0.0]
    assert totals["bias", 1.0] == pytest.approx(plain), "a bias has no loss"
    network = fresh()
    with torch.no_grad():
        routing = network.train().both_orders(pairs[0].moving, pairs[0].fixed).routing
    for name, loss in losses.BALANCES.items():
        assert totals[name, 1.0] - plain == pytest.approx(float(loss(routing)), rel=1e-3)


def test_the_z_loss_is_the_mean_squared_log_sum_exp_and_reaches_the_gates(pairs):
    logits = [torch.randn(2, 3, 4, 5, 6), torch.randn(2, 1, 2, 2, 6)]
    slow = [
        np.mean([math.log(sum(math.exp(v) for v in row)) ** 2 for row in z.flatten(0, -2).tolist()])
        for z in logits
    ]
    assert float(losses.z_loss(logits)) == pytest.approx(np.mean(slow), rel=1e-5)
    totals = []
    for weight in (0.0, 0.5):
        network = fresh()
        (step,) = fine_tune(network, [pairs[0]], FineTuning(steps=1, z_weight=weight))
        totals.append(step.total)
        assert not any(gate._forward_pre_hooks for gate in softmax_gates(network))
    gates = len(softmax_gates(network))
    assert totals[1] - totals[0] == pytest.approx(0.5 * math.log(6) ** 2, rel=0.05), (
        f"{gates} gates start near even"
    )


def test_biases_of_the_choice_even_out_the_loads_of_a_gate_that_has_favourites():
    network = with_choice_bias(fresh())
    gate = softmax_gates(network)[0]
    tokens = torch.randn(1, 6, 6, 6, 8)
    with torch.no_grad():
        gate.weight.normal_(std=0.3)
        favour = torch.randn(8)
        tokens += 2 * favour
    spread = []
    others = torch.zeros(len(softmax_gates(network)) - 1, 6, dtype=torch.int64)
    for _ in range(400):
        with torch.no_grad():
            count = torch.bincount(
                choose(gate(tokens), gate.top_k, dim=-1)[1].flatten(), minlength=6
            )
        spread.append(float(count.max() / count.float().mean()))
        before = gate.choice_bias.clone()
        move_choice_bias(network, torch.cat([count[None], others]), 0.002)
        step = (gate.choice_bias - before).sign()
        assert torch.equal(step, (count.float().mean() - count).sign())
    assert spread[0] > 2 and np.mean(spread[-50:]) < 1.25
    assert all(not g.choice_bias.any() for g in softmax_gates(network)[1:]), (
        "even loads move nothing"
    )


def test_learning_moves_the_biases_by_the_loads_of_each_gate(pairs):
    settings = FineTuning(steps=1, balance="bias", balance_rate=0.01)
    network = fresh(settings)
    with torch.no_grad():
        routing = (
            copy.deepcopy(network).train().both_orders(pairs[0].moving, pairs[0].fixed).routing
        )
    (_,) = fine_tune(network, [pairs[0]], settings)
    places = [(site.layer, site.block) for site in gates_of(network) if site.part == "encoder"]
    for (layer, block), gate in zip(places, softmax_gates(network), strict=True):
        found = [
            r.routing.experts.flatten()
            for r in routing.select(part="encoder", layer=layer, block=block)
        ]
        count = torch.bincount(torch.cat(found), minlength=6).float()
        torch.testing.assert_close(gate.choice_bias, 0.01 * (count.mean() - count).sign())


def test_a_network_without_biases_is_refused_and_one_that_gets_them_stays_the_same(pairs):
    network = fresh()
    with pytest.raises(InputError, match="have no choice bias"):
        next(fine_tune(network, pairs, FineTuning(steps=1, balance="bias")))
    given = with_choice_bias(network.eval())
    assert given.config.choice_bias and not given.training and with_choice_bias(given) is given
    with torch.no_grad():
        images = torch.rand(2, 1, 1, 12, 16, 12)
        assert torch.equal(given(*images).displacement, network(*images).displacement)


def test_the_running_mean_of_the_weights_has_the_mean_of_the_biases():
    network = with_choice_bias(fresh())
    mean = RunningMean(network, 0.5)
    softmax_gates(network)[0].choice_bias.fill_(1.0)
    mean.follow(network)
    value = softmax_gates(mean.network)[0].choice_bias
    assert 0 < float(value.min()) == float(value.max()) <= 1


# ---- whom they learn from


def test_tokens_at_strides_that_the_network_has_not_are_refused(pairs):
    settings = FineTuning(steps=1, correspondence_weight=1.0, correspondence_strides="32,64")
    with pytest.raises(InputError, match=r"strides of the network's tokens \(4, 8\); got '32,64'"):
        next(fine_tune(fresh(), pairs, settings))


def test_the_end_point_error_is_the_mean_distance_where_the_motion_is_known():
    motion = KnownMotion(torch.zeros(2, 3, 4, 5, 3), torch.zeros(2, 1, 4, 5, 3))
    motion.known[0, 0, 1, 2, 0] = motion.known[1, 0, 3, 3, 2] = 1
    found = torch.randn(2, 3, 4, 5, 3, requires_grad=True)
    with torch.no_grad():
        found[0, :, 1, 2, 0], found[1, :, 3, 3, 2] = (
            torch.tensor([3.0, 0.0, 4.0]),
            torch.tensor([0.0, 1.0, 0.0]),
        )
    error = end_point_error(found, motion)
    assert float(error.detach()) == pytest.approx(3)
    (slope,) = torch.autograd.grad(error, [found])
    assert int((slope != 0).sum()) == 3 and bool(slope.isfinite().all())
    nothing = KnownMotion(motion.displacement, torch.zeros_like(motion.known))
    assert float(end_point_error(found, nothing)) == 0


def test_a_network_that_learns_from_the_drawn_motion_comes_closer_to_it(pairs):
    network = fresh()
    settings = FineTuning(
        steps=40,
        learning_rate=5e-3,
        teacher="drawn",
        teacher_weight=1.0,
        similarity_weight=0.0,
        routing_weight=0.0,
    )

    def missed() -> float:
        with torch.no_grad():
            return float(
                end_point_error(
                    network.both_orders(pairs[0].moving, pairs[0].fixed).displacement,
                    pairs[0].motion,
                )
            )

    before = missed()
    list(fine_tune(network, [pairs[0]], settings))
    assert missed() < 0.6 * before


def test_the_descent_brings_each_image_onto_the_other(pairs):
    pair = pairs[0]
    motion = descent_motion(pair)
    assert not motion.displacement.requires_grad and not motion.displacement.is_inference()
    for moving, fixed, u in zip(
        (pair.moving, pair.fixed), (pair.fixed, pair.moving), motion.displacement, strict=True
    ):
        before, after = (
            float(losses.lncc(a, fixed))
            for a in (moving, field.warp(moving, u[None], padding="border"))
        )
        assert after < 0.7 * before


def test_a_teacher_adds_its_error_times_its_weight(pairs, monkeypatch):
    plain = next(s.total for s in fine_tune(fresh(), [pairs[0]], FineTuning(steps=1)))
    seen = []

    def error(displacement, motion):
        seen.append(motion)
        return displacement.sum() * 0 + 2.0

    monkeypatch.setattr(step_module, "end_point_error", error)
    for teacher in ("drawn", "descent"):
        settings = FineTuning(steps=1, teacher=teacher, teacher_weight=0.25)
        (step,) = fine_tune(fresh(), [pairs[0]], settings)
        assert step.total == pytest.approx(plain + 0.5, rel=1e-5)
    assert torch.equal(seen[0].displacement, pairs[0].motion.displacement) and bool(
        (seen[1].known == 1).all()
    )
    bare = [copy.copy(pairs[0])]
    object.__setattr__(bare[0], "motion", None)
    (step,) = fine_tune(fresh(), bare, FineTuning(steps=1, teacher="drawn", teacher_weight=0.25))
    assert step.total == pytest.approx(plain)


def test_a_share_of_the_steps_has_a_known_motion(pairs, monkeypatch):
    seen = []
    true_loss = step_module.correspondence_loss

    def loss(pyramid, motion, strides, rng):
        seen.append(motion)
        return true_loss(pyramid, motion, strides, rng)

    monkeypatch.setattr(step_module, "correspondence_loss", loss)
    bare = []
    for pair in pairs:
        bare.append(copy.copy(pair))
        object.__setattr__(bare[-1], "motion", None)
    settings = FineTuning(steps=12, known_motion=0.5, correspondence_weight=0.1)
    list(fine_tune(fresh(), bare, settings))
    assert 2 < len(seen) < 10


EVERYTHING = {
    "known_motion": 0.5, "correspondence_weight": 0.1, "teacher": "drawn", "balance": "bias", "z_weight": 0.01,
    "dense_share": 0.5, "gate_temperature": 2.0, "routing_target": "counterfactual", "cascade": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_stopped_run_with_all_of_it_goes_on_to_the_same_weights(checkpointing, pairs):
    settings = FineTuning(
        steps=4, learning_rate=1e-3, similarity="lncc", checkpointing=checkpointing, **EVERYTHING
    )
    whole, other = fresh(settings), fresh(settings)
    start_experts(whole, settings)
    totals = [s.total for s in fine_tune(whole, pairs, settings)]
    optimiser = make_optimiser(other, settings)
    part = []
    for step in fine_tune(other, pairs, settings, optimiser=optimiser):
        part.append(step.total)
        if step.step == 2:
            break
    part += [s.total for s in fine_tune(other, pairs, settings, optimiser=optimiser, start=2)]
    assert part == totals and not changed(parts(whole), other)
    assert any(gate.choice_bias.any() for gate in softmax_gates(whole))
    assert any(isinstance(module, MoA) for module in whole.modules())


# ---- options of the choice and of the experts' gradient


def test_jitter_changes_the_choice_and_not_t_and_falls_to_none():
    settings = FineTuning(steps=30, gate_jitter=2.0)
    assert [round(jitter_at(settings, step), 3) for step in (0, 5, 10, 29)] == [2.0, 1.0, 0.0, 0.0]
    head = next(module for module in fresh().modules() if isinstance(module, SHMoE))
    features = torch.randn(1, head.experts["x"][0].in_channels, 6, 5, 4)
    with torch.no_grad():
        _, plain = head(features)
        head.jitter = 2.0
        _, noisy = head(features)
    for a, b in zip(plain, noisy, strict=True):
        assert not torch.equal(a.experts, b.experts)
        assert torch.equal(a.probabilities, b.probabilities)
        assert torch.equal(b.weights, b.probabilities.gather(1, b.experts))


def test_damping_lessens_what_reaches_an_expert_where_the_error_is_large_and_not_what_reaches_the_gate():
    gradient = torch.tensor([0.0, 1.0, -2.0, 3.0, -4.0]).view(1, 1, 5, 1, 1)
    kept = losses.damped(gradient, quantile=0.5, factor=0.25)
    assert kept.flatten().tolist() == [0.0, 1.0, -2.0, 0.75, -1.0]
    gradients = []
    for damp in (None, lambda g: 0.5 * g):
        head = next(module for module in fresh().modules() if isinstance(module, SHMoE))
        head.damp = damp
        features = torch.randn(
            1, head.experts["x"][0].in_channels, 6, 5, 4, generator=torch.Generator().manual_seed(1)
        )
        head(features)[0].square().sum().backward()
        gradients.append((head.experts["x"][1].weight.grad, head.gates["x"].weight.grad))
    torch.testing.assert_close(gradients[1][0], 0.5 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1])


def test_heads_that_attend_alike_cost_one_and_orthogonal_ones_nothing():
    same = torch.randn(2, 3, 1, 1, 1, 8).expand(2, 3, 1, 1, 4, 8)
    apart = torch.eye(8)[:4].expand(2, 3, 1, 1, 4, 8)
    assert float(losses.head_similarity([same])) == pytest.approx(1, abs=1e-5)
    assert float(losses.head_similarity([apart])) == 0
    assert float(losses.head_similarity([same, apart])) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_weight_of_head_diversity_makes_heads_attend_less_alike(pairs, checkpointing):
    found = []
    for weight in (0.0, 5.0):
        network = fresh()
        settings = FineTuning(
            steps=6,
            learning_rate=6e-3,
            head_diversity_weight=weight,
            similarity="lncc",
            checkpointing=checkpointing,
        )
        list(fine_tune(network, pairs, settings))
        assert all(module.watch is None for module in network.modules() if isinstance(module, MoA))
        with torch.no_grad(), record_head_outputs(network.eval()) as attended:
            network.encode(pairs[0].moving, pairs[0].fixed)
        found.append(float(losses.head_similarity(attended)))
    assert found[1] < 0.9 * found[0]


def test_a_step_with_jitter_and_damping_leaves_the_heads_as_they_were(pairs):
    network = fresh()
    settings = FineTuning(steps=2, gate_jitter=1.0, expert_damping=0.1, similarity="lncc")
    with experts_at(network, settings, 0):
        heads = [module for module in network.modules() if isinstance(module, SHMoE)]
        assert heads and all(head.jitter == 1.0 and head.damp is not None for head in heads)
    list(fine_tune(network, pairs, settings))
    assert all(head.jitter == 0 and head.damp is None for head in heads)
