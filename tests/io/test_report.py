"""A registration to a folder, whole or not at all, and back."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import defaultdict
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.geometry import Grid, LabelNames, Transform
from napari_shmoareg.io import read_image, read_registration, read_transform, write_registration
from napari_shmoareg.io import registration_folder as report_module
from napari_shmoareg.io.registration_folder import extend_to_cover
from napari_shmoareg.io.report import build_report, plain, read_registration_summary
from napari_shmoareg.metrics.measure import measure
from napari_shmoareg.model import RoutingTrace

FILES = set(
    "inputs warped.nii.gz warped_labels.nii.gz displacement.nii.gz transform.h5 jacobian.nii.gz"
    " report.json experts figures".split()
)


@pytest.fixture(scope="module")
def written(registered_phantoms, tmp_path_factory):
    """The folder of the `registration` without figures; not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "out"
    write_registration(registered_phantoms, folder, weights="tiny", figures=False)
    return folder


@pytest.fixture(scope="module")
def drawn(registered_phantoms, tmp_path_factory):
    """That with figures, and the progress that was told; not to be changed."""
    folder, told = tmp_path_factory.mktemp("drawn") / "out", []
    write_registration(
        registered_phantoms, folder, weights="tiny-1", progress=lambda *done: told.append(done)
    )
    return folder, told


@pytest.fixture
def bent(registration):
    """The same with an affine and a field of up to 5 mm."""
    field = registration.transform.field
    x, y, z = np.moveaxis(field.grid.to_world(np.stack(np.indices(field.grid.shape), -1)), -1, 0)
    vectors = np.stack([5 * np.sin(y / 9), 4 * np.cos(z / 8), 3 * np.sin(x / 11)], -1).astype(
        np.float32
    )
    affine = np.array([[1.02, 0.1, 0, 4], [-0.1, 0.98, 0.03, -6], [0, 0.05, 1.01, 3], [0, 0, 0, 1]])
    transform = Transform(affine, replace(field, vectors=vectors))
    return replace(
        registration,
        transform=transform,
        displacement=transform.total(registration.pair.fixed.grid),
    )


def _refuse(text):
    raise ValueError(f"{text} is not JSON")


def test_the_folder_holds_exactly_what_is_promised_and_progress_is_told_to_the_end(drawn):
    folder, told = drawn
    assert {p.name for p in folder.iterdir()} == FILES
    assert [p.name for p in folder.parent.iterdir()] == ["out"], "something was left beside it"
    experts = {p.name for p in (folder / "experts").iterdir()}
    decoder = {f"decoder-{layer}-{direction}.nii.gz" for layer in (1, 2) for direction in "xyz"}
    images = ("moving", "fixed")
    encoder = {
        f"encoder-{place}-{image}.nii.gz" for place in ("1-0", "2-0", "2-1") for image in images
    }
    times = {f"encoder-{layer}-{image}-times-chosen.nii.gz" for layer in (1, 2) for image in images}
    gates = {name.replace(".nii.gz", "-gate.nii.gz") for name in decoder | encoder}
    assert experts == decoder | encoder | times | gates | {"loads.csv"}
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert figures == {"overview.png", "jacobian.png", "expert_maps.png", "expert_loads.png"}
    fractions = [done for _, done in told]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1


def test_images_stand_on_the_fixed_grid(written, registration):
    for name in ("warped", "warped_labels", "jacobian"):
        volume = read_image(written / f"{name}.nii.gz", labels=name == "warped_labels")
        assert volume.grid.same_space(registration.pair.fixed.grid)
        assert volume.values == pytest.approx(getattr(registration, name).values, abs=1e-5)
    assert not (written / "figures").exists()


def test_expert_files_stand_on_their_own_grids(written, registration):
    experts, network = written / "experts", registration.network_grid
    for name, stride in (("decoder-1-x", 1), ("decoder-2-z", 2)):
        volume = read_image(experts / f"{name}.nii.gz", labels=True)
        assert volume.grid.same_space(network.coarsen(stride)) and set(volume.labels) <= {1, 2, 3}
    loads = nibabel.load(experts / "encoder-2-1-moving.nii.gz")
    assert loads.shape == (*network.coarsen(8).shape, 6)
    assert np.allclose(loads.affine, network.coarsen(8).affine, atol=1e-4)
    assert np.asarray(loads.dataobj).sum(axis=-1) == pytest.approx(1, abs=1e-5)


