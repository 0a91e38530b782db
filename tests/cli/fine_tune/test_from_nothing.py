"""Runs that begin from nothing: Sec. IV-B, from the command line, to the end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import load_network, read_card
from napari_shmoareg.model import SHMoARegConfig
from napari_shmoareg.training.plan import (
    config_from_scratch,
    describe_start,
    make_plan,
    parse_changes,
    random_network,
    read_plan,
)
from napari_shmoareg.training.settings import FineTuning

pytestmark = pytest.mark.slow

SHORT = (
    "--steps",
    4,
    "--save-every",
    2,
    "--validate-every",
    4,
    "--validation-pairs",
    1,
    "--no-tensorboard",
)


@pytest.fixture(scope="module")
def nothing(scans):
    """The words that begin a run from nothing in a folder."""

    def words(out, *more):
        where = (
            scans,
            "--images",
            "images/*.nii.gz",
            "--labels",
            "labels/*.nii.gz",
            "--split",
            "4/2/0",
        )
        start = ("--from", "none", "--preset", "tiny", "--size", 16, "--affine", "none")
        return [str(w) for w in ("fine-tune", *where, *start, "--out", out, *SHORT, *more)]

    return words


@pytest.fixture(scope="module")
def whole(nothing, forker, tmp_path_factory):
    """A finished run, not to be changed."""
    out = tmp_path_factory.mktemp("nothing") / "run"
    done = forker.run(nothing(out, "--json"))
    assert done.code == 0, done.errors
    return out


def test_the_defaults_are_those_of_section_iv_b():
    plan = make_plan("none", DatasetChoice("there"), {}, {})
    settings = plan.settings
    assert (settings.steps, settings.batch, settings.learning_rate, settings.final_rate) == (
        100_000,
        1,
        1e-4,
        None,
    )
    assert (settings.similarity, settings.similarity_weight) == ("mse", 1.0)
    assert (settings.smoothness_weight, settings.routing_weight, settings.quantile) == (
        0.01,
        0.001,
        0.5,
    )
    ours = ("bending", "overlap", "inverse", "balance")
    assert all(getattr(settings, f"{name}_weight") == 0 for name in ours)
    assert (settings.cascade, settings.diffeomorphic, settings.largest_gradient) == (0, 0, 0)
    assert (settings.augment_affine, settings.augment_intensity, settings.flips) == (0, 0, "none")
    assert not (settings.balance_heads or settings.freeze_encoder)
    assert settings.size == 128 and plan.network_config == SHMoARegConfig()
    config = plan.network_config
    assert (config.embed_dim, config.depths, config.num_experts, config.top_k) == (
        48,
        (2, 2, 4, 2),
        12,
        4,
    )
    assert (config.kernels, config.shmoe_strides, config.passes) == ((1, 3, 5), (1, 2), (1.0,))


def test_the_other_variant_and_the_ablations_can_be_begun_too():
    variant = make_plan(
        "none", DatasetChoice("there"), {"diffeomorphic": 1.0, "smoothness_weight": 0.1}, {}
    )
    assert variant.network_config == SHMoARegConfig(diffeomorphic=True)
    words = [
        "attention=mha",
        "shmoe-strides=none",
        "diffeomorphic=TRUE",
        "window=5,6,7",
        "drop_path=0.3",
    ]
    plan = make_plan("none", DatasetChoice("there"), {}, {}, changes=parse_changes(words))
    wanted = {
        "attention": "mha",
        "shmoe_strides": (),
        "diffeomorphic": True,
        "window": (5, 6, 7),
        "drop_path": 0.3,
    }
    assert (
        plan.network_config == replace(SHMoARegConfig(), **wanted)
        and plan.settings.diffeomorphic == 1.0
    )


def test_a_network_registers_on_the_grids_that_it_learns_on_unless_a_cascade_is_asked_for():
    one = config_from_scratch("small", {}, FineTuning())
    assert (one.size, one.passes) == (60, (1.0,))
    assert config_from_scratch("small", {}, FineTuning(size=96)).size == 96
    for settings in (FineTuning(cascade=0.5), FineTuning(passes="keep")):
        assert config_from_scratch("small", {}, settings) == SHMoARegConfig.preset("small")
    assert config_from_scratch("small", {"passes": [0.5, 1.0]}, FineTuning()).passes == (0.5, 1.0)


def test_a_seed_gives_the_same_weights_and_leaves_random_numbers_alone():
    config = SHMoARegConfig.preset("tiny")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (random_network(config, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_run_from_nothing_learns_and_says_where_it_began(whole, shmoareg):
    began = random_network(config_from_scratch("tiny", {}, FineTuning(size=16)), 0).state_dict()
    network = load_network(whole / "last.safetensors")
    assert (network.config.size, network.config.passes) == (16, (1.0,))
    moved = {
        name: float((value - began[name]).abs().max())
        for name, value in network.state_dict().items()
    }
    assert 0 < max(moved.values()) < 5e-4, "four steps of Adam at 1e-4 from the weights of the seed"
    card = read_card(whole / "last.safetensors")
    assert card["fine_tuned_from"] == "nothing (random weights of preset tiny)"
    assert card["fine_tuned_from_sha256"] is None and card["fine_tuning_steps"] == 4
    shown = shmoareg("runs", "show", whole)
    assert "started from nothing (random weights of preset tiny)" in " ".join(shown.stdout.split())
    assert read_plan(whole / "run.json").weights["preset"] == "tiny"


def test_a_run_from_nothing_in_pieces_ends_where_one_in_a_go_does(
    nothing, whole, shmoareg, tmp_path
):
    out = tmp_path / "run"
    first = shmoareg(*nothing(out, "--minutes", 1e-9))
    assert first.exit_code == 0, first.stderr
    assert "Starting from nothing (random weights of preset tiny): 4 steps" in " ".join(
        first.stdout.split()
    )
    assert read_card(out / "last.safetensors")["fine_tuning_steps"] == 1
    last = shmoareg(
        "fine-tune", "--out", out, "--resume", "--from", "none", "--preset", "tiny", "--minutes", 0
    )
    assert last.exit_code == 0, last.stderr
    for table in ("metrics", "loads"):
        rows = [
            (run / f"{table}.csv").read_text(encoding="utf-8").splitlines() for run in (whole, out)
        ]
        rows = [[line.rpartition(",")[0] for line in lines] for lines in rows]
        assert rows[0] == rows[1]
    found, wanted = (load_network(run / "last.safetensors").state_dict() for run in (out, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_run_that_saved_nothing_begins_with_the_same_weights_again(
    nothing, whole, forker, tmp_path
):
    out = tmp_path / "run"
    killed = forker.run(nothing(out, "--json"), die=("telling", "begin", 1))
    assert killed.code != 0 and not (out / "training.safetensors").exists()
    again = forker.run(["fine-tune", "--out", out, "--resume", "--json"])
    assert again.code == 0, again.errors
    found, wanted = (load_network(run / "last.safetensors").state_dict() for run in (out, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_plain_layers_learn_too(nothing, shmoareg, tmp_path):
    out = tmp_path / "run"
    plain = ("--config", "attention=mha", "--config", "shmoe_strides=none", "--diffeomorphic", 1)
    result = shmoareg(*nothing(out, *plain, "--steps", 1, "--json"))
    assert result.exit_code == 0, result.stderr
    config = load_network(out / "last.safetensors").config
    assert (config.attention, config.shmoe_strides, config.diffeomorphic) == ("mha", (), True)
    begun = next(e for e in map(json.loads, result.stdout.splitlines()) if e["event"] == "begin")
    assert (
        begun["begins_from"]
        == "nothing (random weights of preset tiny, attention=mha, shmoe_strides=[])"
    )
    assert describe_start(read_plan(out / "run.json").weights) == begun["begins_from"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--preset", "huge"), "no preset 'huge'"),
        (("--config", "attention=all"), "attention is 'moa' or 'mha'"),
        (("--config", "heads"), "'heads' is not a network setting: expected NAME=VALUE"),
        (("--config", "headz=3"), "'headz=3' is not a network setting.*Names are embed_dim"),
        (("--config", "heads=many"), "heads takes a number; got 'many'"),
        (("--config", "routing_only=perhaps"), "routing_only takes true or false"),
        (("--config", "shmoe_strides=all"), "shmoe_strides takes numbers such as 1,2, or none"),
        (("--config", "heads=0"), "heads is from 1 to 128"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_before_anything_is_written(
    words, says, nothing, plain, shmoareg, tmp_path
):
    assert plain(shmoareg(*nothing(tmp_path / "run", *words))).search(says)
    assert not (tmp_path / "run").exists()


def test_a_network_is_chosen_only_where_a_run_begins_from_nothing(
    scans, small, whole, plain, shmoareg, tmp_path
):
    for words in (("--preset", "small"), ("--config", "attention=mha")):
        result = shmoareg("fine-tune", scans, "--from", small, "--out", tmp_path / "run", *words)
        assert plain(result).search("give --from none too")
        with_other = (
            ("--from", "none", "--preset", "small")
            if words[0] == "--preset"
            else ("--from", "none", *words)
        )
        result = shmoareg("fine-tune", "--out", whole, "--resume", *with_other)
        assert plain(result).search(
            r"started from nothing \(random weights of preset tiny\). Leave out --preset"
        )
    assert plain(shmoareg("fine-tune", "--out", whole, "--resume", "--from", small)).search(
        "started from nothing.*not from"
    )
    with pytest.raises(InputError, match="are for random weights"):
        make_plan(str(small), DatasetChoice("there"), {}, {}, preset="tiny")


def test_experts_begin_from_nothing_as_asked(nothing, shmoareg, tmp_path):
    out = tmp_path / "run"
    asked = (
        "--moa-output-scale",
        4,
        "--kernels-start",
        "alike",
        "--balance",
        "bias",
        "--learning-rate",
        1e-12,
    )
    result = shmoareg(*nothing(out, *asked, "--steps", 1, "--validate-every", 0))
    assert result.exit_code == 0, result.stderr
    network = load_network(out / "last.safetensors")
    assert network.config.choice_bias
    plain = random_network(network.config, 0)
    pairs = zip(network.encoder.layers[0].blocks, plain.encoder.layers[0].blocks, strict=True)
    for block, other in pairs:
        torch.testing.assert_close(block.attention.output, 4 * other.attention.output)
    small, middle, large = network.decoder.levels[-1].head.experts["y"]
    torch.testing.assert_close(middle.weight[..., 1:2, 1:2, 1:2], small.weight)
    torch.testing.assert_close(large.weight[..., 2:3, 2:3, 2:3], small.weight)
    assert float(large.weight.detach().abs().sum()) == pytest.approx(
        float(small.weight.detach().abs().sum()), rel=1e-3
    )
