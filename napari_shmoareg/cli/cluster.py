"""Commands as jobs: on a SLURM cluster, or in the background of this machine, by submitit.

A job runs ``shmoareg`` with the arguments that were given, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_shmoareg.cli.cluster_options import NOTICE, OURS, RETRIES, check_words, parameters, without
from napari_shmoareg.cli.processes import stopped_with_parent
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.places import check_name


@dataclass(frozen=True)
class Job:
    """One call of ``shmoareg``, which submitit calls on the machine where it runs.

    Attributes
    ----------
    argv : tuple of str
        The command and its options.
    place : str
        The working folder.
    begun : str or None
        A file that is there once the work was begun: from then on ``--resume`` is added.
    environment : mapping
        What differs from the environment on that machine; None takes a variable away.
    """

    argv: tuple[str, ...]
    place: str
    begun: str | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __call__(self) -> int:
        """Run it to its end.

        Raises
        ------
        RuntimeError
            If it fails, so that the cluster lists the job as failed.
        """
        going_on = self.begun is not None and Path(self.place, self.begun).is_file()
        more = ("--resume",) if going_on and "--resume" not in self.argv else ()
        changed = {**os.environ, **self.environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "napari_shmoareg", *self.argv, *more],
            cwd=self.place,
            env={name: value for name, value in changed.items() if value is not None},
            stdin=subprocess.DEVNULL,
            preexec_fn=stopped_with_parent if os.name == "posix" else None,
        )
        _RUNNING.append(process)
        try:
            while process.poll() is None:  # not `wait`, within which `checkpoint` could not wait for the same process
                time.sleep(0.2)
        finally:
            _RUNNING.remove(process)
            if process.poll() is None:  # submitit was interrupted
                process.send_signal(signal.SIGTERM)
        if process.returncode != 0:
            raise RuntimeError(f"shmoareg ended with code {process.returncode}; what it said stands above.")
        return 0

    def checkpoint(self) -> Any:
        """Stop at a safe step, and be queued again; called by submitit when the cluster takes the machine back."""
        import submitit

        for process in _RUNNING:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + NOTICE - 10
        while any(process.poll() is None for process in _RUNNING) and time.monotonic() < until:
            time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(self)


_RUNNING: list[subprocess.Popen[bytes]] = []  # in the process of a job: what it runs


def hand_over(
    words: Sequence[str],
    out: Path,
    cluster: str,
    options: Sequence[str] | None,
    *,
    processes: int = 1,
    batch: int | None = None,
    shards: int = 1,
    begun: Path | None = None,
) -> str:
    """Hand a command to a cluster, whole or in shards.

    Parameters
    ----------
    words : sequence of str
        Of the command that was called; what concerns the handing over is taken out.
    out : Path
        Its results; submitit's files lie beside it.
    cluster : {"slurm", "local"}
    options : sequence of str, optional
        ``key=value``.
    processes : int
        Of the command.  On one node it starts them itself; on several, SLURM does.
    batch : int, optional
        Pairs in a step, which the processes share.
    shards : int
        Jobs, each given ``--shard`` with its number.
    begun : Path, optional
        A file that is there once the work was begun: a job that finds it goes on with ``--resume``.

    Returns
    -------
    str
        What to tell the user.

    Raises
    ------
    InputError
        As `submit`; or if a step has fewer pairs than there are processes.
    """
    from napari_shmoareg.engine.team import check_batch

    if batch is not None:
        check_batch(batch, processes)
    given = list(options or ())
    several = parameters(cluster, given, processes).get("nodes", 1) > 1
    words = without(words, *OURS, *(("--processes",) if several else ()))
    shown = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")} if cluster != "slurm" else {}
    parts = [()] if shards == 1 else [(f"--shard={number}/{shards}",) for number in range(1, shards + 1)]
    jobs = [Job((*words, *part), os.getcwd(), None if begun is None else str(begun), shown) for part in parts]
    folder = (out.parent / f"{out.name}-jobs").absolute()
    handed = submit(jobs, cluster, given, folder=folder, name=f"shmoareg-{out.name}", processes=processes)
    return told(handed, cluster, folder)


def submit(
    jobs: Sequence[Job], cluster: str, options: Sequence[str], *, folder: Path, name: str, processes: int = 1
) -> list[Any]:
    """Hand jobs to a cluster; several become an array.

    Parameters
    ----------
    jobs : sequence of Job
    cluster : {"slurm", "local"}
    options : sequence of str
        ``key=value``.
    folder : Path
        Where submitit keeps its files and what the jobs say; seen from all machines.
    name : str
        Of the jobs.
    processes : int
        For each job; on several nodes they are shared out evenly, one task each.

    Returns
    -------
    list
        submitit's jobs.

    Raises
    ------
    InputError
        If submitit is missing, there is no such cluster here, or it refuses an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "Jobs are handed over by submitit, which is not installed: pip install 'shmoareg[cluster]'."
        ) from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "There is no SLURM here (no command sbatch). Call this where jobs are submitted, the login node, or give "
            "--submit local."
        )
    check_words([word for job in jobs for word in (*job.argv, job.place)], "a word of the command")
    check_words([name], "the name of the job")
    check_words([str(folder)], "the folder of the job's files")
    check_name(folder / "name")
    wanted = parameters(cluster, options, processes) | {"name": name}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=RETRIES)
        executor.update_parameters(**wanted)
        with _unheard():
            if len(jobs) == 1:
                return [executor.submit(jobs[0])]
            with executor.batch():
                return [executor.submit(job) for job in jobs]
    except (ValueError, NameError, AssertionError, submitit.core.utils.FailedJobError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"The job could not be handed over: {said[:400] or type(error).__name__}") from error


def told(jobs: Sequence[Any], cluster: str, folder: Path) -> str:
    """What a user wants to know after handing jobs over."""
    names = ", ".join(str(job.job_id) for job in jobs)
    logs = " ".join(str(job.paths.stdout) for job in jobs[:3]) + (" ..." if len(jobs) > 3 else "")
    first = str(jobs[0].job_id).split("_")[0]
    if cluster == "slurm":
        look, stop = f"squeue -j {first}", f"scancel {first}"
    else:
        pids = " ".join(str(job.job_id) for job in jobs)
        look, stop = f"ps -p {pids.replace(' ', ',')}", f"kill -INT {pids}"
    what = "job" if len(jobs) == 1 else "jobs"
    return f"Handed over: {what} {names}.\nWatch: {look}; tail -F {logs}\nStop:  {stop}\nFiles: {folder}"


@contextmanager
def _unheard() -> Iterator[None]:
    """Start what outlives this process without its input and output, which would be held open."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (0, 1, 2)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, own in enumerate(kept):
            os.dup2(own, number)
            os.close(own)
        os.close(nowhere)
