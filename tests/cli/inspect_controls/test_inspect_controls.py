"""``shmoareg inspect --controls``: a list, one pair, one folder; what it writes, going on, and the
card.
"""

from __future__ import annotations

import csv
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from napari_shmoareg.cli import inspect_controls
from napari_shmoareg.cli.app import app
from napari_shmoareg.experts.choice_checks import mean_checks
from napari_shmoareg.experts.controls import Control, controls_of
from napari_shmoareg.experts.routing_scores import (
    ControlledPair,
    control_rows,
    measure_controls,
    routing_sentence,
)
from napari_shmoareg.io import load_network, read_card, read_pair, write_image
from napari_shmoareg.registration.replay import Replay

pytestmark = pytest.mark.slow

NAMES = [f"scan{n}" for n in range(5)]
SIZE = 20


def _listed(folder, pair):
    """Five scans, each a shifted copy with its labels, and a ring of five pairs."""
    for n, name in enumerate(NAMES):
        for volume, ending in ((pair.fixed, ""), (pair.fixed_labels, "_labels")):
            shifted = volume.with_values(np.roll(volume.values, (n, -n), (0, 1)))
            write_image(shifted, folder / f"{name}{ending}.nii.gz")
    lines = ["moving,fixed,moving_labels,fixed_labels"]
    for moving, fixed in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True):
        lines.append(
            ",".join(
                f"{name}.nii.gz" for name in (moving, fixed, f"{moving}_labels", f"{fixed}_labels")
            )
        )
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _words(listing, weights, *more):
    options = ("--controls", "--affine", "none", "--size", SIZE, "--weights", weights)
    return [str(word) for word in ("inspect", "--pairs", listing, *options, *more)]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ring(phantoms, weights, tmp_path_factory):
    """The command on the whole list, once: what it said, and its folder."""
    folder = tmp_path_factory.mktemp("controlled")
    listing = _listed(folder, phantoms)
    more = ("--out", folder / "out", "--card", folder / "scored.safetensors")
    result = CliRunner().invoke(app, _words(listing, weights, *more), prog_name="shmoareg")
    assert result.exit_code == 0, result.stderr
    return SimpleNamespace(result=result, out=folder / "out", listing=listing, folder=folder)


def test_a_list_is_measured_and_its_table_is_what_its_pairs_come_to(ring, weights):
    out, network = ring.out, load_network(weights)
    controls = controls_of(network)
    files = set(
        "controls.csv controls_per_pair.csv controls_gates.csv controls.png controls.svg".split()
    )
    assert {p.name for p in out.iterdir()} == files | {"summary.json", "inspect.json", "pairs"}
    each = rows_of(out / "controls_per_pair.csv")
    pairs = []
    for n in range(5):
        values = {row["control"]: float(row["dice"]) for row in each if row["pair"] == str(n + 1)}
        assert list(values) == ["before", "learned", *(control.key for control in controls)]
        pairs.append(ControlledPair(NAMES[n], NAMES[(n + 1) % 5], "dice", values))
    table = rows_of(out / "controls.csv")
    expected = [row.to_dict() for row in control_rows(pairs, controls)]
    assert list(table[0])[:6] == ["control", "part", "expert", "passes", "pairs", "images"]
    assert [{k: str(v) for k, v in row.items()} for row in expected] == [dict(row) for row in table]
    assert {row["pairs"] for row in table} == {row["images"] for row in table} == {"5"}
    assert all(row["low"] and row["high"] for row in table)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (
        summary["sentence"] == routing_sentence(summary)
        and "(5 pairs, Dice)" in summary["sentence"]
    )
    assert (
        summary["pairs_done"] == 5
        and summary["failed"] == []
        and summary["measure"] == "dice: Dice"
    )
    assert max(summary["pairs"][0]["network_shape"]) == SIZE == summary["routing_matters"]["size"]
    gates = rows_of(out / "controls_gates.csv")
    rows = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / "pairs").iterdir())
    ]
    kept = [inspect_controls.MeasuredPair.of_row(row, controls) for row in rows]
    means = mean_checks([check for one in kept for check in one.checks])
    assert [float(row["information"]) for row in gates] == [check.information for check in means]
    assert len(gates) == 2 * 3 + 6 and {row["part"] for row in gates} == {"encoder", "decoder"}
    for name in ("controls.png", "controls.svg"):
        assert (out / name).stat().st_size > 5000
    with Image.open(out / "controls.png") as picture:
        about = picture.text
    assert about["Caption"] == summary["caption"] and about["Weights"].startswith(
        "tiny.safetensors (SHA-256 "
    )
    for said in (
        "as learned",
        "attention off",
        "5×5×5 everywhere",
        "Encoder: ",
        "Decoder: ",
        "gain kept",
        "noise kappa",
    ):
        assert said in ring.result.stdout, ring.result.stdout
    assert (
        summary["sentence"] in ring.result.stdout.replace("\n", " ")
        and "pair 5 of 5" in ring.result.stderr
    )


