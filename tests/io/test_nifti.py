"""NIfTI and MGH headers: the right place and values, or a true reason; what ITK reads is the
measure.
"""

from __future__ import annotations

import gzip
import os
import resource
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import read_image, read_transform
from napari_shmoareg.io.images import inspect_file
from napari_shmoareg.io.orientation import AmbiguousOrientation
from napari_shmoareg.io.streams import UnreadBytes

SHAPE = (11, 9, 7)
AFFINE = np.diag([2.0, 2.5, 3.0, 1.0])
AFFINE[:3, 3] = (-30, -40, -20)
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def values(kind="int16"):
    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(kind)


def image(qform=1, sform=1, kind=nibabel.Nifti1Image, q=AFFINE, s=AFFINE):
    made = kind(values(), AFFINE)
    made.set_qform(q, qform)
    made.set_sform(s, sform)
    return made


def patched(path, made, **fields):
    """A file whose header fields are changed without a check."""
    size = made.header.sizeof_hdr
    raw = made.to_bytes()
    header = type(made.header)(raw[:size])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + raw[size:])
    return path


def by_itk(path):
    """Voxel index to RAS mm, as ITK reads a file."""
    read = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    return FLIP @ affine


def quiet(path, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_image(path, **more)


SHIFTED = AFFINE.copy()
SHIFTED[1, 3] += 25


@pytest.mark.parametrize(("qform", "sform"), [(1, 1), (1, 2), (2, 1), (2, 4), (4, 3)])
def test_two_places_are_said_and_which_of_them_itk_takes_is_true(qform, sform, tmp_path):
    path = tmp_path / "a.nii"
    nibabel.save(image(qform, sform, s=SHIFTED), path)
    with pytest.warns(
        AmbiguousOrientation, match=r"qform \(code .*sform \(code .* disagree by up to 25 "
    ) as said:
        grid = read_image(path).grid
    np.testing.assert_allclose(grid.affine, SHIFTED, atol=1e-4)
    itk_takes_the_same = np.allclose(by_itk(path), SHIFTED, atol=1e-3)
    assert ("use the sform too" in str(said[0].message)) == itk_takes_the_same
    assert ("use the qform: a transform" in str(said[0].message)) == (not itk_takes_the_same)


def test_forms_that_agree_to_rounding_or_stand_alone_are_not_spoken_of(tmp_path):
    near = AFFINE.copy()
    near[:3, 3] += 0.01
    for name, made in (
        ("a.nii", image(1, 2, s=near)),
        ("b.nii", image(0, 2, s=SHIFTED)),
        ("c.nii", image(1, 0, s=None)),
    ):
        nibabel.save(made, tmp_path / name)
        quiet(tmp_path / name)


def test_a_spacing_that_the_sform_does_not_have_is_said(tmp_path):
    path = patched(tmp_path / "a.nii", image(), qform_code=0, pixdim=[1, 2, 2.5, 6, 0, 0, 0, 0])
    with pytest.warns(
        AmbiguousOrientation, match=r"2 x 2\.5 x 6 in pixdim but 2 x 2\.5 x 3 in its sform"
    ):
        grid = read_image(path).grid
    np.testing.assert_allclose(grid.spacing, (2, 2.5, 3))
    assert by_itk(path)[2, 2] == 6


@pytest.mark.parametrize(
    "quaternion",
    [
        (0.70711, 0.70711, 0),
        (0.70711, 0, 0.70711),
        (1.00001, 0, 0),
        (0.58, 0.58, 0.58),
        (0.71, 0, 0.71),
    ],
)
@pytest.mark.parametrize("qfac", [1, 0, -1])
def test_a_quaternion_a_hair_above_length_one_is_read_as_itk_reads_it(quaternion, qfac, tmp_path):
    b, c, d = quaternion
    pixdim = [qfac, 2, 2.5, 3, 0, 0, 0, 0]
    path = patched(
        tmp_path / "a.nii",
        image(1, 0, s=None),
        quatern_b=b,
        quatern_c=c,
        quatern_d=d,
        pixdim=pixdim,
    )
    np.testing.assert_allclose(quiet(path).grid.affine, by_itk(path), atol=1e-3)


def test_a_quaternion_far_above_length_one_is_called_that(tmp_path):
    path = patched(tmp_path / "a.nii", image(1, 0, s=None), quatern_b=0.9, quatern_c=0.9)
    with pytest.raises(
        InputError, match=r"quaternion \(0\.9, 0\.9, 0\) .* add up to 1\.62; at most 1"
    ):
        read_image(path)


@pytest.mark.parametrize("sform", [0, 1])
def test_a_spacing_below_0_is_said_to_be_read_otherwise_by_itk_and_is(sform, tmp_path):
    pixdim = [1, 2, -2.5, 3, 0, 0, 0, 0]
    path = patched(tmp_path / "a.nii", image(1 - sform, sform), pixdim=pixdim)
    with pytest.warns(AmbiguousOrientation, match=r"2 x -2\.5 x 3"):
        np.testing.assert_allclose(read_image(path).grid.affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(by_itk(path)[:3, :3], np.diag([2, -2.5, 3]), atol=1e-4)


@pytest.mark.parametrize(
    ("code", "warned"), [(0, False), (2, False), (10, False), (4, True), (7, True), (63, True)]
)
def test_a_unit_beyond_the_standard_is_mm_with_a_warning(code, warned, tmp_path):
    path = patched(tmp_path / "a.nii", image(), xyzt_units=code)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read_image(path).grid.spacing == (2, 2.5, 3)
    assert [f"code {code & 7} of xyzt_units" in str(each.message) for each in said] == [
        True
    ] * warned


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_data_offset_of_zero_is_the_first_that_may_be(kind, name, tmp_path):
    path = patched(tmp_path / "plain.nii", image(kind=kind), vox_offset=0)
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    else:
        path.rename(tmp_path / name)
    with pytest.warns(UserWarning, match="vox_offset is 0"):
        np.testing.assert_array_equal(read_image(tmp_path / name).values, values())


@pytest.mark.parametrize("offset", [-16, 1, 348, 351, 352.5, np.nan, np.inf, 1e30, 1e9])
def test_another_data_offset_that_cannot_be_is_refused_with_its_number(offset, tmp_path):
    path = patched(tmp_path / "a.nii", image(), vox_offset=offset)
    with pytest.raises(InputError, match=r"voxels begin at byte .* \(vox_offset\)"):
        read_image(path)


def test_extensions_before_the_voxels_are_passed_over(tmp_path):
    made = image()
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"scanned twice"))
    nibabel.save(made, tmp_path / "a.nii.gz")
    assert nibabel.load(tmp_path / "a.nii.gz").dataobj.offset > 352
    np.testing.assert_array_equal(quiet(tmp_path / "a.nii.gz").values, values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dim": [0, 11, 9, 7, 1, 1, 1, 1]}, "has 0 axes according to its header"),
        ({"dim": [8, 11, 9, 7, 1, 1, 1, 1]}, "has 8 axes according to its header"),
        ({"dim": [-1, 11, 9, 7, 1, 1, 1, 1]}, "has -1 axes according to its header"),
        ({"dim": [3, 11, -9, 7, 1, 1, 1, 1]}, "a negative number of voxels"),
        ({"dim": [3, 11, 0, 7, 1, 1, 1, 1]}, "is empty"),
        ({"dim": [7, 32767, 32767, 32767, 32767, 32767, 32767, 32767]}, "GiB of memory"),
        ({"datatype": 32}, "complex numbers"),
        ({"datatype": 2304}, "RGB image"),
        ({"datatype": 4711}, "data type 4711"),
        ({"datatype": 1}, "data type 1 "),
        ({"scl_slope": np.inf}, "scales its voxels by inf"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scales its voxels by 2.0 and nan"),
        ({"magic": b"ni1"}, r"header of a file pair"),
        ({"magic": b""}, "Analyze 7.5"),
        ({"sizeof_hdr": 349}, "size 348 or 540"),
        ({"srow_x": [1e30, 0, 0, 0]}, "which no image has"),
        ({"srow_x": [1e-12, 0, 0, 0]}, "which no image has|singular"),
        ({"srow_x": [2, 0, 0, 1e12]}, "which no image has"),
        ({"intent_code": 3006}, "CIFTI-2 file"),
        ({"intent_code": 2005, "dim": [3, 693, 1, 1, 1, 1, 1, 1]}, "values on a surface"),
    ],
)
def test_a_header_that_cannot_be_is_refused_with_what_is_wrong(fields, says, tmp_path):
    path = patched(tmp_path / "a.nii", image(), **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmbiguousOrientation)
        with pytest.raises(InputError, match=says):
            read_image(path)
    inspect_file(path)  # counts as an image, and raises nothing


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_zero_or_nan_scales_nothing(slope, tmp_path):
    path = patched(tmp_path / "a.nii", image(), scl_slope=slope, scl_inter=5)
    np.testing.assert_array_equal(read_image(path).values, values())


