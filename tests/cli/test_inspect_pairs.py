"""``shmoareg inspect --pairs``: sums, places, figures; going on, and what fails on the way."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from napari_shmoareg.analysis.expert_load import ExpertLoad
from napari_shmoareg.cli import inspect_pairs, inspect_results
from napari_shmoareg.cli.application import app
from napari_shmoareg.cli.inspect_folder import read_kept
from napari_shmoareg.cli.running import Running
from napari_shmoareg.io.images import write_image

GATE = ("part", "layer", "block", "image", "direction")
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"


def _listed(folder, pair):
    """A list of three pairs: as they are; the other way round, without labels; a shifted fixed image."""
    third = pair.fixed.with_values(np.roll(pair.fixed.values, 3, axis=0))
    for name, volume in (pair.volumes | {"third": third}).items():
        write_image(volume, folder / f"{name}.nii.gz")
    path = folder / "pairs.csv"
    path.write_text(
        "moving,fixed,moving_labels,fixed_labels\n"
        "moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz\n"
        "fixed.nii.gz,moving.nii.gz,,\n"
        "moving.nii.gz,third.nii.gz,,\n"
    )
    return path


def _words(path, weights):
    options = ("--affine", "none", "--weights", weights, "--out", path.parent / "out")
    return [str(word) for word in ("inspect", "--pairs", path, *options)]


@contextmanager
def _watched():
    """Every registration that is made meanwhile, in order."""
    made = []

    def register(self, pair, network, report):
        made.append(original(self, pair, network, report))
        return made[-1]

    original = Running.register
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Running, "register", register)
        yield made


@pytest.fixture(scope="module")
def inspected(phantoms, weights, tmp_path_factory):
    """The command on the whole list, once, for tests that only read: what it said, what it registered, its folder."""
    path = _listed(tmp_path_factory.mktemp("inspected"), phantoms)
    with _watched() as made:
        result = CliRunner().invoke(app, _words(path, weights), prog_name="shmoareg")
    assert result.exit_code == 0, result.stderr
    return SimpleNamespace(result=result, registrations=made, out=path.parent / "out", words=_words(path, weights))


@pytest.fixture
def listed(files, pair):
    """The list, anew for each test."""
    return _listed(files.folder, pair)


@pytest.fixture
def words(listed, weights):
    """The command that all of these tests give."""
    return _words(listed, weights)


@pytest.fixture
def registered_pairs():
    """Every registration of the test, in order."""
    with _watched() as made:
        yield made


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are not written: what is tested is something else, and they take most of the time."""
    monkeypatch.setattr(inspect_results, "_write_figures", lambda *figures: None)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counts_of(rows, *more):
    return {tuple(row[key] for key in (*more, *GATE, "expert")): int(row["count"]) for row in rows}


