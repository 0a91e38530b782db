"""Several processes that make one training step together.

Hugging Face Accelerate joins them, whether torchrun or srun started them; PyTorch adds up in place.
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
    """What torchrun sets, taken from srun's variables where torchrun set nothing; None for a
    process alone.

    Raises
    ------
    InputError
        If only some of torchrun's variables are there, or are no numbers.
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
            f"The environment says that this is one of several processes, but not {missing}. Start"
            " them with torchrun, srun or --processes; if this is one process alone, unset"
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
    """How many processes torchrun or srun started, this one among them."""
    return int((process_environment(os.environ) or {"WORLD_SIZE": "1"})["WORLD_SIZE"])


def _slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables, for one task of a job step on SLURM; all of them agree on the first
    node.
    """
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


JOIN_TIMEOUT = timedelta(minutes=10)  # until all processes have to have come
# for one of them that checks scans, validates or pauses; a lost one is seen at once
COLLECTIVE_TIMEOUT = timedelta(days=2)


class LostProcessError(InputError):
    """Another process of the team ended or fell silent; what it alone knew is told elsewhere."""


@dataclass(frozen=True)
class TrainingGroup:
    """One process of a team, or a process alone: ``TrainingGroup()``, which needs no Accelerate.

    Attributes
    ----------
    rank : int
        Which process this is, from 0.
    size : int
        How many there are.
    device : torch.device or None
        Where tensors that are added lie; None for a process alone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    _group: ProcessGroup | None = field(default=None, repr=False, compare=False)

    @classmethod
    def join(cls, device: str = "auto") -> TrainingGroup:
        """Meet the processes that torchrun, or srun, started beside this one; a process alone if
        there are none.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}
            With CUDA, this process takes the GPU of its place on this machine.

        Raises
        ------
        InputError
            If Accelerate is missing, or the device; or there are more processes here than GPUs.
        LostProcessError
            If the others do not come.
        """
        where = process_environment(os.environ)
        if where is None:
            return cls()
        place = find_device(device)
        here = int(where["LOCAL_WORLD_SIZE"])
        # srun may show each task its own GPU
        bound = "SLURM_PROCID" in os.environ and torch.cuda.device_count() == 1
        if place.type == "cuda" and not bound:
            check_gpus(here)
        os.environ.update(where)
        if place.type == "cpu":  # left to itself, each process would take all cores
            os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(here)))
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        with without_triton(), _detect_lost_processes("could not meet"):
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise InputError(
                    "Several processes need Hugging Face Accelerate, which is not installed: "
                    "pip install 'shmoareg[train]', or run one process."
                ) from error
            state = PartialState(cpu=place.type == "cpu", timeout=JOIN_TIMEOUT)
            group = torch.distributed.new_group(timeout=COLLECTIVE_TIMEOUT)
        group = cls(
            state.process_index,
            state.num_processes,
            state.device if place.type == "cuda" else place,
            group,
        )
        group.wait()
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things are this process's own."""
        return range(self.rank, count, self.size)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put in each tensor's place its sum over all processes; one message per kind of tensor.

        Parameters
        ----------
        tensors : sequence of Tensor
            Of the same shapes and kinds in each process.

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
        """Whether `flag` holds in any process; the same answer in all.

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
        """Go on when all processes have come here.

        Raises
        ------
        LostProcessError
        """
        self.any(False)

    def close(self, finished: bool = True) -> None:
        """Close the connections; Accelerate's state is dropped too.

        Without it, Gloo's threads may abort the interpreter when it ends.

        Parameters
        ----------
        finished : bool
            Whether all processes have done.  If not, NCCL, which would wait for them, is left to
            the process's end.
        """
        if self.size == 1 or not torch.distributed.is_initialized():
            return
        from accelerate import PartialState

        if finished or torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
        PartialState._reset_state()

    def _reduce(self, flat: Tensor, how: Any) -> None:
        with _detect_lost_processes("lost each other"):
            torch.distributed.all_reduce(flat, how, group=self._group)


def check_batch(batch: int, processes: int) -> None:
    """Raise `InputError` unless every process has a pair to work on in each step."""
    if batch < processes:
        raise InputError(
            f"{processes} processes share the pairs of a step, but a step has {batch}:"
            f" {processes - batch} would have nothing to do.",
            remedy=f"Give {{batch:{processes}}} or more, or {{processes:{batch}}}.",
        )


def check_gpus(processes: int) -> None:
    """Raise `InputError` unless every process on this machine has a GPU of its own."""
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise InputError(
            f"{processes} processes on this machine need a GPU each, but PyTorch finds {gpus}.",
            remedy=f"Give {{processes:{gpus}}} or {{device:cpu}}.",
        )


def threads_per_process(processes: int) -> int:
    """Cores of this machine for each of so many processes."""
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
            f"The processes of this run {what}: one of them ended, or its machine cannot be reached"
            f" ({_first_sentence(error)}). What was saved is kept; see what that process said, then"
            " go on with --resume."
        ) from error


def _first_sentence(error: RuntimeError) -> str:
    """The first sentence of an error of PyTorch or Gloo, without source files and advice."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^]]*\]\s*", "", first).split(". This is typically")[0].rstrip(".")
