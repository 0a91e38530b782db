"""Volume and VolumePair: what they take and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, VolumePair, fill_value

GRID = Grid((4, 5, 3), np.diag([2.0, 1.5, 3.0, 1.0]))


def volume(values, **more) -> Volume:
    return Volume(np.broadcast_to(np.asarray(values), GRID.shape), GRID, "scan", **more)


def ramp() -> np.ndarray:
    return np.arange(60.0).reshape(GRID.shape)


def test_labels_beyond_32_bits_keep_their_value():
    values = np.zeros(GRID.shape)
    values[0], values[1] = 3e9, 3e9 + 1
    assert volume(values, is_labels=True).labels == [3_000_000_000, 3_000_000_001]


def test_a_mask_of_truth_values_becomes_numbers():
    assert volume(ramp() > 20).values.dtype == np.uint8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (1e60, "beyond what single precision holds"),
        (float("nan"), r"1 voxels that are NaN.*nan=0"),
    ],
)
def test_an_image_with_impossible_values_is_refused(values, message):
    scan = ramp()
    scan[2, 2, 2] = values
    with pytest.raises(InputError, match=message):
        volume(scan).check_image("moving")


def test_a_constant_image_and_a_single_slice_are_refused():
    with pytest.raises(InputError, match="constant"):
        volume(7.0).check_image("fixed")
    with pytest.raises(InputError, match="single slice"):
        Volume(np.arange(12.0).reshape(4, 3, 1), Grid((4, 3, 1), np.eye(4))).check_image("fixed")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "1 values with fractions"),
        (np.inf, r"1 values that are NaN or infinite.*nan=0"),
        (1e17, r"beyond 2\^53"),
    ],
)
def test_labels_that_are_no_labels_are_refused(value, message):
    values = np.zeros(GRID.shape)
    values[1, 1, 1] = value
    with pytest.raises(InputError, match=message):
        volume(values, is_labels=True)


@pytest.mark.parametrize("values", [np.zeros((4, 5)), np.zeros((4, 5, 3, 2)), np.zeros((5, 4, 3))])
def test_values_of_another_shape_are_refused(values):
    with pytest.raises(InputError, match=r"axes|shape"):
        Volume(values, GRID)


def test_labels_on_another_grid_are_refused():
    moved = GRID.affine.copy()
    moved[0, 3] = 1
    labels = Volume(np.zeros(GRID.shape, int), Grid(GRID.shape, moved), "parts", is_labels=True)
    with pytest.raises(InputError, match="are on another grid"):
        VolumePair(volume(ramp()), volume(ramp()), moving_labels=labels)


def test_labels_off_by_rounding_are_put_on_the_grid_of_their_image():
    near = GRID.affine.copy()
    near[:3, :3] *= 1 + 1e-4
    labels = Volume(np.zeros(GRID.shape, int), Grid(GRID.shape, near), "parts", is_labels=True)
    pair = VolumePair(volume(ramp()), volume(ramp()), moving_labels=labels)
    assert pair.moving_labels.grid is pair.moving.grid


@pytest.mark.parametrize(
    ("entry", "more", "says"),
    [
        (
            (0, 3),
            0.3,
            (
                r"corners up to 0\.15 voxels \(0\.3 mm\) apart; first voxel \(0\.3, 0, 0\) against"
                r" \(0, 0, 0\) mm"
            ),
        ),
        ((0, 0), 0.12, r"spacing \(2\.12, 1\.5, 3\) against \(2, 1\.5, 3\) mm"),
        ((0, 3), -1e3, r"first voxel \(-1000, 0, 0\) against"),
    ],
)
def test_the_refusal_of_labels_shows_numbers_that_differ(entry, more, says):
    affine = GRID.affine.copy()
    affine[entry] += more
    labels = Volume(np.zeros(GRID.shape, int), Grid(GRID.shape, affine), "parts", is_labels=True)
    with pytest.raises(InputError, match=says):
        VolumePair(volume(ramp()), volume(ramp()), moving_labels=labels)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_images_in_different_units_are_refused_with_both_spacings(factor):
    other = Volume(
        ramp(), Grid(GRID.shape, np.diag([factor, factor, factor, 1.0]) @ GRID.affine), "small"
    )
    with pytest.raises(
        InputError, match=r"'small' \(.* mm\).* differ in size by a factor of .*another unit"
    ):
        VolumePair(other, volume(ramp()))
    VolumePair(
        volume(ramp()),
        Volume(ramp(), Grid(GRID.shape, np.diag([0.02, 0.02, 0.02, 1.0]) @ GRID.affine)),
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([0, 2**31 - 1], np.int32), np.float32),
        (np.array([2**31 - 100, 2**31 - 1], np.int32), np.float64),
        (np.array([2**31 - 100, 2**31 + 100], np.int64), np.float64),
        (np.array([-1024.0, 3071.0]), np.float32),
        (np.array([1000.0, 1000.0002]), np.float64),
        (np.array([0, 900], np.int16), np.float32),
        (np.array([1e7, 1e7 + 5], np.float32), np.float32),
        (np.array([np.nan, 1.0]), np.float32),
    ],
)
def test_single_precision_serves_unless_it_loses_what_lies_between(values, kind):
    assert (
        Volume(
            np.broadcast_to(values[:, None, None], (2, 2, 2)), Grid((2, 2, 2), np.eye(4))
        ).float_type
        == kind
    )


def _filled(values, **how):
    return fill_value(Volume(values.astype(np.float32), Grid(values.shape, np.eye(4))), **how)


def test_outside_an_image_lies_its_empty_border_else_air_or_its_minimum():
    random = np.random.default_rng(3)
    body = random.uniform(-120, 300, (12, 12, 12))
    in_air = np.full((20, 20, 20), -1024.0)
    in_air[4:16, 4:16, 4:16] = body
    assert _filled(in_air) == -1024
    assert _filled(body) == pytest.approx(body.min())  # no CT: nothing below -500
    lung = body.copy()
    lung[3:9, 3:9, 3:9] = -850
    assert _filled(lung) == -1000 and _filled(lung, fill="minimum") == -850
    assert _filled(lung, fill="air") == -1000 and _filled(lung, fill=7) == 7
    head = np.zeros((20, 20, 20))
    head[4:16, 4:16, 4:16] = random.uniform(20, 200, (12, 12, 12))
    head += random.uniform(0, 2, head.shape)  # noise in the air
    assert 0 <= _filled(head) <= 2
    labels = Volume(np.ones((3, 3, 3), np.uint8), Grid((3, 3, 3), np.eye(4)), is_labels=True)
    assert fill_value(labels, "air") == 0
