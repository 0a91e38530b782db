"""Error messages that name the settings as the forms do, not as command options."""

from __future__ import annotations

import logging

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import LABELS, SMALLEST

REMEDIES = {
    "nan": "Replace them first: `layer.data = numpy.nan_to_num(layer.data)` in the console.",
    "series": "Open one slice of the series you want, or move it to a separate folder.",
    "volume": (
        "If each slice is a separate file, open one slice of the volume you want. Split a"
        " multi-frame file first, for example with dcm2niix, or register it with the command,"
        " which accepts FOLDER#SERIES_UID/NUMBER."
    ),
}
"""Remedies in the viewer, for settings without a form field."""


def explain(error: Exception, size: int = 0) -> str:
    """Return a message for any error; `size` is the network size of the failed run."""
    if isinstance(error, InputError):
        return form_message(error)
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
        example = (
            f" (for example {max(SMALLEST, size * 3 // 4)} voxels instead of {size})"
            if size > SMALLEST
            else ""
        )
        return (
            f"The memory ran out. Choose a smaller Size{example}, or close other programs and"
            " layers."
        )
    logging.getLogger(__name__).error("background task failed", exc_info=error)
    if isinstance(error, OSError):
        return str(error)
    detail = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return (
        f"Internal error in shmoareg{where} ({detail}). This is a bug: please report it with the"
        " output in the terminal."
    )


def form_message(error: InputError) -> str:
    """Return an error message with the setting names of the form and a remedy in the viewer."""
    own = [REMEDIES[name] for name in sorted(error.remedy_settings) if name in REMEDIES]
    if own:
        error = InputError(error.message, setting=error.setting, remedy=own[0])
    return error.text_with(_as_row)


def _as_row(name: str, value: str) -> str:
    title = LABELS.get(name, name.replace("_", " ").capitalize())
    return f"'{title}'" if value in ("", "True") else f"'{title}' {value}"
