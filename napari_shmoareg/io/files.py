"""Atomic writing of files and folders; checks of memory and of output paths.

Everything is written under a hidden temporary name beside its path and renamed at the end, so a
killed process leaves nothing that looks finished.
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


_OVERHEAD = 40  # bytes that a temporary name adds: ".", ".partial-", process id, ending
_shortened: dict[str, str] = {}  # full names by their shortened name


def temporary_path(parent: Path, name: str, suffix: str = "") -> Path:
    """Temporary path under which this process builds the file or folder `name`."""
    return parent / f".{_shorten(parent, name)}.partial-{os.getpid()}{suffix}"


def longest_name(folder: Path) -> int:
    """Longest file name, in bytes, that a folder allows."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return 255


def _shorten(parent: Path, name: str) -> str:
    """Shorten a name that leaves no room for the temporary affixes: its beginning and a hash."""
    limit, encoded = longest_name(parent) - _OVERHEAD, os.fsencode(name)
    if len(encoded) <= limit:
        return name
    short = (
        encoded[: limit - 17].decode("utf-8", "ignore")
        + "~"
        + hashlib.sha256(encoded).hexdigest()[:16]
    )
    _shortened[short] = name
    return short


def display_path(path: str | Path) -> Path:
    """Final path of a temporary path, for messages.

    A folder that is filled in place is built inside itself: its name appears once.
    """
    parts: list[str] = []
    for part in Path(path).parts:
        found = _PARTIAL.fullmatch(part)
        name = part if found is None else _shortened.get(found["name"], found["name"])
        if found is None or not parts or parts[-1] != name:
            parts.append(name)
    return Path(*parts)


def is_leftover(entry: Path, name: str) -> bool:
    """Whether an entry is a half-written `name` of this process or of one that no longer runs."""
    found = _PARTIAL.fullmatch(entry.name)
    if found is None or found["name"] != _shorten(entry.parent, name):
        return False
    process = int(found["process"][:12])  # a foreign name may have any number of digits
    return process == os.getpid() or not psutil.pid_exists(process)


