"""Expert loads in regions of the body.

Fig. 6 for regions instead of points.  A load is a share of selections: it does not show how much an
expert contributed, nor whether the choice was good.
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

MIN_BLOCKS = 5  # blocks, and tokens; Ours: with fewer, bootstrap percentiles mean little

Floats = NDArray[np.float64]


class Figures(NamedTuple):
    """Figures of one gate: shares and intervals (R, N), distances (R,); see `RegionLoad`."""

    share: Floats
    low: Floats
    high: Floats
    distance: Floats
    expected: Floats


class RegionSample:
    """Regions divided by blocks, with bootstrap draws; shared by all gates of a stride.

    Parameters
    ----------
    volumes : (cells, R) sparse
        From `cell_volumes`.
    blocks : Blocks
        Of the same cells.
    reference : int, "regions" or None
        Index of the region that distances are measured from; all regions together; or all cells.
    draws : int
    seed : int

    Attributes
    ----------
    blocks : (R,) int
        Number of blocks per region.
    tokens : (R,) float
        Number of cells per region.
    enough : (R,) bool
        Whether a region has enough blocks and cells for an interval.
    reference_enough : bool
        Whether the reference has enough blocks for the distance expected by chance.
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
        self._bootstrap_draws = self._pieces.bootstrap(number, draws, seed)
        self._weights = np.ones(volumes.shape[0])
        if reference is not None:
            own = volumes[:, reference] if isinstance(reference, int) else volumes.sum(axis=1)
            self._weights = np.asarray(
                own.todense() if sparse.issparse(own) else own, dtype=np.float64
            ).ravel()
        self._runs = Runs.of(self._weights, blocks)
        self._chance_draws = self._runs.draw_like(self._pieces, number, draws, seed + 1)
        self.blocks = np.bincount(self._pieces.region, minlength=number)
        self.tokens = np.bincount(
            self._pieces.region, weights=self._pieces.tokens, minlength=number
        )
        self.enough = (self.blocks >= MIN_BLOCKS) & (self.tokens >= MIN_BLOCKS)
        self.reference_enough = (
            self.blocks[reference] if isinstance(reference, int) else self._runs.blocks
        ) >= MIN_BLOCKS
        self._widening_factor = _widening(
            self.tokens**2 / np.bincount(self._pieces.region, weights=self._pieces.tokens**2)
        )

    def figures(self, record: RoutedLayer) -> Figures:
        """Count the choices of a gate in each region."""
        chosen = _chosen(record)
        table = self._pieces.cells @ chosen
        region = self._pieces.region
        share = _shares(np.stack([table[region == r].sum(axis=0) for r in range(self._number)]))
        whole = (
            _shares(self._weights @ chosen) if self._reference is None else share[self._reference]
        )
        ends = np.percentile(self._draw_shares(self._bootstrap_draws @ table), (2.5, 97.5), axis=1)
        low, high = np.clip(share + (ends - share) * self._widening_factor[:, None], 0, 1)
        by_chance = self._draw_shares(self._chance_draws @ self._runs.total(chosen))
        against = whole if self._reference is None else by_chance[self._reference]
        expected = np.percentile(_distance(by_chance, against), 95, axis=1)
        return Figures(share, low, high, _distance(share, whole), expected)

    def _draw_shares(self, counts: Floats) -> Floats:
        """Shares (R, draws, N) of the draws."""
        return _shares(counts.reshape(self._number, self._draws, -1))


