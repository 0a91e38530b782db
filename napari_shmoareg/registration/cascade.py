"""Cascade: the network runs on a coarse grid, then on finer grids on the remaining motion.

Ours; the paper registers once, at one resolution.  A coarse grid brings large displacements within
the reach of the network, a fine grid resolves detail.  All passes use the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import field
from napari_shmoareg.model import NetworkOutput, SHMoAReg

SMALLEST = 16  # voxels along the longest axis of a coarse pass, at least


class Cascade(NamedTuple):
    """Result of a cascade.

    Attributes
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels of the finest grid, float32
        All passes composed.
    last : NetworkOutput
        Of the last pass, on the finest grid; its displacement is that of this pass alone.
    passes : tuple of float
        Scales of the passes that ran.
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
        Resolution of each pass as a fraction of the full one, the last one 1; default: those of the
        config.  A leading pass is skipped if its grid would be too small or no coarser than the
        full grid.
    diffeomorphic : bool, optional
        As in the network, for every pass.  Compositions of diffeomorphisms are diffeomorphisms.
    progress : callable, optional
        Called after each pass with the fraction of work done, 1 at the end.

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
    report = progress or (lambda _done: None)
    total, ran = leading_passes(
        network, moving, fixed, passes=passes, diffeomorphic=diffeomorphic, progress=report
    )
    last = network(warp_by(moving, total), fixed, diffeomorphic=diffeomorphic)
    report(1.0)
    displacement = last.displacement if total is None else field.compose(total, last.displacement)
    return Cascade(displacement, last, ran)


def leading_passes(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    *,
    passes: Sequence[float] | None = None,
    diffeomorphic: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Tensor | None, tuple[float, ...]]:
    """Run the passes of `cascade` before the last one; parameters and errors as there.

    Returns
    -------
    start : Tensor (B, 3, D, H, W) or None
        Composed displacement, voxels of the finest grid; None without such passes.
    passes : tuple of float
        Scales of all passes, including the last one.
    """
    coarse = _leading_scales(network, fixed.shape[2:], passes)
    work = [scale**3 for scale in (*coarse, 1.0)]
    total: Tensor | None = None
    for number, scale in enumerate(coarse):
        found = run_at_scale(
            network, warp_by(moving, total), fixed, scale, diffeomorphic=diffeomorphic
        )
        total = found if total is None else field.compose(total, found)
        if progress is not None:
            progress(sum(work[: number + 1]) / sum(work))
    return total, (*coarse, 1.0)


def _leading_scales(
    network: SHMoAReg, shape: Sequence[int], passes: Sequence[float] | None
) -> tuple[float, ...]:
    """Return the scales of the passes before the last on a grid of this shape."""
    scales = tuple(network.config.passes if passes is None else passes)
    if not scales or scales[-1] != 1:
        raise ValueError(f"the last pass must be at full resolution, 1; got the passes {scales}")
    grids = {scale: coarser(shape, scale) for scale in scales[:-1]}
    return tuple(
        scale
        for scale in scales[:-1]
        if max(grids[scale]) >= SMALLEST and grids[scale] != tuple(shape)
    )


def warp_by(moving: Tensor, total: Tensor | None) -> Tensor:
    """Warp the moving image (B, 1, D, H, W) by the displacement of the earlier passes, if any.

    Extended with its edge values beyond the field of view: zeros would create an edge.
    """
    return moving if total is None else field.warp(moving, total, padding="border")


def run_at_scale(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    scale: float,
    *,
    diffeomorphic: bool | None = None,
) -> Tensor:
    """Run the network at a fraction of the resolution; (B, 3, D, H, W), full-grid voxels."""
    small = coarser(fixed.shape[2:], scale)
    output = network(to_shape(moving, small), to_shape(fixed, small), diffeomorphic=diffeomorphic)
    return rescale_displacement(output.displacement, fixed.shape[2:])


def coarser(shape: Sequence[int], scale: float) -> tuple[int, int, int]:
    """Return the shape at a fraction of the resolution."""
    i, j, k = (max(2, round(n * scale)) for n in shape)
    return i, j, k


def to_shape(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Downsample images (B, C, D, H, W) over the same field of view by area averaging."""
    return F.interpolate(images, size=tuple(shape), mode="area")


def rescale_displacement(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample a displacement (B, 3, D, H, W), in voxels, to another grid and its voxels."""
    ratio = torch.tensor(
        [a / b for a, b in zip(shape, displacement.shape[2:], strict=True)],
        device=displacement.device,
    )
    with torch.autocast(displacement.device.type, enabled=False):
        fine = F.interpolate(
            displacement.float(), size=tuple(shape), mode="trilinear", align_corners=False
        )
    return fine * ratio.view(1, 3, 1, 1, 1)
