"""Logs of a training run: CSV tables, events, TensorBoard."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import NO_SPACE, atomic_write
from napari_shmoareg.io.report import plain
from napari_shmoareg.io.untrusted import MAX_TABLE, parse_csv, read_bytes


class StepTable:
    """An append-only CSV file whose first column is the step.

    Parameters
    ----------
    path : Path
        Created if missing. Otherwise rows after `last`, and a line that a killed process left
        incomplete, are removed.
    columns : sequence of str
        The first is "step".
    last : int
        The last step whose rows are kept.
    earlier : sequence of str, optional
        Columns that an earlier version wrote; an existing table with these keeps them.

    Raises
    ------
    InputError
        If the file has other columns, or cannot be written.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], *, last: int, earlier: Sequence[str] = ()
    ) -> None:
        self._path, self._columns = path, tuple(columns)
        head = _line(self._columns)
        rows = rows_up_to(path, head, last)
        if rows is None and earlier:
            self._columns, head = tuple(earlier), _line(earlier)
            rows = rows_up_to(path, head, last)
        if rows is None:
            raise InputError(
                f"{path} is damaged: its first line should be '{head.strip()}'. Move the file"
                " away to continue without its rows."
            )
        whole = head + "".join(rows)
        if not path.exists() or path.read_bytes() != whole.encode():
            with atomic_write(path) as temporary:
                temporary.write_bytes(whole.encode())
        self._file = path.open("a", newline="", encoding="utf-8")

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows and pass them to the operating system; `flush` writes them to the disk.

        Raises
        ------
        InputError
            If the disk is full.
        """
        text = "".join(_line([_cell(row[name]) for name in self._columns]) for row in rows)
        if not text:
            return
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def flush(self) -> None:
        """Write all rows to the disk (fsync).

        Raises
        ------
        InputError
            If the disk is full.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        """Close the file; rows that did not fit on a full disk are lost."""
        try:
            self._file.close()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise

    def _refusal(self, error: OSError) -> InputError:
        if error.errno not in NO_SPACE:
            return InputError(f"Cannot write {self._path}: {error.strerror}.")
        free = shutil.disk_usage(self._path.parent).free
        return InputError(
            f"The disk is full: {self._path} could not be written ({free / 1e6:.0f} MB free)."
        )


def rows_up_to(path: Path, head: str, last: int) -> list[str] | None:
    """Complete lines of a table up to a step; empty if it is missing, None if its header differs.

    Parameters
    ----------
    path : Path
    head : str
        The header line with its line break.
    last : int
    """
    exists = path.exists()
    text = (
        read_bytes(path, "a table of a run", limit=MAX_TABLE).decode("utf-8", errors="replace")
        if exists
        else ""
    )
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        return []
    if lines[0] != head:
        return None
    rows = []
    for line in lines[1:]:
        step = line.split(",", 1)[0]
        if not (step.isascii() and step.isdigit() and len(step) < 19) or int(step) > last:
            break
        rows.append(line)
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    """Complete rows of a table as dicts; empty if it is missing. Safe while a run is writing.

    Raises
    ------
    InputError
        If it is not a file or not a table.
    """
    if not path.exists():
        return []
    text = read_bytes(path, "a table of a run", limit=MAX_TABLE).decode("utf-8", errors="replace")
    return [
        row.cells for row in parse_csv(text[: text.rfind("\n") + 1], path, "a table of a run")[1]
    ]


def _cell(value: object) -> str:
    """All digits of a number; empty for None and NaN."""
    if value is None or value != value:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(
        [" ".join(cell.splitlines()) for cell in cells]
    )
    return written.getvalue()


Event = dict[str, Any]


def event(name: str, /, **more: Any) -> Event:
    """Make an event: name, time (s since 1970) and fields; NaN and infinity become None."""
    return {"event": name, "time": round(time.time(), 3), **plain(more)}


def phase(name: str, done: float, text: str) -> Event:
    """Make a progress event; `done` from 0 to 1."""
    return event("phase", phase=name, done=round(min(max(done, 0.0), 1.0), 4), text=text)


class Curves:
    """Writes curves for TensorBoard; does nothing if that is not installed.

    Parameters
    ----------
    folder : Path or None
        None writes no curves.
    after : int
        The last valid step of an earlier process; later ones are overwritten.

    Warns
    -----
    UserWarning
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, *, after: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn(
                "TensorBoard is not installed, so its curves are not written; metrics.csv has"
                " the same values. Install it with: pip install tensorboard, or give"
                " --no-tensorboard.",
                stacklevel=2,
            )
            return
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def add(self, group: str, values: Mapping[str, float | None], step: int) -> None:
        """Add the values of one step under a group name; values that are not finite are left out.

        Raises
        ------
        InputError
            If the disk is full.
        """
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                if value is not None and math.isfinite(value):
                    self._writer.add_scalar(f"{group}/{name}", value, step)
        except OSError as error:
            raise InputError(
                f"The curves for TensorBoard could not be written: {error.strerror}."
            ) from error

    def flush(self) -> None:
        """Flush the curves to the disk.

        Raises
        ------
        InputError
            If the disk is full.
        """
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError as error:
            raise InputError(
                f"The curves for TensorBoard could not be written: {error.strerror}."
            ) from error

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                warnings.warn(
                    f"The last curves for TensorBoard are lost: {error.strerror}.", stacklevel=2
                )
