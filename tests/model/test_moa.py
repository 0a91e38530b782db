"""MoA against dense computation of all experts, with shifted windows, masks and relative
positions.
"""

from __future__ import annotations

import pytest
import torch

from napari_shmoareg.model.moa import MoA, MultiHeadAttention
from napari_shmoareg.model.swin import SwinBlock
from napari_shmoareg.model.windows import WindowLayout


def dense(moa: MoA, tokens, layout, bias):
    """Every expert for every token; those not chosen get weight 0."""
    rows = layout.cut(tokens)
    key, value = rows @ moa.key, rows @ moa.value
    probabilities = layout.cut(torch.softmax(tokens @ moa.gate.weight.T, -1))
    top = probabilities.topk(moa.top_k, dim=-1).values[..., -1:]
    kept = torch.where(probabilities >= top, probabilities, 0)
    weights = kept / kept.sum(-1, keepdim=True).clamp_min(1e-12)  # padding has none
    y = 0
    for n in range(moa.num_experts):
        scores = (rows @ moa.query[n]) @ key.transpose(1, 2) * moa.head_dim**-0.5
        if bias is not None:
            scores = scores + bias[:, 0].repeat(len(scores) // len(bias), 1, 1)
        y = y + weights[..., n : n + 1] * ((torch.softmax(scores, -1) @ value) @ moa.output[n])
    return layout.join(y)


@pytest.mark.parametrize("shifted", [False, True])
def test_gathered_attention_equals_all_experts_with_unchosen_ones_at_zero(shifted):
    torch.manual_seed(0)
    moa = MoA(8, 4, 6, 3).double()
    layout = WindowLayout((5, 6, 4), (4, 6, 4), (2, 3, 4), shifted)
    bias = torch.randn(1, 1, 24, 24, dtype=torch.float64)
    if layout.mask() is not None:
        bias = bias + layout.mask().double()
    tokens = torch.randn(2, 5, 6, 4, 8, dtype=torch.float64, requires_grad=True)
    bias.requires_grad_()
    fast, slow = moa(tokens, layout, bias)[0], dense(moa, tokens, layout, bias)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-10)
    weight = torch.randn_like(fast)
    inputs = [tokens, bias, *moa.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


def test_what_stands_in_padding_tokens_changes_nothing():
    moa = MoA(8, 4, 6, 3)
    block = SwinBlock(
        8, moa, window=(2, 3, 4), shifted=True, mlp_ratio=2, drop_path=0, relative_bias=True
    ).eval()
    tokens = torch.randn(1, 5, 6, 4, 8)
    other = tokens.clone()
    other[:, 4:] += 3
    first, second = (block(t, (4, 6, 4))[0][:, :4] for t in (tokens, other))
    torch.testing.assert_close(first, second)


def test_the_kept_bias_follows_the_table():
    moa = MoA(8, 4, 6, 3)
    block = SwinBlock(
        8, moa, window=(2, 2, 2), shifted=True, mlp_ratio=2, drop_path=0, relative_bias=True
    ).eval()
    tokens = torch.randn(1, 4, 4, 4, 8)
    with torch.no_grad():
        before = block(tokens, (4, 4, 4))[0]
        torch.testing.assert_close(block(tokens, (4, 4, 4))[0], before)
        block.bias_table += torch.randn_like(block.bias_table)
        after = block(tokens, (4, 4, 4))[0]
    assert not torch.allclose(before, after)
    # with a gradient: computed anew
    torch.testing.assert_close(block(tokens, (4, 4, 4))[0].detach(), after)


def test_the_plain_attention_of_the_ablation_equals_torch():
    torch.manual_seed(0)
    plain = MultiHeadAttention(8, 2)
    layout = WindowLayout((2, 3, 2), (2, 3, 2), (2, 3, 2), shifted=False)
    tokens = torch.randn(1, 2, 3, 2, 8)
    reference = torch.nn.MultiheadAttention(8, 2, bias=True, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(plain.qkv.weight)
        reference.in_proj_bias.zero_()
        reference.out_proj.load_state_dict(plain.output.state_dict())
    rows = tokens.view(1, 12, 8)
    torch.testing.assert_close(
        plain(tokens, layout, None)[0].view(1, 12, 8), reference(rows, rows, rows)[0]
    )


def test_a_block_that_attended_in_inference_mode_can_learn_at_the_same_size():
    block = SwinBlock(
        8,
        MoA(8, 4, 6, 3),
        window=(2, 2, 2),
        shifted=True,
        mlp_ratio=2,
        drop_path=0,
        relative_bias=True,
    )
    tokens = torch.randn(1, 4, 4, 4, 8)
    with torch.inference_mode():
        before = block(tokens, (4, 4, 4))[0]
    after = block(tokens, (4, 4, 4))[0]
    after.sum().backward()
    torch.testing.assert_close(after.detach(), before)
    assert float(block.bias_table.grad.abs().sum()) > 0


def biased_pair(bias):
    """The same attention with a choice bias and without one."""
    plain, biased = MoA(8, 4, 6, 2), MoA(8, 4, 6, 2, choice_bias=True)
    torch.nn.init.normal_(plain.gate.weight)
    biased.load_state_dict(plain.state_dict() | {"gate.choice_bias": torch.as_tensor(bias)})
    return plain, biased


def test_a_choice_bias_of_nothing_changes_not_a_bit():
    plain, biased = biased_pair([0.0] * 6)
    layout = WindowLayout((4, 4, 3), (4, 4, 3), (2, 3, 2), shifted=True)
    tokens = torch.randn(1, 4, 4, 3, 8)
    (y, routing), (other, others) = plain(tokens, layout, None), biased(tokens, layout, None)
    assert torch.equal(y, other)
    assert all(torch.equal(a, b) for a, b in zip(routing, others, strict=True))


def test_a_choice_bias_decides_who_is_chosen_and_not_how_much_each_counts():
    bias = torch.tensor([0.0, 0.0, 5.0, 0.0, -5.0, 0.05])
    plain, biased = biased_pair(bias)
    layout = WindowLayout((4, 4, 3), (4, 4, 3), (2, 3, 2), shifted=True)
    tokens = torch.randn(1, 4, 4, 3, 8)
    without, found = plain(tokens, layout, None)[1], biased(tokens, layout, None)[1]
    p = without.probabilities  # (1, 6, 4, 4, 3): the softmax itself
    wanted = (p + bias.view(1, 6, 1, 1, 1)).topk(2, dim=1).indices
    assert torch.equal(found.experts.sort(1).values, wanted.sort(1).values)
    assert bool((found.experts == 2).any(1).all()) and not bool((found.experts == 4).any())
    assert not torch.equal(wanted.sort(1).values, without.experts.sort(1).values), (
        "the bias changed nothing"
    )
    weights = p.gather(1, found.experts)
    torch.testing.assert_close(found.weights, weights / weights.sum(1, keepdim=True))
    best = found.probabilities.topk(2, dim=1).indices
    assert torch.equal(best, found.experts), (
        "whoever looks at the probabilities sees another choice"
    )
    assert bool((found.probabilities <= p).all())


def test_a_choice_bias_is_saved_with_the_weights_and_gets_no_gradient():
    _, biased = biased_pair([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
    assert "gate.choice_bias" in biased.state_dict()
    assert "gate.choice_bias" not in dict(biased.named_parameters())
    assert "gate.choice_bias" not in MoA(8, 4, 6, 2).state_dict()
