"""Training pairs of a data set, conformed on access, with the names of their scans."""

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
    """Pairs read on access, with fixed number and order, even if files are missing.

    Ours: a step chooses its pair by index, so a resumed run needs the original indices.  A missing
    pair raises at its step, like a file that is damaged during the run.

    Parameters
    ----------
    pairs : sequence of Conformed
    indices : mapping of (moving, fixed) to int
        Index of each pair in `pairs`.
    names : sequence of (moving, fixed)
        Names of the pairs; some may be missing in `indices`.
    """

    def __init__(
        self, pairs: Sequence[Conformed], indices: dict[Names, int], names: Sequence[Names]
    ) -> None:
        self._pairs, self._indices, self.names = pairs, indices, tuple(names)

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
            return NamedPairs(self._pairs, self._indices, self.names[index])
        if self.names[index] not in self._indices:
            raise InputError(
                f"The pair {self.pair_name(index)} could be used when the run began, but not any"
                " more. See checkup.csv for the reason."
            )
        return self._pairs[self._indices[self.names[index]]]

    @property
    def present(self) -> int:
        """Number of pairs that are usable now, according to the quality check."""
        return sum(name in self._indices for name in self.names)

    @property
    def pair_names(self) -> list[str]:
        """The scans of all pairs, as text."""
        return [self.pair_name(index) for index in range(len(self))]

    def select(self, indices: Sequence[int]) -> NamedPairs:
        """The pairs at some indices."""
        return NamedPairs(self._pairs, self._indices, [self.names[n] for n in indices])

    def names_of(self, index: int) -> Names:
        """The two scans of a pair."""
        return self.names[index]

    def pair_name(self, index: int) -> str:
        """The two scans of a pair, as text."""
        return " and ".join(self.names[index])


def unordered_pairs(names: Sequence[Names]) -> list[Names]:
    """Each pair once, in the order of its first occurrence."""
    found: dict[tuple[str, ...], Names] = {}
    for pair in names:
        found.setdefault(tuple(sorted(pair)), pair)
    return list(found.values())


def spread_evenly(names: Sequence[Names], count: int) -> list[int]:
    """Choose `count` pairs that use all scans evenly, as moving and as fixed.

    The choice is deterministic.  Returns the sorted indices of the chosen pairs.
    """
    used: dict[tuple[str, int], int] = {}
    chosen: list[int] = []
    remaining = list(range(len(names)))
    while remaining and len(chosen) < count:
        best = min(remaining, key=lambda n: (*_uses(names[n], used), n))
        remaining.remove(best)
        chosen.append(best)
        for side, name in enumerate(names[best]):
            used[name, side] = used.get((name, side), 0) + 1
    return sorted(chosen)


def _uses(pair: Names, used: dict[tuple[str, int], int]) -> tuple[int, int, int]:
    """Uses of the two scans so far: of the more frequent one, of both, and in these roles."""
    each = [used.get((name, 0), 0) + used.get((name, 1), 0) for name in pair]
    return max(each), sum(each), sum(used.get((name, side), 0) for side, name in enumerate(pair))


MAX_CACHED_BYTES = 2**29  # pairs are kept in memory only if all of them together take less


class TrainingPairs(Sequence[Conformed]):
    """A lazy sequence of pairs on their network grids, without the original scans.

    A few pairs, such as the validation pairs, are kept in memory; many are made on each access.

    Parameters
    ----------
    scans : PreparedScans
    names : sequence of (moving, fixed)
    affine_of : callable
        (moving, fixed) names to the (4, 4) matrix from fixed world to moving world.
    size : int or "native"
        As for `conform`.
    labels : bool
        Include the label maps.

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
        self._cached: dict[int, Conformed] = {}

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
        if index in self._cached:
            return self._cached[index]
        moving_name, fixed_name = self.names[index]
        moving, fixed = (
            self._scans.get(moving_name, self._size),
            self._scans.get(fixed_name, self._size),
        )
        pair = VolumePair(moving.image, fixed.image, moving.labels, fixed.labels)
        affine = self._affine_of(moving_name, fixed_name)
        conformed = replace(
            conform(pair, size=self._size, affine=affine, labels=self._labels), pair=None
        )
        arrays = (
            conformed.moving,
            conformed.fixed,
            conformed.moving_labels,
            conformed.fixed_labels,
        )
        if (
            len(self) * sum(array.nbytes for array in arrays if array is not None)
            <= MAX_CACHED_BYTES
        ):
            self._cached[index] = conformed
        return conformed
