"""The bars are the loads of the report, and a click on one shows its map."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from PIL import Image
from qtpy.QtCore import QEvent, QPoint, QRectF, Qt
from qtpy.QtGui import QColor, QHelpEvent, QPalette
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QToolTip

from napari_shmoareg.experts.maps import times_chosen, token_loads
from napari_shmoareg.model import RoutingTrace
from napari_shmoareg.plugin import showing
from napari_shmoareg.plugin.controls.bars import Bar, BarChart
from napari_shmoareg.plugin.experts.loads import NO_EXPERTS, LayersView, LoadFiles
from napari_shmoareg.plugin.experts.panel import ExpertsPanel
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import tag


@pytest.fixture
def view(model, qtbot):
    made = LayersView(model)
    qtbot.addWidget(made)
    made.show_registration(1)
    made.resize(600, 900)
    made.show()
    qtbot.waitExposed(made)
    return made


def where(chart, index):
    """A point in the middle of a bar's column, near the top: above most bars."""
    column = chart.column_of(index)
    return QPoint(int(column.center().x()), int(column.top()) + 2)


def click(chart, index):
    """A left click on a bar, as a person makes it."""
    QTest.mouseClick(
        chart, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, where(chart, index)
    )


def entry_of(registration, bar):
    """What the report says of a bar's gate; of all blocks the sum."""
    found = [
        entry
        for entry in registration.report["expert_loads"]
        if all(value in (None, entry[name]) for name, value in bar.gate._asdict().items())
    ]
    counts = np.sum([entry["counts"] for entry in found], axis=0)
    return counts, sum(entry["cells"] for entry in found), len(found)


def visible(viewer):
    return [
        layer.name
        for layer in viewer.layers
        if layer.visible and tag(layer, "role") in showing.MAPS
    ]


def test_there_is_a_bar_for_every_gate_and_expert_and_its_height_is_the_share_of_the_report(
    view, registration
):
    drawn = {}
    for chart in view.charts:
        full = chart.column_of(0).height()
        for n, bar in enumerate(chart.bars):
            counts, _, _ = entry_of(registration, bar)
            drawn[bar.gate, bar.expert] = chart.rect_of(n).height() / full * chart.highest
            assert drawn[bar.gate, bar.expert] == pytest.approx(counts[bar.expert] / counts.sum())
    for entry in registration.report["expert_loads"]:
        for expert, share in enumerate(entry["share"]):
            place = tuple(entry[name] for name in ("part", "layer", "block", "image", "direction"))
            assert drawn[place, expert] == pytest.approx(share)
    assert len(drawn) > sum(
        len(entry["counts"]) for entry in registration.report["expert_loads"]
    ), "no bars of all blocks"


def test_moving_stands_left_of_fixed_in_another_colour(view, registration):
    chart = view.charts[0]
    assert [bar.gate.image for bar in chart.bars[:2]] == ["moving", "fixed"]
    assert chart.rect_of(0).right() <= chart.rect_of(1).left() + 0.01 < chart.rect_of(2).left()
    picture = chart.grab().toImage()
    for n in (0, 1):
        highest = max(range(n, len(chart.bars), 2), key=lambda index: chart.bars[index].value)
        bar = chart.rect_of(highest)
        assert (
            picture.pixelColor(int(bar.center().x()), int(bar.bottom()) - 3).name()
            == chart.bars[n].colour
        )
    moving, fixed = (np.array([bar.value for bar in chart.bars[n::2]]) for n in (0, 1))
    assert not np.allclose(moving, fixed), "the two images chose alike: nothing to tell apart"


def test_the_dotted_line_is_at_equal_shares(qtbot):
    bars = [
        Bar(("decoder", 1, None, None, "x"), n, share, "#0000ff", str(n), "")
        for n, share in enumerate((0, 0, 1))
    ]
    chart = BarChart("x", equal=True, pickable=True)
    chart.show_bars(bars)
    qtbot.addWidget(chart)
    chart.resize(300, 96)
    palette = QPalette()
    palette.setColor(QPalette.ColorRole.WindowText, Qt.GlobalColor.red)
    palette.setColor(QPalette.ColorRole.Window, Qt.GlobalColor.black)
    chart.setPalette(palette)
    picture, column = chart.grab().toImage(), chart.column_of(0)
    red = {
        y
        for x in range(int(column.left()) + 2, int(column.right()) - 2)
        for y in range(int(column.top()) + 3, int(column.bottom()) - 3)
        if picture.pixelColor(x, y).red() > 100 > picture.pixelColor(x, y).green()
    }
    assert red and all(abs(y + 0.5 - (column.bottom() - column.height() / 3)) <= 1.5 for y in red)


def test_a_click_on_a_bar_of_the_encoder_shows_that_heads_map(view, model, registration):
    chart, n = next(
        (chart, n)
        for chart in view.charts
        for n, bar in enumerate(chart.bars)
        if bar.gate[:4] == ("encoder", 2, 1, "moving") and bar.expert == 3
    )
    click(chart, n)
    assert visible(model) == ["#1 head 3 of layer 2 block 1 (moving)"]
    assert chart.marked is chart.bars[n]
    assert [other for other in view.charts if other.marked] == [chart]


