"""Files and folders that appear whole or not at all.

Everything is built under a hidden name beside its place and renamed at the end, so a
killed run leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from napari_shmoareg.geometry import InputError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


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
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        raise InputError(f"{path} is a folder; the name of a file was expected.")
    if not path.parent.is_dir():
        raise InputError(f"Cannot write {path.name}: the folder {path.parent} does not exist. Make it first.")
    temporary = _hidden(path.parent, path.name, ending(path))
    with _refusals(path):
        _probe(path.parent)
        _clean_stale(path.parent, path.name)
    try:
        with _full_disk(path, size):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def new_folder(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Build a folder of results so that it appears whole or not at all.

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
    path = Path(path).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; the name of a new or empty folder was expected.")
    with _refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ours: a mounted folder or the working directory cannot be replaced, so it is filled from within.
        inside = path.is_dir() and (os.path.ismount(path) or path == Path.cwd() or not os.access(path.parent, os.W_OK))
        parent = path if inside else path.parent
        _probe(parent)
        _clean_stale(parent, path.name)
        _check_empty(path)
        temporary = _hidden(parent, path.name)
        temporary.mkdir()
    try:
        with _full_disk(path, size):
            yield temporary
            _check_empty(path, apart_from=temporary)
            if inside:
                for entry in temporary.iterdir():
                    entry.rename(path / entry.name)
            else:
                if path.is_dir():
                    path.rmdir()
                temporary.rename(path)
    finally:
        _remove(temporary)


def _hidden(parent: Path, name: str, suffix: str = "") -> Path:
    return parent / f".{name}.partial-{os.getpid()}{suffix}"


def _clean_stale(parent: Path, name: str) -> None:
    """Remove what a killed run left: partial files whose process is gone (or is this one)."""
    start = f".{name}.partial-"
    for entry in parent.iterdir():
        number = entry.name.removeprefix(start).split(".")[0]
        if not (entry.name.startswith(start) and number.isdigit()):
            continue
        if int(number) == os.getpid() or not psutil.pid_exists(int(number)):
            _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _probe(folder: Path) -> None:
    """Refuse early, before long work, what would fail at the end."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "not writable", str(folder))


def _check_empty(path: Path, apart_from: Path | None = None) -> None:
    entries = [] if not path.is_dir() else [entry.name for entry in path.iterdir() if entry != apart_from]
    if entries:
        raise InputError(
            f"The folder {path} is not empty ({len(entries)} entries, such as '{min(entries)}'). Nothing there is "
            "overwritten: name another folder, or empty this one."
        )


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """The system's refusals, while a place is prepared, in plain words."""
    with _full_disk(path, None):
        try:
            yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            raise InputError(
                f"Cannot write {path}: {error.strerror} ({error.filename}). Name a place that you may write to."
            ) from error


@contextmanager
def _full_disk(path: Path, size: int | None) -> Iterator[None]:
    """A full disk in plain words; ITK reports it as a RuntimeError without a number."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.is_dir())).free
        number = getattr(error, "errno", None)
        if not (number in _NO_SPACE or (number is None and free < 2**20)):
            raise
        need = "" if size is None else f" and {path.name} needs about {size / 1e6:.0f} MB"
        raise InputError(
            f"The disk is full: {path} could not be written; {free / 1e6:.0f} MB are free{need}. Free some space or "
            "name a place on another disk. Nothing half-written was left."
        ) from error
