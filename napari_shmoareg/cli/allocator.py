"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
PAD = 64 * 2**20  # bytes requested from the system at once


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for later arrays, unless the user has configured its allocator.

    By default each array of some MB is mapped and unmapped, and the system zeroes its pages each
    time: a registration on a CPU spends a fifth of its time on that. Does nothing without glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, PAD)):
            mallopt(option, value)


def return_freed_memory() -> None:
    """Return freed memory to the system, between phases, so that their peaks do not add up."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """Find a function of glibc's allocator; None without glibc, or if the user configured the
    allocator.
    """
    if not sys.platform.startswith("linux") or any(
        known.startswith("MALLOC_") for known in os.environ
    ):
        return None
    return getattr(ctypes.CDLL(None), name, None)
