"""Reading and writing of NIfTI and MGH files, with a checked header.

The header is checked field by field before any voxel is read, and errors name the damaged field;
nibabel's header classes parse the fields.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import igzip_threaded
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, float_type
from napari_shmoareg.io.files import check_memory
from napari_shmoareg.io.itk import fits_itk, is_orthonormal
from napari_shmoareg.io.orientation import (
    AmbiguousOrientation,
    check_spacing,
    warn_guessed,
    warn_lengths,
)
from napari_shmoareg.io.streams import Content, Damaged, check_end, open_regular, warn_unread

_LEVEL, _THREADS = 2, 2  # of the compression; low, to leave cores to other work
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metres, mm, micrometres
# bytes of a NIfTI-1 and NIfTI-2 header: smallest offset of the voxels
_SIZES = {348: 352, 540: 544}
_QUATERNION = 1.01  # Ours: a larger b² + c² + d² is not due to rounding (to two digits)
_TOLERANCE = 0.1  # Ours: voxels between two positions of a corner, above which to warn
_LOOSE_TOLERANCE = 0.5  # if ITK uses the sform too: quaternions near a half turn are imprecise
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
    1536: "longdouble",
}  # fmt: skip
_MGH_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_SET_BOTH = (
    "Write one affine into both, in Python: i = nibabel.load(file); i.set_qform(i.affine, 1);"
    " i.set_sform(i.affine, 1); i.to_filename(copy)."
)
_OTHER_TYPES = (  # other content of files named as NIfTI, by first bytes
    (b"NRRD", "an NRRD file: rename it to end in .nrrd"),
    (b"ObjectType", "a MetaImage file: rename it to end in .mha"),
    (b"\x89HDF", "an HDF5 file (MINC 2 perhaps): convert it to NIfTI"),
    (b"CDF", "a NetCDF file (MINC 1 perhaps): convert it to NIfTI"),
    (
        b"version https://git-lfs",
        "a placeholder of Git LFS: get the file itself with 'git lfs pull'",
    ),
    (b"<", "XML or HTML text (a GIFTI surface, or an error page): it contains no voxels"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"BZh", "compressed by bzip2: decompress it first"),
    (b"\xfd7zXZ", "compressed by xz: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: decompress it first"),
)


@dataclass(frozen=True)
class Header:
    """Checked header of a NIfTI or MGH file.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        All axes, at least one.
    dtype : numpy dtype
        Type of the stored voxels.
    offset : int
        Bytes of content before the voxels.
    affine : (4, 4) array
        Voxel index to RAS mm.
    slope, inter : float
        The value of a voxel is slope x stored + inter.
    intent : int
        NIfTI's intent code; 0 for MGH.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    affine: NDArray[np.float64]
    slope: float = 1.0
    inter: float = 0.0
    intent: int = 0


@dataclass(frozen=True)
class Image:
    """An opened file: its header, and the voxels as stored."""

    header: Header
    stored: NDArray

    @property
    def shape(self) -> tuple[int, ...]:
        """All axes."""
        return self.header.shape

    @property
    def intent(self) -> int:
        """NIfTI's intent code."""
        return self.header.intent


def load(path: Path) -> tuple[Image, NDArray[np.float64]]:
    """Read a file: its voxels as stored, and the affine from voxel index to RAS mm.

    Ours: a compressed file is read to its end, so that its checksum is verified, but never much
    further than its header announces.

    Raises
    ------
    InputError
        If the file is damaged, of another type, or its qform is not a rotation.  The affine as a
        whole is checked by `Grid`.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    GuessedOrientation
        If the file does not define position and orientation.
    AmbiguousOrientation
        If other programs would place the image elsewhere.
    UnreadBytes
        If bytes follow that the header does not announce.
    """
    with open_regular(path) as file:
        content = Content(file, "gzip" if _is_named_compressed(path) else "none")
        header, start = _header(path, file, content, warn=True)
        itemsize = header.dtype.itemsize
        check_memory(path, header.shape, 3 * itemsize + (8 if itemsize > 2 else 4))
        count = int(np.prod([int(n) for n in header.shape], dtype=object))
        missing = header.offset + count * itemsize - path.stat().st_size
        if missing > 0 and not _is_named_compressed(path):
            raise truncated(path)
        try:
            content.read(header.offset - start)
            raw = content.read(count * itemsize)
            if len(raw) < count * itemsize:
                raise Damaged(content.readable)
            footer = path.suffix.lower() in (".mgh", ".mgz")
            if _is_named_compressed(path):
                check_end(path, content, header.offset + count * itemsize, footer=footer)
            elif missing < 0 and not footer:
                warn_unread(path, f"holds {-missing} bytes more than its header announces")
        except Damaged as error:
            raise truncated(path, error.readable) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}. Copy it again.") from error
    stored = np.frombuffer(raw, header.dtype, count).reshape(header.shape, order="F")
    return Image(header, stored), header.affine


