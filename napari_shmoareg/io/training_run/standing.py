"""How far a run is, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.lock import read_holder
from napari_shmoareg.io.training_run.step_table import read_rows
from napari_shmoareg.io.untrusted import names_input

MAX_HEADER = 16 * 2**20  # bytes, as of weights
MAX_NUMBER = 1e15


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes
    ----------
    told : dict
        The content of run.json.
    step, steps : int
        Steps done as the tables say, and in all.
    saved : int or None
        The step of the saved state.
    seconds : float
        That the steps took.
    holder : dict or None
        The process that works on it: pid, host, doing.
    last : dict
        The last line of metrics.csv; empty before the first step.
    validation : tuple of dict
        The lines of validation.csv.
    skipped : tuple of dict
        The lines of skipped.csv.
    alarms : tuple of str
        What is wrong with the routing now.
    """

    told: dict[str, Any]
    step: int
    steps: int
    saved: int | None
    seconds: float
    holder: dict[str, Any] | None
    last: dict[str, str] = field(default_factory=dict)
    validation: tuple[dict[str, str], ...] = ()
    skipped: tuple[dict[str, str], ...] = ()
    alarms: tuple[str, ...] = ()

    @property
    def best(self) -> dict[str, str] | None:
        """The line of the best look at the validation pairs."""
        found = [row for row in self.validation if row["best"] == "1"]
        return found[-1] if found else None


@names_input
def read_standing(folder: RunFolder) -> Standing:
    """Read where a run stands; changes nothing, and may be asked while it is under way.

    Raises
    ------
    InputError
        If there is no run, or its files are damaged.
    """
    from napari_shmoareg.io.training_run.loads import watch_of
    from napari_shmoareg.io.training_run.plan import read_told

    told, holder = read_told(folder.told), read_holder(folder.lock)
    metrics, validation = read_rows(folder.metrics), read_rows(folder.validation)
    try:
        steps, top_k = int(told["settings"]["steps"]), int(told["config"]["top_k"])
        if not isinstance(told["dataset"]["path"], str) or not isinstance(told["from"]["name"], str):
            raise TypeError("the data set or the weights are not told")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{folder.told} is damaged ({error!r:.200}).") from error
    check_numbers(folder.metrics, metrics, ("step", "seconds", "total"))
    check_numbers(folder.validation, validation, ("step", "ncc", "folding_percent"), ("dice", "best"))
    try:
        alarms = tuple(alarm.text for alarm in watch_of(folder.loads, top_k).alarms)
    except (KeyError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder.loads} is damaged ({error!r:.200}).") from error
    return Standing(
        told=told,
        step=int(float(metrics[-1]["step"])) if metrics else 0,
        steps=steps,
        saved=saved_step(folder),
        seconds=sum(float(row["seconds"]) for row in metrics),
        holder=holder,
        last=metrics[-1] if metrics else {},
        validation=tuple(validation),
        skipped=tuple(read_rows(folder.skipped)),
        alarms=alarms,
    )


def check_numbers(
    path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str], free: Sequence[str] = ()
) -> None:
    """See that the cells of columns are numbers; those of `free` ones may be empty.

    Raises
    ------
    InputError
        If one is not.
    """
    for number, row in enumerate(rows, 1):
        for name in (*columns, *free):
            cell = row.get(name, "")
            try:
                whole = (not cell and name in free) or abs(float(cell)) < MAX_NUMBER or cell == "nan"
            except ValueError:
                whole = False
            if not whole:
                raise InputError(f"{path}, row {number}: {name} is '{cell:.40}'; a number was expected. It is damaged.")


def saved_step(folder: RunFolder) -> int | None:
    """The step of the saved state, from the head of its file; None where there is none, or it is damaged."""
    try:
        with folder.state.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length)) if length <= MAX_HEADER else {}
        return int(head["__metadata__"]["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