def test_gate_files_hold_what_every_gate_gave_the_big_ones_in_two_bytes(written, registration):
    for record in registration.routing:
        stored = nibabel.load(written / "experts" / f"{record.name}-gate.nii.gz")
        assert np.allclose(
            stored.affine, registration.network_grid.coarsen(record.stride).affine, atol=1e-4
        )
        given = np.moveaxis(record.routing.probabilities[0].numpy(), 0, -1)
        if record.part == "encoder":
            np.testing.assert_array_equal(np.asarray(stored.dataobj), given)
        else:
            assert stored.get_data_dtype() == np.uint16 and stored.dataobj.slope == np.float32(
                1 / 65535
            )
            assert np.asarray(stored.dataobj) == pytest.approx(given, abs=1 / 65535)


def test_the_room_a_folder_is_said_to_need_is_not_less_than_it_takes(written, registration):
    images = [path for path in written.rglob("*") if path.suffix in (".gz", ".h5")]
    assert len(images) > 20
    assert sum(path.stat().st_size for path in images) <= report_module._bytes(registration)


def test_both_transform_files_say_what_the_registration_says(bent, tmp_path):
    registration = bent
    write_registration(registration, tmp_path / "out", weights="tiny", figures=False)
    grid = registration.pair.fixed.grid
    points = grid.to_world(
        np.random.default_rng(0).uniform(0, 1, (200, 3)) * (np.array(grid.shape) - 1)
    )
    expected = registration.transform.map_points(points)
    assert read_transform(tmp_path / "out" / "transform.h5").map_points(points) == pytest.approx(
        expected, abs=1e-3
    )
    whole = read_transform(tmp_path / "out" / "displacement.nii.gz")
    corners = grid.to_world(np.array([[0, 0, 0], [36, 28, 22], [18, 14, 11]]))
    assert whole.map_points(corners) == pytest.approx(
        registration.transform.map_points(corners), abs=1e-3
    )


def test_itk_moves_every_point_of_the_fixed_image_as_we_do(bent, tmp_path):
    registration = bent
    sitk = pytest.importorskip("SimpleITK")
    write_registration(registration, tmp_path / "out", weights="tiny", figures=False)
    composite = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    to_lps = np.array([-1.0, -1.0, 1.0])
    for point in (
        registration.pair.fixed.grid.corners() * 0.999 + registration.pair.fixed.grid.centre * 0.001
    ):
        found = np.array(composite.TransformPoint((point * to_lps).tolist())) * to_lps
        assert found == pytest.approx(registration.transform.map_points(point), abs=1e-3)


def test_the_grid_of_the_transform_covers_the_fixed_image_and_keeps_its_nodes(registration):
    field, fixed = registration.transform.field, registration.pair.fixed.grid
    grid = extend_to_cover(field, fixed)
    index = grid.to_index(fixed.corners())
    assert index.min() >= -1e-6 and (index <= np.array(grid.shape) - 1 + 1e-6).all()
    offset = grid.to_index(field.grid.to_world((0, 0, 0)))
    assert offset == pytest.approx(np.rint(offset), abs=1e-6) and grid.spacing == pytest.approx(
        field.grid.spacing
    )


