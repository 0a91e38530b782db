"""What an image file holds, by its header and its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import metaimage, nifti, nrrd
from napari_shmoareg.io.atomic import ending, stem
from napari_shmoareg.io.images import ITK_ENDINGS, NIFTI_ENDINGS, NRRD_ENDINGS
from napari_shmoareg.io.untrusted import user_path

_LABEL, _DISPVECT, _VECTOR = 1002, 1006, 1007  # intents of NIfTI
_NAMED_LABELS = re.compile(
    r"(?:^|[^a-z])(?:d?seg(?:mentation)?s?|label(?:[ _-]?map)?s?|masks?|aseg|aparc|wmparc|parc(?:ellation)?s?)(?![a-z])"
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
    return sorted(file.name for file in user_path(folder).iterdir() if ending(file) in known and file.is_file())


def is_named_as_labels(path: str | Path) -> bool:
    """Whether a name says that it is of labels: ``sub-05_seg.nii.gz``, ``aparc+aseg.mgz``, ``liver_mask.nii``."""
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
    """Ours: three components of floating point are a displacement; these formats have no other sign for one."""
    try:
        image = (nrrd if ending(path) in NRRD_ENDINGS else metaimage).look(path)
    except InputError:
        return Contents()
    if image.shape[3:] == (3,) and image.axes[-1] == 0 and image.dtype.kind == "f":
        return Contents("displacement")
    return Contents("labels" if image.is_labels else "image", prod(image.shape[3:]))
