"""Run training in this process: signals, parent process, events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

from napari_shmoareg.cli.console import listen_to_parent, print_note, stop_on_signal
from napari_shmoareg.cli.launch import join_group
from napari_shmoareg.cli.train import EventCallback
from napari_shmoareg.training.distributed import check_batch
from napari_shmoareg.training.plan import Plan
from napari_shmoareg.training.run_folder import RunControl, RunFolder
from napari_shmoareg.training.trainer import learn

FIRST = "Stopping and saving after this step; Ctrl-C again stops at once."
SECOND = "Stopped at once; the last saved state is kept, and the run can be resumed."


def run_plan(
    out: Path, plan: Plan, resume: bool, device: str, with_parent: bool, emit: EventCallback
) -> str:
    """Train and emit every event, until the end, a signal, or the end of the parent.

    Parameters
    ----------
    out : Path
    plan : Plan
    resume : bool
    device : {"auto", "cpu", "cuda"}
    with_parent : bool
    emit : callable
        Called with every event, in the main process only.

    Returns
    -------
    str
        Reason of the end: "finished", "stopped" or "minutes".

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
    """Emit an event; if the output is closed (window or terminal), request a stop and return
    False.
    """
    try:
        emit(event)
    except OSError as error:
        control.set_request("stop")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        with suppress(OSError):
            print_note(
                f"The output is closed ({error.strerror}): stopping and saving after this step."
            )
        return False
    return True
