"""Open layers as a data set on the disk, each on its own grid."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.untrusted import read_object
from napari_shmoareg.widgets.placement import volume_of

if TYPE_CHECKING:
    from napari.layers import Layer

IMAGES, LABELS = "images", "labels"  # folders, beside each other
SUBJECT = r"^(.+?)__"  # in a file's name
FORMAT = "shmoareg-layers-1"
LIST = "layers.json"  # what was written, so that only that is ever replaced


class Picked(NamedTuple):
    """An image layer, its labels layer or None, and whose it is."""

    image: Layer
    labels: Layer | None
    subject: str


def write_layers(picked: Sequence[Picked], folder: Path) -> Path:
    """Write layers as a folder of images and a list of them.

    Parameters
    ----------
    picked : sequence of Picked
    folder : Path
        New, empty, or written by this before: then it is replaced.  It appears whole or not at all.

    Returns
    -------
    Path
        The folder: ``images/`` and ``labels/`` with equal names in both.

    Raises
    ------
    InputError
        If there are fewer than two images, a layer is no single 3D volume, or the place cannot be written to.
    """
    from napari_shmoareg.geometry.resample import resample
    from napari_shmoareg.io.atomic import new_folder
    from napari_shmoareg.io.images import write_image

    if len(picked) < 2:
        raise InputError(f"At least two image layers are needed to make a pair; {len(picked)} is chosen.")
    if is_ours(folder):
        shutil.rmtree(folder)
    with new_folder(folder) as made:
        for kind in (IMAGES, LABELS) if any(each.labels is not None for each in picked) else (IMAGES,):
            (made / kind).mkdir()
        for name, each in zip(file_names(picked), picked, strict=True):
            image = volume_of(each.image)
            write_image(image, made / IMAGES / f"{name}.nii.gz")
            if each.labels is not None:
                labels = volume_of(each.labels)
                if not labels.grid.same_space(image.grid):
                    labels = resample(labels, image.grid)
                write_image(labels, made / LABELS / f"{name}.nii.gz")
        files = sorted(str(file.relative_to(made).as_posix()) for file in made.rglob("*.nii.gz"))
        (made / LIST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n", encoding="utf-8")
    return folder


def is_ours(folder: Path) -> bool:
    """Whether a folder holds what `write_layers` wrote, and nothing else."""
    if folder.is_symlink() or not (folder / LIST).is_file():
        return False
    try:
        about = read_object(folder / LIST, "a list of written layers")
        files = {folder / IMAGES, folder / LABELS, folder / LIST, *(folder / name for name in about["files"])}
        return about["format"] == FORMAT and set(folder.rglob("*")) <= files
    except (OSError, ValueError, KeyError, TypeError):
        return False


def file_names(picked: Sequence[Picked]) -> list[str]:
    """``SUBJECT__LAYER`` of each, without signs that a file name may not have, and no two alike."""
    names: list[str] = []
    for each in picked:
        name = f"{_plain(each.subject)}__{_plain(each.image.name)}"
        count = sum(before.rsplit("~", 1)[0] == name for before in names)
        names.append(f"{name}~{count + 1}" if count else name)
    return names


def _plain(text: str) -> str:
    return re.sub(r"_{2,}", "_", re.sub(r"[^\w.-]+", "-", text)).strip("-._") or "layer"
