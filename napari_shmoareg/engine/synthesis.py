"""Training pairs drawn from label maps and from random shapes.

Hoffmann et al. 2022, 2024: intensities come from random Gaussian mixtures, so weights learned
from them are not tied to a scanner, and no scan of a person is needed.  Everything here is a
pure function of the settings, a seed and the kind of device: what is small is drawn in numpy and is the
same everywhere, the noise of single voxels is drawn on the device.

L labels, D H W space; "fine" is the grid of half the spacing, where images are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.engine.drawing import Drawing
from napari_shmoareg.engine.known_motion import motion_of_drawn
from napari_shmoareg.engine.subjects import Subject, random_shapes
from napari_shmoareg.geometry import Grid


class DrawnPairs(Sequence[Conformed]):
    """An endless supply of pairs: item i is always the same, and nothing is kept.

    Parameters
    ----------
    subjects : sequence of Subject
        May be empty: then all pairs show random shapes, or torsos.
    drawing : Drawing or sequence of (int, Drawing)
        With several, each holds from that item on: coarse grids first, where a step is cheap.
    seed : int
    length : int
        What `len` says; an epoch.
    device : str or torch.device
        Where pairs are drawn and stay; the label maps are brought there once.
    motion : bool
        Give the true motion (`Conformed.motion`) of pairs that show one subject, or one set of shapes; it changes
        nothing else.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        drawing: Drawing | Sequence[tuple[int, Drawing]] | None = None,
        *,
        seed: int = 0,
        length: int = 1_000_000,
        device: str | torch.device = "cpu",
        motion: bool = False,
    ) -> None:
        self.motion = motion
        self.subjects = [subject.to(device) for subject in subjects]
        self.phases = list(drawing) if isinstance(drawing, Sequence) else [(0, drawing or Drawing())]
        self.seed, self.length, self.device = seed, length, device

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Conformed:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        drawing = [drawing for first, drawing in self.phases if first <= index][-1]
        return draw_pair(self.subjects, drawing, rng, self.device, motion=self.motion)


def draw_pair(
    subjects: Sequence[Subject],
    drawing: Drawing,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
    *,
    motion: bool = False,
) -> Conformed:
    """Two images, in [0, 1], with L of their labels as shares of each voxel.

    Returns
    -------
    Conformed
        On the device, without a way back to scans (`pair` is None); labels (1, L, D, H, W).  With `motion` the true
        one, known where the fixed image shows something, if both images show one subject.
    """
    if drawing.torso > 0 and rng.random() < drawing.torso:
        from napari_shmoareg.engine.torso.pairs import draw_torso_pair  # which takes its parts from here

        return draw_torso_pair(drawing, rng, device)
    shape, spacing, shift = _view(drawing, rng)
    from_shapes = not subjects or rng.random() < drawing.shapes
    if from_shapes:
        first = second = random_shapes(shape, spacing, rng, device=device)
    else:
        alone = len(subjects) == 1 or rng.random() < drawing.same_subject
        pick = [rng.integers(len(subjects))] * 2 if alone else rng.choice(len(subjects), 2, replace=False)
        first, second = (subjects[int(i)] for i in pick)
    wobble = drawing.same_warp if first is second else drawing.warp
    if from_shapes:  # they fill the view already: no need to look for them
        shift = min(shift, drawing.pose_shift)
    pose = _rigid(rng, drawing.pose_angle, drawing.pose_scale, shift)
    placed = [
        _labels_of(
            subject.to(device),
            drawing,
            shape,
            spacing,
            pose @ _rigid(rng, drawing.angle, drawing.scale, drawing.shift),
            wobble,
            rng,
        )
        for subject in (first, second)
    ]
    maps, poses = [one.classes for one in placed], [one.pose for one in placed]
    warps = [one.warp for one in placed] if motion and first is second else []
    del placed  # two fine fields, which are needed for nothing else
    if not from_shapes and rng.random() < drawing.stripped:
        keep = torch.as_tensor(first.brain, device=device)
        maps = [torch.where(keep[m.long()], m, 0) for m in maps]
    contrasts = [_contrast(first, drawing, from_shapes, rng)]
    contrasts.append(
        contrasts[0] if rng.random() < drawing.same_contrast else _contrast(first, drawing, from_shapes, rng)
    )
    images = [_image(m, contrast, drawing, rng) for m, contrast in zip(maps, contrasts, strict=True)]
    shown = np.intersect1d(*(torch.unique(m).cpu().numpy() for m in maps))
    shown = shown[(shown > 0) & first.brain[shown]]
    chosen = rng.choice(shown, min(drawing.labels, len(shown)), replace=False)
    moving_labels, fixed_labels = (_shares(m, chosen) for m in maps)
    grid = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    shows = [F.avg_pool3d((m > 0).float()[None, None], 2) > 0.5 for m in maps] if warps else []
    true = motion_of_drawn(warps, poses, shows, spacing) if warps else None
    return Conformed(
        moving=images[0],
        fixed=images[1],
        grid=grid,
        affine=np.eye(4),
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        motion=true,
    )


