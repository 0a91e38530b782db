"""Synthetic training pairs from label maps and random shapes.

Hoffmann et al. 2022, 2024: intensities come from random Gaussian mixtures, so the trained weights
do not depend on a scanner, and no scan of a person is needed. Everything is a pure function of the
settings, a seed and the type of device: small random arrays come from numpy and are the same
everywhere, voxel noise is generated on the device.

L labels, D H W space; "fine" is the grid of half the spacing, on which images are generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.io import read_image
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.known_motion import motion_of_drawn
from napari_shmoareg.training.synthesis_settings import SynthesisSettings


@dataclass(frozen=True, eq=False)
class Subject:
    """A label map prepared for sampling.

    Attributes
    ----------
    classes : Tensor (I, J, K), uint8
        Row indices of the tables below; 0 is the background.
    to_index : (4, 4) array
        Affine from the common frame (mm, centre of the anatomy at 0) to voxel indices of `classes`.
    brain : (N,) array of bool
        Classes that remain when the rest of the head is removed, and that count in the overlap.
    groups : (N,) array of int
        Classes of one group get the same random contrast (left and right of a structure).
    priors : (N, 4) array or None
        Mean and spread of a class's mean intensity, mean and spread of its spread, in 0-255.
    labels : (N,) array of int or None
        Overlap label of each class, 0 for none. None: each class of the brain is a label.
    """

    classes: Tensor
    to_index: np.ndarray
    brain: np.ndarray
    groups: np.ndarray
    priors: np.ndarray | None = None
    labels: np.ndarray | None = None

    def to(self, device: str | torch.device) -> Subject:
        """The subject with its classes on a device."""
        classes = self.classes.to(device)
        return self if classes is self.classes else replace(self, classes=classes)


def align_subjects(
    maps: Sequence[Volume],
    *,
    outside: Sequence[int] = (),
    groups: dict[int, int] | None = None,
    priors: dict[int, tuple[float, float, float, float]] | None = None,
) -> list[Subject]:
    """Align label maps in one frame, by the affine that best matches the centroids of their labels.

    Parameters
    ----------
    maps : sequence of Volume
        Label maps with the same meaning of labels.
    outside : sequence of int
        Labels outside the brain.
    groups, priors : dict, optional
        Per label; see `Subject`.

    Raises
    ------
    InputError
        If there is no map, or two share fewer than four labels.
    """
    if not maps:
        raise InputError("No label maps were given; at least one is needed.")
    values = sorted({value for volume in maps for value in volume.labels})
    if len(values) > 255:
        raise InputError(f"The label maps have {len(values)} labels; at most 255 are supported.")
    table = np.zeros(max(values) + 1, dtype=np.uint8)
    table[values] = np.arange(1, len(values) + 1)
    labels = np.array([0, *values])
    inside = ~np.isin(labels, [*outside, 0])
    group = np.array([0, *((groups or {}).get(v, v) for v in values)])
    group = np.unique(group, return_inverse=True)[1]
    prior = None
    if priors is not None and set(values) <= set(priors):
        prior = np.array([(0.0, 0.0, 0.0, 0.0), *(priors[v] for v in values)])

    subjects: list[Subject] = []
    frame: np.ndarray | None = None
    for volume in maps:
        grid = volume.grid.canonical()
        classes = table[np.maximum(_canonical_values(volume), 0)]
        centres = _centroids(classes, len(labels), inside)
        world = grid.to_world(centres)
        if frame is None:
            frame = world - np.nanmean(world, axis=0)
        shared = np.isfinite(world[:, 0]) & np.isfinite(frame[:, 0])
        if shared.sum() < 4:
            raise InputError(
                f"'{volume.name}' shares {int(shared.sum())} labels with the first map; at least 4"
                " are needed."
            )
        source = np.c_[frame[shared], np.ones(shared.sum())]
        solution = np.linalg.lstsq(source, world[shared], rcond=None)[0]
        to_world = np.eye(4)
        to_world[:3] = solution.T
        tensor = torch.from_numpy(np.ascontiguousarray(classes))
        subjects.append(Subject(tensor, grid.inverse @ to_world, inside, group, prior))
    return subjects


def random_shapes(
    shape: Sequence[int],
    spacing: float,
    rng: np.random.Generator,
    num_classes: int = 14,
    device: str | torch.device = "cpu",
) -> Subject:
    """Make smooth random regions that fill the field of view, partly with background."""
    knots = [max(3, round(n / rng.uniform(6, 16)) + 1) for n in shape]
    noise = torch.as_tensor(
        rng.standard_normal((1, num_classes, *knots)), dtype=torch.float32, device=device
    )
    smooth = F.interpolate(noise, size=tuple(shape), mode="trilinear", align_corners=True)[0]
    classes = (smooth.argmax(0) + 1).to(torch.uint8)
    if rng.random() < 0.7:  # an object in air: everything outside an irregular ball is background
        axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
        radius = sum(
            a.view([-1 if i == c else 1 for i in range(3)]) ** 2 for c, a in enumerate(axes)
        )
        classes[radius + 0.15 * smooth[0] > rng.uniform(0.5, 0.9)] = 0
    to_index = np.diag([1 / spacing, 1 / spacing, 1 / spacing, 1.0])
    to_index[:3, 3] = (np.array(shape) - 1) / 2
    everything = np.arange(num_classes + 1) > 0
    return Subject(classes, to_index, everything, np.arange(num_classes + 1))


def _canonical_values(volume: Volume) -> np.ndarray:
    order, flip = volume.grid.axes_to_ras()
    values = np.transpose(volume.values, order)
    return values[tuple(slice(None, None, -1 if back else None) for back in flip)]


def _centroids(classes: np.ndarray, count: int, selected: np.ndarray) -> np.ndarray:
    """Mean voxel index of each selected class, (count, 3); NaN if it does not occur."""
    centres = np.full((count, 3), np.nan)
    flat = classes.ravel()
    size = np.bincount(flat, minlength=count)
    for axis in range(3):
        index = np.broadcast_to(
            np.arange(classes.shape[axis], dtype=np.float64).reshape(
                [-1 if a == axis else 1 for a in range(3)]
            ),
            classes.shape,
        )
        total = np.bincount(flat, weights=index.ravel(), minlength=count)
        present = selected & (size > 0)
        centres[present, axis] = total[present] / size[present]
    return centres


class SyntheticPairs(Sequence[Conformed]):
    """An endless sequence of synthetic pairs: item i is always the same, and nothing is cached.

    Parameters
    ----------
    subjects : sequence of Subject
        If empty, all pairs show random shapes or torsos.
    drawing : SynthesisSettings or sequence of (int, SynthesisSettings)
        With several, each applies from its item index on, such as coarse grids first.
    seed : int
    length : int
        Length of the sequence; one epoch.
    device : str or torch.device
        Device of the pairs; the label maps are moved there once.
    motion : bool
        Add the true motion (`Conformed.motion`) of pairs that show one subject or one set of
        shapes; everything else stays the same.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        drawing: SynthesisSettings | Sequence[tuple[int, SynthesisSettings]] | None = None,
        *,
        seed: int = 0,
        length: int = 1_000_000,
        device: str | torch.device = "cpu",
        motion: bool = False,
    ) -> None:
        self.motion = motion
        self.subjects = [subject.to(device) for subject in subjects]
        self.phases = (
            list(drawing)
            if isinstance(drawing, Sequence)
            else [(0, drawing or SynthesisSettings())]
        )
        self.seed, self.length, self.device = seed, length, device

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Conformed:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        drawing = [drawing for first, drawing in self.phases if first <= index][-1]
        return draw_pair(self.subjects, drawing, rng, self.device, motion=self.motion)

    def names_of(self, index: int) -> tuple[str, str]:
        """Names of the images of a pair, in place of those of scans."""
        return f"{index}-moving", f"{index}-fixed"

    def pair_name(self, index: int) -> str:
        """The pair, as text."""
        return f"synthetic pair {index}"


