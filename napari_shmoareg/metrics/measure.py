"""Metrics of a registration: before, after the affine, after the deformation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg import metrics
from napari_shmoareg.geometry import (
    DisplacementField,
    LabelNames,
    Transform,
    Volume,
    VolumePair,
    warp_volume,
)
from napari_shmoareg.metrics.metrics import (
    SharedLabels,
    dice_in_both,
    folding,
    mean,
    sdlogj,
)
from napari_shmoareg.registration.register import Registration
from napari_shmoareg.registration.similarity import Similarity, compare_images

_NAN = float("nan")
STAGES = ("start", "affine", "after")
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


class Measure(NamedTuple):
    """Heading, number format and definition of a table column.

    Attributes
    ----------
    words, form : str
        Heading, and format of the numbers.
    better : {1, -1, 0}
        1 if larger is better, -1 if smaller is better, 0 otherwise.
    definition : str
        Which of the definitions with this name is used.
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
    "ncc": Measure(
        "NCC", ".4f", 1, "correlation of the intensities in the overlap of the fields of view"
    ),
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
        "of the method alone, images in memory; includes its alignment, not reading and scoring",
    ),
    "memory_mib": Measure(
        "memory, MiB", ".0f", -1, "peak memory of the process of the method until it finished"
    ),
}
"""All metrics, in the order of the tables."""

PER_LABEL = ("dice", "assd_mm", "hd95_mm")
OTHER_PER_LABEL = ("assd_surfel_mm", "hd95_surfel_mm", "hd95_pooled_mm", "avd_th_mm")
OTHER_OF_MAP = ("folding_interior_percent", "folding_strict_percent", "sdlogj_l2r")
OF_MAP = ("folding_percent", "sdlogj", *OTHER_OF_MAP)


def selected(*, surface: bool = True, definitions: bool = False) -> tuple[str, ...]:
    """Select names of metrics: Dice, landmarks, correlation, folding, SDlogJ, and optional ones.

    Parameters
    ----------
    surface : bool
        ASSD and HD95, which take seconds for a whole brain.
    definitions : bool
        The alternative definitions of these metrics.
    """
    names: tuple[str, ...] = ("dice", "landmark_mm", "ncc", "folding_percent", "sdlogj")
    if surface:
        names += PER_LABEL[1:] + (OTHER_PER_LABEL if definitions else ())
    return names + (OTHER_OF_MAP if definitions else ())


class MethodResult(NamedTuple):
    """Result of a method for a pair.

    Attributes
    ----------
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    affine : (4, 4) array or None
        Alignment of the method, fixed world to moving world, if it has one.
    warnings : tuple of str
    deforming_seconds : float or None
        Time of network and refinement alone.
    """

    displacement: DisplacementField
    affine: NDArray[np.float64] | None = None
    warnings: tuple[str, ...] = ()
    deforming_seconds: float | None = None


Method = Callable[[VolumePair], MethodResult]


def measure_pair(
    pair: VolumePair, found: MethodResult, measures: Collection[str], points: Points | None = None
) -> dict[str, Any]:
    """Compute the metrics of a pair at each stage, on the fixed image's own grid.

    Parameters
    ----------
    pair : VolumePair
    found : MethodResult
    measures : collection of str
        Names of `MEASURES`.
    points : (fixed, moving), each (n, 3), mm RAS, optional
        Corresponding landmarks.

    Returns
    -------
    dict of stage to {"means": measure -> float, "labels": label -> measure -> float}
        Each as from `measure_field`; "affine" only if the method has an affine.  Folding and SDlogJ
        only at the last stage.
    """
    grid = pair.fixed.grid
    rigid = [name for name in measures if name not in OF_MAP]
    start = Transform(np.eye(4)).total(grid)
    stages = {"start": measure_field(pair, start, rigid, points)}
    if found.affine is not None:
        if np.allclose(found.affine, np.eye(4)):
            stages["affine"] = stages["start"]
        else:
            aligned = Transform(found.affine).total(grid)
            stages["affine"] = measure_field(pair, aligned, rigid, points)
    return stages | {"after": measure_field(pair, found.displacement, measures, points)}


