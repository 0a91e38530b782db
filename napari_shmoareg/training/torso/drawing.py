"""Generation of torso label maps and torso pairs.

No scan of a person is needed: all people share the layout of a standard body, with individual
proportions, organ sizes and positions, and with a breath and contents that vary over time. Organs
are smooth closed shapes and tubes, painted one after the other over the remaining fat. Voxels
outside an image are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import Grid
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.training.synthesis import (
    Subject,
    _contrast,
    _image,
    _rigid,
    _view,
    smooth_noise,
)
from napari_shmoareg.training.synthesis_settings import SynthesisSettings
from napari_shmoareg.training.torso.anatomy import (
    TOP,
    Body,
    Torso,
    draw_bones,
    draw_chest,
    draw_couch,
    draw_trunk,
)
from napari_shmoareg.training.torso.canvas import Canvas
from napari_shmoareg.training.torso.contrast import (
    CLASSES,
    COUCH,
    LABELS,
    NAMES,
    SAME_CONTRAST,
    draw_hounsfield,
    draw_window,
    scan,
)
from napari_shmoareg.training.torso.organs import (
    draw_hollow_organs,
    draw_solid_organs,
    draw_vessels,
)

__all__ = ["Torso", "draw_torso"]


def draw_torso(
    torso: Torso,
    low: Sequence[float],
    high: Sequence[float],
    spacing: float,
    device: str | torch.device = "cpu",
) -> Subject:
    """Generate the label map of a torso within a box.

    Parameters
    ----------
    torso : Torso
    low, high : 3 floats
        Corners of the box in the frame of the torso, mm.
    spacing : float
        Voxel spacing, mm.
    device : str or torch.device

    Returns
    -------
    Subject
        Class numbers as in `contrast.CLASSES`, labels as in `contrast.LABELS`, from 1.
    """
    canvas = Canvas(low, high, spacing, NAMES, np.random.default_rng([torso.seed, 7]), device)
    body = Body(torso, canvas.axes[2].cpu().numpy().astype(np.float64))
    draw_trunk(canvas, body)
    floor = draw_chest(canvas, body)
    draw_bones(canvas, body)
    draw_vessels(canvas, body)
    draw_solid_organs(canvas, body, floor)
    draw_hollow_organs(canvas, body)
    draw_couch(canvas, body)
    labels = np.array([LABELS.index(label) + 1 if label else 0 for _, label in CLASSES])
    groups = np.unique(
        [NAMES.index(SAME_CONTRAST.get(name, name)) for name in NAMES], return_inverse=True
    )[1]
    return Subject(canvas.classes, canvas.to_index, labels > 0, groups, labels=labels)


WARP_LENGTH = (45.0, 110.0)  # mm between the random displacements of a torso
MIDDLE = (-70.0, 80.0)  # range of the centre of the field of view along z, mm
ALIGNED = 0.7  # share of pairs in which an affine has equalised the sizes of two people
# minimum share of an organ that a cut image must show for the organ to be a label
MIN_SHOWN = 0.9
SHORTEST = 120.0  # minimum length of an image along the body, mm, if the field of view has it
COMMON = 0.7  # minimum share of the shorter image in the other's field of view
SLAB = 8  # slices at a time, to fit into the cache, which is several times as fast
# offsets of the eighths, in voxels
EIGHTHS = [np.array([i, j, k]) for i in (-0.25, 0.25) for j in (-0.25, 0.25) for k in (-0.25, 0.25)]
FINEST, COARSEST = 1.6, 6.0  # spacing of a torso's label map, mm


def draw_torso_pair(
    drawing: SynthesisSettings, rng: np.random.Generator, device: str | torch.device = "cpu"
) -> Conformed:
    """Generate two torso images in [0, 1] with L label fractions of organs.

    Organs that are cut off in one of the images are not among the labels, because the rest has no
    counterpart.

    Returns
    -------
    Conformed
        As from `draw_pair`.
    """
    view = replace(drawing, extent=drawing.torso_extent, close_spacing=drawing.torso_close_spacing)
    shape, spacing, shift = _view(view, rng)
    first = Torso.random(rng)
    second = first.at_another_time(rng) if rng.random() < drawing.torso_same else Torso.random(rng)
    middle = np.eye(4)
    middle[:3, 3] = (0, 0, rng.uniform(*MIDDLE))
    pose = middle @ _rigid(rng, drawing.pose_angle / 2, drawing.pose_scale, shift)
    sizes = np.array([[t.width, t.depth, t.height] for t in (first, second)])
    exponent = 1.0 if rng.random() < ALIGNED else rng.uniform(0, 0.5)
    poses = [pose, np.diag([*(sizes[1] / sizes[0]) ** exponent, 1.0]) @ pose]
    subjects, maps, cuts = [], list[Tensor](), []
    for torso, pair_pose in zip((first, second), poses, strict=True):
        own_pose = pair_pose @ _rigid(rng, drawing.angle, drawing.scale, drawing.torso_shift)
        subject = _subject(torso, own_pose, shape, spacing, drawing.torso_warp, device)
        subjects.append(subject)
        maps.append(_sample_classes(subject, shape, spacing, own_pose, drawing.torso_warp, rng))
        cuts.append(_cut(drawing, shape[2], spacing, rng))
    cuts = _align_cuts(cuts)
    images = _images(subjects[0], maps, drawing, rng)
    table = torch.as_tensor(subjects[0].labels, dtype=torch.uint8, device=device)
    labels = [table.index_select(0, m.flatten().int()).view(m.shape) for m in maps]
    shown = _common_labels(labels, cuts)
    chosen = rng.choice(shown, min(drawing.labels, len(shown)), replace=False)
    moving_labels, fixed_labels = (_shares(label, chosen) for label in labels)
    for (low, high), *both in zip(cuts, images, (moving_labels, fixed_labels), strict=True):
        for values in both:
            values[..., :low] = 0
            values[..., high:] = 0
    grid = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    return Conformed(
        moving=images[0],
        fixed=images[1],
        grid=grid,
        affine=np.eye(4),
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
    )


def _subject(
    torso: Torso,
    pose: NDArray[np.float64],
    shape: tuple[int, int, int],
    spacing: float,
    warp: float,
    device: str | torch.device,
) -> Subject:
    """Label map of a torso in the region of a posed and deformed field of view."""
    half = np.array(shape) * spacing / 2
    corners = np.stack(np.meshgrid(*((-h, h) for h in half), indexing="ij"), -1).reshape(8, 3)
    points = corners @ pose[:3, :3].T + pose[:3, 3]
    margin = 3 * warp + 2 * spacing
    most = np.array([torso.width + 100, torso.depth + 25, TOP])
    least = np.array([-torso.width - 100, -torso.depth - 110, -TOP])
    low, high = np.maximum(points.min(0) - margin, least), np.minimum(points.max(0) + margin, most)
    high = np.maximum(high, low + 4 * spacing)
    fine = float(np.clip(0.8 * spacing, FINEST, COARSEST))
    return draw_torso(torso, tuple(low), tuple(high), fine, device)


def _sample_classes(
    subject: Subject,
    shape: tuple[int, int, int],
    spacing: float,
    pose: NDArray[np.float64],
    warp: float,
    rng: np.random.Generator,
) -> Tensor:
    """Sample a posed and deformed torso: classes (8, D, H, W) in the eighths of each voxel.

    The eighths of a voxel are displaced like its centre, because the deformation is smooth over ten
    voxels or more.
    """
    device = subject.classes.device
    padded = F.pad(subject.classes, (1, 1, 1, 1, 1, 1))  # air outside
    strides = (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
    moved = smooth_noise(shape, float(rng.uniform(*WARP_LENGTH)) / spacing, 3, rng, device) * warp
    axes = [
        (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * spacing for n in shape
    ]
    matrix = subject.to_index @ pose
    found = torch.empty((8, *shape), dtype=torch.uint8, device=device)
    for first in range(0, shape[0], SLAB):
        slab = slice(first, first + SLAB)
        points = moved[:, slab]
        x, y, z = (
            points[0] + axes[0][slab].view(-1, 1, 1),
            points[1] + axes[1].view(-1, 1),
            points[2] + axes[2],
        )
        index = [
            float(a) * x + float(b) * y + float(c) * z + float(d) + 1 for a, b, c, d in matrix[:3]
        ]
        for number, eighth in enumerate(EIGHTHS):
            flat = torch.zeros_like(x)  # exact up to 2^24 voxels
            for position, offset, stride, n in zip(
                index, matrix[:3, :3] @ eighth * spacing, strides, padded.shape, strict=True
            ):
                flat += (position + float(offset)).round_().clamp_(0, n - 1).mul_(stride)
            found[number, slab] = (
                padded.flatten().index_select(0, flat.flatten().int()).view(flat.shape)
            )
    return found


def _shares(labels: Tensor, chosen: NDArray[np.int64]) -> Tensor:
    """Fractions (1, L, D, H, W) of each voxel in the chosen labels; one empty channel if there are
    none.
    """
    shares = torch.zeros(
        max(len(chosen), 1), *labels.shape[1:], dtype=torch.uint8, device=labels.device
    )
    for first in range(0, labels.shape[1], SLAB):
        slab = slice(first, first + SLAB)
        for share, number in zip(shares[:, slab], chosen, strict=False):
            for part in labels[:, slab]:
                # avoids a slow conversion
                share += (part == int(number)).view(torch.uint8)
    return shares[None].float() / len(labels)


def _fine(classes: Tensor) -> Tensor:
    """Eighths (8, D, H, W) as one map (2D, 2H, 2W)."""
    d, h, w = classes.shape[1:]
    return classes.view(2, 2, 2, d, h, w).permute(3, 0, 4, 1, 5, 2).reshape(2 * d, 2 * h, 2 * w)


def _cut(
    drawing: SynthesisSettings, slices: int, spacing: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Random first and last slice that an image shows."""
    if rng.random() >= drawing.torso_cut:
        return 0, slices
    spare = min(max(slices - round(SHORTEST / spacing), 0), slices // 2)
    kept = slices - round(float(rng.uniform(0, 1)) * spare)
    low = int(rng.integers(slices - kept + 1))
    return low, low + kept


def _align_cuts(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Shift the second range so that most of the shorter image is in the other's field of view."""
    (low, high), (start, end) = cuts
    spare = round((1 - COMMON) * min(high - low, end - start))
    moved = min(
        max(start, min(low, high - (end - start)) - spare), max(low, high - (end - start)) + spare
    )
    return [(low, high), (moved, moved + end - start)]


def _images(
    subject: Subject, maps: list[Tensor], drawing: SynthesisSettings, rng: np.random.Generator
) -> list[Tensor]:
    """Generate both images: CT, or a random contrast without a visible couch."""
    if rng.random() < drawing.prior:
        units, window = draw_hounsfield(rng), draw_window(rng)
        second = units if rng.random() < drawing.same_contrast else draw_hounsfield(rng)
        return [scan(m, table, window, rng) for m, table in zip(maps, (units, second), strict=True)]
    hidden = [NAMES.index(name) for name in COUCH]
    tables = [_contrast(subject, drawing, True, rng) for _ in maps]
    if rng.random() < drawing.same_contrast:
        tables[1] = tables[0]
    for table in tables:
        table[hidden] = table[0]
    return [_image(_fine(m), table, drawing, rng) for m, table in zip(maps, tables, strict=True)]


def _common_labels(labels: list[Tensor], cuts: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Labels that neither image cuts off; if there are none, the label that is cut off least."""
    shares = np.ones(256)
    for label, (low, high) in zip(labels, cuts, strict=True):
        total, shown = (
            torch.bincount(part.flatten().int(), minlength=256).cpu().numpy()
            for part in (label[0], label[0, ..., low:high])
        )
        shares = np.minimum(shares, shown / np.maximum(total, 1))
    shares[0] = 0
    whole = np.flatnonzero(shares >= MIN_SHOWN)
    return whole if len(whole) or not shares.max() else np.array([int(shares.argmax())])
