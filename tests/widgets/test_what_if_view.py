"""Interventions: the tables hold what the experiment gives; cancel and errors leave the view
usable.
"""

from __future__ import annotations

import csv
import gc
import json
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts import experiment as importance_module
from napari_shmoareg.experts.controls import KINDS, Control
from napari_shmoareg.experts.experiment import (
    Experiment,
    ImportanceRow,
    importance,
    recorded_agreement,
)
from napari_shmoareg.experts.intervention import Intervention
from napari_shmoareg.geometry import Transform, Volume, warp_volume
from napari_shmoareg.io import checkpoint
from napari_shmoareg.metrics import dice
from napari_shmoareg.model import GateId, RoutingTrace
from napari_shmoareg.plugin.controls.progress import Clock
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, replay_of
from napari_shmoareg.plugin.experts.what_if import CAPTION, MOST_CHOSEN, RUN, SWEEP, WhatIfView
from napari_shmoareg.plugin.experts.what_if_results import gain, whole_rows
from napari_shmoareg.plugin.experts.what_if_work import (
    CHOOSE_WEIGHTS,
    DIFFERENCE,
    MOVED,
    READY,
    ROLE,
    effect_layer,
    experiment_of,
    ramp_end,
)
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.plugin.placement import tag, to_viewer
from napari_shmoareg.plugin.registrations import layers_of_registration
from napari_shmoareg.plugin.showing import show_experts
from napari_shmoareg.registration.replay import Replay

LONG = 60_000  # ms


@pytest.fixture(scope="module")
def experiment(registration, phantoms, lively_network):
    """On the network that made the registration, whose weights are in no file."""
    replay = Replay.of(
        phantoms,
        lively_network(0.03),
        affine=registration.affine,
        settings=registration.report["settings"],
    )
    return Experiment(replay)


@pytest.fixture
def view(model, registration, experiment, qtbot):
    made = WhatIfView(model)
    qtbot.addWidget(made)
    made.cache[registration] = experiment
    made.show_registration(1)
    return made


def press(view, button, qtbot):
    with qtbot.waitSignal(view.answered, timeout=LONG):
        button.click()


def texts(table):
    return [
        [table.item(r, c).text() for c in range(table.columnCount())]
        for r in range(table.rowCount())
    ]


def test_the_tables_hold_what_the_experiment_gives(view, experiment, model, qtbot, choose):
    view.form.where.pick(part="decoder", layer=1, direction="x")
    share = [view.form.expert.itemText(n) for n in range(3)]
    assert [text.split(":")[0] for text in share] == [
        "1×1×1 (id 0)",
        "3×3×3 (id 1)",
        "5×5×5 (id 2)",
    ]
    expert = int(np.argmax([float(text.split(": ")[1].rstrip(" %")) for text in share]))
    choose(view.form.expert, expert)
    press(view, view.run, qtbot)
    change = Intervention("silence", expert, "decoder", 1, direction="x")
    effect, null = experiment.run(change), experiment.run(experiment.null(change))
    assert effect.changed > 0.1 and effect.mean_mm > 0
    rows = {row[0].strip(): row[1:] for row in texts(view.result.whole)}
    assert rows["Dice, mean"] == [
        f"{o.mean_dice:.4f}" for o in (experiment.base, effect.outcome, null.outcome)
    ]
    assert rows["Folding, %"] == [
        f"{o.folding_percent:.4f}" for o in (experiment.base, effect.outcome, null.outcome)
    ]
    assert rows["Moved, mm"] == ["–", f"{effect.mean_mm:.3f}", f"{null.mean_mm:.3f}"]
    assert rows["95th percentile"] == ["–", f"{effect.p95_mm:.3f}", f"{null.p95_mm:.3f}"]
    assert rows["at most"] == ["–", f"{effect.max_mm:.3f}", f"{null.max_mm:.3f}"]
    assert rows["Choices turned, %"] == [
        "–",
        f"{100 * effect.changed:.2f}",
        f"{100 * null.changed:.2f}",
    ]
    labels = texts(view.result.labels)
    by_size = sorted(effect.dice_change, key=lambda label: -abs(effect.dice_change[label]))
    assert [row[0] for row in labels] == [str(label) for label in by_size] and len(labels) == 4
    assert [row[2] for row in labels] == [f"{effect.dice_change[label]:+.4f}" for label in by_size]
    assert [row[3] for row in labels] == [f"{null.dice_change[label]:+.4f}" for label in by_size]
    assert "untrained" in view.result.notes.text() and view.result.heading.text().startswith(
        "<b>Silence expert"
    )


