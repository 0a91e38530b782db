"""`shmoareg pretrain` on small made label maps: pieces, state, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from safetensors.torch import load_file
from typer.main import get_command
from typer.testing import CliRunner

from napari_shmoareg.cli.app import app
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.io import load_network, read_card, save_network, write_image
from napari_shmoareg.io.files import write_table
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.plugin.fine_tune.run_model import RunFiles, RunState
from napari_shmoareg.settings import help_texts
from napari_shmoareg.training import recipes
from napari_shmoareg.training.checkpoint import save_training_state
from napari_shmoareg.training.logs import read_rows
from napari_shmoareg.training.plan import read_plan
from napari_shmoareg.training.settings import ExpertLearning, FineTuning
from napari_shmoareg.training.step import fine_tune, make_optimiser
from napari_shmoareg.training.synthesis import read_subjects


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
        write_image(
            Volume(values, Grid(values.shape, affine), "m", is_labels=True),
            folder / f"{number}.nii.gz",
        )
    small = replace(recipes.RECIPES["tiny"], phases=(recipes.Phase(0.0, (10, 12)),))
    monkeypatch.setitem(recipes.RECIPES, "tiny", small)
    return folder


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["pretrain", *map(str, words), "--recipe", "tiny", "--quiet"])
    return result.exit_code, result.output


@pytest.mark.slow
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
    assert [row["step"] for row in read_rows(place / "metrics.csv")] == ["1", "2", "3", "4"]
    assert [row["step"] for row in read_rows(place / "validation.csv")] == ["0", "1", "4"]
    assert {"best.safetensors", "loads.csv"} <= {entry.name for entry in place.iterdir()}


def test_every_setting_of_a_step_is_an_option_whose_help_is_its_description():
    options = {
        parameter.name: parameter for parameter in get_command(app).commands["pretrain"].params
    }
    for field in fields(FineTuning):
        if field.name not in ("batch", "passes", "size"):
            option = options[field.name]
            assert option.opts[0] == f"--{field.name.replace('_', '-')}" and option.default is None
            assert (
                field.name in ("steps", "seed", "bfloat16")
                or option.help == help_texts(FineTuning)[field.name]
            )
    assert "batch" not in options
    panels = {name: option.rich_help_panel for name, option in options.items()}
    assert panels["moa_output_scale"] != panels["balance_weight"]


@pytest.mark.slow
def test_how_experts_learn_is_an_option_and_is_told_in_the_card(maps, tmp_path):
    place = tmp_path / "run"
    words = (
        "--balance",
        "bias",
        "--gates",
        "frozen",
        "--teacher",
        "drawn",
        "--moa-output-scale",
        4,
        "--no-balance-heads",
    )
    code, output = run(maps, "--run", place, "--steps", 2, *words)
    assert code == 0, output
    told = read_card(place / "weights.safetensors")["recipe"]["settings"]
    assert (told["balance"], told["gates"], told["moa_output_scale"]) == ("bias", "frozen", 4.0)
    assert (
        told["balance_heads"] is False
        and told["overlap_weight"] == recipes.RECIPES["tiny"].settings.overlap_weight
    )
    network = load_network(place / "weights.safetensors")
    assert network.config.choice_bias
    begun = run(maps, "--run", tmp_path / "plain", "--steps", 2)
    assert begun[0] == 0
    plain = load_network(tmp_path / "plain" / "weights.safetensors")
    spread = [
        float(net.encoder.layers[0].blocks[0].attention.output.detach().std())
        for net in (network, plain)
    ]
    assert spread[0] == pytest.approx(4 * spread[1], rel=0.05)
    code, output = run(maps, "--run", place, "--steps", 2)
    assert code == 1 and "started with other settings" in output


def test_given_weights_get_biases_of_the_choice_but_do_not_begin_anew(maps, tmp_path):
    given = given_weights(tmp_path / "given.safetensors")
    words = (
        maps,
        "--run",
        tmp_path / "run",
        "--steps",
        1,
        "--from",
        tmp_path / "given.safetensors",
    )
    code, output = run(*words, "--moa-output-scale", 2)
    assert code == 1 and "--moa-output-scale initialises random weights" in " ".join(output.split())
    code, output = run(*words, "--balance", "bias")
    assert code == 0, output
    network = load_network(tmp_path / "run" / "weights.safetensors")
    assert network.config.choice_bias and set(given) < set(network.state_dict())


def test_a_part_of_the_network_is_chosen_and_the_run_goes_on_with_it_alone(maps, tmp_path):
    place = tmp_path / "run"
    plain = ("--config", "attention=mha", "--config", "shmoe-strides=none")
    assert run(maps, "--run", place, "--steps", 1, *plain)[0] == 0
    config = load_network(place / "weights.safetensors").config
    assert (config.attention, config.shmoe_strides, config.embed_dim) == ("mha", (), 8)
    assert read_plan(place / "run.json").network_config.attention == "mha"
    assert run(maps, "--run", place, "--steps", 1, *plain)[0] == 0
    code, output = run(maps, "--run", place, "--steps", 1)
    assert code == 1 and "started with other settings" in output
    code, output = run(maps, "--run", tmp_path / "other", "--config", "depth=3")
    assert code == 1 and "is not a network setting" in output
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_run_is_shown_and_goes_on_as_any_other(maps, tmp_path):
    place = tmp_path / "run"
    words = (maps, "--run", place, "--steps", 3)
    assert run(*words, "--minutes", 1e-9)[0] == 130
    shown = CliRunner().invoke(app, ["runs", "show", str(place)]).stdout
    assert "step 1 of 3" in shown and str(place / "weights.safetensors") in shown
    assert f"Data set: {maps}" in shown and "same `shmoareg pretrain` command" in shown
    state = RunState()
    RunFiles(place).read().apply_to(state)
    assert not state.garbled and (state.step, state.steps) == (1, 3)
    assert state.best is not None and len(state.terms["overlap"]) == 1 and state.preview
    again = ["fine-tune", "--out", str(place), "--resume", "--minutes", "0", "--validate-every"]
    result = CliRunner().invoke(app, [*again, "2"])
    assert result.exit_code == 0, result.output
    assert "Training on synthetic pairs of label maps and random shapes" in result.stdout
    rows = read_rows(place / "validation.csv")
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert f"maps: Dice {float(rows[-1]['maps_before']):.4f} to" in result.stdout
    assert run(*words)[0] == 0, "a setting that may change keeps the command from going on"
    result = CliRunner().invoke(
        app, ["evaluate", "--run", str(place), "--out", str(tmp_path / "t")]
    )
    assert result.exit_code == 1 and "trained on synthetic pairs" in " ".join(result.output.split())


def test_a_run_does_not_go_on_without_its_label_maps(maps, tmp_path):
    place = tmp_path / "run"
    words = ("--run", place, "--steps", 1, "--torso", 0.5)
    assert run(maps, *words)[0] == 0
    code, output = run(*words)
    assert code == 1 and "started with other settings" in output
    code, output = run(maps, *words)
    assert code == 0, output
    moved = maps.rename(maps.with_name("moved"))
    assert run(moved, *words)[0] == 0 and read_plan(place / "run.json").dataset.path == str(moved)


def test_a_run_does_not_go_on_with_other_settings(maps, tmp_path):
    place = tmp_path / "run"
    run(maps, "--run", place, "--steps", 2)
    code, output = run(maps, "--run", place, "--steps", 3)
    assert code == 1
    assert "started with other settings" in output
    assert read_plan(place / "run.json").settings.steps == 2


@pytest.mark.slow
@pytest.mark.parametrize("cascade", [0.0, 0.5])
def test_a_run_in_pieces_ends_where_one_in_a_go_does(cascade, maps, tmp_path, monkeypatch):
    tiny = recipes.RECIPES["tiny"]
    settings = replace(tiny.settings, cascade=cascade)
    drawing = replace(tiny.drawing, close=0.5)
    monkeypatch.setitem(recipes.RECIPES, "tiny", replace(tiny, settings=settings, drawing=drawing))
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run(maps, "--run", whole, "--steps", 5)[0] == 0
    codes = [run(maps, "--run", pieces, "--steps", 5, "--minutes", 1e-9)[0] for _ in range(5)]
    assert codes == [130] * 4 + [0]
    for name in ("weights.safetensors", "training.safetensors"):
        one, other = load_file(whole / name), load_file(pieces / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one if not key.startswith("random"))


def given_weights(path, seed=7, **changes):
    """Weights of a recipe's network, or nearly."""
    torch.manual_seed(seed)
    network = SHMoAReg(SHMoARegConfig.preset("tiny", **changes))
    save_network(network, path, card={"name": path.stem})
    return network.state_dict()


