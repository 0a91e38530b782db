"""Dice, and what all measures per label share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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
