"""Files and folders that appear whole or not at all; memory and output paths checked beforehand.

Everything is written under a hidden name beside its path and renamed at the end, so that a killed
process leaves nothing that looks finished.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import hashlib
import locale
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.io.untrusted import printable, user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PARTIAL = re.compile(r"\.(?P<name>.+)\.partial-(?P<process>\d+)(\..*)?")


_ADDED = 40  # bytes that a hidden name has beyond the name: ".", ".partial-", a process, an ending
_full: dict[str, str] = {}  # names that were too long for that, by what stands for them


def hidden(parent: Path, name: str, suffix: str = "") -> Path:
    """Where this process builds the file or folder `name`."""
    return parent / f".{_fitting(parent, name)}.partial-{os.getpid()}{suffix}"


def longest_name(folder: Path) -> int:
    """Bytes that the name of a file in a folder may have."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return 255


def _fitting(parent: Path, name: str) -> str:
    """A name, or its beginning and a sum of it where no room would be left for what a hidden name
    adds.
    """
    most, whole = longest_name(parent) - _ADDED, os.fsencode(name)
    if len(whole) <= most:
        return name
    short = (
        whole[: most - 17].decode("utf-8", "ignore") + "~" + hashlib.sha256(whole).hexdigest()[:16]
    )
    _full[short] = name
    return short


def shown(path: str | Path) -> Path:
    """The place where `path` will stand once it is whole: what people should read.

    A folder that is filled from within is built in itself, so its name is said once.
    """
    parts: list[str] = []
    for part in Path(path).parts:
        found = _PARTIAL.fullmatch(part)
        name = part if found is None else _full.get(found["name"], found["name"])
        if found is None or not parts or parts[-1] != name:
            parts.append(name)
    return Path(*parts)


def is_leftover(entry: Path, name: str) -> bool:
    """Whether an entry is a half-written `name` of a process that is gone, or of this one."""
    found = _PARTIAL.fullmatch(entry.name)
    if found is None or found["name"] != _fitting(entry.parent, name):
        return False
    process = int(found["process"][:12])  # of a name that somebody else made up, too
    return process == os.getpid() or not psutil.pid_exists(process)


