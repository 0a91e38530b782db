"""A cascade: the network first at a coarse grid, then again, at a finer one, on what is left.

Ours; the paper registers once, at one resolution.  A coarse grid brings large displacements
within the network's reach, and a fine one shows what a coarse voxel hides.  The same weights
serve every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import field
from napari_shmoareg.model import NetworkOutput, SHMoAReg

SMALLEST = 16  # voxels along the longest axis below which a coarse pass sees nothing


class Cascade(NamedTuple):
    """What the passes came to.

    Attributes
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels of the finest grid, float32
        All passes composed.
    last : NetworkOutput
        Of the last pass, on the finest grid; its displacement is what that pass added.
    passes : tuple of float
        Those that ran.
    """

    displacement: Tensor
    last: NetworkOutput
    passes: tuple[float, ...]


def cascade(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    *,
    passes: Sequence[float] | None = None,
    diffeomorphic: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> Cascade:
    """Register coarse to fine.

    Parameters
    ----------
    network : SHMoAReg
    moving, fixed : Tensor (B, 1, D, H, W), in [0, 1]
    passes : sequence of float, optional
        Resolution of each pass as a share of the full one, the last of them 1; the config's by
        default. Left out is a pass before the last whose grid would be no coarser than the full
        one, or too coarse to see anything.
    diffeomorphic : bool, optional
        As in the network, for every pass.  Compositions of diffeomorphisms are such.
    progress : callable, optional
        Called after each pass with the share of the work that is done, 1 in the end.

    Returns
    -------
    Cascade

    Raises
    ------
    ValueError
        If the last pass is not at 1.

    Examples
    --------
    >>> import torch
    >>> from napari_shmoareg.registration.cascade import cascade
    >>> from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
    >>> network = SHMoAReg(SHMoARegConfig.preset("tiny")).eval()
    >>> moving, fixed = torch.rand(2, 1, 1, 36, 40, 32)
    >>> tuple(cascade(network, moving, fixed, passes=(0.5, 1.0)).displacement.shape)
    (1, 3, 36, 40, 32)
    """
    tell = progress or (lambda _done: None)
    total, ran = before_last(
        network, moving, fixed, passes=passes, diffeomorphic=diffeomorphic, progress=tell
    )
    last = network(seen_after(moving, total), fixed, diffeomorphic=diffeomorphic)
    tell(1.0)
    displacement = last.displacement if total is None else field.compose(total, last.displacement)
    return Cascade(displacement, last, ran)


def before_last(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    *,
    passes: Sequence[float] | None = None,
    diffeomorphic: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Tensor | None, tuple[float, ...]]:
    """The passes of `cascade` before its last one, with its parameters and errors.

    Returns
    -------
    start : Tensor (B, 3, D, H, W) or None
        Their displacements composed, voxels of the finest grid; None where there is none.
    passes : tuple of float
        Those that run, the last one included.
    """
    coarse = _earlier(network, fixed.shape[2:], passes)
    work = [share**3 for share in (*coarse, 1.0)]
    total: Tensor | None = None
    for number, share in enumerate(coarse):
        found = coarse_pass(
            network, seen_after(moving, total), fixed, share, diffeomorphic=diffeomorphic
        )
        total = found if total is None else field.compose(total, found)
        if progress is not None:
            progress(sum(work[: number + 1]) / sum(work))
    return total, (*coarse, 1.0)


def _earlier(
    network: SHMoAReg, shape: Sequence[int], passes: Sequence[float] | None
) -> tuple[float, ...]:
    """The passes before the last that run on a grid of this shape."""
    wanted = tuple(network.config.passes if passes is None else passes)
    if not wanted or wanted[-1] != 1:
        raise ValueError(f"the last pass is at the full resolution, 1; got the passes {wanted}")
    grids = {share: coarser(shape, share) for share in wanted[:-1]}
    return tuple(
        share
        for share in wanted[:-1]
        if max(grids[share]) >= SMALLEST and grids[share] != tuple(shape)
    )


def seen_after(moving: Tensor, total: Tensor | None) -> Tensor:
    """The moving image (B, 1, D, H, W) as a pass sees it that starts from a displacement, or from
    none.

    The edge goes on beyond the field of view: zeros would show the pass an edge that is none.
    """
    return moving if total is None else field.warp(moving, total, padding="border")


def coarse_pass(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    share: float,
    *,
    diffeomorphic: bool | None = None,
) -> Tensor:
    """What the network finds at a share of the resolution, (B, 3, D, H, W), in voxels of the full
    one.
    """
    small = coarser(fixed.shape[2:], share)
    output = network(to_shape(moving, small), to_shape(fixed, small), diffeomorphic=diffeomorphic)
    return stretch(output.displacement, fixed.shape[2:])


def coarser(shape: Sequence[int], share: float) -> tuple[int, int, int]:
    """The shape at a share of the resolution."""
    i, j, k = (max(2, round(n * share)) for n in shape)
    return i, j, k


def to_shape(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images (B, C, D, H, W) on a coarser grid over the same field of view: means of the voxels
    each one touches.
    """
    return F.interpolate(images, size=tuple(shape), mode="area")


def stretch(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """A displacement (B, 3, D, H, W) in its voxels, on another grid over the same field of view, in
    that one's.
    """
    ratio = torch.tensor(
        [a / b for a, b in zip(shape, displacement.shape[2:], strict=True)],
        device=displacement.device,
    )
    with torch.autocast(displacement.device.type, enabled=False):
        fine = F.interpolate(
            displacement.float(), size=tuple(shape), mode="trilinear", align_corners=False
        )
    return fine * ratio.view(1, 3, 1, 1, 1)