def read_header(path: Path) -> Header:
    """Read only the header, without warnings; raises as `load`."""
    with open_regular(path) as file:
        content = Content(file, "gzip" if _is_named_compressed(path) else "none")
        return _header(path, file, content, warn=False)[0]


def values_of(image: Image, *, scaled_to: type[np.floating] = np.float32) -> NDArray:
    """Voxels of an image, scaled according to its header, in native byte order.

    Unscaled integers stay integers; scaled ones become `scaled_to`, or float64 if float32 cannot
    distinguish them. Labels need float64: float32 cannot distinguish whole numbers beyond 2^24.

    Raises
    ------
    InputError
        If scaled values exceed the range of that type.
    """
    stored, slope, inter = image.stored, image.header.slope, image.header.inter
    if (slope, inter) != (1.0, 0.0):
        low, high = float(stored.min()), float(stored.max())
        result = np.promote_types(scaled_to, float_type(low * slope + inter, high * slope + inter))
        if (
            np.isfinite([low, high]).all()
            and max(abs(low), abs(high)) * abs(slope) + abs(inter) > np.finfo(result).max
        ):
            raise InputError(
                f"{image.header.path} scales its voxels by {slope:g} and {inter:g} (scl_slope,"
                " scl_inter), to values beyond any image. Correct the header, or export the image"
                " again."
            )
        with np.errstate(all="ignore"):  # infinite values are refused where they are used
            values = stored.astype(np.promote_types(result, float_type(low, high)))
            values *= values.dtype.type(slope)
            values += values.dtype.type(inter)
            return values.astype(result, copy=False)
    if stored.dtype.kind == "f" and stored.dtype.itemsize not in (4, 8):
        return stored.astype(np.float32 if stored.dtype.itemsize < 4 else np.float64)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def write(
    values: NDArray,
    grid: Grid,
    path: Path,
    *,
    intent: str | None = None,
    slope: float | None = None,
) -> None:
    """Write values (I, J, K, ...) on a grid; mm, scanner space (code 1).

    A qform cannot represent shears: a sheared grid gets an sform only. With a slope, integers are
    written as they are and mean slope times the stored value.
    """
    import nibabel

    image: Any = nibabel.Nifti1Image(values, grid.affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    if fits_itk(grid):
        image.set_qform(grid.affine, code=1)
    else:
        image.header["qform_code"] = 0
    if intent is not None:
        image.header.set_intent(intent)
    image.header.set_slope_inter(1 if slope is None else slope, 0)
    image.header["vox_offset"] = _SIZES[348]
    with _writable(path) as file:
        file.write(image.header.binaryblock + bytes(_SIZES[348] - 348))  # without extensions
        for piece in values.T:  # the first axis runs fastest in the file
            file.write(np.ascontiguousarray(piece).data)


def _writable(path: Path) -> Any:
    if _is_named_compressed(path):
        return igzip_threaded.open(path, "wb", compresslevel=_LEVEL, threads=_THREADS)
    return path.open("wb")


def truncated(path: Path, readable: int | None = None) -> InputError:
    """Error for a file that ends early or fails its checksum."""
    size = path.stat().st_size
    got = (
        f"{size} bytes on disk"
        if readable is None
        else f"{size} bytes on disk, {readable} bytes of content readable"
    )
    return InputError(f"{path} is damaged or cut short ({got}). Download or copy it again.")


def _is_named_compressed(path: Path) -> bool:
    return path.suffix.lower() in (".gz", ".mgz")


def _header(path: Path, file: IO[bytes], content: Content, *, warn: bool) -> tuple[Header, int]:
    """Read and check the header; return it and the number of content bytes read."""
    start = file.read(132)
    file.seek(0)
    if (start[:2] == b"\x1f\x8b") != _is_named_compressed(path):
        raise _wrong_type(path, start)
    mgh = path.suffix.lower() in (".mgh", ".mgz")
    try:
        raw = bytes(content.read(284 if mgh else 348))
        if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):  # NIfTI-2
            raw += content.read(540 - 348)
    except Damaged as error:
        if not error.readable:
            raise _wrong_type(
                path, b"", "Its compressed content is broken from the start."
            ) from error
        raise truncated(path, error.readable) from error
    if mgh:
        return _mgh_header(path, raw, warn), len(raw)
    return _nifti_header(path, raw, warn), len(raw)


