"""Files and folders that appear whole or not at all.

Everything is built under a hidden name beside its place and renamed at the end, so a
killed run leaves nothing that looks finished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.places import NO_SPACE, check_empty, check_is_file, check_is_folder, check_name, check_parent

_LAST = "report.json"


def ending(path: str | Path) -> str:
    """The ending of a file name, lower case; ".nii.gz" counts as one."""
    path = Path(path)
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() + suffix if suffix == ".gz" else suffix


def stem(path: str | Path) -> str:
    """The file name without its ending: "scan.01" of "scan.01.nii.gz"."""
    name = Path(path).name
    return name[: len(name) - len(ending(name))] or name


@contextmanager
def writing(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Write one file so that it appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        An existing file is replaced, in one move.
    size : int, optional
        Bytes that will be needed about, for the message when the disk is full.

    Yields
    ------
    Path
        A hidden name beside `path`, with the same ending, to write to.

    Raises
    ------
    InputError
        If the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    path = check_name(path)
    check_is_file(path)
    check_parent(path)
    temporary = partial.hidden(path.parent, path.name, ending(path))
    with _refusals(path):
        partial.clean(path.parent, path.name)
    try:
        with _full_disk(path, size):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        partial.remove(temporary)


@contextmanager
def new_folder(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Build a folder of results so that it appears whole or not at all.

    A folder that cannot be replaced (a mounted one, the working directory, one in a parent
    that is read-only) is filled in the end, entry by entry; ``report.json`` comes last there, so
    that a folder with it is whole in every case.

    Parameters
    ----------
    path : str or Path
        Must not exist, or be empty.  Missing parents are made.
    size : int, optional
        Bytes that will be needed about, for the message when the disk is full.

    Yields
    ------
    Path
        A hidden folder to fill.

    Raises
    ------
    InputError
        If `path` is a file or a folder with something in it, the place is not writable,
        or the disk is full.
    """
    path = check_name(path).resolve()
    check_is_folder(path)
    with _refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ours: a mounted folder or the working directory cannot be replaced, so it is filled from within.
        inside = path.is_dir() and (os.path.ismount(path) or path == Path.cwd() or not os.access(path.parent, os.W_OK))
        parent = path if inside else path.parent
        check_parent(parent / path.name)
        check_empty(path)
        for folder in {parent, path} if path.is_dir() else {parent}:
            partial.clean(folder, path.name)
        temporary = partial.hidden(parent, path.name)
        temporary.mkdir()
    try:
        with _full_disk(path, size):
            yield temporary
            check_empty(path)
            if inside:
                for entry in sorted(temporary.iterdir(), key=lambda entry: (entry.name == _LAST, entry.name)):
                    entry.rename(path / entry.name)
            else:
                if path.is_dir():
                    partial.clean(path, path.name)
                    path.rmdir()
                temporary.rename(path)
    finally:
        partial.remove(temporary)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """The system's refusals, while a place is prepared, in plain words."""
    with _full_disk(path, None):
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            where = partial.shown(error.filename or path)
            raise InputError(
                f"Cannot write {partial.shown(path)}: {error.strerror} ({where}). Name a place that you may write to."
            ) from error


@contextmanager
def _full_disk(path: Path, size: int | None) -> Iterator[None]:
    """A full disk in plain words; ITK reports it as a RuntimeError without a number.

    Ours: such an error counts as a full disk where less is free than what was to be written
    (or than 1 MiB).
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.is_dir())).free
        number = getattr(error, "errno", None)
        if not (number in NO_SPACE or (number is None and free < max(2**20, size or 0))):
            raise
        need = "" if size is None else f" and {path.name} needs about {size / 1e6:.0f} MB"
        raise InputError(
            f"The disk is full: {partial.shown(path)} could not be written; {free / 1e6:.0f} MB are free{need}. Free "
            "some space or name a place on another disk. Nothing half-written was left."
        ) from error
