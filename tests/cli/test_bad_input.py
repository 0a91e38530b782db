"""What a user can get wrong: one plain paragraph on stderr, exit code 1, and nothing is written."""

from __future__ import annotations

import errno
import gzip
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.geometry import Grid, Volume

REPOSITORY = Path(__file__).resolve().parents[2]


def save(path, values, affine=None):
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def flat_slice(files):
    return save(files.folder / "bad.nii.gz", ramp(20, 22))


def one_slice(files):
    return save(files.folder / "bad.nii.gz", ramp(20, 22, 1))


def time_series(files):
    return save(files.folder / "bad.nii.gz", ramp(20, 22, 18, 3))


def colour(files):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save(files.folder / "bad.nii.gz", np.zeros((20, 22, 18), kind))


def constant(files):
    return save(files.folder / "bad.nii.gz", np.full((20, 22, 18), 7, np.int16))


def with_nan(files):
    values = ramp(20, 22, 18)
    values[3, 4, 5:9] = np.nan
    return save(files.folder / "bad.nii.gz", values)


def with_infinity(files):
    values = ramp(20, 22, 18)
    values[0, 0, 0] = np.inf
    return save(files.folder / "bad.nii.gz", values)


def _with_affine(files, affine):
    path = files.folder / "bad.nii"
    image = nibabel.Nifti1Image(ramp(20, 22, 18), np.eye(4))
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code 0, sform_code 1
    raw[280:328] = np.asarray(affine, "<f4")[:3].tobytes()
    path.write_bytes(raw)
    return path


def singular(files):
    affine = np.eye(4)
    affine[:, 1] = affine[:, 0]
    return _with_affine(files, affine)


def without_spacing(files):
    return _with_affine(files, np.diag([1.0, 1.0, 0.0, 1.0]))