def test_a_click_on_a_bar_of_all_blocks_shows_how_often_the_head_was_chosen(
    view, model, registration
):
    chart = next(chart for chart in view.charts if chart.title == "all blocks")
    click(chart, 5)
    bar, layer = chart.bars[5], showing.head_layer(model, 1)
    assert layer.name.endswith("times chosen") and tag(layer, "load") in times_chosen(registration)
    assert (tag(layer, "load").gate, tag(layer, "head")) == (
        bar.gate,
        bar.expert,
    ) and chart.marked is bar


def test_a_click_on_a_bar_of_the_decoder_draws_its_cells_alone_and_a_second_one_all(
    view, model, registration
):
    chart = next(c for c in view.charts if c.bars[0].gate[:2] == ("decoder", 2) and c.title == "z")
    click(chart, 1)
    assert visible(model) == ["#1 expert z (half)"]
    layer = model.layers["#1 expert z (half)"]
    assert (layer.show_selected_label, layer.selected_label) == (
        True,
        2,
    ) and chart.marked is chart.bars[1]
    click(chart, 1)
    assert (
        visible(model) == ["#1 expert z (half)"]
        and not layer.show_selected_label
        and chart.marked is None
    )
    click(chart, 2)
    assert showing.single_expert(layer) == 2


def test_keys_go_from_bar_to_bar_and_enter_shows_the_map(view, model):
    chart = view.charts[0]
    chart.setFocus()
    for key in (Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_Right, Qt.Key.Key_Right):
        QTest.keyClick(chart, key)
    assert (
        chart.accessibleDescription() == chart.bars[3].tooltip and "share" in chart.accessibleName()
    )
    QTest.keyClick(chart, Qt.Key.Key_Return)
    assert chart.marked is chart.bars[3]
    layer = showing.head_layer(model, 1)
    assert (tag(layer, "load").gate, tag(layer, "head")) == (
        chart.bars[3].gate,
        chart.bars[3].expert,
    )
    assert all(chart.focusPolicy() & Qt.FocusPolicy.TabFocus for chart in view.charts)


def test_the_mark_follows_what_is_shown_elsewhere(model, qtbot):
    panel = ExpertsPanel(model)
    qtbot.addWidget(panel)
    panel.show()
    qtbot.waitExposed(panel)
    panel.tabs.setCurrentIndex(1)
    view = panel.layers
    assert view.isVisible()
    load = next(
        load
        for load in token_loads(panel_registration(model))
        if load.gate[:4] == ("encoder", 2, 0, "fixed")
    )
    showing.show_head(model, 1, load, 4)
    (chart,) = (c for c in view.charts if c.marked)
    assert chart.marked == bar_of(view, load.gate, 4)
    assert chart.accessibleDescription() == chart.marked.tooltip
    layer = showing.show_experts(model, 1, "y", 1)
    assert not any(chart.marked for chart in view.charts)
    layer.selected_label = 1
    layer.show_selected_label = True
    assert [c.marked for c in view.charts if c.marked] == [
        bar_of(view, tag(layer, "expert_map").gate, 0)
    ]
    layer.visible = False
    assert not any(chart.marked for chart in view.charts)


def panel_registration(model):
    return next(
        tag(layer, "registration")
        for layer in model.layers
        if tag(layer, "registration") is not None
    )


def bar_of(view, place, expert):
    return next(
        bar
        for chart in view.charts
        for bar in chart.bars
        if (bar.gate, bar.expert) == (place, expert)
    )


def test_the_tooltip_tells_the_exact_share_the_count_and_the_number_of_cells(view, registration):
    for chart in view.charts:
        for bar in chart.bars:
            counts, cells, blocks = entry_of(registration, bar)
            share = 100 * counts[bar.expert] / counts.sum()
            assert (
                f"{share:.2f} % of selections: {counts[bar.expert]:,} of {counts.sum():,}"
                in bar.tooltip
            )
            assert f"{cells // (1 if bar.gate.block is not None else blocks):,} " in bar.tooltip
            assert "Click" in bar.tooltip
    chart = view.charts[-1]
    at = where(chart, 1)
    QApplication.sendEvent(chart, QHelpEvent(QEvent.Type.ToolTip, at, chart.mapToGlobal(at)))
    assert QToolTip.text() == chart.bars[1].tooltip
    QToolTip.hideText()


def test_a_map_that_was_removed_is_made_again_by_its_bar(view, model):
    for layer in list(model.layers):
        if tag(layer, "role") in ("head_map", "expert_map"):
            model.layers.remove(layer)
    view.refresh()
    click(view.charts[0], 0)
    (head,) = visible(model)
    assert " head 0 " in head and view.charts[0].marked
    click(view.charts[-1], 0)
    (shown,) = visible(model)
    assert " expert " in shown and view.charts[-1].marked


def test_a_network_without_experts_has_no_bars_and_says_so(registration, qtbot):
    viewer = ViewerModel()
    bare = replace(registration, routing=RoutingTrace())
    add_layers(
        viewer,
        layers_of(
            replace(bare, report=dict(registration.report) | {"expert_loads": []}), 1, maps=True
        ),
    )
    view = LayersView(viewer)
    qtbot.addWidget(view)
    view.show_registration(1)
    assert view.charts == [] and view.caption.text() == NO_EXPERTS and not view.files.isEnabled()


