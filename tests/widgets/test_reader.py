"""Opening things: layers in their roles, panels, and words where something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import DisplacementField, Grid, Volume
from napari_shmoareg.io import write_displacement, write_image, write_registration
from napari_shmoareg.io.images import Contents, inspect_file, is_named_as_labels
from napari_shmoareg.plugin.placement import tag, volume_of
from napari_shmoareg.plugin.reader import read
from napari_shmoareg.plugin.registrations import (
    layer_in_role,
    layers_of_registration,
    open_registrations,
)

SHMOAREG = {"plugin": "shmoareg"}
REGISTER, EXPERTS = "Register (shmoareg)", "Experts (shmoareg)"


@pytest.fixture
def viewer(plugin, make_napari_viewer):
    """Not shown: nothing is looked at here."""
    return make_napari_viewer()


@pytest.fixture
def files(phantoms, tmp_path):
    """The phantoms as files, by role, with names that tell nothing."""
    names = {"moving": "a", "fixed": "b", "moving_labels": "a_seg", "fixed_labels": "b_seg"}
    for role, volume in phantoms.volumes.items():
        write_image(volume, tmp_path / f"{names[role]}.nii.gz")
    return {role: str(tmp_path / f"{name}.nii.gz") for role, name in names.items()}


@pytest.fixture
def straight(tmp_path):
    """Write values as a straight image and give its path."""

    def write(values, name):
        write_image(
            Volume(np.asarray(values), Grid(np.shape(values), np.diag([2.0, 3.0, 4.0, 1.0]))),
            tmp_path / name,
        )
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def written(registration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "out"
    write_registration(registration, folder, weights="untrained", figures=False)
    return folder


@pytest.fixture
def registration_path(written, tmp_path):
    """What `shmoareg register` would have written; a copy to change."""
    shutil.copytree(written, tmp_path / "out")
    return tmp_path / "out"


def roles(viewer):
    return {layer.name: tag(layer, "role") for layer in viewer.layers}


def test_the_first_image_is_moving_and_the_second_fixed_and_both_bring_the_panel(viewer, files):
    viewer.open([files["moving"]], **SHMOAREG)
    assert roles(viewer) == {"a": "moving"} and REGISTER not in viewer.window.dock_widgets
    viewer.open([files["fixed"]], **SHMOAREG)
    assert roles(viewer) == {"a": "moving", "b": "fixed"}
    panel = viewer.window.dock_widgets[REGISTER]
    assert [
        layer.name for layer in (panel.pickers.pair["moving"], panel.pickers.pair["fixed"])
    ] == ["a", "b"]
    assert [str(way) for way in viewer.camera.orientation] == ["towards", "up", "left"]


def test_labels_belong_to_the_image_on_whose_grid_they_lie_and_are_never_images_to_register(
    viewer, files
):
    viewer.open(
        [files[role] for role in ("fixed", "moving", "moving_labels", "fixed_labels")], **SHMOAREG
    )
    assert {layer.name: layer._type_string for layer in viewer.layers}["a_seg"] == "labels"
    assert roles(viewer) == {
        "b": "moving",
        "a": "fixed",
        "a_seg": "fixed_labels",
        "b_seg": "moving_labels",
    }


def test_labels_that_come_first_find_their_image_later(viewer, files):
    viewer.open([files[role] for role in ("moving_labels", "moving", "fixed")], **SHMOAREG)
    assert roles(viewer) == {"a_seg": "moving_labels", "a": "moving", "b": "fixed"}


def test_on_one_grid_labels_go_to_the_image_called_alike_and_else_to_none(viewer, straight):
    image, labels = np.random.default_rng(0).random((6, 7, 8)), np.ones((6, 7, 8), np.uint8)
    paths = [straight(image, "sub-1_t1.nii.gz"), straight(image, "sub-2_t1.nii.gz")]
    paths += [
        straight(labels, f"{name}.nii.gz")
        for name in ("sub-2_seg", "other_seg", "sub-1_seg", "sub-1_mask")
    ]
    viewer.open(paths, **SHMOAREG)
    found = roles(viewer)
    assert found["sub-2_seg"] == "fixed_labels" and found["sub-1_seg"] == "moving_labels"
    assert found["other_seg"] is None and found["sub-1_mask"] is None


LAYOUTS = {
    "Medical Decathlon": ("imagesTr/case_{}.nii.gz", "labelsTr/case_{}.nii.gz"),
    "nnU-Net": ("imagesTr/case_{}_0000.nii.gz", "labelsTr/case_{}.nii.gz"),
    "nnU-Net, test": ("imagesTs/case_{}_0000.nii.gz", "labelsTs/case_{}.nii.gz"),
    "two folders": ("images/{}.nii.gz", "labels/{}.nii.gz"),
    "BTCV": ("img/img000{}.nii.gz", "label/label000{}.nii.gz"),
    "BIDS": (
        "sub-{0}/anat/sub-{0}_T1w.nii.gz",
        "derivatives/sub-{0}/anat/sub-{0}_space-T1w_dseg.nii.gz",
    ),
    "BIDS, own name": (
        "sub-{0}/anat/sub-{0}_T1w.nii.gz",
        "derivatives/labels/sub-{0}/anat/sub-{0}_T1w.nii.gz",
    ),
    "BIDS, one pipeline": (
        "sub-{0}/anat/sub-{0}_T1w.nii.gz",
        "derivatives/sub-{0}/anat/sub-{0}_T1w.nii.gz",
    ),
    "FreeSurfer": ("sub-{}/mri/brain.nii.gz", "sub-{}/mri/aseg.nii.gz"),
}


@pytest.fixture
def layout(straight, tmp_path):
    """Write two scans in a layout, as whole numbers on one grid; gives images and labels."""

    def write(images, labels):
        rng = np.random.default_rng(0)
        structures = np.zeros((6, 7, 8), np.uint8)
        structures[1:5, 1:6, 1:4], structures[1:5, 1:6, 4:7] = 1, 2
        found = []
        for pattern, values in (
            (images, rng.integers(0, 200, (6, 7, 8)).astype(np.uint8)),
            (labels, structures),
        ):
            for n in (1, 2):
                (tmp_path / pattern.format(n)).parent.mkdir(parents=True, exist_ok=True)
                found.append(straight(values, pattern.format(n)))
        return found[:2], found[2:]

    return write


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *((name, "labels of the other first") for name in LAYOUTS),
        ("nnU-Net", "as listed"),
        ("BIDS", "labels first"),
    ],
)
def test_labels_of_a_data_set_open_in_the_role_of_their_image(viewer, layout, name, order):
    (a, b), (a_labels, b_labels) = layout(*LAYOUTS[name])
    files = {
        "as listed": [a, b, a_labels, b_labels],
        "labels of the other first": [a, b_labels, b, a_labels],
        "labels first": [b_labels, a_labels, a, b],
    }[order]
    read_as = {}
    for n, file in enumerate(files):
        viewer.open([file], **SHMOAREG)
        read_as[file] = viewer.layers[n]
    found = {Path(file): tag(layer, "role") for file, layer in read_as.items()}
    assert found == {
        Path(a): "moving",
        Path(b): "fixed",
        Path(a_labels): "moving_labels",
        Path(b_labels): "fixed_labels",
    }
    assert {la._type_string for la in (read_as[a_labels], read_as[b_labels])} == {"labels"}
    pickers = viewer.window.dock_widgets[REGISTER].pickers
    assert pickers.pair["moving_labels"] is read_as[a_labels]
    assert pickers.pair["fixed_labels"] is read_as[b_labels]


def test_an_image_in_a_folder_of_labels_or_derivatives_stays_an_image(viewer, straight, tmp_path):
    rng = np.random.default_rng(0)
    for folder, values in (
        ("labels", rng.integers(0, 200, (6, 7, 8)).astype(np.uint8)),
        ("derivatives", rng.random((6, 7, 8), np.float32)),
    ):
        (tmp_path / folder).mkdir()
        viewer.open([straight(values, f"{folder}/sub-1_T1w.nii.gz")], **SHMOAREG)
    assert [layer._type_string for layer in viewer.layers] == ["image", "image"]


def status_of(viewer, layer, label):
    """What the status bar shows for a voxel of this label."""
    index = np.argwhere(np.asarray(layer.data) == label)[0]
    viewer.dims.point = world = layer.data_to_world(index)
    return layer.get_status(world, dims_displayed=[1, 2], world=True)["value"]


def test_names_in_a_dataset_json_are_under_the_cursor_and_told_once(viewer, layout, told):
    (a, b), labels = layout(*LAYOUTS["nnU-Net"])
    text = '{"labels": {"background": 0, "anterior": 1}}'
    (Path(a).parents[1] / "dataset.json").write_text(text, encoding="utf-8")
    viewer.open([a, b, *labels], **SHMOAREG)
    layer = layer_in_role(viewer, "moving_labels")
    assert "anterior" in status_of(viewer, layer, 1)
    assert "No Properties" not in status_of(viewer, layer, 2) + status_of(viewer, layer, 0)
    assert volume_of(layer).label_names.names == {1: "anterior"}
    assert told("info").count("have their names from dataset.json") == 1


def test_a_damaged_dataset_json_is_a_warning_and_the_labels_open(viewer, layout, told):
    (a, _), (labels, _) = layout(*LAYOUTS["Medical Decathlon"])
    (Path(a).parents[1] / "dataset.json").write_text("{", encoding="utf-8")
    viewer.open([a, labels], **SHMOAREG)
    assert layer_in_role(viewer, "moving_labels").features.shape[1] == 0
    assert "dataset.json" in told("warning") and not told("error")


def test_codes_of_freesurfer_are_named_and_said_to_be_guessed(viewer, straight, told):
    deep = np.zeros((6, 7, 8), np.uint8)
    deep[1:5, 1:6, 1:7] = np.array([10, 49, 11, 50, 17, 53])
    viewer.open([straight(deep, "sub-1_aseg.nii.gz")], **SHMOAREG)
    layer = viewer.layers["sub-1_aseg"]
    assert "Right-Hippocampus" in status_of(viewer, layer, 53)
    assert "from FreeSurfer's codes (guessed from the label values)" in told("info")
    names = volume_of(layer).label_names
    assert names.get(17) == "Left-Hippocampus" and "guessed" in names.source


def test_names_are_loaded_into_the_picked_labels(viewer, layout, told, tmp_path):
    (a, b), labels = layout(*LAYOUTS["two folders"])
    viewer.open([a, b, *labels], **SHMOAREG)
    (tmp_path / "organs.ctbl").write_text("1 liver 0 0 0 0\n2 spleen 0 0 0 0\n", encoding="utf-8")
    (tmp_path / "other.ctbl").write_text("7 aorta 0 0 0 0\n", encoding="utf-8")
    button = viewer.window.dock_widgets[REGISTER].pickers.names
    button.load(str(tmp_path / "organs.ctbl"))
    assert "organs.ctbl names 2 of the 2 labels" in told("info")
    for role in ("moving_labels", "fixed_labels"):
        layer = layer_in_role(viewer, role)
        assert "spleen" in status_of(viewer, layer, 2)
        assert volume_of(layer).label_names.source == "organs.ctbl"
    button.load(str(tmp_path / "other.ctbl"))
    assert "other.ctbl names 0 of the 2 labels" in told("warning")
    assert "liver" in status_of(viewer, layer_in_role(viewer, "fixed_labels"), 1)
    button.load(str(tmp_path / "missing.ctbl"))
    assert "missing.ctbl" in told("error")


def test_a_panel_that_was_closed_is_not_forced_open_again(viewer, files):
    viewer.open([files["moving"], files["fixed"]], **SHMOAREG)
    frame = viewer.window.dock_widgets[REGISTER].parent()
    frame.close()
    viewer.open([files["fixed"]], **SHMOAREG)
    assert not frame.isVisible() and roles(viewer)["b [1]"] is None


def test_an_image_comes_back_from_its_layer_to_the_bit(viewer, files, phantoms, told):
    viewer.open([files["moving"]], **SHMOAREG)
    back = volume_of(viewer.layers["a"])
    assert (back.values == phantoms.moving.values).all()
    assert np.allclose(back.grid.affine, phantoms.moving.grid.affine, atol=1e-5)
    assert told("info").count("is oblique to the patient's axes") == 1
    viewer.open([files["fixed"]], **SHMOAREG)
    assert told("info").count("is oblique to the patient's axes") == 1


@pytest.mark.parametrize(
    ("values", "name", "kind"),
    [
        (np.arange(210).reshape(5, 6, 7), "liver_mask.nii.gz", "labels"),
        (np.arange(210.0).reshape(5, 6, 7), "aparc+aseg.nii.gz", "labels"),
        (np.linspace(0, 1, 210).reshape(5, 6, 7), "label-GM_probseg.nii.gz", "image"),
        (np.arange(-9, 201).reshape(5, 6, 7), "ct_seg.nii.gz", "image"),
        (np.arange(210).reshape(5, 6, 7), "totalseg_ct.nii.gz", "image"),
    ],
)
def test_whole_numbers_from_0_under_the_name_of_labels_are_labels(
    viewer, straight, values, name, kind
):
    (layer,) = viewer.open([straight(values, name)], **SHMOAREG)
    assert layer._type_string == kind
    assert tag(layer, "role") == ("moving" if kind == "image" else None)


def test_labels_are_known_by_their_header_whatever_they_are_called(tmp_path):
    volume = Volume(np.arange(24).reshape(2, 3, 4), Grid((2, 3, 4), np.eye(4)), is_labels=True)
    write_image(volume, tmp_path / "x.nii.gz")
    write_image(replace(volume, is_labels=False), tmp_path / "y.nii.gz")
    assert inspect_file(tmp_path / "x.nii.gz") == Contents("labels") and inspect_file(
        tmp_path / "y.nii.gz"
    ) == Contents("image")
    assert not is_named_as_labels("segment_of_life.nii.gz") and is_named_as_labels(
        "a/b/Training_Seg_01.nii"
    )


def test_of_a_4d_image_the_first_volume_opens_and_the_number_is_told(viewer, tmp_path, told):
    values = np.random.default_rng(0).random((5, 6, 7, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "bold.nii.gz")
    (layer,) = viewer.open([str(tmp_path / "bold.nii.gz")], **SHMOAREG)
    assert (volume_of(layer).values == values[..., 0]).all()
    assert "holds 3 volumes" in told("warning")


@pytest.mark.parametrize("name", ["u.nii.gz", "u.mha"])
def test_a_displacement_opens_as_its_length_in_mm(viewer, tmp_path, name):
    grid = Grid((5, 6, 7), np.diag([2.0, 2.0, 3.0, 1.0]))
    vectors = np.zeros((5, 6, 7, 3), np.float32)
    vectors[1, 2, 3] = (3, -4, 12)
    if name.endswith(".mha"):
        sitk = pytest.importorskip("SimpleITK")
        image = sitk.GetImageFromArray(
            np.ascontiguousarray(vectors.transpose(2, 1, 0, 3)), isVector=True
        )
        image.SetDirection([-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0])
        sitk.WriteImage(image, str(tmp_path / name))
    else:
        write_displacement(DisplacementField(vectors, grid), tmp_path / name)
    (layer,) = viewer.open([str(tmp_path / name)], **SHMOAREG)
    assert layer.name == "u, length in mm" and tag(layer, "role") is None
    assert layer.data[3, 2, 1] == pytest.approx(13) and layer.data.sum() == pytest.approx(13)


def test_a_place_that_was_guessed_is_told(viewer, tmp_path, told):
    image = nibabel.Nifti1Image(np.random.default_rng(0).random((5, 6, 7)).astype(np.float32), None)
    nibabel.save(image, tmp_path / "lost.nii.gz")
    viewer.open([str(tmp_path / "lost.nii.gz")], **SHMOAREG)
    assert "does not say where its voxels are" in told("warning") and len(viewer.layers) == 1


def test_a_damaged_file_is_told_in_our_words_and_the_others_open(viewer, files, tmp_path, told):
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8b nothing")
    assert viewer.open([str(tmp_path / "bad.nii.gz"), files["fixed"]], **SHMOAREG) == [
        viewer.layers["b"]
    ]
    assert "is not the kind of image that its ending suggests" in told("error")


@pytest.mark.parametrize(
    "error", [KeyError("qform"), ValueError(""), MemoryError(), RuntimeError("ITK\nat line 3")]
)
def test_an_error_that_no_reader_foresaw_is_a_notification_that_names_the_file(
    viewer, files, told, error, monkeypatch
):
    from napari_shmoareg.plugin import reader

    read = reader.layer_of_file

    def fail(path, known):
        if path == files["fixed"]:
            raise error
        return read(path, known)

    monkeypatch.setattr(reader, "layer_of_file", fail)
    opened = viewer.open([files["fixed"], files["moving"]], **SHMOAREG)
    assert [layer.name for layer in opened] == ["a"]
    message = told("error")
    assert files["fixed"] in message and len(message.splitlines()) == 1
    assert "bug" not in message and "Traceback" not in message


def test_an_input_error_that_names_no_file_gets_its_name_and_names_beyond_utf_8_are_shown(
    viewer, tmp_path, told, monkeypatch
):
    from napari_shmoareg.plugin import reader

    def refuse(path, known):
        raise InputError("A 3D image was expected.")

    monkeypatch.setattr(reader, "layer_of_file", refuse)
    path = os.fsdecode(os.fsencode(tmp_path) + b"/scan-\xff.nii.gz")
    Path(path).write_bytes(b"")
    assert reader.read(path) == [(None,)]
    assert f"A 3D image was expected. File: {tmp_path}/scan-?.nii.gz" in told("error")


def test_without_a_viewer_an_error_is_raised(tmp_path):
    (tmp_path / "bad.mha").write_bytes(b"nothing")
    with pytest.raises(InputError, match="could not be read"):
        read(str(tmp_path / "bad.mha"))


def test_several_paths_at_once_stay_single_volumes(viewer, files):
    viewer.open([files["moving"], files["fixed"]], stack=True, **SHMOAREG)
    assert roles(viewer) == {"a": "moving", "b": "fixed"} and {
        layer.ndim for layer in viewer.layers
    } == {3}


def test_a_folder_of_other_images_says_what_was_expected(viewer, files, tmp_path, told):
    assert viewer.open([str(tmp_path)], **SHMOAREG) == []
    assert "no DICOM series" in told("error") and "a.nii.gz and 3 more" in told("error")


def write_slices(folder, uid, values):
    """A DICOM series of upright slices, one file each."""
    sitk = pytest.importorskip("SimpleITK")
    folder.mkdir(exist_ok=True)
    for n, slice_ in enumerate(values):
        image = sitk.GetImageFromArray(slice_[None])
        tags = {
            "0020|000e": uid,
            "0008|0018": f"{uid}.{n + 1}",
            "0020|0013": str(n + 1),
            "0008|0060": "CT",
        }
        tags |= {"0020|0032": f"0\\0\\{3 * n}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for key, text in tags.items():
            image.SetMetaData(key, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid[-1]}_{n}.dcm"))
        writer.Execute(image)


def test_a_dicom_folder_opens_and_a_slice_opens_its_series_once(viewer, tmp_path, told):
    values = np.random.default_rng(0).integers(-500, 900, (5, 6, 7)).astype(np.int16)
    write_slices(tmp_path / "ct", "1.2.3.7", values)
    (layer,) = viewer.open([str(tmp_path / "ct")], **SHMOAREG)
    assert (
        layer.name == "ct" and tag(layer, "role") == "moving" and layer.scale[0] == pytest.approx(3)
    )
    write_slices(tmp_path / "ct", "1.2.3.8", values + 1)
    assert viewer.open([str(tmp_path / "ct")], **SHMOAREG) == []
    assert "Open one slice of the series you want" in told("error") and "FOLDER#" not in told(
        "error"
    )
    slices = [str(path) for path in sorted((tmp_path / "ct").glob("8_*"))]
    (second,) = viewer.open(slices, **SHMOAREG)
    assert tag(second, "role") == "fixed" and second.data.min() == values.min() + 1


def write_frames(path, values, echoes):
    """A multi-frame DICOM file (enhanced MR) of upright slices 3 mm apart, as many volumes as
    echoes.
    """
    pydicom = pytest.importorskip("pydicom")
    sop = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.4.1")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop, "1.2.3.9.1"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d = pydicom.dataset.FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = sop, "1.2.3.9.1", "1.2.3.9"
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 1
    d.BitsAllocated, d.BitsStored, d.HighBit = 16, 16, 15
    d.NumberOfFrames, d.Rows, d.Columns = len(values), *values.shape[1:]
    d.PixelData = values.astype("<i2").tobytes()
    d["PixelData"].VR = "OW"

    def item(**elements):
        one = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(one, keyword, value)
        return pydicom.Sequence([one])

    shared = item(PixelMeasuresSequence=item(PixelSpacing=[1, 1]))
    shared[0].PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    d.SharedFunctionalGroupsSequence = shared
    frames = []
    for n in range(len(values)):
        (frame,) = item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, 3 * (n // len(echoes))])
        )
        frame.MREchoSequence = item(EffectiveEchoTime=echoes[n % len(echoes)])
        frames.append(frame)
    d.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    path.parent.mkdir(exist_ok=True)
    d.save_as(path, enforce_file_format=True)


def test_a_multi_frame_file_opens_as_a_volume_and_several_volumes_are_listed(
    viewer, tmp_path, told
):
    values = np.random.default_rng(0).integers(-500, 900, (6, 5, 4)).astype(np.int16)
    write_frames(tmp_path / "one" / "a.dcm", values, [4.6])
    (layer,) = viewer.open([str(tmp_path / "one" / "a.dcm")], **SHMOAREG)
    volume = tag(layer, "volume")
    np.testing.assert_array_equal(volume.values, values.transpose(2, 1, 0))
    assert volume.grid.spacing == pytest.approx((1, 1, 3))
    write_frames(tmp_path / "bare" / "IM0001", values, [4.6])
    ((data, _, _),) = read(str(tmp_path / "bare" / "IM0001"))
    assert data.shape == (6, 5, 4)
    write_frames(tmp_path / "two" / "b.dcm", values, [4.6, 9.2])
    assert viewer.open([str(tmp_path / "two" / "b.dcm")], **SHMOAREG) == []
    assert (
        "2 volumes" in told("error")
        and "echo time 9.2" in told("error")
        and "dcm2niix" in told("error")
    )


@pytest.mark.slow
def test_a_registration_folder_opens_with_its_panel(viewer, registration_path, qtbot):
    viewer.open([str(registration_path)], **SHMOAREG)
    opened = open_registrations(viewer)
    assert list(opened) == [1] and opened[1].folder == registration_path
    roles = {tag(la, "role") for la in viewer.layers}
    assert {"moving", "fixed", "warped"} <= roles and "expert_map" not in roles
    assert EXPERTS in viewer.window.dock_widgets and REGISTER not in viewer.window.dock_widgets
    qtbot.waitUntil(lambda: viewer.layers.selection.active.name == "#1 warped")
    viewer.open([str(registration_path)], **SHMOAREG)
    assert list(open_registrations(viewer)) == [1, 2]


def test_a_folder_of_an_earlier_version_is_told_and_adds_nothing(viewer, registration_path, told):
    (registration_path / "inputs").rename(registration_path / "elsewhere")
    assert viewer.open([str(registration_path)], **SHMOAREG) == []
    assert "written by an earlier version" in told("error")


def test_an_unknown_address_names_what_there_is(viewer, told):
    assert viewer.open(["shmoareg://no-such"], **SHMOAREG) == []
    assert "shmoareg://demo" in told("error")


@pytest.mark.slow
def test_the_sample_pair_opens_with_labels_and_the_panel(viewer):
    viewer.open_sample("shmoareg", "pair")
    assert {role for role in roles(viewer).values()} == {
        "moving",
        "fixed",
        "moving_labels",
        "fixed_labels",
    }
    assert REGISTER in viewer.window.dock_widgets
    assert layer_in_role(viewer, "fixed").name == "sample_fixed"


@pytest.mark.slow
def test_plain_images_and_labels_are_read_without_torch(files):
    code = (
        "import sys; from napari_shmoareg.plugin.reader import read; "
        "kinds = [read(path)[0][2] for path in sys.argv[1:]]; print(kinds, 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *files.values()], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "['image', 'image', 'labels', 'labels'] False"


def test_a_layer_that_got_its_role_in_the_panel_keeps_no_file_from_opening(viewer, files):
    viewer.add_image(np.zeros((4, 5, 6)), name="plain", metadata={"shmoareg": {"role": "moving"}})
    viewer.open([files["moving"], files["moving_labels"]], **SHMOAREG)
    assert roles(viewer) == {"plain": "moving", "a": "fixed", "a_seg": "fixed_labels"}


@pytest.mark.slow
def test_a_folder_that_was_read_for_another_viewer_gets_a_number_of_its_own(
    viewer, registration_path
):
    layers = read(str(registration_path))
    viewer.open([str(registration_path)], **SHMOAREG)
    first = open_registrations(viewer)[1]
    for data, options, kind in layers:
        getattr(viewer, f"add_{kind}")(data, **options)
    assert list(open_registrations(viewer)) == [1, 2] and open_registrations(viewer)[1] is first
    warped = layers_of_registration(viewer, 2, "warped")
    assert [layer.name for layer in warped] == ["#2 warped"] and len(
        layers_of_registration(viewer, 1, "warped")
    ) == 1
