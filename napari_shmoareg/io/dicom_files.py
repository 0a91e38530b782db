"""DICOM headers: everything in a file except its pixels."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from napari_shmoareg.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset


SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED, _DICOMDIR = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
_NOT_SCANS = (  # SOP classes with pixels that are not scans
    "1.2.840.10008.5.1.4.1.1.481.1",  # RT Image
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.481.23",  # Enhanced RT Image
    "1.2.840.10008.5.1.4.1.1.481.24",  # Enhanced Continuous RT Image
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
)
_PIXEL_TAGS = {
    0x7FE00010: "PixelData",
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
}
_BINARY = {  # letter of struct and bytes of a value representation
    **{
        "US": ("H", 2),
        "SS": ("h", 2),
        "UL": ("L", 4),
        "SL": ("l", 4),
        "UV": ("Q", 8),
        "SV": ("q", 8),
    },
    **{"FL": ("f", 4), "FD": ("d", 8)},
}
_LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UT", b"SQ", b"UC", b"UR", b"SV", b"UV"}
_DAMAGED = SimpleNamespace(value=b"(damaged)", VR="LO", is_little_endian=True)
_HEADER_LIMIT = 2**24  # bytes of a deflated file that are read for its header
COPY = "Export or copy it again."


class Key(NamedTuple):
    """A property of the acquisition that can distinguish volumes of one series.

    Attributes
    ----------
    name : str
        Display name.
    keywords : tuple of str
        DICOM keywords; the first one present is used.
    splits : bool
        Whether slices that differ in it always belong to different volumes.
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
TIMES = (
    "time offset",
    "trigger time",
    "frame reference time",
    "acquisition time",
    "acquisition number",
)
"""Keys that may differ between slices of one volume, but increase from volume to volume."""

_GROUPS = (  # functional groups that are read
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
SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_CSA, _MOSAIC_SIZE = 0x00291010, 0x0019100A
_KEYWORDS: tuple[str | int, ...] = (
    *{keyword for key in KEYS for keyword in key.keywords},
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence"),
    "LossyImageCompression",
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence"),
    *("DetectorInformationSequence", "DimensionIndexSequence", SHARED, _PER_FRAME),
    *(_CSA, _MOSAIC_SIZE),
)


class Pixels(NamedTuple):
    """The pixel data element of a file.

    Attributes
    ----------
    keyword : {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}
    vr : bytes
        Empty if unknown.
    offset : int
        Of the first byte of its value, in the file or in the inflated content of a deflated file.
    length : int or None
        In bytes, as announced; None if the pixels are encapsulated.
    """

    keyword: str
    vr: bytes
    offset: int
    length: int | None


@dataclass(frozen=True, eq=False)
class Header:
    """Content of a DICOM file except its pixels.

    Attributes
    ----------
    path : Path
    size : int
        Bytes of the file, or of its inflated content as far as it was read.
    dataset : pydicom.Dataset
        The elements used here.
    stored_class : str
        SOP class in the meta information, used if the dataset has none.
    syntax : str
        UID of the transfer syntax; empty if unknown.
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
        """UID of the SOP class."""
        return self.text("SOPClassUID") or self.stored_class

    @cached_property
    def series(self) -> str:
        """UID of the series, or "none"."""
        return self.text("SeriesInstanceUID") or "none"

    @cached_property
    def frames(self) -> int:
        """Number of frames that the header announces."""
        return (
            1
            if strings(self.dataset, "NumberOfFrames") is None
            else self.integer("NumberOfFrames", least=1)
        )

    @property
    def kind(self) -> str:
        """Name of the SOP class."""
        from pydicom.uid import UID

        name = UID(self.sop_class).name if self.sop_class else "object without a SOP class"
        return name.removesuffix(" Storage").removesuffix(" IOD")

    @cached_property
    def is_scan(self) -> bool:
        """Whether it may be part of a scan: it has pixels, and is not a dose, segmentation or
        similar.
        """
        return self.pixels is not None and self.sop_class not in _NOT_SCANS

    @cached_property
    def has_position(self) -> bool:
        """Whether it has a position, at least for its first frame."""
        try:
            found = lookup(_sources(self, self.per_frame[:1], 0), "ImagePositionPatient")
        except InputError:
            return True  # reading it reports the error
        return found is not None

    @cached_property
    def per_frame(self) -> Sequence[Dataset]:
        return items(self.path, self.dataset, _PER_FRAME)

    @property
    def description(self) -> str:
        """Series description for display."""
        try:
            with _quiet():
                found = str(self.dataset.get("SeriesDescription") or "")
        except (LookupError, ValueError):  # unknown character set
            found = self.text("SeriesDescription")
        return "".join(letter for letter in found if letter.isprintable())[:60]

    def text(self, keyword: str) -> str:
        """Text of an element, empty if missing."""
        return "\\".join(strings(self.dataset, keyword) or [])

    def integer(self, keyword: str, *, default: int | None = None, least: int = 0) -> int:
        """Whole number of an element.

        Raises
        ------
        InputError
            If it is missing without a default, not a whole number, or below `least`.
        """
        found = strings(self.dataset, keyword)
        if found is None and default is not None:
            return default
        try:
            (number,) = found or []
            value = int(number)
        except ValueError:
            value = least - 1
        if value < least:
            problem = "is missing" if found is None else f"is '{display_text(found)}'"
            raise InputError(
                f"In the DICOM file {self.path} {keyword} {problem}; a whole number of at least"
                f" {least} was expected. The file is damaged. {COPY}"
            )
        return value


def read_header(path: Path) -> Header | None:
    """Read a DICOM file up to its pixels.

    Parameters
    ----------
    path : Path
        A regular file of any type.

    Returns
    -------
    Header or None
        None if it is not a DICOM file, or a DICOMDIR.

    Raises
    ------
    InputError
        If it is a damaged DICOM file, or cannot be opened.
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
            f"{path} cannot be opened: {error.strerror or error}. Check that you may read it."
        ) from error
    except InputError:
        raise
    except Exception as error:  # the library may fail on arbitrary bytes
        if not named:
            return None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"The DICOM file {path} ({size} bytes) is damaged ({reason}). Export or copy it again,"
            " or remove it from the folder."
        ) from error
    if header.sop_class == _DICOMDIR or not (named or header.sop_class or header.pixels):
        return None
    if header.pixels is None and (not header.sop_class or " Image " in f"{header.kind} "):
        raise InputError(
            f"The DICOM file {path} ({size} bytes) ends before its pixels: it is damaged or cut"
            " short. Export or copy it again, or remove it from the folder."
        )
    return header


