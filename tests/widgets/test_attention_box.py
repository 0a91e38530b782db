"""The attention of a token is the network's own, on the tokens' own grid, and runs beside the
window.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.attention import AttentionProbe
from napari_shmoareg.experts.maps import expert_maps, token_loads
from napari_shmoareg.io import checkpoint
from napari_shmoareg.plugin.controls.tasks import Report, replay_of, weights_of
from napari_shmoareg.plugin.experts.location import LocationView
from napari_shmoareg.plugin.experts.pins import linked_layer
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import tag, to_viewer
from napari_shmoareg.plugin.registrations import layers_of_registration
from napari_shmoareg.registration.progress import Interrupted
from napari_shmoareg.registration.replay import Replay

WAIT = 60_000  # ms at most


@pytest.fixture
def asked(monkeypatch, lively_network):
    """The names under which a network was asked for; it is the one that made the registration."""
    names = []

    def load(name, *, device="cpu"):
        names.append(str(name))
        return lively_network(0.03)

    monkeypatch.setattr(checkpoint, "load_network", load)
    return names


@pytest.fixture
def view(model, qtbot, registration):
    made = LocationView(model)
    qtbot.addWidget(made)
    made.show_registration(1)
    made.read(
        registration.network_grid.to_world((np.array(registration.network_grid.shape) - 1) * 0.4)
    )
    made.show()
    qtbot.waitExposed(made)
    return made


def pick(view, location):
    view._pick(location)


def finish(view, qtbot):
    qtbot.waitUntil(lambda: not view.attention.task.busy, timeout=WAIT)


def test_each_chosen_head_is_one_layer_that_is_filled_in_place_with_the_probes_values(
    view, model, registration, qtbot, asked, lively_network
):
    gate = token_loads(registration)[-1].gate
    pick(view, gate)
    view.attention.on.click()
    finish(view, qtbot)
    assert asked == ["untrained"] and not view.attention.status.text()
    layer = linked_layer(model, registration, "attention")
    settings = registration.report["settings"]
    replay = Replay.of(
        registration.pair, lively_network(0.03), affine=registration.affine, settings=settings
    )
    probe, box, seen = AttentionProbe.of(replay), view.attention, 0
    top_k = settings["network"]["top_k"]
    for load in (token_loads(registration)[-1], token_loads(registration)[0]):
        pick(view, load.gate)
        cell = view.picked.cell
        expected = {found.head: found for found in probe.at(load.gate, cell)}
        assert set(expected) == set(np.flatnonzero(load.values[cell])) == set(view.picked.experts)
        for index in range(box.head.count()):
            box.head.setCurrentIndex(index)
            box.head.activated.emit(index)
            found = expected[box.head.currentData()]
            assert linked_layer(model, registration, "attention") is layer
            volume = tag(layer, "volume")
            np.testing.assert_array_equal(volume.values, found.volume.values)
            assert volume.grid.same_space(load.grid) and abs(volume.values.sum() - 1) < 1e-5
            assert layer.contrast_limits == pytest.approx([0, found.volume.values.max()])
            assert f"{found.weight:.2f}" in box.head.currentText() and (
                layer.name,
                tag(layer, "head"),
            ) == (
                "#1 attention",
                found.head,
            )
            assert (
                "sum to 1.000" in box.message.text()
                and "In the registration" not in box.message.text()
            )
            own = layer.world_to_data(to_viewer(load.grid.to_world(cell)))
            assert layer.data[tuple(np.rint(own).astype(int))] == found.volume.values[cell]
            seen += 1
    assert seen == 2 * top_k > 2 and box.ramp.texts()[2] == f"{layer.contrast_limits[1]:.2g}"
    pick(view, expert_maps(registration)[0].gate)
    assert (
        linked_layer(model, registration, "attention") is None
        and "pick one of its tokens" in box.message.text()
    )
    pick(view, gate)
    box.on.click()
    assert linked_layer(model, registration, "attention") is None
    box.on.click()
    assert linked_layer(model, registration, "attention") is not None and len(asked) == 1, (
        "the probe was not kept"
    )


def test_a_network_that_chooses_otherwise_is_told(
    view, qtbot, monkeypatch, lively_network, registration
):
    def load(name, *, device="cpu"):
        network = lively_network(0.03)
        for module in network.modules():
            if type(module).__name__ == "SoftmaxGate":
                module.weight.data = -module.weight.data
        return network

    monkeypatch.setattr(checkpoint, "load_network", load)
    pick(view, token_loads(registration)[0].gate)
    view.attention.on.click()
    finish(view, qtbot)
    assert "chose the same heads as the registration for only 0 of" in view.attention.status.text()
    assert "In the registration this token chose the heads" in view.attention.message.text()


def test_weights_that_are_not_there_are_said_and_can_be_shown(
    view, qtbot, told, monkeypatch, asked
):
    box, load = view.attention, checkpoint.load_network

    def missing(name, *, device="cpu"):
        raise InputError(f"There are no weights '{name}'.")

    monkeypatch.setattr(checkpoint, "load_network", missing)
    box.on.click()
    finish(view, qtbot)
    assert told("error") == "There are no weights 'untrained'." == box.status.text()
    assert not box.on.isChecked() and not box.choose.isHidden() and box.cancel.isHidden()
    monkeypatch.setattr(checkpoint, "load_network", load)
    from napari_shmoareg.plugin.experts import attention

    monkeypatch.setattr(
        attention.QFileDialog, "getOpenFileName", lambda *_: ("/somewhere/mine.safetensors", "")
    )
    box.choose.click()
    finish(view, qtbot)
    assert asked == ["/somewhere/mine.safetensors"] and box.on.isChecked() and box.choose.isHidden()


def test_it_is_cancelled_between_two_layers_and_nothing_is_kept(
    view, model, registration, qtbot, monkeypatch, lively_network
):
    entered, go_on = threading.Event(), threading.Event()

    def load(name, *, device="cpu"):
        network = lively_network(0.03)
        entered.set()
        go_on.wait(10)
        return network

    monkeypatch.setattr(checkpoint, "load_network", load)
    view.attention.on.click()
    assert entered.wait(10) and not view.attention.cancel.isHidden()
    view.attention.cancel.click()
    go_on.set()
    finish(view, qtbot)
    assert view.attention.status.text() == "Cancelled." and not view.attention.on.isChecked()
    assert not view.attention.probes and linked_layer(model, registration, "attention") is None


def test_a_run_that_was_left_neither_speaks_for_nor_unticks_another_registration(
    view, model, registration, qtbot, monkeypatch, lively_network, told
):
    entered, go_on, asked = threading.Event(), threading.Event(), []

    def load(name, *, device="cpu"):
        asked.append(name)
        entered.set()
        go_on.wait(10)
        return lively_network(0.03)

    monkeypatch.setattr(checkpoint, "load_network", load)
    other = replace(registration, weights="mine", report={**registration.report, "weights": "mine"})
    add_layers(model, layers_of(other, 2, maps=True))
    box = view.attention
    view.show_registration(2)
    box.on.click()
    assert entered.wait(10)
    view.show_registration(1)
    assert not box.on.isChecked() and not box.status.text()
    box.on.click()  # while that of #2 still ends
    assert box.task.busy and "Waiting" in box.status.text()
    box.task.progressed.emit("loading the network", 0.1)
    assert "Waiting" in box.status.text(), "it shows how far another registration is"
    go_on.set()
    qtbot.waitUntil(lambda: registration in box.probes, timeout=WAIT)
    assert len(asked) == 2 and asked[0] == "mine" and box.on.isChecked() and not box.status.text()
    assert other not in box.probes and not told("error")
    view.show_registration(2)
    box.on.click()
    box.cancel.click()
    view.show_registration(1)
    finish(view, qtbot)
    assert box.status.text() == "" and box.cancel.isHidden()


def test_a_replay_is_that_of_the_registration(registration, asked):
    report = Report()
    replay = replay_of(registration, report)
    assert report.reached == ("ready", 1.0)
    displacement, routing = replay.run()
    for record, mine in zip(registration.routing, routing, strict=True):
        np.testing.assert_array_equal(record.routing.experts.numpy(), mine.routing.experts.numpy())
    assert displacement.shape[2:] == registration.network_grid.shape
    report.cancel()
    with pytest.raises(Interrupted):
        replay_of(registration, report)
    assert len(asked) == 1
    assert weights_of(
        replace(registration, report={**registration.report, "weights": "/there/mine.safetensors"})
    ).endswith("tensors")


def test_closing_the_registration_takes_the_attention_along(
    view, model, registration, qtbot, asked
):
    pick(view, token_loads(registration)[0].gate)
    view.attention.on.click()
    finish(view, qtbot)
    assert linked_layer(model, registration, "attention") is not None
    for layer in layers_of_registration(model, 1):
        model.layers.remove(layer)
    view.show_registration(None)
    assert not list(model.layers) and not view.attention.on.isChecked()
