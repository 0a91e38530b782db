"""``shmoareg apply``: what was registered once is carried again."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from napari_shmoareg.geometry import Grid, Transform, Volume, warp_volume
from napari_shmoareg.io import read_image, read_transform


def alike(a, b) -> float:
    return float(np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1])


@pytest.fixture
def affine_alone(registered) -> Transform:
    """The transform of the registration without the network's field."""
    return Transform(read_transform(registered / "transform.h5").affine)


def test_the_network_of_these_tests_truly_moves_things(registered):
    field = read_transform(registered / "transform.h5").field
    assert np.linalg.norm(field.vectors, axis=-1).max() > 1  # mm, beside the affine


@pytest.mark.parametrize("transform", ["", "transform.h5", "displacement.nii.gz"])
def test_the_moving_image_is_carried_to_the_warped_one(
    transform, registered, files, affine_alone, shmoareg
):
    out = files.folder / "carried.nii.gz"
    result = shmoareg(
        "apply", registered / transform, files.moving, "--reference", files.fixed, "--out", out
    )
    assert result.exit_code == 0, result.stderr
    carried, warped = read_image(out), read_image(registered / "warped.nii.gz")
    assert carried.grid.same_space(warped.grid)
    assert alike(carried, warped) > 0.999
    assert alike(warp_volume(read_image(files.moving), warped.grid, affine_alone), warped) < 0.98


def test_labels_keep_their_numbers(registered, files, pair, affine_alone, shmoareg):
    out = files.folder / "carried.nii.gz"
    arguments = (
        "apply",
        registered,
        files.moving_labels,
        "--labels",
        "--reference",
        files.fixed,
        "--out",
        out,
    )
    assert shmoareg(*arguments).exit_code == 0
    carried = np.asarray(nibabel.load(out).dataobj)
    assert set(np.unique(carried)) <= {0, *pair.moving_labels.labels}
    warped = read_image(registered / "warped_labels.nii.gz", labels=True)
    assert (carried == warped.values).mean() > 0.999
    assert (
        warp_volume(pair.moving_labels, warped.grid, affine_alone).values == warped.values
    ).mean() < 0.98


def test_there_and_back_is_where_it_was(registered, files, affine_alone, shmoareg):
    there, back = files.folder / "there.nii.gz", files.folder / "back.nii.gz"
    arguments = ("--reference", files.moving, "--inverse", "--labels", "--out")
    assert shmoareg("apply", registered, files.fixed_labels, *arguments, there).exit_code == 0
    assert (
        shmoareg(
            "apply", registered, there, "--reference", files.fixed, "--labels", "--out", back
        ).exit_code
        == 0
    )
    first, last, carried = (
        read_image(path, labels=True) for path in (files.fixed_labels, back, there)
    )
    inside = first.values > 0
    assert (last.values == first.values)[inside].mean() > 0.9
    without = warp_volume(carried, first.grid, affine_alone).values
    assert (without == first.values)[inside].mean() < 0.8, "the field does not matter"


def test_an_existing_file_is_replaced_only_when_asked(registered, files, shmoareg, plain):
    out = files.folder / "carried.nii.gz"
    out.write_text("mine", encoding="utf-8")
    arguments = ("apply", registered, files.moving, "--reference", files.fixed, "--out", out)
    assert plain(shmoareg(*arguments)).search("exists.*--overwrite")
    assert out.read_text(encoding="utf-8") == "mine"
    assert shmoareg(*arguments, "--overwrite").exit_code == 0
    assert read_image(out).grid.shape == read_image(files.fixed).grid.shape


def test_an_input_is_never_overwritten(registered, files, shmoareg, plain):
    before = files.fixed.read_bytes()
    arguments = (
        "apply",
        registered,
        files.moving,
        "--reference",
        files.fixed,
        "--out",
        files.fixed,
        "--overwrite",
    )
    assert plain(shmoareg(*arguments)).search("one of the inputs")
    assert files.fixed.read_bytes() == before


@pytest.mark.parametrize(
    ("transform", "says"),
    [("nowhere.h5", "nowhere.h5"), ("moving.nii.gz", "not a displacement field")],
)
def test_what_is_no_transform_is_refused(transform, says, files, shmoareg, plain):
    arguments = ("apply", files.folder / transform, files.moving, "--reference", files.fixed)
    out = files.folder / "carried.nii.gz"
    assert plain(shmoareg(*arguments, "--out", out)).search(says)
    assert not out.exists()


