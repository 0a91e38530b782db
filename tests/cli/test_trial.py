"""One method on one pair: what reaches it, what is measured, how its process may end."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from napari_shmoareg.evaluation import baselines
from napari_shmoareg.evaluation import isolated_run as trials
from napari_shmoareg.evaluation import methods as methods_module
from napari_shmoareg.evaluation.isolated_run import IsolatedRun, measure, run_isolated
from napari_shmoareg.io import read_image
from napari_shmoareg.model import SHMoARegConfig
from napari_shmoareg.settings import RegistrationSettings

pytestmark = pytest.mark.slow


def trial_of(files, **more) -> IsolatedRun:
    return IsolatedRun(
        "start",
        str(files.moving),
        str(files.fixed),
        str(files.moving_labels),
        str(files.fixed_labels),
        **more,
    )


def test_a_change_reaches_the_method_and_not_the_labels(files, weights, monkeypatch):
    """Through the network, on this process: the map differs, the start's Dice does not."""
    seen, make = [], baselines.evaluated_method

    def watching(pair):
        seen.append(pair)
        return make("start", {})(pair)

    monkeypatch.setattr(
        baselines,
        "evaluated_method",
        lambda name, *rest: watching if name == "affine" else make(name, *rest),
    )
    kept = measure(trial_of(files))
    turned = measure(replace(trial_of(files), method="affine", change="invert"))
    assert turned["dice"] == kept["dice"]
    inside = files_values(files, "moving") > 50
    assert np.corrcoef(seen[0].moving.values[inside], files_values(files, "moving")[inside])[
        0, 1
    ] == pytest.approx(-1)
    assert np.array_equal(seen[0].fixed.values, files_values(files, "fixed"))


@pytest.mark.parametrize(
    ("method", "steps", "smoothness"),
    [
        ("shmoareg", 0, "smooth"),
        ("shmoareg+refine", 7, "smooth"),
        ("affine+refine:balanced", 7, "balanced"),
    ],
)
def test_the_options_of_our_network_reach_the_registration(
    method, steps, smoothness, files, weights, monkeypatch
):
    asked = {}

    def register(pair, network, settings):
        asked.update(settings=settings, network=network)
        return SimpleNamespace(
            displacement=methods_module.load_method("start").run(pair),
            seconds={"network": 2.5},
            alignment=SimpleNamespace(matrix=np.eye(4)),
            warnings=(),
        )

    monkeypatch.setattr(baselines, "register", register)
    ours = {
        "size": 24,
        "diffeomorphic": False,
        "device": "cpu",
        "contrast": "match",
        "smoothness": "smooth",
    }
    trial = trial_of(files, weights=str(weights), refine=7, similarity="mind", **ours)
    measured = measure(replace(trial, method=method))
    assert measured["dice"] > 0 and measured["deforming_seconds"] == 2.5
    network = asked.pop("network")
    assert (
        network is None
        if method.startswith("affine")
        else network.config == SHMoARegConfig.preset("tiny")
    )
    refined = {"refine": steps, "similarity": "mind"} if steps else {}
    settings = RegistrationSettings(**ours | {"smoothness": smoothness} | refined)
    assert asked == {"settings": settings}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("unigradicon", {"unigradicon_weights": "w.trch", "device": "cpu"}),
        ("convexadam", {"device": "cpu"}),
        ("niftyreg", {}),
    ],
)
def test_a_peer_gets_the_options_that_it_takes(method, options, files, monkeypatch):
    asked = {}

    def load(name, **options):
        asked.update(options)
        return methods_module.load_method("start")

    monkeypatch.setattr(baselines, "load_method", load)
    monkeypatch.setattr(baselines, "check_available", lambda name: None)
    trial = trial_of(files, unigradicon_weights="w.trch", device="cpu")
    assert measure(replace(trial, method=method))["dice"] > 0
    assert asked == options


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script that begins with #!")
def test_what_a_program_said_when_it_failed_is_the_error_of_the_trial(files, put_on_path):
    put_on_path("reg_f3d", "import sys; sys.exit('[NiftyReg ERROR] no memory')")
    put_on_path("reg_transform", "")
    found = run_isolated(replace(trial_of(files), method="niftyreg"))
    assert found == {"error": "RuntimeError: reg_f3d ended with code 1: [NiftyReg ERROR] no memory"}


def files_values(files, name):
    return read_image(getattr(files, name)).values


def test_a_process_that_dies_is_an_error_that_says_how(files, monkeypatch):
    monkeypatch.setattr(
        trials, "COMMAND", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    )
    assert "signal 9 (out of memory?)" in run_isolated(trial_of(files))["error"]
    monkeypatch.setattr(
        trials, "COMMAND", (sys.executable, "-c", "raise SystemExit('no such thing')")
    )
    assert run_isolated(trial_of(files))["error"] == "its process ended with code 1: no such thing"


def test_peak_memory_sees_what_was_held_and_let_go_by_this_process_alone():
    ours = np.ones(2**25)  # 256 MiB, which are not the child's
    code = (
        "from napari_shmoareg.evaluation.isolated_run import peak_memory as p; "
        "a = p(); b = b'x' * 2**27; del b; print(a, p())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, run.stdout.split())
    assert before < ours.nbytes / 2**20 and 120 < after - before < 140


@pytest.mark.skipif(sys.platform == "win32", reason="not measured there")
def test_peak_memory_sees_what_a_program_held_that_was_run():
    code = (
        "from napari_shmoareg.evaluation.isolated_run import peak_memory as p; import subprocess,"
        " sys; a = p(); "
    )
    code += "subprocess.run([sys.executable, '-c', 'b = bytearray(2**29)']); print(a, p())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, run.stdout.split())
    assert before < 400 and 512 < after < 600
