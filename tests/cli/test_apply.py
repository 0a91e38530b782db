"""``shmoareg apply``: what was registered once is carried again."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from napari_shmoareg.io.images import read_image


@pytest.mark.parametrize("transform", ["", "transform.h5", "displacement.nii.gz"])
def test_the_moving_image_is_carried_to_the_warped_one(transform, registered, files, shmoareg):
    out = files.folder / "carried.nii.gz"
    result = shmoareg("apply", registered / transform, files.moving, "--reference", files.fixed, "--out", out)
    assert result.exit_code == 0, result.stderr
    carried, warped = read_image(out), read_image(registered / "warped.nii.gz")
    assert carried.grid.same_space(warped.grid)
    assert np.corrcoef(carried.values.ravel(), warped.values.ravel())[0, 1] > 0.999


def test_labels_keep_their_numbers(registered, files, pair, shmoareg):
    out = files.folder / "carried.nii.gz"
    arguments = ("apply", registered, files.moving_labels, "--labels", "--reference", files.fixed, "--out", out)
    assert shmoareg(*arguments).exit_code == 0
    carried = np.asarray(nibabel.load(out).dataobj)
    assert set(np.unique(carried)) <= {0, *pair.moving_labels.labels}
    assert (carried == read_image(registered / "warped_labels.nii.gz", labels=True).values).mean() > 0.999


def test_there_and_back_is_where_it_was(registered, files, shmoareg):
    there, back = files.folder / "there.nii.gz", files.folder / "back.nii.gz"
    arguments = ("--reference", files.moving, "--inverse", "--labels", "--out")
    assert shmoareg("apply", registered, files.fixed_labels, *arguments, there).exit_code == 0
    assert shmoareg("apply", registered, there, "--reference", files.fixed, "--labels", "--out", back).exit_code == 0
    first, last = (read_image(path, labels=True).values for path in (files.fixed_labels, back))
    inside = first == 1
    assert (last[inside] == 1).mean() > 0.9


def test_an_existing_file_is_replaced_only_when_asked(registered, files, shmoareg, plain):
    out = files.folder / "carried.nii.gz"
    out.write_text("mine")
    arguments = ("apply", registered, files.moving, "--reference", files.fixed, "--out", out)
    assert plain(shmoareg(*arguments)).search("exists.*--overwrite")
    assert out.read_text() == "mine"
    assert shmoareg(*arguments, "--overwrite").exit_code == 0
    assert read_image(out).grid.shape == read_image(files.fixed).grid.shape


def test_an_input_is_never_overwritten(registered, files, shmoareg, plain):
    before = files.fixed.read_bytes()
    arguments = ("apply", registered, files.moving, "--reference", files.fixed, "--out", files.fixed, "--overwrite")
    assert plain(shmoareg(*arguments)).search("one of the inputs")
    assert files.fixed.read_bytes() == before


@pytest.mark.parametrize(
    ("transform", "says"), [("nowhere.h5", "nowhere.h5"), ("moving.nii.gz", "not a displacement field")]
)
def test_what_is_no_transform_is_refused(transform, says, files, shmoareg, plain):
    arguments = ("apply", files.folder / transform, files.moving, "--reference", files.fixed)
    out = files.folder / "carried.nii.gz"
    assert plain(shmoareg(*arguments, "--out", out)).search(says)
    assert not out.exists()


def test_a_result_of_another_type_is_refused(registered, files, shmoareg, plain):
    arguments = ("apply", registered, files.moving, "--reference", files.fixed, "--out", files.folder / "a.png")
    assert plain(shmoareg(*arguments)).search(r"\.nii")
