"""DICOM slices with positions, and their grouping into volumes.

Single-frame series and multi-frame files are treated in the same way.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.dicom_files import (
    COPY,
    KEYS,
    TIMES,
    Header,
    display_text,
    group_items,
    items,
    lookup,
    raw_element,
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
        Distance to the next slice according to the header, mm; used only for a single slice.
    keys : dict of str to tuple
        Acquisition properties by name, from `KEYS` and others: numbers if possible, else text.
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
    """Split a file into its slices, in stored order.

    Functional groups of a frame take precedence over shared ones, and these over the file's own
    elements. Ours: a Real World Value Mapping is used only if there is no rescale slope and
    intercept, and only if it is a single linear one; private scales of vendors are ignored.

    Raises
    ------
    InputError
        If a frame lacks position or pixel spacing, or the values are mapped by a table.
    """
    _check_mosaic(header)
    if items(header.path, header.dataset, "ModalityLUTSequence"):
        raise InputError(
            f"The DICOM file {header.path} maps its values by a table (Modality LUT); only slope"
            " and intercept are supported. Convert the scan to NIfTI with a program that applies"
            " it."
        )
    count, per_frame = header.frames, header.per_frame
    if per_frame and len(per_frame) != count:
        raise InputError(
            f"The DICOM file {header.path} announces {count} frames but describes {len(per_frame)}."
            f" {COPY}"
        )
    if count > 1 and not per_frame:
        raise _no_positions(header)
    shared = group_items(
        header.path, items(header.path, header.dataset, "SharedFunctionalGroupsSequence")[:1]
    )
    top = [
        header.dataset,
        *single(items(header.path, header.dataset, "RealWorldValueMappingSequence")),
    ]
    described = _dimensions(header)
    return [
        _slice(
            header, n, [*group_items(header.path, per_frame[n : n + 1]), *shared, *top], described
        )
        for n in range(count)
    ]


def _slice(header: Header, n: int, sources: list[Dataset], dimensions: list[str]) -> Slice:
    """Read one frame from the datasets that describe it, the most specific first."""
    where = f"the DICOM file {header.path}"
    where = where if header.frames == 1 else f"frame {n + 1} of {header.frames} in {where}"
    position = _vector(where, sources, "ImagePositionPatient", 3)
    orientation = _vector(where, sources, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        raise InputError(
            f"{where[0].upper()}{where[1:]} does not say where its slice is (position or"
            " orientation missing): a snapshot or report, not a scan. Choose a folder with the"
            " slices of one scan."
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
        alternatives = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
        other = next((name for name in alternatives if lookup(sources, name)), None)
        hint = f"; its {other} refers to the detector, not to the patient" if other else ""
        raise InputError(
            f"PixelSpacing is missing in {where}{hint}. Without it nothing can be measured in mm: "
            "export the scan again with its spacing."
        )
    spacing = _floats(found)
    if len(spacing) != 2 or not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise InputError(
            f"PixelSpacing is '{display_text(found)}' in {where}; two numbers above 0 were"
            " expected. Export the scan again with its spacing."
        )
    return spacing


def _directions(where: str, orientation: np.ndarray) -> np.ndarray:
    """Normalise both directions, which rounding may have changed."""
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
                f"{name} is '{display_text(found or [])}' in {where}; a number was expected"
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


def _keys(
    header: Header, sources: list[Dataset], dimensions: list[str]
) -> dict[str, tuple[float | str, ...]]:
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
    """Names of the dimensions of a multi-frame file."""
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
    """Refuse a Siemens mosaic, which stores all slices of a volume in one tiled image."""
    dataset, number = header.dataset, 0
    csa = raw_element(dataset, _CSA)
    if csa is not None and isinstance(csa.value, bytes):
        number = _tiles(csa.value)
    count = raw_element(dataset, _MOSAIC_SIZE)
    if count is not None and isinstance(count.value, bytes) and len(count.value) == 2:
        number = max(
            number, int.from_bytes(count.value, "little" if header.little_endian else "big")
        )
    if number < 2 and "MOSAIC" not in header.text("ImageType").upper().split("\\"):
        return
    raise InputError(
        f"The DICOM file {header.path} is a Siemens mosaic: {number if number > 1 else 'all'}"
        " slices of a volume tiled in one image, which is not supported. Convert the series to"
        " NIfTI with dcm2niix, and give that file."
    )


def _tiles(csa: bytes) -> int:
    """NumberOfImagesInMosaic of a Siemens CSA header; 0 if missing."""
    start = csa.find(b"NumberOfImagesInMosaic\0")
    if start < 0 or not int.from_bytes(csa[start + 76 : start + 80], "little"):
        return 0
    length = int.from_bytes(csa[start + 88 : start + 92], "little")
    found = re.match(rb"\s*(\d{1,4})", csa[start + 100 : start + 112])
    return int(found[1]) if found and 0 < length < 100 else 0


def _no_positions(header: Header) -> InputError:
    reason = "a film, a screen capture or a projection, not the slices of a scan"
    if "DetectorInformationSequence" in header.dataset:
        reason = "nuclear medicine images have one position for all frames, which is not supported"
    return InputError(
        f"The DICOM file {header.path} has {header.frames} frames ({header.kind}) but does not say"
        f" where each of them is (position or orientation missing): {reason}. Choose a scan whose"
        " frames have positions, or convert it to NIfTI with a program that supports it."
    )


def _vector(where: str, sources: list[Dataset], keyword: str, length: int) -> np.ndarray | None:
    found = lookup(sources, keyword)
    if found is None:
        return None
    numbers = _floats(found)
    if len(numbers) != length or not np.isfinite(numbers).all():
        raise InputError(
            f"{keyword} is '{display_text(found)}' in {where}; {length} numbers were expected."
            f" {COPY}"
        )
    return numbers


def _floats(texts: Sequence[str]) -> np.ndarray:
    """Parse numbers; NaN for invalid text."""
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


_DIRECTION_TOLERANCE = 1e-3
_STEP_TOLERANCE = 0.1  # maximum deviation from a regular grid along the stack, voxels
_SHIFT_TOLERANCE = 0.25  # and within the slice plane, pixels
_ROUNDING = 0.11  # mm by which steps differ if positions are rounded to 0.1 mm

Volumes = list[tuple[str, list[Slice]]]


class _Zone(NamedTuple):
    """A run of equal steps."""

    step: float
    steps: int
    start: float
    end: float


def volumes_of(slices: Sequence[Slice]) -> Volumes:
    """Group the slices of a series into volumes, each with a description; ordered by it.

    Slices that differ in stack, echo, temporal position or b-value belong to different volumes. If
    several other slices are at one position, they are split by the acquisition property that
    explains it; if none does, they stay together.

    Returns
    -------
    list of (str, list of Slice)
        The text is empty if there is one volume.
    """
    groups: list[list[Slice]] = [list(slices)]
    used: list[str] = []
    for key in KEYS:
        if not key.splits:
            continue
        finer = _split(groups, key.name)
        if len(finer) > len(groups) and min(len(group) for group in finer) > 1:
            groups, used = finer, [*used, key.name]
    if any(_multiplicity(group) > 1 for group in groups):
        finer, more = _without_duplicates(groups)
        groups, used = finer, [*used, *more]
    if len(groups) == 1:
        return [("", groups[0])]
    groups.sort(key=lambda group: [_sortable(_value(group, name)) for name in used])
    return [(", ".join(_describe_key(group, name) for name in used), group) for group in groups]


def _without_duplicates(groups: list[list[Slice]]) -> tuple[list[list[Slice]], list[str]]:
    """Split groups so that each has one slice per position; return them and the keys used. If that
    fails, return the same groups.
    """
    expected = sum(_multiplicity(group) for group in groups)
    strong = {key.name for key in KEYS if key.splits}
    order = [key.name for key in KEYS if not key.splits]
    present = {name for group in groups for name in _varying(group)}
    names = [n for n in order if n in present] + sorted(present - set(order) - strong)
    for count in (1, 2):
        for chosen in combinations(names, count):
            finer = groups
            for name in chosen:
                finer = _split(finer, name)
            if len(finer) == expected and all(_multiplicity(group) == 1 for group in finer):
                return finer, list(chosen)
    for name in (name for name in TIMES if name in present):
        ranked = [_by_rank(group, name) for group in groups]
        if all(ranked):
            return [group for each in ranked for group in each], [name]
    return groups, []


def _split(groups: list[list[Slice]], name: str) -> list[list[Slice]]:
    finer: list[list[Slice]] = []
    for group in groups:
        parts: dict[tuple[float | str, ...], list[Slice]] = {}
        for each in group:
            parts.setdefault(each.keys.get(name, ()), []).append(each)
        finer += parts.values()
    return finer


def _varying(group: list[Slice]) -> set[str]:
    """Keys in which slices of a group differ."""
    names = {name for each in group for name in each.keys}
    return {name for name in names if len({each.keys.get(name, ()) for each in group}) > 1}


def _by_rank(group: list[Slice], name: str) -> list[list[Slice]]:
    """Group slices by rank in time at every position; empty unless all have equally many."""
    positions = [
        sorted(at, key=lambda each: _sortable(each.keys.get(name, ()))) for at in _positions(group)
    ]
    values = [[each.keys.get(name, ()) for each in at] for at in positions]
    if len({len(at) for at in values}) > 1 or any(len(set(at)) < len(at) for at in values):
        return []
    return [[at[n] for at in positions] for n in range(len(positions[0]))]


def _multiplicity(group: list[Slice]) -> int:
    """Largest number of slices at one position; 1 if directions differ."""
    return max(len(at) for at in _positions(group))


def _positions(group: list[Slice]) -> list[list[Slice]]:
    """Group slices by height along the stack; each separately if directions differ."""
    first = group[0].orientation
    if any(np.abs(each.orientation - first).max() > _DIRECTION_TOLERANCE for each in group):
        return [[each] for each in group]
    heights = _heights(group)
    order = np.argsort(heights, kind="stable")
    tolerance, found = _position_tolerance(group), [[group[order[0]]]]
    for before, n in pairwise(order):
        if heights[n] - heights[before] < tolerance:
            found[-1].append(group[n])
        else:
            found.append([group[n]])
    return found


def _heights(group: Sequence[Slice]) -> NDArray[np.float64]:
    """Positions along the normal of the first slice, mm."""
    return np.array([each.position for each in group]) @ _normal(group[0])


def _normal(each: Slice) -> NDArray[np.float64]:
    return np.cross(each.orientation[:3], each.orientation[3:])


def _position_tolerance(group: Sequence[Slice]) -> float:
    """Distance, mm, below which two slices are at the same position."""
    return min(0.01, 0.05 * float(group[0].spacing.min()))


def _value(group: list[Slice], name: str) -> tuple[float | str, ...]:
    return group[0].keys.get(name, ())


def _sortable(value: tuple[float | str, ...]) -> list[tuple[int, float, str]]:
    return [(1, 0.0, each) if isinstance(each, str) else (0, each, "") for each in value]


def _describe_key(group: list[Slice], name: str) -> str:
    value = _value(group, name)
    text = "/".join(each if isinstance(each, str) else f"{each:.10g}" for each in value)
    text = text[:60].encode("ascii", "backslashreplace").decode()
    same = all(each.keys.get(name, ()) == value for each in group)
    return f"{name} {text or 'not given'}" if same else f"{name} from {text}"


def stack(where: str, slices: Sequence[Slice]) -> tuple[list[Slice], NDArray[np.float64]]:
    """Order the slices of one volume along their normal, and check that the grid is regular.

    Ours: the affine is built from the slice positions, so a tilted gantry gives a sheared grid.

    Parameters
    ----------
    where : str
        What is being read, for messages, for example "DICOM series in scan".
    slices : sequence of Slice

    Returns
    -------
    slices : list of Slice
        In ascending order.
    affine : (4, 4) array
        Index (column, row, slice) to LPS mm.

    Raises
    ------
    InputError
        If they differ in size, direction or pixel spacing, two are at the same position, or they
        are not evenly spaced.
    """
    _check_uniform(where, slices)
    heights = _heights(slices)
    ordered = [slices[n] for n in np.argsort(heights, kind="stable")]
    first = ordered[0]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 3] = first.position
    if len(ordered) == 1:
        if first.thickness is None:
            raise InputError(
                f"The {where} is a single slice without a thickness, not a volume. Choose a folder"
                " with all slices of the scan."
            )
        affine[:3, 2] = _normal(first) * first.thickness
        return ordered, affine
    _check_steps(where, ordered)
    affine[:3, 2] = (ordered[-1].position - first.position) / (len(ordered) - 1)
    _check_line(where, ordered, affine)
    return ordered, affine


def _check_uniform(where: str, slices: Sequence[Slice]) -> None:
    """Refuse slices with different sizes, directions, pixel spacings or photometric
    interpretations.
    """
    first, sizes = slices[0], {_size(each) for each in slices}
    orientations = np.array([each.orientation for each in slices])
    if len(sizes) > 1 or np.abs(orientations - orientations[0]).max() > _DIRECTION_TOLERANCE:
        raise InputError(
            f"The slices of the {where} differ in size or direction ({len(sizes)} sizes,"
            f" {len(slices)} slices); one stack of parallel slices was expected. Keep one stack per"
            " folder."
        )
    off = [np.abs(each.spacing / first.spacing - 1).max() * max(_size(each)) for each in slices]
    if max(off) > _STEP_TOLERANCE:
        other = slices[int(np.argmax(off))]
        raise InputError(
            f"PixelSpacing changes within the {where}: {_format_spacing(first)} mm in"
            f" {first.header.path.name}, {_format_spacing(other)} mm in {other.header.path.name}."
            " One spacing was expected: keep the slices of each in a separate folder."
        )
    photometric = {
        each.header.text("PhotometricInterpretation") or "MONOCHROME2" for each in slices
    }
    if len(photometric) > 1:
        raise InputError(
            f"The slices of the {where} are stored in several ways"
            f" ({', '.join(sorted(photometric))}); one was expected. Keep the slices of each in a"
            " separate folder."
        )


def _check_steps(where: str, ordered: Sequence[Slice]) -> None:
    """Refuse two slices at the same position, missing slices, and several spacings."""
    heights = _heights(ordered)
    steps = np.diff(heights)
    n = int(steps.argmin())
    if steps[n] < _position_tolerance(ordered):
        files = " and ".join(dict.fromkeys(each.header.path.name for each in ordered[n : n + 2]))
        raise InputError(
            f"The {where} has two slices at the same position ({heights[n]:.2f} mm; {files}):"
            " several time points or echoes in one series, or a duplicated file. Keep one of them"
            " in a separate folder."
        )
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > max(0.05 * usual, _ROUNDING)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if not odd.any() and np.abs(heights - even).max() <= _STEP_TOLERANCE * steps.mean():
        return
    zones = _zones(heights, usual)
    kinds = sorted({round(zone.step, 2): zone.step for zone in zones}.values())
    gaps = steps[np.abs(steps - usual) > 0.05 * usual]
    multiples = np.rint(gaps / usual)
    whole = (
        bool(len(gaps))
        and bool((np.abs(gaps / usual - multiples) < 0.1).all())
        and multiples.min() > 1
    )
    if whole and not (len(zones) == 2 and min(zone.steps for zone in zones) > 1):
        missing, n = int((multiples - 1).sum()), int(np.abs(steps - usual).argmax())
        raise InputError(
            f"The slices of the {where} are not evenly spaced: {steps[n]:.3f} mm between"
            f" {heights[n]:.2f} and {heights[n + 1]:.2f} mm along the stack, where {usual:.3f} mm"
            f" is usual; about {missing} of {len(ordered) + missing} slices are missing. Export or"
            " copy the whole series again."
        )
    if len(zones) == 2 or len(kinds) == 2:
        listed = " and ".join(
            f"{zone.step:.3f} mm from {zone.start:.2f} to {zone.end:.2f} mm along the stack"
            for zone in zones[:2]
        )
        raise InputError(
            f"The slices of the {where} have two spacings: {listed}. One spacing was expected: keep"
            " the slices of each in a separate folder, or resample the scan to one spacing."
        )
    n = int(np.abs(steps - usual).argmax())
    raise InputError(
        f"The slices of the {where} are not evenly spaced: {steps.min():.3f} to {steps.max():.3f}"
        f" mm, for example {steps[n]:.3f} mm between {heights[n]:.2f} and {heights[n + 1]:.2f} mm"
        f" along the stack, where {usual:.3f} mm is usual. Resample the scan to one spacing."
    )


def _zones(heights: NDArray[np.float64], usual: float) -> list[_Zone]:
    """Find runs of steps that are equal to within 5 %."""
    zones: list[_Zone] = []
    for n, step in enumerate(np.diff(heights)):
        last = zones[-1] if zones else None
        if last is not None and abs(step - last.step) <= 0.05 * usual:
            zones[-1] = _Zone(last.step, last.steps + 1, last.start, float(heights[n + 1]))
        else:
            zones.append(_Zone(float(step), 1, float(heights[n]), float(heights[n + 1])))
    return zones


def _check_line(where: str, ordered: Sequence[Slice], affine: NDArray[np.float64]) -> None:
    """Refuse slices that are shifted sideways, except by a uniform tilt."""
    positions = np.array([each.position for each in ordered])
    off = positions - (affine[:3, 3] + np.arange(len(ordered))[:, None] * affine[:3, 2])
    pixels = np.abs(off @ ordered[0].orientation.reshape(2, 3).T) / ordered[0].spacing[::-1]
    if pixels.max() > _SHIFT_TOLERANCE:
        n = int(pixels.max(axis=1).argmax())
        raise InputError(
            f"The slices of the {where} are not in line: {ordered[n].header.path.name} (slice"
            f" {n + 1} of {len(ordered)}) is {pixels.max():.2f} pixels off the line from the first"
            " to the last. One straight stack was expected: keep one stack per folder, or resample"
            " the scan."
        )


def _size(each: Slice) -> tuple[int, int]:
    return each.header.integer("Rows", least=1), each.header.integer("Columns", least=1)


def _format_spacing(each: Slice) -> str:
    return " x ".join(f"{number:.6g}" for number in each.spacing)