class _Placed(NamedTuple):
    """Classes (2D, 2H, 2W) of a subject on the fine grid, and how it was placed: pose (x + warp(x)), in mm."""

    classes: Tensor
    warp: Tensor
    pose: np.ndarray


def _view(drawing: Drawing, rng: np.random.Generator) -> tuple[tuple[int, int, int], float, float]:
    """Shape and spacing (mm) of a pair's grid, and how far (mm) it may look off the middle of the anatomy."""
    close = drawing.close > 0 and rng.random() < drawing.close
    longest = int(rng.integers(drawing.size[0], drawing.size[1] + 1))
    if close:
        spacing, shift = rng.uniform(*drawing.close_spacing), drawing.close_shift
        extent = longest * spacing * rng.permutation([1.0, *rng.uniform(0.75, 1, 2)])
    else:
        extent, shift = np.array([rng.uniform(*limits) for limits in drawing.extent]), drawing.pose_shift
        spacing = float(extent.max() / longest)
    i, j, k = (max(8, round(length / spacing)) for length in extent)
    return (i, j, k), spacing, shift


def _labels_of(
    subject: Subject,
    drawing: Drawing,
    coarse: tuple[int, int, int],
    spacing: float,
    pose: np.ndarray,
    wobble: float,
    rng: np.random.Generator,
) -> _Placed:
    """Class numbers of a posed and deformed subject on the fine grid, uint8, on the subject's device."""
    shape, device = tuple(2 * n for n in coarse), subject.classes.device
    axes = [(torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * (spacing / 2) for n in shape]
    points = smooth_noise(shape, rng.uniform(*drawing.warp_length) / (spacing / 2), 3, rng, device) * wobble
    matrix = torch.as_tensor(subject.to_index @ pose, dtype=torch.float32, device="cpu")  # read number by number
    x, y, z = (points[c] + axes[c].view([-1 if a == c else 1 for a in range(3)]) for c in range(3))
    flat = torch.zeros(shape, dtype=torch.int64, device=device)
    inside = torch.ones(shape, dtype=torch.bool, device=device)
    for c, n in enumerate(subject.classes.shape):
        index = (matrix[c, 0] * x + matrix[c, 1] * y).add_(matrix[c, 2] * z).add_(matrix[c, 3]).round_()
        inside &= (index >= 0) & (index < n)
        flat = flat * n + index.clamp_(0, n - 1).long()
    classes = torch.where(inside, subject.classes.flatten()[flat], torch.zeros((), dtype=torch.uint8, device=device))
    return _Placed(classes, points, pose)


def _contrast(subject: Subject, drawing: Drawing, from_shapes: bool, rng: np.random.Generator) -> np.ndarray:
    """Mean and spread of the intensity of each class, (classes, 2), in [0, 1]."""
    if not from_shapes and subject.priors is not None and rng.random() < drawing.prior:
        means = rng.normal(subject.priors[:, 0], subject.priors[:, 1])
        spreads = rng.normal(subject.priors[:, 2], subject.priors[:, 3])
        table = np.stack([means, spreads], 1).clip(0) / 255
        table[0] = 0
        return table
    groups = subject.groups
    means = rng.uniform(0.05, 1.0, groups.max() + 1)[groups]
    spreads = rng.uniform(0.01, 0.08, groups.max() + 1)[groups]
    table = np.stack([means, spreads], 1)
    table[0] = (rng.uniform(0, 0.3), 0.02) if rng.random() < 0.2 else (0, 0)
    return table


def _image(classes: Tensor, contrast: np.ndarray, drawing: Drawing, rng: np.random.Generator) -> Tensor:
    """Fine classes (2D, 2H, 2W) to an image (1, 1, D, H, W) in [0, 1]."""
    device = classes.device
    table = torch.as_tensor(contrast, dtype=torch.float32, device=device)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    index = classes.long()
    noise = torch.randn(classes.shape, generator=generator, device=device)
    fine = table[:, 0][index].addcmul_(table[:, 1][index], noise)
    image = F.avg_pool3d(fine[None, None], 2)
    if rng.random() < 0.3:  # a scan of lower resolution along one axis
        axis, factor = int(rng.integers(3)), int(rng.integers(2, 4))
        kernel, pad = [1, 1, 1], [0, 0, 0]
        kernel[axis], pad[axis] = 2 * (factor // 2) + 1, factor // 2
        image = F.avg_pool3d(image, kernel, stride=1, padding=pad, count_include_pad=False)
    image = image * torch.exp(drawing.bias * smooth_noise(image.shape[2:], rng.uniform(12, 40), 1, rng, device))[None]
    noise = torch.randn(image.shape, generator=generator, device=device)
    image = image + rng.uniform(0, drawing.noise) * noise * (image > 0.01)
    image = image.clamp_min_(0)
    top = torch.kthvalue(image.flatten(), int(image.numel() * 0.999)).values.clamp_min(1e-3)
    return (image / top).clamp_(0, 1) ** float(np.exp(rng.normal(0, drawing.gamma)))


def _shares(classes: Tensor, chosen: np.ndarray) -> Tensor:
    """(1, L, D, H, W): how much of each voxel belongs to each chosen class."""
    masks = torch.stack([classes == int(c) for c in chosen]) if len(chosen) else classes[None] > 0
    return F.avg_pool3d(masks[None].float(), 2)


def smooth_noise(
    shape: Sequence[int],
    length: float,
    channels: int,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Smooth noise of unit variance at its knots, (channels, *shape); `length` is voxels between knots."""
    knots = [max(2, round(n / length) + 1) for n in shape]
    coarse = torch.as_tensor(rng.standard_normal((1, channels, *knots)), dtype=torch.float32, device=device)
    middle = [min(n, 4 * k) for n, k in zip(shape, knots, strict=True)]
    smooth = F.avg_pool3d(
        F.interpolate(coarse, size=middle, mode="trilinear", align_corners=True), 3, 1, 1, count_include_pad=False
    )
    return F.interpolate(smooth, size=tuple(shape), mode="trilinear", align_corners=True)[0]


def _rigid(rng: np.random.Generator, angle: float, scale: float, shift: float) -> np.ndarray:
    """A random small affine, 4x4, in mm."""
    a, b, c = np.deg2rad(rng.uniform(-angle, angle, 3))
    matrix = np.eye(4)
    rotations = (
        np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]),
        np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]),
        np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]),
    )
    for rotation in rotations:
        matrix[:3, :3] @= rotation
    matrix[:3, :3] *= 1 + rng.uniform(-scale, scale, 3)
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix
