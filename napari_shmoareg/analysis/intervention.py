"""What a gate would have chosen: experts silenced or forced.

Ours, beyond the paper.  A change is a plain forward hook on the gates that it names, for as long as a
``with`` block lasts; the network itself is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.analysis.expert_load import Place
from napari_shmoareg.geometry import Grid, InputError, Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.model.gates import GateSite, gates_of
from napari_shmoareg.model.routing import choose

ACTIONS = ("silence", "force")
IMAGES = ("moving", "fixed")


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change to what gates decide.

    ``silence``: the expert's gate value becomes 0, so that the next best one is chosen in its place, with its own
    value; the weights of Eq. (4) are formed of what is chosen then.  ``force``: where the expert was not chosen
    it takes the place *and the gate value* of the weakest chosen one (ours: with its own value, which is smaller,
    a forced expert would count for less, and the change would be one of strength).  Where nothing was to
    be changed, nothing is, to the last bit.

    Parameters
    ----------
    action : {"silence", "force"}
    expert : int, or mapping of Place to (I, J, K) int array
        An id; or one for each cell of each gate, -1 where nothing is done.
    part : {"encoder", "decoder"}
    layer, block, image, direction : optional
        Which gates, as in `RoutedLayer`; None is all of them.
    region : Volume, optional
        In the fixed world, on any grid: where it is not 0.  A cell is in it if at least half of the cell's volume is.
        The tokens of the moving image are meant where that image, aligned and after the earlier passes, stands.
    told : str
        What `str` says instead of a description of its own.
    """

    action: Literal["silence", "force"]
    expert: int | Mapping[Place, NDArray]
    part: Literal["encoder", "decoder"]
    layer: int | None = None
    block: int | None = None
    image: str | None = None
    direction: str | None = None
    region: Volume | None = None
    told: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InputError(f"An intervention is one of {', '.join(ACTIONS)}; got {self.action!r}.")

    def __str__(self) -> str:
        if self.told:
            return self.told
        expert = f"expert {self.expert}" if isinstance(self.expert, int) else "experts of a map"
        where = f"{self.part} layer {self.layer}" if self.layer is not None else f"all {self.part} layers"
        named = (("block", self.block), ("direction", self.direction))
        parts = [f"{self.action} {expert} of {where}", *(f"{name} {v}" for name, v in named if v is not None)]
        parts += [] if self.image is None else [f"{self.image} image"]
        parts += [] if self.region is None else [f"in {self.region.name or 'a region'}"]
        return ", ".join(parts)

    def concerns(self, place: Any) -> bool:
        """Whether a gate, a record or a place with the same fields is meant; a gate serves both images."""
        fields = ("part", "layer", "block", "direction") + (("image",) if hasattr(place, "image") else ())
        return all(getattr(self, name) in (None, getattr(place, name)) for name in fields)


