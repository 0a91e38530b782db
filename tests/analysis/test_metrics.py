"""Overlap, surface distance, similarity, folding."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_shmoareg.metrics import assd, dice, folding, hd95, mean, sdlogj, surface
from napari_shmoareg.registration.similarity import nmi

SPACING = (3.0, 2.5, 2.0)
MAPS = hnp.arrays(np.int32, (7, 9, 6), elements=st.sampled_from([0, 1, 2, 7, 502]))


def _box(shape, start, stop, label=1):
    values = np.zeros(shape, dtype=np.int16)
    values[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = label
    return values


def _monai(a, b, label, spacing):
    """Dice, pooled ASSD and HD95 of one label by MONAI."""
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    x, y = (torch.from_numpy((m == label)[None, None]) for m in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        overlap = monai.compute_dice(x, y, ignore_empty=False)
        average = monai.compute_average_surface_distance(
            x, y, include_background=True, symmetric=True, spacing=spacing
        )
        far = monai.compute_hausdorff_distance(
            x, y, include_background=True, percentile=95, spacing=spacing
        )
    return float(overlap), float(average), float(far)


def test_boxes_two_voxels_apart_overlap_by_their_common_part():
    a, b = _box((12, 9, 7), (2, 2, 2), (6, 5, 4)), _box((12, 9, 7), (4, 2, 2), (8, 5, 4))
    assert dice(a, b) == {1: 0.5}


def test_planes_three_voxels_apart_are_nine_millimetres_apart():
    a, b = _box((12, 9, 7), (2, 0, 0), (3, 9, 7)), _box((12, 9, 7), (5, 0, 0), (6, 9, 7))
    assert assd(a, b, SPACING) == {1: pytest.approx(9.0)}
    assert hd95(a, b, SPACING) == {1: pytest.approx(9.0)}


def test_a_label_has_no_distance_to_itself():
    a = _box((12, 9, 7), (0, 2, 1), (6, 9, 4), label=502)
    assert dice(a, a) == {502: 1.0}
    assert surface(a, a, SPACING) == {502: (0.0, 0.0)}


def test_the_average_is_pooled_over_both_surfaces_and_not_a_mean_of_two_means():
    a = _box((15, 5, 5), (2, 2, 2), (3, 3, 3))
    # a line of four voxels: 0, 3, 6, 9 mm from the single one
    b = _box((15, 5, 5), (2, 2, 2), (6, 3, 3))
    assert assd(a, b, SPACING)[1] == pytest.approx((0 + 0 + 3 + 6 + 9) / 5)


def test_a_label_in_one_map_only_has_dice_zero_and_no_distance():
    a, b = _box((8, 7, 6), (1, 1, 1), (3, 3, 3), label=4), np.zeros((8, 7, 6), dtype=np.int16)
    assert dice(a, b) == {4: 0.0}
    assert math.isnan(assd(a, b, SPACING)[4]) and math.isnan(hd95(b, a, SPACING)[4])


def test_a_label_in_neither_map_is_skipped_even_when_asked_for():
    a = _box((8, 7, 6), (1, 1, 1), (3, 3, 3), label=4)
    assert dice(a, a, labels=[4, 9, 0]) == {4: 1.0}
    assert assd(a, a, SPACING, labels=[9]) == {}


def test_only_the_labels_asked_for_are_measured():
    a = np.where(_box((8, 7, 6), (1, 1, 1), (5, 5, 5)), 3, 8)
    assert dice(a, a, labels=[8]) == {8: 1.0}


def test_empty_maps_have_no_labels():
    empty = np.zeros((4, 5, 6), dtype=np.uint8)
    assert dice(empty, empty) == {} and surface(empty, empty, SPACING) == {}


def test_maps_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        dice(np.zeros((4, 5, 6)), np.zeros((4, 5, 7)))


def test_maps_of_two_number_types_are_compared_by_value():
    a = _box((8, 7, 6), (1, 1, 1), (5, 5, 5), label=200)
    assert dice(a.astype(np.uint8), a.astype(np.int64)) == {200: 1.0}
    assert dice(-a, -a.astype(np.float32)) == {-200: 1.0}


@settings(max_examples=10, deadline=None)
@given(MAPS, MAPS)
def test_made_labels_are_measured_as_monai_measures_them(a, b):
    distances = surface(a, b, SPACING)
    for label, value in dice(a, b).items():
        overlap, average, far = _monai(a, b, label, SPACING)
        assert value == pytest.approx(overlap, abs=1e-6)
        if math.isnan(distances[label][0]):
            assert not ((a == label).any() and (b == label).any())
        else:
            assert distances[label] == pytest.approx((average, far), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(MAPS, MAPS)
def test_the_order_of_two_maps_changes_nothing(a, b):
    assert dice(a, b) == dice(b, a)
    one, two = surface(a, b, SPACING), surface(b, a, SPACING)
    assert one.keys() == two.keys()
    assert all(one[label] == pytest.approx(two[label], nan_ok=True) for label in one)


def test_the_spacing_of_an_oblique_grid_is_that_of_its_axes(pair):
    labels = pair.fixed_labels
    shifted = labels.with_values(np.roll(labels.values, 2, axis=0))
    assert labels.grid.spacing == pytest.approx((3.0, 3.0, 2.0))
    assert hd95(labels.values, shifted.values, labels.grid.spacing)[3] <= 6 + 1e-9


def test_the_mean_leaves_out_what_could_not_be_measured():
    assert mean({1: 1.0, 2: float("nan"), 3: 2.0}) == 1.5
    assert math.isnan(mean({})) and math.isnan(mean({1: float("nan")}))


def test_folding_counts_determinants_of_zero_and_less():
    determinant = np.ones((4, 5, 10))
    determinant[0, 0, :3] = 0, -1, 1e-6
    assert folding(determinant) == pytest.approx(1.0)


def test_sdlogj_is_zero_for_a_uniform_scaling_and_finite_for_folding():
    assert sdlogj(np.full((4, 5, 6), 1.7)) == pytest.approx(0)
    assert sdlogj(np.array([np.e, 1 / np.e])) == pytest.approx(1)
    assert math.isfinite(sdlogj(np.array([1.0, -3.0])))


def test_mutual_information_sees_an_inverted_contrast_and_not_noise():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 31, 32))
    assert nmi(a, a) == pytest.approx(1)
    assert nmi(a, -a) > 0.9
    assert nmi(a, rng.normal(size=a.shape)) < 0.05
    assert math.isnan(nmi(np.ones_like(a), np.ones_like(a)))


def test_labels_that_one_side_lacks_are_named_and_in_no_mean():
    from napari_shmoareg.metrics import SharedLabels, dice_in_both

    moving = np.zeros((4, 5, 3), dtype=np.uint8)
    moving[0, :2], moving[1, 0], moving[2, 0], moving[3, 0] = 1, 2, 7, 9
    fixed = np.zeros_like(moving)
    fixed[0, :1], fixed[1, 0], fixed[3, 1] = 1, 2, 5
    shared = SharedLabels.of(np.unique(moving).tolist(), np.unique(fixed).tolist())
    assert shared == ((1, 2), (7, 9), (5,)) and shared.missing == (5, 7, 9)
    assert (
        shared.description == "2 of 5 labels are in both images; only moving: 7, 9; only fixed: 5"
    )
    found = dice_in_both(moving, fixed, shared)
    assert (
        found[1] == pytest.approx(2 * 3 / 9)
        and found[2] == 1
        and np.isnan([found[n] for n in (5, 7, 9)]).all()
    )
    assert mean(found) == pytest.approx((2 / 3 + 1) / 2) and mean(
        dice(moving, fixed)
    ) == pytest.approx(5 / 3 / 5)


def test_a_label_of_both_images_that_was_carried_away_counts_as_0():
    from napari_shmoareg.metrics import SharedLabels, dice_in_both

    fixed = np.ones((3, 3, 3), dtype=np.uint8)
    assert dice_in_both(np.zeros_like(fixed), fixed, SharedLabels((1,))) == {1: 0.0}
