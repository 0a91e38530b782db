"""What is content and what is background, and one scale whatever surrounds the body."""

import numpy as np
import pytest

from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.registration.intensity import Intensity, content_points


def body(around=0.0, noise=0.0, low=200.0, high=900.0):
    """An ellipsoid with values between low and high in the middle of 25x31x21 voxels."""
    random = np.random.default_rng(0)
    index = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (25, 31, 21)], indexing="ij"), -1)
    inside = np.linalg.norm(index / 0.8, axis=-1) < 1
    values = np.full(inside.shape, around) + noise * random.normal(size=inside.shape)
    values[inside] = random.uniform(low, high, inside.sum())
    return values, inside


def volume(values):
    return Volume(values.astype(np.float32), Grid(values.shape, np.diag([2.0, 1.5, 3.0, 1.0])))


def test_empty_space_around_a_body_does_not_change_its_scale():
    values, _ = body()
    padded = np.pad(values, 15)
    assert (padded == 0).mean() > 0.8
    assert Intensity.of(volume(padded)) == Intensity.of(volume(values))


def test_the_background_of_a_scan_is_zero_and_its_body_reaches_one():
    values, inside = body(around=-1024)
    scaled = Intensity.of(volume(values)).scale(values)
    assert scaled.dtype == np.float32
    assert (scaled[~inside] == 0).all()
    assert scaled.max() == 1 and scaled[inside].min() > 0.5


def test_one_hot_voxel_does_not_darken_the_image():
    values, inside = body()
    hot = values.copy()
    hot[12, 15, 10] = 1e6
    scaled = Intensity.of(volume(hot)).scale(hot)
    assert np.median(scaled[inside]) == pytest.approx(
        np.median(Intensity.of(volume(values)).scale(values)[inside]), abs=0.01
    )


def test_a_bright_background_is_bright():
    values, inside = body(around=1500)
    scaled = Intensity.of(volume(values)).scale(values)
    assert (scaled[~inside] == 1).all()
    assert scaled[inside].min() < 0.01


def test_padding_below_air_leaves_the_contrast_of_a_ct():
    values, inside = body(around=-1000, low=-100, high=300)
    values[:, :4, :4] = -3024
    intensity = Intensity.of(volume(values))
    assert intensity.low == pytest.approx(-1000, abs=5)
    assert (intensity.scale(values)[:, :4, :4] == 0).all()
    assert np.ptp(intensity.scale(values[inside])) > 0.25


def test_content_is_the_body_and_with_strong_noise_the_whole_field_of_view():
    values, inside = body()
    np.testing.assert_array_equal(Intensity.of(volume(values)).content(values), inside)
    values, inside = body(noise=2)
    np.testing.assert_array_equal(Intensity.of(volume(values)).content(values), inside)
    values, _ = body(noise=150)
    points = content_points(volume(values), Intensity.of(volume(values)))
    assert points.min(0).max() <= 1 and (points.max(0) >= np.array(values.shape) - 2).all()


def test_content_points_reach_as_far_as_all_content_in_any_direction():
    values, inside = body()
    points = content_points(volume(values), Intensity.of(volume(values)))
    everything = np.argwhere(inside)
    for direction in np.random.default_rng(1).normal(size=(20, 3)):
        assert (points @ direction).max() == pytest.approx((everything @ direction).max())


def test_a_mask_has_a_scale():
    _, inside = body()
    mask = Volume(inside.astype(np.uint8), volume(inside).grid)
    np.testing.assert_array_equal(Intensity.of(mask).scale(mask.values), inside)


def test_values_near_2_to_the_31_are_scaled_like_those_near_0():
    values, _ = body(low=20, high=200)
    values = np.rint(values)
    high = Volume((values + 2**31).astype(np.int64), volume(values).grid)
    low, there = Intensity.of(volume(values)), Intensity.of(high)
    np.testing.assert_allclose(there.scale(high.values), low.scale(values), atol=1e-5)
    np.testing.assert_array_equal(there.content(high.values), low.content(values))
    assert there.scale(high.values).dtype == np.float32
