"""A lock, so that two processes never write one run."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.untrusted import read_object

SILENT = 900.0  # seconds after which a process on another machine, which cannot be looked at, counts as gone
MAX_LOCK = 2**16  # bytes
BEAT = 30.0  # seconds between two signs of life


class RunLock:
    """A file that says which process works on a run.

    Parameters
    ----------
    path : Path
        Of the lock, in the run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = False
        self._beaten = 0.0

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises
        ------
        InputError
            If a process that lives holds it, or the folder cannot be written to.
        """
        for _ in range(5):
            try:
                self._create()
            except FileExistsError:
                self._clear()
            except OSError as error:
                raise InputError(f"Cannot write into {self.path.parent}: {error.strerror}.") from error
            else:
                self._held = True
                return self
        raise InputError(f"Several processes try to work on {self.path.parent} at once. Start one of them.")

    def __exit__(self, *what: object) -> None:
        """Give the lock back."""
        if self._held:
            self._held = False
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        """A sign of life for other machines, now and then."""
        if self._held and time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            os.utime(self.path)

    def say(self, doing: str) -> None:
        """Note what the process does: "learning", "paused"."""
        if self._held:
            hidden = partial.hidden(self.path.parent, self.path.name)
            hidden.write_text(json.dumps(_self(doing)), encoding="utf-8")
            os.replace(hidden, self.path)

    def _create(self) -> None:
        """Make the file with its content in one move, or raise FileExistsError."""
        hidden = partial.hidden(self.path.parent, self.path.name)
        hidden.write_text(json.dumps(_self("preparing")), encoding="utf-8")
        try:
            os.link(hidden, self.path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with self.path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(_self("preparing")))
        finally:
            hidden.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Take a lock away whose process is gone; refuse where it lives."""
        holder = read_holder(self.path)
        if holder is not None:
            who = f"process {holder['pid']} on {holder['host']}"
            there = "" if holder["host"] == socket.gethostname() else f" If it is gone, delete {self.path}."
            raise InputError(
                f"{self.path.parent} is being worked on ({who}). Wait for it, end it with `shmoareg runs stop "
                f"{self.path.parent}`, or give another --out.{there}"
            )
        aside = partial.hidden(self.path.parent, f"{self.path.name}.gone")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        if read_holder(aside) is not None:  # another process was faster and holds it now
            os.replace(aside, self.path)
        else:
            aside.unlink()


def read_holder(path: Path) -> dict[str, Any] | None:
    """Who holds a lock: pid, host, started, doing; None where nobody does, or the process is gone.

    Ours: a process of another machine cannot be asked for; it counts as gone if it gave no sign of life for a
    quarter of an hour, by the clock of the disk.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; the lock of a run was expected. Delete it to go on with the run.")
        found = read_object(path, "the lock of a run", limit=MAX_LOCK)
        holder: dict[str, Any] = {"pid": int(found["pid"]), "host": str(found["host"])}
        holder["started"] = float(found["started"])
        holder["doing"] = str(found.get("doing", ""))
        alive = path.stat().st_mtime
    except (OSError, ValueError, TypeError, KeyError, OverflowError):  # none, or one that was left half-written
        if path.is_dir():
            raise
        return None
    if not 0 < holder["pid"] < 2**31:  # no process has such a number
        return None
    if holder["host"] != socket.gethostname():
        return holder if _now(path.parent) - alive < SILENT else None
    try:
        began = psutil.Process(holder["pid"]).create_time()
    except psutil.Error:
        return None
    return holder if abs(began - holder["started"]) < 2 else None


def _self(doing: str) -> dict[str, Any]:
    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "doing": doing}


def _now(folder: Path) -> float:
    """The disk's own time: machines that share it may differ."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # a folder that may only be read
        return time.time()
