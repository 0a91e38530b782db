"""Options of jobs: as SLURM knows them, for submitit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from napari_shmoareg.geometry import InputError

MONTH = 30 * 24 * 60  # minutes: how long a job in the background may take at most
NOTICE = 120  # seconds between the warning of a cluster and the end: a step and a save have to fit
RETRIES = 20  # how often a run that reaches the cluster's time limit goes on
OURS = ("--submit", "--cluster-option", "--shards")


class Cluster(StrEnum):
    """Where jobs run."""

    slurm = "slurm"
    local = "local"


SubmitOption = Annotated[
    Cluster | None,
    typer.Option(
        "--submit",
        help="Do not run here and now: hand it to SLURM, or to the background of this machine (local).",
    ),
]
ClusterOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-option",
        metavar="KEY=VALUE",
        help="For --submit slurm, as sbatch knows it: time=12:00:00 (needed), partition=..., gres=gpu:4, nodes=2, "
        "account=...; repeat for more.",
    ),
]


def parameters(cluster: str, options: Sequence[str], processes: int = 1) -> dict[str, Any]:
    """What submitit is told, from options as sbatch knows them.

    Parameters
    ----------
    cluster : str
    options : sequence of str
        ``key=value``.
    processes : int
        Shared out over the nodes, if there are several.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        If an option is not ``key=value``, is unknown for jobs on this machine, or the time is missing or unreadable.
    """
    check_words(options, "--cluster-option")
    given = dict(_parted(option) for option in options)
    time_limit, nodes = given.pop("time", None), given.pop("nodes", "1")
    if not nodes.isdigit() or int(nodes) < 1:
        raise InputError(f"--cluster-option nodes={nodes}: a whole number of nodes was expected.")
    if cluster != "slurm":
        if given or nodes != "1":
            unknown = ", ".join(sorted(given)) or "nodes"
            raise InputError(f"Jobs on this machine know --cluster-option time=...; got {unknown}.")
        return {"timeout_min": MONTH if time_limit is None else minutes(time_limit)}
    if time_limit is None:
        raise InputError(
            "SLURM has to know how long a job may take: give --cluster-option time=12:00:00. A run that is not done by "
            f"then is queued again and goes on, {RETRIES} times."
        )
    return _for_slurm(given, minutes(time_limit), int(nodes), processes)


def _for_slurm(given: Mapping[str, str], limit: int, nodes: int, processes: int) -> dict[str, Any]:
    """Options that submitit knows under its own names; the others go to sbatch as they are."""
    from submitit.slurm.slurm import SlurmExecutor

    if processes % nodes:
        raise InputError(
            f"{processes} processes cannot be shared evenly by {nodes} nodes; give --processes {nodes} * n."
        )
    known = SlurmExecutor._valid_parameters()
    ours: dict[str, Any] = {"timeout_min": limit, "nodes": nodes, "slurm_signal_delay_s": NOTICE}
    if nodes > 1:
        ours |= {"tasks_per_node": processes // nodes, "slurm_srun_args": ["--kill-on-bad-exit=1"]}
    others: dict[str, Any] = {"requeue": True}
    for key, value in given.items():
        name = key.replace("-", "_")
        typed = int(value) if value.isdigit() else value or True
        if name in known:
            ours[f"slurm_{name}"] = typed
        else:
            others[key] = typed
    return ours | {"slurm_additional_parameters": others}


def check_words(words: Sequence[str], what: str) -> None:
    """Refuse control characters: each would be a line or an option of its own in a batch script.

    Parameters
    ----------
    words : sequence of str
    what : str
        What they are, for the message.

    Raises
    ------
    InputError
        If a word holds one, or text that cannot be written as UTF-8.
    """
    for word in words:
        if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in word):
            raise InputError(
                f"{what[:1].upper()}{what[1:]} holds a line break or another control character ({word!r:.120}), which "
                "a batch script cannot hold. Rename the file or folder, or give the option without it."
            )


def minutes(text: str) -> int:
    """A time as sbatch takes it: minutes, [hours:]minutes:seconds, or days-hours[:minutes[:seconds]].

    Raises
    ------
    InputError
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise InputError(f"'{text}' is no time as sbatch takes it, such as 90 (minutes), 12:00:00 or 2-00:00:00.")
    days, numbers = found[1], [int(number) for number in found.groups()[1:] if number is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers.insert(0, 0)
    hours, whole, seconds = (*numbers, 0, 0)[:3]
    total = (int(days or 0) * 24 + hours) * 60 + whole + -(-seconds // 60)
    if total < 1:
        raise InputError(f"A time of '{text}' leaves no minute to work in.")
    return total


def without(words: Sequence[str], *options: str) -> tuple[str, ...]:
    """The words of a command but for some options, whether their value stands behind "=" or in the next word."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word.split("=", 1)[0] not in options:
            kept.append(word)
    return tuple(kept)


def _parted(option: str) -> tuple[str, str]:
    key, mark, value = option.partition("=")
    key = key.strip().lstrip("-")
    if not mark or not re.fullmatch(r"[A-Za-z][\w-]*", key):
        raise InputError(f"--cluster-option is KEY=VALUE, such as partition=gpu; got '{option}'.")
    return key, value.strip()
