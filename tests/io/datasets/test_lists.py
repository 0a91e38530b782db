"""Lists of pairs as data sets."""

from __future__ import annotations

import json

import pytest

from napari_shmoareg.datasets import open_dataset, split_dataset
from napari_shmoareg.errors import InputError

ROWS = (
    {"moving": "a.nii", "fixed": "b.nii", "moving_labels": "a_seg.nii", "landmarks": "ab.csv"},
    {"moving": "b.nii", "fixed": "c.nii", "fixed_labels": "deep/c_seg.nii"},
    {"moving": "a.nii", "fixed": "c.nii"},
    {"moving": "c.nii", "fixed": "a.nii"},
)
NAMES = ("a.nii", "b.nii", "c.nii", "a_seg.nii", "deep/c_seg.nii", "ab.csv")


def write_list(root, rows, ending):
    path = root / f"pairs.{ending}"
    if ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [
            ",".join(columns),
            *(",".join(str(row.get(c, "")) for c in columns) for row in rows),
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_list_gives_its_scans_pairs_labels_and_landmarks(files, ending):
    root = files(*NAMES)
    dataset = open_dataset(write_list(root, ROWS, ending))
    assert dataset.kind == "list" and dataset.names == ("a", "b", "c")
    assert [s.labels for s in dataset.scans] == [root / "a_seg.nii", None, root / "deep/c_seg.nii"]
    assert dataset.pairs == (("a", "b"), ("b", "c"), ("a", "c"), ("c", "a"))
    assert dataset.ordered_pairs(("c", "a")) == [("a", "c"), ("c", "a")]
    assert dataset.landmarks == {("a", "b"): root / "ab.csv"} and dataset.parts is None


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_parts_of_a_list_are_its_split(files, ending):
    root = files(*(f"{name}.nii" for name in "abcdef"))
    rows = [
        {"moving": "a.nii", "fixed": "b.nii", "part": "train"},
        {"moving": "d.nii", "fixed": "c.nii", "part": "val"},
        {"moving": "e.nii", "fixed": "f.nii", "part": "test"},
    ]
    dataset = open_dataset(write_list(root, rows, ending))
    split = split_dataset(dataset)
    assert (split.train, split.validation, split.test) == (("a", "b"), ("c", "d"), ("e", "f"))
    both = open_dataset(write_list(root, [*rows, {"moving": "a.nii", "fixed": "b.nii"}], ending))
    assert split_dataset(both).train == ("a", "b")


def test_one_person_in_two_parts_of_a_list_is_refused_by_name(files):
    root = files("sub-1_a.nii", "sub-2_a.nii", "sub-1_b.nii", "sub-3_a.nii")
    rows = [
        {"moving": "sub-1_a.nii", "fixed": "sub-2_a.nii", "part": "train"},
        {"moving": "sub-1_b.nii", "fixed": "sub-3_a.nii", "part": "test"},
    ]
    with pytest.raises(InputError, match="'sub-1' into train and into test"):
        split_dataset(open_dataset(write_list(root, rows, "json")))


def test_files_of_one_name_in_several_folders_are_told_apart(files):
    root = files("one/scan.nii", "two/scan.nii", "three/other.nii")
    rows = [
        {"moving": "one/scan.nii", "fixed": "two/scan.nii"},
        {"moving": "three/other.nii", "fixed": "one/scan.nii"},
    ]
    assert open_dataset(write_list(root, rows, "csv")).names == ("one/scan", "other", "two/scan")


def test_scans_that_few_pairs_join_stay_on_one_side(files):
    names = [f"{phase}{n}.nii" for n in range(5) for phase in ("in", "out")]
    root = files(*names)
    rows = [{"moving": f"in{n}.nii", "fixed": f"out{n}.nii"} for n in range(5)]
    dataset = open_dataset(write_list(root, rows, "csv"))
    assert dataset.subjects["in3"] == ("in3", "out3")
    split = split_dataset(dataset, "3/1/1", seed=4)
    assert [len(dataset.ordered_pairs(p)) for p in (split.train, split.validation, split.test)] == [
        3,
        1,
        1,
    ]
    assert split_dataset(dataset, "auto").validation  # one pair is enough to judge on


def test_an_atlas_that_joins_all_does_not_make_them_one_person(files):
    root = files("atlas.nii", *(f"s{n}.nii" for n in range(4)))
    rows = [{"moving": f"s{n}.nii", "fixed": "atlas.nii"} for n in range(4)]
    assert len(open_dataset(write_list(root, rows, "csv")).subjects) == 5


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"moving": "a.nii", "fixed": "gone.nii"}], "there is no file .*gone.nii"),
        ([{"moving": "a.nii", "fixed": ""}], "'fixed' is empty"),
        ([{"moving": "a.nii", "fixed": "a.nii"}], "the same file"),
        (
            [{"moving": "a.nii", "fixed": "b.nii", "part": "learn"}],
            "train, validation or test; got 'learn'",
        ),
        (
            [
                {"moving": "a.nii", "fixed": "b.nii", "moving_labels": "b_seg.nii"},
                {"moving": "a.nii", "fixed": "b.nii", "moving_labels": "a_seg.nii"},
            ],
            "has the labels",
        ),
        (
            [
                {"moving": "a.nii", "fixed": "b.nii", "part": "train"},
                {"moving": "a.nii", "fixed": "b.nii", "part": "test"},
            ],
            "is in the part test here, but in train above",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_wrong_line_of_a_list_is_named(files, rows, says, ending):
    root = files("a.nii", "b.nii", "a_seg.nii", "b_seg.nii")
    where = ("pair {}" if ending == "json" else "line {}").format(len(rows) + (ending == "csv"))
    with pytest.raises(InputError, match=f"{where}.*{says}"):
        open_dataset(write_list(root, rows, ending))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.json", "[1, 2]", "no list of pairs"),
        ("p.json", '{"a": 1}', "no list of pairs"),
        ("p.json", "[]", "lists no pair"),
        ("p.json", '[{"moving": 1, "fixed": "a"}]', "'moving' is 1"),
        ("p.csv", "moving,fixed\n", "lists no pair"),
        ("p.csv", "images\na.nii\n", "no column fixed and moving"),
        ("p_dataset.json", '{"training": [{"image": 3}]}', "has no image"),
        ("p_dataset.json", '{"training": [{"image": "x.nii"}]}', "of which 0 exist"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        open_dataset(tmp_path / name)


def test_a_list_takes_no_patterns(files):
    root = files("a.nii", "b.nii")
    path = write_list(root, [{"moving": "a.nii", "fixed": "b.nii"}], "csv")
    with pytest.raises(InputError, match="leave out the file patterns"):
        open_dataset(path, labels="*_seg.nii")