@pytest.mark.slow
def test_a_run_begins_from_given_weights_whatever_size_and_passes_they_are_for(maps, tmp_path):
    given = given_weights(tmp_path / "given.safetensors", size=48, passes=(0.5, 1.0))
    code, output = run(
        maps, "--run", tmp_path / "run", "--steps", 1, "--from", tmp_path / "given.safetensors"
    )
    assert code == 0, output
    assert run(maps, "--run", tmp_path / "random", "--steps", 1)[0] == 0
    moved = {}
    for name in ("run", "random"):
        network = load_network(tmp_path / name / "weights.safetensors")
        assert (network.config.size, network.config.passes) == (32, (1.0,))
        moved[name] = max(
            float((value - given[key]).abs().max()) for key, value in network.state_dict().items()
        )
    assert moved["run"] < 2e-3, "further than one step of Adam"
    assert moved["random"] > 0.05
    card = read_card(tmp_path / "run" / "weights.safetensors")
    assert (
        card["from"] == str(tmp_path / "given.safetensors") and "no scan" not in card["drawn_from"]
    )
    assert "no scan" in read_card(tmp_path / "random" / "weights.safetensors")["drawn_from"]


def test_weights_of_another_network_are_refused_and_the_run_has_not_begun(maps, tmp_path):
    given_weights(tmp_path / "other.safetensors", bottleneck_channels=10)
    given_weights(tmp_path / "right.safetensors")
    code, output = run(
        maps, "--run", tmp_path / "run", "--steps", 1, "--from", tmp_path / "other.safetensors"
    )
    assert code == 1
    told = " ".join(output.split())
    assert (
        "of a different network than that of the recipe: bottleneck_channels 10 instead of 12."
        in told
        and "--from" in told
    )
    code, output = run(
        maps, "--run", tmp_path / "run", "--steps", 1, "--from", tmp_path / "missing.safetensors"
    )
    assert code == 1 and "missing.safetensors" in output.replace("\n", "")
    code, output = run(
        maps, "--run", tmp_path / "run", "--steps", 1, "--from", tmp_path / "right.safetensors"
    )
    assert code == 0, output


