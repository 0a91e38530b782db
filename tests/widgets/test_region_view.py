"""Loads per region: the table holds what region_loads computes, drawn shapes hold the voxels that
lie in them.
"""

from __future__ import annotations

import csv
import threading

import numpy as np
import pytest
from napari.layers import Shapes
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts import regions as region_loads_module
from napari_shmoareg.experts.maps import token_loads
from napari_shmoareg.experts.regions import region_loads
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.plugin.controls.tasks import CANCEL
from napari_shmoareg.plugin.experts.region_source import (
    FIXED,
    drawn_regions,
    in_ellipse,
    in_polygon,
)
from napari_shmoareg.plugin.experts.regions import (
    ABOVE,
    CAPTION,
    CHANCE,
    COMPUTE,
    TOGETHER,
    TOO_FEW,
    WHOLE,
    RegionView,
    middle_of,
)
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import to_viewer


@pytest.fixture
def view(model, qtbot):
    made = RegionView(model)
    qtbot.addWidget(made)
    made.show_registration(1)
    return made


def compute(view, qtbot):
    """Press the button and wait for the table."""
    with qtbot.waitSignal(view.task.finished, timeout=30_000):
        view.compute.click()


def column(table, number):
    return [table.item(row, number).text() for row in range(table.rowCount())]


def values(chart):
    """Of the region and of the reference in turn."""
    return [bar.value for bar in chart.bars]


def oblique(shape=(23, 31, 17), spacing=(1.5, 2.2, 3.1)):
    a, b = 0.4, -0.3
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(spacing)
    affine[:3, 3] = -20, 15, 7
    return Grid(shape, affine)


def centres(grid):
    return grid.to_world(
        np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    )


@pytest.mark.parametrize("scale", [(1, 1, 1), (0.5, 2.0, 3.0)])
def test_a_drawn_rectangle_covers_exactly_the_voxels_whose_centres_lie_in_it(scale):
    grid = oblique()
    s, a, r = to_viewer(grid.centre)
    low, high = np.array([s, a - 11.3, r - 9.7]), np.array([s, a + 8.1, r + 6.2])
    corners = np.array([low, [s, low[1], high[2]], high, [s, high[1], low[2]]])
    layer = Shapes(
        [(corners - 4.0) / scale],
        shape_type="rectangle",
        scale=scale,
        translate=(4, 4, 4),
        units=("mm",) * 3,
    )
    for thickness in (6.0, 13.0):
        mask = drawn_regions(layer, grid, thickness)
        seen = to_viewer(centres(grid))
        expected = (seen[..., 1:] > low[1:]).all(-1) & (seen[..., 1:] < high[1:]).all(-1)
        expected &= np.abs(seen[..., 0] - s) <= thickness
        assert expected.sum() > 100 and mask.is_labels
        np.testing.assert_array_equal(mask.values == 1, expected)


def test_without_thickness_a_shape_covers_one_slice_of_a_straight_grid_whatever_its_place():
    grid = Grid((12, 10, 8), np.diag([2.0, 3.0, 4.0, 1.0]))
    for s, slice_ in ((8.0, 2), (9.9, 2), (10.1, 3), (10.0, 2)):
        layer = Shapes(
            [[[s, 2, 3], [s, 2, 13], [s, 22, 13], [s, 22, 3]]],
            shape_type="polygon",
            units=("mm",) * 3,
        )
        mask = drawn_regions(layer, grid)
        assert np.unique(np.nonzero(mask.values)[2]).tolist() == [slice_]
        assert mask.values.sum() == 5 * 7  # x = 4..12, y = 3..21


def test_shapes_of_another_unit_and_another_plane_stand_where_they_were_drawn():
    grid = Grid((12, 10, 8), np.diag([2.0, 3.0, 4.0, 1.0]))
    box = np.array([[3, 9, 5], [3, 9, 15], [21, 9, 15], [21, 9, 5]])  # coronal: A is 9 mm
    layer = Shapes([box * 1000.0], shape_type="rectangle", units=("um",) * 3)
    found = np.argwhere(drawn_regions(layer, grid).values)
    assert (
        set(found[:, 1]) == {3}
        and set(found[:, 0]) == {3, 4, 5, 6, 7}
        and set(found[:, 2]) == {1, 2, 3, 4, 5}
    )


