"""What a registration is worth on one pair, and over pairs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from napari_shmoareg import metrics
from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation import baselines
from napari_shmoareg.evaluation.baselines import OWN, evaluated_method
from napari_shmoareg.evaluation.methods import METHODS
from napari_shmoareg.evaluation.tables import label_table, stage_table, summarise, worse_than_start
from napari_shmoareg.geometry import DisplacementField, Transform, VolumePair, warp_volume
from napari_shmoareg.metrics.measure import (
    MEASURES,
    MethodResult,
    columns_of,
    label_rows,
    measure_pair,
    pair_rows,
    selected,
)

SETTINGS = {
    "affine": "auto",
    "size": None,
    "diffeomorphic": None,
    "device": "cpu",
    "refine": 0,
    "similarity": "auto",
    "contrast": "auto",
    "smoothness": "accurate",
}


@pytest.fixture
def found(pair) -> MethodResult:
    """A shift of 4 mm to the left as the affine, and a wave of up to 2.5 mm beside it."""
    matrix = np.eye(4)
    matrix[0, 3] = -4.0
    grid = pair.fixed.grid
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    wave = np.stack([0 * points[..., 0], 2.5 * np.sin(points[..., 0] / 12), 0 * points[..., 0]], -1)
    return MethodResult(
        DisplacementField(wave.astype(np.float32) + np.float32([-4, 0, 0]), grid), matrix
    )


def case(
    number: int, moving: str, fixed: str, stages: dict, seconds: float = 1.0, error: str = ""
) -> dict:
    about = {"number": number, "moving": moving, "fixed": fixed}
    about |= {"moving_subject": moving[0], "fixed_subject": fixed[0]}
    return about | {"seconds": seconds, "error": error, "stages": stages}


def stage(labels: dict[str, dict[str, float | None]], **means: float | None) -> dict:
    return {"means": means, "labels": labels}


CASES = [
    case(
        1,
        "a",
        "b",
        {
            "start": stage({"1": {"dice": 0.2}, "12": {"dice": 0.4}}, dice=0.3),
            "after": stage(
                {"1": {"dice": 0.6, "assd_mm": 2.0}, "12": {"dice": 0.0, "assd_mm": None}}, dice=0.3
            ),
        },
    ),
    case(
        2,
        "b",
        "a",
        {
            "start": stage({"1": {"dice": 0.5}}, dice=0.5),
            "after": stage({"1": {"dice": 0.4}}, dice=0.4),
        },
    ),
    case(3, "c", "a", {}, error="InputError: it broke"),
    case(4, "c", "b", {"start": stage({}, ncc=0.1), "after": stage({}, ncc=0.7)}, seconds=4.0),
]
PAIRS = [row for one in CASES for row in pair_rows(one)]
LABELS = [row for one in CASES for row in label_rows(one)]


def test_each_stage_is_measured_where_it_puts_the_labels(pair, found):
    """By the fields themselves: the headers, the matrix, the whole transform."""
    measured = measure_pair(pair, found, selected())
    truth, spacing = pair.fixed_labels.values, pair.fixed.grid.spacing
    fields = {"start": Transform(np.eye(4)), "affine": Transform(found.affine)}
    carried = {
        name: warp_volume(pair.moving_labels, pair.fixed.grid, at).values
        for name, at in fields.items()
    }
    carried["after"] = found.displacement.warp(pair.moving_labels).values
    assert list(measured) == ["start", "affine", "after"]
    for name, labels in carried.items():
        means, per_label = measured[name]["means"], measured[name]["labels"]
        assert means["dice"] == pytest.approx(metrics.mean(metrics.dice(labels, truth)))
        assert means["assd_mm"] == pytest.approx(metrics.mean(metrics.assd(labels, truth, spacing)))
        assert means["hd95_mm"] == pytest.approx(metrics.mean(metrics.hd95(labels, truth, spacing)))
        assert {label: values["dice"] for label, values in per_label.items()} == metrics.dice(
            labels, truth
        )
    assert len({round(measured[name]["means"]["dice"], 6) for name in carried}) == 3
    assert len({round(measured[name]["means"]["ncc"], 6) for name in carried}) == 3
    jacobian = found.displacement.jacobian()
    assert measured["after"]["means"]["sdlogj"] == pytest.approx(metrics.sdlogj(jacobian)) != 0
    assert "sdlogj" not in measured["affine"]["means"]


def test_every_definition_is_measured_when_asked_for_and_has_its_words(pair, found):
    measured = measure_pair(pair, found, selected(definitions=True))["after"]
    means = measured["means"]
    assert means.keys() | {"landmark_mm", "seconds", "memory_mib"} == MEASURES.keys()
    truth, spacing = pair.fixed_labels.values, pair.fixed.grid.spacing
    carried = found.displacement.warp(pair.moving_labels).values
    assert means["avd_th_mm"] == pytest.approx(
        metrics.mean(metrics.avd_th(carried, truth, spacing))
    )
    assert means["assd_surfel_mm"] == pytest.approx(
        metrics.mean(metrics.assd_surfel(carried, truth, spacing))
    )
    assert means["hd95_surfel_mm"] == pytest.approx(
        metrics.mean(metrics.hd95_surfel(carried, truth, spacing))
    )
    assert means["sdlogj_l2r"] == pytest.approx(metrics.sdlogj_l2r(found.displacement.jacobian()))
    assert "Table I" in MEASURES["assd_mm"].definition


def test_without_labels_likeness_is_measured_and_no_overlap(pair, found):
    bare = VolumePair(pair.moving, pair.fixed, pair.moving_labels, None)
    measured = measure_pair(bare, found, selected())
    assert "dice" not in measured["after"]["means"] and measured["after"]["labels"] == {}
    assert -1 <= measured["start"]["means"]["ncc"] <= 1


def test_empty_label_maps_have_a_dice_that_is_not_a_number(pair, found):
    empty = [
        labels.with_values(np.zeros_like(labels.values))
        for labels in (pair.moving_labels, pair.fixed_labels)
    ]
    measured = measure_pair(VolumePair(pair.moving, pair.fixed, *empty), found, selected())
    assert math.isnan(measured["after"]["means"]["dice"]) and measured["after"]["labels"] == {}


def test_landmarks_are_as_far_apart_as_the_displacement_leaves_them(pair, found):
    fixed = np.array([[4.0, -7.0, 11.0], [-8.0, -2.0, 12.0]])
    moving = fixed + np.array([0, 3, 0])
    measured = measure_pair(pair, found, selected(surface=False), (fixed, moving))
    assert measured["start"]["means"]["landmark_mm"] == pytest.approx(3)
    assert measured["affine"]["means"]["landmark_mm"] == pytest.approx(5)


def test_an_affine_that_moves_nothing_is_the_start(pair, found):
    measured = measure_pair(
        pair, MethodResult(found.displacement, np.eye(4)), selected(surface=False)
    )
    assert measured["affine"] == measured["start"]


def test_a_method_without_a_known_affine_has_no_such_stage(pair, found):
    assert list(measure_pair(pair, MethodResult(found.displacement), selected(surface=False))) == [
        "start",
        "after",
    ]


def test_the_network_s_method_gives_what_register_gives(pair, tiny_network):
    from napari_shmoareg.registration.register import register

    found = evaluated_method("shmoareg", SETTINGS | {"affine": "none"}, tiny_network)(pair)
    registration = register(pair, tiny_network, affine="none", device="cpu")
    np.testing.assert_array_equal(found.displacement.vectors, registration.displacement.vectors)
    np.testing.assert_array_equal(found.affine, registration.alignment.matrix)


def test_the_start_moves_nothing_and_the_affine_is_the_asked_one(pair, found, monkeypatch):
    assert not evaluated_method("start", SETTINGS)(pair).displacement.vectors.any()
    asked = {"none": np.eye(4), "auto": found.affine}
    monkeypatch.setattr(baselines, "align", lambda pair, mode: SimpleNamespace(matrix=asked[mode]))
    for mode, matrix in asked.items():
        aligned = evaluated_method("affine", SETTINGS | {"affine": mode})(pair)
        np.testing.assert_array_equal(aligned.affine, matrix)
        shift = np.broadcast_to(matrix[:3, 3], aligned.displacement.vectors.shape)
        np.testing.assert_allclose(aligned.displacement.vectors, shift, atol=1e-5)


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="no method 'magic'"):
        evaluated_method("magic", SETTINGS)
    assert set(OWN) < set(METHODS)


def test_rows_stand_per_stage_and_failures_keep_their_error():
    assert [(row["case"], row["stage"]) for row in PAIRS] == [
        (1, "start"),
        (1, "after"),
        (2, "start"),
        (2, "after"),
        (3, "after"),
        (4, "start"),
        (4, "after"),
    ]
    assert PAIRS[4]["error"] == "InputError: it broke" and "dice" not in PAIRS[4]
    assert "seconds" not in PAIRS[0] and PAIRS[1]["seconds"] == 1.0
    assert [(row["stage"], row["label"]) for row in LABELS[:4]] == [
        ("start", 1),
        ("start", 12),
        ("after", 1),
        ("after", 12),
    ]
    assert columns_of(PAIRS) == ["dice", "ncc", "seconds"]


def test_summaries_are_numpy_s_means_over_what_was_measured():
    summaries = summarise(PAIRS, LABELS)
    found = {(s.stage, s.label, s.measure): s.spread for s in summaries}
    after = found["after", "mean", "dice"]
    assert (after.n, after.mean, after.sd) == pytest.approx((2, 0.35, np.std([0.3, 0.4], ddof=1)))
    assert (after.median, after.least, after.most) == pytest.approx((0.35, 0.3, 0.4))
    assert found["after", "mean", "seconds"].mean == pytest.approx(2.0)
    assert found["after", "1", "dice"].mean == pytest.approx(0.5)
    assert found["after", "12", "dice"].n == 1 and math.isnan(found["after", "12", "dice"].sd)
    assert ("after", "12", "assd_mm") not in found and found["after", "1", "assd_mm"].n == 1
    labels = [s.label for s in summaries if s.stage == "after" and s.measure == "dice"]
    assert labels == ["mean", "1", "12"]


def test_a_pair_is_worse_by_dice_or_without_labels_by_correlation():
    assert worse_than_start(PAIRS) == (1, 3)


def test_the_tables_hold_means_and_spreads_with_one_column_per_measure():
    summaries = summarise(PAIRS, LABELS)
    head, _, *rows = stage_table(summaries)
    assert head == "|  | pairs | Dice | NCC | seconds |"
    assert rows == [
        "| start (headers) | 2 | 0.4000 ± 0.1414 | 0.1000 |  |",
        "| after registration | 3 | 0.3500 ± 0.0707 | 0.7000 | 2.00 ± 1.73 |",
    ]
    assert label_table(summaries)[2:] == [
        "| 1 | 2 | 0.3500 ± 0.2121 | 0.5000 ± 0.1414 | 2.000 |",
        "| 12 | 1 | 0.4000 | 0.0000 |  |",
    ]


def test_no_pair_gives_no_table():
    assert summarise([pair_rows(CASES[2])[0]]) == [] and label_table([]) == []
    assert worse_than_start([]) == (0, 0)
