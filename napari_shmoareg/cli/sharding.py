"""A large cohort in shards: as processes of this machine, or as jobs of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import typer

from napari_shmoareg.cli.cluster_options import without
from napari_shmoareg.cli.errors import CANCELLED, FAILED, say
from napari_shmoareg.cli.processes import LOOK, ended_by, passed_on, stopped_with_parent
from napari_shmoareg.geometry import InputError

PROGRESS = ("pair ", "Warning")  # lines of a process that are shown; the others are its own
NOT_FOR_SHARDS = ("--processes", "--shards", "--against", "--submit", "--cluster-option")

ProcessesOption = Annotated[
    int,
    typer.Option("--processes", min=1, help="Share the pairs among so many processes of this machine: one per GPU."),
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
            raise InputError("--shards are jobs, for --submit; on this machine the pairs are shared by --processes.")
        if shard is not None and (self.processes > 1 or self.submit is not None):
            raise InputError("--shard is for one process; --processes and --submit give it to each of theirs.")
        if self.submit is None and self.options:
            raise InputError("--cluster-option does nothing without --submit.")

    def hand_over(self, out: Path) -> None:
        """Submit the jobs and tell how to watch them.

        Parameters
        ----------
        out : Path
            The results.
        """
        from napari_shmoareg.cli.cluster import hand_over

        words = without(self.words, "--against")
        typer.echo(hand_over(words, out, str(self.submit), self.options, shards=self.shards))

    def run(self, device: str) -> None:
        """Run the shards as processes and wait for them; a process that dies leaves its pairs, the others go on.

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
        said: dict[int, list[str]] = {number: [] for number in members}
        readers = [
            threading.Thread(target=_relay, args=(process.stderr, said[number])) for number, process in members.items()
        ]
        for reader in readers:
            reader.start()
        with passed_on(members):
            failed = _wait(members, said)
        for reader in readers:
            reader.join()
        if any(process.returncode == CANCELLED for process in members.values()):
            raise KeyboardInterrupt
        if failed:
            raise typer.Exit(FAILED)

    def _start(self, number: int, device: str) -> subprocess.Popen[str]:
        from napari_shmoareg.engine.team import threads_each

        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(threads_each(self.processes)))
        if device == "cuda":
            import torch

            seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
            gpus = seen.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        words = without(self.words, *NOT_FOR_SHARDS)
        return subprocess.Popen(
            [sys.executable, "-m", "napari_shmoareg", *words, f"--shard={number + 1}/{self.processes}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which hands it on once
            preexec_fn=stopped_with_parent if os.name == "posix" else None,
        )


def _wait(members: Mapping[int, subprocess.Popen[str]], said: Mapping[int, Sequence[str]]) -> bool:
    """Wait for all; say at once, and once each, what ended one before its time.  Whether there was one."""
    left, failed, told = set(members), False, set[str]()
    while left:
        for number in sorted(left):
            process = members[number]
            if process.poll() is None:
                continue
            left.remove(number)
            if process.returncode not in (0, CANCELLED):
                time.sleep(LOOK)  # for its last words
                words = next((line for line in said[number] if line.startswith("Error: ")), "")
                name = f"process {number + 1} of {len(members)}"
                if process.returncode < 0:
                    what = ended_by(name, process.pid, process.returncode)
                    words = f"Error: {what} The others go on. Finished pairs are kept; the same command does the rest."
                failed |= bool(words)
                if words and words not in told:
                    say(words)
                    told.add(words)
        time.sleep(LOOK)
    return failed


def _relay(lines: IO[str] | None, said: list[str]) -> None:
    for line in lines or ():
        said.append(line.rstrip("\n"))
        if line.startswith(PROGRESS):
            say(said[-1])
