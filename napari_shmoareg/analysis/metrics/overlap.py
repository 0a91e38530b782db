"""Dice, and what all measures per label share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


def dice(a: NDArray, b: NDArray, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice overlap of each label of two maps on one grid.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
    labels : iterable of int, optional
        Which labels; by default all that occur in either, without 0.

    Returns
    -------
    dict of int to float
        In [0, 1]; 0 for a label that only one map has.  Labels in neither are skipped (TransMorph's script
        counts them as 0, Learn2Reg's leaves them out as here).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    values, a, b = _compact(a, b, labels)
    count = len(values) + 1
    size_a, size_b = np.bincount(a.ravel(), minlength=count), np.bincount(b.ravel(), minlength=count)
    both = np.bincount(a[a == b], minlength=count)
    total = size_a + size_b
    return {v: float(2 * both[n] / total[n]) for n, v in enumerate(values, start=1) if total[n]}


class SharedLabels(NamedTuple):
    """Which labels the images of a pair have, as they were given (without 0).

    Attributes
    ----------
    both, only_moving, only_fixed : tuple of int
    """

    both: tuple[int, ...]
    only_moving: tuple[int, ...] = ()
    only_fixed: tuple[int, ...] = ()

    @classmethod
    def of(cls, moving: Iterable[int], fixed: Iterable[int]) -> SharedLabels:
        """Of the labels that occur in each."""
        one, other = set(moving) - {0}, set(fixed) - {0}
        return cls(*(tuple(sorted(labels)) for labels in (one & other, one - other, other - one)))

    @property
    def missing(self) -> tuple[int, ...]:
        """Those that one of the two lacks."""
        return tuple(sorted((*self.only_moving, *self.only_fixed)))

    @property
    def description(self) -> str:
        """How many both have, and which one lacks, in words."""
        count = len(self.both)
        if not self.missing:
            return f"{count} label{' is' if count == 1 else 's are'} in both images"
        sides = (("only moving", self.only_moving), ("only fixed", self.only_fixed))
        named = "; ".join(f"{side}: {_listed(labels)}" for side, labels in sides if labels)
        return f"{count} of {count + len(self.missing)} labels {'is' if count == 1 else 'are'} in both images; {named}"


def dice_in_both(a: NDArray, b: NDArray, shared: SharedLabels) -> dict[int, float]:
    """As `dice`, of all labels of a pair: NaN for those that only one of its images has.

    A label that both images have and that one map lost, as where it was carried out of the field of view, counts 0.

    Parameters
    ----------
    a, b : (I, J, K) integer arrays
        The moving labels where they were carried, and the fixed ones.
    shared : SharedLabels
    """
    found = dice(a, b, shared.both)
    return {label: found.get(label, float("nan")) for label in sorted((*shared.both, *shared.missing))}


def mean(values: Mapping[int, float]) -> float:
    """Mean over labels without NaN; NaN if nothing is left."""
    kept = [v for v in values.values() if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def masks(
    a: NDArray, b: NDArray, labels: Iterable[int] | None = None
) -> Iterator[tuple[int, tuple[Mask, Mask] | None]]:
    """The two masks of each label, cut to the box that holds both.

    Parameters
    ----------
    a, b, labels
        As in `dice`.

    Yields
    ------
    label, (mask of a, mask of b)
        None in place of the masks where only one map has the label; labels in neither are skipped.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    values, a, b = _compact(a, b, labels)
    boxes_a, boxes_b = (ndimage.find_objects(m, max_label=len(values)) for m in (a, b))
    for n, (value, box_a, box_b) in enumerate(zip(values, boxes_a, boxes_b, strict=True), start=1):
        if box_a is None or box_b is None:
            if box_a is not None or box_b is not None:
                yield value, None
            continue
        box = tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(box_a, box_b, strict=True))
        yield value, (a[box] == n, b[box] == n)


def _listed(labels: Sequence[int], most: int = 12) -> str:
    named = ", ".join(str(label) for label in labels[:most])
    return named + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _compact(a: NDArray, b: NDArray, labels: Iterable[int] | None) -> tuple[list[int], NDArray, NDArray]:
    """The label values, and both maps with the n-th of them as n + 1 and all else as 0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"Label maps to compare must stand on one grid; their shapes are {a.shape} and {b.shape}.")
    found = np.union1d(a, b)
    wanted = sorted({int(v) for v in (found if labels is None else labels)} - {0})
    rank = {value: n for n, value in enumerate(wanted, start=1)}
    table = np.array([rank.get(int(v), 0) for v in found], dtype=np.int32)
    return wanted, table[np.searchsorted(found, a)], table[np.searchsorted(found, b)]
