"""A folder of DICOM files as one volume, every slice accounted for.

A series of single-frame files and a multi-frame file are taken apart into the same slices
(`dicom_slices`), which meet the same rules (`dicom_stack`) and are read alike (`dicom_pixels`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError, literal
from napari_shmoareg.io import itk
from napari_shmoareg.io.dicom_files import SECONDARY_CAPTURE, Header, read_header
from napari_shmoareg.io.dicom_pixels import DicomWarning, check_pixels, read_values
from napari_shmoareg.io.dicom_stack import Slice, Volumes, slices_of, stack, volumes_of

_SHOWN = 8  # entries of a list in a message


def load(folder: Path, series: str | None = None) -> tuple[NDArray, NDArray[np.float64]]:
    """Read one volume of a folder.

    Parameters
    ----------
    folder : Path
    series : str, optional
        Series instance UID, needed only where there are several; "UID/2" is the second volume of
        a series that holds several (echoes, stacks, time points, b-values).

    Returns
    -------
    values : (I, J, K) array
        Columns, rows and slices; slope x stored + intercept of each slice, in one type that holds
        them all.  MONOCHROME1 changes nothing: it is about how values are shown.
    affine : (4, 4) array
        Voxel index to RAS mm, from the positions of the slices themselves: a tilted gantry gives
        a sheared grid.

    Raises
    ------
    InputError
        If there is no series, or several series or volumes and none is chosen; if slices are
        missing, double or unlike one another, or do not say where they stand, how far apart their
        pixels are, or what their values are.
    TooLargeError
        If it would not fit into memory.

    Warns
    -----
    DicomWarning
        If files that are no part of a scan were skipped, or pixels were compressed with loss.
    """
    uid, _, number = (series or "").partition("/")
    headers = _series(folder, uid if series is not None else None)
    volumes = _volumes(headers)
    slices, affine = stack(
        f"DICOM series in {folder}", _chosen(folder, headers[0].series, volumes, number)
    )
    return read_values(folder, slices), itk.LPS @ affine


def series_of(slice_: Path) -> tuple[str, list[Path]]:
    """The series in its folder that a DICOM file belongs to, and all its files.

    Parameters
    ----------
    slice_ : Path
        A slice, or a multi-frame file.

    Returns
    -------
    series : str
        As `load` takes it; with the number of the volume where the series holds several and the
        file belongs to one of them.
    files : list of Path

    Raises
    ------
    InputError
        If the file is of no series that can be read.
    """
    headers = _headers(slice_.parent)
    own = next((header for header in headers if header.path.name == slice_.name), None)
    if own is None:
        raise InputError(
            f"{slice_} is no slice of a DICOM series: a DICOM image was expected, with the other "
            "slices of its scan beside it. Choose the folder that holds the whole scan."
        )
    if not own.is_scan:
        raise InputError(
            f"{slice_} is no scan but {_article(own.kind)}. Choose a slice of the scan."
        )
    used, _ = _without_captures(
        [header for header in headers if header.is_scan and header.series == own.series]
    )
    volumes = _volumes(used)
    holding = [
        n for n, (_, group) in enumerate(volumes, 1) if any(each.header is own for each in group)
    ]
    if len(volumes) > 1 and len(holding) == 1 and own.frames == 1:
        group = volumes[holding[0] - 1][1]
        return f"{own.series}/{holding[0]}", list(dict.fromkeys(each.header.path for each in group))
    return own.series, [header.path for header in used]


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with 128 bytes and then DICM."""
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
            f"{broken[0]} ({broken[0].stat().st_size} bytes) is no DICOM file, as its name and the"
            " files beside it promise: it is damaged, and may be a slice of the scan. Copy it"
            " again, or take it out of the folder."
        )
    return headers


def _should_be_dicom(path: Path) -> bool:
    """Whether what is no DICOM file looks like the beginning of one, or is named like one."""
    if path.name.startswith(".") or path.stem.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    with path.open("rb") as file:
        return not path.suffix.strip(".0123456789") and not file.read(256).strip(b"\0")


