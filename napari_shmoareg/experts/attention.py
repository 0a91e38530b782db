"""What a token attends to: the attention of its chosen heads over its window.  Eq. (1)-(2), Sec.
III-B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.gate_edits import IMAGES
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model.moa import MoA
from napari_shmoareg.model.routing import GateId, choose
from napari_shmoareg.model.windows import WindowLayout
from napari_shmoareg.registration.replay import Replay


@dataclass(frozen=True, eq=False)
class HeadAttention:
    """Where one chosen head of one token looks.

    Attributes
    ----------
    head : int
    weight : float
        Of the head in this token's output, Eq. (4).
    volume : Volume
        float32 on the token grid: the softmax of Eq. (2) over the tokens of the window; sums to 1,
        and is 0 outside.
    window : (I, J, K) bool array
        Which tokens may be attended to: those of the window that hold image and that the shift did
        not bring from elsewhere.
    """

    head: int
    weight: float
    volume: Volume
    window: NDArray[np.bool_]


class _Entry(NamedTuple):
    """What entered the attention of a block."""

    module: MoA
    tokens: Tensor  # (2, D, H, W, C), moving before fixed
    layout: WindowLayout
    bias: Tensor | None


class AttentionProbe:
    """All that the attention of a pair's tokens follows from, after one run of the encoder.

    Parameters
    ----------
    entries : mapping of (layer, block) to what entered its attention
    network_grid : Grid
    """

    def __init__(self, entries: dict[tuple[int, int], _Entry], network_grid: Grid) -> None:
        self._entries, self._network_grid = entries, network_grid

    @classmethod
    def of(cls, replay: Replay) -> AttentionProbe:
        """Run the encoder's part of the last pass, and keep what entered every MoA.

        Raises
        ------
        InputError
            If the encoder has plain attention: no head is chosen there.
        TooLargeError
            If the device's memory ran out.
        """
        entries: dict[tuple[int, int], _Entry] = {}
        handles = []
        for stage, layer in enumerate(replay.network.encoder.layers):
            for number, block in enumerate(layer.blocks):  # type: ignore[arg-type, union-attr]
                if isinstance(block.attention, MoA):
                    keep = _keeping(entries, (stage + 1, number))
                    handles.append(block.attention.register_forward_pre_hook(keep))
        if not handles:
            raise InputError(
                "This network's encoder has plain attention: there are no chosen heads to look at."
            )
        try:
            replay.encode()
        finally:
            for handle in handles:
                handle.remove()
        return cls(entries, replay.grid)

    def at(self, gate: GateId, cell: tuple[int, int, int]) -> list[HeadAttention]:
        """The attention of the heads that a token chose, the most probable first.

        Parameters
        ----------
        gate : GateId
            Encoder layer, block and image.
        cell : (i, j, k)
            Index of the token on its grid, as `CellReading.cell`.

        Raises
        ------
        InputError
            If there is no such gate or token.
        """
        entry = self._entries.get((gate.layer, gate.block if gate.block is not None else -1))
        if entry is None or gate.part != "encoder" or gate.image not in IMAGES:
            raise InputError(
                f"{gate} is no block of the encoder with an image; there are the layers and blocks"
                f" {sorted(self._entries)}, each for moving and fixed."
            )
        grid = self._network_grid.coarsen(4 * 2 ** (gate.layer - 1))
        if not all(0 <= c < n for c, n in zip(cell, grid.shape, strict=True)):
            raise InputError(
                f"The tokens of {gate} go from (0, 0, 0) to below {grid.shape}; got {tuple(cell)}."
            )
        with torch.inference_mode():
            return _heads(entry, IMAGES.index(gate.image), cell, grid)


def _keeping(entries: dict[tuple[int, int], _Entry], where: tuple[int, int]) -> Any:
    def keep(module: nn.Module, args: tuple) -> None:
        assert isinstance(module, MoA)
        tokens, layout, bias = args
        entries[where] = _Entry(
            module, tokens.detach(), layout, None if bias is None else bias.detach()
        )

    return keep


def _heads(
    entry: _Entry, image: int, cell: tuple[int, int, int], grid: Grid
) -> list[HeadAttention]:
    moa, layout = entry.module, entry.layout
    tokens = entry.tokens[image]
    token = tokens[cell]
    # past the hooks: what was kept is meant
    best, chosen = choose(moa.gate.forward(token), moa.top_k, dim=-1)
    weights = best / best.sum()
    positions = layout.positions()  # (W, T, 3)
    window, row = (int(n) for n in (positions == torch.tensor(cell)).all(-1).nonzero()[0])
    there = positions[window].to(tokens.device)
    inside = (there < torch.tensor(layout.valid, device=there.device)).all(-1)
    keys = torch.zeros(len(there), moa.head_dim, device=tokens.device, dtype=tokens.dtype)
    held = (there < torch.tensor(layout.grid, device=there.device)).all(-1)
    keys[held] = tokens[tuple(there[held].T)] @ moa.key
    scores = torch.einsum("c,kcd,td->kt", token, moa.query[chosen], keys) * moa.head_dim**-0.5
    if entry.bias is not None:
        scores = scores + entry.bias[window if len(entry.bias) > 1 else 0, 0, row].to(scores.dtype)
    attention = torch.softmax(scores.float(), dim=-1).cpu().numpy()
    reached = (there.cpu() - torch.tensor(cell)).abs() < torch.tensor(layout.window)
    seen = (inside.cpu() & reached.all(-1)).numpy()
    index = tuple(there.cpu().numpy()[seen].T)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[index] = True
    found = []
    for head, weight, row_of in zip(chosen.tolist(), weights.tolist(), attention, strict=True):
        values = np.zeros(grid.shape, dtype=np.float32)
        values[index] = row_of[seen]
        found.append(
            HeadAttention(head, weight, Volume(values, grid, f"attention of head {head}"), mask)
        )
    return found
