"""Attention maps of a token: its chosen heads over its window.  Eq. (1)-(2), Sec. III-B."""

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
    """Attention of one chosen head of one token.

    Attributes
    ----------
    head : int
    weight : float
        Weight of the head in this token's output, Eq. (4).
    volume : Volume
        float32 on the token grid: the softmax of Eq. (2) over the tokens of the window.  It sums
        to 1 and is 0 outside the window.
    window : (I, J, K) bool array
        Tokens that can be attended to: those of the window that hold image and that the cyclic
        shift did not bring in from the other side.
    """

    head: int
    weight: float
    volume: Volume
    window: NDArray[np.bool_]


class _Entry(NamedTuple):
    """Inputs of the attention of a block."""

    module: MoA
    tokens: Tensor  # (2, D, H, W, C), moving before fixed
    layout: WindowLayout
    bias: Tensor | None


class AttentionProbe:
    """Attention inputs of all blocks, recorded in one run of the encoder."""

    def __init__(self, entries: dict[tuple[int, int], _Entry], network_grid: Grid) -> None:
        self._entries, self._network_grid = entries, network_grid

    @classmethod
    def of(cls, replay: Replay) -> AttentionProbe:
        """Run the encoder of the last pass and record the inputs of every MoA.

        Raises
        ------
        InputError
            If the encoder has plain attention, which chooses no heads.
        TooLargeError
            If the device runs out of memory.
        """
        entries: dict[tuple[int, int], _Entry] = {}
        handles = []
        for stage, layer in enumerate(replay.network.encoder.layers):
            for number, block in enumerate(layer.blocks):  # type: ignore[arg-type, union-attr]
                if isinstance(block.attention, MoA):
                    record = _recording_hook(entries, (stage + 1, number))
                    handles.append(block.attention.register_forward_pre_hook(record))
        if not handles:
            raise InputError(
                "The encoder of this network has plain attention, which chooses no heads."
            )
        try:
            replay.encode()
        finally:
            for handle in handles:
                handle.remove()
        return cls(entries, replay.grid)

    def at(self, gate: GateId, cell: tuple[int, int, int]) -> list[HeadAttention]:
        """Compute the attention of the heads that a token chose, the most probable first.

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
                f"{gate} is not an encoder block of one image. The (layer, block) pairs are"
                f" {sorted(self._entries)}, each for moving and fixed."
            )
        grid = self._network_grid.coarsen(4 * 2 ** (gate.layer - 1))
        if not all(0 <= c < n for c, n in zip(cell, grid.shape, strict=True)):
            raise InputError(
                f"Token indices of {gate} go from (0, 0, 0) to below {grid.shape}; got"
                f" {tuple(cell)}."
            )
        with torch.inference_mode():
            return _heads(entry, IMAGES.index(gate.image), cell, grid)


def _recording_hook(entries: dict[tuple[int, int], _Entry], where: tuple[int, int]) -> Any:
    def record(module: nn.Module, args: tuple) -> None:
        assert isinstance(module, MoA)
        tokens, layout, bias = args
        entries[where] = _Entry(
            module, tokens.detach(), layout, None if bias is None else bias.detach()
        )

    return record


def _heads(
    entry: _Entry, image: int, cell: tuple[int, int, int], grid: Grid
) -> list[HeadAttention]:
    moa, layout = entry.module, entry.layout
    tokens = entry.tokens[image]
    token = tokens[cell]
    # forward() skips the hooks: the recorded tokens are used as they are
    best, chosen = choose(moa.gate.forward(token), moa.top_k, dim=-1)
    weights = best / best.sum()
    positions = layout.positions()  # (W, T, 3)
    window, row = (int(n) for n in (positions == torch.tensor(cell)).all(-1).nonzero()[0])
    members = positions[window].to(tokens.device)
    inside = (members < torch.tensor(layout.valid, device=members.device)).all(-1)
    keys = torch.zeros(len(members), moa.head_dim, device=tokens.device, dtype=tokens.dtype)
    in_grid = (members < torch.tensor(layout.grid, device=members.device)).all(-1)
    keys[in_grid] = tokens[tuple(members[in_grid].T)] @ moa.key
    scores = torch.einsum("c,kcd,td->kt", token, moa.query[chosen], keys) * moa.head_dim**-0.5
    if entry.bias is not None:
        scores = scores + entry.bias[window if len(entry.bias) > 1 else 0, 0, row].to(scores.dtype)
    attention = torch.softmax(scores.float(), dim=-1).cpu().numpy()
    in_reach = (members.cpu() - torch.tensor(cell)).abs() < torch.tensor(layout.window)
    visible = (inside.cpu() & in_reach.all(-1)).numpy()
    index = tuple(members.cpu().numpy()[visible].T)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[index] = True
    found = []
    for head, weight, row_of in zip(chosen.tolist(), weights.tolist(), attention, strict=True):
        values = np.zeros(grid.shape, dtype=np.float32)
        values[index] = row_of[visible]
        found.append(
            HeadAttention(head, weight, Volume(values, grid, f"attention of head {head}"), mask)
        )
    return found
