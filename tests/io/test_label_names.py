"""Names of labels: every kind of file, damaged ones, files beside a map, FreeSurfer's codes."""

from __future__ import annotations

import json
import warnings

import nibabel
import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, LabelNames, Volume, VolumePair, warp_volume
from napari_shmoareg.geometry.transform import Transform
from napari_shmoareg.io.label_names import (
    FREESURFER,
    GUESSED,
    LARGEST_FILE,
    find_label_names,
    freesurfer_names,
    name_labels,
    read_label_names,
)

FREESURFER_LUT = """#$Id: a comment
#No. Label Name:                            R   G   B   A

0   Unknown                                 0   0   0   0
17  Left-Hippocampus                        220 216 20  0
53  Right-Hippocampus                       220 216 20  0
1001  ctx-lh-bankssts                       25  100 40  0
"""
SLICER = """# Color table file /home/me/Organs.ctbl
# 4 values
0 Background 0 0 0 0
1 left_kidney 220 245 20 255
2 (none) 0 0 0 255
3 Vertebra L1 250 250 225 255
"""
ITK_SNAP = """################################################
# ITK-SnAP Label Description File
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "left kidney (cortex)"
    3     0  255    0     0.50  0  1    "Vertebra L1"
"""
FREESURFER_NAMES = {
    0: "Unknown",
    17: "Left-Hippocampus",
    53: "Right-Hippocampus",
    1001: "ctx-lh-bankssts",
}
FILES = {
    "LUT.txt": (FREESURFER_LUT, FREESURFER_NAMES),
    "organs.ctbl": (SLICER, {0: "Background", 1: "left_kidney", 3: "Vertebra L1"}),
    "organs.txt": ("1 liver\n2\tright kidney\n", {1: "liver", 2: "right kidney"}),
    "snap.label": (ITK_SNAP, {0: "Clear Label", 1: "left kidney (cortex)", 3: "Vertebra L1"}),
    "v1.json": ('{"labels": {"0": "background", "1": "liver"}}', {0: "background", 1: "liver"}),
    "v2.json": (
        '{"labels": {"background": 0, "liver": 1, "whole": [1, 2], "tumour": [2], "x": true}}',
        {0: "background", 1: "liver", 2: "tumour"},
    ),
    "dseg.tsv": ("index\tname\tcolor\n3\tgyrus, left\t#fff\n", {3: "gyrus, left"}),
    "slicer.csv": ("LabelValue,Name,Color_R\n7,spleen,1\n", {7: "spleen"}),
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_gives_numbers_and_names(name, tmp_path):
    text, expected = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_label_names(tmp_path / name)
    assert found.names == expected and found.source == name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ctbl", b""),
        ("a.ctbl", b"# only a comment\n"),
        ("a.label", b"\xff\xfe\x00liver"),
        ("a.txt", b"liver 1\n5 6 7\n"),
        ("a.json", b'{"labels": '),
        ("a.json", b'["liver"]'),
        ("a.json", b'{"name": "Task04"}'),
        ("a.json", b'{"labels": {"whole": [1, 2], "9999999999999999999": "far"}}'),
        ("a.tsv", b"number\tstructure\n1\tliver\n"),
        ("a.json", b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("a.ctbl", b"1 liver 0 0 0 0\n" * (LARGEST_FILE // 15)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot be understood:UserWarning")
def test_a_damaged_file_is_refused_by_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_label_names(tmp_path / name)


def test_lines_that_are_no_entries_are_told_and_the_others_used(tmp_path):
    (tmp_path / "a.ctbl").write_text("1 liver 1 2 3 255\nnonsense\n2 3 4\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"a\.ctbl: line 2 and 1 more cannot be understood"):
        assert read_label_names(tmp_path / "a.ctbl").names == {1: "liver"}


def test_a_name_is_one_printable_line_of_bounded_length(tmp_path):
    labels = {"1": "a\n\x1b[31mb", "2": "x" * 1000, "3": "\ud800"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    names = read_label_names(tmp_path / "dataset.json")
    assert names.get(1) == "a [31mb" and len(names.get(2)) == 120 and names.get(3) == "\\ud800"


def test_two_names_of_one_label_are_both_shown(tmp_path):
    (tmp_path / "a.txt").write_text("1 liver\n1 spleen\n", encoding="utf-8")
    assert read_label_names(tmp_path / "a.txt").names == {1: "liver / spleen"}
    one, other = LabelNames({1: "liver", 2: "a"}, "x"), LabelNames({1: "Liver", 2: "b"}, "y")
    assert one.conflicts(other) == [2]
    assert one.joined(other) == LabelNames({1: "liver", 2: "a / b"}, "x and y")


@pytest.mark.parametrize(
    "place",
    [
        "labelsTr/case1.ctbl",
        "labelsTr/case1_LUT.txt",
        "labelsTr/dataset.json",
        "dataset.json",
        "labelsTr/any.label",
    ],
)
def test_names_beside_a_map_are_found(place, tmp_path):
    (tmp_path / "labelsTr").mkdir()
    if place.endswith(".json"):
        text = '{"labels": {"liver": 1, "spleen": 2, "aorta": 3}}'
    else:
        text = "1 liver 0 0 0 0\n2 spleen 0 0 0 0\n3 aorta 0 0 0 0\n"
    (tmp_path / place).write_text(text, encoding="utf-8")
    found = find_label_names(tmp_path / "labelsTr" / "case1.nii.gz", [1, 2])
    assert found == LabelNames({1: "liver", 2: "spleen"}, place.rpartition("/")[2])


def test_a_table_of_bids_is_found_above_its_map(tmp_path):
    folder = tmp_path / "derivatives" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    for name, structure in (("desc-aseg_dseg.tsv", "right"), ("desc-other_dseg.tsv", "wrong")):
        (tmp_path / "derivatives" / name).write_text(
            f"index\tname\n1\t{structure}\n", encoding="utf-8"
        )
    found = find_label_names(folder / "sub-01_desc-aseg_dseg.nii.gz", [1])
    assert found == LabelNames({1: "right"}, "desc-aseg_dseg.tsv")
    assert not find_label_names(folder / "sub-01_T1w.nii.gz", [1])


def test_one_of_several_tables_or_one_that_lacks_labels_is_not_guessed(tmp_path):
    (tmp_path / "a.ctbl").write_text("1 liver 0 0 0 0\n", encoding="utf-8")
    assert find_label_names(tmp_path / "case.nii.gz", [1])
    assert not find_label_names(tmp_path / "case.nii.gz", [1, 2])
    (tmp_path / "b.label").write_text("1 spleen 0 0 0 0\n", encoding="utf-8")
    assert not find_label_names(tmp_path / "case.nii.gz", [1])


def test_a_damaged_file_beside_a_map_is_a_warning_and_another_is_used(tmp_path):
    (tmp_path / "case.ctbl").write_bytes(b"\xff\xff")
    (tmp_path / "dataset.json").write_text('{"labels": {"1": "liver"}}', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"case\.ctbl .*was not used"):
        assert find_label_names(tmp_path / "case.nii.gz", [1]).names == {1: "liver"}


def test_a_dataset_json_of_another_kind_is_silently_no_file_of_names(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "mine"}', encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not find_label_names(tmp_path / "case.nii.gz", [1])


def test_freesurfer_is_recognised_by_both_sides_of_the_deep_structures():
    deep = [10, 11, 12, 13, 17, 18, 49, 50, 51, 52, 53, 54]
    found = freesurfer_names([0, *deep])
    assert found.get(17) == "Left-Hippocampus" and found.get(53) == "Right-Hippocampus"
    assert found.source == GUESSED and set(found.names) == set(deep)
    assert freesurfer_names([*deep, 1035, 4035]).get(4035) == "wm-rh-insula"
    assert freesurfer_names([*deep, 502]).get(502) == ""
    for others in ([1, 2], range(1, 14), [17, 53], [*deep, 33], [10, 11, 12, 13, 14], []):
        assert not freesurfer_names(others)


def test_codes_of_both_sides_are_where_freesurfer_has_them():
    names = FREESURFER.names
    left = {name[5:]: code for code, name in names.items() if name.startswith("Left-")}
    right = {name[6:]: code for code, name in names.items() if name.startswith("Right-")}
    assert left.keys() == right.keys() and all(left[name] < right[name] for name in left)
    pairs = {"Cerebral-Cortex": (3, 42), "Accumbens-area": (26, 58), "choroid-plexus": (31, 63)}
    assert {name: (left[name], right[name]) for name in pairs} == pairs
    assert names[1029] == "ctx-lh-superiorparietal" and names[2035] == "ctx-rh-insula"


def test_names_stay_with_labels_that_are_warped_and_paired():
    grid = Grid((4, 5, 6), np.eye(4))
    names = LabelNames({1: "liver"}, "a file")
    labels = Volume(np.ones((4, 5, 6), np.uint8), grid, "a", is_labels=True, label_names=names)
    assert warp_volume(labels, grid, Transform(np.eye(4))).label_names == names
    pair = VolumePair(*[Volume(np.zeros((4, 5, 6)), grid)] * 2, None, labels)
    assert pair.label_names == names and pair.swapped.moving_labels.label_names == names


def test_real_brains_are_named_by_freesurfer_and_other_real_maps_not(shared_data):
    brain = shared_data / "brain" / "sub-05_seg.nii.gz"
    volume = Volume(
        np.asarray(nibabel.load(brain).dataobj), Grid((160, 192, 224), np.eye(4)), is_labels=True
    )
    named = name_labels(volume, brain)
    assert all(named.label_names.get(label) for label in volume.labels)
    assert len(named.label_names.names) == 36 and named.label_names.get(16) == "Brain-Stem"
    others = ["hippocampus/labels/hippocampus_001.nii.gz", "ct/totalseg_seg.nii.gz"]
    for path in map(shared_data.joinpath, others):
        labels = np.unique(np.asarray(nibabel.load(path).dataobj)).astype(int).tolist()
        assert not find_label_names(path, labels)
    head = shared_data / "labelmaps" / "training_seg_01.nii.gz"
    labels = np.unique(np.asarray(nibabel.load(head).dataobj)).astype(int).tolist()
    assert find_label_names(head, labels).get(258 if 258 in labels else 17)


def test_a_dataset_json_that_does_not_name_all_labels_is_of_another_map(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (tmp_path / "dataset.json").write_text('{"labels": {"1": "liver", "2": "tumour"}}', "utf-8")
    assert find_label_names(folder / "map.nii.gz", [1, 2]).names == {1: "liver", 2: "tumour"}
    assert not find_label_names(folder / "map.nii.gz", [1, 2, 117])


def test_a_row_number_is_not_taken_for_a_label(tmp_path):
    (tmp_path / "a.csv").write_text("index,label,name\n0,5,liver\n1,7,spleen\n", encoding="utf-8")
    assert read_label_names(tmp_path / "a.csv").names == {5: "liver", 7: "spleen"}


def test_a_number_at_the_end_of_a_name_is_not_part_of_a_colour(tmp_path):
    lines = "5 Lobule 6 128 128 128\n6 Lobule 7 1 2 3\n7 Vermis 9 8 7\n"
    (tmp_path / "a.ctbl").write_text(lines, encoding="utf-8")
    names = read_label_names(tmp_path / "a.ctbl").names
    assert names == {5: "Lobule 6", 6: "Lobule 7", 7: "Vermis"}
