"""From layers to layers without a window; errors in words, and an end when it is asked for."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from napari.layers import Image, Labels

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io import save_network
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.plugin.controls.progress import LOADING_SHARE, Clock
from napari_shmoareg.plugin.controls.tasks import Report
from napari_shmoareg.plugin.placement import layer_options
from napari_shmoareg.plugin.register import job
from napari_shmoareg.plugin.register.job import LayerRegistration
from napari_shmoareg.plugin.register.panel import summary
from napari_shmoareg.registration.progress import Interrupted
from napari_shmoareg.registration.resources import psutil
from napari_shmoareg.settings import RegistrationRequest

KINDS = {"moving": Image, "fixed": Image, "moving_labels": Labels, "fixed_labels": Labels}


@pytest.fixture(scope="module")
def settings(lively_network, tmp_path_factory) -> RegistrationRequest:
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    save_network(lively_network(0.03), path, card={})
    return RegistrationRequest(weights=str(path), affine="none", device="cpu")


@pytest.fixture
def layers(pair):
    made = {}
    for role, kind in KINDS.items():
        data, options = layer_options(getattr(pair, role), role=role)
        made[role] = kind(data, **options)
    return made


def register(layers, settings, number=1, report=None, landmarks=None):
    run = LayerRegistration(layers, settings, number, landmarks)
    return run(Report() if report is None else report)


def error_of(layers, settings) -> str:
    """In the words that a task shows."""
    with pytest.raises(InputError) as caught:
        register(layers, settings)
    return explain(caught.value)


def test_the_pair_that_is_registered_is_that_of_the_files_and_not_of_the_screen(
    layers, settings, pair
):
    outcome = register(layers, settings, 4)
    assert outcome.notes == []
    assert outcome.registration.pair.moving.values is pair.moving.values
    assert outcome.registration.warped.grid.same_space(pair.fixed.grid)
    assert (
        outcome.registration.report["choices"]["weights"].endswith("as requested")
        and outcome.registration.weights == "lively"
    )
    assert [options["name"] for _, options, _ in outcome.layers][:2] == [
        "#4 warped",
        "#4 warped labels",
    ]


def test_labels_on_another_grid_are_taken_onto_their_image_and_it_is_told(layers, settings, pair):
    data, options = layer_options(pair.fixed_labels)
    layers["moving_labels"] = Labels(data, **options)
    outcome = register(layers, settings)
    moved = outcome.registration.pair.moving_labels
    assert moved.grid.same_space(pair.moving.grid) and set(moved.labels) <= set(
        pair.fixed_labels.labels
    )
    assert len(outcome.notes) == 1 and "another grid" in outcome.notes[0]


def drag(*layers):
    """Move and turn layers as the handles of napari's transform mode do."""
    turn = np.eye(4)
    turn[1:3, 1:3], turn[:3, 3] = [[0.98, -0.199], [0.199, 0.98]], (3.0, -4.0, 2.0)
    for layer in layers:
        layer.affine = turn
    return turn[2::-1, 2::-1], turn[2::-1, 3]  # in R, A, S


@pytest.mark.parametrize("labels_too", [False, True])
def test_an_image_moved_by_hand_is_registered_from_there_and_stays_that_of_its_file(
    layers, settings, pair, labels_too
):
    matrix, shift = drag(layers["moving"], *([layers["moving_labels"]] if labels_too else ()))
    outcome = register(layers, settings)
    registration = outcome.registration
    for role in ("moving", "moving_labels"):
        stored = getattr(registration.pair, role)
        assert stored.grid is getattr(pair, role).grid
        assert (stored.values == getattr(pair, role).values).all()
    fixed_point = pair.fixed.grid.centre
    in_file = registration.alignment.initial @ [*fixed_point, 1]
    assert matrix @ in_file[:3] + shift == pytest.approx(fixed_point)
    np.testing.assert_array_equal(registration.affine, registration.alignment.initial)
    assert registration.kept != "before" and outcome.notes == []
    report = registration.report
    assert report["choices"]["initial"].startswith("as placed in the viewer, its centre ")
    assert "kept as it is" in report["choices"]["affine"]
    assert np.allclose(report["affine"]["initial"], registration.affine)


