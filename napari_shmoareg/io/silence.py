"""Calls into C libraries: what they print past Python, and the decimal point that they read and write."""

from __future__ import annotations

import ctypes
import locale
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_LOCALE_LOCK = threading.RLock()
_LC_ALL_MASK = {"linux": 0x1FBF, "darwin": 0x3F}


@contextmanager
def c_numbers() -> Iterator[None]:
    """With a point in numbers, for the C code that this thread calls.

    Qt sets the locale of the desktop for the whole process, and in half of Europe C then reads
    "0.5" as 0.  On Linux and macOS the locale of this thread alone is changed; elsewhere that
    of the process, for one thread at a time.
    """
    found = _thread_locale()
    if found is None:
        with _LOCALE_LOCK:
            before = locale.setlocale(locale.LC_NUMERIC)
            locale.setlocale(locale.LC_NUMERIC, "C")
            try:
                yield
            finally:
                locale.setlocale(locale.LC_NUMERIC, before)
        return
    uselocale, plain = found
    old = uselocale(plain)
    try:
        yield
    finally:
        uselocale(old)


@cache
def _thread_locale() -> tuple[Any, int] | None:
    """`uselocale` of the C library and its "C" locale, None where there is none."""
    mask = _LC_ALL_MASK.get(sys.platform)
    try:
        library = ctypes.CDLL(None)
        newlocale, uselocale = library.newlocale, library.uselocale
    except (OSError, AttributeError, TypeError):
        return None
    newlocale.restype = uselocale.restype = ctypes.c_void_p
    newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    uselocale.argtypes = [ctypes.c_void_p]
    plain = newlocale(mask, b"C", None) if mask is not None else None
    return None if plain is None else (uselocale, plain)


@contextmanager
def silenced() -> Iterator[None]:
    """Without what ITK's libraries print on the stderr of the process, and with `c_numbers`.

    What is wrong is raised by them too, and said by us.  The whole process is silent meanwhile:
    only for a single call into a library.
    """
    with c_numbers(), _silent():
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """The stderr of the process closed."""
    try:
        kept = os.dup(2)
    except OSError:  # a program without a terminal may have closed it, and there is nothing to silence
        kept = None
    if kept is None:
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
