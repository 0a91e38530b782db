"""The null of an intervention: as much changed, for experts drawn at random."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.expert_load import Place, place_of
from napari_shmoareg.analysis.intervention import Intervention
from napari_shmoareg.geometry import InputError
from napari_shmoareg.model.routing import RoutedLayer


def at_random(
    intervention: Intervention, touched: Iterable[tuple[RoutedLayer, NDArray[np.bool_]]], seed: int
) -> Intervention:
    """The counterpart of an intervention on one expert; see `Experiment.null`.

    Parameters
    ----------
    intervention : Intervention
    touched : iterable of (RoutedLayer, (I, J, K) bool array)
        Of the unchanged run: the records that are meant, and where.
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
    draw = _silenced_at_random if intervention.action == "silence" else _forced_at_random
    ids: dict[Place, NDArray] = {place_of(r): draw(r, inside, expert, lot) for r, inside in touched}
    return Intervention(
        intervention.action,
        ids,
        intervention.part,
        intervention.layer,
        intervention.block,
        intervention.image,
        intervention.direction,
        told=f"{intervention.action} experts drawn at random, as often as expert {expert}",
    )


def chosen_by(record: RoutedLayer) -> NDArray[np.int64]:
    """Ids (k, I, J, K) of the experts that each cell chose, the most probable first."""
    ids: NDArray[np.int64] = record.routing.experts[0].numpy(force=True).astype(np.int64)
    return ids


def _silenced_at_random(
    record: RoutedLayer, inside: NDArray[np.bool_], expert: int, lot: np.random.Generator
) -> NDArray[np.int64]:
    """As many cells as chose the expert, by lot, and for each one of the experts that it chose."""
    chosen = chosen_by(record)
    count = int((chosen[:, inside] == expert).sum())
    cells = lot.choice(np.flatnonzero(inside), size=count, replace=False)
    ids = np.full(inside.size, -1, dtype=np.int64)
    ids[cells] = chosen.reshape(len(chosen), -1)[lot.integers(len(chosen), size=count), cells]
    return ids.reshape(inside.shape)


def _forced_at_random(
    record: RoutedLayer, inside: NDArray[np.bool_], expert: int, lot: np.random.Generator
) -> NDArray[np.int64]:
    """Where the expert was not chosen, another that was not either, by lot; the expert itself if there is none."""
    chosen = chosen_by(record).reshape(record.routing.experts.shape[1], -1)
    cells = np.flatnonzero(inside.ravel() & ~(chosen == expert).any(axis=0))
    weights = lot.random((record.num_experts, cells.size))
    weights[expert] = 0
    np.put_along_axis(weights, chosen[:, cells], -1.0, axis=0)
    ids = np.full(inside.size, -1, dtype=np.int64)
    ids[cells] = weights.argmax(axis=0)
    return ids.reshape(inside.shape)
