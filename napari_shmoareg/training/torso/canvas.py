"""Canvas: a label map on which smooth shapes and tubes are painted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Slices = tuple[slice, slice, slice]


class Canvas:
    """Voxel classes in a box, initially 0.

    Parameters
    ----------
    low, high : 3 floats
        Corners of the box, mm.
    spacing : float
        mm.
    names : sequence of str
        Names of the classes, in order of their number.
    rng : numpy.random.Generator
        Generates the noise.
    device : str or torch.device

    Attributes
    ----------
    classes : Tensor (X, Y, Z), uint8
    axes : 3 Tensors
        Voxel positions along each axis, mm.
    noise : Tensor (3, X, Y, Z)
        Smooth noise of unit variance at its knots, 36 mm apart, for irregular shapes.
    fine_noise : Tensor (X, Y, Z)
        The same, 9 mm apart.
    cavity : Tensor (X, Y, Z)
        Below 1 where organs may be.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        spacing: float,
        names: Sequence[str],
        rng: np.random.Generator,
        device: str | torch.device,
    ) -> None:
        self.low, self.spacing, self.device = np.asarray(low, dtype=np.float64), spacing, device
        self.shape = tuple(int(n) for n in np.ceil((np.asarray(high) - self.low) / spacing).clip(2))
        self.number = {name: number for number, name in enumerate(names)}
        self.classes = torch.zeros(self.shape, dtype=torch.uint8, device=device)
        self.axes = [
            float(start) + spacing * torch.arange(n, dtype=torch.float32, device=device)
            for start, n in zip(self.low, self.shape, strict=True)
        ]
        self.noise = self._noise(36, 3, rng)
        self.fine_noise = self._noise(9, 1, rng)[0]
        self.cavity = torch.zeros(self.shape, device=device)

    @property
    def to_index(self) -> NDArray[np.float64]:
        """Affine from position in mm to voxel index, (4, 4)."""
        matrix = np.diag([1 / self.spacing] * 3 + [1.0])
        matrix[:3, 3] = -self.low / self.spacing
        return matrix

    def _noise(self, length: float, channels: int, rng: np.random.Generator) -> Tensor:
        """Noise with knots at multiples of `length` mm, so that its values do not depend on the
        box.
        """
        first = np.floor(self.low / length).astype(int)
        ends = self.low + self.spacing * (np.array(self.shape) - 1)
        count = np.ceil(ends / length).astype(int) - first + 1
        half = int(np.ceil(400 / length))  # knots cover a whole body
        knots = rng.standard_normal(
            (channels, 2 * half + 1, 2 * half + 1, 2 * half + 1), dtype=np.float32
        )
        picked = [
            np.clip(np.arange(f, f + n) + half, 0, 2 * half)
            for f, n in zip(first, count, strict=True)
        ]
        values = torch.as_tensor(
            knots[:, picked[0]][:, :, picked[1]][:, :, :, picked[2]], device=self.device
        )
        for axis in range(3):
            position = (self.axes[axis] - float(first[axis] * length)) / length
            near = (
                (position[:, None] - torch.arange(int(count[axis]), device=self.device))
                .abs()
                .clamp_max(1)
            )
            weights = 1 - near * near * (3 - 2 * near)  # smooth, with sum 1 over the knots
            # moves the next axis to the front
            values = torch.tensordot(values, weights, dims=([1], [1]))
        return values

    def row(self, values: NDArray[np.float64], part: Slices | None = None) -> Tensor:
        """Values along z, or of a part, as (1, 1, Z)."""
        along = values if part is None else values[part[2]]
        return torch.as_tensor(along, dtype=torch.float32, device=self.device).view(1, 1, -1)

    def ellipse(
        self,
        across: NDArray[np.float64],
        through: NDArray[np.float64],
        middle: NDArray[np.float64],
        exponent: float,
    ) -> Tensor:
        """Level set (X, Y, Z) |x / a|^p + |(y - m) / b|^p, with a, b, m along z; 1 at the
        border.
        """
        x = (self.axes[0].view(-1, 1, 1).abs() / self.row(across)) ** exponent
        y = ((self.axes[1].view(1, -1, 1) - self.row(middle)).abs() / self.row(through)) ** exponent
        return x + y

    def paint(
        self,
        name: str,
        where: Tensor,
        over: Sequence[str] | None = None,
        part: Slices | None = None,
    ) -> None:
        """Set a class within a mask and, with `over`, only over the given classes."""
        view = self.classes if part is None else self.classes[part]
        if over is not None:
            where = where & self._is(view, over)
        view.masked_fill_(where, self.number[name])

    def ellipsoid(
        self,
        name: str,
        centre: NDArray[np.float64],
        radii: NDArray[np.float64],
        *,
        turn: Sequence[float] = (0.0, 0.0, 0.0),
        rough: float = 0.0,
        over: Sequence[str] | None = None,
        within: Callable[[Slices], Tensor] | None = None,
    ) -> None:
        """Paint an ellipsoid, rotated about x, y and z (radians), with border noise as a share of
        the radius.
        """
        self.blob(name, [(centre, radii, turn)], rough=rough, over=over, within=within)

    def blob(
        self,
        name: str,
        parts: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], Sequence[float]]],
        *,
        rough: float = 0.0,
        over: Sequence[str] | None = None,
        within: Callable[[Slices], Tensor] | None = None,
    ) -> None:
        """Paint the smooth union of ellipsoids (centre, radii, turn)."""
        reach = [np.max(radii) * (1 + 2 * rough) for _, radii, _ in parts]
        low = np.min([centre - r for (centre, _, _), r in zip(parts, reach, strict=True)], axis=0)
        high = np.max([centre + r for (centre, _, _), r in zip(parts, reach, strict=True)], axis=0)
        part = self.box(low, high)
        if part is None:
            return
        levels = [self._level(part, *each) for each in parts]
        level = (
            levels[0]
            if len(levels) == 1
            else -torch.logsumexp(torch.stack([-6 * one for one in levels]), 0) / 6
        )
        if rough:
            level = level - rough * self.noise[self.number[name] % 3][part]
        where = level < 1
        if within is not None:
            where = where & within(part)
        self.paint(name, where, over, part)

    def tube(
        self,
        name: str,
        line: NDArray[np.float64],
        *,
        over: Sequence[str],
        wall: float = 0.0,
        content: str = "",
        folds: float = 0.0,
        fluid_level: float | None = None,
        gas: str = "",
    ) -> None:
        """Paint a tube through points.

        Parameters
        ----------
        name : str
            Class of the wall, or of the whole tube.
        line : (n, 4) array
            Points and radii in mm, connected by a smooth curve.
        over : sequence of str
        wall : float
            Thickness in mm; the inside is `content`.
        content : str
        folds : float
            Depth of the folds along the tube, as a share of the radius.
        fluid_level : float or None
            Content in front of this position (mm) is `gas`.
        gas : str
        """
        points = spline(line, step=0.5)
        radii = points[:, 3] * (1 + folds * np.sin(np.arange(len(points))))
        reach = radii.max()
        part = self.box(points[:, :3].min(0) - reach, points[:, :3].max(0) + reach)
        if part is None:
            return
        outer, inner = (
            torch.from_numpy(mask).to(self.device)
            for mask in self._spheres(part, points, radii, wall)
        )
        view = self.classes[part]
        free = self._is(view, over)
        view.masked_fill_(free & outer, self.number[name])
        if content:
            inner &= free
            view.masked_fill_(inner, self.number[content])
            if fluid_level is not None:
                in_front = self.axes[1][part[1]].view(1, -1, 1) > fluid_level
                view.masked_fill_(inner & in_front, self.number[gas])

    def _spheres(
        self, part: Slices, points: NDArray[np.float64], radii: NDArray[np.float64], wall: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks of many small spheres, with and without a wall; on the CPU, because each is
        tiny.
        """
        start = np.array([s.start for s in part])
        shape = np.array([s.stop - s.start for s in part])
        outer, inner = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        centres = (points[:, :3] - self.low) / self.spacing - start  # in voxels of the part
        sizes = radii / self.spacing
        first = np.floor(centres - sizes[:, None]).astype(int).clip(0, shape).tolist()
        last = np.ceil(centres + sizes[:, None] + 1).astype(int).clip(0, shape).tolist()
        within = (sizes - wall / self.spacing).clip(0) ** 2
        count = np.arange(int(shape.max()), dtype=np.float32)
        for centre, size, inside, (i, j, k), (u, v, w) in zip(
            centres.astype(np.float32), sizes**2, within, first, last, strict=True
        ):
            if i >= u or j >= v or k >= w:
                continue
            x, y, z = (
                (count[a:b] - c) ** 2
                for a, b, c in ((i, u, centre[0]), (j, v, centre[1]), (k, w, centre[2]))
            )
            distance = (x[:, None] + y)[:, :, None] + z
            outer[i:u, j:v, k:w] |= distance < size
            if inside:
                inner[i:u, j:v, k:w] |= distance < inside
        return outer, inner

    def box(self, low: Sequence[float] | NDArray, high: Sequence[float] | NDArray) -> Slices | None:
        """The part of the canvas that contains a box (mm); None if they do not overlap."""
        low, high = (np.clip(each, -1e4, 1e4) for each in (low, high))
        first = np.floor((low - self.low) / self.spacing).astype(int).clip(0)
        last = np.minimum(np.ceil((high - self.low) / self.spacing).astype(int) + 1, self.shape)
        if np.any(last <= first):
            return None
        x, y, z = (slice(int(f), int(t)) for f, t in zip(first, last, strict=True))
        return x, y, z

    def coordinates(self, part: Slices | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Broadcastable x, y and z of a part or of the whole canvas."""
        x, y, z = (
            self.axes
            if part is None
            else (axis[s] for axis, s in zip(self.axes, part, strict=True))
        )
        return x.view(-1, 1, 1), y.view(1, -1, 1), z.view(1, 1, -1)

    def _level(
        self,
        part: Slices,
        centre: NDArray[np.float64],
        radii: NDArray[np.float64],
        turn: Sequence[float],
    ) -> Tensor:
        """Distance from the centre of an ellipsoid in radii; below 1 inside."""
        x, y, z = (axis - float(c) for axis, c in zip(self.coordinates(part), centre, strict=True))
        if not any(turn):
            return torch.sqrt(
                (x / float(radii[0])) ** 2 + (y / float(radii[1])) ** 2 + (z / float(radii[2])) ** 2
            )
        rows = [
            float(a) * x + float(b) * y + float(c) * z
            for a, b, c in _rotation(turn) / radii[:, None]
        ]
        return torch.sqrt(rows[0] ** 2 + rows[1] ** 2 + rows[2] ** 2)

    def _is(self, view: Tensor, names: Sequence[str]) -> Tensor:
        """Mask of the voxels of some classes; for bytes, comparisons are much faster than a
        lookup.
        """
        numbers = sorted(self.number[name] for name in names)
        if numbers[-1] - numbers[0] == len(numbers) - 1 > 0:
            return (view >= numbers[0]) & (view <= numbers[-1])
        found = view == numbers[0]
        for number in numbers[1:]:
            found |= view == number
        return found


def spline(line: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Sample a Catmull-Rom curve through points (n, 4) at steps of `step` radii."""
    padded = np.concatenate([2 * line[:1] - line[1:2], line, 2 * line[-1:] - line[-2:-1]])
    found = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        count = max(
            1, int(np.ceil(np.linalg.norm(c[:3] - b[:3]) / max(step * min(b[3], c[3]), 1.0)))
        )
        t = (np.arange(count) / count)[:, None]
        found.append(
            0.5
            * (
                2 * b
                + (c - a) * t
                + (2 * a - 5 * b + 4 * c - d) * t**2
                + (3 * b - a - 3 * c + d) * t**3
            )
        )
    curve = np.concatenate([*found, line[-1:]])
    curve[:, 3] = curve[:, 3].clip(line[:, 3].min(), line[:, 3].max())
    return curve


def _rotation(turn: Sequence[float]) -> NDArray[np.float64]:
    a, b, c = turn
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z
