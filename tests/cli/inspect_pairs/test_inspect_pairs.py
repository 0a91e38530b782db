"""``shmoareg inspect --pairs``: sums, places, figures, and what they say of themselves."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from napari_shmoareg.cli.inspect import parse_point
from napari_shmoareg.cli.options import CommandRequest
from napari_shmoareg.experts.load import ExpertLoad

GATE = ("part", "layer", "block", "image", "direction")
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"


def counts_of(rows, *more):
    return {tuple(row[key] for key in (*more, *GATE, "expert")): int(row["count"]) for row in rows}


def test_a_list_is_registered_added_up_and_drawn(inspected, weights, rows_of):
    result, registered_pairs, out = inspected.result, inspected.registrations, inspected.out
    assert "pair 3 of 3" in result.stderr
    assert "encoder 1 moving" in result.stdout and "loads.csv" in result.stdout
    tables = {"loads.csv", "loads_per_pair.csv", "places.csv"}
    tables |= {"summary.json", "captions.md", "inspect.json"}
    figures = {f"expert_{name}.{kind}" for name in ("loads", "places") for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == tables | figures | {"pairs"}

    total = counts_of(rows_of(out / "loads.csv"))
    single = [ExpertLoad.of(r.routing) for r in registered_pairs]
    assert total == {
        (*("" if f is None else str(f) for f in gate), str(n)): int(
            sum(load.counts[gate][n] for load in single)
        )
        for gate in single[0]
        for n in range(len(single[0].counts[gate]))
    }
    per_pair = counts_of(rows_of(out / "loads_per_pair.csv"), "pair")
    assert {key[0] for key in per_pair} == {"1", "2", "3"}
    assert all(sum(per_pair[(n, *key)] for n in "123") == count for key, count in total.items())

    for row in rows_of(out / "loads.csv"):
        gate = next(
            g
            for g in single[0]
            if tuple("" if f is None else str(f) for f in g) == tuple(row[k] for k in GATE)
        )
        shares = [load.share[gate][int(row["expert"])] for load in single]
        assert float(row["share_sd_over_pairs"]) == pytest.approx(np.std(shares, ddof=1))
    for rows in (rows_of(out / "loads.csv"), rows_of(out / "places.csv")):
        sums = dict[tuple, list[float]]()
        for row in rows:
            found = sums.setdefault(tuple(row.get(key) for key in ("place", *GATE)), [0.0, 0.0])
            found[0] += float(row["share"])
            found[1] += float(row["share_of_tokens"])
        top_k = registered_pairs[0].settings["network"]["top_k"]
        for gate, (selections, tokens) in sums.items():
            assert selections == pytest.approx(1) and tokens == pytest.approx(
                top_k if gate[1] == "encoder" else 1
            )

    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["weights"]["name"] == weights.name and len(summary["weights"]["sha256"]) == 64
    assert [p["fixed"] for p in summary["pairs"]] == ["fixed", "moving", "third"]
    assert summary["pairs_done"] == 3 and summary["failed"] == []
    assert summary["settings"]["affine"] == "none" and summary["versions"]["shmoareg"]
    captions = (out / "captions.md").read_text(encoding="utf-8")
    for said in (
        "Share of selections",
        "Share of tokens",
        "3 pairs",
        "standard deviation over the pairs",
        "in the 1 of 3 pairs that have such a boundary",
    ):
        assert said in captions, captions


def test_places_are_counted_at_the_cells_that_hold_them(inspected, rows_of):
    out = inspected.out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    expected: dict[tuple, int] = {}
    for registration, told in zip(inspected.registrations, summary["pairs"], strict=True):
        for place, point in told["places_mm_ras"].items():
            voxel = np.floor(registration.network_grid.to_index(point) + 0.5).astype(int)
            for record in registration.routing:
                chosen = record.routing.experts[
                    (0, slice(None), *(voxel // record.stride))
                ].tolist()
                gate = (getattr(record, key) for key in GATE)
                key = (place, *("" if f is None else str(f) for f in gate))
                for n in range(record.num_experts):
                    expected[(*key, str(n))] = expected.get((*key, str(n)), 0) + chosen.count(n)
    assert counts_of(rows_of(out / "places.csv"), "place") == expected
    assert (
        len(summary["pairs"][0]["places_mm_ras"]) == 6
        and len(summary["pairs"][1]["places_mm_ras"]) == 5
    )
    assert summary["pairs"][0]["boundary_labels"] and summary["pairs"][1]["boundary_labels"] is None


def test_named_places_are_looked_at_in_every_pair(
    words, files, registered_pairs, undrawn, shmoareg, plain, rows_of
):
    outside = plain(shmoareg(*words[:-1], files.folder / "far", "--at", "400,0,0"))
    assert (
        outside.search(r"The location \(400, 0, 0\) is outside of .*fixed.nii.gz")
        and registered_pairs == []
    )
    result = shmoareg(*words, "--at", "4,-7,11", "--at", "-8,-2,12", "--quiet")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(files.folder / "out" / "places.csv")
    assert {row["place"] for row in rows} == {"(4, -7, 11)", "(-8, -2, 12)"} and {
        row["cells"] for row in rows
    } == {"3"}
    assert "as requested" in (files.folder / "out" / "captions.md").read_text(encoding="utf-8")


def test_a_place_is_three_numbers_and_there_are_at_most_five(words, shmoareg, plain):
    for text in ("1,2", "a,b,c", "1,2,3,4", "1,2,inf"):
        result = shmoareg(*words, "--at", text)
        assert result.exit_code == 2 and f"'{text}' is not" in result.stderr
    assert plain(shmoareg(*words, *(["--at", "1,2,3"] * 6))).search("up to 5")


def test_figures_carry_weights_pairs_and_settings(inspected, weights):
    out = inspected.out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for name in ("expert_loads", "expert_places"):
        with Image.open(out / f"{name}.png") as picture:
            about = picture.text
        assert about["Title"] == name.replace("_", " ") and about["Software"].startswith(
            "shmoareg "
        )
        assert about["Weights"] == f"{weights.name} (SHA-256 {summary['weights']['sha256']})"
        assert (
            "3, moving to fixed: moving to fixed; fixed to moving; moving to third"
            in about["Pairs"]
        )
        assert json.loads(about["Settings"]) == summary["settings"]
        assert about["Caption"] == summary["captions"][name]
        work = ElementTree.parse(out / f"{name}.svg")
        said = {
            key: [e for e in work.iter(f"{DUBLIN_CORE}{key}")]
            for key in ("title", "description", "creator")
        }
        assert said["title"][0].text == about["Title"]
        assert "".join(said["creator"][0].itertext()).strip() == about["Software"]
        for key in ("Weights", "Pairs", "Settings", "Caption"):
            assert f"{key}: {about[key]}" in said["description"][0].text


def test_places_that_differ_in_the_last_digit_have_names_of_their_own():
    texts = ("4,-7,11", "4.0000001,-7,11", "4.00000010000001,-7,11")
    assert [str(parse_point(text)) for text in texts] == [
        f"({text.replace(',', ', ')})" for text in texts
    ]


@pytest.mark.slow
def test_captions_tell_the_passes_that_ran_and_not_those_of_the_weights(
    words, listed, files, tiny_network, undrawn, monkeypatch, shmoareg
):
    tiny_network.config = replace(tiny_network.config, passes=(0.375, 1.0))
    monkeypatch.setattr(CommandRequest, "network", lambda self: ("tiny", tiny_network))
    monkeypatch.setattr("napari_shmoareg.cli.pair_list.checksum_of", lambda name: "")
    listed.write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8")
    for size, said in ((40, False), (44, True)):  # 15 voxels are too few for a pass, 16 are not
        out = files.folder / f"of {size}"
        result = shmoareg(*words[:-1], out, "--size", size, "--quiet")
        assert result.exit_code == 0, result.stderr
        captions = json.loads((out / "summary.json").read_text(encoding="utf-8"))["captions"]
        assert {"last of the network's 2 passes" in text for text in captions.values()} == {said}


def test_a_pair_that_is_listed_twice_is_warned_of(
    words, listed, files, as_inspected, undrawn, shmoareg
):
    listed.write_text(
        "moving,fixed\nmoving.nii.gz,fixed.nii.gz\nfixed.nii.gz,moving.nii.gz\nmoving.nii.gz,fixed.nii.gz\n",
        encoding="utf-8",
    )
    result = shmoareg(*words, "--quiet")
    assert result.exit_code == 0 and "Warning: pair 3 is the same as pair 1" in result.stderr
    assert result.stderr.count("Warning") == 1
    captions = (files.folder / "out" / "captions.md").read_text(encoding="utf-8")
    assert "Listed more than once: pair 1 (as 3)" in captions
