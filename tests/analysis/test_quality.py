"""How good a registration is: before, after the affine, after all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from napari_shmoareg.geometry import Transform, VolumePair, warp_volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.metrics import dice, folding
from napari_shmoareg.metrics.measure import Quality, measure
from napari_shmoareg.registration.similarity import compare_images


def _shift(x):
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


@pytest.fixture
def shifted(registration):
    """The fixed image registered to itself moved by 12 mm; the affine finds all of it."""
    fixed, labels = registration.pair.fixed, registration.pair.fixed_labels
    grid = replace(fixed.grid, affine=_shift(12.0) @ fixed.grid.affine)
    pair = VolumePair(replace(fixed, grid=grid), fixed, replace(labels, grid=grid), labels)
    transform = Transform(_shift(12.0))
    stages = {"before": Transform(np.eye(4)), "affine": transform, "after": transform}
    return replace(
        registration,
        pair=pair,
        transform=transform,
        alignment=replace(registration.alignment, matrix=_shift(12.0)),
        warped=warp_volume(pair.moving, fixed.grid, transform),
        warped_labels=warp_volume(pair.moving_labels, fixed.grid, transform),
        displacement=transform.total(fixed.grid),
        similarity={stage: compare_images(pair, t) for stage, t in stages.items()},
        jacobian=replace(registration.jacobian, values=np.ones(fixed.grid.shape, dtype=np.float32)),
    )


def test_the_affine_is_credited_with_what_the_affine_does(shifted):
    found = measure(shifted)
    assert found.similarity["affine"]["ncc"] == pytest.approx(1, abs=1e-6)
    assert found.similarity["affine"]["nmi"] == pytest.approx(1, abs=1e-3)
    assert found.similarity["before"]["ncc"] < 0.9 and found.similarity["before"]["nmi"] < 0.9
    assert found.similarity["before"]["overlap"] < 1 == found.similarity["affine"]["overlap"]
    assert set(found.dice["affine"].values()) == {1.0} == set(found.dice["after"].values())
    assert max(found.dice["before"].values()) < 0.9
    assert found.mean_dice("after") == 1 > found.mean_dice("before")
    assert max(found.assd_mm["after"].values()) == 0 < min(found.assd_mm["before"].values()) <= 12
    assert found.displacement_mm == pytest.approx({"mean": 12, "max": 12}, abs=1e-3)
    assert found.jacobian["folding_percent"] == 0 and found.jacobian["mean"] == 1


def test_the_start_is_the_moving_image_where_its_header_places_it(registration):
    found, pair = measure(registration), registration.pair
    assert found.similarity["before"]["ncc"] == compare_images(pair, Transform(np.eye(4))).ncc
    labels = resample(pair.moving_labels, pair.fixed.grid)
    assert found.dice["before"] == dice(labels.values, pair.fixed_labels.values)
    assert found.dice["after"] == dice(registration.warped_labels.values, pair.fixed_labels.values)


def test_without_labels_of_both_images_there_is_no_overlap(registration):
    one = replace(registration, pair=replace(registration.pair, fixed_labels=None))
    found = measure(one)
    assert found.dice is None and found.assd_mm is None and found.mean_dice("after") is None
    assert found.to_dict()["dice"] is None


def test_the_numbers_go_into_json_by_stage_and_label(registration):
    found = measure(registration).to_dict()
    assert list(found["dice"]) == ["before", "affine", "after"]
    assert set(found["dice"]["after"]["per_label"]) == {"1", "2", "3", "4"}
    assert found["folding_percent"] == found["jacobian"]["folding_percent"]
    json.dumps(found)


def test_images_that_do_not_meet_at_the_start_have_no_similarity_there(registration):
    far = replace(
        registration.pair.moving.grid, affine=_shift(1e4) @ registration.pair.moving.grid.affine
    )
    pair = VolumePair(replace(registration.pair.moving, grid=far), registration.pair.fixed)
    apart = replace(
        registration,
        pair=pair,
        similarity=registration.similarity | {"before": None},
        warped_labels=None,
    )
    found = measure(apart).similarity["before"]
    assert np.isnan(found["ncc"]) and np.isnan(found["nmi"]) and found["overlap"] == 0


def test_folding_is_the_same_share_in_the_report_the_warnings_and_the_metrics(registration):
    values = np.ones(registration.jacobian.values.shape, np.float32)
    values[3:7, 4:9, 5] = (-0.5, -1.0, 0.0, 1e-6, 2.0)
    folded = replace(registration, jacobian=registration.jacobian.with_values(values))
    share = 100 * 12 / values.size
    assert (
        measure(folded).jacobian["folding_percent"]
        == pytest.approx(share)
        == folded.folding_percent
    )
    assert folding(values) == pytest.approx(share)


def test_the_network_of_these_tests_truly_moves_things(registration):
    # the headers are trusted: all of it is the field
    assert measure(registration).displacement_mm["max"] > 1


def test_the_mean_dice_is_over_the_labels_that_both_images_have_and_the_others_are_named(
    registration,
):
    pair = registration.pair
    values = pair.fixed_labels.values.copy()
    # 2 is in the moving image alone now, and 9 in the fixed one
    values[pair.fixed_labels.values == 2] = 9
    fewer = replace(pair, fixed_labels=pair.fixed_labels.with_values(values))
    found = measure(replace(registration, pair=fewer))
    assert found.labels == ((1, 3, 4), (2,), (9,))
    whole = measure(registration)
    assert found.mean_dice("after") == pytest.approx(
        np.mean([whole.dice["after"][n] for n in (1, 3, 4)])
    )
    assert (
        set(found.dice["after"]) == {1, 2, 3, 4, 9}
        and np.isnan([found.dice["after"][n] for n in (2, 9)]).all()
    )
    assert found.to_dict()["labels"] == {"both": [1, 3, 4], "only_moving": [2], "only_fixed": [9]}


def test_labels_that_agree_less_than_before_are_a_caution():
    def quality(before, affine, after):
        stages = {"before": before, "affine": affine, "after": after}
        nothing = {"min": 1.0, "max": 1.0, "mean": 1.0, "sdlogj": 0.0, "folding_percent": 0.0}
        return Quality({}, stages, None, None, nothing, {"mean": 0.0, "max": 0.0})

    assert quality({1: 0.5, 2: 0.6}, {1: 0.6, 2: 0.6}, {1: 0.7, 2: 0.7}).warnings == []
    fell = quality({1: 0.75, 2: 0.75}, {1: 0.7, 2: 0.7}, {1: 0.7, 2: 0.7}).warnings
    assert len(fell) == 1 and "0.750 before, 0.700 after the affine, 0.700 after" in fell[0]
    (than_affine,) = quality({1: 0.5}, {1: 0.8}, {1: 0.7}).warnings
    assert "after the affine alone" in than_affine
    single = quality({1: 0.9, 2: 0.1}, {1: 0.9, 2: 0.1}, {1: 0.7, 2: 0.6}).warnings
    assert single == ["Dice fell by more than 0.1 for the labels 1 (0.90 to 0.70)."]
    without = quality(
        {1: float("nan"), 2: 0.5}, {1: float("nan"), 2: 0.5}, {1: float("nan"), 2: 0.6}
    )
    assert without.warnings == []