def _wrong_type(path: Path, start: bytes, found: str = "") -> InputError:
    """Error for a file with content of another type; `found` describes the decompressed content."""
    compressed, named = start[:2] == b"\x1f\x8b", _is_named_compressed(path)
    other = next(
        (what for magic, what in _OTHER_TYPES if start.lstrip(b"\r\n ").startswith(magic)), None
    )
    if start[128:132] == b"DICM":
        other = "a DICOM file: give the folder that holds all slices of the scan"
    if compressed and named:
        hint = "Its content is compressed twice: decompress it once."
    elif compressed:
        hint = "Its content is compressed: rename it to end in .nii.gz (or .mgz)."
    elif other:
        hint = f"Its content is {other}."
    elif named and not found:
        hint = (
            "Its content is not compressed: rename it to end in .nii (or .mgh), or download it"
            " again."
        )
    else:
        hint = f"{found} Give a NIfTI or MGH file, or export the image again."
    return InputError(f"{path} is not the kind of image that its ending suggests. {hint}")


def _nifti_header(path: Path, raw: bytes, warn: bool) -> Header:
    import nibabel

    size, order = next(
        ((n, o) for o in "<>" for n in _SIZES if raw[:4] == np.array(n, f"{o}i4").tobytes()),
        (0, "<"),
    )
    if not size or len(raw) < size:
        raise _wrong_type(
            path, raw, "It does not begin like a NIfTI header, with the size 348 or 540."
        )
    kind = nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header
    fields: Any = kind(raw[:size], endianness=order, check=False)
    magic = bytes(raw[344:348] if size == 348 else raw[4:8])
    if magic[:3] in (b"ni1", b"ni2"):
        raise InputError(
            f"{path} is the header of a file pair (.hdr and .img), with the voxels in another file."
            " Convert the pair to one .nii.gz file."
        )
    if magic[:3] not in (b"n+1", b"n+2"):
        raise InputError(
            f"{path} has no NIfTI magic in its header ({magic!r}; 'n+1' was expected): an Analyze"
            " 7.5 file, which does not distinguish left from right, or a damaged one. Export the"
            " image again as NIfTI."
        )
    shape = _shape(path, fields)
    intent = int(fields["intent_code"])
    _check_is_volume(path, intent, shape)
    slope, inter = _scaling(path, float(fields["scl_slope"]), float(fields["scl_inter"]))
    dtype = _dtype(path, fields, order)
    if warn and int(fields["bitpix"]) != 8 * dtype.itemsize:
        warnings.warn(
            f"'{path}' stores the voxel type twice, and its datatype ({int(fields['datatype'])},"
            f" {8 * dtype.itemsize} bits) and bitpix ({int(fields['bitpix'])}) disagree. The"
            " datatype was used, as in nibabel and ITK. Compare the image with another one in a"
            " viewer, and correct the header.",
            UserWarning,
            stacklevel=4,
        )
    offset = _offset(path, float(fields["vox_offset"]), _SIZES[size], warn)
    return Header(
        path, shape, dtype, offset, _affine(path, fields, shape, warn), slope, inter, intent
    )