def draw_pair(
    subjects: Sequence[Subject],
    drawing: SynthesisSettings,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
    *,
    motion: bool = False,
) -> Conformed:
    """Generate two images in [0, 1] with L label fractions.

    Returns
    -------
    Conformed
        On the device, without a way back to scans (`pair` is None); labels (1, L, D, H, W). With
        `motion`, and if both images show one subject, the true motion, known where the fixed image
        is not background.
    """
    if drawing.torso > 0 and rng.random() < drawing.torso:
        # imported here, because it imports this module
        from napari_shmoareg.training.torso.drawing import draw_torso_pair

        return draw_torso_pair(drawing, rng, device)
    shape, spacing, shift = _view(drawing, rng)
    from_shapes = not subjects or rng.random() < drawing.shapes
    if from_shapes:
        first = second = random_shapes(shape, spacing, rng, device=device)
    else:
        same = len(subjects) == 1 or rng.random() < drawing.same_subject
        pick = (
            [rng.integers(len(subjects))] * 2
            if same
            else rng.choice(len(subjects), 2, replace=False)
        )
        first, second = (subjects[int(i)] for i in pick)
    warp_std = drawing.same_warp if first is second else drawing.warp
    if from_shapes:  # shapes fill the field of view already
        shift = min(shift, drawing.pose_shift)
    pose = _rigid(rng, drawing.pose_angle, drawing.pose_scale, shift)
    posed = [
        _labels_of(
            subject.to(device),
            drawing,
            shape,
            spacing,
            pose @ _rigid(rng, drawing.angle, drawing.scale, drawing.shift),
            warp_std,
            rng,
        )
        for subject in (first, second)
    ]
    maps, poses = [subject.classes for subject in posed], [subject.pose for subject in posed]
    warps = [subject.warp for subject in posed] if motion and first is second else []
    del posed  # frees two fine fields
    if not from_shapes and rng.random() < drawing.stripped:
        keep = torch.as_tensor(first.brain, device=device)
        maps = [torch.where(keep[m.long()], m, 0) for m in maps]
    contrasts = [_contrast(first, drawing, from_shapes, rng)]
    contrasts.append(
        contrasts[0]
        if rng.random() < drawing.same_contrast
        else _contrast(first, drawing, from_shapes, rng)
    )
    images = [
        _image(m, contrast, drawing, rng) for m, contrast in zip(maps, contrasts, strict=True)
    ]
    shown = np.intersect1d(*(torch.unique(m).cpu().numpy() for m in maps))
    shown = shown[(shown > 0) & first.brain[shown]]
    chosen = rng.choice(shown, min(drawing.labels, len(shown)), replace=False)
    moving_labels, fixed_labels = (_shares(m, chosen) for m in maps)
    grid = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    visible = [F.avg_pool3d((m > 0).float()[None, None], 2) > 0.5 for m in maps] if warps else []
    true = motion_of_drawn(warps, poses, visible, spacing) if warps else None
    return Conformed(
        moving=images[0],
        fixed=images[1],
        grid=grid,
        affine=np.eye(4),
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        motion=true,
    )


