"""Search for the start of an alignment: all shifts under many orientations.

Ours.  Masked normalised cross-correlation (Padfield, 2012) computes, with Fourier transforms, the
correlation of two images under every shift, within the overlap of their fields of view.  It is
applied to brightness and to gradient magnitude (independent of contrast), for each of the 24
rotations that map axes to axes and, if none of these stands out, for evenly spread rotations
(super-Fibonacci, Alexa, 2022); the best candidates are then ranked by their agreement.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfftn, next_fast_len, rfftn
from scipy.ndimage import gaussian_gradient_magnitude, map_coordinates
from scipy.spatial.transform import Rotation

from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.registration.agreement import Agreement, CoarseImages, Matrix, indices

LONGEST = 28  # voxels of the images along their longest axis
CANDIDATES = 12  # with agreement, of shifts and of rotations each
CLEAR = 0.6  # score of a shift above which no other orientation is tried
# a shift this many times better than any other orientation needs no finer search
AHEAD = 1.2
SPREAD = 180  # rotations of the finer search, about 30 degrees apart
SPREAD_LONGEST = 20  # voxels of the images in it
PEAKS = 2  # per correlation
LEAST_OVERLAP = 0.25  # fraction of the smaller field of view
LEAST_COVERAGE = 1 / 3  # compared fraction of the smaller content

Array = NDArray[np.float32]


class Start(NamedTuple):
    """A candidate start of an alignment.

    Attributes
    ----------
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    turned : bool
        Whether it changes the orientation, not only the position.
    agreement : Agreement
    """

    matrix: Matrix
    turned: bool
    agreement: Agreement


def search(pair: VolumePair) -> list[Start]:
    """Return the candidates with the best agreement, best first; empty if nothing correlates.

    Other orientations are tried only if no shift alone gives a clear agreement.
    """
    images = CoarseImages.of(pair, LONGEST)
    first, *others = rotations()
    starts = _rank(images, list(_shifts(images, first)))
    straight = max((start.agreement.score for start in starts), default=0.0)
    if straight < CLEAR:
        turned = _rank(images, [each for rotation in others for each in _shifts(images, rotation)])
        if turned and straight < AHEAD * max(start.agreement.score for start in turned):
            turned += _rank(images, list(_spread(CoarseImages.of(pair, SPREAD_LONGEST))))
        starts += turned
    return sorted(starts, key=lambda start: -start.agreement.score)


def _rank(images: CoarseImages, found: list[tuple[float, Matrix, bool]]) -> list[Start]:
    """Compute the agreement of the most correlated candidates, without near duplicates."""
    found.sort(key=lambda entry: -entry[0])
    starts: list[Start] = []
    for _, matrix, turned in found:
        if len(starts) == CANDIDATES:
            break
        if any(
            np.abs(matrix - other.matrix).max() < images.fixed.grid.spacing[0] for other in starts
        ):
            continue
        agreement = images.agreement(matrix)
        if agreement.coverage >= LEAST_COVERAGE:
            starts.append(Start(matrix, turned, agreement))
    return starts


def rotations() -> list[Matrix]:
    """Return the 24 rotations (3, 3) that map axes to axes, the identity first."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return sorted(found, key=lambda matrix: -float(np.trace(matrix)))


def _shifts(images: CoarseImages, rotation: Matrix) -> Iterator[tuple[float, Matrix, bool]]:
    """Yield the best shifts under a rotation of axes: correlation, matrix, and whether rotated."""
    moving, fixed = images.moving, images.fixed
    turned = bool((rotation != np.eye(3)).any())
    values, in_view = (_turn(array, rotation) for array in (moving.values, moving.in_view))
    to_moving = _turned_index(rotation, moving.grid.shape)
    smaller = min(int(fixed.in_view.sum()), int(in_view.sum()))
    for a, b in (
        (fixed.values, values),
        (_edges(fixed.values), _edges(values)),
    ):
        correlation, count = masked_correlation(
            a, fixed.in_view, b, in_view, int(LEAST_OVERLAP * smaller)
        )
        weighted = correlation * np.sqrt(np.minimum(1, count / smaller))
        for _ in range(PEAKS):
            peak = np.unravel_index(int(weighted.argmax()), weighted.shape)
            if weighted[peak] <= 0:
                break
            offset = np.eye(4)
            offset[:3, 3] = np.array(values.shape) - 1 - np.array(peak)
            yield (
                float(weighted[peak]),
                moving.grid.affine @ to_moving @ offset @ fixed.grid.inverse,
                turned,
            )
            weighted[tuple(slice(max(0, p - 2), p + 3) for p in peak)] = -1


