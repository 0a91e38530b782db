"""Reading of NRRD files (.nrrd, .nhdr), with a checked header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.orientation import (
    NO_UNIT,
    check_spacing,
    damaged_header,
    header_lines,
    in_mm,
    no_spacing,
    numbers_of,
    warn_guessed,
    whole_numbers_of,
)
from napari_shmoareg.io.raw_image import Encoding, RawImage, check_affine, voxels_of
from napari_shmoareg.io.streams import data_path, open_regular

_BITS = {"char": 8, "short": 16, "int": 32, "longlong": 64}
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_ENCODINGS: dict[str, Encoding] = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2",
    "bzip2": "bzip2",
              "txt": "text", "text": "text", "ascii": "text", "hex": "hex"}  # fmt: skip
_FIELDS = frozenset(
    "type dimension sizes encoding endian space spacedimension spacedirections spaceorigin"
    " spaceunits spacings thicknesses axismins axismaxs centers centerings kinds labels units min"
    " max oldmin oldmax content number blocksize datafile lineskip byteskip sampleunits"
    " measurementframe".split()
)
_DOMAIN = ("", "domain", "space", "???", "none")  # kinds of axes that may be spatial
_OTHER_SPACES = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
_KINDS = frozenset(
    "domain space time list point vector covariant-vector normal stub scalar complex 2-vector"
    " 3-color rgb-color hsv-color xyz-color 4-color rgba-color 3-vector 3-gradient 3-normal"
    " 4-vector quaternion 2d-symmetric-matrix 2d-masked-symmetric-matrix 2d-matrix 2d-masked-matrix"
    " 3d-symmetric-matrix 3d-masked-symmetric-matrix 3d-matrix 3d-masked-matrix ??? none".split()
)
_MAX_AXES = 16


class _Axes(NamedTuple):
    """The spatial axes and their affine."""

    space: list[int]
    affine: NDArray[np.float64]
    missing: str
    assumed: str


def load(path: Path, *, allow_outside: bool = False) -> tuple[NDArray, NDArray[np.float64]]:
    """Read an NRRD file.

    Parameters
    ----------
    path : Path
    allow_outside : bool
        Allow data files outside the header's folder.

    Returns
    -------
    values : (I, J, K, ...) array
        Time and components, if any, are the last axes, whatever their position in the file.
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
        fields, keys, listed = _fields(path, lines)
        position = file.tell()
    dimension = whole_numbers_of(path, "dimension", fields.get("dimension", ""), 1)[0]
    if not 1 <= dimension <= _MAX_AXES:
        raise damaged_header(
            path, f"its dimension is {dimension}; 3 was expected, 1 to {_MAX_AXES} are possible"
        )
    sizes = whole_numbers_of(path, "sizes", fields.get("sizes", ""), dimension)
    if min(sizes) < 0:
        raise damaged_header(path, f"its sizes are {tuple(sizes)}")
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise damaged_header(
            path,
            f"its encoding is '{fields.get('encoding', '')[:60]}'; one of {', '.join(_ENCODINGS)}"
            " was expected",
        )
    skips = [
        whole_numbers_of(path, name, fields.get(name, "0"), 1)[0]
        for name in ("lineskip", "byteskip")
    ]
    if skips[0] < 0 or skips[1] < (-1 if encoding == "raw" else 0):
        raise damaged_header(path, f"its line skip and byte skip are {skips[0]} and {skips[1]}")
    names = _data_files(path, fields.get("datafile"), listed, sizes)
    axes = _axes(path, fields, sizes, warn)
    if warn and axes.missing:
        warn_guessed(path, axes.missing, axes.assumed)
    return RawImage(
        path=path,
        sizes=tuple(sizes),
        axes=(*axes.space, *(axis for axis in range(dimension) if axis not in axes.space)),
        dtype=_dtype(path, fields, encoding),
        affine=axes.affine,
        encoding=encoding,
        files=(
            (path,)
            if names is None
            else tuple(data_path(path, name, allow_outside) for name in names)
        ),
        position=position if names is None else 0,
        line_skip=skips[0],
        byte_skip=skips[1],
        is_labels=any(key.startswith("Segment0_") for key in keys),
    )


