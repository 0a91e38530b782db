"""The check-up says what is there, and its pairs are what a registration sees."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from napari_shmoareg.datasets import Checkup, open_dataset
from napari_shmoareg.datasets import pairs as pairs_module
from napari_shmoareg.datasets import prepared as prepared_module
from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io import read_image, write_image
from napari_shmoareg.registration.conform import conform


def look(root, prepared, **options) -> Checkup:
    dataset = open_dataset(root) if isinstance(root, str) or hasattr(root, "joinpath") else root
    found = Checkup(
        dataset, **({"size": 24, "affine": "none", "labels": False, "prepared": prepared} | options)
    )
    list(found.run())
    return found


def rewrite(path, change, labels=False):
    volume = read_image(path, labels=labels)
    write_image(change(volume), path)


def test_a_report_tells_what_lies_on_the_disk(people, prepared, phantoms):
    found = look(people(3), prepared)
    report = found.reports[1]
    grid = phantoms.moving.grid
    assert (report.name, report.subject, report.shape) == ("p1", "p1", grid.shape)
    assert report.spacing == pytest.approx(grid.spacing, abs=1e-4)
    assert report.orientation == "".join(nibabel.aff2axcodes(grid.affine)) == "LAS"
    volume = read_image(report.image)
    assert (report.low, report.high) == (volume.values.min(), volume.values.max())
    assert report.labels == (1, 2, 3, 4) and report.skipped is None
    assert json.loads(json.dumps(report.to_dict()))["spacing"] == [3.2, 2.5, 2.2]
    row = found.rows()[1]
    assert row["shape"] == "34x41x25" and row["labels"] == "1 2 3 4"
    assert (
        row["dice_after_alignment"] == f"{report.dice:.4f}"
        and row["compared_with"] == found.reference
    )


def test_pairs_are_brought_together_through_the_reference(people, prepared):
    root = people(4)
    apart, together = look(root, prepared), look(root, prepared, affine="rigid")
    assert together.reference in together.dataset.names
    before = [report.dice for report in apart.reports if report.dice is not None]
    after = [report.dice for report in together.reports if report.dice is not None]
    assert len(after) == 3 and min(after) > max(before) and min(after) > 0.75
    other = [name for name in together.dataset.names if name != together.reference][:2]
    pairs = together.pairs(other, labels=True)
    assert pairs.names == (tuple(other), tuple(other[::-1]))
    for seen in pairs:
        dice = 2 * float(((seen.moving_labels == 1) & (seen.fixed_labels == 1)).sum())
        assert dice / float((seen.moving_labels == 1).sum() + (seen.fixed_labels == 1).sum()) > 0.85
    assert np.allclose(pairs[0].affine @ pairs[1].affine, np.eye(4), atol=1e-9)
    alone = together.pairs(together.dataset.names, both_orders=False)
    assert len(alone) == 6 and len({frozenset(pair) for pair in alone.names}) == 6
    assert len(together.pairs(together.dataset.names)) == 12 and len(alone[2:]) == 4


def seen_there(seen, direct, role):
    """An array of one network grid, and the same of another grid brought to it, where both grids
    are.
    """
    other = Volume(getattr(direct, role)[0, 0].numpy(), direct.grid, is_labels="labels" in role)
    inner = tuple(slice(2, n - 2) for n in seen.grid.shape)
    return getattr(seen, role)[0, 0].numpy()[inner], resample(other, seen.grid).values[inner]


def test_few_pairs_are_made_once_and_many_each_time(people, prepared, monkeypatch):
    pairs = look(people(2), prepared).pairs(("p0", "p1"), labels=True)
    first = pairs[0]
    assert pairs[0] is first and pairs[1] is not first
    monkeypatch.setattr(pairs_module, "MAX_CACHED_BYTES", 2 * 4 * first.fixed.nbytes - 1)
    many = look(people(2), prepared).pairs(("p0", "p1"), labels=True)
    assert many[0] is not many[0] and bool((many[0].moving == first.moving).all())


@pytest.mark.parametrize("size", [16, 32, "native"])
def test_the_network_sees_nearly_what_it_would_see_of_the_whole_scans(people, prepared, size):
    found = look(people(2), prepared, size=size)
    (moving, moving_labels), (fixed, fixed_labels) = (
        found.dataset.read(name) for name in ("p0", "p1")
    )
    direct = conform(VolumePair(moving, fixed, moving_labels, fixed_labels), size=size, labels=True)
    seen = found.pairs(("p0", "p1"), labels=True)[0]
    assert seen.pair is None and found.pairs(("p0", "p1"))[0].moving_labels is None
    exact = size == "native"
    assert np.abs(seen.grid.corners() - direct.grid.corners()).max() <= (
        1e-9 if exact else direct.grid.spacing[0]
    )
    for role in ("moving", "fixed"):
        ours, theirs = seen_there(seen, direct, role)
        assert np.abs(ours - theirs).mean() <= (1e-6 if exact else 0.02)
        ours, theirs = seen_there(seen, direct, f"{role}_labels")
        assert (ours != theirs).mean() <= (0 if exact else 0.08)


def test_a_scan_that_is_coarse_already_keeps_its_values(phantoms):
    entry = prepared_module.resample_scan(phantoms.moving, phantoms.moving_labels, 128)
    grid = phantoms.moving.grid.canonical()
    assert np.array_equal(entry.arrays["affine"], grid.affine)
    assert np.array_equal(entry.arrays["image"], phantoms.moving.values[::-1])
    assert np.array_equal(entry.arrays["labels"], phantoms.moving_labels.values[::-1])
    assert entry.arrays["labels"].dtype == np.uint8


def test_a_small_scan_is_finer_than_the_network_and_no_finer_than_the_scan(phantoms):
    entry = prepared_module.resample_scan(phantoms.fixed, phantoms.fixed_labels, 16)
    grid = Grid(entry.arrays["image"].shape, entry.arrays["affine"])
    content = max(entry.facts["extent"])
    assert min(grid.spacing) == pytest.approx(content / 20) and min(grid.spacing) > 3
    assert np.allclose(grid.centre, phantoms.fixed.grid.centre)
    whole = np.array(phantoms.fixed.grid.shape) * phantoms.fixed.grid.spacing
    assert (np.array(grid.shape) * grid.spacing >= whole - 1e-6).all()
    assert set(np.unique(entry.arrays["labels"])) == {0, 1, 2, 3, 4}


def spoil(root):
    """One scan of each kind that is of no use, and what is said of it."""
    images, labels = root / "images", root / "labels"
    (images / "p1.nii.gz").write_bytes((images / "p1.nii.gz").read_bytes()[:2000])
    nibabel.save(
        nibabel.Nifti1Image(np.ones((20, 20, 20, 2), np.float32), np.eye(4)), images / "p2.nii.gz"
    )
    nibabel.save(
        nibabel.Nifti1Image(np.ones((20, 20), np.float32), np.eye(4)), images / "p3.nii.gz"
    )
    rewrite(images / "p4.nii.gz", lambda v: v.with_values(np.full_like(v.values, 3)))
    rewrite(
        images / "p5.nii.gz",
        lambda v: Volume(v.values[:, :, 10:17], v.grid.crop((0, 0, 10), (34, 41, 7))),
    )
    rewrite(
        images / "p6.nii.gz", lambda v: v.with_values(np.where(v.values > 150, np.nan, v.values))
    )
    less = lambda v: Volume(v.values[1:], v.grid.crop((1, 0, 0), (33, 41, 25)), is_labels=True)  # noqa: E731
    rewrite(labels / "p7.nii.gz", less, labels=True)
    (labels / "p8.nii.gz").unlink()
    return {
        "p1": "p1.nii.gz",
        "p2": "4 axes",
        "p3": "2D",
        "p4": "constant",
        "p5": "at least 8 voxels",
        "p6": "NaN",
        "p7": "another grid",
        "p8": "no label map",
    }


def test_what_is_of_no_use_is_left_out_and_said_why(people, prepared):
    root = people(11)
    reasons = spoil(root)
    found = look(root, prepared, labels=True)
    assert found.usable == ("p0", "p10", "p9")
    for report in found.reports:
        assert (
            (reasons.get(report.name, "") in report.skipped)
            if report.name in reasons
            else report.skipped is None
        )
        assert (report.shape is None) == (report.name in reasons)
    assert sum(text.startswith("Left out: ") for text in found.problems) == 8
    assert len(found.pairs(found.dataset.names)) == 6
    without = look(root, prepared)
    assert without.usable == ("p0", "p10", "p7", "p8", "p9")
    assert any("p7: its labels were left out: its labels" in text for text in without.problems)
    assert any(text.startswith("No labels: p7, p8; 3 of 5") for text in without.problems)


def test_label_sets_that_differ_are_told_with_their_scans(people, prepared):
    root = people(4)
    for name in ("p1", "p2"):
        drop = lambda v: v.with_values(np.where(v.values == 3, 0, v.values))  # noqa: E731
        rewrite(root / "labels" / f"{name}.nii.gz", drop, labels=True)
    found = look(root, prepared, labels=True)
    assert "Label sets differ: 3 is missing in p1, p2 (2 of 4 scans)." in found.problems
    assert found.reports[1].labels == (1, 2, 4)
    for n in range(4):
        rewrite(
            root / "labels" / f"p{n}.nii.gz",
            lambda v, n=n: v.with_values(np.where(v.values > 0, 10 + n, 0)),
            True,
        )
    with pytest.raises(InputError, match=r"no two scans .* share one .*p0 has 10; p1 has 11"):
        look(root, prepared, labels=True)


def test_grids_that_differ_and_copies_are_told(people, prepared):
    root = people(4)
    (root / "images" / "p4.nii.gz").write_bytes((root / "images" / "p0.nii.gz").read_bytes())
    text = "\n".join(look(root, prepared).problems)
    assert (
        "Spacings differ (each sorted): 2x3x3 mm in 3 (p0, p2, p4); 2.2x2.5x3.2 mm in 2 (p1, p3)."
        in text
    )
    assert "Orientations differ" in text and "LAS in 2 (p1, p3)" in text
    assert (
        "The same image: p0, p4; they count as different subjects and may be on both sides" in text
    )


@pytest.mark.slow
def test_a_scan_whose_labels_mean_something_else_agrees_far_worse(people, prepared):
    root = people(6)
    other = lambda v: v.with_values(np.array([0, 2, 1, 4, 3])[v.values])  # noqa: E731
    rewrite(root / "labels" / "p4.nii.gz", other, labels=True)
    dataset = open_dataset(root)
    names = [name for name in dataset.names if name != "p4"]
    few = look(dataset.only(("p0", "p1", "p4")), prepared, affine="rigid", training=names)
    assert not any("far worse" in text for text in few.problems)  # of two others nothing is usual
    worse = [
        text
        for text in look(dataset, prepared, affine="rigid", training=names).problems
        if "far worse" in text
    ]
    assert len(worse) == 1 and worse[0].startswith(
        "p4 agrees far worse with its partner than the others: Dice 0.0"
    )


def test_labels_that_are_asked_for_and_not_there_are_missed_at_once(people, prepared):
    root = people(2)
    dataset = open_dataset(root, images="images/*.nii.gz")
    with pytest.raises(InputError, match=r"no scan of .* has a label map"):
        next(Checkup(dataset, size=24, labels=True, prepared=prepared).run())
    assert not prepared.exists()
    found = look(dataset, prepared)
    assert found.reports[1].overlap_kind == "ncc" or found.reports[0].overlap_kind == "ncc"


def test_two_usable_scans_have_to_learn(people, prepared):
    root = people(4)
    for name in ("p1", "p2"):
        (root / "images" / f"{name}.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"Of the 2 training scans .*, 1 can be used.*p1"):
        look(root, prepared, training=("p0", "p1"))
    assert look(root, prepared, training=("p0", "p1", "p3")).reference in ("p0", "p3")


def test_a_run_that_was_stopped_goes_on_from_its_prepared_scans(people, prepared, monkeypatch):
    dataset = open_dataset(people(4))
    first = Checkup(dataset, size=24, affine="rigid", prepared=prepared)
    steps = first.run()
    halfway = [next(steps), next(steps)]
    steps.close()
    assert first.reports == halfway
    made = []
    make = prepared_module.resample_scan
    monkeypatch.setattr(
        prepared_module, "resample_scan", lambda *a: made.append(a[0].name) or make(*a)
    )
    second = look(dataset, prepared, affine="rigid")
    assert second.reports[:2] == halfway and not made  # the reference was chosen among all four
    monkeypatch.setattr(prepared_module, "resample_scan", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(
        "napari_shmoareg.datasets.checkup.align", lambda *_: pytest.fail("aligned again")
    )
    assert look(dataset, prepared, affine="rigid").reports == second.reports


def test_damaged_files_are_made_again(people, prepared):
    root = people(2)
    before = look(root, prepared)
    for path in prepared.iterdir():
        path.write_bytes(path.read_bytes()[:-50] + bytes(50))
    after = look(root, prepared)
    assert after.reports == before.reports
    assert bool((after.pairs(("p0", "p1"))[0].moving == before.pairs(("p0", "p1"))[0].moving).all())


def test_a_file_that_is_gone_is_named_only_where_its_prepared_scan_is_lost_too(
    people, prepared, monkeypatch
):
    root = people(2)
    monkeypatch.setattr(prepared_module, "MAX_CACHED_BYTES", 0)
    monkeypatch.setattr(pairs_module, "MAX_CACHED_BYTES", 0)
    found = look(root, prepared)
    pairs = found.pairs(("p0", "p1"))
    first = pairs[0]
    path = root / "images" / "p1.nii.gz"
    data = path.read_bytes()
    path.unlink()
    assert bool((pairs[0].fixed == first.fixed).all())
    for entry in prepared.iterdir():
        entry.unlink()
    with pytest.raises(InputError, match=r"Scan 'p1' \(.*p1.nii.gz\): .* cannot be read"):
        pairs[0]
    (root / "images" / "p0.nii.gz").rename(path)
    with pytest.raises(InputError, match="the file changed since"):
        pairs[0]
    path.write_bytes(data)


def test_the_window_and_the_bytes_of_the_file_make_other_entries(people, prepared):
    root = people(2)
    first = look(root, prepared).reports
    cut = look(replace(open_dataset(root), window=(0, 50)), prepared).reports
    assert max(report.high for report in cut) == 50 < min(report.high for report in first)
    rewrite(root / "images" / "p0.nii.gz", lambda v: v.with_values(v.values + 1000))
    assert look(root, prepared).reports[0].low == pytest.approx(first[0].low + 1000)


def test_listed_pairs_of_one_person_are_aligned_themselves(people, prepared):
    root = people(4)
    rows = ["moving,fixed,moving_labels,fixed_labels"]
    for a, b in (("p0", "p1"), ("p3", "p2")):
        rows.append(
            ",".join(f"{part}/{name}.nii.gz" for part in ("images", "labels") for name in (a, b))
        )
    (root / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    found = look(open_dataset(root / "pairs.csv"), prepared, affine="rigid")
    assert found.by_pairs and found.reference is None
    assert [report.partner for report in found.reports] == ["p1", "p0", "p3", "p2"]
    assert all(report.dice > 0.75 for report in found.reports)
    assert found.pairs(found.dataset.names, both_orders=False).names == (("p0", "p1"), ("p3", "p2"))
    (root / "images" / "p3.nii.gz").write_bytes(b"no image")
    again = look(open_dataset(root / "pairs.csv"), prepared, affine="rigid")
    assert again.usable == ("p0", "p1") and "none of its listed pairs" in again.reports[2].skipped


def test_unknown_names_modes_and_sizes_are_refused(people, prepared):
    dataset = open_dataset(people(2))
    with pytest.raises(InputError, match="no scan 'nobody'"):
        Checkup(dataset, size=24, affine="none", prepared=prepared).pairs(("p0", "nobody"))
    with pytest.raises(InputError, match="affine must be 'auto', 'rigid'"):
        Checkup(dataset, size=24, affine="soft", prepared=prepared)
    with pytest.raises(InputError, match="at least 8"):
        Checkup(dataset, size=4, prepared=prepared)


TOGETHER = """
import sys
from pathlib import Path
from napari_shmoareg.datasets import Checkup, open_dataset
found = Checkup(open_dataset(sys.argv[1]), size=24, affine="rigid", prepared=Path(sys.argv[2]))
print([(report.name, report.dice) for report in found.run()], float(found.pairs(("p0", "p2"))[0].moving.sum()))
"""


@pytest.mark.slow
def test_two_processes_check_the_same_data_at_once(people, prepared):
    root = people(3)
    command = [sys.executable, "-c", TOGETHER, str(root), str(prepared)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    (one, first), (two, second) = (run.communicate(timeout=200) for run in runs)
    assert [run.returncode for run in runs] == [0, 0], first + second
    assert one == two and "p2" in one


def test_real_brains_are_seen_as_a_registration_sees_them(shared_data, prepared):
    dataset = open_dataset(shared_data / "brain").only(("sub-05_brain", "sub-06_brain"))
    found = look(dataset, prepared, size=64)
    assert [report.orientation for report in found.reports] == ["LIA", "LIA"]
    assert 0.4 < found.reports[1].overlap < 0.7 or 0.4 < (found.reports[0].overlap or 0) < 0.7
    seen = found.pairs(dataset.names, labels=True)[0]
    (moving, _), (fixed, _) = (dataset.read(name) for name in dataset.names)
    direct = conform(VolumePair(moving, fixed), size=64)
    assert np.abs(np.subtract(seen.grid.shape, direct.grid.shape)).max() <= 1
    assert np.abs(seen.grid.corners() - direct.grid.corners()).max() < 1.5 * direct.grid.spacing[0]
    for role in ("moving", "fixed"):
        ours, theirs = seen_there(seen, direct, role)
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.985
