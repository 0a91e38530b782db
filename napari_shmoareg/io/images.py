"""Image files to Volumes and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.io import dicom, metaimage, nifti, nrrd
from napari_shmoareg.io.files import ending, stem, writing
from napari_shmoareg.io.orientation import check_lengths
from napari_shmoareg.io.streams import open_regular
from napari_shmoareg.io.untrusted import names_input, printable, user_path

NIFTI_ENDINGS = (".nii", ".nii.gz", ".mgh", ".mgz")
NRRD_ENDINGS = (".nrrd", ".nhdr")
ITK_ENDINGS = (*NRRD_ENDINGS, ".mha", ".mhd")
_INTEGERS = ("u1", "i2", "i4", "u4", "i8", "u8")  # Ours: the first three are read by every program


@names_input
def read_image(
    path: str | Path,
    *,
    labels: bool = False,
    nan: float | None = None,
    channel: int | None = None,
    allow_outside: bool = False,
) -> Volume:
    """Read a 3D image or label map.

    Parameters
    ----------
    path : str or Path
        NIfTI (.nii, .nii.gz), MGH (.mgh, .mgz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd),
        or a folder with one DICOM series, of single-frame or multi-frame files;
        ``folder#SERIES_UID`` picks one of several, ``folder#SERIES_UID/2`` the second volume of
        a series that holds several (echoes, stacks, time points, b-values).
    labels : bool
        A label map: whole numbers, carried by nearest neighbour.
    nan : float, optional
        Put in the place of voxels that are NaN or infinite.  Without it they are read as
        they are, and refused by what cannot use them.
    channel : int, optional
        Which volume of a 4D image or component of a vector image, from 0.  A 3D image has
        one only, and this is not looked at.
    allow_outside : bool
        Open a data file outside the folder of the NRRD or MetaImage header that names it; so
        does the environment variable SHMOAREG_ALLOW_OUTSIDE=1.  Without, such a header is
        refused, as it could name any file.

    Returns
    -------
    Volume
        In the file's own order of axes and its own type of number (float32 where the file
        scales the integers of an image, float64 where float32 would lose them); RAS mm.  Of
        DICOM, the values are slope x stored + intercept of each slice, in a type that holds all
        slices; MONOCHROME1, which is about how values are shown, changes nothing.

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
    AmbiguousPlace
        If a NIfTI file says it twice and differently, so that other programs put it elsewhere.
    UnreadBytes
        If the file holds more than its header announces.
    DicomWarning
        If a DICOM folder holds files that are no part of the scan, which were skipped, or pixels
        that were compressed with loss.
    """
    path, series = _existing(path)
    if path.is_dir():
        values, affine = dicom.load(path, series)
    elif ending(path) in NIFTI_ENDINGS:
        image, affine = nifti.load(path)
        values = nifti.values_of(image, scaled_to=np.float64 if labels else np.float32)
        del image
    else:
        values, affine = load_text_header(path, allow_outside=allow_outside)
    values = _one_volume(path, values, channel, labels)
    if nan is not None and values.dtype.kind == "f":
        values = np.where(np.isfinite(values), values, values.dtype.type(nan))
    try:
        grid = Grid((values.shape[0], values.shape[1], values.shape[2]), affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_lengths(path, grid)
    return Volume(
        values, grid, name=printable(path.name if path.is_dir() else stem(path)), is_labels=labels
    )


def load_text_header(
    path: Path, *, allow_outside: bool = False
) -> tuple[NDArray, NDArray[np.float64]]:
    """Voxels and affine of an NRRD or MetaImage file, as `nrrd.load` and `metaimage.load` give
    them.
    """
    kind = nrrd if ending(path) in NRRD_ENDINGS else metaimage
    return kind.load(path, allow_outside=allow_outside)


def read_pair(
    moving: str | Path,
    fixed: str | Path,
    moving_labels: str | Path | None = None,
    fixed_labels: str | Path | None = None,
    *,
    nan: float | None = None,
    channel: int | None = None,
    allow_outside: bool = False,
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
    allow_outside : bool
        As for `read_image`.

    Raises
    ------
    InputError
        As `read_image`; or if labels stand on another grid than their image, or the voxels of
        the two images differ in size as only a wrong unit explains.
    """

    def image(path: str | Path) -> Volume:
        return read_image(path, nan=nan, channel=channel, allow_outside=allow_outside)

    def labels(path: str | Path | None) -> Volume | None:
        return (
            None
            if path is None
            else read_image(path, labels=True, nan=nan, allow_outside=allow_outside)
        )

    return VolumePair(image(moving), image(fixed), labels(moving_labels), labels(fixed_labels))


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
        raise InputError(
            f"Images are written as NIfTI: the name '{path}' has to end in .nii or .nii.gz."
        )
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
        raise InputError(
            f"There is no file or folder {path}. Check the spelling and the folder you are in."
        )
    if place.is_dir():
        return place, series
    if ending(place) not in (*NIFTI_ENDINGS, *ITK_ENDINGS):
        slice_ = ending(place) in (".dcm", ".ima") or dicom.is_dicom(place)
        hint = " Give the folder that holds all slices of the scan." if slice_ else ""
        raise InputError(
            f"{place} is not of a type that is read here:"
            f" {', '.join((*NIFTI_ENDINGS, *ITK_ENDINGS))}, or a folder with a DICOM series.{hint}"
        )
    with open_regular(place) as file:
        first = file.read(1)
    if not first:
        raise InputError(f"{place} is empty (0 bytes). Download or copy it again.")
    return place, series


