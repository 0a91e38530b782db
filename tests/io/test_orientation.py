"""Files that do not say where their voxels stand: the same words for every format."""

import gzip
import re
import warnings

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import read_image
from napari_shmoareg.io.orientation import GuessedOrientation

SHAPE, SPACING = (17, 13, 9), (1.5, 2.0, 3.5)
WORDS = (
    r"'.*{name}' does not say where its voxels are \(.*{missing}.*\); a grid whose axes run .*"
    r" was assumed, so left "
    "and right and mm may be wrong. Export the image again with its orientation"
)


def values():
    return np.random.default_rng(3).integers(0, 120, SHAPE).astype(np.int16)


def written(path):
    """A file that says everything, of any format."""
    if path.suffix in (".nii", ".mgh", ".mgz"):
        affine = np.diag([*SPACING, 1.0]).astype(np.float32)
        kind = nibabel.Nifti1Image if path.suffix == ".nii" else nibabel.MGHImage
        nibabel.save(kind(values().astype(np.float32), affine), path)
        return path
    image = sitk.GetImageFromArray(values().transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    image.SetOrigin((-20.0, 5.0, 7.0))
    sitk.WriteImage(image, str(path))
    return path


def with_bytes(path, start, new):
    compressed = path.suffix == ".mgz"
    raw = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    raw[start : start + len(new)] = new
    path.write_bytes(gzip.compress(bytes(raw)) if compressed else bytes(raw))


def with_lines(path, *changes):
    raw = path.read_bytes()
    for pattern, new in changes:
        raw, count = re.subn(pattern.encode() + rb".*\n", new.encode(), raw, count=1)
        assert count == 1, pattern
    path.write_bytes(raw)


NO_DIRECTIONS = [
    ("space: ", ""),
    ("space directions: ", "spacings: 1.5 2 3.5\n"),
    ("space origin: ", ""),
]
GUESSED = {
    "a.nii": (lambda path: with_bytes(path, 252, bytes(4)), "qform and sform codes are 0"),
    "a.mgh": (lambda path: with_bytes(path, 28, bytes(2)), "goodRASFlag is 0"),
    "a.mgz": (lambda path: with_bytes(path, 28, bytes(2)), "goodRASFlag is 0"),
    "a.nrrd": (lambda path: with_lines(path, *NO_DIRECTIONS), "no 'space directions'"),
    "a.nhdr": (lambda path: with_lines(path, *NO_DIRECTIONS), "no 'space directions'"),
    "b.nrrd": (lambda path: with_lines(path, ("space: ", "space dimension: 3\n")), "no 'space'"),
    "c.nrrd": (
        lambda path: with_lines(path, ("space: ", "space: scanner-xyz\n")),
        "'space' is 'scanner-xyz'",
    ),
    "a.mha": (lambda path: with_lines(path, ("TransformMatrix", "")), "no TransformMatrix"),
    "a.mhd": (lambda path: with_lines(path, ("TransformMatrix", "")), "no TransformMatrix"),
}


@pytest.mark.parametrize("name", GUESSED)
def test_a_guessed_place_is_warned_about_in_the_same_words_and_a_known_one_is_not(name, tmp_path):
    strip, missing = GUESSED[name]
    path = written(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)
    strip(path)
    with pytest.warns(GuessedOrientation, match=WORDS.format(name=name, missing=missing)) as said:
        guessed = read_image(path)
    assert sum(issubclass(each.category, UserWarning) for each in said) == 1
    np.testing.assert_array_equal(guessed.values, values())
    known = (1, 1, 1) if name.startswith("a.mg") else SPACING  # MGH: no flag, no spacing either
    np.testing.assert_allclose(guessed.grid.spacing, known, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "runs_to", "towards"),
    [
        ("a.nii", "to the left, the front and up", np.diag([-1, 1, 1])),
        ("a.mgh", "to the left, down and to the front", [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]),
        ("a.nrrd", "to the left, the back and up", np.diag([-1, -1, 1])),
        ("a.mha", "to the left, the back and up", np.diag([-1, -1, 1])),
    ],
)
def test_the_axes_run_where_the_warning_says(name, runs_to, towards, tmp_path):
    path = written(tmp_path / name)
    GUESSED[name][0](path)
    with pytest.warns(GuessedOrientation, match=runs_to):
        grid = read_image(path).grid
    np.testing.assert_allclose(grid.affine[:3, :3] / grid.spacing, towards, atol=1e-6)


NO_SPACING = {
    "a.mha": ([("ElementSpacing", "")], "no ElementSpacing.*'ElementSpacing = 1 1 1'"),
    "a.mhd": ([("ElementSpacing", ""), ("TransformMatrix", "")], "no ElementSpacing"),
    "a.nrrd": (
        [("space directions", "")],
        "no 'space directions' and no 'spacings'.*'spacings: 1 1 1'",
    ),
    "a.nhdr": (
        [("space directions: ", "space directions: none none none\n")],
        "no 'space directions'",
    ),
}


@pytest.mark.parametrize("name", NO_SPACING)
def test_a_file_without_a_spacing_is_refused_and_told_how_to_mend_it(name, tmp_path):
    changes, says = NO_SPACING[name]
    path = written(tmp_path / name)
    with_lines(path, *changes)
    with pytest.raises(InputError, match=rf"{name}' does not give its voxel spacing .*{says}"):
        read_image(path)


def test_the_other_names_that_metaimage_knows_are_no_lack(tmp_path):
    path = written(tmp_path / "a.mha")
    with_lines(
        path,
        ("ElementSpacing", "ElementSize = 1.5 2 3.5\n"),
        ("TransformMatrix", "Rotation = 1 0 0 0 1 0 0 0 1\n"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).grid.spacing == SPACING


@pytest.mark.parametrize(
    ("name", "pattern", "new"),
    [
        ("a.mha", "TransformMatrix", "TransformMatrix = 1 0 0 1 0 0 0 0 1\n"),
        ("a.nrrd", "space directions", "space directions: (1.5,0,0) (1.5,0,0) (0,0,3.5)\n"),
    ],
)
def test_directions_that_coincide_are_called_singular_and_not_damage(name, pattern, new, tmp_path):
    path = written(tmp_path / name)
    with_lines(path, (pattern, new))
    with pytest.raises(InputError, match=rf"{name}: The affine is singular") as caught:
        read_image(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a.mha", [("ElementSpacing", "ElementSpacing = 1.5 0 3.5\n")]),
        ("a.nrrd", [("space directions", "space directions: (1.5,0,0) (0,0,0) (0,0,3.5)\n")]),
        (
            "a.nrrd",
            [
                ("space: ", ""),
                ("space directions", "spacings: 1.5 0 3.5\n"),
                ("space origin: ", ""),
            ],
        ),
    ],
)
def test_a_spacing_of_zero_is_called_that_and_not_damage(name, changes, tmp_path):
    path = written(tmp_path / name)
    with_lines(path, *changes)
    with pytest.raises(
        InputError, match=rf"{name} has the voxel spacing \(1.5, 0.0, 3.5\) mm: .*above 0"
    ) as caught:
        read_image(path)
    assert "damaged" not in str(caught.value)