class _PosedSubject(NamedTuple):
    """Classes (2D, 2H, 2W) of a subject on the fine grid, and its mapping pose (x + warp(x)), in
    mm.
    """

    classes: Tensor
    warp: Tensor
    pose: np.ndarray


def _view(
    drawing: SynthesisSettings, rng: np.random.Generator
) -> tuple[tuple[int, int, int], float, float]:
    """Shape and spacing (mm) of a pair's grid, and its largest offset (mm) from the anatomy's
    centre.
    """
    close = drawing.close > 0 and rng.random() < drawing.close
    longest = int(rng.integers(drawing.size[0], drawing.size[1] + 1))
    if close:
        spacing, shift = rng.uniform(*drawing.close_spacing), drawing.close_shift
        extent = longest * spacing * rng.permutation([1.0, *rng.uniform(0.75, 1, 2)])
    else:
        extent, shift = (
            np.array([rng.uniform(*limits) for limits in drawing.extent]),
            drawing.pose_shift,
        )
        spacing = float(extent.max() / longest)
    i, j, k = (max(8, round(length / spacing)) for length in extent)
    return (i, j, k), spacing, shift


def _labels_of(
    subject: Subject,
    drawing: SynthesisSettings,
    coarse: tuple[int, int, int],
    spacing: float,
    pose: np.ndarray,
    warp_std: float,
    rng: np.random.Generator,
) -> _PosedSubject:
    """Sample a posed and deformed subject on the fine grid: classes, uint8, on the subject's
    device.
    """
    shape, device = tuple(2 * n for n in coarse), subject.classes.device
    axes = [
        (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * (spacing / 2)
        for n in shape
    ]
    points = (
        smooth_noise(shape, rng.uniform(*drawing.warp_length) / (spacing / 2), 3, rng, device)
        * warp_std
    )
    # read element by element
    matrix = torch.as_tensor(subject.to_index @ pose, dtype=torch.float32, device="cpu")
    x, y, z = (points[c] + axes[c].view([-1 if a == c else 1 for a in range(3)]) for c in range(3))
    flat = torch.zeros(shape, dtype=torch.int64, device=device)
    inside = torch.ones(shape, dtype=torch.bool, device=device)
    for c, n in enumerate(subject.classes.shape):
        index = (
            (matrix[c, 0] * x + matrix[c, 1] * y).add_(matrix[c, 2] * z).add_(matrix[c, 3]).round_()
        )
        inside &= (index >= 0) & (index < n)
        flat = flat * n + index.clamp_(0, n - 1).long()
    classes = torch.where(
        inside, subject.classes.flatten()[flat], torch.zeros((), dtype=torch.uint8, device=device)
    )
    return _PosedSubject(classes, points, pose)


def _contrast(
    subject: Subject, drawing: SynthesisSettings, from_shapes: bool, rng: np.random.Generator
) -> np.ndarray:
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


def _image(
    classes: Tensor, contrast: np.ndarray, drawing: SynthesisSettings, rng: np.random.Generator
) -> Tensor:
    """Generate an image (1, 1, D, H, W) in [0, 1] from fine classes (2D, 2H, 2W)."""
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
    image = (
        image
        * torch.exp(
            drawing.bias * smooth_noise(image.shape[2:], rng.uniform(12, 40), 1, rng, device)
        )[None]
    )
    noise = torch.randn(image.shape, generator=generator, device=device)
    image = image + rng.uniform(0, drawing.noise) * noise * (image > 0.01)
    image = image.clamp_min_(0)
    top = torch.kthvalue(image.flatten(), int(image.numel() * 0.999)).values.clamp_min(1e-3)
    return (image / top).clamp_(0, 1) ** float(np.exp(rng.normal(0, drawing.gamma)))


def _shares(classes: Tensor, chosen: np.ndarray) -> Tensor:
    """Fractions (1, L, D, H, W) of each voxel in the chosen classes."""
    masks = torch.stack([classes == int(c) for c in chosen]) if len(chosen) else classes[None] > 0
    return F.avg_pool3d(masks[None].float(), 2)


def smooth_noise(
    shape: Sequence[int],
    length: float,
    channels: int,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Smooth noise (channels, *shape) of unit variance at its knots, which are `length` voxels
    apart.
    """
    knots = [max(2, round(n / length) + 1) for n in shape]
    coarse = torch.as_tensor(
        rng.standard_normal((1, channels, *knots)), dtype=torch.float32, device=device
    )
    middle = [min(n, 4 * k) for n, k in zip(shape, knots, strict=True)]
    smooth = F.avg_pool3d(
        F.interpolate(coarse, size=middle, mode="trilinear", align_corners=True),
        3,
        1,
        1,
        count_include_pad=False,
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


EXTRACEREBRAL = 500  # FreeSurfer-style codes from this one on are outside the brain
PRIORS = "labels_classes_priors"


def read_label_maps(folder: str | Path) -> list[Volume]:
    """Read the label maps ``training_seg_*`` of a folder, or else all its NIfTI files, by name.

    Raises
    ------
    InputError
        If the folder is missing or has none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"A folder of label maps was expected, but there is no folder '{folder}'.")
    found = sorted(folder.glob("training_seg_*.nii*")) or sorted(folder.glob("*.nii*"))
    if not found:
        raise InputError(f"The folder '{folder}' contains no label map (.nii or .nii.gz).")
    return [read_image(path, labels=True) for path in found]


def read_subjects(folder: str | Path) -> list[Subject]:
    """Read the label maps of a folder into one frame, with T1 intensity priors if the folder has
    them.

    Labels from 500 on are outside the brain. Priors are the arrays of SynthSeg in the subfolder
    ``labels_classes_priors``: the class of each label, and for each class the mean and spread of
    its mean and of its spread, in 0-255.
    """
    maps = read_label_maps(folder)
    outside = sorted({v for volume in maps for v in volume.labels if v >= EXTRACEREBRAL})
    groups, priors = _read_priors(Path(folder) / PRIORS)
    return align_subjects(maps, outside=outside, groups=groups, priors=priors)


def _read_priors(
    folder: Path,
) -> tuple[dict[int, int] | None, dict[int, tuple[float, float, float, float]] | None]:
    if not folder.is_dir():
        return None, None
    names = (
        "generation_labels",
        "generation_classes_contrast_specific",
        "prior_means_t1",
        "prior_stds_t1",
    )
    try:
        labels, classes, means, spreads = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in names
        )
    except (OSError, ValueError) as problem:
        raise InputError(
            f"The priors in '{folder}' cannot be read ({problem}); expected the arrays"
            f" {', '.join(names)} as .npy. Fix them, or remove the folder to work without"
            " priors."
        ) from problem
    groups = {int(label): int(c) for label, c in zip(labels, classes, strict=True)}
    priors = {
        label: (float(means[0, c]), float(means[1, c]), float(spreads[0, c]), float(spreads[1, c]))
        for label, c in groups.items()
    }
    return groups, priors
