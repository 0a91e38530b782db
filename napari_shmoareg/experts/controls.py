"""Controls: the same network with another choice of experts, or without what was chosen.

Ours, beyond the paper.  A load, or a map, shows what gates chose; only a control shows whether it
mattered. A control is a plain forward hook, on gates or on the layers that they route, for as long
as a ``with`` block (`intervention.intervening`) lasts; the network itself is never touched.

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
from napari_shmoareg.model.gates import GateSite, attentions_of, gates_of
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
SWEEPS = 60  # of `equal_loads`, at most
PATIENCE = 8  # of them, without getting nearer
NEAR = 4  # cells, of `moved_near`
ABOUT_ONE = ("fixed", "silenced")  # controls that can be about one expert
CLOSE = 1e-3  # share of the cells by which loads may miss before single cells are moved


class Kind(NamedTuple):
    """What a control is, in words, and for which parts of the network there is such a one."""

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
        "constant weights", ("encoder", "decoder"), "the choice kept, all weights alike"
    ),
    "uniform": Kind("all heads alike", ("encoder",), "the plain mean of all heads"),
    "mean_of_kernels": Kind(
        "mean of the kernels", ("decoder",), "the plain mean of all kernels, own T"
    ),
    "attention_off": Kind(
        "attention off", ("encoder",), "the attention's output removed; the MLPs stay"
    ),
}


@dataclass(frozen=True)
class Control(GateSelection):
    """Another choice of experts at some gates, to compare the learned one with.

    A cell is a token of the encoder or a voxel of a level of the decoder; the *weights* of a cell
    are the normalised gate values of Eq. (4) in the encoder, T of Eq. (6) in the decoder.  "Own
    weights" means that the cell's chosen gate values, from the largest on, go to the new experts in
    their order.  All draws are made per gate, image and pass, over the cells that hold image; cells
    of padding alone keep what they chose.  They depend on the seed, the gate, the image and the
    grid of the pass, and on nothing else: not on what ran before.

    ``shuffled``
        Each cell's (experts, weights) are those of another cell, by a random permutation of the
        cells.  Kept to the last bit: the loads, the multiset of (experts, weights), which experts
        are chosen together.  Changed: where.
    ``shuffled_choice``
        As ``shuffled``, but each cell keeps its own weights.  Kept: loads, and the map of weights.
    ``moved``
        The map of (experts, weights) shifted by half the grid along every axis, what leaves it at
        one side coming in at the other.  Kept: all of ``shuffled``, and the spatial structure.
        Changed: what it stands on.
    ``moved_near``
        As ``moved``, but by 4 cells along each axis (on axes of up to 4 cells, by half of them):
        what stands nearby.
    ``random``
        k different experts per cell, each set as likely as any other; own weights.  Loads become
        even.
    ``fixed``
        At every cell the k experts that the gate chose most often on this image, or `expert`; own
        weights.
    ``silenced``
        Decoder: the kernel that the gate chose most often, or `expert`, is chosen nowhere; the
        voxels that had chosen it take the next best in its place, with that one's own gate value.
    ``untrained_gate``
        The cells choose by an untrained gate of the same form on the same features (initialised as
        a new network's, by the seed), whose experts are given biases so that the loads are those of
        the learned gate, to the cell; own weights.  Kept: loads, weights, and that the choice
        follows the image.  Changed: what was learned.
    ``constant_weights``
        The choice kept.  Encoder: each chosen head has the weight 1 / k.  Decoder: T is its mean
        over the cells.
    ``uniform``
        Encoder: every token takes all N heads with the weight 1 / N (cells of padding too).
    ``mean_of_kernels``
        Decoder: T times the mean of all N kernels' outputs instead of T times the chosen one's
        (cells of padding too).
    ``attention_off``
        Encoder: the output of the attention is 0 (MoA, or plain attention), so that a Swin block is
        x + MLP(norm(x)).

    Parameters
    ----------
    name : str
        One of `KINDS`.
    part : {"encoder", "decoder"}
    layer, block, image, direction : optional
        Which gates, as in `RoutedLayer`; None is all of them.
    passes : {"all", "last"}
        Whether it acts in every pass of the cascade, or in the last one alone (see
        `Experiment.run`).
    expert : int, optional
        For ``silenced``, and for ``fixed`` at gates that choose one expert.
    seed : int
        At least 0; of the draws.

    Raises
    ------
    InputError
        If there is no such control for this part.
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
        known = ", ".join(name for name, kind in KINDS.items() if self.part in kind.parts)
        if self.name not in KINDS or self.part not in KINDS[self.name].parts:
            raise InputError(
                f"There is no control '{self.name}' of the {self.part}; there are: {known}."
            )
        if self.passes not in get_args(Passes):
            raise InputError(f"A control acts in the passes 'all' or 'last'; got {self.passes!r}.")
        if self.expert is not None and self.name not in ABOUT_ONE:
            raise InputError(
                f"The control '{self.name}' is about no single expert; leave out"
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
        """For people: "shuffled"; "expert 2 everywhere"."""
        if self.expert is None:
            return KINDS[self.name].title
        return self.title_with(f"expert {self.expert}")

    def title_with(self, expert: str) -> str:
        """For people, the one expert that it is about called by a name: "5x5x5 silenced"."""
        return f"{expert} {'everywhere' if self.name == 'fixed' else 'silenced'}"


def controls_of(network: SHMoAReg, *, passes: Passes = "all", seed: int = 0) -> list[Control]:
    """All controls that a network has use for: each over all of its encoder, or all of its decoder.

    A decoder of at most four kernels has a ``fixed`` and a ``silenced`` for each of them in place
    of the favourites'."""
    sites, found = gates_of(network), list[Control]()
    for part in get_args(Part):
        own = [site for site in sites if site.part == part]
        names = [name for name, kind in KINDS.items() if part in kind.parts and own]
        if part == "encoder" and not own:
            names = ["attention_off"]
        for name in names:
            count = own[0].num_experts if own else 0
            each = name in ABOUT_ONE and all(site.top_k == 1 for site in own) and count <= 4
            experts: list[int | None] = [*range(count)] if each else [None]
            found += [
                Control(name, part, passes=passes, expert=expert, seed=seed) for expert in experts
            ]
    return found


def hook_controls(network: SHMoAReg, controls: Sequence[Control], grid: Grid) -> Iterator[Any]:
    """Register the hooks of controls, and yield the handle of each.

    Parameters
    ----------
    network : SHMoAReg
    controls : sequence of Control
        Made one after the other at every gate.
    grid : Grid
        The network grid of the last pass: that of a pass in which the encoder does not run.

    Raises
    ------
    InputError
        If a control names no gate of this network, or an expert that it does not have.
    """
    sites = gates_of(network)
    for control in controls:
        _check(control, network, sites)
    if not controls:
        return
    now = _Pass(grid.shape)
    yield network.encoder.register_forward_pre_hook(lambda module, args: now.begin(args[1]))
    for control in controls:
        meant = [(number, site) for number, site in enumerate(sites) if control.concerns(site.gate)]
        owners = {id(site.owner): site.owner for _, site in meant}.values()
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
                    for _, site in meant
                    if site.owner is owner
                ]
                yield owner.register_forward_hook(_mean_of_kernels(axes))
            continue
        if control.name == "untrained_gate" and control.part == "decoder":
            for owner in owners:
                yield owner.register_forward_pre_hook(lambda module, args: now.see(module, args[0]))
        for number, site in meant:
            yield site.module.register_forward_hook(_gate_hook(control, site, number, now))
        if control.name == "uniform":
            for owner in owners:
                yield owner.register_forward_hook(_all_heads(control))


class _Pass:
    """Of the pass that runs: its grid, and the features that a layer of experts was given last."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._seen: tuple[nn.Module, Tensor] | None = None

    def begin(self, shape: tuple[int, int, int]) -> None:
        self.shape, self._seen = shape, None

    def see(self, module: nn.Module, features: Tensor) -> None:
        self._seen = module, features

    def features(self, module: nn.Module) -> Tensor:
        assert self._seen is not None and self._seen[0] is module
        return self._seen[1]


Edit = Callable[[Tensor, int, str, tuple[int, int, int]], Tensor]


def _gate_hook(control: Control, site: GateSite, number: int, now: _Pass) -> Any:
    """A hook that gives the cells (n, N) of a gate other values, per item of the batch."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        encoder = site.part == "encoder"
        values = output if encoder else output.movedim(1, -1)
        i, j, k = cells = cells_of(now.shape, site.stride)
        scores = None
        if control.name == "untrained_gate":
            seen = args[0] if encoder else now.features(site.owner)
            scores = untrained_scores(site, seen, (control.seed, number))
        changed = values.clone()
        for item in range(len(values)):
            image = "" if not encoder else IMAGES[item >= len(values) // 2]
            if control.image in (None, image):
                inner = values[item, :i, :j, :k].flatten(0, 2)
                lot = np.random.default_rng((control.seed, number, item, *cells))
                given = None if scores is None else scores[item, :i, :j, :k].flatten(0, 2)
                edited = _edited(control, site, inner, cells, lot, given)
                changed[item, :i, :j, :k] = edited.unflatten(0, cells)
        return changed if encoder else changed.movedim(-1, 1).contiguous()

    return hook


def cells_of(shape: Sequence[int], stride: int) -> tuple[int, int, int]:
    """How many cells of a stride hold image along each axis, on a grid of this shape."""
    i, j, k = (-(-n // stride) for n in shape)
    return i, j, k


def _edited(
    control: Control,
    site: GateSite,
    values: Tensor,
    cells: tuple[int, int, int],
    lot: np.random.Generator,
    scores: Tensor | None,
) -> Tensor:
    """Gate values (n, N) of all cells under a control."""
    n, count = values.shape
    if control.name == "uniform":
        return torch.full_like(values, 1 / count)
    if control.name in ("shuffled", "shuffled_choice"):
        order = torch.from_numpy(lot.permutation(n)).to(values.device)
        if control.name == "shuffled":
            return values[order]
    if control.name in ("moved", "moved_near"):
        farthest = max(cells) if control.name == "moved" else NEAR
        steps = [min(size // 2, farthest) for size in cells]
        return values.unflatten(0, cells).roll(steps, dims=(0, 1, 2)).flatten(0, 2)
    own, chosen = choose(values, site.top_k, dim=-1)
    if control.name == "silenced":
        often = torch.bincount(chosen.flatten(), minlength=count)
        silent = int(often.argmax()) if control.expert is None else control.expert
        return values.index_fill(-1, torch.tensor([silent], device=values.device), 0.0)
    if control.name == "shuffled_choice":
        chosen = chosen[order]
    elif control.name == "random":
        drawn = lot.random((n, count)).argsort(axis=1)[:, : site.top_k]
        chosen = torch.from_numpy(drawn).to(values.device)
    elif control.name == "fixed":
        often = torch.bincount(chosen.flatten(), minlength=count)
        most = often.argsort(descending=True, stable=True)[: site.top_k]
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
    """What a gate that learned nothing makes of the features of a gate's layer, before softmax or
    sigmoid.

    Parameters
    ----------
    site : GateSite
        Whose form it has: a product in the encoder, a 3x3x3 convolution in the decoder; initialised
        as in a new network, without bias.
    features : Tensor (B, *S, C) of the encoder, (B, C, *S) of the decoder
    seed : sequence of int

    Returns
    -------
    Tensor (B, *S, N), float32
    """
    lot = np.random.default_rng(tuple(seed))
    features = features.float()
    if site.part == "encoder":
        weight = lot.normal(0, 0.02, (site.num_experts, features.shape[-1]))
        return features @ torch.from_numpy(weight).to(features).T
    edge = (features.shape[1] * 27) ** -0.5
    weight = lot.uniform(-edge, edge, (site.num_experts, features.shape[1], 3, 3, 3))
    return F.conv3d(features, torch.from_numpy(weight).to(features), padding=1).movedim(1, -1)


def equal_loads(scores: Tensor, loads: Tensor, top_k: int) -> Tensor:
    """The k best experts of each cell, under biases of the experts by which each is chosen as often
    as asked for.

    The biases are found one after the other, each so that its expert has its load under those of
    the others, until loads miss by no more than 1 in 1000 cells, or get no nearer; then the cells
    that lose least by it change from an expert with too many to one with too few, until the loads
    are met.

    Parameters
    ----------
    scores : Tensor (n, N)
    loads : Tensor (N,), int64
        How many cells shall choose each expert: at most n, k n together.
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
    wanted, best, since = [int(load) for load in loads], n, 0
    for _ in range(SWEEPS):
        for expert, load in enumerate(wanted):
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
        best, since = (missed, 0) if missed < best else (best, since + 1)
        if missed <= max(1, CLOSE * n) or since == PATIENCE:
            break
    _match_loads(chosen, scores + bias, loads)
    return (scores + bias).masked_fill(~chosen, -torch.inf).topk(top_k, dim=-1).indices


def _match_loads(chosen: Tensor, values: Tensor, loads: Tensor) -> None:
    """Change choices (n, N) in place until the loads are met, those first that lose the least value
    by it.
    """
    while True:
        spare = chosen.sum(0) - loads
        many = int(spare.argmax())
        if spare[many] <= 0:
            return
        path = _path(chosen, many, spare)
        count = int(min(spare[many], -spare[path[-1]])) if len(path) == 2 else 1
        # the last first, which leaves room for the one before it
        for one, other in reversed(list(pairwise(path))):
            free = torch.nonzero(chosen[:, one] & ~chosen[:, other])[:, 0]
            loss = values[free, one] - values[free, other]
            moved = free[loss.topk(min(count, len(free)), largest=False).indices]
            chosen[moved, one], chosen[moved, other] = False, True


def _path(chosen: Tensor, many: int, spare: Tensor) -> list[int]:
    """The shortest way from an expert with too many cells to one with too few, by changes that some
    cell can make.
    """
    paths = [[many]]
    known = {many}
    for path in paths:
        # experts that some cell of this one does not have
        free = (chosen[:, path[-1], None] & ~chosen).any(0)
        for other in spare.argsort().tolist():
            if bool(free[other]) and other not in known:
                if spare[other] < 0:
                    return [*path, other]
                known.add(other)
                paths.append([*path, other])
    raise AssertionError("loads that sum to k times the cells can always be met")


def _all_heads(control: Control) -> Any:
    """A hook on MoA: the same layer with all of its heads chosen, whose gate was made to give all
    of them the same.
    """

    def hook(module: MoA, args: Any, output: tuple[Tensor, Routing]) -> tuple[Tensor, Routing]:
        # with a k of their own; parameters are shared
        every, gate = copy.copy(module), copy.copy(module.gate)
        every._modules = {**module._modules, "gate": gate}
        gate.top_k = module.num_experts
        y, routing = every.forward(*args)
        if control.image is None:
            return y, routing
        return torch.where(_of_image(control, y), y, output[0]), output[1]

    return hook


def _without_attention(control: Control) -> Any:
    """A hook on an attention: nothing comes out of it; what its gate chose stays on record."""

    def hook(module: nn.Module, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        y, routing = output
        if control.image is None:
            return torch.zeros_like(y), routing
        return torch.where(_of_image(control, y), torch.zeros_like(y), y), routing

    return hook


def _of_image(control: Control, y: Tensor) -> Tensor:
    """Which items of a batch (B, ...) are of the image that is meant."""
    fixed = torch.arange(len(y), device=y.device) >= len(y) // 2
    return (fixed == (control.image == "fixed")).view(-1, *[1] * (y.ndim - 1))


def _mean_of_kernels(axes: Sequence[int]) -> Any:
    """A hook on SHMoE: along some directions T times the mean of all kernels."""

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
    meant = [site for site in sites if control.concerns(site.gate)]
    there = bool(meant)
    if control.name == "attention_off":
        there = control.direction is None and any(
            control.layer in (None, layer) and control.block in (None, block)
            for layer, block, _ in attentions_of(network)
        )
    if not there or (
        control.image is not None and (control.part != "encoder" or control.image not in IMAGES)
    ):
        known = sorted({f"{site.part} layer {site.layer}" for site in sites})
        raise InputError(
            f"'{control}' names no gate of this network, which has:"
            f" {', '.join(known) or 'no experts'}."
        )
    for site in meant if control.expert is not None else ():
        if site.top_k != 1 or not 0 <= (control.expert or 0) < site.num_experts:
            raise InputError(
                f"'{control}': {site.part} layer {site.layer} chooses {site.top_k} of the experts 0"
                f" to {site.num_experts - 1}. One of these can stand everywhere only where a cell"
                " chooses one expert."
            )
