"""Experiments: a registration repeated with changed gates and compared; importance of experts.

Ours, beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.controls import Control
from napari_shmoareg.experts.gate_edits import cells_in
from napari_shmoareg.experts.intervention import (
    Intervention,
    TargetedGate,
    changed_gates,
    chosen_by,
    matched_control,
)
from napari_shmoareg.geometry import DisplacementField, Volume
from napari_shmoareg.metrics import SharedLabels, dice_in_both, folding, mean
from napari_shmoareg.model import RoutedLayer, RoutingTrace
from napari_shmoareg.model.gate_sites import gates_of
from napari_shmoareg.model.network import Encoded
from napari_shmoareg.model.routing import AtGate, Direction, GateId, Part
from napari_shmoareg.registration.deformation import warp_pair
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.replay import Replay
from napari_shmoareg.registration.resources import check_experiment_memory


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """Result of one run of the network; all images on the fixed grid.

    Attributes
    ----------
    warped : Volume
    warped_labels : Volume or None
    displacement : DisplacementField
        The whole transform, T(x) - x, mm RAS, without refinement.
    dice : dict of int to float
        Per label; NaN if only one image has it, empty unless both images have labels.
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
        """Mean over the labels that both images have; None without such labels."""
        found = mean(self.dice)
        return None if np.isnan(found) else found


@dataclass(frozen=True, eq=False)
class Effect:
    """Effect of interventions: the run with them compared to the run without.

    Attributes
    ----------
    interventions : tuple of Intervention or Control
    outcome : RunOutcome
        Of the run with the interventions.
    cells : int
        Cells (tokens or voxels of a level, over all selected gates) where they could act.
    changed : float
        Share of these cells with other chosen experts than without them, 0 to 1.
    moved : Volume
        Length of the difference of the displacements, with minus without, mm, on the fixed grid.
    difference : Volume
        Warped image with minus without, in the moving image's units.
    mean_mm, p95_mm, max_mm : float
        Of `moved`, over the content of the fixed image (voxels that differ from its background).
    dice_change : dict of int to float
        With minus without, per label; empty without labels.
    mean_dice_change : float or None
    folding_change : float
        Percentage points.
    """

    interventions: tuple[Intervention | Control, ...]
    outcome: RunOutcome
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


def compare(
    base: RunOutcome,
    outcome: RunOutcome,
    interventions: tuple[Intervention | Control, ...],
    choices: tuple[int, int],
    content: NDArray[np.bool_],
) -> Effect:
    """Compare two outcomes on one grid.

    Parameters
    ----------
    base, outcome : RunOutcome
        Without and with the interventions.
    interventions : tuple of Intervention or Control
    choices : tuple of 2 int
        Number of selected cells, and number of these with another choice.
    content : (I, J, K) bool array
        The voxels of the fixed grid over which motion is averaged.

    Returns
    -------
    Effect
        A label with a Dice in only one outcome (it is in neither map of the other) has no change.
    """
    moved = np.linalg.norm(
        outcome.displacement.vectors - base.displacement.vectors, axis=-1
    ).astype(np.float32)
    within = moved[content]
    labels = {
        label: outcome.dice[label] - value
        for label, value in base.dice.items()
        if label in outcome.dice
    }
    cells, changed = choices
    return Effect(
        interventions=interventions,
        outcome=outcome,
        cells=cells,
        changed=changed / max(cells, 1),
        moved=Volume(moved, base.displacement.grid, "moved by the change (mm)"),
        difference=outcome.warped.with_values(outcome.warped.values - base.warped.values),
        mean_mm=float(within.mean(dtype=np.float64)),
        p95_mm=float(np.percentile(within, 95)),
        max_mm=float(within.max()),
        dice_change=labels,
        mean_dice_change=None if np.isnan(mean(labels)) else mean(labels),
        folding_change=outcome.folding_percent - base.folding_percent,
    )


Change = Intervention | Control
ProgressCallback = Callable[[float], None]


