"""Whether results can be written where they shall go, asked before long work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from napari_shmoareg.geometry import InputError


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
    place = Path(path).expanduser().resolve()
    if any(place == Path(given).expanduser().resolve() for given in inputs):
        raise InputError(f"{path} is one of the inputs, and writing there would replace it. Give another name.")
    if place.is_dir():
        raise InputError(f"{path} is a folder; the name of a file was expected.")
    if place.exists() and not overwrite:
        raise InputError(f"{path} exists. Give --overwrite to replace it, or another name.")
    _check_parent(place)


def check_new_folder(path: str | Path) -> None:
    """Refuse the place of a folder of results that could not be made, or that holds something.

    Raises
    ------
    InputError
        If `path` is a file, a folder with something in it, or lies where nothing can be made.
    """
    place = Path(path).expanduser().resolve()
    if place.exists() and not place.is_dir():
        raise InputError(f"{path} is a file; the name of a new or empty folder was expected.")
    entries = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    if entries:
        raise InputError(
            f"The folder {path} is not empty ({len(entries)} entries, such as '{entries[0]}'). Nothing there is "
            "overwritten: name another folder, or empty this one."
        )
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"Cannot make {path}: {nearest} is a file.")
    _check_parent(nearest / "results")


def _check_parent(place: Path) -> None:
    parent = place.parent
    if not parent.is_dir():
        raise InputError(f"Cannot write {place.name}: the folder {parent} does not exist. Make it first.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(
            f"Cannot write into {parent}: {error.strerror}. Name a place that you may write to."
        ) from error
