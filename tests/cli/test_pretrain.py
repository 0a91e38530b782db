"""`shmoareg pretrain` on small made label maps: pieces, state, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from napari_shmoareg.cli.application import app
from napari_shmoareg.engine import pretraining
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.io.checkpoint import load_network, read_card, save_network
from napari_shmoareg.io.images import write_image


@pytest.fixture
def maps(tmp_path, monkeypatch):
    """A folder with two label maps of nine blocks; the recipe draws small grids from it."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for number, shift in enumerate((0, 2)):
        values = np.zeros((30, 36, 30), np.int16)
        for n in range(9):
            i, j, k = 3 + shift + 8 * (n % 3), 4 + 9 * (n // 3), 6 + 6 * (n % 2)
            values[i : i + 7, j : j + 8, k : k + 9] = n + 1
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        write_image(Volume(values, Grid(values.shape, affine), "m", is_labels=True), folder / f"{number}.nii.gz")
    small = replace(pretraining.RECIPES["tiny"], phases=(pretraining.Phase(0.0, (10, 12)),))
    monkeypatch.setitem(pretraining.RECIPES, "tiny", small)
    return folder


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["pretrain", *map(str, words), "--recipe", "tiny", "--quiet"])
    return result.exit_code, result.output


def test_a_run_in_pieces_ends_with_weights_that_load(maps, tmp_path):
    place = tmp_path / "run"
    assert run(maps, "--run", place, "--steps", 4, "--minutes", 1e-9)[0] == 130
    assert read_card(place / "weights.safetensors")["steps"] == 1
    code, output = run(maps, "--run", place, "--steps", 4)
    assert code == 0, output
    card = read_card(place / "weights.safetensors")
    assert card["steps"] == 4
    assert card["recipe"]["preset"] == "tiny"
    assert load_network(place / "weights.safetensors").config.embed_dim == 8
    rows = (place / "log.csv").read_text().splitlines()
    assert rows[0].startswith("step,") and rows[-1].startswith("4,")


def test_a_run_does_not_go_on_with_other_settings(maps, tmp_path):
    place = tmp_path / "run"
    run(maps, "--run", place, "--steps", 2)
    code, output = run(maps, "--run", place, "--steps", 3)
    assert code == 1
    assert "begun with other settings" in output
    assert json.loads((place / "recipe.json").read_text())["settings"]["steps"] == 2


def test_a_folder_without_label_maps_is_refused(tmp_path):
    code, output = run(tmp_path, "--run", tmp_path / "run", "--steps", 1)
    assert code == 1
    assert "holds no label map" in output


def test_an_unknown_recipe_is_refused(maps, tmp_path):
    result = CliRunner().invoke(app, ["pretrain", str(maps), "--run", str(tmp_path / "r"), "--recipe", "huge"])
    assert result.exit_code == 1
    assert "no recipe 'huge'" in result.output


def test_a_damaged_recipe_is_refused_plainly(maps, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    (place / "recipe.json").write_text('{"preset": "ti')
    code, output = run(maps, "--run", place, "--steps", 2)
    assert code == 1
    assert "recipe.json is damaged" in output and "Delete it" in output and "bug" not in output


def test_a_recipe_that_could_not_be_written_is_not_there(maps, tmp_path, monkeypatch):
    place = tmp_path / "run"

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    code, output = run(maps, "--run", place, "--steps", 2)
    assert code == 1 and "disk is full" in output
    assert list(place.iterdir()) == []


def test_a_file_in_the_place_of_the_run_is_refused_plainly(maps, tmp_path):
    (tmp_path / "run").write_text("mine")
    code, output = run(maps, "--run", tmp_path / "run", "--steps", 2)
    assert code == 1
    assert "is a file" in output and "--run" in output
    code, output = run(maps, "--run", tmp_path / "run" / "deeper", "--steps", 2)
    assert code == 1 and "Cannot make the folder" in output
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("left", ["ahead", "gone", "of the same step"])
def test_weights_that_are_not_of_the_state_s_step_begin_the_mean_anew(left, maps, tmp_path):
    """As after a kill between the two files: the weights are ahead of the state, here with numbers that stand out."""
    place = tmp_path / "run"
    run(maps, "--run", place, "--steps", 3, "--minutes", 1e-9)
    weights = place / "weights.safetensors"
    network, card = load_network(weights), read_card(weights)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1000.0)
    if left == "gone":
        weights.unlink()
    else:
        save_network(network, weights, card=card | {"steps": 1 if left == "of the same step" else 2})
    code, output = run(maps, "--run", place, "--steps", 3)
    assert code == 0, output
    largest = max(float(p.detach().abs().max()) for p in load_network(weights).parameters())
    if left == "of the same step":
        assert "Note" not in output and largest > 10, "the mean was not taken up"
    else:
        assert "begins anew" in output and ("are of step 2" if left == "ahead" else "are missing") in output
        assert largest < 10
    assert read_card(weights)["steps"] == 3