@contextmanager
def intervening(network: SHMoAReg, interventions: Sequence[Intervention], grid: Grid) -> Iterator[None]:
    """Change what the gates of a network decide, for as long as the block lasts.

    Parameters
    ----------
    network : SHMoAReg
    interventions : sequence of Intervention
        Made one after the other at every gate.
    grid : Grid
        The network grid of the passes that run in the block: where the regions lie on it.

    Raises
    ------
    InputError
        If no gate or no cell is meant, there is no such expert, or too few experts would be left.
    """
    sites = gates_of(network)
    for change in interventions:
        _check(change, sites, grid)
    _check_left(interventions, sites)
    handles = []
    try:
        for site in sites:
            meant = [change for change in interventions if change.concerns(site)]
            if meant:
                handles.append(site.module.register_forward_hook(_hook(site, meant, grid)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def cells_in(region: Volume | None, grid: Grid, stride: int) -> NDArray[np.bool_]:
    """Which cells of a network grid at a stride lie in a region by half of their volume or more, (I, J, K)."""
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
    """Gate values with the change made.

    Parameters
    ----------
    values : Tensor (B, *S, N)
    expert : Tensor (B, *S), int64
        An id for each cell; -1 leaves it.
    action : {"silence", "force"}
    top_k : int
    """
    ids = torch.arange(values.shape[-1], device=values.device)
    asked = expert[..., None] == ids
    if action == "silence":
        return values.masked_fill(asked, 0)
    best, chosen = choose(values, top_k, dim=-1)
    held = torch.zeros_like(asked).scatter(-1, chosen, torch.ones_like(chosen, dtype=torch.bool))
    missing = (expert >= 0)[..., None] & ~(held & asked).any(-1, keepdim=True)
    weakest = best[..., -1:]
    below = torch.nextafter(weakest, torch.zeros_like(weakest))  # equal values would leave the choice to chance
    kept = held & (ids != chosen[..., -1:])
    swapped = torch.where(kept, values, torch.minimum(values, below))
    swapped = torch.where(ids == chosen[..., -1:], torch.minimum(_of(values, expert), below), swapped)
    return torch.where(missing, torch.where(asked, weakest, swapped), values)


def _of(values: Tensor, expert: Tensor) -> Tensor:
    return values.gather(-1, expert.clamp(min=0)[..., None])


def _hook(site: GateSite, changes: Sequence[Intervention], grid: Grid) -> Any:
    """A forward hook that makes the changes; the ids per cell are worked out at the first call."""
    ready: dict[tuple, list[tuple[str, Tensor]]] = {}

    def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        encoder = site.part == "encoder"
        values = output if encoder else output.movedim(1, -1)
        size = tuple(values.shape[:-1])
        if size not in ready:
            ready[size] = [(c.action, _ids(site, c, grid, size).to(output.device)) for c in changes]
        for action, ids in ready[size]:
            values = edit(values, ids, action, site.top_k)
        return values if encoder else values.movedim(-1, 1).contiguous()

    return change


def _ids(site: GateSite, change: Intervention, grid: Grid, size: tuple[int, ...]) -> Tensor:
    """The expert of each cell of a gate's padded output (B, D, H, W), -1 where nothing is done."""
    batch, padded = size[0], size[1:]
    if site.part == "decoder":
        return _per_cell(site, change, grid, None, padded).expand(batch, -1, -1, -1)
    halves = [_per_cell(site, change, grid, image, padded).expand(batch // 2, -1, -1, -1) for image in IMAGES]
    return torch.cat(halves)


def _per_cell(site: GateSite, change: Intervention, grid: Grid, image: str | None, padded: Sequence[int]) -> Tensor:
    if image is not None and change.image not in (None, image):
        return torch.full((1, *padded), -1)
    if change.region is None and isinstance(change.expert, int):
        return torch.full((1, *padded), change.expert)
    ids = torch.full((1, *padded), -1)
    inside = cells_in(change.region, grid, site.stride)
    i, j, k = inside.shape
    ids[0, :i, :j, :k] = torch.from_numpy(np.where(inside, experts_at(change, site, image, inside.shape), -1))
    return ids


def experts_at(change: Intervention, site: GateSite, image: str | None, shape: Iterable[int]) -> NDArray[np.int64]:
    """The expert that is meant at each cell (I, J, K) of a gate, -1 for none, regions aside."""
    if isinstance(change.expert, int):
        return np.full(tuple(shape), change.expert, dtype=np.int64)
    place = Place(site.part, site.layer, site.block, image, site.direction)
    given = change.expert.get(place)
    if given is None:
        return np.full(tuple(shape), -1, dtype=np.int64)
    if given.shape != tuple(shape):
        raise InputError(
            f"The map of experts of {place} has the shape {given.shape}; its gate has {tuple(shape)} cells."
        )
    return given.astype(np.int64)


def _check(change: Intervention, sites: Sequence[GateSite], grid: Grid) -> None:
    meant = [site for site in sites if change.concerns(site)]
    if not meant or (change.image is not None and (change.part != "encoder" or change.image not in IMAGES)):
        there = sorted({f"{site.part} layer {site.layer}" for site in sites})
        raise InputError(f"'{change}' names no gate of this network, which has: {', '.join(there) or 'no experts'}.")
    for site in meant:
        if isinstance(change.expert, int) and not 0 <= change.expert < site.num_experts:
            raise InputError(f"'{change}': {site.part} layer {site.layer} has the experts 0 to {site.num_experts - 1}.")
    if change.region is not None and not any(cells_in(change.region, grid, s).any() for s in {s.stride for s in meant}):
        raise InputError(
            f"'{change}': the region covers no cell of these gates by half. Take a larger region, or a finer layer "
            f"(the cells here are {min(site.stride for site in meant)} voxels of the network grid wide)."
        )


def _check_left(changes: Sequence[Intervention], sites: Sequence[GateSite]) -> None:
    for site in sites:
        silent = {c.expert for c in changes if c.action == "silence" and isinstance(c.expert, int) and c.concerns(site)}
        if silent and site.num_experts - len(silent) < site.top_k:
            raise InputError(
                f"{site.part} layer {site.layer} chooses {site.top_k} of its {site.num_experts} experts; with "
                f"{len(silent)} of them silent too few are left."
            )