def test_a_list_is_registered_added_up_and_drawn(inspected, weights):
    result, registered_pairs, out = inspected.result, inspected.registrations, inspected.out
    assert "pair 3 of 3" in result.stderr and "encoder 1 moving" in result.stdout and "loads.csv" in result.stdout
    tables = {"loads.csv", "loads_per_pair.csv", "places.csv", "summary.json", "captions.md", "inspect.json"}
    figures = {f"expert_{name}.{kind}" for name in ("loads", "places") for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == tables | figures | {"pairs"}

    total = counts_of(rows_of(out / "loads.csv"))
    single = [ExpertLoad.of(r.routing) for r in registered_pairs]
    assert total == {
        (*("" if f is None else str(f) for f in gate), str(n)): int(sum(load.counts[gate][n] for load in single))
        for gate in single[0]
        for n in range(len(single[0].counts[gate]))
    }
    per_pair = counts_of(rows_of(out / "loads_per_pair.csv"), "pair")
    assert {key[0] for key in per_pair} == {"1", "2", "3"}
    assert all(sum(per_pair[(n, *key)] for n in "123") == count for key, count in total.items())

    for row in rows_of(out / "loads.csv"):
        gate = next(
            g for g in single[0] if tuple("" if f is None else str(f) for f in g) == tuple(row[k] for k in GATE)
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
            assert selections == pytest.approx(1) and tokens == pytest.approx(top_k if gate[1] == "encoder" else 1)

    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["weights"]["name"] == weights.name and len(summary["weights"]["sha256"]) == 64
    assert summary["pairs_done"] == 3 and [p["fixed"] for p in summary["pairs"]] == ["fixed", "moving", "third"]
    assert summary["settings"]["affine"] == "none" and summary["versions"]["shmoareg"] and summary["failed"] == []
    captions = (out / "captions.md").read_text(encoding="utf-8")
    for said in (
        "Share of selections",
        "Share of tokens",
        "3 pairs",
        "standard deviation over the pairs",
        "in the 1 of 3",
    ):
        assert said in captions, captions


def test_places_are_counted_at_the_cells_that_hold_them(inspected):
    out = inspected.out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    expected: dict[tuple, int] = {}
    for registration, told in zip(inspected.registrations, summary["pairs"], strict=True):
        for place, point in told["places_mm_ras"].items():
            voxel = np.floor(registration.network_grid.to_index(point) + 0.5).astype(int)
            for record in registration.routing:
                chosen = record.routing.experts[(0, slice(None), *(voxel // record.stride))].tolist()
                gate = (getattr(record, key) for key in GATE)
                key = (place, *("" if f is None else str(f) for f in gate))
                for n in range(record.num_experts):
                    expected[(*key, str(n))] = expected.get((*key, str(n)), 0) + chosen.count(n)
    assert counts_of(rows_of(out / "places.csv"), "place") == expected
    assert len(summary["pairs"][0]["places_mm_ras"]) == 6 and len(summary["pairs"][1]["places_mm_ras"]) == 5
    assert summary["pairs"][0]["boundary_labels"] and summary["pairs"][1]["boundary_labels"] is None


def test_the_same_command_goes_on_and_registers_only_what_is_missing(
    words, files, registered_pairs, undrawn, shmoareg, monkeypatch
):
    out, keep = files.folder / "out", inspect_pairs._keep

    def stopped(found, *rest):
        if len(registered_pairs) == 3:
            raise KeyboardInterrupt
        keep(found, *rest)

    monkeypatch.setattr(inspect_pairs, "_keep", stopped)
    result = shmoareg(*words)
    assert result.exit_code == 130 and "Stopped after 2 of 3 pairs" in result.stderr and "goes on" in result.stderr
    assert not (out / "loads.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / "pairs").iterdir()}
    assert {path.name for path in before} == {"0001.json", "0002.json"}
    monkeypatch.setattr(inspect_pairs, "_keep", keep)
    registered_pairs.clear()
    assert shmoareg(*words).exit_code == 0
    assert [r.pair.fixed.name for r in registered_pairs] == ["third"]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    files_then = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert shmoareg(*words).exit_code == 0 and len(registered_pairs) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == files_then


def test_other_weights_settings_lists_or_places_are_refused(
    inspected, folding_weights, registered_pairs, shmoareg, plain
):
    words, listed = inspected.words, inspected.out.parent / "pairs.csv"
    for options, other in (
        (("--weights", folding_weights), "weights"),
        (("--contrast", "match"), "settings"),
        (("--size", 16), "settings"),
        (("--at", "4,-7,11"), "places"),
    ):
        assert plain(shmoareg(*words, *options)).search(f"inspection in .* was begun with other {other} ")
    shorter = listed.with_name("shorter.csv")
    shorter.write_text("\n".join(listed.read_text().splitlines()[:3]) + "\n")
    assert plain(shmoareg(*words, "--pairs", shorter)).search("begun with other pairs ")
    assert registered_pairs == []


def test_a_bad_file_is_told_and_the_rest_is_done(words, files, registered_pairs, undrawn, shmoareg):
    whole = files.moving.read_bytes()
    (files.folder / "third.nii.gz").write_bytes(whole[: len(whole) // 2])
    result = shmoareg(*words)
    out = files.folder / "out"
    assert result.exit_code == 0, result.stderr
    assert "pair 3 failed: " in result.stderr and "third.nii.gz" in result.stderr
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["pairs_done"] == 2 and [f["pair"] for f in summary["failed"]] == [3]
    assert {row["pair"] for row in rows_of(out / "loads_per_pair.csv")} == {"1", "2"}
    captions = (out / "captions.md").read_text(encoding="utf-8")
    assert "Failed, and not counted" in captions and "2 of 3 listed pairs" in captions
    (files.folder / "third.nii.gz").write_bytes(whole)
    registered_pairs.clear()
    assert shmoareg(*words, "--quiet").exit_code == 0 and len(registered_pairs) == 1
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["pairs_done"] == 3


def test_where_every_pair_fails_that_is_the_error(words, listed, files, shmoareg):
    listed.write_text("moving,fixed\nmoving.nii.gz,third.nii.gz\n")
    (files.folder / "third.nii.gz").write_bytes(b"no image")
    result = shmoareg(*words, "--quiet")
    assert result.exit_code == 1 and "None of the 1 pairs could be registered" in result.stderr
    assert not (files.folder / "out" / "loads.csv").exists()


def test_a_damaged_file_of_a_pair_is_told(words, files, inspected, undrawn, monkeypatch, shmoareg, plain):
    monkeypatch.setattr(inspect_pairs, "_inspected", lambda *asked: next(kept))
    kept = (read_kept(inspected.out, n) for n in range(3))
    assert shmoareg(*words, "--quiet").exit_code == 0
    (files.folder / "out" / "pairs" / "0002.json").write_text("{")
    assert plain(shmoareg(*words)).search("0002.json is damaged .*Delete it")


def test_named_places_are_looked_at_in_every_pair(words, files, registered_pairs, undrawn, shmoareg, plain):
    outside = plain(shmoareg(*words[:-1], files.folder / "far", "--at", "400,0,0"))
    assert outside.search(r"The place \(400, 0, 0\) does not lie in .*fixed.nii.gz") and registered_pairs == []
    result = shmoareg(*words, "--at", "4,-7,11", "--at", "-8,-2,12", "--quiet")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(files.folder / "out" / "places.csv")
    assert {row["place"] for row in rows} == {"(4, -7, 11)", "(-8, -2, 12)"} and {row["cells"] for row in rows} == {"3"}
    assert "as asked" in (files.folder / "out" / "captions.md").read_text(encoding="utf-8")


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
        assert about["Title"] == name.replace("_", " ") and about["Software"].startswith("shmoareg ")
        assert about["Weights"] == f"{weights.name} (SHA-256 {summary['weights']['sha256']})"
        assert "3, moving to fixed: moving to fixed; fixed to moving; moving to third" in about["Pairs"]
        assert json.loads(about["Settings"]) == summary["settings"]
        assert about["Caption"] == summary["captions"][name]
        work = ElementTree.parse(out / f"{name}.svg")
        said = {key: [e for e in work.iter(f"{DUBLIN_CORE}{key}")] for key in ("title", "description", "creator")}
        assert said["title"][0].text == about["Title"]
        assert "".join(said["creator"][0].itertext()).strip() == about["Software"]
        for key in ("Weights", "Pairs", "Settings", "Caption"):
            assert f"{key}: {about[key]}" in said["description"][0].text
