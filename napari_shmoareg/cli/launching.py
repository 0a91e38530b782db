"""Several processes on this machine that run one command together.

torchrun's own launcher starts them; who speaks, what a signal does and what is said when one dies is decided here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from napari_shmoareg.cli.processes import LOST, end, outcome, passed_on, stopped_with_parent, watch
from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from napari_shmoareg.engine.team import Team

COMMAND = ("-m", "napari_shmoareg")
LAUNCHER = "SHMOAREG_LAUNCHER"  # the process id of the launcher, for the processes that it starts
KEPT = "What was saved is kept; go on with the same command and --resume, with as many processes as you like."


def wants_launch(processes: int | None) -> bool:
    """Whether this process has to start others: it was asked for several and is not one of them itself.

    Parameters
    ----------
    processes : int or None
        As given to ``--processes``.

    Raises
    ------
    InputError
        If torchrun or srun started another number of processes than asked for.
    """
    wanted = 1 if processes is None else processes
    if wanted == 1:
        return False
    from napari_shmoareg.engine.team_environment import team_size

    there = team_size()
    if there not in (1, wanted):
        raise InputError(
            f"--processes {wanted} was asked for, but torchrun or srun started {there}; leave --processes away."
        )
    return there == 1


def launch(
    argv: Sequence[str], processes: int, *, batch: int | None = None, device: str = "auto", kept: str = KEPT
) -> int:
    """Run ``shmoareg ARGV`` in so many processes of this machine, and wait for them.

    The first one's output and errors are this process's own; the others are silent.  Ctrl-C and kill reach all.
    If one fails, what it said, or how it died, is the error, and the others are ended within seconds.

    Parameters
    ----------
    argv : sequence of str
        The command and its options.
    processes : int
    batch : int, optional
        Pairs in a step, which the processes have to share.
    device : {"auto", "cpu", "cuda"}
    kept : str
        What is left after a failure, and how to go on.

    Returns
    -------
    int
        Exit code: the first process's own.

    Raises
    ------
    InputError
        If there are more processes than pairs in a step, or than GPUs; if a process failed and the first one did
        not say why.
    """
    from napari_shmoareg.engine.device import find_device
    from napari_shmoareg.engine.optimiser import without_triton
    from napari_shmoareg.engine.team import check_batch, check_gpus, threads_each

    if batch is not None:
        check_batch(batch, processes)
    if find_device(device).type == "cuda":
        check_gpus(processes)
    with without_triton(), tempfile.TemporaryDirectory(prefix="shmoareg-") as folder:
        from torch.distributed import TCPStore
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, SubprocessContext, start_processes

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they meet: no port is guessed
        common = {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": "shmoareg",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads_each(processes)),
            LAUNCHER: str(os.getpid()),
        }
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGURG"  # which never comes: `passed_on` takes care
        members: dict[int, subprocess.Popen[Any]] = {}
        with passed_on(members):
            context = start_processes(
                "shmoareg",
                sys.executable,
                {rank: (*COMMAND, *argv) for rank in range(processes)},
                {rank: common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
                DefaultLogsSpecs(log_dir=folder, redirects={rank: Std.ALL for rank in range(1, processes)}),
            )
            assert isinstance(context, SubprocessContext)
            members.update((rank, handler.proc) for rank, handler in context.subprocess_handlers.items())
            try:
                failed = watch(members)
            finally:
                end(members)
                context.close()
        return outcome(members, failed, context.stderrs, kept)


@contextmanager
def in_team(device: str = "auto") -> Iterator[Team]:
    """Join the processes started beside this one, and part from them at the end; all but the first keep silent.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}

    Yields
    ------
    Team
        ``Team()`` for a process alone.

    Raises
    ------
    InputError
        As for `Team.joined`.
    LostPeerError
        If another process ended.  Where `launch` started them, this one ends without a word instead.
    """
    from napari_shmoareg.engine.team import LostPeerError, Team

    _follow_launcher()
    peaceful, team = False, Team()
    try:
        team = Team.joined(device)
        with _silence(not team.leader):
            yield team
        peaceful = True
    except LostPeerError as lost:
        if LAUNCHER not in os.environ:
            raise
        raise typer.Exit(LOST) from lost
    except typer.Exit:
        peaceful = True  # all have come to the same end
        raise
    finally:
        team.leave(peaceful)


@contextmanager
def _silence(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _follow_launcher() -> None:
    """Be told to stop, as by ``kill``, when the launcher is gone: this process is in a session of its own."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    stopped_with_parent()
    if os.getppid() != int(launcher):
        raise InputError("The process that started this one has ended; nothing was begun.")


def words_of(ctx: typer.Context) -> list[str]:
    """The words that give this command the options that it has."""
    words = [str(ctx.info_name)]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if value is None or value in (parameter.get_default(ctx), (), []):
            continue
        if getattr(parameter, "multiple", False):
            words += [f"{parameter.opts[0]}={each}" for each in value]
            continue
        text = ",".join(str(v) for v in value) if isinstance(value, tuple) else str(getattr(value, "value", value))
        if parameter.param_type_name == "argument":
            words.append(text)
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            words.append(f"{parameter.opts[0]}={text}")
    return words