def test_shares_sum_to_one_within_layer_block_image_and_direction(written, registration):
    with (written / "experts" / "loads.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    gate = ["part", "layer", "block", "image", "direction"]
    assert list(rows[0]) == [*gate, "expert", "count", "share"]
    sums = defaultdict(float)
    for row in rows:
        sums[tuple(row[key] for key in gate)] += float(row["share"])
    assert len(sums) == 3 * 2 + 2 * 3
    assert all(total == pytest.approx(1, abs=1e-9) for total in sums.values())


def test_the_report_is_strict_json_and_says_what_was_done(registration, tmp_path):
    returned = write_registration(
        registration, tmp_path / "out", weights="tiny-1", figures=False, extra={"note": 1}
    )
    text = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=_refuse)
    assert report == returned
    assert report["weights"] == "tiny-1" and report["extra"] == {"note": 1}
    assert {"python", "shmoareg", "torch"} <= set(report["versions"])
    assert np.allclose(report["affine"]["matrix"], registration.alignment.matrix)
    assert report["affine"]["reason"] == registration.alignment.reason
    assert report["settings"] == plain(registration.settings) and report["seconds"] == plain(
        registration.seconds
    )
    assert (
        set(report["similarity"])
        == {"before", "affine", "after"}
        == set(report["dice"])
        == set(report["assd_mm"])
    )
    assert set(report["dice"]["after"]["per_label"]) == {"1", "2", "3", "4"}
    assert 0 <= report["folding_percent"] <= 100
    assert len(report["expert_loads"]) == 3 * 2 + 2 * 3
    assert report["pair"]["fixed"]["shape"] == [37, 29, 23]


def test_what_could_not_be_measured_is_null_in_the_report(registration, tmp_path):
    labels = registration.pair.fixed_labels
    without = labels.with_values(np.where(labels.values == 4, 0, labels.values))
    one_sided = replace(registration, pair=replace(registration.pair, fixed_labels=without))
    write_registration(one_sided, tmp_path / "out", weights="tiny", figures=False)
    report = json.loads(
        (tmp_path / "out" / "report.json").read_text(encoding="utf-8"), parse_constant=_refuse
    )
    assert report["assd_mm"]["after"]["per_label"]["4"] is None
    assert report["dice"]["after"]["per_label"]["4"] is None and report["labels"][
        "only_moving"
    ] == [4]
    assert report["assd_mm"]["after"]["mean"] is not None
    assert plain({1: [float("inf"), np.float32("nan"), np.int64(3), True]}) == {
        "1": [None, None, 3, True]
    }


def test_names_of_labels_are_in_the_report_and_come_back_with_the_folder(registration, tmp_path):
    pair = registration.pair
    moving = LabelNames({1: "skin", 2: "liver", 3: "kidney", 99: "not here"}, "a.ctbl")
    fixed = LabelNames({2: "Liver", 3: "spleen"}, "b.ctbl")
    pair = replace(
        pair,
        moving_labels=replace(pair.moving_labels, label_names=moving),
        fixed_labels=replace(pair.fixed_labels, label_names=fixed),
    )
    report = write_registration(
        replace(registration, pair=pair), tmp_path / "out", weights="tiny", figures=False
    )
    assert report["label_names"] == {"1": "skin", "2": "liver", "3": "kidney / spleen"}
    assert report["label_names_from"] == "a.ctbl and b.ctbl"
    (caution,) = [text for text in report["warnings"] if "different names" in text]
    assert "3 kidney / spleen" in caution and "liver" not in caution
    back = read_registration(tmp_path / "out")
    for volume in (back.pair.moving_labels, back.pair.fixed_labels, back.warped_labels):
        assert volume.label_names.get(3) == "kidney / spleen"
    path = tmp_path / "out" / "report.json"
    for wrong in ({"x": "liver"}, {"1": 7}, ["liver"]):
        path.write_text(json.dumps(report | {"label_names": wrong}), encoding="utf-8")
        with pytest.raises(InputError, match="damaged"):
            read_registration_summary(tmp_path / "out")
    older = {name: value for name, value in report.items() if not name.startswith("label_names")}
    path.write_text(json.dumps(older), encoding="utf-8")
    assert not read_registration(tmp_path / "out").pair.label_names


