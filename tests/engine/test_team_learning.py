"""Two processes that learn together come to what one comes to."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace

import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration.conform import conform
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import fine_tune, make_optimiser

pytestmark = pytest.mark.slow

TERMS = ("total", "similarity", "smoothness", "routing", "overlap", "gradient", "rate")
SETTINGS = FineTuning(
    steps=3,
    batch=2,
    learning_rate=1e-3,
    final_rate=1e-4,
    overlap_weight=1.0,
    labels_per_step=2,
    augment_affine=0.5,
    augment_intensity=0.5,
    cascade=0.5,
    diffeomorphic=0.5,
    largest_gradient=0.1,
    size=16,
    seed=3,
)

MEMBER = """
    import copy, sys, torch
    from dataclasses import asdict
    from napari_shmoareg.training.step import fine_tune, make_optimiser
    from napari_shmoareg.training.distributed import TrainingGroup
    from napari_shmoareg.training.settings import FineTuning
    from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

    folder = sys.argv[1]
    group = TrainingGroup.join("cpu")
    told = torch.load(folder + "/begun.pt", weights_only=False)
    settings = FineTuning(**told["settings"])
    for name, begun in told["runs"].items():
        network = SHMoAReg(SHMoARegConfig.preset("tiny"))
        network.load_state_dict(begun["network"])
        optimiser = make_optimiser(network, settings)
        optimiser.load_state_dict(begun["optimiser"])
        steps, states = [], {}
        for step in fine_tune(network, told["pairs"], settings, optimiser=optimiser, start=begun["start"], group=group):
            steps.append(asdict(step))
            states[step.step] = copy.deepcopy({"network": network.state_dict(), "optimiser": optimiser.state_dict()})
        torch.save({"steps": steps, "states": states}, folder + "/%s-%d.pt" % (name, group.rank))
    group.close()
"""


@pytest.fixture(scope="module")
def pairs(phantoms):
    """Two orders of the phantom with labels, and one without: of other shapes than a cube."""
    back = VolumePair(
        phantoms.fixed, phantoms.moving, phantoms.fixed_labels, phantoms.moving_labels
    )
    with_labels = [
        replace(conform(one, size=SETTINGS.size, labels=True), pair=None)
        for one in (phantoms, back)
    ]
    return [*with_labels, replace(with_labels[0], moving_labels=None, fixed_labels=None)]


@pytest.fixture(scope="module")
def together(pairs, tmp_path_factory):
    """What two processes under torchrun learn: from the start, and from where one process stopped
    after a step.
    """
    folder = tmp_path_factory.mktemp("together")
    script = folder / "member.py"
    script.write_text(textwrap.dedent(MEMBER), encoding="utf-8")
    first, stopped = _network(), _network()
    _, optimiser = _alone(stopped, pairs, until=1)
    runs = {
        "fresh": (first, make_optimiser(first, SETTINGS), 0),
        "continued": (stopped, optimiser, 1),
    }
    begun = {
        name: {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "start": start}
        for name, (network, optimiser, start) in runs.items()
    }
    torch.save({"settings": asdict(SETTINGS), "pairs": pairs, "runs": begun}, folder / "begun.pt")
    command = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(folder),
    )
    ran = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = {}
    for name in runs:
        both = [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]
        _alike(both[1]["steps"], both[0]["steps"], 0.0)
        for step, state in both[0]["states"].items():
            _same_weights(both[1]["states"][step]["network"], state["network"], 0.0)
        found[name] = (both[0]["steps"], both[0]["states"])
    return found


def _network() -> SHMoAReg:
    torch.manual_seed(0)
    return SHMoAReg(SHMoARegConfig.preset("tiny"))


def _alone(network, pairs, optimiser=None, start=0, until=SETTINGS.steps):
    optimiser = optimiser or make_optimiser(network, SETTINGS)
    steps = []
    for step in fine_tune(network, pairs, SETTINGS, optimiser=optimiser, start=start):
        steps.append(asdict(step))
        if step.step == until:
            break
    return steps, optimiser


def _alike(found, wanted, tolerance):
    assert [step["step"] for step in found] == [step["step"] for step in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert list(one["pairs"]) == list(other["pairs"])
        assert {k: list(v) for k, v in one["counts"].items()} == {
            k: list(v) for k, v in other["counts"].items()
        }
        for term in TERMS:
            both_nan = math.isnan(one[term]) and math.isnan(other[term])
            assert both_nan or one[term] == pytest.approx(other[term], abs=tolerance, rel=0), (
                one["step"],
                term,
            )


def _same_weights(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert (tensor - wanted[name]).abs().max() <= tolerance, name


@pytest.fixture(scope="module")
def alone(pairs):
    """The steps of one process, and its network after them."""
    network = _network()
    return _alone(network, pairs)[0], network


def test_two_processes_with_a_pair_each_learn_what_one_learns_from_both_pairs(together, alone):
    (wanted, network), (found, states) = alone, together["fresh"]
    assert len(wanted) == SETTINGS.steps and len({tuple(step["pairs"]) for step in wanted}) > 1
    assert any(not math.isnan(step["overlap"]) for step in wanted)
    _alike(found, wanted, 1e-5)
    _same_weights(states[3]["network"], network.state_dict(), 1e-5)
    moved = max(
        (a - b).abs().max()
        for a, b in zip(network.parameters(), _network().parameters(), strict=True)
    )
    assert moved > 1e-3  # so that 1e-5 says something


def test_what_two_processes_began_one_goes_on_with_to_the_same_losses(together, alone, pairs):
    (wanted, network), (_, states) = alone, together["fresh"]
    half = _network()
    half.load_state_dict(states[1]["network"])
    optimiser = make_optimiser(half, SETTINGS)
    optimiser.load_state_dict(states[1]["optimiser"])
    rest, _ = _alone(half, pairs, optimiser, start=1)
    _alike(rest, wanted[1:], 1e-5)
    _same_weights(half.state_dict(), network.state_dict(), 1e-5)


def test_what_one_process_began_two_go_on_with_to_the_same_losses(together, alone):
    (wanted, network), (rest, states) = alone, together["continued"]
    _alike(rest, wanted[1:], 1e-5)
    _same_weights(states[3]["network"], network.state_dict(), 1e-5)


def test_a_batch_that_the_processes_cannot_share_is_refused_before_the_first_step(pairs):
    from napari_shmoareg.training.distributed import TrainingGroup

    with pytest.raises(InputError, match=r"batch of 2.* 3 processes"):
        next(fine_tune(_network(), pairs, SETTINGS, group=TrainingGroup(0, 3)))