def clean(folder: Path, name: str) -> None:
    """Remove the leftovers of `name` from a folder."""
    for entry in folder.iterdir():
        if is_leftover(entry, name):
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one; to its end, also where Ctrl-C comes
    meanwhile.
    """
    try:
        _remove(path)
    except KeyboardInterrupt:
        _remove(path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_memory(path: Path, shape: Sequence[int], voxel_bytes: int) -> None:
    """Refuse an image whose header announces more than the free memory holds.

    Parameters
    ----------
    path : Path
        For the message.
    shape : sequence of int
        All axes that the header announces.
    voxel_bytes : int
        Bytes in use per voxel at the worst moment of reading.

    Raises
    ------
    InputError
        If an axis has no voxel.
    TooLargeError
        If reading needs more than nine tenths of the memory that is available now.
    """
    if min(shape, default=0) < 1:
        raise InputError(
            f"{path} has the shape {tuple(shape)}: it is empty. An image with voxels on three axes"
            " was expected."
        )
    need = prod(int(n) for n in shape) * voxel_bytes
    free = psutil.virtual_memory().available
    if need > 0.9 * free:
        side = int((0.9 * free / voxel_bytes) ** (1 / 3))
        raise TooLargeError(
            f"Reading {path}, shape {tuple(shape)}, needs about {need / 2**30:.1f} GiB of memory;"
            f" {free / 2**30:.1f} GiB are free. About {side} x {side} x {side} voxels would fit:"
            " crop or downsample the image, or use a machine with more memory."
        )


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
            f"The name {printable(str(place))} is not UTF-8, and ITK and safetensors write no such"
            " file. Name a place whose folders all have names in UTF-8."
        )
    there = next(parent for parent in (place, *place.parents) if os.path.exists(parent))
    most = longest_name(there)
    for part in place.relative_to(there).parts:
        if len(part.encode()) > most:
            raise InputError(
                f"The name '{part[:40]}...' has {len(part.encode())} bytes; this disk takes {most}"
                " at most. Give a shorter one."
            )
    if len(str(place).encode()) > LONGEST_PATH:
        raise InputError(
            f"The path {str(place)[:60]}... has {len(str(place).encode())} bytes; {LONGEST_PATH}"
            " are the most that leave room for the files in it. Name a place nearer to the root."
        )
    return place


def check_new_file(
    path: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()
) -> None:
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
        raise InputError(
            f"{path} is one of the inputs, and writing there would replace it. Give another name."
        )
    check_is_file(path)
    if place.exists() and not overwrite:
        raise InputError(
            f"{path} exists.", remedy="Give {overwrite:True} to replace it, or another name."
        )
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
        raise InputError(f"{shown(path)} is a folder; the name of a file was expected.")


def check_is_folder(path: str | Path) -> None:
    """Refuse a file where a folder of results is wanted; it need not exist.

    Raises
    ------
    InputError
        If `path` is there and no folder.
    """
    place = user_path(path)
    if place.exists() and not place.is_dir():
        raise InputError(
            f"{shown(path)} is a file; the name of a new or empty folder was expected."
        )


def check_empty(path: str | Path) -> None:
    """Refuse a folder that holds something; what a killed run left half-written there does not
    count.

    Raises
    ------
    InputError
        If there is an entry.
    """
    place = user_path(path).resolve()
    found = list(place.iterdir()) if place.is_dir() else []
    entries = sorted(entry.name for entry in found if not is_leftover(entry, place.name))
    if entries:
        raise InputError(
            f"The folder {shown(path)} is not empty ({len(entries)} entries, such as"
            f" '{entries[0]}'). Nothing there is overwritten: name another folder, or empty this"
            " one."
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
            f"Cannot write {Path(path).name}: the folder {shown(parent)} does not exist. Make it"
            " first."
        )
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        full = error.errno in NO_SPACE
        hint = (
            "Free some space or name a place on another disk."
            if full
            else "Name a place that you may write to."
        )
        raise InputError(f"Cannot write into {shown(parent)}: {error.strerror}. {hint}") from error


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
    temporary = hidden(path.parent, path.name, ending(path))
    with _refusals(path):
        clean(path.parent, path.name)
    try:
        with _full_disk(path, size):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        remove(temporary)


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
        # Ours: a mounted folder or the working directory cannot be replaced, so it is filled from
        # within.
        inside = path.is_dir() and (
            os.path.ismount(path) or path == Path.cwd() or not os.access(path.parent, os.W_OK)
        )
        parent = path if inside else path.parent
        check_parent(parent / path.name)
        check_empty(path)
        for folder in {parent, path} if path.is_dir() else {parent}:
            clean(folder, path.name)
        temporary = hidden(parent, path.name)
        temporary.mkdir()
    try:
        with _full_disk(path, size):
            yield temporary
            check_empty(path)
            if inside:
                for entry in sorted(
                    temporary.iterdir(), key=lambda entry: (entry.name == _LAST, entry.name)
                ):
                    entry.rename(path / entry.name)
            else:
                if path.is_dir():
                    clean(path, path.name)
                    path.rmdir()
                temporary.rename(path)
    finally:
        remove(temporary)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """The system's refusals, while a place is prepared, in plain words."""
    with _full_disk(path, None):
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            where = shown(error.filename or path)
            raise InputError(
                f"Cannot write {shown(path)}: {error.strerror} ({where}). Name a place that you may"
                " write to."
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
        free = shutil.disk_usage(
            next(place for place in (path, *path.parents) if place.is_dir())
        ).free
        number = getattr(error, "errno", None)
        if not (number in NO_SPACE or (number is None and free < max(2**20, size or 0))):
            raise
        need = "" if size is None else f" and {path.name} needs about {size / 1e6:.0f} MB"
        raise InputError(
            f"The disk is full: {shown(path)} could not be written; {free / 1e6:.0f} MB are"
            f" free{need}. Free some space or name a place on another disk. Nothing half-written"
            " was left."
        ) from error


DOTS_PER_INCH = 150
ENDINGS = (".png", ".svg")


def write_figure(figure: Figure, path: str | Path, about: Mapping[str, str]) -> None:
    """Write a figure as PNG or SVG, by the ending of the name, with what it shows in its metadata;
    whole or not at all.

    Parameters
    ----------
    figure : Figure
    path : str or Path
        Ends in .png or .svg.
    about : mapping of str to str
        Title, Software, Weights, Pair, Settings and whatever else.  A PNG has a text chunk of each
        name.  An SVG has Dublin Core elements: Title is its title, Software its creator, and all
        others are lines "Name: text" of its description.

    Raises
    ------
    InputError
        If the ending is another one, or the place cannot be written to.
    """
    from matplotlib import rc_context

    kind = ending(path)
    if kind not in ENDINGS:
        raise InputError(f"Figures are written as {' or '.join(ENDINGS)}; got the name '{path}'.")
    metadata: dict[str, Any] = dict(about) if kind == ".png" else _dublin_core(about)
    # Ours: the text of an SVG stays text, so that it can be searched and set in a journal's own
    # type; the same figure is the same file, so neither a date nor ids drawn at random.
    with writing(path) as place, rc_context({"svg.fonttype": "none", "svg.hashsalt": "shmoareg"}):
        figure.savefig(place, format=kind[1:], dpi=DOTS_PER_INCH, metadata=metadata)


def _dublin_core(about: Mapping[str, str]) -> dict[str, Any]:
    told = "\n".join(
        f"{name}: {text}" for name, text in about.items() if name not in ("Title", "Software")
    )
    named = {
        "Title": about.get("Title"),
        "Creator": about.get("Software"),
        "Description": told or None,
    }
    return {key: value for key, value in named.items() if value is not None} | {"Date": None}


def write_table(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Write rows as CSV, whole or not at all; the columns are those of the first row.

    Raises
    ------
    InputError
        If the place is not writable or the disk is full.
    """
    with (
        writing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


_LOCALE_LOCK = threading.RLock()
_LC_ALL_MASK = {"linux": 0x1FBF, "darwin": 0x3F}


@contextmanager
def c_numbers() -> Iterator[None]:
    """With a point in numbers, for the C code that this thread calls.

    Qt sets the locale of the desktop for the whole process, and in half of Europe C then reads
    "0.5" as 0.  On Linux and macOS the locale of this thread alone is changed; elsewhere that
    of the process, for one thread at a time.
    """
    found = _thread_locale()
    if found is None:
        with _LOCALE_LOCK:
            before = locale.setlocale(locale.LC_NUMERIC)
            locale.setlocale(locale.LC_NUMERIC, "C")
            try:
                yield
            finally:
                locale.setlocale(locale.LC_NUMERIC, before)
        return
    uselocale, plain = found
    old = uselocale(plain)
    try:
        yield
    finally:
        uselocale(old)


@cache
def _thread_locale() -> tuple[Any, int] | None:
    """`uselocale` of the C library and its "C" locale, None where there is none."""
    mask = _LC_ALL_MASK.get(sys.platform)
    try:
        library = ctypes.CDLL(None)
        newlocale, uselocale = library.newlocale, library.uselocale
    except (OSError, AttributeError, TypeError):
        return None
    newlocale.restype = uselocale.restype = ctypes.c_void_p
    newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    uselocale.argtypes = [ctypes.c_void_p]
    plain = newlocale(mask, b"C", None) if mask is not None else None
    return None if plain is None else (uselocale, plain)


@contextmanager
def silenced() -> Iterator[None]:
    """Without what ITK's libraries print on the stderr of the process, and with `c_numbers`.

    What is wrong is raised by them too, and said by us.  The whole process is silent meanwhile:
    only for a single call into a library.
    """
    with c_numbers(), _silent():
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """The stderr of the process closed."""
    try:
        kept = os.dup(2)
    # a program without a terminal may have closed it, and there is nothing to silence
    except OSError:
        kept = None
    if kept is None:
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
