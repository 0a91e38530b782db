"""How the C library hands out memory in a command's process."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
PAD = 64 * 2**20  # bytes asked of the system at once


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next array, where the user has not set it otherwise.

    By default each array of some MB is mapped and unmapped again, and the system fills its pages with zeros each
    time: a registration on a CPU spends a fifth of its time there.  Elsewhere than under glibc nothing is done.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, PAD)):
            mallopt(option, value)
