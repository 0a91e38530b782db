"""Diffeomorphic demons (Vercauteren et al. 2009), by SimpleITK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.peers.aligned import deform_aligned
from napari_shmoareg.geometry import DisplacementField, Grid, VolumePair

if TYPE_CHECKING:
    import SimpleITK as sitk

LEVELS = ((4, 60), (2, 40), (1, 20))  # shrink factor and iterations
SMOOTHING = 1.5  # standard deviation, in voxels of the level, of the Gaussian over the field after each step
FEWEST = 8  # voxels along an axis below which it is not shrunk further


@dataclass(frozen=True)
class Demons:
    """SimpleITK's DiffeomorphicDemonsRegistrationFilter from coarse to fine, after our alignment.

    Ours, as ITK gives no set-up for whole images: shrink factors 4, 2, 1 with 60, 40 and 20 iterations; a
    Gaussian of half the factor (in fine voxels) before shrinking; the field smoothed by 1.5 voxels after each
    iteration, the updates not; steps of at most 2 voxels; the moving histogram matched to the fixed one before
    (256 bins, 16 points, above the mean).
    """

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, _deform)


def _deform(fixed_values: NDArray, moving_values: NDArray, grid: Grid) -> NDArray:
    """On images without origin or direction, so that components run along the array's axes."""
    import SimpleITK as sitk

    fixed, moving = itk_image(fixed_values, grid), itk_image(moving_values, grid)
    moving = sitk.HistogramMatching(moving, fixed, 256, 16, True)
    field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)  # nothing moved yet
    field.CopyInformation(fixed)
    for factor, iterations in LEVELS:
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(SMOOTHING)
        demons.SetMaximumUpdateStepLength(2.0)
        small, other = _shrunk(fixed, factor), _shrunk(moving, factor)
        field = demons.Execute(small, other, _onto(field, small))
    vectors = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)
    return np.ascontiguousarray(vectors / np.asarray(grid.spacing))


def _onto(field: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """The field of a coarser level on a finer grid; beyond the outer voxels that of the nearest."""
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(reference)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return resampler.Execute(field)


def _shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    import SimpleITK as sitk

    factors = [min(factor, max(1, n // FEWEST)) for n in image.GetSize()]
    if max(factors) == 1:
        return image
    variance = [(f / 2 * s) ** 2 if f > 1 else 0.0 for f, s in zip(factors, image.GetSpacing(), strict=True)]
    return sitk.Shrink(sitk.DiscreteGaussian(image, variance), factors)


def itk_image(values: NDArray, grid: Grid) -> sitk.Image:
    """An image of a grid's spacing, without its origin and direction."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0), dtype=np.float32))
    image.SetSpacing([float(s) for s in grid.spacing])
    return image