def test_two_layers_show_what_moved_and_are_filled_anew_in_place(
    view, experiment, model, registration, qtbot, choose
):
    view.form.where.pick(part="decoder", layer=1, direction="y")
    view.form.null.setChecked(False)
    for expert in (0, 1):
        choose(view.form.expert, expert)
        press(view, view.run, qtbot)
        effect = experiment.run(Intervention("silence", expert, "decoder", 1, direction="y"))
        moved, difference = (effect_layer(model, 1, which) for which in (MOVED, DIFFERENCE))
        assert len(layers_of_registration(model, 1, ROLE)) == 2
        assert moved.visible and not difference.visible and moved.name == "#1 what if: moved (mm)"
        np.testing.assert_array_equal(tag(moved, "volume").values, effect.moved.values)
        assert moved.contrast_limits == [0, ramp_end(effect)]
        assert view.ramp.texts() == ["0", "moved by the change", f"{ramp_end(effect):g} mm"]
        voxel = np.unravel_index(moved.data.argmax(), moved.data.shape)
        place = effect.moved.grid.to_index(to_viewer(moved.data_to_world(voxel)))
        near = effect.moved.values[tuple(slice(max(int(i), 0), int(i) + 2) for i in place)]
        assert (
            near.min() <= moved.data.max() <= near.max()
            and moved.data.max() > 0.5 * effect.moved.values.max()
        )
        assert (
            str(expert) in tag(moved, "effect") and tag(difference, "registration") is registration
        )
    assert view.result.whole.isColumnHidden(3) and view.result.answer.null is None


def test_a_map_shown_next_does_not_lie_below_what_moved(view, model, registration, qtbot):
    view.form.null.setChecked(False)
    press(view, view.run, qtbot)
    moved = effect_layer(model, 1, MOVED)
    assert moved.visible and not any(
        layer.visible for layer in layers_of_registration(model, 1, "expert_map")
    )
    shown = show_experts(model, 1, "z", 2)
    assert shown.visible and not moved.visible
    press(view, view.run, qtbot)
    assert moved.visible and not shown.visible


def test_silencing_an_expert_that_nothing_chose_changes_nothing_anywhere(
    view, registration, experiment, qtbot, choose
):
    unused = next(
        (entry, entry["counts"].index(0))
        for entry in registration.report["expert_loads"]
        if entry["part"] == "encoder" and 0 in entry["counts"]
    )
    entry, expert = unused
    view.form.where.pick(
        part="encoder", layer=entry["layer"], block=entry["block"], image=entry["image"]
    )
    choose(view.form.expert, expert)
    assert view.form.expert.currentText().endswith(": 0.0 %")
    press(view, view.run, qtbot)
    effect = view.result.answer.effect
    assert effect.cells > 0 and effect.changed == 0
    assert not any(
        tag(layer, "volume").values.any() for layer in layers_of_registration(view._viewer, 1, ROLE)
    )
    assert (
        set(effect.dice_change.values()) == {0.0}
        and effect.folding_percent == experiment.base.folding_percent
    )
    assert "nothing changed" in view.result.notes.text()
    assert {row[2] for row in texts(view.result.labels)} == {"+0.0000"}


def test_all_layers_and_both_images_are_left_open(view):
    view.form.where.pick(part="encoder")
    assert view.form.where.where == {"part": "encoder"}
    view.form.where.pick(image="moving")
    assert view.form.request.where == {"part": "encoder", "image": "moving"}
    view.form.where.pick(part="decoder", layer=2)
    assert view.form.request.where == {"part": "decoder", "layer": 2}


