"""SHMoAReg: the complete network of the paper.

Sec. III, Fig. 1.  The only module that reads the config.  B batch, D H W space.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.model.config import SHMoARegConfig
from napari_shmoareg.model.decoder import Decoder, Level
from napari_shmoareg.model.encoder import Encoder
from napari_shmoareg.model.routing import GateId, Image, RoutedLayer, Routing, RoutingTrace
from napari_shmoareg.model.swin import Size

# Heads are initialised with N(0, 1e-5), largest of some thousands 5e-5; trained ones exceed 3e-3.
UNTRAINED_WEIGHT = 1e-4


class NetworkOutput(NamedTuple):
    """The output of `SHMoAReg.forward`.

    Attributes
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels of the input grid, float32
        Pulls the moving image onto the fixed one: warped(p) = moving(p + u(p)).
    routing : RoutingTrace
        The decisions of all gates, without padding cells.
    """

    displacement: Tensor
    routing: RoutingTrace


class Encoded(NamedTuple):
    """Encoder output for a pair: the input of the decoder, reusable.

    Attributes
    ----------
    pyramid : list of Tensor (2B, C, D/s, H/s, W/s)
        Features at strides s = 1, 2, 4 ...; moving images first, then fixed ones.
    routings : list of list of Routing or None
        Per encoder layer and block.
    valid : tuple of 3 int
        Voxels along each axis before padding.
    """

    pyramid: list[Tensor]
    routings: list[list[Routing | None]]
    valid: Size


class SHMoAReg(nn.Module):
    """Registration network with mixtures of attention heads and of deformation experts.

    Parameters
    ----------
    config : SHMoARegConfig, optional
        Default: the paper's.

    Examples
    --------
    >>> import torch
    >>> from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
    >>> network = SHMoAReg(SHMoARegConfig.preset("tiny")).eval()
    >>> moving, fixed = torch.rand(2, 1, 1, 20, 24, 17)
    >>> displacement, routing = network(moving, fixed)
    >>> tuple(displacement.shape)
    (1, 3, 20, 24, 17)
    """

    def __init__(self, config: SHMoARegConfig | None = None) -> None:
        super().__init__()
        config = config or SHMoARegConfig()
        self.config = config
        self.encoder = Encoder(
            embed_dim=config.embed_dim,
            depths=config.depths,
            full_channels=config.full_channels,
            half_channels=config.half_channels,
            attention=config.attention,
            num_experts=config.num_experts,
            top_k=config.top_k,
            heads=config.heads,
            window=config.window,
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
            relative_bias=config.relative_bias,
            detach_weights=config.detach_weights,
            choice_bias=config.choice_bias,
        )
        self.decoder = Decoder(
            strides=config.strides,
            channels=config.channels,
            bottleneck_channels=config.bottleneck_channels,
            shmoe_strides=config.shmoe_strides,
            kernels=config.kernels,
            routing_only=config.routing_only,
        )

    def forward(
        self, moving: Tensor, fixed: Tensor, *, diffeomorphic: bool | None = None
    ) -> NetworkOutput:
        """Register a batch of pairs.

        Parameters
        ----------
        moving, fixed : Tensor (B, 1, D, H, W), in [0, 1]
            Any size: padded internally to a multiple of the coarsest stride, then cropped.
        diffeomorphic : bool, optional
            Integrate each residual as a velocity; default: as in the config.

        Raises
        ------
        ValueError
            If the shapes differ or are not (B, 1, D, H, W).
        """
        encoded = self.encode(moving, fixed)
        halves = _halves(encoded.pyramid)
        encoded.pyramid.clear()  # so that features are freed once decoded
        return self._decode(halves, encoded, diffeomorphic)

    def encode(self, moving: Tensor, fixed: Tensor, *, checkpointing: bool = False) -> Encoded:
        """Run the encoder of `forward`; `checkpointing` as in `both_orders`."""
        images, valid = self._batch(moving, fixed)
        pyramid, routings = self.encoder(images, valid, checkpointing=checkpointing)
        return Encoded(pyramid, routings, valid)

    def decode(self, encoded: Encoded, *, diffeomorphic: bool | None = None) -> NetworkOutput:
        """Run the decoder of `forward`; `encoded` is unchanged and can be decoded again."""
        return self._decode(_halves(encoded.pyramid), encoded, diffeomorphic)

    def _decode(
        self,
        halves: tuple[list[Tensor], list[Tensor]],
        encoded: Encoded,
        diffeomorphic: bool | None,
    ) -> NetworkOutput:
        displacement, decoded = self.decoder(*halves, self._integration(diffeomorphic))
        return self._output(
            displacement, [*_encoder_records(encoded.routings), *decoded], encoded.valid
        )

    def both_orders(
        self,
        first: Tensor,
        second: Tensor,
        *,
        diffeomorphic: bool | None = None,
        checkpointing: bool = False,
    ) -> NetworkOutput:
        """Register first onto second and second onto first, computing the features once.

        Both (B, 1, D, H, W).  The batch of the output is 2B: first as moving, then second as
        moving.  With `checkpointing` the encoder's layers and the decoder's levels are recomputed
        in the backward pass."""
        encoded = self.encode(first, second, checkpointing=checkpointing)
        return self.decode_both(encoded, diffeomorphic=diffeomorphic, checkpointing=checkpointing)

    def decode_both(
        self, encoded: Encoded, *, diffeomorphic: bool | None = None, checkpointing: bool = False
    ) -> NetworkOutput:
        """Run the decoder of `both_orders`."""
        pyramid, routings, valid = encoded
        swapped = [torch.cat(features.chunk(2)[::-1]) for features in pyramid]
        displacement, decoded = self.decoder(
            list(pyramid), swapped, self._integration(diffeomorphic), checkpointing=checkpointing
        )
        twice = [
            [
                (
                    None
                    if r is None
                    else Routing(*(torch.cat([t, torch.cat(t.chunk(2)[::-1])]) for t in r))
                )
                for r in layer
            ]
            for layer in routings
        ]
        return self._output(displacement, [*_encoder_records(twice), *decoded], valid)

    @property
    def untrained(self) -> bool:
        """Whether all heads still have their tiny initial weights, which deform nothing."""
        heads = [m for level in self.decoder.levels for m in cast(Level, level).head.modules()]
        largest = max(
            float(m.weight.detach().abs().max()) for m in heads if isinstance(m, nn.Conv3d)
        )
        return largest < UNTRAINED_WEIGHT

    def _integration(self, diffeomorphic: bool | None) -> int | None:
        integrate = self.config.diffeomorphic if diffeomorphic is None else diffeomorphic
        return self.config.integration_steps if integrate else None

    def _batch(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Size]:
        """Return both images as one padded batch, and their size before padding."""
        if moving.shape != fixed.shape or moving.ndim != 5 or moving.shape[1] != 1:
            raise ValueError(
                f"moving and fixed must have the same shape (B, 1, D, H, W); got"
                f" {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        d, h, w = moving.shape[2:]
        images = torch.cat([moving, fixed])
        pads = [-n % self.config.stride for n in (w, h, d)]
        if any(pads):
            # Ours: replicate the border; zeros would create an edge where the background is not 0.
            images = F.pad(images, (0, pads[0], 0, pads[1], 0, pads[2]), mode="replicate")
        return images, (d, h, w)

    @staticmethod
    def _output(displacement: Tensor, records: list[RoutedLayer], valid: Size) -> NetworkOutput:
        d, h, w = valid
        trace = RoutingTrace(tuple(_cropped(record, valid) for record in records))
        return NetworkOutput(displacement[:, :, :d, :h, :w], trace)


def _halves(pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Split the features of the moving and of the fixed images."""
    halves = [features.chunk(2) for features in pyramid]
    return [moving for moving, _ in halves], [fixed for _, fixed in halves]


def _encoder_records(routings: list[list[Routing | None]]) -> Iterable[RoutedLayer]:
    """Split the encoder's routings into one record each for moving and fixed."""
    images: tuple[Image, Image] = ("moving", "fixed")
    for stage, blocks in enumerate(routings):
        for block, routing in enumerate(blocks):
            if routing is None:
                continue
            for image, half in zip(
                images, zip(*(t.chunk(2) for t in routing), strict=True), strict=True
            ):
                gate = GateId("encoder", stage + 1, block, image)
                yield RoutedLayer(gate, 4 * 2**stage, Routing(*half))


def _cropped(record: RoutedLayer, valid: Size) -> RoutedLayer:
    """Crop cells that are all padding, except of the residual, which is a node of the graph."""
    i, j, k = (-(-n // record.stride) for n in valid)
    return replace(record, routing=Routing(*(t[:, :, :i, :j, :k] for t in record.routing)))
