"""DICOM files taken apart into slices with positions."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED, _DICOMDIR = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
_NO_SCANS = (  # SOP classes with pixels that are no scan
    "1.2.840.10008.5.1.4.1.1.481.1",  # RT Image
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.481.23",  # Enhanced RT Image
    "1.2.840.10008.5.1.4.1.1.481.24",  # Enhanced Continuous RT Image
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
)
_PIXEL_TAGS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_BINARY = {"US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"}
_LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UT", b"SQ", b"UC", b"UR", b"SV", b"UV"}
_FIRST_INFLATED = 2**24  # bytes of a deflated file looked at for its header
_COPY = "Export or copy it again."


class Key(NamedTuple):
    """A property of the acquisition that can tell volumes of one series apart.

    Attributes
    ----------
    name : str
        For people.
    keywords : tuple of str
        DICOM keywords, the first one present counts.
    splits : bool
        Slices that differ in it never belong to one volume, even if their positions differ too.
    """

    name: str
    keywords: tuple[str, ...]
    splits: bool = False


KEYS = (
    Key("stack ID", ("StackID",), splits=True),
    Key("echo time", ("EffectiveEchoTime", "EchoTime"), splits=True),
    Key("echo number", ("EchoNumbers",), splits=True),
    Key("temporal position", ("TemporalPositionIndex", "TemporalPositionIdentifier"), splits=True),
    Key("b-value", ("DiffusionBValue",), splits=True),
    Key("gradient direction", ("DiffusionGradientOrientation",)),
    Key("image component", ("ComplexImageComponent",)),
    Key("image type", ("FrameType", "ImageType")),
    Key("time offset", ("TemporalPositionTimeOffset",)),
    Key("trigger time", ("NominalCardiacTriggerDelayTime", "TriggerTime")),
    Key("cardiac phase", ("NominalPercentageOfCardiacPhase",)),
    Key("respiratory phase", ("NominalPercentageOfRespiratoryPhase",)),
    Key("inversion time", ("InversionTimes", "InversionTime")),
    Key("flip angle", ("FlipAngle",)),
    Key("repetition time", ("RepetitionTime",)),
    Key("kVp", ("KVP",)),
    Key("convolution kernel", ("ConvolutionKernel",)),
    Key("frame reference time", ("FrameReferenceTime",)),
    Key("acquisition number", ("FrameAcquisitionNumber", "AcquisitionNumber")),
    Key("acquisition time", ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime")),
)
TIMES = ("time offset", "trigger time", "frame reference time", "acquisition time", "acquisition number")
"""Keys that may differ from slice to slice of one volume, but rise from volume to volume."""

_GROUPS = (  # functional groups that are looked into
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "RealWorldValueMappingSequence",
    "FrameContentSequence",
    "TemporalPositionSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "MRTimingAndRelatedParametersSequence",
    "MRModifierSequence",
    "CTXRayDetailsSequence",
    "CTReconstructionSequence",
    "CardiacSynchronizationSequence",
    "RespiratorySynchronizationSequence",
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)
_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_CSA, _MOSAIC_SIZE, _DIMENSION = 0x00291010, 0x0019100A, 0x00209165
_WANTED: tuple[str | int, ...] = (
    *{keyword for key in KEYS for keyword in key.keywords},
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence"),
    *("DetectorInformationSequence", "DimensionIndexSequence", _SHARED, _PER_FRAME),
    *(_CSA, _MOSAIC_SIZE),
)


class Pixels(NamedTuple):
    """The element of a file that holds its pixels.

    Attributes
    ----------
    keyword : {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}
    vr : bytes
        Empty where the file does not say.
    offset : int
        Of the first byte of its value, in the file or, if that is deflated, in what it inflates to.
    length : int or None
        In bytes as announced; None where the pixels are encapsulated.
    """

    keyword: str
    vr: bytes
    offset: int
    length: int | None


@dataclass(frozen=True, eq=False)
class Header:
    """All of a DICOM file but its pixels.

    Attributes
    ----------
    path : Path
    size : int
        Bytes of the file, or of what it inflates to as far as that was looked at.
    dataset : pydicom.Dataset
        The elements that are used here.
    stored_class : str
        The SOP class by the meta information, if the file itself should not say.
    syntax : str
        UID of the transfer syntax; empty where the file does not say.
    little_endian : bool
    pixels : Pixels or None
    """

    path: Path
    size: int
    dataset: Dataset
    stored_class: str
    syntax: str
    little_endian: bool
    pixels: Pixels | None

    @property
    def deflated(self) -> bool:
        """Whether the whole file after its meta information is one zlib stream."""
        return self.syntax == _DEFLATED

    @cached_property
    def sop_class(self) -> str:
        """UID of what kind of object it is."""
        return self.text("SOPClassUID") or self.stored_class

    @cached_property
    def series(self) -> str:
        """UID of the series, or "none"."""
        return self.text("SeriesInstanceUID") or "none"

    @cached_property
    def frames(self) -> int:
        """How many frames it announces."""
        return 1 if _strings(self.dataset, "NumberOfFrames") is None else self.integer("NumberOfFrames", least=1)

    @property
    def kind(self) -> str:
        """What kind of object it is, in words."""
        from pydicom.uid import UID

        name = UID(self.sop_class).name if self.sop_class else "object without a SOP class"
        return name.removesuffix(" Storage").removesuffix(" IOD")

    @cached_property
    def is_scan(self) -> bool:
        """Whether it may be a part of a scan: it has pixels, and is no dose, segmentation or the like."""
        return self.pixels is not None and self.sop_class not in _NO_SCANS

    @cached_property
    def has_position(self) -> bool:
        """Whether it says, for its first frame at least, where a slice stands."""
        try:
            found = _lookup(_sources(self, self._per_frame[:1], 0), "ImagePositionPatient")
        except InputError:
            return True  # it tries to, and reading it says what is wrong
        return found is not None

    @cached_property
    def _per_frame(self) -> Sequence[Dataset]:
        return _items(self.path, self.dataset, _PER_FRAME)

    def text(self, keyword: str) -> str:
        """A text of the file, empty where it is missing."""
        return "\\".join(_strings(self.dataset, keyword) or [])

    def integer(self, keyword: str, *, default: int | None = None, least: int = 0) -> int:
        """A whole number of the file.

        Raises
        ------
        InputError
            If it is missing without a default, no whole number, or below `least`.
        """
        found = _strings(self.dataset, keyword)
        if found is None and default is not None:
            return default
        try:
            (number,) = found or []
            value = int(number)
        except ValueError:
            value = least - 1
        if value < least:
            came = "is missing" if found is None else f"is '{_shown(found)}'"
            raise InputError(
                f"In the DICOM file {self.path} {keyword} {came}; a whole number of at least {least} "
                f"was expected. The file is damaged. {_COPY}"
            )
        return value


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


def read_header(path: Path) -> Header | None:
    """Read a DICOM file up to its pixels.

    Parameters
    ----------
    path : Path
        A regular file of any type.

    Returns
    -------
    Header or None
        None if it is no DICOM file, or a DICOMDIR.

    Raises
    ------
    InputError
        If it is a DICOM file and damaged, or cannot be opened.
    """
    try:
        size = path.stat().st_size
        with _File(path, size) as file:
            start = file.read(136)
            named = start[128:132] == b"DICM"
            if path.stem.upper() == "DICOMDIR" or not (named or _starts_like_dicom(start)):
                return None
            file.seek(0)
            header = _parse(path, file, size)
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror}. Check that you may read it."
        ) from error
    except InputError:
        raise
    except Exception as error:  # of a library that meets the bytes of anybody
        if not named:
            return None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"The DICOM file {path} ({size} bytes) is damaged ({reason}). Export or copy it again, "
            "or take it out of the folder."
        ) from error
    if header.sop_class == _DICOMDIR or not (named or header.sop_class or header.pixels):
        return None
    if header.pixels is None and (not header.sop_class or " Image " in f"{header.kind} "):
        raise InputError(
            f"The DICOM file {path} ({size} bytes) ends before its pixels: it is damaged or cut "
            "short. Export or copy it again, or take it out of the folder."
        )
    return header


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
    if "ModalityLUTSequence" in header.dataset:
        raise InputError(
            f"The DICOM file {header.path} maps its values by a table (Modality LUT); only a slope "
            "and an intercept are read. Convert the scan to NIfTI with a program that applies it."
        )
    count, per_frame = header.frames, header._per_frame
    if per_frame and len(per_frame) != count:
        raise InputError(
            f"The DICOM file {header.path} announces {count} frames but describes "
            f"{len(per_frame)}. {_COPY}"
        )
    if count > 1 and not per_frame:
        raise _no_positions(header)
    shared = _group_items(header.path, _items(header.path, header.dataset, _SHARED)[:1])
    top = [header.dataset, *_single(_items(header.path, header.dataset, _GROUPS[4]))]
    described = _dimensions(header)
    return [
        _slice(header, n, [*_group_items(header.path, per_frame[n : n + 1]), *shared, *top], described)
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
    found = _lookup(sources, "PixelSpacing")
    if found is None:
        others = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
        other = next((name for name in others if _lookup(sources, name)), None)
        hint = f"; its {other} is that of the detector, not of the patient" if other else ""
        raise InputError(
            f"PixelSpacing is missing in {where}{hint}. Without it nothing can be measured in mm: "
            "export the scan again with its spacing."
        )
    spacing = _floats(found)
    if len(spacing) != 2 or not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise InputError(
            f"PixelSpacing is '{_shown(found)}' in {where}; two numbers above 0 were expected. "
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
            f"length 1 at right angles were expected. {_COPY}"
        )
    return orientation / np.repeat(lengths, 3)


def _rescale(where: str, sources: list[Dataset]) -> tuple[float, float]:
    names = ("RescaleSlope", "RescaleIntercept")
    if all(_lookup(sources, name) is None for name in names):
        names = ("RealWorldValueSlope", "RealWorldValueIntercept")
    numbers = []
    for name, default in zip(names, (1.0, 0.0), strict=True):
        found = _lookup(sources, name)
        values = np.array([default]) if found is None else _floats(found)
        if len(values) != 1 or not np.isfinite(values[0]) or (values[0] == 0 and default):
            raise InputError(
                f"{name} is '{_shown(found or [])}' in {where}; a number was expected"
                f"{', other than 0' if default else ''}. {_COPY}"
            )
        numbers.append(float(values[0]))
    return numbers[0], numbers[1]


def _thickness(sources: list[Dataset]) -> float | None:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        found = _floats(_lookup(sources, name) or [])
        if len(found) == 1 and np.isfinite(found[0]) and found[0] > 0:
            return float(found[0])
    return None


def _keys(
    header: Header, sources: list[Dataset], dimensions: list[str]
) -> dict[str, tuple[float | str, ...]]:
    keys: dict[str, tuple[float | str, ...]] = {}
    for name, keywords, _ in KEYS:
        found = next((each for word in keywords if (each := _lookup(sources, word))), None)
        if found is not None:
            keys[name] = tuple(_canonical(text) for text in found)
    indices = _lookup(sources, "DimensionIndexValues") if dimensions else None
    if indices is not None and len(indices) == len(dimensions):
        keys |= {name: (_canonical(n),) for name, n in zip(dimensions, indices, strict=True)}
    if header.frames > 1:
        keys["file"] = (header.path.name,)
    return keys


def _dimensions(header: Header) -> list[str]:
    """What the dimensions of a multi-frame file stand for."""
    from pydicom.datadict import dictionary_description, dictionary_has_tag

    names = []
    for n, item in enumerate(_items(header.path, header.dataset, "DimensionIndexSequence")):
        names.append(f"dimension {n + 1}")
        element = item.get_item(_DIMENSION)
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
    csa = dataset.get_item(_CSA)
    if csa is not None and isinstance(csa.value, bytes):
        number = _tiles(csa.value)
    count = dataset.get_item(_MOSAIC_SIZE)
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


def _sources(header: Header, per_frame: Sequence[Dataset], n: int) -> list[Dataset]:
    shared = _items(header.path, header.dataset, _SHARED)[:1]
    groups = [*per_frame[n : n + 1], *shared]
    return [*_group_items(header.path, groups), header.dataset]


def _group_items(path: Path, groups: Sequence[Dataset]) -> list[Dataset]:
    """What functional groups hold, and what their items hold of the direction of diffusion."""
    found: list[Dataset] = []
    for group in groups:
        for name in _GROUPS:
            items = _items(path, group, name)
            found += _single(items) if name == "RealWorldValueMappingSequence" else items[:1]
            if name == "MRDiffusionSequence":
                for item in items[:1]:
                    found += _items(path, item, "DiffusionGradientDirectionSequence")[:1]
    return found


def _single(items: Sequence[Dataset]) -> list[Dataset]:
    """A mapping of values only where there is no choice of several."""
    return list(items) if len(items) == 1 else []


def _items(path: Path, dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    if keyword not in dataset:
        return []
    try:
        with _quiet():
            value = dataset[keyword].value
            return [item for item in value or []] if not isinstance(value, bytes | str) else []
    except Exception as error:  # of a library that meets the bytes of anybody
        raise InputError(f"In the DICOM file {path} {keyword} is damaged ({error}). {_COPY}") from error


def _lookup(sources: Sequence[Dataset], keyword: str) -> list[str] | None:
    return next((found for each in sources if (found := _strings(each, keyword))), None)


def _strings(dataset: Dataset, keyword: str) -> list[str] | None:
    """The values of an element as text, unchecked; None where it is missing or empty."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = cast(int, tag_for_keyword(keyword))
    item = dataset.get_item(tag)
    if item is None:
        return None
    value: Any = item.value
    if isinstance(value, bytes):
        vr = item.VR if item.VR not in (None, "UN") else dictionary_VR(tag)
        if vr in _BINARY or keyword == "SeriesDescription":
            try:
                with _quiet():
                    value = dataset[tag].value
            except Exception:  # too few bytes for its numbers, or of no known alphabet
                value = value.hex()
        else:
            value = value.decode("latin-1").strip(" \0")
            value = value.split("\\") if value else None
    if value is None or (isinstance(value, str) and not value):
        return None
    found = [value] if isinstance(value, str | int | float) else list(value)
    return [str(each).strip() for each in found] or None


