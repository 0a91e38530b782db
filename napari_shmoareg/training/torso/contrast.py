"""Tissues of synthetic torsos and their CT contrast: Hounsfield units, phase, noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Class and label; no label for tissues without a counterpart in other people.
CLASSES: tuple[tuple[str, str], ...] = (
    ("air", ""),
    ("subcutaneous fat", ""),
    ("muscle", ""),
    ("visceral fat", ""),
    ("right lung", "right lung"),
    ("left lung", "left lung"),
    ("lung vessels", ""),
    ("oesophagus", ""),
    ("spongy bone", "spine"),
    ("cortical bone", "spine"),
    ("disc", "spine"),
    ("spinal canal", ""),
    ("rib", ""),
    ("pelvis", "pelvis"),
    ("heart", "heart"),
    ("liver", "liver"),
    ("liver vessels", "liver"),
    ("spleen", "spleen"),
    ("right renal cortex", "right kidney"),
    ("left renal cortex", "left kidney"),
    ("right renal medulla", "right kidney"),
    ("left renal medulla", "left kidney"),
    ("renal pelvis", ""),
    ("stomach wall", "stomach"),
    ("stomach fluid", "stomach"),
    ("stomach gas", "stomach"),
    ("gallbladder", "gallbladder"),
    ("pancreas", "pancreas"),
    ("aorta", "aorta"),
    ("arteries", ""),
    ("vena cava", "vena cava"),
    ("portal vein", "portal vein"),
    ("bowel wall", ""),
    ("bowel fluid", ""),
    ("colon wall", ""),
    ("colon content", ""),
    ("bowel gas", ""),
    ("bladder", "bladder"),
    ("right psoas", "right psoas"),
    ("left psoas", "left psoas"),
    ("couch shell", ""),
    ("couch foam", ""),
    ("mattress", ""),
)
NAMES = tuple(name for name, _ in CLASSES)
LABELS = tuple(dict.fromkeys(label for _, label in CLASSES if label))
COUCH = ("couch shell", "couch foam", "mattress")
# Tissues that share a random contrast: both sides of an organ; bone, gas or walls.
SAME_CONTRAST = {
    "cortical bone": "rib",
    "pelvis": "spongy bone",
    "left lung": "right lung",
    "left renal cortex": "right renal cortex",
    "left renal medulla": "right renal medulla",
    "left psoas": "muscle",
    "right psoas": "muscle",
    "arteries": "aorta",
    "stomach gas": "bowel gas",
    "colon wall": "bowel wall",
    "stomach wall": "bowel wall",
    "oesophagus": "bowel wall",
    "bowel fluid": "stomach fluid",
    "liver vessels": "portal vein",
}


PHASES = ("native", "arterial", "portal venous", "delayed")
COMMON = (0.2, 0.17, 0.5, 0.13)  # probability of each phase
# HU in each phase, standard deviation over people, and texture: of an eighth of a voxel, so that
# little of it remains in the image.
HOUNSFIELD: dict[str, tuple[float, float, float, float, float, float]] = {
    "air": (-1000, -1000, -1000, -1000, 2, 4),
    "subcutaneous fat": (-106, -106, -104, -104, 7, 14),
    "muscle": (50, 54, 60, 58, 7, 22),
    "visceral fat": (-100, -100, -97, -97, 8, 18),
    "spongy bone": (170, 172, 185, 180, 50, 70),
    "cortical bone": (560, 560, 560, 560, 110, 120),
    "disc": (85, 85, 90, 90, 12, 14),
    "spinal canal": (28, 30, 34, 34, 6, 14),
    "rib": (360, 360, 360, 360, 80, 130),
    "pelvis": (300, 300, 305, 305, 70, 130),
    "right lung": (-835, -830, -825, -825, 35, 70),
    "left lung": (-835, -830, -825, -825, 35, 70),
    "lung vessels": (20, 120, 60, 50, 30, 60),
    "heart": (44, 240, 140, 110, 25, 30),
    "liver": (56, 68, 108, 95, 14, 14),
    "liver vessels": (42, 75, 155, 115, 14, 12),
    "spleen": (48, 125, 118, 98, 12, 14),
    "right renal cortex": (33, 165, 178, 150, 18, 18),
    "left renal cortex": (33, 165, 178, 150, 18, 18),
    "right renal medulla": (31, 65, 150, 148, 16, 16),
    "left renal medulla": (31, 65, 150, 148, 16, 16),
    "renal pelvis": (8, 8, 20, 320, 14, 14),
    "stomach wall": (40, 75, 85, 76, 10, 20),
    "stomach fluid": (18, 18, 18, 18, 18, 30),
    "stomach gas": (-970, -970, -970, -970, 12, 10),
    "gallbladder": (8, 8, 9, 10, 7, 8),
    "pancreas": (40, 98, 92, 76, 13, 34),
    "aorta": (42, 300, 160, 120, 22, 8),
    "arteries": (42, 280, 155, 118, 20, 8),
    "vena cava": (40, 90, 145, 118, 20, 10),
    "portal vein": (42, 105, 165, 120, 18, 8),
    "bowel wall": (38, 85, 95, 78, 11, 22),
    "bowel fluid": (18, 18, 20, 20, 12, 26),
    "colon wall": (38, 75, 85, 74, 10, 22),
    "colon content": (15, 15, 15, 15, 40, 170),
    "bowel gas": (-960, -960, -960, -960, 15, 14),
    "bladder": (6, 6, 8, 30, 8, 6),
    "right psoas": (52, 56, 62, 60, 6, 16),
    "left psoas": (52, 56, 62, 60, 6, 16),
    "oesophagus": (38, 70, 78, 70, 12, 30),
    "couch shell": (-140, -140, -140, -140, 120, 20),
    "couch foam": (-920, -920, -920, -920, 30, 12),
    "mattress": (-880, -880, -880, -880, 60, 20),
}
CORRELATED = (
    ("subcutaneous fat", "visceral fat"),
    ("right lung", "left lung"),
    ("muscle", "right psoas", "left psoas"),
)
# common clipping windows
WINDOWS = ((-160.0, 240.0), (-160.0, 240.0), (-200.0, 300.0), (-125.0, 275.0), (-500.0, 800.0))


def draw_hounsfield(rng: np.random.Generator) -> NDArray[np.float64]:
    """Random mean and texture of each tissue, (classes, 2), for one person and phase."""
    phase = int(rng.choice(len(PHASES), p=COMMON))
    rows = np.array([HOUNSFIELD[name] for name in NAMES])
    # varying dose in all tissues with uptake
    uptake = 0.0 if phase == 0 else rng.normal(0, 0.18)
    means = rows[:, phase] + uptake * (rows[:, phase] - rows[:, 0])
    off = rng.standard_normal(len(NAMES))
    for group in CORRELATED:
        off[[NAMES.index(name) for name in group]] = off[NAMES.index(group[0])]
    means = means + off * rows[:, 4]
    for right, left in (
        ("right renal cortex", "left renal cortex"),
        ("right renal medulla", "left renal medulla"),
    ):
        means[NAMES.index(left)] = means[NAMES.index(right)] + rng.normal(0, 4)
    if rng.random() < 0.25:  # fatty liver
        means[NAMES.index("liver")] -= rng.uniform(15, 60)
    if rng.random() < 0.25:  # oral contrast agent
        for name in ("stomach fluid", "bowel fluid", "colon content"):
            if rng.random() < 0.6:
                means[NAMES.index(name)] = rng.uniform(120, 400)
    return np.stack([means, rows[:, 5]], 1)


def draw_window(rng: np.random.Generator) -> tuple[float, float]:
    """Random clipping window; often none."""
    if rng.random() < 0.4:
        return (-1024.0, 3000.0)
    if rng.random() < 0.3:
        return (float(rng.uniform(-1000, -100)), float(rng.uniform(180, 1200)))
    return WINDOWS[int(rng.integers(len(WINDOWS)))]


def scan(
    classes: Tensor,
    hounsfield: NDArray[np.float64],
    window: tuple[float, float],
    rng: np.random.Generator,
) -> Tensor:
    """Generate a CT image (1, 1, D, H, W) in [0, 1], scaled as scans are in
    `registration.intensity`.

    Parameters
    ----------
    classes : Tensor (8, D, H, W), uint8
        Classes of the eighths of each voxel.
    hounsfield : (classes, 2) array
        From `draw_hounsfield`.
    window : (low, high)
    rng : numpy.random.Generator
    """
    device = classes.device
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    means, textures = torch.as_tensor(hounsfield.T.copy(), dtype=torch.float32, device=device)
    size, count = classes.shape[1:], classes.shape[0]
    image = torch.zeros(classes[0].numel(), device=device)
    for part in classes:
        image += means.index_select(0, part.flatten().int())
    image = (image / count).view(1, 1, *size)
    rough = textures.index_select(0, classes[0].flatten().int()).view(image.shape)
    image += rough * torch.randn(image.shape, generator=generator, device=device) / count**0.5
    if rng.random() < 0.35:  # thick slices
        thick = int(rng.integers(2, 4))
        image = F.avg_pool3d(
            image, (1, 1, 2 * (thick // 2) + 1), 1, (0, 0, thick // 2), count_include_pad=False
        )
    noise = torch.randn(image.shape, generator=generator, device=device)
    if rng.random() < 0.6:  # noise of a soft kernel is coarser
        noise = 2.2 * F.avg_pool3d(noise, (3, 3, 1), 1, (1, 1, 0), count_include_pad=False)
    image += float(np.exp(rng.uniform(np.log(3), np.log(28)))) * noise
    return to_unit(image.clamp_(max(window[0], -1024.0), window[1]))


def to_unit(image: Tensor) -> Tensor:
    """Scale to [0, 1]: the minimum becomes 0, the 99.9th percentile of the foreground 1."""
    low, high = image.min(), image.max()
    content = image[image > low + 0.05 * (high - low)]
    if content.numel() > 1000:
        high = torch.kthvalue(content, int(content.numel() * 0.999)).values
    return ((image - low) / (high - low).clamp_min(1e-3)).clamp_(0, 1)
