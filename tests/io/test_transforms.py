"""The written transforms, applied by an independent reader."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import DisplacementField, Grid, Transform, Volume, inside, warp_volume
from napari_shmoareg.io import read_transform, write_displacement, write_image, write_transform
from napari_shmoareg.io.files import new_folder
from napari_shmoareg.io.itk import is_orthonormal, orthonormalised


def grid(shape, spacing, degrees, signs, centre, order=(0, 1, 2)) -> Grid:
    a, b = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ tilt @ np.diag(signs))[:, list(order)] * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


FIXED = {
    "right-handed": grid((37, 29, 23), (3.0, 3.0, 2.0), (14, -9), (1, 1, 1), (5, -12, 30)),
    "left-handed": grid((37, 29, 23), (3.0, 3.0, 2.0), (14, -9), (-1, 1, 1), (5, -12, 30)),
    "stored in another order": grid(
        (29, 23, 37), (3.0, 2.0, 3.0), (-11, 6), (1, -1, 1), (5, -12, 30), (1, 2, 0)
    ),
}
MOVING = grid((41, 33, 35), (2.5, 3.2, 2.2), (-20, 8), (-1, -1, 1), (11, -5, 24), (2, 0, 1))
# wholly covers the fixed ones
NETWORK = grid((16, 14, 12), (8.0, 8.0, 7.0), (3, 2), (1, 1, 1), (5, -12, 30))


def affine() -> np.ndarray:
    a = np.deg2rad(7.0)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(
        [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    ) @ np.diag([1.05, 0.96, 1])
    matrix[:3, 3] = (6, -4, 3)
    return matrix


def wavy(where: Grid, size=4.0) -> DisplacementField:
    x = where.to_world(np.indices(where.shape).transpose(1, 2, 3, 0))
    waves = [
        np.sin(x[..., 1] / 23 + 0.3),
        np.cos(x[..., 2] / 19 - x[..., 0] / 40),
        np.sin((x[..., 0] + x[..., 2]) / 27),
    ]
    return DisplacementField(
        (size * np.stack(waves, -1) * [1.0, 1.6, -1.3]).astype(np.float32), where
    )


def blobs(where: Grid) -> tuple[Volume, Volume]:
    """A smooth image and labels that only their place in the world decides."""
    x = where.to_world(np.indices(where.shape).transpose(1, 2, 3, 0))
    value = np.sin(x[..., 0] / 9) + np.cos(x[..., 1] / 11) + np.sin(x[..., 2] / 8 + x[..., 0] / 20)
    image = Volume((100 * value + 300).astype(np.float32), where, "moving")
    return image, Volume(
        np.digitize(value, [-0.8, 0.2, 1.1]).astype(np.uint8), where, "labels", is_labels=True
    )


def applied(
    moving_path, reference: Grid, transform: sitk.Transform, tmp_path, labels=False
) -> np.ndarray:
    """What ITK makes of the files alone: axes i, j, k."""
    write_image(
        Volume(np.zeros(reference.shape, np.uint8), reference), tmp_path / "reference.nii.gz"
    )
    method = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    image = sitk.Resample(
        sitk.ReadImage(str(moving_path)),
        sitk.ReadImage(str(tmp_path / "reference.nii.gz")),
        transform,
        method,
        0.0,
    )
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def itk_field(path) -> sitk.Transform:
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("fixed", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("kind", ["displacement.nii.gz", "transform.h5"])
def test_itk_makes_of_the_written_file_our_warped_image_and_labels(tmp_path, fixed, kind):
    transform = Transform(affine(), wavy(NETWORK))
    image, labels = blobs(MOVING)
    write_image(image, tmp_path / "moving.nii.gz")
    write_image(labels, tmp_path / "labels.nii.gz")
    path = tmp_path / kind
    if kind == "transform.h5":
        write_transform(transform, path, fixed)
        read = sitk.ReadTransform(str(path))
    else:
        write_displacement(transform.total(fixed), path)
        read = itk_field(path)
    points = fixed.to_world(np.indices(fixed.shape).transpose(1, 2, 3, 0))
    seen = inside(MOVING, transform.map_points(points))
    assert 0.3 < seen.mean() < 1  # a part of the fixed image looks outside, as in life

    ours = warp_volume(image, fixed, transform).values
    theirs = applied(tmp_path / "moving.nii.gz", fixed, read, tmp_path)
    assert np.corrcoef(ours[seen], theirs[seen])[0, 1] > 0.999
    assert np.abs(ours[seen] - theirs[seen]).mean() < 0.2  # of a standard deviation of 120
    ours = warp_volume(labels, fixed, transform).values
    theirs = applied(tmp_path / "labels.nii.gz", fixed, read, tmp_path, labels=True)
    assert (ours == theirs).mean() > 0.999


def test_the_comparison_would_see_a_wrong_sign_or_order(tmp_path):
    fixed, transform = FIXED["left-handed"], Transform(affine(), wavy(NETWORK))
    image, _ = blobs(MOVING)
    write_image(image, tmp_path / "moving.nii.gz")
    ours = warp_volume(image, fixed, transform).values
    total = transform.total(fixed)
    write_displacement(DisplacementField(-total.vectors, fixed), tmp_path / "wrong.nii.gz")
    theirs = applied(
        tmp_path / "moving.nii.gz", fixed, itk_field(tmp_path / "wrong.nii.gz"), tmp_path
    )
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("fixed", FIXED.values(), ids=FIXED)
def test_a_written_displacement_is_read_back_equal(tmp_path, fixed):
    field = wavy(fixed)
    write_displacement(field, tmp_path / "d.nii.gz")
    back = read_transform(tmp_path / "d.nii.gz")
    assert back.field is not None and back.field.grid.same_space(fixed, 1e-3)
    np.testing.assert_array_equal(back.field.vectors, field.vectors)
    np.testing.assert_array_equal(back.affine, np.eye(4))


def test_the_header_of_a_displacement_is_the_one_that_itk_reads(tmp_path):
    fixed = FIXED["left-handed"]
    write_displacement(wavy(fixed), tmp_path / "d.nii.gz")
    image = nibabel.load(tmp_path / "d.nii.gz")
    assert image.shape == (*fixed.shape, 1, 3) and image.get_data_dtype() == np.float32
    header = image.header
    assert (int(header["intent_code"]), int(header["qform_code"]), int(header["sform_code"])) == (
        1007,
        1,
        1,
    )
    np.testing.assert_array_equal(
        np.asarray(image.dataobj)[:, :, :, 0],
        wavy(fixed).vectors * np.array([-1, -1, 1], np.float32),
    )


def test_intent_1006_is_read_as_ras_like_itk_does(tmp_path):
    fixed = FIXED["right-handed"]
    field = wavy(fixed)
    image = nibabel.Nifti1Image(field.vectors[:, :, :, None], fixed.affine)
    image.header.set_intent(1006)
    image.set_qform(fixed.affine, 1)
    image.set_sform(fixed.affine, 1)
    nibabel.save(image, tmp_path / "d.nii.gz")
    back = read_transform(tmp_path / "d.nii.gz")
    np.testing.assert_array_equal(back.field.vectors, field.vectors)
    point = np.array([4.0, -10.0, 28.0])
    theirs = itk_field(tmp_path / "d.nii.gz").TransformPoint((point * [-1, -1, 1]).tolist())
    np.testing.assert_allclose(back.map_points(point), np.array(theirs) * [-1, -1, 1], atol=1e-3)


@pytest.mark.parametrize("fixed", FIXED.values(), ids=FIXED)
def test_a_written_composite_is_read_back_equal(tmp_path, fixed):
    transform = Transform(affine(), wavy(fixed))
    write_transform(transform, tmp_path / "t.h5")
    back = read_transform(tmp_path / "t.h5")
    np.testing.assert_allclose(back.affine, transform.affine, atol=1e-12)
    np.testing.assert_array_equal(back.field.vectors, transform.field.vectors)
    assert back.field.grid.same_space(fixed, 1e-9)


def test_a_transform_without_a_field_is_an_affine_in_the_file_too(tmp_path):
    write_transform(Transform(affine()), tmp_path / "t.h5")
    back = read_transform(tmp_path / "t.h5")
    np.testing.assert_allclose(back.affine, affine(), atol=1e-12)
    assert back.field is None
    assert sitk.ReadTransform(str(tmp_path / "t.h5")).GetName() == "CompositeTransform"


def test_nothing_is_lost_at_the_border_when_the_network_saw_less_than_the_fixed_image(tmp_path):
    fixed = FIXED["left-handed"]
    small = grid((8, 7, 6), (6.0, 6.0, 5.0), (14, -9), (-1, 1, 1), (5, -12, 30))
    transform = Transform(affine(), wavy(small, 6.0))
    corners = fixed.to_world([[0, 0, 0], [36, 28, 22], [0, 28, 11]])
    assert not inside(small, corners).any()
    write_transform(transform, tmp_path / "t.h5", fixed)
    read = sitk.ReadTransform(str(tmp_path / "t.h5"))
    theirs = [
        np.array(read.TransformPoint((c * [-1, -1, 1]).tolist())) * [-1, -1, 1] for c in corners
    ]
    np.testing.assert_allclose(theirs, transform.map_points(corners), atol=1e-3)


def sheared() -> Grid:
    matrix = FIXED["left-handed"].affine.copy()
    matrix[:3, 1] += 0.15 * matrix[:3, 0]
    return Grid((37, 29, 23), matrix)


def test_a_sheared_fixed_grid_is_straightened_for_itk_with_a_warning(tmp_path):
    fixed, transform = sheared(), Transform(affine(), wavy(NETWORK))
    with pytest.warns(
        UserWarning, match=r"the field in t\.h5 was resampled onto straightened axes"
    ):
        write_transform(transform, tmp_path / "t.h5", fixed)
    read = sitk.ReadTransform(str(tmp_path / "t.h5"))
    points = fixed.to_world(
        np.random.default_rng(0).uniform(0, 1, (200, 3)) * (np.array(fixed.shape) - 1)
    )
    theirs = np.array([read.TransformPoint((p * [-1, -1, 1]).tolist()) for p in points]) * [
        -1,
        -1,
        1,
    ]
    assert np.linalg.norm(theirs - transform.map_points(points), axis=1).max() < 0.15
    with pytest.warns(UserWarning, match=r"the grid of d\.nii\.gz are not at right angles"):
        write_displacement(transform.total(fixed), tmp_path / "d.nii.gz")
    np.testing.assert_array_equal(
        read_transform(tmp_path / "d.nii.gz").field.vectors, transform.total(fixed).vectors
    )


def test_a_straightened_grid_stands_at_right_angles_and_covers_the_old_one():
    new = orthonormalised(sheared())
    assert is_orthonormal(new) and not is_orthonormal(sheared())
    assert np.linalg.det(new.affine[:3, :3]) < 0  # handedness is kept
    np.testing.assert_allclose(new.spacing, sheared().spacing)
    assert inside(new, sheared().corners()).all()


@pytest.mark.parametrize("off", [0, 1e-4, 1e-3, 3e-2])
def test_what_is_said_of_slightly_skewed_axes_is_what_itk_does(off, tmp_path):
    skew = np.eye(4)
    skew[0, 1] = off
    fixed = Grid((37, 29, 23), FIXED["left-handed"].affine @ skew)
    transform = Transform(affine(), wavy(NETWORK))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_displacement(transform.total(fixed), tmp_path / "d.nii.gz")
        write_transform(transform, tmp_path / "t.h5", fixed)
    assert [bool(said)] * len(said) == [off == 3e-2] * len(said) and bool(said) == (off == 3e-2)
    try:
        seen = sitk.ReadImage(str(tmp_path / "d.nii.gz"))
    except RuntimeError:
        assert said
        return
    assert not said
    last = [n - 1 for n in fixed.shape]
    corner = np.array(seen.TransformIndexToPhysicalPoint(last)) * [-1, -1, 1]
    assert np.linalg.norm(corner - fixed.to_world(last)) < 0.1 * min(fixed.spacing)
    back = read_transform(tmp_path / "t.h5")
    assert back.field.grid.same_space(fixed, 1e-6), "resampled without need"


def test_a_file_on_which_the_library_of_hdf5_breaks_down_is_refused(tmp_path):
    fixed = FIXED["right-handed"]
    write_transform(Transform(affine(), wavy(fixed)), tmp_path / "t.h5")
    raw = (tmp_path / "t.h5").read_bytes()
    dice = np.random.default_rng(0)
    for _ in range(3):
        broken = bytearray(raw)
        for at in dice.integers(2048, 6000, 40):
            broken[at] = 255 - broken[at]
        (tmp_path / "broken.h5").write_bytes(broken)
        with pytest.raises(InputError, match=r"broken\.h5 is damaged"):
            read_transform(tmp_path / "broken.h5")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes on it"),
        ("print('x')", None),
    ],
)
def test_a_reader_that_dies_takes_nothing_with_it(program, says, tmp_path, monkeypatch):
    write_transform(Transform(affine()), tmp_path / "t.h5")
    monkeypatch.setattr("napari_shmoareg.io.transforms._PROBE", program)
    if says is None:
        np.testing.assert_allclose(read_transform(tmp_path / "t.h5").affine, affine(), atol=1e-12)
        return
    with pytest.raises(InputError, match=says):
        read_transform(tmp_path / "t.h5")


def test_linear_parts_around_a_field_are_read_in_their_order(tmp_path):
    fixed = FIXED["right-handed"]
    write_transform(Transform(np.eye(4), wavy(fixed)), tmp_path / "f.h5")
    field = sitk.ReadTransform(str(tmp_path / "f.h5")).GetNthTransform(1).Downcast()
    turn = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, -0.05, 0.08, (2.0, 1.0, -4.0))
    shift = sitk.TranslationTransform(3, (3.0, -2.0, 1.0))
    whole = sitk.CompositeTransform([turn, shift, field, turn.GetInverse(), shift])
    sitk.WriteTransform(whole, str(tmp_path / "whole.h5"))
    ours = read_transform(tmp_path / "whole.h5")
    points = fixed.to_world(
        np.random.default_rng(1).uniform(0.3, 0.7, (50, 3)) * (np.array(fixed.shape) - 1)
    )
    theirs = np.array([whole.TransformPoint((p * [-1, -1, 1]).tolist()) for p in points]) * [
        -1,
        -1,
        1,
    ]
    np.testing.assert_allclose(ours.map_points(points), theirs, atol=1e-3)


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat"])
def test_linear_files_of_itk_and_ants_are_read(tmp_path, suffix):
    linear = sitk.AffineTransform(3)
    linear.SetMatrix([1.1, 0.1, 0, -0.05, 0.9, 0, 0, 0.02, 1])
    linear.SetTranslation([5, -3, 2])
    linear.SetCenter([10, 20, 30])
    sitk.WriteTransform(linear, str(tmp_path / f"t{suffix}"))
    ours = read_transform(tmp_path / f"t{suffix}")
    theirs = np.array(linear.TransformPoint((-7.0, -8.0, 9.0))) * [-1, -1, 1]
    np.testing.assert_allclose(ours.map_points([7.0, 8.0, 9.0]), theirs, atol=1e-5)


def test_a_vector_mha_is_a_displacement_field_too(tmp_path):
    fixed = FIXED["right-handed"]
    write_displacement(wavy(fixed), tmp_path / "d.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "d.nii.gz")), str(tmp_path / "d.mha"))
    back = read_transform(tmp_path / "d.mha")
    np.testing.assert_allclose(back.field.vectors, wavy(fixed).vectors)
    assert back.field.grid.same_space(fixed, 1e-3)


def test_what_is_no_transform_is_refused_plainly(tmp_path):
    fixed = FIXED["right-handed"]
    with pytest.raises(InputError, match="no transform file"):
        read_transform(tmp_path / "nowhere.h5")
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="not of a supported transform type"):
        read_transform(tmp_path / "notes.json")
    for name in ("a.h5", "a.mat", "a.txt"):
        (tmp_path / name).write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"not a transform that ITK reads"):
            read_transform(tmp_path / name)
    write_image(Volume(np.zeros(fixed.shape), fixed), tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match=r"not a displacement field as ITK"):
        read_transform(tmp_path / "image.nii.gz")
    write_transform(Transform(affine(), wavy(fixed)), tmp_path / "t.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "t.h5").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut.h5 is damaged or cut short \(5000 bytes\)"):
        read_transform(tmp_path / "cut.h5")
    field = sitk.ReadTransform(str(tmp_path / "t.h5")).GetNthTransform(1).Downcast()
    sitk.WriteTransform(sitk.CompositeTransform([field, field]), str(tmp_path / "two.h5"))
    with pytest.raises(InputError, match="two displacement fields"):
        read_transform(tmp_path / "two.h5")
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "spline.h5"))
    with pytest.raises(InputError, match="BSpline"):
        read_transform(tmp_path / "spline.h5")


@pytest.mark.parametrize(
    ("free", "says"), [(10_000, "The disk is full: "), (10**12, "its disk has space")]
)
def test_a_failure_of_itk_is_said_with_the_final_name_and_without_its_libraries_noise(
    tmp_path, monkeypatch, capfd, free, says
):
    def fail(*_):
        os.write(2, b"HDF5-DIAG: Error detected in HDF5\n")
        raise RuntimeError("Exception thrown in SimpleITK WriteTransform")

    monkeypatch.setattr(sitk, "WriteTransform", fail)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with (
        pytest.raises(InputError, match=says) as caught,
        new_folder(tmp_path / "results") as folder,
    ):
        write_transform(Transform(affine(), wavy(NETWORK)), folder / "transform.h5")
    assert str(tmp_path / "results" / "transform.h5") in str(caught.value)
    assert "partial" not in str(caught.value)
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_reading_is_possible_where_stderr_is_closed(tmp_path):
    write_transform(Transform(affine()), tmp_path / "t.h5")
    code = (
        "import os, sys\n"
        "os.close(2)\n"
        "sys.stderr = None\n"
        "from napari_shmoareg.io.transforms import read_transform\n"
        "print(read_transform(sys.argv[1]).field)\n"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.h5"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "None\n"


def test_other_endings_are_not_written(tmp_path):
    with pytest.raises(InputError, match=r"end in .nii or .nii.gz"):
        write_displacement(wavy(NETWORK), tmp_path / "d.h5")
    with pytest.raises(InputError, match=r"end in .h5"):
        write_transform(Transform(affine()), tmp_path / "t.mat")


def test_nitransforms_maps_points_as_we_do(tmp_path):
    nonlinear = pytest.importorskip(
        "nitransforms.nonlinear", reason="nitransforms is not installed"
    )
    fixed, transform = FIXED["left-handed"], Transform(affine(), wavy(NETWORK))
    write_displacement(transform.total(fixed), tmp_path / "d.nii.gz")
    theirs = nonlinear.DenseFieldTransform.from_filename(tmp_path / "d.nii.gz", fmt="itk")
    points = fixed.to_world([[5, 6, 7], [30, 20, 10], [18, 3, 15]])
    np.testing.assert_allclose(theirs.map(points), transform.map_points(points), atol=1e-2)
