"""Errors in words for people who see a form and not a command line."""

from __future__ import annotations

import logging
import re

from napari_shmoareg.errors import InputError
from napari_shmoareg.settings import LABELS, SMALLEST

OPTION = re.compile(r"--([a-z-]+)( [\w.|]+)?(?: \(in Python: [^)]*\))?")
NAN = re.compile(
    r"Give --nan 0 \(in Python: nan=0\.0\) to read them as [^,]*, or mend the (image|map)\."
)


def explain(error: Exception, size: int = 0) -> str:
    """An error in plain words, for people who see a form and not a command line; `size` is what it
    was run at.
    """
    if isinstance(error, InputError):
        return in_words_of_the_form(str(error))
    notes = getattr(error, "__notes__", ())
    where = f", {notes[0]}" if notes else ""
    if where and (isinstance(error, MemoryError) or "allocate memory" in str(error)):
        return (
            f"The memory ran out{where}. Close other programs and layers, or open a smaller file."
        )
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in str(error)
    ):
        such = (
            f" ({max(SMALLEST, size * 3 // 4)} voxels instead of {size}, say)"
            if size > SMALLEST
            else ""
        )
        return (
            f"The memory ran out. Choose a smaller Size{such}, or close other programs and layers."
        )
    logging.getLogger(__name__).error("work beside the viewer failed", exc_info=error)
    if isinstance(error, OSError):
        return str(error)
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return (
        f"Something went wrong inside shmoareg{where} ({said}). This is a bug, not your mistake: "
        "please report it with what the terminal says."
    )


def in_words_of_the_form(text: str) -> str:
    """A text with the names of the form's rows where it speaks of options of the command line."""
    told = NAN.sub(
        r"Replace them first: `layer.data = numpy.nan_to_num(layer.data)` in the console.", text
    )
    return OPTION.sub(lambda match: f"'{LABELS.get(match[1], match[1])}'{match[2] or ''}", told)
