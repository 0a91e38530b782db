"""Pixel values of DICOM slices: decompressed, masked and scaled.

Run as a script, it decompresses single-frame files with GDCM in a separate process: it reads one
path per line and writes a line of JSON and the values. A damaged stream can crash a codec, which
must not end the caller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.io.dicom_files import COPY, Header, Pixels, inflated_pixels
from napari_shmoareg.io.dicom_stack import Slice
from napari_shmoareg.io.files import check_memory

if TYPE_CHECKING:
    from pydicom import Dataset


FRAME_TIMEOUT = 60.0
"""Seconds allowed per frame."""


class Decoder:
    """A process that decompresses frames; it starts with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path) -> NDArray:
        """Decompress the pixels of a single-frame file.

        Returns
        -------
        (rows, columns) array, as GDCM gives it

        Raises
        ------
        ValueError
            If they are damaged.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = Timer(FRAME_TIMEOUT, process.kill)
        timer.start()
        try:
            process.stdin.write(os.fsencode(path) + b"\n")
            process.stdin.flush()
            answer = json.loads(
                process.stdout.readline() or b'{"error": "the decoder failed on them"}'
            )
            if "error" in answer:
                raise ValueError(answer["error"])
            values = np.dtype(answer["dtype"])
            content = process.stdout.read(int(np.prod(answer["shape"])) * values.itemsize)
            return np.frombuffer(content, values).reshape(answer["shape"])
        except BrokenPipeError as error:
            raise ValueError("the decoder failed on them") from error
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )


@contextmanager
def open_decoder() -> Iterator[Decoder]:
    """Open a decoder whose process ends with the ``with`` block."""
    decoder = Decoder()
    try:
        yield decoder
    finally:
        decoder.close()


def _main() -> None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of a codec must not mix with the answers
    for line in sys.stdin.buffer:
        try:
            values = sitk.GetArrayFromImage(sitk.ReadImage(os.fsdecode(line.rstrip(b"\n"))))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()
            answers.write(
                json.dumps({"error": reason[-1].strip() if reason else "no reason given"}).encode()
                + b"\n"
            )
        else:
            values = (
                values.reshape(values.shape[1:])
                if values.ndim == 3 and values.shape[0] == 1
                else values
            )
            answer = {"dtype": values.dtype.str, "shape": values.shape}
            answers.write(
                json.dumps(answer).encode() + b"\n" + np.ascontiguousarray(values).tobytes()
            )
        answers.flush()


if __name__ == "__main__":
    _main()


_NATIVE = (
    "",  # a file without meta information
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
_RLE = "1.2.840.10008.1.2.5"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_COMPRESSED = (  # decompressed by GDCM
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    *_JPEG_2000,
)
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91))
_INTEGERS = ("u1", "i2", "u2", "i4", "u4", "i8", "u8")
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


class DicomWarning(UserWarning):
    """A property of a DICOM scan that may affect the result."""


class Format(NamedTuple):
    """Layout of the stored numbers of a file.

    Attributes
    ----------
    rows, columns, frames : int
    stored : dtype
        Type of a stored number, in the byte order of the file; unsigned, or floating point.
    bits, shift : int
        Number of used bits, and position of the first. Other bits may contain an overlay.
    signed : bool
    """

    rows: int
    columns: int
    frames: int
    stored: np.dtype
    bits: int
    shift: int
    signed: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * self.stored.itemsize

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer that can be stored."""
        return (
            (-(1 << self.bits - 1), (1 << self.bits - 1) - 1)
            if self.signed
            else (0, (1 << self.bits) - 1)
        )


