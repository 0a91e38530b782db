"""How often each expert is chosen in a region of the body.

Fig. 6 over regions instead of points.  A load is a share of selections: it does not say how much an
expert contributed, nor that it was chosen well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import norm, t

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.block_bootstrap import Blocks, Pieces, Runs
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.model.routing import AtGate, GateId, RoutedLayer
from napari_shmoareg.registration.register import Registration

FEWEST = 5  # blocks, and tokens; Ours: with fewer the percentiles of a resampling mean little

Floats = NDArray[np.float64]


class Figures(NamedTuple):
    """Of one gate, by region: shares and their intervals (R, N), distances (R,); as in
    `RegionLoad`.
    """

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
        self,
        volumes: sparse.csr_matrix,
        blocks: Blocks,
        reference: int | str | None,
        draws: int,
        seed: int,
    ) -> None:
        number = volumes.shape[1]
        self._number, self._draws = number, draws
        self._reference = reference if isinstance(reference, int) else None
        self._pieces = Pieces.of(volumes, blocks)
        self._again = self._pieces.drawn_again(number, draws, seed)
        self._weights = np.ones(volumes.shape[0])
        if reference is not None:
            own = volumes[:, reference] if isinstance(reference, int) else volumes.sum(axis=1)
            self._weights = np.asarray(
                own.todense() if sparse.issparse(own) else own, dtype=np.float64
            ).ravel()
        self._runs = Runs.of(self._weights, blocks)
        self._chance = self._runs.drawn_as(self._pieces, number, draws, seed + 1)
        self.blocks = np.bincount(self._pieces.region, minlength=number)
        self.tokens = np.bincount(
            self._pieces.region, weights=self._pieces.tokens, minlength=number
        )
        self.enough = (self.blocks >= FEWEST) & (self.tokens >= FEWEST)
        self.reference_enough = (
            self.blocks[reference] if isinstance(reference, int) else self._runs.blocks
        ) >= FEWEST
        self._wider = _widening(
            self.tokens**2 / np.bincount(self._pieces.region, weights=self._pieces.tokens**2)
        )

    def figures(self, record: RoutedLayer) -> Figures:
        """Count what a gate chose in each region.

        Parameters
        ----------
        record : RoutedLayer
            On the cells that the regions stand on.
        """
        chosen = _chosen(record)
        table = self._pieces.cells @ chosen
        region = self._pieces.region
        share = _shares(np.stack([table[region == r].sum(axis=0) for r in range(self._number)]))
        whole = (
            _shares(self._weights @ chosen) if self._reference is None else share[self._reference]
        )
        ends = np.percentile(self._drawn(self._again @ table), (2.5, 97.5), axis=1)
        low, high = np.clip(share + (ends - share) * self._wider[:, None], 0, 1)
        by_chance = self._drawn(self._chance @ self._runs.total(chosen))
        against = whole if self._reference is None else by_chance[self._reference]
        expected = np.percentile(_distance(by_chance, against), 95, axis=1)
        return Figures(share, low, high, _distance(share, whole), expected)

    def _drawn(self, counts: Floats) -> Floats:
        """Shares (R, draws, N) of what was drawn."""
        return _shares(counts.reshape(self._number, self._draws, -1))


def cell_volumes(
    network: Grid, stride: int, regions: NDArray[np.int64], number: int
) -> sparse.csr_matrix:
    """Share of each cell's volume in each region, padding not counted: a partial cell has fewer
    voxels.

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


def _chosen(record: RoutedLayer) -> Floats:
    """Which experts each cell chose: (cells, N), 1 or 0."""
    experts = record.routing.experts[0].flatten(1).numpy(force=True).astype(np.int64)
    chosen = np.zeros((experts.shape[1], record.num_experts))
    np.put_along_axis(chosen, experts.T, 1, axis=1)
    return chosen


