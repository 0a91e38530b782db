"""Training pairs of a data set, conformed on access, with the names of their scans."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import overload

from napari_shmoareg.errors import InputError
from napari_shmoareg.registration.conform import Conformed

Names = tuple[str, str]  # moving, fixed
MAX_CACHED_BYTES = 2**29  # pairs are kept in memory only if all of them together take less


class NamedPairs(Sequence[Conformed]):
    """Pairs on their network grids, made on access, with fixed number and order.

    A few pairs, such as the validation pairs, are kept in memory; many are made on each access.

    Ours: a step chooses its pair by index, so a resumed run needs the original indices.  A missing
    pair raises at its step, like a file that is damaged during the run.

    Parameters
    ----------
    names : sequence of (moving, fixed)
    make : callable
        Makes a pair from its names.
    usable : collection of (moving, fixed), optional
        Names of the pairs that can be made; by default all.

    Attributes
    ----------
    names : tuple of (moving, fixed)
        Of each pair.
    """

    def __init__(
        self,
        names: Sequence[Names],
        make: Callable[[str, str], Conformed],
        usable: Collection[Names] | None = None,
    ) -> None:
        self.names = tuple(names)
        self._make = make
        self._usable = frozenset(self.names if usable is None else usable)
        self._cached: dict[Names, Conformed] = {}

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
            If a scan of the pair can no longer be read, and was not prepared.
        """
        if isinstance(index, slice):
            return self.renamed(self.names[index])
        names = self.names[index]
        if names not in self._usable:
            raise InputError(
                f"The pair {self.pair_name(index)} could be used when the run began, but not any"
                " more. See checkup.csv for the reason."
            )
        if names in self._cached:
            return self._cached[names]
        pair = self._make(*names)
        arrays = (pair.moving, pair.fixed, pair.moving_labels, pair.fixed_labels)
        if len(self) * sum(a.nbytes for a in arrays if a is not None) <= MAX_CACHED_BYTES:
            self._cached[names] = pair
        return pair

    @property
    def present(self) -> int:
        """Number of pairs that are usable now, according to the quality check."""
        return sum(names in self._usable for names in self.names)

    @property
    def pair_names(self) -> list[str]:
        """The scans of all pairs, as text."""
        return [self.pair_name(index) for index in range(len(self))]

    def renamed(self, names: Sequence[Names]) -> NamedPairs:
        """The pairs of some names, of which those that are not usable here stay missing."""
        return NamedPairs(names, self._make, self._usable)

    def select(self, indices: Sequence[int]) -> NamedPairs:
        """The pairs at some indices."""
        return self.renamed([self.names[n] for n in indices])

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
