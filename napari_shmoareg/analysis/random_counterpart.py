"""The null of an intervention: as much changed, for other experts at other places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from napari_shmoareg.analysis.expert_load import Place, place_of
from napari_shmoareg.analysis.intervention import Intervention
from napari_shmoareg.geometry import InputError
from napari_shmoareg.model.routing import RoutedLayer

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
        raise InputError("A random counterpart is drawn for an intervention on one expert, not on a map of them.")
    lot = np.random.default_rng(seed)
    silence = intervention.action == "silence"
    drawn: dict[Place, Ids] = {}
    own = total = 0
    for gate in touched:
        if silence:
            ranks, same = _silenced(gate, expert, lot)
            own, total = own + same, total + int((ranks >= 0).sum())
        else:
            ranks = _forced(gate, expert, lot)
        drawn[place_of(gate.record)] = ranks
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
    """Which of its chosen experts (rank, -1 for none) each cell loses; and at how many it is the expert itself.

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
    """A score (I, J, K) in 0 to 1: highest where the mask, moved and mirrored at random, would be, then beside that."""
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
    """Where the expert was not chosen, another that was not either, by lot; the expert itself if there is none."""
    chosen = chosen_by(gate.record).reshape(gate.record.routing.experts.shape[1], -1)
    cells = np.flatnonzero(gate.inside.ravel() & ~(chosen == expert).any(axis=0))
    weights = lot.random((gate.record.num_experts, cells.size))
    weights[expert] = 0
    np.put_along_axis(weights, chosen[:, cells], -1.0, axis=0)
    ids = np.full(gate.inside.size, -1, dtype=np.int64)
    ids[cells] = weights.argmax(axis=0)
    return ids.reshape(gate.inside.shape)