def _fields(path: Path, lines: Iterator[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Read the fields (names in lower case without blanks), the keys of key/value pairs, and the
    list of data files.
    """
    fields: dict[str, str] = {}
    keys: list[str] = []
    if not re.fullmatch(r"NRRD000[1-5]", next(lines, "")):
        raise damaged_header(
            path, "it does not begin with the word NRRD and a version from 0001 to 0005"
        )
    for number, line in enumerate(lines):
        if not line:
            return fields, keys, []
        if line.startswith("#"):
            continue
        name, sign, value = line.partition(":")
        if value.startswith("="):
            keys.append(name)
            continue
        key = name.replace(" ", "").lower()
        if not sign or key not in _FIELDS:
            raise damaged_header(
                path, f"line {number + 2} of its header is not an NRRD field ('{line[:60]}')"
            )
        key = "centers" if key == "centerings" else key
        if key in fields:
            raise damaged_header(path, f"the field '{name}' is given twice")
        fields[key] = value.strip()
        if key == "datafile" and value.split()[:1] == ["LIST"]:
            return fields, keys, list(islice(lines, 1_000_000))
    if "datafile" not in fields:
        raise damaged_header(
            path, "its header does not end with an empty line, and names no data file"
        )
    return fields, keys, []


def _dtype(path: Path, fields: Mapping[str, str], encoding: Encoding) -> np.dtype:
    name = fields.get("type", "")
    words = name.lower()
    if found := re.fullmatch(r"(u?)int(8|16|32|64)(_t)?", words):
        kind = f"{'u' if found[1] else 'i'}{int(found[2]) // 8}"
    elif words in ("float", "double"):
        kind = "f4" if words == "float" else "f8"
    else:
        plain = re.sub(r"^(unsigned |signed )", "", words).replace("long long", "longlong")
        unsigned = words.startswith("unsigned ") or (
            plain.startswith("u") and not words.startswith("signed ")
        )
        plain = re.sub(r"^u(?=char|short|int|longlong)", "", plain)
        plain = re.sub(r"(?<=short|.long) int$", "", plain)
        if plain not in _BITS or words == "char":  # the sign of char depends on the machine
            raise damaged_header(
                path, f"its type is '{name[:60]}'; a type such as short or float was expected"
            )
        kind = f"{'u' if unsigned else 'i'}{_BITS[plain] // 8}"
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and (endian or (encoding != "text" and kind[1] != "1")):
        raise damaged_header(path, f"its endian is '{endian[:60]}'; little or big was expected")
    return np.dtype(kind).newbyteorder(">" if endian == "big" else "<")


def _data_files(
    path: Path, value: str | None, listed: list[str], sizes: list[int]
) -> list[str] | None:
    """Names of the data files; None if the header's own file contains the voxels."""
    if value is None:
        return None
    words = value.split()
    if words[:1] == ["LIST"]:
        names = [line for line in listed if line]
        if not names:
            raise damaged_header(path, "it lists no data file")
        return names
    pattern = re.fullmatch(r"([^%]*)%(0?[0-9]{0,2})[diu]([^%]*)", words[0]) if words else None
    if pattern is None or len(words) < 4:
        if not words:
            raise damaged_header(path, "its 'data file' is empty")
        return [value]
    first, last, step = whole_numbers_of(path, "data file", " ".join(words[1:4]))
    found = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if not 1 <= len(found) <= max(prod(sizes[1:]), 1):
        raise damaged_header(path, f"its 'data file' counts {len(found)} files")
    return [f"{pattern[1]}{f'%{pattern[2]}d' % number}{pattern[3]}" for number in found]


def _axes(path: Path, fields: Mapping[str, str], sizes: list[int], warn: bool) -> _Axes:
    """Find the spatial axes and their affine, RAS mm."""
    dimension = len(sizes)
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or [""] * dimension
    if len(kinds) != dimension:
        raise damaged_header(path, f"it has {len(kinds)} kinds for {dimension} axes")
    if unknown := [kind for kind in kinds if kind and kind not in _KINDS]:
        raise damaged_header(path, f"'{unknown[0][:60]}' in its kinds is not an NRRD kind of axis")
    vectors = _vectors(path, fields, dimension)
    spacings = numbers_of(fields.get("spacings", ""))
    if spacings and len(spacings) != dimension:
        raise damaged_header(path, f"it has {len(spacings)} spacings for {dimension} axes")
    directed = [axis for axis, vector in enumerate(vectors) if vector is not None]
    if len(directed) > 3:  # the fourth is time, without a direction in space
        directed = [axis for axis in directed if any(vectors[axis][:3])]  # type: ignore[index]
    domain = [axis for axis, kind in enumerate(kinds) if kind in _DOMAIN]
    spaced = [axis for axis in domain if spacings and np.isfinite(spacings[axis])][:3]
    for axis in directed:
        if spacings and np.isfinite(spacings[axis]):
            raise damaged_header(
                path, f"axis {axis} has both a direction with a length and a spacing"
            )
    if len(directed) == 3:
        return _by_directions(path, fields, vectors, directed, warn)
    if dimension < 3 or (
        len(domain if not directed else directed) < 3 and any(kind not in _DOMAIN for kind in kinds)
    ):
        raise InputError(
            f"{path} has {dimension} axes {tuple(sizes)}, of which {len(directed or domain)} are"
            " spatial: a 2D image. SHMoAReg registers 3D volumes."
        )
    if len(directed) > 3:
        raise damaged_header(
            path, f"{len(directed)} of its axes have a direction in space; 3 were expected"
        )
    if len(spaced) < 3 and (by_ends := _spacings_by_ends(path, fields, domain)):
        spacings, spaced = by_ends, domain[:3]
    if len(spaced) < 3:
        raise no_spacing(path, "no 'space directions' and no 'spacings'", "spacings: 1 1 1")
    return _by_spacings(path, fields, spacings, spaced, warn)


def _by_directions(
    path: Path,
    fields: Mapping[str, str],
    vectors: list[list[float] | None],
    spatial: list[int],
    warn: bool,
) -> _Axes:
    matrix = np.array(
        [vectors[axis] for axis in spatial], dtype=np.float64
    ).T  # one axis per column
    width = matrix.shape[0]
    lengths = np.linalg.norm(matrix, axis=0)
    check_spacing(path, lengths)
    if width < 3 or np.any(matrix[3:]):
        raise damaged_header(
            path, "the directions of its axes are not in a space of three dimensions"
        )
    affine = np.eye(4)
    affine[:3, :3] = matrix[:3]
    space_name = re.sub(r"(-time|(?<=^...)t)$", "", fields.get("space", "").lower())
    origin = _vector(fields.get("spaceorigin", ""))
    missing, assumed = "", ""
    if (origin is None and "spaceorigin" in fields) or (
        space_name and space_name not in (*_SPACES, *_OTHER_SPACES)
    ):
        field = (
            "space"
            if space_name and space_name not in (*_SPACES, *_OTHER_SPACES)
            else "space origin"
        )
        raise damaged_header(path, f"its '{field}' is '{fields[field.replace(' ', '')][:60]}'")
    if space_name not in _SPACES:
        missing = (
            f"its 'space' is '{fields['space']}'" if space_name else "no 'space' in its header"
        )
        assumed = "as in the space left-posterior-superior"
    elif origin is None:
        missing, assumed = (
            "no 'space origin' in its header",
            "as in the header, with the first voxel at 0, 0, 0 mm,",
        )
    if origin is not None:
        if len(origin) != width:
            raise damaged_header(
                path, f"its 'space origin' has {len(origin)} numbers; {width} were expected"
            )
        affine[:3, 3] = origin[:3]
    units = (
        re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))
        or fields.get("spaceunits", "").split()
    )
    if units and len(units) != width:
        raise damaged_header(
            path, f"it has {len(units)} 'space units' for a space of {width} dimensions"
        )
    scales = _in_mm(path, (units or [""] * 3)[:3], "space units", warn)
    signs = np.array([*_SPACES.get(space_name, (-1, -1, 1)), 1.0])
    affine *= signs[:, None] * np.array([*scales, 1.0])[:, None]
    check_affine(path, affine)
    return _Axes(spatial, affine, missing, assumed)


