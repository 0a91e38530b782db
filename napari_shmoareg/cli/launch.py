"""Launch several processes on this machine that run one command together.

torchrun's launcher starts them; this module handles signals, output and the first failure.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from napari_shmoareg.cli.console import CANCELLED, FAILED, MISUSED
from napari_shmoareg.errors import InputError

if TYPE_CHECKING:
    from napari_shmoareg.training.distributed import TrainingGroup


# exit code of a process that lost another one; the launcher reports the cause
LOST = 9
GRACE = 10.0  # seconds for the others to end by themselves, once one has failed
POLL_SECONDS = 0.1  # seconds between two checks of the processes
EXPECTED = (0, MISUSED, CANCELLED)


@contextmanager
def forward_signals(members: Mapping[int, subprocess.Popen[Any]]) -> Iterator[None]:
    """Forward Ctrl-C and kill to all processes as SIGTERM, since some shells let them ignore
    Ctrl-C; the third signal kills them.
    """
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for process in members.values():
            process.send_signal(signal.SIGKILL if len(received) > 2 else signal.SIGTERM)

    numbers = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]
    former = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def watch(members: Mapping[int, subprocess.Popen[Any]]) -> dict[int, int]:
    """Wait until all have ended, or one has failed and the grace period is over.

    Returns
    -------
    dict of int to int
        Exit codes of the failed processes, in order of failure.
    """
    failed: dict[int, int] = {}
    until = float("inf")
    while True:
        codes = {rank: process.poll() for rank, process in members.items()}
        new = [
            (rank, code)
            for rank, code in codes.items()
            if code is not None and code not in EXPECTED
        ]
        # of simultaneous failures, those that only lost the others come last
        failed |= dict(sorted(new, key=lambda one: one[1] in (LOST, -signal.SIGABRT))) | failed
        if failed:
            until = min(until, time.monotonic() + GRACE)
        if None not in codes.values() or time.monotonic() > until:
            return failed
        time.sleep(POLL_SECONDS)


def stop_with_parent() -> None:
    """In a child process: get SIGTERM when the parent is gone (on Linux).

    Also ignores SLURM's warning signal, which would end processes that do not expect it.
    """
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(members: Mapping[int, subprocess.Popen[Any]]) -> None:
    """Kill the processes that are still running."""
    for process in members.values():
        if process.poll() is None:
            process.kill()
    for process in members.values():
        process.wait()


def exit_code(
    members: Mapping[int, subprocess.Popen[Any]],
    failed: Mapping[int, int],
    outputs: Mapping[int, str],
    hint: str,
) -> int:
    """Return the common exit code of processes that ran one command.

    Parameters
    ----------
    members : mapping of rank to process
    failed : mapping of rank to exit code
        From `watch`.
    outputs : mapping of rank to path
        Paths of the output files of the silent processes.
    hint : str
        A sentence on what is saved and how to continue.

    Raises
    ------
    InputError
        Names the failure, unless the first process printed it itself.
    """
    main: int = members[0].returncode
    if main in EXPECTED or main == FAILED:
        return main
    first_failed = next(
        (rank for rank, code in failed.items() if code not in (LOST, -signal.SIGABRT)), min(failed)
    )
    code, name, pid = (
        failed[first_failed],
        f"process {first_failed + 1} of {len(members)}",
        members[first_failed].pid,
    )
    if code < 0:
        what = f"{describe_signal(name, pid, code)} The others were ended too."
    elif first_failed and (words := last_error(Path(outputs[first_failed]))):
        what = f"in {name}: {words}"
    else:
        what = (
            f"the processes lost contact, though none was ended by a signal ({name}, pid {pid},"
            f" code {code})."
        )
    raise InputError(f"{what} {hint}")


def describe_signal(name: str, pid: int, code: int) -> str:
    """A sentence on a process that was ended by a signal."""
    why = " (perhaps the memory ran out)" if -code == signal.SIGKILL else ""
    return f"{name} (pid {pid}) was ended by signal {-code}, {signal.Signals(-code).name}{why}."


def last_error(file: Path) -> str:
    """The last error in the output of a process, without its prefix."""
    lines = [
        line
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    marked = [line for line in lines if line.startswith("Error: ")]
    return (marked or lines or [""])[-1].removeprefix("Error: ")


COMMAND = ("-m", "napari_shmoareg")
LAUNCHER = "SHMOAREG_LAUNCHER"  # environment variable: process id of the launcher
RESUME_HINT = (
    "The saved state is kept; continue with the same command and --resume, with any number of"
    " processes."
)


def needs_launch(processes: int | None) -> bool:
    """Whether this process has to launch several, and is not one of them itself.

    Parameters
    ----------
    processes : int or None
        The value of ``--processes``.

    Raises
    ------
    InputError
        If torchrun or srun started a different number of processes.
    """
    requested = 1 if processes is None else processes
    if requested == 1:
        return False
    from napari_shmoareg.training.distributed import world_size

    running = world_size()
    if running not in (1, requested):
        raise InputError(
            f"--processes is {requested}, but torchrun or srun started {running}; leave out"
            " --processes."
        )
    return running == 1


def launch(
    argv: Sequence[str],
    processes: int,
    *,
    batch: int | None = None,
    device: str = "auto",
    hint: str = RESUME_HINT,
) -> int:
    """Run ``shmoareg ARGV`` in several processes of this machine, and wait for them.

    The first one shares the output of this process; the others are silent. Ctrl-C and kill reach
    all. If one fails, its error or the signal that ended it is reported, and the others are ended
    within seconds.

    Parameters
    ----------
    argv : sequence of str
        The command and its options.
    processes : int
    batch : int, optional
        Pairs per step, which the processes share.
    device : {"auto", "cpu", "cuda"}
    hint : str
        What is saved after a failure, and how to continue.

    Returns
    -------
    int
        Exit code of the first process.

    Raises
    ------
    InputError
        If there are more processes than pairs per step or than GPUs; if a process failed and the
        first one did not print why.
    """
    from napari_shmoareg.registration.refinement import without_triton
    from napari_shmoareg.registration.resources import find_device
    from napari_shmoareg.training.distributed import check_batch, check_gpus, threads_per_process

    if batch is not None:
        check_batch(batch, processes)
    if find_device(device).type == "cuda":
        check_gpus(processes)
    with without_triton(), tempfile.TemporaryDirectory(prefix="shmoareg-") as folder:
        from torch.distributed import TCPStore
        from torch.distributed.elastic.multiprocessing import (
            DefaultLogsSpecs,
            Std,
            SubprocessContext,
            start_processes,
        )

        # the rendezvous, on a free port
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": "shmoareg",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")
            or str(threads_per_process(processes)),
            LAUNCHER: str(os.getpid()),
        }
        # a signal that never comes: `forward_signals` handles the real ones
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGURG"
        members: dict[int, subprocess.Popen[Any]] = {}
        with forward_signals(members):
            context = start_processes(
                "shmoareg",
                sys.executable,
                {rank: (*COMMAND, *argv) for rank in range(processes)},
                {
                    rank: common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    for rank in range(processes)
                },
                DefaultLogsSpecs(
                    log_dir=folder, redirects={rank: Std.ALL for rank in range(1, processes)}
                ),
            )
            assert isinstance(context, SubprocessContext)
            members.update(
                (rank, handler.proc) for rank, handler in context.subprocess_handlers.items()
            )
            try:
                failed = watch(members)
            finally:
                end(members)
                context.close()
        return exit_code(members, failed, context.stderrs, hint)


@contextmanager
def join_group(device: str = "auto") -> Iterator[TrainingGroup]:
    """Join the training group of this process, and close it at the end; all but the first are
    silent.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}

    Yields
    ------
    TrainingGroup
        ``TrainingGroup()`` for a single process.

    Raises
    ------
    InputError
        As for `TrainingGroup.join`.
    LostProcessError
        If another process ended. If `launch` started them, this one exits silently instead.
    """
    from napari_shmoareg.training.distributed import LostProcessError, TrainingGroup

    _stop_with_launcher()
    finished, group = False, TrainingGroup()
    try:
        group = TrainingGroup.join(device)
        with _silence(not group.is_main):
            yield group
        finished = True
    except LostProcessError as lost:
        if LAUNCHER not in os.environ:
            raise
        raise typer.Exit(LOST) from lost
    except typer.Exit:
        finished = True  # all processes exit in the same way
        raise
    finally:
        group.close(finished)


@contextmanager
def _silence(enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as devnull,
        redirect_stdout(devnull),
        redirect_stderr(devnull),
    ):
        yield


def _stop_with_launcher() -> None:
    """Get SIGTERM when the launcher is gone, since this process has its own session."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    stop_with_parent()
    if os.getppid() != int(launcher):
        raise InputError("The process that started this one has ended; nothing was started.")


def command_words(ctx: typer.Context) -> list[str]:
    """Rebuild the words of the command line from its parsed options."""
    words = [str(ctx.info_name)]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if value is None or value in (parameter.get_default(ctx), (), []):
            continue
        if getattr(parameter, "multiple", False):
            words += [f"{parameter.opts[0]}={each}" for each in value]
            continue
        text = (
            ",".join(str(v) for v in value)
            if isinstance(value, tuple)
            else str(getattr(value, "value", value))
        )
        if parameter.param_type_name == "argument":
            words.append(text)
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            words.append(f"{parameter.opts[0]}={text}")
    return words
