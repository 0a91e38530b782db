"""The built-in pair, and the truth about it."""

from dataclasses import replace

import numpy as np
import pytest

from napari_shmoareg.geometry import Grid, Transform, inside, pull
from napari_shmoareg.io import sample_pair
from napari_shmoareg.io.phantom import ORGANS
from napari_shmoareg.io.samples import Sample


@pytest.fixture(scope="module")
def sample() -> Sample:
    return sample_pair()


def some_points(sample: Sample, number=4000) -> np.ndarray:
    index = np.argwhere(sample.foreground)
    return sample.pair.fixed.grid.to_world(index[:: len(index) // number])


def overlap(one, two) -> float:
    return float(
        np.mean(
            [
                2 * ((one == n) & (two == n)).sum() / ((one == n).sum() + (two == n).sum())
                for n in ORGANS
            ]
        )
    )


def test_the_two_grids_differ_and_both_are_oblique_and_anisotropic(sample):
    for volume in (sample.pair.fixed, sample.pair.moving):
        directions = np.abs(volume.grid.affine[:3, :3] / volume.grid.spacing)
        assert (
            directions.max() < 0.9999 and max(volume.grid.spacing) / min(volume.grid.spacing) > 1.05
        )
        volume.check_image("fixed")
    assert sample.pair.fixed.grid.shape != sample.pair.moving.grid.shape
    assert (
        sample.pair.fixed.grid.axes_to_ras()[0].tolist()
        != sample.pair.moving.grid.axes_to_ras()[0].tolist()
    )


def test_every_organ_is_in_both_images(sample):
    assert sample.pair.fixed_labels.labels == sample.pair.moving_labels.labels == sorted(ORGANS)


def test_the_truth_is_its_own_inverse_to_a_millionth_of_a_mm(sample):
    points = some_points(sample)
    assert np.abs(sample.true.inverse_points(sample.true.map_points(points)) - points).max() < 1e-6


def test_the_truth_is_smooth_does_not_fold_and_moves_by_some_mm(sample):
    points, step = some_points(sample), 0.5
    columns = [
        (
            sample.true.map_points(points + step * axis)
            - sample.true.map_points(points - step * axis)
        )
        / (2 * step)
        for axis in np.eye(3)
    ]
    jacobian = np.linalg.det(np.stack(columns, -1))
    assert 0.4 < jacobian.min() and jacobian.max() < 2
    moved = np.linalg.norm(sample.true.map_points(points) - points, axis=1)
    assert 5 < moved.mean() < 15 and moved.max() < 25
    assert sample.error_mm(Transform(np.eye(4))).mean == pytest.approx(moved.mean(), rel=0.02)


def test_the_moving_image_shows_the_partner_of_every_foreground_voxel(sample):
    assert inside(sample.pair.moving.grid, sample.true.map_points(some_points(sample))).all()


def test_the_moving_image_pulled_through_the_truth_is_the_fixed_one(sample):
    pair, every = sample.pair, (slice(None, None, 2),) * 3  # second voxel along each axis
    fixed, labels, body = (
        values[every] for values in (pair.fixed.values, pair.fixed_labels.values, sample.foreground)
    )
    grid = Grid(fixed.shape, pair.fixed.grid.affine @ np.diag([2, 2, 2, 1]))
    through, identity = (
        [pull(volume, grid, way).values for volume in (pair.moving, pair.moving_labels)]
        for way in (sample.true.map_points, lambda points: points)
    )
    assert np.corrcoef(through[0][body], fixed[body])[0, 1] > 0.95
    assert np.corrcoef(identity[0][body], fixed[body])[0, 1] < 0.6
    assert overlap(through[1], labels) > 0.93
    assert overlap(identity[1], labels) < 0.8


def test_the_error_of_the_truth_is_none_and_of_a_shift_its_length(sample):
    assert sample.error_mm(sample.true) == (0.0, 0.0)
    shift = np.eye(4)
    shift[:3, 3] = (3.0, 0.0, -4.0)
    straight = replace(sample.true, shifts=0 * sample.true.shifts, affine=np.eye(4))
    error = replace(sample, true=straight).error_mm(Transform(shift))
    assert error.mean == pytest.approx(5.0) and error.percentile_95 == pytest.approx(5.0)


def test_the_error_can_be_asked_of_one_organ(sample):
    liver = sample.pair.fixed_labels.values == 1
    assert sample.error_mm(Transform(np.eye(4)), liver) != sample.error_mm(Transform(np.eye(4)))


def test_the_sample_is_always_the_same(sample):
    again = sample_pair()
    np.testing.assert_array_equal(again.pair.moving.values, sample.pair.moving.values)
    np.testing.assert_array_equal(again.pair.fixed.values, sample.pair.fixed.values)
