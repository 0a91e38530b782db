"""Block bootstrap over space, for intervals of regional loads.

Neighbouring cells of an image choose similar experts, so resampling single voxels would give
intervals that are far too narrow.  This module resamples cubes of space, or runs of neighbouring
cells of one cube.  A draw is a row of a sparse matrix, which serves every gate of a stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from napari_shmoareg.geometry import Grid

MIN_SEPARATION = 0.75

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """A grid of cells, divided into cubes.

    Attributes
    ----------
    of_cell : (cells,) int
        Index of the cube of each cell; cells in the order of a flattened array.
    order : (cells,) int
        Position on a Z-order curve within the cube: a run of cells is a compact piece of space.
    grid : Grid
        Grid of the cells.
    edge : float, mm
        Mean edge length of a cube.
    """

    of_cell: Ints
    order: Ints
    grid: Grid
    edge: float

    @classmethod
    def cut(cls, grid: Grid, block_mm: float) -> Blocks:
        """Divide a grid into cubes of about `block_mm`: whole cells, at least one per axis."""
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

    Ours: a block boundary through a region does not make two samples.  Parts of a region whose
    centres are closer than `MIN_SEPARATION` of a block's edge (those of full neighbours are one
    edge apart) are one piece.

    Attributes
    ----------
    cells : (P, cells) sparse
        Share of each cell's volume that belongs to a piece, 0 to 1.
    region : (P,) int
        Region of each piece, 0 to R - 1; pieces of a region follow each other.
    tokens : (P,) float
        Number of cells in a piece.
    """

    cells: sparse.csr_matrix
    region: Ints
    tokens: Floats

    @classmethod
    def of(cls, volumes: sparse.csr_matrix, blocks: Blocks) -> Pieces:
        """Divide regions by blocks; `volumes` (cells, R): share of each cell per region."""
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
        leaders, piece = _join(
            found // number, blocks.grid.to_world(middle), tokens, MIN_SEPARATION * blocks.edge
        )
        shape = len(leaders), volumes.shape[0]
        cells = sparse.coo_matrix((parts.data, (piece[part], parts.row)), shape=shape).tocsr()
        return cls(cells, (found // number)[leaders], np.asarray(cells.sum(axis=1)).ravel())

    def bootstrap(self, regions: int, draws: int, seed: int) -> sparse.csr_matrix:
        """Resample each region `draws` times from its own pieces: (R * draws, P)."""
        rows, columns = [], []
        for region in range(regions):
            members = np.flatnonzero(self.region == region)
            picked = np.random.default_rng((seed, region)).integers(
                len(members), size=(draws, len(members))
            )
            columns.append(members[picked].ravel())
            rows.append(np.repeat(region * draws + np.arange(draws), len(members)))
        row, column = np.concatenate(rows), np.concatenate(columns)
        shape = regions * draws, len(self.region)
        return sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=shape).tocsr()


@dataclass(frozen=True, eq=False)
class Runs:
    """The cells of a reference, block by block, ordered so that neighbours follow each other.

    Attributes
    ----------
    cells : (n,) int
    weights : (n,) float
        Share of each cell's volume in the reference, above 0.
    key : (n,) int
        Block and position on the Z-order curve, ascending.
    bounds : (blocks + 1,) int
        Index of each block's first cell, and n.
    """

    cells: Ints
    weights: Floats
    key: Ints
    bounds: Ints

    @classmethod
    def of(cls, weights: Floats, blocks: Blocks) -> Runs:
        """Order the cells by block; `weights` (cells,): share of each cell in the reference."""
        cells = np.flatnonzero(weights)
        key = (blocks.of_cell[cells] << int(blocks.order.max()).bit_length()) | blocks.order[cells]
        along = np.argsort(key, kind="stable")
        cells, key = cells[along], key[along]
        edges = np.flatnonzero(np.diff(blocks.of_cell[cells])) + 1
        return cls(cells, weights[cells], key, np.concatenate([[0], edges, [len(cells)]]))

    @property
    def blocks(self) -> int:
        """Number of blocks that the reference covers."""
        return len(self.bounds) - 1

    def total(self, chosen: Floats) -> Floats:
        """Cumulative sums (n + 1, N) of the choices: a run is the difference of two rows."""
        sums = np.zeros((len(self.cells) + 1, chosen.shape[1]))
        picked = chosen[self.cells]
        picked *= self.weights[:, None]
        np.cumsum(picked, axis=0, out=sums[1:])
        return sums

    def draw_like(self, pieces: Pieces, regions: int, draws: int, seed: int) -> sparse.csr_matrix:
        """Draw each region `draws` times from the reference: (R * draws, n + 1), to be multiplied
        with `total`.

        For every piece of the region, a random run of the same length is taken from one block of
        the reference and weighted like the piece, so the draw is as large and as scattered as the
        region.  A run begins at a cube of the curve, which keeps it compact."""
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
            # bits of the smallest cube with an edge of 2^m cells that holds the run
            octant = -(-_bits(length - 1) // 3) * 3
            begin = np.searchsorted(self.key, self.key[begin] >> octant << octant)
            begin = np.clip(begin, first, stop - length)
            factor = tokens / (along[begin + length] - along[begin])
            row = np.repeat(region * draws + np.arange(draws), len(tokens))
            rows += [row, row]
            columns += [(begin + length).ravel(), begin.ravel()]
            values += [factor.ravel(), -factor.ravel()]
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.coo_matrix(entries, shape=(regions * draws, len(self.cells) + 1)).tocsr()


def _join(region: Ints, middle: Floats, tokens: Floats, reach: float) -> tuple[Ints, Ints]:
    """Join parts of a region to the largest one within reach (mm).

    Returns the leading parts, and for each part the index of its leader.
    """
    leader = np.full(len(region), -1)
    for index in range(int(region.max()) + 1):
        members = np.flatnonzero(region == index)
        near = cKDTree(middle[members])
        for part in np.argsort(-tokens[members], kind="stable"):
            if leader[members[part]] < 0:
                around = members[near.query_ball_point(middle[members[part]], reach)]
                leader[around[leader[around] < 0]] = members[part]
    leaders, piece = np.unique(leader, return_inverse=True)
    return leaders, piece


def _bits(number: Ints) -> Ints:
    """Number of binary digits."""
    return np.frexp(number)[1].astype(np.int64)


def _spread(index: Ints) -> Ints:
    """Spread the bits of numbers three places apart."""
    spread = np.zeros_like(index)
    for bit in range(int(index.max()).bit_length()):
        spread |= ((index >> bit) & 1) << (3 * bit)
    return spread