def check_pixels(header: Header) -> Format:
    """Check that the pixels of a file are complete and of a supported kind, without reading them.

    Raises
    ------
    InputError
        If the file is in colour, has an unsupported transfer syntax, or its pixels do not match its
        header.
    """
    assert header.pixels is not None
    layout = _format(header, header.pixels)
    if header.syntax in _NATIVE:
        _check_length(header, header.pixels, layout)
    elif header.syntax in (*_COMPRESSED, _RLE):
        if header.pixels.length is not None or layout.stored.kind == "f":
            raise InputError(
                f"The DICOM file {header.path} is damaged: its pixels are not compressed as its "
                f"transfer syntax says. {COPY}"
            )
        _fragments(header, header.pixels, layout.frames)
    else:
        from pydicom.uid import UID

        raise InputError(
            f"The pixels of the DICOM file {header.path} are compressed in an unsupported way"
            f" ({UID(header.syntax).name}). Save the scan uncompressed, for example with `gdcmconv"
            " --raw`, or convert it to NIfTI with dcm2niix."
        )
    return layout


def read_values(where: Path, slices: Sequence[Slice]) -> NDArray:
    """Read the values of the slices of one volume.

    The value is slope x stored + intercept per slice, in one type for all: integers if every slope
    is 1 and every intercept a whole number, else float32 if it distinguishes all stored numbers,
    else float64.

    Parameters
    ----------
    where : Path
        For messages.
    slices : sequence of Slice
        Of equal size, already checked.

    Returns
    -------
    (columns, rows, slices) array

    Raises
    ------
    InputError
        If pixels are damaged.
    TooLargeError
        If they would not fit into memory.

    Warns
    -----
    DicomWarning
        If they were compressed lossily.
    """
    formats = {header.path: check_pixels(header) for header in {each.header for each in slices}}
    first = formats[slices[0].header.path]
    kind = _type_for(
        where, [(formats[each.header.path], each.slope, each.intercept) for each in slices]
    )
    shape = first.columns, first.rows, len(slices)
    check_memory(where, shape, kind.itemsize + 4)
    indices: dict[Path, dict[int, int]] = {}
    for n, each in enumerate(slices):
        indices.setdefault(each.header.path, {})[each.frame] = n
    try:
        stacked = np.empty(shape[::-1], kind)
    except MemoryError as error:  # the memory of the process is limited
        raise TooLargeError(
            f"Reading the DICOM series in {where}, shape {shape}, needs more memory than this"
            " process may use. Crop or downsample the scan, or use a machine with more memory."
        ) from error
    lossy = set()
    with open_decoder() as decoder:
        for path, frames in indices.items():
            header = slices[next(iter(frames.values()))].header
            if header.syntax in _LOSSY and header.text("LossyImageCompression") != "00":
                lossy.add(header.syntax)
            for frame, raw in _frames(header, formats[path], sorted(frames), decoder):
                n = frames[frame]
                stacked[n] = _scaled(_stored(raw, formats[path]), slices[n], kind)
    if lossy:
        from pydicom.uid import UID

        warnings.warn(
            f"The DICOM series in {where} was compressed lossily"
            f" ({', '.join(sorted(UID(each).name for each in lossy))}): its values are not those"
            " that the scanner measured. Use the uncompressed scan if possible.",
            DicomWarning,
            stacklevel=2,
        )
    if (
        kind.kind == "f"
        and not np.isfinite([stacked.min(), stacked.max()]).all()
        and first.stored.kind != "f"
    ):
        raise InputError(
            f"The rescaled values of the DICOM series in {where} are not finite. {COPY}"
        )
    return stacked.transpose(2, 1, 0)


def _format(header: Header, pixels: Pixels) -> Format:
    photometric = header.text("PhotometricInterpretation") or "MONOCHROME2"
    if header.integer("SamplesPerPixel", default=1) > 1 or not photometric.startswith("MONOCHROME"):
        raise InputError(
            f"The DICOM file {header.path} is a colour image ({photometric}); one value per voxel"
            " was expected. Choose the scan itself."
        )
    rows, columns = header.integer("Rows", least=1), header.integer("Columns", least=1)
    order = "<" if header.little_endian else ">"
    if pixels.keyword != "PixelData":
        stored = np.dtype(f"{order}f{4 if pixels.keyword == 'FloatPixelData' else 8}")
        return Format(rows, columns, header.frames, stored, 8 * stored.itemsize, 0, True)
    allocated = header.integer("BitsAllocated", least=1)
    bits = header.integer("BitsStored", default=allocated, least=1)
    high = header.integer("HighBit", default=bits - 1)
    # If it is missing, only 8 bits are supported: they are unsigned.
    sign = header.integer("PixelRepresentation", default=0 if allocated == 8 else None)
    if allocated not in (8, 16, 32, 64) or sign > 1 or not bits - 1 <= high < allocated:
        raise InputError(
            f"The DICOM file {header.path} stores its pixels in an unsupported way (BitsAllocated"
            f" {allocated}, BitsStored {bits}, HighBit {high}, PixelRepresentation {sign}). Convert"
            " the scan to NIfTI with dcm2niix."
        )
    stored = np.dtype(f"{order}u{allocated // 8}")
    return Format(rows, columns, header.frames, stored, bits, high + 1 - bits, bool(sign))