@pytest.mark.slow
def test_a_run_does_not_go_on_from_other_weights_and_does_not_need_its_own_any_more(maps, tmp_path):
    one, other, place = (
        tmp_path / "one.safetensors",
        tmp_path / "other.safetensors",
        tmp_path / "run",
    )
    given_weights(one)
    given_weights(other, seed=8)
    words = (maps, "--run", place, "--steps", 3, "--minutes", 1e-9)
    assert run(*words, "--from", one)[0] == 130
    for wrong in ((), ("--from", other)):
        code, output = run(*words, *wrong)
        assert code == 1 and "started with other settings" in output
    one.unlink()
    assert run(*words, "--from", one)[0] == 130
    assert read_card(place / "weights.safetensors")["steps"] == 2


@pytest.mark.slow
def test_torsos_need_no_label_maps_and_are_validated_on_their_own(maps, tmp_path):
    """Half of the pairs are random shapes then; the pieces go on with the same share."""
    place = tmp_path / "run"
    words = ("--run", place, "--steps", 2, "--torso", 0.5)
    assert run(*words, "--minutes", 1e-9)[0] == 130
    code, output = run("--run", place, "--steps", 2)
    assert code == 1 and "or --torso 0.5" in " ".join(output.split())
    code, output = run("--run", place, "--steps", 2, "--torso", 0.4)
    assert code == 1 and "started with other settings" in output
    code, output = run(*words)
    assert code == 0, output
    card = read_card(place / "weights.safetensors")
    assert card["drawn_from"] == "synthetic torsos and random shapes; no scan of a person was used"
    assert card["recipe"]["drawing"]["torso"] == 0.5
    rows = read_rows(place / "validation.csv")
    assert [row["step"] for row in rows] == ["0", "1", "2"] and "maps_after" not in rows[-1]
    assert 0 < float(rows[-1]["torso_before"]) < 1 and 0 < float(rows[-1]["torso_after"]) < 1
    both = tmp_path / "both"
    assert run(maps, "--run", both, "--steps", 1, "--torso", 0.5)[0] == 0
    assert read_card(both / "weights.safetensors")["drawn_from"].startswith(
        "label maps, synthetic torsos and random shapes"
    )
    row = read_rows(both / "validation.csv")[-1]
    mean = (float(row["torso_after"]) + float(row["maps_after"])) / 2
    assert float(row["dice"]) == pytest.approx(mean) and float(row["torso_folding"]) >= 0


def test_a_sheet_of_torsos_needs_no_label_maps(tmp_path, monkeypatch):
    monkeypatch.setattr("napari_shmoareg.cli.pretrain.SHEET_PAIRS", 2)
    code, output = run("--run", tmp_path / "run", "--torso", 1, "--sheet", tmp_path / "torsos.png")
    assert code == 0, output
    assert min(imread(tmp_path / "torsos.png").shape[:2]) > 100
    code, output = run("--run", tmp_path / "run", "--torso", 2)
    assert code == 1 and "between 0 and 1; got 2" in output