def test_a_cifti_file_is_no_volume():
    path = Path(nibabel.__path__[0]) / "tests" / "data" / "row_major.dconn.nii"
    if not path.is_file():
        pytest.skip("nibabel came without its test data")
    with pytest.raises(InputError, match=r"CIFTI-2 file .* not a volume"):
        read_image(path)
    assert inspect_file(path).kind == "image"


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"NRRD0005\n", "an NRRD file: rename"),
        (b"ObjectType = Image\n", "a MetaImage file: rename"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"<?xml version='1.0'?><GIFTI>", "GIFTI surface"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\0" * 128 + b"DICM", "a DICOM file"),
    ],
)
def test_a_file_of_another_type_is_called_by_its_name(start, says, tmp_path):
    (tmp_path / "a.nii").write_bytes(start + bytes(1000))
    with pytest.raises(InputError, match=says):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.Nii.gz", "a.NII.gz", "a.nii.GZ", "a.NII.GZ", "a.NiI"])
def test_the_case_of_an_ending_means_nothing(name, tmp_path):
    raw = image().to_bytes()
    (tmp_path / name).write_bytes(raw if name.endswith("I") else gzip.compress(raw))
    np.testing.assert_array_equal(quiet(tmp_path / name).values, values())


def test_mgz_in_capitals_is_read_too(tmp_path):
    made = nibabel.MGHImage(values(), AFFINE.astype(np.float32))
    (tmp_path / "a.MGZ").write_bytes(gzip.compress(made.to_bytes()))
    found = quiet(tmp_path / "a.MGZ")
    np.testing.assert_array_equal(found.values, values())
    np.testing.assert_allclose(found.grid.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "warned"),
    [(b"\0" * 512, False), (b"SIGN" * 5, True), (gzip.compress(b"more", mtime=0), True)],
    ids=["zeros", "a signature", "another member"],
)
def test_bytes_after_the_gzip_stream_do_not_hinder(after, warned, tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(image().to_bytes()) + after)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_image(path).values, values())
    assert [issubclass(each.category, UnreadBytes) for each in said] == [True] * warned


