"""Reading and writing of image files as Volumes."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.io import dicom, metaimage, nifti, nrrd
from napari_shmoareg.io.files import atomic_write, ending, stem
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
        The image is a label map: whole numbers, resampled by nearest neighbour.
    nan : float, optional
        Value that replaces NaN and infinite voxels. Without it they are read unchanged, and
        functions that cannot use them refuse them.
    channel : int, optional
        Volume of a 4D image or component of a vector image, from 0. Ignored for a 3D image.
    allow_outside : bool
        Allow an NRRD or MetaImage header to name a data file outside its own folder; so does the
        environment variable SHMOAREG_ALLOW_OUTSIDE=1. By default such a header is refused, as it
        could name any file.

    Returns
    -------
    Volume
        With the axis order and data type of the file (float32 if the file scales the integers of an
        image, float64 if float32 would lose precision); RAS mm. DICOM values are slope x stored +
        intercept of each slice, in a type that fits all slices; MONOCHROME1, which concerns the
        display only, changes nothing.

    Raises
    ------
    InputError
        If the file is missing, damaged, of an unknown type, not 3D, in colour, or has no valid
        affine.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    GuessedOrientation
        If the file does not define position and orientation, so that they were assumed.
    AmbiguousOrientation
        If a NIfTI file defines them twice and differently, so that other programs place it
        elsewhere.
    UnreadBytes
        If the file has more data than its header announces.
    DicomWarning
        If files in a DICOM folder do not belong to the scan and were skipped, or the pixels were
        compressed lossily.
    """
    path, series = _find_input(path)
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
    """Voxels and affine of an NRRD or MetaImage file, as `nrrd.load` and `metaimage.load`."""
    kind = nrrd if ending(path) in NRRD_ENDINGS else metaimage
    return kind.load(path, allow_outside=allow_outside)


def read_pair(
    moving: str | Path,
    fixed: str | Path,
    moving_labels: str | Path | None = None,
    fixed_labels: str | Path | None = None,
    fixed_mask: str | Path | None = None,
    *,
    nan: float | None = None,
    channel: int | None = None,
    allow_outside: bool = False,
) -> VolumePair:
    """Read the images to register, with their labels; moving before fixed.

    Parameters
    ----------
    moving, fixed : str or Path
        Images, as for `read_image`.
    moving_labels, fixed_labels : str or Path, optional
        Label maps on the grids of their images.
    fixed_mask : str or Path, optional
        Where the images are compared: voxels that are not 0.  A mask on another grid than the fixed
        image is resampled to it by nearest neighbour, with a warning.
    nan, channel
        As for `read_image`; the channel applies to the images only, as labels have to be 3D.
    allow_outside : bool
        As for `read_image`.

    Raises
    ------
    InputError
        As `read_image`; or if labels are on another grid than their image, the mask is empty, or
        the voxel sizes of the two images differ so much that only a wrong unit explains it.
    """

    def image(path: str | Path) -> Volume:
        return read_image(path, nan=nan, channel=channel, allow_outside=allow_outside)

    def labels(path: str | Path | None) -> Volume | None:
        return (
            None
            if path is None
            else read_image(path, labels=True, nan=nan, allow_outside=allow_outside)
        )

    pair = VolumePair(image(moving), image(fixed), labels(moving_labels), labels(fixed_labels))
    mask = labels(fixed_mask)
    if mask is not None and not mask.grid.same_space(pair.fixed.grid):
        from napari_shmoareg.geometry.resample import resample

        mask = resample(mask, pair.fixed.grid)
        warnings.warn(
            f"The mask '{fixed_mask}' is on another grid than the fixed image: it was resampled to"
            " it by nearest neighbour.",
            UserWarning,
            stacklevel=2,
        )
    return pair if mask is None else replace(pair, fixed_mask=mask)


def write_image(volume: Volume, path: str | Path) -> None:
    """Write a volume as NIfTI, atomically.

    Integers are stored in the smallest widely supported type that fits; float64 stays. Label maps
    get intent 1002.

    Parameters
    ----------
    volume : Volume
    path : str or Path
        Ends in .nii or .nii.gz; an existing file is replaced.

    Raises
    ------
    InputError
        If the ending is another one, the path is not writable, or the disk is full.
    """
    if ending(path) not in (".nii", ".nii.gz"):
        raise InputError(
            f"Images are written as NIfTI: the name '{path}' has to end in .nii or .nii.gz."
        )
    values = storable(volume.values)
    with atomic_write(path, size=values.nbytes) as temporary:
        nifti.write(values, volume.grid, temporary, intent="label" if volume.is_labels else None)