@pytest.mark.slow
def test_a_sheet_shows_the_first_pairs_and_begins_no_run(maps, tmp_path):
    sheet, place = tmp_path / "pairs.png", tmp_path / "run"
    code, output = run(maps, "--run", place, "--sheet", sheet)
    assert code == 0, output
    picture = imread(sheet)
    assert min(picture.shape[:2]) > 600
    assert np.ptp(picture[..., :3], axis=-1).max() > 0.5, "no colours"
    with Image.open(sheet) as image:
        assert image.text["Title"] == "synthetic pairs" and image.text["Recipe"] == "tiny, seed 1"
    assert not place.exists()


def test_a_sheet_is_a_png_and_replaces_nothing(maps, tmp_path):
    (tmp_path / "mine.png").write_text("mine", encoding="utf-8")
    for name, message in (
        ("mine.png", "exists"),
        ("pairs.jpg", "end in .png"),
        ("no/pairs.png", "does not exist"),
    ):
        code, output = run(maps, "--run", tmp_path / "run", "--sheet", tmp_path / name)
        assert code == 1 and message in " ".join(output.split())
    assert (tmp_path / "mine.png").read_text(encoding="utf-8") == "mine"


def test_a_folder_without_label_maps_is_refused(tmp_path):
    code, output = run(tmp_path, "--run", tmp_path / "run", "--steps", 1)
    assert code == 1
    assert "contains no label map" in output


def test_an_unknown_recipe_is_refused(maps, tmp_path):
    result = CliRunner().invoke(
        app, ["pretrain", str(maps), "--run", str(tmp_path / "r"), "--recipe", "huge"]
    )
    assert result.exit_code == 1
    assert "no recipe 'huge'" in result.output


def test_a_plan_that_could_not_be_written_is_not_there(maps, tmp_path, monkeypatch):
    place = tmp_path / "run"

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    code, output = run(maps, "--run", place, "--steps", 2)
    assert code == 1 and "No space left on device" in " ".join(output.split())
    monkeypatch.undo()
    assert not (place / "run.json").exists()
    assert run(maps, "--run", place, "--recipe", "tiny", "--steps", 1)[0] == 0


