"""Whether results can be written where they shall go, asked before long work."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.untrusted import printable, user_path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
LONGEST_PATH = 3800  # of the 4096 bytes that Linux takes


def check_name(path: str | Path) -> Path:
    """Refuse a place whose name could not be made, or not be read again; the whole path of others.

    Raises
    ------
    InputError
        If a part of the name is too long for its disk, the whole is, or the name is not UTF-8.
    """
    place = user_path(path).absolute()
    if printable(str(place)) != str(place):
        raise InputError(
            f"The name {printable(str(place))} is not UTF-8, and ITK and safetensors write no such file. Name a place "
            "whose folders all have names in UTF-8."
        )
    there = next(parent for parent in (place, *place.parents) if os.path.exists(parent))
    most = partial.longest_name(there)
    for part in place.relative_to(there).parts:
        if len(part.encode()) > most:
            raise InputError(
                f"The name '{part[:40]}...' has {len(part.encode())} bytes; this disk takes {most} at most. Give a "
                "shorter one."
            )
    if len(str(place).encode()) > LONGEST_PATH:
        raise InputError(
            f"The path {str(place)[:60]}... has {len(str(place).encode())} bytes; {LONGEST_PATH} are the most that "
            "leave room for the files in it. Name a place nearer to the root."
        )
    return place


def check_new_file(path: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse the place of a file that could not be written, or that would destroy something.

    Parameters
    ----------
    path : str or Path
    overwrite : bool
        The user agreed that an existing file is replaced.
    inputs : iterable of str or Path
        What is read; none of these is ever replaced.

    Raises
    ------
    InputError
        If `path` is an input, a folder, exists without `overwrite`, or lies in a folder that is
        missing or not writable.
    """
    place = check_name(path).resolve()
    if any(place == user_path(given).resolve() for given in inputs):
        raise InputError(f"{path} is one of the inputs, and writing there would replace it. Give another name.")
    check_is_file(path)
    if place.exists() and not overwrite:
        raise InputError(f"{path} exists. Give --overwrite to replace it, or another name.")
    check_parent(place)


def check_new_folder(path: str | Path) -> None:
    """Refuse the place of a folder of results that could not be made, or that holds something.

    Raises
    ------
    InputError
        If `path` is a file, a folder with something in it, or lies where nothing can be made.
    """
    place = check_name(path).resolve()
    check_is_folder(path)
    check_empty(path)
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"Cannot make {path}: {nearest} is a file.")
    check_parent(nearest / "results")


def check_is_file(path: str | Path) -> None:
    """Refuse a folder where the name of a file is wanted.

    Raises
    ------
    InputError
        If `path` is a folder.
    """
    if user_path(path).is_dir():
        raise InputError(f"{partial.shown(path)} is a folder; the name of a file was expected.")


def check_is_folder(path: str | Path) -> None:
    """Refuse a file where a folder of results is wanted; it need not exist.

    Raises
    ------
    InputError
        If `path` is there and no folder.
    """
    place = user_path(path)
    if place.exists() and not place.is_dir():
        raise InputError(f"{partial.shown(path)} is a file; the name of a new or empty folder was expected.")


def check_empty(path: str | Path) -> None:
    """Refuse a folder that holds something; what a killed run left half-written there does not count.

    Raises
    ------
    InputError
        If there is an entry.
    """
    place = user_path(path).resolve()
    found = list(place.iterdir()) if place.is_dir() else []
    entries = sorted(entry.name for entry in found if not partial.is_leftover(entry, place.name))
    if entries:
        raise InputError(
            f"The folder {partial.shown(path)} is not empty ({len(entries)} entries, such as '{entries[0]}'). Nothing "
            "there is overwritten: name another folder, or empty this one."
        )


def check_parent(path: str | Path) -> None:
    """Refuse a place in a folder that is missing or cannot be written to, by trying.

    Raises
    ------
    InputError
        If nothing can be made beside `path`.
    """
    parent = Path(path).parent
    if not parent.is_dir():
        raise InputError(
            f"Cannot write {Path(path).name}: the folder {partial.shown(parent)} does not exist. Make it first."
        )
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        full = error.errno in NO_SPACE
        hint = "Free some space or name a place on another disk." if full else "Name a place that you may write to."
        raise InputError(f"Cannot write into {partial.shown(parent)}: {error.strerror}. {hint}") from error