def _shape(path: Path, fields: Any) -> tuple[int, ...]:
    axes = int(fields["dim"][0])
    if not 1 <= axes <= 7:
        raise InputError(
            f"{path} has {axes} axes according to its header (dim[0]); 3 were expected, 1 to 7 are"
            " possible. The header is damaged: export the image again."
        )
    shape = tuple(int(n) for n in fields["dim"][1 : axes + 1])
    if min(shape) < 0:
        raise InputError(
            f"{path} has the shape {shape} according to its header, with a negative number of"
            " voxels. It is damaged, or a FreeSurfer surface, which is not a volume. Export the"
            " image again."
        )
    return shape


def _check_is_volume(path: Path, intent: int, shape: Sequence[int]) -> None:
    if 3000 <= intent < 3100:
        raise InputError(
            f"{path} is a CIFTI-2 file (intent {intent}): values on surfaces and lists of voxels,"
            " not a volume. Give a NIfTI volume, for example one written by 'wb_command"
            " -cifti-separate ... -volume-all'."
        )
    if 2001 <= intent <= 2005 and sum(n > 1 for n in shape) < 3:
        raise InputError(
            f"{path} (intent {intent}, shape {tuple(shape)}) contains values on a surface, not a"
            " volume. Give the volume that the surface was made from."
        )


def _scaling(path: Path, slope: float, inter: float) -> tuple[float, float]:
    """Slope and inter; a slope of 0 or NaN means no scaling, as in the standard and nibabel."""
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(inter)):
        raise InputError(
            f"{path} scales its voxels by {slope} and {inter} (scl_slope, scl_inter); finite"
            " numbers were expected. Correct the header, or export the image again."
        )
    return slope, inter


def _dtype(path: Path, fields: Any, order: str) -> np.dtype:
    code = int(fields["datatype"])
    if code in (128, 2304):
        raise InputError(
            f"{path} is an RGB image (colours); one value per voxel was expected. Convert it to"
            " greyscale, or choose the original scan."
        )
    if code in (32, 1792, 2048):
        raise InputError(
            f"{path} contains complex numbers; one real value per voxel was expected. Export the"
            " magnitude of the image."
        )
    if code not in _TYPES:
        raise InputError(
            f"{path} has the data type {code} in its header, which is not supported; numbers of"
            " 8 to 64 bits are. The header is damaged, or the file needs another program: export"
            " the image again."
        )
    return np.dtype(_TYPES[code]).newbyteorder("<" if order == "<" else ">")


def _offset(path: Path, offset: float, least: int, warn: bool) -> int:
    """Offset of the voxels; 0 means the smallest offset that the standard allows."""
    if offset == 0:
        if warn:
            warnings.warn(
                f"'{path}' does not give the offset of its voxels (vox_offset is 0): they were read"
                f" from byte {least}, the smallest offset that the standard allows. Compare the"
                " image with another one in a viewer.",
                UserWarning,
                stacklevel=5,
            )
        return least
    if not (np.isfinite(offset) and offset == int(offset) and least <= offset):
        raise InputError(
            f"{path} says that its voxels begin at byte {offset:g} (vox_offset); {least} or more"
            " was expected in a single file. Correct the header, or export the image again."
        )
    if offset > 2**40 or (not _is_named_compressed(path) and offset > path.stat().st_size):
        raise InputError(
            f"{path} says that its voxels begin at byte {offset:.0f} (vox_offset), beyond its end"
            f" ({path.stat().st_size} bytes on disk). It is damaged or cut short: download or copy"
            " it again."
        )
    return int(offset)