def test_an_ellipse_holds_what_lies_in_it_and_a_later_shape_covers_an_earlier_one():
    grid = Grid((40, 40, 5), np.eye(4))
    box = np.array([[2, 5, 5], [2, 5, 31], [2, 35, 31], [2, 35, 5]], dtype=float)
    inner = np.array([[2, 18, 16], [2, 18, 20], [2, 22, 20], [2, 22, 16]], dtype=float)
    line = np.array([[2, 0, 0], [2, 30, 30]], dtype=float)
    layer = Shapes(
        [box, line, inner], shape_type=["ellipse", "line", "rectangle"], units=("mm",) * 3
    )
    values = drawn_regions(layer, grid).values[..., 2]
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    expected = np.where(((x - 18) / 13) ** 2 + ((y - 20) / 15) ** 2 <= 1, 1, 0)
    assert set(np.unique(values)) == {0, 1, 3}
    np.testing.assert_array_equal(values > 0, expected > 0)
    assert values[18, 20] == 3


def test_a_point_in_a_concave_polygon_is_told_from_one_in_its_notch():
    corners = np.array([[0, 0], [10, 0], [10, 10], [5, 3], [0, 10]], dtype=float)
    points = np.array([[5, 1], [5, 6], [1, 8], [9, 8], [11, 1], [-1, 5]], dtype=float)
    assert in_polygon(points, corners).tolist() == [True, False, True, True, False, False]
    assert not in_ellipse(points, np.zeros((4, 2))).any()


def test_what_encloses_nothing_is_refused_in_words():
    grid = oblique()
    with pytest.raises(InputError, match="encloses a region"):
        drawn_regions(Shapes([[[0, 0, 0], [0, 5, 5]]], shape_type="line"), grid)
    with pytest.raises(InputError, match="2 axes"):
        drawn_regions(Shapes([[[0, 0], [0, 5], [5, 5]]], shape_type="polygon"), grid)
    with pytest.raises(InputError, match="one plane"):
        drawn_regions(
            Shapes([[[0, 0, 0], [9, 9, 0], [4, 9, 9], [0, 3, 8]]], shape_type="polygon"), grid
        )


def test_the_table_holds_what_region_loads_gives(view, registration, qtbot):
    for where in (
        {"part": "decoder", "layer": 1, "direction": "y"},
        {"part": "encoder", "layer": 1, "block": 0, "image": "moving"},
    ):
        view.where.pick(**where)
        assert view.where.where == where
        compute(view, qtbot)
        names = {label: str(label) for label in registration.pair.fixed_labels.labels}
        expected = region_loads(
            registration, registration.pair.fixed_labels, names=names, reference=TOGETHER, **where
        )
        table = view.table
        table.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        assert column(table, 0) == [load.name for load in expected] and len(expected) == 4
        assert column(table, 2) == [f"{load.distance:.3f}" for load in expected]
        assert column(table, 5) == [str(load.blocks) for load in expected]
        for n in range(len(expected[0].share)):
            assert column(table, 6 + n) == [f"{100 * load.share[n]:.1f}" for load in expected]
        for row, load in enumerate(expected):
            tip = table.item(row, 6).toolTip()
            assert ("too few spatial blocks" in tip) == (load.low is None)
            assert (
                load.low is None
                or f"interval {100 * load.low[0]:.1f} to {100 * load.high[0]:.1f} %" in tip
            )
            above = load.expected is not None and load.distance > load.expected
            name = TOO_FEW if load.low is None else ABOVE if above else CHANCE
            assert table.item(row, 1).text() == name


def test_all_blocks_are_rows_of_their_own(view, registration, qtbot):
    blocks = {load.block for load in token_loads(registration) if load.layer == 1}
    view.where.pick(part="encoder", layer=1, block=None, image="fixed")
    compute(view, qtbot)
    assert view.table.rowCount() == 4 * len(blocks)
    at_once = region_loads(
        registration,
        registration.pair.fixed_labels,
        reference=TOGETHER,
        part="encoder",
        layer=1,
        image="fixed",
    )
    for one, other in zip(view._result.loads, at_once, strict=True):
        assert (one.gate, one.region, one.distance, one.expected) == (
            other.gate,
            other.region,
            other.distance,
            other.expected,
        )
    assert len(blocks) == 1 or any(name.endswith("block 1") for name in column(view.table, 0))


