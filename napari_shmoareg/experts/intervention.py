"""Interventions: experts silenced or forced, and a random control that changes as much elsewhere.

Ours, beyond the paper.  An intervention is a forward hook on the gates that it names, for as long
as a ``with`` block lasts; the network itself is never changed.
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
from napari_shmoareg.model.gates import GateSite, gates_of
from napari_shmoareg.model.routing import Direction, GateId, Image, Part

ACTIONS = ("silence", "force")


@dataclass(frozen=True, eq=False)
class Intervention(GateSelection):
    """One change to what gates decide.

    ``silence``: the expert's gate value becomes 0, so that the next best one is chosen in its
    place, with its own value; the weights of Eq. (4) are formed of what is chosen then.  ``force``:
    where the expert was not chosen it takes the place *and the gate value* of the weakest chosen
    one (ours: with its own value, which is smaller, a forced expert would count for less, and the
    change would be one of strength).  Where nothing was to be changed, nothing is, to the last bit.

    Parameters
    ----------
    action : {"silence", "force"}
    expert : int, or mapping of GateId to (I, J, K) int array
        An id; or one for each cell of each gate, -1 where nothing is done.
    part : {"encoder", "decoder"}
    layer, block, image, direction : optional
        Which gates, as in `RoutedLayer`; None is all of them.
    region : Volume, optional
        In the fixed world, on any grid: where it is not 0.  A cell is in it if at least half of the
        cell's volume is. The tokens of the moving image are meant where that image, aligned and
        after the earlier passes, stands.
    ranks : bool
        The numbers of a map are ranks among what a cell chooses at that moment, 0 the most
        probable: for `silence`.
    told : str
        What `str` says instead of a description of its own.
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
    told: str = ""

    passes = "last"  # its regions and maps stand on the grid of that pass

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
        if self.told:
            return self.told
        expert = f"expert {self.expert}" if isinstance(self.expert, int) else "experts of a map"
        where = f"in {self.region.name or 'a region'}" if self.region is not None else ""
        return ", ".join(filter(None, (f"{self.action} {expert} of {self.gates}", where)))


@contextmanager
def intervening(
    network: SHMoAReg, changes: Sequence[Intervention | Control], grid: Grid
) -> Iterator[None]:
    """Change what the gates of a network decide, for as long as the block lasts.

    Whatever runs on this network meanwhile is changed, in other threads too: give those a copy.

    Parameters
    ----------
    network : SHMoAReg
    changes : sequence of Intervention or Control
        Made one after the other at every gate, interventions before controls.
    grid : Grid
        The network grid of the last pass.  With an `Intervention` only passes on this grid may run
        in the block: its regions and maps stand on it.  Under a `Control` passes on any grid may.

    Raises
    ------
    InputError
        If no gate or no cell is meant, there is no such expert, or too few experts would be left.
    """
    sites = gates_of(network)
    interventions = [change for change in changes if isinstance(change, Intervention)]
    for change in interventions:
        _check(change, sites, grid)
    handles = []
    try:
        for site in sites:
            meant = [change for change in interventions if change.concerns(site.gate)]
            if meant:
                handles.append(site.module.register_forward_hook(hook_of(site, meant, grid)))
        for handle in hook_controls(
            network, [change for change in changes if isinstance(change, Control)], grid
        ):
            # one by one: those that are there are removed where a later one is refused
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(change: Intervention, sites: Sequence[GateSite], grid: Grid) -> None:
    meant = [site for site in sites if change.concerns(site.gate)]
    if not meant or (
        change.image is not None and (change.part != "encoder" or change.image not in IMAGES)
    ):
        there = sorted({f"{site.part} layer {site.layer}" for site in sites})
        raise InputError(
            f"'{change}' names no gate of this network, which has:"
            f" {', '.join(there) or 'no experts'}."
        )
    for site in meant:
        if isinstance(change.expert, int) and not 0 <= change.expert < site.num_experts:
            raise InputError(
                f"'{change}': {site.part} layer {site.layer} has the experts 0 to"
                f" {site.num_experts - 1}."
            )
    if isinstance(change.expert, Mapping):
        _check_map(change, change.expert, meant)
    if change.region is not None and not any(
        cells_in(change.region, grid, s).any() for s in {s.stride for s in meant}
    ):
        raise InputError(
            f"'{change}': the region covers no cell of these gates by half. Take a larger region,"
            f" or a finer layer (the cells here are {min(site.stride for site in meant)} voxels of"
            " the network grid wide)."
        )


def _check_map(
    change: Intervention, ids: Mapping[GateId, NDArray], meant: Sequence[GateSite]
) -> None:
    """Refuse a map for gates that are not meant, and numbers that no expert has."""
    for gate, numbers in ids.items():
        sites = [site for site in meant if site.gate == gate._replace(image=None)]
        if not sites or (gate.part == "encoder") != (gate.image in IMAGES):
            raise InputError(f"'{change}' has a map for {gate}, which is no gate that it names.")
        most = sites[0].top_k if change.ranks else sites[0].num_experts
        if numbers.size and not -1 <= int(numbers.min()) <= int(numbers.max()) < most:
            raise InputError(
                f"'{change}': the map for {gate} holds numbers beyond -1 (nothing) to {most - 1}."
            )


Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]


