"""Interventions: experts silenced or forced, and a matched random control.

Ours, beyond the paper.  An intervention is a forward hook on the selected gates.  It is active
within a ``with`` block; the network itself is not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.controls import Control, hook_controls
from napari_shmoareg.experts.gate_edits import IMAGES, GateSelection, cells_in, hook_of
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model import RoutedLayer, SHMoAReg
from napari_shmoareg.model.gate_sites import GateSite, gates_of
from napari_shmoareg.model.routing import Direction, GateId, Image, Part

ACTIONS = ("silence", "force")


@dataclass(frozen=True, eq=False)
class Intervention(GateSelection):
    """A change to the decisions of some gates.

    ``silence``: the expert's gate value becomes 0, so that the next best one is chosen instead,
    with its own value; the weights of Eq. (4) are computed from the new choice.  ``force``: where
    the expert was not chosen, it replaces the weakest chosen one *and takes its gate value* (ours:
    its own value is smaller, so the forced expert would count for less and the change would also
    be one of strength).  Everything else stays bit-identical.

    Parameters
    ----------
    action : {"silence", "force"}
    expert : int, or mapping of GateId to (I, J, K) int array
        An id; or a map of ids per gate and cell, -1 for no change.
    part : {"encoder", "decoder"}
    layer, block, image, direction : optional
        The gates, as in `RoutedLayer`; None is all of them.
    region : Volume, optional
        Non-zero voxels, in the fixed world, on any grid.  A cell is inside if at least half of its
        volume is.  Tokens of the moving image count by their location after the alignment and the
        earlier passes.
    ranks : bool
        For `silence`: the numbers of a map are ranks among the current choices of a cell, 0 the
        most probable.
    description : str
        Replaces the default text of `str`.
    """

    action: Literal["silence", "force"]
    expert: int | Mapping[GateId, NDArray]
    part: Part
    layer: int | None = None
    block: int | None = None
    image: Image | None = None
    direction: Direction | None = None
    region: Volume | None = None
    ranks: bool = False
    description: str = ""

    passes = "last"  # regions and maps are on the grid of that pass

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InputError(
                f"An intervention is one of {', '.join(ACTIONS)}; got {self.action!r}."
            )
        if not isinstance(self.expert, Mapping):
            try:
                object.__setattr__(self, "expert", index(self.expert))
            except TypeError:
                raise InputError(
                    f"An expert is an id from 0, or a map of them; got {self.expert!r}."
                ) from None

    def __str__(self) -> str:
        if self.description:
            return self.description
        expert = f"expert {self.expert}" if isinstance(self.expert, int) else "experts of a map"
        where = f"in {self.region.name or 'a region'}" if self.region is not None else ""
        return ", ".join(filter(None, (f"{self.action} {expert} of {self.gates}", where)))


@contextmanager
def changed_gates(
    network: SHMoAReg, changes: Sequence[Intervention | Control], grid: Grid
) -> Iterator[None]:
    """Change the decisions of a network's gates within a ``with`` block.

    The change affects every run of this network, in other threads too: give those a copy.

    Parameters
    ----------
    network : SHMoAReg
    changes : sequence of Intervention or Control
        Applied in turn at every gate, interventions before controls.
    grid : Grid
        The network grid of the last pass.  With an `Intervention`, only passes on this grid may run
        in the block, as its regions and maps are on it.  With a `Control`, passes on any grid may.

    Raises
    ------
    InputError
        If a change matches no gate or no cell, there is no such expert, or too few experts would be
        left.
    """
    sites = gates_of(network)
    interventions = [change for change in changes if isinstance(change, Intervention)]
    for change in interventions:
        _check(change, sites, grid)
    handles = []
    try:
        for site in sites:
            targeted = [change for change in interventions if change.selects(site.gate)]
            if targeted:
                handles.append(site.module.register_forward_hook(hook_of(site, targeted, grid)))
        for handle in hook_controls(
            network, [change for change in changes if isinstance(change, Control)], grid
        ):
            # one by one, so that the registered hooks are removed if a later one is refused
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(change: Intervention, sites: Sequence[GateSite], grid: Grid) -> None:
    targeted = [site for site in sites if change.selects(site.gate)]
    if not targeted or (
        change.image is not None and (change.part != "encoder" or change.image not in IMAGES)
    ):
        there = sorted({f"{site.part} layer {site.layer}" for site in sites})
        raise InputError(
            f"'{change}' matches no gate of this network, which has:"
            f" {', '.join(there) or 'no experts'}."
        )
    for site in targeted:
        if isinstance(change.expert, int) and not 0 <= change.expert < site.num_experts:
            raise InputError(
                f"'{change}': {site.part} layer {site.layer} has the experts 0 to"
                f" {site.num_experts - 1}."
            )
    if isinstance(change.expert, Mapping):
        _check_map(change, change.expert, targeted)
    if change.region is not None and not any(
        cells_in(change.region, grid, s).any() for s in {s.stride for s in targeted}
    ):
        raise InputError(
            f"'{change}': the region covers no cell of these gates by half. Use a larger region,"
            " or a finer layer: the cells here are"
            f" {min(site.stride for site in targeted)} voxels of the network grid wide."
        )


def _check_map(
    change: Intervention, ids: Mapping[GateId, NDArray], targeted: Sequence[GateSite]
) -> None:
    """Refuse a map for gates that are not selected, and numbers that are no expert's."""
    for gate, numbers in ids.items():
        sites = [site for site in targeted if site.gate == gate._replace(image=None)]
        if not sites or (gate.part == "encoder") != (gate.image in IMAGES):
            raise InputError(f"'{change}' has a map for {gate}, which it does not select.")
        most = sites[0].top_k if change.ranks else sites[0].num_experts
        if numbers.size and not -1 <= int(numbers.min()) <= int(numbers.max()) < most:
            raise InputError(
                f"'{change}': the map for {gate} holds numbers outside -1 (none) to {most - 1}."
            )


Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]


