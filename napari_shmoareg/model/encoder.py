"""Encoder: one Swin backbone and two stems for both images.

Sec. III-A, Fig. 1.  B images (moving and fixed as one batch), C channels, D H W space.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.model.checkpointing import checkpointed
from napari_shmoareg.model.moa import MoA, MultiHeadAttention
from napari_shmoareg.model.routing import Routing
from napari_shmoareg.model.swin import Size, SwinLayer


class Stem(nn.Module):
    """Features of an image at full or half resolution: pooling, 3x3x3 convolution, norm, LeakyReLU.

    Ours: TransMorph's stems, but pooling by 2 without overlap, so that a coarse voxel covers
    exactly its fine voxels, as tokens do."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv3d(1, channels, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B, C, D/stride, H/stride, W/stride)."""
        pooled = F.avg_pool3d(image, self.stride) if self.stride > 1 else image
        return F.leaky_relu(normalise(self.conv(pooled)), 0.01)


class Encoder(nn.Module):
    """Encoder from an image to a pyramid of features.

    Parameters
    ----------
    embed_dim : int
    depths : tuple of int
    full_channels, half_channels : int
    attention : {"moa", "mha"}
    num_experts, top_k, heads : int
    window, mlp_ratio, drop_path, relative_bias, detach_weights, choice_bias
        See `SHMoARegConfig`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        full_channels: int,
        half_channels: int,
        attention: str,
        num_experts: int,
        top_k: int,
        heads: int,
        window: Size,
        mlp_ratio: int,
        drop_path: float,
        relative_bias: bool,
        detach_weights: bool,
        choice_bias: bool = False,
    ) -> None:
        super().__init__()
        self.full_stem = Stem(full_channels, 1)
        self.half_stem = Stem(half_channels, 2)
        self.patches = nn.Conv3d(1, embed_dim, 4, stride=4)
        self.patch_norm = nn.LayerNorm(embed_dim)
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(depths):
            channels = embed_dim * 2**stage

            def make(channels: int = channels) -> MoA | MultiHeadAttention:
                if attention == "mha":
                    return MultiHeadAttention(channels, heads)
                options = {"detach_weights": detach_weights, "choice_bias": choice_bias}
                return MoA(channels, channels // heads, num_experts, top_k, **options)

            self.layers.append(
                SwinLayer(
                    channels,
                    depth,
                    make,
                    merge=stage > 0,
                    drop_path=rates[sum(depths[:stage]) : sum(depths[: stage + 1])],
                    window=window,
                    mlp_ratio=mlp_ratio,
                    relative_bias=relative_bias,
                )
            )

    def forward(
        self, images: Tensor, valid: Size, *, checkpointing: bool = False
    ) -> tuple[list[Tensor], list[list[Routing | None]]]:
        """Compute the features of every level and the routings of every block.

        Parameters
        ----------
        images : Tensor (B, 1, D, H, W)
            D, H, W are multiples of the coarsest stride.
        valid : tuple of 3 int
            Voxels along each axis before padding.
        checkpointing : bool
            Store only the tensors between layers; recompute the rest in the backward pass.

        Returns
        -------
        list of Tensor (B, C, D/s, H/s, W/s)
            For strides s = 1, 2, 4 ...
        list of list of Routing or None
            Per encoder layer, per block; on the padded token grid.
        """
        pyramid = [self.full_stem(images), self.half_stem(images)]
        tokens = self.patch_norm(self.patches(images).movedim(1, -1))
        routings = []
        for stage, layer in enumerate(self.layers):
            stride = 4 * 2**stage
            valid_tokens = (-(-valid[0] // stride), -(-valid[1] // stride), -(-valid[2] // stride))
            tokens, features, chosen = checkpointed(
                layer, tokens, valid_tokens, enabled=checkpointing
            )
            pyramid.append(features)
            routings.append(chosen)
        return pyramid, routings


def normalise(features: Tensor) -> Tensor:
    """Instance norm without parameters; a single voxel, which has no variance, is unchanged."""
    return F.instance_norm(features) if features[0, 0].numel() > 1 else features
