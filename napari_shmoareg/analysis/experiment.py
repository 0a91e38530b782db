"""What depends on an expert: a registration run again with changed gates.  Ours, beyond the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.analysis.controls import Control
from napari_shmoareg.analysis.effect import Effect, Outcome, compare
from napari_shmoareg.analysis.expert_load import Place, place_of
from napari_shmoareg.analysis.gate_edits import cells_in
from napari_shmoareg.analysis.intervention import Intervention, intervening
from napari_shmoareg.analysis.metrics import SharedLabels, dice_in_both, folding, mean
from napari_shmoareg.analysis.random_counterpart import Touched, at_random, chosen_by
from napari_shmoareg.engine.carrying import carry
from napari_shmoareg.engine.intensity import Intensity
from napari_shmoareg.engine.memory import check_experiment_memory
from napari_shmoareg.engine.replay import Replay
from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.model.network import Encoded
from napari_shmoareg.model.routing import RoutedLayer, RoutingTrace

Change = Intervention | Control
Progress = Callable[[float], None]


class Experiment:
    """A registration's network, run once as it is, and then with whatever changes are asked for.

    Interventions change the last pass only: it is the one whose experts are shown.  Controls change all passes, or the
    last one, as each says.  A refinement on the pair is left out on both sides of the comparison.

    Parameters
    ----------
    replay : Replay
    progress : callable, optional
        Called with the share of the first run that is done.

    Attributes
    ----------
    replay : Replay
    base : Outcome
        Without any change.

    Raises
    ------
    TooLargeError
        If memory would not suffice.

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
        check_experiment_memory(replay.pair.fixed.grid)
        tell = progress or (lambda _done: None)
        self._encoded = replay.encode()
        tell(0.3)
        self.base = self._outcome((), tell)

    def run(self, *changes: Change, progress: Progress | None = None) -> Effect:
        """Run with changes (seconds) and compare.

        Parameters
        ----------
        *changes : Intervention or Control
            Where one of them acts in all passes, those before the last are made again too, under these alone.
        progress : callable, optional

        Raises
        ------
        InputError
            If a change names no gate, no expert or no cell; see `intervening`.
        TooLargeError
            If the device's memory ran out.
        """
        if not changes:
            raise InputError("Give at least one intervention to run.")
        outcome = self._outcome(changes, progress or (lambda _done: None))
        return compare(self.base, outcome, changes, self._choices(changes, outcome.routing), self._content)

    def null(self, intervention: Intervention, *, seed: int = 0) -> Intervention:
        """As much changed, for other experts at other places: what an intervention of this size does anyway.

        Silencing: at each gate as many selections of *other* experts, in patches like those of the expert's own
        cells (moved and mirrored at random), as many of them where the fixed image shows something and where it
        does not as the expert has.  Where the others do not have as many, its own are taken, and `str` says how many:
        of an expert that nearly all cells chose this is nearly the same change, and tells little.  Forcing: at the
        cells where the expert was not chosen another one that was not either, drawn by lot, is forced.  It is one
        draw: take several seeds for a range.

        Parameters
        ----------
        intervention : Intervention
        seed : int
            Of the lot.

        Raises
        ------
        InputError
            If the intervention is not about one expert.
        """
        touched = [
            Touched(record, inside, cells_in(self._shown, self.replay.grid, record.stride))
            for record, inside in self._touched((intervention,))
        ]
        return at_random(intervention, touched, seed)

    def share(self, intervention: Intervention) -> float:
        """Share of the selections of the gates meant, in the region, that went to the intervention's expert.

        Raises
        ------
        InputError
            If the intervention is about a map of experts.
        """
        if not isinstance(intervention.expert, int):
            raise InputError("An intervention on a map of experts is about no single one, whose share could be told.")
        found = [(record, inside) for record, inside in self._touched((intervention,))]
        own = sum(int((chosen_by(r)[:, inside] == intervention.expert).sum()) for r, inside in found)
        return own / max(sum(chosen_by(r)[:, inside].size for r, inside in found), 1)

    @cached_property
    def aligned_dice(self) -> float | None:
        """Mean Dice, on the fixed grid, of the alignment alone: what the network began with; None without labels."""
        pair, replay = self.replay.pair, self.replay
        if pair.fixed_labels is None or pair.moving_labels is None:
            return None
        still = replay.conformed.transform(torch.zeros((1, 3, *replay.grid.shape)))
        carried = still.total(pair.fixed.grid).warp(pair.moving_labels)
        found = mean(dice_in_both(carried.values, pair.fixed_labels.values, self._labels))
        return None if np.isnan(found) else found

    @cached_property
    def _content(self) -> NDArray[np.bool_]:
        fixed = self.replay.pair.fixed
        found = Intensity.of(fixed).content(fixed.values)
        return found if found.any() else np.ones(fixed.values.shape, dtype=bool)

    @cached_property
    def _labels(self) -> SharedLabels:
        """Those that both images have, or one; looked for once, as that takes as long as to count them."""
        pair = self.replay.pair
        return SharedLabels.of(*([] if v is None else v.labels for v in (pair.moving_labels, pair.fixed_labels)))

    @cached_property
    def _shown(self) -> Volume:
        """Where the fixed image shows something."""
        return Volume(self._content.astype(np.uint8), self.replay.pair.fixed.grid, "content", is_labels=True)

    def _outcome(self, changes: tuple[Change, ...], tell: Progress) -> Outcome:
        displacement, routing = run_changed(self.replay, changes, self._encoded)
        tell(0.7)
        replay = self.replay
        carried = carry(replay.pair, replay.conformed.transform(displacement))
        tell(0.9)
        truth = replay.pair.fixed_labels
        labels = {}
        if truth is not None and carried.warped_labels is not None:
            labels = dice_in_both(carried.warped_labels.values, truth.values, self._labels)
        folded = folding(carried.jacobian().values)
        tell(1.0)
        return Outcome(carried.warped, carried.warped_labels, carried.displacement, labels, folded, routing)

    def _touched(self, interventions: tuple[Change, ...]) -> list[tuple[RoutedLayer, NDArray[np.bool_]]]:
        """The records of the unchanged run that are meant, and where (I, J, K) on each."""
        found = []
        for record in self.base.routing:
            meant = [change for change in interventions if change.concerns(record)]
            if meant:
                where = [cells_in(change.region, self.replay.grid, record.stride) for change in meant]
                found.append((record, np.logical_or.reduce(where)))
        return found

    def _choices(self, interventions: tuple[Change, ...], after: RoutingTrace) -> tuple[int, int]:
        """How many cells are meant, and how many of them chose otherwise than before."""
        cells = changed = 0
        others = {place_of(record): record for record in after}
        for record, inside in self._touched(interventions):
            now = np.sort(chosen_by(others[place_of(record)])[:, inside], axis=0)
            then = np.sort(chosen_by(record)[:, inside], axis=0)
            cells += int(inside.sum())
            changed += int((then != now).any(axis=0).sum() if then.shape == now.shape else inside.sum())
        return cells, changed


def run_changed(
    replay: Replay, changes: Sequence[Change] = (), encoded: Encoded | None = None
) -> tuple[Tensor, RoutingTrace]:
    """The network over a pair with changes: `Replay.run`, from the first pass on where one of them acts in all passes.

    Parameters
    ----------
    replay : Replay
    changes : sequence of Intervention or Control
        Without any the passes before the last stay as they were.
    encoded : Encoded, optional
        Of `Replay.encode` without changes, taken where it stays the same.

    Returns
    -------
    displacement : Tensor (1, 3, D, H, W), voxels of the network grid, on the CPU
    routing : RoutingTrace

    Raises
    ------
    InputError, TooLargeError
        As `Experiment.run`.
    """
    everywhere = [change for change in changes if change.passes == "all"]
    if everywhere:
        with intervening(replay.network, everywhere, replay.grid):
            replay, encoded = replay.from_first_pass(), None
    if any(change.part == "encoder" for change in changes):
        encoded = None
    with intervening(replay.network, changes, replay.grid):
        return replay.run(encoded)


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
