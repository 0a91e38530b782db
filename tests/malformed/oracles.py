"""The independent truth: headers taken apart by struct, as text, or by pydicom, in a few plain
lines.

Each gives what a file says if it says it once and plainly, else None: then nothing may be read
without a word.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from corpus import Found
from numpy.typing import NDArray

_NIFTI_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti(path: Path) -> Found | None:
    """NIfTI-1 and -2, by the offsets of the standard."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    e = "<" if raw[:2] in (b"\x5c\x01", b"\x1c\x02") else ">"

    def at(one: int, two: int, kind: str, wide: str) -> tuple[Any, ...]:
        return struct.unpack_from(e + (kind if first else wide), raw, one if first else two)

    first = struct.unpack_from(e + "i", raw)[0] == 348
    dim = at(40, 16, "8h", "8q")
    (datatype, bitpix), (intent,) = at(70, 12, "2h", "2h"), at(68, 504, "h", "i")
    pixdim, (offset,) = at(76, 104, "8f", "8d"), at(108, 168, "f", "q")
    (slope, inter), (units,) = at(112, 176, "2f", "2d"), at(123, 500, "b", "i")
    (qform, sform), quaternion = at(252, 344, "2h", "2i"), at(256, 352, "6f", "6d")
    srow = np.array(at(280, 400, "12f", "12d")).reshape(3, 4)
    if raw[344:347] != b"n+1" and raw[4:7] != b"n+2":
        return None
    kind = np.dtype(e + _NIFTI_TYPES[datatype])
    shape = dim[1 : dim[0] + 1]
    count = int(np.prod(shape))
    if (
        bitpix != 8 * kind.itemsize
        or len(raw) != int(offset) + count * kind.itemsize
        or not 3 <= dim[0] <= 7
    ):
        return None
    if offset < 352 or 3000 <= intent < 3100 or (units & 7) > 3 or max(qform, sform) <= 0:
        return None
    values = np.frombuffer(raw, kind, count, int(offset)).reshape(shape, order="F").astype(float)
    if slope and not np.isnan(slope):
        values = values * slope + inter
    affine, other = np.eye(4), np.eye(4)
    affine[:3] = srow
    other[:3] = _by_quaternion(pixdim, quaternion)
    if qform > 0 and sform > 0 and _apart(shape, affine, other) > 0.6:
        return None
    if sform <= 0:
        affine = other
    affine[:3] *= {0: 1, 1: 1000, 2: 1, 3: 0.001}[units & 7]
    return Found(_without_last(values), affine)


def _by_quaternion(pixdim: tuple[float, ...], quaternion: tuple[float, ...]) -> NDArray:
    b, c, d, *origin = quaternion
    square = b * b + c * c + d * d
    if not square <= 1.01:
        return np.full((3, 4), np.nan)
    # as the standard's own code: a half turn
    a = np.sqrt(1 - square) if square <= 1 - 1e-7 else 0.0
    b, c, d = np.array([b, c, d]) / (1 if a else np.sqrt(square))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
            [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
            [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
        ]
    )
    turn = turn * np.array(pixdim[1:4])
    turn[:, 2] *= -1 if pixdim[0] < 0 else 1
    return np.hstack([turn, np.array(origin)[:, None]])


def _apart(shape: tuple[int, ...], one: NDArray, other: NDArray) -> float:
    """How many of the smallest voxels apart the corners are; NaN counts as near."""
    ends = np.array(
        [[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])]
    )
    with np.errstate(all="ignore"):
        far = np.linalg.norm((ends @ (one - other).T)[:, :3], axis=1).max()
        return float(far / np.linalg.norm(one[:3, :3], axis=0).min())


def _without_last(values: NDArray) -> NDArray:
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return values


