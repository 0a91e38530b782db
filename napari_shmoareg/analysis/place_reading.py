"""Which experts a place in the body chose.  Fig. 6(a).

Encoder: the tokens that cover the place, of both images.  Decoder: its cell, per direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.analysis.expert_load import Place
from napari_shmoareg.analysis.expert_maps import ExpertMap, TokenLoad
from napari_shmoareg.analysis.gate_values import GateValues, entropy_of, margin_of
from napari_shmoareg.analysis.scene import Scene
from napari_shmoareg.geometry import Grid, InputError

Cell = tuple[int, int, int]

_IMAGES = (None, "moving", "fixed")
_SLACK = 1e-6  # voxels; rounding of the matrices


@dataclass(frozen=True, eq=False)
class CellReading:
    """What one gate decided for the cell that covers a place.

    Attributes
    ----------
    place : Place
        Where in the network the gate stands.
    stride : int
        Voxels of the network grid per cell.
    num_experts : int
    cell : tuple of 3 int
        Index of the cell on its own grid, `network_grid.coarsen(stride)`.
    centre : (3,) array, mm RAS
        Middle of the cell; the field of view ends inside a last, partial one.
    size : (3,) array, mm
        Its extent along the three axes of the grid.
    experts : tuple of int
        The chosen ones, the most probable first.
    weights : tuple of float
        By what each chosen expert's output is multiplied: Eq. (4) in the encoder, T of Eq. (6) in the
        decoder.  NaN where it is not known: decoders of folders without `gates`.
    values : tuple of float or None
        What the gate gave each of the N experts; None where it was not kept.
    entropy, margin : float or None
        As `entropy_of` and `margin_of` of the values.
    """

    place: Place
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
class PlaceReading:
    """What every gate decided for one place.

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
        """The cells whose place has these fields: ``reading.select(layer=1, image="fixed")``."""
        return tuple(c for c in self.cells if all(getattr(c.place, key) == value for key, value in where.items()))

    @property
    def encoder(self) -> tuple[CellReading, ...]:
        """Tokens, of the moving and of the fixed image."""
        return self.select(part="encoder")

    @property
    def decoder(self) -> tuple[CellReading, ...]:
        """Cells of the displacement's components."""
        return self.select(part="decoder")


def read_place(scene: Scene, point: ArrayLike) -> PlaceReading:
    """Look up what every gate decided at a place.

    Parameters
    ----------
    scene : Scene
    point : (3,) array, mm RAS
        In the world of the fixed image.  The tokens of the moving image stand there too: the network
        sees it after the affine and any earlier passes.

    Returns
    -------
    PlaceReading
        Of the cells that the point lies in; on a wall between two, of the one with the higher index.

    Raises
    ------
    InputError
        If the point is not three finite numbers, or lies outside of what the network saw.
    """
    position = np.asarray(point, dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise InputError(f"A place is three numbers of mm (RAS); got {point!r}.")
    voxel = voxel_at(scene.network_grid, position)
    gates = {gate.place: gate for gate in scene.gates}
    readings = [_token(load, gates.get(load.place), voxel) for load in scene.token_loads]
    readings += [_voxel_choice(found, gates.get(found.place), voxel) for found in scene.expert_maps]
    return PlaceReading(position, tuple(sorted(readings, key=_rank)))


def voxel_at(grid: Grid, point: NDArray[np.float64]) -> Cell:
    """The voxel of the network grid that a point (mm RAS) lies in; the cell of a gate has this index // its stride.

    Raises
    ------
    InputError
        If the point lies outside of the grid's field of view.
    """
    index = grid.to_index(point)
    if not ((index >= -0.5 - _SLACK) & (index <= np.array(grid.shape) - 0.5 + _SLACK)).all():
        low, high = grid.corners().min(axis=0), grid.corners().max(axis=0)
        reach = ", ".join(f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("RAS", low, high, strict=True))
        raise InputError(
            f"({', '.join(f'{value:.1f}' for value in point)}) mm lies outside of what the network saw, a box within "
            f"{reach} mm (RAS{', oblique' if _is_oblique(grid) else ''}). Choose a place inside."
        )
    i, j, k = np.clip(np.floor(index + 0.5), 0, np.array(grid.shape) - 1).astype(int).tolist()
    return i, j, k


def _is_oblique(grid: Grid) -> bool:
    return bool(np.count_nonzero(np.abs(grid.affine[:3, :3]) > _SLACK) > 3)


def _token(load: TokenLoad, gate: GateValues | None, voxel: Cell) -> CellReading:
    i, j, k = (n // load.stride for n in voxel)
    weights = load.values[i, j, k]
    chosen = np.flatnonzero(weights)
    chosen = chosen[np.argsort(-weights[chosen], kind="stable")]
    return _reading(load, load.grid, weights.size, (i, j, k), chosen, weights[chosen], gate)


def _voxel_choice(found: ExpertMap, gate: GateValues | None, voxel: Cell) -> CellReading:
    i, j, k = (n // found.stride for n in voxel)
    chosen = np.array([int(found.volume.values[i, j, k]) - 1])
    weights = np.full(1, np.nan) if gate is None else gate.values[i, j, k][chosen]
    return _reading(found, found.volume.grid, found.num_experts, (i, j, k), chosen, weights, gate)


def _reading(
    source: TokenLoad | ExpertMap,
    grid: Grid,
    number: int,
    cell: Cell,
    chosen: NDArray,
    weights: NDArray,
    gate: GateValues | None,
) -> CellReading:
    values = None if gate is None else np.asarray(gate.values[cell])
    return CellReading(
        place=source.place,
        stride=source.stride,
        num_experts=number,
        cell=cell,
        centre=grid.to_world(cell),
        size=np.array(grid.spacing),
        experts=tuple(chosen.tolist()),
        weights=tuple(weights.tolist()),
        values=None if values is None else tuple(values.tolist()),
        entropy=None if values is None else float(entropy_of(values)),
        margin=None if gate is None or values is None else float(margin_of(values, gate.top_k)),
    )


def _rank(reading: CellReading) -> tuple[bool, int, int, int, str]:
    """Encoder by layer, block, moving then fixed; decoder by layer and direction."""
    part, layer, block, image, direction = reading.place
    return part != "encoder", layer, -1 if block is None else block, _IMAGES.index(image), direction or ""
