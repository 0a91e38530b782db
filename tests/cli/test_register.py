"""``shmoareg register``, from files to a folder."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.geometry import Volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io.landmarks import write_landmark_pairs

QUICK = "--no-figures --affine none "


def test_two_files_become_a_folder_and_a_table(files, register, read_json):
    labels = ("--moving-labels", files.moving_labels, "--fixed-labels", files.fixed_labels)
    result, out = register("", *labels, out="new/result")
    assert result.exit_code == 0, result.stderr
    images = {"warped.nii.gz", "warped_labels.nii.gz", "displacement.nii.gz"}
    assert {p.name for p in out.iterdir()} >= images | {"transform.h5", "report.json"}
    assert (out / "figures" / "overview.png").stat().st_size > 10_000
    words = ("before", "after affine", "Dice", "folded voxels", "correlation", "overview.png")
    for word in (*words, str(out)):
        assert word in result.stdout, result.stdout
    assert f"{read_json(out / 'report.json')['dice']['after']['mean']:.3f}" in result.stdout
    # progress goes to stderr, and only results to stdout
    assert "reading ..." in result.stderr and "..." not in result.stdout


def test_names_of_labels_are_read_from_a_file_and_reported(files, shmoareg, plain):
    out, table = files.folder / "out", files.folder / "organs.ctbl"
    labels = ("--moving-labels", files.moving_labels, "--fixed-labels", files.fixed_labels)
    words = ("register", files.moving, files.fixed, *labels, "--network", "none", "--size", 24)
    words += ("--out", out, *QUICK.split(), "--label-names")
    plain(shmoareg(*words, table)).search(r"organs\.ctbl")
    assert not out.exists()
    table.write_text("1 skin 0 0 0 0\n2 liver 0 0 0 0\n", encoding="utf-8")
    result = shmoareg(*words, table)
    assert result.exit_code == 0, result.stderr
    assert "Names of the labels: from organs.ctbl." in result.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["label_names"] == {"1": "skin", "2": "liver"}


@pytest.mark.slow
def test_without_a_network_the_folder_has_no_experts(files, shmoareg, plain, read_json):
    out = files.folder / "out"
    words = ("register", files.moving, files.fixed, "--out", out)
    words += tuple("--network none --size 24 --no-figures".split())
    plain(shmoareg(*words, "--weights", "small")).search("--weights would have no effect")
    result = shmoareg(*words, "--refine", 10, "--keep", "last")
    assert result.exit_code == 0, result.stderr
    report = read_json(out / "report.json")
    found = [report[name] for name in ("weights", "experts_of", "kept")]
    assert found == ["none", "no network", "refined"]
    assert "without a network" in result.stdout
    assert [p.name for p in (out / "experts").iterdir()] == ["loads.csv"]


def test_the_warped_image_stands_on_the_fixed_image(registered, files):
    warped, fixed = nibabel.load(registered / "warped.nii.gz"), nibabel.load(files.fixed)
    assert warped.shape == fixed.shape
    assert np.allclose(warped.affine, fixed.affine, atol=1e-4)


def test_the_stages_have_one_name_everywhere(registered, read_json):
    from napari_shmoareg.metrics.measure import SHOWN_STAGES

    report = read_json(registered / "report.json")
    for name in ("similarity", "dice", "assd_mm", "hd95_mm"):
        assert tuple(report[name]) == SHOWN_STAGES == ("before", "affine", "after"), name


@pytest.mark.slow
def test_one_volume_of_a_4d_image_is_registered(files, pair, register):
    four = files.folder / "four.nii.gz"
    stack = np.stack([np.zeros_like(pair.moving.values), pair.moving.values], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, pair.moving.grid.affine), four)
    warped = []
    for name, moving, more in (("a", files.moving, ""), ("b", four, "--channel 1")):
        result, out = register(QUICK + more, moving=moving, out=name)
        assert result.exit_code == 0, result.stderr
        warped.append(nibabel.load(out / "warped.nii.gz").get_fdata())
    assert np.array_equal(*warped)


def test_without_labels_the_table_has_no_dice_and_the_folder_no_labels(register):
    result, out = register(QUICK)
    assert result.exit_code == 0, result.stderr
    assert "Dice" not in result.stdout
    assert not (out / "warped_labels.nii.gz").exists() and not (out / "figures").exists()


def test_quiet_prints_nothing_but_what_to_know_before_trusting_the_result(
    register, shmoareg, read_json
):
    result, out = register(QUICK + "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    notes = read_json(out / "report.json")["warnings"]
    assert notes and result.stderr == "".join(f"Caution: {note}\n" for note in notes)
    told = " ".join(shmoareg("register", "--help").stdout.split())
    assert "Print errors and warnings only." in told


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("--size native --contrast keep", {"size": "native", "contrast": "keep"}),
        ("--size 16 --refine 3", {"size": 16, "refine": 3, "affine": "none"}),
    ],
)
def test_options_reach_the_report(options, wanted, register, read_json):
    result, out = register(QUICK + options)
    assert result.exit_code == 0, result.stderr
    settings = read_json(out / "report.json")["settings"]
    assert {name: settings[name] for name in wanted} == wanted


def test_what_was_chosen_is_said_with_its_reason(register, read_json):
    result, out = register(QUICK + "--refine 2 --similarity mind")
    assert result.exit_code == 0, result.stderr
    report = read_json(out / "report.json")
    assert (report["settings"]["refine"], report["settings"]["similarity"]) == (2, "mind")
    choices = report["choices"]
    assert list(choices) == ["weights", "affine", "contrast", "similarity", "refinement", "kept"]
    assert choices["similarity"] == "mind, as requested"
    assert "headers were used" in choices["affine"]
    assert all(reason in result.stdout for reason in choices.values())


def test_a_refined_pair_is_more_alike_and_the_same_command_gives_the_same_numbers(
    register, read_json
):
    reports = []
    for name, steps in (("plain", 0), ("again", 0), ("refined", 40)):
        result, out = register(QUICK + f"--keep last --refine {steps}", out=name)
        assert result.exit_code == 0, result.stderr
        reports.append(read_json(out / "report.json"))
    plain, again, refined = reports
    assert plain["similarity"] == again["similarity"]
    assert plain["expert_loads"] == again["expert_loads"]
    assert refined["similarity"]["after"]["ncc"] > plain["similarity"]["after"]["ncc"] + 0.005
    assert refined["seconds"]["refine"] > 0 and "refine" not in plain["seconds"]


def test_a_similarity_for_nothing_is_refused(register, plain):
    result, out = register("--similarity mind")
    assert plain(result).search("Give --refine 60")
    assert not out.exists()


def test_a_diffeomorphic_registration_folds_hardly_where_the_plain_one_does(
    folding_weights, register, read_json
):
    reports = []
    for option in ("--no-diffeomorphic", "--diffeomorphic"):
        result, out = register(QUICK + f"--keep last {option}", by=folding_weights, out=option)
        assert result.exit_code == 0, result.stderr
        reports.append(read_json(out / "report.json"))
    plain, smooth = reports
    assert [report["settings"]["diffeomorphic"] for report in reports] == [False, True]
    assert plain["folding_percent"] > 5
    assert smooth["folding_percent"] < plain["folding_percent"] / 50
    assert any("folds" in warning for warning in plain["warnings"])
    assert not any("folds" in warning for warning in smooth["warnings"])


def test_an_initial_transform_and_landmarks_are_two_starts(files, pair, shmoareg, plain):
    affine = sitk.AffineTransform(3)
    affine.SetTranslation((-2.0, 3.0, 1.0))  # LPS: 2, -3, 1 mm RAS
    sitk.WriteTransform(affine, str(files.folder / "start.txt"))
    points = pair.fixed.grid.centre + 10 * np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1]])
    write_landmark_pairs(
        files.folder / "pairs.csv", fixed=points, moving=points + np.array([2.0, -3.0, 1.0])
    )
    words = (
        "register",
        files.moving,
        files.fixed,
        "--network",
        "none",
        "--size",
        24,
        *QUICK.split(),
    )
    found = {}
    for start in (
        ("--initial", files.folder / "start.txt"),
        ("--landmarks", files.folder / "pairs.csv"),
    ):
        out = files.folder / start[0].strip("-")
        result = shmoareg(*words, *start, "--out", out)
        assert result.exit_code == 0, result.stderr
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert report["kept"] == "affine"
        matrix = np.array(report["affine"]["matrix"])
        np.testing.assert_allclose(matrix[:3, 3], (2, -3, 1), atol=1e-4)
        np.testing.assert_allclose(matrix, report["affine"]["initial"])
        found[start[0]] = report["choices"]["initial"]
        assert f"initial: {found[start[0]]}" in result.stdout
    assert found["--initial"] == "the transform start.txt"
    assert found["--landmarks"] == "rigid fit of 4 landmark pairs, to 0.00 mm on average"
    both = shmoareg(*words, *start, "--initial", files.folder / "start.txt", "--out", out / "x")
    plain(both).search("--initial and --landmarks are two starts")
    few = shmoareg(*words, *start, "--landmark-fit", "thin-plate", "--out", out / "x")
    plain(few).search("thin-plate start needs at least 5 landmark pairs; got 4")
    assert not (out / "x").exists()


def test_a_mask_limits_what_is_compared_and_travels_with_the_folder(files, pair, shmoareg, plain):
    from napari_shmoareg.io.registration_folder import read_registration

    words = (
        "register",
        files.moving,
        files.fixed,
        "--network",
        "none",
        "--size",
        24,
        *QUICK.split(),
    )
    values = np.zeros(pair.fixed.grid.shape, np.uint8)
    values[:18] = 1
    mask = Volume(values, pair.fixed.grid, "mask", is_labels=True)
    coarse = resample(mask, pair.fixed.grid.coarsen(2))
    out = files.folder / "out"
    written = files.write(coarse, "coarse.nii.gz")
    result = shmoareg(*words, "--refine", 5, "--fixed-mask", written, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "coarse.nii.gz' is on another grid than the fixed image" in result.stderr
    assert "correlation of intensities in the mask" in result.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["similarity_within"] == "mask"
    assert report["pair"]["fixed_mask"]["shape"] == list(pair.fixed.grid.shape)
    found = read_registration(out)
    assert found.pair.fixed_mask.is_labels and found.pair.fixed_mask.name == "coarse"
    assert (found.pair.fixed_mask.values != 0).mean() == pytest.approx(values.mean(), abs=0.03)
    empty = files.write(mask.with_values(values * 0), "empty.nii.gz")
    plain(shmoareg(*words, "--fixed-mask", empty, "--out", out / "x")).search(
        "The mask 'empty' is empty"
    )
