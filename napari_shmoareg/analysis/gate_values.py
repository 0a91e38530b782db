"""What every gate gave every expert, and how sure it was.

Fig. 4; the softmax of Eq. (5) in the encoder, T of Eq. (6) in the decoder.  Values stay on the cells' own grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from napari_shmoareg.analysis.expert_load import Place, place_of
from napari_shmoareg.analysis.expert_maps import cells_of
from napari_shmoareg.geometry import Grid, Volume

if TYPE_CHECKING:
    from napari_shmoareg.engine.registration import Registration


@dataclass(frozen=True, eq=False)
class GateValues:
    """All values of one gate, of the chosen experts and of those that were not.

    Attributes
    ----------
    name : str
        ``encoder-1-0-moving-gate``, ``decoder-1-x-gate`` and so on: part, layer, block, image, direction.
    values : (I, J, K, N) array, float32, 0 to 1
        Encoder: a softmax, which sums to 1 over the N experts (Eq. 5).  Decoder: a sigmoid for each
        expert by itself, which does not (T of Eq. 6).
    grid : Grid
        Of the cells: same field of view as the network grid, voxels `stride` times as big.
    place : Place
        Where in the network the gate stands.
    stride : int
        Voxels of the network grid per cell.
    top_k : int
        How many experts each cell chose.
    """

    name: str
    values: NDArray
    grid: Grid
    place: Place
    stride: int
    top_k: int

    @property
    def num_experts(self) -> int:
        """N."""
        return int(self.values.shape[-1])

    def entropy(self) -> Volume:
        """How evenly the gate spread its values over the experts: float32, 0 to 1 (see `entropy_of`)."""
        return Volume(entropy_of(self.values), self.grid, f"{self.name}-entropy")

    def margin(self) -> Volume:
        """How near each choice was to another one: float32, 0 to 1 (see `margin_of`)."""
        return Volume(margin_of(self.values, self.top_k), self.grid, f"{self.name}-margin")


def gate_values(registration: Registration) -> list[GateValues]:
    """The values of every gate of the network's last pass, in the order of the forward.

    They are views of the routing: they take no memory of their own, and are not to be written to.
    """
    gates = []
    for record in registration.routing:
        values = np.moveaxis(record.routing.probabilities[0].float().numpy(force=True), 0, -1)
        grid, top_k = cells_of(registration, record), int(record.routing.experts.shape[1])
        gates.append(GateValues(f"{record.name}-gate", values, grid, place_of(record), record.stride, top_k))
    return gates


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
    found = sum(entr(values[..., expert] / divisor) for expert in range(number)) / np.float32(np.log(number))
    return np.clip(np.where(total > 0, found, 1), 0, 1).astype(np.float32)


def margin_of(values: NDArray, top_k: int) -> NDArray[np.float32]:
    """The k-th largest value minus the (k+1)-th: by how much the last expert was chosen before the next.

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
    return np.asarray(ordered[..., number - top_k] - ordered[..., number - top_k - 1], dtype=np.float32)