def _vector(where: str, sources: list[Dataset], keyword: str, length: int) -> np.ndarray | None:
    found = _lookup(sources, keyword)
    if found is None:
        return None
    numbers = _floats(found)
    if len(numbers) != length or not np.isfinite(numbers).all():
        raise InputError(
            f"{keyword} is '{_shown(found)}' in {where}; {length} numbers were expected. {_COPY}"
        )
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


def _shown(texts: Sequence[str]) -> str:
    return "\\".join(texts)[:80].encode("ascii", "backslashreplace").decode()


class _File(io.BufferedReader):
    """A file of which no more is asked for than there is, whatever length an element announces."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(io.FileIO(path))
        self._bytes = size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 4096:
            size = min(size, max(self._bytes - self.tell(), 0))
        return super().read(size)


def _starts_like_dicom(start: bytes) -> bool:
    """Whether a file without the preamble begins with an element of group 2 or 8."""
    if start[:4] == b"DICM":
        return True
    if len(start) < 16 or start[1::-1] not in (b"\0\2", b"\0\x08") and start[:2] != b"\0\x08":
        return False
    explicit = re.match(rb"[A-Z]{2}", start[4:6]) is not None
    return explicit or int.from_bytes(start[4:8], "little") < 1024


def _parse(path: Path, file: io.BufferedReader, size: int) -> Header:
    """The header from an open file; whatever goes wrong is raised as pydicom does."""
    from pydicom.filereader import dcmread, read_dataset
    from pydicom.tag import Tag

    if _is_deflated(file):
        stream = inflated(file, _FIRST_INFLATED)
        with _quiet():
            dataset: Any = read_dataset(
                stream,
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=lambda tag, *_: tag in _PIXEL_TAGS,
                specific_tags=[Tag(cast(Any, each)) for each in _WANTED],
            )
        length = len(stream.getbuffer())
        return Header(path, length, dataset, "", _DEFLATED, True, _pixels(stream, False, True))
    file.seek(0)
    with _quiet():
        dataset = dcmread(
            file, stop_before_pixels=True, force=True, specific_tags=cast(Any, list(_WANTED))
        )
    implicit, little = (bool(each) for each in dataset.original_encoding)
    stored = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", ""))
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    return Header(path, size, dataset, stored, syntax, little, _pixels(file, implicit, little))


def _is_deflated(file: io.BufferedReader) -> bool:
    """Whether the meta information names the deflated syntax; leaves the file at its end."""
    from pydicom.filereader import read_dataset

    file.seek(0)
    start = file.read(4096)
    if start[128:132] != b"DICM" or _DEFLATED.encode() not in start:
        return False
    file.seek(132)
    with _quiet():
        meta = read_dataset(
            file,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, *_: tag >> 16 != 2,
        )
    return (_strings(meta, "TransferSyntaxUID") or [""])[0] == _DEFLATED


def inflated(file: io.BufferedReader, length: int) -> io.BytesIO:
    """The first bytes of what the rest of a file inflates to, at most `length` of them.

    Raises
    ------
    zlib.error
        If that is damaged.
    """
    stream, parts, left = zlib.decompressobj(-zlib.MAX_WBITS), [], length
    while left > 0 and not stream.eof:
        block = stream.unconsumed_tail or file.read(2**20)
        if not block:
            break
        parts.append(stream.decompress(block, left))
        left -= len(parts[-1])
    return io.BytesIO(b"".join(parts))


def inflated_pixels(header: Header, length: int) -> bytes:
    """The pixels of a deflated file, `length` bytes or as many as there are."""
    assert header.pixels is not None
    with _File(header.path, header.path.stat().st_size) as file:
        _is_deflated(file)
        stream = inflated(file, header.pixels.offset + length)
    stream.seek(header.pixels.offset)
    return stream.read(length)


def _pixels(file: io.BufferedReader | io.BytesIO, implicit: bool, little: bool) -> Pixels | None:
    """The element at which the reading of a header stopped, if it is one of pixels."""
    order: Any = "little" if little else "big"
    start = file.read(12)
    if len(start) < 8:
        return None
    tag = int.from_bytes(start[:2], order) << 16 | int.from_bytes(start[2:4], order)
    if tag not in _PIXEL_TAGS:
        return None
    implicit = implicit or not re.match(rb"[A-Z]{2}", start[4:6])
    vr = b"" if implicit else start[4:6]
    if vr in _LONG:
        length, header = int.from_bytes(start[8:12], order), 12
    else:
        length, header = int.from_bytes(start[4:8] if implicit else start[6:8], order), 8
    offset = file.tell() - len(start) + header
    return Pixels(_PIXEL_TAGS[tag], vr, offset, None if length == 0xFFFFFFFF else length)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pydicom's warnings on values out of the standard: what matters is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