def clean(folder: Path, name: str) -> None:
    """Remove the leftovers of `name` from a folder."""
    for entry in folder.iterdir():
        if is_leftover(entry, name):
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists; finish even if Ctrl-C interrupts."""
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
    """Refuse an image that would not fit into free memory according to its header.

    Parameters
    ----------
    path : Path
        For the message.
    shape : sequence of int
        All axes that the header announces.
    voxel_bytes : int
        Peak memory per voxel while reading.

    Raises
    ------
    InputError
        If an axis has no voxel.
    TooLargeError
        If reading needs more than nine tenths of the available memory.
    """
    if min(shape, default=0) < 1:
        raise InputError(
            f"{path} is empty (shape {tuple(shape)}). An image with voxels on three axes was"
            " expected."
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
LONGEST_PATH = 3800  # of the 4096 bytes that Linux allows


def check_name(path: str | Path) -> Path:
    """Check the name of an output path and return the absolute path.

    Raises
    ------
    InputError
        If a part of the path or the whole path is too long, or the name is not UTF-8.
    """
    target = user_path(path).absolute()
    if printable(str(target)) != str(target):
        raise InputError(
            f"The name {printable(str(target))} is not UTF-8; ITK and safetensors cannot write such"
            " files. Choose a path in UTF-8."
        )
    existing = next(parent for parent in (target, *target.parents) if os.path.exists(parent))
    limit = longest_name(existing)
    for part in target.relative_to(existing).parts:
        if len(part.encode()) > limit:
            raise InputError(
                f"The name '{part[:40]}...' has {len(part.encode())} bytes; this disk allows"
                f" {limit} at most. Give a shorter name."
            )
    if len(str(target).encode()) > LONGEST_PATH:
        raise InputError(
            f"The path {str(target)[:60]}... has {len(str(target).encode())} bytes; {LONGEST_PATH}"
            " at most leave room for the files in it. Choose a path nearer to the root."
        )
    return target


def check_new_file(
    path: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()
) -> None:
    """Check that a file can be written at a path without destroying anything.

    Parameters
    ----------
    path : str or Path
    overwrite : bool
        Allow an existing file to be replaced.
    inputs : iterable of str or Path
        Input files, which are never replaced.

    Raises
    ------
    InputError
        If `path` is an input or a folder, exists without `overwrite`, or its folder is missing or
        not writable.
    """
    target = check_name(path).resolve()
    if any(target == user_path(source).resolve() for source in inputs):
        raise InputError(
            f"{path} is one of the inputs; writing there would replace it. Give another name."
        )
    check_is_file(path)
    if target.exists() and not overwrite:
        raise InputError(
            f"{path} already exists.",
            remedy="Give {overwrite:True} to replace it, or another name.",
        )
    check_parent(target)


def check_new_folder(path: str | Path) -> None:
    """Check that an output folder can be created, or exists and is empty."""
    check_is_folder(check_name(path))
    check_empty(path)
    check_creatable(path)


def check_creatable(path: str | Path) -> None:
    """Check that an output folder can be created, or exists and is writable."""
    target = check_name(path).resolve()
    check_is_folder(path)
    nearest = next(parent for parent in (target, *target.parents) if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"Cannot create {path}: {nearest} is a file.")
    check_parent(nearest / "results")


def check_is_file(path: str | Path) -> None:
    """Refuse a folder where a file name is expected."""
    if user_path(path).is_dir():
        raise InputError(f"{display_path(path)} is a folder; the name of a file was expected.")


def check_is_folder(path: str | Path) -> None:
    """Refuse a file where an output folder is expected; the folder need not exist."""
    target = user_path(path)
    if target.exists() and not target.is_dir():
        raise InputError(
            f"{display_path(path)} is a file; the name of a new or empty folder was expected."
        )


def check_empty(path: str | Path) -> None:
    """Refuse a folder that is not empty; half-written leftovers of a killed run do not count."""
    target = user_path(path).resolve()
    found = list(target.iterdir()) if target.is_dir() else []
    entries = sorted(entry.name for entry in found if not is_leftover(entry, target.name))
    if entries:
        raise InputError(
            f"The folder {display_path(path)} is not empty ({len(entries)} entries, such as"
            f" '{entries[0]}'). Nothing there is overwritten: choose another folder, or empty this"
            " one."
        )


def check_parent(path: str | Path) -> None:
    """Check, by trying, that the folder of a path exists and is writable."""
    parent = Path(path).parent
    if not parent.is_dir():
        raise InputError(
            f"Cannot write {Path(path).name}: the folder {display_path(parent)} does not exist."
            " Create it first."
        )
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        full = error.errno in NO_SPACE
        hint = (
            "Free some space or choose a path on another disk."
            if full
            else "Choose a path that you may write to."
        )
        raise InputError(
            f"Cannot write into {display_path(parent)}: {error.strerror}. {hint}"
        ) from error


_WRITTEN_LAST = "report.json"


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
def atomic_write(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Write one file atomically: it appears complete or not at all.

    Parameters
    ----------
    path : str or Path
        An existing file is replaced atomically.
    size : int, optional
        Approximate size in bytes, for the message when the disk is full.

    Yields
    ------
    Path
        Temporary path to write to, beside `path` and with the same ending.

    Raises
    ------
    InputError
        If the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    path = check_name(path)
    check_is_file(path)
    check_parent(path)
    temporary = temporary_path(path.parent, path.name, ending(path))
    with _explain_os_errors(path):
        clean(path.parent, path.name)
    try:
        with _explain_full_disk(path, size):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def new_folder(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Build an output folder atomically: it appears complete or not at all.

    A folder that cannot be replaced (a mount point, the working directory, a folder in a read-only
    parent) is filled at the end, entry by entry. ``report.json`` is moved last, so a folder that
    contains it is always complete.

    Parameters
    ----------
    path : str or Path
        Must not exist, or be empty. Missing parents are created.
    size : int, optional
        Approximate size in bytes, for the message when the disk is full.

    Yields
    ------
    Path
        Temporary folder to fill.

    Raises
    ------
    InputError
        If `path` is a file or a folder that is not empty, or not writable, or the disk is full.
    """
    path = check_name(path).resolve()
    check_is_folder(path)
    with _explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ours: a mount point or the working directory cannot be replaced, so it is filled in place.
        inside = path.is_dir() and (
            os.path.ismount(path) or path == Path.cwd() or not os.access(path.parent, os.W_OK)
        )
        parent = path if inside else path.parent
        check_parent(parent / path.name)
        check_empty(path)
        for folder in {parent, path} if path.is_dir() else {parent}:
            clean(folder, path.name)
        temporary = temporary_path(parent, path.name)
        temporary.mkdir()
    try:
        with _explain_full_disk(path, size):
            yield temporary
            check_empty(path)
            if inside:
                for entry in sorted(
                    temporary.iterdir(), key=lambda entry: (entry.name == _WRITTEN_LAST, entry.name)
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
def _explain_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while a path is prepared into an InputError."""
    with _explain_full_disk(path, None):
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            where = display_path(error.filename or path)
            raise InputError(
                f"Cannot write {display_path(path)}: {error.strerror} ({where}). Choose a path that"
                " you may write to."
            ) from error


@contextmanager
def _explain_full_disk(path: Path, size: int | None) -> Iterator[None]:
    """Turn a full disk into an InputError; ITK reports it as a RuntimeError without errno.

    Ours: such an error counts as a full disk if less is free than was to be written (or than 1
    MiB).
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(
            next(folder for folder in (path, *path.parents) if folder.is_dir())
        ).free
        number = getattr(error, "errno", None)
        if not (number in NO_SPACE or (number is None and free < max(2**20, size or 0))):
            raise
        need = "" if size is None else f" and {path.name} needs about {size / 1e6:.0f} MB"
        raise InputError(
            f"The disk is full: {display_path(path)} could not be written; {free / 1e6:.0f} MB are"
            f" free{need}. Free some space or choose a path on another disk. No half-written file"
            " was left."
        ) from error


DOTS_PER_INCH = 150
ENDINGS = (".png", ".svg")


def write_figure(figure: Figure, path: str | Path, about: Mapping[str, str]) -> None:
    """Write a figure as PNG or SVG, by the ending of its name, with metadata; atomically.

    Parameters
    ----------
    figure : Figure
    path : str or Path
        Ends in .png or .svg.
    about : mapping of str to str
        Metadata: Title, Software, Weights, Pair, Settings and others. A PNG gets a text chunk per
        name. An SVG gets Dublin Core elements: Title becomes the title, Software the creator, and
        all others lines "Name: text" of the description.

    Raises
    ------
    InputError
        If the ending is another one, or the path is not writable.
    """
    from matplotlib import rc_context

    kind = ending(path)
    if kind not in ENDINGS:
        raise InputError(f"Figures are written as {' or '.join(ENDINGS)}; got the name '{path}'.")
    metadata: dict[str, Any] = dict(about) if kind == ".png" else _dublin_core(about)
    # Ours: text stays text in an SVG, so it can be searched and set in a journal's font. No date
    # and no random ids, so the same figure gives the same file.
    with (
        atomic_write(path) as temporary,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "shmoareg"}),
    ):
        figure.savefig(temporary, format=kind[1:], dpi=DOTS_PER_INCH, metadata=metadata)


