"""Subjects that training pairs are drawn from: label maps in one frame, and random shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.geometry import InputError, Volume


@dataclass(frozen=True, eq=False)
class Subject:
    """A label map ready to be sampled.

    Attributes
    ----------
    classes : Tensor (I, J, K), uint8
        Row numbers of the tables below; 0 is the background.
    to_index : (4, 4) array
        Position in the common frame (mm, the middle of the anatomy at 0) to voxel index of `classes`.
    brain : (N,) array of bool
        Which classes remain when the rest of the head is removed, and count in the overlap.
    groups : (N,) array of int
        Classes of one group get the same random contrast (left and right of a structure).
    priors : (N, 4) array or None
        Mean and spread of a class's mean intensity, mean and spread of its spread, in 0-255.
    labels : (N,) array of int or None
        Which label each class counts for in the overlap, 0 for none; None: each class of the brain is one.
    """

    classes: Tensor
    to_index: np.ndarray
    brain: np.ndarray
    groups: np.ndarray
    priors: np.ndarray | None = None
    labels: np.ndarray | None = None

    def to(self, device: str | torch.device) -> Subject:
        """The subject with its classes on a device; itself if they are there."""
        there = self.classes.to(device)
        return self if there is self.classes else replace(self, classes=there)


def align_subjects(
    maps: Sequence[Volume],
    *,
    outside: Sequence[int] = (),
    groups: dict[int, int] | None = None,
    priors: dict[int, tuple[float, float, float, float]] | None = None,
) -> list[Subject]:
    """Bring label maps into one frame, by the affine that best matches the centroids of their labels.

    Parameters
    ----------
    maps : sequence of Volume
        Label maps with the same meaning of labels.
    outside : sequence of int
        Labels of what is not brain.
    groups, priors : dict, optional
        Per label; see `Subject`.

    Raises
    ------
    InputError
        If there is no map, or two share fewer than four labels.
    """
    if not maps:
        raise InputError("No label maps were given to draw from; at least one is needed.")
    values = sorted({value for volume in maps for value in volume.labels})
    if len(values) > 255:
        raise InputError(f"The label maps hold {len(values)} labels; at most 255 can be drawn from.")
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
                f"'{volume.name}' shares {int(shared.sum())} labels with the first map; at least 4 are needed."
            )
        source = np.c_[frame[shared], np.ones(shared.sum())]
        solution = np.linalg.lstsq(source, world[shared], rcond=None)[0]
        to_world = np.eye(4)
        to_world[:3] = solution.T
        held = torch.from_numpy(np.ascontiguousarray(classes))
        subjects.append(Subject(held, grid.inverse @ to_world, inside, group, prior))
    return subjects


def random_shapes(
    shape: Sequence[int],
    spacing: float,
    rng: np.random.Generator,
    num_classes: int = 14,
    device: str | torch.device = "cpu",
) -> Subject:
    """Smooth random regions that fill the field of view, some of it background."""
    knots = [max(3, round(n / rng.uniform(6, 16)) + 1) for n in shape]
    noise = torch.as_tensor(rng.standard_normal((1, num_classes, *knots)), dtype=torch.float32, device=device)
    smooth = F.interpolate(noise, size=tuple(shape), mode="trilinear", align_corners=True)[0]
    classes = (smooth.argmax(0) + 1).to(torch.uint8)
    if rng.random() < 0.7:  # an object in air: everything beyond a lumpy ball is background
        axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
        radius = sum(a.view([-1 if i == c else 1 for i in range(3)]) ** 2 for c, a in enumerate(axes))
        classes[radius + 0.15 * smooth[0] > rng.uniform(0.5, 0.9)] = 0
    to_index = np.diag([1 / spacing, 1 / spacing, 1 / spacing, 1.0])
    to_index[:3, 3] = (np.array(shape) - 1) / 2
    everything = np.arange(num_classes + 1) > 0
    return Subject(classes, to_index, everything, np.arange(num_classes + 1))


def _canonical_values(volume: Volume) -> np.ndarray:
    order, flip = volume.grid.axes_to_ras()
    values = np.transpose(volume.values, order)
    return values[tuple(slice(None, None, -1 if back else None) for back in flip)]


def _centroids(classes: np.ndarray, count: int, wanted: np.ndarray) -> np.ndarray:
    """Mean voxel index of each wanted class, (count, 3), NaN where it does not occur."""
    centres = np.full((count, 3), np.nan)
    flat = classes.ravel()
    size = np.bincount(flat, minlength=count)
    for axis in range(3):
        index = np.broadcast_to(
            np.arange(classes.shape[axis], dtype=np.float64).reshape([-1 if a == axis else 1 for a in range(3)]),
            classes.shape,
        )
        total = np.bincount(flat, weights=index.ravel(), minlength=count)
        known = wanted & (size > 0)
        centres[known, axis] = total[known] / size[known]
    return centres
