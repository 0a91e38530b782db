"""Malformed DICOM: classic series and multi-frame files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracles
from corpus import SEED, TIMES, Found, Malformed, Truth, Warned, damaged, refused, volume
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

CT, ENHANCED, DOSE = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "481.2"))
CAPTURE = "1.2.840.10008.5.1.4.1.1.7.3"
SHAPE = (7, 6, 5)
VALUES = volume(SHAPE, np.int16)
AFFINE = np.diag([-1.5, -0.75, 2.5, 1.0])  # RAS; rows 0.75 mm apart, columns 1.5 mm, slices 2.5 mm
AFFINE[:3, 3] = 20, 30, 5
FOUND = Found(VALUES, AFFINE)
PLACES = [[-20.0, -30.0, 5 + 2.5 * n] for n in range(SHAPE[2])]
Edit = Callable[[Any, int], object]


def _new(sop: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop), UID(f"1.2.3.{number}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = UID(sop), UID(f"1.2.3.{number}"), "1.2.3"
    d.StudyInstanceUID, d.InstanceNumber, d.SamplesPerPixel = "1.2", number, 1
    d.PhotometricInterpretation, d.BitsAllocated, d.BitsStored, d.HighBit = (
        "MONOCHROME2",
        16,
        16,
        15,
    )
    d.PixelRepresentation, d.Columns, d.Rows = 1, SHAPE[0], SHAPE[1]
    return d


def _bytes(d: FileDataset) -> bytes:
    out = DicomBytesIO()
    d.save_as(out, enforce_file_format=True)
    return out.getvalue()


def classic(edit: Edit | None = None, order: list[int] | None = None) -> list[bytes]:
    files = []
    for n in range(SHAPE[2]) if order is None else order:
        d = _new(CT, n + 1)
        d.ImagePositionPatient, d.ImageOrientationPatient = PLACES[n], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.RescaleSlope, d.RescaleIntercept = [0.75, 1.5], 1, 0
        d.PixelData = VALUES[:, :, n].T.tobytes()
        if edit:
            edit(d, n)
        files.append(_bytes(d))
    return files


def enhanced(
    edit: Callable[[Any], object] | None = None, frame: Edit | None = None, order=None, sop=ENHANCED
) -> bytes:
    d = _new(sop, 1)
    order = list(range(SHAPE[2])) if order is None else order
    d.NumberOfFrames, d.PixelData = len(order), b"".join(VALUES[:, :, n].T.tobytes() for n in order)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=[0.75, 1.5])
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelValueTransformationSequence = _item(RescaleSlope=1, RescaleIntercept=0)
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for n in order:
        group = Dataset()
        group.PlanePositionSequence = _item(ImagePositionPatient=PLACES[n])
        group.FrameContentSequence = _item(StackID="1", TemporalPositionIndex=1)
        if frame:
            frame(group, n)
        groups.append(group)
    d.PerFrameFunctionalGroupsSequence = Sequence(groups)
    if edit:
        edit(d)
    return _bytes(d)


def _item(**elements: Any) -> Sequence:
    d = Dataset()
    for keyword, value in elements.items():
        setattr(d, keyword, value)
    return Sequence([d])


def _folder(files: list[bytes], **beside: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "scan").mkdir()
        for n, content in enumerate(files):
            (folder / "scan" / f"s{n:02d}.dcm").write_bytes(content)
        for name, content in beside.items():
            (folder / "scan" / name).write_bytes(content)
        return folder / "scan"

    return write


def sets(at: int | None = None, **fields: Any) -> Edit:
    """Set, or with None delete, elements of one slice, or of all."""

    def edit(d: Any, n: int) -> None:
        for keyword, value in fields.items():
            if at in (None, n):
                if value is None:
                    delattr(d, keyword)
                else:
                    setattr(d, keyword, value)

    return edit


def raw_text(keyword: str, text: bytes, at: int = 2) -> Callable[[list[bytes]], list[bytes]]:
    """Overwrite the text of an element behind pydicom, which would not write it."""
    tags = {"PixelSpacing": b"\x28\x00\x30\x00DS", "ImagePositionPatient": b"\x20\x00\x32\x00DS"}

    def edit(files: list[bytes]) -> list[bytes]:
        raw = files[at]
        begin = raw.index(tags[keyword]) + 8
        size = int.from_bytes(raw[begin - 2 : begin], "little")
        files[at] = raw[:begin] + text.ljust(size)[:size] + raw[begin + size :]
        return files

    return edit


_FAULTS: dict[str, tuple[dict[str, Any], int | None]] = {
    "no spacing": ({"PixelSpacing": None}, None),
    "no spacing in one": ({"PixelSpacing": None}, 1),
    "spacing 0": ({"PixelSpacing": [0, 1.5]}, None),
    "spacing negative": ({"PixelSpacing": [-0.75, 1.5]}, None),
    "spacing of one number": ({"PixelSpacing": [0.75]}, None),
    "spacing changes": ({"PixelSpacing": [0.8, 1.5]}, 3),
    "no position": ({"ImagePositionPatient": None}, None),
    "no position in one": ({"ImagePositionPatient": None}, 2),
    "position of two numbers": ({"ImagePositionPatient": [1, 2]}, 2),
    "no orientation": ({"ImageOrientationPatient": None}, None),
    "orientation 0": ({"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}, None),
    "one turned": ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, 1),
    "orientation parallel": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, None),
    "orientation too long": ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, None),
    "twice in a place": ({"ImagePositionPatient": PLACES[1]}, 2),
    "a jump": ({"ImagePositionPatient": [-20, -30, 40]}, 4),
    "sideways": ({"ImagePositionPatient": [-10, -30, 10]}, 2),
    "rows": ({"Rows": 7}, None),
    "rows of one": ({"Rows": 5}, 1),
    "no rows": ({"Rows": None}, None),
    "columns 0": ({"Columns": 0}, None),
    "columns 65535": ({"Columns": 65535}, None),
    "short pixels": ({"PixelData": b"\0" * 40}, 2),
    "no pixels": ({"PixelData": None}, 2),
    "no pixels at all": ({"PixelData": b""}, None),
    "colour": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, None),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, None),
    "bits 12": ({"BitsAllocated": 12}, None),
    "bits 0": ({"BitsAllocated": 0, "BitsStored": 0}, None),
    "bits stored 40": ({"BitsStored": 40}, None),
    "high bit": ({"HighBit": 3}, None),
    "slope 0": ({"RescaleSlope": 0}, None),
    "no intercept": ({"RescaleIntercept": None}, 2),
    "sign of one": ({"PixelRepresentation": 0}, 2),
    "series of one": ({"SeriesInstanceUID": "1.2.9"}, 1),
    "no series": ({"SeriesInstanceUID": None}, None),
    "frames 3": ({"NumberOfFrames": 3}, None),
    "frames -1": ({"NumberOfFrames": -1}, None),
    "representation 7": ({"PixelRepresentation": 7}, None),
    "mosaic": ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, None),
}
_MUST_REFUSE = [
    "no spacing",
    "spacing 0",
    "spacing changes",
    "spacing negative",
    "no position",
    "twice in a place",
    "a jump",
    "short pixels",
    "colour",
    "mosaic",
    "series of one",
    "one turned",
]


def _classic() -> Iterator[Malformed]:
    truth = Truth(oracles.dicom, FOUND)
    yield Malformed("DICOM", "whole", "image", _folder(classic()), FOUND)
    yield Malformed("DICOM", "any order", "image", _folder(classic(order=[3, 1, 4, 0, 2])), FOUND)
    for name, (fields, at) in _FAULTS.items():
        outcome = refused() if name in _MUST_REFUSE else truth
        yield Malformed("DICOM", name, "image", _folder(classic(sets(at, **fields))), outcome)
    for keyword in ("PixelSpacing", "ImagePositionPatient"):
        for text in (b"nan\\1.5", b"inf\\1", b"abc", b"", b"0,75\\1,5", b"1e400\\1\\1"):
            files = raw_text(keyword, text)(classic())
            yield Malformed(
                "DICOM", f"{keyword} {text.decode()}", "image", _folder(files), refused()
            )
    for lost in (1, 2, 3):
        order = [n for n in range(SHAPE[2]) if n != lost]
        yield Malformed(
            "DICOM",
            f"slice {lost} lost",
            "image",
            _folder(classic(order=order)),
            refused("missing"),
        )
    slopes = [1.0, 2.0, 0.5, 4.0, 1.0]
    scaled = classic(lambda d, n: setattr(d, "RescaleSlope", slopes[n]))
    yield Malformed(
        "DICOM", "slopes differ", "image", _folder(scaled), Found(VALUES * slopes, AFFINE)
    )
    dose = _new(DOSE, 99)
    dose.Modality, dose.SeriesInstanceUID, dose.PixelData = (
        "RTDOSE",
        "1.2.8",
        VALUES[:, :, 0].tobytes(),
    )
    beside = _folder(classic(), **{"dose.dcm": _bytes(dose)})
    yield Malformed("DICOM", "a dose beside", "image", beside, Warned(FOUND, ("dose.dcm",)))
    torn = _folder(classic()[:-1], **{"s04.dcm": classic()[4][:150]})
    yield Malformed("DICOM", "one torn", "image", torn, refused("s04.dcm"))
    yield Malformed(
        "DICOM", "text beside", "image", _folder(classic(), **{"notes.txt": b"hello"}), FOUND
    )
    yield Malformed("DICOM", "nothing", "image", _folder([]), refused("no DICOM"))
    yield Malformed("DICOM", "one slice", "image", _folder(classic(order=[0])), refused())

    def pipe(folder: Path) -> Path:
        scan = _folder(classic())(folder)
        os.mkfifo(scan / "s99.dcm")
        return scan

    yield Malformed("DICOM", "a pipe beside", "image", pipe, FOUND)
    whole = classic()
    start = whole[2].index(b"\x7f\xe0"[::-1] + b"\x10\x00")
    for name, new in damaged(whole[2], 13, 60, slice(128, start + 12)):
        yield Malformed(
            "DICOM", f"header, {name}", "image", _folder([*whole[:2], new, *whole[3:]]), truth
        )
    for name, new in damaged(whole[2], 14, 8, slice(start + 12, None)):
        yield Malformed(
            "DICOM", f"pixels, {name}", "image", _folder([*whole[:2], new, *whole[3:]]), truth
        )
    yield from _all_slices(whole)


def _all_slices(whole: list[bytes]) -> Iterator[Malformed]:
    """The same bits turned in every slice, so that they still agree with one another."""
    draw = np.random.default_rng(15 + 1000 * SEED)
    for n in range(30 * TIMES):
        at, bit = int(draw.integers(150, 900)), 1 << int(draw.integers(8))
        files = [
            raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :] for raw in whole if at < len(raw)
        ]
        yield Malformed(
            "DICOM",
            f"bit {bit} of byte {at} in all, {n}",
            "image",
            _folder(files),
            Truth(oracles.dicom, FOUND),
        )


def _enhanced() -> Iterator[Malformed]:
    truth = Truth(oracles.dicom, FOUND)

    def case(name, outcome, **given):
        return Malformed("DICOM enhanced", name, "image", _folder([enhanced(**given)]), outcome)

    yield case("whole", FOUND)
    yield case("any order", FOUND, order=[3, 1, 4, 0, 2])
    yield case("frame lost", refused("missing"), order=[0, 1, 3, 4])
    yield case("frame twice", refused(), order=[0, 1, 2, 3, 4, 4])
    yield case("fewer pixels", refused(), edit=lambda d: setattr(d, "PixelData", d.PixelData[:-8]))
    yield case("more frames said", refused(), edit=lambda d: setattr(d, "NumberOfFrames", 9))
    yield case("fewer frames said", truth, edit=lambda d: setattr(d, "NumberOfFrames", 3))
    yield case(
        "no groups", refused(), edit=lambda d: delattr(d, "PerFrameFunctionalGroupsSequence")
    )
    yield case(
        "no shared groups", refused(), edit=lambda d: delattr(d, "SharedFunctionalGroupsSequence")
    )
    yield case(
        "empty groups",
        refused(),
        edit=lambda d: setattr(d, "PerFrameFunctionalGroupsSequence", Sequence([])),
    )
    yield case("frames huge", refused(), edit=lambda d: setattr(d, "NumberOfFrames", 2**31 - 1))
    yield case("frames 0", truth, edit=lambda d: setattr(d, "NumberOfFrames", 0))
    yield case("a capture", refused(), edit=_bare, sop=CAPTURE)
    for name, sequence, fields in (
        ("spacing 0", "PixelMeasuresSequence", {"PixelSpacing": [0, 1]}),
        ("spacing negative", "PixelMeasuresSequence", {"PixelSpacing": [-1, 1]}),
        ("spacing none", "PixelMeasuresSequence", {}),
        ("orientation 0", "PlaneOrientationSequence", {"ImageOrientationPatient": [0] * 6}),
        ("orientation none", "PlaneOrientationSequence", {}),
        ("orientation short", "PlaneOrientationSequence", {"ImageOrientationPatient": [1, 0, 0]}),
    ):

        def shared(d, sequence=sequence, fields=fields):
            setattr(d.SharedFunctionalGroupsSequence[0], sequence, _item(**fields))

        yield case(name, refused(), edit=shared)
    stacks = enhanced(
        frame=lambda g, n: setattr(
            g, "FrameContentSequence", _item(StackID=str(n % 2), TemporalPositionIndex=1)
        )
    )
    yield Malformed("DICOM enhanced", "two stacks", "image", _folder([stacks]), refused("volumes"))
    slopes = [1.0, 2.0, 0.5, 4.0, 1.0]

    def scaled(group, n):
        group.PixelValueTransformationSequence = _item(RescaleSlope=slopes[n], RescaleIntercept=n)

    def own(d):
        del d.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence

    wanted = Found(VALUES * slopes + np.arange(5), AFFINE)
    yield case("slopes differ", wanted, frame=scaled, edit=own)
    whole = enhanced()
    start = whole.index(b"\xe0\x7f\x10\x00")
    for name, new in damaged(whole, 16, 50, slice(128, start + 12)):
        yield Malformed("DICOM enhanced", name, "image", _folder([new]), truth)


def _bare(d: Any) -> None:
    """No place at all."""
    del d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence


def all_scans() -> Iterator[Malformed]:
    yield from _classic()
    yield from _enhanced()