def test_without_labels_there_is_no_label_file_and_no_overlap(registration, tmp_path):
    bare = replace(
        registration,
        pair=replace(registration.pair, moving_labels=None, fixed_labels=None),
        warped_labels=None,
    )
    report = write_registration(bare, tmp_path / "out", weights="tiny", figures=False)
    left_out = {"warped_labels.nii.gz", "figures"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES - left_out
    assert report["dice"] is None and report["pair"]["fixed_labels"] is None


def test_a_network_without_experts_is_reported_too(registration, tmp_path):
    plain_network = replace(registration, routing=RoutingTrace(()))
    write_registration(plain_network, tmp_path / "out", weights="plain")
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} == {
        "overview.png",
        "jacobian.png",
    }
    assert len(read_registration_summary(tmp_path / "out").load) == 0


def test_pictures_say_in_their_file_what_they_show(drawn):
    image = pytest.importorskip("PIL.Image")
    for name in ("overview", "jacobian", "expert_maps", "expert_loads"):
        with image.open(drawn[0] / "figures" / f"{name}.png") as picture:
            about = picture.text
        assert about["Weights"] == "tiny-1" and about["Pair"] == "moving moving, fixed fixed"
        assert about["Title"] == name.replace("_", " ") and json.loads(about["Settings"])


def test_the_summary_reads_back_what_was_written(written, registration):
    summary = read_registration_summary(written)
    load = ExpertLoad.of(registration.routing)
    report = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert summary.report == report and summary.load.cells == load.cells
    assert all((summary.load.counts[place] == load.counts[place]).all() for place in load)


def test_a_folder_that_is_no_registration_is_refused_in_plain_words(written, tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        read_registration_summary(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no report\.json"):
        read_registration_summary(tmp_path)
    shutil.copytree(written, tmp_path / "out")
    (tmp_path / "out" / "experts" / "loads.csv").write_text(
        "part,layer\nencoder,1\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"loads\.csv is damaged"):
        read_registration_summary(tmp_path / "out")
    (tmp_path / "out" / "report.json").write_text('{"format": 1, "exp', encoding="utf-8")
    with pytest.raises(InputError, match=r"report\.json is damaged"):
        read_registration_summary(tmp_path / "out")


def test_a_folder_with_something_in_it_is_not_touched(registration, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        write_registration(registration, tmp_path, weights="tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_nothing_and_is_named(registration, tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module, "write_summary", fill)
    with pytest.raises(InputError, match="disk is full"):
        write_registration(registration, tmp_path / "out", weights="tiny", figures=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_leaves_no_folder_that_looks_finished(tmp_path):
    code = """
        import os, signal, sys
        import numpy as np, torch
        from napari_shmoareg.registration.register import register
        from napari_shmoareg.geometry import Grid, Volume, VolumePair
        from napari_shmoareg.io import registration_folder as report
        from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

        torch.set_num_threads(1)
        grid = Grid((20, 17, 14), np.diag([3.0, 2.0, 2.5, 1.0]))
        rng = np.random.default_rng(0)
        pair = VolumePair(*(Volume(rng.random(grid.shape), grid) for _ in range(2)))
        network = SHMoAReg(SHMoARegConfig.preset("tiny")).eval()
        done = register(pair, network, affine="none", size=16, device="cpu", keep="last")

        def killed(*_):
            print("killed while writing", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        report.write_transform = killed
        report.write_registration(done, sys.argv[1], weights="tiny")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL and "killed while writing" in run.stdout, run.stderr
    assert not (tmp_path / "out").exists()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".out.partial")
    assert not (left[0] / "report.json").exists()


def test_a_sheared_fixed_grid_is_named_in_the_notes_of_the_report(registration):
    quality, load = measure(registration), ExpertLoad.of(registration.routing)
    assert build_report(registration, quality, load, weights="tiny")["notes"] == []
    affine = registration.pair.fixed.grid.affine.copy()
    affine[:3, 0] += 0.1 * affine[:3, 1]
    fixed = replace(registration.pair.fixed, grid=Grid(registration.pair.fixed.grid.shape, affine))
    sheared = replace(registration, pair=replace(registration.pair, fixed=fixed, fixed_labels=None))
    (warning,) = build_report(sheared, quality, load, weights="tiny")["notes"]
    assert all(
        words in warning
        for words in ("right angles", "displacement.nii.gz", "warped.nii.gz", "transform.h5")
    )
