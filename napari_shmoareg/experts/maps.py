"""Maps of the chosen experts and of the gate values.  Fig. 4.

Gate values are the softmax of Eq. (5) in the encoder, T of Eq. (6) in the decoder.  A map stays on
the grid of its cells (`Grid.coarsen`); it is never resampled.
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

from napari_shmoareg.experts.gate_edits import cells_in
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model import RoutedLayer
from napari_shmoareg.model.routing import AtGate, GateId
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.register import Registration

Result = TypeVar("Result")


def per_registration(make: Callable[[Registration], Result]) -> Callable[[Registration], Result]:
    """Cache a function's result for the lifetime of the registration: a viewer calls it often."""
    cache: WeakKeyDictionary[Registration, Result] = WeakKeyDictionary()

    @wraps(make)
    def cached(registration: Registration) -> Result:
        if registration not in cache:
            cache[registration] = make(registration)
        return cache[registration]

    return cached


@dataclass(frozen=True, eq=False)
class ExpertMap(AtGate):
    """The first choice of every cell of one gate.

    Attributes
    ----------
    name : str
        ``decoder-1-x`` and so on: part, layer, direction.
    volume : Volume
        Labels, uint8, on the grid of the cells: expert id + 1 (0 would be outside).
    gate : GateId
    stride : int
        Voxels of the network grid per cell.
    num_experts : int
    """

    name: str
    volume: Volume
    gate: GateId
    stride: int
    num_experts: int

    def shares(self, cells: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Share of the cells that chose each expert (N,): of all cells, or of those of a mask."""
        values = self.volume.values if cells is None else self.volume.values[cells]
        counts = np.bincount(values.ravel(), minlength=self.num_experts + 1)[1:]
        return np.asarray(counts / max(int(counts.sum()), 1))


@dataclass(frozen=True, eq=False)
class GateValues(AtGate):
    """One number per cell and expert of a gate.

    Attributes
    ----------
    name : str
        ``encoder-1-0-moving``, ``decoder-1-x-gate`` and so on.
    values : (I, J, K, N) array
        From `gate_values`: float32, 0 to 1, of chosen and unchosen experts.  In the encoder a
        softmax, which sums to 1 over the N experts (Eq. 5); in the decoder one sigmoid per expert,
        which does not (T of Eq. 6).  From `token_loads`: float32 weights.  From `times_chosen`:
        uint8 counts.
    grid : Grid
        Of the cells: same field of view as the network grid, voxels `stride` times as large.
    gate : GateId
        Without a block for counts over all blocks of a layer.
    stride : int
        Voxels of the network grid per cell.
    top_k : int
        Number of experts that each cell chose.
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
        """Map of `entropy_of`: how evenly the values are spread over the experts, 0 to 1."""
        return Volume(entropy_of(self.values), self.grid, f"{self.name}-entropy")

    def margin(self) -> Volume:
        """Map of `margin_of`: how close each choice was to another one, 0 to 1."""
        return Volume(margin_of(self.values, self.top_k), self.grid, f"{self.name}-margin")


@per_registration
def expert_maps(registration: Registration) -> list[ExpertMap]:
    """Expert ID maps of the decoder, one per layer and direction, in forward order.

    If a gate chooses several experts, the map shows the first choice.
    """
    maps = []
    for record in registration.routing.select(part="decoder"):
        values = record.routing.experts[0, 0].numpy(force=True).astype(np.uint8) + np.uint8(1)
        volume = Volume(values, cells_of(registration, record), record.name, is_labels=True)
        maps.append(ExpertMap(record.name, volume, record.gate, record.stride, record.num_experts))
    return maps


def token_loads(registration: Registration, **fields: object) -> list[GateValues]:
    """Weights of the attention heads per encoder token, for each layer, block and image.

    Parameters
    ----------
    registration : Registration
    **fields
        Only matching gates (`GateId`): ``token_loads(r, layer=1, image="fixed")``.

    Returns
    -------
    list of GateValues
        Weights of Eq. (4); 0 for heads that were not chosen.
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
    """Number of blocks in which each token chose each head, per encoder layer and image.

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


def content_cells(registration: Registration, stride: int) -> NDArray[np.bool_]:
    """Cells (I, J, K) of a stride that are content of the fixed image by half or more; the others
    are air.

    All cells if no cell has content, as in an image without contrast.
    """
    found = _content_by_stride(registration)
    if stride not in found:
        inside = cells_in(_content(registration), registration.network_grid, stride)
        found[stride] = inside if inside.any() else np.ones_like(inside)
    return found[stride]


@per_registration
def _content_by_stride(registration: Registration) -> dict[int, NDArray[np.bool_]]:
    return {}


def _content(registration: Registration) -> Volume:
    fixed = registration.pair.fixed
    shown = Intensity.of(fixed).content(fixed.values)
    return Volume(shown.astype(np.uint8), fixed.grid, "content", is_labels=True)


def cells_of(registration: Registration, record: RoutedLayer) -> Grid:
    """The grid of a record's cells: the network grid at its stride."""
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
    """The values of all gates of the network's last pass, in forward order.

    They are views of the routing: they take no extra memory and must not be written to.  Empty for
    a registration from a folder of an earlier version without gate values.
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
    """Whether the gate values of all experts are available, not only the choice."""
    return not bool(record.routing.probabilities[0, 0, 0, 0, 0].isnan())


def entropy_of(values: NDArray) -> NDArray[np.float32]:
    """Entropy of p = values / sum(values), over log N.

    Ours: the sigmoids of a decoder gate are not a distribution; they are divided by their sum
    first.  The entropy shows how similar the values are, not how large.

    Parameters
    ----------
    values : (..., N) array, at least 0
        Gate values of N experts.

    Returns
    -------
    (...) array, float32
        1 if all experts have the same value (also 0), 0 if one has everything.
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
    """The k-th largest value minus the (k+1)-th: margin of the last chosen expert.

    Parameters
    ----------
    values : (..., N) array, 0 to 1
        Gate values of N experts.
    top_k : int
        Number of chosen experts.

    Returns
    -------
    (...) array, float32
        Near 0, a small change of the images could change the choice.  1, the maximum, if every
        expert is chosen.
    """
    number = values.shape[-1]
    if top_k >= number:
        return np.ones(values.shape[:-1], np.float32)
    ordered = np.partition(values, (number - top_k - 1, number - top_k), axis=-1)
    return np.asarray(
        ordered[..., number - top_k] - ordered[..., number - top_k - 1], dtype=np.float32
    )
