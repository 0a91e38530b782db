"""Training sees pairs that were aligned once."""

from __future__ import annotations

import numpy as np

from napari_shmoareg.engine import aligned_pairs
from napari_shmoareg.engine.aligned_pairs import AlignedPairs
from napari_shmoareg.geometry import Grid, Volume, VolumePair


class Counted(list):
    """A list that counts how often it was read."""

    def __init__(self, items):
        super().__init__(items)
        self.reads = 0

    def __getitem__(self, index):
        if isinstance(index, int):
            self.reads += 1
        return super().__getitem__(index)


def shifted(pair, millimetres) -> VolumePair:
    affine = pair.moving.grid.affine.copy()
    affine[:3, 3] += millimetres
    return VolumePair(Volume(pair.moving.values, Grid(pair.moving.grid.shape, affine)), pair.fixed)


def test_a_pair_filed_far_apart_is_brought_together(pair):
    far = shifted(pair, (25.0, -15.0, 10.0))
    apart = AlignedPairs([far], size=24, affine="none")[0]
    together = AlignedPairs([far], size=24, affine="auto")[0]
    assert np.linalg.norm(together.affine[:3, 3]) > 15
    assert difference(together) < 0.7 * difference(apart)


def difference(conformed) -> float:
    return float((conformed.moving - conformed.fixed).square().mean())


def test_each_pair_is_read_once_and_the_scans_are_let_go(pair):
    source = Counted([pair, pair.swapped])
    pairs = AlignedPairs(source, size=16, affine="none", labels=True)
    first = pairs[0]
    assert pairs[0] is first and source.reads == 1
    assert first.pair is None and first.moving_labels is not None
    assert len(pairs) == 2 and len(pairs[1:]) == 1


def test_pairs_that_do_not_fit_are_read_again(pair, monkeypatch):
    monkeypatch.setattr(aligned_pairs, "KEPT_BYTES", 10)
    source = Counted([pair])
    pairs = AlignedPairs(source, size=16, affine="none")
    first, again = pairs[0], pairs[0]
    assert source.reads == 2
    assert np.array_equal(first.moving.numpy(), again.moving.numpy())
