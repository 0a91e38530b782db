"""Greedy (Yushkevich et al. 2016), by picsl_greedy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.peers.aligned import deform_aligned
from napari_shmoareg.engine.peers.demons import itk_image
from napari_shmoareg.geometry import DisplacementField, Grid, VolumePair

ITERATIONS = "100x50x20"
RADIUS = "2x2x2"  # voxels, of the patch of the normalised cross-correlation


@dataclass(frozen=True)
class Greedy:
    """Greedy's deformable mode after our alignment: NCC of 5x5x5 patches, its own smoothing.

    Ours, as its documentation advises for brains: 100, 50 and 20 iterations at a quarter, half and full
    resolution; smoothing as by default (1.732 voxels over the update, 0.7071 over the field).
    """

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, _deform)


def _deform(fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
    """On images without origin or direction, so that components run along the array's axes."""
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    images = {"fixed": itk_image(fixed, grid), "moving": itk_image(moving, grid)}
    greedy.execute(f"-V 0 -i fixed moving -m NCC {RADIUS} -n {ITERATIONS} -o warp", warp=None, **images)
    vectors = sitk.GetArrayFromImage(greedy["warp"]).transpose(2, 1, 0, 3)
    return np.ascontiguousarray(vectors / np.asarray(grid.spacing))
