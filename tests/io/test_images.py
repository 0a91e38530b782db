"""Image files to Volumes and back, and everything that can be wrong with a file."""

import gzip
import os
import shutil

import nibabel
import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.io import read_image, read_pair, write_image
from napari_shmoareg.io.images import storable

SHAPE = (17, 13, 9)


def oblique(shape=SHAPE, spacing=(1.5, 2.0, 3.5), flip=-1.0) -> Grid:
    a, b = np.deg2rad([12.0, -7.0])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([flip, 1, 1]) * spacing
    affine[:3, 3] = (20, -35, 12)
    return Grid(shape, affine)


def some_values(kind="int16", shape=SHAPE):
    return np.random.default_rng(3).integers(-40 if kind[0] != "u" else 0, 120, shape).astype(kind)


@pytest.fixture
def volume() -> Volume:
    return Volume(some_values(), oblique(), "scan")


@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"]
)
def test_what_is_written_is_read_back_equal(tmp_path, kind):
    volume = Volume(some_values(kind), oblique(), "scan")
    write_image(volume, tmp_path / "scan.01.nii.gz")
    back = read_image(tmp_path / "scan.01.nii.gz")
    np.testing.assert_array_equal(back.values, volume.values)
    assert back.grid.same_space(volume.grid, 1e-4)
    assert back.name == "scan.01"
    assert os.listdir(tmp_path) == ["scan.01.nii.gz"]


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
@settings(max_examples=50, deadline=None)
def test_storing_never_changes_a_whole_number(low, high):
    values = np.array([low, high], dtype=np.int64)
    np.testing.assert_array_equal(storable(values).astype(np.int64), values)


def test_wide_integers_and_truth_values_are_stored_small():
    assert storable(np.array([0, 200], dtype=np.int64)).dtype == np.uint8
    assert storable(np.array([-3, 200], dtype=np.int64)).dtype == np.int16
    assert storable(np.array([True, False])).dtype == np.uint8
    assert storable(np.array([0.5], dtype=np.float16)).dtype == np.float32