def _series(folder: Path, series: str | None) -> list[Header]:
    """The files of the one series there is, or of the one chosen; warns of others."""
    headers = _headers(folder)
    others = [header for header in headers if not header.is_scan]
    found: dict[str, list[Header]] = {}
    for header in headers:
        if header.is_scan:
            found.setdefault(header.series, []).append(header)
    if series is not None and series not in found:
        beside = [header for header in others if header.series == series]
        if beside:
            raise InputError(f"The series {series} in {folder} is no scan: {_named(beside)}.")
        raise InputError(
            f"The folder {folder} holds no DICOM series {series}; it holds"
            f" {', '.join(found) or 'none'}."
        )
    if series is None:
        placed = [
            uid for uid, files in found.items() if any(header.has_position for header in files)
        ]
        for uid in [uid for uid in found if placed and uid not in placed]:
            others += found.pop(uid)
    if not found:
        there = f"no DICOM scan, only {_named(others)}" if others else "no DICOM series"
        raise InputError(
            f"The folder {folder} holds {there}. Give an image file (.nii, .nii.gz, .mgz, .nrrd,"
            " .mha), or the folder that the slices themselves are in."
        )
    if series is None and len(found) > 1:
        listed = "; ".join(f"{uid} ({_about(files)})" for uid, files in found.items())
        such = literal(f"{folder}#{next(iter(found))}")
        raise InputError(
            f"The folder {folder} holds {len(found)} DICOM series: {listed}.",
            remedy=f"Choose one as {{series}}, such as '{such}'.",
        )
    used, captures = _without_captures(found[series or next(iter(found))])
    skipped = [*captures, *(header for header in others if series in (None, header.series))]
    if skipped:
        warnings.warn(
            f"The folder {folder} holds files that are no part of the scan and were skipped:"
            f" {_named(skipped)}.",
            DicomWarning,
            stacklevel=4,
        )
    return used


def _without_captures(files: list[Header]) -> tuple[list[Header], list[Header]]:
    """The slices of a series, and the snapshots and reports among them: captures without a
    position.
    """
    captures = [
        header
        for header in files
        if header.sop_class.startswith(SECONDARY_CAPTURE) and not header.has_position
    ]
    if len(captures) == len(files):
        return files, []
    return [header for header in files if header not in captures], captures


def _volumes(headers: Iterable[Header]) -> Volumes:
    """The volumes of a series, all its files checked."""
    slices: list[Slice] = []
    for header in headers:
        check_pixels(header)
        slices += slices_of(header)
    return volumes_of(slices)


def _chosen(folder: Path, uid: str, volumes: Volumes, number: str) -> list[Slice]:
    """The slices of the one volume there is, or of the one chosen."""
    names = [
        f"{n} ({name + ', ' if name else ''}{len(group)} slice{'s' if len(group) > 1 else ''})"
        for n, (name, group) in enumerate(volumes, 1)
    ]
    listed = _list(names, "; ")
    if not number and len(volumes) > 1:
        raise InputError(
            f"The DICOM series {uid} in {folder} holds {len(volumes)} volumes, and one was"
            f" expected: {listed}.",
            remedy=f"Choose one as {{volume}}, such as '{literal(f'{folder}#{uid}/1')}'.",
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
            f"The DICOM series {uid} in {folder} has no volume '{number}'; it holds "
            f"{'volumes' if len(volumes) > 1 else 'volume'} {listed}."
        )
    return volumes[n - 1][1]


def _about(files: list[Header]) -> str:
    frames = sum(header.frames for header in files)
    more = f", {frames} frames" if frames > len(files) else ""
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    return f"{count}{more}, {files[0].description or 'without a description'}"


def _named(headers: list[Header]) -> str:
    """Files by their names and kinds."""
    return _list([f"{header.path.name} ({header.kind})" for header in headers], ", ")


def _list(entries: list[str], separator: str) -> str:
    more = [f"and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return separator.join([*entries[:_SHOWN], *more])


def _article(kind: str) -> str:
    return f"an {kind}" if kind[:1] in "AEIO" or kind[:2] in ("RT", "MR", "XA") else f"a {kind}"
