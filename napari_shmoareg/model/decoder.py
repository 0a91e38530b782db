"""Decoder: the coarse-to-fine pyramid.

Sec. III-A, Fig. 1.  Each level warps the moving features with the current displacement, fuses them
with the fixed features and the output of the coarser level, and predicts a residual, which is
composed with the displacement.

B batch, C channels, D H W space of the level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.geometry import field
from napari_shmoareg.model.checkpointing import checkpointed
from napari_shmoareg.model.encoder import normalise
from napari_shmoareg.model.routing import GateId, RoutedLayer
from napari_shmoareg.model.shmoe import DIRECTIONS, ConvHead, SHMoE


class ConvBlock(nn.Module):
    """Convolution 3x3x3 with bias, instance norm, LeakyReLU 0.1 (as RDP)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Convolve parts (B, Ci, D, H, W) of the channels; without gradients, empties the list."""
        if torch.is_grad_enabled():
            return F.leaky_relu(normalise(self.conv(torch.cat(parts, dim=1))), 0.1)
        # part by part, freeing each, so that they are never concatenated in memory
        weights = list(self.conv.weight.split([part.shape[1] for part in parts], dim=1))
        total = F.conv3d(parts.pop(), weights.pop(), self.conv.bias, padding=1)
        while parts:
            total += F.conv3d(parts.pop(), weights.pop(), padding=1)
        return F.leaky_relu_(normalise(total), 0.1)


class Level(nn.Module):
    """One resolution of the pyramid.

    Parameters
    ----------
    channels : int
        Channels of the encoder's features at this level.
    below : int or None
        Channels of the coarser level; None for the coarsest.
    outputs : int
        Channels of the fused features.
    stride : int
        Voxels of the network grid per voxel of this level, along every axis.
    kernels : tuple of int or None
        Kernel sizes of the SHMoE experts; None for a plain convolution head.

    Attributes
    ----------
    compare_experts : bool
        Record the output of every expert of an SHMoE head (`RoutedLayer.alternatives`); for
        training.
    """

    def __init__(
        self,
        channels: int,
        below: int | None,
        outputs: int,
        *,
        stride: int,
        kernels: tuple[int, ...] | None,
        routing_only: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.compare_experts = stride, False
        if below is None:
            self.up = None
            self.fusion = nn.Sequential(ConvBlock(2 * channels, outputs))
        else:
            self.up = nn.ConvTranspose3d(below, channels, 2, stride=2)
            self.fusion = nn.Sequential(
                ConvBlock(3 * channels, outputs), ConvBlock(outputs, outputs)
            )
        self.head = (
            SHMoE(outputs, kernels, routing_only=routing_only) if kernels else ConvHead(outputs)
        )

    def forward(
        self,
        images: list[Tensor],
        below: Tensor | None,
        displacement: Tensor | None,
        integration_steps: int | None,
        *,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor, list[RoutedLayer]]:
        """Refine a displacement.

        Parameters
        ----------
        images : list of 2 Tensor (B, C, D, H, W)
            Encoder features of this level, of the moving and the fixed images; the list is emptied,
            so that they are freed after use.
        below : Tensor (B, C', D/2, H/2, W/2) or None
            Decoder features of the coarser level.
        displacement : Tensor (B, 3, D/2, H/2, W/2), voxels of the coarser level, or None
        integration_steps : int or None
            Number of squarings if residuals are velocities; None if they are displacements.
        checkpointing : bool
            Store only the tensors between convolutions, warps and head; recompute the rest in the
            backward pass.

        Returns
        -------
        features : Tensor (B, C, D, H, W)
        displacement : Tensor (B, 3, D, H, W), voxels of this level
        routed : list of RoutedLayer
        """
        stack = [images.pop(), images.pop()]
        shape, device = stack[0].shape[2:], stack[0].device.type
        if displacement is not None:
            displacement = field.upsample(displacement, shape)
            stack[1] = checkpointed(field.warp, stack[1], displacement, enabled=checkpointing).to(
                stack[1].dtype
            )
        if self.up is not None and below is not None:
            stack.append(self.up(below))
        # On a CPU the weight gradient of a bfloat16 convolution over few voxels (such as 2x3x2) is
        # sometimes NaN.
        tiny = device == "cpu" and shape.numel() < 1000
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not tiny):
            stack = (
                [t.float() for t in stack] if tiny and stack[0].dtype == torch.bfloat16 else stack
            )
            for block in self.fusion:
                stack = [checkpointed(block, stack, enabled=checkpointing)]
            (features,) = stack
            residual, routings = checkpointed(self.head, features, enabled=checkpointing)
            alternatives: Sequence[Tensor | None] = [None] * len(routings)
            if self.compare_experts and isinstance(self.head, SHMoE):
                alternatives = self.head.alternatives(features)
        pieces = residual.split(1, dim=1)  # Eq. (7) differentiates with respect to these
        routed = [
            RoutedLayer(
                GateId("decoder", self.stride.bit_length(), direction=direction),
                self.stride,
                routing,
                residual=piece,
                alternatives=outputs,
            )
            for direction, routing, piece, outputs in zip(
                DIRECTIONS, routings, pieces, alternatives, strict=bool(routings)
            )
            if routings
        ]
        step = torch.cat(pieces, dim=1)
        if integration_steps is not None:
            step = checkpointed(field.integrate, step, integration_steps, enabled=checkpointing)
        displacement = (
            step
            if displacement is None
            else checkpointed(field.compose, displacement, step, enabled=checkpointing)
        )
        return features, displacement, routed


class Decoder(nn.Module):
    """All levels, coarsest first.

    Parameters
    ----------
    strides, channels : tuple of int
        Strides and channels of the encoder's pyramid, full resolution first.
    bottleneck_channels : int
    shmoe_strides, kernels : tuple of int
    routing_only : bool
    """

    def __init__(
        self,
        *,
        strides: tuple[int, ...],
        channels: tuple[int, ...],
        bottleneck_channels: int,
        shmoe_strides: tuple[int, ...],
        kernels: tuple[int, ...],
        routing_only: bool,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        below = None
        for stride, width in zip(reversed(strides), reversed(channels), strict=True):
            outputs = bottleneck_channels if below is None else width
            chosen = kernels if stride in shmoe_strides else None
            self.levels.append(
                Level(
                    width, below, outputs, stride=stride, kernels=chosen, routing_only=routing_only
                )
            )
            below = outputs

    def forward(
        self,
        moving: list[Tensor],
        fixed: list[Tensor],
        integration_steps: int | None,
        *,
        checkpointing: bool = False,
    ) -> tuple[Tensor, list[RoutedLayer]]:
        """Decode the pyramids of both images (full resolution first) to a full-size displacement.

        Both lists are emptied, so that the features of a level are freed after use.  With
        `checkpointing` only the tensors between levels are stored; the rest is recomputed in the
        backward pass."""
        features = displacement = None
        routed: list[RoutedLayer] = []
        for level in self.levels:
            features, displacement, records = level(
                [moving.pop(), fixed.pop()],
                features,
                displacement,
                integration_steps,
                checkpointing=checkpointing,
            )
            routed.extend(records)
        assert displacement is not None
        return displacement, routed
