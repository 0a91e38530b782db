"""Measures of a registration by name: before, after the affine, after the deformation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg import metrics
from napari_shmoareg.geometry import DisplacementField, Transform, Volume, VolumePair, warp_volume
from napari_shmoareg.metrics.metrics import (
    SharedLabels,
    dice_in_both,
    folding,
    mean,
    sdlogj,
    surface,
)
from napari_shmoareg.registration.register import Registration
from napari_shmoareg.registration.similarity import Similarity, similarity

STAGES = ("start", "affine", "after")
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


class Measure(NamedTuple):
    """How a column of the tables is written and what it is.

    Attributes
    ----------
    words, form : str
        Its head, and the format of its numbers.
    better : {1, -1, 0}
        Whether more of it is better, less, or neither.
    definition : str
        Which of the definitions that go by this name.
    """

    words: str
    form: str
    better: int
    definition: str


MEASURES = {
    "dice": Measure(
        "Dice",
        ".4f",
        1,
        "2|A∩B| / (|A|+|B|) on voxels; means are over the labels that both images of a pair have",
    ),
    "assd_mm": Measure(
        "ASSD, mm",
        ".3f",
        -1,
        "surface voxels of both maps, distances pooled (as MONAI, MedPy); not comparable with the"
        " paper's Table I",
    ),
    "hd95_mm": Measure(
        "HD95, mm", ".3f", -1, "the larger of the two directed 95th percentiles (as MONAI)"
    ),
    "assd_surfel_mm": Measure(
        "ASSD by surfels, mm",
        ".3f",
        -1,
        "surface elements weighted by area, pooled (as the package surface-distance)",
    ),
    "hd95_surfel_mm": Measure(
        "HD95 by surfels, mm",
        ".3f",
        -1,
        "the same elements (as surface-distance; Learn2Reg's is this in voxels)",
    ),
    "hd95_pooled_mm": Measure(
        "HD95 pooled, mm", ".3f", -1, "95th percentile of both directions together (as MedPy)"
    ),
    "avd_th_mm": Measure(
        "AVD, mm",
        ".3f",
        -1,
        "over all voxels of a label, the larger directed mean (Taha and Hanbury 2015)",
    ),
    "landmark_mm": Measure("landmarks, mm", ".3f", -1, "mean distance of corresponding points"),
    "ncc": Measure("NCC", ".4f", 1, "correlation of the intensities where both images were seen"),
    "folding_percent": Measure(
        "folding, %",
        ".4f",
        -1,
        "voxels whose Jacobian determinant is 0 or less, of all voxels, the affine included",
    ),
    "folding_interior_percent": Measure(
        "folding inside, %",
        ".4f",
        -1,
        "the same without two voxels along each side (Learn2Reg's crop)",
    ),
    "folding_strict_percent": Measure(
        "folding, strict, %",
        ".4f",
        -1,
        "voxels at which any of the eight one-sided determinants is 0 or less",
    ),
    "sdlogj": Measure("SDlogJ", ".4f", -1, "standard deviation of log(det), over all voxels"),
    "sdlogj_l2r": Measure(
        "SDlogJ of Learn2Reg",
        ".4f",
        -1,
        "standard deviation of log(det + 3), without two voxels along each side",
    ),
    "seconds": Measure(
        "seconds",
        ".2f",
        -1,
        "of the method alone, images in memory; its alignment included, reading and scoring not",
    ),
}


class Found(NamedTuple):
    """What a method gave for a pair.

    Attributes
    ----------
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    affine : (4, 4) array or None
        Its alignment, fixed world to moving world, where it has one of its own that is known.
    warnings : tuple of str
    """

    displacement: DisplacementField
    affine: NDArray[np.float64] | None = None
    warnings: tuple[str, ...] = ()


Method = Callable[[VolumePair], Found]


@dataclass(frozen=True)
class Scoring:
    """What is measured beyond Dice, landmarks, correlation, folding and SDlogJ.

    Attributes
    ----------
    surface : bool
        ASSD and HD95, which take seconds for a whole brain.
    definitions : bool
        The other definitions that go by these names, too.
    """

    surface: bool = True
    definitions: bool = False


def measure_pair(
    pair: VolumePair, found: Found, scoring: Scoring, points: Points | None = None
) -> dict[str, Any]:
    """Measure a pair at each stage, on the fixed image's own grid.

    Parameters
    ----------
    pair : VolumePair
    found : Found
    scoring : Scoring
    points : (fixed, moving), each (n, 3), mm RAS, optional
        Corresponding landmarks.

    Returns
    -------
    dict of stage to {"means": measure -> float, "labels": label -> measure -> float}
        Without "affine" where the method has none that is known.  Means are over the labels that
        both images have and that could be measured; NaN where nothing could.
    """
    grid = pair.fixed.grid
    fields = {"start": Transform(np.eye(4)).total(grid)}
    stages = {"start": measure_stage(pair, fields["start"], scoring, points)}
    if found.affine is not None:
        same = np.allclose(found.affine, np.eye(4))
        aligned = fields["start"] if same else Transform(found.affine).total(grid)
        stages["affine"] = (
            stages["start"] if same else measure_stage(pair, aligned, scoring, points)
        )
    after = measure_stage(pair, found.displacement, scoring, points)
    after["means"] |= deformation(found.displacement, scoring)
    return stages | {"after": after}


def measure_stage(
    pair: VolumePair,
    displacement: DisplacementField,
    scoring: Scoring,
    points: Points | None = None,
) -> dict[str, Any]:
    """Measure where a displacement puts the moving image, labels and landmarks; as `measure_pair`,
    one stage.
    """
    labels: dict[int, dict[str, float]] = {}
    means: dict[str, float] = {}
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        carried = displacement.warp(pair.moving_labels).values
        shared = labels_of(pair)
        labels = _per_label(
            carried, pair.fixed_labels.values, pair.fixed.grid.spacing, scoring, shared
        )
        names = list(dict.fromkeys(name for values in labels.values() for name in values)) or [
            "dice"
        ]
        means = {
            name: metrics.mean(
                {label: labels[label].get(name, float("nan")) for label in shared.both}
            )
            for name in names
        }
    if points is not None:
        fixed, moving = points
        means["landmark_mm"] = float(
            np.linalg.norm(fixed + displacement.at(fixed) - moving, axis=1).mean()
        )
    alike = similarity(pair, Transform(np.eye(4), displacement))
    means["ncc"] = float("nan") if alike is None else alike.ncc
    return {"means": means, "labels": labels}


def labels_of(pair: VolumePair) -> metrics.SharedLabels:
    """Which labels both images of a pair have, and which only one; none without labels."""
    return metrics.SharedLabels.of(
        *([] if v is None else v.labels for v in (pair.moving_labels, pair.fixed_labels))
    )


def deformation(displacement: DisplacementField, scoring: Scoring) -> dict[str, float]:
    """Folding and SDlogJ of a whole map."""
    jacobian = displacement.jacobian()
    found = {"folding_percent": metrics.folding(jacobian), "sdlogj": metrics.sdlogj(jacobian)}
    if scoring.definitions:
        found["folding_interior_percent"] = metrics.folding_interior(jacobian)
        found["folding_strict_percent"] = metrics.folding_strict(
            displacement.to_voxels()[0].numpy()
        )
        found["sdlogj_l2r"] = metrics.sdlogj_l2r(jacobian)
    return found


def pair_rows(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a case in the table of pairs: one per stage, or one with its error.

    Parameters
    ----------
    case : mapping
        "number", "moving", "fixed", "moving_subject", "fixed_subject", "seconds", "error", and
        "stages" as `measure_pair` gives them.
    """
    keys = ("moving", "fixed", "moving_subject", "fixed_subject")
    about = {"case": case["number"]} | {key: case[key] for key in keys}
    if case["error"]:
        return [about | {"stage": "after", "error": case["error"]}]
    rows = []
    for stage in (stage for stage in STAGES if stage in case["stages"]):
        seconds = {"seconds": case["seconds"]} if stage == "after" else {}
        rows.append(
            about | {"stage": stage} | case["stages"][stage]["means"] | seconds | {"error": ""}
        )
    return rows


