"""Driving a run: signals, a parent, events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

from napari_shmoareg.cli.console import asked_to_stop, listen_to_parent, say
from napari_shmoareg.cli.launch import in_team
from napari_shmoareg.cli.train import Tell
from napari_shmoareg.training.distributed import check_batch
from napari_shmoareg.training.plan import Plan
from napari_shmoareg.training.run import RunControl, RunFolder
from napari_shmoareg.training.trainer import learn

FIRST = "Stopping after this step, and saving; Ctrl-C again stops at once."
SECOND = "Stopped at once; what was saved before is kept. Go on with --resume."


def run_plan(
    out: Path, plan: Plan, resume: bool, device: str, with_parent: bool, tell: Tell
) -> str:
    """Learn, telling every event, until the end, a signal or the parent's silence.

    Parameters
    ----------
    out : Path
    plan : Plan
    resume : bool
    device : {"auto", "cpu", "cuda"}
    with_parent : bool
    tell : callable
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
    wishes = RunControl(RunFolder(out).wish)
    reason, heard = "", True
    with in_team(device) as team, asked_to_stop(FIRST, SECOND, lambda: wishes.ask("stop")):
        check_batch(plan.settings.batch, team.size)
        if with_parent and team.leader:
            listen_to_parent(wishes)
        events = learn(out, plan, resume=resume, device=device, team=team, wishes=wishes)
        with closing(cast("Iterator[Any]", events)) as told:  # type: ignore[type-var]
            for event in told:
                if team.leader and heard:
                    heard = _heard(event, tell, wishes)
                reason = event.get("reason", reason)
    return reason


def _heard(event: Any, tell: Tell, wishes: RunControl) -> bool:
    """Tell an event; where nobody listens any more (a closed window, a closed terminal), stop as if
    asked to.
    """
    try:
        tell(event)
    except OSError as error:
        wishes.ask("stop")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        with suppress(OSError):
            say(
                f"Nobody listens any more ({error.strerror}): stopping after this step, and saving."
            )
        return False
    return True