def test_figures_sort_by_number_and_a_row_goes_to_its_region(view, model, registration, qtbot):
    compute(view, qtbot)
    view.table.sortByColumn(4, Qt.SortOrder.DescendingOrder)
    cells = [view.table.item(row, 4).value for row in range(4)]
    assert cells == sorted(cells, reverse=True)
    labels = registration.pair.fixed_labels
    for row in range(4):
        view.table.selectRow(row)
        view.table.cellClicked.emit(row, 0)
        region = int(view.table.item(row, 0).text())
        point = middle_of(labels, region)
        index = tuple(np.rint(labels.grid.to_index(point)).astype(int))
        assert labels.values[index] == region
        steps = np.array([step.step for step in model.dims.range[-3:]])
        assert (np.abs(np.array(model.dims.point[-3:]) - to_viewer(point)) <= steps).all()
        load = view._result.loads[view.table.chosen()]
        assert load.region == region and values(view.bars)[::2] == list(load.share)
        ends = (
            [None] * len(load.share)
            if load.low is None
            else list(zip(load.low, load.high, strict=True))
        )
        assert [bar.interval for bar in view.bars.bars[::2]] == ends


def test_another_region_is_the_reference(view, registration, qtbot):
    assert [view.reference.itemData(n) for n in range(view.reference.count())] == [
        WHOLE,
        TOGETHER,
        1,
        2,
        3,
        4,
    ]
    view.reference.setCurrentIndex(view.reference.findData(2))
    compute(view, qtbot)
    (own,) = (load for load in view._result.loads if load.region == 2)
    assert own.distance == 0
    other = next(n for n in range(4) if view.table.item(n, 0).text() != "2")
    view.table.selectRow(other)
    np.testing.assert_array_equal(values(view.bars)[1::2], own.share)


def test_the_bars_compare_with_the_load_of_the_whole_image(view, registration, qtbot):
    view.where.pick(part="decoder", layer=1, direction="z")
    view.reference.setCurrentIndex(view.reference.findData(WHOLE))
    compute(view, qtbot)
    assert (
        "the whole image" in CAPTION
        and "is not air" in CAPTION
        and "air included (grey)" in view.detail.text()
    )
    entry = next(
        e
        for e in registration.report["expert_loads"]
        if (e["part"], e["layer"], e["direction"]) == ("decoder", 1, "z")
    )
    np.testing.assert_allclose(values(view.bars)[1::2], entry["share"], atol=1e-9)


def test_all_regions_together_are_a_reference_without_air(view, registration, pair, qtbot):
    view.where.pick(part="decoder", layer=1, direction="z")
    assert view.reference.currentData() == TOGETHER, (
        "it is not what several regions are compared with"
    )
    compute(view, qtbot)
    body = Volume(
        (pair.fixed_labels.values > 0).astype(np.uint8), pair.fixed.grid, "body", is_labels=True
    )
    (whole,) = region_loads(registration, body, part="decoder", layer=1, direction="z")
    np.testing.assert_allclose(values(view.bars)[1::2], whole.share)
    assert "all regions together (grey)" in view.detail.text()