def test_a_pair_of_the_list_is_measured_as_the_library_measures_it(ring, weights):
    folder, network = ring.folder, load_network(weights)
    names = ("scan1", "scan2", "scan1_labels", "scan2_labels")
    pair = read_pair(*(folder / f"{name}.nii.gz" for name in names))
    replay = Replay.of(pair, network, settings={"size": SIZE, "contrast": "auto"})
    some = [Control("shuffled", "decoder"), Control("uniform", "encoder")]
    found = dict(measure_controls(replay, some))
    rows = {
        row["control"]: float(row["dice"])
        for row in rows_of(ring.out / "controls_per_pair.csv")
        if row["pair"] == "2"
    }
    assert found == {key: rows[key] for key in found} and len(set(found.values())) > 2


def test_the_card_of_a_copy_has_the_scores_and_the_weights_are_the_same(ring, weights):
    scored = ring.folder / "scored.safetensors"
    card, before = read_card(scored), read_card(weights)
    summary = json.loads((ring.out / "summary.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in card.items() if key != "routing_matters"} == before
    scores = dict(card["routing_matters"])
    assert scores.pop("shmoareg") and scores == summary["routing_matters"]
    assert routing_sentence(card) == summary["sentence"]
    own, copied = load_file(weights), load_file(scored)
    assert own.keys() == copied.keys() and all((own[k] == copied[k]).all() for k in own)


def test_the_loads_of_weights_with_a_card_say_whether_routing_matters(ring, files, shmoareg):
    out = files.folder / "seen"
    options = (
        "--affine",
        "none",
        "--weights",
        ring.folder / "scored.safetensors",
        "--out",
        out,
        "--quiet",
    )
    listing = files.folder / "one.csv"
    listing.write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8")
    assert shmoareg("inspect", "--pairs", listing, *options).exit_code == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    sentence = routing_sentence(read_card(ring.folder / "scored.safetensors"))
    assert summary["routing"] == sentence and sentence
    assert (
        all(text.endswith(sentence) for text in summary["captions"].values())
        and len(summary["captions"]) == 2
    )


def test_the_same_command_goes_on_and_measures_only_what_is_missing(
    ring, weights, shmoareg, monkeypatch, tmp_path
):
    made, measure = [], inspect_controls._measured

    def counted(*asked):
        made.append(asked)
        if len(made) == 2:
            raise KeyboardInterrupt
        return measure(*asked)

    monkeypatch.setattr(inspect_controls, "_measured", counted)
    lines = ring.listing.read_text(encoding="utf-8").splitlines()[:3]
    listing = ring.folder / "two.csv"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    stopped = shmoareg(*_words(listing, weights, "--out", out))
    assert stopped.exit_code == 130 and "Stopped after 1 of 2 pairs" in stopped.stderr
    assert {p.name for p in (out / "pairs").iterdir()} == {"0001.json"} and not (
        out / "controls.csv"
    ).exists()
    before = (out / "pairs" / "0001.json").read_bytes()
    result = shmoareg(*_words(listing, weights, "--out", out))
    assert result.exit_code == 0 and len(made) == 3, result.stderr
    assert (out / "pairs" / "0001.json").read_bytes() == before
    assert "2 pairs of 3 images: no intervals, too few subjects" in result.stdout
    assert all(row["low"] == "" for row in rows_of(out / "controls.csv"))
    again = shmoareg(*_words(listing, weights, "--out", out, "--quiet"))
    assert again.exit_code == 0 and len(made) == 3 and again.stdout == ""


def test_other_settings_and_damaged_pairs_are_refused(ring, weights, shmoareg, plain, tmp_path):
    for options, other in ((("--passes", "last"), "passes"), (("--size", 24), "settings")):
        words = _words(ring.listing, weights, "--out", ring.out, *options)
        assert plain(shmoareg(*words)).search(f"inspection in .* was started with other {other} ")
    copy = tmp_path / "copy"
    (copy / "pairs").mkdir(parents=True)
    (copy / "inspect.json").write_bytes((ring.out / "inspect.json").read_bytes())
    told = json.loads((ring.out / "pairs" / "0001.json").read_text(encoding="utf-8"))
    del told["values"]["decoder moved"]
    (copy / "pairs" / "0001.json").write_text(json.dumps(told), encoding="utf-8")
    assert plain(shmoareg(*_words(ring.listing, weights, "--out", copy))).search(
        "0001.json is damaged"
    )


def test_a_pair_that_fails_is_told_and_left_out(files, weights, shmoareg, pair):
    empty = pair.fixed_labels.with_values(pair.fixed_labels.values * 0)
    files.write(empty, "empty.nii.gz")
    listing = files.folder / "list.csv"
    listing.write_text(
        "moving,fixed,moving_labels,fixed_labels\nmoving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,empty.nii.gz\n",
        encoding="utf-8",
    )
    result = shmoareg(*_words(listing, weights, "--out", files.folder / "out"))
    assert result.exit_code == 1 and "None of the 1 pairs could be measured" in result.stderr
    assert "have no label in common on the network grid" in result.stderr


def test_a_registration_folder_is_measured_with_its_own_settings(registered, shmoareg, files):
    before = sorted(registered.rglob("*"))
    out = files.folder / "controls"
    result = shmoareg("inspect", registered, "--controls", "--passes", "last", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(registered.rglob("*")) == before
    table = {(row["control"], row["part"]): row for row in rows_of(out / "controls.csv")}
    assert table["shuffled", "decoder"]["passes"] == "last" and table["learned", ""]["pairs"] == "1"
    assert not any(row["low"] or row["share_low"] for row in table.values())
    assert "one pair: no intervals, too few subjects" in result.stdout
    assert {p.name for p in out.iterdir()} == set(
        (
            "controls.csv controls_per_pair.csv controls_gates.csv controls.png controls.svg"
            " summary.json"
        ).split()
    )
    report = json.loads((registered / "report.json").read_text(encoding="utf-8"))
    told = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert told["pairs"][0]["network_shape"] == report["network_grid"]["shape"]


def test_two_images_without_labels_are_measured_by_the_local_correlation(files, weights, shmoareg):
    out = files.folder / "controls"
    options = ("--affine", "none", "--size", SIZE, "--weights", weights, "--out", out, "--quiet")
    result = shmoareg("inspect", files.moving, files.fixed, "--controls", *options)
    assert result.exit_code == 0 and result.stdout == "", result.stderr
    table = rows_of(out / "controls.csv")
    assert (
        "similarity" in table[0]
        and "dice" not in table[0]
        and 0 < float(table[0]["similarity"]) < 1
    )
    gates = rows_of(out / "controls_gates.csv")
    assert all(
        row["information"] == "" and row["stability"] for row in gates if row["part"] == "decoder"
    )


def test_what_is_asked_wrongly_is_said(files, registered, weights, shmoareg, plain):
    listing = files.folder / "list.csv"
    listing.write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8")
    assert plain(shmoareg("inspect", registered, "--card", "a.safetensors")).search(
        "no effect without --controls"
    )
    assert plain(shmoareg("inspect", registered, "--passes", "last")).search(
        "no effect without --controls"
    )
    assert plain(shmoareg(*_words(listing, weights, "--at", "1,2,3"))).search(
        "leave out one of them"
    )
    assert plain(shmoareg("inspect", registered, "--pairs", listing, "--controls")).search(
        "do not give a folder or an image"
    )
    two = shmoareg("inspect", registered, registered, "--controls")
    assert two.exit_code == 2 and "one DIR" in two.stderr
    for card, says in (
        ("scored.pt", r"a file that ends in \.safetensors"),
        (weights, "is one of the inputs"),
    ):
        words = _words(listing, weights, "--out", files.folder / "out", "--card", card)
        assert plain(shmoareg(*words)).search(says)
    assert not (files.folder / "out").exists()


def test_the_shipped_weights_are_never_written(tmp_path):
    from napari_shmoareg.errors import InputError
    from napari_shmoareg.io import checkpoint, model_card

    shipped = model_card.SHIPPED / "small.safetensors"
    then = hashlib.sha256(shipped.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="belongs to the shipped weights"):
        checkpoint.write_with_card("small", shipped, {"routing_matters": {}})
    card = checkpoint.write_with_card(
        "small", tmp_path / "copy.safetensors", {"routing_matters": {"pairs": 1}}
    )
    assert read_card(tmp_path / "copy.safetensors") == card and card["name"] == "small"
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == then
    with pytest.raises(InputError, match="plain JSON"):
        checkpoint.write_with_card("small", tmp_path / "other.safetensors", {"a": float("nan")})
    assert not (tmp_path / "other.safetensors").exists()