def test_a_result_of_another_type_is_refused(registered, files, shmoareg, plain):
    arguments = (
        "apply",
        registered,
        files.moving,
        "--reference",
        files.fixed,
        "--out",
        files.folder / "a.png",
    )
    assert plain(shmoareg(*arguments)).search(r"\.nii")


def test_a_wrong_ending_is_refused_before_anything_is_read(files, shmoareg, plain):
    arguments = (
        "apply",
        files.folder / "gone.h5",
        files.folder / "gone.nii",
        "--reference",
        files.folder / "gone.nii",
    )
    assert plain(shmoareg(*arguments, "--out", files.folder / "carried.txt")).search(
        r"has to end in \.nii or \.nii\.gz"
    )


def test_voxels_that_are_nan_are_refused_or_read_as_what_was_asked_for(
    registered, files, pair, shmoareg, plain
):
    values = pair.moving.values.copy()
    values[5, 6, 7:10] = np.nan
    bad = files.write(pair.moving.with_values(values), "bad.nii.gz")
    out = files.folder / "carried.nii.gz"
    arguments = ("apply", registered, bad, "--reference", files.fixed, "--out", out)
    assert plain(shmoareg(*arguments)).search(
        r"'bad' has 3 voxels that are NaN or infinite .*--nan 0"
    )
    assert not out.exists()
    assert shmoareg(*arguments, "--nan", "0").exit_code == 0
    assert np.isfinite(read_image(out).values).all()


def test_a_constant_image_is_carried(registered, files, pair, shmoareg):
    mask = files.write(
        pair.moving.with_values(np.ones(pair.moving.values.shape, np.uint8)), "mask.nii.gz"
    )
    out = files.folder / "carried.nii.gz"
    assert (
        shmoareg("apply", registered, mask, "--reference", files.fixed, "--out", out).exit_code == 0
    )


@pytest.mark.parametrize("which", ["image", "reference"])
@pytest.mark.parametrize("inverse", [False, True])
def test_an_image_and_a_reference_that_do_not_meet_are_refused(
    which, inverse, registered, files, pair, shmoareg, plain
):
    affine = pair.moving.grid.affine.copy()
    affine[:3, 3] += (0, 900, 0)
    away = files.write(
        Volume(pair.moving.values, Grid(pair.moving.grid.shape, affine)), "away.nii.gz"
    )
    image, reference = (away, files.fixed) if which == "image" else (files.fixed, away)
    out = files.folder / "carried.nii.gz"
    arguments = ("apply", registered, image, "--reference", reference, "--out", out)
    said = plain(shmoareg(*arguments, *(["--inverse"] if inverse else [])))
    assert said.search(r"do not overlap: .* (8[5-9]|9[0-4])\d mm from the centre of the image")
    assert said.search(r"--reference in that of the (moving|fixed) one; with(out)? --inverse")
    assert not out.exists()


def test_labels_by_the_header_keep_their_numbers_and_this_is_said(
    registered, files, pair, shmoareg
):
    out = files.folder / "carried.nii.gz"
    arguments = ("apply", registered, files.moving_labels, "--reference", files.fixed, "--out", out)
    result = shmoareg(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "header of" in result.stderr and "nearest neighbour" in result.stderr
    assert set(np.unique(np.asarray(nibabel.load(out).dataobj))) <= {0, *pair.moving_labels.labels}


def test_labels_by_their_name_alone_are_interpolated_with_a_word(registered, files, pair, shmoareg):
    named = files.write(
        Volume(pair.moving_labels.values, pair.moving_labels.grid), "sub-01_seg.nii.gz"
    )
    out = files.folder / "carried.nii.gz"
    result = shmoareg("apply", registered, named, "--reference", files.fixed, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "named like a label map" in result.stderr and "--labels" in result.stderr
    result = shmoareg(
        "apply",
        registered,
        named,
        "--reference",
        files.fixed,
        "--out",
        out,
        "--labels",
        "--overwrite",
    )
    assert result.exit_code == 0 and "named like" not in result.stderr