def _spread(images: CoarseImages) -> Iterator[tuple[float, Matrix, bool]]:
    """Yield the best shift for each of many rotations, in the format of `_shifts`."""
    moving, fixed = images.moving, images.fixed
    side = int(np.ceil(np.linalg.norm(moving.grid.shape)))
    spacing = moving.grid.spacing[0]
    index = (indices((side, side, side)) - (side - 1) / 2) * spacing
    smaller = min(int(fixed.in_view.sum()), int(moving.in_view.sum()))
    for rotation in spread_rotations(SPREAD):
        points = np.moveaxis(moving.grid.to_index(index @ rotation.T + moving.grid.centre), -1, 0)
        in_view = (
            map_coordinates(moving.in_view.astype(np.float32), points, order=0, mode="constant") > 0
        )
        values = map_coordinates(moving.values, points, order=1, mode="nearest")
        correlation, count = masked_correlation(
            fixed.values, fixed.in_view, values, in_view, int(LEAST_OVERLAP * smaller)
        )
        weighted = correlation * np.sqrt(np.minimum(1, count / smaller))
        peak = np.unravel_index(int(weighted.argmax()), weighted.shape)
        if weighted[peak] <= 0:
            continue
        to_turned = np.eye(4)
        to_turned[:3, 3] = side - 1 - np.array(peak)
        to_moving = np.eye(4)
        to_moving[:3, :3] = rotation * spacing
        to_moving[:3, 3] = moving.grid.centre - to_moving[:3, :3] @ np.full(3, (side - 1) / 2)
        yield float(weighted[peak]), to_moving @ to_turned @ fixed.grid.inverse, True


def spread_rotations(number: int) -> NDArray[np.float64]:
    """Return rotations (number, 3, 3) spread evenly over all orientations; deterministic."""
    step = np.arange(number) + 0.5
    near, far = np.sqrt(step / number), np.sqrt(1 - step / number)
    first, second = 2 * np.pi * step / np.sqrt(2.0), 2 * np.pi * step / 1.533751168755204288
    quaternions = [
        near * np.sin(first),
        near * np.cos(first),
        far * np.sin(second),
        far * np.cos(second),
    ]
    return np.asarray(Rotation.from_quat(np.stack(quaternions, axis=-1)).as_matrix())


def masked_correlation(
    fixed: Array,
    fixed_mask: NDArray[np.bool_],
    moving: Array,
    moving_mask: NDArray[np.bool_],
    least: int,
) -> tuple[Array, Array]:
    """Compute the normalised cross-correlation under every shift where both masks are set.

    Parameters
    ----------
    fixed, moving : (I, J, K) arrays
    fixed_mask, moving_mask : bool arrays of their shapes
    least : int
        Common voxels below which the correlation of a shift is -1.

    Returns
    -------
    correlation, count : arrays of shape fixed.shape + moving.shape - 1
        At index s, voxel x of the fixed image corresponds to voxel x - s + moving.shape - 1 of the
        moving image.
    """
    shape = [a + b - 1 for a, b in zip(fixed.shape, moving.shape, strict=True)]
    padded = [next_fast_len(n, real=True) for n in shape]
    back = (slice(None, None, -1),) * 3
    a = np.where(fixed_mask, fixed, 0).astype(np.float32)
    b = np.where(moving_mask, moving, 0).astype(np.float32)[back]
    masks = fixed_mask.astype(np.float32), moving_mask.astype(np.float32)[back]
    fa, faa, fm = (rfftn(v, padded) for v in (a, a * a, masks[0]))
    fb, fbb, fn = (rfftn(v, padded) for v in (b, b * b, masks[1]))
    crop = tuple(slice(n) for n in shape)
    count, sum_a, sum_b, square_a, square_b, cross = (
        irfftn(v, padded)[crop] for v in (fm * fn, fa * fn, fm * fb, faa * fn, fm * fbb, fa * fb)
    )
    count = np.rint(count)
    n = np.maximum(count, 1)
    spread_a = np.maximum(square_a - sum_a**2 / n, 0)
    spread_b = np.maximum(square_b - sum_b**2 / n, 0)
    scale = np.sqrt(spread_a * spread_b)
    enough = (count >= max(least, 1)) & (scale > 1e-3 * max(float(scale.max()), 1e-12))
    correlation = np.where(enough, (cross - sum_a * sum_b / n) / np.where(enough, scale, 1), -1)
    return correlation.astype(np.float32), count.astype(np.float32)


def _edges(values: Array) -> Array:
    return np.asarray(gaussian_gradient_magnitude(values, 1.0), dtype=np.float32)


def _turn(array: NDArray, rotation: Matrix) -> NDArray:
    """Permute and flip the axes of an array to those of the fixed image."""
    order = np.abs(rotation).argmax(axis=0)  # moving axis along each fixed axis
    turned = array.transpose(order)
    backwards = tuple(axis for axis, old in enumerate(order) if rotation[old, axis] < 0)
    return np.ascontiguousarray(np.flip(turned, backwards))


def _turned_index(rotation: Matrix, shape: tuple[int, int, int]) -> Matrix:
    """Return the matrix (4, 4) from indices of the rotated array to those of the original."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, old in enumerate(np.abs(rotation).argmax(axis=0)):
        sign = rotation[old, axis]
        matrix[old, axis] = sign
        matrix[old, 3] = shape[old] - 1 if sign < 0 else 0
    return matrix
