"""Figures over steps, however many, and as many of them as a chart can show."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMOOTHED = 50  # parts of a history, over one of which a smoothed curve is a mean
NARROWEST, WIDEST = 5, 500  # steps of that mean


class Points(NamedTuple):
    """A curve: steps (n,) and values (n,)."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class Track:
    """One figure over the steps of a run, in the order of the steps; what is not finite is left
    out.
    """

    def __init__(self) -> None:
        self._steps, self._values, self._count = np.empty(64), np.empty(64), 0

    def __len__(self) -> int:
        return self._count

    @property
    def points(self) -> Points:
        """All of it."""
        return Points(self._steps[: self._count], self._values[: self._count])

    @property
    def last(self) -> float | None:
        """The newest value."""
        return float(self._values[self._count - 1]) if self._count else None

    def add(self, step: float, value: float | None) -> None:
        """Append one value; None and NaN are nothing."""
        if value is not None:
            self.extend([step], [value])

    def extend(self, steps: ArrayLike, values: ArrayLike) -> None:
        """Append many, (n,) each.  Steps that are there already are done again: from the first new
        one on all goes.
        """
        new, found = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        finite = np.isfinite(found)
        new, found = new[finite], found[finite]
        if not len(new):
            return
        self.cut(new[0] - 1)
        need = self._count + len(new)
        if need > len(self._steps):
            room = max(need, 2 * len(self._steps))
            self._steps, self._values = (
                _longer(array, room, self._count) for array in (self._steps, self._values)
            )
        self._steps[self._count : need], self._values[self._count : need] = new, found
        self._count = need

    def cut(self, step: float) -> None:
        """Forget what came after a step: a run that goes on from there does it again."""
        self._count = int(np.searchsorted(self._steps[: self._count], step, side="right"))


def decimated(points: Points, most: int) -> Points:
    """A curve of no more than about `most` points that looks the same: least and greatest value of
    each stretch.

    Parameters
    ----------
    points : Points
    most : int
        At least 4.

    Returns
    -------
    Points
        The first and the last point are kept, and so is every peak.
    """
    count = len(points.steps)
    if count <= most:
        return points
    stretches = np.linspace(0, count, max(1, (most - 2) // 2) + 1).astype(int)
    kept = {0, count - 1}
    for begin, end in pairwise(stretches):
        part = points.values[begin:end]
        kept |= {begin + int(part.argmin()), begin + int(part.argmax())}
    chosen = np.array(sorted(kept))
    return Points(points.steps[chosen], points.values[chosen])


def smoothed(points: Points) -> Points:
    """At each step the mean of the last ones: of a fiftieth of the curve, but of 5 to 500 of
    them.
    """
    count = len(points.steps)
    if not count:
        return points
    width = window(count)
    sums = np.concatenate([[0.0], np.cumsum(points.values)])
    last = np.arange(1, count + 1)
    first = np.maximum(0, last - width)
    return Points(points.steps, (sums[last] - sums[first]) / (last - first))


def window(count: int) -> int:
    """Over how many values `smoothed` takes its mean."""
    return int(np.clip(count // SMOOTHED, NARROWEST, WIDEST))


class Shares:
    """The shares of the experts at one place over the steps: (experts,) at each, summing to 1."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._shares: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: float, shares: Iterable[float]) -> None:
        """Append; a step that is there already replaces it and all after it."""
        self.cut(step - 1)
        self._steps.append(float(step))
        self._shares.append(tuple(float(share) for share in shares))

    def cut(self, step: float) -> None:
        """Forget what came after a step."""
        while self._steps and self._steps[-1] > step:
            self._steps.pop()
            self._shares.pop()

    def stacked(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps (n,) and cumulated shares (experts, n), of means over stretches where there are
        more than `most`.
        """
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
        """The newest shares; none before the first."""
        return self._shares[-1] if self._shares else ()


def _longer(array: NDArray, room: int, count: int) -> NDArray:
    longer = np.empty(room)
    longer[:count] = array[:count]
    return longer