def mgh(path: Path) -> Found | None:
    """MGH, by the offsets that FreeSurfer tells."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".mgz" else raw
    version, i, j, k, frames, kind, _, good = struct.unpack_from(">7ih", raw)
    numbers = np.array(struct.unpack_from(">15f", raw, 30))
    if version != 1 or good <= 0:
        return None
    shape = (i, j, k, frames)
    values = np.frombuffer(
        raw, {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2"}[kind], int(np.prod(shape)), 284
    )
    affine = np.eye(4)
    directions = numbers[3:12].reshape(3, 3).T
    if np.abs(np.linalg.norm(directions, axis=0) - 1).max() > 0.03:
        return None
    affine[:3, :3] = directions * numbers[:3]
    affine[:3, 3] = numbers[12:] - affine[:3, :3] @ (np.array(shape[:3]) / 2)
    return Found(_without_last(values.reshape(shape, order="F")), affine)


_NRRD_TYPES = {
    "short": "i2",
    "int16": "i2",
    "uchar": "u1",
    "unsigned char": "u1",
    "uint8": "u1",
    "unsigned short": "u2",
    "uint16": "u2",
    "int": "i4",
    "float": "f4",
    "double": "f8",
}


def _decimal(word: str) -> float:
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", word, re.ASCII | re.IGNORECASE):
        raise ValueError(word)
    return float(word)


def nrrd(path: Path) -> Found | None:
    """NRRD with directions for three axes."""
    raw = path.read_bytes()
    head, _, data = raw.partition(b"\n\n")
    fields: dict[str, str] = {}
    for line in head.decode().split("\n")[1:]:
        if line.startswith("#") or ":=" in line:
            continue
        name, _, value = line.partition(":")
        if name.lower() in fields or not value.strip():
            return None
        fields[name.lower()] = value.strip()
    if "data file" in fields:
        data = (path.parent / fields["data file"]).read_bytes()
    data = {"raw": bytes, "gzip": gzip.decompress, "bzip2": bz2.decompress}[fields["encoding"]](
        data
    )
    sizes = [int(word) for word in fields["sizes"].split()]
    kind = np.dtype({"little": "<", "big": ">"}[fields["endian"]] + _NRRD_TYPES[fields["type"]])
    if len(sizes) != 3 or fields["dimension"] != "3" or len(data) != np.prod(sizes) * kind.itemsize:
        return None
    if any(fields.get(name, "0") != "0" for name in ("line skip", "byte skip")):
        return None
    if set(fields.get("spacings", "nan").lower().split()) != {"nan"}:
        return None
    vectors = [
        [_decimal(word) for word in each.split(",")]
        for each in re.findall(r"\(([^)]*)\)", fields["space directions"])
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(vectors).T
    affine[:3, 3] = [_decimal(word) for word in fields["space origin"].strip("()").split(",")]
    signs = {
        "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1), "lpst": (-1, -1, 1),
        "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
        "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    }[fields["space"].lower()]  # fmt: skip
    units = re.findall(r'"([^"]*)"', fields.get("space units", '"mm" "mm" "mm"'))
    scales = [{"mm": 1, "um": 0.001, "cm": 10}[unit] for unit in units]
    affine[:3] *= (np.array(signs) * scales)[:, None]
    return Found(np.frombuffer(data, kind).reshape(sizes, order="F"), affine)


_META_TYPES = {
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_UCHAR": "u1",
    "MET_FLOAT": "f4",
    "MET_INT": "i4",
}


def metaimage(path: Path) -> Found | None:
    """MetaImage of three axes and one channel."""
    raw = path.read_bytes()
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = raw.index(b"\n", position)
        if end == position:
            position += 1
            continue
        name, sign, value = (part.strip() for part in raw[position:end].decode().partition("="))
        position = end + 1
        if fields.get(name, value) != value or not sign:
            return None
        fields[name] = value
    data = raw[position:] if fields["ElementDataFile"] == "LOCAL" else None
    if data is None:
        data = (path.parent / fields["ElementDataFile"]).read_bytes()
    truths = {"True": True, "False": False}
    if truths[fields.get("CompressedData", "False")]:
        data = zlib.decompress(data)
    if not truths[fields.get("BinaryData", "True")] or fields.get("HeaderSize", "0") not in (
        "0",
        "-1",
    ):
        return None
    order = (
        ">"
        if truths[fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))]
        else "<"
    )
    sizes = [int(word) for word in fields["DimSize"].split()]
    kind = np.dtype(order + _META_TYPES[fields["ElementType"]])
    if len(sizes) != 3 or fields["NDims"] != "3" or len(data) != np.prod(sizes) * kind.itemsize:
        return None
    if (
        fields.get("ElementNumberOfChannels", "1") != "1"
        or fields.get("ObjectType", "Image") != "Image"
    ):
        return None
    directions, spacing, origin = (
        np.array([_decimal(word) for word in fields[name].split()])
        for name in ("TransformMatrix", "ElementSpacing", "Offset")
    )
    affine = np.eye(4)
    matrix = directions.reshape(3, 3).T
    if np.abs(np.linalg.norm(matrix, axis=0) - 1).max() > 0.03:
        return None
    affine[:3, :3] = matrix * spacing
    affine[:3, 3] = origin
    affine[:3] *= {"mm": 1, "um": 0.001}[fields.get("DistanceUnits", "mm")]
    return Found(np.frombuffer(data, kind).reshape(sizes, order="F"), _LPS @ affine)


def dicom(folder: Path) -> Found | None:
    """One volume out of classic slices or of the frames of one file, by pydicom."""
    import pydicom

    slices = []
    for path in sorted(folder.iterdir()):
        d = pydicom.dcmread(path)
        stored = _stored(d)
        for n in range(len(stored)):
            slices.append((*_of_frame(d, n), stored[n]))
    if len({(tuple(np.round(s[1], 5)), tuple(s[2]), s[5], s[6].shape) for s in slices}) != 1:
        return None
    turn, (rows, columns) = slices[0][1], slices[0][2]
    across, down = np.array(turn[:3]), np.array(turn[3:])
    normal = np.cross(across, down)
    slices.sort(key=lambda s: float(np.dot(normal, s[0])))
    heights = np.array([np.dot(normal, s[0]) for s in slices])
    steps = np.diff(heights)
    if (
        abs(np.linalg.norm(across) - 1) > 0.01
        or abs(np.linalg.norm(down) - 1) > 0.01
        or min(rows, columns) <= 0
    ):
        return None
    if not (steps > 0).all() or steps.max() > 1.1 * steps.min() or abs(across @ down) > 0.01:
        return None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * columns, down * rows
    affine[:3, 2] = (slices[-1][0] - slices[0][0]) / (len(slices) - 1)
    affine[:3, 3] = slices[0][0]
    values = np.stack([s[6].T * s[3] + s[4] for s in slices], -1)
    return Found(values, _LPS @ affine)


def _stored(d: Any) -> NDArray:
    """The stored numbers, (frames, rows, columns)."""
    rows, columns, bits = int(d.Rows), int(d.Columns), int(d.BitsAllocated)
    if (
        d.SamplesPerPixel != 1
        or bits not in (8, 16)
        or d.HighBit != d.BitsStored - 1
        or not 0 < d.BitsStored <= bits
    ):
        raise ValueError("another kind of pixels")
    if not str(
        d.file_meta.TransferSyntaxUID
    ) == "1.2.840.10008.1.2.1" or d.PixelRepresentation not in (0, 1):
        raise ValueError("another syntax")
    frames = int(d.get("NumberOfFrames", 1) or 1)
    stored = np.frombuffer(d.PixelData, f"<u{bits // 8}")[: frames * rows * columns].reshape(
        frames, rows, columns
    )
    stored = stored.astype(np.int64) & ((1 << d.BitsStored) - 1)
    if d.PixelRepresentation:
        stored = np.where(stored >> (d.BitsStored - 1), stored - (1 << d.BitsStored), stored)
    return stored


def _of_frame(d: Any, n: int) -> tuple[Any, ...]:
    """Position, orientation, pixel spacing, slope, intercept and series of a frame."""

    def one(sequence: str, keyword: str, otherwise: Any = None) -> Any:
        places = [d]
        if "PerFrameFunctionalGroupsSequence" in d:
            places = [d.PerFrameFunctionalGroupsSequence[n], d.SharedFunctionalGroupsSequence[0]]
            places = [group[sequence][0] for group in places if sequence in group]
        for place in places:
            if keyword in place:
                return place[keyword].value
        return otherwise

    position = np.array(one("PlanePositionSequence", "ImagePositionPatient"), float)
    turn = tuple(float(v) for v in one("PlaneOrientationSequence", "ImageOrientationPatient"))
    spacing = tuple(float(v) for v in one("PixelMeasuresSequence", "PixelSpacing"))
    slope = float(one("PixelValueTransformationSequence", "RescaleSlope", 1))
    inter = float(one("PixelValueTransformationSequence", "RescaleIntercept", 0))
    if len(position) != 3 or not np.isfinite([*position, *turn, *spacing, slope, inter]).all():
        raise ValueError("no place")
    return position, turn, spacing, slope, inter, str(d.get("SeriesInstanceUID", ""))


def pairs_csv(path: Path) -> Found | None:
    """Landmark pairs as we write them: six plain numbers a row, LPS by their first line."""
    lines = [line for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
    notes = [line for line in lines if line.startswith("#")]
    frames = {word for line in notes for word in re.findall(r"\b(LPS|RAS|IJK)\b", line.upper())}
    if not frames:
        raise ValueError("no comment names the frame")
    if frames != {"LPS"}:
        return None
    lines = [line for line in lines if not line.startswith("#")]
    wanted = ["fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z"]
    heads = [cell.strip().lower() for cell in lines[0].split(",")]
    at = [heads.index(name) for name in wanted]
    rows = [line.split(",") for line in lines[1:]]
    numbers = np.array([[_decimal(row[n].strip()) for n in at] for row in rows])
    return Found(numbers * [-1, -1, 1, -1, -1, 1]) if np.isfinite(numbers).all() else None


def markups(path: Path) -> Found | None:
    """One list of points of 3D Slicer."""
    listed = json.loads(path.read_text(encoding="utf-8"))["markups"]
    if len(listed) != 1 or listed[0].get("coordinateUnits", "mm") != "mm":
        return None
    points = listed[0]["controlPoints"]
    if any(point.get("positionStatus", "defined") != "defined" for point in points):
        return None
    numbers = np.array([[float(v) for v in point["position"]] for point in points])
    signs = {"LPS": (-1, -1, 1), "RAS": (1, 1, 1)}[listed[0].get("coordinateSystem", "LPS")]
    return Found(numbers * signs) if np.isfinite(numbers).all() else None


def json_of(path: Path) -> Found:
    """The plain content of a JSON file."""
    return Found(json.loads(path.read_text(encoding="utf-8")))


def tensors(path: Path) -> Found | None:
    """The sum of each tensor of a .safetensors file, by numpy."""
    from safetensors.numpy import load

    found = load(path.read_bytes())
    return Found(np.array([np.float64(found[name]).sum() for name in sorted(found)]))
