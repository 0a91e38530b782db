"""A registration folder opens back as what was registered, or says why it does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.location import read_location
from napari_shmoareg.experts.maps import expert_maps, gate_values, times_chosen, token_loads
from napari_shmoareg.io import read_registration, read_scene, write_registration
from napari_shmoareg.io.images import is_registration_folder
from napari_shmoareg.registration.register import register


@pytest.fixture(scope="module")
def registration(phantoms, lively_network):
    """On two different oblique grids, with labels."""
    return register(
        phantoms, lively_network(0.03), affine="rigid", size=20, device="cpu", keep="last"
    )


@pytest.fixture(scope="module")
def written(registration, tmp_path_factory):
    """Its folder, and the registration as it was live; not to be changed."""
    folder = tmp_path_factory.mktemp("results") / "out"
    report = write_registration(registration, folder, weights="tiny-1", figures=False)
    return folder, replace(registration, report=report, weights="tiny-1")


@pytest.fixture(scope="module")
def back(written):
    """What was read back from the folder; not to be changed."""
    return read_registration(written[0])


@pytest.fixture
def folder(written, tmp_path):
    """A copy to damage."""
    shutil.copytree(written[0], tmp_path / "out")
    return tmp_path / "out"


def same_volume(a, b):
    return (
        (a.values == b.values).all()
        and (a.grid.affine == b.grid.affine).all()
        and (a.name, a.is_labels) == (b.name, b.is_labels)
    )


def test_a_folder_gives_the_registration_back_that_was_written(written, back):
    folder, live = written
    for role in ("moving", "fixed", "moving_labels", "fixed_labels"):
        assert same_volume(getattr(back.pair, role), getattr(live.pair, role)), role
        assert getattr(back.pair, role).values.itemsize <= getattr(live.pair, role).values.itemsize
    for name in ("warped", "warped_labels", "jacobian"):
        assert same_volume(getattr(back, name), getattr(live, name)), name
    assert back.displacement.vectors == pytest.approx(live.displacement.vectors, abs=1e-6)
    assert (back.displacement.grid.affine == live.displacement.grid.affine).all()
    points = live.pair.fixed.grid.to_world(np.random.default_rng(0).uniform(0, 22, (50, 3)))
    assert back.transform.map_points(points) == pytest.approx(
        live.transform.map_points(points), abs=1e-3
    )
    assert np.allclose(back.affine, live.affine) and not np.allclose(back.affine, np.eye(4))
    assert back.deformation.vectors == pytest.approx(live.deformation.vectors, abs=1e-3)
    assert (back.report, back.weights, back.kernels) == (live.report, "tiny-1", live.kernels)
    assert back.folder == folder.resolve() and live.folder is None


def test_every_choice_of_every_expert_comes_back(written, back):
    live = written[1]
    assert (
        len(expert_maps(back)) == 6 and len(token_loads(back)) == 6 and len(times_chosen(back)) == 4
    )
    for maps in (expert_maps, token_loads, times_chosen):
        for found, made in zip(maps(back), maps(live), strict=True):
            assert (found.name, found.gate, found.stride) == (made.name, made.gate, made.stride)
            if maps is expert_maps:
                assert (
                    same_volume(found.volume, made.volume) and found.num_experts == made.num_experts
                )
                continue
            assert found.values.dtype == made.values.dtype and (found.values == made.values).all()
            assert (found.grid.affine == made.grid.affine).all()


def test_the_values_of_every_gate_come_back_within_their_steps(written, back):
    live = written[1]
    assert len(gate_values(live)) == len(expert_maps(live)) + len(token_loads(live))
    for found, made in zip(gate_values(back), gate_values(live), strict=True):
        for name in ("name", "gate", "stride", "top_k", "num_experts"):
            assert getattr(found, name) == getattr(made, name)
        assert (found.grid.affine == made.grid.affine).all() and found.values.dtype == np.float32
        assert found.values == pytest.approx(made.values, abs=1 / 65535)
        assert found.entropy().values == pytest.approx(made.entropy().values, abs=1e-4)
    assert (back.network_grid.affine == live.network_grid.affine).all()


def test_a_place_reads_alike_live_and_from_the_folder(written, back):
    live = written[1]
    for index in np.ndindex(3, 3, 3):
        point = live.network_grid.to_world(
            np.array(index) / 2 * (np.array(live.network_grid.shape) - 1)
        )
        for found, made in zip(
            read_location(back, point).cells, read_location(live, point).cells, strict=True
        ):
            assert (found.gate, found.cell, found.experts) == (made.gate, made.cell, made.experts)
            assert found.weights == pytest.approx(made.weights, abs=1 / 65535)
            assert found.values == pytest.approx(made.values, abs=1 / 65535)


def test_a_folder_written_before_gates_were_kept_opens_without_them(folder):
    gates = list((folder / "experts").glob("*-gate.nii.gz"))
    assert len(gates) == 12
    for path in gates[1:]:
        path.unlink()
    with pytest.raises(InputError, match=r"incomplete: experts/.*-gate\.nii\.gz is missing"):
        read_registration(folder)
    gates[0].unlink()
    back = read_registration(folder)
    assert gate_values(back) == [] and len(back.routing) == 12


def test_the_inputs_in_the_folder_are_the_numbers_that_were_read(registration, tmp_path):
    pair = registration.pair
    whole = replace(
        pair,
        moving=pair.moving.with_values(np.rint(pair.moving.values).astype(np.int16)),
        fixed=pair.fixed.with_values(pair.fixed.values.astype(np.float64)),
        fixed_labels=None,
    )
    write_registration(
        replace(registration, pair=whole), tmp_path / "out", weights="tiny", figures=False
    )
    inputs = tmp_path / "out" / "inputs"
    names = {path.name for path in inputs.iterdir()}
    assert names == {"moving.nii.gz", "fixed.nii.gz", "moving_labels.nii.gz"}
    stored = {name: nibabel.load(inputs / name) for name in names}
    assert stored["fixed.nii.gz"].get_data_dtype() == np.float64
    assert stored["moving.nii.gz"].get_data_dtype().kind in "iu"
    assert np.allclose(stored["moving.nii.gz"].affine, whole.moving.grid.affine, atol=1e-5)
    assert [stored[name].header.get_intent()[0] == "label" for name in sorted(names)] == [
        False,
        False,
        True,
    ]
    back = read_registration(tmp_path / "out")
    assert back.pair.fixed_labels is None and same_volume(back.pair.fixed, whole.fixed)


def test_a_folder_without_labels_opens_without_them(registration, tmp_path):
    bare = replace(registration.pair, moving_labels=None, fixed_labels=None)
    write_registration(
        replace(registration, pair=bare, warped_labels=None),
        tmp_path / "out",
        weights="tiny",
        figures=False,
    )
    back = read_registration(tmp_path / "out")
    assert back.warped_labels is None and set(back.pair.volumes) == {"moving", "fixed"}


def test_a_folder_of_an_earlier_version_says_what_is_missing_and_what_to_do(folder):
    shutil.rmtree(folder / "inputs")
    with pytest.raises(InputError, match=r"inputs/moving\.nii\.gz.*Register the pair again"):
        read_registration(folder)


@pytest.mark.parametrize(
    "name",
    (
        "inputs/fixed.nii.gz displacement.nii.gz transform.h5 experts/decoder-2-y.nii.gz"
        " experts/encoder-2-1-fixed.nii.gz experts/decoder-1-z-gate.nii.gz"
    ).split(),
)
def test_a_missing_or_damaged_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=name.rsplit("/", maxsplit=1)[-1]):
        read_registration(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_registration(folder)


def test_a_file_of_another_registration_is_noticed(folder):
    shutil.copy(folder / "inputs" / "moving.nii.gz", folder / "warped.nii.gz")
    with pytest.raises(
        InputError, match=r"warped\.nii\.gz is not on the grid that report\.json names"
    ):
        read_registration(folder)
    shutil.copy(
        folder / "experts" / "decoder-1-x.nii.gz", folder / "experts" / "encoder-1-0-moving.nii.gz"
    )
    shutil.copy(folder / "jacobian.nii.gz", folder / "warped.nii.gz")
    with pytest.raises(InputError, match="four axes were expected"):
        read_registration(folder)


def test_a_damaged_report_is_named(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    del report["pair"]["fixed"]["affine"]
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert is_registration_folder(folder) and not is_registration_folder(folder / "inputs")
    with pytest.raises(InputError, match=r"report\.json is damaged"):
        read_registration(folder)


def test_no_part_of_a_registration_is_forgotten(written, back):
    live = written[1]
    for name in ("settings", "choices", "kept", "seconds", "kernels"):
        assert getattr(back, name) == getattr(live, name), name
    assert back.warnings == live.report["warnings"]
    for stage in ("before", "affine", "after"):
        assert back.similarity[stage] == live.similarity[stage], stage
    np.testing.assert_array_equal(back.alignment.matrix, live.alignment.matrix)
    assert back.alignment.after == live.alignment.after
    for found, made in zip(back.routing, live.routing, strict=True):
        assert (found.gate, found.stride) == (made.gate, made.stride)
        for name in ("probabilities", "experts", "weights"):
            a, b = getattr(found.routing, name), getattr(made.routing, name)
            assert a.shape == b.shape and a.dtype == b.dtype, name


def test_what_was_read_back_can_be_written_again(written, back, tmp_path):
    live = written[1]
    report = write_registration(back, tmp_path / "again", weights="tiny-1", figures=False)
    for name in ("settings", "choices", "kept", "similarity", "dice", "warnings", "expert_loads"):
        assert report[name] == live.report[name], name
    again = read_scene(tmp_path / "again")  # its name in earlier versions
    assert (again.warped.values == live.warped.values).all()
    for found, made in zip(again.routing, back.routing, strict=True):
        assert (found.routing.probabilities == made.routing.probabilities).all()