class Experiment:
    """A registration's network, run once unchanged, then with any changes.

    Interventions change the last pass only, whose experts are shown.  Controls change all passes
    or the last one, by their `passes`.  A refinement on the pair is left out of both runs.

    Parameters
    ----------
    replay : Replay
    progress : callable, optional
        Called with the share of the first run that is done.

    Attributes
    ----------
    replay : Replay
    base : RunOutcome
        Of the unchanged run.

    Raises
    ------
    TooLargeError
        If there is not enough memory.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_shmoareg.experts.experiment import Experiment
    >>> from napari_shmoareg.experts.intervention import Intervention
    >>> from napari_shmoareg.registration.replay import Replay
    >>> from napari_shmoareg.geometry import Grid, Volume, VolumePair
    >>> from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
    >>> network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    >>> grid = Grid((20, 24, 17), np.eye(4))
    >>> moving, fixed = (Volume(v, grid) for v in np.random.rand(2, *grid.shape))
    >>> replay = Replay.of(VolumePair(moving, fixed), network, settings={"size": 20})
    >>> experiment = Experiment(replay)
    >>> silenced = Intervention("silence", expert=1, part="decoder", layer=1, direction="x")
    >>> effect = experiment.run(silenced)
    >>> 0 <= effect.changed <= 1
    True
    """

    def __init__(self, replay: Replay, progress: ProgressCallback | None = None) -> None:
        self.replay = replay
        check_experiment_memory(replay.pair.fixed.grid)
        report_progress = progress or (lambda _done: None)
        self._encoded = replay.encode()
        report_progress(0.3)
        self.base = self._outcome((), report_progress)

    def run(self, *changes: Change, progress: ProgressCallback | None = None) -> Effect:
        """Run with changes (takes seconds) and compare with the unchanged run.

        Parameters
        ----------
        *changes : Intervention or Control
            If one of them acts in all passes, the passes before the last are repeated too, with
            only the changes for all passes.
        progress : callable, optional

        Raises
        ------
        InputError
            If a change matches no gate, no expert or no cell; see `changed_gates`.
        TooLargeError
            If the device runs out of memory.
        """
        if not changes:
            raise InputError("Give at least one intervention to run.")
        outcome = self._outcome(changes, progress or (lambda _done: None))
        return compare(
            self.base, outcome, changes, self._choices(changes, outcome.routing), self._content
        )

    def null(self, intervention: Intervention, *, seed: int = 0) -> Intervention:
        """Draw a matched random control: as many changes, for other experts at other locations.

        Silencing: at each gate, the same number of selections of *other* experts is silenced, in
        patches shaped like the expert's own cells (moved and mirrored at random), with the same
        numbers inside and outside the content of the fixed image.  If the others do not have
        enough, selections of the expert itself are used, and `str` gives their share; for an
        expert that nearly all cells chose, the control is nearly the same change and means little.
        Forcing: where the expert was not chosen, another unchosen one is forced at random.  This is
        one draw: use several seeds for a range.

        Raises
        ------
        InputError
            If the intervention is not on one expert.
        """
        targets = [
            TargetedGate(
                record, inside, cells_in(self._content_mask, self.replay.grid, record.stride)
            )
            for record, inside in self._targeted((intervention,))
        ]
        return matched_control(intervention, targets, seed)

    def share(self, intervention: Intervention) -> float:
        """Share of the selections of the targeted gates and region that went to the expert.

        Raises
        ------
        InputError
            If the intervention is on a map of experts.
        """
        if not isinstance(intervention.expert, int):
            raise InputError(
                "An intervention on a map of experts has no single expert to give the share of."
            )
        found = [(record, inside) for record, inside in self._targeted((intervention,))]
        own = sum(
            int((chosen_by(r)[:, inside] == intervention.expert).sum()) for r, inside in found
        )
        return own / max(sum(chosen_by(r)[:, inside].size for r, inside in found), 1)

    @cached_property
    def aligned_dice(self) -> float | None:
        """Mean Dice on the fixed grid after the alignment alone; None without labels."""
        pair, replay = self.replay.pair, self.replay
        if pair.fixed_labels is None or pair.moving_labels is None:
            return None
        identity = replay.conformed.transform(torch.zeros((1, 3, *replay.grid.shape)))
        warped = identity.total(pair.fixed.grid).warp(pair.moving_labels)
        found = mean(dice_in_both(warped.values, pair.fixed_labels.values, self._labels))
        return None if np.isnan(found) else found

    @cached_property
    def _content(self) -> NDArray[np.bool_]:
        fixed = self.replay.pair.fixed
        found = Intensity.of(fixed).content(fixed.values)
        return found if found.any() else np.ones(fixed.values.shape, dtype=bool)

    @cached_property
    def _labels(self) -> SharedLabels:
        """Labels of both images or of one; cached, as finding them takes as long as scoring."""
        pair = self.replay.pair
        return SharedLabels.of(
            *([] if v is None else v.labels for v in (pair.moving_labels, pair.fixed_labels))
        )

    @cached_property
    def _content_mask(self) -> Volume:
        """Mask of the content of the fixed image."""
        return Volume(
            self._content.astype(np.uint8), self.replay.pair.fixed.grid, "content", is_labels=True
        )

    def _outcome(
        self, changes: tuple[Change, ...], report_progress: ProgressCallback
    ) -> RunOutcome:
        displacement, routing = run_with_changes(self.replay, changes, self._encoded)
        report_progress(0.7)
        replay = self.replay
        warped = warp_pair(replay.pair, replay.conformed.transform(displacement))
        report_progress(0.9)
        truth = replay.pair.fixed_labels
        labels = {}
        if truth is not None and warped.warped_labels is not None:
            labels = dice_in_both(warped.warped_labels.values, truth.values, self._labels)
        folded = folding(warped.jacobian().values)
        report_progress(1.0)
        return RunOutcome(
            warped.warped, warped.warped_labels, warped.displacement, labels, folded, routing
        )

    def _targeted(
        self, interventions: tuple[Change, ...]
    ) -> list[tuple[RoutedLayer, NDArray[np.bool_]]]:
        """The targeted records of the unchanged run, and the mask (I, J, K) of each."""
        found = []
        for record in self.base.routing:
            targeted = [change for change in interventions if change.selects(record.gate)]
            if targeted:
                where = [
                    cells_in(change.region, self.replay.grid, record.stride) for change in targeted
                ]
                found.append((record, np.logical_or.reduce(where)))
        return found

    def _choices(self, interventions: tuple[Change, ...], after: RoutingTrace) -> tuple[int, int]:
        """Number of targeted cells, and number of these with another choice than before."""
        cells = changed = 0
        for record, inside in self._targeted(interventions):
            now = np.sort(chosen_by(after[record.gate])[:, inside], axis=0)
            then = np.sort(chosen_by(record)[:, inside], axis=0)
            cells += int(inside.sum())
            changed += int(
                (then != now).any(axis=0).sum() if then.shape == now.shape else inside.sum()
            )
        return cells, changed


