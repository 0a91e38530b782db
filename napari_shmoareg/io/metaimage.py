"""Reading of MetaImage files (.mha, .mhd), with a checked header."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.io.orientation import (
    check_spacing,
    damaged_header,
    header_lines,
    in_mm,
    no_spacing,
    numbers_of,
    warn_guessed,
    warn_lengths,
    whole_numbers_of,
)
from napari_shmoareg.io.raw_image import Encoding, RawImage, check_affine, voxels_of
from napari_shmoareg.io.streams import data_path, open_regular

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "long": "i4",
    "ulong": "u4", "long_long": "i8", "ulong_long": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_SYNONYMS = (  # alternative names of a field; the first one present is used, as in ITK
    ("offset", "position", "origin"),
    ("transformmatrix", "rotation", "orientation"),
    ("elementspacing", "elementsize"),
    ("elementbyteordermsb", "binarydatabyteordermsb"),
)
_MAX_AXES, _MAX_CHANNELS = 7, 10_000


def load(path: Path, *, allow_outside: bool = False) -> tuple[NDArray, NDArray[np.float64]]:
    """Read a MetaImage file.

    Parameters
    ----------
    path : Path
    allow_outside : bool
        Allow ElementDataFile outside the header's folder.

    Returns
    -------
    values : (I, J, K, ...) array
        Time and components, if any, are the last axes.
    affine : (4, 4) array
        Voxel index to RAS mm.

    Raises
    ------
    InputError
        If the file is damaged, of another type, or has no valid affine.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    GuessedOrientation
        If it does not define the directions of its axes, or the position of the first voxel.
    """
    image = read_header(path, allow_outside=allow_outside, warn=True)
    return voxels_of(image), image.affine


def read_header(path: Path, *, allow_outside: bool = False, warn: bool = False) -> RawImage:
    """Read and check the header; as `load`, without the voxels and, by default, without
    warnings.
    """
    with open_regular(path) as file:
        lines = header_lines(path, file)
        fields = _fields(path, lines)
        named = fields["elementdatafile"]
        listed = list(islice(lines, 1_000_000)) if named.split()[:1] == ["LIST"] else []
        position = file.tell()
    axes = whole_numbers_of(path, "NDims", fields.get("ndims", ""), 1)[0]
    if not 1 <= axes <= _MAX_AXES:
        raise damaged_header(
            path, f"NDims is {axes}; 3 was expected, 1 to {_MAX_AXES} are possible"
        )
    sizes = whole_numbers_of(path, "DimSize", fields.get("dimsize", ""), axes)
    channels = whole_numbers_of(
        path, "ElementNumberOfChannels", fields.get("elementnumberofchannels", "1"), 1
    )[0]
    if min(sizes) < 0 or not 1 <= channels <= _MAX_CHANNELS:
        raise damaged_header(
            path, f"it announces the shape {tuple(sizes)} with {channels} channels"
        )
    dtype = _dtype(path, fields)
    binary = _flag(path, fields, "binarydata", True)
    compressed = _flag(path, fields, "compresseddata", False)
    skip = whole_numbers_of(path, "HeaderSize", fields.get("headersize", "0"), 1)[0]
    local = named.lower() == "local"
    if skip < -1 or (local and skip > 0) or (skip and compressed):
        raise damaged_header(
            path, f"HeaderSize is {skip}, which is not valid for this kind of file"
        )
    names = [named] if local else _data_files(path, named, listed, axes, sizes)
    encoding: Encoding = "zlib" if compressed else "raw" if binary else "text"
    several = channels > 1
    return RawImage(
        path=path,
        sizes=(channels, *sizes) if several else tuple(sizes),
        axes=(*range(1, axes + 1), 0) if several else tuple(range(axes)),
        dtype=dtype,
        affine=_affine(path, fields, axes, warn),
        encoding=encoding,
        files=(path,) if local else tuple(data_path(path, name, allow_outside) for name in names),
        position=position if local else 0,
        byte_skip=skip,
    )


def _fields(path: Path, lines: Iterator[str]) -> dict[str, str]:
    """Read the fields up to the data file; names in lower case."""
    fields: dict[str, str] = {}
    for number, line in enumerate(lines):
        if not line and fields:
            continue
        name, sign, value = re.match(r"([^=:]*)([=:]?)(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        name, value = name.strip().lower(), value.strip()
        if not (sign and name and name.isprintable()):
            raise damaged_header(
                path, f"line {number + 1} of its header is not a MetaImage field ('{line[:60]}')"
            )
        if fields.setdefault(name, value) != value:
            raise damaged_header(
                path, f"{name} is given twice, as '{fields[name][:60]}' and '{value[:60]}'"
            )
        if name == "elementdatafile":
            if not value:
                raise damaged_header(path, "ElementDataFile names no file")
            if fields.get("objecttype", "image").lower() != "image":
                raise damaged_header(
                    path, f"it contains a '{fields['objecttype'][:60]}', not an image"
                )
            return fields
    raise damaged_header(path, "its header has no ElementDataFile")


def _first(fields: Mapping[str, str], name: str) -> str | None:
    """Value of a field under the first of its alternative names."""
    names = next((names for names in _SYNONYMS if name in names), (name,))
    return next((fields[each] for each in names if each in fields), None)


def _flag(path: Path, fields: Mapping[str, str], name: str, default: bool) -> bool:
    value = _first(fields, name)
    if value is None:
        return default
    if value.lower() not in ("true", "false", "t", "f", "1", "0"):
        raise damaged_header(path, f"{name} is '{value[:60]}'; True or False was expected")
    return value[:1] in "Tt1"


def _dtype(path: Path, fields: Mapping[str, str]) -> np.dtype:
    name = fields.get("elementtype", "")
    kind = _TYPES.get(name.lower().removeprefix("met_").removesuffix("_array"))
    if kind is None or not name.lower().startswith("met_"):
        raise damaged_header(
            path,
            f"ElementType is '{name[:60]}'; a type such as MET_SHORT or MET_FLOAT was expected",
        )
    return np.dtype(kind).newbyteorder(
        ">" if _flag(path, fields, "elementbyteordermsb", False) else "<"
    )


def _data_files(
    path: Path, named: str, listed: list[str], axes: int, sizes: list[int]
) -> list[str]:
    """Names of the data files: a list, a numbered pattern, or a single name."""
    words = named.split()
    if words[0] == "LIST":
        dimension = (
            whole_numbers_of(path, "ElementDataFile = LIST", words[1].rstrip("Dd"), 1)[0]
            if words[1:]
            else axes - 1
        )
        expected = prod(sizes[max(dimension, 0) :]) if dimension < axes else 1
        names = [line for line in listed if line][:expected]
        if len(names) < expected:
            raise damaged_header(
                path, f"it lists {len(names)} data files; {expected} were expected"
            )
        return names
    pattern = re.fullmatch(r"([^%]*)%(0?[0-9]{0,2})[diu]([^%]*)", words[0])
    if pattern is None or len(words) < 2:
        return [named]
    numbers = whole_numbers_of(path, "ElementDataFile", " ".join(words[1:]))
    first, last, step = (*numbers, *(1, sizes[-1], 1)[len(numbers) :])[:3]
    found = range(first, last + 1, step) if step > 0 else range(0)
    if not 1 <= len(found) <= sizes[-1]:
        raise damaged_header(
            path, f"ElementDataFile counts {len(found)} files for {sizes[-1]} slices"
        )
    return [f"{pattern[1]}{f'%{pattern[2]}d' % number}{pattern[3]}" for number in found]


def _affine(path: Path, fields: Mapping[str, str], axes: int, warn: bool) -> NDArray[np.float64]:
    """Voxel index to RAS mm, (4, 4), of the first three axes."""
    affine = np.eye(4)
    if axes < 3:
        return affine
    if (spacing := _first(fields, "elementspacing")) is None:
        raise no_spacing(path, "no ElementSpacing", "ElementSpacing = 1 1 1")
    steps = _numbers(path, "ElementSpacing", spacing, axes)[:3]
    check_spacing(path, steps)
    matrix, origin = _first(fields, "transformmatrix"), _first(fields, "offset")
    if warn and matrix is None:
        warn_guessed(path, "no TransformMatrix in its header", "to the left, the back and up")
    elif warn and origin is None:
        warn_guessed(
            path, "no Offset in its header", "as in the header, with the first voxel at 0, 0, 0 mm,"
        )
    if matrix is not None:
        directions = np.reshape(
            _numbers(path, "TransformMatrix", matrix, axes * axes), (axes, axes)
        )
        affine[:3, :3] = directions[:3, :3].T
        if warn:
            warn_lengths(path, affine[:3, :3], "TransformMatrix")
    affine[:3, :3] *= steps
    if origin is not None:
        affine[:3, 3] = _numbers(path, "Offset", origin, axes)[:3]
    unit = in_mm(path, fields.get("distanceunits", ""), "DistanceUnits", warn=warn)
    affine[:3] *= np.array([[-unit], [-unit], [unit]])
    check_affine(path, affine)
    if warn:
        _warn_scaling(path, fields)
    return affine


def _numbers(path: Path, field: str, text: str, count: int) -> list[float]:
    numbers = numbers_of(text)
    if len(numbers) != count:
        raise damaged_header(path, f"{field} has {len(numbers)} numbers; {count} were expected")
    return numbers


def _warn_scaling(path: Path, fields: Mapping[str, str]) -> None:
    slope = numbers_of(fields.get("elementtointensityfunctionslope", "1"))
    offset = numbers_of(fields.get("elementtointensityfunctionoffset", "0"))
    if (slope, offset) != ([1.0], [0.0]):
        warnings.warn(
            f"'{path}' defines a scaling of its values (ElementToIntensityFunctionSlope and"
            " Offset), which was ignored, as in ITK and 3D Slicer.",
            UserWarning,
            stacklevel=5,
        )
