"""Blocks of space: what regions are resampled by.

Neighbouring cells of an image choose alike, so that single voxels would promise far too narrow
intervals.  What is drawn here is cubes of space, or runs of neighbouring cells of one cube.
A draw is a row of a sparse matrix: made once, it serves every gate of a stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from napari_shmoareg.geometry import Grid

NEAR = 0.75

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """A grid of cells, cut into cubes.

    Attributes
    ----------
    of_cell : (cells,) int
        In which cube each cell lies, cells in the order of a flattened array.
    order : (cells,) int
        Cells of a cube by this number follow a Z-order curve: a run of them is a compact piece of
        space.
    grid : Grid
        Of the cells.
    edge : float, mm
        Of a cube, on average.
    """

    of_cell: Ints
    order: Ints
    grid: Grid
    edge: float

    @classmethod
    def cut(cls, grid: Grid, block_mm: float) -> Blocks:
        """Cubes of about `block_mm`: whole cells, at least one along each axis."""
        across = [max(1, round(block_mm / spacing)) for spacing in grid.spacing]
        index = [np.arange(n) for n in grid.shape]
        number = [-(-n // step) for n, step in zip(grid.shape, across, strict=True)]
        i, j, k = (axis // step for axis, step in zip(index, across, strict=True))
        block = (i[:, None, None] * number[1] + j[:, None]) * number[2] + k
        x, y, z = (_spread(axis % step) for axis, step in zip(index, across, strict=True))
        edge = float(np.mean(np.array(across) * grid.spacing))
        return cls(
            block.ravel(), ((x[:, None, None] << 2) | (y[:, None] << 1) | z).ravel(), grid, edge
        )


@dataclass(frozen=True, eq=False)
class Pieces:
    """The part of each block that lies in each region, and draws of these parts.

    Ours: what a wall between blocks cuts through are no two samples.  Parts of a region whose
    middles are nearer to each other than `NEAR` of a block's edge (those of full neighbours are a
    whole one apart) are one piece.

    Attributes
    ----------
    cells : (P, cells) sparse
        How much of a cell belongs to a piece: the share of its volume, 0 to 1.
    region : (P,) int
        Whose piece it is: 0 to R - 1, pieces of a region together.
    tokens : (P,) float
        Cells in a piece.
    """

    cells: sparse.csr_matrix
    region: Ints
    tokens: Floats

    @classmethod
    def of(cls, volumes: sparse.csr_matrix, blocks: Blocks) -> Pieces:
        """Cut regions.

        Parameters
        ----------
        volumes : (cells, R) sparse
            Share of each cell's volume in each region.
        blocks : Blocks
        """
        parts = volumes.tocoo()
        number = int(blocks.of_cell.max()) + 1
        key = parts.col.astype(np.int64) * number + blocks.of_cell[parts.row]
        found, part = np.unique(key, return_inverse=True)
        tokens = np.bincount(part, weights=parts.data).astype(np.float64)
        index = np.unravel_index(parts.row, blocks.grid.shape)
        middle = (
            np.stack([np.bincount(part, weights=parts.data * axis) for axis in index], -1)
            / tokens[:, None]
        )
        kept, piece = _joined(
            found // number, blocks.grid.to_world(middle), tokens, NEAR * blocks.edge
        )
        shape = len(kept), volumes.shape[0]
        cells = sparse.coo_matrix((parts.data, (piece[part], parts.row)), shape=shape).tocsr()
        return cls(cells, (found // number)[kept], np.asarray(cells.sum(axis=1)).ravel())

    def drawn_again(self, regions: int, draws: int, seed: int) -> sparse.csr_matrix:
        """(R * draws, P): each region made `draws` times of as many of its own pieces, with
        replacement.
        """
        rows, columns = [], []
        for region in range(regions):
            mine = np.flatnonzero(self.region == region)
            picked = np.random.default_rng((seed, region)).integers(
                len(mine), size=(draws, len(mine))
            )
            columns.append(mine[picked].ravel())
            rows.append(np.repeat(region * draws + np.arange(draws), len(mine)))
        row, column = np.concatenate(rows), np.concatenate(columns)
        shape = regions * draws, len(self.region)
        return sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=shape).tocsr()


@dataclass(frozen=True, eq=False)
class Runs:
    """The cells of a reference in such an order that neighbours follow each other, block by block.

    Attributes
    ----------
    cells : (n,) int
    weights : (n,) float
        Share of each cell's volume in the reference, above 0.
    key : (n,) int
        Block and place on the Z-order curve, rising.
    bounds : (blocks + 1,) int
        Where each block's cells begin, and n.
    """

    cells: Ints
    weights: Floats
    key: Ints
    bounds: Ints

    @classmethod
    def of(cls, weights: Floats, blocks: Blocks) -> Runs:
        """Of the share (cells,) of each cell that lies in the reference."""
        cells = np.flatnonzero(weights)
        key = (blocks.of_cell[cells] << int(blocks.order.max()).bit_length()) | blocks.order[cells]
        along = np.argsort(key, kind="stable")
        cells, key = cells[along], key[along]
        edges = np.flatnonzero(np.diff(blocks.of_cell[cells])) + 1
        return cls(cells, weights[cells], key, np.concatenate([[0], edges, [len(cells)]]))

    @property
    def blocks(self) -> int:
        """In how many blocks the reference lies."""
        return len(self.bounds) - 1

    def total(self, chosen: Floats) -> Floats:
        """Sums (n + 1, N) of what the cells chose, from the first one on: a run is a difference of
        two rows.
        """
        sums = np.zeros((len(self.cells) + 1, chosen.shape[1]))
        picked = chosen[self.cells]
        picked *= self.weights[:, None]
        np.cumsum(picked, axis=0, out=sums[1:])
        return sums

    def drawn_as(self, pieces: Pieces, regions: int, draws: int, seed: int) -> sparse.csr_matrix:
        """(R * draws, n + 1): each region made `draws` times of the reference.

        For every piece of the region a run as long is taken at random from the reference, within
        one block, and counts as much as the piece: the draw is as large and as scattered as the
        region. A run begins where a cube of the curve does, which keeps it compact.  To be
        multiplied with `total`."""
        along = np.concatenate([[0.0], np.cumsum(self.weights)])
        rows, columns, values = [], [], []
        for region in range(regions):
            tokens = pieces.tokens[pieces.region == region]
            begin = np.random.default_rng((seed, region)).integers(
                len(self.cells), size=(draws, len(tokens))
            )
            block = np.searchsorted(self.bounds, begin, side="right") - 1
            first, stop = self.bounds[block], self.bounds[block + 1]
            length = np.minimum(np.ceil(tokens).astype(np.int64), stop - first)
            # bits of the smallest cube of 2^m cells an edge that holds it
            octant = -(-_bits(length - 1) // 3) * 3
            begin = np.searchsorted(self.key, self.key[begin] >> octant << octant)
            begin = np.clip(begin, first, stop - length)
            factor = tokens / (along[begin + length] - along[begin])
            row = np.repeat(region * draws + np.arange(draws), len(tokens))
            rows += [row, row]
            columns += [(begin + length).ravel(), begin.ravel()]
            values += [factor.ravel(), -factor.ravel()]
        placed = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.coo_matrix(placed, shape=(regions * draws, len(self.cells) + 1)).tocsr()


def _joined(region: Ints, middle: Floats, tokens: Floats, reach: float) -> tuple[Ints, Ints]:
    """Join parts of a region to the largest one within reach (mm): which parts lead, and whom each
    part follows.
    """
    leader = np.full(len(region), -1)
    for which in range(int(region.max()) + 1):
        mine = np.flatnonzero(region == which)
        near = cKDTree(middle[mine])
        for part in np.argsort(-tokens[mine], kind="stable"):
            if leader[mine[part]] < 0:
                around = mine[near.query_ball_point(middle[mine[part]], reach)]
                leader[around[leader[around] < 0]] = mine[part]
    kept, piece = np.unique(leader, return_inverse=True)
    return kept, piece


def _bits(number: Ints) -> Ints:
    """How many binary digits numbers have."""
    return np.frexp(number)[1].astype(np.int64)


def _spread(index: Ints) -> Ints:
    """The bits of numbers, three places apart."""
    spread = np.zeros_like(index)
    for bit in range(int(index.max()).bit_length()):
        spread |= ((index >> bit) & 1) << (3 * bit)
    return spread
