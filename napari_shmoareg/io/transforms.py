"""Reading and writing of transforms for ITK, 3D Slicer and ANTs.

Vectors are RAS in memory and LPS in files. A vector points from the fixed to the moving point and
is defined on the fixed grid; nothing is negated.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import DisplacementField, Grid, Transform, slabs
from napari_shmoareg.io import itk, nifti
from napari_shmoareg.io.files import atomic_write, display_path, ending, muted_stderr
from napari_shmoareg.io.images import ITK_ENDINGS, load_text_header
from napari_shmoareg.io.streams import check_regular
from napari_shmoareg.io.untrusted import names_input, user_path

if TYPE_CHECKING:
    import SimpleITK as sitk


_PROBE = """
import sys
import SimpleITK as sitk
try:
    sitk.ReadTransform(sys.argv[1])
except (RuntimeError, ValueError, MemoryError) as error:
    sys.stdout.buffer.write(b"refused" + str(error).encode("utf-8", "replace"))
else:
    sys.stdout.write("read")
"""
_TRANSFORM_ENDINGS = (".h5", ".tfm", ".mat", ".txt")
_VECTOR, _DISPVECT = 1007, 1006
_LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)


def write_displacement(field: DisplacementField, path: str | Path) -> None:
    """Write a displacement as NIfTI: (I, J, K, 1, 3), intent 1007 (vector), LPS mm, float32.

    Parameters
    ----------
    field : DisplacementField
        ``transform.total(fixed_grid)`` for the whole transform as one field.
    path : str or Path
        Ends in .nii or .nii.gz.

    Raises
    ------
    InputError
        If the ending is another one, the path is not writable, or the disk is full.

    Warns
    -----
    UserWarning
        If the grid is sheared: ITK and programs built on it refuse such files.
    """
    if ending(path) not in (".nii", ".nii.gz"):
        raise InputError(
            f"A displacement is written as NIfTI: the name '{path}' has to end in .nii or .nii.gz."
        )
    if not itk.fits_itk(field.grid):
        warnings.warn(
            f"The axes of the grid of {Path(path).name} are not at right angles: ITK, 3D Slicer and"
            " ANTs refuse this field. Give them transform.h5, which is written on straightened"
            " axes.",
            UserWarning,
            stacklevel=2,
        )
    with atomic_write(path, size=field.vectors.nbytes) as temporary:
        nifti.write((field.vectors * _LPS)[:, :, :, None], field.grid, temporary, intent="vector")


def write_transform(transform: Transform, path: str | Path, reference: Grid | None = None) -> None:
    """Write an ITK composite of the affine and the field, float64.

    Parameters
    ----------
    transform : Transform
    path : str or Path
        Ends in .h5; .tfm (text, large) works too.
    reference : Grid, optional
        The fixed image's grid, on which the field is sampled; by default the field keeps its own
        grid. Outside the field's grid ITK applies no displacement, whereas ours extends that of the
        edge; on the fixed image's grid both agree for every voxel.

    Raises
    ------
    InputError
        If the ending is another one, the path is not writable, or the disk is full.

    Warns
    -----
    UserWarning
        If the axes of that grid are not at right angles, which ITK requires: the field is resampled
        onto straightened axes.
    """
    import SimpleITK as sitk

    if ending(path) not in (".h5", ".tfm"):
        raise InputError(
            f"A transform is written for ITK: the name '{path}' has to end in .h5 (or .tfm)."
        )
    field = transform.field
    grid = (
        reference
        if reference is not None
        else field.grid
        if field is not None
        else Grid((1, 1, 1), np.eye(4))
    )
    if field is not None and not itk.fits_itk(grid):
        grid = itk.orthonormalised(grid)
        warnings.warn(
            "The axes of the fixed grid are not at right angles, which ITK cannot represent: the"
            f" field in {Path(path).name} was resampled onto straightened axes.",
            UserWarning,
            stacklevel=2,
        )
    parts: list[sitk.Transform] = [itk.affine_transform(transform.affine)]
    if field is not None:
        vectors = field.vectors if grid is field.grid else _sampled(field, grid)
        image = itk.image_of((vectors * _LPS).astype(np.float64), grid)
        parts.append(sitk.DisplacementFieldTransform(image))
    try:
        with atomic_write(path, size=24 * int(np.prod(grid.shape))) as temporary, muted_stderr():
            # The transform added last is applied first: T(x) = A(x + d(x)).
            sitk.WriteTransform(sitk.CompositeTransform(parts), str(temporary))
    except RuntimeError as error:
        raise InputError(
            f"{display_path(path)} could not be written. Check that its disk has space and works,"
            " or choose a path on another disk."
        ) from error


@names_input
def read_transform(path: str | Path) -> Transform:
    """Read a transform from fixed world to moving world.

    Parameters
    ----------
    path : str or Path
        A displacement field (.nii, .nii.gz with intent 1007, LPS, or 1006, RAS; .mha, .nrrd), or an
        ITK transform (.h5, .tfm, .txt, .mat): affine, displacement field, or composite with at most
        one field.

    Returns
    -------
    Transform
        Outside the field's grid the displacement of its edge is extended (ITK: none).

    Raises
    ------
    InputError
        If the file is missing, damaged, or does not contain a transform.
    """
    path = user_path(path)
    if not path.exists():
        raise InputError(
            f"There is no transform file {path}. Check the spelling and the folder you are in."
        )
    check_regular(path)
    if ending(path) in (".nii", ".nii.gz"):
        return Transform(np.eye(4), _nifti_field(path))
    if ending(path) in ITK_ENDINGS:
        vectors, affine = load_text_header(path)
        return Transform(np.eye(4), _field(path, vectors, affine))
    if ending(path) in _TRANSFORM_ENDINGS:
        return _itk_transform(path)
    raise InputError(
        f"{path} is not of a supported transform type: .nii, .nii.gz,"
        f" {', '.join((*ITK_ENDINGS, *_TRANSFORM_ENDINGS))}."
    )


def _sampled(field: DisplacementField, grid: Grid) -> NDArray[np.float32]:
    vectors = np.empty((*grid.shape, 3), dtype=np.float32)
    for part, points in slabs(grid):
        vectors[part] = field.at(points)
    return vectors


def _field(
    path: Path, vectors: NDArray, affine: NDArray[np.float64], signs: NDArray = _LPS
) -> DisplacementField:
    """Displacement field of three components; `signs` convert them to RAS."""
    if vectors.ndim == 5 and vectors.shape[3] == 1:
        vectors = vectors[:, :, :, 0]
    if vectors.ndim != 4 or vectors.shape[3] != 3:
        raise InputError(
            f"{path} has the shape {vectors.shape}; a displacement field of three components per"
            " voxel was expected."
        )
    return DisplacementField(
        vectors * signs, Grid((vectors.shape[0], vectors.shape[1], vectors.shape[2]), affine)
    )


def _nifti_field(path: Path) -> DisplacementField:
    image, affine = nifti.load(path)
    intent = image.intent
    if len(image.shape) != 5 or intent not in (_VECTOR, _DISPVECT):
        raise InputError(
            f"{path} (shape {image.shape}, intent {intent}) is not a displacement field as ITK and"
            " ANTs write it: five axes (i, j, k, 1, 3) and intent 1007 were expected. Convert files"
            " of FSL or Learn2Reg first."
        )
    signs = _LPS if intent == _VECTOR else np.ones(3, dtype=np.float32)  # ITK takes 1006 as RAS
    return _field(path, nifti.values_of(image), affine, signs)


def _itk_transform(path: Path) -> Transform:
    """Read a chain of linear parts with at most one field, as T(x) = A(x + d(x))."""
    import SimpleITK as sitk

    try:
        _probe_in_subprocess(path)
        with muted_stderr():
            whole = sitk.ReadTransform(str(path))
    except (RuntimeError, UnicodeDecodeError) as error:
        if _is_hdf5(path):
            raise InputError(
                f"{path} is damaged or cut short ({path.stat().st_size} bytes), or contains no ITK"
                " transform. Copy it again, or write it again."
            ) from error
        why = itk.reason(error) if isinstance(error, RuntimeError) else "it is not UTF-8 text"
        raise InputError(
            f"{path} is damaged, or not a transform that ITK reads: {why}. (A .mat of FSL is"
            " another format.)"
        ) from error
    matrix, field = np.eye(4), None
    for part in _flatten(whole):  # the last is applied first
        if isinstance(part, sitk.DisplacementFieldTransform):
            if field is not None:
                raise InputError(
                    f"{path} holds two displacement fields; at most one was expected. Compose them"
                    " first."
                )
            image = part.GetDisplacementField()
            field, before = _field(path, itk.values_of(image), itk.affine_of(image)), matrix
            matrix = np.eye(4)
        elif part.GetDimension() == 3 and part.IsLinear():
            matrix = matrix @ itk.matrix_of(part)
        else:
            raise InputError(
                f"{path} contains a {part.GetName()}; only 3D affines and displacement fields are"
                " supported."
            )
    if field is None:
        return Transform(matrix)
    # B(F(C x)) with F(x) = x + d(x) is (BC)(x + C^-1 d(Cx)): the field on the grid C^-1 G, without
    # resampling.
    back = np.linalg.inv(matrix)
    vectors = (
        field.vectors
        if np.allclose(back, np.eye(4))
        else field.vectors @ back[:3, :3].T.astype(np.float32)
    )
    return Transform(
        before @ matrix,
        DisplacementField(vectors, Grid(field.grid.shape, back @ field.grid.affine)),
    )


def _probe_in_subprocess(path: Path) -> None:
    """Test-read a transform in a subprocess: a damaged file can crash the reading process."""
    timeout = 60 + path.stat().st_size / 1e6  # seconds
    command = [sys.executable, "-P", "-c", _PROBE, str(path.absolute())]
    null = subprocess.DEVNULL
    try:
        run = subprocess.run(
            command,
            stdin=null,
            stdout=subprocess.PIPE,
            stderr=null,
            timeout=timeout,
            check=False,
        )
    except OSError:  # no subprocess can be started here: read without the test
        return
    except subprocess.TimeoutExpired:
        why = f"reading it did not end within {timeout:.0f} seconds"
    else:
        if run.stdout.startswith(b"refused"):
            raise RuntimeError(run.stdout[len(b"refused") :].decode("utf-8", "replace"))
        if run.returncode in (0, 1):  # read; or ITK could not be loaded there
            return
        why = "the library that reads it crashes on it"
    raise InputError(
        f"{path} is damaged ({path.stat().st_size} bytes): {why}. Copy it again, or write it again."
    )


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _flatten(transform: Any) -> list[Any]:
    """Parts of a nested composite, each as its own type."""
    import SimpleITK as sitk

    part = transform.Downcast()
    if not isinstance(part, sitk.CompositeTransform):
        return [part]
    return [
        leaf
        for n in range(part.GetNumberOfTransforms())
        for leaf in _flatten(part.GetNthTransform(n))
    ]
