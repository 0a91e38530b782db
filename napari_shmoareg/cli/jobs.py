"""Commands as jobs: shards of a cohort, SLURM by submitit, processes of this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from napari_shmoareg.cli.console import CANCELLED, FAILED, print_note
from napari_shmoareg.cli.launch import (
    POLL_SECONDS,
    describe_signal,
    forward_signals,
    stop_with_parent,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import check_name

MONTH = 30 * 24 * 60  # minutes: how long a job in the background may take at most
NOTICE = 120  # seconds between the warning of a cluster and the end: a step and a save have to fit
RETRIES = 20  # how often a run that reaches the cluster's time limit goes on
OWN_OPTIONS = ("--submit", "--cluster-option", "--shards")


class Cluster(StrEnum):
    """Where jobs run."""

    slurm = "slurm"
    local = "local"


SubmitOption = Annotated[
    Cluster | None,
    typer.Option(
        "--submit",
        help=(
            "Do not run here and now: hand it to SLURM, or to the background of this machine"
            " (local)."
        ),
    ),
]
ClusterOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-option",
        metavar="KEY=VALUE",
        help=(
            "For --submit slurm, as sbatch knows it: time=12:00:00 (needed), partition=...,"
            " gres=gpu:4, nodes=2, account=...; repeat for more."
        ),
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
        If an option is not ``key=value``, is unknown for jobs on this machine, or the time is
        missing or unreadable.
    """
    check_words(options, "--cluster-option")
    given = dict(_key_and_value(option) for option in options)
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
            "SLURM has to know how long a job may take: give --cluster-option time=12:00:00. A run"
            f" that is not done by then is queued again and goes on, {RETRIES} times."
        )
    return _for_slurm(given, minutes(time_limit), int(nodes), processes)


def _for_slurm(given: Mapping[str, str], limit: int, nodes: int, processes: int) -> dict[str, Any]:
    """Options that submitit knows under its own names; the others go to sbatch as they are."""
    from submitit.slurm.slurm import SlurmExecutor

    if processes % nodes:
        raise InputError(
            f"{processes} processes cannot be shared evenly by {nodes} nodes; give --processes"
            f" {nodes} * n."
        )
    known = SlurmExecutor._valid_parameters()
    submitit_options: dict[str, Any] = {
        "timeout_min": limit,
        "nodes": nodes,
        "slurm_signal_delay_s": NOTICE,
    }
    if nodes > 1:
        submitit_options |= {
            "tasks_per_node": processes // nodes,
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
        }
    sbatch_options: dict[str, Any] = {"requeue": True}
    for key, value in given.items():
        name = key.replace("-", "_")
        typed = int(value) if value.isdigit() else value or True
        if name in known:
            submitit_options[f"slurm_{name}"] = typed
        else:
            sbatch_options[key] = typed
    return submitit_options | {"slurm_additional_parameters": sbatch_options}


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
                f"{what[:1].upper()}{what[1:]} holds a line break or another control character"
                f" ({word!r:.120}), which a batch script cannot hold. Rename the file or folder, or"
                " give the option without it."
            )


