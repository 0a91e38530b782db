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


@pytest.fixture
def apply(shmoareg, registered, files):
    """Carry the moving image, or another one, to the fixed image's grid: the result and the
    file.
    """

    def run(options="", *, transform=registered, image=None, reference=None, out="carried.nii.gz"):
        path = files.folder / out
        words = (transform, image or files.moving, "--reference", reference or files.fixed)
        return shmoareg("apply", *words, "--out", path, *options.split()), path

    return run


def test_the_network_of_these_tests_truly_moves_things(registered):
    field = read_transform(registered / "transform.h5").field
    assert np.linalg.norm(field.vectors, axis=-1).max() > 1  # mm, beside the affine


@pytest.mark.parametrize("transform", ["", "transform.h5", "displacement.nii.gz"])
def test_the_moving_image_is_carried_to_the_warped_one(
    transform, registered, files, affine_alone, apply
):
    result, out = apply(transform=registered / transform)
    assert result.exit_code == 0, result.stderr
    carried, warped = read_image(out), read_image(registered / "warped.nii.gz")
    assert carried.grid.same_space(warped.grid)
    assert alike(carried, warped) > 0.999
    assert alike(warp_volume(read_image(files.moving), warped.grid, affine_alone), warped) < 0.98


def test_labels_keep_their_numbers(registered, files, pair, affine_alone, apply):
    result, out = apply("--labels", image=files.moving_labels)
    assert result.exit_code == 0, result.stderr
    carried = np.asarray(nibabel.load(out).dataobj)
    assert set(np.unique(carried)) <= {0, *pair.moving_labels.labels}
    warped = read_image(registered / "warped_labels.nii.gz", labels=True)
    assert (carried == warped.values).mean() > 0.999
    still = warp_volume(pair.moving_labels, warped.grid, affine_alone).values
    assert (still == warped.values).mean() < 0.98


def test_there_and_back_is_where_it_was(files, affine_alone, apply):
    inverse = {"image": files.fixed_labels, "reference": files.moving, "out": "there.nii.gz"}
    result, there = apply("--inverse --labels", **inverse)
    assert result.exit_code == 0, result.stderr
    result, back = apply("--labels", image=there)
    assert result.exit_code == 0, result.stderr
    first, last, carried = (
        read_image(path, labels=True) for path in (files.fixed_labels, back, there)
    )
    inside = first.values > 0
    assert (last.values == first.values)[inside].mean() > 0.9
    without = warp_volume(carried, first.grid, affine_alone).values
    assert (without == first.values)[inside].mean() < 0.8, "the field does not matter"


def test_an_existing_file_is_replaced_only_when_asked_and_an_input_never(files, apply, plain):
    out = files.folder / "carried.nii.gz"
    out.write_text("mine", encoding="utf-8")
    assert plain(apply()[0]).search("exists.*--overwrite")
    assert out.read_text(encoding="utf-8") == "mine"
    assert apply("--overwrite")[0].exit_code == 0
    assert read_image(out).grid.shape == read_image(files.fixed).grid.shape
    before = files.fixed.read_bytes()
    assert plain(apply("--overwrite", out="fixed.nii.gz")[0]).search("one of the inputs")
    assert files.fixed.read_bytes() == before


@pytest.mark.parametrize(
    ("transform", "out", "says"),
    [
        ("nowhere.h5", "carried.nii.gz", "nowhere.h5"),
        ("moving.nii.gz", "carried.nii.gz", "not a displacement field"),
        ("nowhere.h5", "carried.txt", r"has to end in \.nii or \.nii\.gz"),  # before it is read
    ],
)
def test_what_is_no_transform_and_no_name_of_an_image_is_refused(
    transform, out, says, files, apply, plain
):
    result, path = apply(transform=files.folder / transform, out=out)
    assert plain(result).search(says)
    assert not path.exists()


def test_voxels_that_are_nan_are_refused_or_read_as_what_was_asked_for(files, pair, apply, plain):
    values = pair.moving.values.copy()
    values[5, 6, 7:10] = np.nan
    bad = files.write(pair.moving.with_values(values), "bad.nii.gz")
    result, out = apply(image=bad)
    assert plain(result).search(r"'bad' has 3 voxels that are NaN or infinite .*--nan 0")
    assert not out.exists()
    assert apply("--nan 0", image=bad)[0].exit_code == 0
    assert np.isfinite(read_image(out).values).all()


def test_a_constant_image_is_carried(files, pair, apply):
    ones = pair.moving.with_values(np.ones(pair.moving.values.shape, np.uint8))
    assert apply(image=files.write(ones, "mask.nii.gz"))[0].exit_code == 0


@pytest.mark.parametrize("which", ["image", "reference"])
@pytest.mark.parametrize("inverse", ["", "--inverse"])
def test_an_image_and_a_reference_that_do_not_meet_are_refused(
    which, inverse, files, pair, apply, plain
):
    affine = pair.moving.grid.affine.copy()
    affine[:3, 3] += (0, 900, 0)
    moved = Volume(pair.moving.values, Grid(pair.moving.grid.shape, affine))
    others = {"image": files.fixed, "reference": files.fixed}
    result, out = apply(inverse, **others | {which: files.write(moved, "away.nii.gz")})
    said = plain(result)
    assert said.search(r"do not overlap: .* (8[5-9]|9[0-4])\d mm from the centre of the image")
    assert said.search(r"--reference in that of the (moving|fixed) one; with(out)? --inverse")
    assert not out.exists()


def test_labels_by_the_header_keep_their_numbers_and_this_is_said(files, pair, apply):
    result, out = apply(image=files.moving_labels)
    assert result.exit_code == 0, result.stderr
    assert "header of" in result.stderr and "nearest neighbour" in result.stderr
    assert set(np.unique(np.asarray(nibabel.load(out).dataobj))) <= {0, *pair.moving_labels.labels}


def test_labels_by_their_name_alone_are_interpolated_with_a_word(files, pair, apply):
    unmarked = Volume(pair.moving_labels.values, pair.moving_labels.grid)
    named = files.write(unmarked, "sub-01_seg.nii.gz")
    result, _ = apply(image=named)
    assert result.exit_code == 0, result.stderr
    assert "named like a label map" in result.stderr and "--labels" in result.stderr
    result, _ = apply("--labels --overwrite", image=named)
    assert result.exit_code == 0 and "named like" not in result.stderr
