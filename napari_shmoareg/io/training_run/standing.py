"""How far a run is, from its files alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.lock import read_holder
from napari_shmoareg.io.training_run.step_table import read_rows


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


def read_standing(folder: RunFolder) -> Standing:
    """Read where a run stands; changes nothing, and may be asked while it is under way.

    Raises
    ------
    InputError
        If there is no run, or its files are damaged.
    """
    from napari_shmoareg.io.training_run.loads import watch_of
    from napari_shmoareg.io.training_run.plan import read_told

    told = read_told(folder.told)
    rows = read_rows(folder.metrics)
    try:
        return Standing(
            told=told,
            step=int(rows[-1]["step"]) if rows else 0,
            steps=int(told["settings"]["steps"]),
            saved=saved_step(folder),
            seconds=sum(float(row["seconds"]) for row in rows),
            holder=read_holder(folder.lock),
            last=rows[-1] if rows else {},
            validation=tuple(read_rows(folder.validation)),
            skipped=tuple(read_rows(folder.skipped)),
            alarms=tuple(alarm.text for alarm in watch_of(folder.loads, int(told["config"]["top_k"])).alarms),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"A table in {folder.path} is damaged ({error}).") from error


def saved_step(folder: RunFolder) -> int | None:
    """The step of the saved state, from the head of its file; None where there is none, or it is damaged."""
    try:
        with folder.state.open("rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return int(head["__metadata__"]["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None
