"""Memory is asked before the work begins."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import TooLargeError
from napari_shmoareg.geometry import Grid
from napari_shmoareg.model import SHMoARegConfig
from napari_shmoareg.registration import resources
from napari_shmoareg.registration.resources import (
    check_images_memory,
    check_network_memory,
    estimate_memory,
    too_large_for,
)

CONFIG = SHMoARegConfig.preset("tiny")
SMALL, LARGE = Grid((20, 30, 25), np.eye(4)), Grid((2000, 1900, 1800), np.eye(4))


@pytest.fixture
def four_gib(monkeypatch):
    monkeypatch.setattr(
        resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 2**30)
    )


def test_eight_times_the_voxels_need_about_eight_times_the_memory():
    at_all = resources.FIXED_MEMORY
    one, eight = (estimate_memory(CONFIG, (n, n, n)) for n in (64, 128))
    assert 7 < (eight - at_all) / (one - at_all) < 9


def test_the_paper_s_network_needs_more_than_a_small_one():
    assert estimate_memory(SHMoARegConfig(), (64, 64, 64)) > estimate_memory(CONFIG, (64, 64, 64))


def test_results_too_large_for_memory_are_refused_with_a_remedy(four_gib):
    check_images_memory(SMALL, SMALL)
    with pytest.raises(
        TooLargeError, match=r"\(2000, 1900, 1800\).*3.6 GiB are free.*times as long"
    ):
        check_images_memory(SMALL, LARGE)


def test_a_network_grid_too_large_is_refused_and_the_size_that_is_named_fits(four_gib):
    cpu = torch.device("cpu")
    with pytest.raises(TooLargeError, match="size=") as caught:
        check_network_memory(CONFIG, LARGE, moving=SMALL, fixed=SMALL, device=cpu)
    size = int(str(caught.value).split("size=")[1].split()[0])
    assert 50 < size < 2000
    fits = Grid(tuple(-(-n * size // 2000) for n in LARGE.shape), np.eye(4))
    check_network_memory(CONFIG, fits, moving=SMALL, fixed=SMALL, device=cpu)


def test_memory_that_runs_out_all_the_same_is_said_in_plain_words():
    cpu = torch.device("cpu")
    ran_out = RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."
    )
    assert "Give a size below 96" in str(too_large_for(cpu, (96, 80, 90), ran_out))
    assert too_large_for(cpu, (96, 80, 90), RuntimeError("size mismatch")) is None
