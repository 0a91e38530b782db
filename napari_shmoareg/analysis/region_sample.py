"""Regions on the cells of one stride, and what is drawn of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import norm, t

from napari_shmoareg.analysis.expert_maps import ExpertMap, TokenLoad
from napari_shmoareg.analysis.space_blocks import Blocks, Pieces, Runs
from napari_shmoareg.geometry import Grid

FEWEST = 5  # blocks, and tokens; Ours: with fewer the percentiles of a resampling mean little

Floats = NDArray[np.float64]


class Figures(NamedTuple):
    """Of one gate, by region: shares and their intervals (R, N), distances (R,); as in `RegionLoad`."""

    share: Floats
    low: Floats
    high: Floats
    distance: Floats
    expected: Floats


class RegionSample:
    """Regions as parts of blocks; made once, it serves every gate of its stride.

    Parameters
    ----------
    volumes : (cells, R) sparse
        Of `cell_volumes`.
    blocks : Blocks
        Of the same cells.
    reference : int, "regions" or None
        Which of the regions distances are measured from; all of them together; None for all cells.
    draws : int
    seed : int

    Attributes
    ----------
    blocks : (R,) int
        In how many blocks each region lies.
    tokens : (R,) float
        How many cells it holds.
    enough : (R,) bool
        Whether it lies in enough blocks for an interval.
    reference_enough : bool
        Whether the reference lies in enough blocks to tell what chance gives.
    """

    def __init__(
        self, volumes: sparse.csr_matrix, blocks: Blocks, reference: int | str | None, draws: int, seed: int
    ) -> None:
        number = volumes.shape[1]
        self._number, self._draws = number, draws
        self._reference = reference if isinstance(reference, int) else None
        self._pieces = Pieces.of(volumes, blocks)
        self._again = self._pieces.drawn_again(number, draws, seed)
        self._weights = np.ones(volumes.shape[0])
        if reference is not None:
            own = volumes[:, reference] if isinstance(reference, int) else volumes.sum(axis=1)
            self._weights = np.asarray(own.todense() if sparse.issparse(own) else own, dtype=np.float64).ravel()
        self._runs = Runs.of(self._weights, blocks)
        self._chance = self._runs.drawn_as(self._pieces, number, draws, seed + 1)
        self.blocks = np.bincount(self._pieces.region, minlength=number)
        self.tokens = np.bincount(self._pieces.region, weights=self._pieces.tokens, minlength=number)
        self.enough = (self.blocks >= FEWEST) & (self.tokens >= FEWEST)
        self.reference_enough = (self.blocks[reference] if isinstance(reference, int) else self._runs.blocks) >= FEWEST
        self._wider = _widening(self.tokens**2 / np.bincount(self._pieces.region, weights=self._pieces.tokens**2))

    def figures(self, source: TokenLoad | ExpertMap) -> Figures:
        """Count what a gate chose in each region.

        Parameters
        ----------
        source : TokenLoad or ExpertMap
            On the cells that the regions stand on.
        """
        chosen = _chosen(source)
        table = self._pieces.cells @ chosen
        region = self._pieces.region
        share = _shares(np.stack([table[region == r].sum(axis=0) for r in range(self._number)]))
        whole = _shares(self._weights @ chosen) if self._reference is None else share[self._reference]
        ends = np.percentile(self._drawn(self._again @ table), (2.5, 97.5), axis=1)
        low, high = np.clip(share + (ends - share) * self._wider[:, None], 0, 1)
        by_chance = self._drawn(self._chance @ self._runs.total(chosen))
        against = whole if self._reference is None else by_chance[self._reference]
        expected = np.percentile(_distance(by_chance, against), 95, axis=1)
        return Figures(share, low, high, _distance(share, whole), expected)

    def _drawn(self, counts: Floats) -> Floats:
        """Shares (R, draws, N) of what was drawn."""
        return _shares(counts.reshape(self._number, self._draws, -1))


def cell_volumes(network: Grid, stride: int, regions: NDArray[np.int64], number: int) -> sparse.csr_matrix:
    """Share of each cell's volume in each region, padding not counted: a partial cell has fewer voxels.

    Parameters
    ----------
    network : Grid
        Of the network.
    stride : int
        Its voxels per cell.
    regions : (I * J * K,) int
        Of each voxel: 0 to R - 1, or -1 for none.
    number : int
        R.

    Returns
    -------
    (cells, R) sparse
        0 to 1.
    """
    index = [np.arange(n) // stride for n in network.shape]
    cells = network.coarsen(stride).shape
    i, j, k = index
    cell = ((i[:, None, None] * cells[1] + j[:, None]) * cells[2] + k).ravel()
    a, b, c = (np.bincount(axis) for axis in index)
    voxels = (a[:, None, None] * b[:, None] * c).ravel()
    inside = np.flatnonzero(regions >= 0)
    placed = np.ones(len(inside)), (cell[inside], regions[inside])
    counts = sparse.coo_matrix(placed, shape=(len(voxels), number)).tocsr()
    counts.data /= np.repeat(voxels, np.diff(counts.indptr))
    return counts


def _chosen(source: TokenLoad | ExpertMap) -> Floats:
    """Which experts each cell chose: (cells, N), 1 or 0."""
    if isinstance(source, TokenLoad):
        return (source.values != 0).reshape(-1, source.values.shape[-1]).astype(np.float64)
    experts = source.volume.values.ravel().astype(np.int64) - 1
    chosen = np.zeros((len(experts), source.num_experts))
    chosen[np.arange(len(experts)), experts] = 1
    return chosen


def _widening(number: Floats) -> Floats:
    """By how much a percentile interval from so many samples is too narrow: Student's t, and n - 1 for n.

    For pieces of unequal size `number` is as many as equal ones would be worth.
    """
    number = np.maximum(number, 2)
    return np.asarray(t.ppf(0.975, number - 1) / norm.ppf(0.975) * np.sqrt(number / (number - 1)))


def _shares(counts: Floats) -> Floats:
    """Counts (..., N), summing to 1 over N."""
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def _distance(share: Floats, reference: Floats) -> Floats:
    """Total variation distance over the last axis."""
    return np.asarray(np.abs(share - reference).sum(axis=-1) / 2)
