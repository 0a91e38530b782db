"""Displacement fields: sample, warp, compose, invert, Jacobian.

A displacement u lives on the grid it pulls to: phi(p) = p + u(p), warped(p) = moving(phi(p)).
Component c runs along array axis c, in voxels of its own grid.  This is the only file
that knows that `grid_sample` wants coordinates scaled to [-1, 1] and in reverse order.

B batch, C channels, D H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHARED = 1 << 16  # positions from which threads share them


def identity(
    shape: tuple[int, int, int] | torch.Size, device: torch.device | str = "cpu"
) -> Tensor:
    """Voxel positions (1, 3, D, H, W) of a grid, float32."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    image: Tensor, positions: Tensor, *, mode: str = "bilinear", padding: str = "zeros"
) -> Tensor:
    """Values of an image at given positions.

    Parameters
    ----------
    image : Tensor (B, C, D, H, W)
        Computed in float32 (float64 stays), whatever autocast says: bfloat16 coordinates
        would be off by half a voxel at index 128.
    positions : Tensor (B, 3, D', H', W'), voxels of `image`
    mode : {"bilinear", "nearest"}
        "bilinear" is trilinear in 3D.
    padding : {"zeros", "border"}
        What stands outside the image.

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
    """`grid_sample`; on a CPU it runs one thread per image of a batch, so that of one image each
    takes a part.
    """
    count, depth = torch.get_num_threads(), grid.shape[1]
    alone = (
        len(image) == 1
        and grid.device.type == "cpu"
        and not (torch.is_grad_enabled() and grid.requires_grad)
    )
    if (
        not alone
        or count == 1
        or depth < count
        or grid[..., 0].numel() < SHARED
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
    """Pull an image back through phi(p) = p + u(p).

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
    """The displacement of x -> phi_outer(phi_inner(x)): u(x) = u_inner(x) + u_outer(x +
    u_inner(x)).

    Both (B, 3, D, H, W), voxels of the same grid.  Warping an image with `outer` and the
    result with `inner` equals warping once with the composed field.
    """
    return inner + warp(outer, inner, padding="border")


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Exponential of a stationary velocity field by scaling and squaring.

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
    """A displacement on the grid of half the stride: twice the size and twice the values.

    Ours: voxel *edges* are kept (``align_corners=False``), so that a coarse voxel covers
    exactly the 2x2x2 fine ones it was made of, as in patch merging and `Grid.coarsen`;
    with ``align_corners=True`` levels drift apart by up to half a coarse voxel.
    """
    with torch.autocast(displacement.device.type, enabled=False):
        return 2 * F.interpolate(
            displacement.float(), size=tuple(shape), mode="trilinear", align_corners=False
        )


def invert(displacement: Tensor, iterations: int = 50, tolerance: float = 1e-3) -> Tensor:
    """The displacement v of the inverse map: u(x + v(x)) + v(x) = 0.

    Fixed-point iteration v <- v - w (v + u(x + v)).  Ours: the step w starts at 1 and is
    halved where a step did not help, so that strong local stretching converges too; where
    the field folds, several points answer or none is found, and the best v found stays.

    Parameters
    ----------
    displacement : Tensor (B, 3, D, H, W), voxels of this grid
        Outside the grid it continues with its edge values.
    iterations : int
        At most so many steps.
    tolerance : float, voxels
        Stops once every voxel's residual is below this.

    Returns
    -------
    Tensor (B, 3, D, H, W), voxels of the same grid
        What is left over is ``compose(displacement, inverse)``: 0 for a perfect inverse.
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
    """det(I + du/dx): the local change of volume; 1 is none, 0 or less is folding.

    Central differences, one-sided at the borders; an axis of one voxel has no change along it.
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
