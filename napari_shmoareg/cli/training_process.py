"""Driving a run: signals, a parent, events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

from napari_shmoareg.cli.console import stop_on_signal, listen_to_parent, print_note
from napari_shmoareg.cli.launch import join_group
from napari_shmoareg.cli.train import EventCallback
from napari_shmoareg.training.distributed import check_batch
from napari_shmoareg.training.plan import Plan
from napari_shmoareg.training.run import RunControl, RunFolder
from napari_shmoareg.training.trainer import learn

FIRST = "Stopping after this step, and saving; Ctrl-C again stops at once."
SECOND = "Stopped at once; what was saved before is kept. Go on with --resume."


def run_plan(
    out: Path, plan: Plan, resume: bool, device: str, with_parent: bool, emit: EventCallback
) -> str:
    """Learn, telling every event, until the end, a signal or the parent's silence.

    Parameters
    ----------
    out : Path
    plan : Plan
    resume : bool
    device : {"auto", "cpu", "cuda"}
    with_parent : bool
    emit : callable
        Given every event, in the one process that speaks.

    Returns
    -------
    str
        Why it ended: "finished", "stopped" or "minutes".

    Raises
    ------
    InputError
        As `learn`.
    """
    control = RunControl(RunFolder(out).request)
    reason, connected = "", True
    with (
        join_group(device) as group,
        stop_on_signal(FIRST, SECOND, lambda: control.set_request("stop")),
    ):
        check_batch(plan.settings.batch, group.size)
        if with_parent and group.is_main:
            listen_to_parent(control)
        events = learn(out, plan, resume=resume, device=device, group=group, control=control)
        with closing(cast("Iterator[Any]", events)) as generator:  # type: ignore[type-var]
            for event in generator:
                if group.is_main and connected:
                    connected = _emit(event, emit, control)
                reason = event.get("reason", reason)
    return reason


def _emit(event: Any, emit: EventCallback, control: RunControl) -> bool:
    """Tell an event; where nobody listens any more (a closed window, a closed terminal), stop as if
    asked to.
    """
    try:
        emit(event)
    except OSError as error:
        control.set_request("stop")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        with suppress(OSError):
            print_note(
                f"Nobody listens any more ({error.strerror}): stopping after this step, and saving."
            )
        return False
    return True