def test_a_change_within_a_region_reaches_the_experiment_as_that_region(
    view, registration, experiment, qtbot, choose
):
    from napari_shmoareg.plugin.experts.region_source import FIXED

    view.form.where.pick(part="decoder", layer=1, direction="z")
    view.form.source.combo.setCurrentIndex(view.form.source.combo.findData(FIXED))
    choose(view.form.region, 2)
    choose(view.form.action, "force")
    choose(view.form.expert, 2)
    view.form.null.setChecked(False)
    press(view, view.run, qtbot)
    inside = registration.pair.fixed_labels.values == 2
    region = Volume(inside.astype(np.uint8), registration.pair.fixed.grid, is_labels=True)
    effect = experiment.run(Intervention("force", 2, "decoder", 1, direction="z", region=region))
    found = view.result.answer.effect
    assert 0 < found.cells == effect.cells and found.mean_mm == effect.mean_mm
    assert "region 2 of" in view.result.heading.text()


def test_an_empty_region_is_told_and_leaves_the_view_usable(view, model, qtbot, told):
    view.form.source.draw.click()
    press(view, view.run, qtbot)
    assert "encloses a region" in told("error")
    assert view.run.text() == RUN and view.run.isEnabled() and view.form.isEnabled()
    layer = model.layers[-1]
    layer.add_rectangles([[900, 900, 900], [900, 900, 950], [900, 950, 950], [900, 950, 900]])
    press(view, view.run, qtbot)
    assert "no voxel" in told("error") and view.run.isEnabled()


def test_a_sweep_lists_every_expert_beside_random_ones(view, experiment, model, qtbot):
    view.form.where.pick(part="decoder", layer=1, direction="x")
    press(view, view.sweep, qtbot)
    expected = list(importance(experiment, part="decoder", layer=1, direction="x"))
    assert len(expected) == 3 and all(row.null_mm is not None for row in expected)
    assert view.table.rows == expected
    view.table.sortByColumn(1, view.table.horizontalHeader().sortIndicatorOrder().AscendingOrder)
    assert [row[:6] for row in texts(view.table)] == [
        [
            "decoder 1 x",
            str(row.expert),
            f"{row.mean_mm:.3f}",
            f"{row.null_mm:.3f}",
            f"{row.mean_mm / row.null_mm:.2f}" if row.null_mm else "–",
            f"{row.mean_dice_change:+.4f}",
        ]
        for row in expected
    ]
    view.table.selectRow(1)
    view.table.cellClicked.emit(1, 0)
    assert [
        layer.name for layer in model.layers if layer.visible and tag(layer, "role") == "expert_map"
    ] == ["#1 expert x (full)"]


def test_the_row_of_an_attention_head_shows_where_it_was_chosen(view, model, monkeypatch, qtbot):
    rows = [
        ImportanceRow(
            1, 1, "silence", "", 1, GateId("encoder", 2), 3, 0.2, 0.1, 0.5, 0.9, None, 0.0
        )
    ]
    monkeypatch.setattr(importance_module, "importance", lambda *_, **__: iter(rows))
    press(view, view.sweep, qtbot)
    view.table.selectRow(0)
    view.table.cellClicked.emit(0, 0)
    (layer,) = layers_of_registration(model, 1, "head_map")
    assert layer.visible and tag(layer, "head") == 3 and tag(layer, "load").layer == 2
    assert texts(view.table)[0][2:9] == ["0.500", "–", "–", "–", "–", "20.0", "0.900"]


def test_cancel_of_a_sweep_keeps_the_rows_and_frees_the_buttons(view, experiment, qtbot, tmp_path):
    view.form.where.pick(part="decoder")
    view.form.null.setChecked(False)
    view.sweep.click()
    assert view.sweep.text() == CANCEL and not view.run.isEnabled() and not view.form.isEnabled()
    qtbot.waitUntil(lambda: len(view.table.rows) >= 2, timeout=LONG)
    press(view, view.sweep, qtbot)
    kept = len(view.table.rows)
    total = view.table.rows[0].total
    assert 2 <= kept < total == 18 and view.table.rowCount() == kept
    assert f"the {kept} experts listed stay" in view.status.text()
    assert (
        view.sweep.text() == SWEEP
        and view.sweep.isEnabled()
        and view.run.isEnabled()
        and view.form.isEnabled()
    )
    view.buttons.save_to(str(tmp_path / "importance.csv"))
    with (tmp_path / "importance.csv").open(newline="", encoding="utf-8") as file:
        assert [float(row["mean_mm"]) for row in csv.DictReader(file)] == [
            row.mean_mm for row in view.table.rows
        ]
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks)
        for m in experiment.replay.network.modules()
    ]
    assert not any(hooks)


