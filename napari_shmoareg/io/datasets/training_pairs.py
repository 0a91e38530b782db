"""TrainingPairs: the pairs of some scans, conformed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

from napari_shmoareg.engine.conform import Conformed, conform
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.io.datasets.aligning import Matrix
from napari_shmoareg.io.datasets.small_scans import SmallScans

KEPT_BYTES = 2**29  # pairs stay in memory only where all of them take less together


class TrainingPairs(Sequence[Conformed]):
    """A lazy sequence of pairs on their network grids, without the scans they came from.

    Few pairs, such as those that judge, are made once and kept; many are made anew each time.

    Parameters
    ----------
    scans : SmallScans
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
        scans: SmallScans,
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
            return TrainingPairs(self._scans, names, self._affine_of, size=self._size, labels=self._labels)
        if index in self._kept:
            return self._kept[index]
        moving_name, fixed_name = self.names[index]
        moving, fixed = self._scans.get(moving_name, self._size), self._scans.get(fixed_name, self._size)
        pair = VolumePair(moving.image, fixed.image, moving.labels, fixed.labels)
        affine = self._affine_of(moving_name, fixed_name)
        seen = replace(conform(pair, size=self._size, affine=affine, labels=self._labels), pair=None)
        arrays = (seen.moving, seen.fixed, seen.moving_labels, seen.fixed_labels)
        if len(self) * sum(array.nbytes for array in arrays if array is not None) <= KEPT_BYTES:
            self._kept[index] = seen
        return seen
