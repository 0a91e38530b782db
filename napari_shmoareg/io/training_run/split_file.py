"""split.json: who learns, who judges, who stays unseen, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.datasets.splits import PARTS, Split
from napari_shmoareg.io.training_run.named_pairs import Names
from napari_shmoareg.io.untrusted import read_object

Print = tuple[int, str, str | None]  # bytes of the image, sha256 of the image and of its labels

__all__ = ["PARTS", "Division", "Print", "read_division", "write_division"]


@dataclass(frozen=True)
class Division:
    """A split, and what of it cannot be used.

    Attributes
    ----------
    split : Split
    left_out : mapping of str to str
        Scans that the check-up left out, and why.
    left_out_pairs : tuple of (moving, fixed)
        Pairs of usable scans that do not come together.
    files : mapping of str to Print
        What the files of the used scans were; empty where an earlier version wrote it.
    reference : str or None
        The scan that all others were aligned with.
    """

    split: Split
    left_out: Mapping[str, str]
    left_out_pairs: tuple[Names, ...] = ()
    files: Mapping[str, Print] = field(default_factory=dict)
    reference: str | None = None

    def used(self, part: str) -> list[str]:
        """The usable scans of a part."""
        return [name for name in getattr(self.split, part) if name not in self.left_out]


def write_division(path: Path, division: Division) -> None:
    """Write split.json.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    more: dict[str, object] = {
        "left_out": dict(division.left_out),
        "left_out_pairs": [list(p) for p in division.left_out_pairs],
    }
    more |= {"reference": division.reference, "files": {name: list(seen) for name, seen in division.files.items()}}
    with writing(path) as temporary:
        temporary.write_text(json.dumps(division.split.to_dict() | more, indent=2) + "\n", encoding="utf-8")


def read_division(path: Path) -> Division:
    """Read split.json.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        found = read_object(path, "which scans learn and which judge")
        left_out = {str(name): str(why) for name, why in found.get("left_out", {}).items()}
        pairs = tuple((str(moving), str(fixed)) for moving, fixed in found.get("left_out_pairs", ()))
        files = {str(name): (int(size), str(i), m) for name, (size, i, m) in found.get("files", {}).items()}
        return Division(Split.from_dict(found), left_out, pairs, files, found.get("reference"))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged ({error}): it tells which scans learn and which judge. Put back a copy of it, or begin "
            "another run in another folder, from the weights in this one."
        ) from error