class Touched(NamedTuple):
    """A gate that an intervention is about.

    Attributes
    ----------
    record : RoutedLayer
        Of the unchanged run.
    inside : (I, J, K) bool array
        Cells of the region.
    content : (I, J, K) bool array
        Cells in which the fixed image shows something.
    """

    record: RoutedLayer
    inside: Mask
    content: Mask


def at_random(intervention: Intervention, touched: Iterable[Touched], seed: int) -> Intervention:
    """The counterpart of an intervention on one expert; see `Experiment.null`.

    Parameters
    ----------
    intervention : Intervention
    touched : iterable of Touched
        The gates that are meant.
    seed : int
        Of the lot.

    Raises
    ------
    InputError
        If the intervention is about a map of experts.
    """
    expert = intervention.expert
    if not isinstance(expert, int):
        raise InputError(
            "A random counterpart is drawn for an intervention on one expert, not on a map of them."
        )
    lot = np.random.default_rng(seed)
    silence = intervention.action == "silence"
    drawn: dict[GateId, Ids] = {}
    own = total = 0
    for gate in touched:
        if silence:
            ranks, same = _silenced(gate, expert, lot)
            own, total = own + same, total + int((ranks >= 0).sum())
        else:
            ranks = _forced(gate, expert, lot)
        drawn[gate.record.gate] = ranks
    told = f"{intervention.action} others drawn at random, as often as expert {expert}"
    if own:
        told += f" ({100 * own / total:.0f} % of them its own: the others do not have as many)"
    return Intervention(
        intervention.action,
        drawn,
        intervention.part,
        intervention.layer,
        intervention.block,
        intervention.image,
        intervention.direction,
        ranks=silence,
        told=told,
    )


def chosen_by(record: RoutedLayer) -> Ids:
    """Ids (k, I, J, K) of the experts that each cell chose, the most probable first."""
    ids: Ids = record.routing.experts[0].numpy(force=True).astype(np.int64)
    return ids


def _silenced(gate: Touched, expert: int, lot: np.random.Generator) -> tuple[Ids, int]:
    """Which of its chosen experts (rank, -1 for none) each cell loses; and at how many it is the
    expert itself.

    Cells of the expert are taken only where there are no others left.
    """
    chosen = chosen_by(gate.record)
    own = (chosen == expert).any(axis=0)
    others = (chosen != expert).any(axis=0)
    patches = _moved(own & gate.inside, lot)
    picked = np.zeros(own.shape, dtype=bool)
    for stratum in (gate.content, ~gate.content):
        here = gate.inside & stratum
        wanted = int((own & here).sum())
        # Of cells that have another choice first those that did not choose the expert at all.
        order = np.where(others, 2.0 * ~own + 2.0 * others, 0.0) + patches
        picked |= _highest(np.where(here, order, -np.inf), wanted)
    lottery = np.where(chosen == expert, -1.0, lot.random(chosen.shape))
    ranks = np.where(picked, lottery.argmax(axis=0), -1)
    lost = np.take_along_axis(chosen, np.maximum(ranks, 0)[None], axis=0)[0]
    return ranks, int((picked & (lost == expert)).sum())


def _moved(mask: Mask, lot: np.random.Generator) -> NDArray[np.float64]:
    """A score (I, J, K) in 0 to 1: highest where the mask, moved and mirrored at random, would be,
    then beside that.
    """
    moved = mask[tuple(slice(None, None, -1 if lot.random() < 0.5 else 1) for _ in mask.shape)]
    moved = np.roll(moved, [int(lot.integers(n)) for n in mask.shape], axis=(0, 1, 2))
    near = uniform_filter(moved.astype(np.float64), 3, mode="wrap")
    return np.asarray(0.5 * moved + 0.4 * near + 0.1 * lot.random(mask.shape))


def _highest(score: NDArray[np.float64], count: int) -> Mask:
    """The cells with the highest scores, as many as asked for."""
    found = np.zeros(score.size, dtype=bool)
    if count:
        found[np.argpartition(-score.ravel(), count - 1)[:count]] = True
    return found.reshape(score.shape)


def _forced(gate: Touched, expert: int, lot: np.random.Generator) -> Ids:
    """Where the expert was not chosen, another that was not either, by lot; the expert itself if
    there is none.
    """
    chosen = chosen_by(gate.record).reshape(gate.record.routing.experts.shape[1], -1)
    cells = np.flatnonzero(gate.inside.ravel() & ~(chosen == expert).any(axis=0))
    weights = lot.random((gate.record.num_experts, cells.size))
    weights[expert] = 0
    np.put_along_axis(weights, chosen[:, cells], -1.0, axis=0)
    ids = np.full(gate.inside.size, -1, dtype=np.int64)
    ids[cells] = weights.argmax(axis=0)
    return ids.reshape(gate.inside.shape)