class TargetedGate(NamedTuple):
    """A gate that an intervention selects.

    Attributes
    ----------
    record : RoutedLayer
        Of the unchanged run.
    inside : (I, J, K) bool array
        Cells of the region.
    content : (I, J, K) bool array
        Cells with image content in the fixed image.
    """

    record: RoutedLayer
    inside: Mask
    content: Mask


def matched_control(
    intervention: Intervention, targets: Iterable[TargetedGate], seed: int
) -> Intervention:
    """Draw the matched control of an intervention on one expert; see `Experiment.null`.

    Raises
    ------
    InputError
        If the intervention is on a map of experts.
    """
    expert = intervention.expert
    if not isinstance(expert, int):
        raise InputError(
            "A random control is drawn for an intervention on one expert, not on a map of experts."
        )
    rng = np.random.default_rng(seed)
    silence = intervention.action == "silence"
    drawn: dict[GateId, Ids] = {}
    own = total = 0
    for gate in targets:
        if silence:
            ranks, same = _silenced(gate, expert, rng)
            own, total = own + same, total + int((ranks >= 0).sum())
        else:
            ranks = _forced(gate, expert, rng)
        drawn[gate.record.gate] = ranks
    description = f"{intervention.action} others drawn at random, as often as expert {expert}"
    if own:
        description += (
            f" ({100 * own / total:.0f} % of them its own: the others do not have enough)"
        )
    return Intervention(
        intervention.action,
        drawn,
        intervention.part,
        intervention.layer,
        intervention.block,
        intervention.image,
        intervention.direction,
        ranks=silence,
        description=description,
    )


def chosen_by(record: RoutedLayer) -> Ids:
    """Ids (k, I, J, K) of the experts that each cell chose, the most probable first."""
    ids: Ids = record.routing.experts[0].numpy(force=True).astype(np.int64)
    return ids


def _silenced(gate: TargetedGate, expert: int, rng: np.random.Generator) -> tuple[Ids, int]:
    """The rank of the expert that each cell loses (-1 for none), and the number of cells that lose
    the expert itself.

    The expert's own cells are used only when no others are left.
    """
    chosen = chosen_by(gate.record)
    own = (chosen == expert).any(axis=0)
    others = (chosen != expert).any(axis=0)
    patches = _moved(own & gate.inside, rng)
    picked = np.zeros(own.shape, dtype=bool)
    for stratum in (gate.content, ~gate.content):
        here = gate.inside & stratum
        wanted = int((own & here).sum())
        # cells with another choice, those that did not choose the expert first
        order = np.where(others, 2.0 * ~own + 2.0 * others, 0.0) + patches
        picked |= _highest(np.where(here, order, -np.inf), wanted)
    lottery = np.where(chosen == expert, -1.0, rng.random(chosen.shape))
    ranks = np.where(picked, lottery.argmax(axis=0), -1)
    lost = np.take_along_axis(chosen, np.maximum(ranks, 0)[None], axis=0)[0]
    return ranks, int((picked & (lost == expert)).sum())


def _moved(mask: Mask, rng: np.random.Generator) -> NDArray[np.float64]:
    """A score (I, J, K), 0 to 1: highest in the mask moved and mirrored at random, then next to
    it.
    """
    moved = mask[tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in mask.shape)]
    moved = np.roll(moved, [int(rng.integers(n)) for n in mask.shape], axis=(0, 1, 2))
    near = uniform_filter(moved.astype(np.float64), 3, mode="wrap")
    return np.asarray(0.5 * moved + 0.4 * near + 0.1 * rng.random(mask.shape))


def _highest(score: NDArray[np.float64], count: int) -> Mask:
    """Mask of the `count` cells with the highest scores."""
    found = np.zeros(score.size, dtype=bool)
    if count:
        found[np.argpartition(-score.ravel(), count - 1)[:count]] = True
    return found.reshape(score.shape)


def _forced(gate: TargetedGate, expert: int, rng: np.random.Generator) -> Ids:
    """Where the expert was not chosen, a random other unchosen one; itself if there is none."""
    chosen = chosen_by(gate.record).reshape(gate.record.routing.experts.shape[1], -1)
    cells = np.flatnonzero(gate.inside.ravel() & ~(chosen == expert).any(axis=0))
    weights = rng.random((gate.record.num_experts, cells.size))
    weights[expert] = 0
    np.put_along_axis(weights, chosen[:, cells], -1.0, axis=0)
    ids = np.full(gate.inside.size, -1, dtype=np.int64)
    ids[cells] = weights.argmax(axis=0)
    return ids.reshape(gate.inside.shape)