def test_a_folder_of_something_else_is_refused(maps, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine", encoding="utf-8")
    code, output = run(maps, "--run", tmp_path / "run", "--steps", 2)
    assert code == 1 and "is not empty" in output
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_file_in_the_place_of_the_run_is_refused_plainly(maps, tmp_path):
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    code, output = run(maps, "--run", tmp_path / "run", "--steps", 2)
    assert code == 1
    assert "is a file" in output and "--run" in output
    code, output = run(maps, "--run", tmp_path / "run" / "deeper", "--steps", 2)
    assert code == 1 and "Cannot create" in output
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


def earlier_run(place, maps, stop, *, weights=None, leave_out=(), **changes):
    """A run that an earlier version stopped after a step, without some of its settings."""
    plan = recipes.recipe("tiny", **changes)
    torch.manual_seed(plan.settings.seed)
    network = SHMoAReg(plan.network_config())
    optimiser, mean = make_optimiser(network, plan.settings), recipes.RunningMean(network, 0.99)
    pairs, log = plan.pairs(read_subjects(maps)), []
    for step in fine_tune(network, pairs, plan.settings, optimiser=optimiser):
        mean.follow(network)
        log.append({"step": step.step, "minutes": 30.0, "total": step.total})
        if step.step == stop:
            break
    told = json.loads(json.dumps(asdict(plan) | {"from": weights}))
    for name in leave_out:
        part = next(part for part in (told, told["settings"], told["drawing"]) if name in part)
        del part[name]
    place.mkdir()
    (place / "recipe.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    card = {"name": place.name, "from": weights, "recipe": told, "in_bfloat16": False}
    card |= {"steps": stop, "minutes": 30.0 * stop}
    save_network(mean.network, place / "weights.safetensors", card=card)
    write_table(log, place / "log.csv")
    save_training_state(place, network, optimiser, stop, log)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_ends_as_one_that_was_never_stopped(maps, tmp_path):
    """Its recipe.json lacks what later versions added, among it where it started from."""
    whole, place = tmp_path / "whole", tmp_path / "run"
    assert run(maps, "--run", whole, "--steps", 5)[0] == 0
    later = ("from", "config", "passes", "close_shift", *ExpertLearning().to_dict())
    leave_out = [name for name in later if name != "balance"]
    earlier_run(place, maps, 3, steps=5, leave_out=leave_out)
    log = (place / "log.csv").read_bytes()
    given_weights(tmp_path / "given.safetensors")
    for wrong in (
        ("--from", tmp_path / "given.safetensors"),
        ("--gates", "frozen"),
        ("--torso", 0.1),
        ("--bfloat16", "on"),
    ):
        code, output = run(maps, "--run", place, "--steps", 5, *wrong)
        assert code == 1 and "started with other settings" in output
    assert not (place / "run.json").exists(), "converted by a command that was refused"
    code, output = run(maps, "--run", place, "--steps", 5)
    assert code == 0, output
    for name in ("weights.safetensors", "training.safetensors"):
        one, other = load_file(whole / name), load_file(place / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one if not key.startswith("random"))
    assert (place / "log.csv").read_bytes() == log
    assert [row["step"] for row in read_rows(place / "metrics.csv")] == ["4", "5"]
    assert read_card(place / "weights.safetensors")["minutes"] >= 90


@pytest.mark.slow
def test_a_run_of_an_earlier_version_killed_while_it_is_converted_is_converted_once(
    maps, tmp_path, monkeypatch
):
    """Its state is written, run.json is not; then its weights are lost, and its mean is not."""
    whole, place = tmp_path / "whole", tmp_path / "run"
    earlier_run(whole, maps, 2, steps=3)
    shutil.copytree(whole, place)
    assert run(maps, "--run", whole, "--steps", 3)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("napari_shmoareg.training.plan.write_plan", lambda *_: sys.exit(9))
        assert run(maps, "--run", place, "--steps", 3)[0] == 9
    (place / "weights.safetensors").unlink()
    code, output = run(maps, "--run", place, "--steps", 3)
    assert code == 0 and "restarts" not in output
    one, other = (load_file(each / "weights.safetensors") for each in (whole, place))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_run_from_before_there_was_auto_goes_on_in_the_precision_it_began_in(maps, tmp_path):
    """Its file has true for "on"."""
    place = tmp_path / "run"
    earlier_run(place, maps, 1, steps=2, bfloat16="on")
    told = json.loads((place / "recipe.json").read_text(encoding="utf-8"))
    told["settings"]["bfloat16"] = True
    (place / "recipe.json").write_text(json.dumps(told), encoding="utf-8")
    code, output = run(maps, "--run", place, "--steps", 2, "--bfloat16", "off")
    assert code == 1 and "started with other settings" in output
    code, output = run(maps, "--run", place, "--steps", 2)
    assert code == 0, output
    card = read_card(place / "weights.safetensors")
    assert (card["steps"], card["in_bfloat16"], card["recipe"]["settings"]["bfloat16"]) == (
        2,
        True,
        "on",
    )


@pytest.mark.parametrize("damaged", ['{"preset": "ti', "[]", '{"preset": "tiny", "settings": 3}'])
def test_a_damaged_recipe_of_an_earlier_version_is_refused_plainly(damaged, maps, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    (place / "recipe.json").write_text(damaged, encoding="utf-8")
    code, output = run(maps, "--run", place, "--steps", 2)
    assert code == 1
    assert "recipe.json is damaged" in " ".join(output.split()) and "bug" not in output


@pytest.mark.slow
@pytest.mark.parametrize("left", ["ahead", "gone", "of the same step"])
def test_weights_of_an_earlier_version_that_are_not_of_the_state_s_step_begin_the_mean_anew(
    left, maps, tmp_path
):
    """As after a kill between the two files: the weights are ahead of the state, here with numbers
    that stand out.
    """
    place = tmp_path / "run"
    earlier_run(place, maps, 1, steps=3)
    weights = place / "weights.safetensors"
    network, card = load_network(weights), read_card(weights)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1000.0)
    if left == "gone":
        weights.unlink()
    else:
        save_network(
            network, weights, card=card | {"steps": 1 if left == "of the same step" else 2}
        )
    code, output = run(maps, "--run", place, "--steps", 3)
    assert code == 0, output
    largest = max(float(p.detach().abs().max()) for p in load_network(weights).parameters())
    if left == "of the same step":
        assert "Note" not in output and largest > 10, "the mean was not taken up"
    else:
        assert (
            "restarts from the state" in output
            and ("are from step 2" if left == "ahead" else "are missing") in output
        )
        assert largest < 10
    assert read_card(weights)["steps"] == 3
