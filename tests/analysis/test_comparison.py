"""One scorer for all methods, and what their rows come to."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from napari_shmoareg.evaluation.comparison import (
    Spread,
    comparison_figure,
    finished_by_all,
    markdown_table,
    summarise,
)
from napari_shmoareg.geometry import DisplacementField, Transform, warp_volume
from napari_shmoareg.metrics import dice, mean
from napari_shmoareg.metrics.measure import measure_field, selected


def row(pair, method, dice="", seconds=1.0, error="", **more):
    return {"pair": pair, "method": method, "dice": dice, "seconds": seconds, "error": error} | more


ROWS = [
    row(1, "start", 0.5, 0.0),
    row(1, "a", 0.7, 10.0),
    row(1, "b", 0.4, 1.0),
    row(2, "start", 0.6, 0.0),
    row("2", "a", "0.8", "30.0"),  # as read back from a file
    row(2, "b", error="it broke", seconds=""),
]


def test_the_score_is_that_of_the_labels_at_x_plus_d(pair):
    matrix = np.eye(4)
    matrix[:3, 3] = 2.0, -1.0, 3.0
    field = Transform(matrix).total(pair.fixed.grid)
    points = pair.fixed.grid.to_world(np.array([[10.0, 8.0, 7.0], [20.5, 15.0, 12.0]]))
    found = measure_field(pair, field, selected(), (points, points))["means"]
    carried = warp_volume(pair.moving_labels, pair.fixed.grid, Transform(matrix))
    assert found["dice"] == mean(dice(carried.values, pair.fixed_labels.values))
    assert found["landmark_mm"] == pytest.approx(math.sqrt(14), rel=1e-4)
    assert found["folding_percent"] == 0 and found["sdlogj"] == pytest.approx(0, abs=1e-4)
    assert 0 < found["assd_mm"] < found["hd95_mm"]


def test_folding_is_of_the_whole_map(pair):
    grid = pair.fixed.grid
    points = grid.to_world(
        np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    )
    mirrored = DisplacementField((points * [-1, 1, 1] - points).astype(np.float32), grid)
    found = measure_field(pair, mirrored, ("folding_percent",))
    assert found["means"]["folding_percent"] == 100


def test_without_labels_only_the_map_itself_is_scored(pair):
    from dataclasses import replace

    bare = replace(pair, moving_labels=None)
    field = DisplacementField(np.zeros((*pair.fixed.grid.shape, 3)), pair.fixed.grid)
    found = measure_field(bare, field, ("dice", "assd_mm", "folding_percent", "sdlogj"))
    assert found["labels"] == {} and set(found["means"]) == {"folding_percent", "sdlogj"}


def test_means_and_spread_leave_failures_out_and_count_them():
    start, a, b = summarise(ROWS)
    assert (start.method, a.method, b.method) == ("start", "a", "b")
    expected = Spread(n=2, mean=0.75, sd=math.sqrt(0.005), median=0.75, least=0.7, most=0.8)
    assert asdict(a.measures["dice"]) == pytest.approx(asdict(expected))
    assert (a.pairs, a.failed, b.pairs, b.failed) == (2, 0, 1, 1)
    assert math.isnan(b.measures["dice"].sd)
    assert "assd_mm" not in a.measures


def test_equal_terms_are_the_pairs_that_every_method_finished():
    assert finished_by_all(ROWS) == ROWS[:3], "b failed on pair 2"
    assert finished_by_all([*ROWS, row(3, "start")]) == ROWS[:3], "a and b have not come to pair 3"
    assert finished_by_all([row(1, "a", error="it broke"), row(1, "b")]) == []


def test_pairs_that_were_made_worse_are_counted_by_dice_and_else_by_landmarks():
    start, a, b = summarise(ROWS)
    assert (start.compared, a.worse, a.compared, b.worse, b.compared) == (0, 0, 2, 1, 1)
    rows = [
        row(1, "start", landmark_mm=4.0),
        row(1, "a", landmark_mm=5.0),
        row(2, "a", landmark_mm=1.0),
    ]
    _, a = summarise(rows)
    assert (a.worse, a.compared) == (1, 1), "a pair without a start cannot be compared"


def test_the_table_has_a_line_per_method_and_only_what_was_measured():
    lines = markdown_table(summarise(ROWS)).splitlines()
    assert lines[0] == "| method | pairs | Dice | seconds | worse than the start |"
    assert len({line.count("|") for line in lines}) == 1
    assert (
        lines[3]
        == "| a | 2 | 0.750 ± 0.071 (0.700 to 0.800) | 20.0 ± 14.1 (10.0 to 30.0) | 0 of 2 |"
    )
    assert lines[4] == "| b | 1 (1 failed) | 0.400 | 1.0 | 1 of 1 |"


def test_the_figure_puts_each_method_at_its_mean_and_the_start_as_a_line():
    figure = comparison_figure(
        [row | {"sdlogj": 0.01 * float(row["seconds"] or 0)} for row in ROWS]
    )
    seconds, regularity = figure.axes
    assert seconds.get_xscale() == "log" and regularity.get_xscale() == "linear"
    for axes, scale in ((seconds, 1.0), (regularity, 0.01)):
        middles = [tuple(float(v[0]) for v in c.lines[0].get_data()) for c in axes.containers]
        assert middles == [pytest.approx((20.0 * scale, 0.75)), pytest.approx((1.0 * scale, 0.4))]
        assert axes.lines[0].get_ydata()[0] == pytest.approx(0.55)
    figure.canvas.draw()


def test_the_figure_joins_the_settings_of_one_method_and_no_two_methods_look_alike():
    names = ["a", "a:balanced", "a:smooth", "b", *"cdefghi"]
    rows = [
        row(1, name, dice=0.7 - 0.01 * n, sdlogj=0.4 - 0.02 * n, seconds=9)
        for n, name in enumerate(names)
    ]
    _, regularity = comparison_figure(rows).axes
    (joined,) = [line for line in regularity.lines if len(line.get_xdata()) == 3]
    assert joined.get_xydata() == pytest.approx(np.array([(0.4, 0.7), (0.38, 0.69), (0.36, 0.68)]))
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in regularity.containers}
    assert len(looks) == len(names)


@pytest.mark.parametrize("rows", [[], [row(1, "a", landmark_mm=3.0, sdlogj=0.1)]])
def test_a_figure_can_be_drawn_of_little(rows):
    figure = comparison_figure(rows)
    figure.canvas.draw()
    assert [len(axes.containers) for axes in figure.axes] == [len(rows)] * 2
