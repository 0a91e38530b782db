"""Reading one volume from a folder of DICOM files, with every slice checked.

Single-frame series and multi-frame files are both split into slices, which are checked and stacked
(`dicom_stack`) and read (`dicom_pixels`) in the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError, escape_braces
from napari_shmoareg.io import itk
from napari_shmoareg.io.dicom_files import SECONDARY_CAPTURE, Header, read_header
from napari_shmoareg.io.dicom_pixels import DicomWarning, check_pixels, read_values
from napari_shmoareg.io.dicom_stack import Slice, Volumes, slices_of, stack, volumes_of

_MAX_LISTED = 8  # entries of a list in a message


def load(folder: Path, series: str | None = None) -> tuple[NDArray, NDArray[np.float64]]:
    """Read one volume of a folder.

    Parameters
    ----------
    folder : Path
    series : str, optional
        Series instance UID, needed only if there are several; "UID/2" is the second volume of a
        series with several (echoes, stacks, time points, b-values).

    Returns
    -------
    values : (I, J, K) array
        Columns, rows and slices; slope x stored + intercept of each slice, in one type that fits
        all slices. MONOCHROME1 changes nothing: it concerns the display only.
    affine : (4, 4) array
        Voxel index to RAS mm, from the slice positions: a tilted gantry gives a sheared grid.

    Raises
    ------
    InputError
        If there is no series, or several series or volumes and none is chosen; if slices are
        missing, duplicated or inconsistent, or lack position, pixel spacing or values.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    DicomWarning
        If files that are not part of a scan were skipped, or pixels were compressed lossily.
    """
    uid, _, number = (series or "").partition("/")
    headers = _series(folder, uid if series is not None else None)
    volumes = _volumes(headers)
    slices, affine = stack(
        f"DICOM series in {folder}", _choose_volume(folder, headers[0].series, volumes, number)
    )
    return read_values(folder, slices), itk.LPS @ affine


def series_of(slice_: Path) -> tuple[str, list[Path]]:
    """Find the series that a DICOM file belongs to, and all files of that series.

    Parameters
    ----------
    slice_ : Path
        A slice, or a multi-frame file.

    Returns
    -------
    series : str
        For `load`; with the volume number if the series has several and the file belongs to one.
    files : list of Path

    Raises
    ------
    InputError
        If the file does not belong to a readable series.
    """
    headers = _headers(slice_.parent)
    own = next((header for header in headers if header.path.name == slice_.name), None)
    if own is None:
        raise InputError(
            f"{slice_} is not a slice of a DICOM series: a DICOM image was expected, with the other"
            " slices of its scan beside it. Choose the folder with the whole scan."
        )
    if not own.is_scan:
        raise InputError(
            f"{slice_} is not a scan but {_article(own.kind)}. Choose a slice of the scan."
        )
    used, _ = _without_captures(
        [header for header in headers if header.is_scan and header.series == own.series]
    )
    volumes = _volumes(used)
    containing = [
        n for n, (_, group) in enumerate(volumes, 1) if any(each.header is own for each in group)
    ]
    if len(volumes) > 1 and len(containing) == 1 and own.frames == 1:
        group = volumes[containing[0] - 1][1]
        return f"{own.series}/{containing[0]}", list(
            dict.fromkeys(each.header.path for each in group)
        )
    return own.series, [header.path for header in used]


def is_dicom(path: Path) -> bool:
    """Whether a file begins with the DICOM preamble: 128 bytes and DICM."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _headers(folder: Path) -> list[Header]:
    headers, broken = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        header = read_header(path)
        if header is not None:
            headers.append(header)
        elif _should_be_dicom(path):
            broken.append(path)
    if headers and broken:
        raise InputError(
            f"{broken[0]} ({broken[0].stat().st_size} bytes) is not a DICOM file, although its name"
            " and the files beside it suggest one: it is damaged, and may be a slice of the scan."
            " Copy it again, or remove it from the folder."
        )
    return headers


def _should_be_dicom(path: Path) -> bool:
    """Whether an invalid file is named like a DICOM file or begins like one."""
    if path.name.startswith(".") or path.stem.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    with path.open("rb") as file:
        return not path.suffix.strip(".0123456789") and not file.read(256).strip(b"\0")


