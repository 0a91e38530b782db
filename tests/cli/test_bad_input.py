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


def mha_without(files, *fields):
    path = files.folder / "bad.mha"
    sitk.WriteImage(sitk.GetImageFromArray(ramp(18, 22, 20)), str(path))
    raw = path.read_bytes()
    for field in fields:
        raw, count = re.subn(rb"(?m)^" + field.encode() + rb" =.*\n", b"", raw, count=1)
        assert count == 1, field
    path.write_bytes(raw)
    return path


def mha_without_spacing(files):
    return mha_without(files, "ElementSpacing", "TransformMatrix")


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
    mha_without_spacing: "does not give its voxel spacing.*add it to the header",
}
OF_EITHER = (constant, with_nan, missing)  # of the others one role tells of both


@pytest.mark.parametrize(
    ("make", "role"),
    [*((make, "moving") for make in BAD_IMAGES), *((make, "fixed") for make in OF_EITHER)],
)
def test_a_bad_image_is_refused_plainly(make, role, files, register, plain):
    result, out = register(**{role: make(files)})
    assert plain(result).search(BAD_IMAGES[make])
    assert not out.exists()


def test_nan_voxels_are_read_as_the_value_that_was_asked_for(files, register):
    result, _ = register("--nan 0 --affine none --no-figures", moving=with_nan(files))
    assert result.exit_code == 0, result.stderr


def test_a_place_that_was_guessed_is_said_and_the_work_goes_on(files, register):
    bad = mha_without(files, "TransformMatrix")
    result, out = register("--affine none --no-figures", moving=bad)
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert sum("does not say where its voxels are" in line for line in said) == 1
    assert "UserWarning" not in result.stderr
    assert re.search(
        r"bad\.mha' does not say where its voxels are \(.*no TransformMatrix", "".join(said)
    )
    assert (out / "report.json").is_file()


@pytest.mark.slow
def test_a_cut_transform_is_one_paragraph_in_a_real_terminal_too(files, registered, tmp_path):
    cut = tmp_path / "cut.h5"
    cut.write_bytes((registered / "transform.h5").read_bytes()[:9000])
    words = ("apply", cut, files.moving, "--reference", files.fixed, "--out", tmp_path / "out.nii")
    ended = subprocess.run(
        [sys.executable, "-m", "napari_shmoareg", *words],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: \S*cut\.h5 is damaged or cut short \(9000 bytes\)[^\n]*\n", ended.stderr
    ), ended.stderr


def labels_on_another_grid(pair):
    grid = pair.moving_labels.grid
    affine = grid.affine.copy()
    affine[:3, 3] += 5
    return Volume(pair.moving_labels.values, Grid(grid.shape, affine), "elsewhere", is_labels=True)


def fractional_labels(pair):
    return Volume(pair.moving_labels.values + 0.5, pair.moving.grid, "halves")


@pytest.mark.parametrize(
    ("make", "says"),
    [(labels_on_another_grid, "another grid"), (fractional_labels, "fractions.*nearest neighbour")],
)
def test_labels_that_do_not_fit_are_refused(make, says, files, pair, register, plain):
    result, out = register("--moving-labels", files.write(make(pair), "labels.nii.gz"))
    assert plain(result).search(says)
    assert not out.exists()


@pytest.mark.parametrize("options", ["", "--channel 0"])
def test_labels_of_several_volumes_are_refused_without_naming_an_option_that_does_not_reach_them(
    options, files, pair, register, plain
):
    four = np.stack([pair.moving_labels.values] * 2, axis=-1).astype(np.int16)
    labels = save(files.folder / "labels.nii.gz", four, pair.moving.grid.affine)
    said = plain(register(options, "--moving-labels", labels)[0])
    assert said.search("labels have to be 3D") and "--channel" not in said


def test_images_that_do_not_meet_are_refused(files, pair, register, plain):
    affine = pair.moving.grid.affine.copy()
    affine[:3, 3] += 2000
    moved = Volume(pair.moving.values, Grid(pair.moving.grid.shape, affine))
    result, out = register("--affine none", moving=files.write(moved, "away.nii.gz"))
    assert plain(result).search("overlap")
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(files, register, plain):
    out = files.folder / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert plain(register()[0]).search(r"not empty .*thesis\.txt")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("out", ["/proc/results", "/dev/null", "/dev/null/results"])
def test_a_place_that_cannot_be_written_is_refused(out, register, plain):
    assert plain(register(out=out)[0]).search("(?i)cannot|is a file")


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing(register, plain, monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("napari_shmoareg.io.registration_folder.write_transform", full)
    result, out = register("--affine none", out="results/out")
    assert plain(result).search("disk is full")
    assert list(out.parent.iterdir()) == []


def test_unknown_weights_are_refused(register, plain):
    assert plain(register(by="no-such")[0]).search("no weights 'no-such'")


def test_a_device_that_is_not_there_is_refused(register, plain, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert plain(register("--device cuda")[0]).search("cuda was requested.*--device cpu")


@pytest.mark.parametrize(
    "options",
    [
        "--affine bent",
        "--device abacus",
        "--size huge",
        "--size -3",
        "--nan much",
        "--channel -1",
        "--no-such-option",
        "--refine -1",
        "--refine many",
        "--similarity ssd",
    ],
)
def test_misuse_exits_with_2_and_names_the_help_before_anything_is_read(options, register):
    result, out = register(options)
    assert result.exit_code == 2 and options.split()[0] in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert "shmoareg register --help" in result.stderr and not out.exists()


@pytest.mark.parametrize("size", ["4", "0"])
def test_a_size_that_is_too_small_is_refused(size, register, plain):
    assert plain(register(f"--size {size}")[0]).search("at least 8")