def minutes(text: str) -> int:
    """A time as sbatch takes it: minutes, [hours:]minutes:seconds, or
    days-hours[:minutes[:seconds]].

    Raises
    ------
    InputError
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise InputError(
            f"'{text}' is no time as sbatch takes it, such as 90 (minutes), 12:00:00 or 2-00:00:00."
        )
    days, numbers = found[1], [int(number) for number in found.groups()[1:] if number is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers.insert(0, 0)
    hours, whole, seconds = (*numbers, 0, 0)[:3]
    total = (int(days or 0) * 24 + hours) * 60 + whole + -(-seconds // 60)
    if total < 1:
        raise InputError(f"A time of '{text}' leaves no minute to work in.")
    return total


def without(words: Sequence[str], *options: str) -> tuple[str, ...]:
    """The words of a command but for some options, whether their value stands behind "=" or in the
    next word.
    """
    remaining: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word.split("=", 1)[0] not in options:
            remaining.append(word)
    return tuple(remaining)


def _key_and_value(option: str) -> tuple[str, str]:
    key, mark, value = option.partition("=")
    key = key.strip().lstrip("-")
    if not mark or not re.fullmatch(r"[A-Za-z][\w-]*", key):
        raise InputError(f"--cluster-option is KEY=VALUE, such as partition=gpu; got '{option}'.")
    return key, value.strip()


PROGRESS = ("pair ", "Warning")  # lines of a process that are shown; the others are its own
NOT_FOR_SHARDS = ("--processes", "--shards", "--against", "--submit", "--cluster-option")

ProcessesOption = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        help="Share the pairs among so many processes of this machine: one per GPU.",
    ),
]
ShardsOption = Annotated[
    int, typer.Option("--shards", min=1, help="With --submit: share the pairs among so many jobs.")
]


@dataclass(frozen=True)
class Sharing:
    """How the pairs are shared out.

    Attributes
    ----------
    words : tuple of str
        Of the command.
    processes : int
        On this machine.
    submit : str or None
        A cluster.
    options : tuple of str
        Of the cluster, ``key=value``.
    shards : int
        Jobs on it.
    """

    words: tuple[str, ...] = ()
    processes: int = 1
    submit: str | None = None
    options: tuple[str, ...] = ()
    shards: int = 1

    def check(self, shard: object) -> None:
        """Refuse what excludes each other.

        Parameters
        ----------
        shard : tuple or None
            What ``--shard`` said.

        Raises
        ------
        InputError
        """
        if self.shards > 1 and self.submit is None:
            raise InputError(
                "--shards are jobs, for --submit; on this machine the pairs are shared by"
                " --processes."
            )
        if shard is not None and (self.processes > 1 or self.submit is not None):
            raise InputError(
                "--shard is for one process; --processes and --submit give it to each of theirs."
            )
        if self.submit is None and self.options:
            raise InputError("--cluster-option does nothing without --submit.")

    def submit_shards(self, out: Path) -> None:
        """Submit the jobs and tell how to watch them.

        Parameters
        ----------
        out : Path
            The results.
        """

        words = without(self.words, "--against")
        typer.echo(submit_command(words, out, str(self.submit), self.options, shards=self.shards))

    def run(self, device: str) -> None:
        """Run the shards as processes and wait for them; a process that dies leaves its pairs, the
        others go on.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            With CUDA, each process sees one GPU.

        Raises
        ------
        KeyboardInterrupt
            If they were asked to stop, and did.
        Exit
            If one died or failed; it was said.
        """
        members = {number: self._start(number, device) for number in range(self.processes)}
        output: dict[int, list[str]] = {number: [] for number in members}
        readers = [
            threading.Thread(target=_relay, args=(process.stderr, output[number]))
            for number, process in members.items()
        ]
        for reader in readers:
            reader.start()
        with forward_signals(members):
            failed = _wait(members, output)
        for reader in readers:
            reader.join()
        if any(process.returncode == CANCELLED for process in members.values()):
            raise KeyboardInterrupt
        if failed:
            raise typer.Exit(FAILED)

    def _start(self, number: int, device: str) -> subprocess.Popen[str]:
        from napari_shmoareg.training.distributed import threads_per_process

        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(threads_per_process(self.processes)))
        if device == "cuda":
            import torch

            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
                map(str, range(torch.cuda.device_count()))
            )
            gpus = visible.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        words = without(self.words, *NOT_FOR_SHARDS)
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "napari_shmoareg",
                *words,
                f"--shard={number + 1}/{self.processes}",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which hands it on once
            preexec_fn=stop_with_parent if os.name == "posix" else None,
        )


def _wait(
    members: Mapping[int, subprocess.Popen[str]], output: Mapping[int, Sequence[str]]
) -> bool:
    """Wait for all; say at once, and once each, what ended one before its time.  Whether there was
    one.
    """
    left, failed, printed = set(members), False, set[str]()
    while left:
        for number in sorted(left):
            process = members[number]
            if process.poll() is None:
                continue
            left.remove(number)
            if process.returncode not in (0, CANCELLED):
                time.sleep(POLL_SECONDS)  # for its last words
                message = next((line for line in output[number] if line.startswith("Error: ")), "")
                name = f"process {number + 1} of {len(members)}"
                if process.returncode < 0:
                    reason = describe_signal(name, process.pid, process.returncode)
                    message = (
                        f"Error: {reason} The others go on. Finished pairs are kept; the same command"
                        " does the rest."
                    )
                failed |= bool(message)
                if message and message not in printed:
                    print_note(message)
                    printed.add(message)
        time.sleep(POLL_SECONDS)
    return failed


def _relay(lines: IO[str] | None, output: list[str]) -> None:
    for line in lines or ():
        output.append(line.rstrip("\n"))
        if line.startswith(PROGRESS):
            print_note(output[-1])


@dataclass(frozen=True)
class ClusterJob:
    """One call of ``shmoareg``, which submitit calls on the machine where it runs.

    Attributes
    ----------
    argv : tuple of str
        The command and its options.
    folder : str
        The working folder.
    started_file : str or None
        A file that is there once the work was begun: from then on ``--resume`` is added.
    environment : mapping
        What differs from the environment on that machine; None takes a variable away.
    """

    argv: tuple[str, ...]
    folder: str
    started_file: str | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __call__(self) -> int:
        """Run it to its end.

        Raises
        ------
        RuntimeError
            If it fails, so that the cluster lists the job as failed.
        """
        resumed = self.started_file is not None and Path(self.folder, self.started_file).is_file()
        more = ("--resume",) if resumed and "--resume" not in self.argv else ()
        changed = {**os.environ, **self.environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "napari_shmoareg", *self.argv, *more],
            cwd=self.folder,
            env={name: value for name, value in changed.items() if value is not None},
            stdin=subprocess.DEVNULL,
            preexec_fn=stop_with_parent if os.name == "posix" else None,
        )
        _RUNNING.append(process)
        try:
            # not `wait`, within which `checkpoint` could not wait for the same process
            while process.poll() is None:
                time.sleep(0.2)
        finally:
            _RUNNING.remove(process)
            if process.poll() is None:  # submitit was interrupted
                process.send_signal(signal.SIGTERM)
        if process.returncode != 0:
            raise RuntimeError(
                f"shmoareg ended with code {process.returncode}; what it said stands above."
            )
        return 0

    def checkpoint(self) -> Any:
        """Stop at a safe step, and be queued again; called by submitit when the cluster takes the
        machine back.
        """
        import submitit

        for process in _RUNNING:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + NOTICE - 10
        while any(process.poll() is None for process in _RUNNING) and time.monotonic() < until:
            time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(self)


_RUNNING: list[subprocess.Popen[bytes]] = []  # in the process of a job: what it runs


def submit_command(
    words: Sequence[str],
    out: Path,
    cluster: str,
    options: Sequence[str] | None,
    *,
    processes: int = 1,
    batch: int | None = None,
    shards: int = 1,
    started_file: Path | None = None,
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
    started_file : Path, optional
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
    from napari_shmoareg.training.distributed import check_batch

    if batch is not None:
        check_batch(batch, processes)
    given = list(options or ())
    several = parameters(cluster, given, processes).get("nodes", 1) > 1
    words = without(words, *OWN_OPTIONS, *(("--processes",) if several else ()))
    environment = (
        {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if cluster != "slurm"
        else {}
    )
    parts = (
        [()]
        if shards == 1
        else [(f"--shard={number}/{shards}",) for number in range(1, shards + 1)]
    )
    jobs = [
        ClusterJob(
            (*words, *part),
            os.getcwd(),
            None if started_file is None else str(started_file),
            environment,
        )
        for part in parts
    ]
    folder = (out.parent / f"{out.name}-jobs").absolute()
    submitted = submit(
        jobs, cluster, given, folder=folder, name=f"shmoareg-{out.name}", processes=processes
    )
    return describe_jobs(submitted, cluster, folder)


def submit(
    jobs: Sequence[ClusterJob],
    cluster: str,
    options: Sequence[str],
    *,
    folder: Path,
    name: str,
    processes: int = 1,
) -> list[Any]:
    """Hand jobs to a cluster; several become an array.

    Parameters
    ----------
    jobs : sequence of ClusterJob
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
            "Jobs are handed over by submitit, which is not installed: pip install"
            " 'shmoareg[cluster]'."
        ) from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "There is no SLURM here (no command sbatch). Call this where jobs are submitted, the"
            " login node, or give --submit local."
        )
    check_words([word for job in jobs for word in (*job.argv, job.folder)], "a word of the command")
    check_words([name], "the name of the job")
    check_words([str(folder)], "the folder of the job's files")
    check_name(folder / "name")
    settings = parameters(cluster, options, processes) | {"name": name}
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster, slurm_max_num_timeout=RETRIES
        )
        executor.update_parameters(**settings)
        with _detached_streams():
            if len(jobs) == 1:
                return [executor.submit(jobs[0])]
            with executor.batch():
                return [executor.submit(job) for job in jobs]
    except (ValueError, NameError, AssertionError, submitit.core.utils.FailedJobError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"The job could not be handed over: {text[:400] or type(error).__name__}"
        ) from error


