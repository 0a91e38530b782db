"""A small data set of four scans of three people, with labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import write_image

PATTERNS = ("--images", "images/*.nii.gz", "--labels", "labels/*.nii.gz")
QUICK = ("--affine", "none", "--device", "cpu")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_scan(folder: Path, name: str, image: Volume, labels: Volume | None) -> None:
    for kind, volume in (("images", image), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if volume is not None:
            write_image(volume, folder / kind / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def cohort(phantoms, tmp_path_factory) -> Path:
    """Scans ada_1, ada_2, bea_1 and cleo_1 in images/ and labels/; not to be changed."""
    folder = tmp_path_factory.mktemp("cohort")
    sides = {
        "fixed": (phantoms.fixed, phantoms.fixed_labels),
        "moving": (phantoms.moving, phantoms.moving_labels),
    }
    for name, side, shift in (
        ("ada_1", "fixed", 0),
        ("ada_2", "fixed", 2),
        ("bea_1", "moving", 0),
        ("cleo_1", "moving", -2),
    ):
        image, labels = (v.with_values(np.roll(v.values, shift, axis=1)) for v in sides[side])
        write_scan(folder, name, image, labels)
    return folder