def test_a_run_can_be_cancelled(view, experiment, model, qtbot, monkeypatch):
    def wait(self, *_, progress=None):
        for _ in range(2000):
            progress(0.1)
            time.sleep(0.005)
        raise AssertionError("it was not cancelled")

    monkeypatch.setattr(Experiment, "run", wait)
    view.run.click()
    qtbot.waitUntil(lambda: "running with the change" in view.status.text(), timeout=LONG)
    assert view.run.text() == CANCEL and not view.sweep.isEnabled()
    press(view, view.run, qtbot)
    assert (
        view.status.text() == "Cancelled."
        and view.run.text() == RUN
        and not layers_of_registration(model, 1, ROLE)
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("out of luck"), InputError("no such expert"), MemoryError()]
)
def test_an_error_arrives_and_leaves_the_view_usable(view, qtbot, monkeypatch, told, error):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(importance_module, "importance", fail)
        patch.setattr(Experiment, "run", fail)
        for button, name in ((view.run, RUN), (view.sweep, SWEEP)):
            press(view, button, qtbot)
            assert button.text() == name and button.isEnabled()
    said = told("error")
    assert {RuntimeError: "out of luck", InputError: "no such expert", MemoryError: "memory"}[
        type(error)
    ] in said
    view.form.where.pick(part="decoder", layer=2, direction="x")
    press(view, view.run, qtbot)
    assert view.result.answer is not None


def test_weights_that_are_not_there_are_told(model, registration, qtbot, told):
    other = replace(
        registration,
        report={**registration.report, "weights": "/nowhere/mine.safetensors"},
        weights="mine",
    )
    add_layers(model, layers_of(other, 2))
    view = WhatIfView(model)
    qtbot.addWidget(view)
    view.show_registration(2)
    press(view, view.run, qtbot)
    assert "mine.safetensors" in told("error") and view.run.isEnabled()
    assert told("error").endswith(CHOOSE_WEIGHTS) and not view.choose.isHidden()


def test_weights_shown_once_are_those_of_the_registration_for_every_view(
    model, registration, qtbot, monkeypatch, lively_network
):
    asked = []

    def load(name, *, device="cpu"):
        asked.append(str(name))
        if "moved" not in str(name):
            raise InputError(f"There are no weights '{name}'.")
        return lively_network(0.03)

    monkeypatch.setattr(checkpoint, "load_network", load)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("/moved/mine.safetensors", ""))
    other = replace(registration, weights="mine")
    add_layers(model, layers_of(other, 2))
    view = WhatIfView(model)
    qtbot.addWidget(view)
    view.show_registration(2)
    view.form.where.pick(part="decoder", layer=1, direction="x")
    view.form.null.setChecked(False)
    press(view, view.run, qtbot)
    press(view, view.choose, qtbot)
    assert view.answers[other].agreement == 1.0 and view.choose.isHidden()
    replay_of(other, Report())
    assert asked == ["untrained", "/moved/mine.safetensors", "/moved/mine.safetensors"]


def turned(trace):
    """Every cell with the next expert instead of each that it chose."""
    return RoutingTrace(
        tuple(
            replace(
                layer,
                routing=layer.routing._replace(
                    experts=(layer.routing.experts + 1) % layer.num_experts
                ),
            )
            for layer in trace
        )
    )


def test_other_weights_than_those_of_the_registration_are_told(
    view, registration, experiment, qtbot, monkeypatch
):
    view.form.where.pick(part="decoder", layer=2, direction="x")
    press(view, view.run, qtbot)
    assert (
        view.result.answer.agreement == 1.0 and "were found choose" not in view.result.notes.text()
    )
    from napari_shmoareg.plugin.experts.what_if_results import notes

    shown = replace(view.result.answer, agreement=0.0)
    assert any("0 % of the cells" in note for note in notes(shown))
    assert recorded_agreement(experiment, registration.routing) == 1.0
    assert recorded_agreement(experiment, turned(registration.routing)) == 0.0


