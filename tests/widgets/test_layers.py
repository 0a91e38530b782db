"""A registration as layers: every value at its place in the world, named, and nothing drawn that is
not there.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_shmoareg.experts.maps import content_cells, expert_maps
from napari_shmoareg.geometry import Grid, LabelNames, Volume
from napari_shmoareg.model import GateId, RoutedLayer, Routing, RoutingTrace
from napari_shmoareg.plugin.layers import (
    AIR,
    add_layers,
    contrast,
    expert_map_layer,
    expert_names,
    jacobian_range,
    layers_of,
    layers_of_pair,
)
from napari_shmoareg.plugin.placement import (
    AXES,
    layer_options,
    names_of,
    tag,
    to_viewer,
    volume_of,
)


@pytest.fixture
def layers(registration) -> dict[str, Layer]:
    return {
        o["name"]: Layer.create(data, dict(o), kind)
        for data, o, kind in layers_of(registration, 3, maps=True)
    }


def in_role(layers, role):
    return [layer for layer in layers.values() if tag(layer, "role") == role]


def at_every_cell(layer, grid: Grid) -> np.ndarray:
    """What a layer shows in the middle of every cell of a grid."""
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    index = (to_viewer(grid.to_world(cells)) - layer.translate) / layer.scale
    return layer.data[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))]


def test_an_oblique_expert_map_shows_each_cell_its_own_choice(layers, registration):
    shown = in_role(layers, "expert_map")
    assert len(shown) == len(expert_maps(registration)) == 6
    for layer in shown:
        expert_map = tag(layer, "expert_map")
        size = {1: "full", 2: "half"}[expert_map.stride]
        assert tag(layer, "copied") and layer.name == f"#3 expert {expert_map.direction} ({size})"
        inside = content_cells(registration, expert_map.stride)
        expected = np.where(inside, expert_map.volume.values, AIR)
        assert (at_every_cell(layer, expert_map.volume.grid) == expected).all()
        assert volume_of(layer).grid is expert_map.volume.grid
        whole, _, _ = expert_map_layer(registration, 3, expert_map, air=True)
        layer.data = whole
        assert (at_every_cell(layer, expert_map.volume.grid) == expert_map.volume.values).all()


def test_an_oblique_head_map_shows_each_token_its_own_weight(layers):
    (layer,) = in_role(layers, "head_map")
    load, head = tag(layer, "load"), tag(layer, "head")
    assert (at_every_cell(layer, load.grid) == load.values[..., head]).all()
    assert 0 < layer.data.max() <= layer.contrast_limits[1] == 1
    assert set(np.unique(layer.data)) == set(np.unique(load.values[..., head])) | {0}


def test_a_straight_map_is_not_resampled_and_its_cells_nest_in_the_images_voxels(registration):
    grid = Grid((8, 10, 6), np.diag([2.0, -2.0, 3.0, 1.0]))
    cells = grid.coarsen(2)
    values = np.random.default_rng(0).integers(1, 4, cells.shape).astype(np.uint8)
    parts = (torch.ones(1, 3, *cells.shape), torch.from_numpy(values - 1)[None, None])
    layer = RoutedLayer(GateId("decoder", 2, direction="x"), 2, Routing(*parts, parts[0][:, :1]))
    straight = replace(registration, network_grid=grid, routing=RoutingTrace((layer,)))
    data, options, _ = expert_map_layer(straight, 1, expert_maps(straight)[0], air=True)
    assert np.shares_memory(data, expert_maps(straight)[0].volume.values)
    assert sorted(data.ravel()) == sorted(values.ravel()) and options["scale"] == (6.0, 4.0, 4.0)
    layer = Labels(data, **options)
    edges = layer.extent.world + np.outer([-0.5, 0.5], layer.scale)
    assert np.sort(to_viewer(edges), axis=0) == pytest.approx(
        np.array([grid.corners().min(0), grid.corners().max(0)])
    )


def test_the_cursor_is_told_the_experts_name(layers):
    layer, viewer = layers["#3 expert y (full)"], ViewerModel()
    layer.visible = True
    viewer.add_layer(layer)
    expert_map = tag(layer, "expert_map")
    names = ("1×1×1 (id 0)", "3×3×3 (id 1)", "5×5×5 (id 2)")
    inside = content_cells(tag(layer, "registration"), expert_map.stride)
    shown = np.where(inside, expert_map.volume.values, AIR)
    chosen = np.unique(shown)
    assert len(chosen) > 2 and chosen[0] == AIR
    for value in chosen:
        cell = np.argwhere(shown == value)[0]
        where = to_viewer(expert_map.volume.grid.to_world(cell))
        viewer.dims.point = tuple(where)
        name = names[value - 1] if value else "air"
        assert f"expert: {name}" in layer.get_status(where, world=True)["value"]
    amber, light, purple = (layer.colormap.map(np.uint8(n))[:3] for n in (1, 2, 3))
    assert amber[0] > 2 * amber[2] and light[2] > light[0] and purple[1] == 0 < purple[0]


def test_only_the_warped_image_is_visible_and_all_layers_stand_in_mm(layers, registration):
    assert [name for name, layer in layers.items() if layer.visible] == ["#3 warped"]
    for layer in layers.values():
        assert layer.axis_labels == AXES and {str(u) for u in layer.units} == {"millimeter"}
        assert (
            tag(layer, "registration") is registration
            and tag(layer, "number") == 3
            and tag(layer, "role")
        )
    assert {"#3 warped labels", "#3 Jacobian", "#3 deformation grid", "#3 displacement"} <= set(
        layers
    )


def test_folding_is_marked_exactly_where_the_determinant_is_not_positive(registration):
    values = np.ones_like(registration.jacobian.values)
    values[3, 4, 5], values[20, 10, 15], values[7, 7, 7] = 0.0, -0.5, 1e-6
    grid = Grid(values.shape, np.diag([1.0, 2.0, 3.0, 1.0]))
    planted = replace(registration, jacobian=Volume(values, grid, "jacobian"))
    layers = {o["name"]: (d, o) for d, o, _ in layers_of(planted, 1, maps=True)}
    folding, options = layers["#1 folding"]
    assert {tuple(i) for i in np.argwhere(folding)} == {(5, 4, 3), (15, 10, 20)}
    assert options["colormap"][1] == "#ff0000"
    kept = layers["#1 Jacobian"][1]["metadata"]["shmoareg"]
    assert kept["folding_percent"] == pytest.approx(200 / values.size)


def test_without_folding_there_is_no_layer_of_it_and_the_jacobian_says_so(registration):
    calm = replace(
        registration,
        jacobian=registration.jacobian.with_values(np.full_like(registration.jacobian.values, 1.1)),
    )
    layers = {o["name"]: o for _, o, _ in layers_of(calm, 1, maps=True)}
    assert "#1 folding" not in layers
    assert layers["#1 Jacobian"]["metadata"]["shmoareg"]["folding_percent"] == 0


def test_around_an_oblique_jacobian_nothing_changes_its_volume(layers):
    data = layers["#3 Jacobian"].data
    assert tag(layers["#3 Jacobian"], "copied")
    assert {float(data[corner]) for corner in ((0, 0, 0), (-1, 0, -1), (0, -1, 0))} == {1.0}


def test_the_jacobians_colours_are_clear_at_one_and_equal_for_half_and_twice(layers):
    (layer,) = in_role(layers, "jacobian")
    low, high = layer.contrast_limits
    assert low == pytest.approx(1 / high)
    same, small, big = layer.colormap.map((np.array([1.0, 1 / 1.3, 1.3]) - low) / (high - low))
    assert same[3] == pytest.approx(0, abs=0.03)
    assert small[3] == pytest.approx(big[3], abs=0.05) and small[3] > 0.1
    assert small[2] > small[0] and big[0] > big[2]


@pytest.mark.parametrize(
    ("values", "most"), [([1.0, 1.2], 1.5), ([0.4, 1.0], 3.0), ([-1.0, 0.0], 1.5), ([0.01, 9], 4)]
)
def test_the_jacobians_colours_reach_as_far_as_it_changes(values, most):
    assert jacobian_range(np.array(values * 500)) == most


def test_images_of_one_scale_are_shown_alike_and_others_each_by_its_own(pair):
    fixed, moving = contrast(pair.fixed, pair.moving)
    assert fixed == moving
    other = replace(pair.moving, values=pair.moving.values * 10)
    fixed_alone, brighter = contrast(pair.fixed, other)
    assert brighter[1] > 5 * fixed_alone[1]
    warped = [o for _, o, _ in layers_of_pair(pair)][1]
    assert tuple(warped["contrast_limits"]) == moving


@pytest.mark.parametrize("value", [5.0, np.nan])
def test_an_image_without_contrast_or_with_nan_can_still_be_looked_at(pair, value):
    values = np.full_like(pair.moving.values, 5.0)
    values[0, 0, 0] = value
    for data, options, _ in layers_of_pair(
        replace(pair, moving=replace(pair.moving, values=values))
    )[:2]:
        low, high = Image(data, **options).contrast_limits
        assert np.isfinite([low, high]).all() and low < high


def test_a_pair_is_fixed_moving_and_their_outlines(pair):
    viewer = ViewerModel()
    added = add_layers(viewer, layers_of_pair(pair))
    assert [tag(layer, "role") for layer in added] == [
        "fixed",
        "moving",
        "fixed_labels",
        "moving_labels",
    ]
    assert [layer.visible for layer in added] == [True, True, False, False]
    assert added[2].contour > 0 and viewer.layers.selection.active is added[1]
    assert volume_of(added[0]).grid is pair.fixed.grid


def test_layers_are_made_without_napari_and_without_qt():
    code = (
        "import sys, napari_shmoareg.plugin.layers; "
        "print([m for m in ('napari', 'qtpy', 'PyQt6', 'PySide6', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_canvas_is_amber_where_the_smallest_kernel_was_chosen_and_blue_where_the_next(
    viewer, registration
):
    from napari_shmoareg.plugin.showing import show_experts

    maps = {m.direction: m for m in expert_maps(registration) if m.stride == 1}
    add_layers(viewer, layers_of(registration, 1, maps=True))
    for direction, expert, rgb in (("x", 1, (0xFF, 0xB0, 0)), ("z", 2, (0x80, 0xB2, 0xFF))):
        expert_map = maps[direction]
        show_experts(viewer, 1, direction, 1).opacity = 1.0
        inside = content_cells(registration, expert_map.stride)
        cells = np.argwhere(inside & (expert_map.volume.values == expert))
        assert len(cells), f"the network chose expert {expert} nowhere"
        place = to_viewer(expert_map.volume.grid.to_world(cells[len(cells) // 2]))
        viewer.dims.point = tuple(place)
        viewer.scene.camera.center, viewer.scene.camera.zoom = tuple(place), 200
        canvas = viewer.screenshot(canvas_only=True, flash=False)
        middle = canvas[canvas.shape[0] // 2, canvas.shape[1] // 2, :3]
        assert np.abs(middle.astype(int) - rgb).max() <= 3


def test_experts_of_a_registration_without_a_network_have_no_sizes(registration):
    """`shmoareg register --network none` writes no sizes; its folder opens with the panel Experts."""
    bare = replace(registration, settings=registration.settings | {"network": {}})
    assert bare.kernels == [] and expert_names(bare, 2) == ["expert 0", "expert 1"]


def test_names_of_labels_are_features_of_their_layers_and_of_the_warped_ones(registration):
    names = LabelNames({1: "skin", 7: "absent"}, "a file")
    labels = replace(registration.pair.moving_labels, label_names=names)
    warped = registration.displacement.warp(labels)
    _, options = layer_options(warped)
    layer = Labels(np.asarray(warped.values), features=options["features"])
    assert list(layer.features["index"]) == [0, 1, 2, 3, 4, 7]
    assert names_of(layer).names == names.names and "layer" in names_of(layer).source
    assert "features" not in layer_options(registration.pair.moving_labels)[1]
