"""KnownMotion: the true motion of a synthetic pair of one subject.

B batch, D H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import field

ITERATIONS = 30
EXACT = 0.1  # voxels: largest error of a motion that counts as known


class KnownMotion(NamedTuple):
    """Displacements between two images in both directions.

    Attributes
    ----------
    displacement : Tensor (2, 3, D, H, W), voxels
        In the order of `SHMoAReg.both_orders`: with the first image as moving, on the second's
        grid; then with the second as moving.
    known : Tensor (2, 1, D, H, W)
        1 where the motion is known; 0 outside the other image, where nothing is shown, or where it
        folds.
    """

    displacement: Tensor
    known: Tensor

    def to(self, device: torch.device) -> KnownMotion:
        """Move to a device."""
        return KnownMotion(self.displacement.to(device), self.known.to(device))

    def mirrored(self, axis: int) -> KnownMotion:
        """Return the motion of the images mirrored along an axis of their grid (0, 1, 2)."""
        displacement = self.displacement.flip(2 + axis)
        displacement[:, axis] *= -1
        return KnownMotion(displacement, self.known.flip(2 + axis))

    def posed(self, first: np.ndarray, second: np.ndarray) -> KnownMotion:
        """Return the motion of resampled images, which at p have the old value at A p.

        One A per image, (4, 4), voxels to voxels.
        """
        found = []
        for order, (moving, fixed) in enumerate(((first, second), (second, first))):
            identity = field.identity(self.known.shape[2:], self.known.device)
            mapped = _transform(identity, fixed)
            one, known = self.displacement[order : order + 1], self.known[order : order + 1]
            before = mapped + field.sample(one, mapped, padding="border")
            after = _transform(before, np.linalg.inv(moving))
            known = (field.sample(known, mapped) > 1 - 1e-3) & is_inside(after)
            found.append((after - identity, known.to(after.dtype)))
        return _concatenate(found)

    def after_first_pass(self, before: Tensor) -> KnownMotion:
        """Return the remaining motion after warping the first image by `before` (1, 3, D, H, W)."""
        back = field.invert(before)
        missed = field.compose(before, back).norm(dim=1, keepdim=True)
        target = self.displacement[:1] + field.identity(self.known.shape[2:], self.known.device)
        remaining = field.compose(back, self.displacement[:1])
        mapped = remaining + field.identity(self.known.shape[2:], self.known.device)
        exact = (field.sample(missed, target, padding="border") < EXACT) & is_inside(mapped)
        onward = field.compose(self.displacement[1:], before)
        still_known = field.warp(self.known[1:], before) > 1 - 1e-3
        return _concatenate(
            [(remaining, self.known[:1] * exact), (onward, still_known.to(onward.dtype))]
        )


def motion_of(displacement: Tensor) -> KnownMotion:
    """Return the motion of an image and its warp by a displacement (1, 3, D, H, W), voxels."""
    inverse = field.invert(displacement)
    remaining = field.compose(displacement, inverse).norm(dim=1, keepdim=True)
    identity = field.identity(displacement.shape[2:], displacement.device)
    known = is_inside(identity + displacement), is_inside(identity + inverse) & (remaining < EXACT)
    return _concatenate(
        [(u, k.to(u.dtype)) for u, k in zip((displacement, inverse), known, strict=True)]
    )


def motion_of_drawn(
    warps: Sequence[Tensor], poses: Sequence[np.ndarray], shown: Sequence[Tensor], spacing: float
) -> KnownMotion:
    """Return the motion of two images of a subject: x of each shows pose(x + warp(x)).

    Parameters
    ----------
    warps : two Tensor (3, 2D, 2H, 2W), mm
        On the grid of half the spacing, centred at 0.
    poses : two (4, 4) arrays, mm
    shown : two Tensor (1, 1, D, H, W), bool
        Where each image has content.
    spacing : float, mm
        Voxel size of the images.
    """
    shape = shown[0].shape[2:]
    middle = torch.tensor([(n - 1) / 2 for n in shape], device=shown[0].device).view(1, 3, 1, 1, 1)
    identity = (field.identity(shape, shown[0].device) - middle) * spacing
    found = []
    for moving, fixed in ((0, 1), (1, 0)):
        target = _transform(
            identity + F.avg_pool3d(warps[fixed][None], 2),
            np.linalg.inv(poses[moving]) @ poses[fixed],
        )
        point = target
        for _ in range(ITERATIONS):  # x + warp(x) = target
            point = target - _sample_warp(warps[moving], point, spacing)
        remaining = (point + _sample_warp(warps[moving], point, spacing) - target).norm(
            dim=1, keepdim=True
        ) / spacing
        mapped = point / spacing + middle
        known = (remaining < EXACT) & is_inside(mapped) & shown[fixed]
        found.append(((point - identity) / spacing, known.to(point.dtype)))
    return _concatenate(found)


def is_inside(positions: Tensor) -> Tensor:
    """Return whether positions (B, 3, D, H, W) are inside a grid of that shape: (B, 1, D, H, W)."""
    last = torch.tensor([n - 1 for n in positions.shape[2:]], device=positions.device).view(
        1, 3, 1, 1, 1
    )
    return ((positions >= 0) & (positions <= last)).all(1, keepdim=True)


def _concatenate(found: Sequence[tuple[Tensor, Tensor]]) -> KnownMotion:
    return KnownMotion(torch.cat([u for u, _ in found]), torch.cat([known for _, known in found]))


def _transform(points: Tensor, matrix: np.ndarray) -> Tensor:
    """Apply an affine (4, 4) to points (1, 3, D, H, W)."""
    affine = torch.as_tensor(matrix, dtype=points.dtype, device=points.device)
    return (affine[:3, :3] @ points.flatten(2)[0] + affine[:3, 3:]).view(points.shape)


def _sample_warp(warp: Tensor, points: Tensor, spacing: float) -> Tensor:
    """Sample a warp (3, 2D, 2H, 2W) at points in mm (1, 3, D, H, W)."""
    middle = torch.tensor([(n - 1) / 2 for n in warp.shape[1:]], device=points.device).view(
        1, 3, 1, 1, 1
    )
    return field.sample(warp[None], points / (spacing / 2) + middle, padding="border")
