"""Controls: the same network with other expert choices, or without the routed part.

Ours, beyond the paper.  A load or a map shows what gates chose; only a control shows whether the
choice mattered.  A control is a plain forward hook on gates or on the layers that they route.  It
is active within a ``with`` block (`intervention.changed_gates`); the network itself is not changed.

B batch (moving and fixed of the encoder one after the other), N experts, k chosen, C channels, *S
space (D, H, W)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.gate_edits import IMAGES, GateSelection
from napari_shmoareg.geometry import Grid
from napari_shmoareg.model import Routing, SHMoAReg
from napari_shmoareg.model.gate_sites import GateSite, attentions_of, gates_of
from napari_shmoareg.model.moa import MoA
from napari_shmoareg.model.routing import Direction, Image, Part, choose
from napari_shmoareg.model.shmoe import DIRECTIONS, SHMoE

Name = Literal[
    "shuffled",
    "shuffled_choice",
    "moved",
    "moved_near",
    "random",
    "silenced",
    "fixed",
    "untrained_gate",
    "constant_weights",
    "uniform",
    "mean_of_kernels",
    "attention_off",
]
Passes = Literal["all", "last"]
MAX_SWEEPS = 60  # of `equal_loads`, at most
MAX_STALLED_SWEEPS = 8  # sweeps without improvement
NEAR_SHIFT = 4  # cells, of `moved_near`
SINGLE_EXPERT = ("fixed", "silenced")  # controls that can apply to one expert
LOAD_TOLERANCE = (
    1e-3  # deviation of the loads, as a share of the cells, from which single cells are moved
)


class Kind(NamedTuple):
    """Title and description of a control, and the parts of the network that have it."""

    title: str
    parts: tuple[Part, ...]
    description: str


KINDS: dict[Name, Kind] = {
    "shuffled": Kind(
        "shuffled",
        ("encoder", "decoder"),
        "experts and weights of each cell given to another cell, drawn at random",
    ),
    "shuffled_choice": Kind(
        "choice shuffled, own weights",
        ("encoder", "decoder"),
        "experts of each cell given to another cell, drawn at random; every cell keeps its own"
        " weights",
    ),
    "moved": Kind(
        "moved by half the grid", ("encoder", "decoder"), "the map of experts and weights shifted"
    ),
    "moved_near": Kind(
        "moved by 4 cells",
        ("encoder", "decoder"),
        "the map of experts and weights shifted a little",
    ),
    "random": Kind(
        "random experts", ("encoder", "decoder"), "experts drawn at random, own weights"
    ),
    "fixed": Kind(
        "one choice everywhere",
        ("encoder", "decoder"),
        "the same experts at every cell, own weights",
    ),
    "silenced": Kind(
        "one kernel silenced", ("decoder",), "one expert never chosen; the next best instead"
    ),
    "untrained_gate": Kind(
        "untrained gate, equal loads",
        ("encoder", "decoder"),
        "an untrained gate chooses, with the same loads",
    ),
    "constant_weights": Kind(
        "constant weights", ("encoder", "decoder"), "the choice kept, all weights equal"
    ),
    "uniform": Kind("all heads equal", ("encoder",), "the plain mean of all heads"),
    "mean_of_kernels": Kind(
        "mean of the kernels", ("decoder",), "the plain mean of all kernels, own T"
    ),
    "attention_off": Kind(
        "attention off", ("encoder",), "the attention's output removed; the MLPs stay"
    ),
}


@dataclass(frozen=True)
class Control(GateSelection):
    """A replacement for the expert choices at some gates, to compare with the learned ones.

    A cell is a token of the encoder or a voxel of a decoder level.  The *weights* of a cell are the
    normalised gate values of Eq. (4) in the encoder, T of Eq. (6) in the decoder.  "Own weights"
    means that the cell's chosen gate values, in descending order, go to the new experts in their
    order.  Draws are made per gate, image and pass, over the cells that hold image; cells of pure
    padding keep their choices.  Draws depend on the seed, the gate, the image and the grid of the
    pass alone, not on earlier runs.

    ``shuffled``
        The (experts, weights) of the cells, randomly permuted.  Exactly preserved: the loads, the
        multiset of (experts, weights), which experts are chosen together.  Changed: the location.
    ``shuffled_choice``
        As ``shuffled``, but each cell keeps its own weights.  Preserved: loads and the map of
        weights.
    ``moved``
        The map of (experts, weights), shifted cyclically by half the grid along every axis.
        Preserved: all of ``shuffled``, and the spatial structure.  Changed: the anatomy under it.
    ``moved_near``
        As ``moved``, but by 4 cells along each axis (by half of the axis if it has up to 4 cells).
    ``random``
        k distinct experts per cell, every set equally likely; own weights.  Loads become even.
    ``fixed``
        At every cell the k experts that the gate chose most often on this image, or `expert`; own
        weights.
    ``silenced``
        Decoder: the kernel that the gate chose most often, or `expert`, is never chosen.  Its
        voxels choose the next best kernel, with the gate value of that kernel.
    ``untrained_gate``
        The choices of an untrained gate of the same form on the same features (initialised by the
        seed as in a new network), with biases per expert that make the loads exactly those of the
        learned gate; own weights.  Preserved: loads, weights, and that the choice follows the
        image.  Changed: what was learned.
    ``constant_weights``
        The choice is preserved.  Encoder: each chosen head has the weight 1 / k.  Decoder: T is its
        mean over the cells.
    ``uniform``
        Encoder: every token uses all N heads with the weight 1 / N (padding cells too).
    ``mean_of_kernels``
        Decoder: T times the mean output of all N kernels instead of T times the output of the
        chosen one (padding cells too).
    ``attention_off``
        Encoder: the output of the attention (MoA or plain) is 0, so that a Swin block is
        x + MLP(norm(x)).

    Parameters
    ----------
    name : str
        One of `KINDS`.
    part : {"encoder", "decoder"}
    layer, block, image, direction : optional
        The gates, as in `RoutedLayer`; None is all of them.
    passes : {"all", "last"}
        Passes of the cascade in which the control acts (see `Experiment.run`).
    expert : int, optional
        For ``silenced``, and for ``fixed`` at gates that choose one expert.
    seed : int
        Seed of the draws, at least 0.

    Raises
    ------
    InputError
        If the part has no such control.
    """

    name: Name
    part: Part
    layer: int | None = None
    block: int | None = None
    image: Image | None = None
    direction: Direction | None = None
    passes: Passes = "all"
    expert: int | None = None
    seed: int = 0

    region = None  # everywhere
    action = "control"

    def __post_init__(self) -> None:
        available = ", ".join(name for name, kind in KINDS.items() if self.part in kind.parts)
        if self.name not in KINDS or self.part not in KINDS[self.name].parts:
            raise InputError(
                f"There is no control '{self.name}' of the {self.part}. Choose one of: {available}."
            )
        if self.passes not in get_args(Passes):
            raise InputError(f"A control acts in the passes 'all' or 'last'; got {self.passes!r}.")
        if self.expert is not None and self.name not in SINGLE_EXPERT:
            raise InputError(
                f"The control '{self.name}' does not apply to a single expert. Leave out"
                f" expert={self.expert}."
            )
        if self.seed < 0:
            raise InputError(f"The seed of a control is a whole number from 0; got {self.seed}.")

    def __str__(self) -> str:
        passes = "all passes" if self.passes == "all" else "the last pass"
        return f"{self.title}: {self.gates}, {passes}"

    @property
    def key(self) -> str:
        """Part, name and expert, for tables: ``encoder shuffled``, ``decoder fixed 2``."""
        return " ".join(
            str(word) for word in (self.part, self.name, self.expert) if word is not None
        )

    @property
    def title(self) -> str:
        """Display text: "shuffled", "expert 2 everywhere"."""
        if self.expert is None:
            return KINDS[self.name].title
        return self.title_with(f"expert {self.expert}")

    def title_with(self, expert: str) -> str:
        """Display text with a name for the one expert: "5x5x5 silenced"."""
        return f"{expert} {'everywhere' if self.name == 'fixed' else 'silenced'}"


def controls_of(network: SHMoAReg, *, passes: Passes = "all", seed: int = 0) -> list[Control]:
    """List all controls that apply to a network, each over the whole encoder or decoder.

    A decoder of at most four kernels gets a ``fixed`` and a ``silenced`` control for each kernel,
    instead of for the most frequent one."""
    sites, found = gates_of(network), list[Control]()
    for part in get_args(Part):
        own = [site for site in sites if site.part == part]
        names = [name for name, kind in KINDS.items() if part in kind.parts and own]
        if part == "encoder" and not own:
            names = ["attention_off"]
        for name in names:
            count = own[0].num_experts if own else 0
            each = name in SINGLE_EXPERT and all(site.top_k == 1 for site in own) and count <= 4
            experts: list[int | None] = [*range(count)] if each else [None]
            found += [
                Control(name, part, passes=passes, expert=expert, seed=seed) for expert in experts
            ]
    return found


def hook_controls(network: SHMoAReg, controls: Sequence[Control], grid: Grid) -> Iterator[Any]:
    """Register the hooks of controls and yield their handles.

    Parameters
    ----------
    network : SHMoAReg
    controls : sequence of Control
        Applied in turn at every gate.
    grid : Grid
        The network grid of the last pass; used for a pass in which the encoder does not run.

    Raises
    ------
    InputError
        If a control matches no gate of this network, or names an expert that it does not have.
    """
    sites = gates_of(network)
    for control in controls:
        _check(control, network, sites)
    if not controls:
        return
    now = _Pass(grid.shape)
    yield network.encoder.register_forward_pre_hook(lambda module, args: now.begin(args[1]))
    for control in controls:
        targeted = [
            (number, site) for number, site in enumerate(sites) if control.selects(site.gate)
        ]
        owners = {id(site.owner): site.owner for _, site in targeted}.values()
        if control.name == "attention_off":
            for layer, block, attention in attentions_of(network):
                if (control.layer or layer, block if control.block is None else control.block) == (
                    layer,
                    block,
                ):
                    yield attention.register_forward_hook(_without_attention(control))
            continue
        if control.name == "mean_of_kernels":
            for owner in owners:
                axes = [
                    DIRECTIONS.index(cast(Any, site.direction))
                    for _, site in targeted
                    if site.owner is owner
                ]
                yield owner.register_forward_hook(_mean_of_kernels(axes))
            continue
        if control.name == "untrained_gate" and control.part == "decoder":
            for owner in owners:
                yield owner.register_forward_pre_hook(
                    lambda module, args: now.store(module, args[0])
                )
        for number, site in targeted:
            yield site.module.register_forward_hook(_gate_hook(control, site, number, now))
        if control.name == "uniform":
            for owner in owners:
                yield owner.register_forward_hook(_all_heads(control))


class _Pass:
    """State of the current pass: its grid, and the latest input features of an expert layer."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._stored: tuple[nn.Module, Tensor] | None = None

    def begin(self, shape: tuple[int, int, int]) -> None:
        self.shape, self._stored = shape, None

    def store(self, module: nn.Module, features: Tensor) -> None:
        self._stored = module, features

    def features(self, module: nn.Module) -> Tensor:
        assert self._stored is not None and self._stored[0] is module
        return self._stored[1]


