"""A folder of DICOM slices as one volume, every slice accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import itk
from napari_shmoareg.io.memory import check_memory

_POSITION, _ORIENTATION, _DESCRIPTION, _BITS = "0020|0032", "0020|0037", "0008|103e", "0028|0100"
_PIXEL_DATA = b"\xe0\x7f\x10\x00"


def load(folder: Path, series: str | None = None) -> tuple[NDArray, NDArray[np.float64]]:
    """Read one series of a folder.

    Ours: the affine is built from the positions of the slices themselves, so a tilted
    gantry gives the sheared grid that it is; ITK would straighten it silently.

    Parameters
    ----------
    folder : Path
    series : str, optional
        Series instance UID; needed only where there are several.

    Returns
    -------
    values : (I, J, K) array
    affine : (4, 4) array
        Voxel index to RAS mm.

    Raises
    ------
    InputError
        If there is no series, or several and none is chosen, or slices are missing, double,
        or unlike one another.
    """
    import SimpleITK as sitk

    with _quiet():
        files = _files(folder, series)
        tags = [_header(Path(file)) for file in files]
    if len(files) == 1 and len(tags[0][0]) == 3 and tags[0][0][2] > 1:
        return itk.load(Path(files[0]))
    sizes = {size[:2] for size, _, _, _ in tags}
    orientations = np.array([orientation for _, _, orientation, _ in tags])
    if len(sizes) > 1 or np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(
            f"The slices in {folder} differ in size or direction ({len(sizes)} sizes, {len(tags)} slices); one stack "
            "of parallel slices was expected. Keep one stack per folder."
        )
    positions = np.array([position for _, position, _, _ in tags])
    order, step = _stack(folder, positions, orientations[0])
    check_memory(folder, (*sizes.pop(), len(files)), 16)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([files[n] for n in order])
    try:
        with _quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"The DICOM series in {folder} could not be read: {error}. Export or copy it again."
        ) from error
    affine = np.eye(4)
    affine[:3, 0] = orientations[0][:3] * image.GetSpacing()[0]
    affine[:3, 1] = orientations[0][3:] * image.GetSpacing()[1]
    normal = np.cross(orientations[0][:3], orientations[0][3:])
    affine[:3, 2] = normal * image.GetSpacing()[2] if step is None else step
    affine[:3, 3] = positions[order[0]]
    return itk.values_of(image), itk.LPS @ affine


def series_of(slice_: Path) -> tuple[str, list[Path]]:
    """The series in its folder that a slice belongs to, as `load` takes it, and all its slices.

    Raises
    ------
    InputError
        If the file is of no series that can be read.
    """
    import SimpleITK as sitk

    reader, folder = sitk.ImageSeriesReader, slice_.parent
    with _quiet():
        for uid in reader.GetGDCMSeriesIDs(str(folder)):
            files = [Path(file) for file in reader.GetGDCMSeriesFileNames(str(folder), uid)]
            if slice_.name in (file.name for file in files):
                return str(uid), files
    raise InputError(
        f"{slice_} is no slice of a DICOM series: a DICOM image was expected, with the other slices of its scan beside "
        "it. Choose the folder that holds the whole scan."
    )


def _files(folder: Path, series: str | None) -> list[str]:
    """The files of the one series there is, or of the one chosen."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    found = list(reader.GetGDCMSeriesIDs(str(folder)))
    files = {uid: list(reader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in found}
    _check_all_listed(folder, {Path(file).name for each in files.values() for file in each})
    if not found:
        raise InputError(
            f"The folder {folder} holds no DICOM series. Give an image file (.nii, .nii.gz, .mgz, .nrrd, .mha), or the "
            "folder that the slices themselves are in."
        )
    if series is None and len(found) > 1:
        listed = "; ".join(f"{uid} ({len(files[uid])} files, {_header(Path(files[uid][0]))[3]})" for uid in found)
        raise InputError(
            f"The folder {folder} holds {len(found)} DICOM series: {listed}. Choose one as FOLDER#SERIES_UID, such as "
            f"'{folder}#{found[0]}'."
        )
    chosen = found[0] if series is None else series
    if chosen not in files:
        raise InputError(f"The folder {folder} holds no DICOM series {chosen}; it holds {', '.join(found)}.")
    return files[chosen]


def _header(path: Path) -> tuple[tuple[int, ...], list[float], list[float], str]:
    """Size, position and orientation (LPS mm) and description of one file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"The DICOM file {path} could not be read; it is damaged. Copy it again.") from error
    size = tuple(reader.GetSize())
    _check_whole(path, prod(size) * int(reader.GetMetaData(_BITS) if reader.HasMetaDataKey(_BITS) else 16) // 8)
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"The DICOM file {path} is a colour image; one value per voxel was expected.")
    if not (reader.HasMetaDataKey(_POSITION) and reader.HasMetaDataKey(_ORIENTATION)):
        if len(size) == 3 and size[2] > 1:
            return size, [0.0] * 3, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], "one file"
        raise InputError(
            f"The DICOM file {path} does not say where its slice lies (position or orientation missing): a snapshot or "
            "report, not a scan. Choose a folder with the slices of one scan."
        )
    position, orientation = (
        [float(number) for number in reader.GetMetaData(tag).split("\\")] for tag in (_POSITION, _ORIENTATION)
    )
    named = reader.GetMetaData(_DESCRIPTION).strip() if reader.HasMetaDataKey(_DESCRIPTION) else ""
    return size, position, orientation, named or "without a description"


def _check_all_listed(folder: Path, listed: set[str]) -> None:
    """Refuse a folder with a damaged slice: ITK leaves it out without a word, and at an end no gap shows."""
    for path in sorted(folder.iterdir()):
        if path.name in listed or not path.is_file():
            continue
        with path.open("rb") as file:
            dicom = file.read(132)[128:] == b"DICM"
        if dicom and _PIXEL_DATA in path.read_bytes():
            raise InputError(
                f"The DICOM file {path} holds pixels but belongs to no readable series: it is damaged or cut short "
                f"({path.stat().st_size} bytes). Export or copy it again, or take it out of the folder."
            )


def _check_whole(path: Path, expected: int) -> None:
    """Refuse a file that ends within its pixels: ITK fills up the rest without a word.

    Only plain pixels announce their length; compressed ones fail when they are unpacked.
    """
    content, length = path.read_bytes(), expected.to_bytes(4, "little")
    for start in (_PIXEL_DATA + length, _PIXEL_DATA + b"OW\0\0" + length, _PIXEL_DATA + b"OB\0\0" + length):
        found = content.find(start)
        if 0 <= found and len(content) - found - len(start) < expected:
            raise InputError(
                f"The DICOM file {path} is cut short ({len(content)} bytes; {expected} bytes of pixels are announced). "
                "Export or copy the series again."
            )


def _stack(folder: Path, positions: NDArray, orientation: NDArray) -> tuple[list[int], NDArray | None]:
    """The order of the slices along their normal, and the step between them in LPS mm."""
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.argsort(positions @ normal, kind="stable")
    if len(order) == 1:
        return order.tolist(), None
    heights = (positions @ normal)[order]
    steps = np.diff(heights)
    usual = float(np.median(steps))
    if steps.min() < 0.01:
        n = int(steps.argmin())
        raise InputError(
            f"The DICOM series in {folder} has two slices at the same place ({heights[n]:.2f} mm): several time points "
            "or echoes in one series. Keep one of them in a folder of its own."
        )
    if np.abs(steps - usual).max() > 0.05 * usual:
        n = int(np.abs(steps - usual).argmax())
        missing = int(np.maximum(np.rint(steps / usual) - 1, 0).sum())
        raise InputError(
            f"The slices in {folder} are not evenly spaced: {steps[n]:.3f} mm between {heights[n]:.2f} and "
            f"{heights[n + 1]:.2f} mm along the stack, where {usual:.3f} mm is usual; about {missing} of "
            f"{len(order) + missing} slices are missing. Export or copy the whole series again."
        )
    return order.tolist(), (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ITK's own warnings: what they hint at is checked here, and said plainly."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
