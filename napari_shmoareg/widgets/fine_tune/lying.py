"""What lies in the folder that the run's field names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.widgets.fine_tune.run_files import told

# May be given anew when a run goes on: as `io.training_run.plan` has it, and the number of steps.
FREE = ("steps", "minutes", "validate_every", "validation_pairs", "save_every", "tensorboard")


@dataclass(frozen=True)
class Lying:
    """A folder as it is now.

    Attributes
    ----------
    holds : bool
        Whether there is a run.
    blank : bool
        Whether that run saved nothing, so that another can take its place.
    settings : dict
        Of the run, by the names of `FineTuning` and `RunSettings`.
    """

    holds: bool = False
    blank: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def look(folder: Path | None) -> Lying:
    """What lies in a folder; None is no folder."""
    from napari_shmoareg.io.training_run.anew import is_blank

    if folder is None or not (folder / "run.json").is_file():
        return Lying()
    try:
        about = told(folder)
        return Lying(True, is_blank(folder), {**about["settings"], **about["run_settings"]})
    except (InputError, OSError):  # of another program, or just being written: it is told when it is opened
        return Lying(True)
