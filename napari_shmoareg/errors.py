"""Errors that a user can cause and can mend.

Each message says what was expected, what came, and what to do.  None of them is a
``RuntimeError``: some viewers' worker threads swallow those.
"""

from __future__ import annotations


class InputError(ValueError):
    """An input (image, labels, option, file) is not what it has to be."""


class NoOverlapError(InputError):
    """Moving and fixed images do not overlap in the world."""


class TooLargeError(InputError):
    """The work would need more memory than there is."""
