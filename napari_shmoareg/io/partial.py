"""Names of what is half-written: hidden, beside its place, with the number of the process."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import psutil

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
    """A name, or its beginning and a sum of it where no room would be left for what a hidden name adds."""
    most, whole = longest_name(parent) - _ADDED, os.fsencode(name)
    if len(whole) <= most:
        return name
    short = whole[: most - 17].decode("utf-8", "ignore") + "~" + hashlib.sha256(whole).hexdigest()[:16]
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
    """Remove a file, a link or a folder, if there is one; to its end, also where Ctrl-C comes meanwhile."""
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
