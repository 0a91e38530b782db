"""Trees of scans: phantoms of several people on oblique, anisotropic grids, and files that only
have names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.io import write_image


@pytest.fixture
def files(tmp_path) -> Callable[..., Path]:
    """Make empty files of these names; gives their folder."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.fixture
def people(phantoms, tmp_path) -> Callable[..., Path]:
    """Write so many phantom scans with labels, images/pN.nii.gz and labels/pN.nii.gz; gives their
    folder.

    Each is of other intensities and stands elsewhere, up to some 12 mm; they alternate between two
    grids."""

    def make(count: int) -> Path:
        folder = tmp_path / "people"
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(7)
        for number in range(count):
            role = ("fixed", "moving")[number % 2]
            image, labels = getattr(phantoms, role), getattr(phantoms, f"{role}_labels")
            affine = image.grid.affine.copy()
            affine[:3, 3] += rng.uniform(-12, 12, 3)
            grid = Grid(image.grid.shape, affine)
            values = (
                image.values * rng.uniform(0.8, 1.2) + rng.normal(0, 0.5, image.values.shape)
            ).astype(np.float32)
            write_image(Volume(values, grid), folder / "images" / f"p{number}.nii.gz")
            write_image(
                Volume(labels.values, grid, is_labels=True), folder / "labels" / f"p{number}.nii.gz"
            )
        return folder

    return make


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Where the prepared scans of a run would be."""
    return tmp_path / "run" / "prepared"
