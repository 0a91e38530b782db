"""Grids of every kind: oblique, sheared, mirrored, anisotropic."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from napari_shmoareg.geometry import Grid

settings.register_profile("house", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("house")


def _any_grid(seed: int) -> Grid:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(5, 10, 3))
    # a rotation, in half of the cases with a mirror
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    shear = np.eye(3)
    shear[0, 1] = random.choice([0.0, 0.15])
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear * random.uniform(0.6, 4, 3)
    affine[:3, 3] = random.uniform(-80, 80, 3)
    return Grid(shape, affine)


@pytest.fixture(scope="session")
def grids() -> st.SearchStrategy[Grid]:
    """Strategy of grids, 5 to 9 voxels along each axis."""
    return st.integers(0, 2**32 - 1).map(_any_grid)