def test_labels_painted_over_a_moved_image_are_carried_back_with_it(layers, settings, pair):
    placed, _ = layer_options(pair.moving_labels)
    drag(layers["moving"])
    painted = Labels(np.array(placed), affine=layers["moving"].affine.affine_matrix)
    painted.scale, painted.translate = layers["moving"].scale, layers["moving"].translate
    painted.units = layers["moving"].units
    outcome = register(layers | {"moving_labels": painted}, settings)
    found = outcome.registration.pair.moving_labels.values
    assert (found == pair.moving_labels.values).mean() > 0.97
    assert len(outcome.notes) == 1  # the copy has straight axes


def test_landmarks_are_a_start_of_their_own(layers, settings, pair):
    fixed = pair.fixed.grid.centre + 10 * np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1]])
    moving = fixed + np.array([2.0, -3.0, 1.0])
    drag(layers["moving"])  # the landmarks count instead
    found = register(layers, settings, landmarks=("rigid", fixed, moving)).registration
    expected = np.eye(4)
    expected[:3, 3] = (2.0, -3.0, 1.0)
    np.testing.assert_allclose(found.affine, expected, atol=1e-9)
    assert found.report["choices"]["initial"] == (
        "rigid fit of 4 landmark pairs, to 0.00 mm on average"
    )
    with pytest.raises(InputError, match="thin-plate start needs at least 5 landmark pairs; got 4"):
        register(layers, settings, landmarks=("thin-plate", fixed, moving))


def test_a_mask_limits_what_is_compared_and_is_put_onto_the_fixed_image(layers, settings, pair):
    data, options = layer_options(pair.fixed_labels)
    layers["fixed_mask"] = Labels(data, **options)
    registration = register(layers, settings).registration
    assert (registration.pair.fixed_mask.values == pair.fixed_labels.values).all()
    assert registration.report["similarity_within"] == "mask"
    assert summary(1, registration).count("Correlation in the mask") == 1
    coarse = resample(pair.fixed_labels, pair.fixed.grid.coarsen(2))
    data, options = layer_options(coarse)
    layers["fixed_mask"] = Labels(data, **options)
    outcome = register(layers, settings)
    assert outcome.registration.pair.fixed_mask.grid.same_space(pair.fixed.grid)
    assert len(outcome.notes) == 1 and "another grid" in outcome.notes[0]
    layers["fixed_mask"] = Labels(np.zeros_like(data), **options)
    assert "is empty: no voxel of the fixed image" in error_of(layers, settings)


def test_progress_only_rises_and_ends_at_the_whole(layers, settings):
    seen, clock = [], Clock(LOADING_SHARE)
    report = Report(forward=lambda *at: seen.append((*at, clock.left(at[1]))))
    register(layers, settings, report=report)
    done = [fraction for _, fraction, _ in seen]
    assert done == sorted(done) and done[-1] == 1.0
    assert {"loading", "deforming", "warping", "measuring", "drawing"} <= {
        title for title, _, _ in seen
    }
    assert seen[0][2] is None and seen[-1][2] == 0.0


@pytest.mark.parametrize("phase", ["loading", "align", "network", "measure", "drawing"])
def test_a_registration_is_cancelled_in_every_phase(layers, settings, phase, monkeypatch):
    report, report_progress = Report(), LayerRegistration._report_progress

    def cancel(self, name, fraction):
        if name == phase:
            report.cancel()
        report_progress(self, name, fraction)

    monkeypatch.setattr(LayerRegistration, "_report_progress", cancel)
    with pytest.raises(Interrupted):
        register(layers, settings, report=report)


def test_a_registration_is_cancelled_in_the_middle_of_the_network(layers, settings, monkeypatch):
    report, run = Report(), []
    forward = torch.nn.Conv3d.forward

    def counted(self, x):
        run.append(1)
        if len(run) == 3:
            report.cancel()
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", counted)
    with pytest.raises(Interrupted):
        register(layers, settings, report=report)
    assert len(run) == 3


