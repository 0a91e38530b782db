"""Expert choices at a location in the body, in one pair or over many.  Fig. 6(a), Sec. V-D.

Encoder: the tokens of both images that cover the location.  Decoder: its cell, per direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.experts.maps import cells_of, entropy_of, has_values, margin_of
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model.routing import AtGate, GateId, RoutedLayer
from napari_shmoareg.registration.intensity import Intensity, content_points
from napari_shmoareg.registration.register import Registration

Cell = tuple[int, int, int]

_SLACK = 1e-6  # voxels; rounding of the matrices


@dataclass(frozen=True, eq=False)
class CellReading(AtGate):
    """Decision of one gate for the cell that covers a location.

    Attributes
    ----------
    gate : GateId
    stride : int
        Voxels of the network grid per cell.
    num_experts : int
    cell : tuple of 3 int
        Index of the cell on its own grid, `network_grid.coarsen(stride)`.
    centre : (3,) array, mm RAS
        Centre of the cell; the field of view ends inside a last, partial cell.
    size : (3,) array, mm
        Extent along the three axes of the grid.
    experts : tuple of int
        The chosen experts, the most probable first.
    weights : tuple of float
        Factor of each chosen expert's output: Eq. (4) in the encoder, T of Eq. (6) in the decoder.
        NaN if unknown: decoders of folders without gate values.
    values : tuple of float or None
        Gate values of the N experts; None if they were not saved.
    entropy, margin : float or None
        `entropy_of` and `margin_of` of the values.
    """

    gate: GateId
    stride: int
    num_experts: int
    cell: Cell
    centre: NDArray[np.float64]
    size: NDArray[np.float64]
    experts: tuple[int, ...]
    weights: tuple[float, ...]
    values: tuple[float, ...] | None
    entropy: float | None
    margin: float | None


@dataclass(frozen=True, eq=False)
class LocationReading:
    """Decisions of all gates for one location.

    Attributes
    ----------
    point : (3,) array, mm RAS
        In the world of the fixed image.
    cells : tuple of CellReading
        Encoder by layer, block, moving then fixed; then decoder by layer, x y z.
    """

    point: NDArray[np.float64]
    cells: tuple[CellReading, ...]

    def select(self, **where: object) -> tuple[CellReading, ...]:
        """Select cells by the fields of their gate: ``reading.select(layer=1, image="fixed")``."""
        return tuple(c for c in self.cells if c.gate.matches(**where))

    @property
    def encoder(self) -> tuple[CellReading, ...]:
        """Tokens of the moving and the fixed image."""
        return self.select(part="encoder")

    @property
    def decoder(self) -> tuple[CellReading, ...]:
        """Cells of the displacement's components."""
        return self.select(part="decoder")


