"""Forward hooks that change the values of a gate.  Ours, beyond the paper.

B batch (moving and fixed of the encoder one after the other), N experts, *S space (D, H, W),
padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.model.gate_sites import GateSite
from napari_shmoareg.model.routing import Direction, GateId, Image, Part, choose

if TYPE_CHECKING:
    from napari_shmoareg.experts.intervention import Intervention

IMAGES: tuple[Image, ...] = get_args(Image)


class GateSelection:
    """The gates that a change applies to: those with these fields (`GateId`); None matches all."""

    part: Part
    layer: int | None
    block: int | None
    image: Image | None
    direction: Direction | None

    def selects(self, gate: GateId) -> bool:
        """Whether the change applies to a gate; a gate without an image serves both images."""
        own = {
            name: getattr(self, name) for name in GateId._fields if gate.image or name != "image"
        }
        return gate.matches(**{name: value for name, value in own.items() if value is not None})

    @property
    def gates(self) -> str:
        """Display text: ``decoder layer 2, direction z``."""
        parts = [
            f"all {self.part} layers" if self.layer is None else f"{self.part} layer {self.layer}"
        ]
        parts += [] if self.block is None else [f"block {self.block}"]
        parts += [] if self.direction is None else [f"direction {self.direction}"]
        parts += [] if self.image is None else [f"{self.image} image"]
        return ", ".join(parts)


def cells_in(region: Volume | None, grid: Grid, stride: int) -> NDArray[np.bool_]:
    """Mask (I, J, K) of the cells of a stride that are in a region by half or more."""
    shape = grid.coarsen(stride).shape
    if region is None:
        return np.ones(shape, dtype=bool)
    mask = Volume((region.values != 0).astype(np.uint8), region.grid, region.name, is_labels=True)
    inside = torch.from_numpy(resample(mask, grid).values.astype(np.float32))[None, None]
    spare = [stride * n - m for n, m in zip(shape, grid.shape, strict=True)]
    pads = (0, spare[2], 0, spare[1], 0, spare[0])
    there = F.pad(torch.ones_like(inside), pads)
    share = F.avg_pool3d(F.pad(inside, pads), stride) / F.avg_pool3d(there, stride)
    found: NDArray[np.bool_] = (share[0, 0] >= 0.5).numpy()
    return found


def edit(values: Tensor, expert: Tensor, action: str, top_k: int) -> Tensor:
    """Silence or force an expert per cell.

    Parameters
    ----------
    values : Tensor (B, *S, N)
    expert : Tensor (B, *S), int64
        An id for each cell; -1 leaves the cell unchanged.
    action : {"silence", "force"}
    top_k : int

    Returns
    -------
    Tensor (B, *S, N)
        Unchanged values wherever there is no id.
    """
    ids = torch.arange(values.shape[-1], device=values.device)
    selected = expert[..., None] == ids
    if action == "silence":
        return values.masked_fill(selected, 0)
    best, chosen = choose(values, top_k, dim=-1)
    chosen_mask = torch.zeros_like(selected).scatter(
        -1, chosen, torch.ones_like(chosen, dtype=torch.bool)
    )
    missing = (expert >= 0)[..., None] & ~(chosen_mask & selected).any(-1, keepdim=True)
    weakest = best[..., -1:]
    # equal values would make the choice arbitrary
    below = torch.nextafter(weakest, torch.zeros_like(weakest))
    remaining = chosen_mask & (ids != chosen[..., -1:])
    swapped = torch.where(remaining, values, torch.minimum(values, below))
    swapped = torch.where(
        ids == chosen[..., -1:], torch.minimum(_of(values, expert), below), swapped
    )
    return torch.where(missing, torch.where(selected, weakest, swapped), values)


def _of(values: Tensor, expert: Tensor) -> Tensor:
    return values.gather(-1, expert.clamp(min=0)[..., None])


def hook_of(site: GateSite, changes: Sequence[Intervention], grid: Grid) -> Any:
    """Make a forward hook that applies changes in turn; padding cells keep their values.

    The ids per cell are computed at the first call.  The hook raises `InputError` if too few
    experts would be left."""
    ids_by_size: dict[tuple, list[Tensor]] = {}

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        encoder = site.part == "encoder"
        values = output if encoder else output.movedim(1, -1)
        size = tuple(values.shape[:-1])
        if size not in ids_by_size:
            ids_by_size[size] = [
                _ids(site, change, grid, size).to(output.device) for change in changes
            ]
        silent = torch.zeros_like(values, dtype=torch.bool)
        for change, numbers in zip(changes, ids_by_size[size], strict=True):
            ids = _at_ranks(values, numbers, site.top_k) if change.ranks else numbers
            if change.action == "silence":
                silent |= ids[..., None] == torch.arange(site.num_experts, device=ids.device)
            values = edit(values, ids, change.action, site.top_k)
        _check_remaining(silent, site)
        return values if encoder else values.movedim(-1, 1).contiguous()

    return hook


def _at_ranks(values: Tensor, ranks: Tensor, top_k: int) -> Tensor:
    """The ids (B, *S) of the experts that currently have these ranks; -1 stays."""
    chosen = choose(values, top_k, dim=-1)[1].gather(-1, ranks.clamp(min=0)[..., None])[..., 0]
    return torch.where(ranks < 0, ranks, chosen)


def _check_remaining(silent: Tensor, site: GateSite) -> None:
    most = int(silent.sum(-1).max())
    if site.num_experts - most < site.top_k:
        raise InputError(
            f"{site.part} layer {site.layer} chooses {site.top_k} of its {site.num_experts}"
            f" experts; with {most} of them silenced at a cell, too few are left. Silence fewer."
        )


def _ids(site: GateSite, change: Intervention, grid: Grid, size: tuple[int, ...]) -> Tensor:
    """The expert (or rank) per cell of a gate's padded output (B, D, H, W); -1 is no change."""
    batch, padded = size[0], size[1:]
    if site.part == "decoder":
        return _per_cell(site, change, grid, None, padded).expand(batch, -1, -1, -1)
    halves = [
        _per_cell(site, change, grid, image, padded).expand(batch // 2, -1, -1, -1)
        for image in IMAGES
    ]
    return torch.cat(halves)


def _per_cell(
    site: GateSite, change: Intervention, grid: Grid, image: Image | None, padded: Sequence[int]
) -> Tensor:
    ids = torch.full((1, *padded), -1)
    if image is not None and change.image not in (None, image):
        return ids
    inside = cells_in(change.region, grid, site.stride)
    i, j, k = inside.shape
    ids[0, :i, :j, :k] = torch.from_numpy(
        np.where(inside, _numbers(change, site, image, inside.shape), -1)
    )
    return ids


def _numbers(
    change: Intervention, site: GateSite, image: Image | None, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """The expert (or rank) per cell (I, J, K) of a gate, regardless of the region; -1 is none."""
    if isinstance(change.expert, int):
        return np.full(shape, change.expert, dtype=np.int64)
    gate = site.gate._replace(image=image)
    expert_map = change.expert.get(gate)
    if expert_map is None:
        return np.full(shape, -1, dtype=np.int64)
    if expert_map.shape != shape:
        raise InputError(
            f"The map of experts for {gate} has the shape {expert_map.shape}; {shape} was expected."
        )
    return expert_map.astype(np.int64)
