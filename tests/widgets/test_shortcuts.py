"""Keys do what they say, on the registration that is meant, and take none of napari's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.utils.key_bindings import KeyBinding
from napari.utils.shortcuts import default_shortcuts

from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.showing import KEYS, bind_keys, layer_of, with_key


@pytest.fixture
def model(registration):
    viewer = ViewerModel()
    add_layers(viewer, layers_of_pair(registration.pair))
    add_layers(viewer, layers_of(registration, 1, maps=True))
    return viewer


def press(viewer, act):
    """What a press of a key does; gives the status bar."""
    viewer.keymap[KeyBinding.from_str(KEYS[act])](viewer)
    return viewer.status


def shown(viewer, part):
    return [layer.name for layer in viewer.layers if layer.visible and part in layer.name]


def test_no_key_is_one_of_naparis_own():
    taken = {KeyBinding.from_str(str(key)) for keys in default_shortcuts.values() for key in keys}
    assert not {KeyBinding.from_str(key) for key in KEYS.values()} & taken
    assert len(set(KEYS.values())) == len(KEYS)


def test_a_tooltip_names_the_key():
    assert with_key("Next head", "head") == "Next head (Shift+H)"


def test_a_key_changes_between_warped_and_moving_and_between_warped_and_fixed(model, registration):
    images = ("#1 warped", registration.pair.moving.name, registration.pair.fixed.name)

    def visible():
        return [name for name in images if model.layers[name].visible]

    assert "moving" in press(model, "moving") and visible() == [registration.pair.moving.name]
    assert "warped" in press(model, "moving") and visible() == ["#1 warped"]
    press(model, "fixed")
    assert visible() == [registration.pair.fixed.name]
    press(model, "fixed")
    assert visible() == ["#1 warped"]


def test_the_key_of_an_image_that_was_removed_says_so_and_hides_nothing(model, registration):
    del model.layers[registration.pair.moving.name]
    assert "not open" in press(model, "moving")
    assert model.layers["#1 warped"].visible


def test_the_key_of_a_removed_image_does_not_show_that_of_another_registration(model, registration):
    pair = VolumePair(
        *(
            replace(v, values=v.values.copy())
            for v in (registration.pair.moving, registration.pair.fixed)
        )
    )
    del model.layers[registration.pair.moving.name]
    add_layers(model, layers_of_pair(pair))  # of the same names and roles
    model.layers.selection.active = model.layers["#1 warped"]
    assert "not open" in press(model, "moving")


@pytest.mark.parametrize("flipped", [False, True])
def test_an_image_is_known_by_its_voxels_and_not_by_memory_it_shares(registration, flipped):
    channels = np.zeros((*registration.pair.fixed.values.shape, 2), np.float32)
    pair = replace(registration.pair, fixed=registration.pair.fixed.with_values(channels[..., 0]))
    viewer = ViewerModel()
    first, second = (channels[..., n].transpose(2, 1, 0)[:: -1 if flipped else 1] for n in (0, 1))
    layer = viewer.add_image(first)
    viewer.add_image(second)
    assert layer_of(viewer, replace(registration, pair=pair), 1, "fixed") is layer


def test_a_key_goes_through_all_expert_maps_and_then_to_none(model):
    seen = []
    for _ in range(7):
        press(model, "expert_map")
        seen += shown(model, "expert") or ["none"]
    full, half = ([f"#1 expert {d} ({size})" for d in "xyz"] for size in ("full", "half"))
    assert seen == [*full, *half, "none"]


def test_a_key_goes_round_the_directions_of_one_resolution(model):
    seen = []
    for _ in range(4):
        assert press(model, "direction").endswith("is shown")
        seen += shown(model, "expert")
    assert seen == [
        "#1 expert x (full)",
        "#1 expert y (full)",
        "#1 expert z (full)",
        "#1 expert x (full)",
    ]


def test_a_key_shows_the_head_and_then_the_next_ones_in_place_of_an_expert_map(model):
    press(model, "expert_map")
    first = press(model, "head")
    assert shown(model, "head") == [first.removesuffix(" is shown")] and not shown(model, "expert")
    second = press(model, "head")
    assert second != first and len(shown(model, "head")) == 1


@pytest.mark.parametrize(
    ("act", "name"), [("grid", "#1 deformation grid"), ("jacobian", "#1 Jacobian")]
)
def test_a_key_shows_and_hides(model, act, name):
    assert press(model, act).endswith("shown") and model.layers[name].visible
    assert press(model, act).endswith("hidden") and not model.layers[name].visible


def test_keys_act_on_the_selected_registration_and_else_on_the_newest(model, registration):
    add_layers(model, layers_of(replace(registration), 2, maps=True))
    model.layers.selection.clear()
    assert press(model, "direction").startswith("#2")
    model.layers.selection.active = model.layers["#1 warped"]
    assert press(model, "direction").startswith("#1")
    assert shown(model, "expert") == ["#1 expert x (full)"]


def test_keys_of_a_viewer_without_a_registration_say_what_to_do():
    viewer = ViewerModel()
    bind_keys(viewer)
    bind_keys(viewer)
    assert all("register a pair" in press(viewer, act) for act in KEYS)