def _sources(header: Header, per_frame: Sequence[Dataset], n: int) -> list[Dataset]:
    shared = items(header.path, header.dataset, SHARED)[:1]
    groups = [*per_frame[n : n + 1], *shared]
    return [*group_items(header.path, groups), header.dataset]


def group_items(path: Path, groups: Sequence[Dataset]) -> list[Dataset]:
    """Items of functional groups, including those of the diffusion direction."""
    found: list[Dataset] = []
    for group in groups:
        for name in _GROUPS:
            own = items(path, group, name)
            found += single(own) if name == "RealWorldValueMappingSequence" else own[:1]
            if name == "MRDiffusionSequence":
                for item in own[:1]:
                    found += items(path, item, "DiffusionGradientDirectionSequence")[:1]
    return found


def single(items: Sequence[Dataset]) -> list[Dataset]:
    """The items if there is exactly one; a mapping of values is used only if it is unambiguous."""
    return list(items) if len(items) == 1 else []


def items(path: Path, dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Items of a sequence; none if it is missing."""
    tag, _ = _element(keyword)
    element = raw_element(dataset, tag)
    if element is None:
        return []
    try:
        with _quiet():
            found = list((element.value if element is _DAMAGED else dataset[tag].value) or [])
        if not all(hasattr(item, "get_item") for item in found):
            raise TypeError("it is not a sequence")
        return found
    except Exception as error:  # the library may fail on arbitrary bytes
        raise InputError(
            f"In the DICOM file {path} {keyword} is damaged ({error}). {COPY}"
        ) from error


def display_text(texts: Sequence[str]) -> str:
    """Values of an element, for a message."""
    return "\\".join(texts)[:80].encode("ascii", "backslashreplace").decode()


def lookup(sources: Sequence[Dataset], keyword: str) -> list[str] | None:
    """Values of an element in the first dataset that has it."""
    return next((found for each in sources if (found := strings(each, keyword))), None)


def raw_element(dataset: Dataset, tag: int) -> Any:
    """An element as stored; None if missing, a placeholder if damaged."""
    try:
        return dataset.get_item(tag)
    # the library may fail on arbitrary bytes; the value is refused where it matters
    except Exception:
        return _DAMAGED


def strings(dataset: Dataset, keyword: str) -> list[str] | None:
    """Values of an element as text, unchecked; None if missing or empty."""
    tag, own_vr = _element(keyword)
    item = raw_element(dataset, tag)
    if item is None:
        return None
    value = item.value
    if isinstance(value, bytes):
        vr = item.VR if item.VR not in (None, "UN") else own_vr
        letter, length = _BINARY.get(vr, ("", 1))
        if letter and len(value) % length == 0:
            order = "<" if item.is_little_endian else ">"
            value = struct.unpack(f"{order}{len(value) // length}{letter}", value)
        else:
            value = value.hex() if letter else value.decode("latin-1").strip(" \0")
            value = value.split("\\") if value else None
    if value is None or value == "":
        return None
    found = [value] if isinstance(value, str | int | float) else list(value)
    return [str(each).strip() for each in found] or None


@cache
def _element(keyword: str) -> tuple[Any, str]:
    """Tag and value representation of a keyword."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.tag import Tag

    tag = Tag(cast(int, tag_for_keyword(keyword)))
    return tag, dictionary_VR(tag)


@cache
def _tags() -> tuple[Any, ...]:
    """Tags of all elements used."""
    from pydicom.tag import Tag

    return tuple(Tag(each) for each in _KEYWORDS)


class _File(io.BufferedReader):
    """A file that is never read beyond its size, whatever length an element announces."""

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
    if len(start) < 16 or (start[1::-1] not in (b"\0\2", b"\0\x08") and start[:2] != b"\0\x08"):
        return False
    explicit = re.match(rb"[A-Z]{2}", start[4:6]) is not None
    return explicit or int.from_bytes(start[4:8], "little") < 1024


def _parse(path: Path, file: io.BufferedReader, size: int) -> Header:
    """Read the header from an open file; errors are those of pydicom."""
    from pydicom.filereader import dcmread, read_dataset

    if _is_deflated(file):
        stream = inflated(file, _HEADER_LIMIT)
        with _quiet():
            dataset: Any = read_dataset(
                stream,
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=lambda tag, *_: tag in _PIXEL_TAGS,
                specific_tags=list(_tags()),
            )
        length = len(stream.getbuffer())
        return Header(path, length, dataset, "", _DEFLATED, True, _pixels(stream, False, True))
    file.seek(0)
    with _quiet():
        dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_tags()))
    implicit, little = (bool(each) for each in dataset.original_encoding)
    stored = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", ""))
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    return Header(path, size, dataset, stored, syntax, little, _pixels(file, implicit, little))