def test_a_stream_of_several_members_is_read_whole(tmp_path):
    raw = image().to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(
        b"\0".join(gzip.compress(part) for part in (raw[:200], raw[200:900], raw[900:]))
    )
    np.testing.assert_array_equal(quiet(tmp_path / "a.nii.gz").values, values())


def test_a_wrong_checksum_of_a_later_member_is_found(tmp_path):
    raw = image().to_bytes()
    second = bytearray(gzip.compress(raw[900:]))
    second[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:900]) + second)
    with pytest.raises(InputError, match="is damaged or cut short"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_a_bomb_behind_a_small_header_is_not_unpacked(name, tmp_path):
    made = image() if name == "a.nii.gz" else nibabel.MGHImage(values(), AFFINE.astype(np.float32))
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        file.write(made.to_bytes())
        for _ in range(64):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.warns(UnreadBytes, match="more than 16 MiB follow"):
        np.testing.assert_array_equal(read_image(tmp_path / name).values, values())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("a.nii.gz", "a.nii", "a.mha", "a.nrrd", "a.mgz"):
        os.mkfifo(tmp_path / name)
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
        for path in (tmp_path / name, tmp_path / f"link-{name}"):
            inspect_file(path)
            for read in (read_image, read_transform):
                with pytest.raises(InputError, match="is a named pipe; a regular file was expect"):
                    read(path)


def test_a_device_is_refused(tmp_path):
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    (tmp_path / "a.nii").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a device"):
        read_image(tmp_path / "a.nii")


def test_scaled_values_near_2_to_the_31_keep_their_differences(tmp_path):
    path = patched(tmp_path / "a.nii", image(), scl_slope=0.25, scl_inter=2.0**31)
    found = read_image(path).values
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values() * 0.25 + 2.0**31)