def test_a_drawn_shape_is_a_region(view, model, registration, qtbot):
    view.regions.draw.click()
    layer = model.layers[-1]
    assert (
        view.regions.source.layer is layer
        and layer.mode == "add_polygon"
        and layer.scale.tolist() == [1, 1, 1]
    )
    assert not view.regions.slab.isHidden()
    with qtbot.waitSignal(view.task.failed, timeout=30_000) as failed:
        view.compute.click()
    assert "encloses" in failed.args[0] and view.compute.isEnabled()
    s, a, r = to_viewer(registration.pair.fixed.grid.centre)
    layer.add_rectangles(
        [[s, a - 15, r - 15], [s, a - 15, r + 15], [s, a + 15, r + 15], [s, a + 15, r - 15]]
    )
    offered = [view.reference.itemText(n) for n in range(view.reference.count())]
    assert offered == ["whole image, air included", "all regions together", "rectangle 1"]
    assert view.reference.currentData() == WHOLE
    view.regions.thickness.setValue(10)
    compute(view, qtbot)
    assert column(view.table, 0) == ["rectangle 1"]
    drawn = drawn_regions(layer, registration.pair.fixed.grid, 10)
    (expected,) = region_loads(registration, drawn, **view.where.where)
    assert view.table.item(0, 4).value == pytest.approx(expected.tokens) and expected.tokens > 50


def test_labels_of_the_moving_image_and_maps_are_no_regions(view, model, registration):
    from napari_shmoareg.plugin.layers import layers_of_pair

    add_layers(model, layers_of_pair(registration.pair))
    view.refresh()
    offered = [view.regions.combo.itemText(n) for n in range(view.regions.combo.count())]
    assert view.regions.combo.itemData(0) == FIXED
    assert "fixed_labels" in offered and "#1 warped labels" in offered
    assert not [name for name in offered if name.startswith(("#1 expert", "moving", "#1 folding"))]


def test_names_of_labels_are_taken_from_the_layer(view, model, registration, qtbot):
    import pandas

    labels = registration.pair.fixed_labels
    from napari_shmoareg.plugin.placement import layer_options

    data, options = layer_options(labels)
    features = pandas.DataFrame(
        {"index": [0, 1, 2, 3, 4], "structure": ["none", "skin", "liver", "kidney", "spleen"]}
    )
    layer = model.add_labels(data, **options | {"name": "organs"}, features=features)
    view.refresh()
    view.regions.pick(layer)
    compute(view, qtbot)
    assert sorted(column(view.table, 0)) == ["kidney", "liver", "skin", "spleen"]


