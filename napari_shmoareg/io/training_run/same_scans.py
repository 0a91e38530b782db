"""Whether a run that goes on finds the scans it began with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.plan import Plan, read_plan
from napari_shmoareg.io.training_run.split_file import PARTS, Division, Print

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets import Checkup


def check_split_is_there(folder: RunFolder) -> None:
    """Refuse a run that has learned and lost its split: another draw could have its test scans learn.

    Raises
    ------
    InputError
        If there is a saved state and no split.json.
    """
    if folder.state.is_file() and not folder.split.is_file():
        raise InputError(
            f"{folder.split} is missing: it tells which scans learn and which judge, and another draw could let the "
            "scans for testing learn. Put back a copy of it, or begin another run in another folder."
        )


def files_of(checkup: Checkup) -> dict[str, Print]:
    """What the files of the usable scans are."""
    prints, sizes = checkup.prints, {}
    for name in checkup.usable:
        image = checkup.dataset.scan(name).image
        sizes[name] = image.stat().st_size if image.is_file() else 0  # a DICOM series is a folder
    return {name: (size, *prints[name]) for name, size in sizes.items()}


def reference_of(checkup: Checkup, affine: str) -> str | None:
    """The scan that decides the alignment of all others; None where none does."""
    return None if affine == "none" else checkup.reference


def check_same(before: Division, checkup: Checkup, plan: Plan, folder: RunFolder) -> list[str]:
    """What became of the scans since the run began, in words.

    Parameters
    ----------
    before : Division
        Of split.json.
    checkup : Checkup
        That has run.
    plan : Plan
        With the place where the data set is now.
    folder : RunFolder
        Its run.json has the place where it was.

    Raises
    ------
    InputError
        If the scan that all others are aligned with is gone, or a data set in another place is not the same.
    """
    changed = list(_changed(before, checkup))
    was = read_plan(folder.told).dataset.path
    if was != plan.dataset.path and (changed or not before.files):
        why = " ".join(changed) or "The run was begun by an earlier version, so its scans cannot be compared."
        raise InputError(
            f"The run began with the data set {was}; {plan.dataset.path} is not the same, moved: {why} Give the "
            "place where the very same scans are now, or begin another run in another folder."
        )
    if before.reference is not None and before.reference not in checkup.usable:
        told = {report.name: report.skipped for report in checkup.reports}
        why = told.get(before.reference) or "it is not in the data set"
        raise InputError(
            f"The scan '{before.reference}', with which the run aligned all others, cannot be used now ({why}). With "
            "another in its place all pairs would lie differently: put it back, or begin another run in another "
            "folder. If the whole data set was moved, give its new place: shmoareg fine-tune DATASET --out "
            f"{folder.path} --resume"
        )
    if before.reference is not None and checkup.reference != before.reference:
        changed.append(
            f"The scans are aligned with '{checkup.reference}' now, and were with '{before.reference}' when the run "
            "began: all pairs lie a little differently."
        )
    return changed


def _changed(before: Division, checkup: Checkup) -> Iterator[str]:
    now, told = files_of(checkup), {report.name: report.skipped for report in checkup.reports}
    used = [name for part in PARTS for name in before.used(part) if name in before.files]
    for name in used:
        if name not in told:
            yield f"The scan '{name}' was used when the run began, and is not in the data set now."
        elif name not in now:
            yield f"The scan '{name}' was used when the run began, and cannot be now: {told[name]}"
        elif now[name][1] != before.files[name][1]:
            yield f"The image of '{name}' is not the one that the run began with."
        elif now[name][2] != before.files[name][2]:
            yield f"The labels of '{name}' are not those that the run began with."