def test_neither_network_nor_layers_outlive_a_job(layers, settings, monkeypatch):
    made = []
    init = SHMoAReg.__init__

    def seen(self, *args, **options):
        made.append(weakref.ref(self))
        init(self, *args, **options)

    monkeypatch.setattr(SHMoAReg, "__init__", seen)
    gone = weakref.ref(layers["moving"])
    registration = LayerRegistration(layers, settings, 1)  # which holds them no more at the end
    outcome = registration(Report())
    layers.clear()
    gc.collect()
    assert outcome.registration is not None and made
    assert all(network() is None for network in made) and gone() is None
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda la: np.full_like(la.data, 7), "constant"),
        (lambda la: np.where(la.data > 50, np.nan, la.data), "nan_to_num"),
        (lambda la: la.data[None], "4 axes"),
    ],
)
def test_a_bad_image_is_named_and_no_option_of_the_command_line(layers, settings, change, says):
    data = change(layers["moving"])
    layers["moving"] = Image(data, name="my scan")
    error = error_of(layers, settings)
    assert "my scan" in error and says in error and "--" not in error


def test_images_that_do_not_meet_are_told_with_what_to_choose(layers, settings):
    layers["moving"].translate = np.add(layers["moving"].translate, 1000)
    del layers["moving_labels"]
    error = error_of(layers, settings)
    assert "'Alignment' auto" in error and "--" not in error


def test_too_little_memory_is_told_with_a_size_that_fits(layers, settings, monkeypatch):
    class Small:
        available = 300 * 2**20  # what every network needs, and little more

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Small)
    error = error_of(layers, replace(settings, size=512))
    assert "GiB" in error and "'Size' " in error and "would fit" in error and "--" not in error


def test_weights_that_are_not_there_are_told(layers):
    settings = RegistrationRequest(weights="none.safetensors")
    assert "no weights 'none.safetensors'" in error_of(layers, settings)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            TooLargeError("Too large.", remedy="About {size:64} would fit."),
            "About 'Size' 64 would fit.",
        ),
        (
            InputError("They do not meet.", remedy="Use {affine:auto}, which"),
            "Use 'Alignment' auto, which",
        ),
        (InputError("used here: x.", remedy="Use {device:cpu}."), "here: x. Use 'Device' cpu."),
        (InputError("must be at least 8.", setting="size"), "'Size' must be at least 8."),
        (MemoryError(), "smaller Size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "smaller Size"),
        (KeyError("x"), "This is a bug: please report it"),
    ],
)
def test_errors_are_told_in_the_words_of_the_form(error, says):
    assert says in explain(error)


def test_the_time_left_runs_down_between_two_reports(monkeypatch):
    clock, now = Clock(LOADING_SHARE), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert clock.left(0.0) is None
    now[0] = 10.0
    assert clock.left(0.5) == 10.0
    now[0] = 12.0
    assert clock.left(0.5) == 8.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_memory_of_the_gpu_is_given_back(layers, settings):
    register(layers, replace(settings, device="cuda"))
    held, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    outcome = register(layers, replace(settings, device="cuda"), 2)
    assert outcome.registration is not None
    assert torch.cuda.memory_allocated() <= held and torch.cuda.memory_reserved() <= reserved


def test_a_torch_that_is_half_loaded_when_a_job_starts_does_no_harm(layers, settings, monkeypatch):
    whole = sys.modules["torch"]
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # another thread is at it
    load = job.preload

    def loaded():
        monkeypatch.setitem(sys.modules, "torch", whole)
        return load()

    monkeypatch.setattr(job, "preload", loaded)
    assert register(layers, settings).registration is not None


def test_memory_that_runs_out_on_the_way_is_told_with_a_size_to_try(layers, settings, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("napari_shmoareg.registration.register.register", full)
    assert "(for example 36 voxels instead of 48)" in error_of(layers, replace(settings, size=48))
