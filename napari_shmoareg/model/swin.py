"""Swin blocks and layers with MoA.

Sec. III-B, Fig. 2; sizes of TransMorph-small.  B batch, C channels, D H W space.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from napari_shmoareg.model.moa import MoA, MultiHeadAttention
from napari_shmoareg.model.routing import Routing
from napari_shmoareg.model.windows import WindowLayout

Size = tuple[int, int, int]


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), in windows or windows shifted by half.

    Parameters
    ----------
    channels : int
    attention : MoA or MultiHeadAttention
    window : tuple of 3 int
    shifted : bool
    mlp_ratio : int
    drop_path : float
        Probability of dropping a branch in training.  Ours: one draw per batch, so that the
        features of moving and fixed stay comparable.
    relative_bias : bool
    """

    def __init__(
        self,
        channels: int,
        attention: MoA | MultiHeadAttention,
        *,
        window: Size,
        shifted: bool,
        mlp_ratio: int,
        drop_path: float,
        relative_bias: bool,
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.drop_path = window, shifted, drop_path
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels),
            nn.GELU(),
            nn.Linear(mlp_ratio * channels, channels),
        )
        self.bias_table = None
        if relative_bias:
            offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
            self.bias_table = nn.Parameter(torch.empty(offsets, attention.bias_tables))
            nn.init.trunc_normal_(self.bias_table, std=0.02)
        self._by_size: dict[tuple, tuple[Tensor | None, Tensor]] = {}
        self._cached_bias: tuple[tuple, Tensor] | None = None

    def forward(self, tokens: Tensor, valid: Size) -> tuple[Tensor, Routing | None]:
        """Process tokens (B, D, H, W, C), of which `valid` along each axis are not padding."""
        d, h, w = tokens.shape[1:4]
        layout = WindowLayout((d, h, w), valid, self.window, self.shifted)
        y, routing = self.attention(
            self.attention_norm(tokens), layout, self._bias(layout, tokens.device)
        )
        if self._use_branch():
            tokens = tokens + y / self._keep_probability()
        if self._use_branch():
            tokens = tokens + self.mlp(self.mlp_norm(tokens)) / self._keep_probability()
        return tokens, routing

    def _keep_probability(self) -> float:
        return 1 - self.drop_path if self.training else 1.0

    def _use_branch(self) -> bool:
        return not (self.training and self.drop_path > 0 and torch.rand(()).item() < self.drop_path)

    def _bias(self, layout: WindowLayout, device: torch.device) -> Tensor | None:
        """Return the sum of mask and relative-position bias, (W or 1, tables, T, T).

        Mask and index are cached per size; without gradients the sum is cached too, until the table
        changes (as it is not a parameter, the CPU can use its fast attention kernel)."""
        size = (layout.grid, layout.valid, device)
        if size not in self._by_size:
            if len(self._by_size) >= 4:
                self._by_size.clear()
            with torch.inference_mode(False):  # may be needed with gradients later
                mask = layout.mask()
                self._by_size[size] = (
                    None if mask is None else mask.to(device),
                    layout.relative_index().to(device),
                )
        mask, index = self._by_size[size]
        if self.bias_table is None:
            return mask
        if torch.is_grad_enabled() and self.bias_table.requires_grad:
            self._cached_bias = None
            return self._sum_bias(mask, index)
        key = (*size, self.bias_table.data_ptr(), self.bias_table._version)
        if self._cached_bias is None or self._cached_bias[0] != key:
            self._cached_bias = (key, self._sum_bias(mask, index).detach())
        return self._cached_bias[1]

    def _sum_bias(self, mask: Tensor | None, index: Tensor) -> Tensor:
        assert self.bias_table is not None
        bias = self.bias_table[index].permute(2, 0, 1)[None]
        return bias if mask is None else bias + mask.to(bias.dtype)


class PatchMerging(nn.Module):
    """Merge eight neighbours into one token: norm(8C), then a linear map to 2C without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge (B, D, H, W, C) with even D, H, W to (B, D/2, H/2, W/2, 2C)."""
        b, d, h, w, c = tokens.shape
        cells = tokens.view(b, d // 2, 2, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return self.reduction(self.norm(cells.reshape(b, d // 2, h // 2, w // 2, 8 * c)))


class SwinLayer(nn.Module):
    """The blocks at one resolution, every second one shifted; starts with merging if `merge`.

    Parameters
    ----------
    channels : int
    depth : int
    attention : callable
        Creates the attention of one block.
    merge : bool
    drop_path : sequence of float
        One per block.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        attention: Callable[[], MoA | MultiHeadAttention],
        *,
        merge: bool,
        drop_path: list[float],
        window: Size,
        mlp_ratio: int,
        relative_bias: bool,
    ) -> None:
        super().__init__()
        self.merging = PatchMerging(channels // 2) if merge else None
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                attention(),
                window=window,
                shifted=block % 2 == 1,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path[block],
                relative_bias=relative_bias,
            )
            for block in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, valid: Size) -> tuple[Tensor, Tensor, list[Routing | None]]:
        """Return tokens, normalised features (B, C, D, H, W) and one routing per block."""
        if self.merging is not None:
            tokens = self.merging(tokens)
        routings = []
        for block in self.blocks:
            tokens, routing = block(tokens, valid)
            routings.append(routing)
        return tokens, self.norm(tokens).movedim(-1, 1), routings
