"""One test per equation of the paper against a reference written as loops; the paper's sizes and
defaults.
"""

from __future__ import annotations

import math

import pytest
import torch

from napari_shmoareg.geometry import field
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.model.moa import MoA
from napari_shmoareg.model.routing import SoftmaxGate, choose
from napari_shmoareg.model.shmoe import SHMoE
from napari_shmoareg.model.windows import WindowLayout
from napari_shmoareg.registration import losses
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import total_loss

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def moa() -> MoA:
    """d_m 6, d_h 3, N 5, k 2, in float64, over a grid of 3x4x2 tokens in windows of 2x2x2 (padded
    to 4x4x2).
    """
    return MoA(6, 3, 5, 2).double()


LAYOUT = WindowLayout((3, 4, 2), (3, 4, 2), (2, 2, 2), shifted=False)


def moa_by_loops(moa: MoA, tokens: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Eq. (1)-(5) as written: for each token, for each expert, for each key of the token's
    window.
    """
    rows = []
    for i in range(3):
        for j in range(4):
            for k in range(2):
                window = [
                    (a, b, c)
                    for a in range(3)
                    for b in range(4)
                    for c in range(2)
                    if (a // 2, b // 2, c // 2) == (i // 2, j // 2, k // 2)
                ]
                q = tokens[0, i, j, k]
                logits = [q @ moa.gate.weight[n] for n in range(5)]
                norm = sum(torch.exp(z) for z in logits)
                p = [torch.exp(z) / norm for z in logits]  # Eq. (5)
                chosen = sorted(range(5), key=lambda n: -float(p[n].detach()))[:2]
                y = torch.zeros(6, dtype=tokens.dtype)
                for n in chosen:
                    scores = [
                        (q @ moa.query[n]) @ (tokens[0][place] @ moa.key) / math.sqrt(3)
                        for place in window
                    ]
                    top = sum(torch.exp(s) for s in scores)
                    head = sum(
                        # Eq. (2), then att V W^v of Eq. (1)
                        torch.exp(s) / top * (tokens[0][place] @ moa.value)
                        for s, place in zip(scores, window, strict=True)
                    )
                    w = p[n] / sum(p[m] for m in chosen)  # Eq. (4)
                    y = y + w * (head @ moa.output[n])  # Eq. (1) and (3)
                rows.append(y)
    return torch.stack(rows).view(1, 3, 4, 2, 6)


def moa_bias() -> torch.Tensor:
    return LAYOUT.mask().double()


def test_equation_1_one_expert_is_attention_times_its_output_matrix():
    torch.manual_seed(1)
    moa = MoA(6, 3, 1, 1).double()
    tokens = torch.randn(1, 2, 2, 2, 6, dtype=torch.float64)
    layout = WindowLayout((2, 2, 2), (2, 2, 2), (2, 2, 2), shifted=False)
    y, _ = moa(tokens, layout, None)
    rows = tokens.view(8, 6)
    attention = torch.softmax((rows @ moa.query[0]) @ (rows @ moa.key).T / math.sqrt(3), dim=-1)
    torch.testing.assert_close(
        y.view(8, 6), (attention @ rows @ moa.value) @ moa.output[0], **EXACT
    )


def test_equation_2_scores_are_scaled_by_the_root_of_the_head_dimension(moa):
    tokens = torch.randn(1, 3, 4, 2, 6, dtype=torch.float64)
    right = moa(tokens, LAYOUT, moa_bias())[0]
    with torch.no_grad():
        moa.query *= math.sqrt(3)
        moa.key /= math.sqrt(3)
    torch.testing.assert_close(moa(tokens, LAYOUT, moa_bias())[0], right, **EXACT)
    with torch.no_grad():
        moa.query *= math.sqrt(3)
    assert not torch.allclose(moa(tokens, LAYOUT, moa_bias())[0], right, rtol=1e-4)


def test_equation_3_moa_equals_the_loop_over_tokens_experts_and_keys(moa):
    tokens = torch.randn(1, 3, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    fast, _ = moa(tokens, LAYOUT, moa_bias())
    slow = moa_by_loops(moa, tokens)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-9)
    weight = torch.randn_like(fast)
    inputs = [tokens, *moa.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_equation_4_weights_of_the_chosen_sum_to_one_and_keep_their_ratio(moa):
    routing = moa(torch.randn(1, 3, 4, 2, 6, dtype=torch.float64), LAYOUT, moa_bias())[1]
    torch.testing.assert_close(
        routing.weights.sum(1), torch.ones(1, 3, 4, 2, dtype=torch.float64), **EXACT
    )
    chosen = routing.probabilities.gather(1, routing.experts)
    torch.testing.assert_close(
        routing.weights[:, 0] / routing.weights[:, 1], chosen[:, 0] / chosen[:, 1], **EXACT
    )


def test_equation_4_gives_unchosen_experts_no_gradient_unless_the_sum_is_detached():
    gradients = {}
    for detached in (False, True):
        torch.manual_seed(3)
        moa = MoA(6, 3, 5, 1, detach_weights=detached).double()
        tokens = torch.randn(1, 3, 4, 2, 6, dtype=torch.float64)
        y, _ = moa(tokens, LAYOUT, moa_bias())
        gradients[detached] = (
            torch.autograd.grad((y * torch.randn_like(y)).sum(), moa.gate.weight)[0].abs().max()
        )
    assert gradients[False] < 1e-12  # with k = 1 the ratio of Eq. (4) is always 1
    assert gradients[True] > 1e-3


def test_equation_5_probabilities_are_a_softmax_and_the_k_largest_are_chosen():
    gate = SoftmaxGate(6, 5).double()
    tokens = torch.randn(2, 3, 6, dtype=torch.float64)
    probabilities = gate(tokens)
    for b in range(2):
        for t in range(3):
            logits = [float(tokens[b, t] @ gate.weight[n]) for n in range(5)]
            total = sum(math.exp(z) for z in logits)
            expected = torch.tensor([math.exp(z) / total for z in logits], dtype=torch.float64)
            torch.testing.assert_close(probabilities[b, t], expected, **EXACT)
            assert (
                choose(probabilities[b, t], 2, dim=0)[1].tolist()
                == expected.argsort(descending=True)[:2].tolist()
            )


def test_equation_5_gates_do_not_tie_at_the_start():
    torch.manual_seed(0)
    experts = MoA(48, 12, 12, 4)(
        torch.randn(1, 4, 4, 4, 48), WindowLayout((4, 4, 4), (4, 4, 4), (4, 4, 4), False), None
    )[1].experts
    assert len(experts.unique()) == 12


def test_equation_6_each_direction_gathers_the_expert_with_the_largest_t_times_t():
    torch.manual_seed(0)
    layer = SHMoE(4, (1, 3, 5)).double()
    for expert in layer.experts.values():
        for conv in expert:
            torch.nn.init.normal_(conv.weight)
            torch.nn.init.normal_(conv.bias)
    features = torch.randn(2, 4, 5, 6, 3, dtype=torch.float64, requires_grad=True)
    residual, routings = layer(features)
    slow = torch.zeros_like(residual)
    for axis, direction in enumerate("xyz"):
        outputs = [conv(features)[:, 0] for conv in layer.experts[direction]]
        gate = layer.gates[direction]
        t = torch.sigmoid(torch.nn.functional.conv3d(features, gate.weight, gate.bias, padding=1))
        for place in torch.cartesian_prod(*(torch.arange(n) for n in (2, 5, 6, 3))).tolist():
            b, i, j, k = place
            best = int(t[b, :, i, j, k].argmax())
            assert int(routings[axis].experts[b, 0, i, j, k]) == best
            slow[b, axis, i, j, k] = t[b, best, i, j, k] * outputs[best][b, i, j, k]
    torch.testing.assert_close(residual, slow, rtol=1e-6, atol=1e-9)
    weight = torch.randn_like(residual)
    inputs = [features, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((residual * weight).sum(), inputs, retain_graph=True),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_with_routing_only_the_gates_learn_from_the_routing_loss_alone():
    layer = SHMoE(4, (1, 3), routing_only=True)
    for expert in layer.experts.values():
        for conv in expert:
            torch.nn.init.normal_(conv.weight)
    residual, routings = layer(torch.randn(1, 4, 5, 6, 3))
    gate, conv = layer.gates["x"].weight, layer.experts["x"][1].weight
    by_gate, by_expert = torch.autograd.grad(residual.sum(), (gate, conv), retain_graph=True)
    assert not by_gate.any() and by_expert.any()
    assert torch.autograd.grad(routings[0].probabilities.sum(), gate)[0].any()


def labels_by_loops(error, experts, num_experts, q):
    """The construction of Sec. III-C, voxel by voxel."""
    labels = torch.zeros(error.shape[0], num_experts, *error.shape[2:], dtype=error.dtype)
    for b in range(len(error)):
        known = sorted(float(e) for e in error[b].abs().flatten() if e != 0)
        threshold = known[max(1, round(q * len(known))) - 1] if known else 0.0
        for place in torch.cartesian_prod(*(torch.arange(n) for n in error.shape[2:])).tolist():
            i, j, k = place
            chosen = [int(e) for e in experts[b, :, i, j, k]]
            wrong = abs(float(error[b, 0, i, j, k])) > threshold + 1e-5
            for n in range(num_experts):
                if n in chosen:
                    labels[b, n, i, j, k] = 0.0 if wrong else 1.0
                elif wrong:
                    labels[b, n, i, j, k] = 1 / (num_experts - len(chosen))
    return labels


def test_equation_7_labels_and_cross_entropy_equal_the_loop_over_voxels_and_experts():
    error = torch.randn(2, 1, 4, 3, 5, dtype=torch.float64)
    error[:, :, :2] = 0
    t = torch.rand(2, 3, 4, 3, 5, dtype=torch.float64)
    experts = t.argmax(1, keepdim=True)
    labels = losses.routing_labels(error, experts, 3, quantile=0.5)
    torch.testing.assert_close(labels, labels_by_loops(error, experts, 3, 0.5), **EXACT)
    total = 0.0
    for y, p in zip(labels.flatten().tolist(), t.flatten().tolist(), strict=True):
        total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    value = float(losses.routing_classification(t, labels))
    assert value == pytest.approx(total / t.numel(), abs=1e-6)


def test_equation_7_the_quantile_keeps_its_meaning_with_a_zero_background():
    error = torch.zeros(1, 1, 10, 10, 10)
    error[0, 0, :2] = torch.linspace(0.1, 1, 200).view(2, 10, 10)  # 80 % background
    experts = torch.zeros(1, 1, 10, 10, 10, dtype=torch.int64)
    for q in (0.3, 0.5, 0.7):
        labels = losses.routing_labels(error, experts, 3, quantile=q)
        wrong = 1 - labels[0, 0, :2].mean()
        assert float(wrong) == pytest.approx(1 - q, abs=0.01)
        assert labels[0, 0, 2:].min() == 1  # the background is never wrong


def test_equation_7_the_error_signal_is_the_gradient_of_the_similarity_at_the_residual():
    torch.manual_seed(0)
    residual = (0.3 * torch.randn(1, 1, 4, 5, 3, dtype=torch.float64)).requires_grad_()
    moving, fixed = torch.rand(2, 1, 1, 4, 5, 3, dtype=torch.float64)
    zeros = torch.zeros_like(residual)

    def similarity(r):
        return losses.mse(field.warp(moving, torch.cat([r, zeros, zeros], 1)), fixed)

    class Layer:
        pass

    layer = Layer()
    layer.residual = residual
    (error,) = losses.error_signals(similarity(residual), [layer])
    step = 1e-6
    for place in [(0, 0, 1, 2, 1), (0, 0, 2, 3, 0), (0, 0, 3, 0, 2)]:
        bump = torch.zeros_like(residual)
        bump[place] = step
        slope = (similarity(residual + bump) - similarity(residual - bump)) / (2 * step)
        assert float(error[place]) == pytest.approx(
            float(slope.detach()) * residual.numel() / 2, rel=1e-4, abs=1e-7
        )


def test_equation_8_the_total_is_the_weighted_sum_of_its_terms(tiny_network):
    moving, fixed = torch.rand(2, 1, 1, 12, 15, 9)
    settings = FineTuning(smoothness_weight=0.7, routing_weight=0.3)
    output = tiny_network(moving, fixed)
    terms = total_loss(output, moving, fixed, settings)
    warped = field.warp(moving, output.displacement, padding="border")
    u = output.displacement
    slow = sum(
        float((u.narrow(a, 1, u.shape[a] - 1) - u.narrow(a, 0, u.shape[a] - 1)).square().mean())
        for a in (2, 3, 4)
    )
    assert float(terms.similarity) == pytest.approx(
        float((warped - fixed).square().mean()), rel=1e-5
    )
    assert float(terms.smoothness) == pytest.approx(slow / 3, rel=1e-5)
    assert float(terms.routing) > 0
    expected = float(terms.similarity) + 0.7 * float(terms.smoothness) + 0.3 * float(terms.routing)
    assert float(terms.total) == pytest.approx(expected, rel=1e-5)


def test_equation_8_the_routing_loss_reaches_the_gates_and_the_trunk(tiny_network):
    moving, fixed = torch.rand(2, 1, 1, 12, 15, 9)
    output = tiny_network(moving, fixed)
    routing = total_loss(output, moving, fixed, FineTuning()).routing
    level = tiny_network.decoder.levels[-1]
    gate, trunk = torch.autograd.grad(
        routing, [level.head.gates["x"].weight, level.fusion[0].conv.weight]
    )
    assert gate.abs().max() > 0
    assert trunk.abs().max() > 0


def test_the_paper_network_has_18_88_million_parameters():
    for window in ((4, 4, 4), (5, 6, 7)):
        network = SHMoAReg(SHMoARegConfig.preset("paper", window=window))
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(18.88e6, abs=0.05e6)


def test_the_paper_defaults_are_those_of_section_iv_b():
    config, settings = SHMoARegConfig.preset("paper"), FineTuning()
    assert (config.num_experts, config.top_k, config.kernels, config.shmoe_strides) == (
        12,
        4,
        (1, 3, 5),
        (1, 2),
    )
    assert (config.embed_dim, config.depths) == (48, (2, 2, 4, 2))
    assert (settings.learning_rate, settings.final_rate, settings.similarity) == (1e-4, None, "mse")
    assert (settings.routing_weight, settings.smoothness_weight, settings.quantile) == (
        0.001,
        0.01,
        0.5,
    )


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"attention": "mha", "shmoe_strides": ()}, 17_706_034),
        ({"attention": "mha"}, 17_730_904),
        ({"shmoe_strides": ()}, 18_851_008),
        ({"shmoe_strides": (1, 2, 4, 8)}, 18_965_332),
    ],
)
def test_the_ablations_of_table_ii_change_only_what_they_name(changes, parameters):
    network = SHMoAReg(SHMoARegConfig.preset("paper", window=(5, 6, 7), **changes))
    assert sum(p.numel() for p in network.parameters()) == parameters