def _is_deflated(file: io.BufferedReader) -> bool:
    """Whether the meta information names the deflated syntax; leaves the file position at its
    end.
    """
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
    return (strings(meta, "TransferSyntaxUID") or [""])[0] == _DEFLATED


def inflated(file: io.BufferedReader, length: int) -> io.BytesIO:
    """Inflate the rest of a file, at most `length` bytes."""
    stream, parts, left = zlib.decompressobj(-zlib.MAX_WBITS), [], length
    while left > 0 and not stream.eof:
        block = stream.unconsumed_tail or file.read(2**20)
        if not block:
            break
        parts.append(stream.decompress(block, left))
        left -= len(parts[-1])
    return io.BytesIO(b"".join(parts))


def inflated_pixels(header: Header, length: int) -> bytes:
    """Pixels of a deflated file: `length` bytes, or fewer if it ends early."""
    assert header.pixels is not None
    with _File(header.path, header.path.stat().st_size) as file:
        _is_deflated(file)
        stream = inflated(file, header.pixels.offset + length)
    stream.seek(header.pixels.offset)
    return stream.read(length)


def _pixels(file: io.BufferedReader | io.BytesIO, implicit: bool, little: bool) -> Pixels | None:
    """The element at which the reading of a header stopped, if it is pixel data."""
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
    """Suppress pydicom's warnings on non-standard values: those that matter are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
