"""Splits are by subject, drawn by a seed, and refuse what cannot be learnt from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from napari_shmoareg.datasets import Dataset, Scan, Split, open_dataset, split_dataset
from napari_shmoareg.errors import InputError

PARTS = ("train", "validation", "test")


def dataset_of(subjects: int, scans_each: int = 1) -> Dataset:
    scans = [
        Scan(f"s{n:03d}_{k}", f"s{n:03d}", Path(f"{n}_{k}.nii"))
        for n in range(subjects)
        for k in range(scans_each)
    ]
    return Dataset("folder", Path("data"), tuple(scans))


@pytest.mark.parametrize(
    ("subjects", "split"), [(414, "350/10/11"), (50, "35/5/10"), (80, "60/10/10"), (9, "9/0/0")]
)
def test_counts_are_subjects_and_nobody_stands_on_two_sides(subjects, split):
    dataset = dataset_of(subjects, scans_each=2)
    drawn = split_dataset(dataset, split, seed=5)
    parts = [getattr(drawn, part) for part in PARTS]
    people = [{name.split("_")[0] for name in part} for part in parts]
    assert [len(p) for p in people] == [int(word) for word in split.split("/")]
    assert [len(p) for p in parts] == [2 * len(p) for p in people]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_files():
    dataset = dataset_of(30)
    turned = replace(dataset, scans=dataset.scans[::-1])
    assert split_dataset(dataset, "20/5/5", 3) == split_dataset(turned, "20/5/5", 3)
    assert split_dataset(dataset, "20/5/5", 3).test != split_dataset(dataset, "20/5/5", 4).test


@pytest.mark.parametrize(
    ("subjects", "split", "numbers"),
    [
        (80, "70%/15%/15%", [56, 12, 12]),
        (80, "auto", [56, 12, 12]),
        (371, "70% / 15% / 15%", [259, 56, 56]),
        (20, "50%/10%/0%", [10, 2, 0]),
        (8, "auto", [4, 2, 2]),
        (6, "auto", [4, 2, 0]),
        (3, "auto", [3, 0, 0]),
        (10, "20%/40%/40%", [2, 4, 4]),
    ],
)
def test_shares_leave_two_subjects_or_none(subjects, split, numbers):
    drawn = split_dataset(dataset_of(subjects), split)
    assert [len(getattr(drawn, part)) for part in PARTS] == numbers


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("60/10/10", "needs 80 subjects; data has 12 .24 scans"),
        ("0/6/6", "Train needs at least one subject"),
        ("8/4", "three counts"),
        ("8/four/0", "three counts"),
        ("-8/4/0", "three counts"),
        ("70%/15/15", "three counts"),
        ("80%/15%/15%", "at most 100 %"),
        ("0%/50%/50%", "train above 0"),
        ("", "three counts"),
    ],
)
def test_a_split_that_is_none_is_refused(split, says):
    with pytest.raises(InputError, match=says):
        split_dataset(dataset_of(12, scans_each=2), split)


def test_a_part_of_which_no_pair_can_be_made_is_refused():
    with pytest.raises(
        InputError, match=r"no pair can be made of the 1 scans of validation\. .* 12 subjects"
    ):
        split_dataset(dataset_of(12), "10/1/1")
    with pytest.raises(InputError, match="of the 1 scans of train"):
        split_dataset(dataset_of(12), "1/5/5")
    assert len(split_dataset(dataset_of(12, scans_each=2), "10/1/1").validation) == 2


def test_where_a_split_tears_listed_pairs_the_refusal_says_how_many():
    dataset = dataset_of(4)
    joined = replace(
        dataset, pairs=tuple((m, f) for m, f in zip(dataset.names, dataset.names[1:], strict=False))
    )
    with pytest.raises(
        InputError,
        match=r"no pair can be made.*[23] of its 3 listed pairs are separated.*as one subject",
    ):
        split_dataset(joined, "1/2/1")


def test_a_data_sets_own_parts_are_used_unless_a_split_is_asked_for():
    own = {"train": ("s002_0", "s000_0", "gone"), "validation": ("s003_0", "s001_0")}
    dataset = replace(dataset_of(6), parts=own)
    assert split_dataset(dataset, "auto", 9) == Split(
        ("s000_0", "s002_0"), ("s001_0", "s003_0"), (), 9
    )
    assert len(split_dataset(dataset, "2/2/2").test) == 2


def test_one_person_on_two_sides_of_a_data_sets_own_parts_is_refused():
    dataset = replace(
        dataset_of(4, 2), parts={"train": ("s000_0", "s001_0"), "test": ("s002_0", "s001_1")}
    )
    with pytest.raises(InputError, match="'s001' into train and into test"):
        split_dataset(dataset)


def test_a_split_is_written_down_and_read_again():
    drawn = split_dataset(dataset_of(20), "10/5/5", seed=2)
    assert Split.from_dict(json.loads(json.dumps(drawn.to_dict()))) == drawn
    for wrong in (
        {},
        [],
        {"train": "ab", "validation": [], "test": [], "seed": 0},
        drawn.to_dict() | {"seed": None},
    ):
        with pytest.raises(InputError, match="lists train, validation, test"):
            Split.from_dict(wrong)


@pytest.mark.parametrize(
    ("names", "rule", "subjects"),
    [
        (
            ("sub-01_ses-1_T1w.nii", "sub-01_ses-2_T1w.nii", "sub-02_T1w.nii"),
            None,
            {"sub-01", "sub-02"},
        ),
        (
            ("OAS1_0001_MR1.nii", "OAS1_0001_MR2.nii", "OAS1_0002_MR1.nii"),
            None,
            {"OAS1_0001", "OAS1_0002"},
        ),
        (
            ("Task_0001_0000.nii", "Task_0001_0001.nii", "Task_0002_0000.nii"),
            None,
            {"Task_0001", "Task_0002"},
        ),
        (("ct_0001.nii", "ct_0002.nii", "ct_0003.nii"), None, {"ct_0001", "ct_0002", "ct_0003"}),
        (("anna_1.nii", "anna_2.nii", "otto_1.nii"), "([a-z]+)_.*", {"anna", "otto"}),
        (("anna/1.nii", "anna/2.nii", "otto/1.nii"), "^([a-z]+)/", {"anna", "otto"}),
    ],
)
def test_whose_a_scan_is_stands_in_its_name(files, names, rule, subjects):
    root = files(*names)
    assert set(open_dataset(root, images="**/*.nii", subject=rule).subjects) == subjects
