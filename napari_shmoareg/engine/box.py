"""Means over cubes of voxels, whose way back costs no more than the way there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def box(values: Tensor, window: int) -> Tensor:
    """Sum over the cube around each voxel divided by the cube's volume; beyond the image are zeros.

    Parameters
    ----------
    values : Tensor (B, C, D, H, W)
    window : int
        Edge of the cube in voxels, odd.
    """
    result: Tensor = _Box.apply(values, window)
    return result


def box_mean(values: Tensor, window: int) -> Tensor:
    """Mean over what of the cube around each voxel lies inside the image."""
    with torch.no_grad():
        share = box(torch.ones_like(values[:1, :1]), window)
    return box(values, window) / share


class _Box(torch.autograd.Function):
    """Sum over a cube divided by its volume, zeros outside; its own adjoint, so that the way back costs no more."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, window: int) -> Tensor:
        ctx.window = window
        return _pooled(values, window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _pooled(gradient, ctx.window), None


def _pooled(values: Tensor, window: int) -> Tensor:
    half = window // 2
    for axis in range(3):
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = window, half
        if values.shape[2 + axis] < window:  # the pooling refuses a window larger than the image, padded or not
            values, pad = F.pad(values, [n for p in reversed(pad) for n in (p, p)]), [0, 0, 0]
        values = F.avg_pool3d(values, size, stride=1, padding=pad)
    return values
