"""The built-in sample: a synthetic pair with a known true deformation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.geometry import Grid, LabelNames, Volume, VolumePair
from napari_shmoareg.io.phantom import ORGANS, anatomy

if TYPE_CHECKING:
    from napari_shmoareg.geometry import Transform


__all__ = ["ORGANS", "KnownDeformation", "PointError", "Sample", "sample_pair"]

_FIXED_SHAPE, _FIXED_SPACING = (112, 84, 56), (2.75, 2.75, 4.0)
_MOVING_SHAPE, _MOVING_SPACING = (78, 118, 90), (3.0, 2.7, 3.0)
_GREY = 1000  # stored value of a grey of 1
_NOISE = 0.025


class PointError(NamedTuple):
    """Distances between mapped points and their true positions, in mm."""

    mean: float
    percentile_95: float


@dataclass(frozen=True, eq=False)
class KnownDeformation:
    """The true transform of the sample: a small affine and smooth bumps.

    Defined from the moving to the fixed world, S(y) = B y + sum of bumps at B y, so the moving
    image can be drawn from a formula; the inverse is solved to 1e-6 mm.

    Parameters
    ----------
    affine : (4, 4) array
        B: moving to fixed world, mm RAS.
    centres, shifts : (N, 3) arrays
        Centres of the bumps, and displacements at the centres; mm in the fixed world.
    widths : (N,) array
        Standard deviations of the bumps, mm.
    """

    affine: NDArray[np.float64]
    centres: NDArray[np.float64]
    shifts: NDArray[np.float64]
    widths: NDArray[np.float64]

    def inverse_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Moving to fixed: S(y), (..., 3) mm RAS."""
        straight = np.asarray(points, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return straight + self._bumps(straight)

    def map_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Fixed to moving: y with S(y) = x, (..., 3) mm RAS."""
        x = np.asarray(points, dtype=np.float64)
        straight = x - self._bumps(x)
        # the bumps shrink distances by half at least, so each step halves the error
        for _ in range(60):
            better = x - self._bumps(straight)
            change = np.abs(better - straight).max(initial=0.0)
            straight = better
            if change < 1e-7:
                break
        back = np.linalg.inv(self.affine)
        moved: NDArray[np.float64] = straight @ back[:3, :3].T + back[:3, 3]
        return moved

    def _bumps(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros_like(points)
        x, y, z = np.moveaxis(points, -1, 0)
        for centre, shift, width in zip(self.centres, self.shifts, self.widths, strict=True):
            squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
            weight = np.exp(squared / (-2 * width**2))
            for axis in range(3):
                total[..., axis] += shift[axis] * weight
        return total


@dataclass(frozen=True, eq=False)
class Sample:
    """A pair with its true deformation.

    Attributes
    ----------
    pair : VolumePair
        With labels (`ORGANS`) of both images.
    true : KnownDeformation
        Fixed world to moving world by `map_points`, as a `Transform`.
    foreground : (I, J, K) bool array
        Voxels of the fixed image inside the body. The moving image contains the true partner of
        each.
    """

    pair: VolumePair
    true: KnownDeformation
    foreground: NDArray[np.bool_]

    def error_mm(self, transform: Transform, where: NDArray[np.bool_] | None = None) -> PointError:
        """Compute the error of a transform at the fixed image's points.

        Parameters
        ----------
        transform : Transform
        where : (I, J, K) bool array, optional
            Fixed voxels to use; the `foreground` by default. Of more than 50 000, every n-th is
            used.

        Returns
        -------
        PointError
            Mean and 95th percentile of ``|T(x) - T_true(x)|``, mm.
        """
        index = np.argwhere(self.foreground if where is None else where)
        points = self.pair.fixed.grid.to_world(index[:: max(1, len(index) // 50_000)])
        distance = np.linalg.norm(
            transform.map_points(points) - self.true.map_points(points), axis=-1
        )
        return PointError(float(distance.mean()), float(np.percentile(distance, 95)))


def sample_pair() -> Sample:
    """Create the sample: an abdomen in two breathing states, on two oblique, anisotropic grids.

    The result is deterministic. The fixed image has 112 x 84 x 56 voxels of 2.75 x 2.75 x 4 mm,
    stored left to right; the moving one 78 x 118 x 90 of 3 x 2.7 x 3 mm, stored front to back
    first. The moving image is brighter on one side, and both have noise.

    Examples
    --------
    >>> from napari_shmoareg.geometry import Transform
    >>> sample = sample_pair()
    >>> start = sample.error_mm(Transform(np.eye(4)))
    """
    true = _breath()
    fixed_grid = _grid(
        _FIXED_SHAPE,
        np.diag([-1.0, 1.0, 1.0]),
        _FIXED_SPACING,
        angles=(4.0, -3.0, 6.0),
        centre=(0, 0, 2),
    )
    storage = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    moving_grid = _grid(
        _MOVING_SHAPE, storage, _MOVING_SPACING, angles=(-3.0, 5.0, -4.0), centre=(6, -4, 5)
    )
    rng = np.random.default_rng(2025)
    fixed_points, moving_points = (_points(grid) for grid in (fixed_grid, moving_grid))
    fixed, moving = anatomy(fixed_points), anatomy(true.inverse_points(moving_points))
    gain = 0.94 * (1 + 0.0006 * moving_points[:, 0] - 0.0004 * moving_points[:, 1])
    pair = VolumePair(
        moving=_image(moving.grey * gain, moving_grid, rng, "sample_moving"),
        fixed=_image(fixed.grey, fixed_grid, rng, "sample_fixed"),
        moving_labels=_labels(moving.organs, moving_grid, "sample_moving_labels"),
        fixed_labels=_labels(fixed.organs, fixed_grid, "sample_fixed_labels"),
    )
    return Sample(pair, true, fixed.body.reshape(fixed_grid.shape))


def _breath() -> KnownDeformation:
    """Breathing in: liver, spleen and kidneys move down, the belly forward; the bowel yields."""
    affine = np.eye(4)
    affine[:3, :3] = _rotation((2.0, -1.5, 3.0)) @ np.diag([1.03, 0.98, 1.02])
    affine[:3, 3] = (-4.0, 3.0, 2.5)
    bumps = [
        ((70, 20, 50), (2, -3, 8), 38),
        ((-80, -20, 50), (-3, 2, 7), 32),
        ((-45, 35, 45), (5, 2, -6), 30),
        ((60, -35, -15), (-2, 3, 6), 28),
        ((-60, -35, 0), (3, -2, 5), 28),
        ((10, 60, -30), (4, -7, 2), 36),
        ((-20, 0, -60), (-6, 3, -3), 34),
        ((90, 0, -50), (-5, 2, 4), 30),
    ]
    centres, shifts, widths = (
        np.array(column, dtype=np.float64) for column in zip(*bumps, strict=True)
    )
    return KnownDeformation(affine, centres, shifts, widths)


def _rotation(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """Rotation matrix: about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first] = np.sin(angle)
        turn[first, second] = -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _grid(
    shape: tuple[int, int, int],
    storage: NDArray[np.float64],
    spacing: tuple[float, float, float],
    *,
    angles: tuple[float, float, float],
    centre: tuple[float, float, float],
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = _rotation(angles) @ storage * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def _points(grid: Grid) -> NDArray[np.float64]:
    """World points (N, 3) of all voxels, the last axis running fastest."""
    return grid.to_world(np.indices(grid.shape).reshape(3, -1).T)


def _image(grey: NDArray, grid: Grid, rng: np.random.Generator, name: str) -> Volume:
    """Noise as in a magnitude image: never below 0."""
    noise = rng.normal(0, _NOISE, (2, grey.size))
    values = np.rint(_GREY * np.hypot(grey + noise[0], noise[1])).astype(np.int16)
    return Volume(values.reshape(grid.shape), grid, name)


def _labels(organs: NDArray[np.uint8], grid: Grid, name: str) -> Volume:
    names = LabelNames(ORGANS, "the sample")
    return Volume(organs.reshape(grid.shape), grid, name, is_labels=True, label_names=names)
