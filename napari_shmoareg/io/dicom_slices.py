"""DICOM files taken apart into slices with positions."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.dicom_files import (
    COPY,
    KEYS,
    Header,
    group_items,
    items,
    lookup,
    raw_element,
    shown,
    single,
)

if TYPE_CHECKING:
    from pydicom import Dataset

_CSA, _MOSAIC_SIZE, _DIMENSION = 0x00291010, 0x0019100A, 0x00209165


class Slice(NamedTuple):
    """One slice of a scan: a whole file of a classic series, or a frame of a multi-frame file.

    Attributes
    ----------
    header : Header
    frame : int
        From 0.
    position : (3,) array
        Centre of the first pixel, LPS mm.
    orientation : (6,) array
        Directions of a row and of a column, LPS, each of length 1.
    spacing : (2,) array
        Between rows and between columns, mm.
    slope, intercept : float
        The value is slope x stored + intercept.
    thickness : float or None
        Distance to the next slice as the header says, mm; used only for a lone slice.
    keys : dict of str to tuple
        The acquisition, by name of `KEYS` (and more): numbers where they are numbers, else text.
    """

    header: Header
    frame: int
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    slope: float
    intercept: float
    thickness: float | None
    keys: dict[str, tuple[float | str, ...]]


def slices_of(header: Header) -> list[Slice]:
    """Take a file apart into its slices, in stored order.

    Functional groups of a frame come before those shared by all, these before the file's own
    elements.  Ours: a Real World Value Mapping counts only where there is no rescale slope and
    intercept, and only if it is a single linear one; vendors' private scales do not count.

    Raises
    ------
    InputError
        If the file does not say for each of its frames where it stands and how far apart its
        pixels are, or if its values go through a table.
    """
    _check_mosaic(header)
    if items(header.path, header.dataset, "ModalityLUTSequence"):
        raise InputError(
            f"The DICOM file {header.path} maps its values by a table (Modality LUT); only a slope "
            "and an intercept are read. Convert the scan to NIfTI with a program that applies it."
        )
    count, per_frame = header.frames, header.per_frame
    if per_frame and len(per_frame) != count:
        raise InputError(
            f"The DICOM file {header.path} announces {count} frames but describes {len(per_frame)}. {COPY}"
        )
    if count > 1 and not per_frame:
        raise _no_positions(header)
    shared = group_items(header.path, items(header.path, header.dataset, "SharedFunctionalGroupsSequence")[:1])
    top = [
        header.dataset,
        *single(items(header.path, header.dataset, "RealWorldValueMappingSequence")),
    ]
    described = _dimensions(header)
    return [
        _slice(header, n, [*group_items(header.path, per_frame[n : n + 1]), *shared, *top], described)
        for n in range(count)
    ]


def _slice(header: Header, n: int, sources: list[Dataset], dimensions: list[str]) -> Slice:
    """One frame, from the datasets that describe it, the nearest first."""
    where = f"the DICOM file {header.path}"
    where = where if header.frames == 1 else f"frame {n + 1} of {header.frames} in {where}"
    position = _vector(where, sources, "ImagePositionPatient", 3)
    orientation = _vector(where, sources, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        raise InputError(
            f"{where[0].upper()}{where[1:]} does not say where its slice stands (position or "
            "orientation missing): a snapshot or report, not a scan. Choose a folder with the "
            "slices of one scan."
        )
    return Slice(
        header,
        n,
        position,
        _directions(where, orientation),
        _pixel_spacing(where, sources),
        *_rescale(where, sources),
        _thickness(sources),
        _keys(header, sources, dimensions),
    )


def _pixel_spacing(where: str, sources: list[Dataset]) -> np.ndarray:
    found = lookup(sources, "PixelSpacing")
    if found is None:
        others = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
        other = next((name for name in others if lookup(sources, name)), None)
        hint = f"; its {other} is that of the detector, not of the patient" if other else ""
        raise InputError(
            f"PixelSpacing is missing in {where}{hint}. Without it nothing can be measured in mm: "
            "export the scan again with its spacing."
        )
    spacing = _floats(found)
    if len(spacing) != 2 or not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise InputError(
            f"PixelSpacing is '{shown(found)}' in {where}; two numbers above 0 were expected. "
            "Export the scan again with its spacing."
        )
    return spacing


def _directions(where: str, orientation: np.ndarray) -> np.ndarray:
    """Both directions at length 1, as rounded numbers are not quite."""
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    skew = abs(float(orientation[:3] @ orientation[3:]))
    if np.abs(lengths - 1).max() > 0.01 or skew > 0.01:
        raise InputError(
            f"ImageOrientationPatient is {orientation.tolist()} in {where}; two directions of "
            f"length 1 at right angles were expected. {COPY}"
        )
    return orientation / np.repeat(lengths, 3)


def _rescale(where: str, sources: list[Dataset]) -> tuple[float, float]:
    names = ("RescaleSlope", "RescaleIntercept")
    if all(lookup(sources, name) is None for name in names):
        names = ("RealWorldValueSlope", "RealWorldValueIntercept")
    numbers = []
    for name, default in zip(names, (1.0, 0.0), strict=True):
        found = lookup(sources, name)
        values = np.array([default]) if found is None else _floats(found)
        if len(values) != 1 or not np.isfinite(values[0]) or (values[0] == 0 and default):
            raise InputError(
                f"{name} is '{shown(found or [])}' in {where}; a number was expected"
                f"{', other than 0' if default else ''}. {COPY}"
            )
        numbers.append(float(values[0]))
    return numbers[0], numbers[1]


def _thickness(sources: list[Dataset]) -> float | None:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        found = _floats(lookup(sources, name) or [])
        if len(found) == 1 and np.isfinite(found[0]) and found[0] > 0:
            return float(found[0])
    return None


def _keys(header: Header, sources: list[Dataset], dimensions: list[str]) -> dict[str, tuple[float | str, ...]]:
    keys: dict[str, tuple[float | str, ...]] = {}
    for name, keywords, _ in KEYS:
        found = next((each for word in keywords if (each := lookup(sources, word))), None)
        if found is not None:
            keys[name] = tuple(_canonical(text) for text in found)
    indices = lookup(sources, "DimensionIndexValues") if dimensions else None
    if indices is not None and len(indices) == len(dimensions):
        keys |= {name: (_canonical(n),) for name, n in zip(dimensions, indices, strict=True)}
    if header.frames > 1:
        keys["file"] = (header.path.name,)
    return keys


def _dimensions(header: Header) -> list[str]:
    """What the dimensions of a multi-frame file stand for."""
    from pydicom.datadict import dictionary_description, dictionary_has_tag

    names = []
    for n, item in enumerate(items(header.path, header.dataset, "DimensionIndexSequence")):
        names.append(f"dimension {n + 1}")
        element = raw_element(item, _DIMENSION)
        value = None if element is None else element.value
        if isinstance(value, bytes) and len(value) == 4:
            order = "<HH" if header.little_endian else ">HH"
            group, number = struct.unpack(order, value)
            value = group << 16 | number
        if isinstance(value, int) and dictionary_has_tag(value):
            names[-1] = f"index of {dictionary_description(value).lower()}"
    return names


def _check_mosaic(header: Header) -> None:
    """Refuse the tiled picture in which Siemens scanners keep all slices of a volume."""
    dataset, number = header.dataset, 0
    csa = raw_element(dataset, _CSA)
    if csa is not None and isinstance(csa.value, bytes):
        number = _tiles(csa.value)
    count = raw_element(dataset, _MOSAIC_SIZE)
    if count is not None and isinstance(count.value, bytes) and len(count.value) == 2:
        number = max(number, int.from_bytes(count.value, "little" if header.little_endian else "big"))
    if number < 2 and "MOSAIC" not in header.text("ImageType").upper().split("\\"):
        return
    raise InputError(
        f"The DICOM file {header.path} is a Siemens mosaic: {number if number > 1 else 'all'} slices "
        "of a volume side by side in one picture, which is not unfolded here. Convert the series to "
        "NIfTI with dcm2niix, and give that file."
    )


def _tiles(csa: bytes) -> int:
    """NumberOfImagesInMosaic of a Siemens CSA header, 0 where it has none."""
    start = csa.find(b"NumberOfImagesInMosaic\0")
    if start < 0 or not int.from_bytes(csa[start + 76 : start + 80], "little"):
        return 0
    length = int.from_bytes(csa[start + 88 : start + 92], "little")
    found = re.match(rb"\s*(\d{1,4})", csa[start + 100 : start + 112])
    return int(found[1]) if found and 0 < length < 100 else 0


def _no_positions(header: Header) -> InputError:
    reason = "a film, a screen capture or a projection, not the slices of a scan"
    if "DetectorInformationSequence" in header.dataset:
        reason = "nuclear medicine images name one position for all of them, which is not read here"
    return InputError(
        f"The DICOM file {header.path} holds {header.frames} frames ({header.kind}) and does not say "
        f"where each of them stands (position or orientation missing): {reason}. Choose a scan whose "
        "frames have positions, or convert it to NIfTI with a program that knows them."
    )


def _vector(where: str, sources: list[Dataset], keyword: str, length: int) -> np.ndarray | None:
    found = lookup(sources, keyword)
    if found is None:
        return None
    numbers = _floats(found)
    if len(numbers) != length or not np.isfinite(numbers).all():
        raise InputError(f"{keyword} is '{shown(found)}' in {where}; {length} numbers were expected. {COPY}")
    return numbers


def _floats(texts: Sequence[str]) -> np.ndarray:
    """Numbers; NaN where a text is none."""
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text) if "_" not in text else float("nan"))
        except ValueError:
            numbers.append(float("nan"))
    return np.array(numbers, dtype=np.float64)


def _canonical(text: str) -> float | str:
    number = _floats([text])[0]
    return float(f"{number:.7g}") if np.isfinite(number) else text
