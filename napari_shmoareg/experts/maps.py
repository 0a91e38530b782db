"""Which expert each voxel or token chose, and the gate values.  Fig. 4.

The softmax of Eq. (5) in the encoder, T of Eq. (6) in the decoder.  A map stays on the cells' own
grid, which `Grid.coarsen` gives; it is never resampled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model import RoutedLayer
from napari_shmoareg.model.routing import AtGate, GateId
from napari_shmoareg.registration.register import Registration

Made = TypeVar("Made")


def per_registration(make: Callable[[Registration], Made]) -> Callable[[Registration], Made]:
    """Keep what is made of a registration for as long as that lives: a viewer asks often."""
    kept: WeakKeyDictionary[Registration, Made] = WeakKeyDictionary()

    @wraps(make)
    def once(registration: Registration) -> Made:
        if registration not in kept:
            kept[registration] = make(registration)
        return kept[registration]

    return once


@dataclass(frozen=True, eq=False)
class ExpertMap(AtGate):
    """The first choice of every cell of one gate.

    Attributes
    ----------
    name : str
        ``decoder-1-x`` and so on: part, layer, direction.
    volume : Volume
        Labels, uint8, on the cells' own grid: expert id + 1 (0 would be outside).
    gate : GateId
        Where in the network it was decided.
    stride : int
        Voxels of the network grid per cell.
    num_experts : int
    """

    name: str
    volume: Volume
    gate: GateId
    stride: int
    num_experts: int


@dataclass(frozen=True, eq=False)
class GateValues(AtGate):
    """One number per cell and expert of a gate.

    Attributes
    ----------
    name : str
        ``encoder-1-0-moving``, ``decoder-1-x-gate`` and so on.
    values : (I, J, K, N) array
        Of `gate_values` float32, 0 to 1, of the chosen experts and of those that were not: in the
        encoder a softmax, which sums to 1 over the N experts (Eq. 5), in the decoder a sigmoid for
        each expert by itself, which does not (T of Eq. 6).  Of `token_loads` float32 weights, of
        `times_chosen` uint8 counts.
    grid : Grid
        Of the cells: same field of view as the network grid, voxels `stride` times as big.
    gate : GateId
        Of counts over all blocks of a layer without a block.
    stride : int
        Voxels of the network grid per cell.
    top_k : int
        How many experts each cell chose.
    """

    name: str
    values: NDArray
    grid: Grid
    gate: GateId
    stride: int
    top_k: int

    @property
    def num_experts(self) -> int:
        """N."""
        return int(self.values.shape[-1])

    def volume(self, expert: int) -> Volume:
        """The map of one expert, by its id from 0."""
        return Volume(self.values[..., expert], self.grid, f"{self.name}-expert-{expert}")

    def entropy(self) -> Volume:
        """How evenly the gate spread its values over the experts: float32, 0 to 1 (see
        `entropy_of`).
        """
        return Volume(entropy_of(self.values), self.grid, f"{self.name}-entropy")

    def margin(self) -> Volume:
        """How near each choice was to another one: float32, 0 to 1 (see `margin_of`)."""
        return Volume(margin_of(self.values, self.top_k), self.grid, f"{self.name}-margin")


@per_registration
def expert_maps(registration: Registration) -> list[ExpertMap]:
    """Expert-ID maps of the decoder, one per layer and direction, in the order of the forward.

    Where a gate chooses several experts the map shows its first choice.
    """
    maps = []
    for record in registration.routing.select(part="decoder"):
        values = record.routing.experts[0, 0].numpy(force=True).astype(np.uint8) + np.uint8(1)
        volume = Volume(values, cells_of(registration, record), record.name, is_labels=True)
        maps.append(ExpertMap(record.name, volume, record.gate, record.stride, record.num_experts))
    return maps


def token_loads(registration: Registration, **fields: object) -> list[GateValues]:
    """What each token of the encoder gave each attention head, per layer, block and image.

    Parameters
    ----------
    registration : Registration
    **fields
        Only gates that match (`GateId`): ``token_loads(r, layer=1, image="fixed")``.

    Returns
    -------
    list of GateValues
        Weights of Eq. (4); 0 where a head was not chosen.
    """
    return [load for load in _token_loads(registration) if load.gate.matches(**fields)]


@per_registration
def _token_loads(registration: Registration) -> list[GateValues]:
    loads = []
    for record in registration.routing.select(part="encoder"):
        experts = record.routing.experts[0].numpy(force=True).astype(np.int64)
        weights = record.routing.weights[0].numpy(force=True).astype(np.float32)
        values = np.zeros((record.num_experts, *experts.shape[1:]), dtype=np.float32)
        np.put_along_axis(values, experts, weights, axis=0)
        loads.append(_of_cells(registration, record, record.name, np.moveaxis(values, 0, -1)))
    return loads


@per_registration
def times_chosen(registration: Registration) -> list[GateValues]:
    """In how many blocks of a layer each token chose each head, per encoder layer and image.

    Returns
    -------
    list of GateValues
        uint8 counts; over the experts they sum to k times the number of blocks.
    """
    counted: dict[GateId, GateValues] = {}
    for record in registration.routing.select(part="encoder"):
        experts = record.routing.experts[0].numpy(force=True)
        chosen = (experts[..., None] == np.arange(record.num_experts)).sum(axis=0, dtype=np.uint8)
        gate = record.gate._replace(block=None)
        if gate in counted:
            chosen = chosen + counted[gate].values
        name = f"{record.part}-{record.layer}-{record.image}-times-chosen"
        counted[gate] = replace(_of_cells(registration, record, name, chosen), gate=gate)
    return list(counted.values())


def cells_of(registration: Registration, record: RoutedLayer) -> Grid:
    """The grid of a record's cells, which has to be the network grid at its stride."""
    grid = registration.network_grid.coarsen(record.stride)
    cells = tuple(record.routing.experts.shape[2:])
    if cells != grid.shape:
        raise ValueError(
            f"The routing of {record.name} has {cells} cells; the network grid has {grid.shape} at"
            " its stride."
        )
    return grid


