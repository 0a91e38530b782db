"""Displacement fields: sample, warp, compose, invert, Jacobian.

A displacement u is defined on the grid it pulls to: phi(p) = p + u(p), warped(p) = moving(phi(p)).
Component c runs along array axis c, in voxels of its own grid.  Only this module converts to the
coordinates of `grid_sample`, which are scaled to [-1, 1] and in reverse order.

B batch, C channels, D H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PARALLEL_POSITIONS = 1 << 16  # from this number on, positions are split between threads


def identity(
    shape: tuple[int, int, int] | torch.Size, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the voxel positions (1, 3, D, H, W) of a grid, float32."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: Tensor, positions: Tensor, *, mode: str = "bilinear", padding: str = "zeros"
) -> Tensor:
    """Sample an image at given positions.

    Parameters
    ----------
    image : Tensor (B, C, D, H, W)
        Computed in float32 (or float64), also under autocast: bfloat16 coordinates would be off
        by half a voxel at index 128.
    positions : Tensor (B, 3, D', H', W'), voxels of `image`
    mode : {"bilinear", "nearest"}
        "bilinear" is trilinear in 3D.
    padding : {"zeros", "border"}
        Values outside the image.

    Returns
    -------
    Tensor (B, C, D', H', W')
    """
    kind = torch.promote_types(torch.float32, torch.promote_types(image.dtype, positions.dtype))
    with torch.autocast(image.device.type, enabled=False):
        position = positions.to(kind)
        scaled = [
            2 * position[:, axis] / max(n - 1, 1) - 1 for axis, n in enumerate(image.shape[2:])
        ]
        grid = torch.stack(scaled[::-1], dim=-1)
        return _grid_sample(image.to(kind), grid, mode, padding)


def _grid_sample(image: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """Call `grid_sample`; split a single image between CPU threads, as torch uses one per image."""
    count, depth = torch.get_num_threads(), grid.shape[1]
    splittable = (
        len(image) == 1
        and grid.device.type == "cpu"
        and not (torch.is_grad_enabled() and grid.requires_grad)
    )
    if (
        not splittable
        or count == 1
        or depth < count
        or grid[..., 0].numel() < PARALLEL_POSITIONS
        or image.requires_grad
    ):
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)
    cut = depth - depth % count
    pieces = []
    for piece in (grid[:, :cut].unflatten(1, (count, -1))[0], grid[:, cut:]):
        if piece.shape[1]:
            batch = image.expand(len(piece), *image.shape[1:])
            found = F.grid_sample(batch, piece, mode=mode, padding_mode=padding, align_corners=True)
            pieces.append(found.transpose(0, 1).flatten(1, 2)[None])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def warp(
    image: Tensor, displacement: Tensor, *, mode: str = "bilinear", padding: str = "zeros"
) -> Tensor:
    """Warp an image by phi(p) = p + u(p).

    Parameters
    ----------
    image : Tensor (B, C, D, H, W)
    displacement : Tensor (B, 3, D, H, W), voxels of this grid

    Returns
    -------
    Tensor (B, C, D, H, W)
    """
    positions = identity(displacement.shape[2:], displacement.device) + displacement
    return sample(image, positions, mode=mode, padding=padding)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Compose displacements: u(x) = u_inner(x) + u_outer(x + u_inner(x)).

    Maps x -> phi_outer(phi_inner(x)).  Both (B, 3, D, H, W), voxels of the same grid.
    Warping an image with `outer` and the result with `inner` equals warping once with the result.
    """
    return inner + warp(outer, inner, padding="border")


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Integrate a stationary velocity field by scaling and squaring.

    Parameters
    ----------
    velocity : Tensor (B, 3, D, H, W), voxels per unit time
    steps : int
        Number of squarings; 7 as in VoxelMorph and RDP.

    Returns
    -------
    Tensor (B, 3, D, H, W), voxels
        Displacement of the flow at time 1.
    """
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def upsample(displacement: Tensor, shape: tuple[int, int, int] | torch.Size) -> Tensor:
    """Upsample a displacement to the grid of half the stride: twice the size and twice the values.

    Ours: voxel *edges* are aligned (``align_corners=False``), so that a coarse voxel covers
    exactly its 2x2x2 fine voxels, as in patch merging and `Grid.coarsen`; with
    ``align_corners=True`` levels are shifted by up to half a coarse voxel.
    """
    with torch.autocast(displacement.device.type, enabled=False):
        return 2 * F.interpolate(
            displacement.float(), size=tuple(shape), mode="trilinear", align_corners=False
        )


def invert(displacement: Tensor, iterations: int = 50, tolerance: float = 1e-3) -> Tensor:
    """Compute the displacement v of the inverse map: u(x + v(x)) + v(x) = 0.

    Fixed-point iteration v <- v - w (v + u(x + v)).  Ours: the step w starts at 1 and is halved
    wherever a step does not reduce the residual, so that strong local stretching also converges.
    Where the field folds there may be several solutions or none; the best v found is returned.

    Parameters
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels of this grid
        Extended beyond the grid with its edge values.
    iterations : int
        Maximum number of steps.
    tolerance : float, voxels
        Stops once every voxel's residual is below this.

    Returns
    -------
    Tensor (B, 3, D, H, W), voxels of the same grid
        The residual is ``compose(displacement, inverse)``: 0 for a perfect inverse.
    """
    inverse = -displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    residual = compose(displacement, inverse)
    length = residual.norm(dim=1, keepdim=True)
    step = torch.ones_like(length)
    for _ in range(iterations):
        if length.max() <= tolerance:
            break
        trial = inverse - step * residual
        left = compose(displacement, trial)
        norm = left.norm(dim=1, keepdim=True)
        better = norm < length
        inverse = torch.where(better, trial, inverse)
        residual = torch.where(better, left, residual)
        length = torch.where(better, norm, length)
        step = torch.where(better, step, step / 2)
    return inverse


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Compute det(I + du/dx), the local volume change: 1 is none, 0 or less is folding.

    Central differences, one-sided at the borders; the derivative along an axis of one voxel is 0.
    The value is the same in voxels and in mm.

    Parameters
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels of this grid

    Returns
    -------
    Tensor (B, 1, D, H, W)
    """
    with torch.autocast(displacement.device.type, enabled=False):
        u = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
        rows = []
        for component in range(3):
            row = [
                (
                    torch.gradient(u[:, component], dim=axis + 1)[0]
                    if u.shape[axis + 2] > 1
                    else torch.zeros_like(u[:, 0])
                )
                for axis in range(3)
            ]
            row[component] = row[component] + 1
            rows.append(row)
        (a, b, c), (d, e, f), (g, h, i) = rows
        return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))[:, None]
