"""Safe reading of untrusted input: paths, text, JSON and CSV, within limits.

Every text file that a user names, directly or through its folder, is read here. The result is its
content or an `InputError` that names the file.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from napari_shmoareg.errors import InputError

MAX_BYTES = 64 * 2**20  # of a list, plan or report; the largest known ones have 2 MB
MAX_TABLE = 2**30  # of the tables of a run, which grow with its length
MAX_DEPTH = 64  # brackets within brackets; our own files have 6
MAX_CELL = 2**17  # characters of one cell of a CSV file

P = ParamSpec("P")
T = TypeVar("T")


class Row(NamedTuple):
    """A row of a CSV file: line number, and cells by column (missing ones are empty)."""

    line: int
    cells: dict[str, str]


def user_path(path: str | os.PathLike[str]) -> Path:
    """Convert a path as typed, replacing ``~`` and ``~name`` by the home folder.

    Raises
    ------
    InputError
        If there is neither such a user nor a file of that name; or the path has a NUL character.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(
            f"{text!r} is not a path: it contains a NUL character. Give the path without it."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        if os.path.lexists(text):
            return Path(text)
        user = Path(text).parts[0]
        raise InputError(
            f"{text}: the home folder of '{user}' is not known. Give the full path; or ./{text} if"
            " the file or folder name itself begins with '~'."
        ) from error


def typed_path(text: str) -> Path:
    """As `user_path`, for a text field being edited: an invalid path is returned as it is."""
    try:
        return user_path(text)
    except InputError:
        return Path(text.replace("\0", ""))


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; False for an impossible name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def inside(folder: Path, name: str) -> Path:
    """Path of a file in an untrusted folder.

    Raises
    ------
    InputError
        If its name, or a link, leads out of the folder.
    """
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{printable(str(path))} leads out of the folder {folder} (by '..', an absolute path or"
            " a link) and is not read. Put a copy of the file there."
        )
    return path


def read_bytes(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Parameters
    ----------
    path : str or path
    what : str
        What the file should be, for messages: "a CSV list of pairs".
    limit : int
        Maximum size in bytes.

    Raises
    ------
    InputError
        If it is missing, a folder, a pipe or a device, too large, or not readable.
    """
    file = user_path(path)
    try:
        if not file.is_file():
            raise InputError(_not_a_file(file, what))
        size = file.stat().st_size
        if size > limit:
            raise InputError(
                f"{file} has {size / 1e6:.0f} MB; {what} has {limit / 1e6:.0f} MB at most. Give"
                " another file."
            )
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror}; {what} was expected."
        ) from error


def read_text(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises
    ------
    InputError
        As `read_bytes`; or if it is not UTF-8.
    """
    try:
        return read_bytes(path, what, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{user_path(path)} is not UTF-8 text (byte {error.start} is"
            f" 0x{error.object[error.start]:02x}); {what} was expected. Save it as UTF-8."
        ) from error


def parse_json(text: str, where: object, what: str) -> Any:
    """Parse JSON text.

    Parameters
    ----------
    text : str
    where : object
        The file it comes from, for messages.
    what : str
        What was expected there.

    Raises
    ------
    InputError
        If it is not JSON, or is nested deeper than `MAX_DEPTH`.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = (
            "its brackets are nested too deeply" if isinstance(error, RecursionError) else error
        )
        raise InputError(
            f"{where} is damaged, or not a JSON file ({reason}); {what} was expected."
        ) from error
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        inner = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level = [item for values in inner for item in values]
        if not level:
            return found
    raise InputError(
        f"{where} is damaged: brackets are nested more than {MAX_DEPTH} levels deep; {what} was"
        " expected."
    )


def read_json(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : str or path
    what : str
        What the file should be, for messages.
    limit : int
        Maximum size in bytes.

    Raises
    ------
    InputError
        As `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, limit=limit), user_path(path), what)


def read_object(
    path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES
) -> dict[str, Any]:
    """Read a JSON file that contains an object (names and values).

    Raises
    ------
    InputError
        As `read_json`; or if the content is not an object.
    """
    found = read_json(path, what, limit=limit)
    if not isinstance(found, dict):
        raise InputError(
            f"{user_path(path)} is damaged: it contains {_kind(found)}; {what} was expected, as an"
            " object."
        )
    return found


def read_csv(
    path: str | os.PathLike[str], what: str, *, required: Sequence[str] = (), limit: int = MAX_BYTES
) -> tuple[list[str], list[Row]]:
    """Read the columns and rows of a CSV file with a header line.

    Parameters
    ----------
    path : str or path
    what : str
        What the file should be, for messages.
    required : sequence of str
        Required columns.
    limit : int
        Maximum size in bytes.

    Returns
    -------
    columns : list of str
    rows : list of Row

    Raises
    ------
    InputError
        As `read_text`; or if a column is missing or duplicated, a row has more cells than there are
        columns, or a cell is longer than `MAX_CELL`.
    """
    file = user_path(path)
    try:
        text = read_text(file, what, limit=limit)
    except InputError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise InputError(f"{file} is not a CSV file: {error}") from error
        raise
    return parse_csv(text, file, what, required=required)


def parse_csv(
    text: str, where: object, what: str, *, required: Sequence[str] = ()
) -> tuple[list[str], list[Row]]:
    """As `read_csv`, for text."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        missing = sorted(name for name in required if name not in columns)
        if missing:
            raise InputError(
                f"{where} has no column {' and '.join(missing)} (it has:"
                f" {', '.join(columns)[:200]}); {what} was expected."
            )
        twice = sorted({name for name in columns if name and columns.count(name) > 1})
        if twice:
            raise InputError(
                f"{where} has the column '{twice[0]}' more than once. Keep one of them."
            )
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
                raise InputError(
                    f"{where}, line {reader.line_num}: {len(cells)} cells were found for"
                    f" {len(columns)} columns. Put quotes around a cell that contains a comma."
                )
            if any(len(cell) > MAX_CELL for cell in cells):
                raise InputError(
                    f"{where}, line {reader.line_num}: a cell has more than {MAX_CELL} characters."
                )
            filled = [*cells, *[""] * (len(columns) - len(cells))]
            rows.append(Row(reader.line_num, dict(zip(columns, filled, strict=False))))
    except csv.Error as error:
        raise InputError(
            f"{where}, line {reader.line_num}, is not valid CSV ({error}); {what} was expected."
        ) from error
    return columns, rows


def check_fields(kind: type, values: object) -> None:
    """Check values from JSON against the types of a dataclass's fields.

    Parameters
    ----------
    kind : type
        A dataclass.
    values : object
        A mapping of its fields; missing fields are ignored.

    Raises
    ------
    ValueError
        If it is not a mapping, a field is unknown, or a value has another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"names and values were expected, not {_kind(values)}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"'{name:.80}' is not known")
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r:.80}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a JSON value matches a type; lists count as tuples, whole numbers as floats."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if hint is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000
        )
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if Ellipsis in inner else inner
        return len(kinds) == len(value) and all(
            _fits(v, k) for v, k in zip(value, kinds, strict=True)
        )
    if origin is list and isinstance(value, list):
        return all(_fits(v, inner[0]) for v in value)
    if (origin or hint) in (dict, Mapping) and isinstance(value, dict):
        return not inner or all(_fits(v, inner[1]) for v in value.values())
    if hint is Any:
        return True
    return isinstance(origin or hint, type) and isinstance(value, origin or hint)


@contextmanager
def errors_naming(path: object) -> Iterator[None]:
    """Add the name of the file being read to every error: to the text of an InputError, or as a
    note to an unexpected exception.
    """
    try:
        yield
    except InputError as error:
        if not os.path.lexists(printable(str(path)).replace("\0", "")) or os.path.basename(
            str(path)
        ) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        note = f"while reading {path}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def names_input(read: Callable[P, T]) -> Callable[P, T]:
    """Decorate a reader: its errors name the file given as the first argument."""

    @functools.wraps(read)
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        with errors_naming(args[0] if args else next(iter(kwargs.values()), "its input")):
            return read(*args, **kwargs)

    return named


def printable(text: str) -> str:
    r"""Convert to printable text: bytes of a file name that are not UTF-8 become ``\xff``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other lone surrogates, which JSON may contain
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _not_a_file(path: Path, what: str) -> str:
    if path.is_dir():
        return f"{path} is a folder; {what} was expected."
    if os.path.lexists(path) and not path.exists():
        return f"{path} is a link to nothing; {what} was expected."
    if path.exists():
        return f"{path} is not a regular file (a pipe or a device); {what} was expected."
    return (
        f"There is no file {path}; {what} was expected. Check the spelling and the folder you are"
        " in."
    )


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
