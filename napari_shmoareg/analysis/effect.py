"""What interventions changed: two outcomes of one network, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.controls import Control
from napari_shmoareg.analysis.intervention import Intervention
from napari_shmoareg.analysis.metrics import mean
from napari_shmoareg.geometry import DisplacementField, Volume
from napari_shmoareg.model.routing import RoutingTrace


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
        A label that has a Dice in one outcome only (it is in neither map of the other) has no change.
    """
    moved = np.linalg.norm(outcome.displacement.vectors - base.displacement.vectors, axis=-1).astype(np.float32)
    within = moved[content]
    labels = {label: outcome.dice[label] - value for label, value in base.dice.items() if label in outcome.dice}
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