def test_another_registration_brings_its_own_bars_and_none_takes_them_away(
    view, model, registration
):
    entries = [dict(entry) for entry in registration.report["expert_loads"]]
    entries[0] = entries[0] | {"counts": list(reversed(entries[0]["counts"]))}
    add_layers(
        model,
        layers_of(
            replace(registration, report=dict(registration.report) | {"expert_loads": entries}),
            2,
            maps=True,
        ),
    )
    before = [bar.value for bar in view.charts[0].bars]
    view.show_registration(2)
    now = [bar.value for bar in view.charts[0].bars]
    assert now[1::2] == before[1::2] and now[::2] == before[::2][::-1] != before[::2]
    view.show_registration(None)
    assert view.charts == [] and not view.isEnabled()


def test_a_narrow_view_has_fewer_charts_in_a_row_and_none_is_cut_off(view, qtbot):
    rows = {}
    for width in (600, 260):
        view.resize(width, 900)
        qtbot.wait(1)
        right = max(chart.mapTo(view, QPoint(chart.width(), 0)).x() for chart in view.charts)
        assert right <= width == view.width()
        rows[width] = max(
            sum(
                c.parentWidget() is chart.parentWidget() and c.y() == chart.y() for c in view.charts
            )
            for chart in view.charts
            if chart.bars[0].gate.part == "encoder"
        )
    assert rows[260] < rows[600] == 3


def test_bars_are_seen_in_light_and_in_dark(qtbot):
    bars = [Bar(("decoder", 1, None, None, "x"), 0, 1.0, "#ffffff", "1×1×1", "")]
    chart = BarChart("x", equal=True, pickable=True)
    chart.show_bars(bars)
    qtbot.addWidget(chart)
    chart.resize(150, 96)
    for ground, text in (("#ffffff", "#000000"), ("#23242b", "#f0f1f2")):
        palette = QPalette()
        palette.setColor(QPalette.ColorRole.Window, QColor(ground))
        palette.setColor(QPalette.ColorRole.WindowText, QColor(text))
        chart.setPalette(palette)
        picture, rect = chart.grab().toImage(), QRectF(chart.rect_of(0))
        edge = picture.pixelColor(int(rect.left()), int(rect.center().y()))
        assert max(abs(edge.red() - picture.pixelColor(1, 40).red()), abs(edge.red() - 255)) > 60


@pytest.mark.parametrize("name", ["loads.png", "loads.svg"])
def test_the_figure_that_is_saved_says_whose_it_is(registration, qtbot, tmp_path, told, name):
    files = LoadFiles(lambda: registration)
    qtbot.addWidget(files)
    files.save_figure(tmp_path / name)
    qtbot.waitUntil(lambda: "saved" in told("info"), timeout=60_000)
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            about = picture.text
        assert about["Weights"] == registration.weights and json.loads(about["Settings"])[
            "network"
        ]["kernels"] == [1, 3, 5]
        assert (
            registration.pair.moving.name in about["Pair"]
            and "of selections" in about["Description"]
        )
    else:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert (
            f"Weights: {registration.weights}" in text and "Share of selections per expert" in text
        )


def test_a_figure_that_cannot_be_saved_says_why_and_leaves_what_was_there(
    registration, qtbot, tmp_path, told, monkeypatch, caplog
):
    files = LoadFiles(lambda: registration)
    qtbot.addWidget(files)
    files.save_figure(tmp_path / "nowhere" / "x.png")
    qtbot.waitUntil(lambda: "nowhere" in told("error"), timeout=60_000)
    assert "bug" not in told("error") and not caplog.text
    from matplotlib.figure import Figure

    def breaks(self, path, **_):
        Path(path).write_bytes(b"half")
        raise ValueError("no such colour")

    monkeypatch.setattr(Figure, "savefig", breaks)
    (tmp_path / "old.png").write_bytes(b"whole")
    files.save_figure(tmp_path / "old.png")
    qtbot.waitUntil(lambda: "no such colour" in told("error"), timeout=60_000)
    assert (
        "could not be saved" in told("error")
        and "registration failed" not in caplog.text
        and caplog.text
    )
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old.png", b"whole")]


def test_the_table_that_is_saved_is_the_load_of_the_report(registration, qtbot, tmp_path, told):
    files = LoadFiles(lambda: registration)
    qtbot.addWidget(files)
    files.save_table(tmp_path / "loads.csv")
    rows = list(csv.DictReader((tmp_path / "loads.csv").open(encoding="utf-8")))
    counts = [int(row["count"]) for row in rows]
    assert counts == [
        count for entry in registration.report["expert_loads"] for count in entry["counts"]
    ]
    files.save_table(tmp_path / "nowhere" / "loads.csv")
    files.save_figure(tmp_path / "loads.bmp")
    qtbot.waitUntil(lambda: "loads.bmp" in told("error"), timeout=60_000)
    assert "nowhere" in told("error")
