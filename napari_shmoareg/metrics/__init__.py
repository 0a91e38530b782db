"""Overlap, surface distance and folding metrics: one name per definition.

Sec. IV-D.  Papers and programs use the same names for different definitions, so each function
documents its source.  In the reports of this package:

dice
    2 |A and B| / (|A| + |B|) per label, on voxels.
assd, hd95
    Surface voxels, pooled; the larger directed 95th percentile.  As MONAI.  `assd` is NOT the
    "ASSD" of Table I, which behaves like `avd_th` or `assd_surfel`: do not compare it with that
    table.
folding
    Percentage of all voxels whose Jacobian determinant is at most 0.
sdlogj
    Standard deviation of log(det), over all voxels.

For comparison with other programs: `assd_surfel`, `hd95_surfel`, `avd_th`, `hd95_pooled`,
`folding_interior`, `folding_strict`, `sdlogj_l2r`.

A label in neither map is skipped; in one map only, its Dice is 0 and its distances are NaN
(excluded from `mean`).  The mean Dice of reports is over the labels that both images of a pair have
(`dice_in_both`).  The mean over no labels is NaN."""

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
