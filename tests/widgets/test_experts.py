"""The Experts panel shows what is in the layers, and its buttons change just that."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QSlider

from napari_shmoareg.experts.maps import expert_maps, times_chosen, token_loads
from napari_shmoareg.io import save_network
from napari_shmoareg.plugin import showing
from napari_shmoareg.plugin.experts.panel import CAPTION, EMPTY, ExpertsPanel
from napari_shmoareg.plugin.layers import add_layers, layers_of, weight_range
from napari_shmoareg.plugin.placement import tag, to_viewer


@pytest.fixture
def panel(model, qtbot):
    made = ExpertsPanel(model)
    qtbot.addWidget(made)
    return made


def bring_forward(panel, title):
    """Press a tab, wherever the tab bar has it."""
    bar = panel.tabs.tabBar()
    bar.setCurrentIndex(next(n for n in range(bar.count()) if bar.tabText(n) == title))


def visible(viewer, role):
    return [layer.name for layer in viewer.layers if layer.visible and tag(layer, "role") == role]


def test_a_direction_and_a_resolution_show_that_map_and_no_other(panel, model, choose):
    for direction, stride, name in (("y", 1, "#1 expert y (full)"), ("z", 2, "#1 expert z (half)")):
        choose(panel.decoder.direction, direction)
        choose(panel.decoder.resolution, stride)
        assert visible(model, "expert_map") == [name]
        assert model.layers.selection.active.name == name
        assert panel.decoder.on.isChecked()
    panel.decoder.on.click()
    assert visible(model, "expert_map") == []
    panel.decoder.on.click()
    assert visible(model, "expert_map") == ["#1 expert z (half)"]


def test_the_legend_names_the_kernels_and_their_shares_of_the_map_that_is_chosen(
    panel, registration, choose
):
    panel.decoder.air.click()
    for expert_map in expert_maps(registration):
        choose(panel.decoder.direction, expert_map.direction)
        choose(panel.decoder.resolution, expert_map.stride)
        (said,) = (
            entry["share"]
            for entry in registration.report["expert_loads"]
            if entry["part"] == "decoder"
            and (entry["layer"], entry["direction"]) == (expert_map.layer, expert_map.direction)
        )
        texts = panel.decoder.legend.texts()
        assert texts[::2] == ["1×1×1 (id 0)", "3×3×3 (id 1)", "5×5×5 (id 2)"]
        assert texts[1::2] == [f"{100 * share:.1f} %" for share in said]


def test_the_load_of_a_head_is_that_of_the_report(panel, registration, choose):
    for entry in registration.report["expert_loads"]:
        if entry["part"] != "encoder":
            continue
        head = int(np.argmin(entry["share"]))
        for field in ("layer", "image", "block"):
            choose(panel.encoder.where.fields[field], entry[field])
        choose(panel.encoder.head, head)
        assert (
            f"Head {head} has {100 * entry['share'][head]:.1f} % of the selections"
            in panel.encoder.message.text()
        )
    assert "only a share of selections" in CAPTION


def test_a_head_map_is_filled_anew_in_place_on_its_own_grid(panel, model, registration, choose):
    layer = showing.head_layer(model, 1)
    loads = {load.gate[1:4]: load for load in token_loads(registration)}
    assert len({load.stride for load in loads.values()}) > 1, "one grid only: nothing to see"
    for (number, block, image), load in loads.items():
        for field, value in (("layer", number), ("image", image), ("block", block)):
            choose(panel.encoder.where.fields[field], value)
        choose(panel.encoder.head, 1)
        assert showing.head_layer(model, 1) is layer and tag(layer, "load") is load
        token = np.unravel_index(load.values[..., 1].argmax(), load.grid.shape)
        index = layer.world_to_data(to_viewer(load.grid.to_world(token)))
        assert layer.data[tuple(np.rint(index).astype(int))] == load.values[..., 1].max() > 0
        assert layer.name == f"#1 head 1 of layer {number} block {block} ({image})"
    assert visible(model, "head_map") == [layer.name]


def test_how_often_a_head_was_chosen_counts_over_the_blocks(panel, model, registration):
    panel.encoder.counted.click()
    layer = showing.head_layer(model, 1)
    load, head = tag(layer, "load"), tag(layer, "head")
    assert load in times_chosen(registration)
    assert not panel.encoder.where.fields["block"].isEnabled()
    assert (
        layer.contrast_limits == [0, load.values.max()]
        and layer.data.max() == load.values[..., head].max()
    )
    panel.encoder.counted.click()
    assert tag(layer, "load").block is not None and layer.contrast_limits == [0, 1]


def test_a_head_map_and_an_expert_map_do_not_cover_each_other(panel, model, qtbot):
    panel.show()
    qtbot.waitExposed(panel)
    panel.decoder.on.click()
    panel.encoder.on.click()
    assert not visible(model, "expert_map") and visible(model, "head_map")
    panel.decoder.on.click()
    assert visible(model, "expert_map") and not visible(model, "head_map")


def test_grid_arrows_and_jacobian_are_switched_and_the_spacing_reaches_the_grid(panel, model):
    section = panel.deformation
    for role in ("grid", "arrows", "jacobian"):
        section.switches[role].click()
        assert visible(model, role)
    before = len(model.layers["#1 deformation grid"].data)
    section.spacing.setValue(16)
    assert 0 < len(model.layers["#1 deformation grid"].data) < before
    assert section.arrow_ramp.texts()[-1].endswith("mm") and section.jacobian_ramp.texts()[1] == "1"
    section.switches["grid"].click()
    assert not visible(model, "grid")


def test_the_panel_follows_what_is_switched_in_the_list_of_layers(panel, model, qtbot):
    panel.show()
    qtbot.waitExposed(panel)
    model.layers["#1 expert y (half)"].visible = True
    assert panel.decoder.on.isChecked()
    assert (panel.decoder.direction.currentData(), panel.decoder.resolution.currentData()) == (
        "y",
        2,
    )
    bring_forward(panel, "Field")
    model.layers["#1 deformation grid"].visible = True
    assert panel.deformation.switches["grid"].isChecked()
    panel.hide()
    model.layers["#1 deformation grid"].visible = False
    assert panel.deformation.switches["grid"].isChecked()  # a hidden panel listens to nothing
    panel.show()
    assert not panel.deformation.switches["grid"].isChecked()


def test_a_tab_that_was_behind_shows_how_things_are_when_it_comes_forward(panel, model, qtbot):
    panel.show()
    qtbot.waitExposed(panel)
    model.layers["#1 deformation grid"].visible = True
    bring_forward(panel, "Field")
    assert panel.deformation.switches["grid"].isChecked()
    model.layers["#1 expert z (full)"].visible = True
    bring_forward(panel, "Maps")
    assert panel.decoder.on.isChecked() and panel.decoder.direction.currentData() == "z"


def test_a_renamed_layer_is_looked_at_by_the_tab_in_front_alone(panel, model, monkeypatch):
    asked = []
    for name, views in panel.views.items():
        show = views[0].show_registration
        monkeypatch.setattr(
            views[0], "show_registration", lambda n, name=name, f=show: (asked.append(name), f(n))
        )
    panel.reset_choices()
    assert asked == ["Maps"]
    bring_forward(panel, "Location")
    bring_forward(panel, "Maps")
    bring_forward(panel, "Location")
    assert asked == ["Maps", "Location"]
    model.layers.clear()
    panel.reset_choices()
    assert set(asked[2:]) == set(panel.views), "a view behind keeps a registration that was closed"


def test_weights_that_the_report_calls_untrained_are_warned_of(model, qtbot, registration):
    settings = {**registration.report["settings"], "untrained": True}
    add_layers(
        model,
        layers_of(
            replace(
                registration, weights="mine", report={**registration.report, "settings": settings}
            ),
            2,
            maps=True,
        ),
    )
    panel = ExpertsPanel(model)
    qtbot.addWidget(panel)
    panel.registration.setCurrentIndex(panel.registration.findData(2))
    assert panel.number == 2 and "untrained" in panel.note.text()


@pytest.mark.slow
def test_a_line_at_the_top_states_what_the_card_says_of_the_routing(
    model, qtbot, registration, tmp_path, lively_network
):
    """What the card says, where there is one, with links to the tabs that show it."""
    scores = {
        "measure": "dice",
        "pairs": 6,
        "images": 6,
        "encoder": {"score": -0.05, "low": -0.12, "high": 0.03},
    }
    scores |= {"decoder": {"score": 0.45, "low": 0.38, "high": 0.52}}
    cards = {
        "none": None,
        "plain": {"steps": 3},
        "scored": {"routing_matters": scores},
        "odd": {"routing_matters": 7},
    }
    said = {}
    for number, (name, card) in enumerate(cards.items(), start=2):
        path = tmp_path / f"{name}.safetensors"
        if card is not None:
            save_network(lively_network(0.03), path, card=card)
        report = {**registration.report, "weights": str(path)}
        add_layers(
            model, layers_of(replace(registration, report=report, weights=name), number, maps=True)
        )
        panel = ExpertsPanel(model)
        qtbot.addWidget(panel)
        assert panel.number == number
        said[name] = panel.conclusions.text()
        assert not panel.conclusions.isHidden() and panel.conclusions.toolTip()
    assert "weights are not at hand" in said["none"] and "was not measured" in said["plain"]
    assert "cannot be read" in said["odd"]
    assert "kernels: 45 % [38, 52] of the gain depends on it" in said["scored"]
    assert "heads: no effect found (-5 % [-12, 3])" in said["scored"]
    for topic in ("What if", "Maps", "Layers", "Regions"):
        assert f'<a href="{topic}"' in said["scored"]
        panel.conclusions.linkActivated.emit(topic)
        assert panel.tabs.tabText(panel.tabs.currentIndex()) == topic


def test_maps_come_when_they_are_asked_for(registration, qtbot):
    model = ViewerModel()
    add_layers(model, layers_of(registration, 1))
    assert [tag(layer, "role") for layer in model.layers] == ["warped", "warped_labels"]
    panel = ExpertsPanel(model)
    qtbot.addWidget(panel)
    connect_panel(model, panel)
    panel.decoder.on.setChecked(True)
    maps = showing.expert_layers(model, 1)
    assert len(maps) == 1 and maps[0].visible and len(model.layers) == 3
    showing.next_expert_map(model, 1)
    assert [layer.visible for layer in showing.expert_layers(model, 1)] == [False, True]
    panel.encoder.on.setChecked(True)
    assert showing.head_layer(model, 1).visible and not any(layer.visible for layer in maps)
    for role in ("grid", "arrows", "jacobian"):
        panel.deformation.switches[role].setChecked(True)
        assert showing.is_shown(model, 1, role)
    model.layers.remove(showing.head_layer(model, 1))
    assert showing.next_head(model, 1).visible  # made again


def connect_panel(model, panel) -> None:
    """As napari does when layers come and go."""
    for emitter in (model.layers.events.inserted, model.layers.events.removed):
        emitter.connect(panel.reset_choices)


def test_air_is_left_out_of_a_map_and_its_legend_unless_wanted(registration, qtbot):
    from napari_shmoareg.experts.maps import content_cells, expert_maps

    model = ViewerModel()
    add_layers(model, layers_of(registration, 1))
    panel = ExpertsPanel(model)
    qtbot.addWidget(panel)
    connect_panel(model, panel)
    panel.decoder.on.setChecked(True)
    (layer,) = showing.expert_layers(model, 1)
    one = tag(layer, "expert_map")
    inside = content_cells(registration, one.stride)
    assert 0 < (layer.data > 0).mean() < 1 and "without air" in panel.decoder.share_of.text()
    shares = [f"{100 * share:.1f}" for share in one.shares(inside)]
    assert all(any(share in text for text in panel.decoder.legend.texts()) for share in shares)
    without = (layer.data > 0).mean()
    panel.decoder.air.click()
    assert (layer.data > 0).mean() > without and "all cells" in panel.decoder.share_of.text()
    other = next(each for each in expert_maps(registration) if each.gate != one.gate)
    showing.show_experts(model, 1, other.gate.direction, other.stride)
    assert all((each.data > 0).mean() > without for each in showing.expert_layers(model, 1))
    panel.decoder.air.click()
    assert not any(tag(each, "air") for each in showing.expert_layers(model, 1))
    assert (layer.data > 0).mean() == without


def test_the_palette_of_the_paper_can_be_chosen(
    registration, qtbot, plugin, plugin_settings, choose
):
    model = ViewerModel()
    add_layers(model, layers_of(registration, 1))
    panel = ExpertsPanel(model)
    qtbot.addWidget(panel)
    connect_panel(model, panel)
    panel.decoder.on.setChecked(True)
    (layer,) = showing.expert_layers(model, 1)
    before = layer.get_color(2)
    choose(panel.decoder.colours, "paper")
    assert not np.allclose(before, layer.get_color(2))
    np.testing.assert_allclose(layer.get_color(2), (1, 1, 1, 1))
    bars = [bar for chart in panel.layers.charts for bar in chart.bars]
    assert "#ffffff" in {bar.colour for bar in bars}
    choose(panel.decoder.colours, "distinct")
    np.testing.assert_allclose(layer.get_color(2), before)


def test_a_head_map_shows_deviations_from_equal_weights_and_says_what_a_share_can_be(
    registration, qtbot
):
    model = ViewerModel()
    add_layers(model, layers_of(registration, 1))
    panel = ExpertsPanel(model)
    qtbot.addWidget(panel)
    connect_panel(model, panel)
    panel.encoder.on.setChecked(True)
    layer = showing.head_layer(model, 1)
    load, head = tag(layer, "load"), tag(layer, "head")
    low, equal, high = weight_range(load)
    clear, below, above = layer.colormap.map(np.array([0.0, low, high]))
    assert equal == 1 / load.top_k and clear[3] == 0 and below[3] == above[3] == 1
    assert np.abs(below[:3] - above[:3]).max() > 0.5
    tokens = 100 * (load.values[..., head] > 0).mean()
    text = panel.encoder.message.text()
    assert f"{tokens:.0f} % of the tokens chose it" in text
    assert f"no head can have more than {100 / load.top_k:.0f} %" in text


def test_the_warning_of_untrained_weights_is_seen_in_front_of_every_tab(panel, qtbot):
    panel.show()
    qtbot.waitExposed(panel)
    assert panel.tabs.count() > 2
    for index in range(panel.tabs.count()):
        panel.tabs.setCurrentIndex(index)
        assert (
            panel.note.isVisible()
            and "untrained" in panel.note.text()
            and panel.registration.isVisible()
        )


def test_a_narrow_panel_keeps_every_tab_in_reach(panel, qtbot):
    panel.resize(300, 500)
    panel.show()
    qtbot.waitExposed(panel)
    assert panel.minimumSizeHint().width() <= 300 == panel.width()
    bar = panel.tabs.tabBar()
    for index in range(panel.tabs.count()):
        panel.tabs.setCurrentIndex(index)
        page, own = (
            panel.tabs.currentWidget(),
            bar.tabText(index) in ("Maps", "Layers", "Field"),
        )
        qtbot.waitUntil(
            lambda page=page, own=own: (
                _fits(page) or (not own and page.horizontalScrollBar().isVisible())
            )
        )
        assert bar.rect().intersects(bar.tabRect(index)), (
            f"the tab {bar.tabText(index)} is out of sight"
        )


def _fits(page):
    return page.widget().width() <= page.viewport().width() <= 300


def test_one_expert_can_be_drawn_alone_and_stays_so_in_other_directions(panel, model, choose):
    choose(panel.decoder.drawn, 2)
    layer = model.layers["#1 expert x (full)"]
    assert layer.visible and (layer.selected_label, layer.show_selected_label) == (3, True)
    choose(panel.decoder.direction, "y")
    layer = model.layers["#1 expert y (full)"]
    assert showing.single_expert(layer) == 2 and panel.decoder.drawn.currentData() == 2
    choose(panel.decoder.drawn, -1)
    assert showing.single_expert(layer) is None and not layer.show_selected_label


def test_a_new_registration_is_taken_up_and_one_that_was_closed_is_dropped(
    panel, model, registration
):
    other = replace(registration, weights="mine")
    add_layers(model, layers_of(other, 2, maps=True))
    panel.reset_choices()
    assert panel.number == 2 and "mine" in panel.registration.currentText()
    assert "untrained" not in panel.note.text()
    for layer in [layer for layer in model.layers if tag(layer, "number") == 2]:
        model.layers.remove(layer)
    panel.reset_choices()
    assert panel.number == 1 and "untrained" in panel.note.text() and "oblique" in panel.note.text()
    model.layers.clear()
    panel.reset_choices()
    assert panel.number is None and panel.note.text() == EMPTY
    assert not any(view.isEnabled() for views in panel.views.values() for view in views)


def test_a_removed_layer_is_made_again_when_it_is_asked_for(panel, model):
    model.layers.remove("#1 displacement")
    for layer in [layer for layer in model.layers if tag(layer, "role") == "expert_map"]:
        model.layers.remove(layer)
    panel.reset_choices()
    bring_forward(panel, "Field")
    panel.deformation.switches["arrows"].setChecked(True)
    assert visible(model, "arrows") == ["#1 displacement"]
    panel.decoder.on.setChecked(True)
    assert visible(model, "expert_map") == ["#1 expert x (full)"]


def test_every_control_says_what_it_does(panel):
    sections = (panel.decoder, panel.encoder, panel.gates, panel.deformation)
    kinds = (QCheckBox, QComboBox, QSlider, QDoubleSpinBox)
    controls = [c for s in sections for kind in kinds for c in s.findChildren(kind)]
    assert len(controls) > 24 and all(control.toolTip() for control in controls)


@pytest.mark.slow
def test_importing_the_panel_does_not_import_torch():
    code = "import sys, napari_shmoareg.plugin.experts.panel; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.slow
def test_a_docked_panel_draws_its_map_and_follows_new_layers(viewer, registration):
    from napari.utils._proxies import PublicOnlyProxy

    panel = ExpertsPanel(PublicOnlyProxy(viewer))  # as napari hands it to the panels of plugins
    viewer.window.add_dock_widget(panel, name="Experts", area="right")
    add_layers(viewer, layers_of(registration, 1, maps=True))
    assert panel.number == 1
    before = viewer.screenshot(canvas_only=True, flash=False).astype(int)
    panel.decoder.on.click()
    changed = (
        np.abs(viewer.screenshot(canvas_only=True, flash=False).astype(int) - before).max(axis=-1)
        > 20
    )
    assert changed.mean() > 0.05
