"""Data sets are known by how they lie on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_shmoareg.datasets import Dataset, open_dataset, split_dataset
from napari_shmoareg.datasets.layouts import LAYOUTS
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import write_image


def labels_of(dataset: Dataset) -> dict[str, str | None]:
    """Names of scans to the places of their labels."""
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    return {
        s.name: None if s.labels is None else s.labels.relative_to(root).as_posix()
        for s in dataset.scans
    }


def why(dataset: Dataset) -> dict[str, str]:
    return {entry.path.name: entry.why for entry in dataset.skipped}


def test_images_and_labels_lie_in_two_folders(files):
    root = files(
        "images/b.nii.gz",
        "images/a.mha",
        "images/._a.mha",
        "images/notes.txt",
        "labels/a.nii",
        "labels/z.nii",
    )
    dataset = open_dataset(root)
    assert dataset.kind == "folder" and labels_of(dataset) == {"a": "labels/a.nii", "b": None}
    assert "no image" in why(dataset)["z.nii"] and "without labels" in why(dataset)["b.nii.gz"]
    assert dataset.ordered_pairs(dataset.names) == [("a", "b"), ("b", "a")]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}.nii.gz", "{}_seg.nii.gz"),
        ("{}_brain.nii.gz", "{}_seg.nii.gz"),
        ("{}_t1w.nii.gz", "{}_aseg.mgz"),
        ("{}.nrrd", "{}_labels.nrrd"),
        ("volume-{}.nii", "segmentation-{}.nii"),
        ("{}/image.nii.gz", "{}/label.nii.gz"),
        ("sites/{}/t1.nii.gz", "sites/{}/t1_dseg.nii.gz"),
    ],
)
def test_labels_beside_an_image_are_found_by_their_names(files, image, label):
    people = ("01", "010", "2")
    root = files(*(pattern.format(one) for one in people for pattern in (image, label)))
    dataset = open_dataset(root)
    found = {scan.image.relative_to(root).as_posix(): scan.labels for scan in dataset.scans}
    assert found == {image.format(one): root / label.format(one) for one in people}
    assert not dataset.skipped and len({scan.subject for scan in dataset.scans}) == 3


def test_a_name_that_begins_like_another_keeps_its_own_labels(files):
    root = files(
        "case_brain.nii",
        "case_seg.nii",
        "case_native_brain.nii",
        "case_native_seg.nii",
        "case_old_brain.nii",
    )
    assert labels_of(open_dataset(root)) == {
        "case_brain": "case_seg.nii",
        "case_native_brain": "case_native_seg.nii",
        "case_old_brain": None,
    }


@pytest.mark.parametrize(
    "patterns",
    [
        {"images": "mr/*.nii.gz", "labels": "by_hand/*_m.nii.gz"},
        {"images": "mr/scan*.nii.gz", "labels": "by_hand/scan*_m.nii.gz"},
        {"images": "mr/*.nii.gz", "labels": "by_hand/{name}_m.nii.gz"},
        {"images": "mr/scan*.nii.gz", "labels": "by_hand/scan{name}_m.nii.gz"},
        {"images": "mr/scan?.nii.gz", "labels": "**/scan?_m.nii.gz"},
    ],
)
def test_patterns_match_by_name_and_not_by_order(files, patterns):
    root = files(
        "mr/scan1.nii.gz",
        "mr/scan2.nii.gz",
        "mr/scan3.nii.gz",
        *(f"by_hand/scan{n}_m.nii.gz" for n in (3, 2)),
    )
    dataset = open_dataset(root, **patterns)
    assert labels_of(dataset) == {
        "scan1": None,
        "scan2": "by_hand/scan2_m.nii.gz",
        "scan3": "by_hand/scan3_m.nii.gz",
    }
    assert "without labels" in why(dataset)["scan1.nii.gz"]


def test_a_pattern_of_images_does_not_take_label_maps_for_images(files):
    root = files("a.nii", "a_seg.nii", "b.nii", "b_seg.nii")
    for labels in ("*_seg.nii", "{name}_seg.nii"):
        dataset = open_dataset(root, images="*.nii", labels=labels)
        assert labels_of(dataset) == {"a": "a_seg.nii", "b": "b_seg.nii"}


def test_of_several_label_maps_of_an_image_the_usual_kind_is_taken_and_the_other_named(files):
    root = files("a.nii", "a_seg.nii", "a_aseg.nii", "b.nii", "b_seg.nii")
    dataset = open_dataset(root)
    assert labels_of(dataset) == {"a": "a_seg.nii", "b": "b_seg.nii"}
    assert "another label map of a.nii" in why(dataset)["a_aseg.nii"]


def test_of_several_channels_of_one_case_the_first_is_taken(files):
    root = files(
        *(f"imagesTr/c{n}_000{c}.nii.gz" for n in "12" for c in (0, 1)),
        *(f"labelsTr/c{n}.nii.gz" for n in "12"),
    )
    dataset = open_dataset(root)
    assert labels_of(dataset) == {"c1_0000": "labelsTr/c1.nii.gz", "c2_0000": "labelsTr/c2.nii.gz"}
    assert "another channel" in why(dataset)["c1_0001.nii.gz"]


def test_bids_takes_one_contrast_and_labels_of_the_derivatives(files):
    root = files(
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz",
        "derivatives/fs/sub-01/ses-b/anat/sub-01_ses-b_dseg.nii.gz",
        "derivatives/fs/sub-02/anat/sub-02_space-MNI152_dseg.nii.gz",
        "derivatives/fs/sub-02/anat/sub-02_dseg.nii.gz",
    )
    dataset = open_dataset(root)
    assert labels_of(dataset) == {
        "sub-01_ses-a_T1w": None,
        "sub-01_ses-b_T1w": "derivatives/fs/sub-01/ses-b/anat/sub-01_ses-b_dseg.nii.gz",
        "sub-02_ses-a_T1w": "derivatives/fs/sub-02/anat/sub-02_dseg.nii.gz",
    }
    assert dataset.subjects == {
        "sub-01": ("sub-01_ses-a_T1w", "sub-01_ses-b_T1w"),
        "sub-02": ("sub-02_ses-a_T1w",),
    }
    assert "another contrast" in why(dataset)["sub-02_ses-a_T2w.nii.gz"]


def test_learn2reg_judges_on_its_listed_pairs_and_learns_from_all_others(files):
    scans = [f"imagesTr/OASIS_{n:04d}_0000.nii.gz" for n in range(1, 8)]
    root = files(*scans, *(name.replace("images", "labels") for name in scans[:6]))
    values = {
        "name": "OASIS",
        "training": [
            {"image": f"./{name}"} for name in [*scans, "imagesTr/OASIS_0008_0000.nii.gz"]
        ],
        "training_paired_images": [],
        "registration_val": [
            {"fixed": f"./{scans[n]}", "moving": f"./{scans[n + 1]}"} for n in (4, 5)
        ],
    }
    (root / "OASIS_dataset.json").write_text(json.dumps(values), encoding="utf-8")
    for path in (root, root / "OASIS_dataset.json"):
        dataset = open_dataset(path)
        assert dataset.kind == "learn2reg" and len(dataset.scans) == 7 and dataset.pairs is None
    assert labels_of(dataset)["OASIS_0002_0000"] == "labelsTr/OASIS_0002_0000.nii.gz"
    assert dataset.scan("OASIS_0002_0000").subject == "OASIS_0002"
    assert "missing" in why(dataset)["OASIS_0008_0000.nii.gz"]
    split = split_dataset(dataset)
    assert split.train == tuple(f"OASIS_000{n}_0000" for n in range(1, 5))
    assert split.validation == tuple(f"OASIS_000{n}_0000" for n in (5, 6, 7)) and split.test == ()
    assert len(dataset.ordered_pairs(split.train)) == 12
    judged = [("OASIS_0006_0000", "OASIS_0005_0000"), ("OASIS_0007_0000", "OASIS_0006_0000")]
    assert dataset.ordered_pairs(split.validation) == judged
    other = split_dataset(dataset, "3/2/2", seed=1)
    assert len(dataset.ordered_pairs(other.train)) == 6


def test_learn2reg_pairs_of_one_patient_stay_pairs(files):
    scans = [f"imagesTr/LungCT_{n:04d}_{phase:04d}.nii.gz" for n in range(1, 5) for phase in (0, 1)]
    root = files(*scans)
    pairs = [{"fixed": scans[n], "moving": scans[n + 1]} for n in range(0, 8, 2)]
    values = {
        "training": [{"image": name} for name in scans],
        "training_paired_images": pairs,
        "registration_val": pairs[:1],
    }
    (root / "LungCT_dataset.json").write_text(json.dumps(values), encoding="utf-8")
    dataset = open_dataset(root)
    assert len(dataset.pairs) == 4 and len(dataset.subjects) == 4
    split = split_dataset(dataset)
    assert split.validation == ("LungCT_0001_0000", "LungCT_0001_0001") and len(split.train) == 6
    assert dataset.ordered_pairs(split.validation) == [("LungCT_0001_0001", "LungCT_0001_0000")]


def test_oasis_takes_the_scanner_space_by_default_and_the_aligned_images_on_demand(files):
    folders = [f"OASIS_OAS1_{n:04d}_MR1" for n in (1, 2, 3)] + ["OASIS_OAS1_0003_MR2"]
    kinds = ("norm", "orig", "seg35", "seg4", "aligned_norm", "aligned_seg35", "slice_norm")
    root = files(
        *(f"{folder}/{kind}.nii.gz" for folder in folders for kind in kinds), "subjects.txt"
    )
    (root / folders[1] / "seg35.nii.gz").unlink()
    dataset = open_dataset(root)
    assert dataset.kind == "oasis"
    assert labels_of(dataset) == {
        "OAS1_0001_MR1": "OASIS_OAS1_0001_MR1/seg35.nii.gz",
        "OAS1_0002_MR1": None,
        "OAS1_0003_MR1": "OASIS_OAS1_0003_MR1/seg35.nii.gz",
        "OAS1_0003_MR2": "OASIS_OAS1_0003_MR2/seg35.nii.gz",
    }
    assert dataset.subjects["OAS1_0003"] == ("OAS1_0003_MR1", "OAS1_0003_MR2")
    assert {scan.image.name for scan in dataset.scans} == {"norm.nii.gz"}
    for images in ("aligned_norm", "aligned_norm.nii.gz", "*/aligned_norm.nii.gz"):
        aligned = open_dataset(root, images=images)
        assert {(s.image.name, s.labels.name) for s in aligned.scans} == {
            ("aligned_norm.nii.gz", "aligned_seg35.nii.gz")
        }
    (root / folders[0] / "norm.nii.gz").rename(root / folders[0] / "norm.mgz")
    (root / folders[2] / "norm.nii.gz").unlink()
    dataset = open_dataset(root)
    assert labels_of(dataset) == {
        "OAS1_0001_MR1": "OASIS_OAS1_0001_MR1/seg35.nii.gz",
        "OAS1_0002_MR1": None,
        "OAS1_0003_MR2": "OASIS_OAS1_0003_MR2/seg35.nii.gz",
    }
    assert why(dataset)[folders[2]] == "it contains no norm"
    with pytest.raises(InputError, match="'talairach'"):
        open_dataset(root, images="talairach")


def test_oasis_with_aligned_images_only_says_how_to_take_them(files):
    root = files(
        *(
            f"OASIS_OAS1_{n:04d}_MR1/{kind}.nii.gz"
            for n in (1, 2)
            for kind in ("aligned_norm", "seg35")
        )
    )
    with pytest.raises(InputError, match="Give images='aligned_norm' to use it"):
        open_dataset(root)
    aligned = open_dataset(root, images="aligned_norm", labels="seg35")
    assert [scan.labels.name for scan in aligned.scans] == ["seg35.nii.gz"] * 2


@pytest.mark.parametrize("inner", ["", "Training/", "RawData/Training/"])
def test_btcv_is_read_within_the_window_of_soft_tissue(files, inner):
    root = files(
        *(f"{inner}img/img{n:04d}.nii.gz" for n in (1, 2, 21)),
        *(f"{inner}label/label{n:04d}.nii.gz" for n in (1, 2, 21)),
    )
    dataset = open_dataset(root)
    assert dataset.kind == "btcv" and dataset.window == (-160, 240)
    assert labels_of(dataset)["img0021"] == f"{inner}label/label0021.nii.gz"
    assert open_dataset(root, window=(-500, 800)).window == (-500, 800)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/img{:04d}.nii.gz", "labelsTr/label{:04d}.nii.gz"),
        (
            "averaged-training-images/DET{:07d}_avg.nii.gz",
            "averaged-training-labels/DET{:07d}_avg_seg.nii.gz",
        ),
    ],
)
def test_copies_of_btcv_are_known(files, image, label):
    root = files(*(name.format(n) for n in (1, 2, 40) for name in (image, label)))
    dataset = open_dataset(root)
    assert dataset.kind == "btcv" and all(scan.labels is not None for scan in dataset.scans)
    assert [s.labels.name for s in dataset.scans] == [
        label.format(n).split("/")[1] for n in (1, 2, 40)
    ]


def test_the_documentation_has_the_patterns_of_every_known_layout():
    docs = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for layout in LAYOUTS.values():
        rows = [line for line in docs.splitlines() if line.startswith("|")]
        assert any(row.startswith(f"| {layout.title} |") for row in rows)
        for folder, images, labels in layout.patterns:
            assert f"`{folder}`" in docs or not folder
            assert any(f"| `{images}` | `{labels}` |" in row for row in rows)
        if layout.window is not None:
            low, high = layout.window
            assert f"`--window={low:g},{high:g}`" in docs


def test_the_patterns_of_a_known_layout_give_the_same_scans_in_words(files):
    root = (
        files(*(f"b/{kind}/{kind}000{n}.nii.gz" for n in "12" for kind in ("img", "label"))) / "b"
    )
    known = open_dataset(root)
    _, images, labels = LAYOUTS["btcv"].patterns[0]
    named = open_dataset(root, images=images, labels=labels, window=(-160, 240))
    assert (known.kind, named.kind) == ("btcv", "folder")
    assert known.scans == named.scans and known.window == named.window
    assert all(scan.labels is not None for scan in known.scans)


def test_a_scan_is_read_with_its_channel_window_and_nan(pair, tmp_path):
    values = np.stack([pair.fixed.values, np.round(pair.fixed.values * 4 - 400)], axis=-1).astype(
        np.float32
    )
    values[0, 0, 0] = np.nan
    for name in ("a", "b"):
        nibabel.save(
            nibabel.Nifti1Image(values, pair.fixed.grid.affine), tmp_path / f"{name}.nii.gz"
        )
        write_image(pair.fixed_labels, tmp_path / f"{name}_seg.nii.gz")
    dataset = open_dataset(tmp_path, window=(-160, 240), nan=0.0, channel=1)
    image, labels = dataset.read("a")
    wanted = values[..., 1].copy()
    wanted[0, 0, 0] = 0
    assert np.array_equal(image.values, np.clip(wanted, -160, 240)) and image.values.min() == -160
    assert labels.is_labels and np.array_equal(labels.values, pair.fixed_labels.values)


def test_whole_numbers_stay_whole_within_a_window(pair, tmp_path):
    for name, kind in (("a", np.int16), ("b", np.uint8)):
        values = np.clip(pair.fixed.values, 0, 250).astype(kind)
        write_image(Volume(values, pair.fixed.grid), tmp_path / f"{name}.nii.gz")
    dataset = open_dataset(tmp_path, window=(-160, 100))
    for name in "ab":
        image, _ = dataset.read(name)
        assert image.values.max() == 100 and np.array_equal(image.values, np.round(image.values))


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ((), {}, "no image files"),
        (("notes.txt",), {}, "at least two images"),
        (("a.nii.gz",), {}, r"Only one file .*\(a.nii.gz\)"),
        (
            ("a.nii.gz", "b.nii.gz"),
            {"images": "*.mha"},
            r"matches '\*\.mha'.* 2 image files, such as a.nii.gz",
        ),
        (("a.nii.gz", "b.nii.gz"), {"labels": "*_seg.nii.gz"}, "No label map .* matches"),
        (("a.nii.gz", "b.nii.gz"), {"labels": "{name}_seg.nii.gz"}, "No image .* has a label map"),
        (
            ("a.nii", "b.nii", "l/x.nii"),
            {"images": "*.nii", "labels": "l/*.nii"},
            r"one image is 'a.nii', one label map is 'x.nii'",
        ),
        (("a.nii", "b.nii"), {"labels": "{subject}_seg.nii"}, r"one field, \{name\}"),
        (("a.nii", "b.nii"), {"subject": "(a|b"}, "regular expression"),
        (("a.nii", "b.nii"), {"subject": "(a)(b)"}, "has 2"),
        (("a.nii", "b.nii"), {"subject": "[ab]"}, "has 0"),
        (("a.nii", "b.nii"), {"subject": "(a)"}, "matches neither 'b'"),
        (("a.nii", "b.nii"), {"kind": "bids"}, "one of auto, folder"),
        (("a.nii", "b.nii"), {"window": (240, -160)}, "the lower one first"),
        (("a.nii", "b.nii"), {"window": (240,)}, "two numbers"),
        (("a.nii", "b.nii"), {"kind": "learn2reg"}, "no <Task>_dataset.json"),
        (("a.nii", "b.nii"), {"kind": "oasis"}, "0 of the folders"),
        (("a.nii", "b.nii"), {"kind": "btcv"}, "does not look like BTCV"),
        (("a.nii", "b.nii"), {"kind": "list"}, "is a folder"),
    ],
)
def test_a_folder_of_which_nothing_can_be_learnt_is_refused(files, names, options, says):
    root = files(*names)
    with pytest.raises(InputError, match=says):
        open_dataset(root, **options)


def test_a_place_that_is_not_there_or_no_data_set_is_refused(files):
    root = files("scan.nii.gz", "broken.json")
    (root / "broken.json").write_text("{", encoding="utf-8")
    for name, says in (
        ("gone", "no file or folder"),
        ("scan.nii.gz", "is no data set"),
        ("broken.json", "not a JSON"),
    ):
        with pytest.raises(InputError, match=says):
            open_dataset(root / name)


def test_real_folders_are_known(shared_data):
    hippocampus, brain = (
        open_dataset(shared_data / "hippocampus"),
        open_dataset(shared_data / "brain"),
    )
    assert len(hippocampus.scans) == 80 and all(
        s.labels.name == s.image.name for s in hippocampus.scans
    )
    assert [s.subject for s in brain.scans] == [f"sub-{n:02d}" for n in range(5, 11)]
    assert all(s.labels.name == f"{s.subject}_seg.nii.gz" for s in brain.scans)
