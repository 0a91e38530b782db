"""Freed memory is kept for the next array, unless the user has settled that."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource
from napari_shmoareg.cli.allocator import keep_freed_memory
keep_freed_memory()
import numpy as np
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(8_000_000)  # 64 MB, above any threshold of glibc's own
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_an_array_takes_the_place_of_one_that_is_gone():
    kept, settled = (
        int(subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True).stdout)
        for env in (None, {"MALLOC_ARENA_MAX": "2"})
    )
    assert kept < settled / 4