def read_location(registration: Registration, point: ArrayLike) -> LocationReading:
    """Look up the decision of every gate at a location.

    Parameters
    ----------
    registration : Registration
    point : (3,) array, mm RAS
        In the world of the fixed image.  The same point is used for the tokens of the moving image,
        which the network sees after the affine and any earlier passes.

    Returns
    -------
    LocationReading
        Of the cells that contain the point; on the border of two, the one with the higher index.

    Raises
    ------
    InputError
        If the point is not three finite numbers, or is outside the network's field of view.
    """
    position = np.asarray(point, dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise InputError(f"A location is three finite numbers, mm RAS; got {point!r}.")
    voxel = voxel_at(registration.network_grid, position)
    cells = [_reading(registration, record, voxel) for record in registration.routing]
    return LocationReading(position, tuple(sorted(cells, key=_rank)))


def voxel_at(grid: Grid, point: NDArray[np.float64]) -> Cell:
    """Index of the voxel of the network grid at a point, mm RAS; a gate's cell is index // stride.

    Raises
    ------
    InputError
        If the point is outside the grid's field of view.
    """
    index = grid.to_index(point)
    if not ((index >= -0.5 - _SLACK) & (index <= np.array(grid.shape) - 0.5 + _SLACK)).all():
        low, high = grid.corners().min(axis=0), grid.corners().max(axis=0)
        reach = ", ".join(
            f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("RAS", low, high, strict=True)
        )
        raise InputError(
            f"({', '.join(f'{value:.1f}' for value in point)}) mm is outside the network's field of"
            f" view: {reach} mm (RAS{', oblique' if _is_oblique(grid) else ''}). Choose a location"
            " inside."
        )
    i, j, k = np.clip(np.floor(index + 0.5), 0, np.array(grid.shape) - 1).astype(int).tolist()
    return i, j, k


def _is_oblique(grid: Grid) -> bool:
    return bool(np.count_nonzero(np.abs(grid.affine[:3, :3]) > _SLACK) > 3)


def _reading(registration: Registration, record: RoutedLayer, voxel: Cell) -> CellReading:
    i, j, k = cell = (
        voxel[0] // record.stride,
        voxel[1] // record.stride,
        voxel[2] // record.stride,
    )
    grid = cells_of(registration, record)
    found, experts, weights = (tensor[0, :, i, j, k].cpu() for tensor in record.routing)
    values = found.float().numpy()
    has_gate_values = has_values(record)
    return CellReading(
        gate=record.gate,
        stride=record.stride,
        num_experts=record.num_experts,
        cell=cell,
        centre=grid.to_world(cell),
        size=np.array(grid.spacing),
        experts=tuple(experts.tolist()),
        weights=tuple(weights.tolist()),
        values=tuple(values.tolist()) if has_gate_values else None,
        entropy=float(entropy_of(values)) if has_gate_values else None,
        margin=float(margin_of(values, len(experts))) if has_gate_values else None,
    )


def _rank(reading: CellReading) -> tuple[bool, int, int, bool, str]:
    """Sort key: encoder by layer, block, moving then fixed; decoder by layer and direction."""
    part, layer, block, image, direction = reading.gate
    return part != "encoder", layer, block or 0, image == "fixed", direction or ""


CENTRE, BOUNDARY = "centre", "boundary"
FRACTIONS = {
    CENTRE: (0.5, 0.5),
    "upper left": (0.25, 0.75),
    "upper right": (0.75, 0.75),
    "lower left": (0.25, 0.25),
    "lower right": (0.75, 0.25),
}
"""Ours: the five tokens of Fig. 6(a), as fractions (right, anterior) of the bounding box of the
fixed image's content, in its middle axial plane.  Upper is anterior; left and right are the
patient's."""


@dataclass(frozen=True, eq=False)
class LocationLoad:
    """Counts of selections per named location, gate and expert; pairs add with ``+``.

    Parameters
    ----------
    loads : mapping of str to ExpertLoad
        Choices of the one cell of each gate at the location: `cells` is the number of pairs.
    """

    loads: Mapping[str, ExpertLoad]

    @classmethod
    def of(cls, registration: Registration, locations: Mapping[str, ArrayLike]) -> LocationLoad:
        """Count one pair: each gate once at each location.

        Parameters
        ----------
        registration : Registration
        locations : mapping of name to (3,) world position, mm RAS
            In the fixed image's world.  The same location of the network grid is used for the
            tokens of the moving image, which was resampled there through the affine.

        Raises
        ------
        InputError
            If a location is outside the network grid.
        """
        return cls(
            {
                name: _load_at(registration, np.asarray(p, dtype=np.float64))
                for name, p in locations.items()
            }
        )

    def __add__(self, other: LocationLoad) -> LocationLoad:
        """Counts of both; locations that only one of them has are kept."""
        nothing = ExpertLoad({}, {})
        names = dict.fromkeys([*self.loads, *other.loads])
        return LocationLoad(
            {n: self.loads.get(n, nothing) + other.loads.get(n, nothing) for n in names}
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.loads)

    def __len__(self) -> int:
        return len(self.loads)

    def __getitem__(self, name: str) -> ExpertLoad:
        return self.loads[name]

    @property
    def share(self) -> dict[str, dict[GateId, NDArray[np.float64]]]:
        """Share of selections (N,) per location and gate, summing to 1."""
        return {name: load.share for name, load in self.loads.items()}

    @property
    def share_of_tokens(self) -> dict[str, dict[GateId, NDArray[np.float64]]]:
        """How often the cell chose each expert, (N,) per location and gate; sums to k.  Fig. 6."""
        return {name: load.share_of_tokens for name, load in self.loads.items()}

    def over_blocks(self) -> LocationLoad:
        """Sum over the blocks of each encoder layer."""
        return LocationLoad({name: load.over_blocks() for name, load in self.loads.items()})

    def rows(self) -> list[dict[str, object]]:
        """One dict per location, gate and expert: place, the columns of `ExpertLoad.rows`, cells,
        share_of_tokens.
        """
        return [
            {"place": name} | row
            for name, load in self.loads.items()
            for row in detailed_rows(load)
        ]


class Boundary(NamedTuple):
    """A voxel beside another label.

    Attributes
    ----------
    point : (3,) array
        Centre of the voxel, mm RAS.
    labels : (int, int)
        Label of the voxel and of its neighbour (0: outside all labels).
    """

    point: NDArray[np.float64]
    labels: tuple[int, int]


def five_locations(fixed: Volume) -> dict[str, NDArray[np.float64]]:
    """World positions (mm RAS) of the locations of `FRACTIONS` in the box around image content."""
    grid = fixed.grid.canonical()
    index = grid.to_index(fixed.grid.to_world(content_points(fixed, Intensity.of(fixed))))
    low, high = index.min(axis=0) - 0.5, index.max(axis=0) + 0.5
    return {
        name: grid.to_world(low + np.array([right, front, 0.5]) * (high - low))
        for name, (right, front) in FRACTIONS.items()
    }


def boundary_location(labels: Volume, near: ArrayLike) -> Boundary | None:
    """Find the voxel nearest to a point that has a face neighbour with another label.

    A boundary between two labels is preferred to one with the outside; None if there is neither.

    Parameters
    ----------
    labels : Volume
        Of the fixed image; 0 is outside.
    near : (3,) world position, mm RAS
    """
    for inside in (True, False):
        here, there = _neighbours(labels.values, both_inside=inside)
        if len(here):
            distance = np.linalg.norm(labels.grid.to_world(here) - np.asarray(near), axis=1)
            first = int(distance.argmin())
            pair = tuple(int(labels.values[tuple(side[first])]) for side in (here, there))
            return Boundary(labels.grid.to_world(here[first]), (pair[0], pair[1]))
    return None


def detailed_rows(load: ExpertLoad) -> list[dict[str, object]]:
    """The rows of a load, with counted cells and share of tokens."""
    share = load.share_of_tokens
    rows = load.rows()
    gates = [gate for gate, counts in load.counts.items() for _ in counts]
    return [
        row
        | {
            "cells": load.cells[gate],
            "share_of_tokens": float(share[gate][int(str(row["expert"]))]),
        }
        for gate, row in zip(gates, rows, strict=True)
    ]


def _load_at(registration: Registration, point: NDArray[np.float64]) -> ExpertLoad:
    """Load of the one cell of each gate that contains a point."""
    voxel = voxel_at(registration.network_grid, point)
    counts, cells = dict[GateId, NDArray[np.int64]](), dict[GateId, int]()
    for record in registration.routing:
        i, j, k = (n // record.stride for n in voxel)
        chosen = record.routing.experts[0, :, i, j, k].numpy(force=True)
        counts[record.gate] = np.bincount(chosen, minlength=record.num_experts).astype(np.int64)
        cells[record.gate] = 1
    return ExpertLoad(counts, cells)


def _neighbours(values: NDArray, *, both_inside: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (n, 3) of labelled voxels, and of a neighbour of each with another label."""
    here, there = [], []
    for axis in range(3):
        first, second = (
            np.take(values, range(a, values.shape[axis] - 1 + a), axis=axis) for a in (0, 1)
        )
        found = first != second
        if both_inside:
            found &= (first != 0) & (second != 0)
        low = np.argwhere(found)
        high = low + np.eye(3, dtype=low.dtype)[axis]
        here += [low, high]
        there += [high, low]
    one, other = np.concatenate(here), np.concatenate(there)
    labelled = values[tuple(one.T)] != 0
    return one[labelled], other[labelled]
