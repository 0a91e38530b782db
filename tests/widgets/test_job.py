"""From layers to layers without a window; errors in words, and an end when it is asked for."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from napari.layers import Image, Labels

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.io import save_network
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.plugin.placement import layer_options
from napari_shmoareg.plugin.register.job import Job
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


def test_the_pair_that_is_registered_is_that_of_the_files_and_not_of_the_screen(
    layers, settings, pair
):
    outcome = Job(layers, settings, 4).run()
    assert outcome.error == "" and outcome.notes == []
    assert outcome.scene.pair.moving.values is pair.moving.values
    assert outcome.scene.warped.grid.same_space(pair.fixed.grid)
    assert (
        outcome.scene.report["choices"]["weights"].endswith("as asked")
        and outcome.scene.weights == "lively"
    )
    assert [options["name"] for _, options, _ in outcome.layers][:2] == [
        "#4 warped",
        "#4 warped labels",
    ]


def test_labels_on_another_grid_are_taken_onto_their_image_and_it_is_told(layers, settings, pair):
    data, options = layer_options(pair.fixed_labels)
    layers["moving_labels"] = Labels(data, **options)
    outcome = Job(layers, settings, 1).run()
    moved = outcome.scene.pair.moving_labels
    assert moved.grid.same_space(pair.moving.grid) and set(moved.labels) <= set(
        pair.fixed_labels.labels
    )
    assert len(outcome.notes) == 1 and "another grid" in outcome.notes[0]


def test_progress_only_rises_and_ends_at_the_whole(layers, settings):
    job = Job(layers, settings, 1)
    seen = []
    told = job._tell

    def tell(phase, fraction):
        told(phase, fraction)
        seen.append(job.status)

    job._tell = tell
    job.run()
    done = [status.done for status in seen]
    assert done == sorted(done) and done[-1] == 1.0
    assert {"loading", "deforming", "warping", "measuring", "drawing"} <= {
        status.title for status in seen
    }
    assert seen[0].left is None and seen[-1].left == 0.0


@pytest.mark.parametrize("phase", ["loading", "align", "network", "measure", "drawing"])
def test_a_job_ends_in_every_phase_and_is_no_error(layers, settings, phase):
    job = Job(layers, settings, 1)
    told = job._tell

    def tell(name, fraction):
        if name == phase:
            job.cancel()
        told(name, fraction)

    job._tell = tell
    outcome = job.run()
    assert outcome.scene is None and outcome.error == "" and outcome.layers == [] and job.cancelled


def test_a_job_ends_in_the_middle_of_the_network(layers, settings, monkeypatch):
    job, run = Job(layers, settings, 1), []
    forward = torch.nn.Conv3d.forward

    def counted(self, x):
        run.append(1)
        if len(run) == 3:
            job.cancel()
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", counted)
    outcome = job.run()
    assert outcome.scene is None and outcome.error == "" and len(run) == 3


def test_a_job_ends_with_the_window_that_wanted_it(layers, settings):
    job = Job(layers, settings, 1)
    job.cancel_when(lambda: True)
    assert job.run().scene is None


def test_neither_network_nor_layers_outlive_a_job(layers, settings, monkeypatch):
    made = []
    init = SHMoAReg.__init__

    def seen(self, *args, **options):
        made.append(weakref.ref(self))
        init(self, *args, **options)

    monkeypatch.setattr(SHMoAReg, "__init__", seen)
    gone = weakref.ref(layers["moving"])
    job = Job(layers, settings, 1)
    outcome = job.run()
    layers.clear()
    gc.collect()
    assert outcome.scene is not None and made
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
    outcome = Job(layers, settings, 1).run()
    assert outcome.scene is None and "my scan" in outcome.error and says in outcome.error
    assert "--" not in outcome.error


def test_images_that_do_not_meet_are_told_with_what_to_choose(layers, settings):
    layers["moving"].translate = np.add(layers["moving"].translate, 1000)
    del layers["moving_labels"]
    outcome = Job(layers, settings, 1).run()
    assert "'Alignment' auto" in outcome.error and "--" not in outcome.error


def test_too_little_memory_is_told_with_a_size_that_fits(layers, settings, monkeypatch):
    class Small:
        available = 300 * 2**20  # what every network needs, and little more

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Small)
    outcome = Job(layers, RegistrationRequest(**{**vars(settings), "size": 512}), 1).run()
    assert "GiB" in outcome.error and "'Size' " in outcome.error and "would fit" in outcome.error
    assert "--" not in outcome.error


def test_weights_that_are_not_there_are_told(layers):
    assert (
        "no weights 'none.safetensors'"
        in Job(layers, RegistrationRequest(weights="none.safetensors"), 1).run().error
    )


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
        (KeyError("x"), "This is a bug, not your mistake"),
    ],
)
def test_errors_are_told_in_the_words_of_the_form(error, says):
    assert says in explain(error)


def test_the_time_left_runs_down_between_two_reports(layers, settings):
    job = Job(layers, settings, 1)
    job._began = time.perf_counter() - 10
    job._tell("network", 0.5)
    first = job.status.left
    job._reached = (*job._reached[:2], job._reached[2] - 2)
    assert first > 0 and job.status.left < first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_memory_of_the_gpu_is_given_back(layers, settings):
    Job(layers, RegistrationRequest(**{**vars(settings), "device": "cuda"}), 1).run()
    held, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    outcome = Job(layers, RegistrationRequest(**{**vars(settings), "device": "cuda"}), 2).run()
    assert outcome.scene is not None
    assert torch.cuda.memory_allocated() <= held and torch.cuda.memory_reserved() <= reserved


def test_a_torch_that_is_half_loaded_when_a_job_starts_does_no_harm(layers, settings, monkeypatch):
    whole = sys.modules["torch"]
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # another thread is at it
    job = Job(layers, settings, 1, before=lambda: monkeypatch.setitem(sys.modules, "torch", whole))
    outcome = job.run()
    assert outcome.error == "" and outcome.scene is not None


def test_memory_that_runs_out_on_the_way_is_told_with_a_size_to_try(layers, settings, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("napari_shmoareg.registration.register.register", full)
    assert (
        "(36 voxels instead of 48, say)" in Job(layers, replace(settings, size=48), 1).run().error
    )
