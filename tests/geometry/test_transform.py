"""Transforms in the world: millimetres along RAS, fixed to moving."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import (
    DisplacementField,
    Grid,
    Transform,
    Volume,
    apply_affine,
    warp_volume,
)
from napari_shmoareg.geometry.field import warp
from napari_shmoareg.geometry.transform import fit_landmarks


def oblique(shape=(21, 17, 19), spacing=(3.0, 2.0, 2.5)):
    """A turned, left-handed grid."""
    c, s = np.cos(0.4), np.sin(0.4)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([-1, 1, 1]) * spacing
    affine[:3, 3] = (10, -20, 30)
    return Grid(shape, affine)


def voxels(grid):
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))


def wave(grid, size=2.5, length=30.0):
    """A smooth displacement in mm, the same function of the world on every grid."""
    p = voxels(grid) / length * 2
    return DisplacementField(
        size * np.stack([np.sin(p[..., 1]), np.cos(p[..., 2]), np.sin(p[..., 0])], -1), grid
    )


def some_affine():
    matrix = np.eye(4)
    matrix[:3, :3] += np.array([[0.05, 0.1, 0], [-0.1, -0.04, 0.02], [0.03, 0, 0.06]])
    matrix[:3, 3] = (12, -5, 8)
    return matrix


@given(st.data())
def test_a_shift_of_three_voxels_is_nine_millimetres(grids, data):
    grid = data.draw(grids)
    grid = Grid(grid.shape, grid.affine @ np.diag([*(3 / np.array(grid.spacing)), 1]))
    for axis in range(3):
        displacement = torch.zeros(1, 3, *grid.shape)
        displacement[:, axis] = 3
        field = DisplacementField.from_voxels(displacement, grid)
        np.testing.assert_allclose(np.linalg.norm(field.vectors, axis=-1), 9, rtol=1e-5)
        np.testing.assert_allclose(field.vectors[0, 0, 0], 3 * grid.affine[:3, axis], atol=1e-4)


@given(st.data())
def test_voxels_and_millimetres_undo_each_other(grids, data):
    grid = data.draw(grids)
    displacement = torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(0))
    back = DisplacementField.from_voxels(displacement, grid).to_voxels()
    torch.testing.assert_close(back, displacement, atol=1e-5, rtol=1e-5)


def test_a_warp_in_the_world_is_the_warp_in_voxels():
    grid = oblique()
    image = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    displacement = 1.7 * torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(1))
    expected = warp(torch.from_numpy(image)[None, None], displacement, padding="border")[
        0, 0
    ].numpy()
    transform = Transform(np.eye(4), DisplacementField.from_voxels(displacement, grid))
    found = warp_volume(Volume(image, grid), grid, transform).values
    index = grid.to_index(transform.map_points(voxels(grid)))
    inside = ((index > -0.5) & (index < np.array(grid.shape) - 0.5)).all(-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)


@given(st.data())
def test_a_transform_without_motion_leaves_an_image_as_it_is(grids, data):
    grid = data.draw(grids)
    values = np.random.default_rng(0).integers(0, 200, grid.shape).astype(np.uint8)
    still = Transform(np.eye(4), DisplacementField(np.zeros((*grid.shape, 3)), grid))
    np.testing.assert_allclose(
        warp_volume(Volume(values, grid), grid, still).values, values, atol=2e-3
    )
    labels = warp_volume(Volume(values, grid, is_labels=True), grid, still)
    assert labels.values.dtype == np.uint8
    np.testing.assert_array_equal(labels.values, values)


def test_the_deformation_comes_before_the_affine():
    grid = oblique()
    field, matrix = wave(grid), some_affine()
    points = voxels(grid)[5:9, 4:8, 3:7]
    expected = apply_affine(matrix, points + field.vectors[5:9, 4:8, 3:7])
    np.testing.assert_allclose(Transform(matrix, field).map_points(points), expected, atol=1e-3)


def test_beyond_its_grid_the_displacement_of_the_edge_goes_on():
    grid = oblique()
    field = wave(grid)
    far = grid.to_world([[-30, 8, 9], [60, 8, 9]])
    np.testing.assert_allclose(field.at(far), field.vectors[[0, -1], 8, 9], atol=1e-4)


def test_points_carried_there_and_back_are_where_they_were():
    grid = oblique()
    transform = Transform(some_affine(), wave(grid))
    points = voxels(grid).reshape(-1, 3)[::7]
    there = transform.map_points(points)
    back = transform.inverse_points(there)
    tolerance = 0.05 * min(grid.spacing)
    assert np.linalg.norm(back - points, axis=1).max() < tolerance
    assert transform.distance(back, there).max() < tolerance
    assert transform.distance(points, there).max() == 0


def test_beside_a_fold_the_inverse_is_right_and_everywhere_finite():
    grid = Grid((11, 9, 7), np.diag([2.0, 2.0, 3.0, 1.0]))
    vectors = np.zeros((*grid.shape, 3), np.float32)
    vectors[5, ..., 0], vectors[6, ..., 0] = 8, -8
    transform = Transform(np.eye(4), DisplacementField(vectors, grid))
    targets = voxels(grid)
    found = transform.inverse_points(targets)
    assert np.isfinite(found).all()
    assert (transform.field.jacobian() <= 0).any()
    assert (transform.distance(found, targets)[:3] < 0.1).all()


def test_an_inverse_field_on_another_grid_undoes_the_field():
    grid, other = oblique(), oblique((12, 15, 13), (2.5, 2.0, 3.0)).resampled(1.9)
    field = wave(grid)
    back = field.inverse(other)
    points = voxels(other)
    landed = points + back.vectors
    np.testing.assert_allclose(landed + field.at(landed), points, atol=0.05 * min(grid.spacing))


def test_one_field_says_the_whole_transform():
    grid = oblique()
    transform = Transform(some_affine(), wave(grid))
    target = oblique((9, 11, 8), (4.0, 3.5, 4.5))
    total = transform.total(target)
    np.testing.assert_allclose(
        voxels(target) + total.vectors, transform.map_points(voxels(target)), atol=1e-4
    )


def test_the_jacobian_of_a_scaling_in_the_world_is_its_product_on_any_grid():
    grid = oblique()
    scale = np.diag([1.3, 0.8, 1.1])
    field = DisplacementField(voxels(grid) @ (scale - np.eye(3)).T, grid)
    np.testing.assert_allclose(field.jacobian(), 1.3 * 0.8 * 1.1, rtol=1e-3)


def test_the_jacobian_of_slabs_is_the_jacobian_of_the_whole(monkeypatch):
    import sys

    field = wave(oblique(), size=6)
    whole = field.jacobian()
    module = sys.modules["napari_shmoareg.geometry.transform"]
    pieces = module.slabs
    monkeypatch.setattr(module, "slabs", lambda grid: pieces(grid, 1))
    np.testing.assert_allclose(field.jacobian(), whole, atol=1e-5)


def test_labels_carried_to_the_moving_image_and_back_are_nearly_the_same():
    fixed, moving = oblique(), oblique((25, 22, 24), (2.6, 2.2, 2.4))
    transform = Transform(np.eye(4), wave(fixed, size=2))
    ball = np.linalg.norm(voxels(fixed) - fixed.centre, axis=-1) < 13
    labels = Volume(ball.astype(np.int16), fixed, "ball", is_labels=True)
    there = warp_volume(labels, moving, transform, inverse=True)
    back = warp_volume(there, fixed, transform)
    assert there.values.dtype == np.int16
    both = (back.values & labels.values).sum()
    assert 2 * both / (back.values.sum() + labels.values.sum()) > 0.93


def test_fields_and_affines_that_cannot_be_are_refused():
    grid = oblique()
    with pytest.raises(InputError, match=r"shape \(21, 17, 19, 3\)"):
        DisplacementField(np.zeros((21, 17, 19)), grid)
    with pytest.raises(InputError, match="NaN"):
        DisplacementField(np.full((*grid.shape, 3), np.nan), grid)
    with pytest.raises(InputError, match="singular"):
        Transform(np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(InputError, match="4x4"):
        Transform(np.eye(3))


def landmarks(count, kind, seed=3):
    """So many pairs of a known transform of a kind (a bend for thin-plate), and its map."""
    points = np.random.default_rng(seed).uniform(-30, 30, (count, 3)) + np.array([10, -20, 30])
    matrix = some_affine()
    if kind == "rigid":
        left, _, right = np.linalg.svd(matrix[:3, :3])
        matrix[:3, :3] = left @ right
    moved = apply_affine(matrix, points)
    if kind == "thin-plate":
        moved = moved + 3 * np.sin(points / 20)
    return points, moved, matrix


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_fit_to_true_pairs_is_their_transform(kind):
    fixed, moving, matrix = landmarks(7, kind)
    found = fit_landmarks(fixed, moving, kind, oblique())
    np.testing.assert_allclose(found.transform.affine, matrix, atol=1e-9)
    assert found.transform.field is None
    assert found.reason == f"{kind} fit of 7 landmark pairs, to 0.00 mm on average"


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_fit_to_noisy_pairs_is_that_of_itk(kind):
    import SimpleITK as sitk

    fixed, moving, _ = landmarks(9, kind)
    moving = moving + np.random.default_rng(1).normal(size=moving.shape)
    empty = sitk.VersorRigid3DTransform() if kind == "rigid" else sitk.AffineTransform(3)
    itk = sitk.LandmarkBasedTransformInitializer(
        empty, fixed.ravel().tolist(), moving.ravel().tolist()
    )
    found = fit_landmarks(fixed, moving, kind, oblique()).transform
    probes = fixed + np.array([7.0, -3.0, 11.0])
    theirs = np.array([itk.TransformPoint(p.tolist()) for p in probes])
    np.testing.assert_allclose(found.map_points(probes), theirs, atol=1e-4)


def test_mirrored_pairs_are_fitted_by_a_rotation_and_not_by_a_mirror():
    fixed, moving, _ = landmarks(8, "rigid")
    found = fit_landmarks(fixed, moving * (-1, 1, 1), "rigid", oblique()).transform.affine
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1)


def test_a_thin_plate_fit_passes_through_the_landmarks_and_its_affine_part_does_not():
    grid = Grid((91, 87, 83), oblique().affine @ np.diag([0.25, 0.25, 0.25, 1]))
    fixed = grid.to_world(np.random.default_rng(5).uniform(8, 74, (9, 3)))
    moving = apply_affine(some_affine(), fixed) + 3 * np.sin(fixed / 20)
    found = fit_landmarks(fixed, moving, "thin-plate", grid).transform
    assert max(found.field.grid.shape) == 48
    np.testing.assert_allclose(found.field.grid.corners(), grid.corners(), atol=1e-9)
    assert found.distance(fixed, moving).max() < 0.05
    assert Transform(found.affine).distance(fixed, moving).mean() > 0.3
    straight = fit_landmarks(fixed, apply_affine(some_affine(), fixed), "thin-plate", grid)
    assert np.abs(straight.transform.field.vectors).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "count", "says"),
    [
        ("rigid", 2, "A rigid start needs at least 3 landmark pairs; got 2"),
        ("affine", 3, "needs at least 4 landmark pairs; got 3"),
        ("thin-plate", 4, "needs at least 5 landmark pairs; got 4"),
        ("elastic", 9, "rigid, affine or thin-plate; got 'elastic'"),
    ],
)
def test_too_few_landmarks_are_told(kind, count, says):
    fixed, moving, _ = landmarks(count, "rigid")
    with pytest.raises(InputError, match=says):
        fit_landmarks(fixed, moving, kind, oblique())


def test_landmarks_that_determine_nothing_are_told():
    line = np.arange(6.0)[:, None] * (1, 2, 3)
    plane = np.random.default_rng(0).normal(size=(6, 2)) @ [[1.0, 0, 2], [0, 1, -1]]
    good, _, _ = landmarks(6, "rigid")
    twice = np.array(good)
    twice[5] = twice[0]
    bad = np.array(good)
    bad[2, 1] = np.nan
    for fixed, moving, kind, says in (
        (line, good, "rigid", "fixed landmarks lie on one line"),
        (good, line, "rigid", "moving landmarks lie on one line"),
        (plane, good, "affine", "fixed landmarks lie in one plane"),
        (good, plane, "thin-plate", "moving landmarks lie in one plane"),
        (twice, good, "thin-plate", "Two fixed landmarks are at the same point"),
        (good, good[:5], "rigid", "6 fixed and 5 moving points"),
        (bad, good, "rigid", "NaN or infinite"),
    ):
        with pytest.raises(InputError, match=says):
            fit_landmarks(fixed, moving, kind, oblique())
    fit_landmarks(plane, plane, "rigid", oblique())  # a plane is enough to be turned
