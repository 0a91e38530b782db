"""What the What-if view has computed in a worker's thread: one change, or a change of every expert."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.engine.interruption import interruptible
from napari_shmoareg.widgets.experts.replaying import Work, replay_of
from napari_shmoareg.widgets.experts.what_if.form import Wish

if TYPE_CHECKING:
    from napari_shmoareg.analysis.experiment import Effect, Experiment, Outcome
    from napari_shmoareg.analysis.importance import ImportanceRow
    from napari_shmoareg.analysis.scene import Scene

Kept = MutableMapping["Scene", "Experiment"]

ALIKE = 0.98  # share of the cells that have to choose as recorded, for the weights to count as the same
LOADING, READY = 0.3, 0.6  # of the progress: until the network is there, and until it has run unchanged


@dataclass(frozen=True, eq=False)
class Answer:
    """What one change did.

    Attributes
    ----------
    scene : Scene
    before : Outcome
        Without the change.
    effect : Effect
    null : Effect or None
        Of the same change for experts drawn at random.
    share : float
        Of the selections of these gates, in the region, that went to the expert.
    alike : float
        Share of the cells at which the unchanged run chose as the registration says.
    """

    scene: Scene
    before: Outcome
    effect: Effect
    null: Effect | None
    share: float
    alike: float


def answer(work: Work, scene: Scene, wish: Wish, kept: Kept) -> Answer:
    """Make the change, and its random counterpart if that is wished for."""
    change = wish.intervention(scene)
    start = 0.0 if scene in kept else READY
    experiment = experiment_of(work, scene, kept)
    step = (1 - start) / (2 if wish.null else 1)
    tell = partial(_between, work, "running with the change", start, start + step)
    beside = partial(_between, work, "running with random experts", start + step, 1.0)
    with interruptible(experiment.replay.network, work.check):
        effect = experiment.run(change, progress=tell)
        null = experiment.run(experiment.null(change), progress=beside) if wish.null else None
    return Answer(scene, experiment.base, effect, null, experiment.share(change), _alike(scene, experiment))


def sweep(work: Work, scene: Scene, wish: Wish, kept: Kept, rows: list[ImportanceRow]) -> int:
    """Change every expert of some gates in turn; each row is appended as it comes.  Returns how many there are."""
    from napari_shmoareg.analysis.importance import importance

    where = {name: value for name, value in wish.where.items() if name in ("part", "layer", "direction")}
    region = wish.place(scene)
    experiment = experiment_of(work, scene, kept)
    with interruptible(experiment.replay.network, work.check):
        work.tell("changing the first expert", 0.0)
        for row in importance(experiment, action=wish.action, region=region, null=wish.null, **where):
            rows.append(row)
            work.tell(f"{row.number} of {row.total} experts", row.number / row.total)
    return len(rows)


def experiment_of(work: Work, scene: Scene, kept: Kept) -> Experiment:
    """The experiment on a registration: made at the first call (seconds), kept for the next ones."""
    from napari_shmoareg.analysis.experiment import Experiment

    found = kept.get(scene)
    if found is None:
        replay = replay_of(scene, _Part(work, LOADING))
        with interruptible(replay.network, work.check):
            tell = partial(_between, work, "running the network unchanged", LOADING, READY)
            found = kept[scene] = Experiment(replay, progress=tell)
    return found


class _Part(Work):
    """A work that is the first part of another one."""

    def __init__(self, whole: Work, share: float) -> None:
        super().__init__(lambda _work: None)
        self._whole, self._share = whole, share

    def tell(self, title: str, done: float = 0.0) -> None:
        self._whole.tell(title, self._share * done)

    def check(self) -> None:
        self._whole.check()


def _between(work: Work, title: str, low: float, high: float, done: float) -> None:
    work.tell(title, low + (high - low) * done)


def _alike(scene: Scene, experiment: Experiment) -> float:
    """Whether these are the weights, and the settings, that the registration was made with."""
    from napari_shmoareg.analysis.experiment import recorded_alike

    chosen: dict[Any, Any] = {m.place: m.volume.values.astype(np.int64) - 1 for m in scene.expert_maps}
    return recorded_alike(experiment, chosen) if chosen else 1.0
