"""``shmoareg inspect``: loads from a folder, from several, from a pair (a list:
test_inspect_pairs).
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from napari_shmoareg.cli.options import CommandRequest
from napari_shmoareg.figures import experts


def loads(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_shows_its_loads_and_is_left_as_it_was(registered, shmoareg):
    before = sorted(registered.rglob("*"))
    result = shmoareg("inspect", registered)
    assert result.exit_code == 0, result.stderr
    for words in ("encoder 1 moving", "encoder 1 fixed", "decoder 1 x", "decoder 2 z", "loads.csv"):
        assert words in result.stdout, result.stdout
    assert sorted(registered.rglob("*")) == before


def test_shares_in_the_table_are_those_of_the_file(registered, shmoareg):
    rows = [
        r
        for r in loads(registered / "experts" / "loads.csv")
        if (r["layer"], r["direction"]) == ("1", "y")
    ]
    expected = [f"{100 * float(row['share']):.0f}" for row in rows]
    printed = next(
        line
        for line in shmoareg("inspect", registered).stdout.splitlines()
        if "decoder 1 y" in line
    )
    assert printed.split()[3:] == expected


def test_the_loads_of_several_folders_are_added_up_also_where_passes_were_not_told(
    registered, files, shmoareg
):
    old = shutil.copytree(registered, files.folder / "old")
    report = json.loads((old / "report.json").read_text(encoding="utf-8"))
    del report["settings"]["passes"]  # as in folders of an earlier release
    (old / "report.json").write_text(json.dumps(report), encoding="utf-8")
    out = files.folder / "together"
    result = shmoareg("inspect", old, old, "--out", out)
    assert result.exit_code == 0, result.stderr
    once, twice = loads(registered / "experts" / "loads.csv"), loads(out / "loads.csv")
    assert [2 * int(row["count"]) for row in once] == [int(row["count"]) for row in twice]
    assert (out / "expert_loads.png").stat().st_size > 1000
    assert result.stderr.count("given more than once") == 1


@pytest.mark.slow
def test_the_caption_of_a_pair_tells_the_passes_that_ran(
    files, tiny_network, monkeypatch, shmoareg
):
    tiny_network.config = replace(tiny_network.config, passes=(0.375, 1.0))
    monkeypatch.setattr(CommandRequest, "network", lambda self: ("tiny", tiny_network))
    caption, told = experts.load_caption, []
    monkeypatch.setattr(experts, "load_caption", lambda *a: told.append(caption(*a)) or told[-1])
    for size in (40, 44):  # 15 voxels are too few for a pass, 16 are not
        words = ("inspect", files.moving, files.fixed, "--out", files.folder / f"of {size}")
        assert shmoareg(*words, *f"--affine none --size {size} --quiet".split()).exit_code == 0
    assert ["2 passes" in text for text in told] == [False, True]


@pytest.mark.slow
def test_a_pair_is_registered_and_shown(files, weights, shmoareg):
    out = files.folder / "seen"
    result = shmoareg(
        "inspect", files.moving, files.fixed, "--affine", "none", "--weights", weights, "--out", out
    )
    assert result.exit_code == 0, result.stderr
    assert {p.name for p in out.iterdir()} == {"loads.csv", "expert_loads.png", "expert_maps.png"}
    sums: dict[tuple, float] = {}
    for row in loads(out / "loads.csv"):
        place = tuple(row[key] for key in ("part", "layer", "block", "image", "direction"))
        sums[place] = sums.get(place, 0) + float(row["share"])
    assert sums and all(total == pytest.approx(1) for total in sums.values())


@pytest.mark.slow
def test_a_picture_carries_weights_pair_and_settings(files, registered, weights, shmoareg):
    out = files.folder / "seen"
    options = ("--affine", "none", "--contrast", "match", "--weights", weights, "--quiet")
    assert shmoareg("inspect", files.moving, files.fixed, *options, "--out", out).exit_code == 0
    for name in ("expert_loads.png", "expert_maps.png"):
        with Image.open(out / name) as picture:
            about = picture.text
        assert about["Weights"] == str(weights) and about["Pair"] == "moving moving, fixed fixed"
        assert json.loads(about["Settings"])["contrast"] == "match"
        assert about["Software"].startswith("shmoareg ") and about["Title"] == name[:-4].replace(
            "_", " "
        )
    again = files.folder / "again"
    assert shmoareg("inspect", registered, "--out", again, "--quiet").exit_code == 0
    with Image.open(again / "expert_loads.png") as picture:
        about = picture.text
    assert about["Weights"] == str(weights) and about["Pair"] == "moving moving, fixed fixed"
    assert json.loads(about["Settings"])["affine"] == "auto"


def test_what_is_asked_wrongly_is_said(files, shmoareg, plain):
    nothing = shmoareg("inspect")
    assert nothing.exit_code == 2
    assert "two images (MOVING FIXED), or --pairs LIST.csv" in nothing.stderr
    said = plain(shmoareg("inspect", files.moving, files.fixed, "--at", "1,2,3"))
    assert said.search("no effect without --pairs")
    said = plain(shmoareg("inspect", files.moving, "--pairs", "pairs.csv"))
    assert said.search("do not give a folder or an image")


def test_what_is_no_registration_folder_is_refused(files, registered, shmoareg, plain):
    assert plain(shmoareg("inspect", files.folder)).search("not a registration folder")
    assert plain(shmoareg("inspect", registered, files.moving)).search("not a registration folder")
    assert plain(shmoareg("inspect", files.folder / "nothing")).search("no folder")


def test_one_file_is_told_what_is_expected(files, shmoareg, plain):
    said = plain(shmoareg("inspect", files.fixed))
    assert said.search("is a single file; a folder that `register` wrote, or two images")


@pytest.mark.slow
def test_one_volume_of_a_4d_image_is_shown(files, pair, weights, shmoareg, plain):
    four = files.folder / "four.nii.gz"
    stack = np.stack([pair.moving.values] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, pair.moving.grid.affine), four)
    arguments = ("inspect", four, files.fixed, "--affine", "none", "--weights", weights)
    arguments += ("--out", files.folder / "seen")
    assert plain(shmoareg(*arguments)).search("--channel 0")
    result = shmoareg(*arguments, "--channel", "0")
    assert result.exit_code == 0, result.stderr
    assert loads(files.folder / "seen" / "loads.csv")


@pytest.mark.slow
def test_a_folder_without_figures_is_said_to_have_none(registered, files, shmoareg):
    said = " ".join(shmoareg("inspect", registered).stdout.split())
    assert "registered without figures; give --out FOLDER" in said and "and figures:" not in said
    said = " ".join(shmoareg("inspect", registered, "--out", files.folder / "drawn").stdout.split())
    assert "and figures:" in said and "without figures" not in said
    assert (files.folder / "drawn" / "expert_loads.png").exists()
