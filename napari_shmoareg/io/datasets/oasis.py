"""OASIS brains as neurite files them: a folder OASIS_OAS1_XXXX_MR1 for each scan."""

from __future__ import annotations

import re
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import ending
from napari_shmoareg.io.datasets.asked import Asked
from napari_shmoareg.io.datasets.name_matching import matching
from napari_shmoareg.io.datasets.scans import Dataset, Scan, Skipped
from napari_shmoareg.io.datasets.subjects import subject_of

_FOLDER = re.compile(r"(?:OASIS_)?(OAS\d_\d{4}_MR\d+)")
_IMAGES, _LABELS = "norm", "seg35"


def is_oasis(root: Path) -> bool:
    """Whether a folder holds folders of OASIS scans."""
    return any(_FOLDER.fullmatch(place.name) and place.is_dir() for place in root.iterdir())


def read_oasis(root: Path, asked: Asked) -> Dataset:
    """The scans of a folder of OASIS brains.

    Sec. IV-A: skull-stripped images in the space of the scanner (``norm``) and 35 labels (``seg35``).

    Parameters
    ----------
    root : Path
    asked : Asked
        `images` and `labels` choose other files of each scan's folder: "aligned_norm" (and then
        "aligned_seg35"), with ending or without; "*/" may stand before.

    Raises
    ------
    InputError
        If fewer than two scans have such an image.
    """
    image_file = (asked.images or _IMAGES).removeprefix("*/")
    aligned = "aligned_" if image_file.startswith("aligned_") else ""
    label_file = (asked.labels or f"{aligned}{_LABELS}").removeprefix("*/")
    scans, skipped = [], []
    for place in sorted(root.iterdir()):
        known = _FOLDER.fullmatch(place.name)
        if known is None or not place.is_dir():
            continue
        image, labels = _file(place, image_file), _file(place, label_file)
        if image is None:
            skipped.append(Skipped(place, f"it holds no {image_file}"))
            continue
        if labels is None:
            skipped.append(Skipped(image, f"there is no {label_file} beside it: read without labels"))
        scans.append(Scan(known[1], subject_of(known[1], place.name, asked.rule), image, labels))
    places = [item.path for item in skipped if item.path.is_dir()]
    if len(scans) < 2 and asked.images is None and any(_file(place, f"aligned_{_IMAGES}") for place in places):
        raise InputError(
            f"{len(scans)} of the folders OASIS_OAS1_XXXX_MR1 in {root} hold a file '{_IMAGES}'. They hold "
            f"'aligned_{_IMAGES}', which is affinely aligned already: give --images aligned_{_IMAGES} to take it."
        )
    if len(scans) < 2:
        raise InputError(
            f"{len(scans)} of the folders OASIS_OAS1_XXXX_MR1 in {root} hold a file '{image_file}'; at least two scans "
            "were expected. As neurite files them, there are norm, orig, aligned_norm and aligned_orig."
        )
    order = tuple(sorted(scans, key=lambda scan: scan.name))
    return Dataset(
        "oasis", root, order, window=asked.window, skipped=tuple(skipped), nan=asked.nan, channel=asked.channel
    )


def _file(place: Path, name: str) -> Path | None:
    """The file of a folder with this name, or this name and any ending."""
    found = matching(place, name if ending(name) else f"{name}.nii*") or matching(place, f"{name}.mgz")
    return found[0] if found else None