def _one_volume(path: Path, values: NDArray, channel: int | None, labels: bool) -> NDArray:
    """The 3D volume in an array of any number of axes."""
    shape = values.shape
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim < 3:
        raise InputError(
            f"{path} has {len(shape)} axes {shape}: a 2D image. SHMoAReg registers 3D volumes."
        )
    if values.ndim == 3:
        return values
    values = values.reshape(*shape[:3], -1)
    number = values.shape[3]
    if channel is None and labels:
        raise InputError(
            f"{path} has {len(shape)} axes {shape}; labels have to be 3D, one map on the grid of"
            f" its image. Save one of the {number} volumes as a file of its own."
        )
    if channel is None:
        raise InputError(
            f"{path} has {len(shape)} axes {shape}; SHMoAReg registers 3D volumes.",
            remedy=f"Pick one of the {number} with {{channel:0}}.",
        )
    if not 0 <= channel < number:
        raise InputError(
            f"{path} has {number} channels, 0 to {number - 1}; there is no channel {channel}."
        )
    return np.ascontiguousarray(values[..., channel])


_LABEL, _DISPVECT, _VECTOR = 1002, 1006, 1007  # intents of NIfTI
_NAMED_LABELS = re.compile(
    r"(?:^|[^a-z])(?:d?seg(?:mentation)?s?|label(?:["
    r" _-]?map)?s?|masks?|aseg|aparc|wmparc|parc(?:ellation)?s?)(?![a-z])"
)


REPORT = "report.json"  # by which a registration folder is known


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes
    ----------
    kind : {"image", "labels", "displacement"}
        Labels only where the file itself says so.
    volumes : int
        How many 3D volumes: time points, channels, components; 1 for a displacement.
    """

    kind: Literal["image", "labels", "displacement"] = "image"
    volumes: int = 1


def look(path: str | Path) -> Contents:
    """Look into a file without reading its voxels.

    What cannot be opened counts as an image: reading it will say what is wrong.

    Parameters
    ----------
    path : str or Path
        As for `read_image`.
    """
    path = user_path(path)
    if path.is_file() and ending(path) in NIFTI_ENDINGS:
        return _nifti(path)
    if path.is_file() and ending(path) in ITK_ENDINGS:
        return _text_header(path)
    return Contents()


def is_registration_folder(path: str | Path) -> bool:
    """Whether a path is a folder with a report.json."""
    return (user_path(path) / REPORT).is_file()


def image_files(folder: str | Path) -> list[str]:
    """Names of the files in a folder that `read_image` reads, sorted."""
    known = (*NIFTI_ENDINGS, *ITK_ENDINGS)
    return sorted(
        file.name
        for file in user_path(folder).iterdir()
        if ending(file) in known and file.is_file()
    )


def is_named_as_labels(path: str | Path) -> bool:
    """Whether a name says that it is of labels: ``sub-05_seg.nii.gz``, ``aparc+aseg.mgz``,
    ``liver_mask.nii``.
    """
    return _NAMED_LABELS.search(stem(path).lower()) is not None


def _nifti(path: Path) -> Contents:
    try:
        header = nifti.look(path)
    except InputError:
        return Contents()
    if header.intent in (_VECTOR, _DISPVECT) and header.shape[3:] == (1, 3):
        return Contents("displacement")
    return Contents("labels" if header.intent == _LABEL else "image", prod(header.shape[3:]))


def _text_header(path: Path) -> Contents:
    """Ours: three components of floating point are a displacement; these formats have no other sign
    for one.
    """
    try:
        image = (nrrd if ending(path) in NRRD_ENDINGS else metaimage).look(path)
    except InputError:
        return Contents()
    if image.shape[3:] == (3,) and image.axes[-1] == 0 and image.dtype.kind == "f":
        return Contents("displacement")
    return Contents("labels" if image.is_labels else "image", prod(image.shape[3:]))
