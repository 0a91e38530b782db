"""Windows over a token grid: partition, shift, mask, merge.

Sec. III-B, after the Swin transformer.  B batch, D H W space, C channels, W windows, T tokens per
window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

# finite, so that windows of padding only do not give NaN; exp(-1e4) is 0
MASKED = -1e4


@dataclass(frozen=True)
class WindowLayout:
    """Partition of a token grid into windows.

    Ours: on an axis no longer than the window, the window is clamped to the axis and not shifted
    (shifting the whole map would only separate neighbours); padding tokens are masked.

    Parameters
    ----------
    grid : tuple of 3 int
        Tokens along each axis.
    valid : tuple of 3 int
        Tokens along each axis that contain image voxels; the rest is padding of the input.
    largest : tuple of 3 int
        Window before clamping.
    shifted : bool
        Shift by half a window (SW-MSA).
    """

    grid: tuple[int, int, int]
    valid: tuple[int, int, int]
    largest: tuple[int, int, int]
    shifted: bool

    @cached_property
    def window(self) -> tuple[int, ...]:
        return tuple(min(n, w) for n, w in zip(self.grid, self.largest, strict=True))

    @cached_property
    def shift(self) -> tuple[int, ...]:
        pairs = zip(self.grid, self.window, strict=True)
        return tuple(w // 2 if self.shifted and n > w else 0 for n, w in pairs)

    @cached_property
    def padded(self) -> tuple[int, ...]:
        return tuple(-(-n // w) * w for n, w in zip(self.grid, self.window, strict=True))

    def cut(self, tokens: Tensor) -> Tensor:
        """Partition (B, D, H, W, C) into (B*W, T, C), windows of a sample together."""
        if self.padded != self.grid:
            pads = [p - n for p, n in zip(self.padded, self.grid, strict=True)]
            tokens = F.pad(tokens, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
        if any(self.shift):
            tokens = tokens.roll([-s for s in self.shift], dims=(1, 2, 3))
        (d, h, w), (p, q, r) = self.padded, self.window
        cells = tokens.view(-1, d // p, p, h // q, q, w // r, r, tokens.shape[-1])
        return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, p * q * r, tokens.shape[-1])

    def join(self, rows: Tensor) -> Tensor:
        """Invert `cut`: (B*W, T, C) to (B, D, H, W, C)."""
        (d, h, w), (p, q, r) = self.padded, self.window
        cells = rows.view(-1, d // p, h // q, w // r, p, q, r, rows.shape[-1])
        tokens = cells.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, d, h, w, rows.shape[-1])
        if any(self.shift):
            tokens = tokens.roll(self.shift, dims=(1, 2, 3))
        return tokens[:, : self.grid[0], : self.grid[1], : self.grid[2]]

    def positions(self) -> Tensor:
        """Return the grid positions (W, T, 3) of the tokens of each window; padding is outside."""
        axes = [torch.arange(n).roll(-s) for n, s in zip(self.padded, self.shift, strict=True)]
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]
        flat = WindowLayout(self.padded, self.padded, self.largest, shifted=False)  # type: ignore[arg-type]
        return flat.cut(positions)

    def mask(self) -> Tensor | None:
        """Return the attention mask (W, 1, T, T) of 0 and `MASKED`; None if nothing is masked.

        Two tokens of a shifted window are neighbours unless the cyclic shift brought them together,
        that is if they are closer than a window on every axis.
        """
        if not any(self.shift) and self.padded == self.grid == self.valid:
            return None
        positions = self.positions()
        offsets = (positions[:, :, None] - positions[:, None]).abs()
        separated = offsets >= torch.tensor(self.window)
        padding = (positions >= torch.tensor(self.valid)).any(-1)
        blocked = separated.any(-1) | padding[:, None, :]
        return blocked[:, None] * MASKED

    def relative_index(self) -> Tensor:
        """Return the row of the relative-position table of each pair of tokens, (T, T)."""
        axes = [torch.arange(n) for n in self.window]
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        offset = positions[:, None] - positions[None] + torch.tensor(self.largest) - 1
        sizes = [2 * n - 1 for n in self.largest]
        return (offset[..., 0] * sizes[1] + offset[..., 1]) * sizes[2] + offset[..., 2]