def test_an_independent_reader_finds_each_voxel_in_the_same_place(tmp_path, volume):
    write_image(volume, tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for index in [(0, 0, 0), (16, 3, 8), (5, 12, 1)]:
        ras = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose(ras, volume.grid.to_world(index), atol=1e-4)
        assert image[index] == volume.values[index]


def test_qform_and_sform_both_say_scanner_space_in_mm(tmp_path, volume):
    write_image(volume, tmp_path / "a.nii")
    header = nibabel.load(tmp_path / "a.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_sheared_grid_survives_in_the_sform_alone(tmp_path):
    affine = oblique().affine.copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    volume = Volume(some_values(), Grid(SHAPE, affine))
    write_image(volume, tmp_path / "a.nii.gz")
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 1)
    assert read_image(tmp_path / "a.nii.gz").grid.same_space(volume.grid, 1e-3)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_files_of_itk_stand_where_the_nifti_stands(tmp_path, volume, suffix):
    write_image(volume, tmp_path / "a.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / f"b{suffix}"))
    back = read_image(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(back.values, volume.values)
    assert back.values.dtype == np.int16
    assert back.grid.same_space(volume.grid, 1e-3)


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
def test_mgh_is_read(tmp_path, suffix):
    values, grid = some_values("float32"), oblique()
    nibabel.save(nibabel.MGHImage(values, grid.affine.astype(np.float32)), tmp_path / f"a{suffix}")
    back = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(back.values, values)
    assert back.grid.same_space(grid, 1e-3) and back.name == "a"


def test_a_big_endian_file_comes_in_this_machines_order(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(
        nibabel.Nifti1Image(some_values(">i2"), oblique().affine, header), tmp_path / "a.nii.gz"
    )
    assert nibabel.load(tmp_path / "a.nii.gz").header.endianness == ">"
    back = read_image(tmp_path / "a.nii.gz")
    assert back.values.dtype == np.dtype("=i2") and back.values.dtype.isnative
    np.testing.assert_array_equal(back.values, some_values())


def test_scaling_of_the_header_is_applied(tmp_path):
    image = nibabel.Nifti1Image(some_values(), oblique().affine)
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii.gz")
    raw = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj.get_unscaled(), dtype=np.float64)
    np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").values, raw * 0.5 - 10, atol=1e-5)


@pytest.mark.parametrize(("unit", "scale"), [("meter", 0.001), ("micron", 1000.0)])
def test_metres_and_micrometres_become_mm(tmp_path, unit, scale):
    grid = oblique()
    image = nibabel.Nifti1Image(some_values(), np.diag([scale, scale, scale, 1]) @ grid.affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii").grid.same_space(grid, 1e-2)


def test_a_fourth_axis_of_one_is_dropped_and_others_need_a_choice(tmp_path):
    values = some_values(shape=(*SHAPE, 3))
    nibabel.save(nibabel.Nifti1Image(values[..., :1], oblique().affine), tmp_path / "one.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, oblique().affine), tmp_path / "three.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "one.nii.gz").values, values[..., 0])
    with pytest.raises(InputError, match=r"4 axes \(17, 13, 9, 3\).*channel=0"):
        read_image(tmp_path / "three.nii.gz")
    np.testing.assert_array_equal(
        read_image(tmp_path / "three.nii.gz", channel=2).values, values[..., 2]
    )
    np.testing.assert_array_equal(
        read_image(tmp_path / "one.nii.gz", channel=2).values, values[..., 0]
    )
    with pytest.raises(InputError, match="0 to 2; there is no channel 3"):
        read_image(tmp_path / "three.nii.gz", channel=3)


def test_components_of_an_itk_image_are_channels(tmp_path):
    values = some_values(shape=(9, 13, 17, 2))
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match="channel=0"):
        read_image(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.nrrd", channel=1).values, values[..., 1].transpose(2, 1, 0)
    )


def test_colours_and_flat_images_are_refused(tmp_path):
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii.gz")
    with pytest.raises(InputError, match="RGB image"):
        read_image(tmp_path / "rgb.nii.gz")
    nibabel.save(nibabel.Nifti1Image(some_values()[..., 0], np.eye(4)), tmp_path / "flat.nii.gz")
    with pytest.raises(InputError, match=r"2 axes \(17, 13\): a 2D image"):
        read_image(tmp_path / "flat.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(some_values()[0]), str(tmp_path / "flat.mha"))
    with pytest.raises(InputError, match="2D image"):
        read_image(tmp_path / "flat.mha")


def test_nan_voxels_are_read_as_they_are_unless_a_value_is_given(tmp_path):
    values = some_values("float32")
    values[3, 4, 5], values[1, 1, 1] = np.nan, np.inf
    write_image(Volume(values, oblique()), tmp_path / "a.nii.gz")
    assert np.isnan(read_image(tmp_path / "a.nii.gz").values[3, 4, 5])
    with pytest.raises(InputError, match="2 voxels that are NaN or infinite"):
        read_image(tmp_path / "a.nii.gz").check_image("fixed")
    mended = read_image(tmp_path / "a.nii.gz", nan=0.0)
    assert (
        mended.values[3, 4, 5] == 0
        and mended.values[1, 1, 1] == 0
        and mended.values.dtype == np.float32
    )
    mended.check_image("fixed")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_truncated_nifti_says_how_much_came(tmp_path, volume, name):
    write_image(volume, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(
        InputError, match=rf"{name} is damaged or cut short \({len(whole) * 2 // 3} bytes.*again"
    ):
        read_image(tmp_path / name)


def test_content_that_ends_early_inside_a_sound_gzip_is_found(tmp_path, volume):
    write_image(volume, tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole[:1000]))
    with pytest.raises(InputError, match=r"cut short.*1000 bytes of content readable"):
        read_image(tmp_path / "b.nii.gz")


def test_a_single_flipped_byte_is_found_by_the_checksum(tmp_path):
    rng = np.random.default_rng(0)
    write_image(
        Volume(rng.integers(0, 30000, SHAPE).astype(np.int16), oblique()), tmp_path / "a.nii.gz"
    )
    raw = bytearray((tmp_path / "a.nii.gz").read_bytes())
    raw[len(raw) // 2] ^= 0x40
    (tmp_path / "a.nii.gz").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="damaged"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_truncated_itk_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(some_values()), str(path))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"could not be read.*copy it again"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.nrrd", "a.mha"])
def test_text_under_the_name_of_an_image_is_refused(tmp_path, name):
    (tmp_path / name).write_text("subject,age\n1,54\n" * 40, encoding="utf-8")
    with pytest.raises(InputError, match=name):
        read_image(tmp_path / name)


def test_a_wrong_ending_gives_the_right_one(tmp_path, volume):
    write_image(volume, tmp_path / "a.nii.gz")
    write_image(volume, tmp_path / "b.nii")
    shutil.move(tmp_path / "a.nii.gz", tmp_path / "a.nii")
    shutil.move(tmp_path / "b.nii", tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match=r"rename it to end in .nii.gz"):
        read_image(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"rename it to end in .nii "):
        read_image(tmp_path / "b.nii.gz")


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no file or folder .*nowhere.nii.gz"):
        read_image(tmp_path / "nowhere.nii.gz")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(InputError, match=r"empty \(0 bytes\)"):
        read_image(tmp_path / "empty.nii.gz")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"photo.png is not of a supported type.*\.nii\.gz"):
        read_image(tmp_path / "photo.png")
    (tmp_path / "slice.dcm").write_bytes(b"\0" * 200)
    with pytest.raises(InputError, match="Give the folder that holds all slices"):
        read_image(tmp_path / "slice.dcm")
    with pytest.raises(InputError, match="no DICOM series"):
        read_image(tmp_path)


def patched(path, **fields) -> None:
    """The same file with header fields changed, unchecked."""
    raw = path.read_bytes()
    header = nibabel.Nifti1Header(raw[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + raw[348:])


def test_a_singular_affine_is_refused_with_the_files_name(tmp_path, volume):
    write_image(volume, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", srow_y=[1, 0, 0, 0], srow_x=[1, 0, 0, 0])
    with pytest.raises(InputError, match=r"a\.nii: .*(singular|spacing)"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("code", [0, 1])
def test_a_spacing_of_zero_is_refused_where_nibabel_would_make_it_one(tmp_path, volume, code):
    write_image(volume, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", pixdim=[1, 2, 0, 2, 0, 0, 0, 0], sform_code=0, qform_code=code)
    with pytest.raises(InputError, match=r"spacing \(2\.0, 0\.0, 2\.0\) mm.*above 0"):
        read_image(tmp_path / "a.nii")


def test_a_place_that_is_not_a_number_is_refused(tmp_path, volume):
    write_image(volume, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", srow_z=[0, 0, np.nan, 0])
    with pytest.raises(InputError, match="finite 4x4"):
        read_image(tmp_path / "a.nii")
    patched(tmp_path / "a.nii", sform_code=0, quatern_b=2.0)
    with pytest.raises(InputError, match=r"a\.nii"):
        read_image(tmp_path / "a.nii")


def test_too_little_memory_is_told_for_itk_files_too(tmp_path, monkeypatch):
    sitk.WriteImage(sitk.GetImageFromArray(some_values()), str(tmp_path / "a.mha"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000}))
    with pytest.raises(TooLargeError, match="would fit"):
        read_image(tmp_path / "a.mha")


def test_scaled_labels_beyond_single_precision_stay_apart(tmp_path):
    stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    image = nibabel.Nifti1Image(stored, oblique().affine)
    nibabel.save(image, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", scl_slope=1.0, scl_inter=2.0**24)
    labels = read_image(tmp_path / "a.nii", labels=True)
    np.testing.assert_array_equal(labels.values, stored.astype(np.int64) + 2**24)
    assert read_image(tmp_path / "a.nii").values.dtype == np.float32


def test_labels_are_whole_numbers_or_refused(tmp_path, volume):
    write_image(Volume(some_values("float32"), oblique()), tmp_path / "whole.nii.gz")
    labels = read_image(tmp_path / "whole.nii.gz", labels=True)
    assert labels.is_labels and labels.values.dtype.kind == "i"
    write_image(
        Volume(some_values("float32") + np.float32(0.5), oblique()), tmp_path / "parts.nii.gz"
    )
    with pytest.raises(InputError, match="values with fractions"):
        read_image(tmp_path / "parts.nii.gz", labels=True)


def test_a_pair_keeps_its_order_and_refuses_labels_of_another_grid(tmp_path, volume):
    other = Volume(some_values(), oblique(spacing=(2, 2, 2)))
    labels = Volume(np.abs(some_values()) // 40, volume.grid, is_labels=True)
    for name, each in (("m", volume), ("f", other), ("l", labels)):
        write_image(each, tmp_path / f"{name}.nii.gz")
    pair = read_pair(
        tmp_path / "m.nii.gz", tmp_path / "f.nii.gz", moving_labels=tmp_path / "l.nii.gz"
    )
    assert (pair.moving.name, pair.fixed.name, pair.fixed_labels) == ("m", "f", None)
    assert pair.moving_labels is not None and pair.moving_labels.is_labels
    with pytest.raises(InputError, match="are on another grid"):
        read_pair(tmp_path / "m.nii.gz", tmp_path / "f.nii.gz", fixed_labels=tmp_path / "l.nii.gz")


def test_an_image_is_written_as_nifti_only(tmp_path, volume):
    with pytest.raises(InputError, match=r"end in .nii or .nii.gz"):
        write_image(volume, tmp_path / "a.png")
    assert os.listdir(tmp_path) == []