def test_heads_chosen_otherwise_are_told_where_there_are_no_maps_and_by_a_sweep_too(
    view, registration, experiment, qtbot, monkeypatch
):
    heads = RoutingTrace(registration.routing.select(part="encoder"))
    assert recorded_agreement(experiment, heads) == 1.0
    assert recorded_agreement(experiment, turned(heads)) < 0.5
    monkeypatch.setattr("napari_shmoareg.experts.experiment.recorded_agreement", lambda *_: 0.25)
    view.form.where.pick(part="decoder", layer=1, direction="x")
    view.form.null.setChecked(False)
    press(view, view.sweep, qtbot)
    assert "25 % of the cells" in view.listed.note.text() and not view.listed.note.isHidden()
    assert not view.choose.isHidden(), "there is no way to other weights"


def test_a_registration_that_was_closed_meanwhile_gets_no_layers(view, model, qtbot, told):
    with qtbot.waitSignal(view.answered, timeout=LONG):
        view.run.click()
        model.layers.clear()
        view.show_registration(None)
    assert not len(model.layers) and "closed meanwhile" in told("info")
    assert not view.isEnabled() and view.result.isHidden()


def test_figures_of_another_registration_do_not_stay(view, model, registration, qtbot):
    view.form.where.pick(part="decoder", layer=2, direction="x")
    press(view, view.run, qtbot)
    assert not view.result.isHidden()
    shown, other = view.result.answer, replace(registration, weights="mine")
    add_layers(model, layers_of(other, 2))
    view.show_registration(2)
    assert view.result.isHidden() and view.ramp.isHidden()
    view.show_registration(1)
    assert view.result.answer is shown and not view.result.isHidden()


def test_a_sweep_ends_and_is_clicked_in_its_own_registration_whatever_the_panel_shows(
    view, model, registration, qtbot
):
    other = replace(registration, weights="mine")
    view.form.where.pick(part="decoder", layer=1)
    view.form.null.setChecked(False)
    view.sweep.click()
    qtbot.waitUntil(lambda: len(view.table.rows) >= 2, timeout=LONG)
    add_layers(model, layers_of(other, 2))
    view.show_registration(2)
    qtbot.waitUntil(lambda: view.status.text().startswith("Registration #1: "), timeout=LONG)
    view.table.selectRow(0)
    view.table.cellClicked.emit(0, 0)
    shown = [
        layer.name for layer in model.layers if layer.visible and tag(layer, "role") == "expert_map"
    ]
    assert len(shown) == 1 and shown[0].startswith("#1 ")
    with qtbot.waitSignal(view.answered, timeout=LONG):
        pass
    assert "#1" in view.status.text() and not view.table.rows and view.listed.heading.isHidden()
    view.show_registration(1)
    assert len(view.table.rows) == 9 and not view.buttons.isHidden() and not view.status.text()


def test_closing_a_registration_ends_what_runs_for_it_and_it_is_not_held(
    view, model, registration, experiment, qtbot
):
    other = replace(registration, weights="mine")
    add_layers(model, layers_of(other, 2))
    view.cache[other] = experiment
    view.show_registration(2)
    view.form.where.pick(part="decoder")
    view.sweep.click()
    qtbot.waitUntil(lambda: len(view.table.rows) >= 1, timeout=LONG)
    rows, held = view.sweeps[other].rows, weakref.ref(other)
    del other
    for layer in layers_of_registration(model, 2):
        model.layers.remove(layer)
    with qtbot.waitSignal(view.answered, timeout=LONG):
        view.show_registration(1)
        assert view.run.text() == RUN and not view.run.isEnabled()
    assert len(rows) < 18 and view.run.isEnabled() and not view.table.rows
    del layer
    model.layers.selection.active = model.layers[0]  # napari holds the layer that was active last
    gc.collect()
    assert held() is None


