"""KnownMotion: the true motion of a pair that was made of one subject.

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
EXACT = 0.1  # voxels that a point may be off for its motion to count as known


class KnownMotion(NamedTuple):
    """Where each point of one image lies in the other, both ways.

    Attributes
    ----------
    displacement : Tensor (2, 3, D, H, W), voxels
        As `SHMoAReg.both_orders` answers: first with the first image as moving, on the second's
        grid; then the other way round.
    known : Tensor (2, 1, D, H, W)
        1 where it is known, 0 where not: beyond the other image, where nothing is shown, or where
        it folds.
    """

    displacement: Tensor
    known: Tensor

    def to(self, device: torch.device) -> KnownMotion:
        """On a device."""
        return KnownMotion(self.displacement.to(device), self.known.to(device))

    def mirrored(self, axis: int) -> KnownMotion:
        """Of both images mirrored along an axis of their grid (0, 1, 2)."""
        displacement = self.displacement.flip(2 + axis)
        displacement[:, axis] *= -1
        return KnownMotion(displacement, self.known.flip(2 + axis))

    def posed(self, first: np.ndarray, second: np.ndarray) -> KnownMotion:
        """Of images that show at p what the first, or second, showed at A p; both A (4, 4), voxels
        to voxels.
        """
        found = []
        for order, (moving, fixed) in enumerate(((first, second), (second, first))):
            here = field.identity(self.known.shape[2:], self.known.device)
            there = _moved(here, fixed)
            one, known = self.displacement[order : order + 1], self.known[order : order + 1]
            before = there + field.sample(one, there, padding="border")
            after = _moved(before, np.linalg.inv(moving))
            known = (field.sample(known, there) > 1 - 1e-3) & is_inside(after)
            found.append((after - here, known.to(after.dtype)))
        return _both(found)

    def after_first_pass(self, before: Tensor) -> KnownMotion:
        """What is left of it once the first image was warped by a displacement (1, 3, D, H, W)."""
        back = field.invert(before)
        missed = field.compose(before, back).norm(dim=1, keepdim=True)
        target = self.displacement[:1] + field.identity(self.known.shape[2:], self.known.device)
        left = field.compose(back, self.displacement[:1])
        there = left + field.identity(self.known.shape[2:], self.known.device)
        exact = (field.sample(missed, target, padding="border") < EXACT) & is_inside(there)
        onward = field.compose(self.displacement[1:], before)
        seen = field.warp(self.known[1:], before) > 1 - 1e-3
        return _both([(left, self.known[:1] * exact), (onward, seen.to(onward.dtype))])


def motion_of(displacement: Tensor) -> KnownMotion:
    """Of a first image and a second that is the first warped by a displacement (1, 3, D, H, W),
    voxels.
    """
    inverse = field.invert(displacement)
    left = field.compose(displacement, inverse).norm(dim=1, keepdim=True)
    here = field.identity(displacement.shape[2:], displacement.device)
    known = is_inside(here + displacement), is_inside(here + inverse) & (left < EXACT)
    return _both([(u, k.to(u.dtype)) for u, k in zip((displacement, inverse), known, strict=True)])


def motion_of_drawn(
    warps: Sequence[Tensor], poses: Sequence[np.ndarray], shown: Sequence[Tensor], spacing: float
) -> KnownMotion:
    """Of two images that show one subject, each at poses (x + warp(x)) for the point x of its view.

    Parameters
    ----------
    warps : two Tensor (3, 2D, 2H, 2W), mm
        On the grid of half the spacing whose middle is 0.
    poses : two (4, 4) arrays, mm
    shown : two Tensor (1, 1, D, H, W), bool
        Where each image shows something.
    spacing : float, mm
        Of a voxel of the images.
    """
    shape = shown[0].shape[2:]
    middle = torch.tensor([(n - 1) / 2 for n in shape], device=shown[0].device).view(1, 3, 1, 1, 1)
    here = (field.identity(shape, shown[0].device) - middle) * spacing
    found = []
    for moving, fixed in ((0, 1), (1, 0)):
        target = _moved(
            here + F.avg_pool3d(warps[fixed][None], 2), np.linalg.inv(poses[moving]) @ poses[fixed]
        )
        place = target
        for _ in range(ITERATIONS):  # x + warp(x) = target
            place = target - _fine(warps[moving], place, spacing)
        left = (place + _fine(warps[moving], place, spacing) - target).norm(
            dim=1, keepdim=True
        ) / spacing
        there = place / spacing + middle
        known = (left < EXACT) & is_inside(there) & shown[fixed]
        found.append(((place - here) / spacing, known.to(place.dtype)))
    return _both(found)


def is_inside(positions: Tensor) -> Tensor:
    """Which positions (B, 3, D, H, W) lie on a grid of their own shape: (B, 1, D, H, W), bool."""
    last = torch.tensor([n - 1 for n in positions.shape[2:]], device=positions.device).view(
        1, 3, 1, 1, 1
    )
    return ((positions >= 0) & (positions <= last)).all(1, keepdim=True)


def _both(found: Sequence[tuple[Tensor, Tensor]]) -> KnownMotion:
    return KnownMotion(torch.cat([u for u, _ in found]), torch.cat([known for _, known in found]))


def _moved(points: Tensor, matrix: np.ndarray) -> Tensor:
    """Points (1, 3, D, H, W) under an affine (4, 4)."""
    turned = torch.as_tensor(matrix, dtype=points.dtype, device=points.device)
    return (turned[:3, :3] @ points.flatten(2)[0] + turned[:3, 3:]).view(points.shape)


def _fine(warp: Tensor, points: Tensor, spacing: float) -> Tensor:
    """A warp (3, 2D, 2H, 2W) at points in mm (1, 3, D, H, W)."""
    middle = torch.tensor([(n - 1) / 2 for n in warp.shape[1:]], device=points.device).view(
        1, 3, 1, 1, 1
    )
    return field.sample(warp[None], points / (spacing / 2) + middle, padding="border")
