"""Training pairs of a data set: conformed when they are read, with the names of their scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

from napari_shmoareg.datasets.alignment import Matrix
from napari_shmoareg.datasets.cache import PreparedScans
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.registration.conform import Conformed, conform

Names = tuple[str, str]  # moving, fixed


class NamedPairs(Sequence[Conformed]):
    """Pairs that are read when asked for, always as many and in the same order, whatever became of
    their files.

    Ours: a step chooses its pair by its place, so a run that goes on needs the places that it began
    with; a pair that is gone is refused when its step comes, as if its file had been damaged while
    the run was under way.

    Parameters
    ----------
    pairs : sequence of Conformed
    places : mapping of (moving, fixed) to int
        Where each stands in `pairs`.
    names : sequence of (moving, fixed)
        Those wanted; some may not stand there.
    """

    def __init__(
        self, pairs: Sequence[Conformed], places: dict[Names, int], names: Sequence[Names]
    ) -> None:
        self._pairs, self._places, self.names = pairs, places, tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Conformed: ...

    @overload
    def __getitem__(self, index: slice) -> NamedPairs: ...

    def __getitem__(self, index: int | slice) -> Conformed | NamedPairs:
        """One pair, or some.

        Raises
        ------
        InputError
            If a scan of the pair cannot be read.
        """
        if isinstance(index, slice):
            return NamedPairs(self._pairs, self._places, self.names[index])
        if self.names[index] not in self._places:
            raise InputError(
                f"The pair {self.told(index)} could be used when the run began, and cannot now;"
                " checkup.csv says why."
            )
        return self._pairs[self._places[self.names[index]]]

    @property
    def present(self) -> int:
        """How many of them can be read now, as far as the check-up saw."""
        return sum(name in self._places for name in self.names)

    @property
    def all_told(self) -> list[str]:
        """All in words."""
        return [self.told(index) for index in range(len(self))]

    def some(self, indices: Sequence[int]) -> NamedPairs:
        """Those at some places."""
        return NamedPairs(self._pairs, self._places, [self.names[n] for n in indices])

    def told(self, index: int) -> str:
        """The two scans of a pair in words."""
        return " and ".join(self.names[index])


def without_order(names: Sequence[Names]) -> list[Names]:
    """Each pair once, as it stands first, whichever of its two scans is moving."""
    found: dict[tuple[str, ...], Names] = {}
    for pair in names:
        found.setdefault(tuple(sorted(pair)), pair)
    return list(found.values())


def spread(names: Sequence[Names], count: int) -> list[int]:
    """Some of many pairs, each scan as often as the others, and as often moving as fixed; the same
    at every call.

    Parameters
    ----------
    names : sequence of (moving, fixed)
    count : int

    Returns
    -------
    list of int
        Places of the chosen pairs, in their order.
    """
    used: dict[tuple[str, int], int] = {}
    chosen: list[int] = []
    left = list(range(len(names)))
    while left and len(chosen) < count:
        best = min(left, key=lambda n: (*_uses(names[n], used), n))
        left.remove(best)
        chosen.append(best)
        for side, name in enumerate(names[best]):
            used[name, side] = used.get((name, side), 0) + 1
    return sorted(chosen)


def _uses(pair: Names, used: dict[tuple[str, int], int]) -> tuple[int, int, int]:
    """How often the two scans were taken: the one more often taken, both, and on these sides."""
    each = [used.get((name, 0), 0) + used.get((name, 1), 0) for name in pair]
    return max(each), sum(each), sum(used.get((name, side), 0) for side, name in enumerate(pair))


KEPT_BYTES = 2**29  # pairs stay in memory only where all of them take less together


class TrainingPairs(Sequence[Conformed]):
    """A lazy sequence of pairs on their network grids, without the scans they came from.

    Few pairs, such as those that judge, are made once and kept; many are made anew each time.

    Parameters
    ----------
    scans : PreparedScans
    names : sequence of (moving, fixed)
    affine_of : callable
        (moving, fixed) names to the (4, 4) matrix from fixed world to moving world.
    size : int or "native"
        As for `conform`.
    labels : bool
        Carry the label maps too.

    Attributes
    ----------
    names : list of (moving, fixed)
        Of each pair.
    """

    def __init__(
        self,
        scans: PreparedScans,
        names: Sequence[tuple[str, str]],
        affine_of: Callable[[str, str], Matrix],
        *,
        size: int | str,
        labels: bool,
    ) -> None:
        self.names = list(names)
        self._scans = scans
        self._affine_of = affine_of
        self._size = size
        self._labels = labels
        self._kept: dict[int, Conformed] = {}

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Conformed: ...

    @overload
    def __getitem__(self, index: slice) -> TrainingPairs: ...

    def __getitem__(self, index: int | slice) -> Conformed | TrainingPairs:
        """One pair, or a part of the list.

        Raises
        ------
        InputError
            If a scan can no longer be read and is not in the cache.
        """
        if isinstance(index, slice):
            names = self.names[index]
            return TrainingPairs(
                self._scans, names, self._affine_of, size=self._size, labels=self._labels
            )
        if index in self._kept:
            return self._kept[index]
        moving_name, fixed_name = self.names[index]
        moving, fixed = (
            self._scans.get(moving_name, self._size),
            self._scans.get(fixed_name, self._size),
        )
        pair = VolumePair(moving.image, fixed.image, moving.labels, fixed.labels)
        affine = self._affine_of(moving_name, fixed_name)
        seen = replace(
            conform(pair, size=self._size, affine=affine, labels=self._labels), pair=None
        )
        arrays = (seen.moving, seen.fixed, seen.moving_labels, seen.fixed_labels)
        if len(self) * sum(array.nbytes for array in arrays if array is not None) <= KEPT_BYTES:
            self._kept[index] = seen
        return seen