def test_a_table_and_its_file_say_what_was_done(view, registration, qtbot, tmp_path):
    view.form.where.pick(part="decoder", layer=1, direction="x")
    press(view, view.sweep, qtbot)
    press(view, view.run, qtbot)
    pair = f"{registration.pair.moving.name} onto {registration.pair.fixed.name}"
    told = view.listed.heading.text()
    for word in (
        "Silenced",
        "decoder layer 1, direction x",
        "everywhere",
        "random counterpart",
        pair,
        "untrained",
    ):
        assert word in told
    rows = {}
    for name, buttons in (("sweep", view.buttons), ("run", view.result.buttons)):
        buttons.save_to(str(tmp_path / name))
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            rows[name] = next(csv.DictReader(file))
        assert rows[name]["pair"] == pair and rows[name]["weights"] == "untrained"
    assert {"action", "region", "seed"} <= set(rows["sweep"]) and rows["sweep"][
        "action"
    ] == "silence"
    done = rows["run"]
    assert (
        json.loads(done["settings"])["diffeomorphic"]
        == registration.report["settings"]["diffeomorphic"]
    )
    assert int(done["cells"]) == view.result.answer.effect.cells
    assert float(done["share_of_selections"]) == view.result.answer.share
    assert (
        done["random_counterpart"] == view.result.answer.null.description
        and done["random_counterpart"]
    )
    assert f"Random: {done['random_counterpart']}." in view.result.notes.text()


def test_the_column_times_says_what_it_compares_with(view):
    tip = view.table.horizontalHeaderItem(4).toolTip()
    assert "content and background" in tip and "one draw" in tip


def pick_control(view, choose, name, **where):
    view.form.where.pick(**where)
    choose(view.form.action, name)


def test_a_control_acts_at_all_gates_that_are_picked_and_in_all_passes(
    view, experiment, model, registration, qtbot, choose
):
    pick_control(view, choose, "shuffled", part="decoder")
    hidden = (view.form.expert, view.form.source, view.form.region, view.form.null)
    assert all(widget.isHidden() for widget in hidden) and not view.form.passes.isHidden()
    assert view.run.isEnabled() and not view.sweep.isEnabled(), "importance is about single experts"
    press(view, view.run, qtbot)
    effect = experiment.run(Control("shuffled", "decoder"))
    found = view.result.answer
    assert (
        found.effect.description == str(Control("shuffled", "decoder"))
        and "all passes" in found.effect.description
    )
    assert (
        found.effect.mean_dice == effect.outcome.mean_dice
        and found.effect.mean_mm == effect.mean_mm > 0
    )
    assert found.share is None and found.null is None and view.result.whole.isColumnHidden(3)
    moved = effect_layer(model, 1, MOVED)
    np.testing.assert_array_equal(tag(moved, "volume").values, effect.moved.values)
    assert view.result.heading.text().startswith("<b>Shuffled: all decoder layers")
    choose(view.form.action, "silence")
    assert not any(
        widget.isHidden() for widget in (view.form.expert, view.form.source, view.form.null)
    )
    assert view.form.passes.isHidden() and view.sweep.isEnabled()


def test_a_control_of_the_last_pass_of_one_layer_and_direction(view, experiment, qtbot, choose):
    pick_control(view, choose, "fixed", part="decoder", layer=1, direction="y")
    choose(view.form.passes, "last")
    assert (
        not view.form.expert.isHidden()
        and view.form.expert.itemText(0) == "the one chosen most often"
    )
    choose(view.form.expert, 2)
    press(view, view.run, qtbot)
    change = Control("fixed", "decoder", 1, direction="y", passes="last", expert=2)
    assert view.result.answer.effect.description == str(change)
    assert view.result.answer.effect.mean_mm == experiment.run(change).mean_mm
    choose(view.form.expert, MOST_CHOSEN)
    assert view.form.request.change(view.registration) == replace(change, expert=None)


def test_each_part_has_its_own_controls_and_each_says_what_it_is(view, choose):
    def offered():
        return {view.form.action.itemData(n) for n in range(view.form.action.count())}

    for part, name, other in (
        ("encoder", "attention_off", "mean_of_kernels"),
        ("decoder", "mean_of_kernels", "uniform"),
    ):
        view.form.where.pick(part=part)
        assert name in offered() and other not in offered()
        assert offered() == {
            "silence",
            "force",
            *(n for n, kind in KINDS.items() if part in kind.parts),
        }
    row = view.form.action.findData("moved")
    assert view.form.action.itemData(row, 3) == KINDS["moved"].description  # Qt.ToolTipRole
    pick_control(view, choose, "attention_off", part="encoder", image="moving")
    assert view.form.expert.isHidden() and view.form.request.change(view.registration) == Control(
        "attention_off", "encoder", image="moving"
    )


