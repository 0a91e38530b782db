"""NIfTI and MGH files through nibabel, whole and checked."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Grid, InputError
from napari_shmoareg.io.itk import is_orthonormal
from napari_shmoareg.io.memory import check_memory

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
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        affine = np.array(image.affine, dtype=np.float64)
    except EOFError as error:
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


def values_of(path: Path, image: Any) -> NDArray:
    """The voxels of an opened image, scaled as its header says, in this machine's byte order.

    Integers without scaling stay integers; scaled ones become float32.
    """
    try:
        scaled = (getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)) != (1.0, 0.0)
        # Copied: a memory map would change, or crash, with its file.
        values = np.asarray(image.dataobj, dtype=np.float32) if scaled else np.asarray(image.dataobj).copy()
    except (EOFError, OSError, ValueError) as error:
        raise truncated(path, _readable_bytes(path)) from error
    if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
        values = values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    return np.asarray(values).astype(values.dtype.newbyteorder("="), copy=False)


def write(values: NDArray, grid: Grid, path: Path, *, intent: str | None = None) -> None:
    """Write values (I, J, K, ...) on a grid; mm, scanner space (code 1).

    A qform cannot hold shears: a sheared grid is written with an sform alone.
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
    if "sform_code" not in header:  # MGH: always placed, always mm
        return affine
    if int(header["sform_code"]) == 0:
        spacing = _raw_spacing(path, header)
        if not (np.isfinite(spacing).all() and np.all(spacing != 0)):
            raise InputError(
                f"{path} has the voxel spacing {tuple(float(s) for s in spacing)} mm and no sform: every axis needs a "
                "spacing above 0. Correct the header (pixdim), or export the image again."
            )
        if int(header["qform_code"]) == 0:
            warnings.warn(
                f"{path} does not say how it lies in the world (qform and sform codes are 0): right and left, front "
                "and back are guessed from the order of its voxels.",
                UserWarning,
                stacklevel=4,
            )
    scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ affine


def _raw_spacing(path: Path, header: Any) -> NDArray[np.float64]:
    """The spacing as stored: nibabel quietly turns a spacing of 0 into 1."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        block = file.read(header.sizeof_hdr)
    return np.asarray(type(header)(block, check=False)["pixdim"][1:4], dtype=np.float64)