Edit = Callable[[Tensor, int, str, tuple[int, int, int]], Tensor]


def _gate_hook(control: Control, site: GateSite, number: int, now: _Pass) -> Any:
    """Make a hook that replaces the values (n, N) of a gate's cells, per item of the batch."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        encoder = site.part == "encoder"
        values = output if encoder else output.movedim(1, -1)
        i, j, k = cells = cells_of(now.shape, site.stride)
        scores = None
        if control.name == "untrained_gate":
            features = args[0] if encoder else now.features(site.owner)
            scores = untrained_scores(site, features, (control.seed, number))
        changed = values.clone()
        for item in range(len(values)):
            image = "" if not encoder else IMAGES[item >= len(values) // 2]
            if control.image in (None, image):
                inner = values[item, :i, :j, :k].flatten(0, 2)
                rng = np.random.default_rng((control.seed, number, item, *cells))
                given = None if scores is None else scores[item, :i, :j, :k].flatten(0, 2)
                edited = _edited(control, site, inner, cells, rng, given)
                changed[item, :i, :j, :k] = edited.unflatten(0, cells)
        return changed if encoder else changed.movedim(-1, 1).contiguous()

    return hook


def cells_of(shape: Sequence[int], stride: int) -> tuple[int, int, int]:
    """Number of cells of a stride that hold image, along each axis of a grid of this shape."""
    i, j, k = (-(-n // stride) for n in shape)
    return i, j, k


def _edited(
    control: Control,
    site: GateSite,
    values: Tensor,
    cells: tuple[int, int, int],
    rng: np.random.Generator,
    scores: Tensor | None,
) -> Tensor:
    """Gate values (n, N) of all cells under a control."""
    n, count = values.shape
    if control.name == "uniform":
        return torch.full_like(values, 1 / count)
    if control.name in ("shuffled", "shuffled_choice"):
        order = torch.from_numpy(rng.permutation(n)).to(values.device)
        if control.name == "shuffled":
            return values[order]
    if control.name in ("moved", "moved_near"):
        farthest = max(cells) if control.name == "moved" else NEAR_SHIFT
        steps = [min(size // 2, farthest) for size in cells]
        return values.unflatten(0, cells).roll(steps, dims=(0, 1, 2)).flatten(0, 2)
    own, chosen = choose(values, site.top_k, dim=-1)
    if control.name == "silenced":
        counts = torch.bincount(chosen.flatten(), minlength=count)
        silent = int(counts.argmax()) if control.expert is None else control.expert
        return values.index_fill(-1, torch.tensor([silent], device=values.device), 0.0)
    if control.name == "shuffled_choice":
        chosen = chosen[order]
    elif control.name == "random":
        drawn = rng.random((n, count)).argsort(axis=1)[:, : site.top_k]
        chosen = torch.from_numpy(drawn).to(values.device)
    elif control.name == "fixed":
        counts = torch.bincount(chosen.flatten(), minlength=count)
        most = counts.argsort(descending=True, stable=True)[: site.top_k]
        chosen = (
            most.expand(n, -1)
            if control.expert is None
            else torch.full_like(chosen, control.expert)
        )
    elif control.name == "untrained_gate":
        assert scores is not None
        chosen = equal_loads(scores, torch.bincount(chosen.flatten(), minlength=count), site.top_k)
    elif control.name == "constant_weights":
        own = (
            torch.full_like(own, 1 / site.top_k)
            if site.part == "encoder"
            else own.mean(0).expand(n, -1)
        )
    return torch.zeros_like(values).scatter(-1, chosen, own)


def untrained_scores(site: GateSite, features: Tensor, seed: Sequence[int]) -> Tensor:
    """Compute the scores of an untrained gate, before softmax or sigmoid.

    Parameters
    ----------
    site : GateSite
        The gate that it replaces: a matrix product in the encoder, a 3x3x3 convolution in the
        decoder; initialised as in a new network, without bias.
    features : Tensor (B, *S, C) of the encoder, (B, C, *S) of the decoder
    seed : sequence of int

    Returns
    -------
    Tensor (B, *S, N), float32
    """
    rng = np.random.default_rng(tuple(seed))
    features = features.float()
    if site.part == "encoder":
        weight = rng.normal(0, 0.02, (site.num_experts, features.shape[-1]))
        return features @ torch.from_numpy(weight).to(features).T
    edge = (features.shape[1] * 27) ** -0.5
    weight = rng.uniform(-edge, edge, (site.num_experts, features.shape[1], 3, 3, 3))
    return F.conv3d(features, torch.from_numpy(weight).to(features), padding=1).movedim(1, -1)


def equal_loads(scores: Tensor, loads: Tensor, top_k: int) -> Tensor:
    """Choose the k best experts of each cell, with biases that give the requested loads.

    The biases are solved one at a time, each so that its expert gets its load given the others,
    until the loads are off by at most 1 in 1000 cells or stop improving.  Then single cells switch
    from an expert with too many cells to one with too few, those with the least loss of score
    first, until the loads are exact.

    Parameters
    ----------
    scores : Tensor (n, N)
    loads : Tensor (N,), int64
        Number of cells that choose each expert: at most n, k n in total.
    top_k : int

    Returns
    -------
    Tensor (n, k), int64
        The best of each cell first.
    """
    n, count = scores.shape
    if count == top_k:
        return scores.argsort(dim=-1, descending=True)
    scores = (scores - scores.mean(0)) / scores.std(0, unbiased=False).clamp_min(1e-12)
    bias = torch.zeros(count, dtype=scores.dtype, device=scores.device)
    requested_loads, best, stalled = [int(load) for load in loads], n, 0
    for _ in range(MAX_SWEEPS):
        for expert, load in enumerate(requested_loads):
            others = (scores + bias).index_fill(
                1, torch.tensor([expert], device=scores.device), -torch.inf
            )
            # chosen where gap + bias > 0
            gap = scores[:, expert] - choose(others, top_k, dim=-1)[0][:, -1]
            above = gap.kthvalue(n - load + 1).values if load else gap.max() + 1
            below = gap.kthvalue(n - load).values if load < n else gap.min() - 1
            bias[expert] = -(above + below) / 2
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen.scatter_(-1, choose(scores + bias, top_k, dim=-1)[1], True)
        missed = int((chosen.sum(0) - loads).abs().max())
        best, stalled = (missed, 0) if missed < best else (best, stalled + 1)
        if missed <= max(1, LOAD_TOLERANCE * n) or stalled == MAX_STALLED_SWEEPS:
            break
    _match_loads(chosen, scores + bias, loads)
    return (scores + bias).masked_fill(~chosen, -torch.inf).topk(top_k, dim=-1).indices


def _match_loads(chosen: Tensor, values: Tensor, loads: Tensor) -> None:
    """Switch choices (n, N) in place until the loads are met, those with the least loss first."""
    while True:
        spare = chosen.sum(0) - loads
        many = int(spare.argmax())
        if spare[many] <= 0:
            return
        path = _path(chosen, many, spare)
        count = int(min(spare[many], -spare[path[-1]])) if len(path) == 2 else 1
        # from the end, so that each switch leaves room for the one before it
        for one, other in reversed(list(pairwise(path))):
            free = torch.nonzero(chosen[:, one] & ~chosen[:, other])[:, 0]
            loss = values[free, one] - values[free, other]
            moved = free[loss.topk(min(count, len(free)), largest=False).indices]
            chosen[moved, one], chosen[moved, other] = False, True


def _path(chosen: Tensor, many: int, spare: Tensor) -> list[int]:
    """Shortest path of possible switches from an expert with too many cells to one with too few."""
    paths = [[many]]
    visited = {many}
    for path in paths:
        # experts that at least one of this expert's cells has not chosen
        free = (chosen[:, path[-1], None] & ~chosen).any(0)
        for other in spare.argsort().tolist():
            if bool(free[other]) and other not in visited:
                if spare[other] < 0:
                    return [*path, other]
                visited.add(other)
                paths.append([*path, other])
    raise AssertionError("loads that sum to k times the cells can always be met")


def _all_heads(control: Control) -> Any:
    """Make a hook on MoA that runs the layer with all heads chosen; its gate is already uniform."""

    def hook(module: MoA, args: Any, output: tuple[Tensor, Routing]) -> tuple[Tensor, Routing]:
        # copies with their own k; parameters are shared
        every, gate = copy.copy(module), copy.copy(module.gate)
        every._modules = {**module._modules, "gate": gate}
        gate.top_k = module.num_experts
        y, routing = every.forward(*args)
        if control.image is None:
            return y, routing
        return torch.where(_of_image(control, y), y, output[0]), output[1]

    return hook


def _without_attention(control: Control) -> Any:
    """Make a hook on an attention that sets its output to 0 and keeps its routing."""

    def hook(module: nn.Module, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        y, routing = output
        if control.image is None:
            return torch.zeros_like(y), routing
        return torch.where(_of_image(control, y), torch.zeros_like(y), y), routing

    return hook


def _of_image(control: Control, y: Tensor) -> Tensor:
    """Mask of the items of a batch (B, ...) that belong to the control's image."""
    fixed = torch.arange(len(y), device=y.device) >= len(y) // 2
    return (fixed == (control.image == "fixed")).view(-1, *[1] * (y.ndim - 1))


