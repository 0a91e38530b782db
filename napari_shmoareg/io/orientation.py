"""Files that do not say where their voxels stand: one rule and one wording for every format.

A place that was guessed is warned about; where even the spacing is unknown, mm are unknown,
and the file is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid

_UNITS = {
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
    "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "mu": 1e-3, "micron": 1e-3, "micrometer": 1e-3,
    "micrometre": 1e-3,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "m": 1000.0, "meter": 1000.0, "metre": 1000.0,
}  # fmt: skip
_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|nan)", re.IGNORECASE
)
NO_UNIT = ("", "???", "none", "?", "unknown")


class GuessedPlace(UserWarning):
    """A file does not say where its voxels stand, and a place was assumed."""


class AmbiguousPlace(UserWarning):
    """A file says twice, in two ways, where its voxels stand."""


def in_mm(path: Path, unit: str, field: str, *, warn: bool = True) -> float:
    """How many mm a unit of length has; a unit that is not known counts as mm, with a warning.

    Parameters
    ----------
    path : Path
    unit : str
        Such as "um", "microns", "cm"; empty for none.
    field : str
        Where it was found, for the message.
    warn : bool
        Whether to say so.
    """
    name = unit.strip().strip('"').strip().lower()
    found = _UNITS.get(name, _UNITS.get(name.removesuffix("s")))
    if warn and found is None and name not in NO_UNIT:
        warnings.warn(
            f"'{path}' gives its lengths in a unit that is not known here ('{unit}' in {field}): mm"
            " were assumed. Correct the header if that is wrong.",
            UserWarning,
            stacklevel=3,
        )
    return 1.0 if found is None else found


def warn_guessed(path: Path, missing: str, axes: str) -> None:
    """Warn that a place was assumed.

    Parameters
    ----------
    path : Path
    missing : str
        What the header lacks.
    axes : str
        Where the three axes of the assumed grid run to, and at what spacing if that was assumed
        too.
    """
    warnings.warn(
        f"'{path}' does not say where its voxels stand ({missing}); a grid whose axes run {axes}"
        " was assumed, so left and right and mm may be wrong. Export the image again with its"
        " orientation, or compare it with another one in a viewer before you trust the result.",
        GuessedPlace,
        stacklevel=3,
    )


def warn_lengths(path: Path, directions: NDArray[np.float64], field: str) -> None:
    """Warn of directions, one a column, that are not of length 1 beside a spacing that counts too.

    Ours: 2 %, as cosines are rounded to two digits at worst.
    """
    lengths = np.linalg.norm(directions, axis=0)
    if np.isfinite(lengths).all() and lengths.min() > 0 and np.abs(lengths - 1).max() > 0.02:
        warnings.warn(
            f"'{path}' has directions of the lengths {' x '.join(f'{v:.4g}' for v in lengths)} in"
            f" its {field}; 1 was expected, as the spacing stands beside them. Spacing times"
            " direction was taken, as by ITK and nibabel, so the voxels may be too large or too"
            " small. Correct the header if that is wrong.",
            AmbiguousPlace,
            stacklevel=4,
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
            f"{path} has the voxel spacing {numbers} mm: every axis needs a spacing above 0."
            " Correct the header, or export the image again."
        )


def check_lengths(path: Path, grid: Grid) -> None:
    """Refuse voxels and places that no image of anything has, and that files cannot hold.

    Raises
    ------
    InputError
        If a spacing is below 1e-9 or above 1e5 mm, or the image is more than 1e7 voxels away from
        the origin: single precision, in which NIfTI keeps places, is then coarser than a voxel.
    """
    spacing = np.array(grid.spacing)
    away = float((np.abs(grid.corners()).max(axis=0) / spacing.min()).max())
    if spacing.min() < 1e-9 or spacing.max() > 1e5 or away > 1e7:
        place = ", ".join(f"{v:.4g}" for v in grid.centre)
        raise InputError(
            f"{path} has voxels of {' x '.join(f'{s:.4g}' for s in spacing)} mm about the point"
            f" ({place}) mm, which no image has. Its header is damaged, or in another unit than it"
            " says: correct it, or export the image again."
        )


def header_lines(path: Path, file: IO[bytes], most: int = 1 << 24) -> Iterator[str]:
    """The lines of a text header, stripped, one by one; each of 1 MiB at most, together of `most`
    bytes.

    Raises
    ------
    InputError
        If there is more.
    """
    read = 0
    while raw := file.readline(1 << 20):
        read += len(raw)
        if (len(raw) == 1 << 20 and not raw.endswith(b"\n")) or read > most:
            raise InputError(
                f"{path} has no end of its header, or a line in it of more than 1 MiB. It is"
                " damaged or of another type: download or copy it again."
            )
        try:
            yield raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            yield raw.decode("latin-1").strip()


def damaged_header(path: Path, what: str) -> InputError:
    """The error for a text header with a field that cannot be right."""
    return InputError(
        f"{path} could not be read: {what}. Its header is damaged: download or copy it again."
    )


def numbers_of(text: str) -> list[float]:
    """The numbers in a field of a header; what is none counts as NaN."""
    return [float(word) if _NUMBER.fullmatch(word) else float("nan") for word in text.split()]


def whole_numbers_of(path: Path, field: str, text: str, count: int | None = None) -> list[int]:
    """The whole numbers in a field of a header.

    Raises
    ------
    InputError
        If a word is none, or there are not `count`.
    """
    words = text.split()
    if not all(re.fullmatch(r"[+-]?[0-9]{1,18}", word) for word in words) or len(words) != (
        count or len(words)
    ):
        wanted = (
            "whole numbers" if count is None else f"{count} whole number{'s' if count > 1 else ''}"
        )
        raise damaged_header(path, f"'{field}' is '{text[:80]}'; {wanted} were expected")
    return [int(word) for word in words]


def no_spacing(path: Path, missing: str, line: str) -> InputError:
    """The error for a file that does not say how far apart its voxels are."""
    return InputError(
        f"'{path}' does not say how far apart its voxels stand ({missing} in its header), so"
        " nothing can be measured in mm. Export the image again with its spacing, or write it into"
        f" the header, such as '{line}' for 1 mm."
    )