def _affine(path: Path, fields: Any, shape: tuple[int, ...], warn: bool) -> NDArray[np.float64]:
    """Voxel index to RAS mm: the sform if its code is above 0, else the qform, else an
    assumption.
    """
    scale = _unit(path, int(fields["xyzt_units"]) & 7, warn)
    qform, sform = int(fields["qform_code"]), int(fields["sform_code"])
    spacing = np.array(fields["pixdim"][1:4], dtype=np.float64)
    rotation, error = _rotation(path, fields) if qform > 0 else (np.eye(3), None)
    by_qform = np.eye(4)
    by_qform[:3, :3] = rotation * np.abs(spacing)
    by_qform[:3, 3] = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
    by_sform = np.eye(4)
    by_sform[:3] = [fields["srow_x"], fields["srow_y"], fields["srow_z"]]
    if sform > 0:
        affine = by_sform
        if warn and len(shape) >= 3 and np.isfinite(affine).all():
            ours = affine, f"sform (code {sform})"
            _warn_of_disagreement(
                path, shape, ours, by_qform if error is None else None, (qform, sform), spacing
            )
    else:
        check_spacing(path, spacing)
        affine = by_qform
        if error is not None:
            raise error
        if qform > 0 and spacing.min() < 0 and warn and len(shape) >= 3:
            warnings.warn(
                f"'{path}' has the voxel spacing {_numbers(spacing)} with its qform; numbers above"
                " 0 were expected. The absolute values were used, as in nibabel. ITK and programs"
                " built on it (ANTs, elastix, 3D Slicer) reverse the axis: a transform written here"
                f" does not fit there. {_SET_BOTH}",
                AmbiguousOrientation,
                stacklevel=5,
            )
        if qform <= 0:
            if warn and len(shape) >= 3:
                warn_guessed(
                    path, "its qform and sform codes are 0", "to the left, the front and up"
                )
            steps = np.abs(spacing) * (-1, 1, 1)
            counts = np.array([*shape, 1, 1][:3])
            affine = np.diag([*steps, 1.0])
            affine[:3, 3] = -steps * (counts - 1) / 2
    affine[:3] *= scale
    return affine


def _unit(path: Path, code: int, warn: bool) -> float:
    """Unit of a header in mm; a missing unit counts as mm."""
    if code > 3 and warn:
        warnings.warn(
            f"'{path}' has a unit of length that NIfTI does not define (code {code} of xyzt_units):"
            " mm were assumed. Correct the header if that is wrong.",
            UserWarning,
            stacklevel=5,
        )
    return _UNITS.get(code, 1.0)


def _rotation(path: Path, fields: Any) -> tuple[NDArray[np.float64], InputError | None]:
    """Directions of the qform's axes, one per column; or the error in its quaternion."""
    b, c, d = (float(fields[f"quatern_{axis}"]) for axis in "bcd")
    square = b * b + c * c + d * d
    if not square <= _QUATERNION:
        return np.eye(3), InputError(
            f"{path} has the quaternion ({b:.6g}, {c:.6g}, {d:.6g}) in its qform, whose squares add"
            f" up to {square:.6g}; at most 1 was expected. The header is damaged: export the image"
            " again."
        )
    if square > 1 - 1e-7:  # as in the standard's own code: a half turn
        b, c, d = np.array([b, c, d]) / np.sqrt(square)
        a = 0.0
    else:
        a = float(np.sqrt(1 - square))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if float(fields["pixdim"][0]) < 0:  # qfac; 0 counts as 1
        rotation[:, 2] *= -1
    return rotation, None


