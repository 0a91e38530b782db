"""NIfTI and MGH files through nibabel, whole and checked."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, InputError
from napari_shmoareg.io.itk import is_orthonormal
from napari_shmoareg.io.memory import check_memory
from napari_shmoareg.io.orientation import check_spacing, warn_guessed

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def load(path: Path) -> tuple[Any, NDArray[np.float64]]:
    """Open a file whole: a nibabel image, and voxel index to RAS mm.

    Ours: a compressed file is read to its end, so that its checksum is looked at; nibabel
    stops at the last voxel and lets a damaged file pass.

    Raises
    ------
    InputError
        If the file is damaged, of another type, or has no place in the world.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    GuessedPlace
        If the file does not say where its voxels stand.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        affine = np.array(image.affine, dtype=np.float64)
    except (EOFError, zlib.error) as error:
        raise truncated(path, _readable_bytes(path)) from error
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        ValueError,
        OSError,
    ) as error:
        raise InputError(_wrong_type(path, error)) from error
    if image.get_data_dtype().fields:
        raise InputError(
            f"{path} is an RGB image (colours); one value per voxel was expected. Convert it to greyscale, or choose "
            "the scan that it was made from."
        )
    check_memory(path, image.shape, 3 * image.get_data_dtype().itemsize + 4)
    if path.suffix.lower() in (".gz", ".mgz"):
        try:
            image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise truncated(path, _readable_bytes(path)) from error
    return image, _in_millimetres(path, image.header, affine)


def values_of(path: Path, image: Any, *, scaled_to: type[np.floating] = np.float32) -> NDArray:
    """The voxels of an opened image, scaled as its header says, in this machine's byte order.

    Integers without scaling stay integers; scaled ones become `scaled_to`.  Labels want
    float64: float32 cannot tell whole numbers beyond 2^24 apart.
    """
    try:
        scaled = (getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)) != (1.0, 0.0)
        # Copied: a memory map would change, or crash, with its file.
        values = np.asarray(image.dataobj, dtype=scaled_to) if scaled else np.asarray(image.dataobj).copy()
    except (EOFError, OSError, ValueError) as error:
        raise truncated(path, _readable_bytes(path)) from error
    if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
        values = values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    return np.asarray(values).astype(values.dtype.newbyteorder("="), copy=False)


def write(values: NDArray, grid: Grid, path: Path, *, intent: str | None = None, slope: float | None = None) -> None:
    """Write values (I, J, K, ...) on a grid; mm, scanner space (code 1).

    A qform cannot hold shears: a sheared grid is written with an sform alone.  With a slope,
    integers are written as they are and stand for slope times themselves.
    """
    import nibabel

    image: Any = nibabel.Nifti1Image(values, grid.affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    if is_orthonormal(grid):
        image.set_qform(grid.affine, code=1)
    else:
        image.header["qform_code"] = 0
    if intent is not None:
        image.header.set_intent(intent)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)


def truncated(path: Path, readable: int | None = None) -> InputError:
    """The error for a file that ends early or fails its checksum."""
    size = path.stat().st_size
    got = f"{size} bytes on disk" if readable is None else f"{size} bytes on disk, {readable} bytes of content readable"
    return InputError(f"{path} is damaged or cut short ({got}). Download or copy it again.")


def _readable_bytes(path: Path) -> int | None:
    """How many bytes a compressed file gives before it breaks."""
    if path.suffix.lower() not in (".gz", ".mgz"):
        return None
    count = 0
    with gzip.open(path) as file:
        try:
            while block := file.read(2**20):
                count += len(block)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return count
    return count


def _wrong_type(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    named = path.suffix.lower() in (".gz", ".mgz")
    if compressed and not named:
        hint = " Its content is compressed: rename it to end in .nii.gz (or .mgz)."
    elif named and not compressed:
        hint = " Its content is not compressed: rename it to end in .nii (or .mgh), or download it again."
    else:
        hint = " Give a NIfTI or MGH file, or export the image again."
    return f"{path} is not the image that its ending announces: {str(error).strip()}.{hint}"


def _in_millimetres(path: Path, header: Any, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Check where a header's place comes from, and turn metres or micrometres into mm."""
    if "sform_code" not in header:  # MGH: always mm
        if int.from_bytes(_start(path, 30)[28:30], "big", signed=True) <= 0:
            warn_guessed(path, "its goodRASFlag is 0", "to the left, down and to the front at 1 mm")
            # Ours: the default that FreeSurfer itself takes; nibabel takes its transpose, upside down.
            affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
            affine[:3, 3] = -affine[:3, :3] @ (np.asarray(header["dims"][:3]) / 2)
        return affine
    if int(header["sform_code"]) == 0:
        # As stored: nibabel quietly turns a spacing of 0 into 1.
        raw = type(header)(_start(path, header.sizeof_hdr), check=False)
        check_spacing(path, raw["pixdim"][1:4])
        if int(header["qform_code"]) == 0:
            warn_guessed(path, "its qform and sform codes are 0", "to the left, the front and up")
    scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ affine


def _start(path: Path, count: int) -> bytes:
    """The first bytes of a file's content."""
    with gzip.open(path) if path.suffix.lower() in (".gz", ".mgz") else path.open("rb") as file:
        return file.read(count)
