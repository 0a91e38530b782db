"""Names of what is half-written: hidden, beside its place, with the number of the process."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import psutil

_PARTIAL = re.compile(r"\.(?P<name>.+)\.partial-(?P<process>\d+)(\..*)?")


def hidden(parent: Path, name: str, suffix: str = "") -> Path:
    """Where this process builds the file or folder `name`."""
    return parent / f".{name}.partial-{os.getpid()}{suffix}"


def shown(path: str | Path) -> Path:
    """The place where `path` will stand once it is whole: what people should read.

    A folder that is filled from within is built in itself, so its name is said once.
    """
    parts: list[str] = []
    for part in Path(path).parts:
        found = _PARTIAL.fullmatch(part)
        if found is None:
            parts.append(part)
        elif not parts or parts[-1] != found["name"]:
            parts.append(found["name"])
    return Path(*parts)


def is_leftover(entry: Path, name: str) -> bool:
    """Whether an entry is a half-written `name` of a process that is gone, or of this one."""
    found = _PARTIAL.fullmatch(entry.name)
    if found is None or found["name"] != name:
        return False
    return int(found["process"]) == os.getpid() or not psutil.pid_exists(int(found["process"]))


def clean(folder: Path, name: str) -> None:
    """Remove the leftovers of `name` from a folder."""
    for entry in folder.iterdir():
        if is_leftover(entry, name):
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
