"""Distributed training: several processes share the pairs of each step.

Hugging Face Accelerate joins processes started by torchrun or srun; PyTorch sums in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.registration.refinement import without_triton
from napari_shmoareg.registration.resources import find_device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def process_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return torchrun's variables, derived from srun's if torchrun set none; None for a single
    process.

    Raises
    ------
    InputError
        If only some of torchrun's variables are set, or they are not numbers.
    """
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment = _slurm_environment(environment) | dict(environment)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: environment[name] for name in names if environment.get(name, "").isdigit()}
    if not found or found.get("WORLD_SIZE") == "1":
        return None
    if len(found) < len(names):
        missing = ", ".join(name for name in names if name not in found)
        raise InputError(
            f"The environment describes one of several processes, but lacks {missing}. Start"
            " them with torchrun, srun or --processes; for a single process, unset"
            f" {' and '.join(found)}."
        )
    more = ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    here = {
        "LOCAL_WORLD_SIZE": found["WORLD_SIZE"],
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    found |= here | {name: environment[name] for name in more if name in environment}
    return found


def world_size() -> int:
    """Number of processes that torchrun or srun started, including this one."""
    return int((process_environment(os.environ) or {"WORLD_SIZE": "1"})["WORLD_SIZE"])


def _slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Derive torchrun's variables for a task of a SLURM job step; the first node is the master."""
    nodes = environment.get(
        "SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
    )
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


JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to join
# for one process that checks scans, validates or pauses; a lost process is noticed at once
COLLECTIVE_TIMEOUT = timedelta(days=2)


class LostProcessError(InputError):
    """Another process of the group ended or stopped responding; its own error is reported
    elsewhere.
    """


@dataclass(frozen=True)
class TrainingGroup:
    """One process of a group. ``TrainingGroup()`` is a single process and needs no Accelerate.

    Attributes
    ----------
    rank : int
        Index of this process, from 0.
    size : int
        Number of processes.
    device : torch.device or None
        Device of the tensors that are summed; None for a single process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    _group: ProcessGroup | None = field(default=None, repr=False, compare=False)

    @classmethod
    def join(cls, device: str = "auto") -> TrainingGroup:
        """Join the processes started by torchrun or srun; a single process if there are none.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}
            With CUDA, this process uses the GPU of its local rank.

        Raises
        ------
        InputError
            If Accelerate or the device is missing, or there are more local processes than GPUs.
        LostProcessError
            If the others do not join.
        """
        variables = process_environment(os.environ)
        if variables is None:
            return cls()
        own_device = find_device(device)
        local_size = int(variables["LOCAL_WORLD_SIZE"])
        # srun may show each task only its own GPU
        has_own_gpu = "SLURM_PROCID" in os.environ and torch.cuda.device_count() == 1
        if own_device.type == "cuda" and not has_own_gpu:
            check_gpus(local_size)
        os.environ.update(variables)
        if own_device.type == "cpu":  # by default each process would use all cores
            os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(local_size)))
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        with without_triton(), _detect_lost_processes("could not connect"):
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise InputError(
                    "Several processes need Hugging Face Accelerate, which is not installed: "
                    "pip install 'shmoareg[train]', or run one process."
                ) from error
            state = PartialState(cpu=own_device.type == "cpu", timeout=JOIN_TIMEOUT)
            collective = torch.distributed.new_group(timeout=COLLECTIVE_TIMEOUT)
        group = cls(
            state.process_index,
            state.num_processes,
            state.device if own_device.type == "cuda" else own_device,
            collective,
        )
        group.wait()
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Indices, among `count` items, that this process handles."""
        return range(self.rank, count, self.size)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over all processes, in place; one message per dtype and device.

        Parameters
        ----------
        tensors : sequence of Tensor
            With the same shapes and dtypes in each process.

        Raises
        ------
        LostProcessError
        """
        if self.size == 1:
            return
        by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        for tensors_of_kind in by_kind.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors_of_kind]).to(self.device)
            self._reduce(flat, torch.distributed.ReduceOp.SUM)
            for tensor, total in zip(
                tensors_of_kind,
                flat.split([tensor.numel() for tensor in tensors_of_kind]),
                strict=True,
            ):
                tensor.copy_(total.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; all processes get the same answer.

        Raises
        ------
        LostProcessError
        """
        if self.size == 1:
            return flag
        answer = torch.tensor([int(flag)], device=self.device)
        self._reduce(answer, torch.distributed.ReduceOp.MAX)
        return bool(answer.item())

    def wait(self) -> None:
        """Wait until all processes get here.

        Raises
        ------
        LostProcessError
        """
        self.any(False)

    def close(self, finished: bool = True) -> None:
        """Close the connections and reset Accelerate's state.

        Without this, Gloo's threads may abort the interpreter at exit.

        Parameters
        ----------
        finished : bool
            Whether all processes have finished. If not, NCCL is left open until the process ends,
            because closing it would wait for the others.
        """
        if self.size == 1 or not torch.distributed.is_initialized():
            return
        from accelerate import PartialState

        if finished or torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
        PartialState._reset_state()

    def _reduce(self, flat: Tensor, how: Any) -> None:
        with _detect_lost_processes("lost contact"):
            torch.distributed.all_reduce(flat, how, group=self._group)


def check_batch(batch: int, processes: int) -> None:
    """Raise `InputError` unless every process has a pair in each step."""
    if batch < processes:
        raise InputError(
            f"{processes} processes share the pairs of a step, but a step has only {batch}:"
            f" {processes - batch} would be idle.",
            remedy=f"Give {{batch:{processes}}} or more, or {{processes:{batch}}}.",
        )


def check_gpus(processes: int) -> None:
    """Raise `InputError` unless there is a GPU for every process on this machine."""
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise InputError(
            f"{processes} processes on this machine need one GPU each, but PyTorch finds {gpus}.",
            remedy=f"Give {{processes:{gpus}}} or {{device:cpu}}.",
        )


def threads_per_process(processes: int) -> int:
    """Number of CPU cores for each process."""
    cores: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return max(1, (len(cores(0)) if cores else os.cpu_count() or 1) // processes)


@contextmanager
def _detect_lost_processes(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(
            f"The processes of this run {what}: one of them ended, or its machine cannot be"
            f" reached ({_first_sentence(error)}). The saved state is kept. See the error of"
            " that process, then continue with --resume."
        ) from error


def _first_sentence(error: RuntimeError) -> str:
    """First sentence of a PyTorch or Gloo error, without source locations and advice."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^]]*\]\s*", "", first).split(". This is typically")[0].rstrip(".")