def _warn_of_disagreement(
    path: Path,
    shape: tuple[int, ...],
    ours: tuple[NDArray[np.float64], str],
    by_qform: NDArray[np.float64] | None,
    codes: tuple[int, int],
    spacing: NDArray[np.float64],
) -> None:
    """Warn if the qform or pixdim put the corners elsewhere than the sform."""
    affine, chosen = ours
    qform, sform = codes
    try:
        grid = Grid((max(shape[0], 1), max(shape[1], 1), max(shape[2], 1)), affine)
    except InputError:
        return  # reported when the image is built
    usable = (
        by_qform is not None and qform > 0 and np.isfinite(by_qform).all() and np.all(spacing != 0)
    )
    itk_uses_sform = sform == 1 and is_orthonormal(grid)
    if (
        by_qform is not None
        and usable
        and (
            distance := _describe_distance(
                grid, by_qform, _LOOSE_TOLERANCE if itk_uses_sform else _TOLERANCE
            )
        )
        is not None
    ):
        if itk_uses_sform:
            other = (
                "ITK 5.4 and programs built on it (ANTs, elastix, 3D Slicer) use the sform too, as"
                " its code is 1; older versions and other programs use the qform, and a transform"
                " written here does not fit there."
            )
        else:
            other = (
                "ITK and programs built on it (ANTs, elastix, 3D Slicer) use the qform: a transform"
                " written here is off by as much there."
            )
        warnings.warn(
            f"'{path}' defines the position of its voxels twice, and its qform (code {qform}) and"
            f" sform (code {sform}) disagree by up to {distance}. The {chosen} was used, as in"
            f" nibabel and FSL. {other} {_SET_BOTH}",
            AmbiguousOrientation,
            stacklevel=6,
        )
        return
    # ITK reverses an axis with negative spacing
    by_itk = np.where(np.isfinite(spacing) & (spacing != 0), spacing, 1.0)
    scaled = affine.copy()
    scaled[:3, :3] *= by_itk / grid.spacing
    if (distance := _describe_distance(grid, scaled)) is not None:
        warnings.warn(
            f"'{path}' gives the spacing {_numbers(spacing)} in pixdim but {_numbers(grid.spacing)}"
            f" in its sform (code {sform}): corners differ by up to {distance}. The sform was used,"
            " as in nibabel and FSL. ITK and programs built on it (ANTs, elastix, 3D Slicer) use"
            f" {_numbers(by_itk)}: a transform written here is off by as much there. {_SET_BOTH}",
            AmbiguousOrientation,
            stacklevel=6,
        )


def _describe_distance(
    grid: Grid, affine: NDArray[np.float64], least: float = _TOLERANCE
) -> str | None:
    """Describe the distance between two positions of the corners, if it exceeds `least`."""
    try:
        other = Grid(grid.shape, affine)
    except InputError:
        return None
    if (voxels := grid.distance(other)) <= least:
        return None
    length = float(np.linalg.norm(grid.corners() - other.corners(), axis=1).max())
    return f"{length:.3g} (in the file's unit, mm as a rule; {voxels:.3g} voxels)"


def _numbers(numbers: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{n:.6g}" for n in numbers)


def _mgh_header(path: Path, raw: bytes, warn: bool) -> Header:
    start = np.frombuffer(raw[:28].ljust(28, b"\0"), ">i4")
    if len(raw) < 90 or start[0] != 1:
        raise _wrong_type(path, raw, "It does not begin like an MGH header, with the version 1.")
    shape = tuple(int(n) for n in start[1:5])
    if min(shape) < 0:
        raise InputError(
            f"{path} has the shape {shape} according to its header. It is damaged: export the image"
            " again."
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if int(start[5]) not in _MGH_TYPES:
        raise InputError(
            f"{path} has the data type {start[5]} in its header; one of {sorted(_MGH_TYPES)} was"
            " expected. It is damaged: export the image again."
        )
    affine = np.eye(4)
    middle = np.array(shape[:3]) / 2
    if int.from_bytes(raw[28:30], "big", signed=True) > 0:
        numbers = np.frombuffer(raw[30:90], ">f4").astype(np.float64)
        check_spacing(path, numbers[:3])
        directions = numbers[3:12].reshape(3, 3).T
        if warn:
            warn_lengths(path, directions, "direction cosines")
        affine[:3, :3] = directions * numbers[:3]
        affine[:3, 3] = numbers[12:15] - affine[:3, :3] @ middle
    else:
        if warn:
            warn_guessed(path, "its goodRASFlag is 0", "to the left, down and to the front at 1 mm")
        # Ours: the default of FreeSurfer itself; nibabel uses its transpose, which is upside down.
        affine[:3, :3] = [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]
        affine[:3, 3] = -affine[:3, :3] @ middle
    return Header(path, shape, np.dtype(_MGH_TYPES[int(start[5])]), 284, affine)
