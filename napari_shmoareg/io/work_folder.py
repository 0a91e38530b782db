"""A folder of results that the same command goes on with: a plan, a row per item, a lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout, UnixFileLock

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import files
from napari_shmoareg.io.untrusted import check_fields, read_object, user_path

T = TypeVar("T")
Row = dict[str, Any]
LOCK = ".lock"
SECONDS = 60.0  # that a process waits for another one that writes the plan


class WorkFolder:
    """Work of many items, each done once: the same command goes on where it was stopped.

    Used in a ``with`` statement, it belongs to one process alone; without, several processes may
    write rows of their own.

    Parameters
    ----------
    path : str or Path
    plan : str
        Name of the file that holds all that the rows depend on.
    rows : str
        Name of the folder with one file ``<key>.json`` per row.
    what : str
        The work, for messages: "benchmark".
    remedy : str
        What the error about a damaged row says to do.
    """

    def __init__(self, path: str | Path, plan: str, rows: str, what: str, remedy: str = "") -> None:
        self.path = user_path(path).absolute()
        self.plan = self.path / plan
        self.rows = self.path / rows
        self.what, self.remedy = what, remedy
        self._alone = ExitStack()

    def begin(self, plan: Mapping[str, Any]) -> Self:
        """Make the folder and write the plan, or check that it was begun with the same plan.

        Processes that begin at the same moment agree on one plan.

        Raises
        ------
        InputError
            If it was begun with another plan (the message names what differs), holds other things,
            or cannot be made.
        """
        if not self.plan.is_file():
            own = (LOCK, self.plan.name, f".{self.plan.name}.partial-")
            check_free(self.path, own, self.what, self.plan)
            make_folder(self.path)
            with locked(self.path / LOCK, SECONDS):
                if not self.plan.is_file():
                    with files.writing(self.plan) as temporary:
                        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        then, now = self.read_plan(), json.loads(json.dumps(plan))
        differ = [found for key in now if (found := _difference(key, then.get(key), now[key]))]
        if differ:
            raise InputError(
                f"The {self.what} in '{self.path}' was begun with {' and '.join(differ)} (see"
                f" {self.plan}); go on with what it was begun with, or give another --out."
            )
        self.rows.mkdir(exist_ok=True)
        return self

    def read_plan(self) -> dict[str, Any]:
        """The plan.

        Raises
        ------
        InputError
            If it is missing or damaged.
        """
        try:
            return read_object(self.plan, f"the plan of the {self.what}")
        except InputError as error:
            raise InputError(f"{error} Give another --out.") from error

    def row_file(self, key: str) -> Path:
        """Where a row is kept."""
        return self.rows / f"{key}.json"

    def read(self, key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """A row; None if there is none yet.

        Parameters
        ----------
        key : str
        parse : callable
            Makes of the JSON object what is wanted; what it raises means that the row is damaged.

        Raises
        ------
        InputError
            If the row is damaged.
        """
        file = self.row_file(key)
        if not file.is_file():
            return None
        try:
            return parse(read_object(file, "a row"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{file} is damaged ({error}).{self.remedy}") from error

    def write(self, key: str, row: Mapping[str, Any]) -> None:
        """Write a row, whole or not at all; NaN becomes null.

        Raises
        ------
        InputError
            If it cannot be written, as on a full disk.
        """
        write_json(row, self.row_file(key), indent=None)

    def complete(
        self, keys: Iterable[str], kept: Callable[[str], Row | None], do: Callable[[str], Row]
    ) -> Iterator[tuple[Row, bool]]:
        """Each row in turn, and whether it is a new one; each is on the disk before the next one
        is begun.

        Parameters
        ----------
        keys : iterable of str
        kept : callable
            Gives the row of a key that need not be done; None if it is missing or to be done again.
        do : callable
            Gives the row of a key that is missing.
        """
        for key in keys:
            row = kept(key)
            if row is not None:
                yield row, False
                continue
            row = do(key)
            self.write(key, row)
            yield row, True

    def __enter__(self) -> Self:
        """Work here alone.

        Raises
        ------
        InputError
            If another process works here.
        """
        try:
            self._alone.enter_context(locked(self.path / LOCK))
        except Timeout as error:
            raise InputError(
                f"Another process works in {self.path}. Wait for it, or give another --out."
            ) from error
        return self

    def __exit__(self, *what: object) -> None:
        """Let others work here."""
        self._alone.close()


def check_free(path: Path, own: tuple[str, ...], what: str, begun: Path | None = None) -> None:
    """Refuse a folder that holds other things than work that was begun there.

    Parameters
    ----------
    path : Path
    own : tuple of str
        How the names begin of what a process that was killed may have left.
    what : str
        The work, for messages.
    begun : Path, optional
        A file with which nothing is refused: another process began just now.

    Raises
    ------
    InputError
        If it holds something else, or cannot be written to.
    """
    files.check_is_folder(path)
    if not path.is_dir():
        files.check_new_folder(path)
        return
    others = sorted(e.name for e in path.iterdir() if not e.name.startswith(own))
    if others and not (begun is not None and begun.is_file()):
        raise InputError(
            f"The folder {path} is not empty ({len(others)} entries, such as '{others[0]}') and"
            f" holds no {what}. Nothing there is overwritten: name another folder, or empty this"
            " one."
        )
    files.check_parent(path / "new")


def make_folder(path: Path) -> None:
    """Make a folder, where it is missing.

    Raises
    ------
    InputError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot make the folder {path}: {error.strerror}. Name a place that you may write to."
        ) from error


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends.

    Parameters
    ----------
    path : Path
        Removed afterwards.
    seconds : float
        To wait for a process that holds it.

    Raises
    ------
    Timeout
        If another process still holds it then.
    InputError
        If the folder cannot be written to.
    """
    lock = FileLock(path, timeout=seconds, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        raise InputError(
            f"Cannot write into {path.parent}: {error.strerror}. Name another place."
        ) from error
    try:
        yield
    finally:
        if isinstance(lock, UnixFileLock):  # other kinds remove it themselves
            path.unlink(missing_ok=True)
        lock.release()


def check_row(kind: type, row: Mapping[str, Any]) -> None:
    """Refuse a row whose values are not of the types of a dataclass; it may hold others beside.

    Raises
    ------
    ValueError
        If one is missing that has no default, or is of another type.
    """
    for field in fields(kind):
        if field.name in row:
            check_fields(kind, {field.name: row[field.name]})
        elif field.default is MISSING:
            raise ValueError(f"'{field.name}' is missing")


def write_json(values: Mapping[str, Any], path: Path, *, indent: int | None = 1) -> None:
    """Write plain values as JSON, whole or not at all; NaN becomes null."""
    from napari_shmoareg.io.report import plain

    with files.writing(path) as temporary:
        temporary.write_text(
            json.dumps(plain(values), indent=indent, allow_nan=False) + "\n", encoding="utf-8"
        )


def _difference(key: str, then: Any, now: Any) -> str:
    """What differs in a part of two plans; empty if nothing does."""
    if then == now:
        return ""
    if key == "machine":
        return "another machine"
    both = isinstance(then, dict) and isinstance(now, dict)
    names = [k for k in {**then, **now} if then.get(k) != now.get(k)] if both else []
    return f"other {key}" + (f" ({', '.join(names)})" if names else "")
