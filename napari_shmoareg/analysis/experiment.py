"""What depends on an expert: a registration run again with changed gates.  Ours, beyond the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.expert_load import Place, place_of
from napari_shmoareg.analysis.intervention import Intervention, cells_in, intervening
from napari_shmoareg.analysis.metrics import dice, folding, mean
from napari_shmoareg.analysis.random_counterpart import at_random, chosen_by
from napari_shmoareg.engine.carrying import carry
from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.engine.replay import Replay
from napari_shmoareg.geometry import DisplacementField, InputError, Volume
from napari_shmoareg.model.routing import RoutedLayer, RoutingTrace

Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where one run of the network puts the moving image; all on the fixed image's grid.

    Attributes
    ----------
    warped : Volume
    warped_labels : Volume or None
    displacement : DisplacementField
        The whole transform, T(x) - x, mm RAS, without any refinement.
    dice : dict of int to float
        Per label; empty without labels of both images.
    folding_percent : float
        Of the deformation without the affine.
    routing : RoutingTrace
    """

    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    dice: Mapping[int, float]
    folding_percent: float
    routing: RoutingTrace = field(repr=False)

    @property
    def mean_dice(self) -> float | None:
        """Over the labels; None without."""
        return mean(self.dice) if self.dice else None


@dataclass(frozen=True, eq=False)
class Effect:
    """What interventions changed.

    Attributes
    ----------
    interventions : tuple of Intervention
    outcome : Outcome
        With them.
    cells : int
        Cells (tokens or voxels of a level, over all gates meant) where they could act.
    changed : float
        Share of these cells whose chosen experts are others than without them, 0 to 1.
    moved : Volume
        Length of the difference of the displacements, with minus without, mm, on the fixed grid.
    difference : Volume
        Warped with them minus warped without, in the moving image's units.
    mean_mm, p95_mm, max_mm : float
        Of `moved` over the content of the fixed image (what differs from its background).
    dice_change : dict of int to float
        With minus without, per label; empty without labels.
    mean_dice_change : float or None
    folding_change : float
        Percentage points.
    """

    interventions: tuple[Intervention, ...]
    outcome: Outcome
    cells: int
    changed: float
    moved: Volume
    difference: Volume
    mean_mm: float
    p95_mm: float
    max_mm: float
    dice_change: Mapping[int, float]
    mean_dice_change: float | None
    folding_change: float


