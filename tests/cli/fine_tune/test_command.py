"""`shmoareg fine-tune` from a data set to weights; what it refuses; how it goes on."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner

from napari_shmoareg.cli.app import app
from napari_shmoareg.cli.launch import command_words
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import load_network, read_card, save_network
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.settings import help_texts
from napari_shmoareg.training.logs import read_rows
from napari_shmoareg.training.settings import FineTuning, RunSettings


def events_of(result) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def short(begin, tmp_path_factory):
    """A finished run of four steps without labels, and what it told; not to be changed."""
    out = tmp_path_factory.mktemp("short") / "run"
    more = ("--steps", 4, "--save-every", 2, "--overlap-weight", 0, "--tensorboard", "--json")
    return out, CliRunner().invoke(app, begin(out, *more))


def test_the_weights_learn_and_their_card_says_from_what(short, small):
    out, result = short
    assert result.exit_code == 0, result.stderr
    before, after = (load_network(path).state_dict() for path in (small, out / "last.safetensors"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    card = read_card(out / "last.safetensors")
    assert card["fine_tuned_from"] == str(small) and card["title"] == "untrained"
    assert (card["fine_tuning_steps"], card["fine_tuning"]["save_every"]) == (4, 2)
    assert card["fine_tuning_dataset"]["scans"] == {"train": 4, "validation": 2, "test": 0}
    assert 0 < card["fine_tuning_validation"]["dice"] < 1


def test_every_event_is_one_line_of_json_in_an_order_that_can_be_followed(short):
    out, result = short
    events = events_of(result)
    assert all(isinstance(event["time"], float) for event in events)
    names = [event["event"] for event in events]
    assert names.count("scan") == 6 and names.index("begin") > names.index("scan")
    assert names[-1] == "end" and events[-1] == events[-1] | {"reason": "finished", "step": 4}
    assert names.count("validation") == 2 and names.count("preview") == 2
    begun = events[names.index("begin")]
    assert (
        begun["pairs"] == {"train": 6, "validation": 2, "test": 0} and begun["resumed_at"] is None
    )
    assert 0 < begun["memory"]["need"] < begun["memory"]["free"]
    assert begun["settings"]["steps"] == 4 and begun["run_settings"]["save_every"] == 2
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4] and steps[0]["overlap"] is None
    assert steps[0]["left_seconds"] > 0 and steps[-1]["pairs"][0][0] in "abcdef"
    shown = json.loads((out / "preview" / "preview.json").read_text(encoding="utf-8"))
    assert shown["step"] == 4 and (out / "preview" / "warped_labels.nii.gz").is_file()


def test_the_curves_for_tensorboard_are_those_of_the_table(short):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = loader.EventAccumulator(str(short[0] / "tensorboard"))
    curves.Reload()
    table = [float(row["total"]) for row in read_rows(short[0] / "metrics.csv")]
    assert [point.value for point in curves.Scalars("loss/total")] == pytest.approx(table)
    assert [point.step for point in curves.Scalars("validation/dice")] == [0, 4]


def test_a_reader_sees_the_check_up_the_split_the_memory_and_what_comes_next(
    begin, tmp_path, shmoareg
):
    out = tmp_path / "run"
    result = shmoareg(*begin(out, "--steps", 1, "--validate-every", 0))
    assert result.exit_code == 0, result.stderr
    for words in (
        "6 of 6 scans can be used",
        "Dice 0.",
        "4 scans for training (6 pairs)",
        "GiB of memory",
        "Computing in ",
        "1 steps are done",
    ):
        assert words in result.stdout
    assert f"--weights {out}/last.safetensors" in result.stdout
    quiet = shmoareg(*begin(tmp_path / "quiet", "--steps", 1, "--validate-every", 0, "--quiet"))
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    assert quiet.stderr and all(line.startswith("Warning: ") for line in quiet.stderr.splitlines())


def test_every_setting_is_an_option_whose_help_is_its_description():
    command = get_command(app).commands["fine-tune"]
    options = {parameter.name: parameter for parameter in command.params}
    for settings in (FineTuning, RunSettings):
        for field in fields(settings):
            option = options[field.name]
            assert option.help == help_texts(settings)[field.name]
            assert option.opts[0] == f"--{field.name.replace('_', '-')}" and option.default is None


def test_the_experts_learn_as_asked_and_a_run_goes_on_so(begin, small, shmoareg, tmp_path):
    out = tmp_path / "run"
    words = (
        "--balance",
        "bias",
        "--known-motion",
        1,
        "--correspondence-weight",
        0.1,
        "--teacher",
        "descent",
    )
    more = (
        "--gates",
        "frozen",
        "--routing-target",
        "counterfactual",
        "--save-every",
        1,
        "--validate-every",
        0,
    )
    result = shmoareg(*begin(out, *words, *more, "--steps", 1))
    assert result.exit_code == 0, result.stderr
    first = load_file(out / "last.safetensors")
    assert (
        load_network(out / "last.safetensors").config.choice_bias
        and not load_network(small).config.choice_bias
    )
    again = shmoareg("fine-tune", "--out", out, "--resume", "--steps", 2, "--quiet")
    assert again.exit_code == 0, again.stderr
    second, before = load_file(out / "last.safetensors"), load_network(small).state_dict()
    gates = [name for name in before if ".gate" in name]
    assert gates and all(torch.equal(second[name], before[name]) for name in gates)
    bias = "encoder.layers.0.blocks.0.attention.gate.choice_bias"
    assert bool(first[bias].any()) and not torch.equal(first[bias], second[bias])


def test_the_words_of_a_command_give_the_same_command():
    command = get_command(app).commands["fine-tune"]
    words = [
        "there",
        "--out",
        "o",
        "--window=-160,240",
        "--no-tensorboard",
        "--flips",
        "all",
        "--final-rate",
        "1e-6",
    ]
    context = command.make_context("fine-tune", list(words))
    again = command_words(context)
    assert (
        again[0] == "fine-tune"
        and command.make_context("fine-tune", again[1:]).params == context.params
    )


def test_it_begins_with_the_weights_that_fit_the_device(
    scans, shmoareg, monkeypatch, plain, tmp_path
):
    def chosen(asked, device="cpu"):
        raise InputError(f"asked for {asked} on {device}")

    module = sys.modules["napari_shmoareg.cli.train"]
    monkeypatch.setattr(module, "choose_device", lambda asked: "cuda")
    monkeypatch.setattr(module, "choose_weights", chosen)
    assert plain(shmoareg("fine-tune", scans, "--out", tmp_path / "o")).search("None on cuda")


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (("--learning-rate", "-1"), "--learning-rate must be above 0; got -1", 1),
        (("--quantile", "2"), "--quantile must be between 0 and 1", 1),
        (("--steps", "0"), "--steps must be at least 1", 1),
        (("--save-every", "0"), "--save-every must be at least 1", 1),
        (("--minutes", "nan"), "--minutes must be at least 0", 1),
        (("--size", "5"), "--size must be 0 or at least 8", 1),
        (("--split", "60/10"), "three counts", 1),
        (("--split", "6/2/2"), "needs 10 subjects.*has 6", 1),
        (("--moa-output-scale", "2"), "--moa-output-scale initialises random weights", 1),
        (("--correspondence-weight", "1"), "no pair of scans has. Add --known-motion", 1),
        (("--teacher", "drawn"), "no pair of scans has. Add --known-motion", 1),
        (("--correspondence-strides", "3"), "--correspondence-strides must be strides among 4", 1),
        (("--gates", "open"), "gates.*'open'", 2),
        (("--similarity", "mi"), "similarity.*'mi'", 2),
        (("--steps", "many"), "steps.*many", 2),
        (("--window", "3"), "not two numbers", 2),
        (("--images", "*.png"), "png", 1),
        (("--from", "nothing"), "no weights 'nothing'", 1),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(
    words, says, code, begin, shmoareg, tmp_path, plain
):
    result = shmoareg(*begin(tmp_path / "run", *words))
    assert result.exit_code == code, result.stderr
    if code == 1:
        assert plain(result).search(says)
    else:
        assert (
            plain.__name__
            and says.split(".*")[0] in result.stderr
            and "Traceback" not in result.stderr
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_left_alone(begin, short, shmoareg, tmp_path, plain):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert plain(shmoareg(*begin(tmp_path / "mine"))).search("not empty.*'thesis.txt'")
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert plain(shmoareg(*begin(short[0]))).search("already contains a run. Give --resume")
    assert plain(shmoareg("fine-tune", "--out", short[0])).search("--resume")
    assert plain(shmoareg("fine-tune", "--out", tmp_path / "none", "--resume")).search(
        "contains no run. Leave out --resume"
    )
    assert "--resume" not in plain(shmoareg("runs", "show", tmp_path / "none"))
    assert plain(shmoareg("fine-tune", "--out", tmp_path / "none")).search("give a DATASET")


def test_a_run_goes_on_with_more_steps_but_not_with_other_settings(
    begin, short, shmoareg, tmp_path, plain, weights
):
    out = shutil.copytree(short[0], tmp_path / "run")
    go_on = ("fine-tune", "--out", out, "--resume")
    assert plain(shmoareg(*go_on, "--learning-rate", 0.5, "--split", "3/3/0")).search(
        r"learning_rate \(0.001, not 0.5\), split \('4/2/0', not '3/3/0'\)"
    )
    assert plain(shmoareg(*go_on, "--steps", 3)).search(
        "started with 4 steps; their number may be increased, but not reduced to 3"
    )
    assert plain(shmoareg(*go_on, "--from", weights)).search(
        "started from .*small.safetensors', not from"
    )
    assert plain(shmoareg("fine-tune", tmp_path / "nowhere", *go_on[1:])).search(
        "nowhere.*give its new path"
    )
    more = ("--steps", 6, "--save-every", 2, "--overlap-weight", 0)
    again = shmoareg(*begin(out, *more, "--tensorboard", "--resume", "--json"))
    assert again.exit_code == 0, again.stderr
    assert [event["step"] for event in events_of(again) if event["event"] == "step"] == [5, 6]
    assert len(read_rows(out / "metrics.csv")) == 6
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["settings"]["steps"] == 6


def test_the_time_ends_a_run_that_goes_on_later(begin, short, shmoareg, tmp_path):
    out = tmp_path / "run"
    more = ("--steps", 4, "--save-every", 2, "--overlap-weight", 0, "--minutes", 1e-9, "--json")
    result = shmoareg(*begin(out, *more))
    assert result.exit_code == 0 and events_of(result)[-1]["reason"] == "minutes"
    assert len(read_rows(out / "metrics.csv")) == 1
    assert shmoareg("fine-tune", "--out", out, "--resume", "--minutes", 0, "--quiet").exit_code == 0
    wanted, found = (load_file(run / "last.safetensors") for run in (short[0], out))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_weights_of_another_architecture_are_refused(begin, short, shmoareg, tmp_path, plain):
    torch.manual_seed(0)
    other = SHMoAReg(SHMoARegConfig.preset("tiny", bottleneck_channels=10))
    save_network(other, tmp_path / "other.safetensors", card={})
    tensors = load_file(tmp_path / "other.safetensors")
    config = json.dumps(SHMoARegConfig.preset("tiny").to_dict())
    save_file(
        tensors,
        tmp_path / "wrong.safetensors",
        {"format": "shmoareg-1", "config": config, "card": "{}"},
    )
    assert plain(
        shmoareg(*begin(tmp_path / "run", "--from", tmp_path / "wrong.safetensors"))
    ).search("do not fit")
    assert not (tmp_path / "run").exists()
    shmoareg(*begin(tmp_path / "of-other", "--from", tmp_path / "other.safetensors", "--steps", 1))
    out = shutil.copytree(short[0], tmp_path / "mixed")
    shutil.copy(tmp_path / "of-other" / "training.safetensors", out)
    assert plain(shmoareg("fine-tune", "--out", out, "--resume", "--steps", 9)).search(
        "to a network with another config"
    )
    assert len(read_rows(out / "metrics.csv")) == 4, (
        "the tables were cut back before the state was read"
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", '{"format": "sh', "run.json is damaged"),
        ("run.json", '{"format": "other"}', "not a run that this version supports"),
        (
            "run.json",
            '{"format": "shmoareg-run-1", "settings": {"leaps": 3}}',
            "damaged or from another version",
        ),
        ("split.json", '{"train": 3}', "split.json is damaged"),
        ("training.safetensors", b"\x10\0\0\0\0\0\0\0{", "damaged or cut short"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv is damaged"),
    ],
)
def test_a_damaged_file_of_a_run_is_told_plainly(
    name, content, says, short, shmoareg, tmp_path, plain
):
    out = shutil.copytree(short[0], tmp_path / "run")
    (out / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert plain(shmoareg("fine-tune", "--out", out, "--resume", "--steps", 9)).search(says)
    assert not (out / "lock").exists()


def test_weights_that_were_exchanged_before_the_first_state_are_noticed(
    begin, small, shmoareg, tmp_path, plain
):
    mine = tmp_path / "mine.safetensors"
    shutil.copy(small, mine)
    out = tmp_path / "run"
    result = shmoareg(
        *begin(out, "--from", mine, "--learning-rate", 1e30, "--steps", 3, "--validate-every", 0)
    )
    assert result.exit_code == 1
    (out / "training.safetensors").unlink()
    save_network(load_network(small), mine, card={"title": "another"})
    assert plain(shmoareg("fine-tune", "--out", out, "--resume")).search(
        "not those that the run was started with"
    )
