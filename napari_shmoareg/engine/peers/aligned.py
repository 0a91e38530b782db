"""The common ground of peers that deform only: our alignment before them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.typing import NDArray

from napari_shmoareg.engine.affine import align
from napari_shmoareg.geometry import DisplacementField, Grid, VolumePair
from napari_shmoareg.geometry.resample import resample


def deform_aligned(pair: VolumePair, deform: Callable[[NDArray, NDArray, Grid], NDArray]) -> DisplacementField:
    """Align a pair, deform the moving image on the fixed grid, and compose the two.

    Parameters
    ----------
    pair : VolumePair
    deform : callable
        Given fixed and aligned moving values, both (I, J, K) float32, and their grid; gives the
        displacement (I, J, K, 3) in voxels of it, component c along axis c: the moving voxel is read
        at p + u(p).

    Returns
    -------
    DisplacementField
        A(x + d(x)) - x on the fixed grid.
    """
    grid, matrix = pair.fixed.grid, align(pair, "auto").matrix
    moving = resample(pair.moving, grid, world_map=matrix).values
    voxels = torch.from_numpy(deform(pair.fixed.values.astype("float32"), moving, grid)).permute(3, 0, 1, 2)
    return DisplacementField.from_voxels(voxels[None], grid).after(matrix)