def test_what_a_control_leaves_of_the_gain_is_said_and_its_file_has_no_share_of_selections(
    view, experiment, qtbot, choose, tmp_path
):
    pick_control(view, choose, "mean_of_kernels", part="decoder")
    press(view, view.run, qtbot)
    found = view.result.answer
    assert found.aligned == experiment.aligned_dice == pytest.approx(mean_dice_aligned(experiment))
    before, after = experiment.base.mean_dice, found.effect.mean_dice
    made = replace(
        found, before=({}, 0.7, 0.0), aligned=0.5, effect=replace(found.effect, mean_dice=0.65)
    )
    assert (
        "0.500 after the alignment and 0.700 with the unchanged network; 75 % of this gain is left"
        in gain(made)[0]
    )
    assert gain(replace(made, aligned=0.8))[0].startswith("The network gains nothing here")
    assert "unknown" in gain(replace(made, aligned=None))[0]
    assert gain(found)[0] in view.result.notes.text() and (before > found.aligned) == (
        "of this gain" in gain(found)[0]
    )
    assert after is not None and "selections there" not in view.result.notes.text()
    view.result.buttons.save_to(str(tmp_path / "control.csv"))
    with (tmp_path / "control.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["share_of_selections"] for row in rows} == {""} and rows[0][
        "change"
    ] == found.effect.description


def mean_dice_aligned(experiment):
    pair = experiment.replay.pair
    carried = warp_volume(
        pair.moving_labels, pair.fixed.grid, Transform(experiment.replay.affine)
    ).values
    found = dice(
        carried,
        pair.fixed_labels.values,
        set(pair.moving_labels.labels) & set(pair.fixed_labels.labels),
    )
    return np.mean(list(found.values()))


def test_only_the_last_experiment_is_kept(registration, monkeypatch, lively_network):
    monkeypatch.setattr(
        checkpoint, "load_network", lambda name, *, device="cpu": lively_network(0.03)
    )
    kept, report = {registration: "first"}, Report()
    other = replace(registration, weights="mine")
    found = experiment_of(report, other, kept)
    assert kept == {other: found} and report.reached[1] == READY


def test_no_time_is_told_before_the_network_has_run_once(monkeypatch):
    clock, now = Clock(), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for now[0], done in ((10.0, 0.1), (20.0, READY)):
        assert clock.left(done, ready=False) is None
    now[0] = 30.0
    assert clock.left(READY, ready=True) is None
    now[0] = 34.0
    assert clock.left(0.8, ready=True) == pytest.approx(4.0)
    clock.left(0.0, ready=True)
    now[0] = 35.0
    assert clock.left(0.1, ready=True) == pytest.approx(9.0), "a sweep counts from its first expert"


@pytest.mark.slow
def test_the_worker_ends_with_the_dock(viewer, registration, experiment, qtbot):
    add_layers(viewer, layers_of(registration, 1))
    view = WhatIfView(viewer)
    view.cache[registration] = experiment
    view.show_registration(1)
    dock = viewer.window.add_dock_widget(view, name="What if", area="right")
    view.form.where.pick(part="decoder")
    view.sweep.click()
    qtbot.waitUntil(lambda: len(view.table.rows) >= 1, timeout=LONG)
    with qtbot.waitSignal(view.answered, timeout=LONG):
        viewer.window.remove_dock_widget(dock)
    assert len(view.table.rows) < 18 and not view.task.busy


def test_every_control_says_what_it_does_and_the_caption_what_it_is_not(view):
    from qtpy.QtWidgets import QCheckBox, QComboBox, QPushButton

    controls = [c for kind in (QComboBox, QPushButton, QCheckBox) for c in view.findChildren(kind)]
    assert len(controls) > 14 and all(control.toolTip() for control in controls)
    assert "A load is not a contribution" in CAPTION and "refinement" in CAPTION


def test_a_measure_without_labels_is_left_out(view, experiment, qtbot):
    effect = SimpleNamespace(folding_percent=0.0, mean_mm=0, p95_mm=0, max_mm=0, changed=0, cells=1)
    bare = SimpleNamespace(before=({}, None, 0.0), effect=effect, null=None)
    assert whole_rows(bare)[0][0] == "Folding, %"