def _series(folder: Path, series: str | None) -> list[Header]:
    """Files of the only series, or of the chosen one; warn of other files."""
    headers = _headers(folder)
    non_scans = [header for header in headers if not header.is_scan]
    found: dict[str, list[Header]] = {}
    for header in headers:
        if header.is_scan:
            found.setdefault(header.series, []).append(header)
    if series is not None and series not in found:
        same_series = [header for header in non_scans if header.series == series]
        if same_series:
            raise InputError(
                f"The series {series} in {folder} is not a scan: {_list_files(same_series)}."
            )
        raise InputError(
            f"The folder {folder} contains no DICOM series {series}; it contains"
            f" {', '.join(found) or 'none'}."
        )
    if series is None:
        positioned = [
            uid for uid, files in found.items() if any(header.has_position for header in files)
        ]
        for uid in [uid for uid in found if positioned and uid not in positioned]:
            non_scans += found.pop(uid)
    if not found:
        content = (
            f"no DICOM scan, only {_list_files(non_scans)}" if non_scans else "no DICOM series"
        )
        raise InputError(
            f"The folder {folder} contains {content}. Give an image file (.nii, .nii.gz, .mgz,"
            " .nrrd, .mha), or the folder that contains the slices directly."
        )
    if series is None and len(found) > 1:
        listed = "; ".join(f"{uid} ({_describe_series(files)})" for uid, files in found.items())
        example = escape_braces(f"{folder}#{next(iter(found))}")
        raise InputError(
            f"The folder {folder} contains {len(found)} DICOM series: {listed}.",
            remedy=f"Choose one as {{series}}, for example '{example}'.",
        )
    used, captures = _without_captures(found[series or next(iter(found))])
    skipped = [*captures, *(header for header in non_scans if series in (None, header.series))]
    if skipped:
        warnings.warn(
            f"The folder {folder} contains files that are not part of the scan and were skipped:"
            f" {_list_files(skipped)}.",
            DicomWarning,
            stacklevel=4,
        )
    return used


def _without_captures(files: list[Header]) -> tuple[list[Header], list[Header]]:
    """Split a series into slices and secondary captures without a position (snapshots, reports)."""
    captures = [
        header
        for header in files
        if header.sop_class.startswith(SECONDARY_CAPTURE) and not header.has_position
    ]
    if len(captures) == len(files):
        return files, []
    return [header for header in files if header not in captures], captures


def _volumes(headers: Iterable[Header]) -> Volumes:
    """Check all files of a series and find its volumes."""
    slices: list[Slice] = []
    for header in headers:
        check_pixels(header)
        slices += slices_of(header)
    return volumes_of(slices)


def _choose_volume(folder: Path, uid: str, volumes: Volumes, number: str) -> list[Slice]:
    """Slices of the only volume, or of the chosen one."""
    names = [
        f"{n} ({name + ', ' if name else ''}{len(group)} slice{'s' if len(group) > 1 else ''})"
        for n, (name, group) in enumerate(volumes, 1)
    ]
    listed = _join(names, "; ")
    if not number and len(volumes) > 1:
        raise InputError(
            f"The DICOM series {uid} in {folder} contains {len(volumes)} volumes, and one was"
            f" expected: {listed}.",
            remedy=f"Choose one as {{volume}}, for example '{escape_braces(f'{folder}#{uid}/1')}'.",
        )
    n = (
        int(number)
        if number.isascii() and number.isdigit() and len(number) < 9
        else 0
        if number
        else 1
    )
    if not 1 <= n <= len(volumes):
        raise InputError(
            f"The DICOM series {uid} in {folder} has no volume '{number}'; it contains"
            f" {'volumes' if len(volumes) > 1 else 'volume'} {listed}."
        )
    return volumes[n - 1][1]


def _describe_series(files: list[Header]) -> str:
    frames = sum(header.frames for header in files)
    more = f", {frames} frames" if frames > len(files) else ""
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    return f"{count}{more}, {files[0].description or 'without a description'}"


def _list_files(headers: list[Header]) -> str:
    """List files with their names and kinds."""
    return _join([f"{header.path.name} ({header.kind})" for header in headers], ", ")


def _join(entries: list[str], separator: str) -> str:
    more = [f"and {len(entries) - _MAX_LISTED} more"] if len(entries) > _MAX_LISTED else []
    return separator.join([*entries[:_MAX_LISTED], *more])


def _article(kind: str) -> str:
    return f"an {kind}" if kind[:1] in "AEIO" or kind[:2] in ("RT", "MR", "XA") else f"a {kind}"
