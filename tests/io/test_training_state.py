"""A training that was stopped goes on as if it had not been."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.checkpoint import read_tensors
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.training.checkpoint import (
    FILE,
    FORMAT,
    load_training_state,
    save_training_state,
)


def fresh(kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    network = SHMoAReg(SHMoARegConfig.preset("tiny", drop_path=0.3)).train()
    return network, kind(network.parameters(), lr=1e-3, **options)


def steps(network, optimiser, number, generator=None):
    """Some steps whose images and stochastic depth come from random numbers."""
    for _ in range(number):
        moving, fixed = torch.rand(2, 1, 1, 16, 16, 8, generator=generator)
        loss = network(moving, fixed).displacement.sub(torch.rand(1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_stopping_and_going_on_changes_no_weight(tmp_path, kind, options):
    network, optimiser = fresh(kind, **options)
    steps(network, optimiser, 2)
    save_training_state(tmp_path / "run", network, optimiser, 2, [{"step": 1, "loss": 0.5}])
    steps(network, optimiser, 2)

    other, its_optimiser = fresh(kind, **options)
    torch.manual_seed(99)
    assert load_training_state(tmp_path / "run", other, its_optimiser) == (
        2,
        [{"step": 1, "loss": 0.5}],
    )
    steps(other, its_optimiser, 2)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert os.listdir(tmp_path / "run") == [FILE]


def test_a_running_mean_comes_back_and_a_state_without_one_is_refused(tmp_path):
    network, optimiser = fresh()
    mean, later = fresh()[0], fresh()[0]
    with torch.no_grad():
        for number, parameter in enumerate(mean.parameters()):
            parameter.fill_(1 / (3 + number))
    save_training_state(tmp_path, network, optimiser, 1, mean=mean)
    load_training_state(tmp_path, network, optimiser, mean=later)
    for one, two in zip(mean.state_dict().values(), later.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    save_training_state(tmp_path, network, optimiser, 1)
    with pytest.raises(InputError, match=r"do not fit .* is missing"):
        load_training_state(tmp_path, network, optimiser, mean=later)


def test_settings_of_the_optimiser_come_back(tmp_path):
    network, optimiser = fresh(betas=(0.8, 0.9))
    optimiser.param_groups[0]["lr"] = 3e-5
    save_training_state(tmp_path, network, optimiser, 5)
    other, its_optimiser = fresh()
    load_training_state(tmp_path, other, its_optimiser)
    assert (its_optimiser.param_groups[0]["lr"], its_optimiser.param_groups[0]["betas"]) == (
        3e-5,
        (0.8, 0.9),
    )


def test_a_state_from_before_a_setting_of_the_network_was_there_has_its_default(tmp_path):
    network, optimiser = fresh()
    path = save_training_state(tmp_path, network, optimiser, 3)
    told = json.dumps(network.config.to_dict())
    older = {key: value for key, value in network.config.to_dict().items() if key != "passes"}
    metadata, tensors = read_tensors(path, FORMAT)
    assert metadata["config"] == told
    save_file(tensors, path, metadata=metadata | {"config": json.dumps(older)})
    assert load_training_state(tmp_path, network, optimiser) == (3, [])
    twice = SHMoAReg(SHMoARegConfig.preset("tiny", drop_path=0.3, passes=(0.5, 1.0)))
    with pytest.raises(InputError, match="another config"):
        load_training_state(tmp_path, twice, torch.optim.Adam(twice.parameters()))


def test_a_missing_a_cut_and_a_foreign_state_are_refused(tmp_path):
    network, optimiser = fresh()
    with pytest.raises(InputError, match="no training state to resume"):
        load_training_state(tmp_path, network, optimiser)
    path = save_training_state(tmp_path, network, optimiser, 1)
    other = SHMoAReg(SHMoARegConfig.preset("tiny", embed_dim=16))
    with pytest.raises(InputError, match="another config"):
        load_training_state(tmp_path, other, torch.optim.Adam(other.parameters()))
    with pytest.raises(InputError, match="other parameters"):
        load_training_state(tmp_path, network, torch.optim.Adam(list(network.parameters())[:3]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut short"):
        load_training_state(tmp_path, network, optimiser)