def cell_volumes(
    network: Grid, stride: int, regions: NDArray[np.int64], number: int
) -> sparse.csr_matrix:
    """Share of each cell's volume in each region (cells, R), 0 to 1; padding is not counted.

    Parameters
    ----------
    network : Grid
    stride : int
        Voxels of the network grid per cell.
    regions : (I * J * K,) int
        Region of each voxel, 0 to R - 1, or -1 for none.
    number : int
        R.
    """
    index = [np.arange(n) // stride for n in network.shape]
    cells = network.coarsen(stride).shape
    i, j, k = index
    cell = ((i[:, None, None] * cells[1] + j[:, None]) * cells[2] + k).ravel()
    a, b, c = (np.bincount(axis) for axis in index)
    voxels = (a[:, None, None] * b[:, None] * c).ravel()
    inside = np.flatnonzero(regions >= 0)
    entries = np.ones(len(inside)), (cell[inside], regions[inside])
    counts = sparse.coo_matrix(entries, shape=(len(voxels), number)).tocsr()
    counts.data /= np.repeat(voxels, np.diff(counts.indptr))
    return counts


def _chosen(record: RoutedLayer) -> Floats:
    """The choices of each cell: (cells, N), 1 or 0."""
    experts = record.routing.experts[0].flatten(1).numpy(force=True).astype(np.int64)
    chosen = np.zeros((experts.shape[1], record.num_experts))
    np.put_along_axis(chosen, experts.T, 1, axis=1)
    return chosen


def _widening(number: Floats) -> Floats:
    """Factor by which a percentile interval of n samples is too narrow: Student's t, n - 1 for n.

    For pieces of unequal size, `number` is the effective sample size.
    """
    number = np.maximum(number, 2)
    return np.asarray(t.ppf(0.975, number - 1) / norm.ppf(0.975) * np.sqrt(number / (number - 1)))


def _shares(counts: Floats) -> Floats:
    """Normalise counts (..., N) to sum to 1 over N."""
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def _distance(share: Floats, reference: Floats) -> Floats:
    """Total variation distance over the last axis."""
    return np.asarray(np.abs(share - reference).sum(axis=-1) / 2)


ALL_REGIONS: Literal["regions"] = "regions"


@dataclass(frozen=True, eq=False)
class RegionLoad(AtGate):
    """The load of one gate in one region.

    Attributes
    ----------
    gate : GateId
    region : int
        The label.
    name : str
        Display name of the region.
    share : (N,) array
        Share of the selections in the region; sums to 1.
    low, high : (N,) array or None
        Ends of the 95 % interval of each share, by resampling blocks of space; None if the region
        has fewer than 5 blocks or 5 tokens.
    tokens : float
        Number of cells, each counted by the share of its volume inside the region.
    blocks : int
        Number of blocks of space; adjacent parts that only a block boundary separates are one.
    distance : float
        Total variation distance between the shares of region and reference, 0 to 1: half the sum
        of the absolute differences.
    expected : float or None
        95th percentile of that distance for random parts of the reference of the same size and
        number of blocks: smaller distances are chance.  If the reference is a region, it is
        resampled too.  None if the reference has fewer than 5 blocks.
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
    """Compute loads per gate and region, with intervals.

    Neighbouring cells choose similarly, so blocks of space are resampled, not voxels.  The interval
    comes from drawing the region's blocks with replacement; the distance expected by chance from
    drawing pieces of the same number of blocks from the reference.  Both hold for this pair alone,
    and assume that cells one block apart choose independently.  The nominal level is 95 %: for
    balls of 8 to 35 mm in noise that is smooth over up to half a block, 86 to 95 % of the intervals
    covered the truth, and 87 % or more of the distances were below `expected` (60 images each).
    There is no correction for testing many regions and gates: one in twenty exceeds by chance.

    Parameters
    ----------
    registration : Registration
    labels : Volume
        Regions in the world of the fixed image, on any grid; 0 is outside.  They are resampled to
        the network grid by nearest neighbour.  Voxels outside it and padding are not counted.
    names : mapping of int to str, optional
        Names of the labels; "label 3" by default.
    reference : int, "regions" or None
        The label to measure distances from; "regions" is all labels together, which excludes air;
        None is the whole image.
    block_mm : float
        Edge of a block; rounded to whole cells of each gate, at least one.
    draws : int
        Number of bootstrap samples.
    seed : int
    **where
        Only gates with these fields: ``region_loads(registration, labels, part="decoder",
        layer=1)``.

    Returns
    -------
    list of RegionLoad
        By gate (encoder, then decoder), then by label.  Regions without a voxel centre of the
        network grid are left out.

    Raises
    ------
    InputError
        If the volume is no label map, no label (or not the reference) is on the network grid, or a
        number is out of range.
    """
    if not (np.isfinite(block_mm) and block_mm > 0) or draws < 1:
        raise InputError(
            f"block_mm and draws must be finite and above 0; got {block_mm} and {draws}."
        )
    if unknown := set(where) - set(GateId._fields):
        raise InputError(
            f"A gate has no field {', '.join(sorted(unknown))}; its fields are"
            f" {', '.join(GateId._fields)}."
        )
    ids, regions = _on_network(labels, registration.network_grid)
    if reference not in (None, ALL_REGIONS) and reference not in ids:
        raise InputError(
            f"The reference {reference} is not among the regions in the network's field of view:"
            f" {ids}."
        )
    names = names or {}
    named_regions = [(label, names.get(label, f"label {label}")) for label in ids]
    position = reference if reference in (None, ALL_REGIONS) else ids.index(index(reference))  # type: ignore[arg-type]
    samples: dict[int, RegionSample] = {}
    loads = []
    for record in registration.routing.select(**where):
        if record.stride not in samples:
            volumes = cell_volumes(registration.network_grid, record.stride, regions, len(ids))
            blocks = Blocks.cut(registration.network_grid.coarsen(record.stride), block_mm)
            samples[record.stride] = RegionSample(volumes, blocks, position, draws, seed)
        loads += _loads(record, samples[record.stride], named_regions)
    return loads


def _loads(
    record: RoutedLayer, sample: RegionSample, named_regions: list[tuple[int, str]]
) -> list[RegionLoad]:
    """The loads of one gate, by region."""
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
        for r, (label, name) in enumerate(named_regions)
    ]


def _on_network(labels: Volume, grid: Grid) -> tuple[list[int], NDArray[np.int64]]:
    """The labels on the network grid, and their index per voxel (I * J * K,), -1 for none."""
    if not labels.is_labels:
        raise InputError(
            f"'{labels.name}' is an image; regions are a label map (a Volume with is_labels=True)."
        )
    resampled = resample(labels, grid)
    ids = resampled.labels
    if not ids:
        voxels = np.argwhere(labels.values != 0)
        index = np.rint(grid.to_index(labels.grid.to_world(voxels)))
        if ((index >= 0) & (index < grid.shape)).all(axis=-1).any():
            raise InputError(
                f"The regions of '{labels.name}' are smaller than the voxels of the network grid"
                f" ({max(grid.spacing):.2f} mm) and fall between their centres. Draw a larger"
                " region."
            )
        raise InputError(
            f"No region of '{labels.name}' lies in the network's field of view. Give labels of the"
            " fixed image."
        )
    values = resampled.values.ravel()
    found = np.searchsorted(ids, values).clip(max=len(ids) - 1)
    return ids, np.where(values != 0, found, -1)
