"""Several processes that add up, and one alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.training.distributed import (
    LostProcessError,
    TrainingGroup,
    check_batch,
    process_environment,
    world_size,
)

VARIABLES = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE SLURM_STEP_NUM_TASKS MASTER_ADDR".split()


def test_a_process_alone_is_its_own_leader_does_everything_and_needs_no_accelerate():
    code = """
        import sys, torch
        from napari_shmoareg.training.distributed import TrainingGroup
        group = TrainingGroup.join("cpu")
        numbers = torch.arange(3.0)
        group.add([numbers]); group.wait(); group.close()
        print(group == TrainingGroup(), group.is_main, list(group.share(3)), group.any(False), group.any(True), numbers.tolist(),
              "accelerate" in sys.modules, torch.distributed.is_initialized())
    """
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert run.stdout.split("\n")[0] == "True True [0, 1, 2] False True [0.0, 1.0, 2.0] False False"


def test_every_thing_is_shared_out_to_exactly_one_process():
    for size in (1, 2, 3, 5):
        for count in (0, 1, 4, 7):
            shares = [
                index for rank in range(size) for index in TrainingGroup(rank, size).share(count)
            ]
            assert sorted(shares) == list(range(count))


MEMBER = """
    import os, sys, time, torch
    from napari_shmoareg.training.distributed import LostProcessError, TrainingGroup
    group = TrainingGroup.join("cpu")
    rank = int(os.environ["RANK"])
    assert (group.rank, group.size, group.is_main, str(group.device)) == (rank, 2, rank == 0, "cpu")
    single = torch.arange(6.0).reshape(2, 3).t() * (rank + 1)    # not contiguous
    scalar = torch.tensor(rank + 0.5)
    double = torch.full((2,), 1e-9 + rank, dtype=torch.float64)
    counts = torch.tensor([rank, 10])
    learned = torch.nn.Parameter(torch.ones(2) * rank)
    group.add([single, scalar, double, counts, learned])
    assert torch.equal(single, torch.arange(6.0).reshape(2, 3).t() * 3)
    assert scalar.item() == 2.0
    assert (double - (1 + 2e-9)).abs().max() < 1e-15
    assert counts.tolist() == [1, 20] and counts.dtype == torch.int64
    assert learned.tolist() == [1, 1]
    assert group.any(rank == 1) and not group.any(False)
    print("well", torch.get_num_threads(), flush=True)
    try:
        while True:
            group.add([torch.ones(1000)])
            time.sleep(0.01)
    except LostProcessError as lost:
        print(lost, flush=True)
        group.close(finished=False)
        raise SystemExit(7)
"""


@pytest.mark.slow
def test_processes_add_up_and_the_other_is_told_within_seconds_that_one_was_killed(start_team):
    members = start_team(MEMBER)
    for member in members:
        assert member.stdout.readline() == "well 1\n", member.communicate()[1]
    members[1].kill()
    began = time.monotonic()
    out, said = members[0].communicate(timeout=60)
    assert (members[0].returncode, said) == (7, "")
    assert (
        "one of them ended" in out and "--resume" in out and "Gloo" not in out and ".cc:" not in out
    )
    assert time.monotonic() - began < 20  # on a busy machine; the interpreter's own end included


def test_a_lost_process_is_an_error_of_input_which_commands_say_in_words():
    assert issubclass(LostProcessError, InputError)


def _environment(text: str) -> dict[str, str]:
    return dict(word.split("=") for word in text.split())


def test_what_srun_tells_becomes_what_torchrun_would_tell():
    task = _environment(
        "SLURM_JOB_ID=4711 SLURM_STEP_ID=2 SLURM_STEP_NUM_TASKS=6 SLURM_PROCID=5 SLURM_LOCALID=1"
        " SLURM_STEP_NODELIST=gpu[03-04,17] SLURM_STEP_TASKS_PER_NODE=2(x3)"
    )
    assert process_environment(task) == _environment(
        "RANK=5 WORLD_SIZE=6 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=gpu03 MASTER_PORT=24713"
    )
    for other, address in (
        ({"MASTER_PORT": "9", "MASTER_ADDR": "other"}, "other"),
        ({"SLURM_STEP_NODELIST": "solo,gpu9"}, "solo"),
    ):
        assert process_environment(task | other)["MASTER_ADDR"] == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SLURM_JOB_ID=1 SLURM_NTASKS=4 SLURM_PROCID=0",
        "SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0",
        "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0",
    ],
)
def test_a_batch_script_and_a_single_task_are_no_team(text):
    assert process_environment(_environment(text)) is None


def test_torchrun_under_srun_decides():
    found = process_environment(
        _environment(
            "RANK=3 WORLD_SIZE=8 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4 SLURM_STEP_NUM_TASKS=2"
            " SLURM_PROCID=0"
        )
    )
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("3", "8", "4")


def test_half_an_environment_is_an_error_that_names_what_is_missing(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"lacks RANK, LOCAL_RANK.*unset WORLD_SIZE"):
        world_size()


def test_fewer_pairs_in_a_step_than_processes_is_an_error_that_names_both_ways_out():
    check_batch(4, 4)
    with pytest.raises(InputError, match=r"batch=4 or more, or processes=3"):
        check_batch(3, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_processes_than_gpus_are_refused():
    from napari_shmoareg.training.distributed import check_gpus

    with pytest.raises(InputError, match="one GPU each"):
        check_gpus(torch.cuda.device_count() + 1)
