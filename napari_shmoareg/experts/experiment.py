"""What depends on an expert: a registration run again with changed gates, and the two compared.

Ours, beyond the paper.  Also the importance of all experts, silenced one after the other.
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
    Touched,
    at_random,
    chosen_by,
    intervening,
)
from napari_shmoareg.geometry import DisplacementField, Volume
from napari_shmoareg.metrics import SharedLabels, dice_in_both, folding, mean
from napari_shmoareg.model import RoutedLayer, RoutingTrace
from napari_shmoareg.model.gates import gates_of
from napari_shmoareg.model.network import Encoded
from napari_shmoareg.model.routing import AtGate, Direction, GateId, Part
from napari_shmoareg.registration.deforming import carry
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.replay import Replay
from napari_shmoareg.registration.resources import check_experiment_memory


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
        Per label, NaN for one that only one image has; empty without labels of both images.
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
        """Over the labels that both images have; None without."""
        found = mean(self.dice)
        return None if np.isnan(found) else found


@dataclass(frozen=True, eq=False)
class Effect:
    """What interventions changed.

    Attributes
    ----------
    interventions : tuple of Intervention or Control
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

    interventions: tuple[Intervention | Control, ...]
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


def compare(
    base: Outcome,
    outcome: Outcome,
    interventions: tuple[Intervention | Control, ...],
    choices: tuple[int, int],
    content: NDArray[np.bool_],
) -> Effect:
    """What changed from one outcome to another.

    Parameters
    ----------
    base, outcome : Outcome
        Without and with the interventions, on one grid.
    interventions : tuple of Intervention or Control
    choices : tuple of 2 int
        Cells that were meant, and those of them that chose otherwise.
    content : (I, J, K) bool array
        The voxels of the fixed grid over which motion is averaged.

    Returns
    -------
    Effect
        A label that has a Dice in one outcome only (it is in neither map of the other) has no
        change.
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
Progress = Callable[[float], None]


class Experiment:
    """A registration's network, run once as it is, and then with whatever changes are asked for.

    Interventions change the last pass only: it is the one whose experts are shown.  Controls change
    all passes, or the last one, as each says.  A refinement on the pair is left out on both sides
    of the comparison.

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
            Where one of them acts in all passes, those before the last are made again too, under
            these alone.
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
        return compare(
            self.base, outcome, changes, self._choices(changes, outcome.routing), self._content
        )

    def null(self, intervention: Intervention, *, seed: int = 0) -> Intervention:
        """As much changed, for other experts at other places: what an intervention of this size
        does anyway.

        Silencing: at each gate as many selections of *other* experts, in patches like those of the
        expert's own cells (moved and mirrored at random), as many of them where the fixed image
        shows something and where it does not as the expert has.  Where the others do not have as
        many, its own are taken, and `str` says how many: of an expert that nearly all cells chose
        this is nearly the same change, and tells little.  Forcing: at the cells where the expert
        was not chosen another one that was not either, drawn by lot, is forced.  It is one draw:
        take several seeds for a range.

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
        """Share of the selections of the gates meant, in the region, that went to the
        intervention's expert.

        Raises
        ------
        InputError
            If the intervention is about a map of experts.
        """
        if not isinstance(intervention.expert, int):
            raise InputError(
                "An intervention on a map of experts is about no single one, whose share could be"
                " told."
            )
        found = [(record, inside) for record, inside in self._touched((intervention,))]
        own = sum(
            int((chosen_by(r)[:, inside] == intervention.expert).sum()) for r, inside in found
        )
        return own / max(sum(chosen_by(r)[:, inside].size for r, inside in found), 1)

    @cached_property
    def aligned_dice(self) -> float | None:
        """Mean Dice, on the fixed grid, of the alignment alone: what the network began with; None
        without labels.
        """
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
        """Those that both images have, or one; looked for once, as that takes as long as to count
        them.
        """
        pair = self.replay.pair
        return SharedLabels.of(
            *([] if v is None else v.labels for v in (pair.moving_labels, pair.fixed_labels))
        )

    @cached_property
    def _shown(self) -> Volume:
        """Where the fixed image shows something."""
        return Volume(
            self._content.astype(np.uint8), self.replay.pair.fixed.grid, "content", is_labels=True
        )

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
        return Outcome(
            carried.warped, carried.warped_labels, carried.displacement, labels, folded, routing
        )

    def _touched(
        self, interventions: tuple[Change, ...]
    ) -> list[tuple[RoutedLayer, NDArray[np.bool_]]]:
        """The records of the unchanged run that are meant, and where (I, J, K) on each."""
        found = []
        for record in self.base.routing:
            meant = [change for change in interventions if change.concerns(record.gate)]
            if meant:
                where = [
                    cells_in(change.region, self.replay.grid, record.stride) for change in meant
                ]
                found.append((record, np.logical_or.reduce(where)))
        return found

    def _choices(self, interventions: tuple[Change, ...], after: RoutingTrace) -> tuple[int, int]:
        """How many cells are meant, and how many of them chose otherwise than before."""
        cells = changed = 0
        for record, inside in self._touched(interventions):
            now = np.sort(chosen_by(after[record.gate])[:, inside], axis=0)
            then = np.sort(chosen_by(record)[:, inside], axis=0)
            cells += int(inside.sum())
            changed += int(
                (then != now).any(axis=0).sum() if then.shape == now.shape else inside.sum()
            )
        return cells, changed


def run_changed(
    replay: Replay, changes: Sequence[Change] = (), encoded: Encoded | None = None
) -> tuple[Tensor, RoutingTrace]:
    """The network over a pair with changes: `Replay.run`, from the first pass on where one of them
    acts in all passes.

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


