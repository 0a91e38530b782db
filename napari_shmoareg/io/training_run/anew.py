"""Beginning anew in the folder of a run that saved nothing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.lock import RunLock


def is_blank(path: Path) -> bool:
    """Whether a folder holds a run that can be lost: it saved no state, and its weights, if any, learned nothing."""
    folder = RunFolder(path)
    if not folder.told.is_file() or folder.state.exists() or folder.last.exists():
        return False
    return not folder.best.exists() or _lines(folder.metrics, 2) < 2


def clear_blank(path: Path) -> None:
    """Remove the files of a run that saved nothing, so that another can begin in its folder.

    Raises
    ------
    InputError
        If the run saved something, a process works on it, or something lies there that is not the run's; nothing
        is removed then.
    """
    folder = RunFolder(path)
    try:
        with RunLock(folder.lock):
            if not is_blank(path):
                raise InputError(f"The run in {path} saved what it learned. Resume it, or name another folder.")
            own = _own(folder)
            others = sorted(place for place in path.rglob("*") if place not in own and place != folder.lock)
            if others:
                raise InputError(
                    f"{others[0]} is no file of a run, and nothing of others is removed. Move it away, or name another "
                    "folder."
                )
            for place in sorted(own, key=lambda place: (place == folder.told, -len(place.parts))):  # run.json last
                place.rmdir() if place.is_dir() else place.unlink()
    except OSError as error:
        raise InputError(f"The folder {path} cannot be emptied: {error}. Name another folder.") from error


def _own(folder: RunFolder) -> set[Path]:
    """What is there of a run's files."""
    tables = (folder.checkup, folder.metrics, folder.validation, folder.loads, folder.skipped)
    files = (folder.told, folder.split, *tables, folder.best, folder.wish)
    own = {place for place in files if place.is_file()}
    own |= {entry for entry in folder.path.iterdir() for file in files if partial.is_leftover(entry, file.name)}
    for inner, patterns in ((folder.curves, ("events.*",)), (folder.preview, ("preview.json", "*.nii.gz"))):
        if inner.is_dir() and not inner.is_symlink():
            own |= {inner, *(place for pattern in patterns for place in inner.glob(pattern) if place.is_file())}
    return own


def _lines(path: Path, most: int) -> int:
    """How many lines a file has, of which no more than `most` are counted."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in islice(file, most))
    except FileNotFoundError:
        return 0