def _by_spacings(
    path: Path, fields: Mapping[str, str], spacings: list[float], spatial: list[int], warn: bool
) -> _Axes:
    """Affine without directions: the axes run to the left, the back and up."""
    steps = np.array([spacings[axis] for axis in spatial])
    check_spacing(path, steps)
    units = re.findall(r'"([^"]*)"', fields.get("units", ""))
    scales = np.ones(3)
    if units and len(units) > max(spatial):
        scales = np.array(_in_mm(path, [units[axis] for axis in spatial], "units", warn))
    mins = numbers_of(fields.get("axismins", ""))
    nodes = [word.lower() == "node" for word in fields.get("centers", "").split()]
    origin = np.zeros(3)
    if len(mins) > max(spatial):
        first = np.array([mins[axis] for axis in spatial])
        half = [0.0 if len(nodes) > axis and nodes[axis] else 0.5 for axis in spatial]
        origin = np.where(np.isfinite(first).all(), first + half * steps, 0.0)
    affine = np.diag([*(scales * steps), 1.0])
    affine[:3, 3] = scales * origin
    affine[:2] *= -1
    check_affine(path, affine)
    return _Axes(
        spatial, affine, "no 'space directions' in its header", "to the left, the back and up"
    )


def _spacings_by_ends(path: Path, fields: Mapping[str, str], domain: list[int]) -> list[float]:
    """Spacings from the minima and maxima of the axes, if both are given; else empty."""
    mins, maxs = (numbers_of(fields.get(name, "")) for name in ("axismins", "axismaxs"))
    sizes = whole_numbers_of(path, "sizes", fields["sizes"])
    if len(mins) != len(sizes) or len(maxs) != len(sizes) or len(domain) < 3:
        return []
    nodes = [word.lower() == "node" for word in fields.get("centers", "").split()] + [False] * len(
        sizes
    )
    counts = [max(n - 1, 1) if node else max(n, 1) for n, node in zip(sizes, nodes, strict=False)]
    found = [(high - low) / n for low, high, n in zip(mins, maxs, counts, strict=True)]
    return found if np.isfinite([found[axis] for axis in domain[:3]]).all() else []


