"""Image files to Volumes and back: the front door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, InputError, Volume, VolumePair
from napari_shmoareg.io import dicom, itk, nifti
from napari_shmoareg.io.atomic import ending, stem, writing
from napari_shmoareg.io.untrusted import names_input, printable, user_path

NIFTI_ENDINGS = (".nii", ".nii.gz", ".mgh", ".mgz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_INTEGERS = ("u1", "i2", "i4", "u4", "i8", "u8")  # Ours: the first three are read by every program


@names_input
def read_image(
    path: str | Path, *, labels: bool = False, nan: float | None = None, channel: int | None = None
) -> Volume:
    """Read a 3D image or label map.

    Parameters
    ----------
    path : str or Path
        NIfTI (.nii, .nii.gz), MGH (.mgh, .mgz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd),
        or a folder with one DICOM series; ``folder#SERIES_UID`` picks one of several.
    labels : bool
        A label map: whole numbers, carried by nearest neighbour.
    nan : float, optional
        Put in the place of voxels that are NaN or infinite.  Without it they are read as
        they are, and refused by what cannot use them.
    channel : int, optional
        Which volume of a 4D image or component of a vector image, from 0.  A 3D image has
        one only, and this is not looked at.

    Returns
    -------
    Volume
        In the file's own order of axes and its own type of number (float32 where the file
        scales the integers of an image); RAS mm.

    Raises
    ------
    InputError
        If there is no such file, it is damaged, of an unknown type, not 3D, in colour,
        or does not lie properly in the world.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    GuessedPlace
        If the file does not say where its voxels stand, so that a place was assumed.
    """
    path, series = _existing(path)
    if path.is_dir():
        values, affine = dicom.load(path, series)
    elif ending(path) in NIFTI_ENDINGS:
        image, affine = nifti.load(path)
        values = nifti.values_of(path, image, scaled_to=np.float64 if labels else np.float32)
    else:
        values, affine = itk.load(path)
    values = _one_volume(path, values, channel, labels)
    if nan is not None and values.dtype.kind == "f":
        values = np.where(np.isfinite(values), values, values.dtype.type(nan))
    try:
        grid = Grid((values.shape[0], values.shape[1], values.shape[2]), affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Volume(values, grid, name=printable(path.name if path.is_dir() else stem(path)), is_labels=labels)


def read_pair(
    moving: str | Path,
    fixed: str | Path,
    moving_labels: str | Path | None = None,
    fixed_labels: str | Path | None = None,
    *,
    nan: float | None = None,
    channel: int | None = None,
) -> VolumePair:
    """Read what is to be registered; moving before fixed.

    Parameters
    ----------
    moving, fixed : str or Path
        Images, as for `read_image`.
    moving_labels, fixed_labels : str or Path, optional
        Label maps on the grids of their images.
    nan, channel
        As for `read_image`; the channel is that of the two images, as labels have to be 3D.

    Raises
    ------
    InputError
        As `read_image`; or if labels stand on another grid than their image.
    """
    return VolumePair(
        moving=read_image(moving, nan=nan, channel=channel),
        fixed=read_image(fixed, nan=nan, channel=channel),
        moving_labels=None if moving_labels is None else read_image(moving_labels, labels=True, nan=nan),
        fixed_labels=None if fixed_labels is None else read_image(fixed_labels, labels=True, nan=nan),
    )


def write_image(volume: Volume, path: str | Path) -> None:
    """Write a volume as NIfTI, whole or not at all.

    Integers are stored in the smallest common type that holds them; float64 stays.  Labels say
    in their header that they are labels (intent 1002).

    Parameters
    ----------
    volume : Volume
    path : str or Path
        Ends in .nii or .nii.gz; an existing file is replaced.

    Raises
    ------
    InputError
        If the ending is another one, the place is not writable, or the disk is full.
    """
    if ending(path) not in (".nii", ".nii.gz"):
        raise InputError(f"Images are written as NIfTI: the name '{path}' has to end in .nii or .nii.gz.")
    values = storable(volume.values)
    with writing(path, size=values.nbytes) as temporary:
        nifti.write(values, volume.grid, temporary, intent="label" if volume.is_labels else None)


def storable(values: NDArray) -> NDArray:
    """The same numbers in the smallest integer type, or a float type, that other programs read."""
    if values.dtype.kind == "f":
        return values.astype(np.float64 if values.dtype.itemsize >= 8 else np.float32, copy=False)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    small = next(t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return values.astype(small, copy=False)


def _existing(path: str | Path) -> tuple[Path, str | None]:
    """The file or folder meant, and a DICOM series if one was named."""
    series = None
    place = user_path(path)
    if not place.exists() and "#" in str(path):
        name, series = str(path).rsplit("#", 1)
        place = user_path(name)
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; '#SERIES_UID' picks a series of a DICOM folder.")
    if not place.exists():
        raise InputError(f"There is no file or folder {path}. Check the spelling and the folder you are in.")
    if place.is_dir():
        return place, series
    if ending(place) not in (*NIFTI_ENDINGS, *ITK_ENDINGS):
        hint = " Give the folder that holds all slices of the scan." if ending(place) in (".dcm", ".ima") else ""
        raise InputError(
            f"{place} is not of a type that is read here: {', '.join((*NIFTI_ENDINGS, *ITK_ENDINGS))}, or a folder "
            f"with a DICOM series.{hint}"
        )
    try:
        with place.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise InputError(f"{place} cannot be opened: {error.strerror}. Check that you may read it.") from error
    if not first:
        raise InputError(f"{place} is empty (0 bytes). Download or copy it again.")
    return place, series


def _one_volume(path: Path, values: NDArray, channel: int | None, labels: bool) -> NDArray:
    """The 3D volume in an array of any number of axes."""
    shape = values.shape
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim < 3:
        raise InputError(f"{path} has {len(shape)} axes {shape}: a 2D image. SHMoAReg registers 3D volumes.")
    if values.ndim == 3:
        return values
    values = values.reshape(*shape[:3], -1)
    number = values.shape[3]
    if channel is None and labels:
        raise InputError(
            f"{path} has {len(shape)} axes {shape}; labels have to be 3D, one map on the grid of its image. Save one "
            f"of the {number} volumes as a file of its own."
        )
    if channel is None:
        raise InputError(
            f"{path} has {len(shape)} axes {shape}; SHMoAReg registers 3D volumes. Pick one of the {number} with "
            "--channel 0 (in Python: channel=0)."
        )
    if not 0 <= channel < number:
        raise InputError(f"{path} has {number} channels, 0 to {number - 1}; there is no channel {channel}.")
    return np.ascontiguousarray(values[..., channel])
