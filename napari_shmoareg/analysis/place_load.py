"""How often the experts are chosen at one place, over many pairs.

Fig. 6, Sec. V-D: "the average frequency of expert selections at that specific location across all image pairs".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.analysis.expert_load import ExpertLoad, Place, place_of
from napari_shmoareg.analysis.place_reading import voxel_at
from napari_shmoareg.engine.intensity import Intensity, content_points
from napari_shmoareg.engine.registration import Registration
from napari_shmoareg.geometry import Volume

CENTRE, BOUNDARY = "centre", "boundary"
FRACTIONS = {
    CENTRE: (0.5, 0.5),
    "upper left": (0.25, 0.75),
    "upper right": (0.75, 0.75),
    "lower left": (0.25, 0.25),
    "lower right": (0.75, 0.25),
}
"""Ours: the five tokens of Fig. 6(a), as fractions (to the right, to the front) of the box around the fixed image's
content, in its axial middle plane; upper is the front, left and right are the patient's."""


@dataclass(frozen=True, eq=False)
class PlaceLoad:
    """Counts of selections per named place, gate and expert; those of several pairs add with ``+``.

    Parameters
    ----------
    loads : mapping of str to ExpertLoad
        What the one cell of each gate chose that holds the place; so the cells of a gate count the pairs.
    """

    loads: Mapping[str, ExpertLoad]

    @classmethod
    def of(cls, registration: Registration, places: Mapping[str, ArrayLike]) -> PlaceLoad:
        """Count one pair: each gate once at each place.

        Parameters
        ----------
        registration : Registration
        places : mapping of name to (3,) world position, mm RAS
            In the fixed image's world.  The moving image's tokens are those at the same place of the network grid,
            onto which the moving image was read through the affine.

        Raises
        ------
        InputError
            If a place lies outside the network grid.
        """
        return cls({name: _load_at(registration, np.asarray(p, dtype=np.float64)) for name, p in places.items()})

    def __add__(self, other: PlaceLoad) -> PlaceLoad:
        """Counts of both; places that only one of them has are kept."""
        nothing = ExpertLoad({}, {})
        names = dict.fromkeys([*self.loads, *other.loads])
        return PlaceLoad({n: self.loads.get(n, nothing) + other.loads.get(n, nothing) for n in names})

    def __iter__(self) -> Iterator[str]:
        return iter(self.loads)

    def __len__(self) -> int:
        return len(self.loads)

    def __getitem__(self, name: str) -> ExpertLoad:
        return self.loads[name]

    @property
    def share(self) -> dict[str, dict[Place, NDArray[np.float64]]]:
        """Share of selections (N,) per place and gate, summing to 1."""
        return {name: load.share for name, load in self.loads.items()}

    @property
    def share_of_tokens(self) -> dict[str, dict[Place, NDArray[np.float64]]]:
        """How often the cell chose each expert (N,) per place and gate, summing to k.  Fig. 6."""
        return {name: load.share_of_tokens for name, load in self.loads.items()}

    def over_blocks(self) -> PlaceLoad:
        """The blocks of each encoder layer added up."""
        return PlaceLoad({name: load.over_blocks() for name, load in self.loads.items()})

    def rows(self) -> list[dict[str, object]]:
        """One dict per place, gate and expert: place, the columns of `ExpertLoad.rows`, cells, share_of_tokens."""
        return [{"place": name} | row for name, load in self.loads.items() for row in detailed_rows(load)]


class Boundary(NamedTuple):
    """A voxel beside another label.

    Attributes
    ----------
    point : (3,) array
        Its centre, mm RAS.
    labels : (int, int)
        Its own label, and that of its neighbour (0: outside all labels).
    """

    point: NDArray[np.float64]
    labels: tuple[int, int]


def five_places(fixed: Volume) -> dict[str, NDArray[np.float64]]:
    """World positions (mm RAS) of the five places of `FRACTIONS` in the box around what an image shows."""
    grid = fixed.grid.canonical()
    index = grid.to_index(fixed.grid.to_world(content_points(fixed, Intensity.of(fixed))))
    low, high = index.min(axis=0) - 0.5, index.max(axis=0) + 0.5
    return {
        name: grid.to_world(low + np.array([right, front, 0.5]) * (high - low))
        for name, (right, front) in FRACTIONS.items()
    }


def boundary_place(labels: Volume, near: ArrayLike) -> Boundary | None:
    """The voxel nearest to a point whose neighbour, across one of its faces, has another label.

    A boundary between two labels goes before one of a label with what is outside; None where there is neither.

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
    """The rows of a load with the cells that were counted and the share of tokens."""
    share = load.share_of_tokens
    rows = load.rows()
    gates = [gate for gate, counts in load.counts.items() for _ in counts]
    return [
        row | {"cells": load.cells[gate], "share_of_tokens": float(share[gate][int(str(row["expert"]))])}
        for gate, row in zip(gates, rows, strict=True)
    ]


def _load_at(registration: Registration, point: NDArray[np.float64]) -> ExpertLoad:
    """What the one cell of each gate chose that holds a point."""
    voxel = voxel_at(registration.network_grid, point)
    counts, cells = dict[Place, NDArray[np.int64]](), dict[Place, int]()
    for record in registration.routing:
        i, j, k = (n // record.stride for n in voxel)
        chosen = record.routing.experts[0, :, i, j, k].numpy(force=True)
        counts[place_of(record)] = np.bincount(chosen, minlength=record.num_experts).astype(np.int64)
        cells[place_of(record)] = 1
    return ExpertLoad(counts, cells)


def _neighbours(values: NDArray, *, both_inside: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (n, 3) of voxels that have a label, and of a neighbour each that has another one."""
    here, there = [], []
    for axis in range(3):
        first, second = (np.take(values, range(a, values.shape[axis] - 1 + a), axis=axis) for a in (0, 1))
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