def storable(values: NDArray) -> NDArray:
    """Convert to the smallest integer type, or a float type, that other programs read."""
    if values.dtype.kind == "f":
        return values.astype(np.float64 if values.dtype.itemsize >= 8 else np.float32, copy=False)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    small = next(t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return values.astype(small, copy=False)


def _find_input(path: str | Path) -> tuple[Path, str | None]:
    """Find the file or folder, and the DICOM series if the path names one."""
    series = None
    target = user_path(path)
    if not target.exists() and "#" in str(path):
        name, series = str(path).rsplit("#", 1)
        target = user_path(name)
        if target.exists() and not target.is_dir():
            raise InputError(
                f"{target} is a file; '#SERIES_UID' selects a series of a DICOM folder."
            )
    if not target.exists():
        raise InputError(
            f"There is no file or folder {path}. Check the spelling and the folder you are in."
        )
    if target.is_dir():
        return target, series
    if ending(target) not in (*NIFTI_ENDINGS, *ITK_ENDINGS):
        slice_ = ending(target) in (".dcm", ".ima") or dicom.is_dicom(target)
        hint = " Give the folder that holds all slices of the scan." if slice_ else ""
        raise InputError(
            f"{target} is not of a supported type: {', '.join((*NIFTI_ENDINGS, *ITK_ENDINGS))}, or"
            f" a folder with a DICOM series.{hint}"
        )
    with open_regular(target) as file:
        first = file.read(1)
    if not first:
        raise InputError(f"{target} is empty (0 bytes). Download or copy it again.")
    return target, series


def _one_volume(path: Path, values: NDArray, channel: int | None, labels: bool) -> NDArray:
    """Extract the 3D volume from an array with any number of axes."""
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
            f" its image. Save one of the {number} volumes as a separate file."
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


LABEL_FOLDERS = 5  # folders above a file whose names are looked at
_LABEL_FOLDER = re.compile(
    r"labels?(?:[_-]?(?:tr|ts|va|val|train|test))?|label[_-]?maps?|masks?|(?:d?seg|segmentation)s?"
    r"|ground[_-]?truths?|gts?|derivatives"
)
SAME_VALUE = 0.6  # share of voxels that equal their neighbour


REPORT = "report.json"  # marks a registration folder


@dataclass(frozen=True)
class Contents:
    """Kind of a file and number of its volumes.

    Attributes
    ----------
    kind : {"image", "labels", "displacement"}
        "labels" only if the file itself says so.
    volumes : int
        Number of 3D volumes (time points, channels, components); 1 for a displacement.
    """

    kind: Literal["image", "labels", "displacement"] = "image"
    volumes: int = 1


def inspect_file(path: str | Path) -> Contents:
    """Inspect a file without reading its voxels.

    A file that cannot be opened counts as an image; reading it raises the error.

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
    """Whether a path is a folder that contains report.json."""
    return (user_path(path) / REPORT).is_file()


def image_files(folder: str | Path) -> list[str]:
    """Names of the files in a folder that `read_image` reads, sorted."""
    endings = (*NIFTI_ENDINGS, *ITK_ENDINGS)
    return sorted(
        file.name
        for file in user_path(folder).iterdir()
        if ending(file) in endings and file.is_file()
    )


def is_named_as_labels(path: str | Path) -> bool:
    """Whether a file name suggests labels: ``sub-05_seg.nii.gz``, ``aparc+aseg.mgz``."""
    return _NAMED_LABELS.search(stem(path).lower()) is not None


def lies_with_labels(path: str | Path) -> bool:
    """Whether a folder suggests labels: ``labelsTr/case.nii.gz``, ``derivatives/...``.

    The name of the file is that of its image there; so the values have to be looked at too
    (`looks_like_labels`)."""
    folders = user_path(path).absolute().parent.parts[-LABEL_FOLDERS:]
    return any(_LABEL_FOLDER.fullmatch(folder.lower()) for folder in folders)


def looks_like_labels(values: NDArray) -> bool:
    """Whether values are whole, not negative and form areas of one value, as a label map has.

    Ours: most voxels other than 0 equal the next one along the first axis.  In label maps at least
    8 of 10 do, in images at most 4 (of a resampled CT with its air).
    """
    if not values.size or not values.min() >= 0:  # NaN too
        return False
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        return False
    content = values[:-1] != 0
    return bool(content.any()) and float((values[:-1] == values[1:])[content].mean()) > SAME_VALUE


def _nifti(path: Path) -> Contents:
    try:
        header = nifti.read_header(path)
    except InputError:
        return Contents()
    if header.intent in (_VECTOR, _DISPVECT) and header.shape[3:] == (1, 3):
        return Contents("displacement")
    return Contents("labels" if header.intent == _LABEL else "image", prod(header.shape[3:]))


def _text_header(path: Path) -> Contents:
    """Ours: three floating-point components are a displacement; the formats have no mark for it."""
    try:
        image = (nrrd if ending(path) in NRRD_ENDINGS else metaimage).read_header(path)
    except InputError:
        return Contents()
    if image.shape[3:] == (3,) and image.axes[-1] == 0 and image.dtype.kind == "f":
        return Contents("displacement")
    return Contents("labels" if image.is_labels else "image", prod(image.shape[3:]))
