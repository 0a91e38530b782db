"""The plan of long work: what it was begun with, so that the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import read_object


def begin_work(place: Path, plan: Mapping[str, Any], what: str) -> None:
    """Make the folder of some work and write its plan there, or see that it was begun with the same
    plan.

    Parameters
    ----------
    place : Path
        The plan's file; its folder is made.
    plan : mapping
        All that the results depend on, as plain JSON.
    what : str
        The work, for messages: "benchmark".

    Raises
    ------
    InputError
        If it was begun with another plan, the folder holds other things, or cannot be made.
    """
    from napari_shmoareg.io.files import check_new_folder, writing

    out = place.parent
    if place.is_file():
        try:
            then = read_object(place, f"the plan of a {what}")
        except InputError as error:
            raise InputError(f"{error} Give another --out.") from error
        differ = [
            "another machine" if key == "machine" else f"other {key}"
            for key in plan
            if plan[key] != then.get(key)
        ]
        if differ:
            raise InputError(
                f"The {what} in '{out}' was begun with {' and '.join(differ)} (see {place}); go on"
                " with what it was begun with, or give another --out."
            )
        return
    check_new_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with writing(place) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