class Experiment:
    """A registration's network, run once as it is, and then with whatever changes are asked for.

    Only the last pass is changed: it is the one whose experts are shown.  A refinement on the pair is left out on both
    sides of the comparison.

    Parameters
    ----------
    replay : Replay
    progress : callable, optional
        Called with the share of the first run that is done.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_shmoareg.analysis.experiment import Experiment
    >>> from napari_shmoareg.analysis.intervention import Intervention
    >>> from napari_shmoareg.engine.replay import Replay
    >>> from napari_shmoareg.geometry import Grid, Volume, VolumePair
    >>> from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
    >>> network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    >>> moving, fixed = (Volume(v, Grid((20, 24, 17), np.eye(4))) for v in np.random.rand(2, 20, 24, 17))
    >>> experiment = Experiment(Replay.of(VolumePair(moving, fixed), network, settings={"size": 20}))
    >>> effect = experiment.run(Intervention("silence", expert=1, part="decoder", layer=1, direction="x"))
    >>> 0 <= effect.changed <= 1
    True
    """

    def __init__(self, replay: Replay, progress: Progress | None = None) -> None:
        self.replay = replay
        tell = progress or (lambda _done: None)
        self._encoded = replay.encode()
        tell(0.3)
        self.base = self._outcome((), tell)

    def run(self, *interventions: Intervention, progress: Progress | None = None) -> Effect:
        """Run with changes (seconds) and compare.

        Raises
        ------
        InputError
            If an intervention names no gate, no expert or no cell; see `intervening`.
        """
        if not interventions:
            raise InputError("Give at least one intervention to run.")
        outcome = self._outcome(interventions, progress or (lambda _done: None))
        cells, changed = self._choices(interventions, outcome.routing)
        before, after = self.base.displacement, outcome.displacement
        moved = np.linalg.norm(after.vectors - before.vectors, axis=-1).astype(np.float32)
        within = moved[self._content]
        labels = {label: outcome.dice[label] - value for label, value in self.base.dice.items()}
        return Effect(
            interventions=interventions,
            outcome=outcome,
            cells=cells,
            changed=changed / max(cells, 1),
            moved=Volume(moved, before.grid, "moved by the change (mm)"),
            difference=outcome.warped.with_values(outcome.warped.values - self.base.warped.values),
            mean_mm=float(within.mean(dtype=np.float64)),
            p95_mm=float(np.percentile(within, 95)),
            max_mm=float(within.max()),
            dice_change=labels,
            mean_dice_change=mean(labels) if labels else None,
            folding_change=outcome.folding_percent - self.base.folding_percent,
        )

    def null(self, intervention: Intervention, *, seed: int = 0) -> Intervention:
        """The same change for experts drawn at random: what an intervention of this size does anyway.

        Silencing: at each gate as many selections as the expert has there, drawn by lot among all selections in
        the region, are silenced.  Forcing: at the cells where the expert was not chosen another one that was not
        chosen either, drawn by lot, is forced.  The lot is drawn among the choices of the unchanged run: where one
        gate's change turns choices of a later gate, slightly fewer are turned there.  The counterpart of an expert that
        nearly all cells chose is nearly the same change, and tells little.

        Raises
        ------
        InputError
            If the intervention is not about one expert.
        """
        return at_random(intervention, self._touched((intervention,)), seed)

    def share(self, intervention: Intervention) -> float:
        """Share of the selections of the gates meant, in the region, that went to the intervention's expert."""
        found = [(record, inside) for record, inside in self._touched((intervention,))]
        own = sum(int((chosen_by(r)[:, inside] == intervention.expert).sum()) for r, inside in found)
        return own / max(sum(chosen_by(r)[:, inside].size for r, inside in found), 1)

    @cached_property
    def _content(self) -> NDArray[np.bool_]:
        fixed = self.replay.pair.fixed
        found = Intensity.of(fixed).content(fixed.values)
        return found if found.any() else np.ones(fixed.values.shape, dtype=bool)

    def _outcome(self, interventions: tuple[Intervention, ...], tell: Progress) -> Outcome:
        replay = self.replay
        kept = all(change.part == "decoder" for change in interventions)
        with intervening(replay.network, interventions, replay.grid):
            displacement, routing = replay.run(self._encoded if kept else None)
        tell(0.7)
        carried = carry(replay.pair, replay.conformed.transform(displacement))
        tell(0.9)
        truth = replay.pair.fixed_labels
        labels = {}
        if truth is not None and carried.warped_labels is not None and replay.pair.moving_labels is not None:
            both = sorted({*truth.labels, *replay.pair.moving_labels.labels})
            labels = dice(carried.warped_labels.values, truth.values, both)
        folded = folding(carried.jacobian().values)
        tell(1.0)
        return Outcome(carried.warped, carried.warped_labels, carried.displacement, labels, folded, routing)

    def _touched(self, interventions: tuple[Intervention, ...]) -> list[tuple[RoutedLayer, NDArray[np.bool_]]]:
        """The records of the unchanged run that are meant, and where (I, J, K) on each."""
        found = []
        for record in self.base.routing:
            meant = [change for change in interventions if change.concerns(record)]
            if meant:
                where = [cells_in(change.region, self.replay.grid, record.stride) for change in meant]
                found.append((record, np.logical_or.reduce(where)))
        return found

    def _choices(self, interventions: tuple[Intervention, ...], after: RoutingTrace) -> tuple[int, int]:
        """How many cells are meant, and how many of them chose otherwise than before."""
        cells = changed = 0
        others = {place_of(record): record for record in after}
        for record, inside in self._touched(interventions):
            now = np.sort(chosen_by(others[place_of(record)])[:, inside], axis=0)
            cells += int(inside.sum())
            changed += int((np.sort(chosen_by(record)[:, inside], axis=0) != now).any(axis=0).sum())
        return cells, changed


def recorded_alike(experiment: Experiment, chosen: Mapping[Place, NDArray]) -> float:
    """Share of cells at which the unchanged run chose as a record says, 0 to 1; below 1 other weights were used.

    Parameters
    ----------
    experiment : Experiment
    chosen : mapping of Place to (I, J, K) int array
        The first choice of each cell, as in the expert maps of a folder.
    """
    same = total = 0
    for record in experiment.base.routing:
        given = chosen.get(place_of(record))
        if given is not None:
            same += int((chosen_by(record)[0] == given).sum())
            total += given.size
    return same / max(total, 1)
