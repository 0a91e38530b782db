"""How good a registration is: before, after the affine, after all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_shmoareg.analysis.metrics import SharedLabels, dice_in_both, folding, mean, sdlogj, surface
from napari_shmoareg.engine.registration import Registration
from napari_shmoareg.engine.similarity import Similarity
from napari_shmoareg.geometry import Transform, Volume, warp_volume

PerLabel = dict[str, dict[int, float]]
STAGES = ("before", "affine", "after")
FELL = 0.01  # loss of mean Dice that is told
LOST = 0.1  # loss of Dice of a single label that is told
_NAN = float("nan")
UNSEEN = Similarity(_NAN, _NAN, _NAN, overlap=0.0, information=_NAN, local=_NAN, coverage=0.0)  # images apart


@dataclass(frozen=True, eq=False)
class Quality:
    """Numbers on the fixed image's grid, each at three stages.

    ``before``: moving image and labels where their headers place them.  ``affine``: where the
    affine does.  ``after``: warped.  Definitions stand in `napari_shmoareg.analysis.metrics`.

    Attributes
    ----------
    similarity : stage -> {"ncc", "mse", "nmi", "overlap", "information", "local", "coverage"} -> float
        As `Registration.similarity`; NaN where the images do not meet.
    dice, assd_mm, hd95_mm : stage -> label -> float, or None
        None unless both images have labels.  NaN for a label that only one of them has.
    jacobian : {"min", "max", "mean", "sdlogj", "folding_percent"} -> float
        Of the deformation, without the affine.
    displacement_mm : {"mean", "max"} -> float
        Length of the whole transform's displacement.
    labels : SharedLabels or None
        Which labels both images have, and which only one.
    """

    similarity: Mapping[str, Mapping[str, float]]
    dice: Mapping[str, Mapping[int, float]] | None
    assd_mm: Mapping[str, Mapping[int, float]] | None
    hd95_mm: Mapping[str, Mapping[int, float]] | None
    jacobian: Mapping[str, float]
    displacement_mm: Mapping[str, float]
    labels: SharedLabels | None = None

    def mean_dice(self, stage: str) -> float | None:
        """Mean over the labels that both images have (NaN if there is none), or None without labels."""
        return None if self.dice is None else mean(self.dice[stage])

    @property
    def cautions(self) -> list[str]:
        """Where the labels agree less than before: on average, and single ones; empty without labels."""
        if self.dice is None:
            return []
        found = []
        means = {stage: mean(self.dice[stage]) for stage in STAGES}
        start = max(("before", "affine"), key=lambda stage: means[stage])
        if means["after"] < means[start] - FELL:
            found.append(
                f"The labels agree less than {'before' if start == 'before' else 'after the affine alone'}: mean Dice "
                f"{means['before']:.3f} before, {means['affine']:.3f} after the affine, {means['after']:.3f} after."
            )
        before, after = self.dice["before"], self.dice["after"]
        lost = sorted((after[label] - before[label], label) for label in after if after[label] < before[label] - LOST)
        if lost:
            named = ", ".join(f"{label} ({before[label]:.2f} to {after[label]:.2f})" for _, label in lost[:4])
            more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
            found.append(f"Dice fell by more than {LOST:g} for the labels {named}{more}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file: ``dice.after.mean``, ``dice.after.per_label["17"]`` and so on; may hold NaN."""
        result: dict[str, Any] = {"similarity": {stage: dict(v) for stage, v in self.similarity.items()}}
        result["labels"] = self.labels and {key: list(found) for key, found in self.labels._asdict().items()}
        for name in ("dice", "assd_mm", "hd95_mm"):
            stages = getattr(self, name)
            result[name] = stages and {
                stage: {"mean": mean(values), "per_label": {str(label): v for label, v in values.items()}}
                for stage, values in stages.items()
            }
        return result | {
            "folding_percent": self.jacobian["folding_percent"],
            "jacobian": dict(self.jacobian),
            "displacement_mm": dict(self.displacement_mm),
        }


def measure(registration: Registration) -> Quality:
    """Measure a registration.

    Similarities and folding always; overlap and surface distances of each label where both
    images have labels (a few seconds for 36 labels of a whole brain at 1 mm).
    """
    pair, matrix = registration.pair, registration.alignment.matrix
    transforms = (Transform(np.eye(4)), Transform(matrix))
    similarity = {stage: (registration.similarity[stage] or UNSEEN)._asdict() for stage in STAGES}
    overlap: PerLabel | None = None
    distance: PerLabel | None = None
    farthest: PerLabel | None = None
    shared: SharedLabels | None = None
    if pair.fixed_labels is not None and pair.moving_labels is not None and registration.warped_labels is not None:
        before, affine = (warp_volume(pair.moving_labels, pair.fixed.grid, t) for t in transforms)
        before = affine if np.allclose(matrix, np.eye(4)) else before
        labels = dict(zip(STAGES, (before, affine, registration.warped_labels), strict=True))
        shared = SharedLabels.of(pair.moving_labels.labels, pair.fixed_labels.labels)
        truth = pair.fixed_labels.values
        overlap = {stage: dice_in_both(volume.values, truth, shared) for stage, volume in labels.items()}
        distance, farthest = _distances(labels, pair.fixed_labels)
    determinant = registration.jacobian.values
    length = np.linalg.norm(registration.displacement.vectors, axis=-1)
    return Quality(
        similarity=similarity,
        dice=overlap,
        assd_mm=distance,
        hd95_mm=farthest,
        jacobian={
            "min": float(determinant.min()),
            "max": float(determinant.max()),
            "mean": float(determinant.mean(dtype=np.float64)),
            "sdlogj": sdlogj(determinant),
            "folding_percent": folding(determinant),
        },
        displacement_mm={"mean": float(length.mean(dtype=np.float64)), "max": float(length.max())},
        labels=shared,
    )


def _distances(labels: Mapping[str, Volume], truth: Volume) -> tuple[PerLabel, PerLabel]:
    """ASSD and HD95 per stage and label; a stage that is the one before it is not measured again."""
    average: PerLabel = {}
    far: PerLabel = {}
    last: tuple[str, Volume] | None = None
    for stage, volume in labels.items():
        if last is not None and volume is last[1]:
            average[stage], far[stage] = average[last[0]], far[last[0]]
            continue
        both = surface(volume.values, truth.values, truth.grid.spacing)
        average[stage] = {label: value for label, (value, _) in both.items()}
        far[stage] = {label: value for label, (_, value) in both.items()}
        last = stage, volume
    return average, far
