"""Commands as jobs: shards of a data set, SLURM through submitit, local processes."""

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

MONTH = 30 * 24 * 60  # minutes: time limit of a background job
NOTICE = 120  # seconds between the cluster's warning and the end; a step and a save have to fit
RETRIES = 20  # how often a run that reaches the time limit is resumed
OWN_OPTIONS = ("--submit", "--cluster-option", "--shards")


class Cluster(StrEnum):
    """Where jobs run."""

    slurm = "slurm"
    local = "local"


SubmitOption = Annotated[
    Cluster | None,
    typer.Option(
        "--submit",
        help=("Submit the command to SLURM, or run it in the background of this machine (local)."),
    ),
]
ClusterOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-option",
        metavar="KEY=VALUE",
        help=(
            "For --submit slurm, an option of sbatch: time=12:00:00 (required), partition=...,"
            " gres=gpu:4, nodes=2, account=...; repeatable."
        ),
    ),
]


def parameters(cluster: str, options: Sequence[str], processes: int = 1) -> dict[str, Any]:
    """Convert sbatch options to submitit parameters.

    Parameters
    ----------
    cluster : str
    options : sequence of str
        ``key=value``.
    processes : int
        Distributed over the nodes, if there are several.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        If an option is not ``key=value``, is unknown for local jobs, or the time is missing or
        invalid.
    """
    check_words(options, "--cluster-option")
    given = dict(_key_and_value(option) for option in options)
    time_limit, nodes = given.pop("time", None), given.pop("nodes", "1")
    if not nodes.isdigit() or int(nodes) < 1:
        raise InputError(f"--cluster-option nodes={nodes}: a whole number of nodes was expected.")
    if cluster != "slurm":
        if given or nodes != "1":
            unknown = ", ".join(sorted(given)) or "nodes"
            raise InputError(
                f"Jobs on this machine only accept --cluster-option time=...; got {unknown}."
            )
        return {"timeout_min": MONTH if time_limit is None else minutes(time_limit)}
    if time_limit is None:
        raise InputError(
            "SLURM needs a time limit: give --cluster-option time=12:00:00. A run that is not"
            f" finished by then is queued again and resumed, up to {RETRIES} times."
        )
    return _for_slurm(given, minutes(time_limit), int(nodes), processes)


def _for_slurm(given: Mapping[str, str], limit: int, nodes: int, processes: int) -> dict[str, Any]:
    """Rename the options that submitit has itself; pass the others to sbatch."""
    from submitit.slurm.slurm import SlurmExecutor

    if processes % nodes:
        raise InputError(
            f"{processes} processes cannot be distributed evenly over {nodes} nodes; give"
            f" --processes {nodes} * n."
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
    """Reject control characters, which could add lines or options to a batch script.

    Parameters
    ----------
    words : sequence of str
    what : str
        Description of the words, for the message.

    Raises
    ------
    InputError
        If a word contains one, or text that cannot be encoded as UTF-8.
    """
    for word in words:
        if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in word):
            raise InputError(
                f"{what[:1].upper()}{what[1:]} contains a line break or another control"
                f" character ({word!r:.120}), which a batch script cannot contain. Rename the"
                " file or folder, or give the option without it."
            )


def minutes(text: str) -> int:
    """Parse a time as sbatch does: minutes, [hours:]minutes:seconds,
    days-hours[:minutes[:seconds]].

    Raises
    ------
    InputError
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise InputError(
            f"'{text}' is not a time in sbatch format, such as 90 (minutes), 12:00:00 or"
            " 2-00:00:00."
        )
    days, numbers = found[1], [int(number) for number in found.groups()[1:] if number is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers.insert(0, 0)
    hours, whole, seconds = (*numbers, 0, 0)[:3]
    total = (int(days or 0) * 24 + hours) * 60 + whole + -(-seconds // 60)
    if total < 1:
        raise InputError(f"The time '{text}' is less than a minute.")
    return total


def without(words: Sequence[str], *options: str) -> tuple[str, ...]:
    """Remove options from the words of a command, with their value after "=" or in the next
    word.
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
        raise InputError(
            f"--cluster-option takes KEY=VALUE, such as partition=gpu; got '{option}'."
        )
    return key, value.strip()


PROGRESS = ("pair ", "Warning")  # lines of a process that are shown; the others are not
NOT_FOR_SHARDS = ("--processes", "--shards", "--against", "--submit", "--cluster-option")

ProcessesOption = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        help="Share the pairs among this many processes of this machine: one per GPU.",
    ),
]
ShardsOption = Annotated[
    int,
    typer.Option("--shards", min=1, help="With --submit: share the pairs among this many jobs."),
]