def run_with_changes(
    replay: Replay, changes: Sequence[Change] = (), encoded: Encoded | None = None
) -> tuple[Tensor, RoutingTrace]:
    """Run the network on a pair with changes: the last pass, or all passes if a change needs them.

    Parameters
    ----------
    replay : Replay
    changes : sequence of Intervention or Control
    encoded : Encoded, optional
        Of `Replay.encode` without changes; used if no change affects it.

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
        with changed_gates(replay.network, everywhere, replay.grid):
            replay, encoded = replay.from_first_pass(), None
    if any(change.part == "encoder" for change in changes):
        encoded = None
    with changed_gates(replay.network, changes, replay.grid):
        return replay.run(encoded)


def recorded_agreement(experiment: Experiment, recorded: RoutingTrace) -> float:
    """Check that the weights and settings are those of a registration.

    Parameters
    ----------
    experiment : Experiment
    recorded : RoutingTrace
        Of the registration.

    Returns
    -------
    float
        Share of the cells at which the unchanged run chose the recorded experts, 0 to 1: the lower
        of encoder and decoder; 1 if nothing is recorded.
    """
    found, shares = {record.gate: chosen_by(record) for record in experiment.base.routing}, []
    for part in get_args(Part):
        same = total = 0
        for record in recorded.select(part=part):
            then, now = chosen_by(record), found.get(record.gate)
            if now is not None and then.shape == now.shape:
                same += int((np.sort(then, axis=0) == np.sort(now, axis=0)).all(axis=0).sum())
            total += then[0].size
        shares += [same / total] if total else []
    return min(shares, default=1.0)


@dataclass(frozen=True)
class ImportanceRow(AtGate):
    """Effect of changing one expert; ``null_``: of the matched random control.

    Attributes
    ----------
    number, total : int
        Number of the row, and number of rows.
    action : {"silence", "force"}
    region : str
        Name of the region; empty for everywhere.
    seed : int
        Of the random control.
    gate : GateId
        Without block and image: all of a layer are changed together.
    expert : int
    share : float
        The expert's share of the selections of these gates, 0 to 1.
    changed : float
        Share of the cells with a changed choice, 0 to 1.
    mean_mm, p95_mm : float
        Change of the displacement, over the content of the fixed image.
    mean_dice_change : float or None
        None without labels.
    folding_change : float
        Percentage points.
    null_mm, null_dice_change : float or None
        Of `Experiment.null`; None if not requested.
    """

    number: int
    total: int
    action: str
    region: str
    seed: int
    gate: GateId
    expert: int
    share: float
    changed: float
    mean_mm: float
    p95_mm: float
    mean_dice_change: float | None
    folding_change: float
    null_mm: float | None = None
    null_dice_change: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Table row, without number and total."""
        gate = {name: getattr(self, name) for name in ("part", "layer", "direction")}
        row = {key: value for key, value in vars(self).items() if key not in ("number", "total")}
        at = list(row).index("gate")
        return dict([*list(row.items())[:at], *gate.items(), *list(row.items())[at + 1 :]])