def _in_mm(path: Path, units: list[str], field: str, warn: bool) -> list[float]:
    """Unit of each axis in mm; a missing unit equals the other ones, if these agree."""
    stated = {unit for unit in units if unit.strip().lower() not in NO_UNIT}
    filled = [
        next(iter(stated)) if len(stated) == 1 and unit.strip().lower() in NO_UNIT else unit
        for unit in units
    ]
    scales = {unit: in_mm(path, unit, field, warn=warn) for unit in dict.fromkeys(filled)}
    return [scales[unit] for unit in filled]


def _vectors(path: Path, fields: Mapping[str, str], dimension: int) -> list[list[float] | None]:
    """Direction of each axis; None for a non-spatial axis."""
    text = fields.get("spacedirections", "")
    if not text:
        return [None] * dimension
    words = re.findall(r"\([^()]*\)|[^\s()]+", text)
    vectors = [_vector(word) for word in words]
    if len(vectors) != dimension:
        raise damaged_header(path, f"it has {len(vectors)} 'space directions' for {dimension} axes")
    if any(
        vector is None and word.lower() != "none"
        for vector, word in zip(vectors, words, strict=True)
    ):
        raise damaged_header(path, f"its 'space directions' are '{text[:80]}'")
    vectors = [None if vector is None or np.isnan(vector).all() else vector for vector in vectors]
    if len({len(vector) for vector in vectors if vector is not None}) > 1:
        raise damaged_header(path, f"its 'space directions' differ in length, '{text[:80]}'")
    return vectors


def _vector(text: str) -> list[float] | None:
    if not (text.startswith("(") and text.endswith(")")):
        return None
    return numbers_of(text[1:-1].replace(",", " "))
