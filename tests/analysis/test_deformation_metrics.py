"""Folding and SDlogJ, each by its definition, against plain numpy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from napari_shmoareg.geometry import DisplacementField
from napari_shmoareg.metrics import folding, folding_interior, folding_strict, sdlogj, sdlogj_l2r


@pytest.fixture
def displacement() -> np.ndarray:
    """A smooth random displacement in voxels (3, 37, 21, 18) that folds in some places."""
    rng = np.random.default_rng(3)
    made = np.stack(
        [
            ndimage.gaussian_filter(rng.normal(size=(37, 21, 18)), 1.3, mode="nearest")
            for _ in range(3)
        ]
    )
    return (made * 6.5).astype(np.float32)


def determinant(displacement: np.ndarray) -> np.ndarray:
    """det(I + du/dx) by numpy alone."""
    rows = np.stack([np.stack(np.gradient(u.astype(np.float64)), -1) for u in displacement], -2)
    return np.linalg.det(rows + np.eye(3))


def test_the_jacobian_of_a_field_is_that_of_numpy_on_a_grid_turned_anyhow(displacement, pair):
    """The determinant is the same in voxels and in mm, whatever the grid's directions."""
    whole = np.zeros((3, *pair.fixed.grid.shape), dtype=np.float32)
    whole[:, :, :21, :18] = displacement
    vectors = np.moveaxis(whole, 0, -1) @ pair.fixed.grid.affine[:3, :3].T
    found = DisplacementField(vectors, pair.fixed.grid).jacobian()
    np.testing.assert_allclose(found, determinant(whole), atol=2e-4)


def test_folding_and_sdlogj_are_those_of_numpy(displacement):
    jacobian = determinant(displacement)
    inner = jacobian[2:-2, 2:-2, 2:-2]
    assert (jacobian <= 0).any() and (inner <= 0).any()
    assert folding(jacobian) == pytest.approx(100 * (jacobian <= 0).mean())
    assert folding_interior(jacobian) == pytest.approx(100 * (inner <= 0).mean())
    assert sdlogj(jacobian) == pytest.approx(np.std(np.log(np.clip(jacobian, 1e-9, 1e9))))
    assert sdlogj_l2r(jacobian) == pytest.approx(np.std(np.log(np.clip(inner + 3, 1e-9, 1e9))))


def test_the_two_sdlogj_of_one_deformation_differ_by_a_factor(displacement):
    jacobian = determinant(0.2 * displacement)
    assert sdlogj(jacobian) > 3 * sdlogj_l2r(jacobian) > 0


def test_strict_folding_is_any_of_eight_determinants(displacement):
    """Each voxel and each of the eight by itself, with numpy's determinant."""
    bad = np.zeros(displacement.shape[1:], dtype=bool)
    for signs in product((0, 1), repeat=3):
        gradient = np.empty((*bad.shape, 3, 3))
        for axis, side in enumerate(signs):
            step = np.diff(displacement.astype(np.float64), axis=axis + 1)
            ends = [(0, 0)] * 4
            ends[axis + 1] = (0, 1) if side else (1, 0)
            gradient[..., axis] = np.moveaxis(np.pad(step, ends, mode="edge"), 0, -1)
        bad |= np.linalg.det(gradient + np.eye(3)) <= 0
    assert folding_strict(displacement) == pytest.approx(100 * bad.mean(), abs=100 / bad.size)
    assert folding_strict(displacement) > folding(determinant(displacement)) > 0


def test_strict_folding_sees_a_fold_of_one_voxel_that_central_differences_miss():
    displacement = np.zeros((3, 9, 8, 7), dtype=np.float32)
    displacement[0, 4, 4, 3] = 1.5  # oversteps its neighbour; the central difference at itself is 0
    assert folding_strict(displacement) > 0 == folding(determinant(displacement))


def test_nothing_moved_folds_nowhere_and_is_even():
    still = np.zeros((3, 9, 8, 7), dtype=np.float32)
    assert folding_strict(still) == 0
    ones = np.ones((9, 8, 7))
    assert folding(ones) == folding_interior(ones) == sdlogj(ones) == 0
    assert sdlogj_l2r(ones) == pytest.approx(0)


def test_an_image_without_an_interior_has_no_number_of_it():
    thin = np.ones((9, 4, 7))
    assert math.isnan(folding_interior(thin)) and math.isnan(sdlogj_l2r(thin))
    assert folding_strict(np.zeros((3, 9, 1, 7), dtype=np.float32)) == 0


def test_folding_at_the_border_is_not_in_the_interior():
    jacobian = np.ones((10, 9, 8))
    jacobian[:2] = -1
    assert folding(jacobian) == pytest.approx(20) and folding_interior(jacobian) == 0