def _dublin_core(about: Mapping[str, str]) -> dict[str, Any]:
    description = "\n".join(
        f"{name}: {text}" for name, text in about.items() if name not in ("Title", "Software")
    )
    named = {
        "Title": about.get("Title"),
        "Creator": about.get("Software"),
        "Description": description or None,
    }
    return {key: value for key, value in named.items() if value is not None} | {"Date": None}


def write_table(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Write rows as CSV, atomically; the columns are those of the first row."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


_LOCALE_LOCK = threading.RLock()
_LC_NUMERIC_MASK = {"linux": 1 << 1, "darwin": 1 << 4}


@contextmanager
def c_numeric_locale() -> Iterator[None]:
    """Make C code that this thread calls use a decimal point.

    Qt sets the desktop's locale for the whole process; with a decimal comma, C then reads "0.5" as
    0. On Linux and macOS only this thread's locale is changed, and of it only how numbers are
    written; elsewhere that of the process, for one thread at a time.
    """
    library, mask = _locale_library(), _LC_NUMERIC_MASK.get(sys.platform)
    current = library.duplocale(library.uselocale(None)) if library and mask else None
    # newlocale changes the copy and returns it
    plain = library.newlocale(mask, b"C", current) if library and current else None
    if library is None or plain is None:
        with _LOCALE_LOCK:
            before = locale.setlocale(locale.LC_NUMERIC)
            locale.setlocale(locale.LC_NUMERIC, "C")
            try:
                yield
            finally:
                locale.setlocale(locale.LC_NUMERIC, before)
        return
    old = library.uselocale(plain)
    try:
        yield
    finally:
        library.uselocale(old)
        library.freelocale(plain)


@cache
def _locale_library() -> Any | None:
    """The C library, where it can change the locale of one thread."""
    try:
        library = ctypes.CDLL(None)
        functions = library.newlocale, library.uselocale, library.duplocale, library.freelocale
    except (OSError, AttributeError, TypeError):
        return None
    for function in functions:
        function.restype = ctypes.c_void_p
    library.freelocale.restype = None
    library.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    for function in functions[1:]:
        function.argtypes = [ctypes.c_void_p]
    return library


@contextmanager
def muted_stderr() -> Iterator[None]:
    """Mute what ITK's libraries print on stderr, and use `c_numeric_locale`.

    They raise the same errors, which we report. The stderr of the whole process is muted, so use it
    for a single library call only.
    """
    with c_numeric_locale(), _muted_stderr():
        yield


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Redirect the stderr of the process to the null device."""
    try:
        saved = os.dup(2)
    # a program without a terminal may have closed it: nothing to mute
    except OSError:
        saved = None
    if saved is None:
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
