"""The gates' maps show how sure the gates were, on the cells' own grids, and say so in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_shmoareg.experts.maps import gate_values
from napari_shmoareg.model import RoutingTrace
from napari_shmoareg.plugin import gate_layers, showing
from napari_shmoareg.plugin.experts.maps import NO_GATES, NOT_KEPT, GateSection
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import tag, to_viewer


@pytest.fixture
def section(model, qtbot):
    made = GateSection(model)
    qtbot.addWidget(made)
    made.show_registration(1)
    return made


def shown(viewer):
    return [
        layer.name
        for layer in viewer.layers
        if layer.visible and tag(layer, "role") in showing.MAPS
    ]


def test_a_gate_map_is_made_when_it_is_first_asked_for(section, model):
    assert gate_layers.gate_layer(model, 1) is None and not section.on.isChecked()
    section.on.click()
    assert shown(model) == ["#1 gate entropy of decoder 1 x"]
    section.on.click()
    assert shown(model) == []
    section.on.click()
    assert len(
        [layer for layer in model.layers if tag(layer, "role") == "gate_map"]
    ) == 1 and shown(model)


@pytest.mark.parametrize("measure", ["entropy", "margin"])
def test_every_gate_can_be_shown_and_each_value_stands_at_its_cell(
    section, model, registration, measure, choose
):
    choose(section.measure, measure)
    layer = gate_layers.gate_layer(model, 1)
    for gate in gate_values(registration):
        choose(section.where.part, gate.part)
        for field in ("layer", "block", "image", "direction"):
            if getattr(gate.gate, field) is not None:
                choose(section.where.fields[field], getattr(gate.gate, field))
        assert gate_layers.gate_layer(model, 1) is layer and tag(layer, "gate") is gate
        assert layer.name == f"#1 gate {measure} of {gate_layers.short_gate_name(gate.gate)}"
        assert layer.interpolation2d == "nearest"
        volume = getattr(gate, measure)()
        for cell in (np.unravel_index(volume.values.argmax(), volume.grid.shape), (0, 1, 1)):
            index = layer.world_to_data(to_viewer(volume.grid.to_world(cell)))
            assert layer.data[tuple(np.rint(index).astype(int))] == volume.values[tuple(cell)]
    assert {gate.stride for gate in gate_values(registration)} > {1}, (
        "one grid only: nothing to see"
    )


def test_an_oblique_map_is_clear_around_its_cells(section, model, registration):
    section.on.click()
    layer = gate_layers.gate_layer(model, 1)
    assert tag(layer, "copied") and np.isnan(layer.data[0, 0, 0])
    assert layer.colormap.map(np.array([np.nan]))[0, 3] == 0


def test_gate_head_and_expert_maps_do_not_cover_each_other(section, model, registration):
    section.on.click()
    showing.show_experts(model, 1)
    assert shown(model) == ["#1 expert x (full)"]
    section.refresh()
    assert not section.on.isChecked()
    section.on.click()
    showing.next_head(model, 1)
    assert len(shown(model)) == 1 and "head" in shown(model)[0]
    section.refresh()
    section.on.click()
    assert shown(model) == ["#1 gate entropy of decoder 1 x"]


def test_unsure_is_bright_in_both_measures_and_the_words_say_which_end_is_which(
    section, model, choose
):
    section.on.click()
    layer = gate_layers.gate_layer(model, 1)
    light = layer.colormap.map(np.array([0.0, 1.0]))[:, :3].sum(axis=1)
    assert light[0] < light[1] and layer.contrast_limits == [0, 1]
    assert section.ramp.texts() == ["0 sure", "1 all equal"]
    choose(section.measure, "margin")
    light = layer.colormap.map(np.array([0.0, 1.0]))[:, :3].sum(axis=1)
    assert light[0] > light[1] and section.ramp.texts() == ["0 a tie", "1 clear"]


def test_the_sentence_tells_the_quartiles_and_the_colours_can_be_spread(
    section, model, registration
):
    section.on.click()
    values = (
        next(
            gate
            for gate in gate_values(registration)
            if gate.gate == ("decoder", 1, None, None, "x")
        )
        .entropy()
        .values
    )
    first, median, third = np.percentile(values, (25, 50, 75))
    assert (
        f"median {median:.3g}, half of the cells between {first:.3g} and {third:.3g}"
        in section.message.text()
    )
    section.stretch.click()
    low, high = gate_layers.gate_layer(model, 1).contrast_limits
    assert np.allclose((low, high), np.percentile(values, (1, 99)), atol=1e-6)
    assert section.ramp.texts() == [f"{low:.3g} surer", f"{high:.3g} more equal"]


def test_another_layer_keeps_the_image_that_was_looked_at(section, model, choose):
    fields = section.where.fields
    choose(section.where.part, "encoder")
    for field, value in (("layer", 2), ("block", 1), ("image", "moving")):
        choose(fields[field], value)
    choose(fields["layer"], 1)
    assert section.where.gates == [("encoder", 1, 0, "moving", None)]
    assert tag(gate_layers.gate_layer(model, 1), "gate").gate == section.where.gates[0]


def test_a_folder_without_gate_values_says_that_they_were_not_kept(
    registration, qtbot, without_gate_values
):
    viewer = ViewerModel()
    add_layers(viewer, layers_of(without_gate_values(registration), 1))
    section = GateSection(viewer)
    qtbot.addWidget(section)
    section.show_registration(1)
    assert section.message.text() == NOT_KEPT and not section.on.isEnabled() and section.isEnabled()
    for layer in list(viewer.layers):
        viewer.layers.remove(layer)
    section.show_registration(None)
    assert section.message.text() == "" and not section.isEnabled()


def test_a_network_without_experts_is_not_said_to_have_lost_its_gates(registration, qtbot):
    viewer = ViewerModel()
    bare = replace(registration, routing=RoutingTrace())
    add_layers(
        viewer, layers_of(replace(bare, report=dict(registration.report) | {"expert_loads": []}), 1)
    )
    section = GateSection(viewer)
    qtbot.addWidget(section)
    section.show_registration(1)
    assert section.message.text() == NO_GATES
