"""Pairs brought together beforehand, as the training sees them.  Sec. IV-A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from napari_shmoareg.engine.affine import align
from napari_shmoareg.engine.conform import Conformed, conform
from napari_shmoareg.geometry import VolumePair

KEPT_BYTES = 2 * 2**30


class AlignedPairs(Sequence[Conformed]):
    """A sequence of pairs, each aligned by an affine and put on its network grid when first asked for.

    Ours: the paper's scans come aligned; a user's seldom do.  Results are kept while they take
    less than 2 GiB together, so that most trainings read and align each pair once.

    Parameters
    ----------
    pairs : sequence of VolumePair
        May be lazy.
    size : int or "native"
        As for `conform`.
    affine : {"auto", "rigid", "affine", "none"}
        As for `align`.
    labels : bool
        Carry the label maps too.
    """

    def __init__(
        self, pairs: Sequence[VolumePair], *, size: int | str, affine: str = "auto", labels: bool = False
    ) -> None:
        self._pairs = pairs
        self._size = size
        self._affine = affine
        self._labels = labels
        self._kept: dict[int, Conformed] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Conformed: ...

    @overload
    def __getitem__(self, index: slice) -> AlignedPairs: ...

    def __getitem__(self, index: int | slice) -> Conformed | AlignedPairs:
        """One pair on its network grid, without the scans it came from; or a part of the list."""
        if isinstance(index, slice):
            return AlignedPairs(self._pairs[index], size=self._size, affine=self._affine, labels=self._labels)
        if index in self._kept:
            return self._kept[index]
        pair = self._pairs[index]
        matrix = align(pair, self._affine).matrix
        seen = replace(conform(pair, size=self._size, affine=matrix, labels=self._labels), pair=None)
        tensors = (seen.moving, seen.fixed, seen.moving_labels, seen.fixed_labels)
        need = sum(t.nbytes for t in tensors if t is not None)
        if self._bytes + need <= KEPT_BYTES:
            self._kept[index] = seen
            self._bytes += need
        return seen
