"""A resumable output folder: a plan, one row file per item, and a lock."""

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
PLAN_TIMEOUT = 60.0  # to wait for another process that writes the plan


class WorkFolder:
    """Results of many items, each computed once; the same command resumes an interrupted run.

    Inside a ``with`` statement one process owns the folder; outside, several processes may write
    their own rows.

    Parameters
    ----------
    path : str or Path
    plan : str
        Name of the file with everything that the rows depend on.
    rows : str
        Name of the folder with one file ``<key>.json`` per row.
    what : str
        Name of the work for messages, such as "benchmark".
    remedy : str
        Advice that the error about a damaged row ends with.
    """

    def __init__(self, path: str | Path, plan: str, rows: str, what: str, remedy: str = "") -> None:
        self.path = user_path(path).absolute()
        self.plan = self.path / plan
        self.rows = self.path / rows
        self.what, self.remedy = what, remedy
        self._alone = ExitStack()

    def begin(self, plan: Mapping[str, Any]) -> Self:
        """Create the folder and write the plan, or check that the existing plan is the same.

        Processes that start at the same time agree on one plan.

        Raises
        ------
        InputError
            If the folder has another plan (the message names what differs) or other content, or
            cannot be created.
        """
        if not self.plan.is_file():
            own = (LOCK, self.plan.name, f".{self.plan.name}.partial-")
            check_free(self.path, own, self.what, self.plan)
            make_folder(self.path)
            with locked(self.path / LOCK, PLAN_TIMEOUT):
                if not self.plan.is_file():
                    with files.atomic_write(self.plan) as temporary:
                        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        saved, current = self.read_plan(), json.loads(json.dumps(plan))
        differences = [
            found for key in current if (found := _difference(key, saved.get(key), current[key]))
        ]
        if differences:
            raise InputError(
                f"The {self.what} in '{self.path}' was started with {' and '.join(differences)}"
                f" (see {self.plan}). Resume it with the same settings, or give another --out."
            )
        self.rows.mkdir(exist_ok=True)
        return self

    def read_plan(self) -> dict[str, Any]:
        """Read the plan."""
        try:
            return read_object(self.plan, f"the plan of the {self.what}")
        except InputError as error:
            raise InputError(f"{error} Give another --out.") from error

    def row_file(self, key: str) -> Path:
        """Path of the file of a row."""
        return self.rows / f"{key}.json"

    def read(self, key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """Read a row; None if it does not exist yet.

        Parameters
        ----------
        key : str
        parse : callable
            Converts the JSON object to the result; an exception means that the row is damaged.

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
        """Write a row, atomically; NaN becomes null."""
        write_json(row, self.row_file(key), indent=None)

    def complete(
        self, keys: Iterable[str], load: Callable[[str], Row | None], compute: Callable[[str], Row]
    ) -> Iterator[tuple[Row, bool]]:
        """Yield each row and whether it is new; each is written before the next one starts.

        Parameters
        ----------
        keys : iterable of str
        load : callable
            Returns the existing row of a key; None if it has to be computed.
        compute : callable
            Computes the row of a key.
        """
        for key in keys:
            row = load(key)
            if row is not None:
                yield row, False
                continue
            row = compute(key)
            self.write(key, row)
            yield row, True

    def __enter__(self) -> Self:
        """Lock the folder for this process."""
        try:
            self._alone.enter_context(locked(self.path / LOCK))
        except Timeout as error:
            raise InputError(
                f"Another process works in {self.path}. Wait until it ends, or give another --out."
            ) from error
        return self

    def __exit__(self, *what: object) -> None:
        """Release the lock."""
        self._alone.close()


def check_free(
    path: Path, own_prefixes: tuple[str, ...], what: str, plan: Path | None = None
) -> None:
    """Refuse a folder with other content than leftovers of the same work.

    Parameters
    ----------
    path : Path
    own_prefixes : tuple of str
        Prefixes of the names that a killed process may have left.
    what : str
        Name of the work, for messages.
    plan : Path, optional
        If this file exists, nothing is refused: another process has just started.

    Raises
    ------
    InputError
        If it has other content, or is not writable.
    """
    files.check_creatable(path)
    found = path.iterdir() if path.is_dir() else ()
    entries = sorted(entry.name for entry in found if not entry.name.startswith(own_prefixes))
    if entries and not (plan is not None and plan.is_file()):
        raise InputError(
            f"The folder {path} is not empty ({len(entries)} entries, such as '{entries[0]}') and"
            f" holds no {what}. Nothing there is overwritten: choose another folder, or empty this"
            " one."
        )


def make_folder(path: Path) -> None:
    """Create a folder if it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot create the folder {path}: {error.strerror}. Choose a path that you may write"
            " to."
        ) from error


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the system releases it when the process ends, however it ends.

    Parameters
    ----------
    path : Path
        Removed afterwards.
    seconds : float
        Time to wait for a process that holds it.

    Raises
    ------
    Timeout
        If another process still holds it after that time.
    InputError
        If the folder is not writable.
    """
    lock = FileLock(path, timeout=seconds, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        raise InputError(
            f"Cannot write into {path.parent}: {error.strerror}. Choose another path."
        ) from error
    try:
        yield
    finally:
        if isinstance(lock, UnixFileLock):  # other kinds remove it themselves
            path.unlink(missing_ok=True)
        lock.release()


def check_row(kind: type, row: Mapping[str, Any]) -> None:
    """Check the values of a row against the types of a dataclass; extra values are allowed."""
    for field in fields(kind):
        if field.name in row:
            check_fields(kind, {field.name: row[field.name]})
        elif field.default is MISSING:
            raise ValueError(f"'{field.name}' is missing")


def write_json(values: Mapping[str, Any], path: Path, *, indent: int | None = 1) -> None:
    """Write plain values as JSON, atomically; NaN becomes null."""
    from napari_shmoareg.io.report import plain

    with files.atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(plain(values), indent=indent, allow_nan=False) + "\n", encoding="utf-8"
        )


def _difference(key: str, saved: Any, current: Any) -> str:
    """Describe what differs in one entry of two plans; empty if nothing does."""
    if saved == current:
        return ""
    if key == "machine":
        return "another machine"
    both = isinstance(saved, dict) and isinstance(current, dict)
    names = [k for k in {**saved, **current} if saved.get(k) != current.get(k)] if both else []
    return f"other {key}" + (f" ({', '.join(names)})" if names else "")
