"""Errors in words for people who see a form and not a command line."""

from __future__ import annotations

import logging

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import LABELS, SMALLEST

REMEDIES = {
    "nan": "Replace them first: `layer.data = numpy.nan_to_num(layer.data)` in the console.",
    "series": "Open one slice of the one you want, or put it into a folder of its own.",
    "volume": (
        "If every slice is a file of its own, open one slice of the volume you want. A multi-frame"
        " file has to be split first, such as by dcm2niix; or register it by the command, which"
        " takes FOLDER#SERIES_UID/NUMBER."
    ),
}
"""What helps in a viewer, where no form asks for what the remedy of an error names."""


def explain(error: Exception, size: int = 0) -> str:
    """An error in plain words, for people who see a form and not a command line; `size` is what it
    was run at.
    """
    if isinstance(error, InputError):
        return in_words_of_the_form(error)
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


def in_words_of_the_form(error: InputError) -> str:
    """The text of an error with settings as a form's rows call them, and what helps in a viewer."""
    own = [REMEDIES[name] for name in sorted(error.remedy_settings) if name in REMEDIES]
    if own:
        error = InputError(error.message, setting=error.setting, remedy=own[0])
    return error.text_with(_as_row)


def _as_row(name: str, value: str) -> str:
    title = LABELS.get(name, name.replace("_", " ").capitalize())
    return f"'{title}'" if value in ("", "True") else f"'{title}' {value}"
