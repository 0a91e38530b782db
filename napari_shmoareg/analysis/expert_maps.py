"""Which expert each voxel or token chose, on its own grid.  Fig. 4.

A map is never resampled: a cell of a record stands where `Grid.coarsen` puts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.expert_load import Place, place_of
from napari_shmoareg.engine.registration import Registration
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model.routing import RoutedLayer


@dataclass(frozen=True, eq=False)
class ExpertMap:
    """The first choice of every cell of one gate.

    Attributes
    ----------
    name : str
        ``decoder-1-x`` and so on: part, layer, direction.
    volume : Volume
        Labels, uint8, on the cells' own grid: expert id + 1 (0 would be outside).
    place : Place
        Where in the network it was decided.
    stride : int
        Voxels of the network grid per cell.
    num_experts : int
    """

    name: str
    volume: Volume
    place: Place
    stride: int
    num_experts: int


@dataclass(frozen=True, eq=False)
class TokenLoad:
    """One number per token and expert.

    Attributes
    ----------
    name : str
        ``encoder-1-0-moving`` and so on: part, layer, block, image.
    values : (I, J, K, N) array
        float32 weights (0 where the expert was not chosen), or uint8 counts over blocks.
    grid : Grid
        Of the tokens: same field of view as the network grid, voxels `stride` times as big.
    place : Place
        Where in the network it was decided; for counts over all blocks of a layer without a block.
    stride : int
        Voxels of the network grid per token.
    """

    name: str
    values: NDArray
    grid: Grid
    place: Place
    stride: int

    def volume(self, expert: int) -> Volume:
        """The map of one expert, by its id from 0."""
        return Volume(self.values[..., expert], self.grid, f"{self.name}-expert-{expert}")


def expert_maps(registration: Registration) -> list[ExpertMap]:
    """Expert-ID maps of the decoder, one per layer and direction, in the order of the forward.

    Where a gate chooses several experts the map shows its first choice.
    """
    maps = []
    for record in registration.routing.select(part="decoder"):
        values = record.routing.experts[0, 0].numpy(force=True).astype(np.uint8) + np.uint8(1)
        volume = Volume(values, cells_of(registration, record), record.name, is_labels=True)
        maps.append(ExpertMap(record.name, volume, place_of(record), record.stride, record.num_experts))
    return maps


def token_loads(registration: Registration, **where: object) -> list[TokenLoad]:
    """What each token of the encoder gave each attention head, per layer, block and image.

    Parameters
    ----------
    registration : Registration
    **where
        Only records with these fields: ``token_loads(r, layer=1, image="fixed")``.

    Returns
    -------
    list of TokenLoad
        Weights of Eq. (4); 0 where a head was not chosen.
    """
    loads = []
    for record in registration.routing.select(part="encoder", **where):
        experts = record.routing.experts[0].numpy(force=True).astype(np.int64)
        weights = record.routing.weights[0].numpy(force=True).astype(np.float32)
        values = np.zeros((record.num_experts, *experts.shape[1:]), dtype=np.float32)
        np.put_along_axis(values, experts, weights, axis=0)
        cells = cells_of(registration, record)
        loads.append(TokenLoad(record.name, np.moveaxis(values, 0, -1), cells, place_of(record), record.stride))
    return loads


def times_chosen(registration: Registration) -> list[TokenLoad]:
    """In how many blocks of a layer each token chose each head, per encoder layer and image.

    Returns
    -------
    list of TokenLoad
        uint8 counts; over the experts they sum to k times the number of blocks.
    """
    counted: dict[Place, TokenLoad] = {}
    for record in registration.routing.select(part="encoder"):
        experts = record.routing.experts[0].numpy(force=True)
        chosen = (experts[..., None] == np.arange(record.num_experts)).sum(axis=0, dtype=np.uint8)
        place = place_of(record)._replace(block=None)
        if place in counted:
            chosen = chosen + counted[place].values
        name = f"{record.part}-{record.layer}-{record.image}-times-chosen"
        counted[place] = TokenLoad(name, chosen, cells_of(registration, record), place, record.stride)
    return list(counted.values())


def cells_of(registration: Registration, record: RoutedLayer) -> Grid:
    """The grid of a record's cells, which has to be the network grid at its stride."""
    grid = registration.network_grid.coarsen(record.stride)
    cells = tuple(record.routing.experts.shape[2:])
    if cells != grid.shape:
        raise ValueError(
            f"The routing of {record.name} has {cells} cells; the network grid has {grid.shape} at its stride."
        )
    return grid
