"""Every command that takes a pair takes one of any shape, or says in a sentence why not."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

SHAPES = st.tuples(*[st.integers(2, 40)] * 3)
ANY_SHAPE = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write(folder, name, shape, seed):
    """A blob with texture, off the middle by an amount that depends on the seed; and its label."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n) for n in shape]
    far = sum((axis - 0.1 * seed) ** 2 for axis in np.meshgrid(*axes, indexing="ij"))
    values = (900 * np.exp(-3 * far) + 20 * rng.random(shape)).astype(np.int16)
    affine = np.diag([1.5, 1.5, 6.0, 1.0])
    nib.save(nib.Nifti1Image(values, affine), folder / f"{name}.nii.gz")
    nib.save(
        nib.Nifti1Image((values > 450).astype(np.uint8), affine), folder / f"{name}_seg.nii.gz"
    )
    return folder / f"{name}.nii.gz", folder / f"{name}_seg.nii.gz"


def pair_of(folder, moving, fixed):
    folder.mkdir()
    return *write(folder, "moving", moving, 0), *write(folder, "fixed", fixed, 1)


def check(result):
    """Done, or refused in a sentence about the input."""
    said = result.stdout + result.stderr
    assert result.exit_code in (0, 1), said
    assert "bug" not in said and "Traceback" not in said, said
    assert result.exit_code == 0 or "Error: " in result.stderr, said


@ANY_SHAPE
@given(moving=SHAPES, fixed=SHAPES)
def test_every_pair_is_registered_and_refined(moving, fixed, shmoareg, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    a, a_labels, b, b_labels = pair_of(folder / "in", moving, fixed)
    out = folder / "out"
    options = (
        "--moving-labels",
        a_labels,
        "--fixed-labels",
        b_labels,
        "--weights",
        weights,
        "--refine",
        3,
    )
    result = shmoareg("register", a, b, *options, "--no-figures", "--quiet", "--out", out)
    check(result)
    if result.exit_code == 0:
        assert nib.load(out / "warped.nii.gz").shape == fixed
        displacement = np.asarray(nib.load(out / "displacement.nii.gz").dataobj)
        assert displacement.shape == (*fixed, 1, 3) and np.isfinite(displacement).all()
    else:
        assert not out.exists()


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 40, 3), (40, 36, 2), (5, 6, 7)])
def test_every_other_command_takes_every_shape(shape, shmoareg, weights, tmp_path):
    a, a_labels, b, b_labels = pair_of(tmp_path / "in", shape, shape)
    listed = tmp_path / "pairs.csv"
    listed.write_text(
        f"moving,fixed,moving_labels,fixed_labels\n{a},{b},{a_labels},{b_labels}\n",
        encoding="utf-8",
    )
    check(
        shmoareg(
            "inspect", "--pairs", listed, "--weights", weights, "--out", tmp_path / "inspected"
        )
    )
    evaluate = (
        "evaluate",
        listed,
        "--weights",
        weights,
        "--method",
        "shmoareg",
        "--refine",
        2,
        "--quiet",
    )
    check(shmoareg(*evaluate, "--out", tmp_path / "evaluated"))
    training = ("fine-tune", listed, "--from", weights, "--steps", 1, "--size", 16)
    check(shmoareg(*training, "--out", tmp_path / "tuned"))
    result = shmoareg(
        "register", a, b, "--weights", weights, "--no-figures", "--quiet", "--out", tmp_path / "out"
    )
    check(result)
    if result.exit_code == 0:
        report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
        assert report["kept"] in ("before", "affine", "network")
        carried = tmp_path / "carried.nii.gz"
        check(
            shmoareg(
                "apply", tmp_path / "out" / "transform.h5", a, "--reference", b, "--out", carried
            )
        )
        assert nib.load(carried).shape == shape