def truncated(files):
    whole = files.fixed.read_bytes()
    path = files.folder / "bad.nii.gz"
    path.write_bytes(whole[: len(whole) // 2])
    return path


def wrong_type(files):
    path = files.folder / "bad.docx"
    path.write_bytes(b"PK\x03\x04 a letter")
    return path


def text_named_as_image(files):
    path = files.folder / "bad.nii.gz"
    path.write_bytes(gzip.compress(b"no image at all" * 100))
    return path


def empty_file(files):
    path = files.folder / "bad.nii.gz"
    path.touch()
    return path


def missing(files):
    return files.folder / "bad.nii.gz"


def far_too_large(files):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((9000, 9000, 9000))
    header["pixdim"][1:4] = 1
    header["vox_offset"] = 352
    header.set_sform(np.eye(4), code=1)
    path = files.folder / "bad.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + b"\0" * 4))
    return path


BAD_IMAGES = {
    flat_slice: "2D|single slice|axes",
    one_slice: "single slice",
    time_series: "--channel 0",
    colour: "(?i)colou?r|RGB",
    constant: "constant",
    with_nan: r"4 voxels that are NaN or infinite .*--nan 0",
    with_infinity: r"1 voxels? that (is|are) NaN or infinite",
    singular: "singular",
    without_spacing: "spacing|singular",
    truncated: "(?i)cut short|truncated|damaged",
    wrong_type: "not of a supported type",
    text_named_as_image: "(?i)not .*NIfTI|damaged|cannot be read",
    empty_file: "0 bytes",
    missing: "There is no file",
    far_too_large: "GiB",
}


@pytest.mark.parametrize("role", ["moving", "fixed"])
@pytest.mark.parametrize("make", BAD_IMAGES, ids=lambda make: make.__name__)
def test_a_bad_image_is_refused_plainly(make, role, files, weights, shmoareg, plain):
    bad = make(files)
    images = (bad, files.fixed) if role == "moving" else (files.moving, bad)
    out = files.folder / "out"
    result = shmoareg("register", *images, "--weights", weights, "--out", out)
    assert plain(result).search(BAD_IMAGES[make])
    assert not out.exists()


def test_nan_voxels_are_read_as_the_value_that_was_asked_for(files, weights, shmoareg):
    out = files.folder / "out"
    result = shmoareg(
        "register",
        with_nan(files),
        files.fixed,
        "--nan",
        "0",
        "--affine",
        "none",
        "--weights",
        weights,
        "--out",
        out,
        "--no-figures",
    )
    assert result.exit_code == 0, result.stderr


def nifti_without_codes(files):
    path = files.folder / "bad.nii"
    save(path, ramp(20, 22, 18))
    return _patched(path, lambda raw: raw[:252] + bytes(4) + raw[256:])  # qform_code, sform_code


def mgh_without_flag(files):
    path = files.folder / "bad.mgh"
    nibabel.save(nibabel.MGHImage(ramp(20, 22, 18), np.eye(4, dtype=np.float32)), path)
    return _patched(path, lambda raw: raw[:28] + bytes(2) + raw[30:])  # goodRASFlag


def nrrd_without_directions(files):
    path = _itk_file(files, "bad.nrrd")
    return _patched(
        path,
        lambda raw: _without(raw, "space directions", "space origin").replace(
            b"space: ", b"spacings: 1 1 1\n# "
        ),
    )


def mha_without_matrix(files):
    return _patched(_itk_file(files, "bad.mha"), lambda raw: _without(raw, "TransformMatrix"))


def nrrd_without_spacing(files):
    return _patched(
        _itk_file(files, "bad.nrrd"),
        lambda raw: _without(raw, "space directions", "space origin", "space"),
    )


def mha_without_spacing(files):
    return _patched(
        _itk_file(files, "bad.mha"), lambda raw: _without(raw, "ElementSpacing", "TransformMatrix")
    )


def _itk_file(files, name):
    path = files.folder / name
    sitk.WriteImage(sitk.GetImageFromArray(ramp(18, 22, 20)), str(path))
    return path


def _without(raw, *fields):
    for field in fields:
        raw, count = re.subn(rb"(?m)^" + field.encode() + rb"(:| =).*\n", b"", raw, count=1)
        assert count == 1, field
    return raw


def _patched(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (nifti_without_codes, "qform and sform codes are 0"),
        (mgh_without_flag, "goodRASFlag is 0"),
        (nrrd_without_directions, "no 'space directions'"),
        (mha_without_matrix, "no TransformMatrix"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_place_that_was_guessed_is_said_and_the_work_goes_on(
    make, missing, files, weights, shmoareg
):
    bad, out = make(files), files.folder / "out"
    result = shmoareg(
        "register",
        bad,
        files.fixed,
        "--affine",
        "none",
        "--weights",
        weights,
        "--out",
        out,
        "--no-figures",
    )
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert sum("does not say where its voxels are" in line for line in said) == 1
    assert re.search(rf"{bad.name}' does not say where its voxels are \(.*{missing}", "".join(said))
    assert (out / "report.json").is_file()


@pytest.mark.parametrize(
    "make", [nrrd_without_spacing, mha_without_spacing], ids=lambda make: make.__name__
)
def test_an_image_without_any_spacing_is_refused(make, files, weights, shmoareg, plain):
    out = files.folder / "out"
    result = shmoareg("register", make(files), files.fixed, "--weights", weights, "--out", out)
    assert plain(result).search("does not give its voxel spacing.*add it to the header")
    assert not out.exists()


@pytest.mark.slow
def test_a_cut_transform_is_one_paragraph_in_a_real_terminal_too(files, registered, tmp_path):
    cut = tmp_path / "cut.h5"
    cut.write_bytes((registered / "transform.h5").read_bytes()[:9000])
    command = (
        "apply",
        cut,
        files.moving,
        "--reference",
        files.fixed,
        "--out",
        tmp_path / "carried.nii.gz",
    )
    ended = subprocess.run(
        [sys.executable, "-m", "napari_shmoareg", *command],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: \S*cut\.h5 is damaged or cut short \(9000 bytes\)[^\n]*\n", ended.stderr
    ), ended.stderr


def labels_on_another_grid(files, pair):
    grid = pair.moving_labels.grid
    moved = Grid(
        grid.shape,
        np.vstack([np.column_stack([grid.affine[:3, :3], grid.affine[:3, 3] + 5]), [0, 0, 0, 1]]),
    )
    return Volume(pair.moving_labels.values, moved, "elsewhere", is_labels=True)


def fractional_labels(files, pair):
    return Volume(pair.moving_labels.values + 0.5, pair.moving.grid, "halves")


@pytest.mark.parametrize(
    ("make", "says"),
    [(labels_on_another_grid, "another grid"), (fractional_labels, "fractions.*nearest neighbour")],
)
def test_labels_that_do_not_fit_are_refused(make, says, files, pair, weights, shmoareg, plain):
    labels = files.write(make(files, pair), "labels.nii.gz")
    out = files.folder / "out"
    result = shmoareg(
        "register",
        files.moving,
        files.fixed,
        "--moving-labels",
        labels,
        "--weights",
        weights,
        "--out",
        out,
    )
    assert plain(result).search(says)
    assert not out.exists()


@pytest.mark.parametrize("options", [(), ("--channel", "0")])
def test_labels_of_several_volumes_are_refused_without_naming_an_option_that_does_not_reach_them(
    options, files, pair, weights, shmoareg, plain
):
    four = np.stack([pair.moving_labels.values] * 2, axis=-1).astype(np.int16)
    labels = save(files.folder / "labels.nii.gz", four, pair.moving.grid.affine)
    arguments = (
        "register",
        files.moving,
        files.fixed,
        "--moving-labels",
        labels,
        "--weights",
        weights,
        *options,
    )
    said = plain(shmoareg(*arguments, "--out", files.folder / "out"))
    assert said.search("labels have to be 3D") and "--channel" not in said


def test_images_that_do_not_meet_are_refused(files, pair, weights, shmoareg, plain):
    affine = pair.moving.grid.affine.copy()
    affine[:3, 3] += 2000
    away = files.write(
        Volume(pair.moving.values, Grid(pair.moving.grid.shape, affine)), "away.nii.gz"
    )
    out = files.folder / "out"
    result = shmoareg(
        "register", away, files.fixed, "--affine", "none", "--weights", weights, "--out", out
    )
    assert plain(result).search("overlap")
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(files, weights, shmoareg, plain):
    out = files.folder / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    result = shmoareg("register", files.moving, files.fixed, "--weights", weights, "--out", out)
    assert plain(result).search(r"not empty .*thesis\.txt")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("out", ["/proc/results", "/dev/null", "/dev/null/results"])
def test_a_place_that_cannot_be_written_is_refused(out, files, weights, shmoareg, plain):
    result = shmoareg("register", files.moving, files.fixed, "--weights", weights, "--out", out)
    assert plain(result).search("(?i)cannot|is a file")


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing(files, weights, shmoareg, plain, monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("napari_shmoareg.io.registration_folder.write_transform", full)
    out = files.folder / "results" / "out"
    result = shmoareg(
        "register",
        files.moving,
        files.fixed,
        "--affine",
        "none",
        "--weights",
        weights,
        "--out",
        out,
    )
    assert plain(result).search("disk is full")
    assert list(out.parent.iterdir()) == []


def test_unknown_weights_are_refused(files, shmoareg, plain):
    result = shmoareg(
        "register", files.moving, files.fixed, "--weights", "no-such", "--out", files.folder / "out"
    )
    assert plain(result).search("no weights 'no-such'")


def test_a_device_that_is_not_there_is_refused(files, weights, shmoareg, plain, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = files.folder / "out"
    result = shmoareg(
        "register",
        files.moving,
        files.fixed,
        "--weights",
        weights,
        "--device",
        "cuda",
        "--out",
        out,
    )
    assert plain(result).search("cuda was requested.*--device cpu")


@pytest.mark.parametrize(
    "options",
    [
        ("--affine", "bent"),
        ("--device", "abacus"),
        ("--size", "huge"),
        ("--size", "-3"),
        ("--nan", "much"),
        ("--channel", "-1"),
        ("--no-such-option",),
    ],
)
def test_misuse_exits_with_2_and_names_the_help(options, files, shmoareg):
    result = shmoareg(
        "register", files.moving, files.fixed, "--out", files.folder / "out", *options
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert "shmoareg register --help" in result.stderr


@pytest.mark.parametrize("size", ["4", "0"])
def test_a_size_that_is_too_small_is_refused(size, files, weights, shmoareg, plain):
    out = files.folder / "out"
    result = shmoareg(
        "register", files.moving, files.fixed, "--weights", weights, "--out", out, "--size", size
    )
    assert plain(result).search("at least 8")