def test_the_table_is_copied_and_saved(view, registration, qtbot, tmp_path):
    compute(view, qtbot)
    view.buttons.copy.click()
    assert (
        QApplication.clipboard()
        .text()
        .splitlines()[0]
        .startswith("pair\tweights\tlabels\treference\tregion\tname\tpart\tlayer")
    )
    view.buttons.save_to(str(tmp_path / "regions.csv"))
    with (tmp_path / "regions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, load in zip(rows, view._result.loads, strict=True):
        assert float(row["distance"]) == load.distance and float(row["share_1"]) == load.share[1]
        assert row["verdict"] in (ABOVE.lstrip("● "), CHANCE, TOO_FEW)
        assert row["pair"] == f"{registration.pair.moving.name} onto {registration.pair.fixed.name}"
        assert row["weights"] == "untrained" and row["reference"] == "all regions together"
        assert row["labels"] == "labels of the fixed image"


def test_figures_are_shown_only_as_long_as_the_form_says_what_they_are_of(view, qtbot):
    view.where.pick(part="decoder", layer=1, direction="x")
    compute(view, qtbot)
    told = "decoder layer 1, direction x: labels of the fixed image, against all regions together"
    shown = (view.table, view.bars, view.detail, view.buttons)
    assert view.heading.text() == f"<b>D{told[1:]}</b>" and not any(
        widget.isHidden() for widget in shown
    )
    for change, back in (
        (lambda: view.where.pick(direction="y"), lambda: view.where.pick(direction="x")),
        (lambda: view.reference.setCurrentIndex(0), lambda: view.reference.setCurrentIndex(1)),
    ):
        change()
        assert all(widget.isHidden() for widget in shown)
        assert told in view.heading.text() and "Press Compute" in view.heading.text()
        back()
        assert not any(widget.isHidden() for widget in shown)


def test_drawing_on_hides_the_figures_and_a_failure_takes_them_away(
    view, model, registration, qtbot
):
    view.regions.draw.click()
    layer = model.layers[-1]
    s, a, r = to_viewer(registration.pair.fixed.grid.centre)
    box = np.array(
        [[s, a - 15, r - 15], [s, a - 15, r + 15], [s, a + 15, r + 15], [s, a + 15, r - 15]]
    )
    layer.add_rectangles(box)
    compute(view, qtbot)
    assert not view.table.isHidden() and "8 mm either side" in view.heading.text()
    view.regions.thickness.setValue(9)
    assert view.table.isHidden()
    view.regions.thickness.setValue(8)
    assert not view.table.isHidden()
    layer.data = [box + 1]
    assert view.table.isHidden()
    layer.data = []
    with qtbot.waitSignal(view.task.failed, timeout=30_000):
        view.compute.click()
    assert view.table.rowCount() == 0 and view.heading.isHidden()


def test_counting_says_where_it_is_and_can_be_cancelled_between_gates(view, qtbot, monkeypatch):
    counted, go_on = threading.Event(), threading.Event()

    def wait(*_, **where):
        counted.set()
        go_on.wait(10)
        return []

    monkeypatch.setattr(region_loads_module, "region_loads", wait)
    view.where.pick(part="encoder", layer=2, block=None, image="fixed")
    view.compute.click()
    assert counted.wait(10) and view.compute.text() == CANCEL and view.compute.isEnabled()
    qtbot.waitUntil(lambda: "counting gate 1 of" in view.status.text(), timeout=5_000)
    with qtbot.waitSignal(view.task.cancelled, timeout=5_000):
        view.compute.click()
        go_on.set()
    assert (
        view.compute.text() == COMPUTE
        and view.status.text() == "Cancelled."
        and view.table.isHidden()
    )


def test_figures_of_another_registration_do_not_stay(view, model, registration, qtbot):
    from dataclasses import replace

    compute(view, qtbot)
    add_layers(model, layers_of(replace(registration, weights="mine"), 2, maps=True))
    view.show_registration(2)
    assert view.table.rowCount() == 0 and view.table.isHidden() and view.isEnabled()
    model.layers.clear()
    view.show_registration(None)
    assert not view.isEnabled()


def test_labels_that_lie_elsewhere_are_told(view, model, qtbot, told):
    far = np.eye(4)
    far[:3, 3] = 900
    from napari_shmoareg.plugin.placement import layer_options

    data, options = layer_options(
        Volume(np.ones((5, 6, 7), np.int32), Grid((5, 6, 7), far), "far", is_labels=True)
    )
    layer = model.add_labels(data, **options)
    view.refresh()
    view.regions.pick(layer)
    with qtbot.waitSignal(view.task.failed, timeout=30_000):
        view.compute.click()
    assert (
        "field of view" in told("error")
        and view.compute.isEnabled()
        and view.compute.text() == "Compute"
    )


def test_every_control_says_what_it_does(view):
    from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QPushButton

    controls = [
        c for kind in (QComboBox, QPushButton, QDoubleSpinBox) for c in view.findChildren(kind)
    ]
    assert len(controls) > 9 and all(control.toolTip() for control in controls)


def test_how_far_each_expert_moved_a_region_is_told_beside_chance(
    view, registration, lively_network, qtbot, monkeypatch
):
    from napari_shmoareg.plugin.experts import regions
    from napari_shmoareg.registration.replay import Replay

    replay = Replay.of(registration.pair, lively_network(0.03), settings=registration.settings)
    monkeypatch.setattr(regions, "replay_of", lambda *_: replay)
    view.where.pick(part="decoder", layer=1, direction="z")
    assert view.with_movement.isEnabled()
    view.with_movement.setChecked(True)
    compute(view, qtbot)
    found = view._result
    assert set(found.moved) == {(load.gate, load.region) for load in found.loads}
    for load in found.loads:
        part = found.moved[load.gate, load.region]
        np.testing.assert_allclose(part.chosen, load.share, atol=1e-6)
    said = view.detail.text()
    shown = found.moved[
        found.loads[view.table.chosen()].gate, found.loads[view.table.chosen()].region
    ]
    assert f"added {shown.mean:.2f} mm along z" in said and "by chance" in said
    rows = regions.table_of(found)
    assert sum(rows[0][f"moved_mm_{n}"] for n in range(3)) == pytest.approx(rows[0]["moved_mm"])
    view.with_movement.setChecked(False)
    assert view.table.isHidden()
