"""NiftyReg as a peer: what its programs are given and what becomes of what they write, by stand-ins
for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation import baselines, methods
from napari_shmoareg.evaluation.methods import check_available, load_method, used_versions
from napari_shmoareg.geometry import Grid

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the stand-ins are scripts that begin with #!"
)

REG_F3D = """
import os, sys
from pathlib import Path
import nibabel, numpy
if "--version" in sys.argv:
    sys.exit(print("1.5.70"))
assert sys.argv[1:] == "-ref fixed.nii -flo moving.nii -cpp cpp.nii -res warped.nii".split(), sys.argv
fixed, moving = nibabel.load("fixed.nii"), nibabel.load("moving.nii")
assert numpy.array_equal(fixed.affine, moving.affine)
numpy.savez(
    LOG, fixed=fixed.dataobj, moving=moving.dataobj, spacing=fixed.header.get_zooms(), folder=os.getcwd(),
    threads=os.environ["OMP_NUM_THREADS"],
)
Path("cpp.nii").write_text("control points")
"""

REG_TRANSFORM = """
import sys
from pathlib import Path
import nibabel, numpy
if "--version" in sys.argv:
    sys.exit(print("1.5.70"))
assert sys.argv[1:] == "-ref fixed.nii -disp cpp.nii disp.nii".split(), sys.argv
assert Path("cpp.nii").read_text() == "control points"
reference = nibabel.load("fixed.nii")
vectors = numpy.zeros((*reference.shape, 1, 3), dtype=numpy.float32)
vectors[...] = reference.affine[:3, :3] @ (2, -1, 1)  # mm in the world of the file, RAS
vectors[3, 4, 5] = reference.affine[:3, :3] @ (0, 3, 0)
made = nibabel.Nifti1Image(vectors, reference.affine)
made.header.set_intent("vector", name="NREG_TRANS")
made.header["intent_p1"] = 1
nibabel.save(made, "disp.nii")
"""


@pytest.fixture
def log(tmp_path, put_on_path) -> Path:
    """Where what reg_f3d was given comes to stand; both programs are on the PATH."""
    put_on_path("reg_f3d", f"LOG = {str(tmp_path / 'log.npz')!r}\n{REG_F3D}")
    put_on_path("reg_transform", REG_TRANSFORM)
    return tmp_path / "log.npz"


def test_the_displacement_of_a_file_comes_back_in_voxels_along_the_array_s_axes(log):
    """On a grid whose axes point the other way, of another length and spacing each."""
    grid = Grid((9, 8, 10), np.diag([-1.5, 2.0, -3.0, 1.0]))
    fixed, moving = np.random.default_rng(0).random((2, *grid.shape), dtype=np.float32)
    expected = np.full((*grid.shape, 3), (2.0, -1.0, 1.0))
    expected[3, 4, 5] = (0, 3, 0)
    np.testing.assert_allclose(baselines._run_niftyreg(fixed, moving, grid), expected, atol=1e-6)
    seen = np.load(log)
    assert np.array_equal(seen["fixed"], fixed) and np.array_equal(seen["moving"], moving)
    assert seen["spacing"].tolist() == [1.5, 2, 3] and seen["threads"] == str(
        torch.get_num_threads()
    )
    assert not Path(str(seen["folder"])).exists()


def test_the_whole_run_is_a_field_in_mm_of_the_fixed_world(log, pair, monkeypatch):
    from napari_shmoareg.evaluation import baselines

    monkeypatch.setattr(
        baselines, "align", lambda pair, mode: type("Found", (), {"matrix": np.eye(4)})
    )
    found = load_method("niftyreg").run(pair).vectors[10, 11, 12]
    assert found == pytest.approx(pair.fixed.grid.affine[:3, :3] @ (2, -1, 1), abs=1e-4)


@pytest.mark.parametrize("program", ["reg_f3d", "reg_transform"])
def test_a_program_that_fails_is_told_with_what_it_said_and_leaves_no_files(
    program, log, put_on_path, tmp_path
):
    note = f"import os, sys; open({str(tmp_path / 'where')!r}, 'w').write(os.getcwd())\n"
    put_on_path(
        program,
        note
        + "print('level 1')\nprint('[NiftyReg ERROR] no\\n memory', file=sys.stderr)\nsys.exit(3)",
    )
    values = np.zeros((5, 5, 5), dtype=np.float32)
    with pytest.raises(
        RuntimeError, match=rf"^{program} ended with code 3: \[NiftyReg ERROR\] no memory$"
    ):
        baselines._run_niftyreg(values, values, Grid(values.shape, np.eye(4)))
    assert not Path((tmp_path / "where").read_text(encoding="utf-8")).exists()


def test_programs_that_are_not_there_are_said_with_where_they_come_from(monkeypatch):
    monkeypatch.setattr(methods, "which", lambda program: None)
    with pytest.raises(
        InputError, match=r"no reg_f3d and no reg_transform on the PATH: .*KCL-BMEIS/niftyreg"
    ):
        check_available("niftyreg")


def test_the_programs_say_which_version_they_are(log, put_on_path):
    put_on_path("reg_transform", "")
    assert used_versions("niftyreg") == {"reg_f3d": "1.5.70", "reg_transform": "unknown"}
