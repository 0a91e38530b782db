"""Overlap, surface distance, folding: one name per definition.

Sec. IV-D.  Papers and programs use the same words for different numbers, so each function says
whose number it is.  What stands in the reports of this package:

dice
    2 |A and B| / (|A| + |B|) per label, on voxels.
assd, hd95
    Surface voxels, pooled; the larger directed 95th percentile.  As MONAI.  `assd` is NOT the
    "ASSD" of Table I, which behaves like `avd_th` or `assd_surfel`: never set it beside that table.
folding
    Percentage of all voxels whose Jacobian determinant is at most 0.
sdlogj
    Standard deviation of log(det), over all voxels.

Beside them, so that numbers of other programs can be compared: `assd_surfel`, `hd95_surfel`,
`avd_th`, `hd95_pooled`, `folding_interior`, `folding_strict`, `sdlogj_l2r`.

A label that is in neither map is skipped; in one only: Dice 0, distances NaN (left out of `mean`).
Reports take their mean Dice over the labels that both images of a pair have (`dice_in_both`).  Two
empty maps have no labels, and the mean over none is NaN."""

from napari_shmoareg.metrics.metrics import (
    SharedLabels,
    assd,
    assd_surfel,
    avd_th,
    dice,
    dice_in_both,
    folding,
    folding_interior,
    folding_strict,
    hd95,
    hd95_pooled,
    hd95_surfel,
    mean,
    sdlogj,
    sdlogj_l2r,
    surface,
    surface_distances,
    surfel_distances,
)

__all__ = [
    "SharedLabels",
    "assd",
    "assd_surfel",
    "avd_th",
    "dice",
    "dice_in_both",
    "folding",
    "folding_interior",
    "folding_strict",
    "hd95",
    "hd95_pooled",
    "hd95_surfel",
    "mean",
    "sdlogj",
    "sdlogj_l2r",
    "surface",
    "surface_distances",
    "surfel_distances",
]
