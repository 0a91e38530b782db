"""What the libraries below print past Python, kept from the user's terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Without what ITK's libraries print on the stderr of the process.

    What is wrong is raised by them too, and said by us.  The whole process is silent meanwhile:
    only for a single call into a library.
    """
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