def measure_field(
    pair: VolumePair,
    displacement: DisplacementField,
    measures: Collection[str],
    points: Points | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a displacement from any method.

    Parameters
    ----------
    pair : VolumePair
        If both images have labels, they are warped by nearest neighbour in one interpolation.
    displacement : DisplacementField
        The whole transform on the fixed grid, mm RAS.
    measures : collection of str
        Names of `MEASURES`; those without the needed data are skipped.
    points : (fixed, moving), each (n, 3), mm RAS, optional
        Corresponding landmarks.

    Returns
    -------
    {"means": measure -> float, "labels": label -> measure -> float}
        Means over the labels that both images have and that have a value; NaN without any.
        Folding and SDlogJ are of the whole transform, including the affine.
    """
    labels: dict[int, dict[str, float]] = {}
    means: dict[str, float] = {}
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        warped, shared = displacement.warp(pair.moving_labels).values, labels_of(pair)
        spacing = pair.fixed.grid.spacing
        labels = measure_labels(warped, pair.fixed_labels.values, spacing, shared, measures)
        names = dict.fromkeys(name for values in labels.values() for name in values)
        means = {
            name: mean({label: labels[label].get(name, _NAN) for label in shared.both})
            for name in names or ["dice"]
        }
    if points is not None and "landmark_mm" in measures:
        fixed, moving = points
        means["landmark_mm"] = float(
            np.linalg.norm(fixed + displacement.at(fixed) - moving, axis=1).mean()
        )
    if "ncc" in measures:
        similarity = compare_images(pair, Transform(np.eye(4), displacement))
        means["ncc"] = _NAN if similarity is None else similarity.ncc
    if any(name in OF_MAP for name in measures):
        jacobian = displacement.jacobian()
        of_map: dict[str, Callable[[], float]] = {
            "folding_percent": lambda: folding(jacobian),
            "sdlogj": lambda: sdlogj(jacobian),
            "folding_interior_percent": lambda: metrics.folding_interior(jacobian),
            "folding_strict_percent": lambda: metrics.folding_strict(
                displacement.to_voxels()[0].numpy()
            ),
            "sdlogj_l2r": lambda: metrics.sdlogj_l2r(jacobian),
        }
        means |= {name: of_map[name]() for name in OF_MAP if name in measures}
    return {"means": means, "labels": labels}


def measure_labels(
    warped: NDArray,
    truth: NDArray,
    spacing: Sequence[float],
    shared: SharedLabels,
    measures: Collection[str],
) -> dict[int, dict[str, float]]:
    """Compute the metrics per label, those of `PER_LABEL` and `OTHER_PER_LABEL`.

    Parameters
    ----------
    warped, truth : (I, J, K) integer arrays
        The warped moving labels and the fixed labels.
    spacing : 3 float
        mm.
    shared : SharedLabels
    measures : collection of str

    Returns
    -------
    dict of label to measure to float
        NaN for a label of only one image; no distances for a label in neither map.
    """
    found = {label: {"dice": value} for label, value in dice_in_both(warped, truth, shared).items()}
    functions: dict[Callable[..., Any], tuple[str, ...]] = {
        metrics.surface_distances: ("assd_mm", "hd95_mm", "hd95_pooled_mm"),
        metrics.surfel_distances: ("assd_surfel_mm", "hd95_surfel_mm"),
        metrics.avd_th: ("avd_th_mm",),
    }
    for function, names in functions.items():
        chosen = [name for name in names if name in measures]
        for label, values in function(warped, truth, spacing).items() if chosen else ():
            row = found.setdefault(label, {})
            for name in chosen:
                row[name] = values[name.removesuffix("_mm")] if isinstance(values, dict) else values
    return found


def labels_of(pair: VolumePair) -> metrics.SharedLabels:
    """Return the labels of both images of a pair and of only one; empty without labels."""
    return metrics.SharedLabels.of(
        *([] if v is None else v.labels for v in (pair.moving_labels, pair.fixed_labels))
    )


def pair_rows(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build the rows of a case in the table of pairs: one per stage, or one with its error.

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
    """Build the rows of a case in the table of labels: one per stage and label.

    "in" names the images that have the label.
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
    """Return the metrics that occur in any row, in the order of `MEASURES`."""
    return [name for name in MEASURES if any(row.get(name) is not None for row in rows)]


SHOWN_STAGES = ("before", "affine", "after")
FELL = 0.01  # loss of mean Dice that is reported
LOST = 0.1  # loss of Dice of a single label that is reported
# of images that do not overlap
NO_OVERLAP = Similarity(_NAN, _NAN, _NAN, overlap=0.0, information=_NAN, local=_NAN, coverage=0.0)


@dataclass(frozen=True, eq=False)
class Quality:
    """Metrics on the fixed image's grid at three stages.

    ``before``: moving image and labels positioned by their headers.  ``affine``: by the affine.
    ``after``: warped.  See `napari_shmoareg.metrics` for definitions.

    Attributes
    ----------
    similarity : stage -> {"ncc", "mse", "nmi", "overlap", "information", "local", "coverage"} ->
    float
        As `Registration.similarity`; NaN if the images do not overlap.
    dice, assd_mm, hd95_mm : stage -> label -> float, or None
        None unless both images have labels.  NaN for a label of only one image.
    jacobian : {"min", "max", "mean", "sdlogj", "folding_percent"} -> float
        Of the deformation, without the affine.
    displacement_mm : {"mean", "max"} -> float
        Length of the whole transform's displacement.
    labels : SharedLabels or None
        Labels of both images and of only one.
    names : LabelNames
        Names of the labels of both images.
    conflicts : tuple of int
        Labels that the two images name differently.
    """

    similarity: Mapping[str, Mapping[str, float]]
    dice: Mapping[str, Mapping[int, float]] | None
    assd_mm: Mapping[str, Mapping[int, float]] | None
    hd95_mm: Mapping[str, Mapping[int, float]] | None
    jacobian: Mapping[str, float]
    displacement_mm: Mapping[str, float]
    labels: SharedLabels | None = None
    names: LabelNames = field(default_factory=LabelNames)
    conflicts: tuple[int, ...] = ()

    def mean_dice(self, stage: str) -> float | None:
        """Return the mean over the common labels (NaN if none), or None without labels."""
        return None if self.dice is None else mean(self.dice[stage])

    @property
    def warnings(self) -> list[str]:
        """Warnings about different names of a label, and about lower Dice, on average and of single
        labels; empty without labels.
        """
        if self.dice is None:
            return []
        found = []
        if self.conflicts:
            named = ", ".join(map(self.names.describe, self.conflicts[:4]))
            more = f" and {len(self.conflicts) - 4} more" if len(self.conflicts) > 4 else ""
            found.append(
                "The moving and the fixed labels have different names for the same number, so that"
                f" their overlap may mean nothing: {named}{more}."
            )
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
                f"{self.names.describe(label)} ({before[label]:.2f} to {after[label]:.2f})"
                for _, label in lost[:4]
            )
            more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
            found.append(f"Dice fell by more than {LOST:g} for the labels {named}{more}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, such as ``dice.after.per_label["17"]``; may contain NaN."""
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
        result["label_names"] = {str(label): name for label, name in self.names.names.items()}
        result["label_names_from"] = self.names.source
        return result | {
            "folding_percent": self.jacobian["folding_percent"],
            "jacobian": dict(self.jacobian),
            "displacement_mm": dict(self.displacement_mm),
        }


def measure(registration: Registration) -> Quality:
    """Compute the metrics of a registration.

    Similarities and folding; overlap and surface distances per label if both images have labels (a
    few seconds for 36 labels of a whole brain at 1 mm).
    """
    pair, matrix = registration.pair, registration.alignment.matrix
    transforms = (Transform(np.eye(4)), Transform(matrix))
    similarity = {
        stage: (registration.similarity[stage] or NO_OVERLAP)._asdict() for stage in SHOWN_STAGES
    }
    tables: dict[str, dict[str, dict[int, float]]] = {}
    shared: SharedLabels | None = None
    names, conflicts = pair.label_names, list[int]()
    if (
        pair.fixed_labels is not None
        and pair.moving_labels is not None
        and registration.warped_labels is not None
    ):
        before, affine = (warp_volume(pair.moving_labels, pair.fixed.grid, t) for t in transforms)
        before = affine if np.allclose(matrix, np.eye(4)) else before
        warped = dict(zip(SHOWN_STAGES, (before, affine, registration.warped_labels), strict=True))
        shared = labels_of(pair)
        names = names.within((*shared.both, *shared.missing))
        conflicts = pair.moving_labels.label_names.conflicts(pair.fixed_labels.label_names)
        tables = _stage_tables(warped, pair.fixed_labels, shared)
    determinant = registration.jacobian.values
    length = np.linalg.norm(registration.displacement.vectors, axis=-1)
    return Quality(
        similarity=similarity,
        dice=tables.get("dice"),
        assd_mm=tables.get("assd_mm"),
        hd95_mm=tables.get("hd95_mm"),
        jacobian={
            "min": float(determinant.min()),
            "max": float(determinant.max()),
            "mean": float(determinant.mean(dtype=np.float64)),
            "sdlogj": sdlogj(determinant),
            "folding_percent": folding(determinant),
        },
        displacement_mm={"mean": float(length.mean(dtype=np.float64)), "max": float(length.max())},
        labels=shared,
        names=names,
        conflicts=() if shared is None else tuple(n for n in shared.both if n in conflicts),
    )


def _stage_tables(
    warped: Mapping[str, Volume], truth: Volume, shared: SharedLabels
) -> dict[str, dict[str, dict[int, float]]]:
    """Map metric, stage and label to value; equal consecutive stages are computed once."""
    tables: dict[str, dict[str, dict[int, float]]] = {name: {} for name in PER_LABEL}
    last: Volume | None = None
    rows: dict[int, dict[str, float]] = {}
    for stage, volume in warped.items():
        if volume is not last:
            last, spacing = volume, truth.grid.spacing
            rows = measure_labels(volume.values, truth.values, spacing, shared, PER_LABEL)
        for name, stages in tables.items():
            stages[stage] = {label: row[name] for label, row in rows.items() if name in row}
    return tables
