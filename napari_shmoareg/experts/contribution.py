"""How far each decoder expert moved a region: its part of the residuals of Eq. (6), in mm.

Ours, beyond the paper.  A share of choices says how often an expert was chosen; this says how much
of the movement came from the cells that chose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.experts.gate_edits import cells_in
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model.decoder import Level
from napari_shmoareg.model.routing import AtGate, GateId
from napari_shmoareg.model.shmoe import DIRECTIONS, SHMoE
from napari_shmoareg.registration.replay import Replay


@dataclass(frozen=True, eq=False)
class Residual(AtGate):
    """The residual that one gate of the decoder added in the last pass.

    Attributes
    ----------
    gate : GateId
    stride : int
        Voxels of the network grid per cell.
    values : (I, J, K) float32 array
        Eq. (6) along the gate's axis of the network grid, mm; a velocity in the diffeomorphic
        variant.
    chosen : (I, J, K) uint8 array
        The expert of each cell, by id; the first choice of several.
    num_experts : int
    """

    gate: GateId
    stride: int
    values: NDArray[np.float32]
    chosen: NDArray[np.uint8]
    num_experts: int


@dataclass(frozen=True, eq=False)
class Contribution(AtGate):
    """How far the experts of one gate moved a region.

    Attributes
    ----------
    gate : GateId
    cells : int
        Cells of the region.
    mean : float
        Mean absolute residual over the region, mm.
    by_expert : (N,) array
        The part of `mean` from the cells of each expert, mm; they sum to `mean`.
    chosen : (N,) array
        Share of the region's cells that chose each expert.
    by_chance : (N,) array
        What `by_expert` would be on average if the same choices were dealt to the region's cells at
        random, mm: ``chosen * mean``.
    """

    gate: GateId
    cells: int
    mean: float
    by_expert: NDArray[np.float64]
    chosen: NDArray[np.float64]

    @property
    def by_chance(self) -> NDArray[np.float64]:
        return self.chosen * self.mean


def residuals_of(replay: Replay) -> list[Residual]:
    """Run the last pass of a network again and record the residual of each gate of the decoder.

    Parameters
    ----------
    replay : Replay

    Returns
    -------
    list of Residual
        In forward order, x, y and z of each layer; empty for a decoder without experts.

    Raises
    ------
    TooLargeError
        If the device's memory ran out.
    """
    recorded: list[tuple[int, Tensor]] = []
    levels = [
        level
        for level in replay.network.decoder.levels
        if isinstance(level, Level) and isinstance(level.head, SHMoE)
    ]

    def record(module: SHMoE, args: Any, output: tuple[Tensor, Any]) -> None:
        stride = next(level.stride for level in levels if level.head is module)
        recorded.append((stride, output[0][0].float().cpu()))

    hooks = [cast(SHMoE, level.head).register_forward_hook(record) for level in levels]
    try:
        _, routing = replay.run()
    finally:
        for hook in hooks:
            hook.remove()
    by_stride = dict(recorded)
    found = []
    for choice in routing.select(part="decoder"):
        chosen = choice.routing.experts[0, 0].numpy(force=True).astype(np.uint8)
        i, j, k = chosen.shape
        axis = DIRECTIONS.index(cast(Any, choice.direction))
        step = choice.stride * replay.grid.spacing[axis]
        values = by_stride[choice.stride][axis, :i, :j, :k].numpy() * np.float32(step)
        found.append(Residual(choice.gate, choice.stride, values, chosen, choice.num_experts))
    return found


def contributions(
    residuals: Sequence[Residual], grid: Grid, region: Volume | None = None
) -> list[Contribution]:
    """Split the mean movement of a region by the experts of each gate.

    Parameters
    ----------
    residuals : sequence of Residual
        From `residuals_of`.
    grid : Grid
        The network grid: ``replay.grid``.
    region : Volume, optional
        Its nonzero voxels; a cell counts if half of it is inside.  Default: everywhere.

    Returns
    -------
    list of Contribution
        Of the gates with at least one cell in the region.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    found = []
    for residual in residuals:
        if residual.stride not in masks:
            masks[residual.stride] = cells_in(region, grid, residual.stride)
        inside = masks[residual.stride]
        cells = int(inside.sum())
        if not cells:
            continue
        moved, chosen = np.abs(residual.values[inside]), residual.chosen[inside]
        sums = np.bincount(chosen, weights=moved, minlength=residual.num_experts)
        counts = np.bincount(chosen, minlength=residual.num_experts)
        found.append(
            Contribution(residual.gate, cells, float(moved.mean()), sums / cells, counts / cells)
        )
    return found
