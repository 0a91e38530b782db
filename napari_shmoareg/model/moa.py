"""MoA: mixture of attention heads, and standard multi-head attention.

Sec. III-B, Eq. (1)-(5), Fig. 2.  All experts of a layer share one key and one value
projection, so the k chosen experts of a token are k query rows over the same keys: project all
queries in one product, gather the chosen ones, attend once, scatter, project out.

B batch, N experts, k chosen, C channels, d head dimension, D H W space, W windows, T tokens per
window."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.model.routing import Routing, SoftmaxGate, choose
from napari_shmoareg.model.windows import WindowLayout


class MoA(nn.Module):
    """Attention in which every token chooses k of N heads.

    Parameters
    ----------
    channels : int
        d_m.
    head_dim : int
        d_h.
    num_experts, top_k : int
    detach_weights, choice_bias : bool
        See `SHMoARegConfig`.

    Attributes
    ----------
    watch : list of Tensor or None
        If a list, each forward pass appends the outputs of the chosen heads, (B, D, H, W, k, d);
        for training.
    """

    bias_tables = 1

    def __init__(
        self,
        channels: int,
        head_dim: int,
        num_experts: int,
        top_k: int,
        *,
        detach_weights: bool = False,
        choice_bias: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim, self.num_experts = head_dim, num_experts
        self.watch: list[Tensor] | None = None
        self.detach_weights = detach_weights
        self.gate = SoftmaxGate(channels, num_experts, top_k=top_k, choice_bias=choice_bias)
        self.query = nn.Parameter(torch.empty(num_experts, channels, head_dim))
        self.key = nn.Parameter(torch.empty(channels, head_dim))
        self.value = nn.Parameter(torch.empty(channels, head_dim))
        self.output = nn.Parameter(torch.empty(num_experts, head_dim, channels))
        for weight in (self.query, self.output, self.key, self.value):
            std = (2 / (weight.shape[-2] + weight.shape[-1])) ** 0.5
            nn.init.uniform_(weight, -(3**0.5) * std, 3**0.5 * std)

    @property
    def top_k(self) -> int:
        """Number of experts per token, as in the gate."""
        return self.gate.top_k

    def forward(
        self, tokens: Tensor, layout: WindowLayout, bias: Tensor | None
    ) -> tuple[Tensor, Routing]:
        """Attend within windows.

        Parameters
        ----------
        tokens : Tensor (B, D, H, W, C)
        layout : WindowLayout
            Partition of the grid into windows; padding tokens are masked.
        bias : Tensor (W or 1, 1, T, T) or None
            Added to the scores of Eq. (2): relative positions and the mask of the layout.

        Returns
        -------
        Tensor (B, D, H, W, C)
            y of Eq. (3).
        Routing
            On the grid of the tokens.
        """
        d, k = self.head_dim, self.top_k
        probabilities = self.gate(tokens)  # Eq. (5)
        chosen, experts = choose(probabilities, k, dim=-1)
        total = chosen.sum(-1, keepdim=True)
        weights = chosen / (total.detach() if self.detach_weights else total)  # Eq. (4)

        projection = torch.cat([self.query.transpose(0, 1).flatten(1), self.key, self.value], dim=1)
        projected = tokens @ projection.to(tokens.dtype)
        queries, keys, values = projected.split([self.num_experts * d, d, d], dim=-1)
        ids = experts[..., None].expand(*experts.shape, d)
        queries = queries.unflatten(-1, (self.num_experts, d)).gather(-2, ids).flatten(-2)

        rows = layout.cut(torch.cat([queries, keys, values], dim=-1))  # (B*W, T, (k+2)*d)
        q = rows[..., : k * d].unflatten(-1, (k, d)).transpose(1, 2)
        key, value = rows[..., None, :, k * d : (k + 1) * d], rows[..., None, :, (k + 1) * d :]
        # Eq. (1)-(2), (B*W, k, T, d)
        attended = attend(q, key.expand_as(q), value.expand_as(q), bias)

        attended = layout.join(attended.transpose(1, 2).flatten(-2)).unflatten(-1, (k, d))
        if self.watch is not None:
            self.watch.append(attended)
        weighted = attended * weights[..., None].to(attended.dtype)
        slots = torch.zeros(
            *weighted.shape[:-2], self.num_experts, d, dtype=weighted.dtype, device=weighted.device
        )
        # Eq. (3)
        y = slots.scatter(-2, ids, weighted).flatten(-2) @ self.output.flatten(0, 1).to(
            weighted.dtype
        )
        return y, Routing(*(t.movedim(-1, 1) for t in (probabilities, experts, weights)))


class MultiHeadAttention(nn.Module):
    """Multi-head attention of TransMorph-small, for the ablation of Table II; has no routing."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.bias_tables = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels)

    def forward(
        self, tokens: Tensor, layout: WindowLayout, bias: Tensor | None
    ) -> tuple[Tensor, None]:
        """Tokens (B, D, H, W, C) to (B, D, H, W, C); bias (W or 1, heads, T, T)."""
        rows = layout.cut(self.qkv(tokens)).unflatten(-1, (3, self.heads, -1))
        q, k, v = rows.permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v, bias).transpose(1, 2).flatten(-2)
        return self.output(layout.join(attended)), None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v, all (B*W, heads, T, d); bias repeats per image.

    Half-precision GPU kernels need a head dimension that is a multiple of 8: it is zero-padded
    there, with the scale of the true dimension.
    """
    d = query.shape[-1]
    if bias is not None:
        bias = bias.to(query.dtype)
        if bias.shape[0] not in (1, query.shape[0]):
            repeats = query.shape[0] // bias.shape[0]
            bias = bias.expand(repeats, *bias.shape).flatten(0, 1)
    if query.is_cuda and d % 8 and query.dtype in (torch.float16, torch.bfloat16):
        query, key, value = (F.pad(t, (0, -d % 8)) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=d**-0.5)[..., :d]
