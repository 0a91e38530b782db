"""How the C library hands out memory in a command's process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
PAD = 64 * 2**20  # bytes asked of the system at once


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next array, where the user has not set it otherwise.

    By default each array of some MB is mapped and unmapped again, and the system fills its pages
    with zeros each time: a registration on a CPU spends a fifth of its time there.  Elsewhere than
    under glibc nothing is done."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, PAD)):
            mallopt(option, value)


def return_freed_memory() -> None:
    """Give what is freed back to the system: between phases, so that the peak is that of one of
    them.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc's allocator; None elsewhere (musl has none), and where the user has set
    the allocator.
    """
    if not sys.platform.startswith("linux") or any(
        known.startswith("MALLOC_") for known in os.environ
    ):
        return None
    return getattr(ctypes.CDLL(None), name, None)
