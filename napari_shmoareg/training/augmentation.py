"""Random augmentation of a pair: poses, contrasts, flips.

Ours: the paper does not augment.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.geometry import field
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.known_motion import motion_of
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.synthesis import smooth_noise

# maxima at strength 1; the shift is a share of the field of view
ANGLE, SCALE, SHIFT = math.radians(10), 0.1, 0.05
RELATIVE_POSE = 0.2  # difference in pose between the two images, as a share of the strength
GAMMA, NOISE = math.log(1.6), 0.04
# of a known motion, as shares of the longest axis
MOTION_SHIFT, MOTION_WARP, MOTION_LENGTH = 0.1, (0.02, 0.06), (0.2, 0.5)
# axes of the network grid, which are nearest to R, A, S
FLIP_AXES = {"none": (), "left-right": (0,), "all": (0, 1, 2)}


def augment(pair: Conformed, settings: FineTuning, rng: np.random.Generator) -> Conformed:
    """Augment a pair; return it unchanged if the settings ask for no augmentation.

    Parameters
    ----------
    pair : Conformed
    settings : FineTuning
        Uses augment_affine, augment_intensity and flips.
    rng : numpy.random.Generator
        Draws all random numbers.

    Returns
    -------
    Conformed
        Images in [0, 1]; integer label maps stay integer; a known motion is updated to the result.
        `affine` and `pair` are not updated: the result is for training and has no way back to the
        scans.
    """
    for axis in FLIP_AXES[settings.flips]:
        if rng.random() < 0.5:
            pair = _flip(pair, axis)
    if settings.augment_affine > 0:
        pair = _random_pose(pair, settings.augment_affine, rng)
    if settings.augment_intensity > 0:
        # MSE compares the values themselves, so both images get the same change
        shared = rng.uniform(-1, 1) if settings.similarity == "mse" else None
        moving, fixed = (
            _change_contrast(image, settings.augment_intensity, shared, rng)
            for image in (pair.moving, pair.fixed)
        )
        pair = replace(pair, moving=moving, fixed=fixed)
    return pair


def with_known_motion(pair: Conformed, rng: np.random.Generator) -> Conformed:
    """Replace the fixed image by a random deformation of the moving one, so that the motion is
    known.

    Parameters
    ----------
    pair : Conformed
        Its labels are deformed too.
    rng : numpy.random.Generator
        Draws which of the two images is used, and the deformation: a shift plus smooth noise.
    """
    shape = pair.fixed.shape[2:]
    image, labels = [(pair.moving, pair.moving_labels), (pair.fixed, pair.fixed_labels)][
        int(rng.integers(2))
    ]
    longest = max(shape)
    shift = torch.as_tensor(
        rng.uniform(-1, 1, 3) * MOTION_SHIFT * longest, dtype=torch.float32, device=image.device
    )
    noise = smooth_noise(shape, rng.uniform(*MOTION_LENGTH) * longest, 3, rng, image.device)[None]
    displacement = noise * (rng.uniform(*MOTION_WARP) * longest) + shift.view(1, 3, 1, 1, 1)
    positions = field.identity(shape, image.device) + displacement
    return replace(
        pair,
        moving=image,
        fixed=field.sample(image, positions, padding="border"),
        moving_labels=labels,
        fixed_labels=_warp_labels(labels, positions),
        motion=motion_of(displacement),
    )


def _random_pose(pair: Conformed, strength: float, rng: np.random.Generator) -> Conformed:
    """Apply one random affine to both images, and a small one to each."""
    shape = pair.fixed.shape[2:]
    common = _matrix(shape, strength, rng)
    poses = [common @ _matrix(shape, RELATIVE_POSE * strength, rng) for _ in range(2)]
    moving, fixed = (_positions(shape, matrix, pair.fixed.device) for matrix in poses)
    return replace(
        pair,
        moving=field.sample(pair.moving, moving),
        fixed=field.sample(pair.fixed, fixed),
        moving_labels=_warp_labels(pair.moving_labels, moving),
        fixed_labels=_warp_labels(pair.fixed_labels, fixed),
        motion=None if pair.motion is None else pair.motion.posed(*poses),
    )


def _matrix(shape: torch.Size, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a (4, 4) affine of voxel positions about the grid centre."""
    matrix = np.eye(4)
    for axis, angle in enumerate(rng.uniform(-1, 1, 3) * strength * ANGLE):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(4)
        rotation[[a, b, a, b], [a, b, b, a]] = (
            np.cos(angle),
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
        )
        matrix = rotation @ matrix
    matrix[:3, :3] *= np.exp(rng.uniform(-1, 1, 3) * math.log1p(strength * SCALE))
    middle = (np.array(shape) - 1) / 2
    shift = rng.uniform(-1, 1, 3) * strength * SHIFT * np.array(shape)
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return matrix


def _positions(shape: torch.Size, matrix: np.ndarray, device: torch.device) -> Tensor:
    affine = torch.as_tensor(matrix, dtype=torch.float32, device=device)
    points = field.identity(shape, device).flatten(2)[0]
    return (affine[:3, :3] @ points + affine[:3, 3:]).view(1, 3, *shape)


def _warp_labels(labels: Tensor | None, positions: Tensor) -> Tensor | None:
    """Warp integer label maps by nearest neighbour, label fractions linearly."""
    if labels is None:
        return None
    return field.sample(labels, positions, mode="nearest" if labels.shape[1] == 1 else "bilinear")


def _change_contrast(
    image: Tensor, strength: float, shared: float | None, rng: np.random.Generator
) -> Tensor:
    exponent = rng.uniform(-1, 1)
    gamma = math.exp(strength * GAMMA * (exponent if shared is None else shared))
    # drawn on the CPU, so that it is the same on every device
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise = torch.randn(image.shape, generator=generator).to(image.device) * (
        rng.uniform(0, 1) * strength * NOISE
    )
    return (image.clamp(0, 1) ** gamma + noise).clamp(0, 1)


def _flip(pair: Conformed, axis: int) -> Conformed:
    tensors = {
        name: getattr(pair, name) for name in ("moving", "fixed", "moving_labels", "fixed_labels")
    }
    mirrored = replace(
        pair, **{name: t.flip(2 + axis) for name, t in tensors.items() if t is not None}
    )
    return mirrored if pair.motion is None else replace(mirrored, motion=pair.motion.mirrored(axis))
