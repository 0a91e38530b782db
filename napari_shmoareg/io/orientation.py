"""Files that do not say where their voxels stand: one rule and one wording for every format.

A place that was guessed is warned about; where even the spacing is unknown, mm are unknown,
and the file is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from napari_shmoareg.geometry import InputError

_ANATOMICAL = re.compile(
    r"(right-anterior-superior|left-anterior-superior|left-posterior-superior)(-time)?|(ras|las|lps)t?"
)
_LAST_LINE = "elementdatafile"


class GuessedPlace(UserWarning):
    """A file does not say where its voxels stand, and a place was assumed."""


def warn_guessed(path: Path, missing: str, axes: str) -> None:
    """Warn that a place was assumed.

    Parameters
    ----------
    path : Path
    missing : str
        What the header lacks.
    axes : str
        Where the three axes of the assumed grid run to, and at what spacing if that was assumed too.
    """
    warnings.warn(
        f"'{path}' does not say where its voxels stand ({missing}); a grid whose axes run {axes} was assumed, so left "
        "and right and mm may be wrong. Export the image again with its orientation, or compare it with another one in "
        "a viewer before you trust the result.",
        GuessedPlace,
        stacklevel=3,
    )


def check_spacing(path: Path, spacing: Iterable[float]) -> None:
    """Refuse a spacing as stored that is 0 or not a number.

    Raises
    ------
    InputError
        If a number is 0, NaN or infinite.
    """
    numbers = tuple(float(s) for s in spacing)
    if not (np.isfinite(numbers).all() and np.all(np.array(numbers) != 0)):
        raise InputError(
            f"{path} has the voxel spacing {numbers} mm: every axis needs a spacing above 0. Correct the header, or "
            "export the image again."
        )


def header_fields(path: Path) -> dict[str, str]:
    """The fields of an NRRD or MetaImage header, names in lower case; empty for other files."""
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    if not nrrd and path.suffix.lower() not in (".mha", ".mhd"):
        return {}
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while raw := file.readline(2**16):
            line = raw.decode("latin-1").strip()
            if nrrd and not line:
                break
            name, _, value = line.partition(":" if nrrd else "=")
            if not value.startswith("="):  # a key of NRRD that means nothing to its format
                fields[name.strip().lower()] = value.strip()
            if not nrrd and name.strip().lower() == _LAST_LINE:
                break
    return fields


def check_header(path: Path, fields: Mapping[str, str]) -> None:
    """Refuse an NRRD or MetaImage file of 3D voxels without a spacing; warn where it has no direction.

    Raises
    ------
    InputError
        If the header holds no spacing.

    Warns
    -----
    GuessedPlace
        If it holds no direction, or does not say what its directions relate to.
    """
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        directions = re.findall(r"\((?![^)]*nan)[^)]*\)", fields.get("space directions", "").lower())
        spacings = [s for s in numbers_of(fields.get("spacings", "")) if np.isfinite(s)]
        if len(directions) < 3 and len(spacings) < 3:
            raise _no_spacing(path, "no 'space directions' and no 'spacings'", "spacings: 1 1 1")
        space = fields.get("space", "").lower()
        if len(directions) < 3:
            warn_guessed(path, "no 'space directions' in its header", "to the left, the back and up")
        elif not _ANATOMICAL.fullmatch(space):
            missing = f"its 'space' is '{space}'" if space else "no 'space' in its header"
            warn_guessed(path, missing, "as in the space left-posterior-superior")
    elif path.suffix.lower() in (".mha", ".mhd"):
        if not {"elementspacing", "elementsize"} & set(fields):
            raise _no_spacing(path, "no ElementSpacing", "ElementSpacing = 1 1 1")
        if not {"transformmatrix", "rotation", "orientation"} & set(fields):
            warn_guessed(path, "no TransformMatrix in its header", "to the left, the back and up")


def numbers_of(text: str) -> list[float]:
    """The numbers in a field of a header; what is none counts as NaN."""
    numbers = []
    for word in text.split():
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(float("nan"))
    return numbers


def _no_spacing(path: Path, missing: str, line: str) -> InputError:
    return InputError(
        f"'{path}' does not say how far apart its voxels stand ({missing} in its header), so nothing can be measured "
        f"in mm. Export the image again with its spacing, or write it into the header, such as '{line}' for 1 mm."
    )
