"""Checks and warnings on position, orientation and spacing, common to all formats.

If a file lacks position or orientation, they are assumed, with a warning. If it lacks the spacing,
lengths in mm are unknown and the file is refused.
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


class GuessedOrientation(UserWarning):
    """A file does not define position or orientation, and they were assumed."""


class AmbiguousOrientation(UserWarning):
    """A file defines position and orientation twice, and the two differ."""


def in_mm(path: Path, unit: str, field: str, *, warn: bool = True) -> float:
    """Length of a unit in mm; an unknown unit counts as mm, with a warning.

    Parameters
    ----------
    path : Path
    unit : str
        For example "um", "microns", "cm"; empty for none.
    field : str
        Header field of the unit, for the message.
    warn : bool
        Whether to warn.
    """
    name = unit.strip().strip('"').strip().lower()
    found = _UNITS.get(name, _UNITS.get(name.removesuffix("s")))
    if warn and found is None and name not in NO_UNIT:
        warnings.warn(
            f"'{path}' has an unknown unit of length ('{unit}' in {field}): mm were assumed."
            " Correct the header if that is wrong.",
            UserWarning,
            stacklevel=3,
        )
    return 1.0 if found is None else found


def warn_guessed(path: Path, missing: str, axes: str) -> None:
    """Warn that position or orientation was assumed.

    Parameters
    ----------
    path : Path
    missing : str
        What is missing in the header.
    axes : str
        Directions of the three axes of the assumed grid, and their spacing if it was assumed too.
    """
    warnings.warn(
        f"'{path}' does not say where its voxels are ({missing}); a grid whose axes run {axes} was"
        " assumed, so left and right and mm may be wrong. Export the image again with its"
        " orientation, or compare it with another image in a viewer before you trust the result.",
        GuessedOrientation,
        stacklevel=3,
    )


def warn_lengths(path: Path, directions: NDArray[np.float64], field: str) -> None:
    """Warn of directions (columns) that are not of length 1 although a spacing is given too.

    Ours: 2 %, since cosines are rounded to at least two digits.
    """
    lengths = np.linalg.norm(directions, axis=0)
    if np.isfinite(lengths).all() and lengths.min() > 0 and np.abs(lengths - 1).max() > 0.02:
        warnings.warn(
            f"'{path}' has directions of the lengths {' x '.join(f'{v:.4g}' for v in lengths)} in"
            f" its {field}; 1 was expected, as the spacing is given separately. Spacing times"
            " direction was used, as in ITK and nibabel, so the voxels may be too large or too"
            " small. Correct the header if that is wrong.",
            AmbiguousOrientation,
            stacklevel=4,
        )


def check_spacing(path: Path, spacing: Iterable[float]) -> None:
    """Refuse a stored spacing that is 0, NaN or infinite."""
    numbers = tuple(float(s) for s in spacing)
    if not (np.isfinite(numbers).all() and np.all(np.array(numbers) != 0)):
        raise InputError(
            f"{path} has the voxel spacing {numbers} mm: every axis needs a spacing above 0."
            " Correct the header, or export the image again."
        )


def check_lengths(path: Path, grid: Grid) -> None:
    """Refuse voxel sizes and positions that no image has and files cannot represent.

    Raises
    ------
    InputError
        If a spacing is below 1e-9 or above 1e5 mm, or the image is more than 1e7 voxels away from
        the origin: the single precision of NIfTI headers is then coarser than a voxel.
    """
    spacing = np.array(grid.spacing)
    away = float((np.abs(grid.corners()).max(axis=0) / spacing.min()).max())
    if spacing.min() < 1e-9 or spacing.max() > 1e5 or away > 1e7:
        centre = ", ".join(f"{v:.4g}" for v in grid.centre)
        raise InputError(
            f"{path} has voxels of {' x '.join(f'{s:.4g}' for s in spacing)} mm about the point"
            f" ({centre}) mm, which no image has. Its header is damaged or states a wrong unit:"
            " correct it, or export the image again."
        )


def header_lines(path: Path, file: IO[bytes], most: int = 1 << 24) -> Iterator[str]:
    """Yield the lines of a text header, stripped; at most 1 MiB each, `most` bytes in total."""
    read = 0
    while raw := file.readline(1 << 20):
        read += len(raw)
        if (len(raw) == 1 << 20 and not raw.endswith(b"\n")) or read > most:
            raise InputError(
                f"{path} has a header without an end, or with a line of more than 1 MiB. It is"
                " damaged or of another type: download or copy it again."
            )
        try:
            yield raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            yield raw.decode("latin-1").strip()


def damaged_header(path: Path, what: str) -> InputError:
    """Error for a text header with an invalid field."""
    return InputError(
        f"{path} could not be read: {what}. Its header is damaged: download or copy it again."
    )


def numbers_of(text: str) -> list[float]:
    """Parse the numbers in a header field; words that are not numbers become NaN."""
    return [float(word) if _NUMBER.fullmatch(word) else float("nan") for word in text.split()]


def whole_numbers_of(path: Path, field: str, text: str, count: int | None = None) -> list[int]:
    """Parse the whole numbers in a header field."""
    words = text.split()
    if not all(re.fullmatch(r"[+-]?[0-9]{1,18}", word) for word in words) or len(words) != (
        count or len(words)
    ):
        expected = (
            "whole numbers" if count is None else f"{count} whole number{'s' if count > 1 else ''}"
        )
        raise damaged_header(path, f"'{field}' is '{text[:80]}'; {expected} were expected")
    return [int(word) for word in words]


def no_spacing(path: Path, missing: str, line: str) -> InputError:
    """Error for a file without voxel spacing."""
    return InputError(
        f"'{path}' does not give its voxel spacing ({missing} in its header), so nothing can be"
        " measured in mm. Export the image again with its spacing, or add it to the header, for"
        f" example '{line}' for 1 mm."
    )