def _widening(number: Floats) -> Floats:
    """By how much a percentile interval from so many samples is too narrow: Student's t, and n - 1
    for n.

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


TOGETHER: Literal["regions"] = "regions"


@dataclass(frozen=True, eq=False)
class RegionLoad(AtGate):
    """The load of one gate in one region.

    Attributes
    ----------
    gate : GateId
        Where in the network the gate stands.
    region : int
        The label.
    name : str
        Of the region, for people.
    share : (N,) array
        Of the selections made in the region; sums to 1.
    low, high : (N,) array or None
        Ends of the 95 % interval of each share, by resampling blocks of space; None where the
        region lies in fewer than 5 blocks, or has fewer than 5 tokens.
    tokens : float
        Cells behind the figures; a cell counts by the share of its volume that lies in the region.
    blocks : int
        Blocks of space that hold any of it; parts that only a wall between blocks divides are one.
    distance : float
        Total variation distance, 0 to 1, between the share and that of the reference: half the sum
        of the absolute differences.
    expected : float or None
        95th percentile of that distance for regions as large, in as many blocks, drawn at random
        from the reference: a distance below it is what chance gives.  Where the reference is a
        region, it is drawn again too.  None where the reference lies in fewer than 5 blocks.
    """

    gate: GateId
    region: int
    name: str
    share: Floats
    low: Floats | None
    high: Floats | None
    tokens: float
    blocks: int
    distance: float
    expected: float | None


def region_loads(
    registration: Registration,
    labels: Volume,
    *,
    names: Mapping[int, str] | None = None,
    reference: int | Literal["regions"] | None = None,
    block_mm: float = 24.0,
    draws: int = 400,
    seed: int = 0,
    **where: object,
) -> list[RegionLoad]:
    """Loads per gate and region, with how sure they are.

    Neighbouring cells choose alike, so the sample is blocks of space, not voxels: the interval
    comes from drawing the region's blocks with replacement, the distance that chance gives from
    drawing pieces of as many blocks from the reference.  Both speak of this pair alone, not of
    other bodies, and trust that cells a block apart choose by themselves.  95 % is meant; of balls
    of 8 to 35 mm in noise that is smooth over up to half a block, 86 to 95 % of the intervals held
    the truth, and 87 % or more of the distances stayed below `expected` (60 images each).  Nothing
    corrects for looking at many regions and gates at once: one in twenty lies above by chance.

    Parameters
    ----------
    registration : Registration
    labels : Volume
        Regions in the world of the fixed image, on any grid; 0 is outside.  They are put on the
        network grid once, by nearest neighbour; what lies outside of it is not counted, nor is
        padding.
    names : mapping of int to str, optional
        Of the labels; "label 3" where there is none.
    reference : int, "regions" or None
        The label to measure distances from; "regions" is all of them together, which leaves air
        out; None is the whole image, in which every cell counts.
    block_mm : float
        Edge of a block; rounded to whole cells of each gate, at least one.
    draws : int
        How often to resample.
    seed : int
    **where
        Only gates with these fields: ``region_loads(registration, labels, part="decoder",
        layer=1)``.

    Returns
    -------
    list of RegionLoad
        Gate by gate (encoder, then decoder), regions by label; those that no middle of a voxel of
        the network grid lies in are left out.

    Raises
    ------
    InputError
        If these are no labels, none of them (or not the reference) lies on the network grid, or a
        number is out of its range.
    """
    if not (np.isfinite(block_mm) and block_mm > 0) or draws < 1:
        raise InputError(f"block_mm and draws are numbers above 0; got {block_mm} and {draws}.")
    if unknown := set(where) - set(GateId._fields):
        raise InputError(
            f"A gate has no {', '.join(sorted(unknown))}; its fields are"
            f" {', '.join(GateId._fields)}."
        )
    ids, regions = _on_network(labels, registration.network_grid)
    if reference not in (None, TOGETHER) and reference not in ids:
        raise InputError(
            f"The reference {reference} is none of the regions in the network's field of view:"
            f" {ids}."
        )
    names = names or {}
    named = [(label, names.get(label, f"label {label}")) for label in ids]
    whose = reference if reference in (None, TOGETHER) else ids.index(index(reference))  # type: ignore[arg-type]
    samples: dict[int, RegionSample] = {}
    loads = []
    for record in registration.routing.select(**where):
        if record.stride not in samples:
            volumes = cell_volumes(registration.network_grid, record.stride, regions, len(ids))
            blocks = Blocks.cut(registration.network_grid.coarsen(record.stride), block_mm)
            samples[record.stride] = RegionSample(volumes, blocks, whose, draws, seed)
        loads += _loads(record, samples[record.stride], named)
    return loads


def _loads(
    record: RoutedLayer, sample: RegionSample, named: list[tuple[int, str]]
) -> list[RegionLoad]:
    """Of one gate, region by region."""
    found = sample.figures(record)
    return [
        RegionLoad(
            gate=record.gate,
            region=label,
            name=name,
            share=found.share[r],
            low=found.low[r] if sample.enough[r] else None,
            high=found.high[r] if sample.enough[r] else None,
            tokens=float(sample.tokens[r]),
            blocks=int(sample.blocks[r]),
            distance=float(found.distance[r]),
            expected=float(found.expected[r]) if sample.reference_enough else None,
        )
        for r, (label, name) in enumerate(named)
    ]


def _on_network(labels: Volume, grid: Grid) -> tuple[list[int], NDArray[np.int64]]:
    """The labels that are found on the network grid, and which of them each voxel (I * J * K,) has;
    -1 is none.
    """
    if not labels.is_labels:
        raise InputError(
            f"'{labels.name}' is an image; regions are a label map (a Volume with is_labels=True)."
        )
    carried = resample(labels, grid)
    ids = carried.labels
    if not ids:
        voxels = np.argwhere(labels.values != 0)
        index = np.rint(grid.to_index(labels.grid.to_world(voxels)))
        if ((index >= 0) & (index < grid.shape)).all(axis=-1).any():
            raise InputError(
                f"The regions of '{labels.name}' are smaller than the voxels of the network grid"
                f" ({max(grid.spacing):.2f} mm) and fall between their middles. Draw a larger"
                " region."
            )
        raise InputError(
            f"No region of '{labels.name}' lies in the network's field of view. Give labels of the"
            " fixed image."
        )
    values = carried.values.ravel()
    found = np.searchsorted(ids, values).clip(max=len(ids) - 1)
    return ids, np.where(values != 0, found, -1)