@dataclass(frozen=True)
class Sharing:
    """How the pairs are shared among processes or jobs.

    Attributes
    ----------
    words : tuple of str
        The words of the command.
    processes : int
        Processes on this machine.
    submit : str or None
        A cluster.
    options : tuple of str
        Cluster options, ``key=value``.
    shards : int
        Jobs on the cluster.
    """

    words: tuple[str, ...] = ()
    processes: int = 1
    submit: str | None = None
    options: tuple[str, ...] = ()
    shards: int = 1

    def check(self, shard: object) -> None:
        """Reject options that exclude each other.

        Parameters
        ----------
        shard : tuple or None
            The value of ``--shard``.

        Raises
        ------
        InputError
        """
        if self.shards > 1 and self.submit is None:
            raise InputError(
                "--shards is for jobs with --submit; on this machine, share the pairs with"
                " --processes."
            )
        if shard is not None and (self.processes > 1 or self.submit is not None):
            raise InputError(
                "--shard is for a single process; --processes and --submit set it for each of"
                " theirs."
            )
        if self.submit is None and self.options:
            raise InputError("--cluster-option has no effect without --submit.")

    def submit_shards(self, out: Path) -> None:
        """Submit the jobs and print how to watch them.

        Parameters
        ----------
        out : Path
            Folder of the results.
        """

        words = without(self.words, "--against")
        typer.echo(submit_command(words, out, str(self.submit), self.options, shards=self.shards))

    def run(self, device: str) -> None:
        """Run the shards as processes and wait for them; if one dies, the others continue.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            With CUDA, each process sees one GPU.

        Raises
        ------
        KeyboardInterrupt
            If they were stopped by the user.
        Exit
            If one died or failed; its error was printed.
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
            start_new_session=True,  # Ctrl-C reaches this process, which forwards it once
            preexec_fn=stop_with_parent if os.name == "posix" else None,
        )


def _wait(
    members: Mapping[int, subprocess.Popen[str]], output: Mapping[int, Sequence[str]]
) -> bool:
    """Wait for all processes, and print each distinct error at once; return whether there was
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
                time.sleep(POLL_SECONDS)  # for its last output
                message = next((line for line in output[number] if line.startswith("Error: ")), "")
                name = f"process {number + 1} of {len(members)}"
                if process.returncode < 0:
                    reason = describe_signal(name, process.pid, process.returncode)
                    message = (
                        f"Error: {reason} The others continue. Finished pairs are kept; the same"
                        " command processes the rest."
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
    """A call of ``shmoareg`` that submitit executes on the cluster.

    Attributes
    ----------
    argv : tuple of str
        The command and its options.
    folder : str
        Working directory.
    started_file : str or None
        File that exists once the work has started: from then on ``--resume`` is added.
    environment : mapping
        Changes of the environment; None removes a variable.
    """

    argv: tuple[str, ...]
    folder: str
    started_file: str | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __call__(self) -> int:
        """Run the command.

        Raises
        ------
        RuntimeError
            If it fails, so that the cluster marks the job as failed.
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
            # not `wait`: `checkpoint` could not wait for the same process within it
            while process.poll() is None:
                time.sleep(0.2)
        finally:
            _RUNNING.remove(process)
            if process.poll() is None:  # submitit was interrupted
                process.send_signal(signal.SIGTERM)
        if process.returncode != 0:
            raise RuntimeError(
                f"shmoareg ended with code {process.returncode}; see its output above."
            )
        return 0

    def checkpoint(self) -> Any:
        """Stop at a safe step and requeue; called by submitit on preemption or at the time
        limit.
        """
        import submitit

        for process in _RUNNING:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + NOTICE - 10
        while any(process.poll() is None for process in _RUNNING) and time.monotonic() < until:
            time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(self)


_RUNNING: list[subprocess.Popen[bytes]] = []  # the processes that this job runs


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
    """Submit a command to a cluster, as one job or in shards.

    Parameters
    ----------
    words : sequence of str
        The words of the called command; the submit options are removed.
    out : Path
        Folder of the results; submitit's files are next to it.
    cluster : {"slurm", "local"}
    options : sequence of str, optional
        ``key=value``.
    processes : int
        Processes of the command. On one node it starts them itself, on several SLURM does.
    batch : int, optional
        Pairs per step, shared by the processes.
    shards : int
        Number of jobs, each with its own ``--shard``.
    started_file : Path, optional
        File that exists once the work has started; a job that finds it adds ``--resume``.

    Returns
    -------
    str
        Message for the user.

    Raises
    ------
    InputError
        As `submit`, or if a step has fewer pairs than processes.
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
    """Submit jobs to a cluster; several become a job array.

    Parameters
    ----------
    jobs : sequence of ClusterJob
    cluster : {"slurm", "local"}
    options : sequence of str
        ``key=value``.
    folder : Path
        Folder of submitit's files and the logs; visible from all machines.
    name : str
        Name of the jobs.
    processes : int
        Processes per job; on several nodes they are distributed evenly, one task each.

    Returns
    -------
    list
        submitit's jobs.

    Raises
    ------
    InputError
        If submitit or the cluster is missing, or it rejects an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "Jobs are submitted with submitit, which is not installed: pip install"
            " 'shmoareg[cluster]'."
        ) from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "SLURM is not available here (no command sbatch). Run this on the login node, or"
            " give --submit local."
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
            f"The job could not be submitted: {text[:400] or type(error).__name__}"
        ) from error


def describe_jobs(jobs: Sequence[Any], cluster: str, folder: Path) -> str:
    """Describe submitted jobs: ids, how to watch and stop them."""
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
        f"Submitted {what} {names}.\nWatch: {watch}; tail -F {logs}\nStop:  {stop}\nFiles: {folder}"
    )


@contextmanager
def _detached_streams() -> Iterator[None]:
    """Redirect the standard streams to the null device, so that background jobs do not keep them
    open.
    """
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
