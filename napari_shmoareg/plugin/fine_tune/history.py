"""Values over training steps, and their reduction to what a chart can show."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMOOTHING = 50  # the running mean spans this fraction of the curve,
MIN_WINDOW, MAX_WINDOW = 5, 500  # within these numbers of steps


class Points(NamedTuple):
    """A curve: steps (n,) and values (n,)."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class Track:
    """One value over the steps of a run, in step order; non-finite values are omitted."""

    def __init__(self) -> None:
        self._steps, self._values, self._count = np.empty(64), np.empty(64), 0

    def __len__(self) -> int:
        return self._count

    @property
    def points(self) -> Points:
        """The whole curve."""
        return Points(self._steps[: self._count], self._values[: self._count])

    @property
    def last(self) -> float | None:
        """The newest value."""
        return float(self._values[self._count - 1]) if self._count else None

    def add(self, step: float, value: float | None) -> None:
        """Append one value, unless it is None or NaN."""
        if value is not None:
            self.extend([step], [value])

    def extend(self, steps: ArrayLike, values: ArrayLike) -> None:
        """Append values (n,) at steps (n,), replacing everything from the first new step on."""
        new, added = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        finite = np.isfinite(added)
        new, added = new[finite], added[finite]
        if not len(new):
            return
        self.cut(new[0] - 1)
        need = self._count + len(new)
        if need > len(self._steps):
            room = max(need, 2 * len(self._steps))
            self._steps, self._values = (
                _longer(array, room, self._count) for array in (self._steps, self._values)
            )
        self._steps[self._count : need], self._values[self._count : need] = new, added
        self._count = need

    def cut(self, step: float) -> None:
        """Remove everything after a step, from which a run is resumed."""
        self._count = int(np.searchsorted(self._steps[: self._count], step, side="right"))


def decimated(points: Points, most: int) -> Points:
    """Reduce a curve to about `most` points: the minimum and maximum of each interval.

    Parameters
    ----------
    points : Points
    most : int
        At least 4.

    Returns
    -------
    Points
        Includes the first and the last point and every peak.
    """
    count = len(points.steps)
    if count <= most:
        return points
    edges = np.linspace(0, count, max(1, (most - 2) // 2) + 1).astype(int)
    indices = {0, count - 1}
    for begin, end in pairwise(edges):
        part = points.values[begin:end]
        indices |= {begin + int(part.argmin()), begin + int(part.argmax())}
    order = np.array(sorted(indices))
    return Points(points.steps[order], points.values[order])


def smoothed(points: Points) -> Points:
    """Return the running mean over a fiftieth of the curve, but over 5 to 500 steps."""
    count = len(points.steps)
    if not count:
        return points
    width = window(count)
    sums = np.concatenate([[0.0], np.cumsum(points.values)])
    last = np.arange(1, count + 1)
    first = np.maximum(0, last - width)
    return Points(points.steps, (sums[last] - sums[first]) / (last - first))


def window(count: int) -> int:
    """Return the number of values in the running mean of `smoothed`."""
    return int(np.clip(count // SMOOTHING, MIN_WINDOW, MAX_WINDOW))


class Shares:
    """Shares of the experts of one gate over the steps: (experts,) at each step, summing to 1."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._shares: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: float, shares: Iterable[float]) -> None:
        """Append shares, replacing everything from this step on."""
        self.cut(step - 1)
        self._steps.append(float(step))
        self._shares.append(tuple(float(share) for share in shares))

    def cut(self, step: float) -> None:
        """Remove everything after a step."""
        while self._steps and self._steps[-1] > step:
            self._steps.pop()
            self._shares.pop()

    def stacked(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return steps (n,) and cumulated shares (experts, n), averaged to at most `most` steps."""
        if not self._steps:
            return np.empty(0), np.empty((0, 0))
        steps, shares = np.array(self._steps), np.array(self._shares)
        if len(steps) > most:
            edges = np.linspace(0, len(steps), most + 1).astype(int)
            counts = np.diff(edges)
            shares = np.add.reduceat(shares, edges[:-1]) / counts[:, None]
            steps = steps[edges[1:] - 1]
        return steps, np.cumsum(shares, axis=1).T

    @property
    def last(self) -> tuple[float, ...]:
        """The newest shares; empty before the first step."""
        return self._shares[-1] if self._shares else ()


def _longer(array: NDArray, room: int, count: int) -> NDArray:
    longer = np.empty(room)
    longer[:count] = array[:count]
    return longer