def label_rows(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a case in the table of labels: one per stage and label, and which images have it
    ("in").
    """
    about = {"case": case["number"], "moving": case["moving"], "fixed": case["fixed"]}
    stages = {} if case["error"] else case["stages"]
    sides = {label: side for side, found in (case.get("labels") or {}).items() for label in found}
    return [
        about
        | {"stage": stage, "label": int(label), "in": sides.get(int(label), "").replace("_", " ")}
        | values
        for stage in STAGES
        if stage in stages
        for label, values in sorted(stages[stage]["labels"].items(), key=lambda item: int(item[0]))
    ]


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """The measures that occur in some row, in the order of `MEASURES`."""
    return [name for name in MEASURES if any(row.get(name) is not None for row in rows)]


def _per_label(
    carried: NDArray,
    truth: NDArray,
    spacing: tuple[float, ...],
    scoring: Scoring,
    shared: metrics.SharedLabels,
) -> dict[int, dict[str, float]]:
    found = {
        label: {"dice": value}
        for label, value in metrics.dice_in_both(carried, truth, shared).items()
    }
    if not scoring.surface:
        return found
    for label, distances in metrics.surface_distances(carried, truth, spacing).items():
        kept = {"assd_mm": distances["assd"], "hd95_mm": distances["hd95"]}
        found[label] |= kept | (
            {"hd95_pooled_mm": distances["hd95_pooled"]} if scoring.definitions else {}
        )
    if scoring.definitions:
        everywhere = metrics.avd_th(carried, truth, spacing)
        for label, distances in metrics.surfel_distances(carried, truth, spacing).items():
            found.setdefault(label, {}).update(
                {f"{name}_mm": value for name, value in distances.items()}
            )
            found[label]["avd_th_mm"] = everywhere[label]
    return found


PerLabel = dict[str, dict[int, float]]
SHOWN_STAGES = ("before", "affine", "after")
FELL = 0.01  # loss of mean Dice that is told
LOST = 0.1  # loss of Dice of a single label that is told
_NAN = float("nan")
# images apart
UNSEEN = Similarity(_NAN, _NAN, _NAN, overlap=0.0, information=_NAN, local=_NAN, coverage=0.0)


@dataclass(frozen=True, eq=False)
class Quality:
    """Numbers on the fixed image's grid, each at three stages.

    ``before``: moving image and labels where their headers place them.  ``affine``: where the
    affine does.  ``after``: warped.  Definitions stand in `napari_shmoareg.metrics`.

    Attributes
    ----------
    similarity : stage -> {"ncc", "mse", "nmi", "overlap", "information", "local", "coverage"} ->
    float
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
        """Mean over the labels that both images have (NaN if there is none), or None without
        labels.
        """
        return None if self.dice is None else mean(self.dice[stage])

    @property
    def cautions(self) -> list[str]:
        """Where the labels agree less than before: on average, and single ones; empty without
        labels.
        """
        if self.dice is None:
            return []
        found = []
        means = {stage: mean(self.dice[stage]) for stage in SHOWN_STAGES}
        start = max(("before", "affine"), key=lambda stage: means[stage])
        if means["after"] < means[start] - FELL:
            found.append(
                "The labels agree less than"
                f" {'before' if start == 'before' else 'after the affine alone'}: mean Dice"
                f" {means['before']:.3f} before, {means['affine']:.3f} after the affine,"
                f" {means['after']:.3f} after."
            )
        before, after = self.dice["before"], self.dice["after"]
        lost = sorted(
            (after[label] - before[label], label)
            for label in after
            if after[label] < before[label] - LOST
        )
        if lost:
            named = ", ".join(
                f"{label} ({before[label]:.2f} to {after[label]:.2f})" for _, label in lost[:4]
            )
            more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
            found.append(f"Dice fell by more than {LOST:g} for the labels {named}{more}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file: ``dice.after.mean``, ``dice.after.per_label["17"]`` and so on; may hold
        NaN.
        """
        result: dict[str, Any] = {
            "similarity": {stage: dict(v) for stage, v in self.similarity.items()}
        }
        result["labels"] = self.labels and {
            key: list(found) for key, found in self.labels._asdict().items()
        }
        for name in ("dice", "assd_mm", "hd95_mm"):
            stages = getattr(self, name)
            result[name] = stages and {
                stage: {
                    "mean": mean(values),
                    "per_label": {str(label): v for label, v in values.items()},
                }
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
    similarity = {
        stage: (registration.similarity[stage] or UNSEEN)._asdict() for stage in SHOWN_STAGES
    }
    overlap: PerLabel | None = None
    distance: PerLabel | None = None
    farthest: PerLabel | None = None
    shared: SharedLabels | None = None
    if (
        pair.fixed_labels is not None
        and pair.moving_labels is not None
        and registration.warped_labels is not None
    ):
        before, affine = (warp_volume(pair.moving_labels, pair.fixed.grid, t) for t in transforms)
        before = affine if np.allclose(matrix, np.eye(4)) else before
        labels = dict(zip(SHOWN_STAGES, (before, affine, registration.warped_labels), strict=True))
        shared = SharedLabels.of(pair.moving_labels.labels, pair.fixed_labels.labels)
        truth = pair.fixed_labels.values
        overlap = {
            stage: dice_in_both(volume.values, truth, shared) for stage, volume in labels.items()
        }
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
    """ASSD and HD95 per stage and label; a stage that is the one before it is not measured
    again.
    """
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