def _check_length(header: Header, pixels: Pixels, layout: Format) -> None:
    """Refuse pixels that end too early or have more frames than announced."""
    expected = layout.frame_bytes * layout.frames
    announced = pixels.length
    if announced is None:
        raise InputError(
            f"The DICOM file {header.path} is damaged: its pixels are compressed, but no"
            f" compression is named. {COPY}"
        )
    size = f"{layout.columns} x {layout.rows} pixels of {8 * layout.stored.itemsize} bits"
    size += f" in {layout.frames} frames" if layout.frames > 1 else ""
    if announced < expected or announced >= expected + layout.frame_bytes:
        raise InputError(
            f"The DICOM file {header.path} has {announced} bytes of pixels, but its header requires"
            f" {expected} ({size}). It is damaged. {COPY}"
        )
    if not header.deflated:  # its size is known only after inflating
        _check_available(header, max(header.path.stat().st_size - pixels.offset, 0), expected)


def _check_available(header: Header, available: int, expected: int) -> None:
    if available < expected:
        raise InputError(
            f"The DICOM file {header.path} is cut short ({available} bytes of pixels; {expected}"
            " bytes are announced). Export or copy the series again."
        )


def _fragments(header: Header, pixels: Pixels, frames: int) -> list[list[tuple[int, int]]]:
    """Offset and length, in bytes, of the fragments of each compressed frame."""
    short = InputError(
        f"The DICOM file {header.path} is cut short or damaged: its compressed pixels have no end"
        " marker. Export or copy the series again."
    )
    size, offset = header.path.stat().st_size, pixels.offset
    items: list[tuple[int, int, bytes]] = []
    with header.path.open("rb") as file:
        while True:
            file.seek(offset)
            item = file.read(12)
            length = int.from_bytes(item[4:8], "little")
            if len(item) < 8 and items:  # some writers leave the delimiter out
                break
            if item[:4] == b"\xfe\xff\xdd\xe0":
                break
            if len(item) < 8 or item[:4] != b"\xfe\xff\x00\xe0" or offset + 8 + length > size:
                raise short
            items.append((offset + 8, length, item[8 : 8 + min(length, 4)]))
            offset += 8 + length
        table = b""
        if items and items[0][1]:
            file.seek(items[0][0])
            table = file.read(items[0][1])
    fragments = items[1:]
    starts = np.frombuffer(table[: len(table) // 4 * 4], "<u4").tolist()
    base = fragments[0][0] - 8 if fragments else 0
    begins = [n for n, (start, _, _) in enumerate(fragments) if start - 8 - base in set(starts)]
    if not (len(begins) == len(starts) > 1 and begins[0] == 0):
        signs = (b"\xff\xd8", b"\xff\x4f")
        begins = [n for n, (_, _, first) in enumerate(fragments) if first[:2] in signs]
    if len(fragments) == frames:
        begins = list(range(frames))
    elif frames == 1 and fragments and len(begins) < 2:
        begins = [0]
    if len(begins) != frames or begins[0] != 0:
        raise InputError(
            f"The DICOM file {header.path} announces {frames} frame{'s' if frames > 1 else ''} but"
            f" contains {len(begins) or len(fragments)}: it is damaged or cut short. {COPY}"
        )
    ends = [*begins[1:], len(fragments)]
    return [
        [(start, length) for start, length, _ in fragments[a:b]]
        for a, b in zip(begins, ends, strict=True)
    ]


def _frames(
    header: Header, layout: Format, numbers: Sequence[int], decoder: Decoder
) -> Iterator[tuple[int, NDArray]]:
    """Yield the stored numbers (rows, columns) of some frames, unsigned or floating point."""
    pixels = header.pixels
    assert pixels is not None
    shape = layout.rows, layout.columns
    swapped = pixels.vr == b"OW" and not header.little_endian and layout.stored.itemsize == 1
    if header.deflated:
        length = layout.frame_bytes * layout.frames
        content = inflated_pixels(header, length)
        _check_available(header, len(content), length)
        stored = np.frombuffer(content, layout.stored).reshape(-1, *shape)
        yield from ((n, stored[n]) for n in numbers)
        return
    with header.path.open("rb") as file:
        if header.syntax in _NATIVE:
            for n in numbers:
                start = n * layout.frame_bytes
                file.seek(pixels.offset + start - (start % 2 if swapped else 0))
                raw = file.read(layout.frame_bytes + (2 if swapped else 0))
                if swapped:  # bytes in words of two
                    words = raw[: len(raw) // 2 * 2]
                    raw = np.frombuffer(words, "u1").reshape(-1, 2)[:, ::-1].tobytes()[start % 2 :]
                _check_available(header, len(raw), layout.frame_bytes)
                yield n, np.frombuffer(raw, layout.stored, shape[0] * shape[1]).reshape(shape)
            return
        coded = _fragments(header, pixels, layout.frames)
        with tempfile.TemporaryDirectory(prefix="shmoareg-") as folder:
            for n in numbers:
                parts = []
                for start, length in coded[n]:
                    file.seek(start)
                    parts.append(file.read(length))
                yield (
                    n,
                    _decoded(header, layout, b"".join(parts), decoder, Path(folder) / "frame.dcm"),
                )


def _decoded(header: Header, layout: Format, frame: bytes, decoder: Decoder, path: Path) -> NDArray:
    """Decompress one frame."""
    try:
        if header.syntax == _RLE:
            return _decoded_rle(header, layout, frame)
        _check_frame_size(header, layout, frame)
        return _decoded_by_gdcm(header, layout, frame, decoder, path)
    except InputError:
        raise
    except Exception as error:  # the library may fail on arbitrary bytes
        reason = str(error).strip().splitlines()
        raise InputError(
            f"The compressed pixels of the DICOM file {header.path} cannot be decompressed"
            f" ({reason[-1].strip() if reason else type(error).__name__}). {COPY}"
        ) from error


def _decoded_rle(header: Header, layout: Format, frame: bytes) -> NDArray:
    from pydicom.pixels import pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = pixel_array(_single_frame_dataset(header, layout, frame), raw=True)
    return values.reshape(layout.rows, layout.columns).view(layout.stored.newbyteorder("="))


def _decoded_by_gdcm(
    header: Header, layout: Format, frame: bytes, decoder: Decoder, path: Path
) -> NDArray:
    """Ours: GDCM gets the pixels without slope and intercept, so these are applied only once."""
    _single_frame_dataset(header, layout, frame).save_as(path, enforce_file_format=True)
    values = decoder.decode(path)
    if values.shape != (layout.rows, layout.columns) or values.dtype.kind not in "iu":
        raise ValueError(f"an image of {values.shape} {values.dtype} values came out")
    return values.astype(layout.stored.newbyteorder("="))


def _single_frame_dataset(header: Header, layout: Format, frame: bytes) -> Dataset:
    """Dataset with a single compressed frame."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = UID(header.syntax)
    plain = FileDataset("frame", {}, file_meta=meta, preamble=b"\0" * 128)
    plain.SOPClassUID, plain.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    plain.SamplesPerPixel, plain.PhotometricInterpretation = 1, "MONOCHROME2"
    plain.Rows, plain.Columns = layout.rows, layout.columns
    plain.BitsAllocated = 8 * layout.stored.itemsize
    plain.BitsStored = layout.bits + layout.shift
    plain.HighBit = plain.BitsStored - 1
    plain.PixelRepresentation = int(layout.signed)
    plain.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    plain["PixelData"].is_undefined_length = True
    return plain


def _check_frame_size(header: Header, layout: Format, frame: bytes) -> None:
    """Refuse a frame whose own header announces another size, which the decoder would use."""
    found = _size_jpeg_2000(frame) if header.syntax in _JPEG_2000 else _size_jpeg(frame)
    if found != (layout.columns, layout.rows, 1):
        announced = (
            "nothing readable" if found is None else "{} x {} pixels of {} samples".format(*found)
        )
        raise InputError(
            f"The compressed pixels of the DICOM file {header.path} are damaged: {layout.columns} x"
            f" {layout.rows} pixels of 1 sample were expected, {announced} was found. {COPY}"
        )


def _size_jpeg(frame: bytes) -> tuple[int, int, int] | None:
    """Columns, rows and samples in the header of a JPEG or JPEG-LS stream."""
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(frame[at + n : at + n + 2], "big") for n in (5, 7))
            return columns, rows, frame[at + 9]
        else:
            at += 2 + max(length, 2)
    return None


def _size_jpeg_2000(frame: bytes) -> tuple[int, int, int] | None:
    """Columns, rows and samples in the header of a JPEG 2000 codestream, with or without JP2
    file.
    """
    at = frame[:4096].find(b"\xff\x4f\xff\x51")
    if at < 0 or len(frame) < at + 42:
        return None
    right, bottom, left, top = (
        int.from_bytes(frame[at + n : at + n + 4], "big") for n in (8, 12, 16, 20)
    )
    return right - left, bottom - top, int.from_bytes(frame[at + 40 : at + 42], "big")


def _stored(raw: NDArray, layout: Format) -> NDArray:
    """Stored numbers without unused bits, with the sign restored."""
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if raw.dtype.kind == "f":
        return raw
    spare = 8 * raw.dtype.itemsize - layout.bits
    signed = raw.dtype.str.replace("u", "i")
    if spare:
        raw = raw << raw.dtype.type(spare - layout.shift)  # moves the highest used bit to the top
        if layout.signed:
            return raw.view(signed) >> np.dtype(signed).type(spare)
        return raw >> raw.dtype.type(spare)
    return raw.view(signed) if layout.signed else raw


def _scaled(stored: NDArray, each: Slice, kind: np.dtype) -> NDArray:
    if kind.kind in "iu":  # modulo 2^n, and the sum is in range
        return stored.astype(kind) + np.array(int(each.intercept)).astype(kind)
    if (each.slope, each.intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * each.slope + each.intercept


def _type_for(where: Path, parts: Sequence[tuple[Format, float, float]]) -> np.dtype:
    """Data type that fits the values of all slices."""
    parts = list(dict.fromkeys(parts))
    if any(layout.stored.kind == "f" for layout, _, _ in parts):
        double = any(
            layout.stored.itemsize == 8 or layout.stored.kind != "f" for layout, _, _ in parts
        )
        plain = all(part[1:] == (1.0, 0.0) for part in parts)
        return np.dtype(np.float32 if plain and not double else np.float64)
    if all(slope == 1 and intercept.is_integer() for _, slope, intercept in parts):
        low = min(layout.limits[0] + int(intercept) for layout, _, intercept in parts)
        high = max(layout.limits[1] + int(intercept) for layout, _, intercept in parts)
        for name in _INTEGERS:
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
    ends = [
        abs(slope * float(end) + intercept)
        for layout, slope, intercept in parts
        for end in layout.limits
    ]
    if not np.isfinite(ends).all():
        raise InputError(
            f"The DICOM series in {where} scales its values beyond double precision (by"
            f" {max(abs(slope) for _, slope, _ in parts):.3g}). {COPY}"
        )
    finest = min(abs(slope) for _, slope, _ in parts)
    exact = max(ends) < 2**24 * finest and max(ends) < 1e38 and finest > 1e-30
    return np.dtype(np.float32 if exact else np.float64)
