"""Lists and folders of pairs, the choice among them, and landmarks."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_shmoareg.datasets import PairFiles, choose_pairs, read_folder, read_pair_list
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import write_image
from napari_shmoareg.io.landmarks import read_landmarks


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


def test_a_list_in_json_gives_the_same_pairs(listed):
    with listed.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    path = listed.with_suffix(".json")
    path.write_text(json.dumps({"pairs": rows}), encoding="utf-8")
    assert read_pair_list(path).files == read_pair_list(listed).files
    rows[1]["fixed"] = None
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(InputError, match="pair 2: 'fixed' is empty"):
        read_pair_list(path)


def test_other_columns_and_a_pair_of_one_file_are_no_matter_of_a_plain_list(listed):
    listed.write_text("moving,fixed,part\nmoving.nii.gz,moving.nii.gz,left\n", encoding="utf-8")
    assert len(read_pair_list(listed)) == 1


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(InputError, match="no list of pairs"):
        read_pair_list(tmp_path / "gone.csv")


def test_a_channel_is_read_of_every_pair_of_the_list_and_of_its_parts(listed, pair):
    stack = np.stack([np.zeros_like(pair.moving.values), pair.moving.values], axis=-1)
    nibabel.save(
        nibabel.Nifti1Image(stack, pair.moving.grid.affine), listed.parent / "moving.nii.gz"
    )
    pairs = read_pair_list(listed, channel=1)
    assert np.array_equal(pairs[0].moving.values, pair.moving.values)
    assert np.array_equal(pairs[1:][0].fixed.values, pair.moving.values)


def subjects(count: int) -> list[PairFiles]:
    return [
        PairFiles(Path(f"{a}"), Path(f"{b}")) for a, b in itertools.permutations(range(count), 2)
    ]


@pytest.mark.parametrize("count", [3, 6, 7])
def test_a_choice_of_pairs_is_even_the_same_each_time_and_grows(count):
    files = subjects(count)
    for number in range(1, len(files) + 1):
        chosen = choose_pairs(files, number)
        assert len(set(chosen)) == number and chosen == choose_pairs(files, number)
        uses = Counter(path for pair in chosen for path in (pair.moving, pair.fixed))
        assert max(uses.values()) - min(uses[p.moving] for p in files) <= 2
        if number < len(files) - 1:
            assert choose_pairs(files, number + 1)[:number] == chosen
    assert choose_pairs(files, 4, seed=2) != choose_pairs(files, 4, seed=1)
    assert choose_pairs(files, 10**6) == tuple(files)


def test_each_subject_is_used_once_where_there_are_pairs_for_half_of_them():
    chosen = choose_pairs(subjects(8), 4)
    assert len({path for pair in chosen for path in (pair.moving, pair.fixed)}) == 8


def test_a_folder_gives_all_ordered_pairs_with_their_own_labels(tmp_path):
    for name in ("b", "a", "c"):
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.nii.gz").touch()
    (tmp_path / "imagesTr" / "._a.nii.gz").touch()
    found = read_folder(tmp_path, "imagesTr/*.nii.gz", "labelsTr/*.nii.gz")
    assert (
        len(found) == 6 and found[0].moving.name == "a.nii.gz" and found[0].fixed.name == "b.nii.gz"
    )
    for pair in found:
        assert pair.moving != pair.fixed
        assert pair.moving_labels == tmp_path / "labelsTr" / pair.moving.name
        assert pair.fixed_labels == tmp_path / "labelsTr" / pair.fixed.name
    (tmp_path / "labelsTr" / "c.nii.gz").unlink()
    with pytest.raises(InputError, match=r"3 images .* 2 label maps"):
        read_folder(tmp_path, "imagesTr/*.nii.gz", "labelsTr/*.nii.gz")
    with pytest.raises(InputError, match="0 files"):
        read_folder(tmp_path, "*.mha")
    with pytest.raises(InputError, match="not a file pattern"):
        read_folder(tmp_path, "/*.mha")


def test_landmarks_are_read_from_lps_and_belong_to_their_pair(listed):
    (listed.parent / "points.csv").write_text(
        "# fixed, moving (mm, LPS)\n1,2,3,1,2,7\n-4,5,6,-4,5,6\n", encoding="utf-8"
    )
    listed.write_text(
        "moving,fixed,landmarks\nmoving.nii.gz,fixed.nii.gz,points.csv\nfixed.nii.gz,moving.nii.gz,\n",
        encoding="utf-8",
    )
    pairs = read_pair_list(listed)
    assert pairs.files[1].landmarks is None
    fixed, moving = read_landmarks(pairs.files[0].landmarks)
    assert fixed.tolist() == [[-1, -2, 3], [4, -5, 6]] and moving.tolist() == [
        [-1, -2, 7],
        [4, -5, 6],
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "contains no points"),
        ("x,y,z,x,y,z\n1,2,3\n", "line 2: six"),
        ("1,2,3,4,5,6\n1,2,3,4,5,nan\n", "line 2: six"),
        ("1,2,3\n1,2,3,4,5,6\n", "line 1: six"),
        ("# mm\nx,y,z,x,y,z\nin mm\n1,2,3,4,5,6\n", "line 3: six"),
    ],
)
def test_what_is_no_list_of_landmarks_is_refused(text, says, tmp_path):
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_landmarks(tmp_path / "points.csv")


def test_a_header_of_landmarks_may_follow_a_comment(tmp_path):
    (tmp_path / "points.csv").write_text(
        "# by a person\n\nx,y,z,x,y,z\n1,2,3,4,5,6\n", encoding="utf-8"
    )
    assert read_landmarks(tmp_path / "points.csv").fixed.tolist() == [[-1, -2, 3]]


def test_real_landmarks_are_as_far_apart_as_is_known(shared_data):
    fixed, moving = read_landmarks(shared_data / "lung_ct" / "landmarks_inside_mm.csv")
    assert fixed.shape == (51, 3)
    assert np.linalg.norm(fixed - moving, axis=1).mean() == pytest.approx(35.3, abs=0.05)