def _mean_of_kernels(axes: Sequence[int]) -> Any:
    """Make a hook on SHMoE: T times the mean of all kernels, along some directions."""

    def hook(
        module: SHMoE, args: Any, output: tuple[Tensor, tuple[Routing, ...]]
    ) -> tuple[Tensor, tuple]:
        residual, routings = output
        outputs, _ = module.convolve(args[0])
        pieces, records = list(residual.split(1, dim=1)), list(routings)
        for axis in axes:
            total, count = routings[axis].weights.sum(1, keepdim=True), outputs[axis].shape[1]
            pieces[axis] = total * outputs[axis].mean(1, keepdim=True)
            ids = (
                torch.arange(count, device=total.device)
                .view(1, -1, 1, 1, 1)
                .expand_as(outputs[axis])
            )
            records[axis] = Routing(
                routings[axis].probabilities, ids, (total / count).expand_as(outputs[axis])
            )
        return torch.cat(pieces, dim=1), tuple(records)

    return hook


def _check(control: Control, network: SHMoAReg, sites: Sequence[GateSite]) -> None:
    targeted = [site for site in sites if control.selects(site.gate)]
    found = bool(targeted)
    if control.name == "attention_off":
        found = control.direction is None and any(
            control.layer in (None, layer) and control.block in (None, block)
            for layer, block, _ in attentions_of(network)
        )
    if not found or (
        control.image is not None and (control.part != "encoder" or control.image not in IMAGES)
    ):
        available = sorted({f"{site.part} layer {site.layer}" for site in sites})
        raise InputError(
            f"'{control}' matches no gate of this network, which has:"
            f" {', '.join(available) or 'no experts'}."
        )
    for site in targeted if control.expert is not None else ():
        if site.top_k != 1 or not 0 <= (control.expert or 0) < site.num_experts:
            raise InputError(
                f"'{control}': {site.part} layer {site.layer} chooses {site.top_k} of the experts 0"
                f" to {site.num_experts - 1}. A control of one expert needs a gate that chooses"
                " one expert per cell."
            )