def recorded_alike(experiment: Experiment, recorded: RoutingTrace) -> float:
    """Whether these are the weights, and the settings, that a registration was made with.

    Parameters
    ----------
    experiment : Experiment
    recorded : RoutingTrace
        Of the registration.

    Returns
    -------
    float
        Share of the cells at which the unchanged run chose the recorded experts, 0 to 1: of the
        encoder or of the decoder, whichever is lower; 1 where nothing is recorded.
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
    """What one change did; ``null_`` is what the same change did for experts drawn at random.

    Attributes
    ----------
    number, total : int
        Which row of how many.
    action : {"silence", "force"}
    region : str
        Name of the region; empty for everywhere.
    seed : int
        Of the random counterpart.
    gate : GateId
        Without a block and an image: all of a layer are changed together.
    expert : int
    share : float
        Of the selections of these gates, 0 to 1.
    changed : float
        Share of the cells whose choice the change turned, 0 to 1.
    mean_mm, p95_mm : float
        How far the displacement moved, over the content of the fixed image.
    mean_dice_change : float or None
        None without labels.
    folding_change : float
        Percentage points.
    null_mm, null_dice_change : float or None
        Of `Experiment.null`; None where it was not asked for.
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
        """For a table: without number and total."""
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
    """Change every expert in turn; one row per `next`, each of some seconds.  Stopping anywhere is
    safe.

    Parameters
    ----------
    experiment : Experiment
    action : {"silence", "force"}
    part, layer, direction : optional
        Only these gates; None is all.
    region : Volume, optional
        Only there; see `Intervention`.
    null : bool
        Run the random counterpart beside each: twice the time.
    seed : int
        Of the lot.

    Yields
    ------
    ImportanceRow
        Decoder: per layer and direction; encoder: per layer, over its blocks and both images.

    Raises
    ------
    InputError
        If no gate is meant.
    """
    wanted = {"part": part, "layer": layer, "direction": direction}
    experts = {
        site.gate._replace(block=None): site.num_experts
        for site in gates_of(experiment.replay.network)
        if site.gate.matches(**{name: v for name, v in wanted.items() if v is not None})
    }
    changes = [
        Intervention(action, expert, *gate, region=region)
        for gate, count in experts.items()
        for expert in range(count)
    ]
    if not changes:
        raise InputError(
            f"This network has no gate with part {part}, layer {layer}, direction {direction}; None"
            " stands for all."
        )
    for number, change in enumerate(changes, start=1):
        yield _row(experiment, change, number, len(changes), seed + number if null else None)


def _row(
    experiment: Experiment, change: Intervention, number: int, total: int, seed: int | None
) -> ImportanceRow:
    """Run a change, and with a seed its random counterpart; nothing of the runs but the figures
    stays.
    """
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
    beside = experiment.run(experiment.null(change, seed=seed))
    return replace(row, null_mm=beside.mean_mm, null_dice_change=beside.mean_dice_change)