@per_registration
def gate_values(registration: Registration) -> list[GateValues]:
    """The values of every gate of the network's last pass, in the order of the forward.

    They are views of the routing: they take no memory of their own, and are not to be written to.
    None of a registration that was read from a folder written before they were kept.
    """
    gates = []
    for record in registration.routing:
        if not has_values(record):
            continue
        values = np.moveaxis(record.routing.probabilities[0].float().numpy(force=True), 0, -1)
        gates.append(_of_cells(registration, record, f"{record.name}-gate", values))
    return gates


def _of_cells(
    registration: Registration, record: RoutedLayer, name: str, values: NDArray
) -> GateValues:
    grid, top_k = cells_of(registration, record), int(record.routing.experts.shape[1])
    return GateValues(name, values, grid, record.gate, record.stride, top_k)


def has_values(record: RoutedLayer) -> bool:
    """Whether it is known what a gate gave every expert, and not its choice alone."""
    return not bool(record.routing.probabilities[0, 0, 0, 0, 0].isnan())


def entropy_of(values: NDArray) -> NDArray[np.float32]:
    """Entropy of p = values / sum(values), over log N.

    Ours: the sigmoids of a decoder gate are no distribution; they are divided by their sum first.
    So this tells how alike the values are, and not whether they are high or low.

    Parameters
    ----------
    values : (..., N) array, at least 0
        What a gate gave each of N experts.

    Returns
    -------
    (...) array, float32
        1 where all experts got the same (also where all got 0), 0 where one got everything.
    """
    number = values.shape[-1]
    if number == 1:
        return np.zeros(values.shape[:-1], np.float32)
    total = values.sum(axis=-1, dtype=np.float32)
    divisor = np.where(total > 0, total, np.float32(1))
    found = sum(entr(values[..., expert] / divisor) for expert in range(number)) / np.float32(
        np.log(number)
    )
    return np.clip(np.where(total > 0, found, 1), 0, 1).astype(np.float32)


def margin_of(values: NDArray, top_k: int) -> NDArray[np.float32]:
    """The k-th largest value minus the (k+1)-th: by how much the last expert was chosen before the
    next.

    Parameters
    ----------
    values : (..., N) array, 0 to 1
        What a gate gave each of N experts.
    top_k : int
        How many of them were chosen.

    Returns
    -------
    (...) array, float32
        Near 0 a small change of the images could have changed the choice.  1, the most there can
        be, where every expert is chosen and there is no next.
    """
    number = values.shape[-1]
    if top_k >= number:
        return np.ones(values.shape[:-1], np.float32)
    ordered = np.partition(values, (number - top_k - 1, number - top_k), axis=-1)
    return np.asarray(
        ordered[..., number - top_k] - ordered[..., number - top_k - 1], dtype=np.float32
    )
