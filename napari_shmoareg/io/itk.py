"""Conversion between our grids (RAS) and SimpleITK's images (LPS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS mm to LPS mm, and back."""


def values_of(image: sitk.Image) -> NDArray:
    """Voxel array of an image: axes i, j, k first; components, if any, last."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    space = range(image.GetDimension())
    last = [image.GetDimension()] if image.GetNumberOfComponentsPerPixel() > 1 else []
    return np.ascontiguousarray(array.transpose([*reversed(space), *last]))


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> NDArray[np.float64]:
    """Voxel index to RAS mm, (4, 4), of the first three axes."""
    n = image.GetDimension()
    if n < 3:
        return np.eye(4)
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (n, n)) * image.GetSpacing())[:3, :3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS @ affine


def image_of(values: NDArray, grid: Grid) -> sitk.Image:
    """An ITK image of values (I, J, K) or vectors (I, J, K, 3); components are left as they are.

    The grid must be representable in ITK (`fits_itk`).
    """
    import SimpleITK as sitk

    axes = (2, 1, 0) if values.ndim == 3 else (2, 1, 0, 3)
    image = sitk.GetImageFromArray(
        np.ascontiguousarray(values.transpose(axes)), isVector=values.ndim == 4
    )
    affine = LPS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / grid.spacing).ravel().tolist())
    return image


def is_orthonormal(grid: Grid) -> bool:
    """Whether the axes are at right angles, as the NIfTI reader of ITK 5.4 checks an sform.

    In single precision, each entry of R R^T to 1e-4.
    """
    directions = (grid.affine[:3, :3] / grid.spacing).astype(np.float32)
    return bool(np.abs(directions @ directions.T - np.eye(3)).max() <= 1e-4)


def fits_itk(grid: Grid) -> bool:
    """Whether ITK and a NIfTI qform can represent a grid to a fraction of a voxel.

    Ours: the nearest axes at right angles move no corner by more than 0.05 voxels. This admits
    headers rounded to four digits.
    """
    return (
        is_orthonormal(grid) or grid.distance(Grid(grid.shape, _straightened_affine(grid))) <= 0.05
    )


def _straightened_affine(grid: Grid) -> NDArray[np.float64]:
    """Affine of a grid with its axes turned to the nearest right angles about its first voxel."""
    left, _, right = np.linalg.svd(grid.affine[:3, :3] / grid.spacing)
    matrix = grid.affine.copy()
    matrix[:3, :3] = (left @ right) * grid.spacing
    return matrix


def orthonormalised(grid: Grid) -> Grid:
    """The nearest grid with axes at right angles; covers the field of view of the sheared one."""
    matrix = _straightened_affine(grid)
    matrix[:3, 3] = 0
    corners = Grid((1, 1, 1), matrix).to_index(grid.corners())
    start = corners.min(axis=0)
    i, j, k = np.ceil(corners.max(axis=0) - start - 1e-6).astype(int)
    matrix[:3, 3] = matrix[:3, :3] @ (start + 0.5)
    return Grid((int(i), int(j), int(k)), matrix)


def reason(error: Exception) -> str:
    """Last line of ITK's message that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no reason given"


def matrix_of(linear: sitk.Transform) -> NDArray[np.float64]:
    """The (4, 4) RAS matrix of a linear ITK transform, computed from four mapped points."""
    points = np.array(
        [
            linear.TransformPoint(p)
            for p in [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = (points[1:] - points[0]).T
    matrix[:3, 3] = points[0]
    return LPS @ matrix @ LPS


def affine_transform(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    """The linear ITK transform (LPS) of a (4, 4) RAS matrix."""
    import SimpleITK as sitk

    lps = LPS @ matrix @ LPS
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(lps[:3, :3].ravel().tolist())
    affine.SetTranslation(lps[:3, 3].tolist())
    return affine