def describe_jobs(jobs: Sequence[Any], cluster: str, folder: Path) -> str:
    """What a user wants to know after handing jobs over."""
    names = ", ".join(str(job.job_id) for job in jobs)
    logs = " ".join(str(job.paths.stdout) for job in jobs[:3]) + (" ..." if len(jobs) > 3 else "")
    first = str(jobs[0].job_id).split("_")[0]
    if cluster == "slurm":
        watch, stop = f"squeue -j {first}", f"scancel {first}"
    else:
        pids = " ".join(str(job.job_id) for job in jobs)
        watch, stop = f"ps -p {pids.replace(' ', ',')}", f"kill -INT {pids}"
    what = "job" if len(jobs) == 1 else "jobs"
    return (
        f"Handed over: {what} {names}.\nWatch: {watch}; tail -F {logs}\nStop:  {stop}\nFiles:"
        f" {folder}"
    )


@contextmanager
def _detached_streams() -> Iterator[None]:
    """Start what outlives this process without its input and output, which would be held open."""
    sys.stdout.flush()
    saved = [os.dup(number) for number in (0, 1, 2)]
    devnull = os.open(os.devnull, os.O_RDWR)
    try:
        for number in (0, 1, 2):
            os.dup2(devnull, number)
        yield
    finally:
        for number, own in enumerate(saved):
            os.dup2(own, number)
            os.close(own)
        os.close(devnull)
