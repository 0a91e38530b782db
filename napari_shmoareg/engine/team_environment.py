"""What torchrun or srun told a process of its team."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from napari_shmoareg.geometry import InputError


def environment_of_team(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What torchrun sets, taken from srun's variables where torchrun set nothing; None for a process alone.

    Raises
    ------
    InputError
        If only some of torchrun's variables are there, or are no numbers.
    """
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment = _of_slurm(environment) | dict(environment)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: environment[name] for name in names if environment.get(name, "").isdigit()}
    if not found or found.get("WORLD_SIZE") == "1":
        return None
    if len(found) < len(names):
        missing = ", ".join(name for name in names if name not in found)
        raise InputError(
            f"The environment says that this is one of several processes, but not {missing}. Start them with torchrun, "
            f"srun or --processes; if this is one process alone, unset {' and '.join(found)}."
        )
    more = ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    here = {"LOCAL_WORLD_SIZE": found["WORLD_SIZE"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    found |= here | {name: environment[name] for name in more if name in environment}
    return found


def team_size() -> int:
    """How many processes torchrun or srun started, this one among them."""
    return int((environment_of_team(os.environ) or {"WORLD_SIZE": "1"})["WORLD_SIZE"])


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables, for one task of a job step on SLURM; all of them agree on the first node."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    job = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": environment.get("SLURM_PROCID", ""),
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", ""),
        "LOCAL_WORLD_SIZE": re.split(r"[(,]", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0],
        "MASTER_ADDR": "".join(part or "" for part in first.groups()) if first else "127.0.0.1",
        "MASTER_PORT": str(20000 + job % 20000),
    }
