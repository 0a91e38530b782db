"""Which layers make a pair, and pickers that hold on to them."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Points
from napari.utils._proxies import PublicOnlyProxy

from napari_shmoareg.plugin.controls.pickers import PairPicker, missing, suggest, tag_roles
from napari_shmoareg.plugin.placement import KEY, tag
from napari_shmoareg.plugin.registrations import layer_in_role, unwrap


def image(name: str, role: str | None = None, shape=(4, 5, 6), **options) -> Image:
    metadata = {} if role is None else {KEY: {"role": role}}
    return Image(np.random.default_rng(0).random(shape), name=name, metadata=metadata, **options)


def labels(name: str, shape=(4, 5, 6), **options) -> Labels:
    return Labels(np.ones(shape, np.uint8), name=name, **options)


def result(name: str) -> Image:
    return Image(
        np.zeros((4, 5, 6)),
        name=name,
        metadata={KEY: {"registration": object(), "number": 1, "role": name}},
    )


@pytest.fixture
def model():
    return ViewerModel()


def names(pair) -> dict[str, str | None]:
    return {role: None if layer is None else layer.name for role, layer in pair.items()}


def put(model, *layers):
    for layer in layers:
        model.add_layer(layer)
    return layers


def test_layers_that_were_opened_in_a_role_are_taken_in_it(model):
    put(model, image("one"), image("two", "fixed"), image("three", "moving"))
    assert (
        names(suggest(model, {}))["moving"] == "three"
        and names(suggest(model, {}))["fixed"] == "two"
    )


def test_without_roles_the_two_that_are_selected_are_taken_else_the_first_two(model):
    a, b, c = put(model, image("a"), image("b"), image("c"))
    model.layers.selection = {c, b}
    assert [suggest(model, {})[role] for role in ("moving", "fixed")] == [b, c]
    model.layers.selection = {c}
    assert [suggest(model, {})[role] for role in ("moving", "fixed")] == [a, b]


def test_a_result_is_offered_but_never_suggested(model, qtbot):
    put(model, result("warped"), result("jacobian"), image("a"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    assert names(picker.pair) == {
        "moving": "a",
        "fixed": None,
        "moving_labels": None,
        "fixed_labels": None,
        "fixed_mask": None,
    }
    assert [picker.pickers["fixed"].itemText(n) for n in (1, 2)] == ["warped", "a"]
    picker.pickers["fixed"].setCurrentIndex(1)
    picker.pickers["fixed"].activated.emit(1)
    assert picker.missing is None and tag(picker.pair["fixed"], "role") == "warped"


def test_labels_belong_to_the_image_on_their_grid(model):
    put(model, image("a"), image("b", shape=(7, 5, 6)), labels("x", (7, 5, 6)), labels("y"))
    found = names(suggest(model, {}))
    assert (found["moving_labels"], found["fixed_labels"]) == ("y", "x")


def test_on_one_grid_labels_belong_to_the_image_of_their_name(model):
    put(model, image("sub-05_t1"), image("sub-06_t1"), labels("sub-06_seg"), labels("sub-05_seg"))
    found = names(suggest(model, {}))
    assert (found["moving_labels"], found["fixed_labels"]) == ("sub-05_seg", "sub-06_seg")


def test_labels_that_may_be_of_either_image_are_left_to_the_person(model):
    put(model, image("a"), image("b"), labels("seg"))
    assert (
        names(suggest(model, {}))["moving_labels"] is None
        and names(suggest(model, {}))["fixed_labels"] is None
    )


def test_roles_are_written_to_the_pair_and_to_no_other_layer(model):
    a, b, c = put(model, image("a", "moving"), image("b"), image("c"))
    tag_roles(model.layers, {"moving": b, "fixed": c})
    assert (tag(a, "role"), layer_in_role(model, "moving"), layer_in_role(model, "fixed")) == (
        None,
        b,
        c,
    )


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ({}, "Pick a moving image"),
        ({"moving": image("a")}, "Pick a fixed image"),
        (
            {"moving": image("a"), "fixed": image("b", shape=(2, 4, 5, 6))},
            "The fixed image has 4 axes, not 3",
        ),
    ],
)
def test_what_is_missing_is_said(pair, says):
    none = dict.fromkeys(("moving", "fixed", "moving_labels", "fixed_labels"))
    assert missing(none | pair) == says


def test_one_layer_twice_is_no_pair():
    one, both = image("a"), labels("x")
    none = dict.fromkeys(("moving_labels", "fixed_labels"))
    assert missing({"moving": one, "fixed": one, **none}) == "Moving and fixed are the same layer"
    pair = {"moving": one, "fixed": image("b"), "moving_labels": both, "fixed_labels": both}
    assert missing(pair) == "Moving and fixed labels are the same layer"


def test_a_pick_survives_renaming_adding_and_reordering_and_ends_with_its_layer(model, qtbot):
    a, b, c = put(model, image("a"), image("b"), image("c"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    picker.pickers["fixed"].setCurrentIndex(3)
    picker.pickers["fixed"].activated.emit(3)
    c.name = "another"
    model.layers.insert(0, image("d"))
    model.layers.reverse()
    picker.refresh()
    assert picker.pair["moving"] is a and picker.pair["fixed"] is c
    assert picker.pickers["fixed"].currentText() == "another"
    model.layers.remove(c)
    picker.refresh()
    assert picker.pair["moving"] is a and picker.pair["fixed"] not in (None, a, c)
    model.layers.clear()
    picker.refresh()
    assert picker.missing == "Pick a moving image"
    assert b not in model.layers


def test_swapping_exchanges_images_labels_and_roles(model, qtbot):
    put(model, image("a_t1"), image("b_t1"), labels("a_seg"), labels("b_seg"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    before = names(picker.pair)
    picker.swap.click()
    after = names(picker.pair)
    assert (
        (after["moving"], after["moving_labels"])
        == (before["fixed"], before["fixed_labels"])
        == ("b_t1", "b_seg")
    )
    assert (
        layer_in_role(model, "moving").name == "b_t1"
        and layer_in_role(model, "fixed_labels").name == "a_seg"
    )
    picker.refresh()
    assert names(picker.pair) == after


def test_labels_follow_an_image_that_is_picked(model, qtbot):
    put(model, *(image(f"{n}_t1") for n in "abc"), *(labels(f"{n}_seg") for n in "abc"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    picker.pickers["moving"].setCurrentIndex(3)
    picker.pickers["moving"].activated.emit(3)
    assert names(picker.pair)["moving_labels"] == "c_seg"


def test_a_picker_keeps_no_layer_alive(model, qtbot):
    layer = image("a")
    put(model, layer)
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    gone = weakref.ref(layer)
    model.layers.clear()
    put(model, image("b"))  # or napari itself would remember what was selected
    del layer
    gc.collect()
    assert gone() is None


def test_a_panel_gets_at_the_viewer_behind_naparis_proxy(model):
    put(model, image("a"))
    proxy = PublicOnlyProxy(model)
    assert proxy.layers[0] is not model.layers[0]  # why a proxy is of no use here
    assert unwrap(proxy) is model and unwrap(model) is model


def test_what_cannot_be_registered_is_suggested_last(model):
    put(model, image("film", shape=(2, 4, 5, 6)), image("a"), image("b"))
    assert names(suggest(model, {}))["moving"] == "a" and names(suggest(model, {}))["fixed"] == "b"


def test_a_pair_that_was_suggested_is_not_exchanged_for_images_that_come_in_roles(model, qtbot):
    a, b = put(model, image("a"), image("b"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    qtbot.wait(20)
    put(model, image("c", "fixed"), image("d", "moving"))
    picker.refresh()
    assert (picker.pair["moving"], picker.pair["fixed"]) == (a, b) and layer_in_role(
        model, "moving"
    ) is a
    model.layers.remove(a)
    picker.refresh()
    assert picker.pair["moving"] not in (None, a) and picker.pair["fixed"] is b


def test_a_pair_that_is_opened_beside_a_single_image_is_taken_whole(model, qtbot):
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    for layer in (image("a"), image("c", "fixed"), image("d", "moving")):
        put(model, layer)
        picker.refresh()
    assert (picker.pair["moving"].name, picker.pair["fixed"].name) == ("d", "c")


def test_a_start_from_landmarks_takes_their_complete_pairs(model, qtbot):
    put(model, image("a"), image("b"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    assert picker.start.currentText() == "as placed" and picker.landmarks is None
    picker.start.setCurrentText("landmarks: affine")
    kind, fixed, moving = picker.landmarks
    assert kind == "affine" and fixed.shape == moving.shape == (0, 3)
    for side, count in (("fixed", 3), ("moving", 2)):
        points = np.arange(3.0 * count).reshape(count, 3) + (side == "moving")
        metadata = {KEY: {"role": f"landmarks_{side}"}}
        put(model, Points(points, scale=(2, 1, 1), metadata=metadata))
    _, fixed, moving = picker.landmarks
    np.testing.assert_allclose(fixed, [[2, 1, 0], [5, 4, 6]])  # R, A, S
    np.testing.assert_allclose(moving, [[3, 2, 2], [6, 5, 8]])


def test_a_mask_is_only_ever_picked_by_hand_or_by_its_role_and_belongs_to_the_fixed_image(
    model, qtbot
):
    a, b, mask = put(model, image("a"), image("b"), labels("roi"))
    picker = PairPicker(model)
    qtbot.addWidget(picker)
    assert picker.pair["fixed_mask"] is None
    picker.pickers["fixed_mask"].pick(mask)
    assert picker.pair["fixed_mask"] is mask and picker.pair["fixed_labels"] is None
    assert tag(mask, "role") == "fixed_mask" and picker.missing is None
    assert suggest(model, {})["fixed_mask"] is mask
    picker.swap.click()
    assert picker.pair["moving"] is b and picker.pair["fixed"] is a
    assert picker.pair["fixed_mask"] is None and tag(mask, "role") is None
    seg = put(model, labels("a_seg"))[0]  # the same labels may be both
    picker.refresh()
    picker.pickers["fixed_labels"].pick(seg)
    picker.pickers["fixed_mask"].pick(seg)
    assert picker.pair["fixed_labels"] is picker.pair["fixed_mask"] is seg
    assert tag(seg, "role") == "fixed_labels"
    stack = labels("stack", shape=(2, 4, 5, 6))
    assert missing(picker.pair | {"fixed_mask": stack}) == "The fixed mask has 4 axes, not 3"