def importance(
    experiment: Experiment,
    *,
    action: Literal["silence", "force"] = "silence",
    part: Part | None = None,
    layer: int | None = None,
    direction: Direction | None = None,
    region: Volume | None = None,
    null: bool = True,
    seed: int = 0,
) -> Iterator[ImportanceRow]:
    """Change every expert in turn, one row per `next` (some seconds each); can be stopped any time.

    Parameters
    ----------
    experiment : Experiment
    action : {"silence", "force"}
    part, layer, direction : optional
        Only these gates; None is all.
    region : Volume, optional
        Only in this region; see `Intervention`.
    null : bool
        Also run the random control of each change, which takes twice the time.
    seed : int
        Of the random controls.

    Yields
    ------
    ImportanceRow
        Decoder: per layer and direction; encoder: per layer, over its blocks and both images.

    Raises
    ------
    InputError
        If no gate is selected.
    """
    fields = {"part": part, "layer": layer, "direction": direction}
    experts = {
        site.gate._replace(block=None): site.num_experts
        for site in gates_of(experiment.replay.network)
        if site.gate.matches(**{name: v for name, v in fields.items() if v is not None})
    }
    changes = [
        Intervention(action, expert, *gate, region=region)
        for gate, count in experts.items()
        for expert in range(count)
    ]
    if not changes:
        raise InputError(
            f"This network has no gate with part {part}, layer {layer}, direction {direction}."
            " Use None for all."
        )
    for number, change in enumerate(changes, start=1):
        yield _row(experiment, change, number, len(changes), seed + number if null else None)


def _row(
    experiment: Experiment, change: Intervention, number: int, total: int, seed: int | None
) -> ImportanceRow:
    """Run a change and, given a seed, its random control; only the figures are kept."""
    assert isinstance(change.expert, int) and change.layer is not None
    effect = experiment.run(change)
    row = ImportanceRow(
        number=number,
        total=total,
        action=change.action,
        region="" if change.region is None else change.region.name or "region",
        seed=seed or 0,
        gate=GateId(change.part, change.layer, direction=change.direction),
        expert=change.expert,
        share=experiment.share(change),
        changed=effect.changed,
        mean_mm=effect.mean_mm,
        p95_mm=effect.p95_mm,
        mean_dice_change=effect.mean_dice_change,
        folding_change=effect.folding_change,
    )
    if seed is None:
        return row
    del effect
    control_effect = experiment.run(experiment.null(change, seed=seed))
    return replace(
        row, null_mm=control_effect.mean_mm, null_dice_change=control_effect.mean_dice_change
    )
