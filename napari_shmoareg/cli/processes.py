"""Processes that a command started: handing signals on, waiting, saying once what went wrong."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_shmoareg.cli.errors import CANCELLED, FAILED, MISUSED
from napari_shmoareg.geometry import InputError

LOST = 9  # exit code of a process that only lost another one: whoever started them knows better what happened
GRACE = 10.0  # seconds for the others to end on their own account, once one has failed
LOOK = 0.1  # seconds between two looks at the processes
PEACEFUL = (0, MISUSED, CANCELLED)


@contextmanager
def passed_on(members: Mapping[int, subprocess.Popen[Any]]) -> Iterator[None]:
    """Hand Ctrl-C and kill on to all, as a kill: some shells let them ignore Ctrl-C.  A third one ends them at once."""
    asked: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        for process in members.values():
            process.send_signal(signal.SIGKILL if len(asked) > 2 else signal.SIGTERM)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    former = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def watch(members: Mapping[int, subprocess.Popen[Any]]) -> dict[int, int]:
    """Wait until all have ended, or one has failed and the others had time to notice.

    Returns
    -------
    dict of int to int
        Exit codes of those that failed, the first to fail first.
    """
    failed: dict[int, int] = {}
    until = float("inf")
    while True:
        codes = {rank: process.poll() for rank, process in members.items()}
        new = [(rank, code) for rank, code in codes.items() if code is not None and code not in PEACEFUL]
        # of those seen at once, whoever only lost the others comes last
        failed |= dict(sorted(new, key=lambda one: one[1] in (LOST, -signal.SIGABRT))) | failed
        if failed:
            until = min(until, time.monotonic() + GRACE)
        if None not in codes.values() or time.monotonic() > until:
            return failed
        time.sleep(LOOK)


def stopped_with_parent() -> None:
    """In a process that is being started: be told to stop when the one that started it is gone (on Linux).

    SLURM's warning to all processes of a job, which would end those that do not expect it, is ignored from here on.
    """
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(members: Mapping[int, subprocess.Popen[Any]]) -> None:
    """End those that still run, at once."""
    for process in members.values():
        if process.poll() is None:
            process.kill()
    for process in members.values():
        process.wait()


def outcome(
    members: Mapping[int, subprocess.Popen[Any]], failed: Mapping[int, int], said: Mapping[int, str], kept: str
) -> int:
    """The exit code of processes that worked as one.

    Parameters
    ----------
    members : mapping of rank to process
    failed : mapping of rank to exit code
        From `watch`.
    said : mapping of rank to path
        What those that keep silent would have said.
    kept : str
        A sentence on what is left and how to go on.

    Raises
    ------
    InputError
        Saying what failed, unless the first process said that itself.
    """
    leader: int = members[0].returncode
    if leader in PEACEFUL or leader == FAILED:
        return leader
    guilty = next((rank for rank, code in failed.items() if code not in (LOST, -signal.SIGABRT)), min(failed))
    code, name, pid = failed[guilty], f"process {guilty + 1} of {len(members)}", members[guilty].pid
    if code < 0:
        what = f"{ended_by(name, pid, code)} The others were ended too."
    elif guilty and (words := last_words(Path(said[guilty]))):
        what = f"in {name}: {words}"
    else:
        what = f"the processes lost each other, though none was ended from outside ({name}, pid {pid}, code {code})."
    raise InputError(f"{what} {kept}")


def ended_by(name: str, pid: int, code: int) -> str:
    """A sentence on a process that a signal ended."""
    why = " (perhaps the memory ran out)" if -code == signal.SIGKILL else ""
    return f"{name} (pid {pid}) was ended by signal {-code}, {signal.Signals(-code).name}{why}."


def last_words(file: Path) -> str:
    """The last error in what a process said, without its mark."""
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("Error: ")]
    return (marked or lines or [""])[-1].removeprefix("Error: ")
