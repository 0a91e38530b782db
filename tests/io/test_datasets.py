"""Lists of pairs are read lazily and complain with the number of the line."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets import read_pair_list
from napari_shmoareg.io.images import write_image


@pytest.fixture
def listed(pair, tmp_path):
    for name in ("moving", "fixed", "moving_labels", "fixed_labels"):
        write_image(getattr(pair, name), tmp_path / f"{name}.nii.gz")
    path = tmp_path / "pairs.csv"
    path.write_text(
        "\ufeffage, moving, fixed, moving_labels, fixed_labels\n"
        "61, moving.nii.gz, fixed.nii.gz, moving_labels.nii.gz, fixed_labels.nii.gz\n"
        f"62, fixed.nii.gz, {tmp_path / 'moving.nii.gz'}, ,\n",
        encoding="utf-8",
    )
    return path


def test_pairs_come_in_the_order_of_the_lines(listed, pair):
    pairs = read_pair_list(listed)
    assert len(pairs) == 2
    assert np.array_equal(pairs[0].moving.values, pair.moving.values)
    assert np.array_equal(pairs[0].fixed_labels.values, pair.fixed_labels.values)
    assert np.array_equal(pairs[1].fixed.values, pair.moving.values)
    assert pairs[1].moving_labels is None


def test_a_part_of_a_list_is_a_list(listed):
    last = read_pair_list(listed)[1:]
    assert len(last) == 1 and last[0].moving_labels is None
    with pytest.raises(IndexError):
        _ = last[1]


def test_a_file_that_vanished_is_named_with_its_line(listed):
    (listed.parent / "fixed_labels.nii.gz").unlink()
    with pytest.raises(InputError, match=r"line 2: there is no file .*fixed_labels\.nii\.gz"):
        read_pair_list(listed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no column fixed and moving"),
        (b"moving\nx\n", "no column fixed"),
        (b"moving,fixed\n", "lists no pair"),
        (b"\xff\xfe\x00binary", "not a CSV file"),
    ],
)
def test_what_is_no_list_is_refused(content, says, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_pair_list(path)


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(InputError, match="no list of pairs"):
        read_pair_list(tmp_path / "gone.csv")


def test_a_channel_is_read_of_every_pair_of_the_list_and_of_its_parts(listed, pair):
    stack = np.stack([np.zeros_like(pair.moving.values), pair.moving.values], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, pair.moving.grid.affine), listed.parent / "moving.nii.gz")
    pairs = read_pair_list(listed, channel=1)
    assert np.array_equal(pairs[0].moving.values, pair.moving.values)
    assert np.array_equal(pairs[1:][0].fixed.values, pair.moving.values)
