"""Freed memory is kept for the next array, unless the user has settled that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_shmoareg.cli.console import progress

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
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True
            ).stdout
        )
        for env in (None, {"MALLOC_ARENA_MAX": "2"})
    )
    assert kept < settled / 4


RETURNED = """
import psutil
from napari_shmoareg.cli.allocator import keep_freed_memory, return_freed_memory
keep_freed_memory()
import numpy as np
array, last = np.ones(40_000_000), np.ones(1000)  # 320 MB, and something after it
del array
kept = psutil.Process().memory_info().rss
return_freed_memory()
print(kept - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_memory_is_given_back_between_phases(monkeypatch):
    found = subprocess.run(
        [sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) > 300e6
    calls = []
    monkeypatch.setattr("napari_shmoareg.cli.console.return_freed_memory", lambda: calls.append(1))
    with progress(True) as report:
        for phase, fraction in (("align", 0.0), ("align", 0.5), ("network", 0.0), ("network", 1.0)):
            report(phase, fraction)
    assert len(calls) == 2
